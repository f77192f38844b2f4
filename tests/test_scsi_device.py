"""The SCSI host against chains made by hand: what no driver should send, and what the answer must look like."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from tests.scsi_tools import FILL, SlowUnit, ask, command, disk, pair, response
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.scsi import commands
from virtio_py.devices.scsi.cdrom import ScsiCdrom
from virtio_py.devices.scsi.device import ALL_FEATURES, ScsiDevice
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.layout import (
    CONTROLQ,
    DEFAULT_CDB_SIZE,
    EVENTQ,
    REPORT_LUNS_WELL_KNOWN,
    REQUESTQ,
    Address,
    ControlType,
    ScsiFeature,
    ScsiResponse,
    Tmf,
    decode_lun,
    encode_lun,
    virtio_scsi_config,
    virtio_scsi_ctrl_an,
    virtio_scsi_ctrl_tmf,
    virtio_scsi_req_cmd,
    virtio_scsi_req_pi,
    virtio_scsi_resp_cmd,
)
from virtio_py.devices.scsi.sense import (
    INVALID_FIELD_IN_CDB,
    INVALID_OPCODE,
    LUN_NOT_SUPPORTED,
    READ_ERROR,
    SPACE_ALLOCATION_FAILED,
    WRITE_ERROR,
    WRITE_PROTECTED,
    ScsiStatus,
    decode_sense,
)
from virtio_py.errors import RequestError, UsageError
from virtio_py.spec import DeviceStatus, bit

LUN = encode_lun(0, 0)
TUR = commands.test_unit_ready()
HEAD = virtio_scsi_resp_cmd.size
ROOM = HEAD + 96


@define
class BrokenMedium(MemoryMedium):
    """A medium on which everything fails with `error`."""

    error: int = errno.EIO

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        # Part of the data is there already when the medium fails.
        views[0][:] = bytes(len(views[0]))
        raise OSError(self.error, "broken")

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        raise OSError(self.error, "broken")


def host(features: int = ALL_FEATURES & ~bit(ScsiFeature.T10_PI), **units: Any) -> ScsiDevice:
    """A negotiated device with a disk at 0:0 and a CD-ROM drive at 0:1, which are past their first unit attention."""
    device = ScsiDevice(features=ALL_FEATURES)
    device.attach(0, 0, units.get("unit", disk()))
    device.attach(0, 1, ScsiCdrom(MemoryMedium.of(8192)))
    device.negotiated(features)
    for unit in device.units.values():
        unit.take_attention(device.nexus)
    return device


def send(device: ScsiDevice, readable: bytes, room: int, at: Sequence[int] = ()) -> tuple[Any, bytes, int]:
    """One request: its response, what was written behind response and sense, and the used length."""
    written, used, _ = ask(device, REQUESTQ, readable, room, at)
    assert all(byte == FILL for byte in written[used:]), "bytes were written that are not in the used length"
    return response(written), written[ROOM:used], used


# A9: headers cut anywhere, headers too short


@given(at=st.lists(st.integers(0, 400), max_size=8), lba=st.integers(0, 60))
def test_framing_carries_no_meaning(at: list[int], lba: int) -> None:
    device = host()
    data = bytes(range(256)) * 4
    cdb = commands.transfer("WRITE", lba, 2)
    answer, _, used = send(device, command(LUN, cdb, data), ROOM, at)
    assert (answer.response, answer.status, answer.residual, used) == (0, 0, 0, ROOM)
    read = command(LUN, commands.transfer("READ", lba, 2))
    answer, back, used = send(device, read, ROOM + 1024, at)
    assert (back, used) == (data, ROOM + 1024)


@given(size=st.integers(0, virtio_scsi_req_cmd.size + DEFAULT_CDB_SIZE - 1))
@pytest.mark.clause("scsi.device.request-queues.11")
def test_a_request_that_is_too_short_fails(size: int) -> None:
    answer, data, used = send(host(), command(LUN, TUR)[:size], ROOM + 10)
    assert (answer.response, answer.sense_len, data, used) == (ScsiResponse.FAILURE, 0, b"", HEAD)


@given(room=st.integers(0, ROOM - 1))
def test_too_little_room_is_told_or_a_fault(room: int) -> None:
    if room < HEAD:
        with pytest.raises(RequestError):
            send(host(), command(LUN, TUR), room)
    else:
        answer, _, used = send(host(), command(LUN, TUR), room)
        assert (answer.response, used) == (ScsiResponse.FAILURE, HEAD)


@given(
    readable=st.binary(max_size=120),
    room=st.integers(HEAD, 400),
    cdb_size=st.one_of(st.integers(0, 300), st.sampled_from([0xFFFFFFFF, 0x80000000])),
    sense_size=st.one_of(st.integers(0, 300), st.sampled_from([0xFFFFFFFF, 0x80000000])),
    features=st.integers(0, ALL_FEATURES),
)
def test_any_bytes_are_answered_within_their_room(
    readable: bytes, room: int, cdb_size: int, sense_size: int, features: int
) -> None:
    device = host(features)
    sizes = sense_size.to_bytes(4, "little") + cdb_size.to_bytes(4, "little")
    device.write_config(virtio_scsi_config.offset("sense_size"), sizes)
    written, used, chain = ask(device, REQUESTQ, readable, room)
    assert not chain.deferred
    assert HEAD <= used <= room
    answer = response(written)
    assert answer.response in tuple(ScsiResponse)
    assert answer.sense_len <= min(sense_size, room - HEAD)
    assert all(byte == FILL for byte in written[used:])


@given(cdb=st.binary(min_size=1, max_size=32), lun=st.sampled_from([0, 1]), out=st.binary(max_size=600))
def test_any_cdb_is_carried_out_or_refused(cdb: bytes, lun: int, out: bytes) -> None:
    device = host()
    answer, data, used = send(device, command(encode_lun(0, lun), cdb, out), ROOM + 4096)
    assert answer.response in (ScsiResponse.OK, ScsiResponse.OVERRUN)
    assert used == ROOM + len(data)
    assert answer.residual <= len(out) + 4096
    if answer.response == ScsiResponse.OK:
        assert answer.status in (ScsiStatus.GOOD, ScsiStatus.CHECK_CONDITION, ScsiStatus.RESERVATION_CONFLICT)


# A13, A18: what a CDB says against what there is


@pytest.mark.clause("scsi.device.request-queues.3")
@pytest.mark.parametrize(
    ("cdb", "out", "room"),
    [
        (commands.inquiry(255), 0, 254),
        (commands.transfer("READ", 0, 2), 0, 1023),
        (commands.transfer("WRITE", 0, 2), 1023, 0),
        (commands.transfer("READ", 0, 0, size=6), 0, 255 * 512),
        (commands.transfer("READ", 0, 0xFFFFFFFF), 0, 4096),
        (commands.unmap([(0, 1)])[0], 10, 0),
        (commands.mode_sense(100, 0x3F), 0, 99),
    ],
)
def test_a_cdb_that_wants_more_than_there_is_overruns(cdb: bytes, out: int, room: int) -> None:
    device = host()
    answer, data, used = send(device, command(LUN, cdb, bytes(out)), ROOM + room)
    assert (answer.response, answer.residual, data, used) == (ScsiResponse.OVERRUN, out + room, b"", ROOM)


def test_what_is_not_transferred_is_the_residual() -> None:
    device = host()
    answer, data, used = send(device, command(LUN, commands.inquiry(36)), ROOM + 100)
    assert (answer.residual, len(data), used) == (64, 36, ROOM + 36)
    answer, _, _ = send(device, command(LUN, commands.transfer("WRITE", 0, 1), bytes(2000)), ROOM)
    assert (answer.response, answer.residual) == (ScsiResponse.OK, 2000 - 512)


@pytest.mark.clause("scsi.device.request-queues.12")
def test_data_in_both_directions_need_the_feature() -> None:
    both = command(LUN, TUR, b"x")
    answer, _, _ = send(host(0), both, ROOM + 1)
    assert answer.response == ScsiResponse.FAILURE
    answer, _, _ = send(host(bit(ScsiFeature.INOUT)), both, ROOM + 1)
    assert (answer.response, answer.status, answer.residual) == (ScsiResponse.OK, 0, 2)


def test_a_cdb_longer_than_cdb_size_is_cut() -> None:
    device = host()
    device.write_config(virtio_scsi_config.offset("cdb_size"), (10).to_bytes(4, "little"))
    long = command(LUN, commands.transfer("READ", 0, 1), cdb_size=10)
    answer, _, _ = send(device, long, ROOM + 512)
    assert answer.status == ScsiStatus.CHECK_CONDITION
    short = command(LUN, commands.transfer("READ", 0, 1, size=10), cdb_size=10)
    assert send(device, short, ROOM + 512)[0].status == ScsiStatus.GOOD
    device.write_config(virtio_scsi_config.offset("cdb_size"), bytes(4))
    assert send(device, short, ROOM)[0].response == ScsiResponse.FAILURE
    # One that is longer than any CDB has padding behind it.
    device.write_config(virtio_scsi_config.offset("cdb_size"), (4000).to_bytes(4, "little"))
    assert send(device, command(LUN, TUR, cdb_size=4000), ROOM)[0].response == ScsiResponse.OK


@given(sense_size=st.integers(0, 200))
def test_sense_data_are_cut_to_sense_size(sense_size: int) -> None:
    device = host()
    device.write_config(virtio_scsi_config.offset("sense_size"), sense_size.to_bytes(4, "little"))
    written, used, _ = ask(device, REQUESTQ, command(LUN, b"\xff"), HEAD + sense_size + 7)
    assert response(written).sense_len == min(sense_size, 18)
    assert used == HEAD + sense_size
    assert written[HEAD + 18 : used] == bytes(max(sense_size - 18, 0))
    if sense_size >= 18:
        assert decode_sense(written[HEAD:used]) == INVALID_OPCODE


@given(
    field=st.one_of(
        st.binary(min_size=8, max_size=8),
        st.tuples(st.just(1), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)).map(
            lambda t: bytes([*t, 0, 0, 0, 0])
        ),
    )
)
def test_lun_formats(field: bytes) -> None:
    device = host()
    answer, _, _ = send(device, command(field, TUR), ROOM)
    address = decode_lun(field)
    if field == REPORT_LUNS_WELL_KNOWN or (address is not None and address.target == 0):
        assert answer.response == ScsiResponse.OK
    else:
        assert answer.response == ScsiResponse.BAD_TARGET
    # What is known: byte 0 is 1, a single level of peripheral or flat addressing, zeros.
    kind = field[2] >> 6
    known = field[0] == 1 and not any(field[4:]) and (field[2] == 0 or kind == 1 or field[2:4] == b"\xc1\x01")
    assert (address is not None) == known


@given(target=st.integers(0, 255), lun=st.integers(0, 16383))
def test_addresses_survive_their_encoding(target: int, lun: int) -> None:
    field = encode_lun(target, lun)
    assert decode_lun(field) == Address(target, lun)
    assert (field[2] == 0) == (lun < 256)


# Failures of the medium


@pytest.mark.clause("scsi.device.request-queues.7")
@pytest.mark.clause("scsi.device.request-queues.8")
@pytest.mark.clause("scsi.device.request-queues.9")
@pytest.mark.clause("scsi.device.request-queues.10")
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errno.ENOLINK, ScsiResponse.TRANSPORT_FAILURE),
        (errno.EREMOTEIO, ScsiResponse.TARGET_FAILURE),
        (errno.EBADE, ScsiResponse.NEXUS_FAILURE),
        (errno.EBUSY, ScsiResponse.BUSY),
        (errno.EIO, READ_ERROR),
    ],
)
def test_a_medium_s_error_has_its_response(error: int, expected: object) -> None:
    device = host(unit=ScsiDisk(BrokenMedium(bytearray(8192), error=error)))
    written, used, _ = ask(device, REQUESTQ, command(LUN, commands.transfer("READ", 0, 1)), ROOM + 512)
    answer = response(written)
    # A12: what the medium left in the buffer before it failed does not count.
    assert (used, answer.residual) == (ROOM, 512)
    assert (decode_sense(written[HEAD:]) if answer.response == 0 else answer.response) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [(errno.EIO, WRITE_ERROR), (errno.ENOSPC, SPACE_ALLOCATION_FAILED), (errno.EROFS, WRITE_PROTECTED)],
)
def test_an_error_in_writing_has_its_sense(error: int, expected: object) -> None:
    device = host(unit=ScsiDisk(BrokenMedium(bytearray(8192), error=error)))
    written, _, _ = ask(device, REQUESTQ, command(LUN, commands.transfer("WRITE", 0, 1), bytes(512)), ROOM)
    assert decode_sense(written[HEAD:]) == expected


# Task attributes


@pytest.mark.clause("scsi.device.request-queues-text.3")
@pytest.mark.clause("scsi.device.request-queues-text.4")
@given(attribute=st.integers(0, 255), priority=st.integers(0, 255), crn=st.integers(0, 255))
def test_all_attributes_are_simple(attribute: int, priority: int, crn: int) -> None:
    head = virtio_scsi_req_cmd.encode(lun=LUN, task_attr=attribute, prio=priority, crn=crn)
    answer, _, _ = send(host(), head + TUR.ljust(32, b"\0"), ROOM)
    assert (answer.response, answer.status) == (ScsiResponse.OK, ScsiStatus.GOOD)


# T10_PI


@given(
    out=st.integers(0, 2000),
    back=st.integers(0, 2000),
    numbers=st.tuples(st.integers(0, 0xFFFFFFFF), st.integers(0, 3000)),
)
def test_protection_bytes_that_are_not_there_fail(out: int, back: int, numbers: tuple[int, int]) -> None:
    device = host(ALL_FEATURES)
    sizes = virtio_scsi_req_pi.encode(pi_bytesout=numbers[0], pi_bytesin=numbers[1])
    readable = command(LUN, commands.inquiry(0)) + sizes + bytes(out)
    written, used, _ = ask(device, REQUESTQ, readable, ROOM + back)
    fits = numbers[0] <= out and numbers[1] <= back
    assert response(written).response == (ScsiResponse.OK if fits else ScsiResponse.FAILURE)
    assert used == (ROOM if fits else HEAD)


# The control queue


@given(readable=st.binary(max_size=40), room=st.integers(0, 20))
def test_any_control_request_has_a_response(readable: bytes, room: int) -> None:
    device = host()
    if not room:
        with pytest.raises(RequestError):
            ask(device, CONTROLQ, readable, room)
        return
    written, used, _ = ask(device, CONTROLQ, readable, room)
    assert used <= room
    if len(readable) < 4 or readable[0] > 2 or any(readable[1:4]):
        assert written[-1] == ScsiResponse.FAILURE
        assert all(byte == FILL for byte in written[:-1])


def test_control_requests_that_are_too_short() -> None:
    device = host()
    tmf = virtio_scsi_ctrl_tmf.encode(subtype=Tmf.LOGICAL_UNIT_RESET, lun=LUN)
    assert ask(device, CONTROLQ, tmf[:-1], 1)[:2] == (bytes([ScsiResponse.FAILURE]), 1)
    assert ask(device, CONTROLQ, tmf, 1)[:2] == (bytes([ScsiResponse.OK]), 1)
    query = virtio_scsi_ctrl_an.encode(type=ControlType.AN_QUERY, lun=encode_lun(0, 1), event_requested=0x7E)
    written, used, _ = ask(device, CONTROLQ, query, 4)
    assert (written[-1], used) == (ScsiResponse.FAILURE, 0)
    assert ask(device, CONTROLQ, query, 5)[:2] == (bytes([16, 0, 0, 0, 0]), 5)
    bad = virtio_scsi_ctrl_tmf.encode(subtype=Tmf.LOGICAL_UNIT_RESET, lun=b"\xff" * 8)
    assert ask(device, CONTROLQ, bad, 1)[0] == bytes([ScsiResponse.INCORRECT_LUN])


# The event queue


@pytest.mark.clause("scsi.driver.eventq.2")
@pytest.mark.clause("scsi.driver.eventq.4")
@pytest.mark.parametrize(("readable", "room"), [(b"x", 16), (b"", 15), (b"x", 0)])
def test_an_event_buffer_that_no_event_fits_is_a_fault(readable: bytes, room: int) -> None:
    with pytest.raises(RequestError) as caught:
        ask(host(), EVENTQ, readable, room)
    assert caught.value.clause in ("scsi.driver.eventq.2", "scsi.driver.eventq.4")


def test_a_fault_is_needs_reset_and_a_reset_recovers() -> None:
    driver, _ = pair()
    short = driver.transport.arena.allocate(4)
    driver.queues[REQUESTQ].add([], [short.extent])
    driver.kick(driver.queues[REQUESTQ])
    driver.transport.wait(0)
    assert driver.transport.read_status() & DeviceStatus.DEVICE_NEEDS_RESET
    driver.start()
    assert driver.inquiry(0, 0).vendor == "VIRTIO"


# A19: nothing grows


def test_a_driver_that_never_stops_finds_an_end() -> None:
    slow = SlowUnit(MemoryMedium.of(4096))
    driver, device = pair({(0, 0): slow}, cmd_per_lun=4, queue_size=8)
    driver.config = driver.config._replace(cmd_per_lun=99)
    for _ in range(50):
        if driver.queues[REQUESTQ].outstanding < 8:
            driver.submit(LUN, TUR)
        driver.transport.wait(0)
        for ticket, length in driver.queues[REQUESTQ].take_used():
            driver._done(ticket, length)
    assert len(slow.tasks) == 4
    assert len(device.active(0)) == 4


def test_attentions_and_registrations_are_bounded() -> None:
    unit = disk()
    driver, device = pair({(0, 0): unit})
    for _ in range(1000):
        unit.reset()
        device.attach(0, 1, disk())
        device.detach(0, 1)
    waiting = 0
    while unit.take_attention(device.nexus):
        waiting += 1
    assert waiting <= 16
    assert device._events.missed
    assert driver.inquiry(0, 0).type == 0


# What cannot be


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScsiDevice(features=1 << 4),
        lambda: ScsiDisk(MemoryMedium.of(4096), block_size=513),
        lambda: ScsiDevice().hard_reset(0, 0),
    ],
)
def test_a_value_that_cannot_be_is_refused(make: Any) -> None:
    with pytest.raises(UsageError):
        make()


def test_absent_units_have_three_commands() -> None:
    device = host()
    lun = encode_lun(0, 200)
    written, _, _ = ask(device, REQUESTQ, command(lun, commands.transfer("READ", 0, 1)), ROOM + 512)
    assert decode_sense(written[HEAD:]) == LUN_NOT_SUPPORTED
    answer, data, _ = send(device, command(lun, commands.inquiry(96)), ROOM + 96)
    assert (answer.status, data[0]) == (ScsiStatus.GOOD, 0x7F)
    written, _, _ = ask(device, REQUESTQ, command(lun, commands.inquiry(96, 0x80)), ROOM + 96)
    assert decode_sense(written[HEAD:]) == INVALID_FIELD_IN_CDB
