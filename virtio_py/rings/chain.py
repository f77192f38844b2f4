"""A chain as a device sees it: a stream of readable bytes, a stream of writable bytes, and no framing.

How the driver cut a request into descriptors carries no meaning (2.7.4 Message Framing), so a device never sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from attrs import define, field

from virtio_py.errors import RequestError, UsageError


class Completer(Protocol):
    """Whoever hands out chains and takes them back: a DeviceQueue."""

    @property
    def index(self) -> int:
        """The index of the virtqueue."""

    def complete(self, chains: Sequence[Chain]) -> None:
        """Returns chains to the driver."""


class Stream:
    """A position in a sequence of memory views."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = list(views)
        self.remaining: int = sum(map(len, self._views))
        self.position: int = 0

    def views(self, count: int | None = None) -> list[memoryview]:
        """The next `count` bytes (all that remain by default) as views, for I/O without a copy; does not advance."""
        left = self.remaining if count is None else count
        self._check(left)
        taken = []
        for view in self._views:
            if left <= 0:
                break
            taken.append(view[:left])
            left -= len(view)
        return taken

    def advance(self, count: int) -> None:
        """Moves on by `count` bytes."""
        self._check(count)
        self.position += count
        self.remaining -= count
        while count:
            first = self._views[0]
            if len(first) > count:
                self._views[0] = first[count:]
                return
            count -= len(first)
            self._views.pop(0)

    def _check(self, count: int) -> None:
        if not 0 <= count <= self.remaining:
            raise RequestError(f"{count} bytes are wanted where {self.remaining} are left")

    def _cut_tail(self, count: int) -> list[memoryview]:
        """Takes the last `count` bytes away from this stream."""
        self._check(count)
        keep = self.remaining - count
        head = self.views(keep)
        self.advance(keep)
        tail = self._views
        self._views, self.remaining, self.position = head, keep, self.position - keep
        return tail


class Reader(Stream):
    """The device-readable bytes of a chain, in order. What is read is a copy: the driver may change the memory."""

    def read(self, count: int) -> bytes:
        """The next `count` bytes. Raises RequestError when fewer are left."""
        data = b"".join(self.views(count))
        self.advance(count)
        return data

    def read_all(self) -> bytes:
        """All bytes that are left."""
        return self.read(self.remaining)


class Writer(Stream):
    """The device-writable bytes of a chain, in order.

    What has been written from the first byte on, without a gap, is the used length; a device passes no number.
    """

    _tail: Writer | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Stores `data` next. Raises RequestError, and stores nothing, when it does not fit."""
        at = 0
        for view in self.views(len(data)):
            view[:] = data[at : at + len(view)]
            at += len(view)
        self.advance(len(data))

    def split_tail(self, count: int) -> Writer:
        """The last `count` bytes as a stream of their own: a status that stands behind data of any length."""
        tail = Writer(self._cut_tail(count))
        # What was cut off earlier stands behind what is cut off now.
        tail._tail, self._tail = self._tail, tail
        return tail

    def written(self) -> list[tuple[int, int]]:
        """The ranges written so far, (offset, length in bytes) into the writable bytes; a tail is one of its own."""
        parts = [(0, self.position)]
        if self._tail is not None:
            parts += [(self.position + self.remaining + at, length) for at, length in self._tail.written()]
        return [part for part in parts if part[1]]

    @property
    def used_length(self) -> int:
        """Bytes written from the first one on: a tail counts only if everything before it was written."""
        behind = self._tail.used_length if self._tail is not None and not self.remaining else 0
        return self.position + behind


@define(eq=False)
class Chain:
    """One buffer that the driver has made available (2.6): its readable and writable bytes, and when it is used.

    id: the head's descriptor index (split) or the buffer id (packed); extents: the writable part's guest addresses
    and lengths, for whoever logs writes.
    """

    id: int
    queue: Completer = field(repr=False)
    readable: Reader
    writable: Writer
    extents: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    deferred: bool = field(default=False, init=False)
    used: bool = field(default=False, init=False)

    def defer(self) -> None:
        """Keeps the chain beyond `Device.handle`; the device calls `complete` later, in any order."""
        self.deferred = True

    def complete(self) -> None:
        """Returns a deferred chain to the driver. Raises UsageError for a second time."""
        if self.used:
            raise UsageError(f"chain {self.id} of queue {self.queue.index} was completed before")
        self.queue.complete([self])

    def written(self) -> Iterator[tuple[int, int]]:
        """The ranges of guest memory, (address, length in bytes), that were written to."""
        for start, length in self.writable.written():
            at = 0
            for address, size in self.extents:
                low, high = max(start, at), min(start + length, at + size)
                if low < high:
                    yield address + low - at, high - low
                at += size

    @property
    def used_length(self) -> int:
        """What the driver will be told: the bytes written through `writable`."""
        return self.writable.used_length
