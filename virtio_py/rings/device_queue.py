"""The device's half: registers that activate into a running queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from attrs import Factory, define, evolve, field

from virtio_py.errors import RingError, UsageError
from virtio_py.memory import GuestMemory
from virtio_py.rings.chain import Chain, Reader, Writer
from virtio_py.rings.engine import Engine
from virtio_py.rings.half import MAX_CHAIN, Extent, Half, QueueState
from virtio_py.rings.inflight import Tracker, Unfinished, take_up
from virtio_py.rings.kernels import Batch, Memory
from virtio_py.rings.kernels import common as k
from virtio_py.rings.places import device_ring
from virtio_py.rings.write_log import WriteLog
from virtio_py.spec import MAX_QUEUE_SIZE, Feature, bit


@define
class QueueConfig:
    """A virtqueue's registers, as transports set them. Addresses are guest addresses.

    size: the queue size the driver chose, max_size until then; state: where the queue is to begin; tracker: who keeps
    account of the buffers that the device has, for a device that comes after this one, or None;
    notif_config_data: with VIRTIO_F_NOTIF_CONFIG_DATA, what notifications of this queue carry instead of its index.
    """

    index: int
    name: str
    max_size: int
    size: int = field(init=False)
    descriptor_area: int = 0
    driver_area: int = 0
    device_area: int = 0
    notif_config_data: int = field(default=Factory(lambda self: self.index, takes_self=True))
    state: QueueState = field(factory=QueueState)
    tracker: Tracker | None = None

    def __attrs_post_init__(self) -> None:
        self.size = self.max_size

    def activate(self, memory: GuestMemory, features: int, engine: Engine, notify: Callable[[], None]) -> DeviceQueue:
        """The running queue. `notify` sends its used buffer notification. Raises RingError, MemoryFault."""
        self._check_size(features)
        return DeviceQueue(self, memory, features, engine, notify)

    def fresh(self) -> QueueConfig:
        """The registers as they are after a reset: what the driver wrote is gone, what the device chose stays."""
        return QueueConfig(self.index, self.name, self.max_size, notif_config_data=self.notif_config_data)

    def _check_size(self, features: int) -> None:
        if not 0 < self.size <= min(self.max_size, MAX_QUEUE_SIZE):
            raise RingError(f"queue size {self.size} is not from 1 to {self.max_size}", queue=self.index)
        if not features & bit(Feature.RING_PACKED) and self.size & (self.size - 1):
            raise RingError(f"queue size {self.size} is not a power of 2", queue=self.index)


class Binding(NamedTuple):
    """A queue's areas found in one particular guest memory."""

    guest: GuestMemory
    memory: Memory
    ring: Any


