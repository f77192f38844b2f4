"""Inflight tracking, killed between any two stores: what the next back-end makes of what the last one left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring_matrix import CASES, Case, Pair, pair
from virtio_py.errors import PeerError
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.layouts import pvirtq_desc, virtq_used
from virtio_py.rings.queue import DeviceQueue, QueueState
from virtio_py.transports.vhost_user_inflight_layout import (
    DescStatePacked,
    DescStateSplit,
    QueueRegionPacked,
    QueueRegionSplit,
    part_size,
)
from virtio_py.transports.vhost_user_inflight_packed import PackedTracker
from virtio_py.transports.vhost_user_inflight_split import SplitTracker

SIZE = 8
ENTRIES = {"split": 8, "packed": 11}
"""Of the region: it may have more than the queue."""


def test_layouts_are_those_of_the_protocol() -> None:
    assert (DescStateSplit.size, DescStatePacked.size) == (16, 32)
    assert (QueueRegionSplit(3).offset("desc"), QueueRegionPacked(3).offset("desc")) == (16, 32)
    assert (QueueRegionSplit(128).size, QueueRegionPacked(128).size) == (16 + 128 * 16, 32 + 128 * 32)
    assert QueueRegionSplit(1).offset("used_idx") == 14
    assert QueueRegionPacked(1).offset("old_used_wrap_counter") == 21
    # What libvhost-user and DPDK take for a queue of 128, so that a region can be handed from one to the other.
    assert part_size(False, 128) == 2112
    assert part_size(True, 128) == 4160


# Regions that no back-end leaves --------------------------------------------------------------------------------------

Entries = list[dict[str, int]]


def split_region(entries: Entries, **head: int) -> bytes:
    desc = [*entries, *[{"inflight": 0}] * (SIZE - len(entries))]
    return QueueRegionSplit(SIZE).encode(**({"version": 1, "desc_num": SIZE, "desc": desc} | head))


def packed_region(entries: Entries, **head: int) -> bytes:
    """The entries, and free ones behind them."""
    free: Entries = [{"next": n + 1} for n in range(len(entries), ENTRIES["packed"])]
    start = {"version": 1, "desc_num": ENTRIES["packed"], "used_wrap_counter": 1, "old_used_wrap_counter": 1}
    start |= {"free_head": len(entries), "old_free_head": len(entries)}
    return QueueRegionPacked(ENTRIES["packed"]).encode(**(start | {"desc": [*entries, *free]} | head))


BUFFER = {"inflight": 1, "num": 1, "last": 0, "len": 1, "addr": 0x1000}
REGIONS: dict[str, tuple[str, bytes]] = {
    "split, version": ("split", split_region([], version=2)),
    "split, entries": ("split", split_region([], desc_num=SIZE + 1)),
    "split, a last batch longer than the ring": ("split", split_region([], used_idx=0xFFFF - SIZE)),
    "split, a last batch of what is no buffer": ("split", split_region([], used_idx=0xFFFF, last_batch_head=SIZE)),
    "packed, version": ("packed", packed_region([], version=0xFFFF)),
    "packed, entries": ("packed", packed_region([], desc_num=SIZE)),
    "packed, next used": ("packed", packed_region([], used_idx=SIZE)),
    "packed, next used before": ("packed", packed_region([], old_used_idx=SIZE)),
    "packed, free list comes back": ("packed", packed_region([{"next": 0}], free_head=0, old_free_head=0)),
    "packed, free list leaves": ("packed", packed_region([{"next": 12}], free_head=0, old_free_head=0)),
    "packed, free list begins outside": ("packed", packed_region([], free_head=12, old_free_head=12)),
    "packed, an entry is lost": ("packed", packed_region([{"next": 1}])),
    "packed, a list of none": ("packed", packed_region([BUFFER | {"num": 0}])),
    "packed, a list that ends elsewhere": ("packed", packed_region([BUFFER | {"last": 1}])),
    "packed, a list into the free ones": ("packed", packed_region([BUFFER | {"num": 2, "last": 1, "next": 1}])),
    "packed, an id that is none": ("packed", packed_region([BUFFER | {"id": SIZE}])),
    "packed, one id twice": ("packed", packed_region([BUFFER, BUFFER | {"last": 1}])),
    "packed, more descriptors than slots": ("packed", packed_region([BUFFER | {"last": n} for n in range(9)])),
    "packed, a list that goes on": ("packed", packed_region([BUFFER | {"flags": 1}])),
    "packed, a list that ends before": (
        "packed",
        packed_region([BUFFER | {"num": 2, "last": 1, "next": 1}, {"addr": 0x1000, "len": 1}]),
    ),
}


@pytest.mark.parametrize("wrong", REGIONS)
def test_a_region_that_no_back_end_leaves_is_an_error_of_the_peer(wrong: str) -> None:
    layout, content = REGIONS[wrong]
    [case] = [c for c in CASES if str(c) == f"{layout}-reference"]
    world = World(case)
    world.region[: len(content)] = content
    with pytest.raises(PeerError):
        world.again()


def test_regions_like_those_are_right() -> None:
    """So that each of them is wrong in one thing."""
    for layout, content, left in (
        ("split", split_region([{"inflight": 1}]), 1),
        ("packed", packed_region([BUFFER, BUFFER | {"last": 1, "id": 1}]), 2),
    ):
        [case] = [c for c in CASES if str(c) == f"{layout}-reference"]
        world = World(case)
        world.region[: len(content)] = content
        world.again()
        assert len(world.queue.take()) == left


# A life that ends at a store ----------------------------------------------------------------------------------------


FOR_EVER = 1 << 30


class Killed(Exception):
    """The process is no more."""


@define
class Clock:
    """Counts stores to shared memory; the one after `left` others does not happen, nor does anything behind it."""

    left: int = FOR_EVER
    count: int = 0

    def tick(self) -> None:
        if self.count == self.left:
            raise Killed
        self.count += 1


class Mortal:
    """Words that a process stores to while it lives."""

    def __init__(self, words: Any, clock: Clock) -> None:
        self.words, self.clock = words, clock

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> int:
        return int(self.words[index])

    def __setitem__(self, index: int, value: int) -> None:
        self.clock.tick()
        self.words[index] = value


class MortalEngine(Engine):
    """The reference engine, every store of which is counted."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(REFERENCE.kernels)
        self.clock = clock

    def view(self, view: memoryview, code: str) -> Any:
        return Mortal(super().view(view, code), self.clock)


