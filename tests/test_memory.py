"""Guest memory against a flat dict of bytes; the arena as a state machine."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from virtio_py.errors import MemoryFault, UsageError
from virtio_py.memory import ADDRESS_LIMIT, Arena, Buffer, GuestMemory, Region

FIRST = 100
# Gaps of 0 make regions adjacent.
LAYOUTS = st.lists(st.tuples(st.sampled_from([0, 0, 1, 7]), st.integers(1, 24)), min_size=1, max_size=5)
ADDRESSES = st.one_of(
    st.integers(FIRST - 5, FIRST + 160),
    st.sampled_from([-1, 0, ADDRESS_LIMIT - 1, ADDRESS_LIMIT, (1 << 64) - 1, 1 << 64]),
)


def _place(layout: list[tuple[int, int]]) -> tuple[GuestMemory, dict[int, int]]:
    """Regions with recognisable bytes, and the same as {address: byte}."""
    regions: list[Region] = []
    flat: dict[int, int] = {}
    at = FIRST
    for gap, size in layout:
        at += gap
        content = bytes((at + i) * 7 & 0xFF for i in range(size))
        flat |= {at + i: byte for i, byte in enumerate(content)}
        regions.append(Region(at, memoryview(bytearray(content))))
        at += size
    return GuestMemory(reversed(regions)), flat


@given(LAYOUTS, ADDRESSES, st.one_of(st.integers(0, 130), st.sampled_from([1 << 32, (1 << 64) - 1])))
@settings(max_examples=300, deadline=None)
def test_reads_like_a_flat_dict(layout: list[tuple[int, int]], address: int, length: int) -> None:
    memory, flat = _place(layout)
    here = length < 200 and all(address + i in flat for i in range(length))
    if here:
        assert memory.read(address, length) == bytes(flat[address + i] for i in range(length))
        return
    with pytest.raises(MemoryFault):
        memory.read(address, length)


@given(LAYOUTS, ADDRESSES, st.binary(max_size=130))
@settings(max_examples=300, deadline=None)
def test_writes_like_a_flat_dict_or_not_at_all(layout: list[tuple[int, int]], address: int, data: bytes) -> None:
    memory, flat = _place(layout)
    if all(address + i in flat for i in range(len(data))):
        memory.write(address, data)
        flat |= {address + i: byte for i, byte in enumerate(data)}
    else:
        with pytest.raises(MemoryFault):
            memory.write(address, data)
    assert {at: memory.read(at, 1)[0] for at in flat} == flat


@given(LAYOUTS, ADDRESSES, st.integers(-3, 60))
@settings(max_examples=300, deadline=None)
def test_a_view_lies_in_one_region(layout: list[tuple[int, int]], address: int, length: int) -> None:
    memory, flat = _place(layout)
    region = next((r for r in memory.regions if r.start <= address < r.end), None)
    if region is None or length < 0 or address + length > region.end:
        with pytest.raises(MemoryFault):
            memory.view(address, length)
        return
    view = memory.view(address, length)
    assert bytes(view) == bytes(flat[address + i] for i in range(length))
    if length:
        view[-1] ^= 0xFF
        assert memory.read(address + length - 1, 1) == bytes([flat[address + length - 1] ^ 0xFF])


def _region(start: int, size: int) -> Region:
    return Region(start, memoryview(bytearray(size)))


@pytest.mark.parametrize(
    "regions",
    [
        [_region(0, 16), _region(15, 16)],
        [_region(0, 16), _region(0, 16)],
        [_region(0, 64), _region(8, 8)],
        [_region(0, 0)],
        [_region(-1, 16)],
        [_region(ADDRESS_LIMIT - 15, 16)],
        [Region(0, memoryview(bytes(16)))],
        [Region(0, memoryview(bytearray(16)).cast("H"))],
        [Region(0, memoryview(bytearray(16))[::2])],
    ],
    ids=["overlap", "same", "inside", "empty", "negative", "limit", "read-only", "words", "strided"],
)
def test_regions_that_cannot_be(regions: list[Region]) -> None:
    with pytest.raises(UsageError):
        GuestMemory(regions)


def test_the_last_region_may_end_at_the_limit() -> None:
    memory = GuestMemory([_region(ADDRESS_LIMIT - 16, 16)])
    assert memory.read(ADDRESS_LIMIT - 1, 1) == b"\0"
    with pytest.raises(MemoryFault):
        memory.read(ADDRESS_LIMIT - 1, 2)


ARENA_START, ARENA_SIZE = 0x1008, 2048


class ArenaMachine(RuleBasedStateMachine):
    """Allocations and frees in any order, each buffer filled with its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(GuestMemory.of(ARENA_SIZE, start=ARENA_START))
        self.live: list[tuple[Buffer, int]] = []
        self.count = 0

    @rule(size=st.integers(0, 300), align=st.sampled_from([1, 2, 4, 16, 64, 256]))
    def allocate(self, size: int, align: int) -> None:
        try:
            buffer = self.arena.allocate(size, align)
        except UsageError:
            return
        assert buffer.address % align == 0
        assert len(buffer.view) == size
        assert buffer.extent == (buffer.address, size)
        assert bytes(buffer.view) == bytes(size), "a buffer is zeroed"
        self.count += 1
        buffer.view[:] = bytes([self.count & 0xFF]) * size
        self.live.append((buffer, self.count & 0xFF))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.live) - 1))
        buffer, _ = self.live.pop(at)
        self.arena.free(buffer)

    @rule()
    def free_what_is_not_allocated(self) -> None:
        with pytest.raises(UsageError):
            self.arena.free(Buffer(ARENA_START - 16, memoryview(b"")))

    @invariant()
    def nobody_shares_memory(self) -> None:
        ends = sorted((b.address, b.address + len(b.view)) for b, _ in self.live)
        assert all(low[1] <= high[0] for low, high in pairwise(ends))
        assert all(start >= ARENA_START and end <= ARENA_START + ARENA_SIZE for start, end in ends)
        assert len({start for start, _ in ends}) == len(ends), "an address names one buffer"
        for buffer, mark in self.live:
            assert bytes(buffer.view) == bytes([mark]) * len(buffer.view)
            assert self.arena.memory.read(*buffer.extent) == bytes(buffer.view)

    def teardown(self) -> None:
        self.arena.free(*(buffer for buffer, _ in self.live))
        assert self.arena.free_bytes == ARENA_SIZE
        # Neighbours were merged: all of it can be had at once.
        self.arena.allocate(ARENA_SIZE, 8)


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_an_arena_of_one_byte_too_few_says_so() -> None:
    arena = Arena(GuestMemory.of(64, start=16))
    with pytest.raises(UsageError, match="no hole of 65 bytes"):
        arena.allocate(65)
    buffer = arena.allocate(64)
    with pytest.raises(UsageError):
        arena.allocate(1)
    arena.free(buffer)
    with pytest.raises(UsageError, match="nothing is allocated"):
        arena.free(buffer)
