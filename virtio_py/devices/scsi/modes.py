"""Mode pages: MODE SENSE and MODE SELECT of 6 and 10 bytes (SPC-4 7.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field, frozen

from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.cdb import Opcode
from virtio_py.devices.scsi.sense import (
    MODE_CHANGED,
    PARAMETER_LIST_LENGTH,
    SAVING_NOT_SUPPORTED,
    CheckCondition,
    invalid_in_cdb,
    invalid_in_list,
)
from virtio_py.devices.scsi.task import Access, Key, Operation, Task, allocation, parameter_list

ERROR_RECOVERY, CACHING, CONTROL, EXCEPTIONS, CAPABILITIES, ALL_PAGES = 0x01, 0x08, 0x0A, 0x1C, 0x2A, 0x3F
ALL_SUBPAGES: Final = 0xFF
CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)


@frozen
class ModePage:
    """A page by its code: the default of its parameters (behind its 2-byte header), and which bits can be set."""

    code: int
    default: bytes
    changeable: bytes

    def encode(self, body: bytes) -> bytes:
        """The page with its header."""
        return bytes([self.code, len(body)]) + body


def mode_page(code: int, size: int, default: Mapping[int, int], changeable: Mapping[int, int]) -> ModePage:
    """A page of `size` bytes with its header; both maps are from the byte, counted as in the standard, to its value."""

    def body(values: Mapping[int, int]) -> bytes:
        return bytes(values.get(at, 0) for at in range(2, size))

    return ModePage(code, body(default), body(changeable))


@define(eq=False)
class ModePages:
    """The mode pages of one unit, with their current values."""

    pages: tuple[ModePage, ...]
    _current: dict[int, bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """All pages have their defaults."""
        self._current = {page.code: page.default for page in self.pages}

    def bit(self, code: int, byte: int, bit: int) -> bool:
        """A bit of a page's current value; the byte counts from the page's header on."""
        return bool(self._current[code][byte - 2] >> bit & 1)

    def sense(self, control: int, code: int) -> bytes:
        """One page, or all of them, as MODE SENSE wants them. Raises CheckCondition for one that is not here."""
        chosen = [page for page in self.pages if code in (page.code, ALL_PAGES)]
        if not chosen:
            raise invalid_in_cdb(2, 5)
        return b"".join(page.encode(self._value(page, control)) for page in chosen)

    def _value(self, page: ModePage, control: int) -> bytes:
        return {CURRENT: self._current[page.code], CHANGEABLE: page.changeable, DEFAULT: page.default}[control]

    def select(self, data: bytes, start: int) -> bool:
        """Sets all pages in `data`, from byte `start` of the parameter list on, or none. True if one has changed."""
        wanted = dict(self._current)
        at = 0
        while at < len(data):
            page = self._page_at(data, at, start + at)
            body = data[at + 2 : at + 2 + len(page.default)]
            for n, (new, old, mask) in enumerate(zip(body, wanted[page.code], page.changeable, strict=True)):
                if (new ^ old) & ~mask:
                    raise invalid_in_list(start + at + 2 + n)
            wanted[page.code] = body
            at += 2 + len(body)
        changed, self._current = wanted != self._current, wanted
        return changed

    def _page_at(self, data: bytes, at: int, where: int) -> ModePage:
        page = next((p for p in self.pages if p.code == data[at]), None)
        if page is None:
            raise invalid_in_list(where, 5)
        if len(data) - at < 2 + len(page.default):
            raise CheckCondition(PARAMETER_LIST_LENGTH)
        if data[at + 1] != len(page.default):
            raise invalid_in_list(where + 1)
        return page


def _sense(size: int) -> Any:
    def run(unit: Any, task: Task, cdb: Any) -> None:
        control = cdb.page.control
        if control == SAVED:
            raise CheckCondition(SAVING_NOT_SUPPORTED)
        if cdb.subpage not in (0, ALL_SUBPAGES):
            raise invalid_in_cdb(3)
        long = size == 10 and bool(cdb.flags.llbaa)
        blocks = b"" if cdb.flags.dbd else unit.block_descriptor(long)
        body = blocks + unit.modes.sense(control, cdb.page.code)
        task.reply(_header(size, unit.device_specific, len(blocks), len(body), long) + body, cdb.allocation)

    return run


def _header(size: int, specific: int, blocks: int, rest: int, long: bool) -> bytes:
    if size == 6:
        return bytes([min(3 + rest, 255), 0, specific, blocks])
    return (6 + rest).to_bytes(2, "big") + bytes([0, specific, int(long), 0]) + blocks.to_bytes(2, "big")


def _select(size: int) -> Any:
    def run(unit: Any, task: Task, cdb: Any) -> None:
        if cdb.flags.sp:
            raise invalid_in_cdb(1, 0)
        if not cdb.flags.pf or cdb.flags.rtd:
            raise invalid_in_cdb(1, 4)
        data = task.data_out.read(cdb.length)
        if not data:
            return
        start = _after_blocks(unit, data, size)
        if unit.modes.select(data[start:], start):
            unit.attend(MODE_CHANGED, but=task.nexus)
            unit.modes_changed()

    return run


def _after_blocks(unit: Any, data: bytes, size: int) -> int:
    """Where the pages begin. A block descriptor must say what is so already: the medium's blocks are what they are."""
    head = 4 if size == 6 else 8
    if len(data) < head:
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    length = data[3] if size == 6 else int.from_bytes(data[6:8], "big")
    long = size == 10 and bool(data[4] & 1)
    if length and length != (16 if long else 8):
        raise invalid_in_list(3 if size == 6 else 6)
    if len(data) < head + length:
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    if length and not unit.accepts_descriptor(data[head : head + length]):
        raise invalid_in_list(head)
    return head + length


OPERATIONS: Final[dict[Key, Operation]] = {
    (Opcode.MODE_SENSE_6, None): Operation(
        "MODE SENSE (6)", cdbs.mode_sense[6], _sense(6), allocation, access=Access.WRITE
    ),
    (Opcode.MODE_SENSE_10, None): Operation(
        "MODE SENSE (10)", cdbs.mode_sense[10], _sense(10), allocation, access=Access.WRITE
    ),
    (Opcode.MODE_SELECT_6, None): Operation(
        "MODE SELECT (6)", cdbs.mode_select[6], _select(6), data_out=parameter_list, access=Access.WRITE
    ),
    (Opcode.MODE_SELECT_10, None): Operation(
        "MODE SELECT (10)", cdbs.mode_select[10], _select(10), data_out=parameter_list, access=Access.WRITE
    ),
}
