"""The inflight region of vhost-user: what a back-end writes down of the buffers it has, for the one after it.

The facts, and the names, are those of "Inflight I/O tracking" in QEMU's vhost-user.rst; byte order is the machine's.
A region is one part a queue, all of one size, each beginning at a multiple of 64 bytes.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from construct import Array, Bytes, Int8un, Int16un, Int32un, Int64un, Struct

from virtio_py.records import Record, RecordFamily

VERSION: Final = 1
"""The version of a part that is in use; 0 is one that nobody has written to."""

ALIGNMENT: Final = 64
"""Of a part, in bytes."""

DescStateSplit = Record(
    "DescStateSplit",
    Struct("inflight" / Int8un, "padding" / Bytes(5), "next" / Int16un, "counter" / Int64un),
    cite="Inflight I/O tracking, split virtqueue",
)

QueueRegionSplit = RecordFamily(
    "QueueRegionSplit",
    lambda desc_num: Struct(
        "features" / Int64un,
        "version" / Int16un,
        "desc_num" / Int16un,
        "last_batch_head" / Int16un,
        "used_idx" / Int16un,
        "desc" / Array(desc_num, DescStateSplit.layout),
    ),
    cite="Inflight I/O tracking, split virtqueue",
)

DescStatePacked = Record(
    "DescStatePacked",
    Struct(
        "inflight" / Int8un,
        "padding" / Int8un,
        "next" / Int16un,
        "last" / Int16un,
        "num" / Int16un,
        "counter" / Int64un,
        "id" / Int16un,
        "flags" / Int16un,
        "len" / Int32un,
        "addr" / Int64un,
    ),
    cite="Inflight I/O tracking, packed virtqueue",
)

QueueRegionPacked = RecordFamily(
    "QueueRegionPacked",
    lambda desc_num: Struct(
        "features" / Int64un,
        "version" / Int16un,
        "desc_num" / Int16un,
        "free_head" / Int16un,
        "old_free_head" / Int16un,
        "used_idx" / Int16un,
        "old_used_idx" / Int16un,
        "used_wrap_counter" / Int8un,
        "old_used_wrap_counter" / Int8un,
        # 7 bytes by name, and 3 that a C compiler adds so that desc[] is aligned.
        "padding" / Bytes(10),
        "desc" / Array(desc_num, DescStatePacked.layout),
    ),
    cite="Inflight I/O tracking, packed virtqueue",
)


def part_size(packed: bool, desc_num: int) -> int:
    """The bytes of one queue's part, up to where the next one begins."""
    family, state = (QueueRegionPacked, DescStatePacked) if packed else (QueueRegionSplit, DescStateSplit)
    # Of a part with one entry everything is known; RecordFamily keeps what it makes, and a peer chooses the number.
    size = family(1).size + (desc_num - 1) * state.size
    return -(-size // ALIGNMENT) * ALIGNMENT


class Cell(NamedTuple):
    """A number in a region: which view it is an element of, and where. In an array, `step` elements apart."""

    code: str
    at: int
    step: int = 0


_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


def _cells(family: RecordFamily, state: Record) -> dict[str, Cell]:
    head = family(1)
    numbers = {name: field for name, field in head.fields.items() if field.kind == "int"}
    cells = {name: Cell(_CODES[field.size], field.offset // field.size) for name, field in numbers.items()}
    for name, field in state.fields.items():
        if field.kind == "int":
            at = head.offset("desc") + field.offset
            cells[f"desc.{name}"] = Cell(_CODES[field.size], at // field.size, state.size // field.size)
    return cells


SPLIT_CELLS: Final = _cells(QueueRegionSplit, DescStateSplit)
PACKED_CELLS: Final = _cells(QueueRegionPacked, DescStatePacked)


class Part:
    """One queue's part as cells that are loaded and stored whole: a kill finds each as it was, or as it is to be.

    (`struct` would not do: it clears a number before it writes it, byte by byte.)
    """

    def __init__(self, view: memoryview, cells: dict[str, Cell]) -> None:
        self._cells: Final = cells
        self._views: Final[dict[str, Any]] = {
            # A literal for each: to the type checker, too, these are the only codes there are.
            "B": view.cast("B"),
            "H": view.cast("H"),
            "I": view.cast("I"),
            "Q": view.cast("Q"),
        }

    def get(self, name: str, entry: int = 0) -> int:
        """A cell; of desc, in the entry with this index."""
        code, at, step = self._cells[name]
        return int(self._views[code][at + entry * step])

    def set(self, name: str, value: int, entry: int = 0) -> None:
        """Stores to a cell."""
        code, at, step = self._cells[name]
        self._views[code][at + entry * step] = value
