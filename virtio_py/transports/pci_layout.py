"""Virtio over PCI (4.1): numbers of the carrier, and where our functions have their structures."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag
from typing import Final

from virtio_py.spec import DeviceId

NO_VECTOR: Final = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR: an event that is mapped to no vector (4.1.5.1.2)."""


class Isr(IntFlag):
    """The bits of the ISR status (4.1.4.5)."""

    QUEUE = 1
    DEVICE_CONFIGURATION = 2


WIDEST_NOTIFICATION: Final = 4
"""Bytes of a notification that carries data (4.1.5.2)."""

MSIX_BAR: Final = 1
SHARED_MEMORY_BAR: Final = 2
MODERN_BAR: Final = 4
"""BAR 0 is the legacy interface's; those of shared memory and of the structures are 64 bits wide and take two."""

PAGE: Final = 0x1000
"""Structures begin pages of their own, so that a hypervisor may map one without the others."""

_UNCLASSIFIED: Final = 0x00FF00

_CLASS_CODES: Final[Mapping[int, int]] = {
    DeviceId.NET: 0x020000,
    DeviceId.BLOCK: 0x010000,
    DeviceId.CONSOLE: 0x078000,
    DeviceId.SCSI: 0x010000,
}


def class_code(device_id: int) -> int:
    """The 24 bits of a function's class code by its device type; the specification leaves them open."""
    return _CLASS_CODES.get(device_id, _UNCLASSIFIED)


def power_of_two(size: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(size - 1, 0).bit_length()
