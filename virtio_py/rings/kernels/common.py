"""What all ring kernels share: their arguments, the words of their state, translation, and the event window."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from virtio_py.rings.layouts import pvirtq_desc, signed_word, virtq_desc

Words: TypeAlias = "memoryview[int]"
"""A sequence of machine words, loaded and stored whole: a cast memoryview interpreted, a numpy array compiled."""

Function = TypeVar("Function", bound=Callable[..., Any])

KERNELS: Final[dict[str, Callable[..., Any]]] = {}
"""Every kernel by name, callees before callers."""

TWINS: Final[dict[str, Callable[..., Any]]] = {}
"""The few functions that have a second body when compiled: single accesses to shared memory, and the fence."""


def kernel(function: Function) -> Function:
    """Registers a ring loop for both engines; changes nothing."""
    KERNELS[function.__name__] = function
    return function


def twin(function: Function) -> Function:
    """Registers the interpreted body of an access whose compiled body stands in `rings.compiled`."""
    TWINS[function.__name__] = function
    return function


# Arguments ---------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Guest memory, a row a region, in address order; views: the bytes of each region, for the interpreted twins."""

    rows: Words
    views: tuple[memoryview, ...]


# A row of Memory.rows: guest addresses, the address in this process (compiled), whether a device may write there.
START, END, HOST, MAY_WRITE, ROW = 0, 1, 2, 3, 4


class Batch(NamedTuple):
    """Several buffers at once, as rows of words: one row a buffer, and one row a segment of guest memory.

    One array with rows, and not an array a field: a loop keeps few pointers, and a buffer is in one cache line.
    """

    buffers: Words
    segments: Words


# A row of Batch.buffers. The segments of a buffer are FIRST to END, its writable ones from MIDDLE on.
ID, LENGTH, FIRST, MIDDLE, LAST, WRITABLE, BUFFER = 0, 1, 2, 3, 4, 5, 8
# A row of Batch.segments.
ADDRESS, SIZE, SEGMENT = 0, 1, 2

# A row of a queue's shadow, one for each buffer id: what a half remembers of a buffer, never read from shared memory.
# NEXT: driver: the descriptor (split) or free id (packed) linked behind it; SLOTS: the ring slots that it takes, 0 if
# it is not outstanding; LIMIT: the bytes that the device may write.
NEXT, SLOTS, LIMIT, SHADOW = 0, 1, 2, 4


class SplitRing(NamedTuple):
    """A split virtqueue as its kernels see it.

    The descriptor table is at offset `table` of region `row`. used_event and avail_event are indices into avail16 and
    used16. indirect: for a device whether it was negotiated, for a driver the entries of each of its indirect tables,
    which lie one per descriptor from offset `indirect_at` on. max_chain: the longest chain that is followed.
    """

    size: int
    row: int
    table: int
    avail16: Words
    used16: Words
    used32: Words
    used_event: int
    avail_event: int
    event_idx: int
    in_order: int
    indirect: int
    indirect_at: int
    max_chain: int


class PackedRing(NamedTuple):
    """A packed virtqueue as its kernels see it; fields as in SplitRing.

    ring16, ring32: the descriptor ring in words; driver_event, device_event: the event suppression structures, each
    one 32-bit word so that position and flags are loaded and stored together.
    """

    size: int
    row: int
    table: int
    ring16: Words
    ring32: Words
    driver_event: Words
    device_event: Words
    event_idx: int
    in_order: int
    indirect: int
    indirect_at: int
    max_chain: int


# State: one small array for each half of a queue, so that a snapshot is a copy -------------------------------------

NEXT_AVAILABLE = 0  # device: where it takes next; driver: where it adds next. Split: free-running; packed: a slot
NEXT_USED = 1  # device: where it puts the next used element; driver: where it looks for it
AVAILABLE_WRAP = 2  # packed: the wrap counter that goes with NEXT_AVAILABLE
USED_WRAP = 3  # packed: the wrap counter that goes with NEXT_USED
SINCE = 4  # slots published since a notification was last decided
PUBLISHED = 5  # driver: what the device has been shown of NEXT_AVAILABLE
FREE_HEAD = 6  # driver: the first free descriptor (split) or id (packed)
FREE_COUNT = 7  # driver: free descriptors
OUTSTANDING = 8  # buffers made available and not yet used
OLDEST = 9  # driver, in order: id of the buffer that has to be used next
FAULT_ID = 10  # the buffer in which a fault was found
FAULT_AT = 11  # the offending value: an index, an id, a length
FIRST_FLAGS = 12  # packed driver: the flags that publish all that was added
FIRST_SLOT = 13  # packed driver: and the slot they go to
PENDING = 14  # packed driver: slots added and not yet published
FAULT_ADDRESS = 15  # of NOT_MEMORY and TABLE_NOT_MEMORY: the range that was wanted, and whether it was to be written
FAULT_LENGTH = 16
FAULT_WRITE = 17
STATE_WORDS = 18

