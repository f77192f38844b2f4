"""A driver's half of a queue that is written by hand: it writes what it is told, legal or not, and checks what comes.

`DriverQueue` allocates the areas and is what a carrier is told of; nothing else of it is used. Words that both sides
touch are read and written in one piece, through cast views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from virtio_py.memory import GuestMemory
from virtio_py.rings.layouts import (
    pvirtq_desc,
    virtq_desc,
)
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import Feature, VirtqDescFlag
from virtio_py.testing.conformance.verdicts import Failed

NEXT: Final = int(VirtqDescFlag.NEXT)
WRITE: Final = int(VirtqDescFlag.WRITE)
INDIRECT: Final = int(VirtqDescFlag.INDIRECT)
POISON: Final = 0xDEADBEEF
"""What stands in used elements that were not written yet."""


class Descriptor(NamedTuple):
    """What one descriptor says; NEXT and what publishes it are added."""

    address: int
    length: int
    flags: int = 0


class Used(NamedTuple):
    """A buffer that came back. length: used length in bytes, None where it was used with those behind it, in order."""

    id: int
    length: int | None


class Hand:
    """What the two layouts have in common. held: the buffers exposed, by id, with the slots that each takes.

    lenient: elements for what was never exposed are passed over, as after something hostile.
    """

    def __init__(self, queue: DriverQueue, memory: GuestMemory) -> None:
        self.queue: Final = queue
        self.memory: Final = memory
        self.size: Final = queue.size
        self.event_idx: Final = bool(queue.features >> Feature.EVENT_IDX & 1)
        self.held: dict[int, tuple[int, ...]] = {}
        self.lenient = False

    def add(self, *descriptors: Descriptor) -> int:
        """One chain, published; its id."""
        ident = self.stage(*descriptors)
        self.publish()
        return ident

    def stage(self, *descriptors: Descriptor) -> int:
        """A chain that the device cannot see before `publish`; its id."""
        raise NotImplementedError

    def publish(self) -> None:
        """Makes available what was staged, all at once."""
        raise NotImplementedError

    def used(self) -> list[Used]:
        """What was used since this was last asked. Raises Failed for what cannot be."""
        raise NotImplementedError

    def notify_always(self) -> None:
        """Asks for a notification of every used buffer."""
        raise NotImplementedError

    def notify_never(self) -> None:
        """Asks for none."""
        raise NotImplementedError

    def notify_at(self, n: int) -> None:
        """With VIRTIO_F_EVENT_IDX: asks for one when the n-th buffer from now is used, 0 being the next."""
        raise NotImplementedError

    def put(self, slot: int, descriptor: Descriptor, other: int = 0) -> None:
        """Writes a descriptor as it is given. other: `next` (split) or `id` (packed)."""
        record, name = (virtq_desc, "next") if self.queue.layout == "split" else (pvirtq_desc, "id")
        address, length, flags = descriptor
        data = record.encode(addr=address, len=length, flags=flags, **{name: other})
        self.memory.write(self.queue.descriptor_area + slot * record.size, data)

    def descriptors(self) -> bytes:
        """The descriptor area as it is."""
        return self.memory.read(self.queue.descriptor_area, virtq_desc.size * self.size)

    def _finish(self, ident: int, length: int | None) -> list[Used]:
        """A buffer is used; with VIRTIO_F_IN_ORDER those before it are, too."""
        if ident not in self.held:
            if self.lenient:
                return []
            raise Failed(f"id {ident} is used, and the buffers exposed are {sorted(self.held)}")
        before = list(self.held)[: list(self.held).index(ident)] if self.queue.in_order else []
        done = [Used(other, None) for other in before] + [Used(ident, length)]
        for other, _ in done:
            self._free(self.held.pop(other))
        return done

    def _free(self, slots: tuple[int, ...]) -> None:
        raise NotImplementedError


def table(entries: Sequence[Descriptor], layout: str) -> bytes:
    """An indirect table of a chain."""
    record, other = (virtq_desc, "next") if layout == "split" else (pvirtq_desc, "id")
    last = len(entries) - 1
    parts = []
    for n, (address, length, flags) in enumerate(entries):
        link = n < last and layout == "split"
        values = {"flags": flags | (NEXT if link else 0), other: n + 1 if link else 0}
        parts.append(record.encode(addr=address, len=length, **values))
    return b"".join(parts)
