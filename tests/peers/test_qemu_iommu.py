"""Linux in a machine of QEMU's whose disk lies behind an IOMMU, or which has several processors: our disk, its drivers.

With an IOMMU, the rings and all that they name are I/O addresses, which QEMU maps when our back-end asks. With several
processors, Linux has a request queue for each, and our back-end a thread for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import frozen

from tests.peers.blk import dump_tree
from tests.peers.qemu import APPEND, Device, Qemu, blk
from tests.peers.test_qemu import PCI, healthy, negotiated, serve
from virtio_py.devices.blk.layout import BlkFeature
from virtio_py.spec import Feature

pytestmark = [pytest.mark.peer, pytest.mark.long]

REMAPPED = " intel_iommu=on iommu.passthrough=0 iommu.strict=1"
"""Linux's arguments for an IOMMU that maps what a driver names, and forgets it at once when the driver is done."""


@frozen
class Larger(Qemu):
    """A machine with several processors, and perhaps an IOMMU."""

    processors: int
    iommu: bool

    def _arguments(self, run: Path, devices: Sequence[Device], memory: int, incoming: Path | None) -> list[str]:
        plain = super()._arguments(run, devices, memory, incoming)
        plain[plain.index("-smp") + 1] = str(self.processors)
        if self.iommu:
            plain[plain.index("-machine") + 1] += ",kernel-irqchip=split"
            plain[plain.index("-append") + 1] = APPEND + REMAPPED
            # Before the devices: they are put behind it as they are made.
            plain[1:1] = ["-device", "intel-iommu,device-iotlb=on,intremap=off"]
        return plain


@pytest.mark.clause("features.driver.reserved-feature-bits.4")
@pytest.mark.parametrize("iommu", [False, True], ids=["processors", "iommu"])
@pytest.mark.parametrize("rings", ["split", "packed"])
def test_a_disk_of_several_queues(qemu: Qemu, disk_image: Path, tmp_path: Path, iommu: bool, rings: str) -> None:
    ours = ["--num-queues", "2", "--threads", "2", "--engine", "compiled"]
    ours += ["--iommu"] * iommu + ["--packed"] * (rings == "packed")
    theirs = ["num-queues=2", "disable-legacy=on"] + ["iommu_platform=on", "ats=on"] * iommu
    theirs += ["packed=on"] * (rings == "packed")
    machine = Larger(qemu.kernel, 2, iommu)
    with serve("blk", tmp_path / "blk.sock", "--blk-file", str(disk_image), *ours) as server:
        script, modules = ["qemu_blk.sh", "50"], [PCI, "virtio_blk"]
        disk = blk(server.socket, *theirs)
        with machine.boot(script, modules, devices=[disk], programs=["mkfs.ext4"], seconds=180) as guest:
            result = guest.serial.result()
        assert healthy(server), server.log.read_text()
    # Two processors in software upset Linux's clocks; that is not ours.
    assert result.status == 0, result.output
    assert "files: 50" in result.output
    features = negotiated(result.output)
    assert (Feature.ACCESS_PLATFORM in features) == iommu
    assert (Feature.RING_PACKED in features) == (rings == "packed")
    [bits] = [line.split()[1] for line in result.output.splitlines() if line.startswith("features: ")]
    assert bits[BlkFeature.MQ] == "1"
    assert len(dump_tree(disk_image, tmp_path)) == 50
