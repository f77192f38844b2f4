"""A zoned disk against a model of it in lists and dicts: every verb in any order, every state, every refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.test_blk_device import FILL, ask, head, segments
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.layout import (
    BlkFeature,
    BlkRequest,
    BlkStatus,
    RangeLimits,
    ZonedModel,
    ZoneState,
    ZoneType,
    virtio_blk_config,
    virtio_blk_zone_descriptor,
    virtio_blk_zone_report,
)
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.blk.zones import Zones
from virtio_py.errors import UsageError
from virtio_py.spec import Feature, bit

OK, IOERR, UNSUPP, INVALID, UNALIGNED, NO_OPEN, NO_ACTIVE = BlkStatus
NOT_WP, EMPTY, IOPEN, EOPEN, CLOSED, RDONLY, FULL, OFFLINE = ZoneState
CONV, SWR, SWP = ZoneType
HM, HA = ZonedModel.HM, ZonedModel.HA
SIZE, LAST = 8, 4
"""Sectors in a zone, and in the last one."""
CAPACITY = 5 * SIZE + LAST
OLD = 0x55
MANAGE = (BlkRequest.ZONE_OPEN, BlkRequest.ZONE_CLOSE, BlkRequest.ZONE_FINISH, BlkRequest.ZONE_RESET)


def disk(zones: Zones | None = None, accept: int | None = None, **options: Any) -> BlkDevice:
    """A device on a medium full of old bytes, negotiated with."""
    zones = zones or Zones(CAPACITY, SIZE)
    device = BlkDevice(MemoryMedium(bytearray([OLD]) * (zones.capacity * 512)), zones=zones, **options)
    device.negotiated((device.offered_features() if accept is None else accept) | bit(Feature.VERSION_1))
    return device


def write(device: BlkDevice, sector: int, count: int, byte: int = 1) -> int:
    return ask(device, head(BlkRequest.OUT, sector) + bytes([byte]) * (count * 512))[0]


def read(device: BlkDevice, sector: int, count: int) -> tuple[int, bytes]:
    return ask(device, head(BlkRequest.IN, sector), count * 512 + 1)[:2]


def append(device: BlkDevice, sector: int, count: int, byte: int = 1) -> tuple[int, int]:
    status, tail, used = ask(device, head(BlkRequest.ZONE_APPEND, sector) + bytes([byte]) * (count * 512), 9)
    assert used == (9 if status == OK else 0)
    return status, int.from_bytes(tail, "little")


def manage(device: BlkDevice, request: BlkRequest, sector: int) -> int:
    status, _, used = ask(device, head(request, sector))
    assert used == 1
    return status


def report(device: BlkDevice, sector: int = 0, room: int = 64 + 64 * 6) -> list[Any]:
    status, data, _ = ask(device, head(BlkRequest.ZONE_REPORT, sector), room + 1)
    assert status == OK
    number = virtio_blk_zone_report.decode(data).nr_zones
    return [virtio_blk_zone_descriptor.decode(data, 64 + 64 * n) for n in range(number)]


def state_of(device: BlkDevice, sector: int) -> ZoneState:
    return ZoneState(report(device, sector, 128)[0].z_state)


class Model:
    """A zoned disk as one would tell it: lists of states and write pointers, and a dict of the sectors written."""

    def __init__(self, zones: Zones, cap: int) -> None:
        self.zones, self.cap = zones, cap
        self.kind = {HM: SWR, HA: SWP}[zones.model]
        conventional = zones.conventional
        self.state = [NOT_WP if n < conventional else EMPTY for n in range(6)]
        self.wp = [n * SIZE for n in range(6)]
        self.data: dict[int, int] = dict.fromkeys(range(conventional * SIZE), OLD)
        self.evictions = 0

    def end(self, n: int) -> int:
        return n * SIZE + min(self.cap, LAST if n == 5 else SIZE)

    def number(self, *states: ZoneState) -> int:
        return sum(s in states for s in self.state)

    def lacking(self, n: int) -> BlkStatus:
        """What the limits say of the disk as it would be with this zone open."""
        then = [*self.state[:n], IOPEN, *self.state[n + 1 :]]
        if self.zones.max_active and sum(s in (IOPEN, EOPEN, CLOSED) for s in then) > self.zones.max_active:
            return NO_ACTIVE
        if self.zones.max_open and sum(s == EOPEN for s in then) + 1 > self.zones.max_open:
            return NO_OPEN
        return OK

    def enter(self, n: int, state: ZoneState) -> None:
        if self.state[n] not in (IOPEN, EOPEN) and self.zones.max_open:
            self.evictions += self.number(IOPEN, EOPEN) >= self.zones.max_open
        self.state[n] = state

    def touched(self, sector: int, count: int) -> list[int]:
        return sorted({s // SIZE for s in range(sector, sector + max(count, 1)) if s < CAPACITY})

    def judge_write(self, sector: int, count: int) -> BlkStatus:
        touched = self.touched(sector, count)
        if sector + count > CAPACITY:
            return IOERR
        sequential = [n for n in touched if self.state[n] != NOT_WP]
        if not touched or any(self.state[n] in (RDONLY, OFFLINE) for n in touched):
            return INVALID
        if self.kind == SWP or not sequential:
            return OK
        n = touched[0]
        if len(touched) > 1 or self.state[n] == FULL:
            return INVALID
        if sector != self.wp[n] or (sector + count) % (self.zones.write_granularity // 512):
            return UNALIGNED
        if sector + count > self.end(n):
            return INVALID
        return self.lacking(n) if count and self.state[n] in (EMPTY, CLOSED) else OK

    def write(self, sector: int, count: int, byte: int) -> None:
        for s in range(sector, sector + count):
            n = s // SIZE
            if self.state[n] in (EMPTY, CLOSED):
                verdict = self.lacking(n)
                if verdict == OK:
                    self.enter(n, IOPEN)
                else:
                    assert self.kind == SWP
                    self.state[n] = CLOSED if verdict == NO_OPEN else FULL
            if self.state[n] != NOT_WP:
                # What a jump leaves out reads as zeros ever after.
                self.wp[n] = max(self.wp[n], s + 1)
            self.data[s] = byte
            if self.state[n] != NOT_WP and self.wp[n] == self.end(n):
                self.state[n] = FULL

    def manage(self, request: BlkRequest, sector: int) -> BlkStatus:
        n, rest = divmod(sector, SIZE)
        if rest or sector >= CAPACITY or self.state[n] in (NOT_WP, RDONLY, OFFLINE):
            return INVALID
        return {
            BlkRequest.ZONE_OPEN: self.open,
            BlkRequest.ZONE_CLOSE: self.close,
            BlkRequest.ZONE_FINISH: self.finish,
            BlkRequest.ZONE_RESET: self.reset,
        }[request](n)

    def open(self, n: int) -> BlkStatus:
        if self.state[n] == FULL:
            return INVALID
        verdict = self.lacking(n) if self.state[n] in (EMPTY, CLOSED) else OK
        if verdict == OK:
            self.enter(n, EOPEN)
        return verdict

    def close(self, n: int) -> BlkStatus:
        if self.state[n] in (EMPTY, FULL):
            return INVALID
        self.state[n] = CLOSED if self.wp[n] > n * SIZE else EMPTY
        return OK

    def finish(self, n: int) -> BlkStatus:
        self.state[n] = FULL
        return OK

    def reset(self, n: int) -> BlkStatus:
        self.state[n], self.wp[n] = EMPTY, n * SIZE
        for s in range(n * SIZE, (n + 1) * SIZE):
            self.data.pop(s, None)
        return OK


sectors = st.integers(0, CAPACITY - 1)
zone_starts = st.integers(0, 5).map(lambda n: n * SIZE)
counts = st.integers(0, SIZE + 2)
bytes_ = st.integers(1, 255)


class ZonedDisk(RuleBasedStateMachine):
    """The device, asked by chains, beside the model."""

    device: BlkDevice
    model: Model

    @initialize(
        kind=st.sampled_from([HM, HA]),
        cap=st.sampled_from([SIZE, 6]),
        conventional=st.integers(0, 2),
        limits=st.tuples(st.integers(0, 3), st.integers(0, 4)),
        max_append=st.sampled_from([0, 2, 4]),
        grain=st.sampled_from([1, 2]),
    )
    def start(
        self, kind: ZonedModel, cap: int, conventional: int, limits: tuple[int, int], max_append: int, grain: int
    ) -> None:
        cap = cap if kind == HM else SIZE
        max_open, max_active = limits
        zones = Zones(
            CAPACITY,
            SIZE,
            model=kind,
            zone_capacity=cap,
            conventional=conventional,
            max_open=min(max_open, max_active) if max_active else max_open,
            max_active=max_active,
            max_append=max_append,
            write_granularity=512 * grain,
        )
        self.model = Model(zones, cap)
        self.device = disk(zones, secure_erase=RangeLimits(1000, 4, SIZE))

    def sync(self) -> None:
        """Which zones gave way to others is the device's choice, of those that it may choose from."""
        reported = [z.z_state for z in report(self.device)]
        gone = [n for n in range(6) if self.model.state[n] == IOPEN and reported[n] == CLOSED]
        assert len(gone) == self.model.evictions if self.model.kind == SWR else len(gone) <= self.model.evictions
        for n in gone:
            self.model.state[n] = CLOSED
        self.model.evictions = 0

    @rule(request=st.sampled_from(MANAGE), sector=zone_starts | sectors | st.sampled_from([CAPACITY, (1 << 64) - 8]))
    def manage_a_zone(self, request: BlkRequest, sector: int) -> None:
        assert manage(self.device, request, sector) == self.model.manage(request, sector)
        self.sync()

    @rule(sector=zone_starts, byte=bytes_, count=counts)
    def write_at_the_pointer(self, sector: int, byte: int, count: int) -> None:
        self.write_anywhere(self.model.wp[sector // SIZE], count, byte)

    @rule(sector=sectors, count=counts, byte=bytes_)
    def write_anywhere(self, sector: int, count: int, byte: int) -> None:
        expected = self.model.judge_write(sector, count)
        assert write(self.device, sector, count, byte) == expected
        if expected == OK:
            self.model.write(sector, count, byte)
        self.sync()

    @rule(sector=zone_starts | sectors, count=counts, byte=bytes_)
    def append_to_a_zone(self, sector: int, count: int, byte: int) -> None:
        n, rest = divmod(sector, SIZE)
        at = self.model.wp[n]
        if not self.model.zones.max_append:
            expected = UNSUPP
        elif (
            rest
            or self.model.kind != SWR
            or self.model.state[n] == NOT_WP
            or count > self.model.zones.max_append
            or self.model.state[n] in (RDONLY, OFFLINE, FULL)
        ):
            expected = INVALID
        elif (at + count) % (self.model.zones.write_granularity // 512):
            expected = UNALIGNED
        else:
            expected = INVALID if at + count > self.model.end(n) else self.model.judge_write(at, count)
        status, where = append(self.device, sector, count, byte)
        assert status == expected
        if status == OK:
            assert where == at
            self.model.write(at, count, byte)
        self.sync()

    @rule(sector=sectors, count=counts)
    def read_back(self, sector: int, count: int) -> None:
        touched = self.model.touched(sector, count)
        status, data = read(self.device, sector, count)
        crossing = len(touched) > 1 and self.model.kind == SWR and any(self.model.state[n] != NOT_WP for n in touched)
        if sector + count > CAPACITY:
            assert status == IOERR
        elif crossing or any(self.model.state[n] == OFFLINE for n in touched):
            assert status == INVALID
        else:
            assert status == OK
            assert data == b"".join(bytes([self.model.data.get(s, 0)]) * 512 for s in range(sector, sector + count))

    @rule()
    def reset_all(self) -> None:
        assert manage(self.device, BlkRequest.ZONE_RESET_ALL, 0) == OK
        for n in range(6):
            if self.model.state[n] not in (NOT_WP, RDONLY, OFFLINE):
                self.model.reset(n)

    @rule(zone=st.integers(0, 5), number=st.integers(1, 3))
    def erase(self, zone: int, number: int) -> None:
        zones = range(zone, min(zone + number, 6))
        count = min(zones.stop * SIZE, CAPACITY) - zone * SIZE
        able = all(self.model.state[n] not in (NOT_WP, RDONLY, OFFLINE) for n in zones)
        request = head(BlkRequest.SECURE_ERASE) + segments((zone * SIZE, count, 0))
        assert ask(self.device, request)[0] == (OK if able else INVALID)
        for n in zones if able else ():
            self.model.reset(n)

    @rule(zone=st.integers(0, 5), state=st.sampled_from([RDONLY, OFFLINE]), rarely=st.integers(0, 9))
    def fail(self, zone: int, state: ZoneState, rarely: int) -> None:
        if rarely:
            return
        zones = self.device.zones
        assert zones is not None
        if self.model.state[zone] in (NOT_WP, OFFLINE, state):
            with pytest.raises(UsageError):
                zones.degrade(zone * SIZE, state)
        else:
            zones.degrade(zone * SIZE, state)
            self.model.state[zone] = state

    @rule(sector=sectors, room=st.integers(64, 600))
    def report_some(self, sector: int, room: int) -> None:
        some = report(self.device, sector, room)
        first = sector // SIZE
        assert [z.z_start // SIZE for z in some] == list(range(first, min(6, first + (room - 64) // 64)))

    @invariant()
    def the_report_is_the_model(self) -> None:
        found = report(self.device)
        limits = self.model.zones
        assert [z.z_state for z in found] == self.model.state
        assert all(
            z.z_start == n * SIZE and z.z_cap + z.z_start == self.model.end(n)
            for n, z in enumerate(found)
            if z.z_type != CONV
        )
        assert [z.z_type for z in found] == [CONV if s == NOT_WP else self.model.kind for s in self.model.state]
        for n, zone in enumerate(found):
            if zone.z_state in (EMPTY, IOPEN, EOPEN, CLOSED):
                assert zone.z_wp == self.model.wp[n]
        assert not limits.max_open or self.model.number(IOPEN, EOPEN) <= limits.max_open
        assert not limits.max_active or self.model.number(IOPEN, EOPEN, CLOSED) <= limits.max_active


@pytest.mark.clause("blk-zoned.device.device-op.2")
@pytest.mark.clause("blk-zoned.device.device-op.3")
@pytest.mark.clause("blk-zoned.device.device-op.4")
@pytest.mark.clause("blk-zoned.device.device-op.5")
@pytest.mark.clause("blk-zoned.device.device-op.6")
@pytest.mark.clause("blk-zoned.device.device-op.7")
@pytest.mark.clause("blk-zoned.device.device-op.8")
@pytest.mark.clause("blk-zoned.device.device-op.9")
@pytest.mark.clause("blk-zoned.device.device-op.10")
@pytest.mark.clause("blk-zoned.device.device-op.11")
@pytest.mark.clause("blk-zoned.device.device-op.12")
@pytest.mark.clause("blk-zoned.device.device-op.13")
@pytest.mark.clause("blk-zoned.device.device-op.14")
@pytest.mark.clause("blk-zoned.device.device-op.15")
@pytest.mark.clause("blk-zoned.device.device-op.16")
@pytest.mark.clause("blk-zoned.device.device-op.17")
@pytest.mark.clause("blk-zoned.device.device-op.18")
@pytest.mark.clause("blk-zoned.device.device-op.19")
@pytest.mark.clause("blk-zoned.device.device-op.20")
@pytest.mark.clause("blk-zoned.device.device-op.21")
@pytest.mark.clause("blk-zoned.device.device-op.23")
class TestZonedDisk(ZonedDisk.TestCase):  # type: ignore[misc,valid-type]  # hypothesis makes this class as it runs
    settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


# What a model of valid disks does not reach


@pytest.mark.clause("blk-zoned.device.device-op.5")
@pytest.mark.clause("blk-zoned.device.device-op.9")
def test_both_limits_reached_is_the_active_one() -> None:
    device = disk(Zones(CAPACITY, SIZE, max_open=1, max_active=1))
    assert manage(device, BlkRequest.ZONE_OPEN, 0) == OK
    assert manage(device, BlkRequest.ZONE_OPEN, SIZE) == NO_ACTIVE
    assert write(device, SIZE, 1) == NO_ACTIVE
    assert append(device, SIZE, 1)[0] == NO_ACTIVE
    device = disk(Zones(CAPACITY, SIZE, max_open=1, max_active=2))
    assert manage(device, BlkRequest.ZONE_OPEN, 0) == OK
    assert write(device, SIZE, 1) == NO_OPEN
    assert state_of(device, SIZE) == EMPTY


@pytest.mark.clause("blk-zoned.device.device-op.17")
def test_the_zone_written_longest_ago_gives_way() -> None:
    device = disk(Zones(CAPACITY, SIZE, max_open=2))
    assert [write(device, 0, 1), write(device, SIZE, 1), write(device, 1, 1), write(device, 2 * SIZE, 1)] == [OK] * 4
    assert [z.z_state for z in report(device)][:3] == [IOPEN, CLOSED, IOPEN]


def test_an_empty_zone_that_was_opened_and_closed_is_empty() -> None:
    device = disk(Zones(CAPACITY, SIZE, max_active=1))
    assert manage(device, BlkRequest.ZONE_OPEN, 0) == OK
    assert manage(device, BlkRequest.ZONE_CLOSE, 0) == OK
    assert state_of(device, 0) == EMPTY
    assert manage(device, BlkRequest.ZONE_CLOSE, 0) == INVALID


hostile_sectors = st.integers(0, (1 << 64) - 1) | st.sampled_from(
    [1, SIZE - 1, CAPACITY, CAPACITY + SIZE, (1 << 64) - 1, (1 << 64) - SIZE, 1 << 63, 1 << 55]
)


@given(
    kind=st.sampled_from([k for k in BlkRequest if k.name.startswith("ZONE_")]),
    sector=hostile_sectors,
    data=st.binary(max_size=700) | st.integers(0, 3).map(lambda n: bytes(512 * n)),
    room=st.integers(1, 300),
)
def test_no_request_for_a_place_without_a_zone_changes_anything(
    kind: BlkRequest, sector: int, data: bytes, room: int
) -> None:
    device = disk()
    before = report(device)
    status, written, used = ask(device, head(kind, sector) + data, room)
    assert status in (OK, IOERR, UNSUPP, INVALID)
    assert used <= room
    if sector >= CAPACITY and kind != BlkRequest.ZONE_RESET_ALL:
        assert status in (IOERR, INVALID)
        assert written == bytes([FILL]) * (room - 1)
        assert report(device) == before


@pytest.mark.parametrize("room", [0, 1, 63])
def test_a_report_without_room_for_its_head_fails(room: int) -> None:
    assert ask(disk(), head(BlkRequest.ZONE_REPORT), room + 1)[:2] == (IOERR, bytes([FILL]) * room)


@given(room=st.integers(64, 64 + 64 * 7))
def test_a_report_holds_whole_descriptors_only(room: int) -> None:
    status, data, used = ask(disk(), head(BlkRequest.ZONE_REPORT), room + 1)
    number = min((room - 64) // 64, 6)
    assert (status, virtio_blk_zone_report.decode(data).nr_zones) == (OK, number)
    assert data[64 + 64 * number :] == bytes([FILL]) * (room - 64 - 64 * number)
    assert used == (room + 1 if room == 64 + 64 * number else 64 + 64 * number)


@pytest.mark.clause("blk-zoned.device.device-op.12")
@given(at=st.lists(st.integers(0, 1100), max_size=4), excess=st.integers(0, 20))
def test_append_sector_is_in_front_of_the_status_whatever_the_framing(at: list[int], excess: int) -> None:
    device = disk()
    assert write(device, SIZE, 3) == OK
    status, tail, _ = ask(device, head(BlkRequest.ZONE_APPEND, SIZE) + bytes(1024), 9 + excess, at)
    assert (status, tail) == (OK, bytes([FILL]) * excess + (SIZE + 3).to_bytes(8, "little"))


@pytest.mark.parametrize(("length", "room"), [(512, 8), (512, 1), (511, 9), (1, 9)])
def test_appends_of_broken_sectors_or_without_a_tail_fail(length: int, room: int) -> None:
    device = disk()
    assert ask(device, head(BlkRequest.ZONE_APPEND) + bytes(length), room)[0] == IOERR
    assert state_of(device, 0) == EMPTY


@pytest.mark.parametrize("kind", [*MANAGE, BlkRequest.ZONE_RESET_ALL, BlkRequest.ZONE_APPEND, BlkRequest.OUT])
def test_a_read_only_disk_keeps_its_zones(kind: BlkRequest) -> None:
    medium = MemoryMedium(bytearray(CAPACITY * 512), read_only=True)
    device = BlkDevice(medium, zones=Zones(CAPACITY, SIZE))
    device.negotiated(device.offered_features() | bit(Feature.VERSION_1))
    assert ask(device, head(kind) + bytes(512), 9)[0] == IOERR
    assert state_of(device, 0) == EMPTY


@pytest.mark.parametrize("kind", [BlkRequest.OUT, BlkRequest.ZONE_APPEND])
def test_a_medium_that_fails_leaves_the_zone_as_it_was(kind: BlkRequest) -> None:
    class Broken(MemoryMedium):
        def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
            raise OSError("broken")

    device = BlkDevice(Broken(bytearray(CAPACITY * 512)), zones=Zones(CAPACITY, SIZE))
    device.negotiated(device.offered_features() | bit(Feature.VERSION_1))
    assert ask(device, head(kind) + bytes(512), 9)[0] == IOERR
    assert (report(device)[0].z_state, report(device)[0].z_wp) == (EMPTY, 0)


@pytest.mark.clause("blk-zoned.device.device-op.20")
@pytest.mark.clause("blk-zoned.device.device-op.21")
def test_what_a_finished_or_read_only_zone_has_not_been_written_reads_as_zeros() -> None:
    device = disk()
    assert device.zones is not None
    for start in (0, SIZE):
        assert write(device, start, 2, 7) == OK
    assert manage(device, BlkRequest.ZONE_FINISH, 0) == OK
    device.zones.degrade(SIZE, RDONLY)
    for start in (0, SIZE):
        assert read(device, start, SIZE) == (OK, b"\7" * 1024 + bytes((SIZE - 2) * 512))
    assert read(device, 2 * SIZE, SIZE) == (OK, bytes(SIZE * 512))


# Features and configuration


def zoned_fields(device: BlkDevice) -> Any:
    return virtio_blk_config.decode(device.read_config()).zoned


@pytest.mark.clause("blk-zoned.device.device-init.6")
@pytest.mark.clause("blk-zoned.device.device-init.7")
@pytest.mark.clause("blk-zoned.device.device-init.8")
@pytest.mark.clause("blk-zoned.device.device-init.9")
@pytest.mark.clause("blk-zoned.device.device-init.10")
@pytest.mark.clause("blk-zoned.device.device-init.11")
@pytest.mark.clause("blk-zoned.device.device-init.12")
@pytest.mark.clause("blk-zoned.device.device-init.15")
@pytest.mark.clause("blk-zoned.device.device-init.16")
@pytest.mark.parametrize("kind", [HM, HA])
def test_the_configuration_states_the_zones(kind: ZonedModel) -> None:
    zones = Zones(CAPACITY, SIZE, model=kind, max_open=3, max_active=5, max_append=2, write_granularity=1024)
    assert tuple(zoned_fields(disk(zones))) == (SIZE, 3, 5, 2, 1024, kind, (0, 0, 0))
    assert [z.z_cap for z in report(disk(zones))] == [SIZE] * 5 + [LAST]
    # Before the features are chosen, for the model has a say in the choice.
    assert zoned_fields(BlkDevice(MemoryMedium.of(CAPACITY * 512), zones=zones)).model == kind


@pytest.mark.clause("blk-zoned.device.device-init.3")
@pytest.mark.clause("blk-zoned.device.device-op.1")
def test_a_host_aware_disk_without_the_feature_is_an_ordinary_one() -> None:
    zones = Zones(CAPACITY, SIZE, model=HA, max_open=1, max_active=1)
    device = disk(zones, accept=bit(BlkFeature.DISCARD) | bit(BlkFeature.WRITE_ZEROES))
    assert device.refuse_features(0) is None
    assert tuple(zoned_fields(device)) == (0, 0, 0, 0, 0, 0, (0, 0, 0))
    for kind in (k for k in BlkRequest if k.name.startswith("ZONE_")):
        assert ask(device, head(kind), 200)[0] == UNSUPP
    # In any order, over any edge, and in more zones than could be active.
    for sector in (CAPACITY - 1, 3, 2 * SIZE - 1, 0, SIZE + 2):
        assert write(device, sector, 1, sector + 1) == OK
    assert write(device, SIZE - 1, 2, 99) == OK
    assert read(device, SIZE - 1, 2) == (OK, bytes([99]) * 1024)
    assert read(device, CAPACITY - 1, 1) == (OK, bytes([CAPACITY]) * 512)
    assert read(device, 1, 2) == (OK, bytes(1024))
    zero = head(BlkRequest.WRITE_ZEROES) + segments((SIZE - 1, 2, 0))
    assert ask(device, zero)[0] == OK
    assert read(device, SIZE - 1, 2) == (OK, bytes(1024))
    # A driver that knows no zones is told in words that it knows.
    zones.degrade(0, OFFLINE)
    assert read(device, 0, 1)[0] == write(device, 0, 1) == IOERR
    assert ask(device, zero)[0] == IOERR


@pytest.mark.clause("blk-zoned.device.device-init.4")
def test_host_managed_zones_are_refused_to_drivers_without_the_feature() -> None:
    device = disk()
    assert device.refuse_features(device.offered_features()) is None
    assert device.refuse_features(device.offered_features() & ~bit(BlkFeature.ZONED)) is not None
    for feature in (BlkFeature.DISCARD, BlkFeature.WRITE_ZEROES):
        assert not device.offered_features() & bit(feature)


@pytest.mark.clause("blk-zoned.device.device-init.13")
@pytest.mark.clause("blk-zoned.device.device-init.14")
@pytest.mark.clause("blk-zoned.device.device-op.22")
@pytest.mark.parametrize(
    ("zones", "options"),
    [
        ({}, {"medium": MemoryMedium.of(512)}),
        ({}, {"secure_erase": RangeLimits(1000, 1, SIZE + 1)}),
        ({}, {"secure_erase": RangeLimits(SIZE - 1, 1, SIZE)}),
        ({"max_append": 8}, {"size_max": 1024, "seg_max": 3}),
    ],
)
def test_a_device_and_its_zones_must_go_together(zones: dict[str, Any], options: dict[str, Any]) -> None:
    medium = options.pop("medium", MemoryMedium.of(CAPACITY * 512))
    with pytest.raises(UsageError):
        BlkDevice(medium, zones=Zones(CAPACITY, SIZE, **zones), **options)
    BlkDevice(MemoryMedium.of(CAPACITY * 512), zones=Zones(CAPACITY, SIZE, max_append=0), size_max=1024, seg_max=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity": 0},
        {"zone_sectors": 0},
        {"zone_sectors": -1},
        {"model": ZonedModel.NONE},
        {"zone_capacity": 0},
        {"zone_capacity": SIZE + 1},
        {"model": HA, "zone_capacity": SIZE - 1},
        {"conventional": -1},
        {"max_open": -1},
        {"max_open": 3, "max_active": 2},
        {"max_append": SIZE + 1},
        {"write_granularity": 0},
        {"write_granularity": 513},
        {"write_granularity": 8192, "capacity": 24 * 8 + 8},
        {"max_append": 1, "write_granularity": 1024},
    ],
)
def test_zones_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Zones(**{"capacity": CAPACITY, "zone_sectors": SIZE, **wrong})


@given(parts=st.lists(st.tuples(st.integers(0, CAPACITY), st.integers(0, 3 * SIZE)), min_size=1, max_size=3))
def test_what_is_erased_is_whole_zones(parts: list[tuple[int, int]]) -> None:
    device = disk(Zones(CAPACITY, SIZE), secure_erase=RangeLimits(1000, 4, SIZE))
    for n in range(6):
        assert write(device, n * SIZE, 1) == OK
    whole = all(s % SIZE == 0 and n and (n % SIZE == 0 or s + n == CAPACITY) for s, n in parts)
    inside = all(s + n <= CAPACITY for s, n in parts)
    status = ask(device, head(BlkRequest.SECURE_ERASE) + segments(*((s, n, 0) for s, n in parts)))[0]
    assert status == (IOERR if not inside else OK if whole else INVALID)
    erased = {s // SIZE for part, n in parts for s in range(part, part + n)} if status == OK else set()
    assert [z.z_state for z in report(device)] == [EMPTY if n in erased else IOPEN for n in range(6)]


def test_a_disk_of_zones_keeps_its_size() -> None:
    with pytest.raises(UsageError, match="size"):
        disk().resize(8)
