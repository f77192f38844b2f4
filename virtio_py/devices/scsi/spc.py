"""The commands of every type of unit (SPC-4): what it is, what it can do, and how it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from construct import Int8ub, Int16ub, Int32ub, Struct

from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.cdb import Opcode, ServiceAction
from virtio_py.devices.scsi.sense import LUNS_CHANGED, CheckCondition, invalid_in_cdb
from virtio_py.devices.scsi.task import Key, Operation, Task, allocation
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.devices.scsi.vpd import identification, page
from virtio_py.records import Record, Register

WELL_KNOWN_REPORT_LUNS: Final = bytes.fromhex("c101000000000000")

command_descriptor = Record(
    "command_descriptor",
    Struct(
        "opcode" / Int8ub,
        "reserved" / Int8ub,
        "service_action" / Int16ub,
        "reserved1" / Int8ub,
        "flags" / Register(Int8ub, servactv=1, ctdp=1, reserved=6),
        "cdb_length" / Int16ub,
    ),
    cite="SPC-4 6.35.2",
)

_timeouts = Record(
    "command_timeouts_descriptor",
    Struct(
        "length" / Int16ub,
        "reserved" / Int8ub,
        "command_specific" / Int8ub,
        "nominal" / Int32ub,
        "recommended" / Int32ub,
    ),
    cite="SPC-4 6.35.4",
)
_NO_TIMEOUTS: Final = _timeouts.encode(length=_timeouts.size - 2)

Pages = Mapping[int, Callable[[Any], bytes]]
"""Vital product data pages by their code: each makes its body."""


def inquire(standard: Callable[[Any], bytes], pages: Pages) -> Callable[[Any, Task, Any], None]:
    """INQUIRY for a type of unit: its standard data, and the bodies of its pages."""

    def run(unit: Any, task: Task, cdb: Any) -> None:
        if cdb.flags.evpd:
            task.reply(_page(unit, pages, cdb.page_code), cdb.allocation)
        elif cdb.page_code:
            raise invalid_in_cdb(2)
        else:
            task.reply(standard(unit), cdb.allocation)

    return run


def _page(unit: Any, pages: Pages, code: int) -> bytes:
    if code == 0:
        return page(unit, 0, bytes(sorted({0, *pages})))
    if code not in pages:
        raise invalid_in_cdb(2)
    return page(unit, code, pages[code](unit))


def unit_serial(unit: Any) -> bytes:
    """The body of page 80h."""
    return bytes(unit.serial.encode("ascii", "replace"))


def test_unit_ready(unit: LogicalUnit, task: Task, cdb: Any) -> None:
    """TEST UNIT READY."""
    if (standing := unit.standing()).key:
        raise CheckCondition(standing)


def request_sense(unit: LogicalUnit, task: Task, cdb: Any) -> None:
    """REQUEST SENSE: it tells of a unit attention as data, and clears it."""
    task.reply(unit.pending_sense(task.nexus, bool(cdb.flags.desc)), cdb.allocation)


_SELECT_REPORT: Final[Mapping[int, tuple[bool, bool]]] = {0: (True, False), 1: (False, True), 2: (True, True)}


def report_luns(unit: LogicalUnit, task: Task, cdb: Any) -> None:
    """REPORT LUNS: all units of the target, its well-known ones, or both."""
    if cdb.select_report not in _SELECT_REPORT:
        raise invalid_in_cdb(2)
    if cdb.allocation < 16:
        raise invalid_in_cdb(6)
    ordinary, well_known = _SELECT_REPORT[cdb.select_report]
    luns = b"".join(task.luns()) if ordinary else b""
    luns += WELL_KNOWN_REPORT_LUNS if well_known else b""
    task.reply(len(luns).to_bytes(4, "big") + bytes(4) + luns, cdb.allocation)
    unit.clear_attention(task.nexus, LUNS_CHANGED)


# What it can do

_ALL, _ONE_PLAIN, _ONE_ACTION, _ONE_EITHER = range(4)
_NOT_SUPPORTED, _AS_THE_STANDARD = 1, 3


def report_operation_codes(unit: LogicalUnit, task: Task, cdb: Any) -> None:
    """REPORT SUPPORTED OPERATION CODES: all of them, or one with the bits of its CDB that mean something."""
    timeouts = bool(cdb.options.rctd)
    if cdb.options.reporting == _ALL:
        listed = b"".join(_descriptor(key, op, timeouts) for key, op in sorted(unit.supported().items(), key=_order))
        task.reply(len(listed).to_bytes(4, "big") + listed, cdb.allocation)
        return
    if cdb.options.reporting > _ONE_EITHER:
        raise invalid_in_cdb(2, 2)
    task.reply(_one(unit, cdb, timeouts), cdb.allocation)


def _order(item: tuple[Key, Operation]) -> tuple[int, int]:
    (opcode, action), _ = item
    return opcode, -1 if action is None else action


def _descriptor(key: Key, operation: Operation, timeouts: bool) -> bytes:
    opcode, action = key
    flags = {"servactv": int(action is not None), "ctdp": int(timeouts)}
    head = command_descriptor.encode(
        opcode=opcode, service_action=action or 0, flags=flags, cdb_length=operation.cdb.size
    )
    return head + (_NO_TIMEOUTS if timeouts else b"")


def _one(unit: LogicalUnit, cdb: Any, timeouts: bool) -> bytes:
    supported = unit.supported()
    opcode, reporting = cdb.requested_opcode, cdb.options.reporting
    has_actions = any(code == opcode and action is not None for code, action in supported)
    # Asked in the way that does not fit the operation code, the question itself is wrong (SPC-4, table 191).
    if reporting == _ONE_PLAIN and has_actions:
        raise invalid_in_cdb(2, 2)
    if reporting == _ONE_ACTION and not has_actions and (opcode, None) in supported:
        raise invalid_in_cdb(2, 2)
    action = cdb.requested_action if has_actions else None
    operation = supported.get((opcode, action))
    if operation is None:
        return bytes([0, _NOT_SUPPORTED, 0, 0])
    bits = bytearray(operation.usage)
    bits[0] = opcode
    if action is not None:
        bits[1] = bits[1] & 0xE0 | action
    head = bytes([0, _AS_THE_STANDARD | (0x80 if timeouts else 0)])
    return head + len(bits).to_bytes(2, "big") + bytes(bits) + (_NO_TIMEOUTS if timeouts else b"")


_TMFS: Final = bytes([0xDC, 0x03])
"""ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK; QUERY TASK SET, I_T NEXUS RESET."""


def report_tmfs(unit: LogicalUnit, task: Task, cdb: Any) -> None:
    """REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS."""
    data = _TMFS + bytes([0, 0x0C if cdb.flags.repd else 0])
    task.reply(data + (bytes(12) if cdb.flags.repd else b""), cdb.allocation)


def log_pages(pages: Mapping[int, Callable[[Any], bytes]]) -> Callable[[Any, Task, Any], None]:
    """LOG SENSE for a type of unit: the parameters of each of its pages."""

    def run(unit: Any, task: Task, cdb: Any) -> None:
        if cdb.flags.sp:
            raise invalid_in_cdb(1, 0)
        code = cdb.page.code
        if cdb.subpage or (code and code not in pages):
            raise invalid_in_cdb(2, 5)
        body = bytes(sorted({0, *pages})) if code == 0 else pages[code](unit)
        task.reply(bytes([code, 0]) + len(body).to_bytes(2, "big") + body, cdb.allocation)

    return run


def informational_exceptions(unit: LogicalUnit) -> bytes:
    """The one parameter of log page 2Fh: nothing is about to fail."""
    return bytes([0, 0, 0x03, 8, 0, 0, 0, 0, 0, 0, 0, 0])


IDENTIFICATION_PAGES: Final[Pages] = {0x80: unit_serial, 0x83: identification}
"""The vital product data pages that every unit has."""

BASE: Final[dict[Key, Operation]] = {
    (Opcode.TEST_UNIT_READY, None): Operation("TEST UNIT READY", cdbs.test_unit_ready, test_unit_ready),
    (Opcode.REQUEST_SENSE, None): Operation(
        "REQUEST SENSE", cdbs.request_sense, request_sense, allocation, deferred_attention=True
    ),
    (Opcode.REPORT_LUNS, None): Operation(
        "REPORT LUNS", cdbs.report_luns, report_luns, allocation, deferred_attention=True
    ),
    (Opcode.MAINTENANCE_IN, ServiceAction.MAINTENANCE_IN_REPORT_SUPPORTED_OPERATION_CODES): Operation(
        "REPORT SUPPORTED OPERATION CODES",
        cdbs.report_supported_operation_codes,
        report_operation_codes,
        allocation,
    ),
    (Opcode.MAINTENANCE_IN, ServiceAction.MAINTENANCE_IN_REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS): Operation(
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", cdbs.report_supported_tmfs, report_tmfs, allocation
    ),
}
"""What every unit has, besides INQUIRY, which is each type's own."""
