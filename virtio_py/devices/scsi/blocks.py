"""The commands that move blocks (SBC-3 5): what READ, WRITE, VERIFY and their kin do to a disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from virtio_py.devices.blk.media import Medium
from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.cdb import Blocks, Opcode, blocks_of
from virtio_py.devices.scsi.protection import CHECKS, TUPLE, Protection, generate, verify
from virtio_py.devices.scsi.sense import (
    LBA_OUT_OF_RANGE,
    MISCOMPARE,
    CheckCondition,
    invalid_in_cdb,
)
from virtio_py.devices.scsi.task import OVERRUN, Access, Key, Operation, Outcome, Task, no_data
from virtio_py.records import Record

MAX_TRANSFER: Final = 16 << 20
"""Bytes of one READ, WRITE or VERIFY."""


class BlockUnit(Protocol):
    """What these commands need to know of their unit. All that moves data raises OSError."""

    medium: Medium
    block_size: int
    protection: Protection | None
    rotation: int

    @property
    def blocks(self) -> int:
        """How many logical blocks there are."""

    @property
    def thin(self) -> bool:
        """Whether storage can be given back."""

    @property
    def device_type(self) -> int:
        """The peripheral device type."""

    def check_ready(self) -> None:
        """Raises CheckCondition while the medium cannot be reached."""

    def check_writable(self) -> None:
        """Raises CheckCondition where nothing may be written."""

    def load(self, offset: int, length: int) -> bytes:
        """A copy of a range, in bytes."""

    def store(self, lba: int, data: bytes, tuples: bytes | None) -> None:
        """Stores whole blocks with their protection information, which is made where None is given."""

    def fill(self, offset: int, length: int, pattern: bytes, unmap: bool) -> None:
        """Fills a range with copies of a block."""

    def stored(self, force: bool) -> None:
        """Something was written: makes it durable where it has to be at once."""

    def flush(self) -> None:
        """Commits what was written."""

    def power(self, start: bool) -> None:
        """Starts or stops the unit."""


def check_protection(unit: BlockUnit, blocks: Blocks) -> None:
    """Raises CheckCondition where protection is asked for that the unit does not have."""
    if blocks.protect not in CHECKS or (blocks.protect and unit.protection is None):
        raise invalid_in_cdb(1, 7)


def place(unit: BlockUnit, blocks: Blocks, limit: int = MAX_TRANSFER) -> tuple[int, int]:
    """(offset, length) in bytes of a range that lies on the medium and is no longer than `limit`."""
    unit.check_ready()
    _in_range(unit, blocks)
    if blocks.number * unit.block_size > limit:
        raise invalid_in_cdb(COUNT_FIELD)
    return blocks.lba * unit.block_size, blocks.number * unit.block_size


def _in_range(unit: BlockUnit, blocks: Blocks) -> None:
    # By subtraction: no sum of the initiator's numbers, which a faster language would wrap.
    if blocks.lba >= unit.blocks or blocks.number > unit.blocks - blocks.lba:
        raise CheckCondition(LBA_OUT_OF_RANGE)


COUNT_FIELD: Final = 7
"""Where a transfer length begins in a CDB of 10 bytes; in others it is near."""


# Reading


def _read(unit: BlockUnit, task: Task, cdb: Any) -> Outcome | None:
    blocks = blocks_of(cdb)
    check_protection(unit, blocks)
    offset, length = place(unit, blocks)
    if blocks.protect and (task.pi_in is None or task.pi_in.remaining < blocks.number * TUPLE):
        return OVERRUN
    if unit.protection is None and not _wants_pi(task, blocks):
        unit.medium.read_into(offset, task.data_in.views(length))
        # Only now do they count as written: a read that failed half-way transfers nothing.
        task.data_in.advance(length)
        return None
    data = unit.load(offset, length)
    tuples = _tuples_for_reading(unit, blocks, data)
    if task.pi_in is not None and _wants_pi(task, blocks):
        task.pi_in.write(tuples)
    task.data_in.write(data)
    return None


def _wants_pi(task: Task, blocks: Blocks) -> bool:
    return task.pi_in is not None and 0 < blocks.number * TUPLE <= task.pi_in.remaining


def _tuples_for_reading(unit: BlockUnit, blocks: Blocks, data: bytes) -> bytes:
    """Those on the medium, checked; or made here, where only the way to the initiator is protected."""
    if unit.protection is None:
        return generate(data, unit.block_size, blocks.lba)
    tuples = unit.protection.load(blocks.lba, blocks.number)
    verify(data, tuples, unit.block_size, blocks.lba, CHECKS[blocks.protect], unit.protection.type)
    return tuples


# Writing


def _write(unit: BlockUnit, task: Task, cdb: Any) -> Outcome | None:
    blocks = blocks_of(cdb)
    check_protection(unit, blocks)
    offset, length = place(unit, blocks)
    unit.check_writable()
    if blocks.protect and (task.pi_out is None or task.pi_out.remaining < blocks.number * TUPLE):
        return OVERRUN
    if unit.protection is None and not (task.pi_out and task.pi_out.remaining):
        unit.medium.write_from(offset, task.data_out.views(length))
        task.data_out.advance(length)
    else:
        # What is checked must be what is stored: the initiator could change its memory in between.
        _store_checked(unit, blocks, task.data_out.read(length), _tuples_for_writing(task, blocks))
    unit.stored(bool(blocks.fua))
    return None


def _tuples_for_writing(task: Task, blocks: Blocks) -> bytes | None:
    if task.pi_out is None or task.pi_out.remaining < blocks.number * TUPLE:
        return None
    return task.pi_out.read(blocks.number * TUPLE)


def _store_checked(unit: BlockUnit, blocks: Blocks, data: bytes, tuples: bytes | None) -> None:
    kind = unit.protection.type if unit.protection else 1
    if tuples is not None:
        verify(data, tuples, unit.block_size, blocks.lba, CHECKS[blocks.protect], kind)
    unit.store(blocks.lba, data, tuples if blocks.protect else None)


def _write_and_verify(unit: BlockUnit, task: Task, cdb: Any) -> Outcome | None:
    blocks = blocks_of(cdb)._replace(fua=1)
    offset, length = place(unit, blocks)
    if cdb.flags.bytchk > 1:
        raise invalid_in_cdb(1, 2)
    sent = task.data_out.views(length)
    outcome = _write(unit, task, cdb)
    if outcome is None:
        unit.stored(True)
        if cdb.flags.bytchk:
            _compare(unit.load(offset, length), b"".join(sent))
    return outcome


def _compare(stored: bytes, sent: bytes) -> None:
    if stored != sent:
        at = next(n for n, (a, b) in enumerate(zip(stored, sent, strict=True)) if a != b)
        raise CheckCondition(MISCOMPARE, information=at)


def _verify(unit: BlockUnit, task: Task, cdb: Any) -> None:
    blocks = blocks_of(cdb)
    if blocks.protect not in CHECKS:
        raise invalid_in_cdb(1, 7)
    if cdb.flags.bytchk == 2:
        raise invalid_in_cdb(1, 2)
    offset, length = place(unit, blocks)
    stored = unit.load(offset, length)
    if unit.protection is not None:
        _tuples_for_reading(unit, blocks, stored)
    if cdb.flags.bytchk == 1:
        _compare(stored, task.data_out.read(length))
    elif cdb.flags.bytchk == 3:
        _compare(stored, task.data_out.read(unit.block_size) * blocks.number)


def _verified_bytes(unit: BlockUnit, cdb: Any) -> int:
    counts = {0: 0, 1: blocks_of(cdb).number, 2: 0, 3: 1}
    return counts[cdb.flags.bytchk] * unit.block_size


def _compare_and_write(unit: BlockUnit, task: Task, cdb: Any) -> None:
    blocks = blocks_of(cdb)
    check_protection(unit, blocks)
    if blocks.protect:
        raise invalid_in_cdb(1, 7)
    offset, length = place(unit, blocks)
    unit.check_writable()
    expected, data = task.data_out.read(length), task.data_out.read(length)
    _compare(unit.load(offset, length), expected)
    unit.store(blocks.lba, data, None)
    unit.stored(bool(blocks.fua))


def _exchange(unit: BlockUnit, task: Task, cdb: Any) -> None:
    """XDWRITEREAD: stores the data out, and returns them XORed with what was there before."""
    blocks = blocks_of(cdb)
    offset, length = place(unit, blocks)
    unit.check_writable()
    before, data = unit.load(offset, length), task.data_out.read(length)
    unit.store(blocks.lba, data, None)
    unit.stored(bool(blocks.fua))
    mixed = int.from_bytes(before, "big") ^ int.from_bytes(data, "big")
    task.data_in.write(mixed.to_bytes(length, "big"))


def _synchronize(unit: BlockUnit, task: Task, cdb: Any) -> None:
    blocks = blocks_of(cdb)
    unit.check_ready()
    if blocks.lba or blocks.number:
        _in_range(unit, blocks)
    unit.flush()


# The table


def _bytes_of(unit: BlockUnit, cdb: Any) -> int:
    return int(blocks_of(cdb).number * unit.block_size)


def _twice(unit: BlockUnit, cdb: Any) -> int:
    return 2 * _bytes_of(unit, cdb)


_Size = Callable[[Any, Any], int]


def family(
    name: str, records: dict[int, Record], run: Any, access: Access, data_in: _Size = no_data, data_out: _Size = no_data
) -> dict[Key, Operation]:
    """The operations of one name and several lengths of CDB."""
    return {
        (Opcode[f"{name}_{size}"], None): Operation(
            f"{name.replace('_', ' ')} ({size})", record, run, data_in, data_out, access
        )
        for size, record in records.items()
    }


READING: Final[dict[Key, Operation]] = {
    (Opcode.READ_6, None): Operation("READ (6)", cdbs.read_write_6, _read, _bytes_of, access=Access.READ),
    **family("READ", cdbs.read, _read, Access.READ, _bytes_of),
    **family("VERIFY", cdbs.verify, _verify, Access.READ, data_out=_verified_bytes),
}

_AND_VERIFY: Final = {size: cdbs.verify[size] for size in (10, 16)}
_SYNCHRONIZE: Final = {size: cdbs.synchronize_cache[size] for size in (10, 16)}

WRITING: Final[dict[Key, Operation]] = {
    (Opcode.WRITE_6, None): Operation("WRITE (6)", cdbs.read_write_6, _write, no_data, _bytes_of, Access.WRITE),
    **family("WRITE", cdbs.write, _write, Access.WRITE, data_out=_bytes_of),
    **family("WRITE_AND_VERIFY", _AND_VERIFY, _write_and_verify, Access.WRITE, data_out=_bytes_of),
    **family("SYNCHRONIZE_CACHE", _SYNCHRONIZE, _synchronize, Access.WRITE),
    (Opcode.COMPARE_AND_WRITE, None): Operation(
        "COMPARE AND WRITE", cdbs.compare_and_write, _compare_and_write, no_data, _twice, Access.WRITE
    ),
    (Opcode.XDWRITEREAD_10, None): Operation(
        "XDWRITEREAD (10)", cdbs.write[10], _exchange, _bytes_of, _bytes_of, Access.WRITE
    ),
}
