"""What a device writes to a queue's buffers and to the queue itself, noted for whoever copies the memory meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from attrs import field, frozen

from virtio_py.memory import DirtyLog
from virtio_py.rings.chain import Chain
from virtio_py.rings.half import Extent


def _nobody() -> None:
    return None


def _as_it_is(extent: Extent) -> Iterable[Extent]:
    return (extent,)


@frozen
class WriteLog:
    """The notes of one queue, made behind each write: a page that is copied and cleared between a note and its write
    would lack the write for ever.

    pages: the bitmap; data: whether what chains were written is noted; areas: the ring's own parts that are noted, each
    whole (it is a page or two), as (guest address, bytes), the device area first; tell: called when there are notes;
    resolve: the guest's addresses of what the device knows by I/O addresses: all but the device area, whose place is
    given in the guest's.
    """

    pages: DirtyLog
    data: bool = True
    areas: tuple[Extent, ...] = ()
    tell: Callable[[], None] = field(default=_nobody, repr=False)
    resolve: Callable[[Extent], Iterable[Extent]] = field(default=_as_it_is, repr=False)

    def used(self, chains: Sequence[Chain]) -> None:
        """These chains were returned to the driver."""
        written = [extent for chain in chains for extent in chain.written()] if self.data else []
        resolved = [part for extent in (*written, *self.areas[1:]) for part in self.resolve(extent)]
        self._mark((*resolved, *self.areas[:1]))

    def suppressed(self) -> None:
        """The device has told the driver whether to notify it, which it does in its area."""
        self._mark(self.areas[:1])

    def _mark(self, extents: Sequence[Extent]) -> None:
        for address, length in extents:
            self.pages.mark(address, length)
        if extents:
            self.tell()
