"""Dirty logging: what a vhost-user back-end writes to memory is noted, so that copying those pages copies all of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vhost_user_frontend import BASIC, GUEST, PACKED, SIZE, Echo, FrontEnd, R, addresses
from virtio_py.memory import DirtyLog
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import Engine, engine_named
from virtio_py.rings.queue import DeviceQueue, DriverQueue
from virtio_py.spec import DeviceStatus, Feature, bit
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_backend import Backend
from virtio_py.transports.vhost_user_messages import F_LOG_ALL, ProtocolFeature, VringFlag
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES

T = TypeVar("T")
PAGE = DirtyLog.PAGE
LOG_ALL = bit(F_LOG_ALL)
PROTOCOL = PROTOCOL_FEATURES & ~bit(ProtocolFeature.STATUS)
RINGS = {
    "split": BASIC,
    "split-events": BASIC | bit(Feature.EVENT_IDX),
    "packed": BASIC | PACKED,
    "packed-events": BASIC | PACKED | bit(Feature.EVENT_IDX),
}
rings = pytest.mark.parametrize("ring", RINGS)


@define(eq=False)
class Scribe(Echo):
    """Writes back what it reads, and a byte behind all else; chains that begin with "d" it finishes later."""

    pending: list[Chain] = field(factory=list)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        text = chain.readable.read_all()
        status = chain.writable.split_tail(1)
        chain.writable.write(text[: chain.writable.remaining])
        if text[:1] == b"d":
            chain.defer()
            self.pending.append(chain)
        status.write(b"\x55")


class Mover(FrontEnd):
    """A front-end that keeps a copy of the memory: the driver's writes as they come, the device's by dirty pages."""

    def __init__(self, features: int, engine: Engine) -> None:
        super().__init__(engine)
        self.scribe = Scribe()
        ring_features = features & ~bit(m.F_PROTOCOL_FEATURES)
        self.backend = Backend(
            self.scribe, self.books, engine=engine, protocol_features=PROTOCOL, ring_features=ring_features
        )
        self.features = features
        self.copy = bytearray(SIZE)
        self.send(R.SET_OWNER)
        self.number(R.SET_PROTOCOL_FEATURES, PROTOCOL)
        self.number(R.SET_FEATURES, features)
        self.share()
        self.queues = [self.driver(partial(self.start, n)) for n in range(2)]

    def start(self, index: int, base: int | None = None) -> DriverQueue:
        queue = self.queue(index, self.features)
        self.describe(queue, (0x8000_8000 if self.features & PACKED else 0) if base is None else base)
        self.number(R.SET_VRING_KICK, index, fds=1)
        self.state(R.SET_VRING_ENABLE, index, 1)
        return queue

    def driver(self, act: Callable[[], T]) -> T:
        """Something that the driver does, and maybe the device before logging begins. It comes into the copy."""
        before = bytes(self.books.memory)
        result = act()
        for at in range(0, SIZE, 64):
            if before[at : at + 64] != self.books.memory[at : at + 64]:
                for n in range(at, at + 64):
                    if before[n] != self.books.memory[n]:
                        self.copy[n] = self.books.memory[n]
        return result

    def log_base(self) -> None:
        self.must(R.SET_LOG_BASE, m.VhostUserLog.encode(mmap_size=len(self.books.bitmap)), fds=1)

    def log_all(self) -> None:
        self.number(R.SET_FEATURES, self.features | LOG_ALL)

    def log_ring(self, queue: DriverQueue, at: int | None = None) -> None:
        where = queue.device_area if at is None else at
        self.must(R.SET_VRING_ADDR, addresses(queue, flags=int(VringFlag.LOG), log_guest_addr=where))

    def log_everything(self) -> None:
        self.log_base()
        self.log_all()
        for queue in self.queues:
            self.log_ring(queue)

    def finish(self) -> None:
        """What was put off is done, the newest first."""
        while self.scribe.pending:
            self.scribe.pending.pop().complete()

    def request(self, index: int, text: bytes, room: int) -> None:
        """A request with `room` bytes for the answer and one for the status, all in pages of their own."""
        queue = self.queues[index]
        if queue.free_slots < 2 or self.arena.free_bytes < len(text) + room + 4 * PAGE:
            return
        out = self.arena.allocate(len(text))
        back = self.arena.allocate(room + 1, align=PAGE)
        out.view[:] = text
        queue.add([out.extent], [back.extent], token=[out, back])

    def reap(self, index: int) -> None:
        while (used := self.queues[index].take_used()) != []:
            for buffers, _ in used:
                self.arena.free(*buffers)

    def dirty(self) -> set[int]:
        """The guest's pages that are dirty; clean from now on."""
        found = {n for n in range(8 * len(self.books.bitmap)) if self.books.bitmap[n // 8] >> n % 8 & 1}
        self.books.bitmap[:] = bytes(len(self.books.bitmap))
        return found

    def copy_dirty(self) -> None:
        for page in self.dirty():
            at = page * PAGE - GUEST
            assert 0 <= at < SIZE, "a page that is not the guest's"
            self.copy[at : at + PAGE] = self.books.memory[at : at + PAGE]


def mover(ring: str, engine: str = "reference") -> Mover:
    return Mover(RINGS[ring], engine_named(engine))


# That nothing is missed ----------------------------------------------------------------------------------------------

Step = tuple[str, int, bytes, int]
STEPS: st.SearchStrategy[Step] = st.tuples(
    st.sampled_from(["add", "add", "serve", "serve", "finish", "reap", "copy"]),
    st.integers(0, 1),
    st.builds(bytes.__mul__, st.sampled_from([b"d", b"x"]), st.integers(1, 6000)),
    st.integers(0, 9000),
)


def step(front: Mover, what: str, index: int, text: bytes, room: int) -> None:
    if what == "add":
        front.driver(lambda: front.request(index, text, room))
        front.backend.kicked(index)
    elif what == "serve":
        front.serve()
    elif what == "finish":
        front.finish()
    elif what == "reap":
        front.driver(lambda: front.reap(index))
    else:
        front.copy_dirty()


@rings
@pytest.mark.parametrize("engine", ["reference", "compiled"])
@given(before=st.lists(STEPS, max_size=6), after=st.lists(STEPS, max_size=25))
@settings(deadline=None, max_examples=60)
def test_a_copy_by_dirty_pages_is_equal_in_the_end(
    ring: str, engine: str, before: list[Step], after: list[Step]
) -> None:
    front = mover(ring, engine)
    for one in before:
        step(front, *one)
    front.log_everything()
    # Everything is copied once, and written to from then on.
    front.copy[:] = front.books.memory
    for one in after:
        step(front, *one)
    for queue in front.queues:
        front.base(queue.index)
    front.copy_dirty()
    assert front.copy == front.books.memory


# And what is noted is what was written -------------------------------------------------------------------------------


def pages(*extents: tuple[int, int]) -> set[int]:
    return {page for at, length in extents for page in range(at // PAGE, (at + length - 1) // PAGE + 1)}


def one_request(front: Mover, text: bytes = b"x" * 5000, room: int = 3 * PAGE) -> tuple[int, set[int]]:
    """Has a request served: the address of the room for its answer, and the dirty pages."""
    front.dirty()
    held = len(front.queues[0].held)
    front.request(0, text, room)
    front.kick(0)
    assert len(front.queues[0].held) == held + 1
    [((_, back), length)] = front.queues[0].take_used()
    assert length == len(text)
    assert bytes(back.view[: len(text)]) == text
    return back.address, front.dirty()


def written(at: int, text: int = 5000, room: int = 3 * PAGE) -> set[int]:
    """The pages of an answer and of the status behind the room for it."""
    return pages((at, text), (at + room, 1))


@rings
def test_data_and_rings_are_noted_as_far_as_was_asked_for(ring: str) -> None:
    front = mover(ring)
    queue = front.queues[0]
    ring_pages = pages((queue.device_area, 1))
    if queue.layout == "packed":
        ring_pages |= pages((queue.descriptor_area, 16 * queue.size))
    assert one_request(front)[1] == set(), "no bitmap"
    front.log_base()
    assert one_request(front)[1] == set(), "nothing was asked for"
    front.log_all()
    at, found = one_request(front)
    assert found == written(at)
    front.log_ring(queue)
    at, found = one_request(front)
    assert found == written(at) | ring_pages
    front.number(R.SET_FEATURES, front.features)
    assert one_request(front)[1] == ring_pages
    front.must(R.SET_VRING_ADDR, addresses(queue))
    assert one_request(front)[1] == set()


@rings
def test_a_device_area_is_noted_where_the_front_end_says(ring: str) -> None:
    front = mover(ring)
    front.log_base()
    elsewhere = 8 * len(front.books.bitmap) * PAGE - PAGE
    front.log_ring(front.queues[0], at=elsewhere)
    _, found = one_request(front)
    descriptors = pages((front.queues[0].descriptor_area, 16 * 8))
    assert found - {elsewhere // PAGE} == (descriptors if "packed" in ring else set())
    assert elsewhere // PAGE in found


def test_a_ring_that_starts_while_logging_is_on_is_logged() -> None:
    front = mover("split")
    front.log_everything()
    [queue, _] = front.queues
    base = front.base(0)
    front.state(R.SET_VRING_BASE, 0, base)
    front.number(R.SET_VRING_KICK, 0, fds=1)
    front.dirty()
    at, found = one_request(front)
    assert found == written(at) | pages((queue.device_area, 1))


@pytest.mark.parametrize("ring", ["split-events", "packed", "packed-events"])
def test_what_a_driver_is_told_of_notifications_is_noted_before_anything_is_used(ring: str) -> None:
    front = mover(ring)
    front.log_everything()
    front.dirty()
    front.request(0, b"d put off", PAGE)
    front.kick(0)
    assert front.scribe.pending
    assert front.dirty() == pages((front.queues[0].device_area, 1))


def test_the_log_event_is_signalled_when_there_is_something_new() -> None:
    front = mover("split")
    front.log_base()
    front.must(R.SET_LOG_FD, fds=1)
    event = max(front.books.open)
    one_request(front)
    assert event not in front.books.signals
    front.log_all()
    one_request(front)
    assert event in front.books.signals
    front.backend.close()
    assert not front.books.open


# What no front-end should send ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "offset"),
    [(0, 0), (1 << 20, 0), (8, 1 << 20), (1 << 63, 1 << 63), (-1 & (1 << 64) - 1, 0), (8, -8 & (1 << 64) - 1)],
)
def test_a_bitmap_that_cannot_be_is_refused(size: int, offset: int) -> None:
    front = mover("split")
    front.log_everything()
    before = set(front.books.open)
    front.refused(R.SET_LOG_BASE, m.VhostUserLog.encode(mmap_size=size, mmap_offset=offset), fds=1)
    front.refused(R.SET_LOG_BASE, m.VhostUserLog.encode(mmap_size=8), fds=0)
    front.refused(R.SET_LOG_FD, fds=0)
    assert front.books.open == before
    at, found = one_request(front)
    assert written(at) <= found, "the old one is in use"


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("at", [(GUEST + SIZE), (1 << 64) - 1, (1 << 64) - 70, 1 << 63])
def test_a_ring_that_would_be_noted_behind_the_bitmap_is_refused(ring: str, at: int) -> None:
    front = mover(ring)
    front.log_everything()
    queue = front.queues[0]
    front.refused(R.SET_VRING_ADDR, addresses(queue, flags=int(VringFlag.LOG), log_guest_addr=at))
    found = one_request(front)[1]
    assert pages((queue.device_area, 1)) <= found, "as before"
    # The same, said before there is a bitmap.
    front = mover(ring)
    front.must(R.SET_VRING_ADDR, addresses(front.queues[0], flags=int(VringFlag.LOG), log_guest_addr=at))
    front.refused(R.SET_LOG_BASE, m.VhostUserLog.encode(mmap_size=len(front.books.bitmap)), fds=1)
    assert one_request(front)[1] == set()


def test_data_behind_a_short_bitmap_touch_nothing_else() -> None:
    front = mover("split")
    front.books.bitmap = bytearray(b"\xa5" * 16)
    front.must(R.SET_LOG_BASE, m.VhostUserLog.encode(mmap_size=1, mmap_offset=4), fds=1)
    front.log_all()
    front.request(0, b"x" * 5000, 9000)
    front.kick(0)
    assert front.books.bitmap == b"\xa5" * 16, "the guest's memory begins at page 16"
    assert front.queues[0].take_used()


def test_logging_is_offered_with_its_protocol_feature_only() -> None:
    front = FrontEnd(protocol=PROTOCOL & ~bit(ProtocolFeature.LOG_SHMFD))
    assert not front.get(R.GET_FEATURES) & LOG_ALL
    front.refused(R.SET_LOG_BASE, m.VhostUserLog.encode(mmap_size=8), fds=1)
    front.refused(R.SET_FEATURES, m.u64.encode(u64=BASIC | LOG_ALL))


# What QEMU 7.2 does when it moves a machine --------------------------------------------------------------------------


def test_a_position_can_be_asked_for_after_the_reset() -> None:
    front = FrontEnd()
    front.number(R.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    front.number(R.SET_FEATURES, BASIC)
    front.number(R.SET_STATUS, DeviceStatus.FEATURES_OK)
    front.share()
    queue = front.queue(0, BASIC)
    front.describe(queue)
    front.number(R.SET_VRING_KICK, 0, fds=1)
    front.state(R.SET_VRING_ENABLE, 0, 1)
    front.number(R.SET_STATUS, 0xF)
    for text in (b"1", b"2", b"3"):
        front.echo(queue, text)
    front.number(R.SET_STATUS, 0)
    front.state(R.SET_VRING_ENABLE, 0, 0)
    assert front.base(0) == 3
    front.state(R.SET_VRING_NUM, 0, 8)
    front.state(R.SET_VRING_BASE, 0, 0)
    assert front.base(0) == 0, "it is described anew"


def test_what_was_used_is_told_to_an_event_that_comes_later() -> None:
    front = mover("split")
    front.call(0)
    event = front.call(0)
    assert front.books.signals.count(event) == 1
    front.base(0)
    assert front.call(0) not in front.books.signals, "a ring that is stopped has used nothing"
