"""Edges of the ring kernels that random tests reach too rarely: each was found by a mutant that nobody noticed."""

from __future__ import annotations

from itertools import product
from typing import Any, Final

import pytest

from tests.ring_matrix import ENGINES, LAYOUTS, Case, Pair, every_case, pair, poke
from virtio_py.errors import MemoryFault, RingError
from virtio_py.memory import GuestMemory, Region
from virtio_py.rings.engine import engine_named
from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import (
    pvirtq_desc,
    pvirtq_event_suppress,
    virtq_avail,
    virtq_desc,
    virtq_used,
    virtq_used_elem,
)
from virtio_py.spec import PackedDescFlag, RingEventFlag, VirtqDescFlag

every_engine = pytest.mark.parametrize("engine", ENGINES)
every_ring = pytest.mark.parametrize(
    "case", [Case(layout, engine, False, False, False) for layout, engine in product(LAYOUTS, ENGINES)], ids=str
)
RESERVED: Final = 0xFFFC
"""Bits of the flags of either layout's suppression that mean nothing."""


@every_engine
def test_a_table_may_begin_where_another_region_ends(engine: str) -> None:
    regions = [Region(start, memoryview(bytearray(16))) for start in (0x100, 0x110)]
    kernels = engine_named(engine)
    memory = kernels.memory(GuestMemory(regions))
    assert kernels.locate(memory, 0x110, 16) == 1
    assert kernels.locate(memory, 0x10F, 1) == 0
    assert kernels.locate(memory, 0x10F, 2) == kernels.locate(memory, 0x120, 1) == -1


@every_engine
def test_where_a_region_ends_its_permission_ends(engine: str) -> None:
    """Another one begins at that very address, and it is that one's permission that counts."""
    views = [memoryview(bytearray(16)) for _ in range(3)]
    regions = [Region(0x100, views[0], False), Region(0x110, views[1], True), Region(0x120, views[2], False)]
    kernels = engine_named(engine)
    memory = kernels.memory(GuestMemory(regions))
    assert kernels.mapped(memory, 0x110, 16, 1)
    assert kernels.mapped(memory, 0x100, 48, 0)
    for address, length in ((0x10F, 1), (0x10F, 2), (0x110, 17), (0x120, 1)):
        assert kernels.mapped(memory, address, length, 0)
        assert not kernels.mapped(memory, address, length, 1)


def _device_says(made: Pair, flags: int) -> None:
    """Stores the device's wish, as flags; event index is not negotiated."""
    record: Any = virtq_used(made.driver.size) if made.driver.layout == "split" else pvirtq_event_suppress
    poke(made.arena.memory, made.driver.device_area, record, "flags", flags)


def _driver_says(made: Pair, flags: int) -> None:
    """Stores the driver's wish."""
    record: Any = virtq_avail(made.driver.size) if made.driver.layout == "split" else pvirtq_event_suppress
    poke(made.arena.memory, made.driver.driver_area, record, "flags", flags)


@every_ring
@pytest.mark.parametrize("disabled", [0, int(RingEventFlag.DISABLE)])
def test_reserved_bits_of_a_wish_mean_nothing(case: Case, disabled: int) -> None:
    """NO_NOTIFY, NO_INTERRUPT and DISABLE are all bit 0."""
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    _device_says(made, RESERVED | disabled)
    _driver_says(made, RESERVED | disabled)
    made.driver.add([buffer.extent])
    assert made.driver.needs_notification() == (not disabled)
    made.device.complete(made.device.take())
    assert made.notified == (not disabled)


@every_case
def test_a_buffer_of_one_segment_needs_no_table(case: Case) -> None:
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    record = virtq_desc if case.layout == "split" else pvirtq_desc
    for extents, tables in (([buffer.extent], False), ([buffer.extent] * 2, case.indirect)):
        at = made.driver.descriptor_area + (0 if len(extents) == 1 else record.size)
        made.driver.add(extents)
        descriptor = record.decode(made.arena.memory.read(at, record.size))
        assert bool(descriptor.flags & VirtqDescFlag.INDIRECT) == tables


@every_engine
@pytest.mark.parametrize("half", ["driver", "device"])
@pytest.mark.parametrize(("since", "due"), [(0xFFFE, False), (0xFFFF, False), (0x10000, True), (0x10001, True)])
def test_an_event_is_passed_by_two_to_the_16_entries_at_the_latest(
    engine: str, half: str, since: int, due: bool
) -> None:
    """The event stands at the position that comes next: only a whole lap passes it."""
    made = pair(Case("split", engine, False, True, False), 4)
    queue, position, kernel = {
        "driver": (made.driver, k.PUBLISHED, "split_available_notification_due"),
        "device": (made.device, k.NEXT_USED, "split_used_notification_due"),
    }[half]
    ring = made.driver._ring if half == "driver" else made.device._bound.ring
    record: Any = virtq_used(4) if half == "driver" else virtq_avail(4)
    area = made.driver.device_area if half == "driver" else made.driver.driver_area
    poke(made.arena.memory, area, record, "avail_event" if half == "driver" else "used_event", 7)
    queue._state[k.SINCE], queue._state[position] = since, 7
    assert bool(queue.engine.kernels[kernel](ring, queue._state)) == due
    assert queue._state[k.SINCE] == 0


@every_engine
def test_what_is_published_is_counted_across_the_wrap(engine: str) -> None:
    made = pair(Case("split", engine, False, False, False), 8, start=0xFFFE)
    buffer = made.arena.allocate(4)
    assert made.driver.add_many([([buffer.extent], [], None)] * 5) == 5
    assert made.driver._state[k.SINCE] == 5


