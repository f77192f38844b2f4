"""A proxy between vhost-user front-ends and a back-end: messages pass, with their descriptors, and are looked at.

    proxy = Proxy(lambda front: Route(front, connected_socket(), Tracer(), seen=print), log=print)
    proxy.serve(listener)                         until `proxy.stop()`

Nothing is changed but two things, neither of which the other side can tell: the channel for the back-end's requests
runs through here, too, and with a `Follower` so do the rings' events. What is no vhost-user message is passed
on as it is. A front-end and the back-end connected for it are one `Route`; it ends when either of them leaves.
"""

from __future__ import annotations

import os
import select
import socket
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final, Protocol

from attrs import define, field

from virtio_py.errors import MessageError
from virtio_py.transports.vhost_user_messages import Assembler, FrontendRequest, Message
from virtio_py.transports.vhost_user_tracer import BACK, FRONT, MAIN, REQUESTS, Traced, Tracer

_MOST_FDS: Final = 253
"""SCM_MAX_FD of Linux: a proxy passes on what a back-end would refuse."""


class Follower(Protocol):
    """What looks at more than messages. All calls are made in the proxy's loop."""

    def passing(self, seen: Traced, message: Message, fds: list[int]) -> list[int]:
        """A message of the front-end before it is sent on; the descriptors to send on instead of `fds`. Those
        that are replaced are the follower's."""

    def descriptors(self) -> Sequence[int]:
        """What to wait for besides the sockets."""

    def ready(self, fd: int) -> None:
        """One of them is readable."""

    def close(self) -> None:
        """The route ends."""


