"""Filling a range of blocks, and giving its storage back: WRITE SAME and UNMAP (SBC-3 5.28, 5.42)."""

from __future__ import annotations

from typing import Any, Final

from construct import Int16ub, Int32ub, Int64ub, Struct

from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.blocks import COUNT_FIELD, BlockUnit, check_protection, family, place
from virtio_py.devices.scsi.cdb import Blocks, Opcode, blocks_of
from virtio_py.devices.scsi.sense import PARAMETER_LIST_LENGTH, CheckCondition, invalid_in_cdb, invalid_in_list
from virtio_py.devices.scsi.task import Access, Key, Operation, Task, parameter_list
from virtio_py.records import Record

MAX_WRITE_SAME: Final = 64 << 20
"""Bytes that one WRITE SAME fills, and that one UNMAP descriptor takes away."""

MAX_UNMAP_DESCRIPTORS: Final = 64

unmap_header = Record(
    "unmap_parameter_list",
    Struct("data_length" / Int16ub, "descriptors_length" / Int16ub, "reserved" / Int32ub),
    cite="SBC-3 5.28.2",
)
unmap_descriptor = Record(
    "unmap_block_descriptor", Struct("lba" / Int64ub, "count" / Int32ub, "reserved" / Int32ub), cite="SBC-3 5.28.2"
)


def _write_same(unit: BlockUnit, task: Task, cdb: Any) -> None:
    blocks = blocks_of(cdb)
    flags = cdb.flags
    check_protection(unit, blocks)
    if blocks.protect or flags.anchor:
        raise invalid_in_cdb(1, 7 if blocks.protect else 4)
    if flags.unmap and not unit.thin:
        raise invalid_in_cdb(1, 3)
    if not blocks.number:
        # WSNZ is set: "to the end of the medium" is not for a CDB to say.
        raise invalid_in_cdb(COUNT_FIELD)
    offset, length = place(unit, blocks, MAX_WRITE_SAME)
    unit.check_writable()
    pattern = bytes(unit.block_size) if getattr(flags, "ndob", 0) else task.data_out.read(unit.block_size)
    unit.fill(offset, length, pattern, bool(flags.unmap))
    unit.stored(False)


def _same_bytes(unit: BlockUnit, cdb: Any) -> int:
    return 0 if getattr(cdb.flags, "ndob", 0) else int(unit.block_size)


def _unmap(unit: BlockUnit, task: Task, cdb: Any) -> None:
    if cdb.flags.anchor:
        raise invalid_in_cdb(1, 0)
    data = task.data_out.read(cdb.length)
    unit.check_writable()
    ranges = [place(unit, blocks, MAX_WRITE_SAME) for blocks in _unmap_ranges(data)]
    # All were judged before the first is carried out, so that a refused list has changed nothing.
    for offset, length in ranges:
        unit.fill(offset, length, bytes(unit.block_size), True)
    unit.stored(False)


def _unmap_ranges(data: bytes) -> list[Blocks]:
    if not data:
        return []
    if len(data) < unmap_header.size:
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    count = unmap_header.decode(data).descriptors_length // unmap_descriptor.size
    if unmap_header.size + count * unmap_descriptor.size > len(data):
        raise CheckCondition(PARAMETER_LIST_LENGTH)
    if count > MAX_UNMAP_DESCRIPTORS:
        raise invalid_in_list(2)
    record = unmap_descriptor
    found = [record.decode(data, unmap_header.size + n * record.size) for n in range(count)]
    return [Blocks(one.lba, one.count) for one in found]


def _thin(unit: BlockUnit) -> bool:
    return unit.thin


OPERATIONS: Final[dict[Key, Operation]] = {
    **family("WRITE_SAME", cdbs.write_same, _write_same, Access.WRITE, data_out=_same_bytes),
    (Opcode.UNMAP, None): Operation(
        "UNMAP", cdbs.unmap, _unmap, data_out=parameter_list, access=Access.WRITE, when=_thin
    ),
}
