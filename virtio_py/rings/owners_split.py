"""Which buffers of a split virtqueue are where: as its driver knows it, as its device does, as bytes suggest it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from typing import Any, Final

from attrs import define, frozen

from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import virtq_avail, virtq_used
from virtio_py.rings.trace_walk import Source, Survey
from virtio_py.spec import Feature

INDEX: Final = (1 << 8 * virtq_avail(1).field("idx").size) - 1
"""The mask of a free-running index."""


@define
class SplitCopy:
    """Local copies of the three areas, and the survey that they go into."""

    survey: Survey
    table: bytes
    avail: Any
    used: Any

    @classmethod
    def of(cls, source: Source) -> SplitCopy:
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


Buffers = dict[int, str]
"""Heads, in the order they became available as far as it is known, and their states."""


@frozen
class Found:
    """Which buffers are where. doubted: heads that may be the driver's after all; exact: whether all is known."""

    buffers: Buffers
    doubted: Set[int] = frozenset()
    exact: bool = True


def seen_by_driver(ring: SplitCopy) -> Found:
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
    return Found(buffers)


def checked_element(ring: SplitCopy, position: int, gone: set[int]) -> int | None:
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


def one_by_one(ring: SplitCopy, start: int, count: int) -> Iterator[int]:
    """The heads that used elements return, one each."""
    gone: set[int] = set()
    for position in range(start, start + count):
        head = checked_element(ring, position, gone)
        if head is not None:
            gone.add(head)
            yield head


def in_order_run(ring: SplitCopy, start: int, count: int) -> Iterator[int]:
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


def seen_by_device(ring: SplitCopy) -> Found:
    """The device knows what it has taken; what it has yet to take stands in the available ring."""
    state = ring.source.state
    if ring.used.idx != state.next_used:
        ring.survey.say("", "used ring", f"idx is {ring.used.idx}, the device stored {state.next_used}")
    pending = ring.avail.idx - state.next_available & INDEX
    if pending > ring.size:
        ring.survey.report(k.BAD_INDEX, "available ring", at=ring.avail.idx)
        pending = 0
    buffers = dict.fromkeys(ring.source.held, "taken")
    return Found(buffers | dict.fromkeys(ring.heads(state.next_available, pending, Counter()), "available"))


def seen_in_memory(ring: SplitCopy) -> Found:
    """The indices tell how many buffers the device has; which ones, only a device that uses them in order."""
    count = ring.avail.idx - ring.used.idx & INDEX
    if count > ring.size:
        ring.survey.report(k.BAD_INDEX, "available ring", at=ring.avail.idx)
        return Found({}, exact=False)
    in_order = ring.source.has(Feature.IN_ORDER)
    if in_order:
        return Found(dict.fromkeys(ring.heads(ring.used.idx, count, Counter()), "device"))
    # A buffer available since the used index was reached is used, if at all, inside what the used ring still holds.
    elements = ring.used.ring[: ring.used.idx] if is_young(ring) else ring.used.ring
    good = set(ring.heads(ring.used.idx, count, Counter(element.id for element in elements)))
    newest, certain = most_likely(ring, count)
    start = ring.avail.idx - count
    buffers = {head: "device" for position, head in newest if head in good or position < start}
    if in_order is None:
        # One used element may stand for several buffers, those behind it are then older than they look. What is
        # outstanding both then and otherwise is certain.
        certain &= {ring.head(position) for position in range(start, start + count)}
    return Found(buffers, buffers.keys() - certain, len(buffers.keys() & certain) == count)


def is_young(ring: SplitCopy) -> bool:
    """Whether neither ring has come round to its first slot again, as far as zeros in the rest can tell."""
    idx, used = ring.avail.idx, ring.used.idx
    beyond = (*ring.avail.ring[idx:], *(word for element in ring.used.ring[used:] for word in element))
    return used <= idx < ring.size and not any(beyond)


def all_history(ring: SplitCopy) -> list[tuple[int, int]] | None:
    """The outstanding heads of a young ring with their positions: each use has taken one away. None if that does not
    add up, as when one used element stands for several buffers."""
    heads = ring.avail.ring[: ring.avail.idx]
    times, back = Counter(heads), Counter(element.id for element in ring.used.ring[: ring.used.idx])
    if not is_young(ring) or any(not 0 <= times[head] - back[head] <= 1 for head in times | back):
        return None
    newest = {head: p for p, head in enumerate(heads)}
    return sorted((p, head) for head, p in newest.items() if times[head] > back[head])


def most_likely(ring: SplitCopy, count: int) -> tuple[list[tuple[int, int]], set[int]]:
    """`count` heads with their positions in the available ring, oldest first, and those of them that are certain.

    With at most `size` buffers outstanding, the use at index u of a buffer available at index a has a - size < u.
    So a head last used at u >= a is back, one with u <= a - size is not; between them the newest are taken, which is
    right for every device that uses buffers in order. Old buffers may have left the available ring altogether.
    """
    if (known := all_history(ring)) is not None:
        return [(p, head) for p, head in known if head < ring.size], {head for _, head in known}
    size, idx = ring.size, ring.avail.idx
    available = {ring.head(p): p for p in range(idx - size, idx) if ring.head(p) < size}
    first_used = idx - count - size
    used = {ring.element(p).id: p for p in range(first_used, first_used + size)}
    last_used = {head: used.get(head, first_used - 1) for head in available}
    waiting = [(last_used[head] <= p - size, p, head) for head, p in available.items() if last_used[head] < p]
    chosen = sorted(waiting)[max(len(waiting) - count, 0) :]
    return sorted((p, head) for _, p, head in chosen), {head for sure, _, head in chosen if sure}


VIEWS: Final = {"driver": seen_by_driver, "device": seen_by_device, "memory": seen_in_memory}
