"""Both halves of a virtqueue against the model, over every combination of features, on both engines."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import define, field
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.ring_matrix import CASES, Case, Pair, every_case, pair, run_machine
from tests.ring_model import RingModel
from virtio_py.errors import UsageError
from virtio_py.memory import Buffer
from virtio_py.rings.chain import Chain

SIZES = {"split": st.sampled_from([1, 2, 4, 8, 16, 32]), "packed": st.integers(1, 32)}
# Free-running split indices cross 2^16 within a few buffers; a packed ring goes round by itself.
STARTS = st.sampled_from([0, 0, 1, 65500, 65530, 65535])
LENGTHS = st.sampled_from([0, 1, 2, 7, 16, 33])
SHAPES = st.tuples(st.integers(0, 9), st.integers(0, 9), LENGTHS, st.booleans())


@define(eq=False)
class Request:
    """One buffer of the driver's: its memory, what it sends, and what the device was made to answer."""

    number: int
    sent: list[Buffer]
    received: list[Buffer]
    written: bytes = b""
    message: bytes = field(init=False)

    def __attrs_post_init__(self) -> None:
        for n, part in enumerate(self.sent):
            part.view[:] = bytes((self.number * 31 + n * 7 + i) & 0xFF for i in range(len(part.view)))
        for part in self.received:
            part.view[:] = b"\xee" * len(part.view)
        self.message = b"".join(part.view for part in self.sent)

    def as_added(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], Request]:
        """What `add_many` takes."""
        return [b.extent for b in self.sent], [b.extent for b in self.received], self

    @property
    def segments(self) -> int:
        """Descriptors it takes when direct."""
        return len(self.sent) + len(self.received)

    def check(self, length: int) -> None:
        """That the driver is told, and finds, exactly what the device wrote."""
        answer = b"".join(part.view for part in self.received)
        assert length == len(self.written)
        assert answer == self.written + b"\xee" * (len(answer) - length)
        assert b"".join(part.view for part in self.sent) == self.message, "readable memory was written"


