"""Numbers of the virtio 1.4 specification, and nothing else: identifiers, bits, limits.

What belongs to one device type stands in that device's `layout.py`; what belongs to one transport, in the transport.
Feature bits are plain ints (positions), since 1.4 goes past 64 of them; `bit(…)` makes the mask.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


def bit(position: int) -> int:
    """The mask of one bit position: `bit(Feature.VERSION_1)`."""
    return 1 << position


def mask(*positions: int) -> int:
    """The union of several bit positions as one mask."""
    return sum(1 << position for position in set(positions))


class DeviceId(IntEnum):
    """Device types (chapter 5, "Device Types")."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    BALLOON = 5
    IO_MEMORY = 6
    RPMSG = 7
    SCSI = 8
    NINEP = 9
    MAC80211_WLAN = 10
    RPROC_SERIAL = 11
    CAIF = 12
    MEMORY_BALLOON = 13
    GPU = 16
    RTC = 17
    INPUT = 18
    SOCKET = 19
    CRYPTO = 20
    SIGNAL_DISTRIBUTION = 21
    PSTORE = 22
    IOMMU = 23
    MEMORY = 24
    SOUND = 25
    FILE_SYSTEM = 26
    PMEM = 27
    RPMB = 28
    MAC80211_HWSIM = 29
    VIDEO_ENCODER = 30
    VIDEO_DECODER = 31
    SCMI = 32
    NITRO_SECURE_MODULE = 33
    I2C_ADAPTER = 34
    WATCHDOG = 35
    CAN = 36
    PARAMETER_SERVER = 38
    AUDIO_POLICY = 39
    BLUETOOTH = 40
    GPIO = 41
    RDMA = 42
    CAMERA = 43
    ISM = 44
    SPI_CONTROLLER = 45
    TEE = 46
    CPU_BALLOON = 47
    MEDIA = 48
    USB_CONTROLLER = 49


class DeviceStatus(IntFlag):
    """The device status field (2.1), one byte; SUSPEND is new in 1.4."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Feature(IntEnum):
    """Feature bits that belong to no device type (chapter 6, "Reserved Feature Bits")."""

    NOTIFY_ON_EMPTY = 24  # legacy
    ANY_LAYOUT = 27  # legacy
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    SR_IOV = 37
    NOTIFICATION_DATA = 38
    NOTIF_CONFIG_DATA = 39
    RING_RESET = 40
    ADMIN_VQ = 41
    SUSPEND = 43


class VirtqDescFlag(IntFlag):
    """Flags of a split descriptor (2.7.5), VIRTQ_DESC_F_*."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


class PackedDescFlag(IntFlag):
    """Flags of a packed descriptor (2.8), the split ones and the two that carry ownership."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4
    AVAIL = 1 << 7
    USED = 1 << 15


class AvailFlag(IntFlag):
    """flags of the split available ring (2.7.6)."""

    NO_INTERRUPT = 1


class UsedFlag(IntFlag):
    """flags of the split used ring (2.7.8)."""

    NO_NOTIFY = 1


class RingEventFlag(IntEnum):
    """flags of pvirtq_event_suppress (2.8.10)."""

    ENABLE = 0
    DISABLE = 1
    DESC = 2


MAX_QUEUE_SIZE: Final = 32768
"""The largest size of a virtqueue, split or packed (2.7, 2.8.10)."""

QUEUE_ALIGNMENT_DESCRIPTOR: Final = 16
QUEUE_ALIGNMENT_AVAILABLE: Final = 2
QUEUE_ALIGNMENT_USED: Final = 4
"""Alignments, in bytes, of the split descriptor table, available ring and used ring (2.7)."""

QUEUE_ALIGNMENT_EVENT: Final = 4
"""Alignment, in bytes, of the packed event suppression structures (2.8)."""


def feature_names(features: int, device_features: type[IntEnum] | None = None) -> list[str]:
    """The names of the bits set in `features`, device-type bits first looked up in `device_features`."""
    known = {int(f): f.name for f in Feature}
    known |= {int(f): f.name for f in device_features} if device_features else {}
    return [known.get(i, f"bit {i}") for i in range(features.bit_length()) if features >> i & 1]
