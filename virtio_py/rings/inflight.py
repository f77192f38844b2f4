"""Buffers that outlive their device: what a queue tells of them, and how they are taken up again.

A device may die between taking a buffer and returning it. Where somebody keeps account of what was taken, in memory
that the next device finds, that one begins with these very buffers: `Tracker` is who keeps account, called at the two
moments that count, and `take_up` walks the buffers that were left, as `DeviceQueue.take` walks those that are new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from virtio_py.errors import RingError
from virtio_py.memory import GuestMemory
from virtio_py.rings.engine import REFERENCE
from virtio_py.rings.faults import fault
from virtio_py.rings.half import MAX_CHAIN, make_batch
from virtio_py.rings.kernels import Batch, Memory, PackedRing, SplitRing
from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import pvirtq_desc, virtq_avail
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


class TakenUp(NamedTuple):
    """A buffer found again: room that describes it as row 0, the ring slots that it takes, its writable bytes."""

    batch: Batch
    slots: int
    writable: int


def take_up(config: Placed, memory: GuestMemory, features: int, left: Unfinished) -> TakenUp:
    """Follows the chain of a buffer that was left. Raises RingError, MemoryFault: it is as little trusted as a new one.

    It is the one buffer in a ring of our own, and is taken from there. Interpreted whatever the queue's engine is: it
    happens once in a device's life.
    """
    longest = max(config.size, MAX_CHAIN)
    ring = device_ring(config, memory, features, REFERENCE, longest)
    table = REFERENCE.memory(memory)
    batch, state = make_batch(REFERENCE, longest), REFERENCE.words(k.STATE_WORDS)
    shadow = REFERENCE.words(k.SHADOW * config.size)
    state[k.AVAILABLE_WRAP] = 1
    if features & bit(Feature.RING_PACKED):
        layout, take = "packed", REFERENCE.packed_take
        ring, table = _alone_packed(ring, table, left.descriptors)
    else:
        layout, take = "split", REFERENCE.split_take
        ring = _alone_split(ring, left.id)
    count = take(ring, state, shadow, table, batch, 1)
    if count < 0:
        raise fault(-count, state, layout, config.index)
    slots, writable = (shadow[left.id * k.SHADOW + word] for word in (k.SLOTS, k.LIMIT))
    if slots != max(len(left.descriptors) // pvirtq_desc.size, 1):
        raise RingError(f"buffer {left.id} was left with other descriptors than its own", queue=config.index)
    return TakenUp(batch, slots, writable)


def _alone_split(ring: SplitRing, head: int) -> SplitRing:
    """With an available ring in which there is nothing but this chain."""
    avail = virtq_avail(ring.size).encode(idx=1, ring=[head, *[0] * (ring.size - 1)])
    return ring._replace(avail16=REFERENCE.view(memoryview(bytearray(avail)), "H"))


_ROLES: Final = PackedDescFlag.NEXT | PackedDescFlag.WRITE | PackedDescFlag.INDIRECT


def _alone_packed(ring: PackedRing, memory: Memory, descriptors: bytes) -> tuple[PackedRing, Memory]:
    """With a descriptor ring in which these, which may not be in the real one any more, are the first lap's.

    It is a region at no address: the kernel finds it by its row, and no descriptor can name a byte of it.
    """
    copy = bytearray(pvirtq_desc.size * ring.size)
    for at in range(0, len(descriptors), pvirtq_desc.size):
        found = pvirtq_desc.decode(descriptors, at)
        values = found._replace(flags=found.flags & _ROLES | PackedDescFlag.AVAIL)
        copy[at : at + pvirtq_desc.size] = pvirtq_desc.encode_values(values)
    view = memoryview(copy)
    rows = REFERENCE.words(len(memory.rows) + k.ROW)
    rows[: len(memory.rows)] = memory.rows
    alone = ring._replace(row=len(memory.views), table=0, ring16=REFERENCE.view(view, "H"))
    return alone, Memory(rows, (*memory.views, view))
