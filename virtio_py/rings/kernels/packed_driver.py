"""The driver's half of a packed virtqueue (2.8)."""

from __future__ import annotations

from virtio_py.rings.kernels.common import (
    ADDRESS,
    AVAILABLE_WRAP,
    BUFFER,
    DESC_SIZE,
    F_INDIRECT,
    F_NEXT,
    F_WRITE,
    FAULT_AT,
    FAULT_ID,
    FIRST,
    FIRST_FLAGS,
    FIRST_SLOT,
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
    PENDING,
    ROW,
    SEGMENT,
    SHADOW,
    SINCE,
    SIZE,
    SLOTS,
    START,
    USED_ID,
    USED_LENGTH,
    USED_NOT_OUTSTANDING,
    USED_WRAP,
    WRITABLE,
    Batch,
    Memory,
    PackedRing,
    Words,
    fence,
    kernel,
    load_acquire,
    load_once,
    store_packed_descriptor,
    store_release,
)
from virtio_py.rings.kernels.packed_device import (
    DESC_FLAGS,
    DESC_ID,
    DESC_LEN,
    F_AVAIL,
    F_USED,
    STRIDE16,
    STRIDE32,
    packed_event,
    packed_event_due,
    packed_is_used,
)
from virtio_py.rings.layouts import pvirtq_desc

ADDR_LOW = pvirtq_desc.offset("addr") // 4
ADDR_HIGH = ADDR_LOW + 1


@kernel
def packed_flags(segment: int, middle: int, end: int, wrap: int) -> int:
    """The flags that make segment `segment` of a list available. They change with the wrap counter inside a list that
    crosses the end of the ring."""
    flags = F_AVAIL if wrap else F_USED
    if segment >= middle:
        flags |= F_WRITE
    if segment + 1 < end:
        flags |= F_NEXT
    return flags


@kernel
def packed_write(ring: PackedRing, slot: int, address: int, length: int, ident: int) -> None:
    """Writes a descriptor of the ring, all but its flags: those the device may be looking at."""
    ring.ring32[slot * STRIDE32 + ADDR_LOW] = address & 0xFFFFFFFF
    ring.ring32[slot * STRIDE32 + ADDR_HIGH] = address >> 32
    ring.ring32[slot * STRIDE32 + DESC_LEN] = length
    ring.ring16[slot * STRIDE16 + DESC_ID] = ident


@kernel
def packed_write_indirect(
    ring: PackedRing, memory: Memory, segments: Words, first: int, middle: int, end: int, slot: int, ident: int
) -> None:
    """Writes a buffer to the indirect table that belongs to its id, and the ring's one descriptor for it."""
    table = ring.indirect_at + ident * ring.indirect * DESC_SIZE
    for segment in range(first, end):
        offset = table + (segment - first) * DESC_SIZE
        flags = F_WRITE if segment >= middle else 0
        address, length = segments[segment * SEGMENT + ADDRESS], segments[segment * SEGMENT + SIZE]
        store_packed_descriptor(memory, ring.row, offset, address, length, 0, flags)
    packed_write(ring, slot, memory.rows[ring.row * ROW + START] + table, (end - first) * DESC_SIZE, ident)


@kernel
def packed_add(ring: PackedRing, state: Words, shadow: Words, memory: Memory, batch: Batch, count: int) -> int:
    """Adds buffers of the batch, as many of `count` as there is room for, and gives each its id. Not yet published."""
    buffers, segments, ring16, size = batch.buffers, batch.segments, ring.ring16, ring.size
    slot, wrap, free, ident = state[NEXT_AVAILABLE], state[AVAILABLE_WRAP], state[FREE_COUNT], state[FREE_HEAD]
    pending = state[PENDING]
    n = 0
    while n < count:
        first, middle, end = buffers[n * BUFFER + FIRST], buffers[n * BUFFER + MIDDLE], buffers[n * BUFFER + LAST]
        slots = end - first
        indirect = 1 < slots <= ring.indirect
        if indirect:
            slots = 1
        if slots > free:
            break
        head = slot
        if indirect:
            packed_write_indirect(ring, memory, segments, first, middle, end, slot, ident)
            head_flags = (F_AVAIL if wrap else F_USED) | F_INDIRECT
        else:
            packed_write(ring, slot, segments[first * SEGMENT + ADDRESS], segments[first * SEGMENT + SIZE], ident)
            head_flags = packed_flags(first, middle, end, wrap)
        slot += 1
        if slot == size:
            slot = 0
            wrap ^= 1
        for segment in range(first + 1, first + slots):
            packed_write(ring, slot, segments[segment * SEGMENT + ADDRESS], segments[segment * SEGMENT + SIZE], ident)
            ring16[slot * STRIDE16 + DESC_FLAGS] = packed_flags(segment, middle, end, wrap)
            slot += 1
            if slot == size:
                slot = 0
                wrap ^= 1
        # The first list since the last publication waits for the next one: nothing behind it can be seen until then.
        if pending:
            store_release(ring16, head * STRIDE16 + DESC_FLAGS, head_flags)
        else:
            state[FIRST_SLOT], state[FIRST_FLAGS] = head, head_flags
        shadow[ident * SHADOW + SLOTS] = slots
        shadow[ident * SHADOW + LIMIT] = buffers[n * BUFFER + WRITABLE]
        buffers[n * BUFFER + ID] = ident
        ident = shadow[ident * SHADOW + NEXT]
        pending += slots
        free -= slots
        n += 1
    state[NEXT_AVAILABLE], state[AVAILABLE_WRAP] = slot, wrap
    state[FREE_COUNT], state[FREE_HEAD], state[PENDING] = free, ident, pending
    state[OUTSTANDING] += n
    return n