class RingMachine(RuleBasedStateMachine):
    """Everything both sides may do, in any order. A side that sleeps does so as the queue's docstring tells it to."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    @initialize(data=st.data(), start=STARTS)
    def set_up(self, data: st.DataObject, start: int) -> None:
        self.size = data.draw(SIZES[self.case.layout], label="size")
        self.pair: Pair = pair(self.case, self.size, start)
        entries = min(16, self.size) if self.case.indirect else 0
        split = self.case.layout == "split"
        self.model = RingModel(self.size, split, self.case.in_order, self.case.event_idx, entries)
        self.chains: dict[Request, Chain] = {}
        self.count = 0
        self.driver_sleeps = self.device_sleeps = False
        self.kicked = False

    def _request(self, shape: tuple[int, int, int, bool]) -> Request:
        readable, writable, length, vary = shape
        if not readable + writable:
            readable = 1
        readable = min(readable, self.size)
        writable = min(writable, self.size - readable)
        allocate = self.pair.arena.allocate
        self.count += 1
        sizes = [length + n if vary else length for n in range(readable + writable)]
        buffers = [allocate(size, 1) for size in sizes]
        return Request(self.count, buffers[:readable], buffers[readable:])

    def _free(self, request: Request) -> None:
        self.pair.arena.free(*request.sent, *request.received)

    @rule(shapes=st.lists(SHAPES, min_size=1, max_size=6))
    def add_many(self, shapes: list[tuple[int, int, int, bool]]) -> None:
        requests = [self._request(shape) for shape in shapes]
        added = self.pair.driver.add_many(r.as_added() for r in requests)
        wanted = 0
        while wanted < min(len(requests), self.size) and self.model.add(requests[wanted], requests[wanted].segments):
            wanted += 1
        assert added == wanted
        for request in requests[added:]:
            self._free(request)
        self.kicked = False

    @rule(shape=SHAPES)
    def add(self, shape: tuple[int, int, int, bool]) -> None:
        request = self._request(shape)
        if self.model.add(request, request.segments):
            self.pair.driver.add(*request.as_added())
            self.kicked = False
            return
        with pytest.raises(UsageError):
            self.pair.driver.add(*request.as_added())
        self._free(request)

    @rule()
    def kick(self) -> None:
        wanted = self.pair.driver.needs_notification()
        assert self.model.to_device.due() in (wanted, None)
        self.device_sleeps &= not wanted
        self.kicked = True

    @rule(limit=st.one_of(st.just(32768), st.integers(0, 6)))
    def take(self, limit: int) -> None:
        chains = self.pair.device.take(limit)
        wanted = self.model.take(limit)
        assert len(chains) == len(wanted)
        for chain, request in zip(chains, wanted, strict=True):
            assert chain.readable.read_all() == request.message
            assert chain.writable.remaining == sum(len(b.view) for b in request.received)
            self.chains[request] = chain
        self.device_sleeps = False

    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        open_chains = list(self.chains)
        if not open_chains:
            return
        order = data.draw(st.permutations(range(len(open_chains))), label="order")
        chosen = [open_chains[n] for n in order[: data.draw(st.integers(1, len(order)), label="how many")]]
        for request in chosen:
            self._answer(request, data)
        before = self.pair.notified
        self.pair.device.complete([self.chains.pop(request) for request in chosen])
        self.model.complete(chosen)
        notified = self.pair.notified > before
        assert self.model.to_driver.due() in (notified, None)
        self.driver_sleeps &= not notified

    def _answer(self, request: Request, data: st.DataObject) -> None:
        writer = self.chains[request].writable
        room = writer.remaining
        # Mostly in full: only those may go without a used element of their own.
        length = data.draw(st.one_of(st.just(room), st.integers(0, room)), label="used length")
        request.written = bytes((request.number + i) & 0x7F for i in range(length))
        writer.write(request.written)

    @rule(limit=st.one_of(st.just(32768), st.integers(0, 6)))
    def take_used(self, limit: int) -> None:
        there = len(self.model.used)
        back = self.pair.driver.take_used(limit)
        least = min(limit, there)
        # In order, one used element tells of a run of buffers, and a run is not torn apart.
        assert least <= len(back) <= (there if self.case.in_order and limit else least)
        for (request, length), wanted in zip(back, self.model.take_used(len(back)), strict=True):
            assert request is wanted
            request.check(length)
            self._free(request)
        self.driver_sleeps = False

    @rule()
    def driver_sleeps_or_looks_again(self) -> None:
        look_again = self.pair.driver.enable_notifications()
        self.model.to_driver.wish(True)
        assert look_again == bool(self.model.used)
        self.driver_sleeps = not look_again

    @rule()
    def device_sleeps_or_looks_again(self) -> None:
        look_again = self.pair.device.enable_notifications()
        self.model.to_device.wish(True)
        assert look_again == bool(self.model.available)
        self.device_sleeps = not look_again

    @rule()
    def driver_is_busy(self) -> None:
        self.pair.driver.disable_notifications()
        self.model.to_driver.wish(False)
        self.driver_sleeps = False

    @rule()
    def device_is_busy(self) -> None:
        self.pair.device.disable_notifications()
        self.model.to_device.wish(False)
        self.device_sleeps = False

    @invariant()
    def no_wake_up_is_lost(self) -> None:
        if hasattr(self, "pair"):
            assert not (self.driver_sleeps and self.model.used)
            assert not (self.device_sleeps and self.model.available and self.kicked)

    @invariant()
    def the_driver_knows_its_room(self) -> None:
        if hasattr(self, "pair"):
            assert self.pair.driver.outstanding == len(self.model.slots)
            assert self.pair.driver.free_slots == self.model.free

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self._drain()
            self.pair.driver.release()
            assert self.pair.arena.free_bytes == self.pair.arena.memory.regions[0].size

    def _drain(self) -> None:
        """Everything that was made available comes back, and its memory with it."""
        self.take(32768)
        chosen = list(self.chains)
        self.pair.device.complete([self.chains[request] for request in chosen])
        self.model.complete(chosen)
        for request in chosen:
            request.written = b""
        self.take_used(32768)
        assert self.pair.driver.outstanding == 0


@pytest.mark.clause("features.device.reserved-feature-bits.5")
@pytest.mark.clause("split.device.used-buffer-notification-suppression.5")
@pytest.mark.clause("split.device.used-buffer-notification-suppression.6")
@pytest.mark.clause("split.device.used-buffer-notification-suppression.2")
@pytest.mark.clause("split.device.used-buffer-notification-suppression.3")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.3")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.4")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.6")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.7")
@pytest.mark.clause("split.device.descriptor-table.1")
@pytest.mark.clause("packed.device.descriptor-table.1")
@pytest.mark.clause("packed.device.virtqueues.1")
@pytest.mark.clause("packed.driver.scatter-gather-support.5")
@every_case
def test_queue_is_the_model(case: Case) -> None:
    run_machine(lambda: RingMachine(case), examples=40)


@pytest.mark.parametrize("case", [c for c in CASES if c.engine_name == "compiled" and not c.indirect], ids=str)
def test_more_than_two_to_the_sixteen_buffers(case: Case) -> None:
    made = pair(case, 32)
    buffer = made.arena.allocate(4)
    seen: list[Any] = []
    for start in range(0, 65_600, 32):
        assert made.driver.add_many(([buffer.extent], [], n) for n in range(start, start + 32)) == 32
        made.driver.needs_notification()
        made.device.complete(made.device.take())
        seen += [token for token, _ in made.driver.take_used()]
    assert seen == list(range(65_600))


@pytest.mark.parametrize("case", [c for c in CASES if c.indirect], ids=str)
def test_more_segments_than_a_batch_holds(case: Case) -> None:
    """256 buffers of 16 segments each fit the queue, but neither side's batch: both go on where they stopped."""
    made = pair(case, 256, memory=1 << 18)
    buffer = made.arena.allocate(4)
    added: list[int] = []
    taken: list[Chain] = []
    while len(added) < 256:
        more = made.driver.add_many(([buffer.extent] * 15, [buffer.extent], len(added) + n) for n in range(256))
        assert more > 0
        added += range(len(added), len(added) + more)
    assert not made.driver.add_many([([buffer.extent], [], None)])
    while chains := made.device.take():
        assert all((c.readable.remaining, c.writable.remaining) == (60, 4) for c in chains)
        taken += chains
    assert len(taken) == 256
    made.device.complete(taken)
    assert [token for token, _ in made.driver.take_used()] == added


