"""Virtqueues: registers that activate into a device's running queue, and the driver's queue.

    config = QueueConfig(0, "requestq", 256)         registers, as a transport sets them
    queue = config.activate(memory, features, …)     a running queue; "not yet enabled" is a type, not a flag
    queue.take() -> [Chain]   queue.complete([chain])

    queue = DriverQueue(0, 256, arena, features)     the other half
    queue.add(readable, writable, token)   queue.take_used() -> [(token, used length)]

Both sides first look, and sleep only after asking for a notification and looking once more:

    while True:                                      while True:
        queue.disable_notifications()                    done = queue.take_used()
        for chain in queue.take(): …                     if not done and not queue.enable_notifications():
        if not queue.enable_notifications(): sleep           sleep
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from attrs import Factory, define, field, frozen

from virtio_py.errors import PeerError, RingError, UsageError
from virtio_py.memory import Arena, DirtyLog, GuestMemory
from virtio_py.rings.chain import Chain, Reader, Writer
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.faults import fault
from virtio_py.rings.kernels import Batch, Memory
from virtio_py.rings.kernels import common as k
from virtio_py.rings.places import allocate_areas, device_ring, driver_ring, layout_name, written_areas
from virtio_py.spec import MAX_QUEUE_SIZE, Feature, bit

Extent = tuple[int, int]
"""A range of guest memory: (address, length in bytes)."""

MAX_CHAIN: Final = 1024
"""The longest chain a device follows where the queue is shorter: drivers have been seen to use indirect tables
longer than their queue, against split.driver.indirect-descriptors.3."""


@frozen
class QueueState:
    """Where a queue stands: all that a snapshot needs besides the memory. Split indices are free-running."""

    next_available: int = 0
    next_used: int = 0
    available_wrap: int = 1
    used_wrap: int = 1


@define
class QueueConfig:
    """A virtqueue's registers, as transports set them. Addresses are guest addresses.

    size: the queue size the driver chose, max_size until then; state: where the queue is to begin;
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
    state: QueueState = QueueState()

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


def make_batch(engine: Engine, size: int) -> Batch:
    """Room for all buffers of a queue, and for the segments of the longest chain at least."""
    return Batch(engine.words(k.BUFFER * size), engine.words(k.SEGMENT * max(2 * size, MAX_CHAIN + 1)))


class Held(NamedTuple):
    """A buffer that one half keeps track of: ring slots it takes (1 for each in a split device), writable bytes."""

    slots: int
    writable: int


class Half:
    """What both halves of a queue have: an engine, private state, and room for a batch."""

    def __init__(self, index: int, size: int, features: int, engine: Engine) -> None:
        self.index: Final = index
        self.size: Final = size
        self.features: Final = features
        self.engine: Final = engine
        self.layout: Final = layout_name(features)
        self.in_order: Final = bool(features & bit(Feature.IN_ORDER))
        self._state = engine.words(k.STATE_WORDS)
        self._shadow = engine.words(k.SHADOW * size)
        self._batch = make_batch(engine, size)

    @property
    def state(self) -> QueueState:
        """Where this half stands."""
        words = (k.NEXT_AVAILABLE, k.NEXT_USED, k.AVAILABLE_WRAP, k.USED_WRAP)
        return QueueState(*(int(self._state[word]) for word in words))

    @property
    def held(self) -> dict[int, Held]:
        """The buffers that a driver has outstanding, or a device has taken and not used, by their ids.

        A driver's with VIRTIO_F_IN_ORDER, where ids go round, begin with the oldest.
        """
        oldest = int(self._state[k.OLDEST])
        ids = (i % self.size for i in range(oldest, oldest + self.size))
        rows = ((i, self._shadow[i * k.SHADOW : (i + 1) * k.SHADOW]) for i in ids)
        return {i: Held(int(row[k.SLOTS]), int(row[k.LIMIT])) for i, row in rows if row[k.SLOTS]}

    def _kernel(self, name: str) -> Callable[..., Any]:
        return self.engine.kernels[f"{self.layout}_{name}"]

    def _raise(self, code: int) -> PeerError:
        return fault(code, self._state, self.layout, self.index)


class Binding(NamedTuple):
    """A queue's areas found in one particular guest memory."""

    guest: GuestMemory
    memory: Memory
    ring: Any


