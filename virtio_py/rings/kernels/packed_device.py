"""The device's half of a packed virtqueue (2.8)."""

from __future__ import annotations

from virtio_py.rings.kernels.common import (
    AVAILABLE_WRAP,
    BAD_HEAD,
    BAD_INDEX,
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
    INDIRECT_NEXT,
    INDIRECT_NOT_NEGOTIATED,
    INDIRECT_SIZE,
    LAST,
    LENGTH,
    LIMIT,
    MAX_CHAIN_BYTES,
    MIDDLE,
    NEXT_AVAILABLE,
    NEXT_USED,
    NOT_AVAILABLE,
    OUTSTANDING,
    ROW,
    SHADOW,
    SINCE,
    SLOTS,
    START,
    TABLE_NOT_MEMORY,
    TOO_LONG,
    TOO_MANY_BYTES,
    USED_WRAP,
    WRITABLE,
    Batch,
    Memory,
    PackedRing,
    Words,
    blame,
    fence,
    kernel,
    load_acquire,
    load_once,
    load_packed_descriptor,
    locate,
    need_event,
    put_segment,
    put_single,
    store_release,
)
from virtio_py.rings.layouts import pvirtq_desc, pvirtq_event_suppress
from virtio_py.spec import PackedDescFlag, RingEventFlag

# The layout's offsets in words of the ring's two views.
STRIDE16 = pvirtq_desc.size // 2
STRIDE32 = pvirtq_desc.size // 4
DESC_FLAGS = pvirtq_desc.offset("flags") // 2
DESC_ID = pvirtq_desc.offset("id") // 2
DESC_LEN = pvirtq_desc.offset("len") // 4
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
    return flags & (F_AVAIL | F_USED) == (F_AVAIL if wrap else F_USED)


@kernel
def packed_is_used(flags: int, wrap: int) -> bool:
    """Whether a descriptor's flags say used, to a side whose wrap counter is `wrap`: both bits are it."""
    return flags & (F_AVAIL | F_USED) == (F_AVAIL | F_USED if wrap else 0)


@kernel
def packed_event_due(event: int, event_idx: int, size: int, position: int, wrap: int, since: int) -> bool:
    """Whether passing the `since` slots before `position` is something the other side's event structure asks for."""
    mode = event >> EVENT_FLAGS & EVENT_FLAGS_MASK
    if mode == DISABLE:
        return False
    if mode != DESC or not event_idx or since > size:
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
def packed_walk(
    ring: PackedRing, state: Words, memory: Memory, batch: Batch, n: int, first: int, slot: int, wrap: int, flags: int
) -> int:
    """Follows the list at a slot, whose first flags are `flags`, and records it as buffer n, its segments from `first`
    on, its LENGTH the slots it takes. 0, or a fault."""
    size = ring.size
    row, table, index, entries = ring.row, ring.table, slot, 0
    end, middle, total, writable, slots, ident = first, -1, 0, 0, 0, 0
    while True:
        address, length, name, loaded = load_packed_descriptor(memory, row, table + index * DESC_SIZE)
        if entries:
            # Of an entry's flags only WRITE means anything, and its id nothing.
            flags = loaded
        else:
            if slots:
                # The head's flags were loaded before all else, and once; those of the rest are in their descriptor.
                flags = loaded
                if not packed_is_available(flags, wrap):
                    state[FAULT_AT] = slot
                    return NOT_AVAILABLE
            slots += 1
            if slots > size:
                return TOO_LONG
            # The buffer id stands in the last descriptor of a list.
            ident = state[FAULT_ID] = name
            slot += 1
            if slot == size:
                slot = 0
                wrap ^= 1
            if flags & F_INDIRECT:
                state[FAULT_AT] = length
                if not ring.indirect:
                    return INDIRECT_NOT_NEGOTIATED
                if flags & F_NEXT or slots > 1:
                    return INDIRECT_NEXT
                if length == 0 or length % DESC_SIZE:
                    return INDIRECT_SIZE
                row = locate(memory, address, length)
                if row < 0:
                    blame(state, address, length, 0)
                    return TABLE_NOT_MEMORY
                table, index, entries = address - memory.rows[row * ROW + START], 0, length // DESC_SIZE
                continue
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
        if entries:
            index += 1
            if index == entries:
                break
        else:
            index = slot
            if not flags & F_NEXT:
                break
    if total > MAX_CHAIN_BYTES:
        return TOO_MANY_BYTES
    buffers = batch.buffers
    buffers[n * BUFFER + ID] = ident
    buffers[n * BUFFER + LENGTH] = slots
    buffers[n * BUFFER + FIRST] = first
    buffers[n * BUFFER + MIDDLE] = end if middle < 0 else middle
    buffers[n * BUFFER + LAST] = end
    buffers[n * BUFFER + WRITABLE] = writable
    return 0


