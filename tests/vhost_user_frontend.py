"""A vhost-user front-end in a test's hands, without sockets: messages go in, answers come out, a shell keeps books."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

from attrs import define, field

from virtio_py.device import Device, DeviceEnd, QueueSpec
from virtio_py.errors import MessageError
from virtio_py.memory import Arena, DirtyLog, GuestMemory, Region
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.queue import DeviceQueue, DriverQueue
from virtio_py.spec import DeviceId, Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_backend import Backend
from virtio_py.transports.vhost_user_inflight_file import sealed_file
from virtio_py.transports.vhost_user_messages import Flag, FrontendRequest, Message, decode_message
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES, Shell

R = FrontendRequest
GUEST, USER, SIZE = 0x10000, 0x7F00_0000_0000, 1 << 18
ACKNOWLEDGED, REFUSED = m.u64.encode(u64=0), m.u64.encode(u64=1)
BASIC = bit(Feature.VERSION_1) | bit(m.F_PROTOCOL_FEATURES)
PACKED = bit(Feature.RING_PACKED)


@define(eq=False)
class Echo(Device):
    """Writes back what it reads. resets: how often it was reset; config: its configuration space."""

    device_id = DeviceId.ENTROPY
    resets: int = 0
    activations: int = 0
    config: bytearray = field(factory=lambda: bytearray(range(24)))
    end: DeviceEnd | None = None

    def queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec("first"), QueueSpec("second")]

    def read_config(self) -> bytes:
        return bytes(self.config)

    def write_config(self, offset: int, data: bytes) -> None:
        self.config[offset : offset + len(data)] = data

    def activate(self, end: DeviceEnd, features: int) -> None:
        self.activations += 1
        self.end = end

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        chain.writable.write(chain.readable.read_all())

    def reset(self) -> None:
        self.resets += 1


@define(eq=False)
class Books(Shell):
    """A shell of numbers: which descriptors are open, watched, signalled. Files have the bytes of `memory`, or as dirty
    logs those of `bitmap`;
    lent: the sealed files that were sent, real ones; files: those that came, mapped, by descriptor."""

    memory: bytearray = field(factory=lambda: bytearray(SIZE))
    bitmap: bytearray = field(factory=lambda: bytearray((GUEST + SIZE) // DirtyLog.PAGE // 8))
    open: set[int] = field(factory=set)
    watched: dict[int, int] = field(factory=dict)
    signals: list[int] = field(factory=list)
    sent: list[tuple[int, int, bytes]] = field(factory=list)
    lines: list[str] = field(factory=list)
    bad: set[int] = field(factory=set)
    moved: bytes | None = None
    lent: list[int] = field(factory=list)
    files: dict[int, mmap.mmap] = field(factory=dict)
    _next: int = 100

    def fd(self) -> int:
        """A new descriptor, as if it had come with a message."""
        self._next += 1
        self.open.add(self._next)
        return self._next

    def map(self, fd: int, size: int, offset: int) -> memoryview:
        assert fd in self.open
        if offset + size > len(self.memory) or fd in self.bad:
            raise MessageError("the file is shorter")
        return memoryview(self.memory)[offset : offset + size]

    def dirty_log(self, fd: int, size: int, offset: int) -> DirtyLog:
        assert fd in self.open
        if offset + size > len(self.bitmap) or fd in self.bad:
            raise MessageError("the file is shorter")
        return DirtyLog(memoryview(self.bitmap)[offset : offset + size])

    def close(self, fd: int) -> None:
        self.open.remove(fd)  # a KeyError: closed twice
        assert fd not in self.watched.values(), "closed while watched"

    def watch(self, index: int, fd: int | None) -> None:
        self.watched.pop(index, None)
        if fd is not None:
            self.check_event(fd)
            self.watched[index] = fd

    def check_event(self, fd: int) -> None:
        assert fd in self.open
        if fd in self.bad:
            raise MessageError("not an event")

    def signal(self, fd: int) -> None:
        assert fd in self.open
        self.signals.append(fd)

    def check_channel(self, fd: int) -> None:
        self.check_event(fd)

    def send(self, fd: int, message: bytes) -> None:
        assert fd in self.open
        request, _, payload = decode_message(message)
        self.sent.append((fd, request, payload))

    def save(self, fd: int, state: bytes) -> None:
        self.check_event(fd)
        self.close(fd)
        self.moved = state

    def load(self, fd: int, limit: int) -> None:
        self.check_event(fd)
        self.close(fd)

    def transferred(self) -> bytes | None:
        moved, self.moved = self.moved, None
        return moved

    def map_sealed(self, fd: int, size: int, offset: int) -> memoryview:
        assert fd in self.open
        if fd not in self.files or offset + size > len(self.files[fd]):
            raise MessageError("not sealed, or shorter")
        return memoryview(self.files[fd])[offset : offset + size]

    def lend(self, size: int) -> None:
        self.lent.append(sealed_file(size))

    def log(self, line: str) -> None:
        assert "\n" not in line
        self.lines.append(line)


class FrontEnd:
    """Sends messages to a Backend, and drives its rings with the driver's half of this package."""

    def __init__(
        self,
        engine: Engine = REFERENCE,
        protocol: int = PROTOCOL_FEATURES,
        ring_features: int = RING_FEATURES | PACKED,
        device: Echo | None = None,
    ) -> None:
        self.device = device or Echo()
        self.books = Books()
        self.engine = engine
        self.backend = Backend(
            self.device, self.books, engine=engine, protocol_features=protocol, ring_features=ring_features
        )
        self.arena = Arena(GuestMemory([Region(GUEST, memoryview(self.books.memory))]))

    def send(self, request: int, payload: bytes = b"", fds: int = 0, flags: int = 0) -> bytes | None:
        """One message with so many new descriptors; the reply's payload, or None."""
        reply = self.backend.receive(Message(request, flags, payload), [self.books.fd() for _ in range(fds)])
        if reply is None:
            return None
        answer = decode_message(reply)
        assert (answer.request, answer.flags) == (request, Flag.REPLY)
        return answer.payload

    def must(self, request: int, payload: bytes = b"", fds: int = 0) -> None:
        """One message that has to be acknowledged."""
        assert self.send(request, payload, fds, Flag.NEED_REPLY) == ACKNOWLEDGED, self.books.lines

    def refused(self, request: int, payload: bytes = b"", fds: int = 0) -> None:
        """One message that has to be refused, in an acknowledgement."""
        assert self.send(request, payload, fds, Flag.NEED_REPLY) == REFUSED

    def number(self, request: int, value: int, fds: int = 0) -> None:
        self.must(request, m.u64.encode(u64=value), fds)

    def state(self, request: int, index: int, num: int) -> None:
        self.must(request, m.vhost_vring_state.encode(index=index, num=num))

    def get(self, request: int, payload: bytes = b"") -> int:
        answer = self.send(request, payload)
        assert answer is not None
        return int.from_bytes(answer, "little")

    def base(self, index: int) -> int:
        """GET_VRING_BASE."""
        answer = self.send(R.GET_VRING_BASE, m.vhost_vring_state.encode(index=index))
        assert answer is not None
        found = m.vhost_vring_state.decode(answer)
        assert found.index == index
        return int(found.num)

    def share(self) -> None:
        """SET_MEM_TABLE, one region, with the room for a second that User Mode Linux sends."""
        self.must(R.SET_MEM_TABLE, memory_table([region()]) + bytes(32), fds=1)

    def queue(self, index: int, features: int, size: int = 8) -> DriverQueue:
        return DriverQueue(index, size, self.arena, features, self.engine)

    def describe(self, queue: DriverQueue, base: int = 0) -> None:
        """SET_VRING_NUM, _BASE and _ADDR."""
        self.state(R.SET_VRING_NUM, queue.index, queue.size)
        self.state(R.SET_VRING_BASE, queue.index, base)
        self.must(R.SET_VRING_ADDR, addresses(queue))

    def call(self, index: int) -> int:
        """SET_VRING_CALL; the new descriptor."""
        self.number(R.SET_VRING_CALL, index, fds=1)
        return max(self.books.open)

    def kick(self, index: int) -> None:
        """A kick by descriptor, which must be watched."""
        assert index in self.books.watched
        self.backend.kicked(index)
        self.serve()

    def serve(self) -> None:
        while self.backend.serve():
            pass

    def echo(self, queue: DriverQueue, text: bytes, kick: bool = True) -> bytes:
        """One request: what comes back."""
        out, back = self.arena.allocate(len(text)), self.arena.allocate(len(text))
        out.view[:] = text
        queue.add([out.extent], [back.extent], token=text)
        if kick:
            self.kick(queue.index)
        assert queue.take_used() == [(text, len(text))]
        answer = bytes(back.view)
        self.arena.free(out, back)
        return answer


def region(**other: int) -> dict[str, int]:
    """The whole of the arena, as a VhostUserMemoryRegion."""
    return {"guest_phys_addr": GUEST, "memory_size": SIZE, "userspace_addr": USER, "mmap_offset": 0} | other


def memory_table(regions: Sequence[dict[str, int]]) -> bytes:
    return m.VhostUserMemory(len(regions)).encode(nregions=len(regions), regions=list(regions))


def addresses(queue: DriverQueue, **other: Any) -> bytes:
    """The vhost_vring_addr of a queue."""
    places = {
        "desc_user_addr": queue.descriptor_area + USER - GUEST,
        "avail_user_addr": queue.driver_area + USER - GUEST,
        "used_user_addr": queue.device_area + USER - GUEST,
    }
    return m.vhost_vring_addr.encode(index=queue.index, **(places | other))
