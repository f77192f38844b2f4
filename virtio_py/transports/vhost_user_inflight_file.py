"""The file of an inflight region, on Linux: sealed when it is made, and mapped only if it is sealed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from typing import Final

from virtio_py.errors import MessageError

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def sealed_file(size: int) -> int:
    """A new file of so many zero bytes, which it keeps for ever. The descriptor is the caller's."""
    fd = os.memfd_create("virtio-py-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        undo.pop_all()
    return fd


def map_sealed(fd: int, size: int, offset: int, map_file: Callable[[int, int, int], memoryview]) -> memoryview:
    """Maps with `map_file` what cannot be made shorter. Raises MessageError."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise MessageError(f"an inflight region's file cannot have seals: {error.strerror}") from error
    if not seals & fcntl.F_SEAL_SHRINK:
        raise MessageError("an inflight region's file can be made shorter")
    return map_file(fd, size, offset)
