"""Buffers that outlive their device: what a queue tells of them, and how they are taken up again.

A device may die between taking a buffer and returning it. Where somebody keeps account of what was taken, in memory
that the next device finds, that one begins with these very buffers: `Tracker` is who keeps account, called at the two
moments that count, and `take_up` walks the buffers that were left, as `DeviceQueue.take` walks those that are new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from virtio_py.errors import RingError
from virtio_py.memory import GuestMemory
from virtio_py.rings.engine import REFERENCE
from virtio_py.rings.faults import fault
from virtio_py.rings.half import MAX_CHAIN, make_batch
from virtio_py.rings.kernels import Batch, Memory, PackedRing
from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import pvirtq_desc
from virtio_py.rings.places import Placed, device_ring
from virtio_py.spec import Feature, PackedDescFlag, bit

if TYPE_CHECKING:
    from virtio_py.rings.chain import Chain
    from virtio_py.rings.device_queue import DeviceQueue


class Unfinished(NamedTuple):
    """A buffer that a device took and did not return: its id, and of a packed ring its descriptors as they were taken
    (the ring may have other ones there by now)."""

    id: int
    descriptors: bytes = b""


class Tracker(Protocol):
    """Keeps account of the buffers that a queue's device has. The queue calls it; a device never does.

    unfinished: what a device before us left, oldest first, before the queue is activated.
    """

    unfinished: Sequence[Unfinished]

    def taken(self, queue: DeviceQueue, chains: Sequence[Chain], first: int) -> None:
        """These were taken, from ring position `first` on; nobody has begun to serve them yet."""

    def finish(self, chains: Sequence[Chain], publish: Callable[[Sequence[Chain]], None]) -> None:
        """These are to be used: calls `publish` with all of them, in order, in as many parts as it takes."""

    def put_back(self, chains: Sequence[Chain]) -> None:
        """These will be taken again from the ring, where they are, newest first."""


class Walked(NamedTuple):
    """A buffer found again: room that describes it as row 0, and the ring slots that it takes."""

    batch: Batch
    slots: int


def take_up(config: Placed, memory: GuestMemory, features: int, left: Unfinished) -> Walked:
    """Follows the chain of a buffer that was left. Raises RingError, MemoryFault: it is as little trusted as a new one.

    Interpreted whatever the queue's engine is: it happens once in a device's life.
    """
    longest = max(config.size, MAX_CHAIN)
    ring = device_ring(config, memory, features, REFERENCE, longest)
    batch, state, table = make_batch(REFERENCE, longest), REFERENCE.words(k.STATE_WORDS), REFERENCE.memory(memory)
    state[k.FAULT_ID] = left.id
    if not 0 <= left.id < config.size:
        raise RingError(f"buffer {left.id} was left, which the queue does not have", queue=config.index)
    if not features & bit(Feature.RING_PACKED):
        code, slots = REFERENCE.split_walk(ring, state, table, batch, 0, 0, left.id), 1
    else:
        code, slots = _walk_copy(ring, state, table, batch, left.descriptors)
    if code:
        raise fault(code, state, "packed" if left.descriptors else "split", config.index)
    if left.descriptors and (batch.buffers[k.LENGTH], batch.buffers[k.ID]) != (slots, left.id):
        raise RingError(f"buffer {left.id} was left with other descriptors than its own", queue=config.index)
    return Walked(batch, slots)


_ROLES: Final = PackedDescFlag.NEXT | PackedDescFlag.WRITE | PackedDescFlag.INDIRECT


def _walk_copy(ring: PackedRing, state: Any, memory: Memory, batch: Batch, descriptors: bytes) -> tuple[int, int]:
    """Walks descriptors that are not in the ring any more, as a ring of their own: the first lap of one that they fill.

    That ring is a region at no address: the walk finds it by its row, and no descriptor can name a byte of it.
    """
    slots = len(descriptors) // pvirtq_desc.size
    copy = bytearray(descriptors)
    flags = 0
    for slot in reversed(range(slots)):
        found = pvirtq_desc.decode(copy, slot * pvirtq_desc.size)
        flags = found.flags & _ROLES | PackedDescFlag.AVAIL
        at = slot * pvirtq_desc.size
        copy[at : at + pvirtq_desc.size] = pvirtq_desc.encode_values(found._replace(flags=flags))
    rows = REFERENCE.words(len(memory.rows) + k.ROW)
    rows[: len(memory.rows)] = memory.rows
    whole = Memory(rows, (*memory.views, memoryview(copy)))
    alone = ring._replace(size=slots, row=len(memory.views), table=0)
    return REFERENCE.packed_walk(alone, state, whole, batch, 0, 0, 0, 1, flags), slots
