"""The driver's half of a split virtqueue (2.7)."""

from __future__ import annotations

from virtio_py.rings.kernels.common import (
    ADDRESS,
    BUFFER,
    DESC_SIZE,
    F_INDIRECT,
    F_NEXT,
    F_WRITE,
    FAULT_AT,
    FAULT_ID,
    FIRST,
    FREE_COUNT,
    FREE_HEAD,
    ID,
    LAST,
    LENGTH,
    LIMIT,
    MIDDLE,
    NEXT,
    NEXT_AVAILABLE,
    NEXT_USED,
    OLDEST,
    OUTSTANDING,
    PUBLISHED,
    ROW,
    SEGMENT,
    SHADOW,
    SINCE,
    SIZE,
    SLOTS,
    START,
    USED_ID,
    USED_INDEX,
    USED_LENGTH,
    USED_NOT_OUTSTANDING,
    USED_ORDER,
    WRITABLE,
    Batch,
    Memory,
    SplitRing,
    Words,
    fence,
    kernel,
    load_acquire,
    load_once,
    need_event,
    store_release,
    store_split_descriptor,
)
from virtio_py.rings.kernels.split_device import (
    AVAIL_FLAGS,
    AVAIL_IDX,
    AVAIL_RING,
    ELEMENT_ID,
    ELEMENT_LEN,
    NO_INTERRUPT,
    NO_NOTIFY,
    USED_FLAGS,
    USED_IDX,
    USED_STRIDE,
)


@kernel
def split_write_indirect(
    ring: SplitRing, memory: Memory, segments: Words, first: int, middle: int, end: int, head: int
) -> None:
    """Writes a buffer to the indirect table that belongs to descriptor `head`, and that descriptor."""
    table = ring.indirect_at + head * ring.indirect * DESC_SIZE
    for segment in range(first, end):
        entry = segment - first
        flags = F_WRITE if segment >= middle else 0
        following = 0
        if segment + 1 < end:
            flags |= F_NEXT
            following = entry + 1
        address, length = segments[segment * SEGMENT + ADDRESS], segments[segment * SEGMENT + SIZE]
        store_split_descriptor(memory, ring.row, table + entry * DESC_SIZE, address, length, flags, following)
    address = memory.rows[ring.row * ROW + START] + table
    length = (end - first) * DESC_SIZE
    store_split_descriptor(memory, ring.row, ring.table + head * DESC_SIZE, address, length, F_INDIRECT, 0)


@kernel
def split_write_direct(
    ring: SplitRing, shadow: Words, memory: Memory, segments: Words, first: int, middle: int, end: int, head: int
) -> int:
    """Writes a buffer to the descriptors linked from `head` on; returns the one behind them."""
    index = head
    for segment in range(first, end):
        following = shadow[index * SHADOW + NEXT]
        flags = F_WRITE if segment >= middle else 0
        if segment + 1 < end:
            flags |= F_NEXT
        address, length = segments[segment * SEGMENT + ADDRESS], segments[segment * SEGMENT + SIZE]
        store_split_descriptor(memory, ring.row, ring.table + index * DESC_SIZE, address, length, flags, following)
        index = following
    return index


@kernel
def split_add(ring: SplitRing, state: Words, shadow: Words, memory: Memory, batch: Batch, count: int) -> int:
    """Adds buffers of the batch, as many of `count` as there is room for, and gives each its id. Not yet published."""
    buffers, segments, avail16 = batch.buffers, batch.segments, ring.avail16
    available, head, free, mask = state[NEXT_AVAILABLE], state[FREE_HEAD], state[FREE_COUNT], ring.size - 1
    n = 0
    while n < count:
        first, middle, end = buffers[n * BUFFER + FIRST], buffers[n * BUFFER + MIDDLE], buffers[n * BUFFER + LAST]
        slots = end - first
        indirect = 1 < slots <= ring.indirect
        if indirect:
            slots = 1
        if slots > free:
            break
        if indirect:
            split_write_indirect(ring, memory, segments, first, middle, end, head)
            following = shadow[head * SHADOW + NEXT]
        else:
            following = split_write_direct(ring, shadow, memory, segments, first, middle, end, head)
        shadow[head * SHADOW + SLOTS] = slots
        shadow[head * SHADOW + LIMIT] = buffers[n * BUFFER + WRITABLE]
        avail16[AVAIL_RING + (available & mask)] = head
        buffers[n * BUFFER + ID] = head
        available += 1
        free -= slots
        head = following
        n += 1
    state[NEXT_AVAILABLE], state[FREE_HEAD], state[FREE_COUNT] = available & 0xFFFF, head, free
    state[OUTSTANDING] += n
    return n


