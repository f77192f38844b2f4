"""What each half of a queue owes the other (2.7, 2.8), read off the memory they share."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest

from tests.ring_matrix import CASES, Case, Pair, every_case, pair, poke
from virtio_py.memory import Arena, GuestMemory
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.kernels import KERNELS, TWINS
from virtio_py.rings.layouts import pvirtq_desc, virtq_avail, virtq_desc, virtq_used
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import PackedDescFlag, VirtqDescFlag

SIZE = 8
NEXT, WRITE = VirtqDescFlag.NEXT, VirtqDescFlag.WRITE


def split_cases(**wanted: bool) -> pytest.MarkDecorator:
    return _cases("split", wanted)


def packed_cases(**wanted: bool) -> pytest.MarkDecorator:
    return _cases("packed", wanted)


def _cases(layout: str, wanted: dict[str, bool]) -> pytest.MarkDecorator:
    chosen = [c for c in CASES if c.layout == layout and all(getattr(c, k) == v for k, v in wanted.items())]
    return pytest.mark.parametrize("case", chosen, ids=str)


def words(made: Pair, area: int, record: Any, path: str) -> int:
    """A 16-bit field of a structure in shared memory."""
    return int.from_bytes(made.arena.memory.read(area + record.offset(path), 2), "little")


def descriptors(made: Pair, address: int | None = None, count: int = SIZE) -> list[Any]:
    """The queue's descriptors, or those of a table elsewhere."""
    record = virtq_desc if made.driver.layout == "split" else pvirtq_desc
    at = made.driver.descriptor_area if address is None else address
    return [record.decode(made.arena.memory.read(at + n * record.size, record.size)) for n in range(count)]


def avail_flags(made: Pair) -> int:
    return words(made, made.driver.driver_area, virtq_avail(SIZE), "flags")


def used_flags(made: Pair) -> int:
    return words(made, made.driver.device_area, virtq_used(SIZE), "flags")


def add(made: Pair, readable: int = 1, writable: int = 1, token: Any = None) -> None:
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent] * readable, [buffer.extent] * writable, token)


def turn(made: Pair) -> None:
    """One buffer, there and back."""
    add(made)
    [chain] = made.device.take()
    chain.writable.write(b"done")
    chain.complete()
    assert [length for _, length in made.driver.take_used()] == [4]


# Descriptors --------------------------------------------------------------------------------------------------------


@pytest.mark.clause("split.device.descriptor-table.4")
@split_cases()
def test_the_device_leaves_the_descriptor_table_alone(case: Case) -> None:
    made = pair(case, SIZE)
    for n in range(3 * SIZE):
        add(made, 1 + n % 3, 1)
        before = descriptors(made)
        [chain] = made.device.take()
        chain.writable.write(b"done")
        chain.complete()
        made.device.enable_notifications()
        assert descriptors(made) == before
        made.driver.take_used()


@pytest.mark.clause("split.driver.descriptor-table.2")
@split_cases(in_order=True, indirect=False)
def test_in_order_the_links_lead_to_the_next_entry(case: Case) -> None:
    made = pair(case, SIZE)
    for _ in range(5):  # round the table, with chains that cross its end
        add(made, 2, 1)
        linked = [(n, d.next) for n, d in enumerate(descriptors(made)) if d.flags & NEXT]
        assert linked
        assert all(following == (n + 1) % SIZE for n, following in linked)
        made.device.complete(made.device.take())
        made.driver.take_used()


