"""A driver's transport to a vhost-user back-end, on Linux: a socket, shared memory, events.

    transport = VhostUserTransport("/run/disk.sock", DeviceId.BLOCK)
    driver = BlkDriver(transport).start()
    driver.read(0, 8)
    transport.close()

What is handed out stays shared with a back-end that may be hostile. The memory is sealed, so that it cannot be made
shorter under our mapping; no event is read or signalled in a way that could wait; every answer has its time.

A back-end that has gone is Disconnected, in whatever verb finds out, `wait` at the latest. `reconnect` then goes on
with another one, and no buffer is lost. Where both keep account of what is inflight, the next one is told what the last
one had; elsewhere it is offered all buffers again that are outstanding, and one may be served twice. With `patience`
that happens by itself, and a driver sees nothing but a pause.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic, sleep
from typing import Any, Final

from virtio_py.driver import Transport
from virtio_py.errors import Disconnected, MessageError, TransportError, UsageError
from virtio_py.memory import Arena, GuestMemory, Region
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceStatus
from virtio_py.transports.vhost_user_dirty import DirtyBitmap
from virtio_py.transports.vhost_user_frontend import (
    MAX_RINGS,
    PROTOCOL_WANTED,
    Call,
    Events,
    Frontend,
    Share,
    Steps,
    T,
    check_reply,
)
from virtio_py.transports.vhost_user_link import Link, ready
from virtio_py.transports.vhost_user_messages import Message, ProtocolFeature

MEMORY_START: Final = 0x10000
"""The guest address of the shared memory. Not 0: an address of 0 should be a fault."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_RETRY: Final = 0.01
_CHANNEL_BURST: Final = 64
"""Requests of the back-end's that are heard at one go: it must not keep us by talking."""


