"""How a block of registers is reached, whatever it belongs to: a virtio device, a PCI function, a bus."""

from __future__ import annotations

from typing import Final, Protocol

WIDTHS: Final = (1, 2, 4)
"""Widths of register accesses, in bytes."""


class RegisterAccess(Protocol):
    """A block of registers, as whoever drives it reaches it. Offsets and widths in bytes, values little-endian."""

    def read(self, offset: int, width: int) -> int: ...
    def write(self, offset: int, value: int, width: int) -> None: ...
