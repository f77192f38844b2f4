"""Zones (5.2.6): the state machine of a zoned disk, without a byte of its data. All positions and lengths are sectors.

    EMPTY --write--> IOPEN --OPEN--> EOPEN --CLOSE--> CLOSED --write--> IOPEN
    any of them --FINISH, or full--> FULL; any of them, FULL too --RESET--> EMPTY

A zone that is IOPEN or EOPEN is open, one that is open or CLOSED is active, and a disk may have few of either. A zone
that needs to be opened takes the place of the one IOPEN that was written longest ago, if there is one.

Asking and doing are apart: `refusal_of_write` changes nothing, and `written` is called when the data are stored, so
that a medium that fails leaves the zones as they were. A verb's answer is the request's status.

Three things the specification leaves open:
- FINISH of an EMPTY or CLOSED zone makes it FULL, as in the standards that the text follows (ZBC, ZNS); its lists of
  transitions do not have that, but a device closes zones unasked, and a driver could not finish them any more.
- A write to a Sequential Write Preferred zone moves the write pointer to its end if that is further on.
- Such a write is not refused for lack of resources, which only Sequential Write Required zones are said to be: the
  zone becomes IOPEN, or failing that CLOSED, or failing that FULL, in which it takes random writes all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from attrs import define, field

from virtio_py.devices.blk.layout import SECTOR, BlkRequest, BlkStatus, ZonedModel, ZoneState, ZoneType
from virtio_py.devices.blk.zone_states import (
    ACTIVE,
    CLOSED,
    EMPTY,
    EOPEN,
    FAILURES,
    FULL,
    IOPEN,
    OFFLINE,
    OPEN,
    RDONLY,
    TRANSITIONS,
    WRITABLE,
    Zone,
)
from virtio_py.errors import UsageError

_APPEND: Final = 256
"""Times the write granularity: what an append may hold if nothing is said."""

_AFTER_WRITE: Final = {
    BlkStatus.OK: IOPEN,
    BlkStatus.ZONE_OPEN_RESOURCE: CLOSED,
    BlkStatus.ZONE_ACTIVE_RESOURCE: FULL,
}
"""The state of a zone that was written to, by the resource that it lacks."""

_SEQUENTIAL: Final = {ZonedModel.HM: ZoneType.SWR, ZonedModel.HA: ZoneType.SWP}


class Run(NamedTuple):
    """Part of a range: its first sector, how many, and whether they were ever written."""

    sector: int
    sectors: int
    written: bool


class Journal(Protocol):
    """Where the states of zones are kept for the next start."""

    def store(self, zone: Zone) -> None:
        """A zone has changed."""

    def commit(self) -> None:
        """What was stored is persistent on return."""


@define(eq=False)
class Zones:
    """All zones of a disk of `capacity` sectors. Raises UsageError for values that cannot be.

    zone_sectors:   of each zone; the last one may be smaller
    model:          HM (Sequential Write Required zones) or HA (Sequential Write Preferred)
    zone_capacity:  sectors of a zone that can be written, all by default; HA must have all
    conventional:   how many zones, from the first, are no sequential ones
    max_open, max_active: zones at a time, 0 for no limit
    write_granularity: bytes, a multiple of 512
    max_append:     sectors in one append, 0 where there is none
    journal:        is told of every change, if there is one
    """

    capacity: int
    zone_sectors: int
    model: ZonedModel = field(default=ZonedModel.HM, kw_only=True)
    zone_capacity: int | None = field(default=None, kw_only=True)
    conventional: int = field(default=0, kw_only=True)
    max_open: int = field(default=0, kw_only=True)
    max_active: int = field(default=0, kw_only=True)
    write_granularity: int = field(default=SECTOR, kw_only=True)
    max_append: int = field(kw_only=True)
    journal: Journal | None = field(default=None, init=False)
    _zones: list[Zone] = field(init=False)
    _counts: Counter[ZoneState] = field(init=False, factory=Counter)
    # In the order of their last write: the first is the one to be closed.
    _implicit: dict[int, Zone] = field(init=False, factory=dict)

    @max_append.default
    def _default_append(self) -> int:
        usable = self.zone_sectors if self.zone_capacity is None else self.zone_capacity
        return min(usable, _APPEND * max(self.write_granularity // SECTOR, 1))

    def __attrs_post_init__(self) -> None:
        self._check()
        self._zones = [self._zone(start) for start in range(0, self.capacity, self.zone_sectors)]
        self._counts.update(zone.state for zone in self._zones)

    def _check(self) -> None:
        usable = self.zone_sectors if self.zone_capacity is None else self.zone_capacity
        grains = self.write_granularity // SECTOR
        numbers = (self.conventional, self.max_open, self.max_active, self.max_append)
        wrong = {
            "the model of zones is HM or HA": self.model not in _SEQUENTIAL,
            "a disk and its zones have sectors": self.capacity <= 0 or self.zone_sectors <= 0,
            "a zone's capacity is from 1 to its size": not 0 < usable <= self.zone_sectors,
            "host-aware zones can be written to their end": self.model == ZonedModel.HA and usable < self.zone_sectors,
            "numbers of zones and sectors are not negative": min(numbers) < 0,
            "an append fits into a zone": self.max_append > usable,
            "no more zones can be open than active": 0 < self.max_active < self.max_open,
            "the write granularity is whole sectors": grains < 1 or self.write_granularity % SECTOR != 0,
        }
        for rule, broken in wrong.items():
            if broken:
                raise UsageError(rule)
        if any(n % grains for n in (self.capacity, self.zone_sectors, usable, self.max_append)):
            raise UsageError("the disk, its zones and appends are multiples of the write granularity")

    def _zone(self, start: int) -> Zone:
        size = min(self.zone_sectors, self.capacity - start)
        if start < self.conventional * self.zone_sectors:
            return Zone(start, size, size, ZoneType.CONV, ZoneState.NOT_WP, start)
        usable = size if self.zone_capacity is None else min(self.zone_capacity, size)
        return Zone(start, size, usable, _SEQUENTIAL[self.model], EMPTY, start)

    # What outlives a restart

    def __len__(self) -> int:
        return len(self._zones)

    def __iter__(self) -> Iterator[Zone]:
        return iter(self._zones)

    def restore(self, states: Sequence[tuple[ZoneState, int]]) -> None:
        """The zones as they were: state and write pointer of each, none of them open. Raises UsageError, and has
        changed nothing, for what these zones cannot be."""
        for zone, (state, wp) in zip(self._zones, states, strict=True):
            if state in OPEN or not _possible(zone, state, wp):
                raise UsageError(f"the zone at sector {zone.start} cannot be {state.name} with its pointer at {wp}")
        if 0 < self.max_active < sum(state == CLOSED for state, _ in states):
            raise UsageError(f"more than {self.max_active} zones are active")
        for zone, (state, wp) in zip(self._zones, states, strict=True):
            # Closed with nothing in it is empty.
            zone.state, zone.wp = EMPTY if state == CLOSED and wp == zone.start else state, wp
        self._counts = Counter(zone.state for zone in self._zones)
        self._implicit.clear()

    def _changed(self, zone: Zone) -> None:
        if self.journal is not None:
            self.journal.store(zone)

    def commit(self) -> None:
        """What zones have become is persistent on return, if it is kept at all."""
        if self.journal is not None:
            self.journal.commit()

    # What can be known

    def characteristics(self) -> dict[str, Any]:
        """The fields of virtio_blk_zoned_characteristics."""
        return {
            "zone_sectors": self.zone_sectors,
            "max_open_zones": self.max_open,
            "max_active_zones": self.max_active,
            "max_append_sectors": self.max_append,
            "write_granularity": self.write_granularity,
            "model": self.model,
        }

    @property
    def implicit(self) -> Sequence[int]:
        """The first sectors of the implicitly opened zones, in the order of their last writes."""
        return list(self._implicit)

    def adopt(self, found: Sequence[tuple[ZoneState, int]], implicit: Sequence[int]) -> None:
        """Goes on with the states and write pointers of as many zones, in their order, and with the order of
        `implicit`. Raises UsageError, with nothing changed, for what these zones could never be in."""
        if len(found) != len(self._zones) or not all(map(_possible, self._zones, *zip(*found, strict=True))):
            raise UsageError("a zone cannot be in this state, or its write pointer there")
        opened = {zone.start: zone for zone, (state, _) in zip(self._zones, found, strict=True) if state == IOPEN}
        if sorted(implicit) != sorted(opened):
            raise UsageError("other zones are implicitly open than are said to be")
        counts = Counter(state for state, _ in found)
        for most, states in ((self.max_open, OPEN), (self.max_active, ACTIVE)):
            if 0 < most < sum(counts[state] for state in states):
                raise UsageError(f"more than {most} zones are open or active")
        for zone, (state, wp) in zip(self._zones, found, strict=True):
            zone.state, zone.wp = state, wp
        self._counts, self._implicit = counts, {start: opened[start] for start in implicit}
        for zone in self._zones:
            self._changed(zone)

    def at(self, sector: int) -> Zone | None:
        """The zone that holds a sector, or None."""
        return self._zones[sector // self.zone_sectors] if 0 <= sector < self.capacity else None

    def starting(self, sector: int) -> Zone | None:
        """The zone that begins with a sector, or None."""
        zone = self.at(sector)
        return zone if zone is not None and zone.start == sector else None

    def report(self, sector: int, most: int) -> Sequence[Zone] | None:
        """At most so many zones, from the one that holds `sector`; None if none does."""
        first = self.at(sector)
        if first is None:
            return None
        index = first.start // self.zone_sectors
        return self._zones[index : index + most]

    def runs(self, sector: int, count: int) -> Iterator[Run]:
        """A range that is on the disk, cut where what was written ends and what was not begins."""
        for zone, start, end in self._parts(sector, count):
            known = end if zone.type == ZoneType.CONV else min(max(start, zone.wp), end)
            yield from (Run(a, b - a, a < known) for a, b in ((start, known), (known, end)) if a < b)

    def gaps(self, sector: int, count: int) -> Iterator[Run]:
        """What a write of this range would leave out between the write pointers and itself: it counts as written
        then, although nobody wrote it."""
        for zone, start, _ in self._parts(sector, count):
            if zone.type == ZoneType.SWP and zone.wp < start:
                yield Run(zone.wp, start - zone.wp, False)

    def _parts(self, sector: int, count: int) -> Iterator[tuple[Zone, int, int]]:
        """The zones that a range touches, and which sectors [start, end) of each."""
        for zone in self._touched(sector, count):
            yield zone, max(sector, zone.start), min(sector + count, zone.start + zone.size)

    def _touched(self, sector: int, count: int) -> Sequence[Zone]:
        if sector >= self.capacity:
            return ()
        last = (sector + max(count, 1) - 1) // self.zone_sectors
        return self._zones[sector // self.zone_sectors : last + 1]

    # Reading and writing

    def refusal_of_read(self, sector: int, count: int) -> BlkStatus:
        """Why a range must not be read, or OK."""
        touched = self._touched(sector, count)
        if any(z.state == OFFLINE for z in touched) or _crosses(touched):
            return BlkStatus.ZONE_INVALID_CMD
        return BlkStatus.OK

    def refusal_of_change(self, sector: int, count: int) -> BlkStatus:
        """Why the content of a range cannot be changed, wherever in its zones it lies, or OK."""
        broken = any(z.state in (RDONLY, OFFLINE) for z in self._touched(sector, count))
        return BlkStatus.ZONE_INVALID_CMD if broken else BlkStatus.OK

    def refusal_of_write(self, sector: int, count: int) -> BlkStatus:
        """Why a range must not be written, or OK."""
        touched = self._touched(sector, count)
        if not touched or _crosses(touched):
            return BlkStatus.ZONE_INVALID_CMD
        if touched[0].type == ZoneType.SWR:
            return self._refusal_in_sequence(touched[0], sector, count)
        return self.refusal_of_change(sector, count)

    def _refusal_in_sequence(self, zone: Zone, sector: int, count: int) -> BlkStatus:
        if zone.state not in WRITABLE:
            return BlkStatus.ZONE_INVALID_CMD
        if sector != zone.wp or (sector + count) * SECTOR % self.write_granularity:
            return BlkStatus.ZONE_UNALIGNED_WP
        if count > zone.end - zone.wp:
            return BlkStatus.ZONE_INVALID_CMD
        return self._lacking(zone) if count else BlkStatus.OK

    def refusal_of_append(self, sector: int, count: int) -> BlkStatus:
        """Why `count` sectors cannot be appended to the zone that begins with `sector`, or OK: then they belong at
        the `wp` of that zone."""
        if not self.max_append:
            return BlkStatus.UNSUPP
        zone = self.starting(sector)
        if zone is None or zone.type != ZoneType.SWR or count > self.max_append:
            return BlkStatus.ZONE_INVALID_CMD
        return self._refusal_in_sequence(zone, zone.wp, count)

    def written(self, sector: int, count: int) -> None:
        """The range, which was not refused, has been stored."""
        for zone, start, end in self._parts(sector, count):
            if start < end and zone.type != ZoneType.CONV:
                self._wrote(zone, end)

    def _wrote(self, zone: Zone, end: int) -> None:
        if zone.state in (EMPTY, CLOSED):
            self._move(zone, _AFTER_WRITE[self._lacking(zone)])
        zone.wp = max(zone.wp, end)
        if zone.wp == zone.end:
            self._move(zone, FULL)
        elif zone.state == IOPEN:
            self._implicit[zone.start] = self._implicit.pop(zone.start)
        self._changed(zone)

    # Requests that are about zones

    def manage(self, request: BlkRequest, sector: int) -> BlkStatus:
        """ZONE_OPEN, ZONE_CLOSE, ZONE_FINISH or ZONE_RESET of the zone that begins with `sector`."""
        zone = self.starting(sector)
        state = None if zone is None else TRANSITIONS[request].get(zone.state)
        if zone is None or state is None:
            return BlkStatus.ZONE_INVALID_CMD
        if state == CLOSED and zone.wp == zone.start:
            state = EMPTY
        lacking = self._lacking(zone) if state in OPEN else BlkStatus.OK
        if lacking == BlkStatus.OK:
            self._move(zone, state)
        return lacking

    def reset_all(self) -> None:
        """ZONE_RESET_ALL: every zone that can be EMPTY is."""
        for zone in self._zones:
            if zone.state in ACTIVE or zone.state == FULL:
                self._move(zone, EMPTY)

    def refusal_of_erase(self, sector: int, count: int) -> BlkStatus:
        """Why the zones of a range cannot all be reset, or OK; it has to be whole zones."""
        end = sector + count
        whole = self.starting(sector) is not None and (end == self.capacity or end % self.zone_sectors == 0)
        able = all(z.state in TRANSITIONS[BlkRequest.ZONE_RESET] for z in self._touched(sector, count))
        return BlkStatus.OK if whole and able and count else BlkStatus.ZONE_INVALID_CMD

    def erased(self, sector: int, count: int) -> None:
        """The content of these zones, which was not refused, is gone."""
        for zone in self._touched(sector, count):
            self._move(zone, EMPTY)

    def degrade(self, sector: int, state: ZoneState) -> None:
        """The medium fails: the zone that holds `sector` becomes RDONLY or OFFLINE. Raises UsageError if it cannot."""
        zone = self.at(sector)
        if zone is None or zone.state not in FAILURES.get(state, ()):
            raise UsageError(f"there is no zone at sector {sector} that could become {state.name}")
        self._move(zone, state)

    # States and resources

    def count(self, states: frozenset[ZoneState]) -> int:
        """How many zones are in one of these states."""
        return sum(self._counts[state] for state in states)

    def _lacking(self, zone: Zone) -> BlkStatus:
        """Which resource a zone lacks to be open, or OK. Where both are lacking, it is the active one."""
        if zone.state not in ACTIVE and 0 < self.max_active <= self.count(ACTIVE):
            return BlkStatus.ZONE_ACTIVE_RESOURCE
        if zone.state not in OPEN and 0 < self.max_open <= self._counts[EOPEN]:
            return BlkStatus.ZONE_OPEN_RESOURCE
        return BlkStatus.OK

    def _move(self, zone: Zone, state: ZoneState) -> None:
        if state in OPEN and zone.state not in OPEN and 0 < self.max_open <= self.count(OPEN):
            self._move(next(iter(self._implicit.values())), CLOSED)
        self._implicit.pop(zone.start, None)
        self._counts[zone.state] -= 1
        self._counts[state] += 1
        zone.state = state
        if state == IOPEN:
            self._implicit[zone.start] = zone
        if state == EMPTY:
            zone.wp = zone.start
        self._changed(zone)


def _possible(zone: Zone, state: ZoneState, wp: int) -> bool:
    """Whether a zone can come to be in a state, with its write pointer there."""
    if (zone.type == ZoneType.CONV) != (state == ZoneState.NOT_WP) or not zone.start <= wp <= zone.end:
        return False
    return state != EMPTY or wp == zone.start


def _crosses(touched: Sequence[Zone]) -> bool:
    """Whether a range goes over the edge of a Sequential Write Required zone."""
    return len(touched) > 1 and any(zone.type == ZoneType.SWR for zone in touched)
