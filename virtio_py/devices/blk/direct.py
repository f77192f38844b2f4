"""A file past the page cache (O_DIRECT): a shell, for only `mmap` gives memory that is aligned.

Every transfer goes through one aligned bounce buffer, since nothing says how the driver's memory is aligned here.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Final

from virtio_py.devices.blk.media import FileMedium, behind

_BOUNCE: Final = 1 << 20
_UNITS: Final = (512, 4096)
"""What a disk may demand of offsets and lengths, in bytes."""


class DirectFileMedium(FileMedium):
    """A file or block special file opened with O_DIRECT: what a read returns comes from the disk.

    Raises OSError when the system or the file system has no direct I/O, or when the size is not a multiple of what
    the disk wants.
    """

    def __init__(self, path: str | os.PathLike[str], read_only: bool = False) -> None:
        super().__init__(path, read_only)
        self._bounce = memoryview(mmap.mmap(-1, _BOUNCE))
        try:
            self._unit = self._probe_unit()
            self._check_size(self.size)
        except OSError:
            self.close()
            raise

    @property
    def concurrent(self) -> bool:
        # There is one bounce buffer.
        return False

    def _open(self, path: str, flags: int) -> int:
        direct: int | None = getattr(os, "O_DIRECT", None)
        if direct is None:
            raise OSError(errno.EOPNOTSUPP, "this system has no O_DIRECT", path)
        return os.open(path, flags | direct)

    def _probe_unit(self) -> int:
        for unit in _UNITS:
            try:
                super().read_into(0, [self._bounce[: min(unit, self.size)]])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return unit
        raise OSError(errno.EINVAL, "direct I/O takes neither 512 nor 4096 bytes", self.path)

    def _check_size(self, size: int) -> None:
        # A last write would have to be longer than what is left of the file, and make it grow.
        if size % self._unit:
            raise OSError(errno.EINVAL, f"direct I/O here needs a size that is a multiple of {self._unit}", self.path)

    def _steps(self, offset: int, total: int) -> Iterator[tuple[int, slice, slice]]:
        """Cuts a transfer into (aligned offset, aligned part of the bounce buffer, the part of that which counts)."""
        while total:
            skip = offset % self._unit
            count = min(total, _BOUNCE - skip)
            span = -(-(skip + count) // self._unit) * self._unit
            yield offset - skip, slice(0, span), slice(skip, skip + count)
            offset, total = offset + count, total - count

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        pending = list(views)
        for start, span, wanted in self._steps(offset, sum(map(len, pending))):
            super().read_into(start, [self._bounce[span]])
            pending = _scatter(self._bounce[wanted], pending)

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        pending = list(views)
        for start, span, wanted in self._steps(offset, sum(map(len, pending))):
            if span != wanted:
                super().read_into(start, [self._bounce[span]])
            pending = _gather(self._bounce[wanted], pending)
            super().write_from(start, [self._bounce[span]])

    def resize(self, size: int) -> None:
        self._check_size(size)
        super().resize(size)


def _scatter(data: memoryview, views: Sequence[memoryview]) -> list[memoryview]:
    """Copies data into the views; returns what of them is left."""
    at = 0
    for view in views:
        part = data[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)
    return behind(views, at)


def _gather(data: memoryview, views: Sequence[memoryview]) -> list[memoryview]:
    """Fills data from the views; returns what of them is left."""
    at = 0
    for view in views:
        part = view[: len(data) - at]
        data[at : at + len(part)] = part
        at += len(part)
    return behind(views, at)