@pytest.mark.clause("split.driver.indirect-descriptors.5")
@split_cases(in_order=True, indirect=True)
def test_in_order_the_entries_of_a_table_are_linked_one_by_one(case: Case) -> None:
    made = pair(case, SIZE)
    add(made, 3, 2)
    [table] = [d for d in descriptors(made) if d.flags & VirtqDescFlag.INDIRECT]
    entries = descriptors(made, table.addr, table.len // virtq_desc.size)
    assert [entry.next for entry in entries] == [1, 2, 3, 4, 0]
    assert [entry.flags for entry in entries] == [NEXT, NEXT, NEXT, NEXT | WRITE, WRITE]


@pytest.mark.clause("packed.driver.indirect-descriptors.2")
@pytest.mark.clause("packed.driver.indirect-descriptors.3")
@packed_cases(indirect=True)
def test_entries_of_a_packed_table_have_no_flag_but_write(case: Case) -> None:
    made = pair(case, SIZE)
    add(made, 3, 2)
    [table] = [d for d in descriptors(made) if d.flags & PackedDescFlag.INDIRECT]
    entries = descriptors(made, table.addr, table.len // pvirtq_desc.size)
    assert [entry.flags for entry in entries] == [0, 0, 0, WRITE, WRITE]
    assert len(entries) <= SIZE


@pytest.mark.clause("basic.driver.device-cleanup.1")
@pytest.mark.clause("packed.driver.descriptor-table.1")
@pytest.mark.clause("packed.driver.descriptor-table.2")
@every_case
def test_what_is_with_the_device_is_not_rewritten(case: Case) -> None:
    """One buffer stays with the device while others come and go, and while the driver tries to add too many."""
    if case.in_order:
        return  # nothing comes back before the oldest: there is nothing to come and go
    made = pair(case, SIZE)
    add(made, 1, 1)
    [kept] = made.device.take()
    slots = 1 if case.indirect else 2
    where = range(slots)
    before = [descriptors(made)[n] for n in where]
    for _ in range(3 if case.layout == "split" else 2):
        added = made.driver.add_many([([made.arena.allocate(4).extent], [], n) for n in range(SIZE)])
        assert added <= SIZE - slots
        assert [descriptors(made)[n] for n in where] == before
        if case.layout == "packed":
            break  # the ring's next slot is one that is still with the device
        made.device.complete(made.device.take())
        made.driver.take_used()
        assert [descriptors(made)[n] for n in where] == before
    assert not kept.used


@pytest.mark.clause("packed.driver.scatter-gather-support.4")
@packed_cases(indirect=False)
def test_a_list_that_has_no_room_is_not_begun(case: Case) -> None:
    """Nothing of it is published: the device never waits for the rest of a list that waits for the device."""
    made = pair(case, SIZE)
    add(made, 3, 3)
    before = descriptors(made)
    assert not made.driver.add_many([([made.arena.allocate(4).extent] * 3, [], None)])
    assert descriptors(made) == before
    assert len(made.device.take()) == 1
    assert made.device.take() == []


@pytest.mark.clause("packed.device.descriptor-table.3")
@packed_cases(indirect=False)
def test_what_is_not_available_is_not_used(case: Case) -> None:
    """Descriptors of earlier laps, and those that were never written, are no buffers."""
    made = pair(case, SIZE)
    assert made.device.take() == []
    for _ in range(2 * SIZE + 1):
        turn(made)
        assert made.device.take() == []


@pytest.mark.clause("packed.device.descriptor-table.4")
@packed_cases(indirect=False, in_order=False)
def test_a_used_descriptor_is_not_touched_again(case: Case) -> None:
    made = pair(case, SIZE)
    for n in range(4):
        add(made, token=n)
    chains = made.device.take()
    chains[0].complete()
    first = descriptors(made)[0]
    assert bool(first.flags & PackedDescFlag.USED) == bool(first.flags & PackedDescFlag.AVAIL)
    made.device.complete(chains[1:])
    made.device.enable_notifications()
    made.device.disable_notifications()
    assert descriptors(made)[0] == first


@pytest.mark.clause("packed.device.virtqueues.2")
@packed_cases(indirect=False, in_order=False)
def test_used_descriptors_stand_in_the_order_of_completion(case: Case) -> None:
    made = pair(case, SIZE)
    for n in range(4):
        add(made, 1, 0, n)
    chains = made.device.take()
    order = [2, 0, 3, 1]
    made.device.complete([chains[n] for n in order])
    assert [d.id for d in descriptors(made)[:4]] == [chains[n].id for n in order]
    assert [token for token, _ in made.driver.take_used()] == order


@pytest.mark.clause("packed.device.scatter-gather-support.1")
@packed_cases()
def test_a_list_is_read_in_the_order_it_was_made(case: Case) -> None:
    made = pair(case, SIZE)
    for _ in range(5):  # at every slot, across the end of the ring too
        parts = [made.arena.allocate(1) for _ in range(5)]
        for n, part in enumerate(parts):
            part.view[:] = bytes([n])
        made.driver.add([part.extent for part in parts])
        [chain] = made.device.take()
        assert chain.readable.read_all() == bytes(range(5))
        chain.complete()
        made.driver.take_used()


@pytest.mark.clause("split.device.used-ring.3")
@every_case
def test_bytes_behind_a_gap_are_not_counted(case: Case) -> None:
    """A status byte behind data that was not written: more was written than the used length says, never less."""
    made = pair(case, SIZE)
    room = made.arena.allocate(16)
    made.driver.add([], [room.extent], "token")
    [chain] = made.device.take()
    status = chain.writable.split_tail(1)
    chain.writable.write(b"four")
    status.write(b"\x01")
    chain.complete()
    assert made.driver.take_used() == [("token", 4)]
    assert bytes(room.view) == b"four" + bytes(11) + b"\x01"


@pytest.mark.clause("split.device.descriptor-table.2")
@pytest.mark.clause("packed.device.descriptor-table.2")
@every_case
def test_what_may_only_be_written_cannot_be_read_from_a_chain(case: Case) -> None:
    """A device is given two streams; the one over writable memory has no way to read."""
    made = pair(case, SIZE)
    sent, room = made.arena.allocate(4), made.arena.allocate(4)
    sent.view[:], room.view[:] = b"read", b"MINE"
    made.driver.add([sent.extent], [room.extent])
    [chain] = made.device.take()
    assert chain.readable.read_all() == b"read"
    assert chain.readable.remaining == 0
    assert not hasattr(chain.writable, "read")
    chain.complete()
    assert bytes(room.view) == b"MINE"


# Suppression --------------------------------------------------------------------------------------------------------


@pytest.mark.clause("split.driver.used-buffer-notification-suppression.1")
@pytest.mark.clause("split.driver.used-buffer-notification-suppression.2")
@pytest.mark.clause("split.device.available-buffer-notification-suppression.1")
@pytest.mark.clause("split.device.available-buffer-notification-suppression.2")
@split_cases(event_idx=False)
def test_without_events_the_flags_say_yes_or_no(case: Case) -> None:
    made = pair(case, SIZE)
    for wanted in (True, False, True, False):
        for half in (made.driver, made.device):
            half.enable_notifications() if wanted else half.disable_notifications()
        assert (avail_flags(made), used_flags(made)) == ((0, 0) if wanted else (1, 1))
        before = made.notified
        add(made)
        assert made.driver.needs_notification() is wanted
        made.device.complete(made.device.take())
        assert made.notified - before == wanted
        made.driver.take_used()


@pytest.mark.clause("split.driver.used-buffer-notification-suppression.3")
@pytest.mark.clause("split.driver.used-buffer-notification-suppression.4")
@pytest.mark.clause("split.device.available-buffer-notification-suppression.3")
@pytest.mark.clause("split.device.available-buffer-notification-suppression.4")
@split_cases(event_idx=True)
def test_with_events_the_flags_stay_zero_and_the_index_decides(case: Case) -> None:
    made = pair(case, SIZE)
    for half in (made.driver, made.device):
        half.enable_notifications()
        half.disable_notifications()
    assert (avail_flags(made), used_flags(made)) == (0, 0)
    # Both wait for the third buffer from here on, and hear of it alone.
    poke(made.arena.memory, made.driver.driver_area, virtq_avail(SIZE), "used_event", 2)
    poke(made.arena.memory, made.driver.device_area, virtq_used(SIZE), "avail_event", 2)
    heard = []
    for _ in range(4):
        add(made)
        kick = made.driver.needs_notification()
        before = made.notified
        made.device.complete(made.device.take())
        heard.append((kick, made.notified - before))
        made.driver.take_used()
    assert heard == [(False, 0), (False, 0), (True, 1), (False, 0)]
    assert (avail_flags(made), used_flags(made)) == (0, 0)


@pytest.mark.clause("split.device.used-buffer-notification-suppression.1")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.2")
@split_cases(event_idx=False)
def test_without_events_what_stands_in_their_place_means_nothing(case: Case) -> None:
    for event in (0, 1, 5, 0x8000, 0xFFFF):
        made = pair(case, SIZE)
        poke(made.arena.memory, made.driver.driver_area, virtq_avail(SIZE), "used_event", event)
        poke(made.arena.memory, made.driver.device_area, virtq_used(SIZE), "avail_event", event)
        for n in range(1, 4):
            add(made)
            assert made.driver.needs_notification()
            made.device.complete(made.device.take())
            assert made.notified == n
            made.driver.take_used()


@pytest.mark.clause("split.device.used-buffer-notification-suppression.4")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.5")
@split_cases(event_idx=True)
def test_with_events_the_flags_mean_nothing(case: Case) -> None:
    made = pair(case, SIZE)
    for half in (made.driver, made.device):
        half.enable_notifications()
    poke(made.arena.memory, made.driver.driver_area, virtq_avail(SIZE), "flags", 1)
    poke(made.arena.memory, made.driver.device_area, virtq_used(SIZE), "flags", 1)
    add(made)
    assert made.driver.needs_notification()
    made.device.complete(made.device.take())
    assert made.notified == 1


@pytest.mark.clause("split.driver.available-buffer-notification-suppression.1")
@split_cases()
def test_a_new_queue_is_zero_even_where_memory_was_not(case: Case) -> None:
    arena = Arena(GuestMemory.of(1 << 16, start=0x1000))
    dirt = arena.allocate(1 << 15)
    dirt.view[:] = b"\xff" * len(dirt.view)
    arena.free(dirt)
    queue = DriverQueue(0, SIZE, arena, case.features, case.engine)
    used = virtq_used(SIZE)
    assert arena.memory.read(queue.device_area, used.size) == bytes(used.size)


@pytest.mark.clause("split.driver.used-buffer-notification-suppression.5")
@pytest.mark.clause("split.device.available-buffer-notification-suppression.5")
@pytest.mark.clause("packed.driver.descriptor-table.4")
@every_case
def test_looking_for_nothing_does_no_harm(case: Case) -> None:
    """What a notification without anything new behind it leads to: each side looks, and finds nothing."""
    made = pair(case, SIZE)
    for _ in range(2 * SIZE):
        assert made.device.take() == []
        assert made.driver.take_used() == []
        turn(made)
        made.driver.needs_notification()
        assert not made.driver.needs_notification()


# The order of stores ------------------------------------------------------------------------------------------------


def watching(log: list[str], look: Callable[[], Any]) -> Engine:
    """The reference engine, which notes each release store (and what `look` sees just before), fence and lone load."""

    def store_release(words: Any, index: int, value: int) -> None:
        log.append(f"publish {look()}")
        words[index] = value

    def fence() -> None:
        log.append("fence")

    def load_once(words: Any, index: int) -> int:
        log.append("load")
        return int(words[index])

    made: dict[str, Callable[..., Any]] = dict(TWINS)
    made |= {"store_release": store_release, "fence": fence, "load_once": load_once}
    for name, function in KERNELS.items():
        made[name] = FunctionType(function.__code__, {**function.__globals__, **made}, name)
    return Engine(made)


REFERENCES = [c for c in CASES if c.engine_name == "reference" and not c.indirect]


@pytest.mark.clause("split.driver.updating-idx.1")
@pytest.mark.clause("split.driver.notifying-the-device.1")
@pytest.mark.clause("packed.driver.updating-flags.1")
@pytest.mark.clause("packed.driver.sending-available-buffer-notifications.1")
@pytest.mark.parametrize("case", REFERENCES, ids=str)
def test_a_buffer_is_all_there_when_it_is_published_and_fenced_off_before_the_wish_is_read(case: Case) -> None:
    made = pair(case, SIZE)
    log: list[str] = []
    made.driver = DriverQueue(0, SIZE, made.arena, case.features, watching(log, lambda: [d[:2] for d in seen()]))

    def seen() -> list[Any]:
        found = descriptors(made, made.driver.descriptor_area)
        return [d for d in found if d.len]

    buffers = [made.arena.allocate(4), made.arena.allocate(5)]
    made.driver.add([buffers[0].extent], [buffers[1].extent])
    # The published list was whole: addresses and lengths of both descriptors, at a release store.
    assert log == [f"publish {[b.extent for b in buffers]}"]
    log.clear()
    made.driver.needs_notification()
    assert log[:2] == ["fence", "load"]


@pytest.mark.clause("split.device.used-ring.1")
@pytest.mark.parametrize("case", [c for c in REFERENCES if c.layout == "split"], ids=str)
def test_the_used_length_is_there_before_the_index(case: Case) -> None:
    made = pair(case, SIZE)
    log: list[str] = []

    def look() -> list[Any]:
        used = virtq_used(SIZE)
        ring = used.decode(made.arena.memory.read(made.driver.device_area, used.size))
        return [ring.idx, ring.ring[0].len]

    made.device = made.config.activate(made.arena.memory, case.features, watching(log, look), made.notify)
    add(made)
    [chain] = made.device.take()
    chain.writable.write(b"abc")
    chain.complete()
    assert [entry for entry in log if entry.startswith("publish")][:1] == ["publish [0, 3]"]
    assert look() == [1, 3]


@pytest.mark.clause("features.driver.reserved-feature-bits.5")
@every_case
def test_addresses_are_those_of_the_shared_memory(case: Case) -> None:
    """Without VIRTIO_F_ACCESS_PLATFORM an address is a physical one, and here that is a guest address as it is."""
    made = pair(case, SIZE)
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent], [])
    [first, *_] = descriptors(made)
    assert first.addr == buffer.address
    region = made.arena.memory.find(first.addr)
    assert region is not None
    assert region.start <= made.driver.descriptor_area < region.end


def test_the_watching_engine_is_the_reference() -> None:
    """Were it another, the tests of the order of stores would say nothing of ours."""
    ours = watching([], lambda: None)
    assert all(ours.kernels[n].__code__ is REFERENCE.kernels[n].__code__ for n in ("split_add", "packed_complete"))