class DeviceQueue(Half):
    """The device's half of a running virtqueue. One thread at a time may call.

    `take` raises RingError or MemoryFault for what the driver did wrong; nothing of a bad chain is handed out.

    hold: asked on every completion whether the notification is to wait for `notify`
    """

    def __init__(
        self, config: QueueConfig, memory: GuestMemory, features: int, engine: Engine, notify: Callable[[], None]
    ) -> None:
        super().__init__(config.index, config.size, features, engine)
        self._config = config
        self._notify = notify
        self._stopped = False
        self._paused = False
        self._held: list[Chain] = []
        self._taken: deque[Chain] = deque()
        self._tracker = config.tracker
        self._inherited: list[Chain] = []
        self._resubmit: list[Chain] = []
        self.log: WriteLog | None = None
        self.hold: Callable[[], bool] | None = None
        self._bound = self.bind(memory)
        self._set_state(config.state)
        self._take = self._kernel("take")
        self._complete = self._kernel("complete")
        self._due = self._kernel("used_notification_due")
        self._notifications = self._kernel("device_notifications")
        for left in self._tracker.unfinished if self._tracker is not None else ():
            self._inherit(left)

    def _inherit(self, left: Unfinished) -> None:
        """Takes a buffer that a device before us had taken: it is handed out before any new one."""
        found = take_up(self._config, self.memory, self.features, left)
        row = left.id * k.SHADOW
        if self._shadow[row + k.SLOTS]:
            raise RingError(f"buffer {left.id} was left twice", queue=self.index)
        self._shadow[row + k.SLOTS] = found.slots
        self._shadow[row + k.LIMIT] = found.writable
        if self.layout == "packed":
            self._state[k.OUTSTANDING] += found.slots
        chain = self._chain(found.batch, 0)
        self._inherited.append(chain)
        self._resubmit.append(chain)
        self._taken.append(chain)

    def _set_state(self, state: QueueState) -> None:
        # The kernels index with these, unchecked; a carrier may have them from the other side (SET_VRING_BASE).
        end = self.size if self.layout == "packed" else 1 << 16
        if not (0 <= state.next_available < end and 0 <= state.next_used < end):
            raise RingError(f"positions {state.next_available} and {state.next_used} are not in it", queue=self.index)
        self._state[k.NEXT_AVAILABLE] = state.next_available
        self._state[k.NEXT_USED] = state.next_used
        self._state[k.AVAILABLE_WRAP] = state.available_wrap
        self._state[k.USED_WRAP] = state.used_wrap

    @property
    def memory(self) -> GuestMemory:
        """The memory that holds the queue."""
        return self._bound.guest

    @property
    def areas(self) -> tuple[int, int, int]:
        """Guest addresses of the descriptor, driver and device areas."""
        return self._config.descriptor_area, self._config.driver_area, self._config.device_area

    def bind(self, memory: GuestMemory) -> Binding:
        """The queue's areas in another memory, without using it yet. Raises MemoryFault, RingError."""
        table = self.engine.memory(memory)
        longest = max(self.size, MAX_CHAIN)
        return Binding(memory, table, device_ring(self._config, memory, self.features, self.engine, longest))

    def adopt(self, binding: Binding) -> None:
        """Goes on in the memory of a binding made by `bind`."""
        self._bound = binding

    def take(self, limit: int = MAX_QUEUE_SIZE) -> list[Chain]:
        """The chains that have become available, in ring order, `limit` at the most."""
        if self._paused:
            return []
        if self._resubmit:
            chains, self._resubmit = self._resubmit[:limit], self._resubmit[limit:]
            return chains
        bound, first = self._bound, int(self._state[k.NEXT_AVAILABLE])
        count = self._take(bound.ring, self._state, self._shadow, bound.memory, self._batch, limit)
        if count < 0:
            raise self._raise(-count)
        chains = [self._chain(self._batch, n) for n in range(count)]
        if self._tracker is not None:
            self._tracker.taken(self, chains, first)
        self._taken.extend(chains)
        return chains

    def slots(self, chain: Chain) -> int:
        """The ring slots that a chain of this queue takes: 1 in a split one."""
        return int(self._shadow[chain.id * k.SHADOW + k.SLOTS])

    def _chain(self, batch: Batch, n: int) -> Chain:
        row = batch.buffers[n * k.BUFFER : (n + 1) * k.BUFFER].tolist()
        readable = self._extents(batch, row[k.FIRST], row[k.MIDDLE])
        extents = self._extents(batch, row[k.MIDDLE], row[k.LAST])
        return Chain(row[k.ID], self, Reader(self._views(readable)), Writer(self._views(extents)), tuple(extents))

    @staticmethod
    def _extents(batch: Batch, first: int, end: int) -> list[Extent]:
        words = batch.segments[first * k.SEGMENT : end * k.SEGMENT].tolist()
        return list(zip(words[k.ADDRESS :: k.SEGMENT], words[k.SIZE :: k.SEGMENT], strict=True))

    def _views(self, extents: list[Extent]) -> list[memoryview]:
        memory = self._bound.guest
        return [view for address, size in extents for view in memory.views(address, size)]

    def complete(self, chains: Sequence[Chain]) -> None:
        """Returns chains to the driver: one publication, one notification at most.

        With VIRTIO_F_IN_ORDER those that come too early are held until their turn, and all are while the queue is
        paused. Chains of a queue that was stopped are dropped: the driver has taken their memory back. Raises
        UsageError for a chain completed twice.
        """
        for n, chain in enumerate(chains):
            if chain.used:
                for marked in chains[:n]:
                    marked.used = False
                raise UsageError(f"chain {chain.id} of queue {self.index} was completed before")
            chain.used = True
        if self._paused:
            self._held += chains
            return
        returned = self._returned()
        ready = returned if self.in_order else chains
        if self._stopped or not ready:
            return
        if self._tracker is None:
            self._publish(ready)
        else:
            self._tracker.finish(ready, self._publish)
        if self.log is not None:
            self.log.used(ready)
        if self.hold is None or not self.hold():
            self.notify()

    def notify(self) -> None:
        """Tells the driver of what was completed since it was last told, if it wants to hear of it."""
        if self.needs_notification():
            self._notify()

    def _publish(self, chains: Sequence[Chain]) -> None:
        buffers = self._batch.buffers
        for n, chain in enumerate(chains):
            buffers[n * k.BUFFER + k.ID] = chain.id
            buffers[n * k.BUFFER + k.LENGTH] = chain.used_length
        self._complete(self._bound.ring, self._state, self._shadow, self._batch, len(chains))

    def remind(self) -> None:
        """Sends a notification if the driver wants any: a device before us may have used buffers and not said so."""
        self._state[k.SINCE] = 1 << 16
        self.notify()

    def _returned(self) -> list[Chain]:
        """The chains, from the oldest on, that are not with the device any more."""
        ready = []
        while self._taken and self._taken[0].used:
            ready.append(self._taken.popleft())
        return ready

    def needs_notification(self) -> bool:
        """Whether the driver wants to hear of what was completed since this was last asked."""
        return bool(self._due(self._bound.ring, self._state))

    def disable_notifications(self) -> None:
        """Tells the driver that available buffer notifications are of no use now."""
        self._notifications(self._bound.ring, self._state, False)
        if self.log is not None:
            self.log.suppressed()

    def enable_notifications(self) -> bool:
        """Asks for available buffer notifications; True if there are buffers already, so that one must look again."""
        more = bool(self._notifications(self._bound.ring, self._state, True))
        if self.log is not None:
            self.log.suppressed()
        return more

    def pause(self) -> None:
        """Touches nothing of the queue until `resume`: nothing is taken, what is completed is held back."""
        if self.hold is not None and not self._paused:
            self.notify()
        self._paused = True

    def resume(self) -> None:
        """Goes on, and returns what was held back."""
        self._paused = False
        held, self._held = self._held, []
        for chain in held:
            chain.used = False
        self.complete(held)

    def stop(self) -> QueueState:
        """No more chains are taken or returned. Where the queue stands, for whoever goes on with it.

        Chains that the device still has are offered again there: they lie in the ring as they were. That takes all of
        them back to the newest one that was returned; those before it, out of order, only a reset frees.
        """
        if not self._stopped:
            point = self.resume_point
            self._stopped = True
            if self._tracker is not None:
                self._tracker.put_back(self._going_back())
            self._set_state(point)
            if self.log is not None:
                self.log.used(self._taken)
        return self.state

    @property
    def resume_point(self) -> QueueState:
        """Where another device would go on with the queue, were this one to stop now (see `stop`)."""
        return self._rewound(self._going_back())

    def _going_back(self) -> list[Chain]:
        held = {id(chain) for chain in self._held}
        # What we were left need not lie in the ring as it did. Those who left it keep account of it still.
        return list(
            takewhile(
                lambda c: (self.in_order or not c.used or id(c) in held) and c not in self._inherited,
                reversed(self._taken),
            )
        )

    def _rewound(self, chains: Sequence[Chain]) -> QueueState:
        slots = sum(int(self._shadow[chain.id * k.SHADOW + k.SLOTS]) for chain in chains)
        state = self.state
        position = state.next_available - slots
        if self.layout == "split":
            return evolve(state, next_available=position & 0xFFFF)
        if position >= 0:
            return evolve(state, next_available=position)
        return evolve(state, next_available=position + self.size, available_wrap=state.available_wrap ^ 1)
