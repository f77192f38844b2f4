"""What stands behind a block device: a `Medium` stores bytes, knows nothing of virtio, and fails with OSError.

Offsets and lengths are bytes, multiples of 512, inside [0, size): the device has checked them. Data is passed as the
views of a chain, so that a medium can read from and write to the driver's memory without a copy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from typing import Final, Protocol

from attrs import define, field

from virtio_py.devices.blk.fallocate import punch_hole, zero_range

_ZEROS: Final = bytes(1 << 16)
_IOV_MAX: Final = 1024
"""How many pieces preadv and pwritev take; Linux's and the BSDs' limit."""


class Medium(Protocol):
    """Storage of `size` bytes, a multiple of 512."""

    @property
    def size(self) -> int:
        """Bytes, rounded down to whole sectors."""

    @property
    def read_only(self) -> bool:
        """Whether nothing may be written; the device then offers VIRTIO_BLK_F_RO."""

    @property
    def concurrent(self) -> bool:
        """Whether several threads may read and store at a time."""

    @property
    def can_deallocate(self) -> bool:
        """Whether discard, or write_zeroes with unmap, may give storage back."""

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fills all views, or raises OSError."""

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        """Stores all views, or raises OSError; they are volatile until `flush` returns."""

    def flush(self) -> None:
        """Commits everything stored so far to persistent storage."""

    def discard(self, offset: int, length: int) -> None:
        """The content is no longer needed; what a read returns is undefined."""

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """The range reads as zeros from now on; `unmap` allows giving its storage back."""

    def erase(self, offset: int, length: int) -> None:
        """Makes the content unrecoverable by whoever can read the medium, and commits that."""

    def resize(self, size: int) -> None:
        """Changes the size, in bytes, a multiple of 512; new bytes are zeros."""

    def close(self) -> None:
        """Lets go of the storage."""


@define
class MemoryMedium:
    """Sectors in memory: the whole of it is gone with the process."""

    data: bytearray
    read_only: bool = False
    can_deallocate: bool = field(default=False, init=False)
    concurrent: bool = field(default=True, init=False)

    @classmethod
    def of(cls, size: int) -> MemoryMedium:
        """Zeroed storage of `size` bytes, rounded down to whole sectors."""
        return cls(bytearray(size - size % 512))

    @property
    def size(self) -> int:
        return len(self.data) - len(self.data) % 512

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        with memoryview(self.data) as data:
            for view in views:
                view[:] = data[offset : offset + len(view)]
                offset += len(view)

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self) -> None:
        """Nothing is more persistent than the rest."""

    def discard(self, offset: int, length: int) -> None:
        """The content stays; nothing says that it must not."""

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        for at, part in _zeros(offset, length):
            self.data[at : at + len(part)] = part

    def erase(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length, False)

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def close(self) -> None:
        self.data = bytearray()


@define
class NullMedium:
    """Reads as zeros, forgets what is written: what remains of a benchmark is the transport."""

    size: int
    read_only: bool = False
    can_deallocate: bool = field(default=True, init=False)
    concurrent: bool = field(default=True, init=False)

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            view[:] = bytes(len(view))

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None: ...

    def flush(self) -> None: ...

    def discard(self, offset: int, length: int) -> None: ...

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None: ...

    def erase(self, offset: int, length: int) -> None: ...

    def resize(self, size: int) -> None:
        self.size = size

    def close(self) -> None: ...


