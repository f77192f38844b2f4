"""What there is to see in a split virtqueue (2.7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import define

from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import virtq_avail, virtq_desc, virtq_used
from virtio_py.rings.picture import Chain, Descriptor, Entry, Mark, RingPicture, Suppression
from virtio_py.rings.trace_walk import Source, Survey, Walk, flag_names
from virtio_py.spec import AvailFlag, Feature, UsedFlag, VirtqDescFlag

INDEX = 0xFFFF


@define
class SplitRing:
    """Local copies of the three areas, and the survey that they go into."""

    survey: Survey
    table: bytes
    avail: Any
    used: Any

    @classmethod
    def of(cls, source: Source) -> SplitRing:
        """Reads everything once. Raises MemoryFault for areas that are not memory."""
        table, avail, used = source.read_areas()
        size = source.size
        return cls(Survey(source), table, virtq_avail(size).decode(avail), virtq_used(size).decode(used))

    @property
    def source(self) -> Source:
        """Where the ring lies."""
        return self.survey.source

    @property
    def size(self) -> int:
        """The queue size."""
        return self.source.size

    def head(self, position: int) -> int:
        """The available ring's entry for a free-running index."""
        return int(self.avail.ring[position % self.size])

    def element(self, position: int) -> Any:
        """The used ring's element for a free-running index."""
        return self.used.ring[position % self.size]

    def heads(self, start: int, count: int, returned: Counter[int]) -> Iterator[int]:
        """The heads made available from `start` on that can be followed; the others are reported.

        returned: how often each head may have come back, and so be there again.
        """
        seen = set(self.source.held) if self.source.seen_by == "device" else set()
        for position in range(start, start + count):
            head, where = self.head(position), f"available ring slot {position % self.size}"
            if head >= self.size:
                self.survey.report(k.BAD_HEAD, where, id=head)
            elif head in seen and not returned[head]:
                self.survey.report(k.HEAD_IN_FLIGHT, where, id=head)
            else:
                returned[head] -= head in seen
                yield head
            seen.add(head)


def split_picture(source: Source) -> RingPicture:
    """The picture of a split ring. Raises MemoryFault for areas that are not memory, and nothing else."""
    ring = SplitRing.of(source)
    for misplaced in source.misaligned():
        ring.survey.problems[misplaced] = None
    buffers, exact = STATES[source.seen_by](ring)
    chains, rows = follow_all(ring, buffers)
    numbers = {chain.id: chain.number for chain in chains}
    suppression = (driver_wish(ring), device_wish(ring))
    return RingPicture(
        layout="split",
        size=ring.size,
        seen_by=source.seen_by,
        exact=exact,
        outstanding=outstanding(ring),
        descriptors=tuple(rows),
        chains=tuple(chains),
        available=tuple(available_entries(ring, numbers)),
        used=tuple(used_entries(ring, numbers)),
        marks=tuple(marks(ring)),
        suppression=suppression,
        problems=tuple(ring.survey.problems),
    )


def outstanding(ring: SplitRing) -> int | None:
    """Buffers available and not yet used, by the published indices; None if they make no sense."""
    if ring.source.seen_by == "driver":
        return len(ring.source.held)
    pending = ring.avail.idx - ring.used.idx & INDEX
    return pending if pending <= ring.size else None


# Which buffers are where: as the driver knows it, as the device knows it, and as the bytes suggest ------------------

Buffers = dict[int, str]
"""Heads, in the order they became available as far as it is known, and their states."""


def seen_by_driver(ring: SplitRing) -> tuple[Buffers, bool]:
    """The driver knows all that is outstanding; of it, the used ring tells what has come back."""
    held, state = ring.source.held, ring.source.state
    if ring.avail.idx != state.next_available:
        ring.survey.say("", "available ring", f"idx is {ring.avail.idx}, the driver stored {state.next_available}")
    recent = [ring.head(p) for p in range(state.next_available - ring.size, state.next_available)]
    newest = {head: at for at, head in enumerate(recent)}
    buffers = dict.fromkeys(sorted(held, key=lambda head: newest.get(head, -1)), "device")
    pending = ring.used.idx - state.next_used & INDEX
    if pending > len(held):
        ring.survey.report(k.USED_INDEX, "used ring", at=ring.used.idx)
        pending = 0
    returned = in_order_run if ring.source.has(Feature.IN_ORDER) else one_by_one
    for head in returned(ring, state.next_used, pending):
        buffers[head] = "used"
    return buffers, True


