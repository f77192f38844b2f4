"""Both halves of a virtqueue against the model: everything that both sides may do, in any order.

    run(lambda: RingMachine(Case("packed", "reference", in_order=True, event_idx=True, indirect=False)))

To try halves of one's own, override `make_pair`. Failures come as programs: see `machines`.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field
from hypothesis import strategies as st

from virtio_py.errors import UsageError
from virtio_py.memory import Buffer
from virtio_py.rings.chain import Chain
from virtio_py.testing.machines import Machine, step
from virtio_py.testing.ring_model import RingModel
from virtio_py.testing.ring_pair import Case, Pair, pair

# Free-running split indices cross 2^16 within a few buffers; a packed ring goes round by itself.
STARTS = st.sampled_from([0, 0, 1, 65500, 65530, 65535])
LENGTHS = st.sampled_from([0, 1, 2, 7, 16, 33])
SHAPES = st.tuples(st.integers(0, 9), st.integers(0, 9), LENGTHS, st.booleans())
LIMITS = st.one_of(st.just(32768), st.integers(0, 6))
FULL = 255
"""An answer that fills what was lent: only such a one may go without a used element of its own."""

Shape = tuple[int, int, int, bool]
"""Readable and writable segments, the length of each in bytes, and whether they differ by one."""


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


class RingMachine(Machine):
    """A driver's and a device's half. A side that sleeps does so as the queue's docstring tells it to."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.case = case
        self.pair: Pair | None = None

    def make_pair(self, size: int, start: int) -> Pair:
        """The two halves, as they stand after `start` buffers (split) or slots (packed)."""
        return pair(self.case, size, start)

    @step(lambda self: self.pair is None, size=st.integers(0, 31), start=STARTS)
    def set_up(self, size: int, start: int) -> None:
        """A queue of `size` + 1 entries, or for a split one of the largest power of 2 in that."""
        split = self.case.layout == "split"
        self.size = 1 << (size + 1).bit_length() - 1 if split else size + 1
        self.halves = self.pair = self.make_pair(self.size, start)
        entries = min(16, self.size) if self.case.indirect else 0
        self.model = RingModel(self.size, split, self.case.in_order, self.case.event_idx, entries)
        self.chains: dict[Request, Chain] = {}
        self.count = 0
        self.driver_sleeps = self.device_sleeps = self.kicked = False

    def _request(self, shape: Shape) -> Request:
        readable, writable, length, vary = shape
        if not readable + writable:
            readable = 1
        readable = min(readable, self.size)
        writable = min(writable, self.size - readable)
        self.count += 1
        sizes = [length + n if vary else length for n in range(readable + writable)]
        buffers = [self.halves.arena.allocate(size, 1) for size in sizes]
        return Request(self.count, buffers[:readable], buffers[readable:])

    def _free(self, request: Request) -> None:
        self.halves.arena.free(*request.sent, *request.received)

    def _ready(self) -> bool:
        return self.pair is not None

    @step(_ready, shapes=st.lists(SHAPES, min_size=1, max_size=6))
    def add_many(self, shapes: list[Shape]) -> None:
        """As many of them as there is room for."""
        requests = [self._request(shape) for shape in shapes]
        added = self.halves.driver.add_many(r.as_added() for r in requests)
        wanted = 0
        while wanted < min(len(requests), self.size) and self.model.add(requests[wanted], requests[wanted].segments):
            wanted += 1
        assert added == wanted
        for request in requests[added:]:
            self._free(request)
        self.kicked = False

    @step(_ready, shape=SHAPES)
    def add(self, shape: Shape) -> None:
        """One, which is refused where there is no room."""
        request = self._request(shape)
        if self.model.add(request, request.segments):
            self.halves.driver.add(*request.as_added())
            self.kicked = False
            return
        try:
            self.halves.driver.add(*request.as_added())
        except UsageError:
            self._free(request)
        else:
            raise AssertionError("a buffer was added where there is no room")

    @step(_ready)
    def kick(self) -> None:
        """The driver asks whether to notify."""
        wanted = self.halves.driver.needs_notification()
        assert self.model.to_device.due() in (wanted, None)
        self.device_sleeps &= not wanted
        self.kicked = True

    @step(_ready, limit=LIMITS)
    def take(self, limit: int) -> None:
        """The device takes what is available."""
        chains = self.halves.device.take(limit)
        wanted = self.model.take(limit)
        assert len(chains) == len(wanted)
        for chain, request in zip(chains, wanted, strict=True):
            assert chain.readable.read_all() == request.message
            assert chain.writable.remaining == sum(len(b.view) for b in request.received)
            self.chains[request] = chain
        self.device_sleeps = False

    @step(
        lambda self: self.pair is not None and bool(self.chains),
        answers=st.lists(st.tuples(st.integers(0, 63), st.just(FULL) | st.integers(0, 64)), min_size=1, max_size=8),
    )
    def complete(self, answers: list[tuple[int, int]]) -> None:
        """The device uses some of what it has, in any order: (which of those that are left, how many bytes) each."""
        chosen: list[Request] = []
        for which, length in answers:
            left = [request for request in self.chains if request not in chosen]
            if left:
                chosen.append(left[which % len(left)])
                self._answer(chosen[-1], length)
        before = self.halves.notified
        self.halves.device.complete([self.chains.pop(request) for request in chosen])
        self.model.complete(chosen)
        notified = self.halves.notified > before
        assert self.model.to_driver.due() in (notified, None)
        self.driver_sleeps &= not notified

    def _answer(self, request: Request, length: int) -> None:
        writer = self.chains[request].writable
        length = writer.remaining if length == FULL else min(length, writer.remaining)
        request.written = bytes((request.number + i) & 0x7F for i in range(length))
        writer.write(request.written)

    @step(_ready, limit=LIMITS)
    def take_used(self, limit: int) -> None:
        """The driver takes back what was used."""
        there = len(self.model.used)
        back = self.halves.driver.take_used(limit)
        least = min(limit, there)
        # In order, one used element tells of a run of buffers, and a run is not torn apart.
        assert least <= len(back) <= (there if self.case.in_order and limit else least)
        for (request, length), wanted in zip(back, self.model.take_used(len(back)), strict=True):
            assert request is wanted
            request.check(length)
            self._free(request)
        self.driver_sleeps = False

    @step(_ready)
    def driver_sleeps_or_looks_again(self) -> None:
        """The driver asks to be told."""
        look_again = self.halves.driver.enable_notifications()
        self.model.to_driver.wish(True)
        assert look_again == bool(self.model.used)
        self.driver_sleeps = not look_again

    @step(_ready)
    def device_sleeps_or_looks_again(self) -> None:
        """The device asks to be told."""
        look_again = self.halves.device.enable_notifications()
        self.model.to_device.wish(True)
        assert look_again == bool(self.model.available)
        self.device_sleeps = not look_again

    @step(_ready)
    def driver_is_busy(self) -> None:
        """The driver asks not to be told."""
        self.halves.driver.disable_notifications()
        self.model.to_driver.wish(False)
        self.driver_sleeps = False

    @step(_ready)
    def device_is_busy(self) -> None:
        """The device asks not to be told."""
        self.halves.device.disable_notifications()
        self.model.to_device.wish(False)
        self.device_sleeps = False

    def check(self) -> None:
        """No wake-up is lost, and the driver knows its room."""
        assert not (self.driver_sleeps and self.model.used)
        assert not (self.device_sleeps and self.model.available and self.kicked)
        assert self.halves.driver.outstanding == len(self.model.slots)
        assert self.halves.driver.free_slots == self.model.free

    def teardown(self) -> None:
        """Everything that was made available comes back, and its memory with it."""
        if self.pair is None:
            return
        chains = self.pair.device.take()
        wanted = self.model.take(32768)
        self.chains.update(zip(wanted, chains, strict=True))
        chosen = list(self.chains)
        self.pair.device.complete([self.chains[request] for request in chosen])
        self.model.complete(chosen)
        for request in chosen:
            request.written = b""
        back: Any = self.pair.driver.take_used()
        for (request, length), expected in zip(back, self.model.take_used(len(back)), strict=True):
            assert request is expected
            request.check(length)
            self._free(request)
        assert self.pair.driver.outstanding == 0
        self.pair.driver.release()
        assert self.pair.arena.free_bytes == self.pair.arena.memory.regions[0].size
