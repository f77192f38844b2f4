"""Command descriptor blocks: the first bytes of every command, declared once (SPC-4, SBC-3, MMC-6), big-endian.

From a declaration follows how the CDB is read, which of its bits mean anything (`usage`, which is what REPORT SUPPORTED
OPERATION CODES tells), and which bits a driver must leave zero: those of fields called `reserved…` or `obsolete…`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

from construct import Bytes, Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Struct

from virtio_py.records import Field, Record, Register


class Opcode(IntEnum):
    """Operation codes: the first byte of a CDB."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    WRITE_AND_VERIFY_10 = 0x2E
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    READ_TOC = 0x43
    GET_CONFIGURATION = 0x46
    GET_EVENT_STATUS_NOTIFICATION = 0x4A
    LOG_SENSE = 0x4D
    READ_DISC_INFORMATION = 0x51
    XDWRITEREAD_10 = 0x53
    MODE_SELECT_10 = 0x55
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    READ_16 = 0x88
    COMPARE_AND_WRITE = 0x89
    WRITE_16 = 0x8A
    WRITE_AND_VERIFY_16 = 0x8E
    VERIFY_16 = 0x8F
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    VERIFY_12 = 0xAF
    MECHANISM_STATUS = 0xBD


class ServiceAction(IntEnum):
    """Service actions, each with its operation code in the name."""

    SERVICE_ACTION_IN_16_READ_CAPACITY_16 = 0x10
    MAINTENANCE_IN_REPORT_SUPPORTED_OPERATION_CODES = 0x0C
    MAINTENANCE_IN_REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS = 0x0D


class PrIn(IntEnum):
    """Service actions of PERSISTENT RESERVE IN."""

    READ_KEYS = 0
    READ_RESERVATION = 1
    REPORT_CAPABILITIES = 2
    READ_FULL_STATUS = 3


