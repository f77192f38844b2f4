"""Both halves of a ring kept busy with bytes that they check: what only two cores can show to be wrong.

Every buffer has a number. The driver writes its pattern into the readable bytes, and a filling into the writable
ones; the device looks for the pattern of the number that has to come next, and answers with another; the driver
looks for the answer as far as the used length goes, and for its own filling behind it. A descriptor, an index or a
byte that is seen too early or too late is a wrong byte somewhere, because each piece of memory carries a new number
every time. Buffers that are not in order are used backwards, and every fifth one is not written in full.
"""

from __future__ import annotations

from typing import Any

from virtio_py.rings.kernels.common import (
    ADDRESS,
    ANSWER,
    BUFFER,
    BYTES,
    FILLING,
    FIRST,
    ID,
    LAST,
    LENGTH,
    MIDDLE,
    MIX_HIGH,
    MIX_NUMBER,
    MIX_WHOSE,
    MIX_WORD,
    MOVED,
    NOT_SENT,
    NUMBER,
    OWNER,
    PLACE,
    READABLE_BYTES,
    REQUEST,
    ROW,
    SEGMENT,
    SHORT,
    SIZE,
    START,
    STOP,
    STOPPED,
    WRITABLE,
    WRITABLE_BYTES,
    WRONG_ANSWER,
    WRONG_FILLING,
    WRONG_LENGTH,
    WRONG_ORDER,
    WRONG_REQUEST,
    Batch,
    Memory,
    Words,
    kernel,
    load_word,
    locate,
    pause,
    store_word,
)
from virtio_py.rings.kernels.exercise import (
    add,
    complete,
    device_notifications,
    driver_notifications,
    for_each_layout,
    publish,
    take,
    take_used,
)
from virtio_py.rings.layouts import signed_word

WORD = signed_word.size


@kernel
def stress_pattern(number: int, word: int, whose: int) -> int:
    """63 bits that another number, another word or another's pattern would not have. number: below 2^40."""
    low = (number * MIX_NUMBER + word * MIX_WORD + whose * MIX_WHOSE) & 0xFFFFFFFF
    return low | ((low ^ number ^ MIX_HIGH) & 0x7FFFFFFF) << 32


@kernel
def stress_length(number: int) -> int:
    """How many bytes the device writes to a buffer."""
    return WORD if number % SHORT == 0 else WRITABLE_BYTES


