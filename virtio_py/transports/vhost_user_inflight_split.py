"""Inflight tracking of a split virtqueue.

A kill stops the back-end between any two stores. What each order is for:

    taken      counter, then inflight     A buffer that is marked has its place in the order. One that is not marked is
                                          in the available ring still: the next back-end takes it from there.
    used       next, last_batch_head      The list must be whole before used.idx says that its buffers are used.
               used.idx                   From here on the driver has them; with used_idx behind, the list is believed
                                          and the marks are not. Before, the marks are believed and the list is not.
               inflight, of all           Killed amid these: used_idx is behind still, the list takes the rest away.
               used_idx                   Marks and ring agree again, and the list may be begun anew.

The region does not say where the device takes next, and need not: the buffers that are marked are those that were
taken since used.idx was 0 and are not counted in it, so their number is the distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from virtio_py.errors import MessageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.inflight import Tracker, Unfinished
from virtio_py.rings.queue import DeviceQueue, QueueState
from virtio_py.transports.vhost_user_inflight_layout import SPLIT_CELLS, VERSION, Part

COUNTER_MASK: Final = (1 << 64) - 1


class SplitTracker(Tracker):
    """One split queue's account. What it goes by after `begin` is its own memory: the front-end can write the region.

    view: the queue's part of the region; desc_num: its entries.
    """

    def __init__(self, view: memoryview, desc_num: int) -> None:
        self._part = Part(view, SPLIT_CELLS)
        self._desc_num = desc_num
        self._counter = self._used_idx = self._last = 0
        self.unfinished: Sequence[Unfinished] = ()

    def begin(self, state: QueueState, size: int, flags: Callable[[int], int]) -> QueueState:
        """Where to go on; `unfinished` then is what was left. state: where a queue without a past is to begin, and
        used.idx; size: of the queue. Raises MessageError for a part that no back-end leaves."""
        self.unfinished = ()
        if self._part.get("version") == 0:
            self._initialise(state.next_used)
            return state
        self._finish_last_batch(state.next_used)
        marked = [i for i in range(self._desc_num) if self._part.get("desc.inflight", i)]
        left = sorted((self._part.get("desc.counter", i), i) for i in marked)
        if any(i >= size for _, i in left):
            raise MessageError(f"a buffer is inflight whose id is not below {size}")
        self._counter = left[-1][0] + 1 & COUNTER_MASK if left else 0
        self.unfinished = [Unfinished(i) for _, i in left]
        return QueueState((state.next_used + len(left)) & 0xFFFF, state.next_used)

    def _initialise(self, used_idx: int) -> None:
        for i in range(self._desc_num):
            self._part.set("desc.inflight", 0, i)
        self._counter, self._used_idx, self._last = 0, used_idx, 0
        self._part.set("desc_num", self._desc_num)
        self._part.set("used_idx", used_idx)
        # Last: whoever is killed before this has left a part that nobody has written to.
        self._part.set("version", VERSION)

    def _finish_last_batch(self, used_idx: int) -> None:
        part = self._part
        check_part(part, self._desc_num)
        batch = (used_idx - part.get("used_idx")) & 0xFFFF
        self._last = head = part.get("last_batch_head")
        if batch > self._desc_num:
            raise MessageError(f"the last batch was of {batch} buffers, of {self._desc_num}")
        for _ in range(batch):
            if head >= self._desc_num:
                raise MessageError(f"the last batch has buffer {head}, of {self._desc_num}")
            part.set("desc.inflight", 0, head)
            head = part.get("desc.next", head)
        self._used_idx = used_idx
        part.set("used_idx", used_idx)

    def taken(self, queue: DeviceQueue, chains: Sequence[Chain], first: int) -> None:
        """See Tracker."""
        for chain in chains:
            self._part.set("desc.counter", self._counter, chain.id)
            self._counter = self._counter + 1 & COUNTER_MASK
            self._part.set("desc.inflight", 1, chain.id)

    def finish(self, chains: Sequence[Chain], publish: Callable[[Sequence[Chain]], None]) -> None:
        """See Tracker. One batch: used.idx covers all of it with one store."""
        for chain in chains:
            self._part.set("desc.next", self._last, chain.id)
            self._last = chain.id
            self._part.set("last_batch_head", chain.id)
        publish(chains)
        for chain in chains:
            self._part.set("desc.inflight", 0, chain.id)
        self._used_idx = self._used_idx + len(chains) & 0xFFFF
        self._part.set("used_idx", self._used_idx)

    def put_back(self, chains: Sequence[Chain]) -> None:
        """See Tracker. Each store takes one from the distance: the newest, which is where the device takes next."""
        for chain in chains:
            self._part.set("desc.inflight", 0, chain.id)

    def forget(self) -> None:
        """The queue begins anew: nothing is inflight."""
        self._part.set("version", 0)


def check_part(part: Part, desc_num: int) -> None:
    """Raises MessageError unless a part that is in use is of our version and size."""
    version, entries = part.get("version"), part.get("desc_num")
    if version != VERSION:
        raise MessageError(f"the inflight region has version {version}, not {VERSION}")
    if entries != desc_num:
        raise MessageError(f"the inflight region has {entries} entries a queue, not {desc_num}")
