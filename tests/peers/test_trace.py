"""`virtio-py trace` between programs that were not written here: nothing is lost on the way, and all is understood.

Linux in front of QEMU's storage daemon, and DPDK in front of DPDK, and of ours, in each layout.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.peers.blk import check_tree, run_ext4
from tests.peers.dpdk import dpdk_back_end
from tests.peers.net import serve_net
from tests.peers.process import Server, serving
from tests.peers.qsd import storage_daemon
from tests.peers.require import require
from tests.peers.test_dpdk_net import forward
from tests.peers.uml import UserModeLinux

pytestmark = [pytest.mark.peer, pytest.mark.long]


@contextmanager
def tracing(front: Path, back: Path, *options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "virtio_py.cli.main", "trace", "--listen", str(front), "--connect", str(back)]
    with serving([*command, "--rings", *options], front) as server:
        yield server


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["events"]
    return [event for event in found if event["type"] == kind]


def breaches(path: Path) -> set[tuple[str, str]]:
    return {(one["name"], breach["rule"]) for one in events(path, "message") for breach in one["broken"]}


def test_linux_before_qemu(uml: UserModeLinux, disk_image: Path, tmp_path: Path) -> None:
    front, back, told, capture = (tmp_path / name for name in ("front.sock", "back.sock", "t.json", "t.pcapng"))
    options = ("--json", str(told), "--pcapng", str(capture), "--device", "blk", "--quiet")
    with storage_daemon(back, disk_image, queues=2), tracing(front, back, *options):
        run_ext4(uml, front, disk_image)
        # Complete while it is being written.
        messages = events(told, "message")
    check_tree(disk_image, tmp_path)
    [chosen] = {tuple(one["features"]) for one in messages if one["name"] == "SET_FEATURES" and one["features"]}
    assert {"FLUSH", "EVENT_IDX", "VERSION_1"} <= set(chosen)
    assert all(one["seconds"] < 10 for one in messages if one["kind"] == "reply")
    assert breaches(told) == set()
    rings = events(told, "ring")
    assert sum(one["available"] or 0 for one in rings) > 1000
    assert not [one for one in rings if one["problems"]]
    [tshark] = require("tshark")
    shown = subprocess.run(
        [tshark, "-r", capture, "-T", "fields", "-e", "frame.comment"], capture_output=True, text=True
    )
    assert shown.stdout.count("SET_MEM_TABLE") >= 1
    assert len(shown.stdout.splitlines()) == len([one for one in messages if one["kind"] in ("request", "reply")])


@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
def test_dpdk_before_dpdk(tmp_path: Path, packed: int) -> None:
    front, back, told = (tmp_path / name for name in ("front.sock", "back.sock", "t.json"))
    with dpdk_back_end(back, mode="io"), tracing(front, back, "--json", str(told), "--device", "net", "--quiet"):
        printed = forward(front, tmp_path / "log", 4, 1, f"packed_vq={packed}", "mrg_rxbuf=1")
    assert "RX-packets" in printed
    messages = events(told, "message")
    accepted = [one["features"] for one in messages if one["name"] == "SET_FEATURES"]
    assert all(("RING_PACKED" in features) == bool(packed) for features in accepted)
    assert breaches(told) == set()


@pytest.mark.parametrize("in_order", [0, 1])
@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
def test_dpdk_before_ours(tmp_path: Path, packed: int, in_order: int) -> None:
    front, back, told = (tmp_path / name for name in ("front.sock", "back.sock", "t.json"))
    options = ["--port", "loopback", *(["--packed"] if packed else []), *(["--in-order"] if in_order else [])]
    with serve_net(back, *options), tracing(front, back, "--json", str(told), "--quiet"):
        switches = (f"packed_vq={packed}", f"in_order={in_order}", "mrg_rxbuf=1")
        printed = forward(front, tmp_path / "log", 5, 1, *switches)
    received = max(int(count) for count in re.findall(r"RX-packets: (\d+)", printed))
    assert received > 300, printed
    assert not re.search(r"(RX|TX)-errors: *[1-9]", printed)
    accepted = [set(one["features"]) for one in events(told, "message") if one["name"] == "SET_FEATURES"]
    assert all(("IN_ORDER" in features) == bool(in_order) for features in accepted if features)
    assert all(("RING_PACKED" in features) == bool(packed) for features in accepted if features)
    assert breaches(told) == set()
