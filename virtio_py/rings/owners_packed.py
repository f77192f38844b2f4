"""Which slots and buffers of a packed virtqueue are whose: as its driver knows it, its device does, bytes suggest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from itertools import takewhile
from typing import Any, Final

from attrs import define, frozen

from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import pvirtq_desc, pvirtq_event_suppress
from virtio_py.rings.picture import Descriptor, Mark
from virtio_py.rings.queue import Held
from virtio_py.rings.trace_walk import Source, Survey, flag_names
from virtio_py.spec import Feature, PackedDescFlag

Slots = dict[int, str]
"""Slots that are not free, with their states."""


@frozen
class Found:
    """Which slots are whose, where lists begin, and what is known of the buffers in them.

    lists: runs of slots, each a list from its first descriptor to its last as far as it can be seen, and a state;
    hidden: ids of buffers whose descriptors cannot be seen, with states;
    doubted: ids of buffers that may have been used since; exact: whether all is known.
    """

    slots: Slots
    lists: Sequence[tuple[list[int], str]]
    hidden: Sequence[tuple[int, str]]
    marks: Sequence[Mark]
    doubted: Set[int] = frozenset()
    exact: bool = True


@define
class PackedCopy:
    """Local copies of the ring and of both event suppression structures, and the survey that they go into."""

    survey: Survey
    rows: list[Descriptor]
    driver_event: Any
    device_event: Any

    @classmethod
    def of(cls, source: Source) -> PackedCopy:
        """Reads everything once. Raises MemoryFault for areas that are not memory."""
        table, driver, device = source.read_areas()
        rows = [packed_descriptor(table, slot) for slot in range(source.size)]
        events = (pvirtq_event_suppress.decode(area) for area in (driver, device))
        return cls(Survey(source), rows, *events)

    @property
    def source(self) -> Source:
        """Where the ring lies."""
        return self.survey.source

    @property
    def size(self) -> int:
        """The queue size."""
        return self.source.size

    def span(self, start: int, count: int) -> list[int]:
        """`count` slots from `start` on, going round."""
        return [(start + i) % self.size for i in range(count)]

    def bits(self, slot: int) -> tuple[bool, bool]:
        """AVAIL and USED of a slot."""
        flags = self.rows[slot].flags
        return bool(flags & PackedDescFlag.AVAIL), bool(flags & PackedDescFlag.USED)

    def is_available(self, slot: int, wrap: int) -> bool:
        """Whether a slot says available to a side whose wrap counter is `wrap`."""
        return self.bits(slot) == (bool(wrap), not wrap)

    def is_used(self, slot: int, wrap: int) -> bool:
        """Whether a slot says used to a side whose wrap counter is `wrap`."""
        return self.bits(slot) == (bool(wrap), bool(wrap))

    def is_blank(self, slot: int) -> bool:
        """Whether a slot was never written, as far as zeros can tell."""
        row = self.rows[slot]
        return not any((row.addr, row.len, row.link, row.flags))

    def cut(self, slots: Sequence[int]) -> Iterator[list[int]]:
        """The lists in a run of slots: each ends with the first descriptor that has no NEXT, or with the run."""
        run: list[int] = []
        for slot in slots:
            run.append(slot)
            if not self.rows[slot].flags & PackedDescFlag.NEXT:
                yield run
                run = []
        if run:
            yield run


def packed_descriptor(table: bytes | memoryview, slot: int) -> Descriptor:
    """One entry of the ring or of an indirect table."""
    addr, length, ident, flags = pvirtq_desc.decode(table, slot * pvirtq_desc.size)
    return Descriptor(slot, addr, length, ident, flags, flag_names(PackedDescFlag, flags))


def private_marks(ring: PackedCopy) -> list[Mark]:
    """The positions of the side that looks."""
    state = ring.source.state
    return [
        Mark("descriptors", "next available", state.next_available, wrap=state.available_wrap),
        Mark("descriptors", "next used", state.next_used, wrap=state.used_wrap),
    ]


# As the driver sees it ----------------------------------------------------------------------------------------------


def seen_by_driver(ring: PackedCopy) -> Found:
    """The driver knows what is outstanding and how many slots each buffer takes; used descriptors tell what is back."""
    state, left = ring.source.state, dict(ring.source.held)
    slot, wrap = state.next_used, state.used_wrap
    slots: Slots = {}
    back: list[int] = []
    while left and ring.is_used(slot, wrap):
        run = returned(ring, slot, left)
        if not run:
            break
        taken = sum(left.pop(ident).slots for ident in run)
        back += run
        slots |= dict.fromkeys(ring.span(slot, taken), "used")
        wrap ^= slot + taken >= ring.size
        slot = (slot + taken) % ring.size
    region = ring.span(slot, distance(ring, slot, wrap, state.next_available, state.available_wrap))
    lists = visible_lists(ring, region, {ident: held.slots for ident, held in left.items()})
    seen = {ring.rows[run[-1]].link for run in lists}
    hidden = [(i, "used") for i in back] + [(i, "device") for i in left if i not in seen]
    slots |= dict.fromkeys(region, "device")
    return Found(slots, [(run, "device") for run in lists], hidden, private_marks(ring))


def returned(ring: PackedCopy, slot: int, waiting: dict[int, Held]) -> list[int]:
    """The buffers that one used descriptor returns, several only in order; none, and a report, if it is wrong."""
    row, where = ring.rows[slot], f"descriptor {slot}"
    length = row.len if row.flags & PackedDescFlag.WRITE else 0
    if row.link >= ring.size:
        ring.survey.report(k.USED_ID, where, id=row.link)
    elif row.link not in waiting:
        ring.survey.report(k.USED_NOT_OUTSTANDING, where, id=row.link)
    elif length > waiting[row.link].writable:
        ring.survey.report(k.USED_LENGTH, where, id=row.link, at=length)
    else:
        in_order = ring.source.has(Feature.IN_ORDER)
        return [*takewhile(row.link.__ne__, waiting if in_order else ()), row.link]
    return []


def distance(ring: PackedCopy, start: int, start_wrap: int, end: int, end_wrap: int) -> int:
    """Slots from one position to a later one at most a lap away."""
    return max(end - start + ring.size * (start_wrap != end_wrap), 0)


def visible_lists(ring: PackedCopy, region: list[int], waiting: dict[int, int]) -> list[list[int]]:
    """The lists of the waiting buffers (id: slots) that still stand in the device's part of the ring.

    Used descriptors overwrite the oldest slots, whoever's they are: a list may be gone, or only its end be left. An id
    may stand there twice, used and available again: the later one counts.
    """
    newest = {ring.rows[run[-1]].link: run for run in ring.cut(region)}
    return [run for ident, run in newest.items() if waiting.get(ident) == len(run)]


# As the device sees it ----------------------------------------------------------------------------------------------


def seen_by_device(ring: PackedCopy) -> Found:
    """The device knows what it has taken; what is available follows, list by list."""
    state, held = ring.source.state, ring.source.held
    slot, wrap = state.next_available, state.available_wrap
    room = ring.size - sum(h.slots for h in held.values())
    slots: Slots = dict.fromkeys(ring.span(state.next_used, ring.size - room), "taken")
    lists: list[tuple[list[int], str]] = []
    ids = set(held)
    whole = True
    while whole and room and ring.is_available(slot, wrap):
        run, whole = available_list(ring, slot, wrap)
        ident = ring.rows[run[-1]].link
        if code := refusal(ring, ident, ids, len(run), room) if whole else 0:
            ring.survey.report(code, f"descriptor {slot}", id=ident, at=run[-1])
        if len(run) > room:
            break
        ids.add(ident)
        room -= len(run)
        lists.append((run, "available"))
        slots |= dict.fromkeys(run, "available")
        wrap ^= slot + len(run) >= ring.size
        slot = (slot + len(run)) % ring.size
    return Found(slots, lists, [(ident, "taken") for ident in held], private_marks(ring))


def refusal(ring: PackedCopy, ident: int, ids: set[int], slots: int, room: int) -> int:
    """Why a device cannot take a list with this id, as a kernel's code; 0 if it can."""
    if ident >= ring.size:
        return k.BAD_HEAD
    if ident in ids:
        return k.HEAD_IN_FLIGHT
    return k.BAD_INDEX if slots > room else 0


