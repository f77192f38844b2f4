"""What a vhost-user back-end sends, and never waits for: replies on the connection, requests on their own channel."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Final

from attrs import define, field

from virtio_py.errors import Disconnected
from virtio_py.transports.vhost_user_messages import Assembler, Flag, Message, decode_message

MAX_WAITING: Final = 1024
"""The most messages that wait for a front-end to read."""


@define
class Outbox:
    """Messages that wait to be sent on a stream socket."""

    socket: socket.socket
    _waiting: list[bytes] = field(init=False, factory=list)

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def push(self, data: bytes, unique: bool = False) -> None:
        """Queues and sends what can be sent at once; what is `unique` and waits already is not queued again.

        Raises Disconnected, also where far too much waits: the other side has stopped to read.
        """
        # The first one may have left in part.
        if not (unique and data in self._waiting[1:]):
            self._waiting.append(data)
        self.flush()
        if len(self._waiting) > MAX_WAITING:
            raise Disconnected(f"the front-end has left {MAX_WAITING} messages unread")

    def flush(self) -> None:
        """Sends what the socket takes without waiting. Raises Disconnected."""
        try:
            while self._waiting:
                sent = self.socket.send(self._waiting[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._waiting[0] = self._waiting[0][sent:]
                if not self._waiting[0]:
                    self._waiting.pop(0)
        except BlockingIOError:
            return
        except OSError as error:
            raise Disconnected(f"the front-end does not listen: {error.strerror}") from error


@define
class Channel:
    """The socket of SET_BACKEND_REQ_FD: requests of ours, and the answers to those that want one."""

    socket: socket.socket
    _outbox: Outbox = field(init=False)
    _answers: Assembler = field(init=False, factory=Assembler)
    _awaited: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._outbox = Outbox(self.socket)

    @property
    def events(self) -> int:
        """What to wait for now, an epoll mask; 0: nothing. That the other end was closed would be reported for ever."""
        return (0 if self._outbox.empty else select.EPOLLOUT) | (select.EPOLLIN if self._awaited else 0)

    def send(self, message: bytes) -> None:
        """Sends a request. Raises Disconnected."""
        answered = decode_message(message).need_reply
        self._awaited += answered
        # Each answer belongs to one request; what wants none says the same a second time.
        self._outbox.push(message, unique=not answered)

    def flush(self) -> None:
        """Sends what waits. Raises Disconnected."""
        self._outbox.flush()

    def receive(self) -> Message | None:
        """An answer, if one is whole. Descriptors beside it are not taken in. Raises MessageError, Disconnected."""
        if not self._awaited:
            return None
        with contextlib.suppress(BlockingIOError):
            try:
                data = self.socket.recv(self._answers.wanted, socket.MSG_DONTWAIT)
            except ConnectionError as error:
                raise Disconnected(f"the back-end's channel is lost: {error.strerror}") from error
            if not data:
                # Nobody will answer any more. That ends the channel, not the connection.
                self._awaited = 0
            elif answer := self._answers.feed(data):
                self._awaited -= bool(answer.flags & Flag.REPLY)
                return answer
        return None
