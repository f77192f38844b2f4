"""What a picture of a ring is made of: the values that `rings.trace` finds and `rings.drawing` draws.

Everything here is a copy. A picture stays true to the moment at which it was taken, and holds no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from attrs import asdict, evolve, frozen

from virtio_py.rings.faults import FAULTS


@frozen
class Problem:
    """Something that the specification does not allow, or that makes no sense.

    clause: its id in `spec_notes/clauses.tsv`, or "" where none covers it; where: the place, in words.
    """

    clause: str
    where: str
    message: str


def problem(code: int, layout: str, where: str, *, id: int = 0, at: int = 0) -> Problem:  # noqa: A002
    """The problem that a kernel would report with `code`, in the kernel's words: one table serves both."""
    found = FAULTS[code]
    return Problem(found.split if layout == "split" else found.packed, where, found.message.format(id=id, at=at))


OWNERS: Final = {
    "free": "driver",
    "used": "driver",
    "available": "device",
    "taken": "device",
    "device": "device",
    "unknown": "unknown",
}
"""Who may touch a descriptor in each state."""


@frozen
class Descriptor:
    """One descriptor, of the ring or of an indirect table.

    link: `next` (split) or `id` (packed); owner: "driver", "device", or "unknown" where bytes alone cannot tell;
    state: "free", "available", "taken" (by the device), "used" (and not taken back) or "device" (available or taken);
    chain: the number of the chain it belongs to; indirect: the entries of the table that it points to.
    """

    index: int
    addr: int
    len: int
    link: int
    flags: int
    flag_names: tuple[str, ...]
    owner: str = "driver"
    state: str = "free"
    chain: int | None = None
    indirect: tuple[Descriptor, ...] = ()

    def belonging(self, state: str, chain: int | None = None, table: Iterable[Descriptor] = ()) -> Descriptor:
        """This descriptor in this state, as a part of a chain; so are the entries of its table."""
        entries = tuple(entry.belonging(state, chain) for entry in table)
        return evolve(self, state=state, owner=OWNERS[state], chain=chain, indirect=entries)


@frozen
class Entry:
    """One slot of a split ring's available or used ring.

    position: the free-running index it holds now, of those that `idx` covers; length: used length in bytes;
    current: whether the other side has yet to look at it, as far as is known; chain: number of the chain it names.
    """

    slot: int
    position: int
    id: int
    length: int | None
    current: bool
    chain: int | None


@frozen
class Mark:
    """A position in a ring. ring: "descriptors" (packed), "available" or "used" (split).

    wrap: the wrap counter that goes with it (packed); value: the free-running index (split).
    """

    ring: str
    name: str
    slot: int
    wrap: int | None = None
    value: int | None = None


@frozen
class ChainPicture:
    """A buffer that is with the device, or on its way back.

    id: head (split) or buffer id (packed); descriptors: the ring's slots it takes, as far as they can still be seen;
    readable, writable: bytes; state: as of its descriptors; certain: False where the bytes leave a choice.
    """

    number: int
    id: int
    state: str
    descriptors: tuple[int, ...]
    readable: int
    writable: int
    certain: bool = True


@frozen
class Suppression:
    """What one side wants to be told. side: who wrote it; raw: the fields as they stand; meaning: in words."""

    side: str
    raw: dict[str, int]
    meaning: str


@frozen
class RingPicture:
    """A virtqueue at one moment.

    layout: "split" or "packed"; seen_by: "driver" or "device" (with their private positions), or "memory" (bytes
    alone, from which some things are inferred); exact: False where that left a choice; outstanding: buffers available
    and not yet used, None where the bytes do not tell.
    """

    layout: str
    size: int
    seen_by: str
    exact: bool
    outstanding: int | None
    descriptors: tuple[Descriptor, ...]
    chains: tuple[ChainPicture, ...]
    available: tuple[Entry, ...]
    used: tuple[Entry, ...]
    marks: tuple[Mark, ...]
    suppression: tuple[Suppression, ...]
    problems: tuple[Problem, ...]

    def marks_of(self, ring: str) -> Iterator[Mark]:
        """The positions in one ring."""
        return (mark for mark in self.marks if mark.ring == ring)

    def mark(self, name: str) -> Mark | None:
        """The position of this name, if it is known."""
        return next((mark for mark in self.marks if mark.name == name), None)

    def ids(self, *states: str) -> list[int]:
        """The ids of the chains in one of these states, in their order."""
        return [chain.id for chain in self.chains if chain.state in states]

    def as_dict(self) -> dict[str, Any]:
        """Nested dicts and lists: what JSON can carry."""
        plain: dict[str, Any] = asdict(self)
        return plain
