"""What a virtio function must present as a whole (4.1.2, 4.1.4), besides what each of its structures must."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from virtio_py.pci.decode import Capability, Problem
from virtio_py.pci.header import pci_header_type0
from virtio_py.pci.virtio_caps import CfgType
from virtio_py.spec import DeviceId

FIRST_NON_TRANSITIONAL: Final = 0x1040

# 4.1.2.1: the types that have a transitional PCI Device ID, which is not computed from theirs.
TRANSITIONAL_DEVICE_IDS: Final[Mapping[int, DeviceId]] = {
    0x1000: DeviceId.NET,
    0x1001: DeviceId.BLOCK,
    0x1002: DeviceId.BALLOON,
    0x1003: DeviceId.CONSOLE,
    0x1004: DeviceId.SCSI,
    0x1005: DeviceId.ENTROPY,
    0x1009: DeviceId.NINEP,
}

_MANDATORY: Final = (
    (CfgType.COMMON_CFG, "pci.device.common-configuration-structure-layout.2"),
    (CfgType.NOTIFY_CFG, "pci.device.notification-capability.1"),
    (CfgType.ISR_CFG, "pci.device.isr-status-capability.1"),
    (CfgType.PCI_CFG, "pci.device.pci-configuration-access-capability.1"),
)


def virtio_device_type(device_id: int) -> int | None:
    """The virtio device type that a PCI Device ID of 0x1000 to 0x107f stands for, None if for none."""
    if device_id >= FIRST_NON_TRANSITIONAL:
        return device_id - FIRST_NON_TRANSITIONAL
    return TRANSITIONAL_DEVICE_IDS.get(device_id)


def function_problems(header: Any, capabilities: Iterable[Capability]) -> Iterator[Problem]:
    """The MUSTs that a virtio function with this type 0 header and these capabilities breaks.

    A transitional function without any virtio capability is a legacy device, of which 1.4 demands none.
    """
    virtio = [c for c in capabilities if "cfg_type" in c.fields]
    if header.device_id < FIRST_NON_TRANSITIONAL:
        yield from _transitional(header)
    if virtio or header.device_id >= FIRST_NON_TRANSITIONAL:
        present = {c.fields["cfg_type"] for c in virtio}
        for kind, clause in _MANDATORY:
            if kind not in present:
                yield Problem(pci_header_type0.offset("capabilities_pointer"), f"no VIRTIO_PCI_CAP_{kind.name}", clause)
    yield from _shared_memory(virtio)


def _transitional(header: Any) -> Iterator[Problem]:
    if header.revision_id:
        text = f"a transitional device has Revision ID 0, not {header.revision_id:#x}"
        yield Problem(pci_header_type0.offset("revision_id"), text, "pci-legacy.device.pci-device-discovery.1")
    kind = virtio_device_type(header.device_id)
    if kind is not None and header.subsystem_id != kind:
        text = f"a transitional device has its type, {kind}, as Subsystem Device ID, not {header.subsystem_id}"
        yield Problem(pci_header_type0.offset("subsystem_id"), text, "pci-legacy.device.pci-device-discovery.2")


def _shared_memory(virtio: Sequence[Capability]) -> Iterator[Problem]:
    regions = [c for c in virtio if c.fields["cfg_type"] == CfgType.SHARED_MEMORY_CFG and "id" in c.fields]
    counted = Counter(c.fields["id"] for c in regions)
    for region in regions:
        if counted[region.fields["id"]] > 1:
            text = f"the shared memory id {region.fields['id']} is not unique"
            yield Problem(region.offset, text, "pci.device.shared-memory-capability.2")
