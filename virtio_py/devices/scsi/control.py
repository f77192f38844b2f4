"""The control queue (5.6.6.2): task management functions, and asynchronous notification.

A function that ends tasks ends them before it is itself answered: their chains are used first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from virtio_py.devices.scsi.layout import (
    FUNCTION_COMPLETE,
    Address,
    ControlType,
    ScsiResponse,
    Tmf,
    decode_lun,
    virtio_scsi_ctrl,
    virtio_scsi_ctrl_an,
    virtio_scsi_ctrl_an_resp,
    virtio_scsi_ctrl_tmf,
)
from virtio_py.devices.scsi.requests import Request
from virtio_py.devices.scsi.sense import DEVICE_RESET, NEXUS_LOSS
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.errors import RequestError
from virtio_py.rings.chain import Chain


class Host(Protocol):
    """What the control queue needs to know of the device."""

    subscriptions: dict[Address, int]

    def units_of(self, target: int) -> Mapping[int, LogicalUnit]:
        """The units of a target by their LUNs; empty if there is no such target."""

    def active(self, target: int, lun: int | None = None) -> list[Request]:
        """The tasks of a unit, or of a whole target, that are not finished, oldest first."""

    def end_tasks(self, requests: list[Request], response: ScsiResponse, chain: Chain) -> None:
        """Ends tasks with a response. `chain` is the function's own, which must not be used before theirs."""


class Scope(NamedTuple):
    """What a function is about: the target's units, the one addressed or None, and the tag of a task."""

    target: int
    lun: int | None
    units: Mapping[int, LogicalUnit]
    id: int


def serve_control(host: Host, chain: Chain) -> None:
    """Serves a request of the control queue. Raises RequestError for one that has no byte for its response."""
    if not chain.writable.remaining:
        raise RequestError("a control request has no byte for its response")
    data = chain.readable.read(min(chain.readable.remaining, virtio_scsi_ctrl_tmf.size))
    kind = virtio_scsi_ctrl.decode(data).type if len(data) >= virtio_scsi_ctrl.size else None
    serve = _TYPES.get(kind)
    if serve is None or not serve(host, chain, data):
        # Whatever else it may be, its response is its last byte.
        chain.writable.split_tail(1).write(bytes([ScsiResponse.FAILURE]))


# Task management functions


def _tmf(host: Host, chain: Chain, data: bytes) -> bool:
    if len(data) < virtio_scsi_ctrl_tmf.size:
        return False
    values = virtio_scsi_ctrl_tmf.decode(data)
    chain.writable.write(bytes([_manage(host, chain, values)]))
    return True


def _manage(host: Host, chain: Chain, values: Any) -> ScsiResponse:
    function = _FUNCTIONS.get(values.subtype)
    address = decode_lun(values.lun)
    if function is None:
        return ScsiResponse.FUNCTION_REJECTED
    if address is None:
        return ScsiResponse.INCORRECT_LUN
    units = host.units_of(address.target)
    if not units:
        return ScsiResponse.BAD_TARGET
    if values.subtype not in _WHOLE_TARGET and address.lun not in units:
        return ScsiResponse.INCORRECT_LUN
    return function(host, chain, Scope(address.target, address.lun, units, values.id))


def _abort_task(host: Host, chain: Chain, scope: Scope) -> ScsiResponse:
    # A task that is not there any more is complete, and that is what was asked for (SAM-5).
    host.end_tasks(_tagged(host, scope), ScsiResponse.ABORTED, chain)
    return FUNCTION_COMPLETE


def _tagged(host: Host, scope: Scope) -> list[Request]:
    return [request for request in host.active(scope.target, scope.lun) if request.id == scope.id]


def _abort_task_set(host: Host, chain: Chain, scope: Scope) -> ScsiResponse:
    host.end_tasks(host.active(scope.target, scope.lun), ScsiResponse.ABORTED, chain)
    return FUNCTION_COMPLETE


def _reject(host: Host, chain: Chain, scope: Scope) -> ScsiResponse:
    """CLEAR ACA: NORMACA is not supported, so there is never such a condition."""
    return ScsiResponse.FUNCTION_REJECTED


def _unit_reset(host: Host, chain: Chain, scope: Scope) -> ScsiResponse:
    host.end_tasks(host.active(scope.target, scope.lun), ScsiResponse.RESET, chain)
    assert scope.lun is not None
    scope.units[scope.lun].reset(DEVICE_RESET)
    return FUNCTION_COMPLETE


def _nexus_reset(host: Host, chain: Chain, scope: Scope) -> ScsiResponse:
    host.end_tasks(host.active(scope.target), ScsiResponse.RESET, chain)
    for unit in scope.units.values():
        unit.reset(NEXUS_LOSS)
    return FUNCTION_COMPLETE


def _query_task(host: Host, chain: Chain, scope: Scope) -> ScsiResponse:
    return ScsiResponse.FUNCTION_SUCCEEDED if _tagged(host, scope) else FUNCTION_COMPLETE


def _query_task_set(host: Host, chain: Chain, scope: Scope) -> ScsiResponse:
    return ScsiResponse.FUNCTION_SUCCEEDED if host.active(scope.target, scope.lun) else FUNCTION_COMPLETE


_FUNCTIONS: Final[Mapping[int, Callable[[Host, Chain, Scope], ScsiResponse]]] = {
    Tmf.ABORT_TASK: _abort_task,
    Tmf.ABORT_TASK_SET: _abort_task_set,
    Tmf.CLEAR_ACA: _reject,
    # The task set of another initiator is another device's; of our own there is only one.
    Tmf.CLEAR_TASK_SET: _abort_task_set,
    Tmf.I_T_NEXUS_RESET: _nexus_reset,
    Tmf.LOGICAL_UNIT_RESET: _unit_reset,
    Tmf.QUERY_TASK: _query_task,
    Tmf.QUERY_TASK_SET: _query_task_set,
}
_WHOLE_TARGET: Final = frozenset({Tmf.I_T_NEXUS_RESET})
"""Functions that ignore the single level LUN."""


# Asynchronous notification


def _notification(subscribe: bool) -> Callable[[Host, Chain, bytes], bool]:
    def serve(host: Host, chain: Chain, data: bytes) -> bool:
        if len(data) < virtio_scsi_ctrl_an.size or chain.writable.remaining < virtio_scsi_ctrl_an_resp.size:
            return False
        values = virtio_scsi_ctrl_an.decode(data)
        address = decode_lun(values.lun)
        response, actual = _events_of(host, address, values.event_requested)
        if subscribe and address is not None and response == ScsiResponse.OK:
            host.subscriptions[address] = actual
        chain.writable.write(virtio_scsi_ctrl_an_resp.encode(event_actual=actual, response=response))
        return True

    return serve


def _events_of(host: Host, address: Address | None, requested: int) -> tuple[ScsiResponse, int]:
    units = host.units_of(address.target) if address is not None else {}
    if not units or address is None:
        return ScsiResponse.BAD_TARGET, 0
    if address.lun not in units:
        return ScsiResponse.INCORRECT_LUN, 0
    assert address.lun is not None
    return ScsiResponse.OK, requested & units[address.lun].async_events()


_TYPES: Final[Mapping[int | None, Callable[[Host, Chain, bytes], bool]]] = {
    ControlType.TMF: _tmf,
    ControlType.AN_QUERY: _notification(False),
    ControlType.AN_SUBSCRIBE: _notification(True),
}
