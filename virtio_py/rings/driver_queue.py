"""The driver's half: a queue in the driver's arena."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from virtio_py.errors import UsageError
from virtio_py.memory import Arena, GuestMemory
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.half import Extent, Half
from virtio_py.rings.kernels import common as k
from virtio_py.rings.places import allocate_areas, driver_ring, layout_name
from virtio_py.spec import MAX_QUEUE_SIZE, Feature, bit


class DriverQueue(Half):
    """The driver's half of a virtqueue, with its areas in the driver's arena. One thread at a time may call.

    indirect: entries of the table kept for each descriptor where VIRTIO_F_INDIRECT_DESC was negotiated; buffers of
    more than one and at most so many segments go there. page: 0, or the alignment in bytes of a legacy queue's single
    piece of memory (2.7.2). closed: while it is set, nothing may be added (3.4). `take_used` raises RingError for what
    the device did wrong.
    """

    def __init__(
        self,
        index: int,
        size: int,
        arena: Arena,
        features: int,
        engine: Engine = REFERENCE,
        indirect: int = 16,
        page: int = 0,
    ) -> None:
        layout = layout_name(features)
        if not 0 < size <= MAX_QUEUE_SIZE or (layout == "split" and size & (size - 1)):
            raise UsageError(f"a {layout} queue cannot have the size {size}")
        super().__init__(index, size, features, engine)
        self.notif_config_data = index
        self.closed = False
        self._arena = arena
        self._tokens: list[Any] = [None] * size
        entries = min(indirect, size) if features & bit(Feature.INDIRECT_DESC) else 0
        self._areas = allocate_areas(arena, self.layout, size, entries, page)
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
        """Makes buffers available, all published at once; returns how many there was room for. Raises UsageError while
        the queue is closed."""
        if self.closed:
            raise UsageError(f"queue {self.index} is closed: the device is suspended")
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
