"""The device configuration space as a driver sees it (2.5): slices of the live structure, and a generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define, field


@define(eq=False)
class ConfigSpace:
    """The configuration space over a device's live structure.

    The generation counts not changes but changes that a driver could have missed: it moves when something the driver
    has read is no longer true. Counting every change, its 8 bits could come round between two looks at it.

    live: returns the whole structure as it is now; store: takes (offset, data) of a driver's write.
    """

    live: Final[Callable[[], bytes]]
    store: Final[Callable[[int, bytes], None]]
    _generation: int = field(default=0, init=False)
    _seen: bytes | None = field(default=None, init=False)
    _stale: bool = field(default=False, init=False)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; what lies behind the end of the structure reads as zeros."""
        live = self._look()
        self._seen = live
        return live[offset : offset + length].ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Stores `data`; what lies behind the end of the structure is dropped."""
        room = len(self.live()) - offset
        if offset >= 0 and room > 0:
            self.store(offset, data[:room])

    @property
    def generation(self) -> int:
        """Two equal values around a read say that nothing the driver read has changed since."""
        live = self._look()
        self._seen = live if self._seen is not None else None
        return self._generation

    def changed(self) -> None:
        """For the device: what was read before is stale, whether the bytes differ or not."""
        self._stale = True

    def reset(self) -> None:
        """Nothing has been read yet."""
        self._seen, self._stale = None, False

    def _look(self) -> bytes:
        live = self.live()
        if self._stale or (self._seen is not None and live != self._seen):
            self._generation = (self._generation + 1) & 0xFF
            self._stale = False
        return live
