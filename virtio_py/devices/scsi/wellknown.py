"""Units that a target has without anything behind them: its REPORT LUNS well-known unit, and those that are absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from attrs import define, field

from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.cdb import Opcode
from virtio_py.devices.scsi.sense import LUN_NOT_SUPPORTED, CheckCondition, Condition
from virtio_py.devices.scsi.spc import BASE, IDENTIFICATION_PAGES, inquire
from virtio_py.devices.scsi.task import Key, Nexus, Operation, allocation
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.devices.scsi.vpd import SAM_5_VERSION, SPC_4_VERSION, inquiry_data, standard_inquiry


@define(eq=False)
class WellKnownUnit(LogicalUnit):
    """The REPORT LUNS well-known logical unit (SPC-4 8.2)."""

    device_type: ClassVar[int] = 0x1E
    operations: ClassVar[Mapping[Key, Operation]] = {}
    product: str = field(default="REPORT LUNS", kw_only=True)


@define(eq=False)
class AbsentUnit(LogicalUnit):
    """Any LUN of a target at which there is no unit: it says so (SPC-4 6.6.1), and which there are."""

    operations: ClassVar[Mapping[Key, Operation]] = {}

    def join(self, nexus: Nexus) -> None:
        """Nobody is told of what is not there."""

    def find(self, cdb: bytes) -> Operation:
        operation = self.operations.get((cdb[0], None))
        if operation is None:
            raise CheckCondition(LUN_NOT_SUPPORTED)
        return operation

    def standing(self) -> Condition:
        return LUN_NOT_SUPPORTED


def _known(unit: LogicalUnit) -> bytes:
    return inquiry_data(unit, (SAM_5_VERSION, SPC_4_VERSION))


_NOT_CAPABLE: Final = 3
"""PERIPHERAL QUALIFIER: no unit can be at this LUN at present."""


def _absent(unit: LogicalUnit) -> bytes:
    data = standard_inquiry.decode(inquiry_data(unit, ()))
    peripheral = {"device_type": unit.device_type, "qualifier": _NOT_CAPABLE}
    return standard_inquiry.encode_values(data._asdict() | {"peripheral": peripheral})


def _inquiry(run: Any) -> Operation:
    return Operation("INQUIRY", cdbs.inquiry, run, allocation, deferred_attention=True)


WellKnownUnit.operations = {**BASE, (Opcode.INQUIRY, None): _inquiry(inquire(_known, IDENTIFICATION_PAGES))}
AbsentUnit.operations = {
    (Opcode.INQUIRY, None): _inquiry(inquire(_absent, {})),
    (Opcode.REPORT_LUNS, None): BASE[Opcode.REPORT_LUNS, None],
    (Opcode.REQUEST_SENSE, None): BASE[Opcode.REQUEST_SENSE, None],
}