def checked_element(ring: SplitRing, position: int, gone: set[int]) -> int | None:
    """The id of a used element that the driver has yet to take, or None, reported, if it is none of its buffers."""
    element, held = ring.element(position), ring.source.held
    where = f"used ring slot {position % ring.size}"
    if element.id >= ring.size:
        ring.survey.report(k.USED_ID, where, id=element.id)
    elif element.id not in held or element.id in gone:
        ring.survey.report(k.USED_NOT_OUTSTANDING, where, id=element.id)
    elif element.len > held[element.id].writable:
        ring.survey.report(k.USED_LENGTH, where, id=element.id, at=element.len)
    else:
        return int(element.id)
    return None


def one_by_one(ring: SplitRing, start: int, count: int) -> Iterator[int]:
    """The heads that used elements return, one each."""
    gone: set[int] = set()
    for position in range(start, start + count):
        head = checked_element(ring, position, gone)
        if head is not None:
            gone.add(head)
            yield head


def in_order_run(ring: SplitRing, start: int, count: int) -> Iterator[int]:
    """The heads that used elements return with VIRTIO_F_IN_ORDER, where one stands for all up to it."""
    heads = list(ring.source.held)[:count]
    done = 0
    while done < count:
        head = checked_element(ring, start + done, set(heads[:done]))
        if head is None:
            return
        if head not in heads[done:]:
            ring.survey.report(k.USED_ORDER, f"used ring slot {(start + done) % ring.size}", id=head)
            return
        run = heads.index(head, done) + 1
        yield from heads[done:run]
        done = run


def seen_by_device(ring: SplitRing) -> tuple[Buffers, bool]:
    """The device knows what it has taken; what it has yet to take stands in the available ring."""
    state = ring.source.state
    if ring.used.idx != state.next_used:
        ring.survey.say("", "used ring", f"idx is {ring.used.idx}, the device stored {state.next_used}")
    pending = ring.avail.idx - state.next_available & INDEX
    if pending > ring.size:
        ring.survey.report(k.BAD_INDEX, "available ring", at=ring.avail.idx)
        pending = 0
    buffers = dict.fromkeys(ring.source.held, "taken")
    return buffers | dict.fromkeys(ring.heads(state.next_available, pending, Counter()), "available"), True


def seen_in_memory(ring: SplitRing) -> tuple[Buffers, bool]:
    """The indices tell how many buffers the device has; which ones, only a device that uses them in order."""
    count = ring.avail.idx - ring.used.idx & INDEX
    if count > ring.size:
        ring.survey.report(k.BAD_INDEX, "available ring", at=ring.avail.idx)
        return {}, False
    if ring.source.has(Feature.IN_ORDER):
        return dict.fromkeys(ring.heads(ring.used.idx, count, Counter()), "device"), True
    # A buffer available since the used index was reached is used, if at all, inside what the used ring still holds.
    elements = ring.used.ring[: ring.used.idx] if is_young(ring) else ring.used.ring
    good = set(ring.heads(ring.used.idx, count, Counter(element.id for element in elements)))
    newest, exact = most_likely(ring, count)
    start = ring.avail.idx - count
    return {head: "device" for position, head in newest if head in good or position < start}, exact


def is_young(ring: SplitRing) -> bool:
    """Whether neither ring has come round to its first slot again, as far as zeros in the rest can tell."""
    idx, used = ring.avail.idx, ring.used.idx
    beyond = (*ring.avail.ring[idx:], *(word for element in ring.used.ring[used:] for word in element))
    return used <= idx < ring.size and not any(beyond)


def all_history(ring: SplitRing) -> list[tuple[int, int]] | None:
    """The outstanding heads of a young ring with their positions: each use has taken one away. None if that does not
    add up, as when one used element stands for several buffers."""
    heads = ring.avail.ring[: ring.avail.idx]
    times, back = Counter(heads), Counter(element.id for element in ring.used.ring[: ring.used.idx])
    if not is_young(ring) or any(not 0 <= times[head] - back[head] <= 1 for head in times | back):
        return None
    newest = {head: p for p, head in enumerate(heads)}
    return sorted((p, head) for head, p in newest.items() if times[head] > back[head])