@define(eq=False)
class World:
    """A driver, its memory, an inflight region, and one device after the other. Buffers are numbered as they are added.

    served: the buffers that some device was done with; back: those that the driver has got back; newest: the last one
    that this device has taken.
    """

    case: Case
    clock: Clock = field(factory=Clock)
    made: Pair = field(init=False)
    region: bytearray = field(init=False)
    queue: DeviceQueue = field(init=False)
    taken: list[tuple[int, Chain]] = field(init=False, factory=list)
    served: set[int] = field(init=False, factory=set)
    back: list[int] = field(init=False, factory=list)
    added: int = field(init=False, default=0)
    newest: int = field(init=False, default=-1)
    start: int = field(default=0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        self.made = pair(self.case, SIZE, self.start)
        self.region = bytearray(part_size(self.case.layout == "packed", ENTRIES[self.case.layout]))
        self.begin(self.made.config.state)

    # The device

    def begin(self, base: QueueState) -> None:
        """A device comes: `base` is what its carrier was told, without the region."""
        config = self.made.config
        kinds = {"split": SplitTracker, "packed": PackedTracker}
        tracker: Any = kinds[self.case.layout](memoryview(self.region), ENTRIES[self.case.layout])
        views = tracker._part._views
        for code in views:
            views[code] = Mortal(views[code], self.clock)
        config.state = tracker.begin(base, SIZE, self._flags)
        config.tracker = tracker
        engine = MortalEngine(self.clock) if self.case.engine_name == "reference" else self.case.engine
        self.taken, self.newest = [], -1
        self.queue = config.activate(self.made.arena.memory, self.case.features, engine, self.made.notify)

    def _flags(self, slot: int) -> int:
        at = self.made.driver.descriptor_area + slot * pvirtq_desc.size
        return int(pvirtq_desc.decode(self.made.arena.memory.read(at, pvirtq_desc.size)).flags)

    def again(self) -> None:
        """The next device, on a split ring told used.idx, on a packed one nothing of use."""
        used = 0
        if self.case.layout == "split":
            at = self.made.driver.device_area + virtq_used(SIZE).offset("idx")
            used = int.from_bytes(self.made.arena.memory.read(at, 2), "little")
        self.begin(QueueState(used, used))

    def take(self, n: int) -> None:
        for chain in self.queue.take(n % SIZE + 1):
            number = int.from_bytes(chain.readable.read(8), "little")
            # What was left comes first, in the order in which it was taken, and that is the order of all.
            assert number > self.newest
            self.newest = number
            self.taken.append((number, chain))

    def complete(self, n: int) -> None:
        """One or two buffers at once, from anywhere among those taken."""
        at = 0 if self.case.in_order else n % (len(self.taken) or 1)
        done, self.taken[at : at + 2] = self.taken[at : at + 2], []
        for number, chain in done:
            # A short answer now and then: such are not merged in order.
            chain.writable.write(number.to_bytes(8, "little") + bytes(number % 2))
            self.served.add(number)
        self.queue.complete([chain for _, chain in done])

    def stop(self, _: int) -> None:
        """GET_VRING_BASE, and the ring is started again there by the same device."""
        state = self.queue.stop()
        self.begin(state)

    # The driver

    def add(self, n: int) -> None:
        """One buffer of 1 to 3 readable segments, and one writable."""
        parts = n % 3 + 1
        if self.made.driver.free_slots > parts:
            self._add(parts)

    def fill(self, _: int) -> None:
        """One buffer of as many segments as the ring has slots."""
        if self.made.driver.free_slots == SIZE:
            self._add(SIZE - 1)

    def _add(self, parts: int) -> None:
        driver, arena = self.made.driver, self.made.arena
        number, room = arena.allocate(8), arena.allocate(9)
        number.view[:] = self.added.to_bytes(8, "little")
        rest = [arena.allocate(4).extent for _ in range(parts - 1)]
        driver.add([number.extent, *rest], [room.extent], token=(self.added, room))
        self.added += 1

    def reap(self, n: int) -> None:
        for (number, room), length in self.made.driver.take_used(n % 3 + 1):
            assert number in self.served, "reported done, and was not"
            assert (length, bytes(room.view[:8])) == (8 + number % 2, number.to_bytes(8, "little"))
            self.back.append(number)

    def finish(self) -> None:
        """Lives on to the end: everything is taken, in the order it was added, and comes back once."""
        before = -1
        while len(self.taken) != before:
            before = len(self.taken)
            self.take(SIZE - 1)
        while self.taken:
            self.complete(0)
        before = -1
        while len(self.back) != before:
            before = len(self.back)
            self.reap(2)
        assert sorted(self.back) == list(range(self.added))


Step = tuple[str, int]


def live(case: Case, steps: Sequence[Step], kills: Sequence[int], start: int = 0) -> int:
    """Plays the steps. The first device is killed at its `kills[0]`th store, the second, which goes on behind that
    step, at its `kills[1]`th, and so on; then everything is finished. How many of them were killed."""
    world, left, killed = World(case, start=start), list(steps), 0
    while left:
        world.clock.count, world.clock.left = 0, kills[killed] if killed < len(kills) else FOR_EVER
        try:
            if killed:
                world.again()
            while left:
                verb, n = left.pop(0)
                getattr(world, verb)(n)
        except Killed:
            killed += 1
            # There is always one more to come.
            left = left or [("reap", 0)]
    world.clock.left = FOR_EVER
    world.finish()
    return killed


def test_a_buffer_as_long_as_the_ring_moves_nothing_but_the_wrap_counter() -> None:
    """Killed at every store: the slot is the same before and after."""
    [case] = [c for c in CASES if str(c) == "packed-reference"]
    kill = 0
    while live(case, [("fill", 0), ("take", 0), ("complete", 0), ("reap", 0)] * 3, [kill]):
        kill += 1
    assert kill > 100


SCRIPT: Sequence[Step] = [
    *(("add", n) for n in (0, 1, 2, 0)),
    ("take", 1),
    ("take", 0),
    ("complete", 1),
    ("reap", 2),
    ("take", 7),
    *(("add", n) for n in (1, 0, 0, 0)),
    ("complete", 0),
    ("take", 2),
    ("complete", 1),
    ("reap", 2),
    ("reap", 2),
    *(("add", n) for n in (2, 1, 0)),
    ("take", 3),
    ("stop", 0),
    ("take", 3),
    *[("complete", 2), ("reap", 2), ("add", 0), ("take", 7)] * 4,
]
"""Twice around the ring: in order and out of it, one and two at once, with buffers left in the ring and with a stop."""

some_cases = pytest.mark.parametrize("case", [c for c in CASES if c.event_idx != c.indirect], ids=str)


@some_cases
def test_killed_at_every_store(case: Case) -> None:
    kill = 0
    while live(case, SCRIPT, [kill], start=5):
        kill += 1
    assert kill > 40


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.engine_name == "reference" and c.indirect > c.event_idx], ids=str
)
def test_killed_at_every_store_of_what_comes_after_a_kill(case: Case) -> None:
    """Recovery itself is killed, too, and what was recovered is killed again."""
    for first in (9, 37):
        kill = 0
        while live(case, SCRIPT, [first, kill]) == 2:
            kill += 1
        assert kill > 20


STEPS = st.tuples(st.sampled_from(["add", "add", "take", "complete", "reap", "stop"]), st.integers(0, 7))


@some_cases
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_is_under_way_when_it_is_killed(case: Case, data: st.DataObject) -> None:
    steps = data.draw(st.lists(STEPS, min_size=10, max_size=60))
    kills = data.draw(st.lists(st.integers(0, 90), min_size=1, max_size=4))
    live(case, steps, kills, data.draw(st.integers(0, SIZE - 1)))
