"""The device's half of a packed virtqueue (2.8)."""

from __future__ import annotations

from virtio_py.rings.kernels.common import (
    AVAILABLE_WRAP,
    BAD_HEAD,
    BAD_INDEX,
    BATCH_FULL,
    DESC_SIZE,
    F_INDIRECT,
    F_NEXT,
    F_WRITE,
    FAULT_AT,
    FAULT_ID,
    HEAD_IN_FLIGHT,
    INDIRECT_NEXT,
    INDIRECT_NOT_NEGOTIATED,
    INDIRECT_SIZE,
    MAX_CHAIN_BYTES,
    NEXT_AVAILABLE,
    NEXT_USED,
    NOT_AVAILABLE,
    NOT_MEMORY,
    ORDER,
    OUTSTANDING,
    ROW,
    SINCE,
    START,
    TOO_LONG,
    TOO_MANY_BYTES,
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
    load_packed_descriptor,
    locate,
    mapped,
    need_event,
    store_release,
)
from virtio_py.rings.layouts import pvirtq_desc, pvirtq_event_suppress
from virtio_py.spec import PackedDescFlag, RingEventFlag

# The layout's offsets in words of the ring's two views.
STRIDE16 = pvirtq_desc.size // 2
STRIDE32 = pvirtq_desc.size // 4
FLAGS = pvirtq_desc.offset("flags") // 2
ID = pvirtq_desc.offset("id") // 2
LEN = pvirtq_desc.offset("len") // 4
F_AVAIL = int(PackedDescFlag.AVAIL)
F_USED = int(PackedDescFlag.USED)
# An event suppression structure as one little-endian word: position and wrap counter below, flags above.
EVENT_WRAP = pvirtq_event_suppress.register("desc").shifts["desc_event_wrap"][0]
EVENT_OFF = pvirtq_event_suppress.register("desc").shifts["desc_event_off"][1]
EVENT_FLAGS = 8 * pvirtq_event_suppress.offset("flags")
EVENT_FLAGS_MASK = pvirtq_event_suppress.register("flags").shifts["desc_event_flags"][1]
ENABLE, DISABLE, DESC = int(RingEventFlag.ENABLE), int(RingEventFlag.DISABLE), int(RingEventFlag.DESC)


@kernel
def packed_is_available(flags: int, wrap: int) -> bool:
    """Whether a descriptor's flags say available, to a side whose wrap counter is `wrap`: AVAIL is it, USED is not."""
    return (flags & F_AVAIL != 0) == (wrap != 0) and (flags & F_USED != 0) != (wrap != 0)


@kernel
def packed_is_used(flags: int, wrap: int) -> bool:
    """Whether a descriptor's flags say used, to a side whose wrap counter is `wrap`: both bits are it."""
    return (flags & F_AVAIL != 0) == (wrap != 0) and (flags & F_USED != 0) == (wrap != 0)


@kernel
def packed_event_due(event: int, event_idx: int, size: int, position: int, wrap: int, since: int) -> bool:
    """Whether passing the `since` slots before `position` is something the other side's event structure asks for."""
    mode = event >> EVENT_FLAGS & EVENT_FLAGS_MASK
    if mode == DISABLE:
        return False
    if mode != DESC or not event_idx or since >= size:
        return True
    off = event & EVENT_OFF
    # An event with the other wrap counter lies in the lap before ours.
    if event >> EVENT_WRAP & 1 != wrap:
        off -= size
    return need_event(off, position, position - since)


@kernel
def packed_event(event_idx: int, position: int, wrap: int, enabled: bool) -> int:
    """The event structure that asks to be told of `position` (or of anything, without event index), or of nothing."""
    if not enabled:
        return DISABLE << EVENT_FLAGS
    if not event_idx:
        return ENABLE << EVENT_FLAGS
    return position | wrap << EVENT_WRAP | DESC << EVENT_FLAGS