@define(eq=False)
class _Pipe:
    """One direction of one channel: bytes with descriptors from `source` to `sink`, in order, none lost.

    broken: once the stream is no longer one of messages.
    """

    source: socket.socket
    sink: socket.socket
    sender: str
    channel: str
    broken: bool = False
    _assembler: Assembler = field(factory=Assembler, init=False)
    _raw: bytearray = field(factory=bytearray, init=False)
    _fds: list[int] = field(factory=list, init=False)
    _waiting: deque[tuple[bytes, list[int]]] = field(factory=deque, init=False)

    @property
    def blocked(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._waiting)

    def read(self) -> tuple[bytes, list[int], Message | None] | None:
        """What can be read at once: bytes and descriptors of a whole message, and the message, None if they are none.

        None while a message is not whole. Raises EOFError when the sender has gone, MessageError, with what was read
        kept for `rest`, where the stream stops to be one of messages.
        """
        size = 65536 if self.broken else self._assembler.wanted
        data, ancillary, _, _ = self.source.recvmsg(size, socket.CMSG_SPACE(_MOST_FDS * 4), socket.MSG_CMSG_CLOEXEC)
        self._fds += _descriptors(ancillary)
        if not data:
            raise EOFError
        if self.broken:
            return data, self._taken(), None
        self._raw += data
        message = self._assembler.feed(data)
        return None if message is None else (self._whole(), self._taken(), message)

    def rest(self) -> tuple[bytes, list[int]]:
        """What was read of a message that is none."""
        self.broken = True
        return self._whole(), self._taken()

    def _whole(self) -> bytes:
        whole, self._raw = bytes(self._raw), bytearray()
        return whole

    def _taken(self) -> list[int]:
        fds, self._fds = self._fds, []
        return fds

    def push(self, data: bytes, fds: list[int]) -> None:
        """Sends, now or as soon as the sink takes it; the descriptors are closed then."""
        self._waiting.append((data, fds))
        self.flush()

    def flush(self) -> None:
        """Sends what the sink takes without waiting. Raises OSError when it has gone."""
        with suppress(BlockingIOError):
            while self._waiting:
                data, fds = self._waiting[0]
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
                sent = self.sink.sendmsg([data], control, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                _close(fds)
                self._waiting[0] = data[sent:], []
                if sent == len(data):
                    self._waiting.popleft()

    def close(self) -> None:
        """Lets go of what was never sent."""
        _close(self._fds)
        for _, fds in self._waiting:
            _close(fds)


@define(eq=False)
class Route:
    """A front-end and its back-end.

    seen: called with every message once it is understood, before it is sent on, and with None for what is no message;
    ended: called when the route has been closed.
    """

    front: socket.socket
    back: socket.socket
    tracer: Tracer
    seen: Callable[[Traced, Message | None], None]
    follower: Follower | None = None
    ended: Callable[[], None] = lambda: None
    _began: float = field(factory=monotonic, init=False)
    _pipes: list[_Pipe] = field(factory=list, init=False)
    _sockets: list[socket.socket] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._connect(self.front, self.back, MAIN)

    def _connect(self, front: socket.socket, back: socket.socket, channel: str) -> None:
        self._sockets += [front, back]
        self._pipes += [_Pipe(front, back, FRONT, channel), _Pipe(back, front, BACK, channel)]

    def wishes(self) -> Iterator[tuple[int, int]]:
        """(descriptor, mask of poll events) of all that is waited for. Who cannot send is not read from."""
        for pipe in self._pipes:
            if pipe.blocked:
                yield pipe.sink.fileno(), select.POLLOUT
            else:
                yield pipe.source.fileno(), select.POLLIN
        if self.follower is not None:
            yield from ((fd, select.POLLIN) for fd in self.follower.descriptors())

    def turn(self, ready: dict[int, int]) -> bool:
        """Does what can be done for descriptors that are ready; whether the route goes on."""
        for pipe in list(self._pipes):
            if pipe not in self._pipes:
                continue  # its channel has just ended from the other side
            try:
                if pipe.blocked and ready.get(pipe.sink.fileno(), 0):
                    pipe.flush()
                elif not pipe.blocked and ready.get(pipe.source.fileno(), 0) & ~select.POLLOUT:
                    self._move(pipe)
            except (EOFError, OSError):
                if pipe.channel == MAIN:
                    return False
                self._disconnect(pipe)
        if self.follower is not None:
            for fd in self.follower.descriptors():
                if ready.get(fd, 0):
                    self.follower.ready(fd)
        return True

    def _disconnect(self, pipe: _Pipe) -> None:
        """Another channel has taken this one's place, or one side has had enough of it."""
        both = [other for other in self._pipes if {other.source, other.sink} == {pipe.source, pipe.sink}]
        for one in both:
            self._pipes.remove(one)
            one.close()
        for end in (pipe.source, pipe.sink):
            self._sockets.remove(end)
            end.close()

    def _move(self, pipe: _Pipe) -> None:
        now = monotonic() - self._began
        try:
            got = pipe.read()
        except MessageError as error:
            self.seen(self.tracer.bad_frame(pipe.sender, str(error), time=now, channel=pipe.channel), None)
            pipe.push(*pipe.rest())
            return
        if got is None:
            return
        data, fds, message = got
        if message is not None:
            traced = self.tracer.message(pipe.sender, message, fds=len(fds), time=now, channel=pipe.channel)
            self.seen(traced, message)
            fds = self._interpose(pipe, traced, message, fds)
        pipe.push(data, fds)

    def _interpose(self, pipe: _Pipe, traced: Traced, message: Message, fds: list[int]) -> list[int]:
        if (pipe.sender, pipe.channel) != (FRONT, MAIN):
            return fds
        if message.request == FrontendRequest.SET_BACKEND_REQ_FD and len(fds) == 1:
            return self._channel(fds[0])
        return fds if self.follower is None else self.follower.passing(traced, message, fds)

    def _channel(self, fd: int) -> list[int]:
        """The back-end gets one end of a pair of our own; the other end is joined to what the front-end sent."""
        try:
            theirs = socket.socket(fileno=fd)
        except OSError:
            return [fd]  # No socket: the back-end is to find that out.
        ours, given = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connect(theirs, ours, REQUESTS)
        return [given.detach()]

    def close(self) -> None:
        """Closes everything, after the requests that were never answered have been told."""
        for unanswered in self.tracer.end():
            self.seen(unanswered, None)
        if self.follower is not None:
            self.follower.close()
        for pipe in self._pipes:
            pipe.close()
        for one in self._sockets:
            one.close()
        self.ended()


@define(eq=False)
class Proxy:
    """Routes for all who connect. open_route: makes one of a front-end's socket, and says in OSError why it cannot."""

    open_route: Callable[[socket.socket], Route]
    log: Callable[[str], None]
    _stop: int = field(factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), init=False)
    _routes: list[Route] = field(factory=list, init=False)

    def stop(self) -> None:
        """Makes `serve` return. May be called from a signal handler."""
        os.eventfd_write(self._stop, 1)

    def serve(self, listener: socket.socket) -> None:
        """Accepts front-ends and moves their messages, until `stop`; then every route is closed."""
        try:
            while self._stop not in (ready := self._wait(listener)):
                if listener.fileno() in ready:
                    self._accept(listener)
                for route in list(self._routes):
                    if not route.turn(ready):
                        self._end(route)
        finally:
            for route in list(self._routes):
                self._end(route)
            os.close(self._stop)

    def _wait(self, listener: socket.socket) -> dict[int, int]:
        poll, wanted = select.poll(), {listener.fileno(): select.POLLIN, self._stop: select.POLLIN}
        for route in self._routes:
            for fd, events in route.wishes():
                wanted[fd] = wanted.get(fd, 0) | events
        for fd, events in wanted.items():
            poll.register(fd, events)
        return dict(poll.poll())

    def _accept(self, listener: socket.socket) -> None:
        front = listener.accept()[0]
        try:
            self._routes.append(self.open_route(front))
        except OSError as error:
            self.log(f"no back-end for a front-end that connected: {error.strerror}")
            front.close()

    def _end(self, route: Route) -> None:
        self._routes.remove(route)
        route.close()


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) // 4 * 4])
    return found.tolist()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
