"""Notification coalescing (5.1.6.5.9): used buffer notifications that are held back until enough packets have passed,
or enough time.

A queue's count begins with the first packet after a notification was due. It is due after `max_packets`, after
`max_usecs`, or, where one of them is 0, at once. Whether the driver then wants to hear of it is asked only then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from attrs import define, field

from virtio_py.devices.net.counters import Coalescing
from virtio_py.watch import Timer, Watch

_SECOND: Final = 1_000_000
"""Microseconds."""


@define(eq=False)
class Moderation:
    """What is held back of one device's queues, by their indices. `release` sends the notification of a queue."""

    release: Callable[[int], None]
    _since: dict[int, int] = field(factory=dict, init=False)
    _passed: dict[int, int] = field(factory=dict, init=False)
    _held: dict[int, Watch] = field(factory=dict, init=False)

    def holds(self, index: int, limits: Coalescing, packets: int) -> bool:
        """Whether the notification of a queue, which has passed so many packets altogether, has to wait."""
        self._passed[index] = packets
        waits = bool(limits.max_usecs) and packets - self._since.get(index, 0) < limits.max_packets
        if not waits:
            self._since[index] = packets
            self._held.pop(index, None)
        elif index not in self._held:
            timer = Timer(limits.max_usecs / _SECOND)
            self._held[index] = Watch(-1, 0, lambda: self._due(index), timer)
        return waits

    def _due(self, index: int) -> None:
        self._since[index] = self._passed[index]
        self.forget(index)
        self.release(index)

    def recheck(self, limits_of: Callable[[int], tuple[Coalescing, int]]) -> None:
        """The parameters have changed: sends what is due by the new ones, of which `limits_of` tells with the packets
        of a queue. The time of what is not begins anew."""
        for index in list(self._held):
            del self._held[index]
            if not self.holds(index, *limits_of(index)):
                self.release(index)

    def forget(self, index: int) -> None:
        """Nothing of a queue is held any more."""
        self._held.pop(index, None)

    def watch(self) -> Sequence[Watch]:
        """The times that are waited for."""
        return list(self._held.values())
