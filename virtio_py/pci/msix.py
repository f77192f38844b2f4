"""MSI-X (PCI 3.0, 6.8.2): the table of messages, the pending bits, and which message leaves when.

A vector that fires while it, the function or the bus is closed to it is pending, once, and leaves when all is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import define, field

from virtio_py.errors import UsageError
from virtio_py.pci.capabilities import pci_msix_table_entry

MAX_VECTORS: Final = 0x800

_PBA_WORD: Final = 8
_ADDRESS_LOW_BITS: Final = 3
"""A message address is a multiple of 4."""

Send = Callable[[int, int], None]
"""A message: the address in bytes, and 32 bits of data."""

_WRITABLE: Final = pci_msix_table_entry.encode(
    message_address=(1 << 64) - 1 & ~_ADDRESS_LOW_BITS, message_data=(1 << 32) - 1, vector_control={"mask": 1}
)
_AFTER_RESET: Final = pci_msix_table_entry.encode(vector_control={"mask": 1})


def table_size(vectors: int) -> int:
    """Bytes of the table."""
    return vectors * pci_msix_table_entry.size


def pba_size(vectors: int) -> int:
    """Bytes of the pending bit array, in whole words of 64 bits."""
    return -(-vectors // (8 * _PBA_WORD)) * _PBA_WORD


@define(eq=False)
class Msix:
    """A function's vectors. `enabled` and `open` are the function's to set, by `permit`.

    send: where a message goes; enabled: MSI-X is on; open: neither the function mask nor the bus holds messages back.
    """

    vectors: int
    send: Send
    enabled: bool = field(init=False, default=False)
    open: bool = field(init=False, default=False)
    table: Table = field(init=False)
    pba: PendingBits = field(init=False)
    pending: set[int] = field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.vectors <= MAX_VECTORS:
            raise UsageError(f"MSI-X has 1 to {MAX_VECTORS} vectors, not {self.vectors}")
        self.table = Table(self)
        self.pba = PendingBits(self)

    def permit(self, enabled: bool, is_open: bool) -> None:
        """The function's own registers have changed."""
        self.enabled, self.open = enabled, is_open
        self.flush()

    def fire(self, vector: int) -> None:
        """Sends a vector's message, now or when it may leave. Nothing happens while MSI-X is off."""
        if self.enabled:
            self.pending.add(vector)
            self.flush()

    def flush(self) -> None:
        """Sends what is pending and may leave."""
        if not (self.enabled and self.open):
            return
        for vector in sorted(self.pending):
            entry = self.table.entry(vector)
            if not entry.vector_control.mask:
                self.pending.discard(vector)
                self.send(entry.message_address, entry.message_data)

    def reset(self) -> None:
        """All vectors masked, none pending, MSI-X off."""
        self.enabled = self.open = False
        self.pending.clear()
        self.table.reset()


class Table:
    """The table as a block of registers; accesses are of any width that lies in one entry."""

    def __init__(self, msix: Msix) -> None:
        self._msix = msix
        self._bytes = bytearray()
        self._writable = _WRITABLE * msix.vectors
        self.reset()

    def reset(self) -> None:
        """All entries masked."""
        self._bytes[:] = _AFTER_RESET * self._msix.vectors

    def entry(self, vector: int) -> Any:
        """The values of one entry."""
        return pci_msix_table_entry.decode(self._bytes, vector * pci_msix_table_entry.size)

    def read(self, offset: int, width: int) -> int:
        """`width` bytes of the table, little-endian."""
        return int.from_bytes(self._bytes[offset : offset + width], "little")

    def write(self, offset: int, value: int, width: int) -> None:
        """Stores what of the value is writable, and sends what that has unmasked."""
        mask = int.from_bytes(self._writable[offset : offset + width], "little")
        kept = self.read(offset, width) & ~mask | value & mask
        self._bytes[offset : offset + width] = kept.to_bytes(len(self._bytes[offset : offset + width]), "little")
        self._msix.flush()


class PendingBits:
    """The pending bit array as a block of registers, which only reads."""

    def __init__(self, msix: Msix) -> None:
        self._msix = msix

    def read(self, offset: int, width: int) -> int:
        """`width` bytes of the array, little-endian."""
        bits = sum(1 << vector for vector in self._msix.pending)
        return bits >> 8 * offset & (1 << 8 * width) - 1

    def write(self, offset: int, value: int, width: int) -> None:
        """Writes have no effect."""
