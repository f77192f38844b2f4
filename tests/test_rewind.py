"""A device dies, another takes over its queue: every buffer comes back once, whatever the first one was doing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring_matrix import Case, Pair, every_case, pair
from virtio_py.errors import RingError, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.layouts import pvirtq_desc, virtq_used
from virtio_py.rings.rewind import rewind

SIZE = 8
ops = st.lists(st.tuples(st.sampled_from(["add", "take", "complete", "reap"]), st.integers(0, 5)), max_size=40)


class Life:
    """Both halves at work: what is out, what the driver has got back, and in which order the device used buffers."""

    def __init__(self, case: Case, start: int) -> None:
        self.made: Pair = pair(case, SIZE, start)
        self.taken: list[Chain] = []
        self.added = 0
        self.back: list[int] = []
        self.in_order = True

    def add(self, n: int) -> None:
        """One buffer of n readable segments, and one writable."""
        if self.made.driver.free_slots > n:
            room = self.made.arena.allocate(4)
            extents = [self.made.arena.allocate(4).extent for _ in range(n)]
            self.made.driver.add(extents, [room.extent], token=self.added)
            self.added += 1

    def take(self, n: int) -> None:
        self.taken += self.made.device.take(n + 1)

    def complete(self, n: int) -> None:
        if self.taken:
            at = n % len(self.taken)
            self.in_order &= at == 0
            self.finish([self.taken.pop(at)])

    def finish(self, chains: list[Chain]) -> None:
        for chain in chains:
            chain.writable.write(b"done")
        self.made.device.complete(chains)

    def reap(self, n: int) -> None:
        self.back += [token for token, _ in self.made.driver.take_used(n + 1)]

    def another_device(self) -> None:
        self.made.config.state = rewind(self.made.driver)
        self.taken = []
        case = self.made.driver
        self.made.device = self.made.config.activate(
            self.made.arena.memory, case.features, case.engine, self.made.notify
        )


@every_case
def test_every_buffer_comes_back_once(case: Case) -> None:
    @settings(max_examples=25, deadline=None)
    @given(lives=st.lists(ops, min_size=1, max_size=3), start=st.integers(0, 20))
    def check(lives: list[list[tuple[str, int]]], start: int) -> None:
        life = Life(case, start)
        for one in lives:
            for name, n in one:
                getattr(life, name)(n)
            try:
                life.another_device()
            except UsageError:
                # An in-order queue holds back what comes too early, so that nothing is ever used out of order.
                assert case.layout == "packed"
                assert not case.in_order
                assert not life.in_order
                return
        life.finish(life.made.device.take())
        life.reap(SIZE)
        assert sorted(life.back) == list(range(life.added))
        assert life.made.driver.outstanding == 0

    check()


SPLIT, PACKED = Case("split", "reference", False, False, False), Case("packed", "reference", False, False, False)


def test_the_oldest_buffer_is_not_lost_when_a_younger_one_was_used_first() -> None:
    """With the used index alone for a position, the last buffer would be served twice, and the first never."""
    life = Life(SPLIT, 0)
    for _ in range(3):
        life.add(1)
    life.take(2)
    life.complete(2)
    life.another_device()
    assert len(life.made.device.take()) == 2
    life.reap(3)
    assert life.back == [2]


@pytest.mark.parametrize(("path", "value"), [("idx", 2), ("idx", 0xFFFF)])
def test_a_used_index_that_cannot_be(path: str, value: int) -> None:
    life = Life(SPLIT, 0)
    life.add(1)
    driver = life.made.driver
    driver.memory.write(driver.device_area + virtq_used(SIZE).offset(path), value.to_bytes(2, "little"))
    with pytest.raises(RingError, match="used idx"):
        rewind(driver)


def test_a_used_buffer_that_is_not_out() -> None:
    life = Life(SPLIT, 0)
    life.add(1)
    driver = life.made.driver
    used = virtq_used(SIZE)
    driver.memory.write(driver.device_area + used.offset("idx"), b"\1\0")
    driver.memory.write(driver.device_area + used.offset("ring"), b"\7\0\0\0")
    with pytest.raises(RingError, match="not outstanding"):
        rewind(driver)


def test_a_packed_descriptor_that_was_half_overwritten_is_seen() -> None:
    life = Life(PACKED, 0)
    life.add(0)
    driver = life.made.driver
    driver.memory.write(driver.descriptor_area + pvirtq_desc.offset("id"), b"\5\0")
    with pytest.raises(UsageError, match="cannot be offered again"):
        rewind(driver)
