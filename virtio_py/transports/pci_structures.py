"""What a virtio function presents (4.1.2, 4.1.4): ids, where structures lie in BARs, and capabilities that say so.

Raises UsageError for what the specification does not let a device present.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from virtio_py.errors import UsageError
from virtio_py.pci.bars import Bar, Region
from virtio_py.pci.msix import Msix, pba_size, table_size
from virtio_py.pci.virtio_caps import (
    PCI_CAP_ID_VNDR,
    VIRTIO_CAPS,
    VIRTIO_PCI_VENDOR_ID,
    CfgType,
    virtio_pci_cap64,
    virtio_pci_cfg_cap,
    virtio_pci_common_cfg,
    virtio_pci_notify_cap_notification_data,
    virtio_pci_vndr_data,
)
from virtio_py.pci.virtio_legacy import LEGACY_BAR, legacy_config_offset, virtio_pci_legacy
from virtio_py.pci.virtio_rules import FIRST_NON_TRANSITIONAL, TRANSITIONAL_DEVICE_IDS
from virtio_py.records import Record
from virtio_py.spec import Feature, bit
from virtio_py.transports import pci_common
from virtio_py.transports.pci_blocks import CfgWindow, IsrBlock, MemoryBlock, NotifyBlock
from virtio_py.transports.pci_layout import (
    MODERN_BAR,
    MSIX_BAR,
    PAGE,
    SHARED_MEMORY_BAR,
    WIDEST_NOTIFICATION,
    class_code,
    power_of_two,
)
from virtio_py.transports.pci_legacy import LegacyBlock, LegacyGuard
from virtio_py.transports.register_device import ConfigBlock, RegisterBlock

if TYPE_CHECKING:
    from virtio_py.transports.pci import PciDevice

_COMMON, _ISR, _CONFIG, _NOTIFY = (n * PAGE for n in range(4))
"""Where the structures lie in their BAR."""

_ISR_LENGTH: Final = 1
_DWORD: Final = 4


def ids(machine: PciDevice) -> dict[str, Any]:
    """The header's values."""
    kind = int(machine.device.device_id)
    common = {"vendor_id": VIRTIO_PCI_VENDOR_ID, "class_code": class_code(kind)}
    vendor, subsystem = machine.subsystem
    if not machine.transitional:
        modern = {"device_id": FIRST_NON_TRANSITIONAL + kind, "revision_id": 1}
        return common | modern | {"subsystem_vendor_id": vendor, "subsystem_id": subsystem}
    numbers = [number for number, of in TRANSITIONAL_DEVICE_IDS.items() if of == kind]
    if not numbers or machine.legacy_guard:
        raise UsageError(f"device type {kind} cannot be transitional here")
    return common | {"device_id": numbers[0], "subsystem_vendor_id": vendor, "subsystem_id": kind}


def bars(machine: PciDevice) -> Iterator[tuple[int, Bar]]:
    """What stands behind each BAR."""
    if machine.transitional:
        size = power_of_two(legacy_config_offset(True) + machine.config_length)
        yield LEGACY_BAR, Bar(size, [Region(0, size, LegacyBlock(machine))], io=True)
    elif machine.legacy_guard:
        size = power_of_two(virtio_pci_legacy.size)
        yield LEGACY_BAR, Bar(size, [Region(0, size, LegacyGuard(machine.silence))], io=True)
    if machine.msix is not None:
        msix, at = machine.msix, pba_offset(machine.msix)
        table = Region(0, table_size(msix.vectors), msix.table)
        yield MSIX_BAR, Bar(2 * at, [table, Region(at, pba_size(msix.vectors), msix.pba)])
    if machine.shared_memory:
        regions = [Region(at, len(view), MemoryBlock(view)) for _, at, view in _shared_places(machine)]
        size = power_of_two(max(regions[-1].offset + regions[-1].size, PAGE))
        yield SHARED_MEMORY_BAR, Bar(size, regions, wide=True, prefetchable=True)
    yield MODERN_BAR, Bar(power_of_two(_NOTIFY + _notify_length(machine)), list(_structures(machine)), wide=True)


