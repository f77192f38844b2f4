"""What carriers made of registers have in common: how they are reached, and how wide an access must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from virtio_py.access import WIDTHS, RegisterAccess
from virtio_py.device import DeviceEnd
from virtio_py.records import Field, Record
from virtio_py.watch import wait_ready

FEATURE_WORDS: Final = 4
"""How many times 32 feature bits there are, as far as anybody has assigned any."""

WORD: Final = 0xFFFF_FFFF


def feature_word(features: int, selector: int) -> int:
    """32 feature bits from `selector` * 32 on: 0 behind what anybody has assigned, whatever the selector."""
    return features >> 32 * selector & WORD


def with_feature_word(features: int, selector: int, value: int) -> int:
    """`features` with 32 of its bits replaced. All words that nobody offers are one, behind the others: what is set
    there keeps the features from being accepted."""
    # A number of as many bits as the other side's selector asks for, up to 2^37, would take the memory for them.
    shift = 32 * min(selector, FEATURE_WORDS)
    return features & ~(WORD << shift) | (value & WORD) << shift


def config_accesses(record: Record) -> list[tuple[int, int]]:
    """(offset, width) of the accesses that read or write a configuration structure as it must be: each field at its
    own width, and 64 bits as two halves."""
    return [access for field in record.fields.values() for access in _accesses(field, 0)]


def _accesses(field: Field, start: int) -> Iterator[tuple[int, int]]:
    at = start + field.offset
    if field.nested is not None:
        for inner in field.nested.fields.values():
            yield from _accesses(inner, at)
    elif field.item is not None:
        for n in range(field.size // field.item.size):
            yield from _accesses(field.item, at + n * field.item.size)
    else:
        widest = max(WIDTHS)
        halves = field.kind in ("int", "register") and field.size == 2 * widest
        single = field.kind in ("int", "register") and field.size in WIDTHS
        width = widest if halves else field.size if single else 1
        yield from ((at + n, width) for n in range(0, field.size, width))


class ConfigAccess:
    """The driver's accesses to a device-specific configuration space at `base`.

    record: the structure that lies there; what it does not declare is accessed a byte at a time.
    """

    def __init__(self, registers: RegisterAccess, base: int, record: Record | None) -> None:
        self._registers = registers
        self._base = base
        self._accesses: Sequence[tuple[int, int]] = config_accesses(record) if record is not None else ()

    def _cut(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset, width) of accesses that cover [offset, +length); the outer ones may reach beyond."""
        at, end = offset, offset + length
        for start, width in self._accesses:
            if start + width > at and start < end:
                yield start, width
                at = start + width
        yield from ((n, 1) for n in range(at, end))

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`."""
        cut = list(self._cut(offset, length))
        data = b"".join(self._registers.read(self._base + at, width).to_bytes(width, "little") for at, width in cut)
        skip = offset - cut[0][0] if cut else 0
        return data[skip : skip + length]

    def write(self, offset: int, data: bytes) -> None:
        """Stores `data` at `offset`; of a field that it covers only in part, those bytes."""
        end = offset + len(data)
        for at, width in self._cut(offset, len(data)):
            step = width if at >= offset and at + width <= end else 1
            for n in range(max(at, offset), min(at + width, end), step):
                part = data[n - offset : n - offset + step]
                self._registers.write(self._base + n, int.from_bytes(part, "little"), step)


class Kicks:
    """Available buffer notifications that have come over a register and wait to be served, each queue once: what a
    driver sends without end must neither fill our memory nor be served inside its own register access."""

    def __init__(self, end: DeviceEnd) -> None:
        self._end = end
        self._waiting: dict[int, None] = {}

    def add(self, data: int) -> None:
        """A notification as it came. Raises MessageError for one that is for no queue."""
        self._waiting[self._end.notified_queue(data)] = None

    def clear(self) -> None:
        """Forgets them: the device was reset."""
        self._waiting.clear()

    def step(self) -> bool:
        """Serves one queue; False if none waits."""
        if not self._waiting:
            return False
        index = next(iter(self._waiting))
        del self._waiting[index]
        if self._end.available_buffer(index):
            self._waiting[index] = None
        return True

    def work(self, timeout: float) -> bool:
        """Serves one queue, or else waits up to `timeout` seconds for what stands behind the device. Whether anything
        was there to do."""
        if self.step():
            return True
        watches = self._end.device.watch()
        ready = wait_ready(watches, timeout)
        for watch in ready:
            self._end.attend(watch)
        return bool(ready)
