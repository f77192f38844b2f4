"""Logical units without any transport: disks, drives, mode pages, reservations, protection, sense data."""

from __future__ import annotations

import random
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from tests.scsi_tools import BLOCKS, NEXUS, carried_out, disk
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi import commands, sense
from virtio_py.devices.scsi.cdb import Opcode, PrIn, PrOut, usage
from virtio_py.devices.scsi.cdrom import ScsiCdrom
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.protection import Protection, crc16_t10dif, generate
from virtio_py.devices.scsi.reservations import ReservationType
from virtio_py.devices.scsi.sense import Condition, ScsiStatus, decode_sense, encode_sense
from virtio_py.devices.scsi.task import Nexus
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.devices.scsi.vpd import block_limits, block_provisioning, vpd_header
from virtio_py.errors import UsageError
from virtio_py.records import Record

OTHER = Nexus("other")


@define
class Cached(MemoryMedium):
    """A medium that counts its flushes."""

    flushes: int = field(default=0, init=False)

    def flush(self) -> None:
        self.flushes += 1


def good(unit: LogicalUnit, cdb: bytes, data_out: bytes = b"", room: int = 0, nexus: Nexus = NEXUS) -> bytes:
    outcome, data = carried_out(unit, cdb, data_out, room, nexus)
    assert (outcome.response, outcome.status) == (0, 0), decode_sense(outcome.sense)
    return bytes(data)


def condition(unit: LogicalUnit, cdb: bytes, data_out: bytes = b"", room: int = 0, nexus: Nexus = NEXUS) -> Any:
    outcome, _ = carried_out(unit, cdb, data_out, room, nexus)
    assert (outcome.response, outcome.status) == (0, ScsiStatus.CHECK_CONDITION)
    return decode_sense(outcome.sense)


def status(unit: LogicalUnit, cdb: bytes, data_out: bytes = b"", room: int = 0, nexus: Nexus = NEXUS) -> int:
    return int(carried_out(unit, cdb, data_out, room, nexus)[0].status)


# CDBs and sense data


def all_cdbs() -> list[Record]:
    groups = [cdbs.read, cdbs.write, cdbs.verify, cdbs.synchronize_cache, cdbs.write_same, cdbs.mode_sense]
    return [record for group in groups for record in group.values()] + [cdbs.inquiry, cdbs.unmap, cdbs.read_write_6]


@pytest.mark.parametrize("record", all_cdbs(), ids=lambda r: f"{r.name} {r.size}")
def test_cdbs_have_the_lengths_of_their_groups(record: Record) -> None:
    assert record.size in (6, 10, 12, 16)
    assert len(usage(record)) == record.size


@pytest.mark.parametrize("unit", [disk(), ScsiCdrom(MemoryMedium.of(4096))], ids=["disk", "cdrom"])
def test_every_operation_has_the_cdb_length_of_its_code(unit: LogicalUnit) -> None:
    lengths = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
    for (opcode, _), operation in unit.operations.items():
        assert operation.cdb.size == lengths[opcode >> 5], operation.name


def test_usage_is_what_the_standards_tables_say() -> None:
    assert usage(cdbs.read[10]).hex() == "fffcffffffff1fffff00"
    assert usage(cdbs.read_write_6).hex() == "ff1fffffff00"
    assert usage(cdbs.inquiry).hex() == "ff01ffffff00"
    assert usage(cdbs.unmap).hex() == "ff01000000001fffff00"


@given(
    key=st.integers(0, 15),
    asc=st.integers(0, 255),
    ascq=st.integers(0, 255),
    information=st.none() | st.integers(0, 2**64 - 1),
    descriptors=st.booleans(),
)
def test_sense_data_say_the_same_in_both_formats(
    key: int, asc: int, ascq: int, information: int | None, descriptors: bool
) -> None:
    data = encode_sense(Condition(key, asc, ascq), information, descriptors=descriptors)
    assert decode_sense(data) == Condition(key, asc, ascq)
    assert len(data) <= 252
    if not descriptors:
        fits = information is not None and information < 1 << 32
        assert bool(data[0] & 0x80) == fits
        assert int.from_bytes(data[3:7], "big") == (information if fits else 0)
    assert decode_sense(b"") is None
    assert decode_sense(bytes([0x7F, 0, 0])) is None