@every_ring
def test_a_bad_used_element_is_described(case: Case) -> None:
    """The error tells which buffer, and what of it was wrong."""
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    made.driver.add([], [buffer.extent])
    made.driver.add([], [buffer.extent])
    made.device.complete(made.device.take()[:1])
    memory = made.arena.memory
    if case.layout == "split":
        at = made.driver.device_area + virtq_used(4).offset("ring") + virtq_used_elem.offset("len")
    else:
        at = made.driver.descriptor_area + pvirtq_desc.offset("len")
        flags = PackedDescFlag.AVAIL | PackedDescFlag.USED | VirtqDescFlag.WRITE
        poke(memory, made.driver.descriptor_area, pvirtq_desc, "flags", flags)
    memory.write(at, (4711).to_bytes(4, "little"))
    with pytest.raises(RingError, match="4711"):
        made.driver.take_used()


@every_ring
def test_a_bad_descriptor_is_described(case: Case) -> None:
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent, (1 << 40, 4)])
    with pytest.raises(MemoryFault, match="descriptor 1 of chain 0"):
        made.device.take()


@every_ring
def test_a_bad_descriptor_that_is_alone_is_described(case: Case) -> None:
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent])
    made.driver.add([(1 << 40, 4)])
    assert len(made.device.take()) == 1
    with pytest.raises(MemoryFault, match="descriptor 1 of chain 1"):
        made.device.take()


@every_engine
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_packed_event_is_passed_or_not(engine: str, size: int) -> None:
    """Slots counted from the beginning of time: `since` of them end before `end`, and the event is one of them."""
    due = engine_named(engine).packed_event_due
    for end in range(2 * size, 4 * size):
        for event in range(end - size, end + 1):
            word = event % size | (event // size & 1) << 15 | int(RingEventFlag.DESC) << 16
            for since in range(1, size + 1):
                passed = end - since <= event < end
                assert due(word, 1, size, end % size, end // size & 1, since) == passed, (end, event, since)


@every_ring
def test_addresses_have_64_bits(case: Case) -> None:
    made = pair(case, 4)
    record = virtq_desc if case.layout == "split" else pvirtq_desc
    made.driver.add([(0x1234_5678_9ABC_DEF0, 4)])
    assert record.decode(made.arena.memory.read(made.driver.descriptor_area, record.size)).addr == 0x1234_5678_9ABC_DEF0


@every_engine
def test_a_length_means_nothing_where_nothing_was_written(engine: str) -> None:
    made = pair(Case("packed", engine, False, False, False), 4)
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent], [], "token")
    made.device.complete(made.device.take())
    made.arena.memory.write(made.driver.descriptor_area + pvirtq_desc.offset("len"), b"\x63\0\0\0")
    assert made.driver.take_used() == [("token", 0)]


@every_case
def test_a_chain_may_go_on_behind_memory_that_is_only_readable(case: Case) -> None:
    """No flag but WRITE asks for permission to write."""
    made = pair(case, 8)
    shared = Region(1 << 32, memoryview(bytearray(b"read")), writable=False)
    memory = GuestMemory([*made.arena.memory.regions, shared])
    device = made.config.activate(memory, case.features, case.engine, made.notify)
    answer = made.arena.allocate(4)
    made.driver.add([(1 << 32, 2), ((1 << 32) + 2, 2)], [answer.extent])
    [chain] = device.take()
    assert (chain.readable.read_all(), chain.writable.remaining) == (b"read", 4)


@every_case
@pytest.mark.parametrize("size", [4, 5])
def test_batches_of_every_length_go_round_the_ring(case: Case, size: int) -> None:
    """In order, one element stands for all of a batch, and the batch ends behind, at and before the ring's end."""
    made = pair(case, size if case.layout == "packed" else 4)
    buffer = made.arena.allocate(4)
    number = 0
    for together in [*range(1, made.driver.size + 1)] * 4:
        tokens = list(range(number, number + together))
        number += together
        assert made.driver.add_many(([], [buffer.extent], token) for token in tokens) == together
        chains = made.device.take()
        for chain in chains:
            chain.writable.write(b"full")
        made.device.complete(chains)
        assert made.driver.take_used() == [(token, 4) for token in tokens]
        assert made.driver.free_slots == made.driver.size


@every_case
def test_positions_stay_below_two_to_the_16(case: Case) -> None:
    made = pair(case, 4, start=0xFFFE)
    buffer = made.arena.allocate(4)
    for token in range(5):
        made.driver.add([buffer.extent], token=token)
        made.device.complete(made.device.take())
        assert made.driver.take_used() == [(token, 0)]
        for state in (made.driver.state, made.device.state):
            assert 0 <= state.next_available <= 0xFFFF
            assert 0 <= state.next_used <= 0xFFFF


@every_ring
def test_reserved_bits_of_a_descriptor_mean_nothing(case: Case) -> None:
    """Bit 3 is nobody's; the buffer stays readable."""
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent])
    record = virtq_desc if case.layout == "split" else pvirtq_desc
    flags = record.decode(made.arena.memory.read(made.driver.descriptor_area, record.size)).flags
    poke(made.arena.memory, made.driver.descriptor_area, record, "flags", flags | 1 << 3)
    [chain] = made.device.take()
    assert (len(chain.readable.read_all()), chain.writable.remaining) == (4, 0)


@every_engine
def test_a_batch_has_room_for_as_many_segments_as_it_has(engine: str) -> None:
    made = pair(Case("split", engine, False, False, False), 4)
    kernels, batch = engine_named(engine), made.device._batch
    memory = made.device._bound.memory
    last = len(batch.segments) // k.SEGMENT - 1
    start = made.arena.memory.regions[0].start
    assert kernels.put_single(memory, batch, 0, last, start, 1, 0) == 0
    assert kernels.put_single(memory, batch, 0, last + 1, start, 1, 0) == k.BATCH_FULL
