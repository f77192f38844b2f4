"""A file behind a port: what the driver sends is appended to it, and nothing is ever read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from virtio_py.devices.console.endpoints import write_some
from virtio_py.devices.console.layout import ConsoleSize


class FileEndpoint:
    """A log at `path`, made if it is not there. Raises OSError if it cannot be opened.

    A named pipe or a device will do as well; its reader may be slow, but must be there.
    """

    size: ConsoleSize | None = None
    connected = True

    def __init__(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._fd = os.open(path, flags, 0o666)

    def watch(self, readable: bool, writable: bool) -> Mapping[int, int]:
        """See Endpoint."""
        from select import POLLOUT

        return {self._fd: POLLOUT} if writable else {}

    def refresh(self) -> None:
        """A file changes nothing by itself."""

    def read(self, limit: int) -> bytes:
        """Nothing."""
        return b""

    def write(self, views: Sequence[memoryview]) -> int:
        """See Endpoint."""
        return write_some(self._fd, views)

    def close(self) -> None:
        """See Endpoint."""
        os.close(self._fd)