@given(cdb=st.binary(min_size=1, max_size=20))
def test_bits_that_mean_nothing_are_pointed_at(cdb: bytes) -> None:
    unit = disk()
    outcome, _ = carried_out(unit, cdb, bytes(1 << 10), 1 << 10)
    if outcome.response or decode_sense(outcome.sense) != sense.INVALID_FIELD_IN_CDB:
        return
    specific = outcome.sense[15:18]
    assert specific[0] & 0xC0 == 0xC0
    assert int.from_bytes(specific[1:], "big") <= 16


def test_the_lun_of_scsi_2_is_ignored() -> None:
    # Linux asks a unit that it does not know yet in this way.
    assert good(disk(), bytes([0x12, 0x60, 0, 0, 36, 0]), room=36)[0] == 0
    assert condition(disk(), bytes([0x12, 0x02, 0, 0, 36, 0]), room=36) == sense.INVALID_FIELD_IN_CDB


# Identification


def test_vital_product_data_pages() -> None:
    unit = disk(serial="S-1")
    pages = good(unit, commands.inquiry(64, 0), room=64)
    assert list(pages[4:]) == [0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2]
    for code in pages[4:]:
        data = good(unit, commands.inquiry(255, code), room=255)
        head = vpd_header.decode(data)
        assert (head.page_code, head.page_length) == (code, len(data) - 4)
    assert good(unit, commands.inquiry(255, 0x80), room=255)[4:] == b"S-1"
    assert condition(unit, commands.inquiry(255, 0x99), room=255) == sense.INVALID_FIELD_IN_CDB
    limits = block_limits.decode(good(unit, commands.inquiry(255, 0xB0), room=255), 4)
    assert (limits.flags.wsnz, limits.maximum_unmap_block_descriptor_count) == (1, 64)
    thin = block_provisioning.decode(good(unit, commands.inquiry(255, 0xB2), room=255), 4)
    assert (thin.provisioning.type, thin.flags.lbpu, thin.flags.lbprz) == (2, 1, 1)
    thick = ScsiDisk(MemoryMedium.of(4096))
    assert block_provisioning.decode(good(thick, commands.inquiry(255, 0xB2), room=255), 4).provisioning.type == 0
    assert condition(thick, commands.unmap([])[0], commands.unmap([])[1]) == sense.INVALID_OPCODE


def test_a_unit_is_recognised_by_its_identification() -> None:
    def page(serial: str) -> bytes:
        return good(disk(serial=serial), commands.inquiry(255, 0x83), room=255)

    assert page("a") == page("a") != page("b")


# Capacity


@given(blocks=st.integers(1, 100), size=st.sampled_from([512, 4096]))
def test_capacity(blocks: int, size: int) -> None:
    unit = disk(blocks, block_size=size)
    short = good(unit, commands.read_capacity_10(), room=8)
    assert (int.from_bytes(short[:4], "big"), int.from_bytes(short[4:], "big")) == (blocks - 1, size)
    assert commands.parse_capacity(good(unit, commands.read_capacity_16(), room=32)) == (blocks, size, True, False)


def test_a_disk_larger_than_two_terabytes_says_so() -> None:
    @define
    class Huge(MemoryMedium):
        @property
        def size(self) -> int:
            return 1 << 45

    unit = ScsiDisk(Huge(bytearray()))
    assert good(unit, commands.read_capacity_10(), room=8)[:4] == b"\xff" * 4
    assert commands.parse_capacity(good(unit, commands.read_capacity_16(), room=32)).blocks == 1 << 36
    assert good(unit, commands.mode_sense(64, 8), room=64)[8:12] == b"\xff" * 4