def available_list(ring: PackedCopy, start: int, wrap: int) -> tuple[list[int], bool]:
    """The slots of the list at `start`, which is available, and whether all of it is; if not, that is reported."""
    run: list[int] = []
    for slot in ring.span(start, ring.size):
        if not ring.is_available(slot, wrap ^ (slot < start)):
            ring.survey.report(k.NOT_AVAILABLE, f"descriptor {start}", at=slot)
            return run, False
        run.append(slot)
        if not ring.rows[slot].flags & PackedDescFlag.NEXT:
            return run, True
    ring.survey.report(k.TOO_LONG, f"descriptor {start}", id=ring.rows[start].link)
    return run, False


# As the bytes suggest -----------------------------------------------------------------------------------------------


def seen_in_memory(ring: PackedCopy) -> Found:
    """Wrap counters and positions from the flags alone.

    The driver sets AVAIL to its wrap counter wherever it writes, and the device leaves it so. Hence AVAIL changes once
    around the ring: there the driver writes next. Going round from there, from the oldest slot to the newest, the
    last slot whose USED equals its AVAIL is the last that the device wrote; what follows is the device's. But the
    device skips slots that belong to the same buffer, and they look available: see `doubtful`.
    """
    avail = [ring.bits(slot)[0] for slot in range(ring.size)]
    turn = next((slot for slot in range(ring.size) if avail[slot] != avail[0]), 0)
    wrap = avail[0] if turn else not avail[0]
    for slot in range(turn + 1, ring.size):
        if turn and avail[slot] == avail[0]:
            ring.survey.say("", f"descriptor {slot}", f"AVAIL changes here, and at descriptor {turn}, where laps meet")
            break
    laps = ring.span(turn, ring.size)
    written = [at for at, slot in enumerate(laps) if ring.bits(slot)[0] == ring.bits(slot)[1]]
    start = written[-1] + 1 if written else 0
    doubt = doubtful(ring, laps, start) if written else doubtful_without(ring)
    lists = list(ring.cut(laps[start + doubt :]))
    slots = dict.fromkeys(laps[start : start + doubt], "unknown") | dict.fromkeys(laps[start + doubt :], "device")
    marks = [Mark("descriptors", "next available", turn, wrap=int(wrap))]
    if not doubt:
        used_wrap = wrap if start == ring.size or laps[start] < turn else not wrap
        marks.append(Mark("descriptors", "next used", laps[start % ring.size], wrap=int(used_wrap)))
    back = {ring.rows[laps[at]].link for at in written if not ring.is_blank(laps[at])}
    doubted = {ring.rows[run[-1]].link for run in lists} & back
    judge_ids(ring, lists)
    return Found(slots, [(run, "device") for run in lists], [], marks, doubted, not doubt and not doubted)