@kernel
def packed_publish(ring: PackedRing, state: Words) -> None:
    """Shows the device everything that was added: it cannot see past the first slot until that one's flags change."""
    if state[PENDING] == 0:
        return
    # Pairs with the load_acquire of packed_take: all descriptors are there before these flags.
    store_release(ring.ring16, state[FIRST_SLOT] * STRIDE16 + DESC_FLAGS, state[FIRST_FLAGS])
    state[SINCE] += state[PENDING]
    state[PENDING] = 0


@kernel
def packed_available_notification_due(ring: PackedRing, state: Words) -> bool:
    """Whether the device wants to be told of what was published since this was last asked (2.8.10)."""
    since = state[SINCE]
    if since == 0:
        return False
    state[SINCE] = 0
    # Pairs with the fence of packed_device_notifications: our flags are out before we look at the device's wish.
    fence()
    event = load_once(ring.device_event, 0)
    return packed_event_due(event, ring.event_idx, ring.size, state[NEXT_AVAILABLE], state[AVAILABLE_WRAP], since)


@kernel
def packed_release(ring: PackedRing, state: Words, shadow: Words, ident: int) -> int:
    """Takes a buffer's slots and id back into the free ones; returns how many slots."""
    slots = shadow[ident * SHADOW + SLOTS]
    shadow[ident * SHADOW + SLOTS] = 0
    state[FREE_COUNT] += slots
    if ring.in_order:
        # Ids go round in order, for adding and for freeing: the links never change.
        state[OLDEST] = shadow[ident * SHADOW + NEXT]
    else:
        shadow[ident * SHADOW + NEXT] = state[FREE_HEAD]
        state[FREE_HEAD] = ident
    return slots


@kernel
def packed_check_used(ring: PackedRing, state: Words, shadow: Words, ident: int, length: int) -> int:
    """Whether the device may name buffer `ident` as used now: 0, or a fault. In order, any that is outstanding may
    come: it stands for all those before it, too."""
    fault = 0
    if ident >= ring.size:
        fault = USED_ID
    elif shadow[ident * SHADOW + SLOTS] == 0:
        fault = USED_NOT_OUTSTANDING
    elif length > shadow[ident * SHADOW + LIMIT]:
        fault = USED_LENGTH
    if fault:
        state[FAULT_ID], state[FAULT_AT] = ident, length
    return fault


@kernel
def packed_take_used(ring: PackedRing, state: Words, shadow: Words, batch: Batch, limit: int) -> int:
    """Takes used buffers into the batch (ID, LENGTH). Returns how many, or a fault negated if the first is bad.

    `limit` at the most; in order, one descriptor may stand for a run of buffers, which is not cut: those before its
    id count as written in full.
    """
    buffers, size = batch.buffers, ring.size
    slot, wrap = state[NEXT_USED], state[USED_WRAP]
    count = min(limit, state[OUTSTANDING])
    fault, n = 0, 0
    while n < count:
        # Pairs with the store_release of packed_complete: id and length are read after the flags.
        flags = load_acquire(ring.ring16, slot * STRIDE16 + DESC_FLAGS)
        if not packed_is_used(flags, wrap):
            break
        ident = load_once(ring.ring16, slot * STRIDE16 + DESC_ID)
        length = load_once(ring.ring32, slot * STRIDE32 + DESC_LEN) if flags & F_WRITE else 0
        fault = packed_check_used(ring, state, shadow, ident, length)
        if fault:
            break
        if ring.in_order:
            while state[OLDEST] != ident:
                skipped = state[OLDEST]
                buffers[n * BUFFER + ID] = skipped
                buffers[n * BUFFER + LENGTH] = shadow[skipped * SHADOW + LIMIT]
                slot += packed_release(ring, state, shadow, skipped)
                n += 1
            if slot >= size:
                slot -= size
                wrap ^= 1
        buffers[n * BUFFER + ID] = ident
        buffers[n * BUFFER + LENGTH] = length
        slots = packed_release(ring, state, shadow, ident)
        # Two branches for one sum: the processor guesses the usual one, and reads the next slot before it has this
        # one's id. Added up, each slot would have to wait for the one before it, and for its line.
        if slots == 1:
            slot += 1
            if slot == size:
                slot = 0
                wrap ^= 1
        else:
            slot += slots
            if slot >= size:
                slot -= size
                wrap ^= 1
        n += 1
    state[NEXT_USED], state[USED_WRAP] = slot, wrap
    state[OUTSTANDING] -= n
    return n if n or not fault else -fault


@kernel
def packed_driver_notifications(ring: PackedRing, state: Words, enabled: bool) -> bool:
    """Asks the device for used buffer notifications, or not to send any; True if used buffers are there already."""
    slot, wrap = state[NEXT_USED], state[USED_WRAP]
    store_release(ring.driver_event, 0, packed_event(ring.event_idx, slot, wrap, enabled))
    if not enabled:
        return False
    # Pairs with the fence of packed_used_notification_due: the wish is out before we look once more.
    fence()
    if state[OUTSTANDING] == 0:
        return False
    return packed_is_used(load_acquire(ring.ring16, slot * STRIDE16 + DESC_FLAGS), wrap)
