"""SCSI hosts, each broken in one clause of 5.6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import frozen

from tests.mutants.registry import Carrier, Mutant, judge_device, mutant, register
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.scsi.device import ScsiDevice
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.layout import (
    CONTROLQ,
    EVENTQ,
    REQUESTQ,
    ControlType,
    ScsiResponse,
    Tmf,
    decode_lun,
    virtio_scsi_ctrl_tmf,
    virtio_scsi_event,
    virtio_scsi_req_cmd,
    virtio_scsi_resp_cmd,
)
from virtio_py.devices.scsi.sense import ScsiStatus
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue

_REQUESTS: Final = "scsi.device.request-queues"
_CONTROL: Final = "scsi.device.controlq-text"
_CONFIG: Final = "scsi.device.config-layout-text"
_R = ScsiResponse


class Host(ScsiDevice):
    """One disk, on target 0."""

    def __init__(self) -> None:
        super().__init__()
        self.attach(0, 0, ScsiDisk(MemoryMedium.of(1 << 20)))


# Responses


@frozen
class Response:
    """queue: of the requests that are answered otherwise; when: is given the request and its response's code, which
    is 0 for a command carried out; at: the byte of the answer that is changed, and value: to what."""

    clause: str
    queue: int
    when: Callable[[bytes, int], bool]
    at: int
    value: int


_RESPONSE: Final = virtio_scsi_resp_cmd.offset("response")
_STATUS: Final = virtio_scsi_resp_cmd.offset("status")


def _is(response: int) -> Callable[[bytes, int], bool]:
    return lambda request, found: found == response


def _unheard_of(request: bytes, found: int) -> bool:
    return request[virtio_scsi_req_cmd.size :][:1] == b"\xc7"


def _without_format(request: bytes, found: int) -> bool:
    return len(request) >= 8 and decode_lun(request[:8]) is None


def _attributed(request: bytes, found: int) -> bool:
    return any(request[virtio_scsi_req_cmd.offset("task_attr") : virtio_scsi_req_cmd.size])


def _function(*functions: Tmf) -> Callable[[bytes, int], bool]:
    at = virtio_scsi_ctrl_tmf.offset("subtype")
    return lambda request, found: request[:4] == bytes([ControlType.TMF, 0, 0, 0]) and request[at] in functions


def _unknown(request: bytes, found: int) -> bool:
    return found == _R.FUNCTION_REJECTED


RESPONSES: Final = {
    "all commands end well": Response(f"{_REQUESTS}.1", REQUESTQ, _is(_R.OK), _STATUS, ScsiStatus.GOOD),
    "what is not known is a failure": Response(f"{_REQUESTS}.2", REQUESTQ, _unheard_of, _RESPONSE, _R.FAILURE),
    "an overrun that is none": Response(f"{_REQUESTS}.3", REQUESTQ, _is(_R.OVERRUN), _RESPONSE, _R.OK),
    "a target that is not there obeys": Response(f"{_REQUESTS}.5", CONTROLQ, _is(_R.BAD_TARGET), 0, _R.OK),
    "an absent target fails": Response(f"{_REQUESTS}.5", REQUESTQ, _is(_R.BAD_TARGET), _RESPONSE, _R.FAILURE),
    "a LUN of any format": Response(f"{_REQUESTS}.11", REQUESTQ, _without_format, _RESPONSE, _R.OK),
    "both directions at once": Response(f"{_REQUESTS}.12", REQUESTQ, _is(_R.FAILURE), _RESPONSE, _R.OK),
    "no attribute is served": Response(
        "scsi.device.request-queues-text.3", REQUESTQ, _attributed, _RESPONSE, _R.FAILURE,
    ),
    "a reset is incorrect": Response(f"{_CONTROL}.1", CONTROLQ, _function(Tmf.LOGICAL_UNIT_RESET), 0, _R.FAILURE),
    "an abort finds nothing": Response(f"{_CONTROL}.2", CONTROLQ, _function(Tmf.ABORT_TASK), 0, _R.FAILURE),
    "any function is known": Response("prose.scsi.controlq", CONTROLQ, _unknown, 0, _R.FUNCTION_SUCCEEDED),
}  # fmt: skip


class Answers(Host):
    """Changes one byte of some answers."""

    def __init__(self, wrong: Response) -> None:
        super().__init__()
        self.wrong = wrong

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        request, room = b"".join(chain.readable.views()), chain.writable.views()
        super().handle(queue, chain)
        if queue.index == self.wrong.queue and room:
            found = room[0][_RESPONSE if queue.index == REQUESTQ and len(room[0]) > _RESPONSE else 0]
            if self.wrong.at < len(room[0]) and self.wrong.when(request, found):
                room[0][self.wrong.at] = self.wrong.value


# Sizes


@mutant("scsi", f"{_CONFIG}.1")
class BeginsWithLessSense(Host):
    def reset(self) -> None:
        super().reset()
        self._sense_size = 64


@mutant("scsi", f"{_CONFIG}.2")
class BeginsWithLongerCdbs(Host):
    def reset(self) -> None:
        super().reset()
        self._cdb_size = 64


@mutant("scsi", f"{_REQUESTS}.1")
class CutsAsItAlwaysDid(Host):
    """The sizes in the configuration follow the driver, and requests are cut by the defaults."""

    said = b""

    def read_config(self) -> bytes:
        return self.said or super().read_config()

    def write_config(self, offset: int, data: bytes) -> None:
        config = bytearray(self.read_config())
        config[offset : offset + len(data)] = data
        self.said = bytes(config)

    def reset(self) -> None:
        super().reset()
        self.said = b""


@mutant("scsi", "scsi.device.config-layout.1")
class KeepsItsSizes(Host):
    def reset(self) -> None:
        sizes = self._sense_size, self._cdb_size
        super().reset()
        self._sense_size, self._cdb_size = sizes


# Tasks and events


@mutant("scsi", f"{_CONTROL}.3")
class ResetsBeforeTheTasks(Host):
    """Commands sent shortly before a function are answered behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Chain] = []

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        super().handle(queue, chain)
        if queue.index == REQUESTQ and not chain.deferred:
            chain.defer()
            self.late.append(chain)
            # One is kept back until the next comes.
            if len(self.late) > 1:
                self.late.pop(0).complete()

    def reset(self) -> None:
        super().reset()
        self.late.clear()


@mutant("scsi", "scsi.device.eventq.1")
class TellsOfNothing(Host):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if queue.index == EVENTQ:
            chain.writable.write(virtio_scsi_event.encode(event=0x42))
        else:
            super().handle(queue, chain)


for _name, _response in RESPONSES.items():
    _judge = judge_device("scsi", lambda response=_response: Carrier(Answers(response)))  # type: ignore[misc]  # bound now
    register(Mutant(_name, _response.clause, _judge, "scsi"))