# Faults: what a kernel returns, negated. `rings.faults` gives each its error and clause ----------------------------

BAD_INDEX = 1
BAD_HEAD = 2
HEAD_IN_FLIGHT = 3
BAD_NEXT = 4
LOOP = 5
TOO_LONG = 6
TOO_MANY_BYTES = 7
ORDER = 8
NOT_MEMORY = 9
INDIRECT_NOT_NEGOTIATED = 10
INDIRECT_NESTED = 11
INDIRECT_NEXT = 12
INDIRECT_SIZE = 13
NOT_AVAILABLE = 14
USED_INDEX = 15
USED_ID = 16
USED_NOT_OUTSTANDING = 17
USED_LENGTH = 18
USED_ORDER = 19
TABLE_NOT_MEMORY = 20
BATCH_FULL = 99  # not a fault of the peer's: no room for the segments of one more chain

STOPPED = 98  # not a fault of the peer's: STOP was set

MAX_CHAIN_BYTES = 1 << 32

# What a half that is kept busy reports of a run, by index into its counters. STOP goes the other way: whoever watches
# the run sets it when the other half has failed, and this one would wait for ever. BYTES: only where they are checked.
MOVED, NOTIFICATIONS, SLEEPS, STOP, BYTES, COUNTERS = 0, 1, 2, 3, 4, 5

ADDRESS_MASK = (1 << 63) - 1

DESC_SIZE = virtq_desc.size
F_NEXT, F_WRITE, F_INDIRECT = 1, 2, 4


# Stress: what is in the bytes -------------------------------------------------------------------------------------

# A buffer's piece of memory: its readable bytes first, its writable ones behind them.
READABLE_BYTES, WRITABLE_BYTES, PIECE = 16, 24, 64
# Whose pattern it is, and what patterns are mixed from.
REQUEST, ANSWER, FILLING = 1, 2, 3
MIX_NUMBER, MIX_WORD, MIX_WHOSE, MIX_HIGH = 40503, 2654435, 97, 0x5A5A5A5A
# Every so many buffers one is not written in full.
SHORT = 5
# What the driver remembers of a buffer, by its id: a row of `owners`.
NUMBER, PLACE, OWNER = 0, 1, 2
# What can be wrong besides faults.
WRONG_REQUEST = 101  # what the device reads is not buffer number so-and-so
WRONG_ANSWER = 102
WRONG_LENGTH = 103
WRONG_FILLING = 104  # the device wrote where it did not say so
WRONG_ORDER = 105
NOT_SENT = 106


# Accesses to shared memory: the only bodies that differ between engines --------------------------------------------

_fence = Lock()


@twin
def load_acquire(words: Words, index: int) -> int:
    """A load that no later load or store may pass. Interpreted: x86 and the interpreter keep loads in order."""
    return words[index]


@twin
def load_once(words: Words, index: int) -> int:
    """A load of a word the other side may be writing: once, whole, not repeated by the compiler."""
    return words[index]


@twin
def store_release(words: Words, index: int, value: int) -> None:
    """A store that no earlier load or store may pass."""
    words[index] = value


@twin
def fence() -> None:
    """Nothing passes, not even a load an earlier store. Interpreted: a lock's atomic exchange is such a fence."""
    with _fence:
        pass


@twin
def pause() -> None:
    """A hint that this is a polling loop."""


_SPLIT = virtq_desc.codec
_PACKED = pvirtq_desc.codec


@twin
def load_split_descriptor(memory: Memory, row: int, offset: int) -> tuple[int, int, int, int]:
    """(addr, len, flags, next) of the virtq_desc at `offset` of a region, each field read once."""
    address, length, flags, following = _SPLIT.unpack_from(memory.views[row], offset)
    return address, length, flags, following


@twin
def store_split_descriptor(
    memory: Memory, row: int, offset: int, address: int, length: int, flags: int, following: int
) -> None:
    """Writes a virtq_desc that the device has not been shown yet."""
    _SPLIT.pack_into(memory.views[row], offset, address, length, flags, following)