@pytest.mark.parametrize("lba", [BLOCKS, BLOCKS - 1, 1 << 63, (1 << 64) - 1])
def test_blocks_behind_the_end(lba: int) -> None:
    cdb = commands.transfer("READ", lba, 2)
    assert condition(disk(), cdb, room=1024) == sense.LBA_OUT_OF_RANGE


# Writing


def test_write_same_and_unmap_are_bounded() -> None:
    unit = disk()
    assert condition(unit, commands.write_same(0, 0), bytes(512)) == sense.INVALID_FIELD_IN_CDB
    assert condition(unit, commands.write_same(0, 1 << 31), bytes(512)) == sense.LBA_OUT_OF_RANGE
    many = commands.unmap([(0, 1)] * 65)
    assert condition(unit, *many) == sense.INVALID_FIELD_IN_LIST
    cdb, data = commands.unmap([(0, 1), (BLOCKS, 1)])
    good(unit, commands.transfer("WRITE", 0, 1), b"x" * 512)
    assert condition(unit, cdb, data) == sense.LBA_OUT_OF_RANGE
    # A list that is refused has changed nothing.
    assert good(unit, commands.transfer("READ", 0, 1), room=512) == b"x" * 512
    assert condition(unit, cdb[:7] + (4).to_bytes(2, "big") + cdb[9:], data) == sense.PARAMETER_LIST_LENGTH


def test_compare_and_write() -> None:
    unit = disk()
    cdb = bytes([Opcode.COMPARE_AND_WRITE, 0]) + (3).to_bytes(8, "big") + bytes([0, 0, 0, 1, 0, 0])
    good(unit, cdb, bytes(512) + b"y" * 512)
    assert good(unit, commands.transfer("READ", 3, 1), room=512) == b"y" * 512
    outcome, _ = carried_out(unit, cdb, b"y" * 100 + b"z" * 412 + bytes(512))
    assert decode_sense(outcome.sense) == sense.MISCOMPARE
    assert int.from_bytes(outcome.sense[3:7], "big") == 100
    assert good(unit, commands.transfer("READ", 3, 1), room=512) == b"y" * 512


def test_a_write_is_durable_when_it_has_to_be() -> None:
    medium = Cached(bytearray(BLOCKS * 512))
    unit = ScsiDisk(medium)
    good(unit, commands.transfer("WRITE", 0, 1), bytes(512))
    assert medium.flushes == 0
    good(unit, commands.transfer("WRITE", 0, 1, fua=1), bytes(512))
    assert medium.flushes == 1
    good(unit, commands.synchronize_cache())
    assert medium.flushes == 2
    page = bytearray(good(unit, commands.mode_sense(255, 0x08, dbd=True), room=255)[8:])
    page[2] &= ~4
    good(unit, *commands.mode_select(bytes(page)))
    assert medium.flushes == 3
    good(unit, commands.transfer("WRITE", 0, 1), bytes(512))
    assert medium.flushes == 4
    unit.reset()
    good(unit, commands.transfer("WRITE", 0, 1), bytes(512))
    assert medium.flushes == 4


def test_nothing_is_written_to_what_is_protected() -> None:
    write = commands.transfer("WRITE", 0, 1)
    frozen = ScsiDisk(MemoryMedium(bytearray(4096), read_only=True))
    assert condition(frozen, write, bytes(512)) == sense.WRITE_PROTECTED
    assert good(frozen, commands.mode_sense(255, 0x3F), room=255)[3] & 0x80
    soft = disk()
    page = bytearray(good(soft, commands.mode_sense(255, 0x0A, dbd=True), room=255)[8:])
    page[4] |= 8
    good(soft, *commands.mode_select(bytes(page)))
    for cdb, data in (
        (write, bytes(512)),
        (commands.write_same(0, 1), bytes(512)),
        commands.unmap([(0, 1)]),
        (bytes([Opcode.XDWRITEREAD_10]) + bytes(7) + bytes([1, 0]), bytes(512)),
    ):
        assert condition(soft, cdb, data, room=512) == sense.SOFTWARE_WRITE_PROTECTED


# Mode pages, power


