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
        elif slots == 1:
            following = shadow[head * SHADOW + NEXT]
            address, length = segments[first * SEGMENT + ADDRESS], segments[first * SEGMENT + SIZE]
            flags = F_WRITE if first >= middle else 0
            store_split_descriptor(memory, ring.row, ring.table + head * DESC_SIZE, address, length, flags, following)
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
def split_release(state: Words, shadow: Words, head: int) -> None:
    """Takes a buffer's descriptors back into the free ones."""
    slots = shadow[head * SHADOW + SLOTS]
    shadow[head * SHADOW + SLOTS] = 0
    state[FREE_COUNT] += slots
    tail = head
    for _ in range(slots - 1):
        tail = shadow[tail * SHADOW + NEXT]
    shadow[tail * SHADOW + NEXT] = state[FREE_HEAD]
    state[FREE_HEAD] = head


@kernel
def split_release_run(ring: SplitRing, state: Words, shadow: Words, batch: Batch, n: int, head: int, most: int) -> int:
    """In order: releases the buffers up to `head`, which an element stands for, and records those before it in the
    batch from n on, as written in full. How many they are, or -1, and nothing is done, if `most` do not reach so far.
    """
    buffers, mask = batch.buffers, ring.size - 1
    # Descriptors go round the table in order, for adding and for freeing: the links never change.
    oldest, skipped = state[OLDEST], 0
    while oldest != head:
        if skipped + 1 >= most:
            return -1
        buffers[(n + skipped) * BUFFER + ID] = oldest
        buffers[(n + skipped) * BUFFER + LENGTH] = shadow[oldest * SHADOW + LIMIT]
        skipped += 1
        oldest = (oldest + shadow[oldest * SHADOW + SLOTS]) & mask
    end = (head + shadow[head * SHADOW + SLOTS]) & mask
    state[FREE_COUNT] += ((end - state[OLDEST] - 1) & mask) + 1
    state[OLDEST] = end
    for row in range(n, n + skipped):
        shadow[buffers[row * BUFFER + ID] * SHADOW + SLOTS] = 0
    shadow[head * SHADOW + SLOTS] = 0
    return skipped


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
        if head >= ring.size:
            fault = USED_ID
        elif shadow[head * SHADOW + SLOTS] == 0:
            fault = USED_NOT_OUTSTANDING
        elif length > shadow[head * SHADOW + LIMIT]:
            fault = USED_LENGTH
        elif ring.in_order:
            # The element stands for the buffers up to `head`: they must all be pending.
            skipped = split_release_run(ring, state, shadow, batch, n, head, pending - n)
            if skipped < 0:
                fault = USED_ORDER
            else:
                n += skipped
        else:
            split_release(state, shadow, head)
        if fault:
            state[FAULT_ID], state[FAULT_AT] = head, length
            break
        buffers[n * BUFFER + ID] = head
        buffers[n * BUFFER + LENGTH] = length
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
