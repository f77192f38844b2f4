"""What there is to see in a split virtqueue (2.7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import virtq_desc
from virtio_py.rings.owners_split import INDEX, VIEWS, Found, SplitCopy
from virtio_py.rings.picture import ChainPicture, Descriptor, Entry, Mark, RingPicture, Suppression
from virtio_py.rings.trace_walk import Source, Survey, Walk, flag_names
from virtio_py.spec import AvailFlag, Feature, UsedFlag, VirtqDescFlag


def split_picture(source: Source) -> RingPicture:
    """The picture of a split ring. Raises MemoryFault for areas that are not memory, and nothing else."""
    ring = SplitCopy.of(source)
    for misplaced in source.misaligned():
        ring.survey.problems[misplaced] = None
    found = VIEWS[source.seen_by](ring)
    chains, rows = follow_all(ring, found)
    numbers = {chain.id: chain.number for chain in chains}
    suppression = (driver_wish(ring), device_wish(ring))
    return RingPicture(
        layout="split",
        size=ring.size,
        seen_by=source.seen_by,
        exact=found.exact,
        outstanding=outstanding(ring),
        descriptors=tuple(rows),
        chains=tuple(chains),
        available=tuple(available_entries(ring, numbers)),
        used=tuple(used_entries(ring, numbers)),
        marks=tuple(marks(ring)),
        suppression=suppression,
        problems=tuple(ring.survey.problems),
    )


def outstanding(ring: SplitCopy) -> int | None:
    """Buffers available and not yet used, by the published indices; None if they make no sense."""
    if ring.source.seen_by == "driver":
        return len(ring.source.held)
    pending = ring.avail.idx - ring.used.idx & INDEX
    return pending if pending <= ring.size else None


# Chains -------------------------------------------------------------------------------------------------------------


def follow_all(ring: SplitCopy, found: Found) -> tuple[list[ChainPicture], list[Descriptor]]:
    """All chains, numbered from 1, and the descriptor table with each descriptor's part in them."""
    rows = [split_descriptor(ring.table, index) for index in range(ring.size)]
    chains = []
    # A chain that may have been taken apart since is no evidence against anybody.
    doubts = Survey(ring.source)
    for number, (head, state) in enumerate(found.buffers.items(), start=1):
        survey = doubts if head in found.doubted else ring.survey
        walk = Walk(survey, head)
        follow(walk, ring.table, head)
        chains.append(walk.chain(number, state, certain=survey is not doubts))
        for index in walk.index:
            if rows[index].chain is not None:
                survey.say("", f"descriptor {index}", f"chains {rows[index].chain} and {number} share it")
            rows[index] = rows[index].belonging(state, number, walk.tables.get(index, ()))
    return chains, rows


def split_descriptor(table: bytes | memoryview, index: int) -> Descriptor:
    """One entry of a table."""
    addr, length, flags, following = virtq_desc.decode(table, index * virtq_desc.size)
    return Descriptor(index, addr, length, following, flags, flag_names(VirtqDescFlag, flags))


def follow(walk: Walk, table: bytes | memoryview, head: int, outer: int | None = None) -> list[Descriptor]:
    """Goes along a chain from `head` on in one table; `outer` is the descriptor that points to this table, if any."""
    entries = len(table) // virtq_desc.size
    seen: dict[int, Descriptor] = {}
    index = head
    while walk.survey.step():
        if index in seen:
            walk.report(k.LOOP, place(index, outer))
            break
        found = seen[index] = split_descriptor(table, index)
        if outer is None:
            walk.index.append(index)
        if not judge(walk, found, outer) or not found.flags & VirtqDescFlag.NEXT:
            break
        if found.link >= entries:
            walk.report(k.BAD_NEXT, place(index, outer), found.link)
            break
        index = found.link
    return list(seen.values())


def judge(walk: Walk, found: Descriptor, outer: int | None) -> bool:
    """Takes one descriptor into the walk; False if the chain cannot be followed beyond it."""
    where = place(found.index, outer)
    if not found.flags & VirtqDescFlag.INDIRECT:
        return walk.segment(where, found.index, found)
    if found.flags & VirtqDescFlag.NEXT:
        walk.report(k.INDIRECT_NEXT, where)
    if outer is not None:
        walk.report(k.INDIRECT_NESTED, where)
        return False
    table = walk.table(where, found.addr, found.len)
    if table is not None:
        walk.tables[found.index] = tuple(follow(walk, table, 0, found.index))
    return False


