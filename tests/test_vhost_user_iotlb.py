"""I/O addresses over vhost-user: rings and descriptors name what only the front-end's IOMMU can map."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_vhost_user_server import serving
from tests.vhost_user_frontend import BASIC, GUEST, PACKED, SIZE, USER, FrontEnd, R, addresses, memory_table, region
from tests.vhost_user_socket import await_, connected, eventfds, receive
from virtio_py.errors import MessageError, PeerError
from virtio_py.memory import AddressSpace, GuestMemory
from virtio_py.rings.engine import Engine, engine_named
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceStatus, Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_iotlb import MAX_ENTRIES, Iotlb
from virtio_py.transports.vhost_user_messages import BackendRequest, Flag, IotlbType, Message, ProtocolFeature
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES

IOMMU = bit(Feature.ACCESS_PLATFORM)
FEATURES = BASIC | IOMMU
PROTOCOL = PROTOCOL_FEATURES & ~bit(ProtocolFeature.STATUS)
PAGE = 4096
READ, WRITE = 1, 2

pytestmark = pytest.mark.clause("features.driver.reserved-feature-bits.4")


@pytest.fixture(params=["reference", "compiled"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return engine_named(request.param)


def update(iova: int, size: int, uaddr: int, perm: int = READ | WRITE) -> bytes:
    return m.vhost_iotlb_msg.encode(iova=iova, size=size, uaddr=uaddr, perm=perm, type=IotlbType.UPDATE)


def invalidate(iova: int, size: int) -> bytes:
    return m.vhost_iotlb_msg.encode(iova=iova, size=size, type=IotlbType.INVALIDATE)


class Iommu:
    """A front-end whose IOMMU maps the driver's addresses one page at a time, and only when it is asked.

    The arena's addresses are the I/O addresses; `allowed` says which pages there are, and what may be done with them.
    """

    def __init__(self, engine: Engine | None = None, protocol: int = PROTOCOL) -> None:
        self.front = FrontEnd(
            engine or engine_named("reference"), protocol=protocol, ring_features=RING_FEATURES | PACKED | IOMMU
        )
        self.allowed = {GUEST + n * PAGE: READ | WRITE for n in range(SIZE // PAGE)}
        self.seen = 0
        self.fails: list[tuple[int, int]] = []
        front = self.front
        front.send(R.SET_PROTOCOL_FEATURES, m.u64.encode(u64=protocol))
        front.must(R.SET_BACKEND_REQ_FD, fds=1)

    def start(self, features: int = FEATURES, index: int = 0) -> DriverQueue:
        self.front.number(R.SET_FEATURES, features)
        self.front.share()
        return self.ring(features, index)

    def ring(self, features: int, index: int) -> DriverQueue:
        queue = self.front.queue(index, features)
        self.front.state(R.SET_VRING_NUM, index, queue.size)
        self.front.state(R.SET_VRING_BASE, index, 0)
        self.front.call(index)
        self.front.must(R.SET_VRING_ADDR, io_addresses(queue))
        self.front.number(R.SET_VRING_KICK, index, fds=1)
        self.front.state(R.SET_VRING_ENABLE, index, 1)
        return queue

    def misses(self) -> list[tuple[int, int]]:
        """(address, permission) of the misses that have not been looked at."""
        sent, self.seen = self.front.books.sent[self.seen :], len(self.front.books.sent)
        found: list[tuple[int, int]] = []
        for _, request, payload in sent:
            if request == BackendRequest.IOTLB_MSG:
                message = m.vhost_iotlb_msg.decode(payload)
                kinds = {IotlbType.MISS: found, IotlbType.ACCESS_FAIL: self.fails}
                kinds[message.type].append((message.iova, message.perm))
        return found

    def answer(self) -> int:
        """Maps what is asked for until nothing is; how many pages."""
        count = 0
        while misses := self.misses():
            for iova, perm in misses:
                count += 1
                page = iova // PAGE * PAGE
                good = self.allowed.get(page, 0) & perm
                if good:
                    user = page - GUEST + USER
                    self.front.must(R.IOTLB_MSG, update(page, PAGE, user, self.allowed[page]))
                if self.front.backend.session.has(ProtocolFeature.REPLY_ACK):
                    reply = Message(BackendRequest.IOTLB_MSG, Flag.REPLY, m.u64.encode(u64=0 if good else 1))
                    self.front.backend.answered(reply)
            self.front.serve()
        return count

    def echo(self, queue: DriverQueue, text: bytes) -> bytes:
        out, back = self.front.arena.allocate(len(text)), self.front.arena.allocate(len(text))
        out.view[:] = text
        queue.add([out.extent], [back.extent], token=text)
        self.front.kick(queue.index)
        self.answer()
        assert queue.take_used() == [(text, len(text))]
        return bytes(back.view)


def io_addresses(queue: DriverQueue) -> bytes:
    return addresses(
        queue,
        desc_user_addr=queue.descriptor_area,
        avail_user_addr=queue.driver_area,
        used_user_addr=queue.device_area,
    )


@pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("indirect", [0, bit(Feature.INDIRECT_DESC)], ids=["direct", "indirect"])
@pytest.mark.parametrize("reply_ack", [True, False])
def test_a_ring_waits_for_every_page_and_goes_on(engine: Engine, layout: int, indirect: int, reply_ack: bool) -> None:
    iommu = Iommu(engine, PROTOCOL if reply_ack else PROTOCOL & ~bit(ProtocolFeature.REPLY_ACK))
    queue = iommu.start(FEATURES | layout | indirect)
    assert iommu.answer() >= 1, "the ring's own pages are asked for"
    texts = [bytes([65 + n]) * (3 * PAGE + n) for n in range(3)]
    for text in texts:
        assert iommu.echo(queue, text) == text
    assert iommu.front.device.activations == 1
    assert not iommu.front.backend.session.end.fault


def test_a_miss_names_the_first_unmapped_page_and_is_sent_once() -> None:
    iommu = Iommu()
    queue = iommu.start()
    iommu.answer()
    buffer = iommu.front.arena.allocate(2 * PAGE, align=PAGE)
    iommu.front.must(R.IOTLB_MSG, update(buffer.address, PAGE, buffer.address - GUEST + USER))
    queue.add([], [buffer.extent])
    for _ in range(5):
        iommu.front.kick(0)
    assert iommu.misses() == [(buffer.address + PAGE, WRITE)]
    assert not queue.take_used()
    iommu.front.must(R.IOTLB_MSG, update(buffer.address + PAGE, PAGE, buffer.address + PAGE - GUEST + USER))
    iommu.front.serve()
    assert len(queue.take_used()) == 1, "no kick is needed"


def test_one_ring_waits_and_the_other_goes_on() -> None:
    iommu = Iommu()
    first = iommu.start()
    second = iommu.ring(FEATURES, 1)
    iommu.answer()
    iommu.echo(second, b"warm")
    stuck = iommu.front.arena.allocate(PAGE, align=PAGE)
    iommu.front.must(R.IOTLB_MSG, invalidate(stuck.address, PAGE))
    first.add([stuck.extent], [])
    iommu.front.kick(0)
    assert [iova for iova, _ in iommu.misses()] == [stuck.address]
    assert iommu.echo(second, b"meanwhile") == b"meanwhile"
    assert not first.take_used()
    assert not iommu.front.backend.serve(), "nothing is due: waiting is not busy"


def test_what_may_only_be_read_is_asked_for_again_before_it_is_written() -> None:
    iommu = Iommu()
    queue = iommu.start()
    iommu.answer()
    page = iommu.front.arena.allocate(PAGE, align=PAGE)
    iommu.front.must(R.IOTLB_MSG, update(page.address, PAGE, page.address - GUEST + USER, READ))
    queue.add([], [(page.address, 4)])
    iommu.front.kick(0)
    assert iommu.misses() == [(page.address, WRITE)]
    iommu.front.must(R.IOTLB_MSG, update(page.address, PAGE, page.address - GUEST + USER, WRITE))
    iommu.front.serve()
    assert len(queue.take_used()) == 1


@pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])
def test_an_address_that_is_not_the_drivers_is_an_access_failure(layout: int) -> None:
    iommu = Iommu()
    queue = iommu.start(FEATURES | layout)
    iommu.answer()
    queue.add([(1 << 40, 16)], [])
    iommu.front.kick(0)
    iommu.answer()
    assert iommu.misses() == []
    assert iommu.fails == [(1 << 40, READ)]
    assert iommu.front.backend.session.end.read_status() & DeviceStatus.DEVICE_NEEDS_RESET
    assert "not mapped" in iommu.front.books.lines[-1]


def test_without_a_channel_a_miss_is_a_fault() -> None:
    iommu = Iommu()
    iommu.front.backend.session.replace_channel(None)
    iommu.front.number(R.SET_FEATURES, FEATURES)
    iommu.front.share()
    queue = iommu.front.queue(0, FEATURES)
    iommu.front.state(R.SET_VRING_NUM, 0, 8)
    iommu.front.must(R.SET_VRING_ADDR, io_addresses(queue))
    iommu.front.number(R.SET_VRING_KICK, 0, fds=1)
    iommu.front.refused(R.SET_VRING_ENABLE, m.vhost_vring_state.encode(index=0, num=1))


@pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])
def test_a_ring_whose_own_pages_are_invalidated_asks_for_them_and_goes_on(layout: int) -> None:
    iommu = Iommu()
    queue = iommu.start(FEATURES | layout)
    iommu.answer()
    for n in range(5):
        text = b"round %d" % n
        assert iommu.echo(queue, text) == text
        iommu.front.must(R.IOTLB_MSG, invalidate(0, (1 << 64) - 1))
        assert iommu.misses(), "the ring's areas"
        iommu.seen -= 1
        assert iommu.answer() >= 1
    assert iommu.front.device.activations == 1


def test_what_was_invalidated_is_not_touched() -> None:
    iommu = Iommu()
    queue = iommu.start()
    iommu.answer()
    page = iommu.front.arena.allocate(PAGE, align=PAGE)
    iommu.front.must(R.IOTLB_MSG, update(page.address, PAGE, page.address - GUEST + USER))
    iommu.front.must(R.IOTLB_MSG, invalidate(page.address, PAGE))
    out = iommu.front.arena.allocate(4)
    out.view[:] = b"data"
    queue.add([out.extent], [(page.address, 4)])
    iommu.front.kick(0)
    iommu.front.serve()
    assert bytes(page.view[:4]) == bytes(4)
    assert not queue.take_used()


def test_a_ring_that_cannot_be_is_found_when_it_can_be_looked_at() -> None:
    iommu = Iommu()
    iommu.front.number(R.SET_FEATURES, FEATURES)
    iommu.front.share()
    queue = iommu.front.queue(0, FEATURES)
    iommu.front.state(R.SET_VRING_NUM, 0, 8)
    # A device area that is not aligned.
    odd = m.vhost_vring_addr.encode(
        index=0,
        desc_user_addr=queue.descriptor_area,
        avail_user_addr=queue.driver_area,
        used_user_addr=queue.device_area + 2,
    )
    iommu.front.must(R.SET_VRING_ADDR, odd)
    iommu.front.number(R.SET_VRING_KICK, 0, fds=1)
    iommu.front.state(R.SET_VRING_ENABLE, 0, 1)
    assert iommu.answer(), "each update is acknowledged"
    assert "aligned" in iommu.front.books.lines[-1]
    assert iommu.front.backend.session.end.read_status() & DeviceStatus.DEVICE_NEEDS_RESET


def test_a_stopped_device_forgets_what_nobody_would_take_back() -> None:
    iommu = Iommu()
    queue = iommu.start()
    iommu.answer()
    iommu.echo(queue, b"x")
    assert iommu.front.base(0) == 1
    assert not len(iommu.front.backend.session.iotlb.space)


def test_the_memory_table_may_grow_under_a_running_ring() -> None:
    iommu = Iommu()
    queue = iommu.start()
    iommu.answer()
    iommu.front.must(
        R.ADD_MEM_REG,
        m.VhostUserMemRegMsg.encode(region=region(guest_phys_addr=1 << 40, userspace_addr=1 << 41)),
        fds=1,
    )
    assert iommu.echo(queue, b"hello") == b"hello"
    iommu.front.must(R.SET_MEM_TABLE, memory_table([region(userspace_addr=USER + SIZE)]), fds=1)
    assert iommu.misses(), "the old user addresses are gone, and with them the ring"


BAD = {
    "no bytes": update(0, 0, USER),
    "addresses wrap": update((1 << 64) - PAGE, 2 * PAGE, USER),
    "too high": update((1 << 63) - PAGE, 2 * PAGE, USER),
    "no memory": update(0, PAGE, USER + SIZE),
    "half memory": update(0, 2 * PAGE, USER + SIZE - PAGE),
    "user wraps": update(0, PAGE, (1 << 64) - 1),
    "all": update(0, (1 << 64) - 1, USER),
    "guest address": update(0, PAGE, GUEST),
    "no permission": update(0, PAGE, USER, 0),
    "unknown permission": update(0, PAGE, USER, 4),
    "a miss": m.vhost_iotlb_msg.encode(iova=0, size=PAGE, uaddr=USER, perm=3, type=IotlbType.MISS),
    "type 0": m.vhost_iotlb_msg.encode(iova=0, size=PAGE, uaddr=USER, perm=3, type=0),
    "type 255": m.vhost_iotlb_msg.encode(iova=0, size=PAGE, uaddr=USER, perm=3, type=255),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_update_changes_nothing(name: str) -> None:
    iommu = Iommu()
    queue = iommu.start()
    iommu.answer()
    before = len(iommu.front.backend.session.iotlb.space)
    iommu.front.refused(R.IOTLB_MSG, BAD[name])
    assert len(iommu.front.backend.session.iotlb.space) == before
    assert iommu.echo(queue, b"as before") == b"as before"


def test_iotlb_messages_need_the_feature() -> None:
    iommu = Iommu()
    iommu.front.number(R.SET_FEATURES, BASIC)
    iommu.front.share()
    iommu.front.refused(R.IOTLB_MSG, update(0, PAGE, USER))


@pytest.mark.parametrize("cut", [False, True], ids=["mapped", "cut up"])
def test_mappings_without_end_are_bounded(cut: bool) -> None:
    iotlb = Iotlb(AddressSpace(GuestMemory.of(SIZE, USER)))
    if cut:
        iotlb.apply(m.vhost_iotlb_msg.decode(update(0, SIZE, USER)))
    for n in range(MAX_ENTRIES + 10):
        message = invalidate(2 * n + 1, 1) if cut else update(2 * n, 1, USER)
        iotlb.apply(m.vhost_iotlb_msg.decode(message))
    assert len(iotlb.space) == MAX_ENTRIES
    assert iotlb.space.memory().find(2 * (MAX_ENTRIES + 9)) is not None, "the oldest have made room"


@pytest.mark.parametrize(
    "answer",
    [
        Message(BackendRequest.IOTLB_MSG, Flag.REPLY, m.u64.encode(u64=0)),
        Message(BackendRequest.IOTLB_MSG, 0, m.u64.encode(u64=0)),
        Message(BackendRequest.CONFIG_CHANGE_MSG, Flag.REPLY, m.u64.encode(u64=0)),
        Message(BackendRequest.IOTLB_MSG, Flag.REPLY, b""),
    ],
    ids=["unasked", "no reply", "other", "short"],
)
def test_an_answer_to_nothing_is_hung_up_on(answer: Message) -> None:
    iommu = Iommu()
    with pytest.raises(MessageError):
        iommu.front.backend.answered(answer)


numbers = st.sampled_from([0, 1, PAGE, 2 * PAGE, GUEST, USER, USER + PAGE, SIZE, 1 << 63, (1 << 64) - 1])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers, st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_any_iotlb_messages_are_answered(sent: list[tuple[int, int, int, int, int]]) -> None:
    iommu = Iommu()
    iommu.start()
    for iova, size, uaddr, perm, kind in sent:
        payload = m.vhost_iotlb_msg.encode(iova=iova, size=size, uaddr=uaddr, perm=perm, type=kind)
        assert iommu.front.send(R.IOTLB_MSG, payload) in (m.u64.encode(u64=0), m.u64.encode(u64=1))
        iommu.front.serve()
    iommu.front.backend.close()
    assert not iommu.front.books.open


def test_misses_go_over_a_real_channel_and_their_answers_come_back(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with (
        serving(tmp_path / "sock", ring_features=RING_FEATURES | IOMMU) as running,
        connected(running.path) as client,
        eventfds(2) as (kick, call),
        ours,
    ):
        client.number(R.SET_PROTOCOL_FEATURES, PROTOCOL)
        with theirs:
            assert client.ask(R.SET_BACKEND_REQ_FD, fds=[theirs.fileno()]) == 0
        client.number(R.SET_FEATURES, FEATURES)
        client.share()
        queue = DriverQueue(0, 8, client.arena, FEATURES)
        client.number(R.SET_VRING_CALL, 0, [call])
        client.state(R.SET_VRING_NUM, 0, 8)
        assert client.ask(R.SET_VRING_ADDR, io_addresses(queue)) == 0
        client.number(R.SET_VRING_KICK, 0, [kick])
        client.state(R.SET_VRING_ENABLE, 0, 1)
        ours.settimeout(10)

        def next_miss() -> tuple[int, int]:
            request, flags, payload = receive(ours)
            assert (request, flags) == (BackendRequest.IOTLB_MSG, Flag.NEED_REPLY)
            found = m.vhost_iotlb_msg.decode(payload)
            assert found.type == IotlbType.MISS
            return found.iova, found.perm

        def answer(value: int) -> None:
            ours.send(Message(BackendRequest.IOTLB_MSG, Flag.REPLY, m.u64.encode(u64=value)).encode())

        ring, _ = next_miss()
        assert GUEST <= ring < GUEST + SIZE
        assert client.ask(R.IOTLB_MSG, update(GUEST, SIZE, USER)) == 0
        answer(0)
        assert client.echo(queue, kick, b"hello") == b"hello"
        queue.add([(1 << 40, 8)], [])
        os.eventfd_write(kick, 1)
        assert next_miss() == (1 << 40, READ)
        answer(1)
        request, _, payload = receive(ours)
        assert (request, m.vhost_iotlb_msg.decode(payload).type) == (BackendRequest.IOTLB_MSG, IotlbType.ACCESS_FAIL)
        running.await_line("not mapped")
        ours.close()
        await_(lambda: client.ask(R.GET_QUEUE_NUM) == 2, "the channel's end is not the connection's")


def test_any_answers_on_the_channel_end_the_session_at_most() -> None:
    iommu = Iommu()
    iommu.start()
    for value in range(300):
        try:
            iommu.front.backend.answered(Message(value % 12, value % 16, bytes(value % 10)))
        except PeerError:
            continue
    assert iommu.front.get(R.GET_QUEUE_NUM) == 2


@pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])
def test_what_is_written_is_logged_by_the_guests_addresses(layout: int) -> None:
    iommu = Iommu()
    front, arena = iommu.front, iommu.front.arena
    queue = iommu.start(FEATURES | layout)
    assert iommu.echo(queue, b"first") == b"first"
    front.must(R.SET_LOG_BASE, m.VhostUserLog.encode(mmap_size=len(front.books.bitmap)), fds=1)
    front.number(R.SET_FEATURES, FEATURES | layout | bit(m.F_LOG_ALL))
    back, elsewhere = arena.allocate(PAGE, PAGE), arena.allocate(PAGE, PAGE)
    front.must(R.IOTLB_MSG, update(back.address, PAGE, elsewhere.address - GUEST + USER))
    out = arena.allocate(4)
    out.view[:] = b"word"
    for mapped in (True, False):
        queue.add([out.extent], [back.extent], token=mapped)
        front.kick(0)
        iommu.answer()
        assert queue.take_used() == [(mapped, 4)]
        assert bytes(elsewhere.view[:4]) == b"word"
        found = {n for n in range(8 * len(front.books.bitmap)) if front.books.bitmap[n // 8] >> n % 8 & 1}
        assert found == {elsewhere.address // PAGE}
    # A mapping that goes while the device is at it.
    session = front.backend.session
    session.iotlb.apply(m.vhost_iotlb_msg.decode(invalidate(back.address, PAGE)))
    everything = {n for at, size in session._resolve(back.extent) for n in range(at // PAGE, (at + size) // PAGE)}
    assert everything == set(range(GUEST // PAGE, (GUEST + SIZE) // PAGE))
