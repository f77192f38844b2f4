"""The SCSI host device (5.6): what belongs to virtio, and of SCSI the commands that every target has."""

from __future__ import annotations

from typing import Any, Final

from attrs import evolve

from virtio_py.devices.scsi import commands
from virtio_py.devices.scsi.layout import (
    CONTROLQ,
    DEFAULT_CDB_SIZE,
    DEFAULT_SENSE_SIZE,
    EVENTQ,
    REPORT_LUNS_WELL_KNOWN,
    REQUESTQ,
    AsyncEvent,
    ControlType,
    ScsiFeature,
    ScsiResponse,
    Tmf,
    encode_lun,
    virtio_scsi_config,
    virtio_scsi_ctrl_an,
    virtio_scsi_ctrl_an_resp,
    virtio_scsi_ctrl_tmf,
    virtio_scsi_req_cmd,
    virtio_scsi_resp_cmd,
)
from virtio_py.devices.scsi.sense import ScsiStatus
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.kinds import INQUIRY, TEST_UNIT_READY, Request, scsi_command
from virtio_py.testing.conformance.parts import Answer, Sent
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Skipped

_R = ScsiResponse
_UNWRITTEN: Final = 0xA5
_WELL: Final = (_R.OK, _R.FUNCTION_SUCCEEDED)


def _config(rig: Rig) -> Any:
    return virtio_scsi_config.decode(rig.need_config(virtio_scsi_config.size))


def _response(answer: Answer) -> Any:
    return virtio_scsi_resp_cmd.decode(answer.data[: virtio_scsi_resp_cmd.size])


def _present(rig: Rig) -> bytes:
    """The LUN of a unit that is there. Raises Skipped where the first of the first targets is not."""
    for target in range(8):
        lun = encode_lun(target, 0)
        if _response(rig.ask(scsi_command(TEST_UNIT_READY, lun))).response == _R.OK:
            return lun
    raise Skipped("none of targets 0 to 7 has a unit 0")


def _absent(rig: Rig) -> int:
    """A target that is not there, though it might be."""
    for target in range(min(_config(rig).max_target, 255), -1, -1):
        if _response(rig.ask(scsi_command(INQUIRY, encode_lun(target, 0), room=36))).response != _R.OK:
            return target
    raise Skipped("all targets are there")


# Configuration


@check("scsi.device.config-layout-text.1", "scsi.device.config-layout-text.2", devices="scsi", layouts="split")
def the_sizes_begin_at_their_defaults(rig: Rig) -> None:
    """sense_size is 96 and cdb_size 32 until the driver writes to them."""
    rig.reset()
    config = _config(rig)
    rig.require(config.sense_size == DEFAULT_SENSE_SIZE, f"sense_size is {config.sense_size}", f"{_TEXT}.1")
    rig.require(config.cdb_size == DEFAULT_CDB_SIZE, f"cdb_size is {config.cdb_size}", f"{_TEXT}.2")


_TEXT: Final = "scsi.device.config-layout-text"


@check(f"{_TEXT}.3", f"{_TEXT}.4", f"{_TEXT}.5", devices="scsi", layouts="split")
def addresses_are_in_range(rig: Rig) -> None:
    """max_channel is 0, max_target up to 255, max_lun up to 16383."""
    for violation in virtio_scsi_config.violations(_config(rig)):
        rig.should(False, f"{violation.field}: {violation.message}")


@check("scsi.device.config-layout.1", devices="scsi", layouts="split")
def a_reset_restores_the_sizes(rig: Rig) -> None:
    """A reset restores cdb_size and sense_size."""
    rig.start()
    _config(rig)
    for name, value in (("sense_size", 64), ("cdb_size", 16)):
        rig.transport.write_config(virtio_scsi_config.offset(name), value.to_bytes(4, "little"))
    written = _config(rig)
    rig.require((written.sense_size, written.cdb_size) == (64, 16), f"{written} after 64 and 16 were written")
    rig.reset()
    config = _config(rig)
    rig.require(
        (config.sense_size, config.cdb_size) == (DEFAULT_SENSE_SIZE, DEFAULT_CDB_SIZE),
        f"sense_size is {config.sense_size} and cdb_size {config.cdb_size} after a reset",
    )


@check("scsi.device.request-queues.1", devices="scsi")
def other_sizes_cut_otherwise(rig: Rig) -> None:
    """With other sizes written to the configuration, requests are cut by them."""
    rig.start()
    lun = _present(rig)
    for name, value in (("sense_size", 18), ("cdb_size", 16)):
        rig.transport.write_config(virtio_scsi_config.offset(name), value.to_bytes(4, "little"))
    plain = scsi_command(INQUIRY, lun)
    request = evolve(plain, readable=(plain.readable[0][:-16],), writable=(virtio_scsi_resp_cmd.size + 18, 36))
    answer = rig.ask(request)
    rig.require(_response(answer).response == _R.OK, f"response is {_response(answer).response}")
    rig.require(answer.data[virtio_scsi_resp_cmd.size + 18] & 0x1F in range(0x20), "no data come")
    rig.require(any(byte != _UNWRITTEN for byte in answer.data[-36:]), "no data come")


