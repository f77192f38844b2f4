"""A split queue's half that is written by hand (2.7)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from virtio_py.memory import GuestMemory
from virtio_py.rings.layouts import virtq_avail, virtq_used, virtq_used_elem
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import AvailFlag
from virtio_py.testing.endings import Failed, Skipped
from virtio_py.testing.hands.hand import POISON, Descriptor, Hand, Used, linked


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
        self._link(slots, descriptors)
        self.held[slots[0]] = slots
        return slots[0]

    def force(self, ident: int, *descriptors: Descriptor) -> None:
        self._link(range(ident, ident + len(descriptors)), descriptors)
        self.publish()

    def _link(self, slots: Sequence[int], descriptors: Sequence[Descriptor]) -> None:
        for slot, descriptor, following in zip(slots, linked(descriptors), [*slots[1:], 0], strict=True):
            self.put(slot, descriptor, following)
        self.head(slots[0])

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

    @property
    def any_used(self) -> bool:
        return self.device[self._used.offset("idx") // 2] != self.seen

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
