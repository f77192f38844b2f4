"""A virtqueue without a ring: deques and unbounded counts, no index, no slot, no wrap.

What a real queue does is compared with this. Notifications are decided by interval: a wish for the buffer with
number `event` is fulfilled by a publication that takes the count from at most `event` to beyond it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from attrs import define, field


@define
class Direction:
    """What one side has shown the other, and the other's wish to hear of it. Counts are from the beginning of time.

    event: the number it waits for, None for every one; decided: the count when a notification was last decided;
    lap: after so many a position comes again: then nobody can tell an old event from a new one, and may notify.
    """

    event_idx: bool
    split: bool
    lap: int
    shown: int = 0
    decided: int = 0
    seen: int = 0
    wanted: bool = True
    event: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.split and self.event_idx:
            self.event = 0

    def due(self) -> bool | None:
        """Whether a notification is due now for what was shown since the last decision; None: it is all the same."""
        old, self.decided = self.decided, self.shown
        if old == self.shown or not (self.wanted or (self.split and self.event_idx)):
            return False
        if self.event is None or old <= self.event < self.shown:
            return True
        return None if self.shown - old > self.lap or self.event <= self.shown - self.lap else False

    def wish(self, wanted: bool) -> None:
        """The other side asks for a notification of what it has not seen yet, or for none."""
        self.wanted = wanted
        if wanted and self.event_idx:
            self.event = self.seen


@define
class RingModel:
    """Buffers are anything hashable. `entries`: up to so many segments go to an indirect table, of one slot."""

    size: int
    split: bool
    in_order: bool
    event_idx: bool
    entries: int
    available: deque[Any] = field(factory=deque)
    taken: deque[Any] = field(factory=deque)
    done: set[Any] = field(factory=set)
    used: deque[Any] = field(factory=deque)
    slots: dict[Any, int] = field(factory=dict)
    to_device: Direction = field(init=False)
    to_driver: Direction = field(init=False)

    def __attrs_post_init__(self) -> None:
        lap = 1 << 16 if self.split else self.size
        self.to_device = Direction(self.event_idx, self.split, lap)
        self.to_driver = Direction(self.event_idx, self.split, lap)

    @property
    def free(self) -> int:
        """Slots that no buffer takes."""
        return self.size - sum(self.slots.values())

    def _weight(self, buffer: Any) -> int:
        return 1 if self.split else self.slots[buffer]

    def add(self, buffer: Any, segments: int) -> bool:
        """The driver makes a buffer available, if there is room."""
        slots = 1 if 1 < segments <= self.entries else segments
        if slots > self.free:
            return False
        self.slots[buffer] = slots
        self.available.append(buffer)
        self.to_device.shown += self._weight(buffer)
        return True

    def take(self, limit: int) -> list[Any]:
        """The device takes the oldest ones."""
        chains = [self.available.popleft() for _ in range(min(limit, len(self.available)))]
        self.to_device.seen += sum(map(self._weight, chains))
        self.taken += chains
        return chains

    def complete(self, buffers: list[Any]) -> None:
        """The device uses some it has taken; in order, those wait for the ones taken before them."""
        self.done.update(buffers)
        ready = buffers
        if self.in_order:
            ready = [b for n, b in enumerate(self.taken) if self.done.issuperset(list(self.taken)[: n + 1])]
        for buffer in ready:
            self.taken.remove(buffer)
            self.done.remove(buffer)
            self.used.append(buffer)
            self.to_driver.shown += self._weight(buffer)

    def take_used(self, count: int) -> list[Any]:
        """The driver takes the oldest used ones back."""
        back = [self.used.popleft() for _ in range(count)]
        self.to_driver.seen += sum(map(self._weight, back))
        for buffer in back:
            del self.slots[buffer]
        return back
