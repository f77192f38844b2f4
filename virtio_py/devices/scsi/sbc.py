"""What a disk says of itself (SBC-3): standard INQUIRY data, its vital product data pages, its capacity; its power."""

from __future__ import annotations

from typing import Any

from construct import Bytes, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from virtio_py.devices.scsi import blocks, filling
from virtio_py.devices.scsi.blocks import BlockUnit
from virtio_py.devices.scsi.sense import invalid_in_cdb
from virtio_py.devices.scsi.task import Task
from virtio_py.devices.scsi.vpd import (
    SAM_5_VERSION,
    SBC_3_VERSION,
    SPC_4_VERSION,
    block_characteristics,
    block_limits,
    block_provisioning,
    extended_inquiry,
    inquiry_data,
)
from virtio_py.records import Record, Register

capacity_10 = Record("read_capacity_10_data", Struct("last_lba" / Int32ub, "block_size" / Int32ub), cite="SBC-3 5.12.2")

capacity_16 = Record(
    "read_capacity_16_data",
    Struct(
        "last_lba" / Int64ub,
        "block_size" / Int32ub,
        "protection" / Register(Int8ub, prot_en=1, p_type=3, reserved=4),
        "exponents" / Register(Int8ub, physical_block=4, p_i=4),
        "provisioning" / Register(Int16ub, lowest_aligned_lba=14, lbprz=1, lbpme=1),
        "reserved" / Bytes(16),
    ),
    cite="SBC-3 5.13.2",
)


def standard(unit: BlockUnit) -> bytes:
    """Standard INQUIRY data of a disk."""
    versions = (SAM_5_VERSION, SPC_4_VERSION, SBC_3_VERSION)
    return inquiry_data(unit, versions, protection={"protect": int(unit.protection is not None)})


def extended(unit: BlockUnit) -> bytes:
    """The body of page 86h."""
    # SPT 0 is type 1 alone, 4 is type 3 alone.
    kind = 4 if unit.protection and unit.protection.type == 3 else 0
    checks = {"grd_chk": 1, "ref_chk": 1, "spt": kind} if unit.protection else {}
    return extended_inquiry.encode(
        checks=checks, attributes={"simpsup": 1, "headsup": 1, "ordsup": 1}, caches={"v_sup": 1}
    )


def limits(unit: BlockUnit) -> bytes:
    """The body of page B0h."""
    most_same = filling.MAX_WRITE_SAME // unit.block_size
    return block_limits.encode(
        flags={"wsnz": 1},
        maximum_compare_and_write_length=255,
        maximum_transfer_length=blocks.MAX_TRANSFER // unit.block_size,
        maximum_unmap_lba_count=most_same if unit.thin else 0,
        maximum_unmap_block_descriptor_count=filling.MAX_UNMAP_DESCRIPTORS if unit.thin else 0,
        optimal_unmap_granularity=max(4096 // unit.block_size, 1) if unit.thin else 0,
        maximum_write_same_length=most_same,
    )


def characteristics(unit: BlockUnit) -> bytes:
    """The body of page B1h."""
    return block_characteristics.encode(medium_rotation_rate=unit.rotation, flags={"fuab": 1})


def provisioning(unit: BlockUnit) -> bytes:
    """The body of page B2h."""
    flags = {"lbpu": 1, "lbpws": 1, "lbpws10": 1, "lbprz": 1} if unit.thin else {}
    return block_provisioning.encode(flags=flags, provisioning={"type": 2 if unit.thin else 0})


def read_capacity_10(unit: BlockUnit, task: Task, cdb: Any) -> None:
    """READ CAPACITY (10)."""
    unit.check_ready()
    last = min(max(unit.blocks - 1, 0), 0xFFFFFFFF)
    task.reply(capacity_10.encode(last_lba=last, block_size=unit.block_size), capacity_10.size)


def read_capacity_16(unit: BlockUnit, task: Task, cdb: Any) -> None:
    """READ CAPACITY (16)."""
    unit.check_ready()
    guarded = {"prot_en": 1, "p_type": unit.protection.type - 1} if unit.protection else {}
    data = capacity_16.encode(
        last_lba=max(unit.blocks - 1, 0),
        block_size=unit.block_size,
        protection=guarded,
        provisioning={"lbpme": int(unit.thin), "lbprz": int(unit.thin)},
    )
    task.reply(data, cdb.allocation)


def start_stop(unit: BlockUnit, task: Task, cdb: Any) -> None:
    """START STOP UNIT."""
    # Power conditions other than START_VALID are managed by the unit itself, which has none.
    if cdb.power.condition or cdb.power.loej:
        raise invalid_in_cdb(4, 7 if cdb.power.condition else 1)
    unit.power(bool(cdb.power.start))


def capacity_bytes(unit: BlockUnit, cdb: Any) -> int:
    """The bytes of READ CAPACITY (10) data, for which the CDB has no field."""
    return capacity_10.size