class PrOut(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT."""

    REGISTER = 0
    RESERVE = 1
    RELEASE = 2
    CLEAR = 3
    PREEMPT = 4
    PREEMPT_AND_ABORT = 5
    REGISTER_AND_IGNORE_EXISTING_KEY = 6


def _cdb(name: str, *fields: Any) -> Record:
    return Record(name, Struct("opcode" / Int8ub, *fields, "reserved_control" / Int8ub), cite="SPC-4, SBC-3, MMC-6")


_SA: Final = "action" / Register(Int8ub, service_action=5, reserved=3)
_GROUP: Final = "group" / Register(Int8ub, number=5, reserved=3)
_READ: Final = "flags" / Register(Int8ub, obsolete=2, rarc=1, fua=1, dpo=1, protect=3)
_WRITE: Final = "flags" / Register(Int8ub, obsolete=3, fua=1, dpo=1, protect=3)
_VERIFY: Final = "flags" / Register(Int8ub, obsolete=1, bytchk=2, reserved=1, dpo=1, protect=3)
_SAME_10: Final = "flags" / Register(Int8ub, obsolete=3, unmap=1, anchor=1, protect=3)
_SAME_16: Final = "flags" / Register(Int8ub, ndob=1, obsolete=2, unmap=1, anchor=1, protect=3)
_SYNC: Final = "flags" / Register(Int8ub, obsolete=1, immed=1, reserved=6)


def _blocks(flags: Any) -> dict[int, Record]:
    """The CDBs of 10, 12 and 16 bytes that name a range of blocks; they have the same fields in the same order."""
    return {
        10: _cdb("blocks_10", flags, "lba" / Int32ub, _GROUP, "count" / Int16ub),
        12: _cdb("blocks_12", flags, "lba" / Int32ub, "count" / Int32ub, _GROUP),
        16: _cdb("blocks_16", flags, "lba" / Int64ub, "count" / Int32ub, _GROUP),
    }


read: Final = _blocks(_READ)
write: Final = _blocks(_WRITE)
verify: Final = _blocks(_VERIFY)
synchronize_cache: Final = _blocks(_SYNC)
write_same: Final = {10: _blocks(_SAME_10)[10], 16: _blocks(_SAME_16)[16]}
read_write_6: Final = _cdb("read_write_6", "where" / Register(Int24ub, lba=21, reserved=3), "count" / Int8ub)
compare_and_write: Final = _cdb(
    "compare_and_write", _WRITE, "lba" / Int64ub, "reserved1" / Bytes(3), "count" / Int8ub, _GROUP
)
unmap: Final = _cdb(
    "unmap", "flags" / Register(Int8ub, anchor=1, reserved=7), "reserved1" / Bytes(4), _GROUP, "length" / Int16ub
)
read_capacity_10: Final = _cdb("read_capacity_10", "reserved1" / Bytes(8))
read_capacity_16: Final = _cdb(
    "read_capacity_16", _SA, "obsolete_lba" / Bytes(8), "allocation" / Int32ub, "reserved1" / Int8ub
)
start_stop_unit: Final = _cdb(
    "start_stop_unit",
    "flags" / Register(Int8ub, immed=1, reserved=7),
    "reserved1" / Int8ub,
    "modifier" / Register(Int8ub, value=4, reserved=4),
    "power" / Register(Int8ub, start=1, loej=1, no_flush=1, reserved=1, condition=4),
)
prevent_allow: Final = _cdb(
    "prevent_allow_medium_removal", "reserved1" / Bytes(3), "prevent" / Register(Int8ub, value=2, reserved=6)
)

test_unit_ready: Final = _cdb("test_unit_ready", "reserved1" / Bytes(4))
request_sense: Final = _cdb(
    "request_sense", "flags" / Register(Int8ub, desc=1, reserved=7), "reserved1" / Int16ub, "allocation" / Int8ub
)
inquiry: Final = _cdb(
    "inquiry", "flags" / Register(Int8ub, evpd=1, reserved=7), "page_code" / Int8ub, "allocation" / Int16ub
)
report_luns: Final = _cdb(
    "report_luns",
    "reserved1" / Int8ub,
    "select_report" / Int8ub,
    "reserved2" / Bytes(3),
    "allocation" / Int32ub,
    "reserved3" / Int8ub,
)
_PAGE: Final = "page" / Register(Int8ub, code=6, control=2)
mode_sense: Final = {
    6: _cdb(
        "mode_sense_6",
        "flags" / Register(Int8ub, reserved=3, dbd=1, reserved1=4),
        _PAGE,
        "subpage" / Int8ub,
        "allocation" / Int8ub,
    ),
    10: _cdb(
        "mode_sense_10",
        "flags" / Register(Int8ub, reserved=3, dbd=1, llbaa=1, reserved1=3),
        _PAGE,
        "subpage" / Int8ub,
        "reserved1" / Bytes(3),
        "allocation" / Int16ub,
    ),
}
_SELECT: Final = "flags" / Register(Int8ub, sp=1, rtd=1, reserved=2, pf=1, reserved1=3)
mode_select: Final = {
    6: _cdb("mode_select_6", _SELECT, "reserved1" / Int16ub, "length" / Int8ub),
    10: _cdb("mode_select_10", _SELECT, "reserved1" / Bytes(5), "length" / Int16ub),
}
log_sense: Final = _cdb(
    "log_sense",
    "flags" / Register(Int8ub, sp=1, reserved=7),
    _PAGE,
    "subpage" / Int8ub,
    "reserved1" / Int8ub,
    "parameter_pointer" / Int16ub,
    "allocation" / Int16ub,
)
persistent_reserve_in: Final = _cdb("persistent_reserve_in", _SA, "reserved1" / Bytes(5), "allocation" / Int16ub)
persistent_reserve_out: Final = _cdb(
    "persistent_reserve_out",
    _SA,
    "reservation" / Register(Int8ub, type=4, scope=4),
    "reserved1" / Int16ub,
    "length" / Int32ub,
)
report_supported_operation_codes: Final = _cdb(
    "report_supported_operation_codes",
    _SA,
    "options" / Register(Int8ub, reporting=3, reserved=4, rctd=1),
    "requested_opcode" / Int8ub,
    "requested_action" / Int16ub,
    "allocation" / Int32ub,
    "reserved1" / Int8ub,
)
report_supported_tmfs: Final = _cdb(
    "report_supported_task_management_functions",
    _SA,
    "flags" / Register(Int8ub, reserved=7, repd=1),
    "reserved1" / Bytes(3),
    "allocation" / Int32ub,
    "reserved2" / Int8ub,
)

read_toc: Final = _cdb(
    "read_toc",
    "flags" / Register(Int8ub, reserved=1, msf=1, reserved1=6),
    "format" / Register(Int8ub, code=4, reserved=4),
    "reserved1" / Bytes(3),
    "track" / Int8ub,
    "allocation" / Int16ub,
)
get_configuration: Final = _cdb(
    "get_configuration",
    "flags" / Register(Int8ub, rt=2, reserved=6),
    "starting_feature" / Int16ub,
    "reserved1" / Bytes(3),
    "allocation" / Int16ub,
)
get_event_status: Final = _cdb(
    "get_event_status_notification",
    "flags" / Register(Int8ub, polled=1, reserved=7),
    "reserved1" / Int16ub,
    "classes" / Int8ub,
    "reserved2" / Int16ub,
    "allocation" / Int16ub,
)
read_disc_information: Final = _cdb(
    "read_disc_information",
    "flags" / Register(Int8ub, data_type=3, reserved=5),
    "reserved1" / Bytes(5),
    "allocation" / Int16ub,
)
mechanism_status: Final = _cdb("mechanism_status", "reserved1" / Bytes(7), "allocation" / Int16ub, "reserved2" / Int8ub)


def usage(record: Record) -> bytes:
    """Which bits of a CDB mean anything: a mask as long as the CDB, all ones in its first byte."""
    return b"".join(_field_usage(field) for field in record.fields.values())


def _field_usage(field: Field) -> bytes:
    if _means_nothing(field.name):
        return bytes(field.size)
    if field.register is None:
        return b"\xff" * field.size
    known = {name: mask for name, (_, mask) in field.register.shifts.items() if not _means_nothing(name)}
    return field.register.join(known).to_bytes(field.size, "big")


def _means_nothing(name: str) -> bool:
    return name.startswith(("reserved", "obsolete"))


class Blocks(NamedTuple):
    """A range of logical blocks that a CDB names, and how it is to be treated."""

    lba: int
    number: int
    protect: int = 0
    fua: int = 0


def blocks_of(cdb: Any) -> Blocks:
    """The range in a CDB of any length; in 6 bytes a number of 0 is 256."""
    if hasattr(cdb, "where"):
        return Blocks(cdb.where.lba, cdb.count or 256)
    return Blocks(cdb.lba, cdb.count, getattr(cdb.flags, "protect", 0), getattr(cdb.flags, "fua", 0))
