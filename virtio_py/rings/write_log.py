"""What a device writes to a queue's buffers and to the queue itself, noted for whoever copies the memory meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import field, frozen

from virtio_py.memory import DirtyLog
from virtio_py.rings.chain import Chain
from virtio_py.rings.half import Extent


def _nobody() -> None:
    return None


@frozen
class WriteLog:
    """The notes of one queue, made behind each write: a page that is copied and cleared between a note and its write
    would lack the write for ever.

    pages: the bitmap; data: whether what chains were written is noted; areas: the ring's own parts that are noted, each
    whole (it is a page or two), as (guest address, bytes), the device area first; tell: called when there are notes.
    """

    pages: DirtyLog
    data: bool = True
    areas: tuple[Extent, ...] = ()
    tell: Callable[[], None] = field(default=_nobody, repr=False)

    def used(self, chains: Sequence[Chain]) -> None:
        """These chains were returned to the driver."""
        written = [extent for chain in chains for extent in chain.written()] if self.data else []
        self._mark((*written, *self.areas))

    def suppressed(self) -> None:
        """The device has told the driver whether to notify it, which it does in its area."""
        self._mark(self.areas[:1])

    def _mark(self, extents: Sequence[Extent]) -> None:
        for address, length in extents:
            self.pages.mark(address, length)
        if extents:
            self.tell()