@every_case
def test_a_chain_is_completed_once(case: Case) -> None:
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent])
    [chain] = made.device.take()
    chain.complete()
    with pytest.raises(UsageError):
        chain.complete()
    with pytest.raises(UsageError):
        made.device.complete([chain])
    assert len(made.driver.take_used()) == 1


@every_case
def test_a_stopped_queue_returns_nothing(case: Case) -> None:
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent])
    [chain] = made.device.take()
    made.device.stop()
    chain.complete()
    assert made.notified == 0
    assert made.driver.take_used() == []


@every_case
def test_a_queue_goes_on_from_its_state(case: Case) -> None:
    """Stopped and activated again with the state that `stop` returned, as migration and vhost-user do it."""
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    for n in range(11):
        made.driver.add([buffer.extent], [], n)
        made.config.state = made.device.stop()
        made.device = made.config.activate(made.arena.memory, case.features, case.engine, made.notify)
        made.device.complete(made.device.take())
        assert made.driver.take_used() == [(n, 0)]
    if case.layout == "split":
        assert (made.config.state.next_available, made.config.state.next_used) == (10, 10)


@pytest.mark.clause("packed.driver.scatter-gather-support.1")
@every_case
def test_what_cannot_be_a_buffer_is_refused(case: Case) -> None:
    made = pair(case, 4)
    for readable, writable in (([], []), ([(0x1000, 1)] * 5, []), ([(0, 1 << 31)] * 2, [(0, 1)])):
        with pytest.raises(UsageError):
            made.driver.add(readable, writable)
    assert made.device.take() == []


@every_case
def test_a_wish_is_kept_however_long_nobody_asks(case: Case) -> None:
    """The device waits for its first buffer; several laps go by before the driver asks whether to kick."""
    for count in range(1, 14):
        made = pair(case, 2)
        buffer = made.arena.allocate(4)
        assert not made.device.enable_notifications()
        for _ in range(count):
            made.driver.add([buffer.extent])
            made.device.complete(made.device.take())
            made.driver.take_used()
        assert made.driver.needs_notification()
        assert not made.driver.needs_notification(), "nothing was added since"
