"""The zoned block driver against the zoned block device, in one process, and against devices that lie."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.devices.blk.batch import Ask
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver, BlkError, BlkUnsupported
from virtio_py.devices.blk.layout import (
    BlkFeature,
    BlkRequest,
    BlkStatus,
    RangeLimits,
    ZonedModel,
    ZoneState,
    ZoneType,
    virtio_blk_config,
    virtio_blk_discard_write_zeroes,
    virtio_blk_req,
    virtio_blk_zone_descriptor,
    virtio_blk_zone_report,
)
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.blk.zoned_driver import ZonedBlkDriver, ZoneInfo
from virtio_py.devices.blk.zones import Zones
from virtio_py.errors import NegotiationError, RequestError, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.transports.in_process import InProcess

HM, HA = ZonedModel.HM, ZonedModel.HA
SIZE, CAPACITY = 8, 44
ZONED, DISCARD = bit(BlkFeature.ZONED), bit(BlkFeature.DISCARD)
SPLIT = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
PACKED = SPLIT | bit(Feature.RING_PACKED)
RINGS = (bit(Feature.VERSION_1), SPLIT, PACKED, PACKED | bit(Feature.IN_ORDER))


@define(eq=False)
class Witness(BlkDevice):
    """A block device that writes down the requests it gets: type, sector, data, and what the driver may read back."""

    seen: list[tuple[int, int, bytes, int]] = field(factory=list, init=False)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        header = virtio_blk_req.decode(data)
        self.seen.append((header.type, header.sector, data[virtio_blk_req.size :], chain.writable.remaining))
        super().handle(queue, chain)

    def types(self) -> list[int]:
        return [kind for kind, *_ in self.seen]


def pair(
    zones: Zones | None = None, ring: int = SPLIT, features: int | None = None, queue_size: int = 16, **options: Any
) -> tuple[ZonedBlkDriver, Witness]:
    zones = zones or Zones(CAPACITY, SIZE)
    device = Witness(MemoryMedium.of(zones.capacity * 512), zones=zones, **options)
    transport = InProcess(device, memory_size=1 << 20, ring_features=ring)
    driver = ZonedBlkDriver(transport, features=features, queue_size=queue_size)
    if features is None:
        driver.wanted |= ring
    return driver.start(), device


def model_of(zones: Zones) -> list[tuple[ZoneState, int | None]]:
    found = zones.report(0, 100) or ()
    writable = (ZoneState.EMPTY, ZoneState.IOPEN, ZoneState.EOPEN, ZoneState.CLOSED)
    return [(z.state, z.wp if z.state in writable else None) for z in found]


starts = st.integers(0, 5).map(lambda n: n * SIZE)
steps = st.one_of(
    st.tuples(st.sampled_from(["open", "close", "finish", "reset"]), starts),
    st.tuples(st.just("append"), starts, st.integers(1, 8), st.integers(1, 255)),
    st.tuples(st.just("write"), starts, st.integers(1, 8), st.integers(1, 255)),
    st.tuples(st.just("reset_all")),
)


@pytest.mark.clause("blk-zoned.driver.device-op.3")
@pytest.mark.clause("blk-zoned.driver.device-op.9")
@given(
    todo=st.lists(steps, max_size=12), ring=st.sampled_from(RINGS), limits=st.integers(0, 3), first=st.integers(0, 43)
)
def test_any_sequence_leaves_what_was_written(todo: list[tuple[Any, ...]], ring: int, limits: int, first: int) -> None:
    driver, device = pair(Zones(CAPACITY, SIZE, max_open=limits, max_active=limits and limits + 1), ring)
    data: dict[int, int] = {}
    refusals: list[tuple[str, Exception]] = []
    for verb, *args in todo:
        try:
            VERBS[verb](driver, data, *args)
        except (BlkError, UsageError) as error:
            refusals.append((verb, error))
    for verb, refusal in refusals:
        if isinstance(refusal, BlkError):
            assert refusal.status > BlkStatus.UNSUPP
        else:
            # The last zone is smaller than the write.
            assert verb == "write"
            assert "where their zone does" in str(refusal) or "not on a disk" in str(refusal)
    zones = driver.report_zones()
    assert device.zones is not None
    assert [(z.state, z.write_pointer) for z in zones] == model_of(device.zones)
    assert [z.start for z in zones] == list(range(0, CAPACITY, SIZE))
    assert [z.size for z in zones] == [SIZE] * 5 + [4]
    # The sector may be any of the first zone's.
    assert driver.report_zones(first, 2) == zones[first // SIZE :][:2]
    assert driver.read(0, CAPACITY) == b"".join(bytes([data.get(s, 0)]) * 512 for s in range(CAPACITY))


def do_append(driver: ZonedBlkDriver, data: dict[int, int], start: int, count: int, byte: int) -> None:
    pointer = driver.report_zones(start, 1)[0].write_pointer
    at = driver.append(start, bytes([byte]) * (count * 512))
    assert at == pointer
    data |= dict.fromkeys(range(at, at + count), byte)


def do_write(driver: ZonedBlkDriver, data: dict[int, int], start: int, count: int, byte: int) -> None:
    at = driver.report_zones(start, 1)[0].write_pointer
    at = start if at is None else at
    driver.write(at, bytes([byte]) * (min(count, start + SIZE - at) * 512))
    data |= dict.fromkeys(range(at, min(at + count, start + SIZE)), byte)


def do_reset(driver: ZonedBlkDriver, data: dict[int, int], start: int) -> None:
    driver.reset_zone(start)
    for sector in range(start, start + SIZE):
        data.pop(sector, None)


def do_reset_all(driver: ZonedBlkDriver, data: dict[int, int]) -> None:
    driver.reset_all_zones()
    data.clear()


VERBS: dict[str, Callable[..., None]] = {
    "open": lambda driver, _, start: driver.open_zone(start),
    "close": lambda driver, _, start: driver.close_zone(start),
    "finish": lambda driver, _, start: driver.finish_zone(start),
    "reset": do_reset,
    "reset_all": do_reset_all,
    "append": do_append,
    "write": do_write,
}


# What is sent


@pytest.mark.clause("blk-zoned.driver.device-op.1")
@pytest.mark.clause("blk-zoned.driver.device-op.2")
@pytest.mark.clause("blk-zoned.driver.device-op.4")
@pytest.mark.clause("blk-zoned.driver.device-op.5")
@pytest.mark.clause("blk-zoned.driver.device-op.6")
def test_requests_name_the_first_sector_of_their_zone() -> None:
    driver, device = pair()
    driver.open_zone(SIZE)
    assert driver.append(SIZE, bytes(1024)) == SIZE
    driver.close_zone(SIZE)
    driver.finish_zone(SIZE)
    driver.reset_zone(SIZE)
    driver.reset_all_zones()
    driver.report_zones(SIZE + 3, 1)
    assert device.seen == [
        (BlkRequest.ZONE_OPEN, SIZE, b"", 1),
        (BlkRequest.ZONE_APPEND, SIZE, bytes(1024), 9),
        (BlkRequest.ZONE_CLOSE, SIZE, b"", 1),
        (BlkRequest.ZONE_FINISH, SIZE, b"", 1),
        (BlkRequest.ZONE_RESET, SIZE, b"", 1),
        (BlkRequest.ZONE_RESET_ALL, 0, b"", 1),
        (BlkRequest.ZONE_REPORT, SIZE, b"", 64 + 64 + 1),
    ]


@pytest.mark.clause("blk-zoned.driver.device-op.4")
@pytest.mark.clause("blk-zoned.driver.device-op.6")
@given(sector=st.integers(-2, 60) | st.just(1 << 64))
def test_a_sector_that_begins_no_zone_is_never_sent(sector: int) -> None:
    driver, device = pair()
    if sector in range(0, CAPACITY, SIZE):
        return
    verbs: list[Callable[[int], object]] = [
        driver.open_zone,
        driver.close_zone,
        driver.finish_zone,
        driver.reset_zone,
        lambda at: driver.append(at, bytes(512)),
    ]
    if not 0 <= sector < CAPACITY:
        verbs.append(driver.report_zones)
    for verb in verbs:
        with pytest.raises(UsageError):
            verb(sector)
    assert device.seen == []


@pytest.mark.clause("blk-zoned.driver.device-op.7")
@pytest.mark.clause("blk-zoned.driver.device-op.8")
@given(length=st.integers(0, 6 * 512) | st.integers(0, 8).map(lambda n: n * 512))
def test_appends_are_whole_grains_and_no_more_than_the_limit(length: int) -> None:
    driver, device = pair(Zones(CAPACITY, SIZE, max_append=4, write_granularity=1024))
    if length in (1024, 2048):
        assert driver.append(0, bytes(length)) == 0
        return
    with pytest.raises(UsageError):
        driver.append(0, bytes(length))
    with pytest.raises(UsageError):
        driver.submit([driver.appending(0, bytes(length))])
    assert device.seen == []


@pytest.mark.clause("blk-zoned.driver.device-op.10")
@pytest.mark.clause("blk-zoned.driver.device-op.11")
@pytest.mark.clause("blk-zoned.driver.device-op.12")
@given(
    sector=st.integers(0, CAPACITY),
    count=st.integers(0, CAPACITY),
    kind=st.sampled_from([HM, HA]),
    size_max=st.sampled_from([0, 512, 1536]),
)
def test_writes_to_sequential_zones_are_whole_grains_inside_a_zone(
    sector: int, count: int, kind: ZonedModel, size_max: int
) -> None:
    cap = 6 if kind == HM else SIZE
    zones = Zones(CAPACITY, SIZE, model=kind, zone_capacity=cap, conventional=1, write_granularity=1024, max_append=0)
    driver, device = pair(zones, size_max=size_max, seg_max=3)
    with suppress(UsageError, BlkError):
        driver.write(sector, bytes(count * 512))
    for kind_seen, at, data, _ in device.seen:
        if kind_seen == BlkRequest.OUT and at >= SIZE:
            assert at % 2 == 0
            assert len(data) % 1024 == 0
            assert at + len(data) // 512 <= at - at % SIZE + cap


@pytest.mark.clause("blk-zoned.driver.device-op.13")
def test_secure_erase_sends_whole_zones() -> None:
    driver, device = pair(secure_erase=RangeLimits(2 * SIZE + 3, 2, 2 * SIZE))
    for sector in (0, SIZE, 2 * SIZE):
        driver.append(sector, bytes(512))
    driver.secure_erase([(0, 3 * SIZE)])
    [data] = [data for kind, _, data, _ in device.seen if kind == BlkRequest.SECURE_ERASE]
    record = virtio_blk_discard_write_zeroes
    segments = [record.decode(data, at) for at in range(0, len(data), record.size)]
    assert [(s.sector, s.num_sectors) for s in segments] == [(0, 2 * SIZE), (2 * SIZE, SIZE)]
    assert {z.state for z in driver.report_zones()} == {ZoneState.EMPTY}
    for part in ((1, SIZE), (0, SIZE - 1), (5 * SIZE, 4)):
        with pytest.raises(UsageError, match="whole zones"):
            driver.secure_erase([part])


def test_the_device_says_why_it_refuses() -> None:
    driver, _ = pair(Zones(CAPACITY, SIZE, max_open=1, max_active=2))
    statuses = []
    driver.open_zone(0)
    verbs: list[Callable[[], None]] = [
        lambda: driver.open_zone(SIZE),
        lambda: driver.write(3, bytes(512)),
        lambda: driver.close_zone(2 * SIZE),
    ]
    for verb in verbs:
        with pytest.raises(BlkError) as caught:
            verb()
        statuses.append(caught.value.status)
    assert statuses == [BlkStatus.ZONE_OPEN_RESOURCE, BlkStatus.ZONE_UNALIGNED_WP, BlkStatus.ZONE_INVALID_CMD]
    without, _ = pair(Zones(CAPACITY, SIZE, max_append=0))
    with pytest.raises(BlkUnsupported, match="max_append"):
        without.append(0, bytes(512))


def test_a_long_report_takes_several_requests() -> None:
    zones = Zones(4000, 1)
    driver, device = pair(zones, size_max=512, seg_max=2)
    assert driver.report_zones()[3999] == ZoneInfo(3999, 1, 1, ZoneType.SWR, ZoneState.EMPTY, 3999)
    assert set(device.types()) == {BlkRequest.ZONE_REPORT}
    assert len(device.seen) == -(-4000 // 15)


def test_appends_in_one_batch_go_one_behind_the_other() -> None:
    driver, _ = pair()
    tickets = driver.submit([driver.appending(SIZE, bytes([n]) * 512) for n in range(4)])
    driver.wait(4)
    places = [driver.appended(ticket) for ticket in tickets]
    assert sorted(places) == list(range(SIZE, SIZE + 4))
    for n, at in enumerate(places):
        assert driver.read(at, 1) == bytes([n]) * 512
    with pytest.raises(UsageError, match="not one request"):
        driver.submit([Ask.read(SIZE - 1, 2)])


# Features


@pytest.mark.clause("blk-zoned.driver.device-init.1")
@pytest.mark.clause("blk-zoned.device.device-init.4")
def test_a_driver_without_zones_cannot_use_a_host_managed_disk() -> None:
    device = Witness(MemoryMedium.of(CAPACITY * 512), zones=Zones(CAPACITY, SIZE))
    transport = InProcess(device)
    with pytest.raises(NegotiationError, match="refuses"):
        BlkDriver(transport).start()
    assert transport.read_status() & DeviceStatus.FAILED
    assert not transport.read_status() & DeviceStatus.FEATURES_OK


@pytest.mark.clause("blk-zoned.driver.device-init.5")
@pytest.mark.clause("blk-zoned.driver.device-init.6")
@pytest.mark.clause("blk-zoned.device.device-init.3")
def test_a_driver_without_zones_uses_a_host_aware_disk_as_any_other() -> None:
    class WithoutHostAware(ZonedBlkDriver):
        models: ClassVar[frozenset[ZonedModel]] = frozenset({ZonedModel.NONE})

    for make in (BlkDriver, WithoutHostAware):
        device = Witness(MemoryMedium.of(CAPACITY * 512), zones=Zones(CAPACITY, SIZE, model=HA))
        driver = make(InProcess(device)).start()
        assert not driver.has(BlkFeature.ZONED)
        driver.write(SIZE - 2, b"\1" * 2048)
        driver.discard([(0, 1)])
        assert driver.read(SIZE - 2, 4) == b"\1" * 2048
        assert set(device.types()) <= {BlkRequest.OUT, BlkRequest.DISCARD, BlkRequest.IN}


@define(eq=False)
class OffersAll(Witness):
    """Offers DISCARD beside host-managed zones, as some device may."""

    def offered_features(self) -> int:
        return super().offered_features() | DISCARD | ZONED


@pytest.mark.clause("blk-zoned.driver.device-init.2")
def test_discard_is_not_accepted_beside_host_managed_zones() -> None:
    accepted: list[int] = []

    class Watching(InProcess):
        def accept_features(self, features: int) -> None:
            accepted.append(features)
            super().accept_features(features)

    driver = ZonedBlkDriver(Watching(OffersAll(MemoryMedium.of(CAPACITY * 512), zones=Zones(CAPACITY, SIZE)))).start()
    assert driver.offered & DISCARD
    assert [features & (DISCARD | ZONED) for features in accepted] == [ZONED]
    with pytest.raises(BlkUnsupported):
        driver.discard([(0, 1)])


@pytest.mark.clause("blk-zoned.driver.device-init.3")
@pytest.mark.parametrize("chosen", [0, ZONED, DISCARD, ZONED | DISCARD])
def test_discard_and_zones_are_independent_beside_host_aware_zones(chosen: int) -> None:
    driver, _ = pair(Zones(CAPACITY, SIZE, model=HA), features=chosen)
    assert driver.features & (ZONED | DISCARD) == chosen
    assert (driver.zoned is not None) == bool(chosen & ZONED)


@pytest.mark.clause("blk-zoned.driver.device-init.4")
def test_a_driver_that_cannot_do_host_managed_gives_up_before_features_ok() -> None:
    class WithoutHostManaged(ZonedBlkDriver):
        models: ClassVar[frozenset[ZonedModel]] = frozenset({ZonedModel.NONE, HA})

    written: list[int] = []

    class Watching(InProcess):
        def write_status(self, value: int) -> None:
            written.append(value)
            super().write_status(value)

    with pytest.raises(NegotiationError, match="host-managed"):
        WithoutHostManaged(Watching(Witness(MemoryMedium.of(CAPACITY * 512), zones=Zones(CAPACITY, SIZE)))).start()
    assert written[-1] & DeviceStatus.FAILED
    assert not any(value & DeviceStatus.FEATURES_OK for value in written)


@pytest.mark.clause("blk-zoned.device.device-init.1")
@pytest.mark.clause("blk-zoned.device.device-init.5")
def test_a_disk_without_zones_is_driven_as_any_other() -> None:
    ordinary = Witness(MemoryMedium.of(CAPACITY * 512))
    assert not ordinary.offered_features() & ZONED
    for device in (ordinary, OffersAll(MemoryMedium.of(CAPACITY * 512))):
        driver = ZonedBlkDriver(InProcess(device)).start()
        assert driver.zoned is None
        assert virtio_blk_config.decode(device.read_config()).zoned.model == ZonedModel.NONE
        driver.write(SIZE - 1, bytes(1024))
        driver.discard([(0, 1)])
        for verb in (driver.report_zones, driver.reset_all_zones, lambda d=driver: d.open_zone(0)):
            with pytest.raises(BlkUnsupported, match="no zones"):
                verb()


@pytest.mark.clause("blk-zoned.device.device-init.2")
def test_no_legacy_driver_gets_zones() -> None:
    transport = InProcess(Witness(MemoryMedium.of(CAPACITY * 512), zones=Zones(CAPACITY, SIZE)))
    for status in (0, 1, 3):
        transport.write_status(status)
    transport.accept_features(ZONED)
    transport.write_status(11)
    assert not transport.read_status() & DeviceStatus.FEATURES_OK


# Devices that lie


@pytest.mark.parametrize(
    "lie",
    [
        {"zone_sectors": 0},
        {"write_granularity": 0},
        {"write_granularity": 700},
        {"model": 9},
        {"write_granularity": 1 << 30},
    ],
)
def test_zones_that_cannot_be_used_fail_the_start(lie: dict[str, int]) -> None:
    @define(eq=False)
    class Liar(Witness):
        def read_config(self) -> bytes:
            config = virtio_blk_config.decode(super().read_config())
            # The model is looked at before and after: it must not change either.
            lying = self._negotiated or "model" not in lie
            return virtio_blk_config.encode_values(
                config._replace(zoned=config.zoned._replace(**lie) if lying else config.zoned)
            )

    transport = InProcess(Liar(MemoryMedium.of(CAPACITY * 512), zones=Zones(CAPACITY, SIZE)))
    with pytest.raises(NegotiationError):
        ZonedBlkDriver(transport).start()
    assert transport.read_status() & DeviceStatus.FAILED


TRUE = {"z_cap": SIZE, "z_start": SIZE, "z_wp": SIZE, "z_type": ZoneType.SWR, "z_state": ZoneState.EMPTY}


@define(eq=False)
class Puppet(Witness):
    """Answers a request of one type with bytes of the test's making."""

    kind: int = 0
    answer: bytes = b""

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if virtio_blk_req.decode(b"".join(chain.readable.views())).type != self.kind:
            super().handle(queue, chain)
            return
        chain.writable.write(self.answer.ljust(chain.writable.remaining, b"\0"))