# Commands


@check("scsi.device.request-queues.1", "scsi.device.request-queues.2", devices="scsi")
def a_command_has_a_status(rig: Rig) -> None:
    """A command that was carried out has response OK, and SCSI's status."""
    rig.start()
    lun = _present(rig)
    response = _response(rig.ask(scsi_command(INQUIRY, lun, room=36)))
    rig.require(response.response == _R.OK, f"response is {response.response}", "scsi.device.request-queues.2")
    rig.require(response.status == ScsiStatus.GOOD, f"status is {response.status:#x}", "scsi.device.request-queues.1")
    response = _response(rig.ask(scsi_command(bytes([0xC7, 0, 0, 0, 0, 0]), lun)))
    rig.require(response.response == _R.OK, f"response to an unknown opcode is {response.response}")
    rig.require(
        response.status == ScsiStatus.CHECK_CONDITION,
        f"status of an unknown opcode is {response.status:#x}",
        "scsi.device.request-queues.1",
    )
    rig.require(0 < response.sense_len <= DEFAULT_SENSE_SIZE, f"sense_len is {response.sense_len}")


@check("scsi.device.request-queues.5", devices="scsi")
def an_absent_target_is_bad(rig: Rig) -> None:
    """A command to a target that is not there has response BAD_TARGET."""
    rig.start()
    target = _absent(rig)
    for cdb in (INQUIRY, TEST_UNIT_READY):
        response = _response(rig.ask(scsi_command(cdb, encode_lun(target, 0), room=36))).response
        rig.require(response == _R.BAD_TARGET, f"response of target {target} is {response}")


@check("scsi.device.request-queues.11", devices="scsi")
def a_lun_of_no_format(rig: Rig) -> None:
    """A LUN of no format is answered with an error."""
    rig.start()
    for lun in (bytes([2, 0, 0, 0, 0, 0, 0, 0]), b"\xff" * 8, bytes([1, 0, 0xC5, 0, 0, 0, 0, 0])):
        response = _response(rig.ask(scsi_command(TEST_UNIT_READY, lun))).response
        rig.require(response not in (_R.OK, _UNWRITTEN), f"response to LUN {lun.hex()} is {response}")


@check("scsi.device.request-queues.3", devices="scsi")
def too_little_room_is_an_overrun(rig: Rig) -> None:
    """A command for more data than there is room for has response OVERRUN."""
    rig.start()
    lun = _present(rig)
    cdb = commands.transfer("READ", 0, 8)
    response = _response(rig.ask(scsi_command(cdb, lun, room=100)))
    if response.response == _R.OK and response.status != ScsiStatus.GOOD:
        raise Skipped("the unit does not read")
    rig.require(response.response == _R.OVERRUN, f"response is {response.response}")


@check("scsi.device.request-queues.12", devices="scsi")
def both_directions_without_inout(rig: Rig) -> None:
    """Without VIRTIO_SCSI_F_INOUT a command with data both ways has response FAILURE."""
    rig.start()
    lun = _present(rig)
    response = _response(rig.ask(scsi_command(INQUIRY, lun, b"data", 36))).response
    rig.require(response == _R.FAILURE, f"response is {response}")


@check("scsi.device.request-queues-text.1", devices="scsi")
def the_well_known_unit_lists_units(rig: Rig) -> None:
    """The REPORT LUNS well-known logical unit answers."""
    rig.start()
    answer = rig.ask(scsi_command(commands.report_luns(256), REPORT_LUNS_WELL_KNOWN, room=256))
    rig.should(_response(answer).response == _R.OK, f"response is {_response(answer).response}")


@check("scsi.device.request-queues-text.3", devices="scsi")
def any_task_attribute_is_served(rig: Rig) -> None:
    """A command is carried out whatever its task_attr, prio and crn."""
    rig.start()
    lun = _present(rig)
    for name, value in (("task_attr", 1), ("task_attr", 2), ("prio", 7), ("crn", 200)):
        plain = scsi_command(INQUIRY, lun, room=36)
        head = virtio_scsi_req_cmd.encode(lun=lun, id=1, **{name: value})
        request = evolve(plain, readable=(head + plain.readable[0][len(head) :],))
        response = _response(rig.ask(request)).response
        rig.require(response == _R.OK, f"with {name} {value} the response is {response}")


@check("scsi.driver.config-layout.1", devices="scsi")
def a_command_cut_off(rig: Rig) -> None:
    """A request shorter than its header is refused, and nothing else happens."""
    rig.start()
    rig.refusable(Request(REQUESTQ, (bytes(10),), (108,)), "a request of 10 bytes")


