"""Inflight tracking as messages: the region is asked for, handed over, and lied about."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_vhost_user_frontend import wire
from tests.test_vhost_user_server import open_fds
from tests.test_vhost_user_transport import serving
from tests.vhost_user_frontend import ACKNOWLEDGED, BASIC, PACKED, REFUSED, Echo, FrontEnd, R
from tests.vhost_user_socket import Client, await_, connected
from virtio_py.errors import PeerError
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import engine_named
from virtio_py.rings.queue import DeviceQueue, DriverQueue
from virtio_py.spec import bit
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_backend import Backend
from virtio_py.transports.vhost_user_inflight_file import map_sealed, sealed_file
from virtio_py.transports.vhost_user_inflight_layout import QueueRegionPacked, QueueRegionSplit, part_size
from virtio_py.transports.vhost_user_messages import Flag, Message

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a region is a sealed file")

SIZE = 8
both_layouts = pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])


@define(eq=False)
class Slow(Echo):
    """Keeps what it is given until it is told to answer."""

    chains: dict[bytes, Chain] = field(factory=dict)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        text = chain.readable.read_all()
        assert text not in self.chains
        chain.defer()
        self.chains[text] = chain

    def answer(self, *texts: bytes) -> None:
        for text in texts:
            chain = self.chains.pop(text)
            chain.writable.write(text)
            chain.complete()


def slow(front: FrontEnd) -> Slow:
    """Its device."""
    assert isinstance(front.device, Slow)
    return front.device


def get_region(front: FrontEnd, num_queues: int = 2, queue_size: int = SIZE) -> int:
    """GET_INFLIGHT_FD: the file, real and ours."""
    answer = front.send(R.GET_INFLIGHT_FD, m.VhostUserInflight.encode(num_queues=num_queues, queue_size=queue_size))
    assert answer is not None
    found = m.VhostUserInflight.decode(answer)
    [fd] = front.books.lent
    front.books.lent = []
    assert (found.mmap_offset, found.num_queues, found.queue_size) == (0, num_queues, queue_size)
    assert os.fstat(fd).st_size == found.mmap_size
    return fd


def set_region(front: FrontEnd, fd: int, count: int = 1, **other: int) -> bytes | None:
    """SET_INFLIGHT_FD, with a file that is mapped if the back-end asks: the answer."""
    given = {"mmap_size": os.fstat(fd).st_size, "num_queues": 2, "queue_size": SIZE} | other
    fds = [front.books.fd() for _ in range(count)]
    for new in fds:
        front.books.files[new] = mmap.mmap(fd, 0)
    reply = front.backend.receive(Message(R.SET_INFLIGHT_FD, Flag.NEED_REPLY, m.VhostUserInflight.encode(**given)), fds)
    assert not front.books.open & set(fds), "a descriptor is kept that is of no use"
    return m.decode_message(reply).payload if reply is not None else None


def start(front: FrontEnd, queue: DriverQueue, base: int = 0) -> None:
    front.describe(queue, base)
    front.number(R.SET_VRING_KICK, queue.index, fds=1)
    front.state(R.SET_VRING_ENABLE, queue.index, 1)
    front.serve()


def begun(device: Echo, features: int, engine: str = "reference") -> FrontEnd:
    front = FrontEnd(engine_named(engine), device=device)
    front.number(R.SET_FEATURES, features)
    front.share()
    return front


def add(front: FrontEnd, queue: DriverQueue, *texts: bytes) -> None:
    for text in texts:
        out, back = front.arena.allocate(len(text)), front.arena.allocate(len(text))
        out.view[:] = text
        queue.add([out.extent], [back.extent], token=(text, back.view))


def back(queue: DriverQueue) -> list[bytes]:
    done = []
    for (text, view), length in queue.take_used():
        assert bytes(view[:length]) == text
        done.append(text)
    return done


@pytest.fixture
def region_fd() -> Iterator[list[int]]:
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


@both_layouts
@pytest.mark.parametrize("engine", ["reference", "compiled"])
@pytest.mark.parametrize("end", ["killed", "closed"])
def test_the_next_back_end_serves_what_the_last_one_left(
    region_fd: list[int], layout: int, engine: str, end: str
) -> None:
    features = BASIC | layout
    first = begun(Slow(), features, engine)
    region_fd.append(get_region(first))
    assert set_region(first, region_fd[0]) == ACKNOWLEDGED
    queue = first.queue(0, features, SIZE)
    start(first, queue)
    add(first, queue, b"a", b"b", b"c")
    first.kick(0)
    slow(first).answer(b"b")
    assert back(queue) == [b"b"]
    add(first, queue, b"d")
    if end == "closed":
        first.backend.close()

    second = begun(Slow(), features, engine)
    second.books.memory = first.books.memory
    second.share()
    assert set_region(second, region_fd[0]) == ACKNOWLEDGED
    call = second.call(0)
    # What a front-end knows of a split ring is its used idx, of a packed one nothing that is right.
    start(second, queue, 0 if layout else 1)
    assert call in second.books.signals, "the last one may have used buffers and not told"
    assert list(slow(second).chains) == [b"a", b"c", b"d"]
    slow(second).answer(b"c", b"d", b"a")
    assert back(queue) == [b"c", b"d", b"a"]
    add(first, queue, b"e")
    second.kick(0)
    slow(second).answer(b"e")
    assert back(queue) == [b"e"]


@both_layouts
def test_a_driver_that_resets_has_nothing_inflight(region_fd: list[int], layout: int) -> None:
    features = BASIC | layout
    front = begun(Slow(), features)
    region_fd.append(get_region(front))
    assert set_region(front, region_fd[0]) == ACKNOWLEDGED
    for reset in ("device", "features", "ring", "one ring of two"):
        queue = front.queue(0, features, SIZE)
        start(front, queue, 1 << 15 if layout else 0)
        add(front, queue, b"a", b"b")
        front.kick(0)
        slow(front).answer(b"b")
        assert back(queue) == [b"b"]
        slow(front).chains.clear()
        if reset == "device":
            front.must(R.RESET_DEVICE)
        if reset == "features":
            front.number(R.SET_FEATURES, features ^ 1 << 29)
            front.number(R.SET_FEATURES, features)
        if reset == "one ring of two":
            start(front, front.queue(1, features, SIZE), 1 << 15 if layout else 0)
        if "ring" in reset:
            # The base that comes back at the next start is not the one that was told.
            assert front.base(0) != (1 << 15 if layout else 0)
    queue = front.queue(0, features, SIZE)
    start(front, queue, 1 << 15 if layout else 0)
    assert not slow(front).chains
    add(front, queue, b"c")
    front.kick(0)
    assert list(slow(front).chains) == [b"c"]


@both_layouts
def test_a_driver_that_writes_0_to_the_status_has_nothing_inflight(region_fd: list[int], layout: int) -> None:
    features = BASIC | layout
    front = FrontEnd(device=Slow())
    front.number(R.SET_PROTOCOL_FEATURES, bit(m.ProtocolFeature.STATUS))
    for text in (b"a", b"b"):
        front.number(R.SET_FEATURES, features)
        front.share()
        if not region_fd:
            region_fd.append(get_region(front))
            assert set_region(front, region_fd[0]) == ACKNOWLEDGED
        for status in (1, 3, 11):
            front.number(R.SET_STATUS, status)
        queue = front.queue(0, features, SIZE)
        start(front, queue, 1 << 15 if layout else 0)
        front.number(R.SET_STATUS, 15)
        add(front, queue, b"first", text)
        front.kick(0)
        assert list(slow(front).chains) == [b"first", text]
        # It cannot go back into the ring: what was taken after it has been used.
        slow(front).answer(text)
        slow(front).chains.clear()
        front.number(R.SET_STATUS, 0)


@both_layouts
def test_a_stopped_ring_can_go_on_without_its_region(region_fd: list[int], layout: int) -> None:
    """What can lie in the ring does not stay in the region, so another back-end, far away, is told all by the base."""
    features = BASIC | layout
    front = begun(Slow(), features)
    region_fd.append(get_region(front))
    assert set_region(front, region_fd[0]) == ACKNOWLEDGED
    queue = front.queue(0, features, SIZE)
    start(front, queue, 1 << 15 if layout else 0)
    add(front, queue, b"a", b"b", b"c")
    front.kick(0)
    slow(front).answer(b"a")
    base = front.base(0)
    family = QueueRegionPacked if layout else QueueRegionSplit
    found = family(SIZE).decode(os.pread(region_fd[0], family(SIZE).size, 0))
    assert not any(entry.inflight for entry in found.desc)
    slow(front).chains.clear()
    fresh = sealed_file(os.fstat(region_fd[0]).st_size)
    region_fd.append(fresh)
    assert set_region(front, fresh) == ACKNOWLEDGED
    start(front, queue, base)
    assert list(slow(front).chains) == [b"b", b"c"]


@both_layouts
def test_our_front_end_hands_the_region_on_and_offers_nothing_again(layout: int) -> None:
    """Out of order, where a packed ring could not be offered again, and a split one only with other entries."""
    features = BASIC & ~bit(m.F_PROTOCOL_FEATURES) | layout
    both = wire()
    both.backend = first = Backend(Slow(), both.books)
    queue = both.start(features)
    for text in (b"a", b"b", b"c"):
        out, room = both.arena.allocate(1), both.arena.allocate(1)
        out.view[:] = text
        queue.add([out.extent], [room.extent], token=text)
    first.kicked(0)
    first.serve()
    device = first.session.device
    assert isinstance(device, Slow)
    device.answer(b"b")
    before = queue.memory.read(queue.driver_area, 4 + 2 * queue.size)
    next_one = Slow()
    both.backend = Backend(next_one, both.books)
    both.run(both.frontend.open(0))
    both.run(both.frontend.resume())
    both.backend.serve()
    assert queue.memory.read(queue.driver_area, 4 + 2 * queue.size) == before
    assert list(next_one.chains) == [b"a", b"c"]
    next_one.answer(b"c", b"a")
    assert queue.take_used() == [(b"b", 1), (b"c", 1), (b"a", 1)]
    both.frontend.close()


# Lies ----------------------------------------------------------------------------------------------------------------

NEED = 2 * part_size(False, SIZE)
LIES: dict[str, dict[str, int]] = {
    "no queues": {"num_queues": 0},
    "more queues than there are": {"num_queues": 3},
    "all the queues a number can name": {"num_queues": 0xFFFF},
    "no entries": {"queue_size": 0},
    "more entries than a queue has": {"queue_size": 0x8001},
    "all the entries a number can name": {"queue_size": 0xFFFF},
    "entries for which the file is too short": {"queue_size": 0x8000},
    "no bytes": {"mmap_size": 0},
    "a byte too few": {"mmap_size": NEED - 1},
    "a page more than the file has": {"mmap_size": 1 << 20},
    "all bytes": {"mmap_size": (1 << 64) - 1},
    "behind the file": {"mmap_offset": 1 << 20},
    "an offset that wraps": {"mmap_offset": (1 << 64) - 64},
    "an offset between entries": {"mmap_offset": 4, "num_queues": 1, "mmap_size": part_size(False, SIZE)},
    "no file": {"count": 0},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_region_that_cannot_be_is_refused(region_fd: list[int], lie: str) -> None:
    front = begun(Echo(), BASIC)
    region_fd.append(get_region(front))
    given = LIES[lie]
    assert set_region(front, region_fd[0], **given) == REFUSED
    assert front.backend.session.inflight.region is None
    if given.keys() <= {"num_queues", "queue_size"} and "too short" not in lie:
        with pytest.raises(PeerError):
            front.send(R.GET_INFLIGHT_FD, m.VhostUserInflight.encode(**{"num_queues": 2, "queue_size": 8, **given}))
    assert not front.books.lent


@both_layouts
def test_a_ring_that_its_region_has_no_room_for_is_refused(region_fd: list[int], layout: int) -> None:
    front = begun(Echo(), BASIC | layout)
    region_fd.append(get_region(front))
    assert set_region(front, region_fd[0]) == ACKNOWLEDGED
    queue = front.queue(0, BASIC | layout, 2 * SIZE)
    front.describe(queue)
    front.number(R.SET_VRING_KICK, 0, fds=1)
    front.refused(R.SET_VRING_ENABLE, m.vhost_vring_state.encode(index=0, num=1))
    assert "16 entries, its inflight region 8" in front.books.lines[-1]


def test_a_region_for_split_rings_is_no_region_for_packed_ones(region_fd: list[int]) -> None:
    front = begun(Echo(), BASIC)
    region_fd.append(get_region(front))
    assert set_region(front, region_fd[0]) == ACKNOWLEDGED
    front.number(R.SET_FEATURES, BASIC | PACKED)
    front.share()
    queue = front.queue(1, BASIC | PACKED, SIZE)
    front.describe(queue)
    front.number(R.SET_VRING_KICK, 1, fds=1)
    front.refused(R.SET_VRING_ENABLE, m.vhost_vring_state.encode(index=1, num=1))


def test_a_region_asked_for_after_a_reset_is_enough_for_the_layout_of_the_next_driver(region_fd: list[int]) -> None:
    """As QEMU 7.2 does for SCSI hosts: firmware with split rings is followed by Linux with packed ones."""
    front = begun(Echo(), BASIC)
    front.must(R.RESET_DEVICE)
    region_fd.append(get_region(front))
    assert set_region(front, region_fd[0]) == ACKNOWLEDGED
    front.number(R.SET_FEATURES, BASIC | PACKED)
    front.share()
    queue = front.queue(1, BASIC | PACKED, SIZE)
    front.describe(queue, 0x8000_8000)
    front.number(R.SET_VRING_KICK, 1, fds=1)
    front.state(R.SET_VRING_ENABLE, 1, 1)
    assert front.echo(queue, b"packed") == b"packed"


PART = {0: (QueueRegionSplit, part_size(False, SIZE)), PACKED: (QueueRegionPacked, part_size(True, SIZE))}


@both_layouts
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_is_in_a_region_harms_nobody_but_its_driver(layout: int, data: st.DataObject) -> None:
    """Refused, or served: any other exception fails the test. Small numbers are likelier to lead somewhere."""
    family, size = PART[layout]
    record = family(SIZE)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    content = bytearray(raw if data.draw(st.booleans()) else (byte % (SIZE + 2) for byte in raw))
    number = st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)).map(lambda n: n.to_bytes(2, "little"))
    for name in ("version", "desc_num"):
        value = (
            {"version": 1, "desc_num": SIZE}[name].to_bytes(2, "little") if data.draw(st.integers(0, 9)) else b"\3\0"
        )
        content[record.offset(name) : record.end(name)] = value
    for at in range(12, record.offset("desc"), 2):
        content[at : at + 2] = data.draw(number)
    fd = sealed_file(2 * size)
    try:
        os.pwrite(fd, bytes(content), 0)
        features = BASIC | layout
        front = begun(Echo(), features)
        assert set_region(front, fd) == ACKNOWLEDGED
        queue = front.queue(0, features, SIZE)
        add(front, queue, b"a", b"b")
        front.describe(queue, 1 << 15 if layout else 0)
        front.number(R.SET_VRING_KICK, 0, fds=1)
        enable = Message(R.SET_VRING_ENABLE, Flag.NEED_REPLY, m.vhost_vring_state.encode(index=0, num=1))
        reply = front.backend.receive(enable, [])
        assert reply is not None
        if m.decode_message(reply).payload == ACKNOWLEDGED:
            front.serve()
        front.backend.close()
    finally:
        os.close(fd)


# Files ---------------------------------------------------------------------------------------------------------------


def test_a_file_that_can_be_made_shorter_is_not_mapped() -> None:
    mapped: list[int] = []

    def map_file(fd: int, size: int, offset: int) -> memoryview:
        mapped.append(fd)
        return memoryview(bytearray(size))

    with open("/dev/null", "rb") as null:
        for fd in (os.memfd_create("open", os.MFD_ALLOW_SEALING), os.memfd_create("closed"), os.dup(null.fileno())):
            with pytest.raises(PeerError):
                map_sealed(fd, 64, 0, map_file)
            os.close(fd)
    assert not mapped
    ours = sealed_file(64)
    assert len(map_sealed(ours, 64, 0, map_file)) == 64
    assert fcntl.fcntl(ours, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    for size in (0, 128):
        with pytest.raises(PermissionError):
            os.ftruncate(ours, size)
    os.close(ours)


def take_region(client: Client, **asked: int) -> tuple[m.Message, list[int]]:
    """GET_INFLIGHT_FD over a socket: the answer, and what came beside it."""
    client.send(R.GET_INFLIGHT_FD, m.VhostUserInflight.encode(**asked))
    data, fds, _, _ = socket.recv_fds(client.connection, 4096, 8)
    return m.decode_message(data), fds


def test_a_region_goes_over_the_socket_and_nothing_is_left_open(tmp_path: Path) -> None:
    with serving(tmp_path / "sock", Echo()) as path:
        gc.collect()
        before = open_fds()
        for _ in range(3):
            with connected(path) as client:
                client.number(R.SET_FEATURES, BASIC)
                answer, fds = take_region(client, num_queues=2, queue_size=SIZE)
                assert answer.request == R.GET_INFLIGHT_FD
                [fd] = fds
                good = answer.payload
                assert client.ask(R.SET_INFLIGHT_FD, good, [fd]) == 0
                assert client.ask(R.SET_INFLIGHT_FD, good, [fd]) == 0
                # The same, but it could be made shorter when it is mapped already.
                other = os.memfd_create("other", os.MFD_ALLOW_SEALING)
                os.ftruncate(other, os.fstat(fd).st_size)
                assert client.ask(R.SET_INFLIGHT_FD, good, [other]) == 1
                assert client.ask(R.SET_INFLIGHT_FD, good, []) == 1
                # And one that is sealed, and has been shorter from the start.
                short = sealed_file(64)
                assert client.ask(R.SET_INFLIGHT_FD, good, [short]) == 1
                for mine in (fd, other, short):
                    os.close(mine)
            # The server notices in its own time that we have left.
            await_(lambda: gc.collect() >= 0 and open_fds() == before, "all is closed")
