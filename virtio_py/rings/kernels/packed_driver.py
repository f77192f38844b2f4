"""The driver's half of a packed virtqueue (2.8)."""

from __future__ import annotations

from virtio_py.rings.kernels.common import (
    AVAILABLE_WRAP,
    DESC_SIZE,
    F_INDIRECT,
    F_NEXT,
    F_WRITE,
    FAULT_AT,
    FAULT_ID,
    FIRST_FLAGS,
    FIRST_SLOT,
    FREE_COUNT,
    FREE_HEAD,
    NEXT_AVAILABLE,
    NEXT_USED,
    OLDEST,
    OUTSTANDING,
    PENDING,
    ROW,
    SINCE,
    START,
    USED_ID,
    USED_LENGTH,
    USED_NOT_OUTSTANDING,
    USED_ORDER,
    USED_WRAP,
    Batch,
    Memory,
    PackedRing,
    Shadow,
    Words,
    fence,
    kernel,
    load_acquire,
    load_once,
    store_packed_descriptor,
    store_release,
)
from virtio_py.rings.kernels.packed_device import (
    F_AVAIL,
    F_USED,
    FLAGS,
    ID,
    LEN,
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
def packed_write(ring: PackedRing, slot: int, address: int, length: int, ident: int) -> None:
    """Writes a descriptor of the ring, all but its flags: those the device may be looking at."""
    ring.ring32[slot * STRIDE32 + ADDR_LOW] = address & 0xFFFFFFFF
    ring.ring32[slot * STRIDE32 + ADDR_HIGH] = address >> 32
    ring.ring32[slot * STRIDE32 + LEN] = length
    ring.ring16[slot * STRIDE16 + ID] = ident


@kernel
def packed_write_indirect(ring: PackedRing, memory: Memory, batch: Batch, n: int, slot: int, ident: int) -> None:
    """Writes buffer n to the indirect table that belongs to its id, and the ring's one descriptor for it."""
    table = ring.indirect_at + ident * ring.indirect * DESC_SIZE
    first, end = batch.first[n], batch.end[n]
    for segment in range(first, end):
        offset = table + (segment - first) * DESC_SIZE
        flags = F_WRITE if segment >= batch.middle[n] else 0
        store_packed_descriptor(memory, ring.row, offset, batch.address[segment], batch.size[segment], 0, flags)
    packed_write(ring, slot, memory.rows[ring.row * ROW + START] + table, (end - first) * DESC_SIZE, ident)


@kernel
def packed_head_flags(state: Words, ring: PackedRing, slot: int, flags: int) -> None:
    """Stores a list's first flags; those of the first list since the last publication wait for the next one."""
    if state[PENDING]:
        store_release(ring.ring16, slot * STRIDE16 + FLAGS, flags)
    else:
        state[FIRST_SLOT], state[FIRST_FLAGS] = slot, flags


@kernel
def packed_add(ring: PackedRing, state: Words, shadow: Shadow, memory: Memory, batch: Batch, count: int) -> int:
    """Adds buffers of the batch, as many of `count` as there is room for, and gives each its id. Not yet published."""
    n = 0
    while n < count:
        length = batch.end[n] - batch.first[n]
        indirect = 1 < length <= ring.indirect
        slots = 1 if indirect else length
        if slots > state[FREE_COUNT]:
            break
        ident = state[FREE_HEAD]
        state[FREE_HEAD] = shadow.next[ident]
        head, slot = state[NEXT_AVAILABLE], state[NEXT_AVAILABLE]
        head_flags = 0
        for offset in range(slots):
            # The flags change with the wrap counter inside a list that crosses the end of the ring.
            flags = F_AVAIL if state[AVAILABLE_WRAP] else F_USED
            if indirect:
                packed_write_indirect(ring, memory, batch, n, slot, ident)
                flags |= F_INDIRECT
            else:
                segment = batch.first[n] + offset
                packed_write(ring, slot, batch.address[segment], batch.size[segment], ident)
                if segment >= batch.middle[n]:
                    flags |= F_WRITE
            if offset + 1 < slots:
                flags |= F_NEXT
            if offset == 0:
                head_flags = flags
            else:
                ring.ring16[slot * STRIDE16 + FLAGS] = flags
            slot += 1
            if slot == ring.size:
                slot = 0
                state[AVAILABLE_WRAP] ^= 1
        packed_head_flags(state, ring, head, head_flags)
        state[NEXT_AVAILABLE] = slot
        state[PENDING] += slots
        state[FREE_COUNT] -= slots
        state[OUTSTANDING] += 1
        shadow.slots[ident] = slots
        shadow.writable[ident] = batch.writable[n]
        batch.ids[n] = ident
        n += 1
    return n


@kernel
def packed_publish(ring: PackedRing, state: Words) -> None:
    """Shows the device everything that was added: it cannot see past the first slot until that one's flags change."""
    if state[PENDING] == 0:
        return
    # Pairs with the load_acquire of packed_take: all descriptors are there before these flags.
    store_release(ring.ring16, state[FIRST_SLOT] * STRIDE16 + FLAGS, state[FIRST_FLAGS])
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
def packed_release(ring: PackedRing, state: Words, shadow: Shadow, ident: int) -> None:
    """Takes a buffer's slots and id back into the free ones."""
    slots = shadow.slots[ident]
    shadow.slots[ident] = 0
    state[FREE_COUNT] += slots
    state[OUTSTANDING] -= 1
    state[NEXT_USED] += slots
    if state[NEXT_USED] >= ring.size:
        state[NEXT_USED] -= ring.size
        state[USED_WRAP] ^= 1
    if ring.in_order:
        # Ids go round in order, for adding and for freeing: the links never change.
        state[OLDEST] = shadow.next[ident]
        return
    shadow.next[ident] = state[FREE_HEAD]
    state[FREE_HEAD] = ident


@kernel
def packed_take_used(ring: PackedRing, state: Words, shadow: Shadow, batch: Batch, limit: int) -> int:
    """Takes up to `limit` used buffers into the batch (ids, lengths). Returns how many, or a fault negated.

    In order, one descriptor may stand for a run of buffers: those before its id count as written in full.
    """
    count = min(limit, len(batch.ids))
    fault = 0
    n = 0
    while n < count and state[OUTSTANDING]:
        slot = state[NEXT_USED]
        # Pairs with the store_release of packed_complete: id and length are read after the flags.
        flags = load_acquire(ring.ring16, slot * STRIDE16 + FLAGS)
        if not packed_is_used(flags, state[USED_WRAP]):
            break
        ident = load_once(ring.ring16, slot * STRIDE16 + ID)
        length = load_once(ring.ring32, slot * STRIDE32 + LEN) if flags & F_WRITE else 0
        state[FAULT_ID], state[FAULT_AT] = ident, length
        if ident >= ring.size:
            fault = USED_ID
        elif shadow.slots[ident] == 0:
            fault = USED_NOT_OUTSTANDING
        elif length > shadow.writable[ident]:
            fault = USED_LENGTH
        if fault:
            break
        if ring.in_order:
            # `ident` is outstanding, and so are all ids from the oldest to it: the run has an end.
            run, oldest = 1, state[OLDEST]
            while oldest != ident and run < state[OUTSTANDING]:
                oldest = shadow.next[oldest]
                run += 1
            if oldest != ident:
                fault = USED_ORDER
                break
            if n + run > len(batch.ids):
                break
            while state[OLDEST] != ident:
                batch.ids[n] = state[OLDEST]
                batch.lengths[n] = shadow.writable[state[OLDEST]]
                packed_release(ring, state, shadow, state[OLDEST])
                n += 1
        batch.ids[n] = ident
        batch.lengths[n] = length
        packed_release(ring, state, shadow, ident)
        n += 1
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
    return packed_is_used(load_acquire(ring.ring16, slot * STRIDE16 + FLAGS), wrap)