@check("scsi.driver.config-layout.1", devices="scsi")
def no_room_for_a_response(rig: Rig) -> None:
    """A request without room for its response is refused, and nothing else happens."""
    rig.start()
    plain = scsi_command(INQUIRY)
    rig.refusable(evolve(plain, writable=(4,), judge=lambda answer: None), "a response of 4 bytes")


# Task management


def _tmf(rig: Rig, subtype: int, lun: bytes, tag: int = 0) -> int:
    request = virtio_scsi_ctrl_tmf.encode(type=ControlType.TMF, subtype=subtype, lun=lun, id=tag)
    return rig.ask(Request(CONTROLQ, (request,), (1,))).data[0]


def _give_time(rig: Rig, sent: list[Sent]) -> None:
    rig.holds(lambda: all(rig.is_used(one) for one in sent))


@check("scsi.device.controlq-text.1", "scsi.device.controlq-text.3", devices="scsi")
def a_unit_is_reset(rig: Rig) -> None:
    """LOGICAL_UNIT_RESET and I_T_NEXUS_RESET succeed, and what was under way is answered before."""
    rig.start()
    lun = _present(rig)
    for subtype in (Tmf.LOGICAL_UNIT_RESET, Tmf.I_T_NEXUS_RESET):
        sent = [rig.send(scsi_command(INQUIRY, lun, room=36, tag=n)) for n in range(4)]
        # Queues have no order between them: what a device has not taken when the function comes is not hit by it. It
        # has time to take these, and to answer them if it will.
        _give_time(rig, sent)
        response = _tmf(rig, subtype, lun)
        if response == _R.FUNCTION_REJECTED:
            raise Skipped(f"{subtype.name} is not supported")
        rig.require(response in _WELL, f"{subtype.name} has response {response}")
        rig.require(all(rig.is_used(one) for one in sent), "a command is under way still", _AHEAD)
        for one in sent:
            rig.require(_response(rig.take(one)).response in (_R.OK, _R.RESET), "a command has another response")
    rig.good()


_AHEAD: Final = "scsi.device.controlq-text.3"


@check("scsi.device.controlq-text.2", devices="scsi")
def a_task_is_aborted(rig: Rig) -> None:
    """ABORT_TASK and ABORT_TASK_SET succeed also where there is nothing to abort."""
    rig.start()
    lun = _present(rig)
    for subtype in (Tmf.ABORT_TASK, Tmf.ABORT_TASK_SET, Tmf.QUERY_TASK, Tmf.QUERY_TASK_SET):
        response = _tmf(rig, subtype, lun, 0x1234)
        rig.require(response in (*_WELL, _R.FUNCTION_REJECTED), f"{subtype.name} has response {response}")


@check("scsi.device.request-queues.5", devices="scsi")
def a_function_for_an_absent_target(rig: Rig) -> None:
    """Task management of a target that is not there is not told to have succeeded."""
    rig.start()
    target = _absent(rig)
    response = _tmf(rig, Tmf.LOGICAL_UNIT_RESET, encode_lun(target, 0))
    rig.require(response not in (*_WELL, _UNWRITTEN), f"the response is {response}")


@check("prose.scsi.controlq", devices="scsi")
def notification_is_asked_for(rig: Rig) -> None:
    """AN_QUERY is answered with events that were asked for, or refused."""
    rig.start()
    lun = _present(rig)
    asked = int(AsyncEvent.MEDIA_CHANGE)
    request = virtio_scsi_ctrl_an.encode(type=ControlType.AN_QUERY, lun=lun, event_requested=asked)
    answer = rig.ask(Request(CONTROLQ, (request,), (virtio_scsi_ctrl_an_resp.size,)))
    response = virtio_scsi_ctrl_an_resp.decode(answer.data)
    rig.require(response.response != _UNWRITTEN, "no response is written")
    rig.require(response.response != _R.OK or not response.event_actual & ~asked, "events come that were not asked for")


@check("prose.scsi.controlq", devices="scsi")
def an_unknown_function(rig: Rig) -> None:
    """A task management function that nobody knows is refused."""
    rig.start()
    response = _tmf(rig, 0x77, encode_lun(0, 0))
    rig.require(response not in (*_WELL, _UNWRITTEN), f"the response is {response}")


# Events


@check("scsi.device.eventq.1", devices="scsi", needs=(ScsiFeature.HOTPLUG,))
def events_wait_for_something(rig: Rig) -> None:
    """Buffers in the event queue stay there while nothing happens."""
    rig.start(ScsiFeature.HOTPLUG)
    sent = [rig.send(Request(EVENTQ, (), (16,))) for _ in range(4)]
    rig.good()
    rig.pause()
    for one in sent:
        if rig.is_used(one):
            event = int.from_bytes(rig.take(one).data[:4], "little")
            rig.require(event & 0x7FFFFFFF in range(4), f"event {event:#x} is none")