def test_mode_pages_change_as_a_whole_or_not_at_all() -> None:
    unit = disk()
    unit.join(OTHER)
    unit.take_attention(OTHER)
    everything = good(unit, commands.mode_sense(255, 0x3F, dbd=True), room=255)[8:]
    changeable = good(unit, commands.mode_sense(255, 0x3F, control=1, dbd=True), room=255)[8:]
    assert len(changeable) == len(everything)
    assert good(unit, commands.mode_sense(255, 0x3F, control=2, dbd=True), room=255)[8:] == everything
    assert condition(unit, commands.mode_sense(255, 0x3F, control=3), room=255) == sense.SAVING_NOT_SUPPORTED
    assert condition(unit, commands.mode_sense(255, 0x2A), room=255) == sense.INVALID_FIELD_IN_CDB
    caching = bytearray(good(unit, commands.mode_sense(255, 0x08, dbd=True), room=255)[8:])
    caching[2] ^= 4
    wrong = bytearray(good(unit, commands.mode_sense(255, 0x01, dbd=True), room=255)[8:])
    wrong[3] = 9
    assert condition(unit, *commands.mode_select(bytes(caching + wrong))) == sense.INVALID_FIELD_IN_LIST
    assert good(unit, commands.mode_sense(255, 0x3F, dbd=True), room=255)[8:] == everything
    assert condition(unit, *commands.mode_select(bytes(caching[:-1]))) == sense.PARAMETER_LIST_LENGTH
    good(unit, *commands.mode_select(bytes(caching)))
    assert unit.take_attention(OTHER) == sense.MODE_CHANGED
    # The block descriptors of both sizes come back as they went out.
    for cdb in (bytes([0x1A, 0, 8, 0, 255, 0]), commands.mode_sense(255, 8)):
        data = good(unit, cdb, room=255)
        length = [len(data)] if cdb[0] == 0x1A else [0, 0, 0, 0, len(data)]
        back = bytes([0x15 if cdb[0] == 0x1A else 0x55, 0x10, 0, 0, *length, 0])
        good(unit, back, data)


@given(data=st.binary(max_size=64), long=st.booleans())
def test_any_mode_parameter_list_is_taken_or_refused(data: bytes, long: bool) -> None:
    unit = disk()
    cdb = bytes([0x55, 0x10, 0, 0, 0, 0, 0, 0, len(data), 0]) if long else bytes([0x15, 0x10, 0, 0, len(data), 0])
    outcome, _ = carried_out(unit, cdb, data)
    assert outcome.status in (ScsiStatus.GOOD, ScsiStatus.CHECK_CONDITION)
    assert good(unit, commands.transfer("READ", 0, 1), room=512) == bytes(512)


def test_descriptor_sense_is_a_mode() -> None:
    unit = disk()
    page = bytearray(good(unit, commands.mode_sense(255, 0x0A, dbd=True), room=255)[8:])
    page[2] |= 4
    good(unit, *commands.mode_select(bytes(page)))
    outcome, _ = carried_out(unit, b"\xff" + bytes(15))
    assert outcome.sense[0] == 0x72
    assert decode_sense(outcome.sense) == sense.INVALID_OPCODE


def test_a_unit_that_is_stopped_is_not_ready() -> None:
    unit = disk()
    good(unit, commands.start_stop(False))
    for cdb, room in ((commands.test_unit_ready(), 0), (commands.transfer("READ", 0, 1), 512)):
        assert condition(unit, cdb, room=room) == sense.STOPPED
    assert decode_sense(good(unit, commands.request_sense(252), room=252)) == sense.STOPPED
    good(unit, commands.inquiry(96), room=96)
    good(unit, commands.start_stop(True))
    good(unit, commands.test_unit_ready())


