"""The driver's half of a split virtqueue (2.7)."""

from __future__ import annotations

from virtio_py.rings.kernels.common import (
    DESC_SIZE,
    F_INDIRECT,
    F_NEXT,
    F_WRITE,
    FAULT_AT,
    FAULT_ID,
    FREE_COUNT,
    FREE_HEAD,
    NEXT_AVAILABLE,
    NEXT_USED,
    OLDEST,
    OUTSTANDING,
    PUBLISHED,
    ROW,
    SINCE,
    START,
    USED_ID,
    USED_INDEX,
    USED_LENGTH,
    USED_NOT_OUTSTANDING,
    USED_ORDER,
    Batch,
    Memory,
    Shadow,
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
    NO_INTERRUPT,
    NO_NOTIFY,
    USED_FLAGS,
    USED_IDX,
    USED_STRIDE,
)
from virtio_py.rings.kernels.split_device import USED_ID as ELEMENT_ID
from virtio_py.rings.kernels.split_device import USED_LEN as ELEMENT_LEN


@kernel
def split_write_indirect(ring: SplitRing, memory: Memory, batch: Batch, n: int, head: int) -> None:
    """Writes buffer n to the indirect table that belongs to descriptor `head`, and that descriptor."""
    table = ring.indirect_at + head * ring.indirect * DESC_SIZE
    first, end = batch.first[n], batch.end[n]
    for segment in range(first, end):
        entry = segment - first
        flags = F_WRITE if segment >= batch.middle[n] else 0
        following = 0
        if segment + 1 < end:
            flags |= F_NEXT
            following = entry + 1
        offset = table + entry * DESC_SIZE
        store_split_descriptor(memory, ring.row, offset, batch.address[segment], batch.size[segment], flags, following)
    address = memory.rows[ring.row * ROW + START] + table
    store_split_descriptor(
        memory, ring.row, ring.table + head * DESC_SIZE, address, (end - first) * DESC_SIZE, F_INDIRECT, 0
    )


@kernel
def split_write_direct(ring: SplitRing, shadow: Shadow, memory: Memory, batch: Batch, n: int, head: int) -> int:
    """Writes buffer n to the descriptors linked from `head` on; returns the one behind them."""
    index = head
    end = batch.end[n]
    for segment in range(batch.first[n], end):
        following = shadow.next[index]
        flags = F_WRITE if segment >= batch.middle[n] else 0
        if segment + 1 < end:
            flags |= F_NEXT
        offset = ring.table + index * DESC_SIZE
        store_split_descriptor(memory, ring.row, offset, batch.address[segment], batch.size[segment], flags, following)
        index = following
    return index


@kernel
def split_add(ring: SplitRing, state: Words, shadow: Shadow, memory: Memory, batch: Batch, count: int) -> int:
    """Adds buffers of the batch, as many of `count` as there is room for, and gives each its id. Not yet published."""
    n = 0
    while n < count:
        length = batch.end[n] - batch.first[n]
        indirect = 1 < length <= ring.indirect
        slots = 1 if indirect else length
        if slots > state[FREE_COUNT]:
            break
        head = state[FREE_HEAD]
        if indirect:
            split_write_indirect(ring, memory, batch, n, head)
            state[FREE_HEAD] = shadow.next[head]
        else:
            state[FREE_HEAD] = split_write_direct(ring, shadow, memory, batch, n, head)
        shadow.slots[head] = slots
        shadow.writable[head] = batch.writable[n]
        ring.avail16[AVAIL_RING + (state[NEXT_AVAILABLE] & (ring.size - 1))] = head
        state[NEXT_AVAILABLE] = (state[NEXT_AVAILABLE] + 1) & 0xFFFF
        state[FREE_COUNT] -= slots
        state[OUTSTANDING] += 1
        batch.ids[n] = head
        n += 1
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
def split_release(ring: SplitRing, state: Words, shadow: Shadow, head: int) -> None:
    """Takes a buffer's descriptors back into the free ones."""
    slots = shadow.slots[head]
    shadow.slots[head] = 0
    state[FREE_COUNT] += slots
    state[OUTSTANDING] -= 1
    if ring.in_order:
        # Descriptors go round the table in order, for adding and for freeing: the links never change.
        state[OLDEST] = (head + slots) & (ring.size - 1)
        return
    tail = head
    for _ in range(slots - 1):
        tail = shadow.next[tail]
    shadow.next[tail] = state[FREE_HEAD]
    state[FREE_HEAD] = head


@kernel
def split_take_used(ring: SplitRing, state: Words, shadow: Shadow, batch: Batch, limit: int) -> int:
    """Takes up to `limit` used buffers into the batch (ids, lengths). Returns how many, or a fault negated.

    In order, one element may stand for a run of buffers: those before its id count as written in full.
    """
    # Pairs with the store_release of split_complete: the elements are read after it.
    idx = load_acquire(ring.used16, USED_IDX)
    used = state[NEXT_USED]
    pending = (idx - used) & 0xFFFF
    if pending > state[OUTSTANDING]:
        state[FAULT_AT] = idx
        return -USED_INDEX
    count = min(pending, limit, len(batch.ids))
    fault = 0
    n = 0
    while n < count:
        slot = ((used + n) & (ring.size - 1)) * USED_STRIDE
        head = load_once(ring.used32, ELEMENT_ID + slot)
        length = load_once(ring.used32, ELEMENT_LEN + slot)
        state[FAULT_ID], state[FAULT_AT] = head, length
        if head >= ring.size:
            fault = USED_ID
        elif shadow.slots[head] == 0:
            fault = USED_NOT_OUTSTANDING
        elif length > shadow.writable[head]:
            fault = USED_LENGTH
        if fault:
            break
        if ring.in_order:
            # The run ends with `head`; if it does not come within what is pending, the device lost the order.
            run, oldest = 1, state[OLDEST]
            while oldest != head and run < pending - n:
                oldest = (oldest + shadow.slots[oldest]) & (ring.size - 1)
                run += 1
            if oldest != head:
                fault = USED_ORDER
                break
            if n + run > len(batch.ids):
                break
            while state[OLDEST] != head:
                batch.ids[n] = state[OLDEST]
                batch.lengths[n] = shadow.writable[state[OLDEST]]
                split_release(ring, state, shadow, state[OLDEST])
                n += 1
        batch.ids[n] = head
        batch.lengths[n] = length
        split_release(ring, state, shadow, head)
        n += 1
    state[NEXT_USED] = (used + n) & 0xFFFF
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
