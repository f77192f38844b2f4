"""A UNIX socket behind a port: it listens, and whoever connects is the other side, one client at a time.

A client that ends its sending half may still read; one that is gone makes place for the next. What a client has sent
before it left reaches the driver first: its leaving is not noticed before all of it has been read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, poll

from virtio_py.devices.console.endpoints import IOV_MOST
from virtio_py.devices.console.layout import ConsoleSize
from virtio_py.errors import UsageError


class UnixEndpoint:
    """Listens at `path`, which is removed at the end. Raises UsageError where it cannot.

    The next client waits in the socket's backlog, as long as one is there.
    """

    size: ConsoleSize | None = None

    def __init__(self, path: str) -> None:
        self.path = path
        self._client: socket.socket | None = None
        self._ended = False
        self._listener = _listener(path)

    @property
    def connected(self) -> bool:
        """Whether there is a client."""
        return self._client is not None

    def watch(self, readable: bool, writable: bool) -> Mapping[int, int]:
        """See Endpoint."""
        if self._client is None:
            return {self._listener.fileno(): POLLIN}
        events = (POLLIN if readable and not self._ended else 0) | (POLLOUT if writable else 0)
        # A hang-up is reported whether it is asked for or not. As long as there may be something to read, it must not
        # be heard of: it would be so for ever, and could not be acted on.
        return {self._client.fileno(): events} if events or self._ended else {}

    def refresh(self) -> None:
        """See Endpoint."""
        if self._client is not None and self._ended and self._hung_up():
            self._disconnect()
        if self._client is None:
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                self._client, self._ended = self._listener.accept()[0], False
                self._client.setblocking(False)

    def _hung_up(self) -> bool:
        assert self._client is not None
        state = poll()
        state.register(self._client, 0)
        return any(events & (POLLHUP | POLLERR) for _, events in state.poll(0))

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client, self._ended = None, False

    def read(self, limit: int) -> bytes:
        """See Endpoint."""
        if self._client is None or self._ended:
            return b""
        try:
            data = self._client.recv(limit)
        except BlockingIOError:
            return b""
        except ConnectionResetError:
            data = b""
        if not data:
            self._ended = True
            self.refresh()
        return data

    def write(self, views: Sequence[memoryview]) -> int:
        """See Endpoint. What a client that has gone would have got is dropped, as on a line with nobody at its end."""
        if self._client is None:
            return sum(map(len, views))
        try:
            return self._client.sendmsg(views[:IOV_MOST], [], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            # It stays our client until what it has sent is read.
            return sum(map(len, views))

    def close(self) -> None:
        """See Endpoint."""
        self._disconnect()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def _listener(path: str) -> socket.socket:
    """A socket that listens at `path`; one that a dead process left behind is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if _is_dead(path):
                os.unlink(path)
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise UsageError(f"{path}: {error.strerror or error}") from error
    listener.listen(8)
    listener.setblocking(False)
    return listener


def _is_dead(path: str) -> bool:
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False