def doubtful(ring: PackedCopy, laps: list[int], start: int) -> int:
    """How many slots from `start` on may or may not belong to the buffer used last: a used descriptor does not say.

    If they do, its list ends with its id, and can be seen: none is in doubt if no list does. Else it may be that list,
    the rest of which follows the used descriptor, or the id may be in use once more. In order, a used descriptor may
    stand for all buffers up to the one with its id.
    """
    last = ring.rows[laps[start - 1]]
    if ring.is_blank(last.index):
        return 0  # The device has used nothing yet.
    in_order = ring.source.has(Feature.IN_ORDER) is not False
    doubt, at = 0, start
    for run in ring.cut(laps[start:]):
        if ring.rows[run[-1]].link == last.link:
            whole = at + len(run) - start
            doubt = max(doubt, whole if in_order or at == start else len(run) - 1)
        at += len(run)
    return doubt


def doubtful_without(ring: PackedCopy) -> int:
    """How many slots may be the driver's although the device has written to none of them.

    All are the device's, unless what it wrote has been overwritten since, and some of what it skipped has not. Only
    the newest slot is certain then; but nothing is skipped where every buffer takes one slot, and not in order.
    """
    lists = any(row.flags & PackedDescFlag.NEXT for row in ring.rows)
    return ring.size - 1 if lists or ring.source.has(Feature.IN_ORDER) is not False else 0


def judge_ids(ring: PackedCopy, lists: list[list[int]]) -> None:
    """Ids that the queue does not have."""
    for run in lists:
        ident = ring.rows[run[-1]].link
        if ident >= ring.size:
            ring.survey.report(k.BAD_HEAD, f"descriptor {run[-1]}", id=ident)


VIEWS: Final = {"driver": seen_by_driver, "device": seen_by_device, "memory": seen_in_memory}