@kernel
def packed_segment(
    ring: PackedRing, memory: Memory, batch: Batch, n: int, address: int, length: int, write: int
) -> int:
    """Records one more segment of buffer n. 0, or a fault."""
    segment = batch.end[n]
    if segment >= len(batch.address):
        return BATCH_FULL
    if segment - batch.first[n] >= ring.max_chain:
        return TOO_LONG
    # A descriptor of no bytes names no memory, whatever its address.
    if length and not mapped(memory, address, length):
        return NOT_MEMORY
    if write:
        batch.writable[n] += length
    elif batch.middle[n] < segment:
        return ORDER
    else:
        batch.middle[n] = segment + 1
        batch.readable[n] += length
    batch.address[segment] = address if length else 0
    batch.size[segment] = length
    batch.end[n] = segment + 1
    return 0


@kernel
def packed_walk_indirect(
    ring: PackedRing, state: Words, memory: Memory, batch: Batch, n: int, table_at: int, length: int
) -> int:
    """Records the entries of an indirect table as buffer n: in sequence, length / 16 of them. 0, or a fault."""
    state[FAULT_AT] = length
    if not ring.indirect:
        return INDIRECT_NOT_NEGOTIATED
    if length == 0 or length % DESC_SIZE:
        return INDIRECT_SIZE
    row = locate(memory, table_at, length)
    if row < 0:
        return NOT_MEMORY
    table = table_at - memory.rows[row * ROW + START]
    for entry in range(length // DESC_SIZE):
        # Of an entry's flags only WRITE means anything, and its id nothing.
        address, size, _, flags = load_packed_descriptor(memory, row, table + entry * DESC_SIZE)
        state[FAULT_AT] = entry
        fault = packed_segment(ring, memory, batch, n, address, size, flags & F_WRITE)
        if fault:
            return fault
    return 0


@kernel
def packed_walk(ring: PackedRing, state: Words, memory: Memory, batch: Batch, n: int, head_flags: int) -> int:
    """Follows the list at the next available slot and records it as buffer n, its id and its slots. 0, or a fault."""
    slot, wrap = state[NEXT_AVAILABLE], state[AVAILABLE_WRAP]
    slots = 0
    while True:
        address, length, ident, flags = load_packed_descriptor(memory, ring.row, ring.table + slot * DESC_SIZE)
        state[FAULT_ID], state[FAULT_AT] = ident, slot
        if slots == 0:
            flags = head_flags
        elif not packed_is_available(flags, wrap):
            return NOT_AVAILABLE
        slots += 1
        if slots > ring.size:
            return TOO_LONG
        if flags & F_INDIRECT:
            if flags & F_NEXT or slots > 1:
                return INDIRECT_NEXT
            fault = packed_walk_indirect(ring, state, memory, batch, n, address, length)
        else:
            fault = packed_segment(ring, memory, batch, n, address, length, flags & F_WRITE)
        if fault:
            return fault
        slot += 1
        if slot == ring.size:
            slot = 0
            wrap ^= 1
        if not flags & F_NEXT:
            break
    if batch.readable[n] + batch.writable[n] > MAX_CHAIN_BYTES:
        return TOO_MANY_BYTES
    # The buffer id stands in the last descriptor of a list.
    batch.ids[n] = ident
    batch.lengths[n] = slots
    return 0


@kernel
def packed_take(ring: PackedRing, state: Words, shadow: Shadow, memory: Memory, batch: Batch, limit: int) -> int:
    """Takes up to `limit` available buffers into the batch. Returns how many, or the first one's fault negated."""
    count = min(limit, len(batch.ids))
    fault = 0
    n = 0
    while n < count:
        # Pairs with the store_release of packed_publish: what the flags cover is read after them.
        flags = load_acquire(ring.ring16, state[NEXT_AVAILABLE] * STRIDE16 + FLAGS)
        if not packed_is_available(flags, state[AVAILABLE_WRAP]):
            break
        start = batch.end[n - 1] if n else 0
        batch.first[n] = batch.middle[n] = batch.end[n] = start
        batch.readable[n] = batch.writable[n] = 0
        fault = packed_walk(ring, state, memory, batch, n, flags)
        if fault:
            break
        ident, slots = batch.ids[n], batch.lengths[n]
        if ident >= ring.size:
            fault = BAD_HEAD
        elif shadow.slots[ident]:
            fault = HEAD_IN_FLIGHT
        elif state[OUTSTANDING] + slots > ring.size:
            fault = BAD_INDEX
        if fault:
            break
        shadow.slots[ident] = slots
        shadow.writable[ident] = batch.writable[n]
        state[OUTSTANDING] += slots
        following = state[NEXT_AVAILABLE] + slots
        if following >= ring.size:
            following -= ring.size
            state[AVAILABLE_WRAP] ^= 1
        state[NEXT_AVAILABLE] = following
        n += 1
    return n if n or not fault else -fault


@kernel
def packed_complete(ring: PackedRing, state: Words, shadow: Shadow, batch: Batch, count: int) -> int:
    """Returns the first `count` buffers of the batch (ids, lengths) to the driver, and publishes them at once.

    In order, a run of buffers that were written in full is told by its last one alone, in the slot of its first.
    Returns how many used descriptors were written.
    """
    first_slot, first_flags = -1, 0
    elements = 0
    n = 0
    while n < count:
        slot, wrap = state[NEXT_USED], state[USED_WRAP]
        run = n
        skipped = shadow.slots[batch.ids[n]]
        shadow.slots[batch.ids[n]] = 0
        if ring.in_order:
            while run + 1 < count and batch.lengths[run] == shadow.writable[batch.ids[run]]:
                run += 1
                skipped += shadow.slots[batch.ids[run]]
                shadow.slots[batch.ids[run]] = 0
        ident = batch.ids[run]
        ring.ring32[slot * STRIDE32 + LEN] = batch.lengths[run]
        ring.ring16[slot * STRIDE16 + ID] = ident
        # The length counts only where the device says that it may have written.
        flags = F_WRITE if shadow.writable[ident] else 0
        if wrap:
            flags |= F_AVAIL | F_USED
        if first_slot < 0:
            first_slot, first_flags = slot, flags
        else:
            store_release(ring.ring16, slot * STRIDE16 + FLAGS, flags)
        elements += 1
        state[OUTSTANDING] -= skipped
        state[SINCE] += skipped
        slot += skipped
        if slot >= ring.size:
            slot -= ring.size
            state[USED_WRAP] ^= 1
        state[NEXT_USED] = slot
        n = run + 1
    if first_slot >= 0:
        # Pairs with the load_acquire of packed_take_used. The driver looks here first: until now it saw none.
        store_release(ring.ring16, first_slot * STRIDE16 + FLAGS, first_flags)
    return elements


@kernel
def packed_used_notification_due(ring: PackedRing, state: Words) -> bool:
    """Whether the driver wants to be told of what was completed since this was last asked (2.8.10)."""
    since = state[SINCE]
    if since == 0:
        return False
    state[SINCE] = 0
    # Pairs with the fence of packed_driver_notifications: our flags are out before we look at the driver's wish.
    fence()
    event = load_once(ring.driver_event, 0)
    return packed_event_due(event, ring.event_idx, ring.size, state[NEXT_USED], state[USED_WRAP], since)


@kernel
def packed_device_notifications(ring: PackedRing, state: Words, enabled: bool) -> bool:
    """Asks the driver for available buffer notifications, or not to send any; True if buffers are there already."""
    slot, wrap = state[NEXT_AVAILABLE], state[AVAILABLE_WRAP]
    store_release(ring.device_event, 0, packed_event(ring.event_idx, slot, wrap, enabled))
    if not enabled:
        return False
    # Pairs with the fence of packed_available_notification_due: the wish is out before we look once more.
    fence()
    return packed_is_available(load_acquire(ring.ring16, slot * STRIDE16 + FLAGS), wrap)