class DeviceQueue(Half):
    """The device's half of a running virtqueue. One thread at a time may call.

    `take` raises RingError or MemoryFault for what the driver did wrong; nothing of a bad chain is handed out.
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
        self._order: deque[Chain] = deque()
        self.log: DirtyLog | None = None
        self._bound = self.bind(memory)
        self._set_state(config.state)
        self._take = self._kernel("take")
        self._complete = self._kernel("complete")
        self._due = self._kernel("used_notification_due")
        self._notifications = self._kernel("device_notifications")

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
        bound = self._bound
        count = self._take(bound.ring, self._state, self._shadow, bound.memory, self._batch, limit)
        if count < 0:
            raise self._raise(-count)
        chains = [self._chain(n) for n in range(count)]
        if self.in_order:
            self._order.extend(chains)
        return chains

    def _chain(self, n: int) -> Chain:
        row = self._batch.buffers[n * k.BUFFER : (n + 1) * k.BUFFER].tolist()
        readable = self._extents(row[k.FIRST], row[k.MIDDLE])
        extents = self._extents(row[k.MIDDLE], row[k.LAST])
        return Chain(row[k.ID], self, Reader(self._views(readable)), Writer(self._views(extents)), tuple(extents))

    def _extents(self, first: int, end: int) -> list[Extent]:
        words = self._batch.segments[first * k.SEGMENT : end * k.SEGMENT].tolist()
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
        for chain in chains:
            if chain.used:
                raise UsageError(f"chain {chain.id} of queue {self.index} was completed before")
            chain.used = True
        if self._paused:
            self._held += chains
            return
        ready = self._in_turn() if self.in_order else chains
        if self._stopped or not ready:
            return
        if self.log is not None:
            self._mark(self.log, ready)
        buffers = self._batch.buffers
        for n, chain in enumerate(ready):
            buffers[n * k.BUFFER + k.ID] = chain.id
            buffers[n * k.BUFFER + k.LENGTH] = chain.used_length
        self._complete(self._bound.ring, self._state, self._shadow, self._batch, len(ready))
        if self.needs_notification():
            self._notify()

    def _mark(self, log: DirtyLog, chains: Sequence[Chain]) -> None:
        """Notes what was written for these chains, and the ring's own part: all of it, which is a page or two."""
        for chain in chains:
            for address, length in chain.written():
                log.mark(address, length)
        for address, length in written_areas(self._config, self.features):
            log.mark(address, length)

    def _in_turn(self) -> list[Chain]:
        ready = []
        while self._order and self._order[0].used:
            ready.append(self._order.popleft())
        return ready

    def needs_notification(self) -> bool:
        """Whether the driver wants to hear of what was completed since this was last asked."""
        return bool(self._due(self._bound.ring, self._state))

    def disable_notifications(self) -> None:
        """Tells the driver that available buffer notifications are of no use now."""
        self._notifications(self._bound.ring, self._state, False)

    def enable_notifications(self) -> bool:
        """Asks for available buffer notifications; True if there are buffers already, so that one must look again."""
        return bool(self._notifications(self._bound.ring, self._state, True))

    def pause(self) -> None:
        """Touches nothing of the queue until `resume`: nothing is taken, what is completed is held back."""
        self._paused = True

    def resume(self) -> None:
        """Goes on, and returns what was held back."""
        self._paused = False
        held, self._held = self._held, []
        for chain in held:
            chain.used = False
        self.complete(held)

    def stop(self) -> QueueState:
        """No more chains are taken or returned. Where the queue stands."""
        self._stopped = True
        return self.state