def test_supported_operation_codes_are_those_that_are_carried_out() -> None:
    unit = disk()
    listed = good(unit, bytes([0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]), room=4096)
    entries = [listed[at : at + 8] for at in range(4, len(listed), 8)]
    assert int.from_bytes(listed[:4], "big") == len(listed) - 4
    codes = {(e[0], int.from_bytes(e[2:4], "big") if e[5] & 1 else None) for e in entries}
    assert codes == set(unit.supported())
    timed = good(unit, bytes([0xA3, 0x0C, 0x80, 0, 0, 0, 0, 0, 0x10, 0, 0, 0]), room=4096)
    assert len(timed) == 4 + 20 * len(entries)

    def one(options: int, opcode: int, action: int = 0) -> bytes:
        cdb = bytes([0xA3, 0x0C, options, opcode, 0, action, 0, 0, 1, 0, 0, 0])
        return good(unit, cdb, room=256)

    assert one(1, 0x28)[1] == 3
    assert one(1, 0xFE)[1] == 1
    assert one(2, 0x9E, 0x10)[4:6] == bytes([0x9E, 0x10])
    assert one(3, 0x5E, 9)[1] == 1
    for options, opcode in ((1, 0x9E), (2, 0x28), (4, 0x28)):
        wrong = bytes([0xA3, 0x0C, options, opcode, 0, 0, 0, 0, 1, 0, 0, 0])
        assert condition(unit, wrong, room=256) == sense.INVALID_FIELD_IN_CDB


def test_report_luns_needs_room_for_one() -> None:
    for size, select in ((15, 0), (16, 3)):
        assert condition(disk(), commands.report_luns(size, select), room=16) == sense.INVALID_FIELD_IN_CDB
    assert good(disk(), commands.report_luns(16, 1), room=16) == bytes(
        [0, 0, 0, 8, 0, 0, 0, 0, 0xC1, 1, 0, 0, 0, 0, 0, 0]
    )


def test_log_pages() -> None:
    unit = disk()
    assert good(unit, bytes([0x4D, 0, 0x40, 0, 0, 0, 0, 0, 255, 0]), room=255) == bytes([0, 0, 0, 2, 0, 0x2F])
    page = good(unit, bytes([0x4D, 0, 0x6F, 0, 0, 0, 0, 0, 255, 0]), room=255)
    assert page[0] == 0x2F
    assert len(page) == 4 + int.from_bytes(page[2:4], "big")
    assert condition(unit, bytes([0x4D, 0, 0x55, 0, 0, 0, 0, 0, 255, 0]), room=255) == sense.INVALID_FIELD_IN_CDB


# Reservations

READ, WRITE = commands.transfer("READ", 0, 1), commands.transfer("WRITE", 0, 1)


def reserved(kind: ReservationType, registered: bool) -> ScsiDisk:
    """A disk that NEXUS has reserved; OTHER is registered too, or not."""
    unit = disk()
    for nexus in (NEXUS, OTHER):
        unit.join(nexus)
        unit.take_attention(nexus)
    good(unit, *commands.reserve_out(PrOut.REGISTER, 0, 0xA))
    if registered:
        good(unit, *commands.reserve_out(PrOut.REGISTER, 0, 0xB), nexus=OTHER)
    good(unit, *commands.reserve_out(PrOut.RESERVE, 0xA, kind=kind))
    return unit


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("kind", list(ReservationType))
def test_a_reservation_keeps_out_whom_it_should(kind: ReservationType, registered: bool) -> None:
    unit = reserved(kind, registered)
    for nexus in (NEXUS, OTHER):
        free = nexus is NEXUS or (registered and "REGISTRANTS" in kind.name)
        conflict = ScsiStatus.RESERVATION_CONFLICT
        reads = ScsiStatus.GOOD if free or kind.name.startswith("WRITE") else conflict
        assert status(unit, READ, room=512, nexus=nexus) == reads
        assert status(unit, WRITE, bytes(512), nexus=nexus) == (ScsiStatus.GOOD if free else conflict)
        for cdb, room in ((commands.inquiry(96), 96), (commands.test_unit_ready(), 0), (commands.report_luns(16), 16)):
            assert status(unit, cdb, room=room, nexus=nexus) == ScsiStatus.GOOD


