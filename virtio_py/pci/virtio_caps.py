"""What virtio puts into and behind a vendor specific capability (4.1.4): where its structures lie, and the common one.

The rules say what a device must present (or what a driver must pass over); where a rule depends on what was
negotiated, the docstring or the comment beside it says which case is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.records import Record, Register, Rule

VIRTIO_PCI_VENDOR_ID: Final = 0x1AF4
PCI_CAP_ID_VNDR: Final = 0x09
LAST_BAR: Final = 5


class CfgType(IntEnum):
    """Which structure a capability describes (4.1.4), VIRTIO_PCI_CAP_*."""

    COMMON_CFG = 1
    NOTIFY_CFG = 2
    ISR_CFG = 3
    DEVICE_CFG = 4
    PCI_CFG = 5
    SHARED_MEMORY_CFG = 8
    VENDOR_CFG = 9


_CAP_LEN: Final = "pci.device.virtio-structure-pci-capabilities.1"
_CFG_TYPE: Final = "pci.driver.virtio-structure-pci-capabilities.1"
_BAR: Final = "pci.driver.virtio-structure-pci-capabilities.4"
_COMMON: Final = "pci.device.common-configuration-structure-layout"
_NOTIFY: Final = "pci.device.notification-capability"
_VENDOR: Final = "pci.device.vendor-data-capability"


def _declare() -> Struct:
    return Struct(
        "cap_vndr" / Int8ul,
        "cap_next" / Int8ul,
        "cap_len" / Int8ul,
        "cfg_type" / Int8ul,
        "bar" / Int8ul,
        "id" / Int8ul,
        "padding" / Bytes(2),
        "offset" / Int32ul,
        "length" / Int32ul,
    )


def _itself(values: Any) -> Any:
    return values


def _inner(values: Any) -> Any:
    return values.cap


def _general(size: int, cap: Callable[[Any], Any], prefix: str) -> tuple[Rule, ...]:
    known = set(CfgType)
    return (
        Rule("", f"{prefix}cap_vndr", lambda v: cap(v).cap_vndr == PCI_CAP_ID_VNDR, "is not 0x09, vendor specific"),
        Rule(
            _CAP_LEN, f"{prefix}cap_len", lambda v: cap(v).cap_len >= size, f"is less than the structure's {size} bytes"
        ),
        Rule(_CFG_TYPE, f"{prefix}cfg_type", lambda v: cap(v).cfg_type in known, "is reserved; a driver ignores this"),
        Rule(_BAR, f"{prefix}bar", lambda v: cap(v).bar <= LAST_BAR, "is reserved (above 5); a driver ignores this"),
    )


def _aligned(clause: str, size: int, cap: Callable[[Any], Any] = _itself, field: str = "offset") -> Rule:
    return Rule(clause, field, lambda v: cap(v).offset % size == 0, f"is not a multiple of {size}")


def _plain(name: str, *rules: Rule) -> Record:
    return Record(
        name, _declare(), cite="4.1.4 Virtio Structure PCI Capabilities", rules=(*_general(16, _itself, ""), *rules)
    )


def _extended(name: str, cite: str, extra: Iterable[Any], size: int, *rules: Rule) -> Record:
    layout = Struct("cap" / _declare(), *extra)
    return Record(name, layout, cite=cite, rules=(*_general(size, _inner, "cap."), *rules))


virtio_pci_cap = _plain("virtio_pci_cap")
virtio_pci_common_cap = _plain("virtio_pci_cap", _aligned(f"{_COMMON}.1", 4))
virtio_pci_device_cap = _plain("virtio_pci_cap", _aligned("pci.device.device-specific-configuration.1", 4))


def _notify(*rules: Rule) -> Record:
    cite = "4.1.4.4 Notification structure layout"
    return _extended("virtio_pci_notify_cap", cite, ["notify_off_multiplier" / Int32ul], 20, *rules)


def _power_of_two(value: int) -> bool:
    return value & (value - 1) == 0


# "An even power of 2" is read as a power of 2 that is even: the offset must stay aligned to the 2 bytes written.
virtio_pci_notify_cap = _notify(
    _aligned(f"{_NOTIFY}.2", 2, _inner, "cap.offset"),
    Rule(
        f"{_NOTIFY}.3",
        "notify_off_multiplier",
        lambda v: _power_of_two(v.notify_off_multiplier) and v.notify_off_multiplier % 2 == 0,
        "is neither 0 nor an even power of 2",
    ),
    Rule(f"{_NOTIFY}.4", "cap.length", lambda v: v.cap.length >= 2, "is less than 2"),
)

# The same structure, with what a device that offers VIRTIO_F_NOTIFICATION_DATA must present in it.
virtio_pci_notify_cap_notification_data = _notify(
    Rule(
        f"{_NOTIFY}.7",
        "notify_off_multiplier",
        lambda v: _power_of_two(v.notify_off_multiplier) and v.notify_off_multiplier % 4 == 0,
        "is neither 0 nor a power of 2 that is a multiple of 4",
    ),
    _aligned(f"{_NOTIFY}.8", 4, _inner, "cap.offset"),
    Rule(f"{_NOTIFY}.9", "cap.length", lambda v: v.cap.length >= 4, "is less than 4"),
)

virtio_pci_cap64 = _extended(
    "virtio_pci_cap64",
    "4.1.4 Virtio Structure PCI Capabilities",
    ["offset_hi" / Int32ul, "length_hi" / Int32ul],
    24,
    Rule(
        "pci.device.shared-memory-capability.1",
        "cap.length",
        lambda v: (v.cap.offset + v.cap.length) + ((v.offset_hi + v.length_hi) << 32) <= 1 << 64,
        "together with cap.offset leaves every BAR that there can be",
    ),
)

virtio_pci_cfg_cap = _extended(
    "virtio_pci_cfg_cap",
    "4.1.4.9 PCI configuration access capability",
    ["pci_cfg_data" / Bytes(4)],
    20,
    # The driver writes these fields; until it does, length is 0.
    Rule(
        "pci.driver.pci-configuration-access-capability.1",
        "cap.offset",
        lambda v: v.cap.length == 0 or v.cap.offset % v.cap.length == 0,
        "is not a multiple of cap.length",
    ),
)

virtio_pci_vndr_data = Record(
    "virtio_pci_vndr_data",
    Struct("cap_vndr" / Int8ul, "cap_next" / Int8ul, "cap_len" / Int8ul, "cfg_type" / Int8ul, "vendor_id" / Int16ul),
    cite="4.1.4.8 Vendor data capability",
    rules=(
        Rule("", "cap_vndr", lambda v: v.cap_vndr == PCI_CAP_ID_VNDR, "is not 0x09, vendor specific"),
        Rule(_CAP_LEN, "cap_len", lambda v: v.cap_len >= 6, "is less than the structure's 6 bytes"),
        Rule(f"{_VENDOR}.3", "vendor_id", lambda v: v.vendor_id != VIRTIO_PCI_VENDOR_ID, "is virtio's own, 0x1af4"),
        Rule(f"{_VENDOR}.4", "cap_len", lambda v: v.cap_len % 4 == 0, "is not a multiple of 4"),
    ),
)

# The rules on the last two hold only where VIRTIO_F_ADMIN_VQ was negotiated; without it a device leaves both 0.
# That queue_size is a power of 2 depends on VIRTIO_F_RING_PACKED, which this structure does not show.
virtio_pci_common_cfg = Record(
    "virtio_pci_common_cfg",
    Struct(
        "device_feature_select" / Int32ul,
        "device_feature" / Int32ul,
        "driver_feature_select" / Int32ul,
        "driver_feature" / Int32ul,
        "config_msix_vector" / Int16ul,
        "num_queues" / Int16ul,
        "device_status" / Int8ul,
        "config_generation" / Int8ul,
        "queue_select" / Int16ul,
        "queue_size" / Int16ul,
        "queue_msix_vector" / Int16ul,
        "queue_enable" / Int16ul,
        "queue_notify_off" / Int16ul,
        "queue_desc" / Int64ul,
        "queue_driver" / Int64ul,
        "queue_device" / Int64ul,
        "queue_notif_config_data" / Int16ul,
        "queue_reset" / Int16ul,
        "admin_queue_index" / Int16ul,
        "admin_queue_num" / Int16ul,
    ),
    cite="4.1.4.3 Common configuration structure layout",
    rules=(
        Rule(
            f"{_COMMON}.16",
            "admin_queue_index",
            lambda v: v.admin_queue_num == 0 or v.admin_queue_index >= v.num_queues,
            "is less than num_queues",
        ),
        Rule(
            f"{_COMMON}.17",
            "admin_queue_num",
            lambda v: v.admin_queue_num <= 0x10000 - v.admin_queue_index,
            "together with admin_queue_index leaves the 16 bits of a queue index",
        ),
    ),
)

virtio_pci_isr = Record(
    "virtio_pci_isr",
    Struct("isr_status" / Register(Int8ul, queue_interrupt=1, device_configuration_interrupt=1, reserved_2=6)),
    cite="4.1.4.5 ISR status capability",
)

VIRTIO_CAPS: Final = {
    CfgType.COMMON_CFG: virtio_pci_common_cap,
    CfgType.NOTIFY_CFG: virtio_pci_notify_cap,
    CfgType.ISR_CFG: virtio_pci_cap,
    CfgType.DEVICE_CFG: virtio_pci_device_cap,
    CfgType.PCI_CFG: virtio_pci_cfg_cap,
    CfgType.SHARED_MEMORY_CFG: virtio_pci_cap64,
    CfgType.VENDOR_CFG: virtio_pci_vndr_data,
}
