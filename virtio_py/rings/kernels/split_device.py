"""The device's half of a split virtqueue (2.7)."""

from __future__ import annotations

from virtio_py.rings.kernels.common import (
    BAD_HEAD,
    BAD_INDEX,
    BAD_NEXT,
    BUFFER,
    DESC_SIZE,
    F_INDIRECT,
    F_NEXT,
    F_WRITE,
    FAULT_AT,
    FAULT_ID,
    FIRST,
    HEAD_IN_FLIGHT,
    ID,
    INDIRECT_NESTED,
    INDIRECT_NEXT,
    INDIRECT_NOT_NEGOTIATED,
    INDIRECT_SIZE,
    LAST,
    LENGTH,
    LIMIT,
    LOOP,
    MAX_CHAIN_BYTES,
    MIDDLE,
    NEXT_AVAILABLE,
    NEXT_USED,
    ROW,
    SHADOW,
    SINCE,
    SLOTS,
    START,
    TABLE_NOT_MEMORY,
    TOO_MANY_BYTES,
    WRITABLE,
    Batch,
    Memory,
    SplitRing,
    Words,
    blame,
    fence,
    kernel,
    load_acquire,
    load_once,
    load_split_descriptor,
    locate,
    need_event,
    put_segment,
    put_single,
    store_release,
)
from virtio_py.rings.layouts import virtq_avail, virtq_used, virtq_used_elem
from virtio_py.spec import AvailFlag, UsedFlag

# The layouts' offsets in words of the views that hold them; those of the two events depend on the size, and stand
# in the ring itself.
AVAIL_FLAGS = virtq_avail(1).offset("flags") // 2
AVAIL_IDX = virtq_avail(1).offset("idx") // 2
AVAIL_RING = virtq_avail(1).offset("ring") // 2
USED_FLAGS = virtq_used(1).offset("flags") // 2
USED_IDX = virtq_used(1).offset("idx") // 2
USED_RING = virtq_used(1).offset("ring") // 4
USED_STRIDE = virtq_used_elem.size // 4
ELEMENT_ID = USED_RING + virtq_used_elem.offset("id") // 4
ELEMENT_LEN = USED_RING + virtq_used_elem.offset("len") // 4
NO_INTERRUPT = int(AvailFlag.NO_INTERRUPT)
NO_NOTIFY = int(UsedFlag.NO_NOTIFY)


@kernel
def split_walk(
    ring: SplitRing,
    state: Words,
    memory: Memory,
    batch: Batch,
    n: int,
    first: int,
    head: int,
    descriptor: tuple[int, int, int, int],
) -> int:
    """Follows the chain at `head`, whose descriptor was loaded, and records it as buffer n, its segments from `first`
    on. 0, or a fault."""
    row, table, entries = ring.row, ring.table, ring.size
    index, steps, inside = head, 1, 0
    end, middle, total, writable = first, -1, 0, 0
    address, length, flags, following = descriptor
    while True:
        if flags & F_INDIRECT:
            state[FAULT_AT] = length
            if not ring.indirect:
                return INDIRECT_NOT_NEGOTIATED
            if inside:
                return INDIRECT_NESTED
            if flags & F_NEXT:
                return INDIRECT_NEXT
            if length == 0 or length % DESC_SIZE:
                return INDIRECT_SIZE
            row = locate(memory, address, length)
            if row < 0:
                blame(state, address, length, 0)
                return TABLE_NOT_MEMORY
            table, entries = address - memory.rows[row * ROW + START], length // DESC_SIZE
            index, steps, inside = 0, 0, 1
        else:
            write = flags & F_WRITE
            fault = put_segment(memory, batch, ring.max_chain, first, end, middle >= 0, address, length, write)
            if fault:
                state[FAULT_AT] = index
                blame(state, address, length, write)
                return fault
            total += length
            if write:
                if middle < 0:
                    middle = end
                writable += length
            end += 1
            if not flags & F_NEXT:
                break
            if following >= entries:
                state[FAULT_AT] = following
                return BAD_NEXT
            index = following
        # Each table entry can be visited once: a chain that goes on for longer has come back to itself.
        steps += 1
        if steps > entries:
            return LOOP
        address, length, flags, following = load_split_descriptor(memory, row, table + index * DESC_SIZE)
    if total > MAX_CHAIN_BYTES:
        return TOO_MANY_BYTES
    buffers = batch.buffers
    buffers[n * BUFFER + FIRST] = first
    buffers[n * BUFFER + MIDDLE] = end if middle < 0 else middle
    buffers[n * BUFFER + LAST] = end
    buffers[n * BUFFER + WRITABLE] = writable
    return 0


