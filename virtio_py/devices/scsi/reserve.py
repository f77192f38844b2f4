"""PERSISTENT RESERVE IN and PERSISTENT RESERVE OUT (SPC-4 6.15, 6.16)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from construct import Int8ub, Int16ub, Int32ub, Int64ub, Struct

from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.cdb import Opcode, PrIn, PrOut
from virtio_py.devices.scsi.reservations import (
    ALL_REGISTRANTS,
    ALONE,
    MAX_REGISTRATIONS,
    Reservations,
    ReservationType,
)
from virtio_py.devices.scsi.sense import (
    INSUFFICIENT_REGISTRATION_RESOURCES,
    INVALID_RELEASE,
    PARAMETER_LIST_LENGTH,
    REGISTRATIONS_PREEMPTED,
    RESERVATIONS_PREEMPTED,
    RESERVATIONS_RELEASED,
    CheckCondition,
    invalid_in_cdb,
    invalid_in_list,
)
from virtio_py.devices.scsi.task import (
    CONFLICT,
    Key,
    Nexus,
    Operation,
    Outcome,
    Task,
    allocation,
    parameter_list,
)
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.records import Record, Register

_TYPE_MASK: Final = b"\xea\x01"
"""Which types are supported: WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC, WR_EX; then EX_AC_AR."""

pr_out_parameters = Record(
    "persistent_reserve_out_parameters",
    Struct(
        "reservation_key" / Int64ub,
        "service_action_key" / Int64ub,
        "obsolete" / Int32ub,
        "flags" / Register(Int8ub, aptpl=1, reserved=1, all_tg_pt=1, spec_i_pt=1, reserved1=4),
        "reserved" / Int8ub,
        "obsolete1" / Int16ub,
    ),
    cite="SPC-4 6.16.3",
)

pr_reservation = Record(
    "reservation_descriptor",
    Struct(
        "reservation_key" / Int64ub,
        "obsolete" / Int32ub,
        "reserved" / Int8ub,
        "kind" / Register(Int8ub, type=4, scope=4),
        "obsolete1" / Int16ub,
    ),
    cite="SPC-4 6.15.3",
)

pr_full_status = Record(
    "full_status_descriptor",
    Struct(
        "reservation_key" / Int64ub,
        "reserved" / Int32ub,
        "flags" / Register(Int8ub, r_holder=1, all_tg_pt=1, reserved=6),
        "kind" / Register(Int8ub, type=4, scope=4),
        "reserved1" / Int32ub,
        "relative_target_port" / Int16ub,
        "additional_length" / Int32ub,
    ),
    cite="SPC-4 6.15.5",
)


# PERSISTENT RESERVE IN


def _head(state: Reservations, body: bytes) -> bytes:
    return (state.generation & 0xFFFFFFFF).to_bytes(4, "big") + len(body).to_bytes(4, "big") + body


def _read_keys(state: Reservations, nexus: Nexus) -> bytes:
    return _head(state, b"".join(key.to_bytes(8, "big") for key in state.keys.values()))


def _read_reservation(state: Reservations, nexus: Nexus) -> bytes:
    if not state.type:
        return _head(state, b"")
    key = 0 if state.type in ALL_REGISTRANTS or state.holder is None else state.keys[state.holder]
    return _head(state, pr_reservation.encode(reservation_key=key, kind={"type": state.type}))


def _report_capabilities(state: Reservations, nexus: Nexus) -> bytes:
    return bytes([0, 8, 0, 0x80]) + _TYPE_MASK + bytes(2)


def _read_full_status(state: Reservations, nexus: Nexus) -> bytes:
    parts = []
    for owner, key in state.keys.items():
        holds = state.holds(owner)
        name = _transport_id(owner)
        kind = {"type": state.type if holds else 0}
        parts.append(
            pr_full_status.encode(
                reservation_key=key,
                flags={"r_holder": int(holds)},
                kind=kind,
                relative_target_port=1,
                additional_length=len(name),
            )
            + name
        )
    return _head(state, b"".join(parts))


def _transport_id(nexus: Nexus) -> bytes:
    """A TransportID. No protocol identifier stands for virtio; that of iSCSI carries a name, which says it best."""
    name = nexus.name.encode() + b"\0"
    name += bytes(-len(name) % 4)
    name = name.ljust(20, b"\0")
    return bytes([0x05, 0]) + len(name).to_bytes(2, "big") + name


_IN: Final[Mapping[PrIn, Callable[[Reservations, Nexus], bytes]]] = {
    PrIn.READ_KEYS: _read_keys,
    PrIn.READ_RESERVATION: _read_reservation,
    PrIn.REPORT_CAPABILITIES: _report_capabilities,
    PrIn.READ_FULL_STATUS: _read_full_status,
}


def _reserve_in(action: PrIn) -> Callable[[Any, Task, Any], None]:
    def run(unit: Any, task: Task, cdb: Any) -> None:
        task.reply(_IN[action](unit.reservations, task.nexus), cdb.allocation)

    return run


# PERSISTENT RESERVE OUT: each function is given the unit, the initiator, TYPE and the parameters; True is a conflict


def _register(unit: LogicalUnit, state: Reservations, nexus: Nexus, kind: int, values: Any) -> bool:
    if values.reservation_key != state.keys.get(nexus, 0):
        return True
    return _register_anyway(unit, state, nexus, kind, values)


def _register_anyway(unit: LogicalUnit, state: Reservations, nexus: Nexus, kind: int, values: Any) -> bool:
    key = values.service_action_key
    if not key:
        if nexus in state.keys:
            _unregister(unit, state, nexus)
            state.generation += 1
        return False
    if nexus not in state.keys and len(state.keys) >= MAX_REGISTRATIONS:
        raise CheckCondition(INSUFFICIENT_REGISTRATION_RESOURCES)
    state.keys[nexus] = key
    state.generation += 1
    return False


def _unregister(unit: LogicalUnit, state: Reservations, nexus: Nexus) -> None:
    kind = state.type
    if state.forget(nexus) and kind not in ALONE:
        _tell_registrants(unit, state, RESERVATIONS_RELEASED, nexus)


def _tell_registrants(unit: LogicalUnit, state: Reservations, condition: Any, but: Nexus) -> None:
    for other in state.keys:
        if other is not but:
            unit.attend(condition, only=other)


def _reserve(unit: LogicalUnit, state: Reservations, nexus: Nexus, kind: int, values: Any) -> bool:
    if state.type:
        return not state.holds(nexus) or state.type != kind
    state.holder, state.type = nexus, kind
    return False


def _release(unit: LogicalUnit, state: Reservations, nexus: Nexus, kind: int, values: Any) -> bool:
    if not state.holds(nexus):
        return False
    if state.type != kind:
        raise CheckCondition(INVALID_RELEASE)
    state.release()
    if kind not in ALONE:
        _tell_registrants(unit, state, RESERVATIONS_RELEASED, nexus)
    return False


def _clear(unit: LogicalUnit, state: Reservations, nexus: Nexus, kind: int, values: Any) -> bool:
    _tell_registrants(unit, state, RESERVATIONS_PREEMPTED, nexus)
    state.keys.clear()
    state.release()
    state.generation += 1
    return False


def _preempt(unit: LogicalUnit, state: Reservations, nexus: Nexus, kind: int, values: Any) -> bool:
    key = values.service_action_key
    all_registrants = state.type in ALL_REGISTRANTS
    if all_registrants and not key:
        victims = [other for other in state.keys if other is not nexus]
    elif not key:
        raise invalid_in_list(8)
    else:
        victims = [other for other, theirs in state.keys.items() if theirs == key and other is not nexus]
        if not victims and state.keys.get(nexus) != key:
            return True
    takes_over = bool(state.type) and (not key if all_registrants else state.keys.get(state.holder or nexus) == key)
    for victim in victims:
        state.keys.pop(victim)
        unit.attend(REGISTRATIONS_PREEMPTED, only=victim)
    if takes_over:
        if state.type != kind:
            _tell_registrants(unit, state, RESERVATIONS_RELEASED, nexus)
        state.holder, state.type = nexus, kind
    state.generation += 1
    return False


_Change = Callable[[LogicalUnit, Reservations, Nexus, int, Any], bool]

# The tasks that PREEMPT AND ABORT would abort are done already: a unit carries out one at a time.
_OUT: Final[Mapping[PrOut, _Change]] = {
    PrOut.REGISTER: _register,
    PrOut.RESERVE: _reserve,
    PrOut.RELEASE: _release,
    PrOut.CLEAR: _clear,
    PrOut.PREEMPT: _preempt,
    PrOut.PREEMPT_AND_ABORT: _preempt,
    PrOut.REGISTER_AND_IGNORE_EXISTING_KEY: _register_anyway,
}
_REGISTERING: Final = (PrOut.REGISTER, PrOut.REGISTER_AND_IGNORE_EXISTING_KEY)
_TYPED: Final = (PrOut.RESERVE, PrOut.RELEASE, PrOut.PREEMPT, PrOut.PREEMPT_AND_ABORT)


def _reserve_out(action: PrOut) -> Callable[[Any, Task, Any], Outcome | None]:
    def run(unit: Any, task: Task, cdb: Any) -> Outcome | None:
        if cdb.length != pr_out_parameters.size:
            raise CheckCondition(PARAMETER_LIST_LENGTH)
        values = pr_out_parameters.decode(task.data_out.read(cdb.length))
        state: Reservations = unit.reservations
        _check(action, cdb, values)
        # All but the registering actions are a registrant's, who says so by his key.
        if action not in _REGISTERING and state.keys.get(task.nexus, 0) != values.reservation_key:
            return CONFLICT
        if action not in _REGISTERING and task.nexus not in state.keys:
            return CONFLICT
        return CONFLICT if _OUT[action](unit, state, task.nexus, cdb.reservation.type, values) else None

    return run


def _check(action: PrOut, cdb: Any, values: Any) -> None:
    if action in _TYPED and cdb.reservation.scope:
        raise invalid_in_cdb(2, 7)
    if action in _TYPED and cdb.reservation.type not in tuple(ReservationType):
        raise invalid_in_cdb(2, 3)
    if values.flags.aptpl or values.flags.all_tg_pt or values.flags.spec_i_pt:
        raise invalid_in_list(20)


OPERATIONS: Final[dict[Key, Operation]] = {
    **{
        (Opcode.PERSISTENT_RESERVE_IN, int(action)): Operation(
            f"PERSISTENT RESERVE IN, {action.name}",
            cdbs.persistent_reserve_in,
            _reserve_in(action),
            allocation,
        )
        for action in PrIn
    },
    **{
        (Opcode.PERSISTENT_RESERVE_OUT, int(action)): Operation(
            f"PERSISTENT RESERVE OUT, {action.name}",
            cdbs.persistent_reserve_out,
            _reserve_out(action),
            data_out=parameter_list,
        )
        for action in PrOut
    },
}