def test_reservations_end_in_several_ways() -> None:
    kind = ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY
    unit = reserved(kind, True)
    # Without the key nobody does anything.
    assert status(unit, *commands.reserve_out(PrOut.RELEASE, 0xBAD, kind=kind)) == ScsiStatus.RESERVATION_CONFLICT
    assert status(unit, *commands.reserve_out(PrOut.REGISTER, 0xBAD, 1)) == ScsiStatus.RESERVATION_CONFLICT
    assert condition(unit, *commands.reserve_out(PrOut.RELEASE, 0xA, kind=1)) == sense.INVALID_RELEASE
    taken = commands.reserve_out(PrOut.RESERVE, 0xB, kind=kind)
    assert status(unit, *taken, nexus=OTHER) == ScsiStatus.RESERVATION_CONFLICT
    good(unit, *commands.reserve_out(PrOut.RELEASE, 0xA, kind=kind))
    assert unit.take_attention(OTHER) == sense.RESERVATIONS_RELEASED
    unit = reserved(kind, True)
    good(unit, *commands.reserve_out(PrOut.PREEMPT, 0xB, 0xA, kind=3), nexus=OTHER)
    assert unit.take_attention(NEXUS) == sense.REGISTRATIONS_PREEMPTED
    assert status(unit, READ, room=512) == ScsiStatus.RESERVATION_CONFLICT
    assert good(unit, commands.reserve_in(PrIn.READ_KEYS, 255), room=255)[8:] == (0xB).to_bytes(8, "big")
    unit = reserved(kind, True)
    good(unit, *commands.reserve_out(PrOut.CLEAR, 0xB), nexus=OTHER)
    assert unit.take_attention(NEXUS) == sense.RESERVATIONS_PREEMPTED
    assert good(unit, commands.reserve_in(PrIn.READ_RESERVATION, 255), room=255)[4:] == bytes(4)
    unit = reserved(kind, True)
    unit.reset()
    assert status(unit, WRITE, bytes(512), nexus=Nexus()) == ScsiStatus.RESERVATION_CONFLICT
    unit.take_attention(NEXUS)
    # The holder's registration ends, and with it the reservation.
    good(unit, *commands.reserve_out(PrOut.REGISTER, 0xA, 0))
    assert status(unit, WRITE, bytes(512), nexus=Nexus()) == ScsiStatus.GOOD


def test_a_reservation_of_all_registrants_ends_with_the_last_of_them() -> None:
    unit = reserved(ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, True)
    good(unit, *commands.reserve_out(PrOut.REGISTER, 0xA, 0))
    assert status(unit, WRITE, bytes(512)) == ScsiStatus.RESERVATION_CONFLICT
    assert status(unit, WRITE, bytes(512), nexus=OTHER) == ScsiStatus.GOOD
    good(unit, *commands.reserve_out(PrOut.REGISTER, 0xB, 0), nexus=OTHER)
    assert status(unit, WRITE, bytes(512)) == ScsiStatus.GOOD
    assert unit.reservations.type == 0


