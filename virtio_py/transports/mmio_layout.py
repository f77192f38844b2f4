"""Virtio over MMIO: the registers (4.2.2), and those of the legacy interface (4.2.4). All are little-endian."""

from __future__ import annotations

from enum import IntFlag
from typing import Final

from construct import Bytes, Int32ul, Struct

from virtio_py.records import Record

virtio_mmio: Final = Record(
    "virtio_mmio",
    Struct(
        "MagicValue" / Int32ul,
        "Version" / Int32ul,
        "DeviceID" / Int32ul,
        "VendorID" / Int32ul,
        "DeviceFeatures" / Int32ul,
        "DeviceFeaturesSel" / Int32ul,
        "Reserved018" / Bytes(0x08),
        "DriverFeatures" / Int32ul,
        "DriverFeaturesSel" / Int32ul,
        "Reserved028" / Bytes(0x08),
        "QueueSel" / Int32ul,
        "QueueSizeMax" / Int32ul,
        "QueueSize" / Int32ul,
        "Reserved03c" / Bytes(0x08),
        "QueueReady" / Int32ul,
        "Reserved048" / Bytes(0x08),
        "QueueNotify" / Int32ul,
        "Reserved054" / Bytes(0x0C),
        "InterruptStatus" / Int32ul,
        "InterruptACK" / Int32ul,
        "Reserved068" / Bytes(0x08),
        "Status" / Int32ul,
        "Reserved074" / Bytes(0x0C),
        "QueueDescLow" / Int32ul,
        "QueueDescHigh" / Int32ul,
        "Reserved088" / Bytes(0x08),
        "QueueDriverLow" / Int32ul,
        "QueueDriverHigh" / Int32ul,
        "Reserved098" / Bytes(0x08),
        "QueueDeviceLow" / Int32ul,
        "QueueDeviceHigh" / Int32ul,
        "Reserved0a8" / Bytes(0x04),
        "SHMSel" / Int32ul,
        "SHMLenLow" / Int32ul,
        "SHMLenHigh" / Int32ul,
        "SHMBaseLow" / Int32ul,
        "SHMBaseHigh" / Int32ul,
        "QueueReset" / Int32ul,
        "Reserved0c4" / Bytes(0x38),
        "ConfigGeneration" / Int32ul,
    ),
    cite="4.2.2 MMIO Device Register Layout",
)
"""The control registers. The device-specific configuration space follows, at offset `virtio_mmio.size`."""

virtio_mmio_legacy: Final = Record(
    "virtio_mmio_legacy",
    Struct(
        "MagicValue" / Int32ul,
        "Version" / Int32ul,
        "DeviceID" / Int32ul,
        "VendorID" / Int32ul,
        "HostFeatures" / Int32ul,
        "HostFeaturesSel" / Int32ul,
        "Reserved018" / Bytes(0x08),
        "GuestFeatures" / Int32ul,
        "GuestFeaturesSel" / Int32ul,
        "GuestPageSize" / Int32ul,
        "Reserved02c" / Bytes(0x04),
        "QueueSel" / Int32ul,
        "QueueSizeMax" / Int32ul,
        "QueueSize" / Int32ul,
        "QueueAlign" / Int32ul,
        "QueuePFN" / Int32ul,
        "Reserved044" / Bytes(0x0C),
        "QueueNotify" / Int32ul,
        "Reserved054" / Bytes(0x0C),
        "InterruptStatus" / Int32ul,
        "InterruptACK" / Int32ul,
        "Reserved068" / Bytes(0x08),
        "Status" / Int32ul,
        "Reserved074" / Bytes(0x8C),
    ),
    cite="4.2.4 Legacy interface",
)
"""The control registers of the legacy interface; the configuration space is where it is in the other layout."""

CONFIG: Final = virtio_mmio.size
"""Where the device-specific configuration space begins, in bytes from the base."""

MAGIC: Final = int.from_bytes(b"virt", "little")
"""What MagicValue reads."""

VERSION: Final = 2
LEGACY_VERSION: Final = 1
"""What Version reads."""

NO_REGION: Final = (1 << 64) - 1
"""What the length and the base of a shared memory region read that there is none of."""


class Interrupt(IntFlag):
    """The bits of InterruptStatus."""

    USED_BUFFER = 1
    CONFIGURATION_CHANGE = 2
