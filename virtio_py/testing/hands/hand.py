"""A driver's half of a queue that is written by hand: it writes what it is told, legal or not, and checks what comes.

`DriverQueue` allocates the areas and is what a carrier is told of; nothing else of it is used. Words that both sides
touch are read and written in one piece, through cast views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from virtio_py.memory import GuestMemory
from virtio_py.rings.layouts import pvirtq_desc, virtq_desc
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import Feature, VirtqDescFlag
from virtio_py.testing.endings import Failed

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

    def force(self, ident: int, *descriptors: Descriptor) -> None:
        """A chain under this id, free or not, published; the hand does not expect it back."""
        raise NotImplementedError

    @property
    def any_used(self) -> bool:
        """Whether the device has used something that `used` was not asked for yet."""
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
        at = self.queue.descriptor_area + slot * virtq_desc.size
        self.memory.write(at, encoded(self.queue.layout, descriptor, other))

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


def encoded(layout: str, descriptor: Descriptor, other: int = 0) -> bytes:
    """The 16 bytes of a descriptor as it is given. other: `next` (split) or `id` (packed)."""
    record, name = (virtq_desc, "next") if layout == "split" else (pvirtq_desc, "id")
    address, length, flags = descriptor
    return record.encode(addr=address, len=length, flags=flags, **{name: other})


def linked(descriptors: Sequence[Descriptor]) -> list[Descriptor]:
    """The same with NEXT in all but the last."""
    last = len(descriptors) - 1
    return [Descriptor(a, n, flags | (NEXT if at < last else 0)) for at, (a, n, flags) in enumerate(descriptors)]


def table(entries: Sequence[Descriptor], layout: str) -> bytes:
    """An indirect table of a chain."""
    if layout == "packed":
        return b"".join(encoded(layout, entry) for entry in entries)
    following = [*range(1, len(entries)), 0]
    return b"".join(encoded(layout, entry, n) for entry, n in zip(linked(entries), following, strict=True))
