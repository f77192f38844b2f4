"""What the pictures of both layouts share: where a ring lies and what is known of it, and a chain under inspection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntFlag
from typing import Any, Final

from attrs import define, field, frozen

from virtio_py.memory import GuestMemory
from virtio_py.rings.engine import REFERENCE
from virtio_py.rings.kernels import Memory, locate, mapped
from virtio_py.rings.kernels import common as k
from virtio_py.rings.picture import ChainPicture, Descriptor, Problem, problem
from virtio_py.rings.places import LAYOUTS
from virtio_py.rings.queue import MAX_CHAIN, Held, QueueState
from virtio_py.spec import Feature, bit

STEPS_MAX: Final = 1 << 16
"""Descriptors that one picture follows in all. Chains may share descriptors and tables: a driver could have us follow
size * size of them."""


@frozen
class Source:
    """A ring to be drawn: where it lies, and what one of its sides knows of it besides.

    areas: guest addresses of the descriptor, driver and device areas; features: mask of what was negotiated, None if
    that is not known; complete: whether `memory` is all there is, so that an address outside is a fault;
    seen_by: "driver", "device" or "memory"; state: that side's positions; held: the buffers which
    that side has outstanding (driver) or taken (device), by id.
    """

    layout: str
    size: int
    memory: GuestMemory
    areas: tuple[int, int, int]
    features: int | None = None
    complete: bool = True
    seen_by: str = "memory"
    state: QueueState = field(factory=QueueState)
    held: Mapping[int, Held] = field(factory=dict)

    def read_areas(self) -> list[bytes]:
        """Copies of the three areas, each read once. Raises MemoryFault."""
        parts = LAYOUTS[self.layout].parts(self.size)
        return [self.memory.read(at, part.size) for at, part in zip(self.areas, parts, strict=True)]

    def misaligned(self) -> Iterator[Problem]:
        """The areas that are not where the specification allows them."""
        layout = LAYOUTS[self.layout]
        names = ("descriptor area", "driver area", "device area")
        for name, at, part in zip(names, self.areas, layout.parts(self.size), strict=True):
            if at % part.align:
                yield Problem(layout.alignment, name, f"address {at:#x} is not a multiple of {part.align}")

    def has(self, feature: Feature) -> bool | None:
        """Whether a feature was negotiated; None if that is not known."""
        return None if self.features is None else bool(self.features & bit(feature))


@define
class Survey:
    """A picture in the making: the memory as kernels translate with it, the steps that are left, what is wrong."""

    source: Source
    guest: Memory = field(init=False)
    steps: int = field(default=STEPS_MAX, init=False)
    problems: dict[Problem, None] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.guest = REFERENCE.memory(self.source.memory)

    def step(self) -> bool:
        """Takes one step; False, and a word about it, if there is none left."""
        self.steps -= 1
        if self.steps == 0:
            self.say("", "", f"no more than {STEPS_MAX} descriptors are followed for one picture")
        return self.steps > 0

    def say(self, clause: str, where: str, message: str) -> None:
        """Something is wrong; the same thing is said once."""
        self.problems[Problem(clause, where, message)] = None

    def report(self, code: int, where: str, *, id: int = 0, at: int = 0) -> None:  # noqa: A002
        """Something is wrong that a kernel would find too."""
        self.problems[problem(code, self.source.layout, where, id=id, at=at)] = None


@define
class Walk:
    """A chain being followed, descriptor by descriptor: what it holds. `id` is only for what is said of it."""

    survey: Survey
    id: int
    index: list[int] = field(factory=list)
    tables: dict[int, tuple[Descriptor, ...]] = field(factory=dict)
    segments: int = 0
    readable: int = 0
    writable: int = 0
    writing: bool = False

    @property
    def source(self) -> Source:
        """The ring."""
        return self.survey.source

    def report(self, code: int, where: str, at: int = 0) -> None:
        """Something is wrong with this chain."""
        self.survey.report(code, where, id=self.id, at=at)

    def segment(self, where: str, at: int, descriptor: Any) -> bool:
        """A descriptor that names bytes, not a table. False when the chain is longer than any device follows."""
        write, length = bool(descriptor.flags & k.F_WRITE), descriptor.len
        if length and self.source.complete and not mapped(self.survey.guest, descriptor.addr, length, int(write)):
            self.report(k.NOT_MEMORY, where, at)
        if self.writing and not write:
            self.report(k.ORDER, where, at)
        self.segments += 1
        self.writing |= write
        self.writable += length if write else 0
        self.readable += 0 if write else length
        if self.readable + self.writable > k.MAX_CHAIN_BYTES:
            self.report(k.TOO_MANY_BYTES, "")
        if self.segments > self.source.size:
            self.report(k.TOO_LONG, "")
        return self.segments <= max(self.source.size, MAX_CHAIN)

    def table(self, where: str, address: int, length: int) -> memoryview | None:
        """The bytes of an indirect table, not a copy, or None if it cannot be read."""
        if self.source.has(Feature.INDIRECT_DESC) is False:
            self.report(k.INDIRECT_NOT_NEGOTIATED, where, length)
        if length == 0 or length % k.DESC_SIZE:
            self.report(k.INDIRECT_SIZE, where, length)
            return None
        if locate(self.survey.guest, address, length) < 0:
            if self.source.complete:
                self.report(k.TABLE_NOT_MEMORY, where, length)
            return None
        return self.source.memory.view(address, length)

    def chain(self, number: int, state: str, certain: bool = True) -> ChainPicture:
        """What was found."""
        return ChainPicture(number, self.id, state, tuple(self.index), self.readable, self.writable, certain)


def flag_names(kind: type[IntFlag], flags: int) -> tuple[str, ...]:
    """The names of the bits set in `flags`, bits without a name as a number."""
    names = tuple(flag.name for flag in kind if flags & flag and flag.name)
    rest = flags & ~sum(kind)
    return (*names, f"{rest:#x}") if rest else names