@kernel
def split_publish(ring: SplitRing, state: Words) -> None:
    """Shows the device everything that was added."""
    state[SINCE] += (state[NEXT_AVAILABLE] - state[PUBLISHED]) & 0xFFFF
    state[PUBLISHED] = state[NEXT_AVAILABLE]
    # Pairs with the load_acquire of split_take: descriptors and ring entries are there before the index says so.
    store_release(ring.avail16, AVAIL_IDX, state[NEXT_AVAILABLE])


@kernel
def split_available_notification_due(ring: SplitRing, state: Words) -> bool:
    """Whether the device wants to be told of what was published since this was last asked (2.7.9)."""
    since = state[SINCE]
    if since == 0:
        return False
    state[SINCE] = 0
    # Pairs with the fence of split_device_notifications: our avail.idx is out before we look at the device's wish.
    fence()
    if not ring.event_idx:
        return not load_once(ring.used16, USED_FLAGS) & NO_NOTIFY
    event = load_once(ring.used16, ring.avail_event)
    return since > 0xFFFF or need_event(event, state[PUBLISHED], state[PUBLISHED] - since)


@kernel
def split_release(ring: SplitRing, state: Words, shadow: Words, head: int) -> None:
    """Takes a buffer's descriptors back into the free ones."""
    slots = shadow[head * SHADOW + SLOTS]
    shadow[head * SHADOW + SLOTS] = 0
    state[FREE_COUNT] += slots
    if ring.in_order:
        # Descriptors go round the table in order, for adding and for freeing: the links never change.
        state[OLDEST] = (head + slots) & (ring.size - 1)
        return
    tail = head
    for _ in range(slots - 1):
        tail = shadow[tail * SHADOW + NEXT]
    shadow[tail * SHADOW + NEXT] = state[FREE_HEAD]
    state[FREE_HEAD] = head


@kernel
def split_check_used(ring: SplitRing, state: Words, shadow: Words, head: int, length: int, most: int) -> int:
    """Whether the device may name buffer `head` as used now: 0, or a fault. At most `most` buffers are pending."""
    fault = 0
    if head >= ring.size:
        fault = USED_ID
    elif shadow[head * SHADOW + SLOTS] == 0:
        fault = USED_NOT_OUTSTANDING
    elif length > shadow[head * SHADOW + LIMIT]:
        fault = USED_LENGTH
    elif ring.in_order:
        # The element stands for the buffers up to `head`: they must all be pending.
        run, oldest = 1, state[OLDEST]
        while oldest != head and run < most:
            oldest = (oldest + shadow[oldest * SHADOW + SLOTS]) & (ring.size - 1)
            run += 1
        if oldest != head:
            fault = USED_ORDER
    if fault:
        state[FAULT_ID], state[FAULT_AT] = head, length
    return fault


@kernel
def split_take_used(ring: SplitRing, state: Words, shadow: Words, batch: Batch, limit: int) -> int:
    """Takes used buffers into the batch (ID, LENGTH). Returns how many, or a fault negated if the first is bad.

    `limit` at the most; in order, one element may stand for a run of buffers, which is not cut: those before its id
    count as written in full.
    """
    # Pairs with the store_release of split_complete: the elements are read after it.
    idx = load_acquire(ring.used16, USED_IDX)
    buffers = batch.buffers
    used, mask = state[NEXT_USED], ring.size - 1
    pending = (idx - used) & 0xFFFF
    if pending > state[OUTSTANDING]:
        state[FAULT_AT] = idx
        return -USED_INDEX
    count = min(pending, limit)
    fault, n = 0, 0
    while n < count:
        slot = ((used + n) & mask) * USED_STRIDE
        head = load_once(ring.used32, ELEMENT_ID + slot)
        length = load_once(ring.used32, ELEMENT_LEN + slot)
        fault = split_check_used(ring, state, shadow, head, length, pending - n)
        if fault:
            break
        if ring.in_order:
            while state[OLDEST] != head:
                skipped = state[OLDEST]
                buffers[n * BUFFER + ID] = skipped
                buffers[n * BUFFER + LENGTH] = shadow[skipped * SHADOW + LIMIT]
                split_release(ring, state, shadow, skipped)
                n += 1
        buffers[n * BUFFER + ID] = head
        buffers[n * BUFFER + LENGTH] = length
        split_release(ring, state, shadow, head)
        n += 1
    state[NEXT_USED] = (used + n) & 0xFFFF
    state[OUTSTANDING] -= n
    return n if n or not fault else -fault


@kernel
def split_driver_notifications(ring: SplitRing, state: Words, enabled: bool) -> bool:
    """Asks the device for used buffer notifications, or not to send any; True if used buffers are there already."""
    if ring.event_idx:
        if enabled:
            store_release(ring.avail16, ring.used_event, state[NEXT_USED])
    else:
        store_release(ring.avail16, AVAIL_FLAGS, 0 if enabled else NO_INTERRUPT)
    if not enabled:
        return False
    # Pairs with the fence of split_used_notification_due: the wish is out before we look once more.
    fence()
    return load_acquire(ring.used16, USED_IDX) != state[NEXT_USED]