class DriverQueue(Half):
    """The driver's half of a virtqueue, with its areas in the driver's arena. One thread at a time may call.

    indirect: entries of the table kept for each descriptor where VIRTIO_F_INDIRECT_DESC was negotiated; buffers of
    more than one and at most so many segments go there. `take_used` raises RingError for what the device did wrong.
    """

    def __init__(
        self, index: int, size: int, arena: Arena, features: int, engine: Engine = REFERENCE, indirect: int = 16
    ) -> None:
        layout = layout_name(features)
        if not 0 < size <= MAX_QUEUE_SIZE or (layout == "split" and size & (size - 1)):
            raise UsageError(f"a {layout} queue cannot have the size {size}")
        super().__init__(index, size, features, engine)
        self.notif_config_data = index
        self._arena = arena
        self._tokens: list[Any] = [None] * size
        entries = min(indirect, size) if features & bit(Feature.INDIRECT_DESC) else 0
        self._areas = allocate_areas(arena, self.layout, size, entries)
        self._memory = engine.memory(arena.memory)
        self._ring = driver_ring(self._areas, arena.memory, size, features, engine, entries)
        self._state[k.FREE_COUNT] = size
        self._state[k.AVAILABLE_WRAP] = self._state[k.USED_WRAP] = 1
        for i in range(size):
            self._shadow[i * k.SHADOW + k.NEXT] = (i + 1) % size
        self._add = self._kernel("add")
        self._publish = self._kernel("publish")
        self._take_used = self._kernel("take_used")
        self._due = self._kernel("available_notification_due")
        self._notifications = self._kernel("driver_notifications")

    @property
    def memory(self) -> GuestMemory:
        """The memory that holds the queue."""
        return self._arena.memory

    @property
    def areas(self) -> tuple[int, int, int]:
        """Guest addresses of the descriptor, driver and device areas."""
        return self.descriptor_area, self.driver_area, self.device_area

    @property
    def descriptor_area(self) -> int:
        """Guest address of the descriptor table (split) or ring (packed)."""
        return self._areas.descriptor.address

    @property
    def driver_area(self) -> int:
        """Guest address of the available ring (split) or driver event suppression structure (packed)."""
        return self._areas.driver.address

    @property
    def device_area(self) -> int:
        """Guest address of the used ring (split) or device event suppression structure (packed)."""
        return self._areas.device.address

    @property
    def outstanding(self) -> int:
        """Buffers made available and not yet taken back."""
        return int(self._state[k.OUTSTANDING])

    @property
    def free_slots(self) -> int:
        """Descriptors that are free."""
        return int(self._state[k.FREE_COUNT])

    @property
    def notification_data(self) -> int:
        """What an available buffer notification carries (2.9): 16 bits, or 32 with VIRTIO_F_NOTIFICATION_DATA.

        The low half is the queue's index, or with VIRTIO_F_NOTIF_CONFIG_DATA the value that the device gave it; the
        high half is where the driver adds next: a free-running index (split), or a slot and its wrap counter (packed).
        """
        value = self.notif_config_data if self.features & bit(Feature.NOTIF_CONFIG_DATA) else self.index
        if not self.features & bit(Feature.NOTIFICATION_DATA):
            return value
        position = int(self._state[k.NEXT_AVAILABLE])
        if self.layout == "packed":
            position |= int(self._state[k.AVAILABLE_WRAP]) << 15
        return value | position << 16

    def add(self, readable: Sequence[Extent], writable: Sequence[Extent] = (), token: Any = None) -> None:
        """Makes one buffer available. `token` comes back with it. Raises UsageError when there is no room."""
        if not self.add_many([(readable, writable, token)]):
            raise UsageError(f"queue {self.index} has no room for {len(readable) + len(writable)} descriptors")

    def add_many(self, requests: Iterable[tuple[Sequence[Extent], Sequence[Extent], Any]]) -> int:
        """Makes buffers available, all published at once; returns how many there was room for."""
        tokens = []
        for n, (readable, writable, token) in enumerate(requests):
            if n >= self.size or not self._describe(n, readable, writable):
                break
            tokens.append(token)
        added = int(self._add(self._ring, self._state, self._shadow, self._memory, self._batch, len(tokens)))
        for n in range(added):
            self._tokens[self._batch.buffers[n * k.BUFFER + k.ID]] = tokens[n]
        if added:
            self._publish(self._ring, self._state)
        return added

    def _describe(self, n: int, readable: Sequence[Extent], writable: Sequence[Extent]) -> bool:
        """Puts a buffer into the batch; False if the batch has no room for its segments (the first always fits)."""
        buffers, segments = self._batch
        first = buffers[(n - 1) * k.BUFFER + k.LAST] if n else 0
        extents = (*readable, *writable)
        if not 0 < len(extents) <= self.size:
            raise UsageError(f"a buffer of {len(extents)} descriptors does not fit queue {self.index} of {self.size}")
        if sum(length for _, length in extents) > k.MAX_CHAIN_BYTES:
            raise UsageError("a buffer of more than 2^32 bytes")
        if (first + len(extents)) * k.SEGMENT > len(segments):
            return False
        at = n * k.BUFFER
        buffers[at + k.FIRST], buffers[at + k.MIDDLE] = first, first + len(readable)
        buffers[at + k.LAST] = first + len(extents)
        buffers[at + k.WRITABLE] = sum(length for _, length in writable)
        for segment, (address, length) in enumerate(extents, start=first):
            segments[segment * k.SEGMENT + k.ADDRESS] = address
            segments[segment * k.SEGMENT + k.SIZE] = length
        return True

    def take_used(self, limit: int = MAX_QUEUE_SIZE) -> list[tuple[Any, int]]:
        """The buffers the device has used: (token, used length in bytes) each, in the order it used them."""
        count = self._take_used(self._ring, self._state, self._shadow, self._batch, limit)
        if count < 0:
            raise self._raise(-count)
        words = self._batch.buffers[: count * k.BUFFER].tolist()
        ids, lengths = words[k.ID :: k.BUFFER], words[k.LENGTH :: k.BUFFER]
        return [(self._tokens[ident], length) for ident, length in zip(ids, lengths, strict=True)]

    def needs_notification(self) -> bool:
        """Whether the device wants to hear of what was added since this was last asked."""
        return bool(self._due(self._ring, self._state))

    def disable_notifications(self) -> None:
        """Tells the device that used buffer notifications are of no use now."""
        self._notifications(self._ring, self._state, False)

    def enable_notifications(self) -> bool:
        """Asks for used buffer notifications; True if there are used buffers already, so that one must look again."""
        return bool(self._notifications(self._ring, self._state, True))

    def release(self) -> None:
        """Gives the queue's memory back to the arena; only when the device can no longer reach it."""
        self._arena.free(*self._areas.buffers())