@kernel
def split_take(ring: SplitRing, state: Words, shadow: Words, memory: Memory, batch: Batch, limit: int) -> int:
    """Takes up to `limit` available buffers into the batch. Returns how many, or a fault negated if the first is bad.

    A bad buffer behind good ones is found again by the next call: the good ones are served first.
    """
    # Pairs with the store_release of split_publish: descriptors and ring entries are read after it.
    idx = load_acquire(ring.avail16, AVAIL_IDX)
    size = ring.size
    start = state[NEXT_AVAILABLE]
    pending = (idx - start) & 0xFFFF
    if pending > size:
        state[FAULT_AT] = idx
        return -BAD_INDEX
    count = min(pending, limit, len(batch.buffers) // BUFFER)
    fault, first, end, n = 0, 0, 0, 0
    while n < count:
        head = load_once(ring.avail16, AVAIL_RING + ((start + n) & (size - 1)))
        if head >= size:
            fault = BAD_HEAD
        elif shadow[head * SHADOW + SLOTS]:
            fault = HEAD_IN_FLIGHT
        else:
            descriptor = load_split_descriptor(memory, ring.row, ring.table + head * DESC_SIZE)
            address, length, flags, _ = descriptor
            if flags & (F_NEXT | F_INDIRECT):
                fault = split_walk(ring, state, memory, batch, n, first, head, descriptor)
                end = batch.buffers[n * BUFFER + LAST]
            else:
                end = first + 1
                fault = put_single(memory, batch, n, first, address, length, flags & F_WRITE)
                if fault:
                    state[FAULT_AT] = head
                    blame(state, address, length, flags & F_WRITE)
        if fault:
            state[FAULT_ID] = head
            break
        batch.buffers[n * BUFFER + ID] = head
        first = end
        shadow[head * SHADOW + SLOTS] = 1
        shadow[head * SHADOW + LIMIT] = batch.buffers[n * BUFFER + WRITABLE]
        n += 1
    state[NEXT_AVAILABLE] = (start + n) & 0xFFFF
    return n if n or not fault else -fault


@kernel
def split_complete(ring: SplitRing, state: Words, shadow: Words, batch: Batch, count: int) -> int:
    """Returns the first `count` buffers of the batch (ID, LENGTH) to the driver, and publishes them at once.

    In order, a run of buffers that were written in full is told by its last one alone, in the slot of its first.
    Returns how many used elements were written.
    """
    buffers, used32 = batch.buffers, ring.used32
    used, mask = state[NEXT_USED], ring.size - 1
    elements, n = 0, 0
    while n < count:
        slot = used & mask
        head, length = buffers[n * BUFFER + ID], buffers[n * BUFFER + LENGTH]
        shadow[head * SHADOW + SLOTS] = 0
        if ring.in_order:
            while n + 1 < count and length == shadow[head * SHADOW + LIMIT]:
                n += 1
                used += 1
                head, length = buffers[n * BUFFER + ID], buffers[n * BUFFER + LENGTH]
                shadow[head * SHADOW + SLOTS] = 0
        used32[ELEMENT_ID + slot * USED_STRIDE] = head
        used32[ELEMENT_LEN + slot * USED_STRIDE] = length
        elements += 1
        used += 1
        n += 1
    used &= 0xFFFF
    state[NEXT_USED] = used
    state[SINCE] += count
    # Pairs with the load_acquire of split_take_used: the elements are there before the index says so.
    store_release(ring.used16, USED_IDX, used)
    return elements


@kernel
def split_used_notification_due(ring: SplitRing, state: Words) -> bool:
    """Whether the driver wants to be told of what was completed since this was last asked (2.7.7)."""
    since = state[SINCE]
    if since == 0:
        return False
    state[SINCE] = 0
    # Pairs with the fence of split_driver_notifications: our used.idx is out before we look at the driver's wish.
    fence()
    if not ring.event_idx:
        return not load_once(ring.avail16, AVAIL_FLAGS) & NO_INTERRUPT
    event = load_once(ring.avail16, ring.used_event)
    return since > 0xFFFF or need_event(event, state[NEXT_USED], state[NEXT_USED] - since)


@kernel
def split_device_notifications(ring: SplitRing, state: Words, enabled: bool) -> bool:
    """Asks the driver for available buffer notifications, or not to send any; True if buffers are there already."""
    if ring.event_idx:
        # Without a wish the event stays where it is: behind us, so that it is not passed for another 2^16 buffers.
        if enabled:
            store_release(ring.used16, ring.avail_event, state[NEXT_AVAILABLE])
    else:
        store_release(ring.used16, USED_FLAGS, 0 if enabled else NO_NOTIFY)
    if not enabled:
        return False
    # Pairs with the fence of split_available_notification_due: the wish is out before we look once more.
    fence()
    return load_acquire(ring.avail16, AVAIL_IDX) != state[NEXT_AVAILABLE]