def most_likely(ring: SplitRing, count: int) -> tuple[list[tuple[int, int]], bool]:
    """`count` heads with their positions in the available ring, oldest first, and whether there was no choice.

    With at most `size` buffers outstanding, the use at index u of a buffer available at index a has a - size < u.
    So a head last used at u >= a is back, one with u <= a - size is not; between them the newest are taken, which is
    right for every device that uses buffers in order. Old buffers may have left the available ring altogether.
    """
    if (known := all_history(ring)) is not None:
        return [(p, head) for p, head in known if head < ring.size], True
    size, idx = ring.size, ring.avail.idx
    available = {ring.head(p): p for p in range(idx - size, idx) if ring.head(p) < size}
    first_used = idx - count - size
    used = {ring.element(p).id: p for p in range(first_used, first_used + size)}
    last_used = {head: used.get(head, first_used - 1) for head in available}
    waiting = [(last_used[head] <= p - size, p, head) for head, p in available.items() if last_used[head] < p]
    chosen = sorted(waiting)[max(len(waiting) - count, 0) :]
    certain = sum(sure for sure, _, _ in waiting)
    return sorted((p, head) for _, p, head in chosen), count in (len(waiting), certain) and len(chosen) == count


STATES = {"driver": seen_by_driver, "device": seen_by_device, "memory": seen_in_memory}


# Chains -------------------------------------------------------------------------------------------------------------


def follow_all(ring: SplitRing, buffers: Buffers) -> tuple[list[Chain], list[Descriptor]]:
    """All chains, numbered from 1, and the descriptor table with each descriptor's part in them."""
    rows = [split_descriptor(ring.table, index) for index in range(ring.size)]
    chains = []
    for number, (head, state) in enumerate(buffers.items(), start=1):
        walk = Walk(ring.survey, head)
        follow(walk, ring.table, head)
        chains.append(walk.chain(number, state))
        for index in walk.index:
            if rows[index].chain is not None:
                ring.survey.say("", f"descriptor {index}", f"chains {rows[index].chain} and {number} share it")
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


def available_entries(ring: SplitRing, numbers: dict[int, int]) -> Iterator[Entry]:
    """The available ring; current is what the device has yet to take, or to use if nobody knows what it took."""
    idx = ring.avail.idx
    since = ring.source.state.next_available if ring.source.seen_by == "device" else ring.used.idx
    for slot, position, current in entries(ring.size, idx, since):
        head = ring.avail.ring[slot]
        yield Entry(slot, position, head, None, current, numbers.get(head) if current else None)


def used_entries(ring: SplitRing, numbers: dict[int, int]) -> Iterator[Entry]:
    """The used ring; current is what the driver has yet to take back, which only the driver knows."""
    since = ring.source.state.next_used if ring.source.seen_by == "driver" else ring.used.idx
    for slot, position, current in entries(ring.size, ring.used.idx, since):
        element = ring.used.ring[slot]
        yield Entry(slot, position, element.id, element.len, current, numbers.get(element.id) if current else None)


def marks(ring: SplitRing) -> Iterator[Mark]:
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


def driver_wish(ring: SplitRing) -> Suppression:
    """Whether the driver wants used buffer notifications."""
    raw = {"flags": ring.avail.flags, "used_event": ring.avail.used_event}
    clause = "split.driver.used-buffer-notification-suppression"
    return Suppression("driver", raw, wish(ring, "available ring", clause, raw, AvailFlag.NO_INTERRUPT))


def device_wish(ring: SplitRing) -> Suppression:
    """Whether the device wants available buffer notifications."""
    raw = {"flags": ring.used.flags, "avail_event": ring.used.avail_event}
    clause = "split.device.available-buffer-notification-suppression"
    return Suppression("device", raw, wish(ring, "used ring", clause, raw, UsedFlag.NO_NOTIFY))


def wish(ring: SplitRing, where: str, clause: str, raw: dict[str, int], silent: AvailFlag | UsedFlag) -> str:
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
