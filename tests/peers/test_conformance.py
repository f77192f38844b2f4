"""The conformance suite against what others made: it runs to its end, and finds what `spec_notes/findings.md` tells of.

A finding that is gone, in another version, fails here: then the notes are to be changed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import pytest

from tests.peers.process import listening, wait_until
from tests.peers.require import require
from tests.peers.test_dpdk_net import forward
from tests.peers.uml import UserModeLinux, VhostUser
from virtio_py.cli.main import main
from virtio_py.spec import DeviceId

pytestmark = [pytest.mark.peer, pytest.mark.long]

Rows = list[dict[str, Any]]


def conform(tmp_path: Path, device: str, spawn: str, *options: str) -> Rows:
    """The verdicts on a back-end that `spawn` starts on the socket tmp_path/s."""
    written = tmp_path / "verdicts.json"
    common = ["--socket-path", str(tmp_path / "s"), "--device", device, "--json", str(written), "--spawn", spawn]
    status = main(["conform", *common, *options])
    rows: Rows = json.loads(written.read_text())["verdicts"]
    assert status == any(row["verdict"] in ("FAIL", "WEDGED") for row in rows)
    return rows


def found(rows: Rows, *verdicts: str) -> dict[str, set[str]]:
    """The checks that ended so, by clause."""
    names: dict[str, set[str]] = {}
    for row in rows:
        if row["verdict"] in verdicts:
            names.setdefault(row["clause"], set()).add(row["detail"].rpartition("(")[2].rstrip(")"))
    return names


def passed(rows: Rows) -> int:
    return sum(row["verdict"] == "PASS" for row in rows)


def test_qemu_storage_daemon(tmp_path: Path) -> None:
    [program] = require("qemu-storage-daemon")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    spawn = (
        f"{program} --blockdev driver=file,node-name=disk0,filename={image},discard=unmap --export type=vhost-user-blk,"
        f"id=export0,node-name=disk0,addr.type=unix,addr.path={tmp_path / 's'},num-queues=1,writable=on"
    )
    rows = conform(tmp_path, "blk", spawn)
    assert found(rows, "FAIL", "WEDGED") == {
        "status.device.device-status-field.1": {"nothing_before_driver_ok"},
        "split.device.indirect-descriptors.2": {"direct_ones_before_a_table"},
    }
    assert passed(rows) > 40
    # Every hostile chain that it does not simply serve makes it hang up, and it takes the next connection.
    assert sum(row["verdict"] == "REJECT" for row in rows) > 20


DPDK_HOSTILE = "split.driver.available-ring.1"


def dpdk(socket: Path) -> str:
    [program] = require("dpdk-testpmd")
    eal = "--lcores 0@0,1@0 --no-pci --no-huge -m 256 --no-telemetry --no-shconf"
    work = "--forward-mode=macswap --port-topology=loop --total-num-mbufs=8192 --no-mlockall --rxq=1 --txq=1"
    return f"{program} {eal} --vdev net_vhost0,iface={socket},queues=1 -- {work} --stats-period=100"


def test_dpdk(tmp_path: Path) -> None:
    rows: Rows = []
    for area in ("features", "status", "reset", "net", "prose", "packed", "split.device"):
        rows += conform(tmp_path, "net", dpdk(tmp_path / "s"), "--only", area, "--patience", "2")
    assert set(found(rows, "FAIL")) == {
        "features.device.feature-bits.1",
        "net.device.incoming-packets.1",
        "prose.packed.used-length",
    }
    # It offers VIRTIO_NET_F_CTRL_VQ, and serves no controlq.
    assert {"receive_modes_are_set", "a_filter_table_is_set", "an_unknown_command"} <= {
        name for names in found(rows, "WEDGED").values() for name in names
    }
    assert passed(rows) > 80


def test_dpdk_and_an_index_that_jumps(tmp_path: Path) -> None:
    rows = conform(tmp_path, "net", dpdk(tmp_path / "s"), "--only", DPDK_HOSTILE, "--patience", "2")
    assert "hostile_index_jumps" in found(rows, "WEDGED")[DPDK_HOSTILE]


# The other direction


@contextmanager
def judging(tmp_path: Path, device: str, *options: str) -> Iterator[Path]:
    """`virtio-py conform-driver` on the socket tmp_path/d; where it will have written its verdicts."""
    written, socket = tmp_path / "driver.json", tmp_path / "d"
    command = [sys.executable, "-m", "virtio_py.cli.main", "conform-driver", "--listen", str(socket)]
    command += ["--device", device, "--json", str(written), *options]
    with Popen(command, stdout=DEVNULL) as process:
        try:
            wait_until(lambda: listening(socket), "it listens", 60)
            yield written
            assert process.wait(20) in (0, 1)
        finally:
            process.kill()


def verdicts(written: Path) -> Rows:
    rows: Rows = json.loads(written.read_text())["verdicts"]
    return rows


@pytest.mark.parametrize("layout", ["split", "packed"])
@pytest.mark.parametrize(
    ("device", "number", "script", "least"),
    [
        ("blk", DeviceId.BLOCK, "blk_modes.sh", 15),
        ("net", DeviceId.NET, "net_loopback.sh", 20),
        ("scsi", DeviceId.SCSI, "scsi_read.sh", 15),
        ("console", DeviceId.CONSOLE, "console_print.sh", 12),
    ],
)
def test_linux(
    uml: UserModeLinux, tmp_path: Path, device: str, number: DeviceId, script: str, least: int, layout: str
) -> None:
    arguments = ["1000"] if script == "console_print.sh" else []
    with judging(tmp_path, device, *(["--packed"] if layout == "packed" else [])) as written:
        uml.run(script, *arguments, devices=[VhostUser(tmp_path / "d", number)])
    rows = verdicts(written)
    assert found(rows, "FAIL", "WEDGED") == {}
    assert passed(rows) >= least, rows


@pytest.mark.parametrize("layout", ["split", "packed"])
def test_dpdk_virtio_user(tmp_path: Path, layout: str) -> None:
    packed = int(layout == "packed")
    with judging(tmp_path, "net", "--queue-pairs", "2", *(["--packed"] if packed else [])) as written:
        forward(tmp_path / "d", tmp_path / "log", 4, 2, f"packed_vq={packed}", "in_order=0", "mrg_rxbuf=1")
        time.sleep(0.2)
    rows = verdicts(written)
    # A header that held a received packet's is not cleared of its num_buffers.
    assert set(found(rows, "FAIL")) == {"net.driver.packet-transmission.2"}
    assert passed(rows) > 15