def test_whom_a_preemption_meets() -> None:
    kind = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
    unit = reserved(kind, True)
    unit.join(third := Nexus("third"))
    unit.take_attention(third)
    good(unit, *commands.reserve_out(PrOut.REGISTER, 0, 0xC), nexus=third)
    # A key that nobody has.
    nobody = commands.reserve_out(PrOut.PREEMPT, 0xB, 0xDD, kind=kind)
    assert status(unit, *nobody, nexus=OTHER) == ScsiStatus.RESERVATION_CONFLICT
    assert condition(unit, *commands.reserve_out(PrOut.PREEMPT, 0xB, 0, kind=kind), nexus=OTHER) == (
        sense.INVALID_FIELD_IN_LIST
    )
    # A registrant that holds nothing: the reservation stays where it is.
    good(unit, *commands.reserve_out(PrOut.PREEMPT, 0xB, 0xC, kind=kind), nexus=OTHER)
    assert unit.take_attention(third) == sense.REGISTRATIONS_PREEMPTED
    assert unit.reservations.holder is NEXUS
    # The holder: with the same type nobody else loses anything, with another one the rest are told.
    good(unit, *commands.reserve_out(PrOut.REGISTER, 0, 0xC), nexus=third)
    good(unit, *commands.reserve_out(PrOut.PREEMPT_AND_ABORT, 0xB, 0xA, kind=kind), nexus=OTHER)
    assert (unit.reservations.holder, unit.take_attention(third)) == (OTHER, None)
    assert unit.take_attention(NEXUS) == sense.REGISTRATIONS_PREEMPTED
    good(unit, *commands.reserve_out(PrOut.PREEMPT, 0xB, 0xB, kind=3), nexus=OTHER)
    assert (unit.reservations.type, unit.take_attention(third)) == (3, sense.RESERVATIONS_RELEASED)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(list(PrOut)),
            st.sampled_from([NEXUS, OTHER]),
            st.sampled_from([0, 1, 2]),
            st.sampled_from([0, 1, 2]),
            st.sampled_from([0, 1, 3, 5, 6, 7, 8]),
        ),
        max_size=12,
    )
)
def test_reservations_stay_consistent(steps: list[tuple[PrOut, Nexus, int, int, int]]) -> None:
    unit = disk()
    for action, nexus, key, new_key, kind in steps:
        before = unit.reservations.generation
        ended = status(unit, *commands.reserve_out(action, key, new_key, kind), nexus=nexus)
        state = unit.reservations
        assert (state.generation == before) or ended == ScsiStatus.GOOD
        # Who holds it is registered, and there is a holder while there is a reservation.
        if state.type:
            assert any(state.holds(one) for one in (NEXUS, OTHER))
            assert state.type in (7, 8) or state.holder in state.keys
        assert 0 not in state.keys.values()
        full = good(unit, commands.reserve_in(PrIn.READ_FULL_STATUS, 4096), room=4096, nexus=nexus)
        assert int.from_bytes(full[4:8], "big") == len(full) - 8
        good(unit, commands.reserve_in(PrIn.READ_RESERVATION, 4096), room=4096, nexus=nexus)


# Protection information


def test_the_check_value_of_crc_16_t10_dif() -> None:
    assert crc16_t10dif(b"123456789") == 0xD0DB
    assert crc16_t10dif(b"") == 0


@given(data=st.binary(max_size=64), extra=st.binary(max_size=8))
def test_the_crc_is_the_remainder_of_a_division(data: bytes, extra: bytes) -> None:
    value, bits = int.from_bytes(data + extra, "big") << 16, 8 * len(data + extra) + 16
    for shift in range(bits - 17, -1, -1):
        if value >> (shift + 16) & 1:
            value ^= 0x18BB7 << shift
    assert crc16_t10dif(data + extra) == value


def test_a_protected_disk_keeps_what_it_makes() -> None:
    protection = Protection(MemoryMedium.of(BLOCKS * 8))
    protection.blank(0, BLOCKS)
    unit = ScsiDisk(MemoryMedium.of(BLOCKS * 512), protection=protection)
    data = random.Random(3).randbytes(3 * 512)
    good(unit, commands.transfer("WRITE", 7, 3), data)
    assert protection.load(7, 3) == generate(data, 512, 7)
    assert protection.load(6, 1) == protection.load(10, 1) == b"\xff" * 8
    assert good(unit, commands.inquiry(96), room=96)[5] & 1
    # Data that have changed behind its back are found.
    unit.medium.write_from(8 * 512, [memoryview(bytes(512))])
    outcome, _ = carried_out(unit, commands.transfer("READ", 7, 3), room=3 * 512)
    assert decode_sense(outcome.sense) == sense.GUARD_CHECK_FAILED
    assert int.from_bytes(outcome.sense[3:7], "big") == 8
    with pytest.raises(UsageError):
        ScsiDisk(MemoryMedium.of(BLOCKS * 512 * 100), protection=protection)


# A CD-ROM drive


def toc(unit: ScsiCdrom, kind: int, track: int = 0, msf: int = 0) -> bytes:
    return good(unit, bytes([0x43, msf << 1, kind, 0, 0, 0, track, 0, 255, 0]), room=255)