@twin
def load_packed_descriptor(memory: Memory, row: int, offset: int) -> tuple[int, int, int, int]:
    """(addr, len, id, flags) of the pvirtq_desc at `offset` of a region, each field read once."""
    address, length, ident, flags = _PACKED.unpack_from(memory.views[row], offset)
    return address, length, ident, flags


@twin
def store_packed_descriptor(
    memory: Memory, row: int, offset: int, address: int, length: int, ident: int, flags: int
) -> None:
    """Writes a pvirtq_desc of an indirect table that the device has not been shown yet."""
    _PACKED.pack_into(memory.views[row], offset, address, length, ident, flags)


_WORD = signed_word.codec


@twin
def load_word(memory: Memory, row: int, offset: int) -> int:
    """The 8 bytes at `offset` of a region, signed, little-endian, read once."""
    word: int = _WORD.unpack_from(memory.views[row], offset)[0]
    return word


@twin
def store_word(memory: Memory, row: int, offset: int, value: int) -> None:
    """Writes 8 bytes at `offset` of a region."""
    _WORD.pack_into(memory.views[row], offset, value)


# Translation and arithmetic ----------------------------------------------------------------------------------------


@kernel
def locate(memory: Memory, address: int, length: int) -> int:
    """The row of the region that holds all of [address, +length), or -1. Compared so that nothing can wrap."""
    rows = memory.rows
    for row in range(len(rows) // ROW):
        if rows[row * ROW + START] <= address < rows[row * ROW + END]:
            if length <= rows[row * ROW + END] - address:
                return row
            return -1
    return -1


@kernel
def mapped(memory: Memory, address: int, length: int, write: int) -> bool:
    """Whether every byte of [address, +length) is memory (that may be written), adjacent regions being one range."""
    rows = memory.rows
    for row in range(len(rows) // ROW):
        if rows[row * ROW + START] <= address < rows[row * ROW + END]:
            if write and not rows[row * ROW + MAY_WRITE]:
                return False
            room = rows[row * ROW + END] - address
            if length <= room:
                return True
            address += room
            length -= room
    return False


@kernel
def put_segment(
    memory: Memory,
    batch: Batch,
    max_chain: int,
    first: int,
    end: int,
    writing: int,
    address: int,
    length: int,
    write: int,
) -> int:
    """Records a descriptor's buffer as segment `end` of a chain whose segments begin at `first`. 0, or a fault.

    writing: whether a writable segment came before; write: whether this one is.
    """
    if length == 0:
        # A descriptor of no bytes names no memory, whatever its address.
        address = 0
    elif not mapped(memory, address, length, write):
        return NOT_MEMORY
    if writing and not write:
        return ORDER
    if end - first >= max_chain:
        return TOO_LONG
    segments = batch.segments
    if end * SEGMENT >= len(segments):
        return BATCH_FULL
    segments[end * SEGMENT + ADDRESS] = address
    segments[end * SEGMENT + SIZE] = length
    return 0


@kernel
def put_single(memory: Memory, batch: Batch, n: int, first: int, address: int, length: int, write: int) -> int:
    """Records a buffer of one descriptor as buffer n, segment `first`. 0, or a fault. Its id is the caller's to record.

    What put_segment and the walks would do, without their loop: most buffers are like this one.
    """
    if length == 0:
        address = 0
    elif not mapped(memory, address, length, write):
        return NOT_MEMORY
    buffers, segments = batch.buffers, batch.segments
    if first * SEGMENT >= len(segments):
        return BATCH_FULL
    segments[first * SEGMENT + ADDRESS] = address
    segments[first * SEGMENT + SIZE] = length
    buffers[n * BUFFER + FIRST] = first
    buffers[n * BUFFER + MIDDLE] = first if write else first + 1
    buffers[n * BUFFER + LAST] = first + 1
    buffers[n * BUFFER + WRITABLE] = length if write else 0
    return 0


@kernel
def blame(state: Words, address: int, length: int, write: int) -> None:
    """Leaves word of the range that could not be used. An address of 64 bits is no address, and fits no word."""
    state[FAULT_ADDRESS] = address & ADDRESS_MASK
    state[FAULT_LENGTH] = length
    state[FAULT_WRITE] = write


@kernel
def need_event(event: int, new: int, old: int) -> bool:
    """Whether publishing the indices old to new - 1 passed `event` (2.7.10): free-running 16-bit indices."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
