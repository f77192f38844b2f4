"""A vhost-user front-end with a real socket, shared memory and events, for tests of servers."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from attrs import define, field

from tests.vhost_user_frontend import BASIC, GUEST, SIZE, R, addresses, memory_table, region
from virtio_py.memory import Arena, GuestMemory, Region
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import Feature, bit
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_messages import Assembler, Flag, Message

MEMORY = "vhost-user-test-memory"
FEATURES = BASIC | bit(Feature.EVENT_IDX)


def await_(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


@define
class Client:
    """A front-end: a connection, shared memory, and the other ends of what it has handed out."""

    connection: socket.socket
    memory_fd: int = field(init=False)
    memory: mmap.mmap = field(init=False)
    arena: Arena = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.connection.settimeout(10)
        self.memory_fd = os.memfd_create(MEMORY)
        os.ftruncate(self.memory_fd, SIZE)
        self.memory = mmap.mmap(self.memory_fd, SIZE)
        self.arena = Arena(GuestMemory([Region(GUEST, memoryview(self.memory))]))

    def close(self) -> None:
        self.connection.close()
        os.close(self.memory_fd)
        # A mapping holds a descriptor of its own until the last view of it has gone.
        del self.arena, self.memory

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        socket.send_fds(self.connection, [Message(request, flags, payload).encode()], list(fds))

    def reply(self) -> Message:
        return receive(self.connection)

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """The number in the answer."""
        self.send(request, payload, fds, Flag.NEED_REPLY)
        answer = self.reply()
        assert (answer.request, answer.flags) == (request, Flag.REPLY)
        return int.from_bytes(answer.payload, "little")

    def number(self, request: int, value: int, fds: Sequence[int] = ()) -> None:
        assert self.ask(request, m.u64.encode(u64=value), fds) == 0

    def state(self, request: int, index: int, num: int) -> None:
        assert self.ask(request, m.vhost_vring_state.encode(index=index, num=num)) == 0

    def share(self) -> None:
        assert self.ask(R.SET_MEM_TABLE, memory_table([region()]), [self.memory_fd]) == 0

    def start(self, kick: int, call: int, index: int = 0) -> DriverQueue:
        """Brings one ring into service."""
        self.number(R.SET_FEATURES, FEATURES)
        self.share()
        queue = DriverQueue(index, 8, self.arena, FEATURES)
        self.number(R.SET_VRING_CALL, index, [call])
        self.state(R.SET_VRING_NUM, index, 8)
        self.state(R.SET_VRING_BASE, index, 0)
        assert self.ask(R.SET_VRING_ADDR, addresses(queue)) == 0
        self.number(R.SET_VRING_KICK, index, [kick])
        self.state(R.SET_VRING_ENABLE, index, 1)
        return queue

    def add(self, queue: DriverQueue, text: bytes) -> memoryview:
        """Makes one request available; where the answer will be."""
        out, back = self.arena.allocate(len(text)), self.arena.allocate(len(text))
        out.view[:] = text
        queue.add([out.extent], [back.extent], token=text)
        return back.view

    def echo(self, queue: DriverQueue, kick: int, text: bytes) -> bytes:
        """One request, its answer awaited without the call."""
        answer = self.add(queue, text)
        os.eventfd_write(kick, 1)
        await_(lambda: queue.take_used() == [(text, len(text))], "the request is used")
        return bytes(answer)


def receive(connection: socket.socket) -> Message:
    assembler = Assembler()
    while True:
        data = connection.recv(assembler.wanted)
        if not data:
            raise EOFError
        if message := assembler.feed(data):
            return message


@contextlib.contextmanager
def connected(path: str) -> Iterator[Client]:
    connection = socket.socket(socket.AF_UNIX)
    # Between bind and listen the path is there already, and a connection is refused.
    await_(lambda: connection.connect_ex(path) == 0, f"somebody listens at {path}")
    client = Client(connection)
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def eventfds(count: int, value: int = 0) -> Iterator[list[int]]:
    """Blocking ones, as User Mode Linux makes them."""
    made = [os.eventfd(value, os.EFD_CLOEXEC) for _ in range(count)]
    try:
        yield made
    finally:
        for fd in made:
            os.close(fd)


def readable(fd: int, seconds: float = 10) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])