def test_a_drive_with_a_disc() -> None:
    content = random.Random(4).randbytes(20 * 2048)
    unit = ScsiCdrom(MemoryMedium(bytearray(content)))
    assert good(unit, commands.read_capacity_10(), room=8) == (19).to_bytes(4, "big") + (2048).to_bytes(4, "big")
    assert good(unit, commands.transfer("READ", 3, 2, size=10), room=4096) == content[3 * 2048 : 5 * 2048]
    assert good(unit, commands.transfer("READ", 3, 2, size=12), room=4096) == content[3 * 2048 : 5 * 2048]
    for cdb in (commands.transfer("WRITE", 0, 1, size=10), commands.write_same(0, 1)):
        assert condition(unit, cdb, bytes(2048)) == sense.INVALID_OPCODE
    table = toc(unit, 0)
    assert table[:4] == bytes([0, 18, 1, 1])
    assert [table[6], table[14]] == [1, 0xAA]
    assert int.from_bytes(table[16:20], "big") == 20
    assert toc(unit, 0, track=0xAA, msf=1)[8:12] == bytes([0, 0, 2, 20])
    assert toc(unit, 1)[2:4] == bytes([1, 1])
    raw = toc(unit, 2)
    assert [raw[4 + n * 11 + 3] for n in range(4)] == [0xA0, 0xA1, 0xA2, 1]
    for kind, track in ((5, 0), (0, 2)):
        wrong = bytes([0x43, 0, kind, 0, 0, 0, track, 0, 255, 0])
        assert condition(unit, wrong, room=255) == sense.INVALID_FIELD_IN_CDB


def configuration(unit: ScsiCdrom, rt: int, start: int = 0) -> tuple[int, list[int]]:
    data = good(unit, bytes([0x46, rt, 0, start, 0, 0, 0, 0, 255, 0]), room=255)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    codes, at = [], 8
    while at < len(data):
        codes.append(int.from_bytes(data[at : at + 2], "big"))
        at += 4 + data[at + 3]
    return int.from_bytes(data[6:8], "big"), codes


def test_configuration_follows_the_disc() -> None:
    unit = ScsiCdrom(MemoryMedium.of(4096))
    profile, codes = configuration(unit, 0)
    assert profile == 8
    assert {0, 1, 2, 3, 0x10, 0x1E, 0x105} <= set(codes)
    assert configuration(unit, 2, 0x10) == (8, [0x10])
    unit.eject()
    profile, current = configuration(unit, 1)
    assert profile == 0
    assert set(codes) - set(current) == {0x10, 0x1E}


def test_the_tray() -> None:
    unit = ScsiCdrom(MemoryMedium.of(4096))
    good(unit, bytes([0x1E, 0, 0, 0, 1, 0]))
    assert condition(unit, commands.start_stop(False, eject=True)) == sense.REMOVAL_PREVENTED
    good(unit, bytes([0x1E, 0, 0, 0, 0, 0]))
    good(unit, commands.start_stop(True, eject=True))
    good(unit, bytes([0x1E, 0, 0, 0, 1, 0]))
    # With the initiator goes the lock.
    unit.initiator_gone(NEXUS)
    good(unit, commands.start_stop(False, eject=True))
    assert condition(unit, commands.test_unit_ready()) == sense.NO_MEDIUM
    assert condition(unit, commands.transfer("READ", 0, 1, size=10), room=2048) == sense.NO_MEDIUM
    assert good(unit, commands.get_event_status(), room=8)[4:6] == bytes([3, 1])
    assert good(unit, commands.get_event_status(), room=8)[4:6] == bytes([0, 1])
    good(unit, commands.start_stop(True, eject=True))
    good(unit, commands.test_unit_ready())
    unit.join(NEXUS)
    unit.take_attention(NEXUS)
    assert unit.eject() is not None
    unit.insert(MemoryMedium.of(8192))
    assert condition(unit, commands.test_unit_ready()) == sense.MEDIUM_CHANGED
    assert unit.blocks == 4
    assert good(unit, commands.get_event_status(), room=8)[4:6] == bytes([2, 2])