def place(index: int, outer: int | None) -> str:
    """Where a descriptor is, in words."""
    return f"descriptor {index}" if outer is None else f"entry {index} of descriptor {outer}'s indirect table"


# The two rings ------------------------------------------------------------------------------------------------------


def entries(size: int, idx: int, since: int) -> Iterable[tuple[int, int, bool]]:
    """(slot, position, whether it is at or behind `since`) of each slot of a ring whose index is `idx`."""
    for slot in range(size):
        position = idx - 1 - (idx - 1 - slot) % size & INDEX
        yield slot, position, (idx - 1 - position & INDEX) < (idx - since & INDEX)


def available_entries(ring: SplitCopy, numbers: dict[int, int]) -> Iterator[Entry]:
    """The available ring; current is what the device has yet to take, or to use if nobody knows what it took."""
    idx = ring.avail.idx
    since = ring.source.state.next_available if ring.source.seen_by == "device" else ring.used.idx
    for slot, position, current in entries(ring.size, idx, since):
        head = ring.avail.ring[slot]
        yield Entry(slot, position, head, None, current, numbers.get(head) if current else None)


def used_entries(ring: SplitCopy, numbers: dict[int, int]) -> Iterator[Entry]:
    """The used ring; current is what the driver has yet to take back, which only the driver knows."""
    since = ring.source.state.next_used if ring.source.seen_by == "driver" else ring.used.idx
    for slot, position, current in entries(ring.size, ring.used.idx, since):
        element = ring.used.ring[slot]
        yield Entry(slot, position, element.id, element.len, current, numbers.get(element.id) if current else None)


def marks(ring: SplitCopy) -> Iterator[Mark]:
    """The published indices, one side's private ones, and the two events."""
    private = {
        "driver": ("used", "next used", ring.source.state.next_used),
        "device": ("available", "next available", ring.source.state.next_available),
    }
    named = [("available", "idx", ring.avail.idx), ("used", "idx", ring.used.idx)]
    named += [private[ring.source.seen_by]] if ring.source.seen_by in private else []
    if ring.source.has(Feature.EVENT_IDX) is not False:
        named += [("available", "avail_event", ring.used.avail_event), ("used", "used_event", ring.avail.used_event)]
    for where, name, value in named:
        yield Mark(where, name, value % ring.size, value=value)


# Notification suppression (2.7.7, 2.7.9) ----------------------------------------------------------------------------


def driver_wish(ring: SplitCopy) -> Suppression:
    """Whether the driver wants used buffer notifications."""
    raw = {"flags": ring.avail.flags, "used_event": ring.avail.used_event}
    clause = "split.driver.used-buffer-notification-suppression"
    return Suppression("driver", raw, wish(ring, "available ring", clause, raw, AvailFlag.NO_INTERRUPT))


def device_wish(ring: SplitCopy) -> Suppression:
    """Whether the device wants available buffer notifications."""
    raw = {"flags": ring.used.flags, "avail_event": ring.used.avail_event}
    clause = "split.device.available-buffer-notification-suppression"
    return Suppression("device", raw, wish(ring, "used ring", clause, raw, UsedFlag.NO_NOTIFY))


def wish(ring: SplitCopy, where: str, clause: str, raw: dict[str, int], silent: AvailFlag | UsedFlag) -> str:
    """What one side's flags and event ask for, and whether it may store such flags."""
    flags, event = raw.values()
    by_event = ring.source.has(Feature.EVENT_IDX)
    if flags > silent or (by_event and flags):
        rule = "3" if by_event else "1"
        ring.survey.say(f"{clause}.{rule}", where, f"flags is {flags:#x}, not {'0' if by_event else '0 or 1'}")
    by_flags = f"{silent.name}: no notification" if flags & silent else "notify of each buffer"
    after = f"notify when buffer {event} is passed"
    if by_event is None:
        return f"{by_flags}; with event index: {after}"
    return after if by_event else by_flags
