"""Our back-ends behind Linux's own virtio drivers in a machine of QEMU's, whose front-ends are between the two."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.peers.blk import dump_tree
from tests.peers.net import HOST, Namespace, namespace, serve_net
from tests.peers.process import Server, serving
from tests.peers.qemu import Device, Qemu, blk, net, scsi
from tests.peers.uml import GUEST, Result
from virtio_py.spec import Feature

pytestmark = [pytest.mark.peer, pytest.mark.long]

PCI = "virtio_pci"
ECHO = GUEST / "echo.py"
TRANSITIONAL, MODERN = "0x1001", "0x1042"
# A device as QEMU has it by default, and one that has no legacy interface, with packed rings; the back-end's options.
VARIANTS = {
    "transitional-split": ((), ()),
    "modern-packed": (("packed=on", "disable-legacy=on"), ("--packed", "--engine", "compiled")),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def serve(kind: str, path: Path, *options: str) -> AbstractContextManager[Server]:
    """One of our back-ends as a process of its own."""
    command = [sys.executable, "-m", "virtio_py.cli.main", "serve", kind, "--socket-path", str(path), *options]
    return serving(command, path, seconds=120)


def run(
    qemu: Qemu, device: Device, script: Sequence[str], modules: Sequence[str], programs: Sequence[str] = ()
) -> Result:
    """The result of a guest script that must succeed, and leave nothing for the kernel to complain of."""
    with qemu.boot(script, [PCI, *modules], devices=[device], programs=programs) as guest:
        return check(guest.serial.result())


def check(result: Result) -> Result:
    assert result.status == 0, result.output
    assert result.complaints() == []
    return result


def negotiated(output: str) -> set[Feature]:
    """Which of the ring features a driver has accepted, of its line of bits."""
    [bits] = [line.split()[1] for line in output.splitlines() if line.startswith("features: ")]
    return {feature for feature in Feature if bits[feature] == "1"}


def check_features(output: str, variant: str) -> None:
    expected = {Feature.VERSION_1, Feature.EVENT_IDX, Feature.INDIRECT_DESC}
    assert expected <= negotiated(output)
    assert (Feature.RING_PACKED in negotiated(output)) == variant.endswith("packed")


def healthy(server: Server) -> bool:
    log = server.log.read_text()
    return "reset" not in log and "hung up" not in log


@variants
def test_a_disk(qemu: Qemu, disk_image: Path, tmp_path: Path, variant: str) -> None:
    ours, theirs = VARIANTS[variant]
    with serve("blk", tmp_path / "blk.sock", "--blk-file", str(disk_image), "--num-queues", "2", *theirs) as server:
        disk = blk(server.socket, "num-queues=2", *ours)
        result = run(qemu, disk, ["qemu_blk.sh", "50"], ["virtio_blk"], ["mkfs.ext4"])
        assert healthy(server)
    check_features(result.output, variant)
    assert f"device: {MODERN if ours else TRANSITIONAL}" in result.output
    assert len(dump_tree(disk_image, tmp_path)) == 50


@variants
def test_a_scsi_host(qemu: Qemu, disk_image: Path, tmp_path: Path, variant: str) -> None:
    ours, theirs = VARIANTS[variant]
    first = tmp_path / "first.img"
    first.write_bytes(random.Random(1).randbytes(4 << 20))
    units = ["--lun", str(first), "--lun", f"0:3={disk_image}"]
    with serve("scsi", tmp_path / "scsi.sock", *units, *theirs) as server:
        modules, programs = ["sd_mod", "sg", "virtio_scsi"], ["mkfs.ext4", "sg_inq", "sg_luns", "sg_readcap"]
        result = run(qemu, scsi(server.socket, *ours), ["qemu_scsi.sh"], modules, programs)
        assert healthy(server)
    check_features(result.output, variant)
    for line in ("0003000000000000", "Vendor identification: VIRTIO", f"Device size: {4 << 20} bytes"):
        assert line in result.output
    assert hashlib.md5(first.read_bytes()).hexdigest() in result.output
    assert len(dump_tree(disk_image, tmp_path)) == 30


@contextmanager
def echoing(host: Namespace, port: int, log: Path) -> Iterator[None]:
    """Somebody in the namespace who sends back what comes by TCP, and notes its sums."""
    with log.open("wb") as output:
        process = subprocess.Popen(host.command(sys.executable, str(ECHO), HOST, str(port)), stdout=output)
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@variants
def test_a_network_interface(qemu: Qemu, tap: str, tmp_path: Path, variant: str) -> None:
    ours, theirs = VARIANTS[variant]
    sums = tmp_path / "sums"
    with serve_net(tmp_path / "net.sock", "--port", f"tap:{tap}", *theirs) as server, namespace() as host:
        host.adopt(tap)
        with echoing(host, 41700, sums):
            result = run(qemu, net(server.socket, *ours), ["qemu_net.sh", "8"], ["virtio_net"])
        assert healthy(server)
    check_features(result.output, variant)
    assert result.output.count(" 0% packet loss") == 2
    assert f"{sums.read_text().strip()}  -" in result.output.splitlines()
