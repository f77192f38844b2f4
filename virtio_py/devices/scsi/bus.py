"""Where the logical units of a host are: 256 targets of 16384 LUNs, and the units that need no place."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attrs import define, field

from virtio_py.devices.scsi.layout import (
    MAX_LUN,
    MAX_TARGET,
    REPORT_LUNS_WELL_KNOWN,
    Address,
    decode_lun,
    encode_lun,
    single_level_lun,
)
from virtio_py.devices.scsi.task import Nexus
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.devices.scsi.wellknown import AbsentUnit, WellKnownUnit
from virtio_py.errors import UsageError

HOST: int = -1
"""The "target" of the REPORT LUNS well-known logical unit that belongs to the whole host."""


@define(eq=False)
class Bus:
    """The units by target and LUN."""

    _nexus: Nexus
    _targets: dict[int, dict[int, LogicalUnit]] = field(factory=dict, init=False)
    _places: dict[int, Address] = field(factory=dict, init=False)
    _absent: AbsentUnit = field(factory=AbsentUnit, init=False)
    _well_known: WellKnownUnit = field(factory=WellKnownUnit, init=False)

    def __attrs_post_init__(self) -> None:
        self._well_known.join(self._nexus)

    def add(self, address: Address, unit: LogicalUnit) -> None:
        """Puts a unit at a place. Raises UsageError."""
        target, lun = address
        if lun is None or not 0 <= target <= MAX_TARGET or not 0 <= lun <= MAX_LUN:
            raise UsageError(f"there is no target {target}, LUN {lun}: 0 to {MAX_TARGET}, 0 to {MAX_LUN}")
        if id(unit) in self._places:
            raise UsageError(f"the unit is at {self._places[id(unit)]} already")
        if lun in self.units_of(target):
            raise UsageError(f"target {target} has a unit at LUN {lun}")
        self._targets.setdefault(target, {})[lun] = unit
        self._places[id(unit)] = address

    def remove(self, address: Address) -> LogicalUnit:
        """Takes a unit away. Raises UsageError where there is none."""
        unit = self.get(address)
        units = self._targets[address.target]
        units.pop(address.lun or 0)
        if not units:
            del self._targets[address.target]
        del self._places[id(unit)]
        return unit

    def get(self, address: Address) -> LogicalUnit:
        """The unit at a place. Raises UsageError where there is none."""
        unit = self._targets.get(address.target, {}).get(-1 if address.lun is None else address.lun)
        if unit is None:
            raise UsageError(f"target {address.target} has no unit at LUN {address.lun}")
        return unit

    def address_of(self, unit: LogicalUnit) -> Address:
        """Where a unit is."""
        return self._places[id(unit)]

    def all(self) -> dict[Address, LogicalUnit]:
        """All units by their addresses, in order."""
        return {
            Address(target, lun): unit
            for target, units in sorted(self._targets.items())
            for lun, unit in sorted(units.items())
        }

    def units_of(self, target: int) -> Mapping[int, LogicalUnit]:
        """The units of a target by their LUNs; empty if there is no such target."""
        return MappingProxyType(self._targets.get(target, {}))

    def resolve(self, field: bytes) -> Address | None:
        """Whom a `lun` field addresses; None if there is no such target, or the field is of no known format."""
        if field == REPORT_LUNS_WELL_KNOWN:
            return Address(HOST, None)
        address = decode_lun(field)
        return address if address is not None and address.target in self._targets else None

    def unit_at(self, address: Address) -> LogicalUnit:
        """The unit at an address that was resolved: one that says it is absent, if nothing else."""
        if address.lun is None:
            return self._well_known
        return self._targets[address.target].get(address.lun, self._absent)

    def luns(self, address: Address) -> list[bytes]:
        """What REPORT LUNS lists. Asked of the host's well-known unit, all units, as a `lun` field names them."""
        if address.target == HOST:
            return [encode_lun(target, lun) for target, units in sorted(self._targets.items()) for lun in sorted(units)]
        return [single_level_lun(lun) for lun in sorted(self._targets[address.target])]