class VhostUserTransport(Transport):
    """The carrier between a Driver and the back-end that listens at `path`. One thread at a time may use it.

    device_id: the device type, which vhost-user does not tell; num_queues: how many queues to suppose where it does
    not tell that either; max_queue_size: descriptors, likewise; memory_size: bytes of the arena;
    timeout: seconds for each answer; patience: seconds to look for a back-end that has gone, before Disconnected is
    raised; inband: notifications are messages, if the back-end can. Raises UsageError where the system is not Linux,
    OSError if nobody listens, and as a verb does.

    `close` gives back everything but the mapping, which ends with the last view of the arena.

    used_notifications: used buffer notifications of all queues; those that came at one moment may count as one.
    """

    used_notifications: int

    def __init__(
        self,
        path: str,
        device_id: int,
        *,
        num_queues: int = 1,
        max_queue_size: int = 256,
        memory_size: int = 16 << 20,
        timeout: float = 10.0,
        patience: float = 0.0,
        inband: bool = False,
    ) -> None:
        if sys.platform != "linux":
            raise UsageError(f"vhost-user needs Linux (memfd, eventfd), not {sys.platform}")
        self.path = path
        self._device_id = device_id
        self._num_queues = num_queues
        self._max_queue_size = max_queue_size
        self._timeout = timeout
        self._patience = patience
        self.used_notifications = 0
        self._kicks: dict[int, int] = {}
        self._dirty: DirtyBitmap | None = None
        self._channel: Link | None = None
        self._link: Link | None = None
        self._whole = False
        self._heard = 0
        self._files: dict[int, int] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            self._held = ExitStack()
            self._call, self._err = self._event(), self._event()
            share, self._arena = self._share(memory_size, MEMORY_START)
            wanted = PROTOCOL_WANTED | inband << ProtocolFeature.INBAND_NOTIFICATIONS
            self._frontend = Frontend(share, Events(self._call, self._err), wanted, max_queue_size)
            self._held.callback(self._frontend.close)
            self._connect(monotonic())
            undo.pop_all()

    def _event(self) -> int:
        return self._holding(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def _holding(self, fd: int) -> int:
        self._held.callback(os.close, fd)
        return fd

    def _share(self, size: int, address: int) -> tuple[Share, Arena]:
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.memfd_create("virtio-py", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._files[address] = fd
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        arena = Arena(GuestMemory([Region(address, memoryview(mmap.mmap(fd, size)))]))
        return Share(fd, address, size), arena

    # The connection

    def _connect(self, deadline: float) -> None:
        self._hang_up()
        self._link = Link(self._find(deadline))
        self._whole = True
        ours, theirs = socket.socketpair()
        self._channel = Link(ours)
        with theirs:
            self._converse(self._frontend.open(theirs.fileno()))

    def _find(self, deadline: float) -> socket.socket:
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(self._timeout)
                sock.connect(self.path)
            except OSError as error:
                sock.close()
                if monotonic() > deadline:
                    # What `connect` raises lacks it, and the command line prints it.
                    error.filename = self.path
                    raise
                sleep(_RETRY)
            else:
                return sock

    def _hang_up(self) -> None:
        self._whole = False
        for link in (self._link, self._channel):
            if link is not None:
                link.close()
        self._link = self._channel = None

    def reconnect(self, timeout: float = 10.0) -> None:
        """Goes on with whoever listens within `timeout` seconds, with what was negotiated, and with all queues and
        their outstanding buffers. Raises Disconnected if nobody does, NegotiationError if that one lacks something,
        UsageError for a packed queue whose buffers were used out of order."""
        deadline = monotonic() + timeout
        while True:
            try:
                self._connect(deadline)
                self._converse(self._frontend.resume())
                break
            except OSError as error:
                raise Disconnected(f"nobody listens at {self.path}: {error.strerror}") from error
            except Disconnected:
                if monotonic() > deadline:
                    raise
        # What those before us were told they may not have read. In band, each ring was started with a message.
        for index in self._frontend.rings:
            _signal(self._kicks[index])

    def close(self) -> None:
        """Hangs up, and closes every descriptor that was shared. May be called twice."""
        self._hang_up()
        self._held.close()
        self._kicks.clear()
        while self._files:
            os.close(self._files.popitem()[1])
        self._forget_dirty()

    # Moving to another back-end, whose memory is a copy of this one's

    def start_logging(self) -> None:
        """Has the back-end note which pages it writes, from now on, of the memory that there is now. Raises
        NegotiationError if it cannot."""
        if self._dirty is not None:
            raise UsageError("the back-end's writes are logged already")
        self._dirty = DirtyBitmap(max(share.address + share.size for share in self._frontend.shares))
        share = Share(self._dirty.fd, 0, self._dirty.size)
        self._run(lambda: self._frontend.log(share))

    def dirty_pages(self) -> list[tuple[int, int]]:
        """What the back-end has written since this was last asked, as (guest address, bytes) of whole pages. The
        driver's own writes are the driver's to know."""
        if self._dirty is None:
            raise UsageError("the back-end's writes are not logged")
        return self._dirty.take()

    def stop_logging(self) -> None:
        """Ends what `start_logging` began."""
        self._run(lambda: self._frontend.log(None))
        self._forget_dirty()

    def _forget_dirty(self) -> None:
        dirty, self._dirty = self._dirty, None
        if dirty is not None:
            dirty.close()

    def stop_queues(self) -> dict[int, int]:
        """Stops all queues until `move`: where each stands, in the back-end's words, as the number of SET_VRING_BASE.
        After that the back-end writes nothing; what it had not used will be offered to the next one again."""
        return self._converse(self._frontend.stop())

    def move(self, path: str, timeout: float = 10.0) -> None:
        """Leaves the back-end for the one that listens at `path`, which begins where the queues themselves say that
        the other one ended. Raises as `reconnect`."""
        self.path = path
        self.reconnect(timeout)

    # Conversation

    def _run(self, verb: Callable[[], Steps[T]]) -> T:
        if self._patient:
            try:
                return self._converse(verb())
            except Disconnected:
                self.reconnect(self._patience)
        return self._converse(verb())

    @property
    def _patient(self) -> bool:
        """Whether a back-end that is lost now is looked for. One that goes before DRIVER_OK has no use for us."""
        return bool(self._patience and self._frontend.driver_status & DeviceStatus.DRIVER_OK)

    def _converse(self, steps: Steps[T]) -> T:
        value: Any = None
        while True:
            try:
                call = steps.send(value)
            except StopIteration as done:
                result: T = done.value
                return result
            value = self._exchange(call)

    def _exchange(self, call: Call) -> Any:
        frontend = self._frontend
        with self._in_step() as link:
            link.send(frontend.outgoing(call), call.fds, self._timeout)
            link.allowed = call.takes
            message = check_reply(call, self._await_reply(link, call)) if frontend.awaits(call) else None
        value = frontend.answer(call, message) if message is not None else 0
        return (value, link.take()) if call.takes else value

    def _await_reply(self, link: Link, call: Call) -> Message:
        deadline = monotonic() + self._timeout
        while monotonic() < deadline:
            # A back-end may wait for an answer on the channel before it answers us.
            found = self._poll(deadline - monotonic(), link, self._channel)
            if self._channel is not None and self._channel.fileno() in found:
                self._listen(self._channel)
            if message := link.receive(0):
                return message
        raise TransportError(f"the back-end has not answered {call.request.name} within {self._timeout} s")

    @contextmanager
    def _in_step(self) -> Iterator[Link]:
        """The connection. Whatever is raised in this block ends it: question and answer do not match any more."""
        if self._link is None or not self._whole:
            raise Disconnected(f"there is no connection with {self.path}")
        self._whole = False
        yield self._link
        self._whole = True

    def _poll(self, timeout: float, *what: Link | int | None) -> set[int]:
        poll = select.poll()
        for one in what:
            if one is not None:
                poll.register(one, select.POLLIN)
        return {fd for fd, _ in poll.poll(max(0.0, timeout) * 1000)}

    def _listen(self, channel: Link) -> None:
        try:
            for _ in range(_CHANNEL_BURST):
                message = channel.receive(0)
                if message is None:
                    return
                if answer := self._frontend.notice(message):
                    channel.send(answer, (), self._timeout)
        except Disconnected:
            # A back-end may close its channel and serve on.
            channel.close()
            self._channel = None

    # Notifications

    def wait(self, timeout: float) -> None:
        """Returns when something was heard, or after `timeout` seconds. Raises Disconnected."""
        if self._patient:
            try:
                return self._wait(timeout)
            except Disconnected:
                return self.reconnect(self._patience)
        return self._wait(timeout)

    def _wait(self, timeout: float) -> None:
        with self._in_step() as link:
            heard, self._heard = self._heard, self._frontend.calls
            if heard != self._heard:
                return
            found = self._poll(timeout, link, self._channel, self._call, self._err)
            if not found:
                self._frontend.doubt()
            if self._err in found and _consume(self._err):
                self._frontend.broken()
            if self._channel is not None and self._channel.fileno() in found:
                self._listen(self._channel)
            if self._call in found and (heard := _consume(self._call)):
                self.used_notifications += heard
                # What was used comes first, even if nobody is there any more.
                return
            if link.fileno() in found and link.receive(0):
                raise MessageError("the back-end answers what nobody has asked")

    @property
    def config_notifications(self) -> int:
        """How many CONFIG_CHANGE_MSG have come."""
        if self._channel is not None and self._poll(0, self._channel):
            with self._in_step():
                self._listen(self._channel)
        return self._frontend.config_changes

    def config_generation(self) -> int:
        """The number of changes heard of: the carrier has no generation, and answers a read in one piece."""
        return self.config_notifications

    def available_buffer(self, index: int, data: int) -> None:
        """Signals the kick descriptor of a queue, or sends VRING_KICK; nothing else fits into either."""
        if index not in self._kicks:
            raise UsageError(f"queue {index} is not enabled")
        if self._frontend.inband:
            self._run(lambda: self._frontend.kick(index))
        else:
            _signal(self._kicks[index])

    # Verbs

    @property
    def arena(self) -> Arena:
        """The shared memory."""
        return self._arena

    def add_memory(self, size: int) -> Arena:
        """More shared memory, of so many bytes, behind what there is: buffers may lie there, rings do not. Raises
        UsageError if the back-end has no slot for it."""
        last = max(self._frontend.shares, key=lambda share: share.address)
        # A page between two pieces: a buffer that runs over the end of one is a fault.
        share, arena = self._share(size, last.address + last.size + mmap.PAGESIZE)
        self._run(lambda: self._frontend.add_share(share))
        return arena

    def remove_memory(self, arena: Arena) -> None:
        """Takes back what `add_memory` gave. Raises UsageError if it did not."""
        start = arena.memory.regions[0].start
        found = [share for share in self._frontend.shares[1:] if share.address == start]
        if not found:
            raise UsageError(f"no memory was added at {start:#x}")
        self._run(lambda: self._frontend.remove_share(found[0]))
        os.close(self._files.pop(start))

    @property
    def device_id(self) -> int:
        """The device type, as our caller told it."""
        return self._device_id

    @property
    def num_queues(self) -> int:
        """The answer of GET_QUEUE_NUM, which may be more than the device uses, or what our caller told."""
        told = self._frontend.num_queues
        return self._num_queues if told is None else told

    @property
    def tells_status(self) -> bool:
        """Whether the back-end has agreed on VHOST_USER_PROTOCOL_F_STATUS."""
        return self._frontend.has(ProtocolFeature.STATUS)

    @property
    def tells_config(self) -> bool:
        """Whether the back-end has agreed on VHOST_USER_PROTOCOL_F_CONFIG."""
        return self._frontend.has(ProtocolFeature.CONFIG)

    def device_features(self) -> int:
        """The offer, less what this carrier cannot carry."""
        return self._frontend.device_features

    def accept_features(self, features: int) -> None:
        """SET_FEATURES."""
        self._run(lambda: self._frontend.accept_features(features))

    def read_status(self) -> int:
        """GET_STATUS, or what must be the status."""
        return self._run(self._frontend.read_status)

    def write_status(self, value: int) -> None:
        """SET_STATUS, or what does the same."""
        self._run(lambda: self._frontend.write_status(value))

    def read_config(self, offset: int, length: int) -> bytes:
        """GET_CONFIG."""
        return self._run(lambda: self._frontend.read_config(offset, length))

    def write_config(self, offset: int, data: bytes) -> None:
        """SET_CONFIG."""
        self._run(lambda: self._frontend.write_config(offset, data))

    def max_queue_size(self, index: int) -> int:
        """What our caller told; 0 beyond the queues that the back-end has."""
        told = self._frontend.num_queues
        return self._max_queue_size if index < (MAX_RINGS if told is None else told) else 0

    def enable_queue(self, queue: DriverQueue) -> None:
        """SET_VRING_*, and SET_VRING_ENABLE once DRIVER_OK is set."""
        kick = self._kicks.get(queue.index)
        if kick is None:
            kick = self._kicks[queue.index] = self._event()
        self._run(lambda: self._frontend.enable_queue(queue, kick))

    def reset_queue(self, index: int) -> None:
        """SET_VRING_ENABLE 0 and GET_VRING_BASE."""
        self._run(lambda: self._frontend.reset_queue(index))


def _consume(fd: int) -> int:
    """How often the event was signalled."""
    count = bytearray(8)
    # The back-end has the same open file, and may have made it one that waits.
    with suppress(BlockingIOError):
        os.preadv(fd, [count], -1, os.RWF_NOWAIT)
    return int.from_bytes(count, sys.byteorder)


def _signal(fd: int) -> None:
    # An event whose count is at its end tells already of what nobody has read.
    if ready(fd, select.POLLOUT, 0):
        os.eventfd_write(fd, 1)
