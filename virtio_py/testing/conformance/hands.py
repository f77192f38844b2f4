"""A driver's half of a queue that is written by hand: it writes what it is told, legal or not, and checks what comes.

`DriverQueue` allocates the areas and is what a carrier is told of; nothing else of it is used. Words that both sides
touch are read and written in one piece, through cast views.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from virtio_py.memory import GuestMemory
from virtio_py.rings.layouts import (
    pvirtq_desc,
    pvirtq_event_suppress,
    virtq_avail,
    virtq_desc,
    virtq_used,
    virtq_used_elem,
)
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import AvailFlag, Feature, PackedDescFlag, RingEventFlag, VirtqDescFlag
from virtio_py.testing.conformance.verdicts import Failed, Skipped

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


class SplitHand(Hand):
    """The split layout (2.7). published, seen: the free-running indices of what was exposed, and found used."""

    def __init__(self, queue: DriverQueue, memory: GuestMemory) -> None:
        super().__init__(queue, memory)
        self._avail, self._used = virtq_avail(self.size), virtq_used(self.size)
        self.driver = memory.view(queue.driver_area, self._avail.size).cast("H")
        self.device = memory.view(queue.device_area, self._used.size).cast("H")
        self.published = self.seen = 0
        self._staged: list[int] = []
        self._slots = deque(range(self.size))
        for n in range(self.size):
            self.poison(n)

    def poison(self, n: int) -> None:
        """Fills a used element with what no device writes."""
        self.memory.write(self._element(n), virtq_used_elem.encode(id=POISON, len=POISON))

    def _element(self, n: int) -> int:
        return self.queue.device_area + self._used.offset("ring") + n % self.size * virtq_used_elem.size

    def word(self, name: str) -> int:
        """The index into `driver` of a field of the available ring."""
        return self._avail.offset(name) // 2

    @property
    def flags(self) -> int:
        """`flags` of the used ring."""
        return self.device[self._used.offset("flags") // 2]

    def stage(self, *descriptors: Descriptor) -> int:
        if len(descriptors) > len(self._slots):
            raise Skipped(f"{len(descriptors)} descriptors do not fit a queue of {self.size}")
        slots = tuple(self._slots.popleft() for _ in descriptors)
        for n, (slot, (address, length, flags)) in enumerate(zip(slots, descriptors, strict=True)):
            last = n == len(slots) - 1
            self.put(slot, Descriptor(address, length, flags | (0 if last else NEXT)), 0 if last else slots[n + 1])
        self.head(slots[0])
        self.held[slots[0]] = slots
        return slots[0]

    def head(self, head: int) -> None:
        """Stages a head that may be of no chain."""
        self.driver[self.word("ring") + (self.published + len(self._staged)) % self.size] = head & 0xFFFF
        self._staged.append(head)

    def publish(self) -> None:
        self.jump(self.published + len(self._staged))
        self._staged.clear()

    def jump(self, idx: int) -> None:
        """Stores the available index."""
        self.published = idx & 0xFFFF
        self.driver[self.word("idx")] = self.published

    def used(self) -> list[Used]:
        idx = self.device[self._used.offset("idx") // 2]
        count = idx - self.seen & 0xFFFF
        if count > len(self.held) and not self.lenient:
            raise Failed(f"the used index went from {self.seen} to {idx} with {len(self.held)} buffers exposed")
        done: list[Used] = []
        left = min(count, self.size)
        while left > 0:
            element = virtq_used_elem.decode(self.memory.read(self._element(self.seen), virtq_used_elem.size))
            finished = self._finish(element.id, element.len)
            self.poison(self.seen)
            # A batch in order may take one element for all; the index counts buffers.
            step = max(1, len(finished))
            self.seen, left = self.seen + step & 0xFFFF, left - step
            done += finished
        return done

    def _finish(self, ident: int, length: int | None) -> list[Used]:
        if POISON in (ident, length) and not self.lenient:
            raise Failed(
                f"used element {self.seen} is not written, and the index is past it", clause="split.device.used-ring.1"
            )
        return super()._finish(ident, length)

    def _free(self, slots: tuple[int, ...]) -> None:
        self._slots.extend(slots)

    def notify_always(self) -> None:
        self.driver[self.word("flags")] = 0
        self.driver[self.word("used_event")] = self.seen

    def notify_never(self) -> None:
        self.driver[self.word("flags")] = 0 if self.event_idx else int(AvailFlag.NO_INTERRUPT)
        self.driver[self.word("used_event")] = self.seen - 1 & 0xFFFF

    def notify_at(self, n: int) -> None:
        self.driver[self.word("used_event")] = self.seen + n & 0xFFFF


class PackedHand(Hand):
    """The packed layout (2.8). at, wrap: the next slot to fill; used_at, used_wrap: the next to be used."""

    def __init__(self, queue: DriverQueue, memory: GuestMemory) -> None:
        super().__init__(queue, memory)
        self._flags = memory.view(queue.descriptor_area, pvirtq_desc.size * self.size).cast("H")
        self._events = memory.view(queue.driver_area, pvirtq_event_suppress.size).cast("H")
        self.device = memory.view(queue.device_area, pvirtq_event_suppress.size).cast("H")
        self.at = self.used_at = 0
        self.wrap = self.used_wrap = 1
        self.staged: list[tuple[int, int]] = []
        self._ids = deque(range(self.size))

    def ownership(self) -> int:
        """AVAIL and USED as they make a descriptor available in this lap."""
        return int(PackedDescFlag.AVAIL if self.wrap else PackedDescFlag.USED)

    def stage(self, *descriptors: Descriptor) -> int:
        if len(descriptors) > self.size - sum(map(len, self.held.values())):
            raise Skipped(f"{len(descriptors)} descriptors do not fit a queue of {self.size}")
        ident = self._ids.popleft()
        slots = []
        for n, (address, length, flags) in enumerate(descriptors):
            slots.append(self.at)
            marked = flags | (NEXT if n < len(descriptors) - 1 else 0) | self.ownership()
            self.raw(Descriptor(address, length, marked), ident, hidden=not self.staged)
        self.held[ident] = tuple(slots)
        return ident

    def raw(self, descriptor: Descriptor, ident: int, hidden: bool = False) -> None:
        """The next slot, with all flags as given. hidden: only `publish` stores its flags."""
        if hidden:
            self.staged.append((self.at, descriptor.flags))
            descriptor = descriptor._replace(flags=self.flags_at(self.at))
        self.put(self.at, descriptor, ident)
        self.at += 1
        if self.at == self.size:
            self.at, self.wrap = 0, self.wrap ^ 1

    def flags_at(self, slot: int) -> int:
        """The flags of a slot as they are."""
        return self._flags[self._flag(slot)]

    def _flag(self, slot: int) -> int:
        return (slot * pvirtq_desc.size + pvirtq_desc.offset("flags")) // 2

    def publish(self) -> None:
        for slot, flags in self.staged:
            self._flags[self._flag(slot)] = flags
        self.staged.clear()

    def used(self) -> list[Used]:
        done: list[Used] = []
        mark = PackedDescFlag.AVAIL | PackedDescFlag.USED
        while self.held:
            flags = self.flags_at(self.used_at)
            if flags & mark != (mark if self.used_wrap else 0):
                break
            at = self.queue.descriptor_area + self.used_at * pvirtq_desc.size
            element = pvirtq_desc.decode(self.memory.read(at, pvirtq_desc.size))
            if element.id not in self.held and self.lenient:
                self._skip(1)
            # Without WRITE nothing was written, and the length is reserved (2.8.4).
            done += self._finish(element.id, element.len if element.flags & WRITE else 0)
        return done

    def _free(self, slots: tuple[int, ...]) -> None:
        self._skip(len(slots))

    def _skip(self, count: int) -> None:
        self.used_at += count
        if self.used_at >= self.size:
            self.used_at, self.used_wrap = self.used_at - self.size, self.used_wrap ^ 1

    def _finish(self, ident: int, length: int | None) -> list[Used]:
        done = super()._finish(ident, length)
        self._ids.extend(other for other, _ in done)
        return done

    def _event(self, flag: RingEventFlag, desc: int = 0) -> None:
        self._events[pvirtq_event_suppress.offset("desc") // 2] = desc
        self._events[pvirtq_event_suppress.offset("flags") // 2] = int(flag)

    def notify_always(self) -> None:
        self._event(RingEventFlag.ENABLE)

    def notify_never(self) -> None:
        self._event(RingEventFlag.DISABLE)

    def notify_at(self, n: int) -> None:
        slot, wrap = self.used_at + n, self.used_wrap
        if slot >= self.size:
            slot, wrap = slot - self.size, wrap ^ 1
        desc = pvirtq_event_suppress.field("desc").register
        assert desc is not None
        self._event(RingEventFlag.DESC, desc.join({"desc_event_off": slot, "desc_event_wrap": wrap}))


def make_hand(queue: DriverQueue, memory: GuestMemory) -> Hand:
    """The hand for a queue's layout."""
    return {"split": SplitHand, "packed": PackedHand}[queue.layout](queue, memory)


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
