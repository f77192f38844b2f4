"""What stands behind a port of a console device: an `Endpoint` takes bytes and gives bytes, and knows no virtio.

Nothing here waits. An endpoint that can take no more takes fewer bytes than it is given, and one that has nothing
gives none; the device then keeps the rest, and asks again when a descriptor that `watch` names is ready. A byte that
`write` counted belongs to the endpoint, and one that `read` returned to the device: none is ever in between.

    MemoryEndpoint      here; for tests and for programs that are themselves the other side
    PtyEndpoint         endpoint_pty: a pseudo-terminal, for a terminal emulator
    StdioEndpoint       endpoint_stdio: this process's standard input and output
    UnixEndpoint        endpoint_unix: a listening UNIX socket, one client at a time
    FileEndpoint        endpoint_file: a log
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from attrs import define, field

from virtio_py.devices.console.layout import ConsoleSize

IOV_MOST: Final = 1024
"""How many pieces one call of readv and writev takes; Linux's and the BSDs' limit."""


class Endpoint(Protocol):
    """The other side of a port. OSError from any method means that it has failed for good."""

    @property
    def connected(self) -> bool:
        """Whether somebody is there. What is written while nobody is may be dropped."""

    @property
    def size(self) -> ConsoleSize | None:
        """How large the terminal is, or None for what has no size."""

    def watch(self, readable: bool, writable: bool) -> Mapping[int, int]:
        """Descriptors, each with its poll(2) events, of which to hear in order to read more, to write more, and to
        learn who comes. With both False nothing may be reported again and again."""

    def refresh(self) -> None:
        """Something that was watched is ready, or may be: takes note of who has come, and who has gone."""

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes that have arrived; none if there are none now."""

    def write(self, views: Sequence[memoryview]) -> int:
        """Takes bytes from the front; how many were taken."""

    def close(self) -> None:
        """Lets go of everything."""


@define(eq=False)
class MemoryEndpoint:
    """Both directions in memory. After a change from this side, `ConsoleDevice.pump` tells the device.

    capacity: how many bytes it takes before somebody calls `take`, or None for any number
    """

    capacity: int | None = None
    connected: bool = True
    size: ConsoleSize | None = None
    arriving: bytearray = field(factory=bytearray)
    written: bytearray = field(factory=bytearray, init=False)
    closed: bool = field(default=False, init=False)

    def feed(self, data: bytes) -> None:
        """Bytes for the driver."""
        self.arriving += data

    def take(self, count: int | None = None) -> bytes:
        """The next `count` bytes that the driver has sent, all by default; makes room for as many."""
        taken = bytes(self.written[:count])
        del self.written[: len(taken)]
        return taken

    def watch(self, readable: bool, writable: bool) -> Mapping[int, int]:
        """Nothing: there is no descriptor."""
        return {}

    def refresh(self) -> None:
        """All is known already."""

    def read(self, limit: int) -> bytes:
        """See Endpoint."""
        data = bytes(self.arriving[:limit])
        del self.arriving[: len(data)]
        return data

    def write(self, views: Sequence[memoryview]) -> int:
        """See Endpoint."""
        before = len(self.written)
        for view in views:
            self.written += view if self.capacity is None else view[: max(self.capacity - len(self.written), 0)]
        return len(self.written) - before

    def close(self) -> None:
        """See Endpoint."""
        self.closed, self.connected = True, False


def write_some(fd: int, views: Sequence[memoryview]) -> int:
    """What a non-blocking descriptor takes of `views`, in bytes. Raises OSError."""
    try:
        return os.writev(fd, views[:IOV_MOST])
    except BlockingIOError:
        return 0


def read_some(fd: int, limit: int) -> bytes | None:
    """What a non-blocking descriptor has, None when that is nothing yet, b"" at its end. Raises OSError."""
    try:
        return os.read(fd, limit)
    except BlockingIOError:
        return None
