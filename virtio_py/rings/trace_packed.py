"""What there is to see in a packed virtqueue (2.8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import pvirtq_desc
from virtio_py.rings.owners_packed import VIEWS, Found, PackedCopy, packed_descriptor
from virtio_py.rings.picture import ChainPicture, Descriptor, Mark, RingPicture, Suppression
from virtio_py.rings.trace_walk import Source, Walk
from virtio_py.spec import Feature, PackedDescFlag, RingEventFlag


def packed_picture(source: Source) -> RingPicture:
    """The picture of a packed ring. Raises MemoryFault for areas that are not memory, and nothing else."""
    ring = PackedCopy.of(source)
    for misplaced in source.misaligned():
        ring.survey.problems[misplaced] = None
    found = VIEWS[source.seen_by](ring)
    chains = tuple(draw_chains(ring, found))
    suppression = tuple(wish(ring, side, *wishes) for side, wishes in ring_events(ring).items())
    known = len([chain for chain in chains if chain.state != "used" or source.seen_by == "driver"])
    return RingPicture(
        layout="packed",
        size=ring.size,
        seen_by=source.seen_by,
        exact=found.exact,
        outstanding=known if found.exact else None,
        descriptors=tuple(ring.rows),
        chains=chains,
        available=(),
        used=(),
        marks=(*found.marks, *event_marks(ring)),
        suppression=suppression,
        problems=tuple(ring.survey.problems),
    )


# Chains -------------------------------------------------------------------------------------------------------------


def draw_chains(ring: PackedCopy, found: Found) -> Iterator[ChainPicture]:
    """All chains, numbered from 1; each slot learns its state and its chain."""
    for slot, state in found.slots.items():
        ring.rows[slot] = ring.rows[slot].belonging(state)
    number = 0
    for number, (ident, state) in enumerate(found.hidden, start=1):
        yield ChainPicture(number, ident, state, (), 0, ring.source.held[ident].writable)
    for later, (run, state) in enumerate(found.lists, start=number + 1):
        walk = Walk(ring.survey, ring.rows[run[-1]].link, index=run)
        follow(walk, ring, run)
        yield walk.chain(later, state, certain=walk.id not in found.doubted)
        for slot in run:
            ring.rows[slot] = ring.rows[slot].belonging(state, later, walk.tables.get(slot, ()))


def follow(walk: Walk, ring: PackedCopy, run: list[int]) -> None:
    """Takes a list, and the indirect table of one that has it, into the walk."""
    for slot in run:
        row, where = ring.rows[slot], f"descriptor {slot}"
        if not row.flags & PackedDescFlag.INDIRECT:
            walk.segment(where, slot, row)
            continue
        if row.flags & PackedDescFlag.NEXT or len(run) > 1:
            walk.report(k.INDIRECT_NEXT, where)
        table = walk.table(where, row.addr, row.len)
        if table is not None:
            walk.tables[slot] = tuple(table_entries(walk, table, slot))


def table_entries(walk: Walk, table: memoryview, slot: int) -> Iterator[Descriptor]:
    """The entries of an indirect table: all of it, in sequence."""
    for index in range(len(table) // pvirtq_desc.size):
        entry = packed_descriptor(table, index)
        where = f"entry {index} of descriptor {slot}'s indirect table"
        if entry.flags & ~PackedDescFlag.WRITE:
            clause, names = "packed.driver.indirect-descriptors.2", " ".join(entry.flag_names)
            walk.survey.say(clause, where, f"flags are {names}, of which only WRITE is allowed here")
        yield entry
        if not walk.survey.step() or not walk.segment(where, index, entry):
            return


# Positions and event suppression (2.8.10) ---------------------------------------------------------------------------


def ring_events(ring: PackedCopy) -> dict[str, tuple[str, Any]]:
    """The two event suppression structures by who writes them."""
    return {"driver": ("driver area", ring.driver_event), "device": ("device area", ring.device_event)}


def event_marks(ring: PackedCopy) -> Iterator[Mark]:
    """The slots that the two sides ask to be told of."""
    for side, (_, event) in ring_events(ring).items():
        if event.flags.desc_event_flags == RingEventFlag.DESC:
            yield Mark("descriptors", f"{side} event", event.desc.desc_event_off, wrap=event.desc.desc_event_wrap)


def wish(ring: PackedCopy, side: str, where: str, event: Any) -> Suppression:
    """What an event suppression structure asks for."""
    mode, off, wrap = event.flags.desc_event_flags, event.desc.desc_event_off, event.desc.desc_event_wrap
    by_slot = mode == RingEventFlag.DESC
    if by_slot and off >= ring.size:
        ring.survey.say("", where, f"the event is at descriptor {off}, which the ring does not have")
    if by_slot and ring.source.has(Feature.EVENT_IDX) is False:
        ring.survey.say("", where, "RING_EVENT_FLAGS_DESC without VIRTIO_F_EVENT_IDX")
    if mode not in set(RingEventFlag):
        ring.survey.say("", where, f"the event flags are {mode}, a reserved value")
    meanings = {
        RingEventFlag.ENABLE: "notify of each buffer",
        RingEventFlag.DISABLE: "no notification",
        RingEventFlag.DESC: f"notify when descriptor {off} (wrap {wrap}) is passed",
    }
    raw = {"desc_event_off": off, "desc_event_wrap": wrap, "desc_event_flags": mode}
    return Suppression(side, raw, meanings.get(mode, "reserved"))