def pba_offset(msix: Msix) -> int:
    """Where the pending bits lie in the BAR of MSI-X, in bytes: its upper half."""
    return max(power_of_two(table_size(msix.vectors)), PAGE // 2)


def _shared_places(machine: PciDevice) -> Iterator[tuple[int, int, memoryview]]:
    """(id, offset in the BAR, bytes) of the shared memory regions; each begins a page."""
    at = 0
    for ident, view in machine.shared_memory.items():
        yield ident, at, view
        at += -(-len(view) // PAGE) * PAGE


def _notify_length(machine: PciDevice) -> int:
    return max(machine.all_queues - 1, 0) * machine.notify_off_multiplier + WIDEST_NOTIFICATION


def _structures(machine: PciDevice) -> Iterator[Region]:
    common = RegisterBlock(
        machine,
        virtio_pci_common_cfg,
        pci_common.READABLE,
        pci_common.WRITABLE,
        lambda: machine.use_interface(legacy=False),
    )
    yield Region(_COMMON, virtio_pci_common_cfg.size, common)
    yield Region(_ISR, _ISR_LENGTH, IsrBlock(machine.take_isr))
    yield Region(_CONFIG, machine.config_length, ConfigBlock(machine))
    yield Region(_NOTIFY, _notify_length(machine), NotifyBlock(machine.notified))


def add_capabilities(machine: PciDevice) -> None:
    """Puts virtio's capabilities into the function's configuration space."""
    _add_structure(machine, CfgType.COMMON_CFG, _COMMON, virtio_pci_common_cfg.size)
    notify = {"notify_off_multiplier": machine.notify_off_multiplier}
    _add_structure(machine, CfgType.NOTIFY_CFG, _NOTIFY, _notify_length(machine), notify)
    _add_structure(machine, CfgType.ISR_CFG, _ISR, _ISR_LENGTH)
    if machine.config_length:
        _add_structure(machine, CfgType.DEVICE_CFG, _CONFIG, machine.config_length)
    for ident, at, view in _shared_places(machine):
        cap = _cap(CfgType.SHARED_MEMORY_CFG, virtio_pci_cap64.size, SHARED_MEMORY_BAR, at, len(view), ident)
        _add(machine, virtio_pci_cap64, {"cap": cap})
    for vendor, data in machine.vendor_data:
        _add_vendor_data(machine, vendor, data)
    window = {"cap": _cap(CfgType.PCI_CFG, virtio_pci_cfg_cap.size, 0, 0, 0)}
    ones = (1 << 32) - 1
    writable = {"cap": {"bar": 0xFF, "offset": ones, "length": ones}, "pci_cfg_data": b"\xff" * _DWORD}
    CfgWindow(machine.function, machine.function.registers.add_capability(virtio_pci_cfg_cap, window, writable))


def _add_structure(
    machine: PciDevice, kind: CfgType, offset: int, length: int, more: Mapping[str, int] | None = None
) -> None:
    record = VIRTIO_CAPS[kind]
    if kind == CfgType.NOTIFY_CFG and machine.end.device_features & bit(Feature.NOTIFICATION_DATA):
        record = virtio_pci_notify_cap_notification_data
    cap = _cap(kind, record.size, MODERN_BAR, offset, length)
    _add(machine, record, cap if more is None else {"cap": cap, **more})


def _add_vendor_data(machine: PciDevice, vendor: int, data: bytes) -> None:
    size = virtio_pci_vndr_data.size + len(data)
    padding = bytes(-size % _DWORD)
    values = {
        "cap_vndr": PCI_CAP_ID_VNDR,
        "cap_len": size + len(padding),
        "cfg_type": CfgType.VENDOR_CFG,
        "vendor_id": vendor,
    }
    _add(machine, virtio_pci_vndr_data, values, data + padding)


def _add(machine: PciDevice, record: Record, values: Mapping[str, Any], extra: bytes = b"") -> None:
    for broken in record.violations(record.decode(record.encode(**values))):
        raise UsageError(f"{record.name}.{broken.field} {broken.message} [{broken.clause}]")
    machine.function.registers.add_capability(record, values, extra=extra)


def _cap(kind: CfgType, size: int, bar: int, offset: int, length: int, ident: int = 0) -> dict[str, int]:
    return {
        "cap_vndr": PCI_CAP_ID_VNDR,
        "cap_len": size,
        "cfg_type": kind,
        "bar": bar,
        "id": ident,
        "offset": offset,
        "length": length,
    }
