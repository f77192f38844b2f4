"""fallocate(2): a shell, for Python's standard library cannot make holes in files.

Both functions return False where the system, the C library or the file system does not have the operation; any other
failure is an OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import cache
from typing import Any, Final

KEEP_SIZE: Final = 0x01
PUNCH_HOLE: Final = 0x02
ZERO_RANGE: Final = 0x10

_ABSENT: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)


@cache
def _libc_fallocate() -> Any:
    """libc's fallocate, or None: only Linux has it, and its modes."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    # With 64-bit offsets on every machine, 32-bit ones too; musl has only one name, and it is that.
    found = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return found


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    fallocate = _libc_fallocate()
    if fallocate is None:
        return False
    while fallocate(fd, mode, offset, length) != 0:
        error = ctypes.get_errno()
        if error in _ABSENT:
            return False
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))
    return True


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Gives the storage behind a range of bytes back; the range reads as zeros, the file keeps its size."""
    return _fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> bool:
    """Makes a range of bytes read as zeros and keeps storage behind it; the file keeps its size."""
    return _fallocate(fd, ZERO_RANGE | KEEP_SIZE, offset, length)