@pytest.mark.parametrize(
    ("number", "lie"),
    [
        (0, {}),
        (2, {}),
        ((1 << 64) - 1, {}),
        (1, {"z_start": 0}),
        (1, {"z_cap": SIZE + 1}),
        (1, {"z_wp": SIZE - 1}),
        (1, {"z_wp": 2 * SIZE + 1}),
        (1, {"z_type": 0}),
        (1, {"z_type": 4}),
        (1, {"z_type": 1}),
        (1, {"z_state": 0}),
        (1, {"z_state": 5}),
    ],
)
def test_a_report_that_cannot_be_is_a_request_error(number: int, lie: dict[str, int]) -> None:
    device = Puppet(MemoryMedium.of(CAPACITY * 512), zones=Zones(CAPACITY, SIZE))
    driver = ZonedBlkDriver(InProcess(device)).start()
    device.kind = BlkRequest.ZONE_REPORT
    device.answer = virtio_blk_zone_report.encode(nr_zones=1) + virtio_blk_zone_descriptor.encode(**TRUE)
    assert driver.report_zones(SIZE, 1) == [ZoneInfo(SIZE, SIZE, SIZE, ZoneType.SWR, ZoneState.EMPTY, SIZE)]
    device.answer = virtio_blk_zone_report.encode(nr_zones=number) + virtio_blk_zone_descriptor.encode(**TRUE | lie)
    with pytest.raises(RequestError, match="reported"):
        driver.report_zones(SIZE, 1)
    assert driver.transport.read_status() & DeviceStatus.FAILED


@pytest.mark.parametrize("at", [0, SIZE - 1, 2 * SIZE - 1, (1 << 64) - 1])
def test_data_that_went_to_another_zone_are_a_request_error(at: int) -> None:
    device = Puppet(MemoryMedium.of(CAPACITY * 512), zones=Zones(CAPACITY, SIZE))
    driver = ZonedBlkDriver(InProcess(device)).start()
    device.kind, device.answer = BlkRequest.ZONE_APPEND, at.to_bytes(8, "little")
    with pytest.raises(RequestError, match="went to"):
        driver.append(SIZE, bytes(1024))
