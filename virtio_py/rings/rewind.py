"""A driver's queue whose device has died: where another device has to begin so that no buffer is lost.

What was made available and not used lies in the ring still. A split ring can always be put in order for a device that
begins anew. In a packed ring used descriptors overwrite available ones: it can be offered again while buffers were used
in the order they were made available, which is what is checked here; what a device had half written when it died
(a used descriptor without its flags) is seen where the buffer's id changed by it, and not where only its length did.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from virtio_py.errors import RingError, UsageError
from virtio_py.rings.driver_queue import DriverQueue
from virtio_py.rings.half import QueueState
from virtio_py.rings.layouts import pvirtq_desc, virtq_avail, virtq_used
from virtio_py.spec import PackedDescFlag


def rewind(queue: DriverQueue) -> QueueState:
    """Where a device begins that takes over the queue: it will take every buffer that is outstanding, oldest first as
    far as that is known. What is used already stays so, whether `take_used` has seen it or not.

    Raises RingError for used buffers that cannot be, UsageError for a packed ring that cannot be offered again. No
    device may be at work on the queue.
    """
    return (_rewind_packed if queue.layout == "packed" else _rewind_split)(queue)


def _used_up(queue: DriverQueue, left: list[int], ident: int, where: int) -> list[int]:
    """The buffers that one used element stands for, which leave `left`. In order, all before it are used too."""
    if ident not in left:
        raise RingError(f"buffer {ident} is used and not outstanding", queue=queue.index, where=f"used element {where}")
    at = left.index(ident)
    first = 0 if queue.in_order else at
    done, left[first : at + 1] = left[first : at + 1], []
    return done


def _rewind_split(queue: DriverQueue) -> QueueState:
    used = virtq_used(queue.size).decode(queue.memory.read(queue.device_area, virtq_used(queue.size).size))
    left, at = list(queue.held), queue.state.next_used
    pending = (used.idx - at) & 0xFFFF
    if pending > len(left):
        raise RingError(f"used idx is {used.idx}: {pending} buffers, of {len(left)}", queue=queue.index)
    done: list[int] = []
    while len(done) < pending:
        done += _used_up(queue, left, used.ring[(at + len(done)) % queue.size].id, at + len(done))
    if len(done) > pending:
        raise RingError(f"used idx is {used.idx}, amid the buffers of one element", queue=queue.index)
    _offer_split(queue, left, used.idx)
    return QueueState(next_available=used.idx, next_used=used.idx)


def _offer_split(queue: DriverQueue, left: list[int], position: int) -> None:
    """Sees to it that the available ring has these buffers from `position` on, in the order they have there."""
    avail = virtq_avail(queue.size)
    ring = list(avail.decode(queue.memory.read(queue.driver_area, avail.size)).ring)
    slots = [(position + n) % queue.size for n in range(len(left))]
    if sorted(ring[slot] for slot in slots) == sorted(left):
        return
    # Used out of order: a buffer that was made available before `position` may be the one that is left.
    for slot, ident in zip(slots, left, strict=True):
        ring[slot] = ident
    data = avail.encode(ring=ring)
    start, end = avail.offset("ring"), avail.end("ring")
    queue.memory.write(queue.driver_area + start, data[start:end])


def _rewind_packed(queue: DriverQueue) -> QueueState:
    raw = queue.memory.read(queue.descriptor_area, pvirtq_desc.size * queue.size)
    ring = [pvirtq_desc.decode(raw[at : at + pvirtq_desc.size]) for at in range(0, len(raw), pvirtq_desc.size)]
    left, state = list(queue.held), queue.state
    slot, wrap = state.next_used, state.used_wrap
    while left and _flags(ring[slot]) == (wrap, wrap):
        done = _used_up(queue, left, ring[slot].id, slot)
        slot, wrap = _forward(queue, slot, wrap, sum(queue.held[ident].slots for ident in done))
    if sorted(_available(queue, ring, slot, wrap)) != sorted(left):
        raise UsageError(f"queue {queue.index}: buffers were used out of order, the rest cannot be offered again")
    return QueueState(slot, slot, wrap, wrap)


def _available(queue: DriverQueue, ring: list[Any], slot: int, wrap: int) -> Iterator[int]:
    """The ids of the available buffers from a position on, up to where the driver would add the next."""
    end = queue.state.next_available, queue.state.available_wrap
    for _ in range(queue.size):
        if (slot, wrap) == end or _flags(ring[slot]) != (wrap, 1 - wrap):
            return
        if not ring[slot].flags & PackedDescFlag.NEXT:
            yield ring[slot].id
        slot, wrap = _forward(queue, slot, wrap, 1)


def _flags(descriptor: Any) -> tuple[int, int]:
    """The bits AVAIL and USED, as wrap counters."""
    return int(bool(descriptor.flags & PackedDescFlag.AVAIL)), int(bool(descriptor.flags & PackedDescFlag.USED))


def _forward(queue: DriverQueue, slot: int, wrap: int, count: int) -> tuple[int, int]:
    laps, slot = divmod(slot + count, queue.size)
    return slot, wrap ^ laps