@kernel
def stress_write(memory: Memory, address: int, first: int, end: int, number: int, whose: int) -> None:
    """Writes the bytes [first, end) of a pattern to a segment at `address`; multiples of a word."""
    row = locate(memory, address, end)
    if row < 0:
        return
    at = address - memory.rows[row * ROW + START]
    for offset in range(first, end, WORD):
        store_word(memory, row, at + offset, stress_pattern(number, offset // WORD, whose))


@kernel
def stress_matches(memory: Memory, address: int, first: int, end: int, number: int, whose: int) -> bool:
    """Whether the bytes [first, end) of a segment at `address`, in one region, are those of a pattern."""
    row = locate(memory, address, end)
    if row < 0:
        return False
    at = address - memory.rows[row * ROW + START]
    for offset in range(first, end, WORD):
        if load_word(memory, row, at + offset) != stress_pattern(number, offset // WORD, whose):
            return False
    return True


@kernel
def stress_prepare(memory: Memory, batch: Batch, n: int, place: int, number: int) -> None:
    """Makes row n of the batch, two segments, buffer `number` in the piece of memory at `place`."""
    stress_write(memory, place, 0, READABLE_BYTES, number, REQUEST)
    stress_write(memory, place + READABLE_BYTES, 0, WRITABLE_BYTES, number, FILLING)
    segment = batch.buffers[n * BUFFER + FIRST]
    batch.segments[segment * SEGMENT + ADDRESS] = place
    batch.segments[(segment + 1) * SEGMENT + ADDRESS] = place + READABLE_BYTES


@kernel
def stress_check(memory: Memory, place: int, number: int, length: int) -> int:
    """Whether buffer `number` came back as it must. 0, or what is wrong."""
    if length != stress_length(number):
        return WRONG_LENGTH
    if not stress_matches(memory, place + READABLE_BYTES, 0, length, number, ANSWER):
        return WRONG_ANSWER
    if not stress_matches(memory, place + READABLE_BYTES, length, WRITABLE_BYTES, number, FILLING):
        return WRONG_FILLING
    if not stress_matches(memory, place, 0, READABLE_BYTES, number, REQUEST):
        return WRONG_FILLING
    return 0


@kernel
def stress_serve(memory: Memory, batch: Batch, n: int, number: int) -> int:
    """Checks row n of what was taken, which has to be buffer `number`, and answers it. 0, or what is wrong."""
    first, middle = batch.buffers[n * BUFFER + FIRST], batch.buffers[n * BUFFER + MIDDLE]
    if middle != first + 1 or batch.buffers[n * BUFFER + LAST] != middle + 1:
        return WRONG_REQUEST
    if batch.segments[first * SEGMENT + SIZE] != READABLE_BYTES:
        return WRONG_REQUEST
    if batch.buffers[n * BUFFER + WRITABLE] != WRITABLE_BYTES:
        return WRONG_REQUEST
    if not stress_matches(memory, batch.segments[first * SEGMENT + ADDRESS], 0, READABLE_BYTES, number, REQUEST):
        return WRONG_REQUEST
    length = stress_length(number)
    stress_write(memory, batch.segments[middle * SEGMENT + ADDRESS], 0, length, number, ANSWER)
    batch.buffers[n * BUFFER + LENGTH] = length
    return 0


@kernel
def stress_reverse(batch: Batch, count: int) -> None:
    """Turns the first `count` rows round, as far as they matter to those who complete them."""
    buffers = batch.buffers
    for n in range(count // 2):
        a, b = n * BUFFER, (count - 1 - n) * BUFFER
        buffers[a + ID], buffers[b + ID] = buffers[b + ID], buffers[a + ID]
        buffers[a + LENGTH], buffers[b + LENGTH] = buffers[b + LENGTH], buffers[a + LENGTH]


@for_each_layout
def stress_driver(
    ring: Any,
    state: Words,
    shadow: Words,
    memory: Memory,
    batch: Batch,
    done: Batch,
    owners: Words,
    places: Words,
    counters: Words,
    total: int,
    at_once: int,
) -> int:
    """Sends `total` buffers and checks what comes back. 0, a fault, or what is wrong.

    batch: rows of two segments, READABLE_BYTES and WRITABLE_BYTES; places: addresses of free pieces of memory, one
    for each buffer that can be outstanding; owners: OWNER words for each id.
    """
    driver_notifications(ring, state, False)
    sent, received, checked, free = 0, 0, 0, len(places)
    while received < total:
        wanted = min(at_once, total - sent, free)
        for n in range(wanted):
            stress_prepare(memory, batch, n, places[free - 1 - n], sent + n)
        added = add(ring, state, shadow, memory, batch, wanted)
        for n in range(added):
            row = batch.buffers[n * BUFFER + ID] * OWNER
            owners[row + NUMBER], owners[row + PLACE] = sent + n + 1, places[free - 1 - n]
        sent += added
        free -= added
        if added:
            publish(ring, state)
        got = take_used(ring, state, shadow, done, at_once)
        if got < 0:
            return -got
        for n in range(got):
            row = done.buffers[n * BUFFER + ID] * OWNER
            number, place = owners[row + NUMBER] - 1, owners[row + PLACE]
            if number < 0:
                return NOT_SENT
            if ring.in_order and number != received:
                return WRONG_ORDER
            wrong = stress_check(memory, place, number, done.buffers[n * BUFFER + LENGTH])
            if wrong:
                return wrong
            owners[row + NUMBER] = 0
            places[free] = place
            free += 1
            received += 1
            checked += READABLE_BYTES + WRITABLE_BYTES
        if got == 0:
            if counters[STOP]:
                return STOPPED
            pause()
    counters[MOVED], counters[BYTES] = received, checked
    return 0


@for_each_layout
def stress_device(
    ring: Any,
    state: Words,
    shadow: Words,
    memory: Memory,
    batch: Batch,
    counters: Words,
    total: int,
    at_once: int,
) -> int:
    """Takes `total` buffers, checks and answers each. 0, a fault, or what is wrong."""
    device_notifications(ring, state, False)
    moved, checked = 0, 0
    while moved < total:
        got = take(ring, state, shadow, memory, batch, at_once)
        if got < 0:
            return -got
        for n in range(got):
            wrong = stress_serve(memory, batch, n, moved + n)
            if wrong:
                return wrong
            checked += READABLE_BYTES
        if got:
            if not ring.in_order:
                stress_reverse(batch, got)
            complete(ring, state, shadow, batch, got)
            moved += got
        elif counters[STOP]:
            return STOPPED
        else:
            pause()
    counters[MOVED], counters[BYTES] = moved, checked
    return 0