@kernel
def packed_take(ring: PackedRing, state: Words, shadow: Words, memory: Memory, batch: Batch, limit: int) -> int:
    """Takes up to `limit` available buffers into the batch. Returns how many, or the first one's fault negated."""
    buffers, size = batch.buffers, ring.size
    count = min(limit, len(buffers) // BUFFER)
    slot, wrap, outstanding = state[NEXT_AVAILABLE], state[AVAILABLE_WRAP], state[OUTSTANDING]
    fault, first, n = 0, 0, 0
    while n < count:
        # Pairs with the store_release of packed_publish: what the flags cover is read after them.
        flags = load_acquire(ring.ring16, slot * STRIDE16 + DESC_FLAGS)
        if not packed_is_available(flags, wrap):
            break
        if flags & (F_NEXT | F_INDIRECT):
            fault = packed_walk(ring, state, memory, batch, n, first, slot, wrap, flags)
            if fault:
                break
            ident, slots = buffers[n * BUFFER + ID], buffers[n * BUFFER + LENGTH]
            end = buffers[n * BUFFER + LAST]
        else:
            address, length, ident, _ = load_packed_descriptor(memory, ring.row, ring.table + slot * DESC_SIZE)
            fault = put_single(memory, batch, n, first, address, length, flags & F_WRITE)
            if fault:
                state[FAULT_ID], state[FAULT_AT] = ident, slot
                blame(state, address, length, flags & F_WRITE)
                break
            buffers[n * BUFFER + ID] = ident
            slots, end = 1, first + 1
        if ident >= size:
            fault = BAD_HEAD
        elif shadow[ident * SHADOW + SLOTS]:
            fault = HEAD_IN_FLIGHT
        elif outstanding + slots > size:
            fault = BAD_INDEX
        if fault:
            break
        first = end
        shadow[ident * SHADOW + SLOTS] = slots
        shadow[ident * SHADOW + LIMIT] = buffers[n * BUFFER + WRITABLE]
        outstanding += slots
        slot += slots
        if slot >= size:
            slot -= size
            wrap ^= 1
        n += 1
    state[NEXT_AVAILABLE], state[AVAILABLE_WRAP], state[OUTSTANDING] = slot, wrap, outstanding
    return n if n or not fault else -fault


@kernel
def packed_complete(ring: PackedRing, state: Words, shadow: Words, batch: Batch, count: int) -> int:
    """Returns the first `count` buffers of the batch (ID, LENGTH) to the driver, and publishes them at once.

    In order, a run of buffers that were written in full is told by its last one alone, in the slot of its first.
    Returns how many used descriptors were written.
    """
    buffers, ring16, size = batch.buffers, ring.ring16, ring.size
    slot, wrap = state[NEXT_USED], state[USED_WRAP]
    first_slot, first_flags = slot, 0
    elements, moved, n = 0, 0, 0
    while n < count:
        ident, length = buffers[n * BUFFER + ID], buffers[n * BUFFER + LENGTH]
        skipped = shadow[ident * SHADOW + SLOTS]
        shadow[ident * SHADOW + SLOTS] = 0
        if ring.in_order:
            while n + 1 < count and length == shadow[ident * SHADOW + LIMIT]:
                n += 1
                ident, length = buffers[n * BUFFER + ID], buffers[n * BUFFER + LENGTH]
                skipped += shadow[ident * SHADOW + SLOTS]
                shadow[ident * SHADOW + SLOTS] = 0
        ring.ring32[slot * STRIDE32 + DESC_LEN] = length
        ring16[slot * STRIDE16 + DESC_ID] = ident
        # The length counts only where the device says that it may have written.
        flags = F_WRITE if shadow[ident * SHADOW + LIMIT] else 0
        if wrap:
            flags |= F_AVAIL | F_USED
        if elements == 0:
            first_flags = flags
        else:
            store_release(ring16, slot * STRIDE16 + DESC_FLAGS, flags)
        elements += 1
        moved += skipped
        slot += skipped
        if slot >= size:
            slot -= size
            wrap ^= 1
        n += 1
    state[NEXT_USED], state[USED_WRAP] = slot, wrap
    state[OUTSTANDING] -= moved
    state[SINCE] += moved
    if elements:
        # Pairs with the load_acquire of packed_take_used. The driver looks here first: until now it saw none.
        store_release(ring16, first_slot * STRIDE16 + DESC_FLAGS, first_flags)
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
    return packed_is_available(load_acquire(ring.ring16, slot * STRIDE16 + DESC_FLAGS), wrap)
