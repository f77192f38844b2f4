"""The bitmap in which a front-end has its back-end note dirty pages, read and cleared while that goes on (Linux)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from virtio_py.memory import DirtyLog
from virtio_py.transports.shared_bits import SharedBits


class DirtyBitmap:
    """A bit for each page of 4096 bytes below the guest address `end`. `fd` is for whoever writes, until `close`."""

    def __init__(self, end: int) -> None:
        # Whole words of the 64 bits in which other programs clear it.
        self.size: Final = -(-end // (DirtyLog.PAGE * 64)) * 8
        self.fd: Final = os.memfd_create("virtio-py-log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self._view = memoryview(mmap.mmap(self.fd, self.size))
        self._bits = SharedBits(self._view)

    def take(self) -> list[tuple[int, int]]:
        """The runs of dirty pages, (guest address, bytes), which are clean from now on.

        Whoever copies them afterwards has everything that was written before, since a page is noted behind the write;
        what is written during the copy makes the page dirty again.
        """
        runs = [(pages[0], pages[-1]) for pages in _runs(self._view)]
        for first, last in runs:
            self._bits.clear(first, last)
        return [(first * DirtyLog.PAGE, (last - first + 1) * DirtyLog.PAGE) for first, last in runs]

    def close(self) -> None:
        """Gives the descriptor back; the mapping ends with this object."""
        os.close(self.fd)


def _runs(bits: memoryview) -> Iterator[list[int]]:
    seen = [8 * at + n for at, byte in enumerate(bytes(bits)) if byte for n in range(8) if byte >> n & 1]
    for _, run in groupby(enumerate(seen), lambda pair: pair[1] - pair[0]):
        yield [page for _, page in run]