class FileMedium:
    """A file or a block special file, through the page cache.

    Opens `path` and holds it until `close`. Raises OSError when it cannot be opened. The size is looked up at every
    call of `size`: a file may be made longer behind our back, and one made shorter fails reads rather than serving
    zeros.
    """

    def __init__(self, path: str | os.PathLike[str], read_only: bool = False) -> None:
        self.path: Final = path
        self._read_only = read_only
        self._file: FileIO = FileIO(path, "rb" if read_only else "r+b", opener=self._open)
        self._fd: int = self._file.fileno()
        self._can_deallocate = not read_only and self._probe_holes()

    def _open(self, path: str, flags: int) -> int:
        return os.open(path, flags)

    def _probe_holes(self) -> bool:
        # Behind the end of a file there is nothing to lose. A block special file has no room there, and says EINVAL;
        # whether it can deallocate is not to be learnt without doing it, and the field says "may".
        try:
            return punch_hole(self._fd, self.size + 4096, 4096)
        except OSError as error:
            return error.errno == errno.EINVAL

    @property
    def size(self) -> int:
        end = self._file.seek(0, os.SEEK_END)
        return end - end % 512

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def can_deallocate(self) -> bool:
        return self._can_deallocate

    @property
    def concurrent(self) -> bool:
        # Reads and writes that name their offset share nothing; where there are none, they share the file's position.
        return read_some is _preadv

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        pending = list(views)
        while pending:
            done = read_some(self._file, offset, pending[:_IOV_MAX])
            if done == 0 and any(map(len, pending[:_IOV_MAX])):
                raise OSError(errno.EIO, f"the file ends at or before byte {offset}", self.path)
            offset += done
            pending = behind(pending, done)

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        pending = list(views)
        while pending:
            done = write_some(self._file, offset, pending[:_IOV_MAX])
            if done == 0 and any(map(len, pending[:_IOV_MAX])):
                raise OSError(errno.EIO, f"nothing can be stored at byte {offset}", self.path)
            offset += done
            pending = behind(pending, done)

    def flush(self) -> None:
        if not self._read_only:
            getattr(os, "fdatasync", os.fsync)(self._fd)

    def discard(self, offset: int, length: int) -> None:
        # Where no hole can be made, doing nothing is a discard too.
        if length:
            punch_hole(self._fd, offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        if length and not (punch_hole if unmap else zero_range)(self._fd, offset, length):
            self._store_zeros(offset, length)

    def _store_zeros(self, offset: int, length: int) -> None:
        for at, part in _zeros(offset, length):
            self.write_from(at, [part])

    def erase(self, offset: int, length: int) -> None:
        """Overwrites in place with zeros. A file system or a disk that never overwrites keeps the old content where
        only its own tools find it."""
        self._store_zeros(offset, length)
        self.flush()

    def resize(self, size: int) -> None:
        """Only a regular file can be resized."""
        self._file.truncate(size)

    def close(self) -> None:
        self._file.close()


def _zeros(offset: int, length: int) -> Iterator[tuple[int, memoryview]]:
    """Zeros for a range, piece by piece: a range may be as long as the disk."""
    for at in range(offset, offset + length, len(_ZEROS)):
        yield at, memoryview(_ZEROS)[: offset + length - at]


def behind(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of `views` behind their first `count` bytes; I/O may end short, in the middle of one."""
    for i, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[i + 1 :]]
        count -= len(view)
    return []


def _preadv(file: FileIO, offset: int, views: Sequence[memoryview]) -> int:
    return os.preadv(file.fileno(), views, offset)


def _pwritev(file: FileIO, offset: int, views: Sequence[memoryview]) -> int:
    return os.pwritev(file.fileno(), views, offset)


def _seek_read(file: FileIO, offset: int, views: Sequence[memoryview]) -> int:
    file.seek(offset)
    return file.readinto(_first(views))


def _seek_write(file: FileIO, offset: int, views: Sequence[memoryview]) -> int:
    file.seek(offset)
    return file.write(_first(views))


def _first(views: Sequence[memoryview]) -> memoryview:
    """The first view that is not empty, so that 0 bytes read means the end of the file."""
    return next((view for view in views if len(view)), views[0])


# Windows has no positioned I/O. Both kinds may do less than was asked, and return how much they did.
read_some = _preadv if hasattr(os, "preadv") else _seek_read
write_some = _pwritev if hasattr(os, "pwritev") else _seek_write
