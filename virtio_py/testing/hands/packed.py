"""A packed queue's half that is written by hand (2.8)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from virtio_py.memory import GuestMemory
from virtio_py.rings.layouts import pvirtq_desc, pvirtq_event_suppress
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import PackedDescFlag, RingEventFlag
from virtio_py.testing.endings import Skipped
from virtio_py.testing.hands.hand import WRITE, Descriptor, Hand, Used, linked

_NO_ID: Final = 0xBAD1
"""The id in a descriptor that has none."""


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
        self.held[ident] = self._list(ident, descriptors)
        return ident

    def force(self, ident: int, *descriptors: Descriptor) -> None:
        self._list(ident, descriptors)
        self.publish()

    def _list(self, ident: int, descriptors: Sequence[Descriptor]) -> tuple[int, ...]:
        slots = []
        for n, descriptor in enumerate(linked(descriptors)):
            slots.append(self.at)
            marked = descriptor._replace(flags=descriptor.flags | self.ownership())
            # Only the last descriptor of a list has the buffer id (2.8.5); the others' mean nothing.
            self.raw(marked, ident if n == len(descriptors) - 1 else _NO_ID, hidden=not self.staged)
        return tuple(slots)

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

    @property
    def any_used(self) -> bool:
        mark = PackedDescFlag.AVAIL | PackedDescFlag.USED
        return self.flags_at(self.used_at) & mark == (mark if self.used_wrap else 0)

    def used(self) -> list[Used]:
        done: list[Used] = []
        while self.held and self.any_used:
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
