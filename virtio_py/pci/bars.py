"""Base address registers and what stands behind them: blocks of registers at offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from virtio_py.access import RegisterAccess
from virtio_py.errors import UsageError
from virtio_py.pci.header import pci_header_type0

BAR_COUNT: Final = 6
BAR_BYTES: Final = 4
"""Bytes of a base address register."""

_IO, _WIDE, _PREFETCHABLE = 1, 4, 8
"""The low bits of a base address register, which say what it maps."""
_SMALLEST: Final = {True: 4, False: 16}
_LARGEST_IO: Final = 256


@frozen
class Region:
    """Part of a BAR that a block of registers answers in; offset and size in bytes."""

    offset: int
    size: int
    access: RegisterAccess


@frozen
class Bar:
    """What stands behind a base address register: `size` bytes, a power of two; 64 bits of address where `wide`."""

    size: int
    regions: Sequence[Region] = ()
    io: bool = False
    wide: bool = False
    prefetchable: bool = False

    @property
    def length(self) -> int:
        """Bytes of the register, or the two registers, that hold its address."""
        return BAR_BYTES << self.wide

    @property
    def low_bits(self) -> bytes:
        """The register as it is after power-on: what the BAR maps, and no address."""
        return (_IO if self.io else _WIDE * self.wide | _PREFETCHABLE * self.prefetchable).to_bytes(
            self.length, "little"
        )

    @property
    def address_bits(self) -> bytes:
        """Ones where software writes the address."""
        return ((1 << 8 * self.length) - self.size).to_bytes(self.length, "little")

    def check(self, index: int) -> None:
        """Raises UsageError for a BAR that cannot be."""
        if not 0 <= index < BAR_COUNT - self.wide or (self.io and (self.wide or self.prefetchable)):
            raise UsageError(f"there is no BAR {index} of that kind")
        largest = _LARGEST_IO if self.io else 1 << 8 * self.length - 1
        if self.size & (self.size - 1) or not _SMALLEST[self.io] <= self.size <= largest:
            raise UsageError(f"BAR {index} cannot have {self.size} bytes")

    def find(self, offset: int, width: int) -> Region | None:
        """The region that an access lies in as a whole."""
        inside = (r for r in self.regions if r.offset <= offset and offset + width <= r.offset + r.size)
        return next(inside, None)


def bar_register(index: int) -> int:
    """Where a base address register stands in configuration space."""
    return pci_header_type0.offset("base_address") + BAR_BYTES * index
