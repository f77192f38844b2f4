"""The world around one vhost-user session, on Linux: the connection, the mappings, the events of its rings.

Every descriptor here came from the front-end, which keeps the other end and shares its flags. So none is ever set to
non-blocking, and none is ever waited on: reads and sends are asked not to wait one by one.

A front-end that makes a file shorter after we have mapped it kills this process (SIGBUS) when that is touched. A seal
prevents it: where the file takes one it gets it, and `sealed` refuses all other memory. Else see
`vhost_user_supervisor`.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import stat
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Final

from virtio_py.device import Device
from virtio_py.errors import Disconnected, MessageError, PeerError, VirtioError
from virtio_py.memory import DirtyLog
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.status import RING_FEATURES
from virtio_py.transports.shared_bits import SharedDirtyLog
from virtio_py.transports.vhost_user_backend import Backend
from virtio_py.transports.vhost_user_channel import Channel, Outbox
from virtio_py.transports.vhost_user_inflight_file import map_sealed, sealed_file
from virtio_py.transports.vhost_user_messages import MAX_FDS, Assembler
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES, Shell
from virtio_py.transports.vhost_user_transfer import Transfer, Transfers
from virtio_py.transports.vhost_user_workers import Workers
from virtio_py.watch import wait_ready

_ONE: Final = (1).to_bytes(8, "little")
_POLL_INTERVAL: Final = 0.001
"""How often rings are looked at whose driver does not kick, in seconds."""


class Client(Shell):
    """One connection, served until it ends. `wake` is a descriptor whose readability ends it from our side.

    Everything that the front-end sent is closed and unmapped by `end`.
    """

    def __init__(
        self,
        connection: socket.socket,
        wake: int,
        device: Device,
        log: Callable[[str], None],
        *,
        engine: Engine = REFERENCE,
        protocol_features: int = PROTOCOL_FEATURES,
        ring_features: int = RING_FEATURES,
        threads: int = 1,
        sealed: bool = False,
    ) -> None:
        self._sealed = sealed
        self._connection = connection
        self._wake = wake
        self._say = log
        self._assembler = Assembler()
        self._fds: list[int] = []
        self._replies = Outbox(connection)
        self._channels: dict[int, Channel] = {}
        self._channel_events: dict[int, int] = {}
        self._lent: list[int] = []
        self._sockets: dict[int, socket.socket] = {}
        self._kicks: dict[int, int] = {}
        self._wanted = select.EPOLLIN
        self._epoll = select.epoll()
        self._transfers = Transfers(self._epoll, log)
        self._epoll.register(connection, self._wanted)
        self._epoll.register(wake, select.EPOLLIN)
        self._backend = Backend(
            device, self, engine=engine, protocol_features=protocol_features, ring_features=ring_features
        )
        self._errors: SimpleQueue[tuple[int, PeerError | None]] = SimpleQueue()
        self._failure = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._failure, select.EPOLLIN)
        self._workers = self._employ(threads) if threads > 1 else None

    def _employ(self, threads: int) -> Workers:
        def failed(index: int, error: PeerError | None) -> None:
            self._errors.put((index, error))
            os.eventfd_write(self._failure, 1)

        session = self._backend.session
        workers = Workers(threads, session.end.serve_beside, failed)
        session.beside = workers.submit
        return workers

    def _quiet(self) -> AbstractContextManager[None]:
        return self._workers.quiet() if self._workers is not None else nullcontext()

    # The loop

    def fileno(self) -> int:
        """A descriptor that can be read when there is something for `turn` to do, the device's watches aside."""
        return self._epoll.fileno()

    def turn(self) -> float | None:
        """Does what there is to do without waiting, for a loop of several clients: how many seconds that loop may
        wait at the most, None for any time. Raises as `run`, and Disconnected when woken."""
        if not self._turn(True):
            raise Disconnected("stopped")
        return 0 if self._backend.serve() else _POLL_INTERVAL if self._backend.polling else None

    def run(self) -> None:
        """Serves until woken. Raises Disconnected when the front-end leaves, PeerError for what it did wrong."""
        more = False
        while self._turn(more):
            more = self._backend.serve()

    def _turn(self, more: bool) -> bool:
        timeout = 0 if more else _POLL_INTERVAL if self._backend.polling else None
        if watches := self._backend.watch():
            # The device's first, or a front-end that never stops kicking would keep them waiting.
            if ready := wait_ready(watches, timeout, self._epoll.fileno()):
                with self._quiet():
                    for watch in ready:
                        self._backend.attend(watch)
            timeout = 0
        events = dict(self._epoll.poll(timeout))
        if self._wake in events:
            return False
        self._backend.poll()
        # A kick only says which ring is due; all else is nothing to do beside rings that are being served.
        with nullcontext() if events.keys() <= self._kicks.keys() else self._quiet():
            self._react(events)
        return True

    def _react(self, events: dict[int, int]) -> None:
        # Messages last: they close descriptors, whose numbers may come back as something else.
        message = events.pop(self._connection.fileno(), 0)
        for fd in events:
            self._event(fd)
        if message & select.EPOLLOUT:
            self._replies.flush()
        if message & ~select.EPOLLOUT and self._replies.empty:
            self._receive()
        # While an answer waits to be taken no further question is read: a peer that never reads cannot fill us.
        wanted = select.EPOLLIN if self._replies.empty else select.EPOLLOUT
        if wanted != self._wanted:
            self._wanted = wanted
            self._epoll.modify(self._connection, wanted)

    def _event(self, fd: int) -> None:
        if fd == self._failure:
            self._take_errors()
        elif fd in self._channels:
            self._attend_channel(fd)
        elif fd == self._transfers.fd:
            self._transfers.step()
        elif fd in self._kicks and self._consume(fd):
            self._backend.kicked(self._kicks[fd])

    def _take_errors(self) -> None:
        os.eventfd_read(self._failure)
        while not self._errors.empty():
            index, error = self._errors.get()
            if error is None:
                raise VirtioError(f"the thread that served ring {index} has ended with an error of its own")
            self._backend.failed(index, error)

    def _attend_channel(self, fd: int) -> None:
        channel = self._channels[fd]
        channel.flush()
        if answer := channel.receive():
            self._backend.answered(answer)
        self._watch_channel(fd, channel.events)

    def _watch_channel(self, fd: int, events: int) -> None:
        before = self._channel_events.pop(fd, 0)
        if events:
            self._channel_events[fd] = events
            (self._epoll.modify if before else self._epoll.register)(fd, events)
        elif before:
            self._epoll.unregister(fd)

    def _consume(self, fd: int) -> bool:
        """Takes an event without ever waiting for one; False if there is none. One that is dead is watched no more."""
        try:
            if os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT):
                return True
        except BlockingIOError:
            return False
        except OSError as error:
            self.log(f"ring {self._kicks[fd]}: the kick descriptor cannot be read: {error.strerror}")
        self._unwatch(fd)
        return False

    # Messages

    def _receive(self) -> None:
        data = self._receive_part()
        message = self._assembler.feed(data)
        if message is None:
            return
        fds, self._fds = self._fds, []
        reply = self._backend.receive(message, fds)
        if reply is not None and (left := self._beside(reply)):
            self._replies.push(left)

    def _beside(self, reply: bytes) -> bytes:
        """Sends a reply with the descriptors that go beside it, if there are any; what is left of it to be sent."""
        lent, self._lent = self._lent, []
        if not lent:
            return reply
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", lent))]
        try:
            sent = self._connection.sendmsg([reply], control, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            raise Disconnected(f"the front-end does not take a descriptor: {error.strerror}") from error
        finally:
            for fd in lent:
                os.close(fd)
        return reply[sent:]

    def _receive_part(self) -> bytes:
        space = socket.CMSG_SPACE(MAX_FDS * 4)
        wanted = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, ancillary, flags, _ = self._connection.recvmsg(self._assembler.wanted, space, wanted)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise Disconnected(f"the connection is lost: {error.strerror}") from error
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._fds += array("i", content[: len(content) // 4 * 4])
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise MessageError(f"more than {MAX_FDS} descriptors come with one message")
        if not data:
            raise Disconnected("the front-end has left" + ("" if self._assembler.idle else " within a message"))
        return data

    def end(self) -> None:
        """Lets go of everything that the front-end gave us, and of the connection."""
        if self._workers is not None:
            self._workers.close()
        self._backend.close()
        self._transfers.close()
        os.close(self._failure)
        for fd in self._fds + self._lent:
            os.close(fd)
        self._fds, self._lent = [], []
        self._epoll.close()
        self._connection.close()

    # Shell

    def map(self, fd: int, size: int, offset: int) -> memoryview:
        """See Mapper."""
        # Before its size is looked at: from then on it cannot become less.
        sealed = _seal(fd)
        status = os.fstat(fd)
        if self._sealed and not sealed:
            raise MessageError("a region's file could be made shorter, and takes no seal against that")
        if not stat.S_ISREG(status.st_mode):
            raise MessageError("a region's descriptor is not of a file")
        if size > status.st_size - offset:
            raise MessageError(f"a region ends at byte {offset + size} of a file of {status.st_size} bytes")
        # Huge pages are mapped whole; their size is the file's block size. Elsewhere it does no harm.
        grain = max(mmap.ALLOCATIONGRANULARITY, status.st_blksize)
        start = offset // grain * grain
        end = min(-(-(offset + size) // grain) * grain, status.st_size)
        try:
            mapping = mmap.mmap(fd, end - start, offset=start)
        except (OSError, ValueError) as error:
            raise MessageError(f"a region cannot be mapped: {error}") from error
        return memoryview(mapping)[offset - start : offset - start + size]

    def map_sealed(self, fd: int, size: int, offset: int) -> memoryview:
        """See Sealed."""
        return map_sealed(fd, size, offset, self.map)

    def lend(self, size: int) -> None:
        """See Shell."""
        try:
            self._lent.append(sealed_file(size))
        except OSError as error:
            raise MessageError(f"no file of {size} bytes can be had: {error.strerror}") from error

    def dirty_log(self, fd: int, size: int, offset: int) -> DirtyLog:
        """See Shell."""
        return SharedDirtyLog(self.map(fd, size, offset))

    def close(self, fd: int) -> None:
        """See Shell."""
        if self._channels.pop(fd, None) is not None:
            self._watch_channel(fd, 0)
        self._unwatch(fd)
        owner = self._sockets.pop(fd, None)
        if owner is not None:
            owner.close()
        else:
            os.close(fd)

    def watch(self, index: int, fd: int | None) -> None:
        """See Shell."""
        for old in [kick for kick, ring in self._kicks.items() if ring == index]:
            self._unwatch(old)
        if fd is None:
            return
        self.check_event(fd)
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except OSError as error:
            raise MessageError(f"a kick descriptor cannot be watched: {error.strerror}") from error
        self._kicks[fd] = index

    def _unwatch(self, fd: int) -> None:
        if self._kicks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def check_event(self, fd: int) -> None:
        """See Shell. User Mode Linux gives sockets for eventfds."""
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            self._sockets[fd] = self._stranger(fd)
        elif stat.S_IFMT(mode) and not stat.S_ISFIFO(mode):
            raise MessageError("an event's descriptor is not an eventfd, a pipe or a socket")

    def signal(self, fd: int) -> None:
        """See Shell. An event that cannot take one more is not lost: it tells of others that nobody has read."""
        try:
            if fd in self._sockets:
                self._sockets[fd].send(_ONE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            elif _writable(fd):
                os.write(fd, _ONE)
        except BlockingIOError:
            return
        except OSError as error:
            raise MessageError(f"an event cannot be signalled: {error.strerror}") from error

    def _stranger(self, fd: int) -> socket.socket:
        """The socket that came as `fd`. The other end of a connection to us is refused: if we held that, we should
        never see the connection end."""
        found, own = socket.socket(fileno=fd), self._connection.getsockname()
        with contextlib.suppress(OSError):
            if own and found.getpeername() == own:
                found.detach()
                raise MessageError("the descriptor is of a connection to ourselves")
        return found

    def check_channel(self, fd: int) -> None:
        """See Shell."""
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise MessageError("the channel's descriptor is not a socket")
        self._sockets[fd] = self._stranger(fd)
        self._channels[fd] = Channel(self._sockets[fd])

    def send(self, fd: int, message: bytes) -> None:
        """See Shell."""
        channel = self._channels[fd]
        channel.send(message)
        self._watch_channel(fd, channel.events)

    def save(self, fd: int, state: bytes) -> None:
        """See Shell."""
        self._begin(Transfer(fd, state))

    def load(self, fd: int, limit: int) -> None:
        """See Shell."""
        self._begin(Transfer(fd, limit=limit))

    def _begin(self, transfer: Transfer) -> None:
        if stat.S_ISSOCK(os.fstat(transfer.fd).st_mode):
            self._stranger(transfer.fd).detach()
        self._transfers.begin(transfer)

    def transferred(self) -> bytes | None:
        """See Shell."""
        return self._transfers.finish()

    def log(self, line: str) -> None:
        """See Shell."""
        self._say(line)


def _seal(fd: int) -> bool:
    """Sees to it that a file cannot be made shorter; whether that is so. Only memfds take seals, and not all."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False


def _writable(fd: int) -> bool:
    # A blocking eventfd whose count is at its end would make a write wait for its reader.
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
