"""One socket of a vhost-user front-end: whole messages in and out, each in bounded time, and no descriptor unasked."""

from __future__ import annotations

import os
import select
import socket
from array import array
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Final

from attrs import define, field

from virtio_py.errors import Disconnected, MessageError, TransportError
from virtio_py.transports.vhost_user_messages import MAX_FDS, Assembler, Message


@define(eq=False)
class Link:
    """A connected UNIX stream socket. Raises Disconnected when the other end is gone, MessageError for what is no
    message, TransportError when something does not happen in time.

    allowed: how many descriptors may come in with what is received next; more, or unasked, are closed and an error.
    """

    socket: Final[socket.socket]
    allowed: int = field(init=False, default=0)
    _assembler: Assembler = field(init=False, factory=Assembler)
    _taken: list[int] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor, for `poll`."""
        return self.socket.fileno()

    def close(self) -> None:
        """Closes the socket, and descriptors that came in and nobody took."""
        self.socket.close()
        for fd in self.take():
            os.close(fd)

    def take(self) -> list[int]:
        """The descriptors that came in since this was last asked. They are the caller's."""
        taken, self._taken = self._taken, []
        return taken

    def send(self, data: bytes, fds: Sequence[int], timeout: float) -> None:
        """Sends a message, with descriptors beside its first byte."""
        deadline = monotonic() + timeout
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        while data:
            if not ready(self.fileno(), select.POLLOUT, deadline - monotonic()):
                raise TransportError(f"the back-end has taken no message for {timeout} s")
            sent = self._send_part(data, control)
            data, control = data[sent:], [] if sent else control

    def _send_part(self, data: bytes, control: list[tuple[int, int, array[int]]]) -> int:
        try:
            return self.socket.sendmsg([data], control, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Disconnected(f"the back-end does not listen: {error.strerror}") from error

    def receive(self, timeout: float) -> Message | None:
        """The next message, or None if it is not whole within `timeout` seconds."""
        deadline = monotonic() + timeout
        while ready(self.fileno(), select.POLLIN, deadline - monotonic()):
            if message := self._assembler.feed(self._receive_part()):
                return message
        return None

    def _receive_part(self) -> bytes:
        space = socket.CMSG_SPACE(MAX_FDS * 4)
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(self._assembler.wanted, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise Disconnected(f"the connection is lost: {error.strerror}") from error
        came = list(_descriptors(ancillary))
        self._taken += came
        self.allowed -= len(came)
        if self.allowed < 0 or flags & socket.MSG_CTRUNC:
            for fd in self.take():
                os.close(fd)
            raise MessageError("a message of the back-end comes with descriptors that nobody asked for")
        if not data:
            raise Disconnected("the back-end has left" + ("" if self._assembler.idle else " within a message"))
        return data


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> Iterator[int]:
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            yield from array("i", content[: len(content) // 4 * 4])


def ready(fd: int, events: int, timeout: float) -> bool:
    """Whether a descriptor is, or becomes, ready within `timeout` seconds. Below 0 is 0."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(max(0.0, timeout) * 1000))
