"""Block driver against block device, in one process: any sequence of requests against a dict of sectors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio_py.devices.blk.device import ALL_FEATURES, BlkDevice
from virtio_py.devices.blk.driver import BlkDriver, BlkError, BlkUnsupported, split_range
from virtio_py.devices.blk.layout import (
    BlkFeature,
    BlkRequest,
    BlkStatus,
    RangeLimits,
    virtio_blk_config,
    virtio_blk_discard_write_zeroes,
    virtio_blk_req,
)
from virtio_py.devices.blk.media import Medium, MemoryMedium, NullMedium
from virtio_py.devices.blk.requests import Lifetime
from virtio_py.driver import Transport
from virtio_py.errors import NeedsReset, NegotiationError, RequestError, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import engine_named
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.transports.in_process import InProcess

SECTORS = 24
WCE, FLUSH = bit(BlkFeature.CONFIG_WCE), bit(BlkFeature.FLUSH)
RING = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
PACKED = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.RING_PACKED)
RINGS = (bit(Feature.VERSION_1), RING, PACKED, PACKED | bit(Feature.IN_ORDER))
every_engine = pytest.mark.parametrize("engine", ["reference", "compiled"])


@define(eq=False)
class Witness(BlkDevice):
    """A block device that writes down the requests it gets, as (header, readable data, sizes of the writable parts)."""

    seen: list[tuple[Any, bytes, list[int]]] = field(factory=list, init=False)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        header = virtio_blk_req.decode(data)
        self.seen.append((header, data[virtio_blk_req.size :], [len(v) for v in chain.writable.views()]))
        self.pieces = [len(v) for v in chain.readable.views()]
        super().handle(queue, chain)

    pieces: list[int] = field(factory=list, init=False)


def pair(
    medium: Medium | None = None,
    features: int | None = None,
    queue_size: int = 16,
    ring: int = RING,
    engine: str = "reference",
    **options: Any,
) -> tuple[BlkDriver, Witness]:
    options.setdefault("secure_erase", RangeLimits(3, 2))
    device = Witness(medium or MemoryMedium.of(SECTORS * 512), **options)
    wanted = device.offered_features() if features is None else features
    runs = engine_named(engine)
    transport = InProcess(device, engine=runs, memory_size=1 << 20, ring_features=ring)
    driver = BlkDriver(transport, engine=runs, features=wanted | ring, queue_size=queue_size)
    return driver.start(), device


# Sequences of requests

spans = st.tuples(st.integers(0, SECTORS), st.integers(0, SECTORS)).map(lambda t: (t[0], min(t[1], SECTORS - t[0])))
steps = st.one_of(
    st.tuples(st.just("read"), spans),
    st.tuples(st.just("write"), spans, st.integers(0, 1 << 30)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("wce"), st.booleans()),
    st.tuples(st.sampled_from(["discard", "zero", "unmap", "erase"]), st.lists(spans, max_size=4)),
)
limits = st.builds(RangeLimits, st.integers(1, 9), st.integers(1, 3), st.integers(0, 4))


@every_engine
@settings(deadline=None)
@given(
    todo=st.lists(steps, max_size=10),
    features=st.integers(0, ALL_FEATURES).map(lambda f: f & ALL_FEATURES),
    size_max=st.sampled_from([0, 100, 512, 1000, 4096]),
    seg_max=st.integers(6, 20),
    all_limits=st.tuples(limits, limits, limits),
    ring=st.sampled_from(RINGS),
)
def test_any_sequence_does_what_a_dict_of_sectors_does(
    todo: list[tuple[Any, ...]],
    features: int,
    size_max: int,
    seg_max: int,
    all_limits: tuple[RangeLimits, RangeLimits, RangeLimits],
    ring: int,
    engine: str,
) -> None:
    discard, write_zeroes, secure_erase = all_limits
    # Without SEG_MAX one segment is all there is, and it has to hold a sector.
    if size_max % 512 and not features & bit(BlkFeature.SEG_MAX):
        features &= ~bit(BlkFeature.SIZE_MAX)
    driver, _ = pair(
        features=features,
        ring=ring,
        engine=engine,
        size_max=size_max,
        seg_max=seg_max,
        discard=discard,
        write_zeroes=write_zeroes,
        secure_erase=secure_erase,
    )
    model: dict[int, bytes | None] = {n: bytes(512) for n in range(SECTORS)}
    for verb, *args in [*todo, ("read", (0, SECTORS))]:
        try:
            VERBS[verb](driver, model, *args)
        except BlkUnsupported:
            assert verb in NEEDS, verb
            assert not driver.has(NEEDS[verb])


def do_read(driver: BlkDriver, model: dict[int, bytes | None], span: tuple[int, int]) -> None:
    data = driver.read(*span)
    assert len(data) == span[1] * 512
    for i in range(span[1]):
        if (known := model[span[0] + i]) is not None:
            assert data[i * 512 : (i + 1) * 512] == known


def do_write(driver: BlkDriver, model: dict[int, bytes | None], span: tuple[int, int], seed: int) -> None:
    data = random.Random(seed).randbytes(span[1] * 512)
    driver.write(span[0], data)
    model |= {span[0] + i: data[i * 512 : (i + 1) * 512] for i in range(span[1])}


def do_flush(driver: BlkDriver, model: dict[int, bytes | None]) -> None:
    driver.flush()


def do_wce(driver: BlkDriver, model: dict[int, bytes | None], on: bool) -> None:
    driver.set_writeback(on)
    assert driver.writeback == on


def do_range(send: Callable[..., None], after: bytes | None) -> Callable[..., None]:
    def do(driver: BlkDriver, model: dict[int, bytes | None], ranges: list[tuple[int, int]]) -> None:
        send(driver, ranges)
        model |= dict.fromkeys((s + i for s, n in ranges for i in range(n)), after)

    return do


VERBS: dict[str, Callable[..., None]] = {
    "read": do_read,
    "write": do_write,
    "flush": do_flush,
    "wce": do_wce,
    # What a discarded sector reads as, nobody may assume.
    "discard": do_range(BlkDriver.discard, None),
    "zero": do_range(BlkDriver.write_zeroes, bytes(512)),
    "unmap": do_range(lambda driver, ranges: driver.write_zeroes(ranges, unmap=True), bytes(512)),
    "erase": do_range(BlkDriver.secure_erase, None),
}
NEEDS = {
    "flush": BlkFeature.FLUSH,
    "wce": BlkFeature.CONFIG_WCE,
    "discard": BlkFeature.DISCARD,
    "zero": BlkFeature.WRITE_ZEROES,
    "unmap": BlkFeature.WRITE_ZEROES,
    "erase": BlkFeature.SECURE_ERASE,
}


# How the driver cuts its requests


@pytest.mark.clause("blk.driver.device-op.6")
@given(size_max=st.integers(1, 3000), seg_max=st.integers(1, 20), count=st.integers(1, SECTORS))
def test_transfers_are_cut_to_size_max_and_seg_max(size_max: int, seg_max: int, count: int) -> None:
    try:
        driver, device = pair(size_max=size_max, seg_max=seg_max)
    except NegotiationError:
        assert size_max * min(seg_max, 14) < 512
        return
    data = random.Random(count).randbytes(count * 512)
    driver.write(0, data)
    assert driver.read(0, count) == data
    for header, sent, room in device.seen:
        # The last piece is the status; the driver's 16 descriptors bound the segments too.
        assert all(size <= size_max for size in room[:-1])
        assert len(room) - 1 <= min(seg_max, 14)
        assert (len(sent) + sum(room) - 1) % 512 == 0
        assert header.type in (BlkRequest.IN, BlkRequest.OUT)
    assert max(device.pieces) <= max(size_max, 16)


def test_without_seg_max_one_segment_is_all() -> None:
    driver, device = pair(seg_max=0, size_max=1024, discard=RangeLimits(1, 1000))
    assert driver.read(0, 6) == bytes(6 * 512)
    assert [room for _, _, room in device.seen] == [[1024, 1]] * 3
    device.seen.clear()
    driver.discard([(n % SECTORS, 1) for n in range(100)])
    # 64 segments of 16 bytes fill the one descriptor.
    assert [len(data) for _, data, _ in device.seen] == [1024, 36 * 16]


@pytest.mark.clause("blk.driver.device-op.7")
@pytest.mark.clause("blk.driver.device-op.9")
@pytest.mark.clause("blk.driver.device-op.10")
@pytest.mark.clause("blk.driver.device-op.11")
@pytest.mark.clause("blk.driver.device-op.14")
@pytest.mark.parametrize("verb", ["discard", "zero", "unmap", "erase"])
@given(ranges=st.lists(spans, max_size=8), bounds=limits)
def test_ranges_are_cut_to_the_limits(verb: str, ranges: list[tuple[int, int]], bounds: RangeLimits) -> None:
    driver, device = pair(discard=bounds, write_zeroes=bounds, secure_erase=bounds)
    VERBS[verb](driver, dict.fromkeys(range(SECTORS)), ranges)
    covered: list[int] = []
    for header, data, room in device.seen:
        assert header.sector == 0
        assert room == [1]
        count, rest = divmod(len(data), 16)
        assert rest == 0
        assert 0 < count <= bounds.max_seg
        for at in range(0, len(data), 16):
            segment = virtio_blk_discard_write_zeroes.decode(data, at)
            assert segment.num_sectors <= bounds.max_sectors
            assert segment.flags == (verb == "unmap", 0)
            covered += range(segment.sector, segment.sector + segment.num_sectors)
    assert covered == [s + i for s, n in ranges for i in range(n)]


@given(sector=st.integers(0, 100), count=st.integers(0, 200), bounds=limits)
def test_splits_fall_on_the_alignment_where_they_can(sector: int, count: int, bounds: RangeLimits) -> None:
    parts = list(split_range(sector, count, bounds))
    assert [s + i for s, n in parts for i in range(n)] == list(range(sector, sector + count))
    assert len(parts) == 1 or not 0 < count <= bounds.max_sectors
    if bounds.max_sectors >= max(bounds.alignment, 1):
        assert all((s + n) % max(bounds.alignment, 1) == 0 for s, n in parts[:-1])


@pytest.mark.clause("blk.driver.device-op.4")
@pytest.mark.clause("blk.driver.device-op.5")
@pytest.mark.clause("blk.driver.device-op.8")
def test_requests_without_a_position_have_sector_0_and_their_own_data() -> None:
    driver, device = pair(serial=b"a disk", lifetime=Lifetime(1, 2, 3))
    driver.flush()
    assert driver.get_id() == b"a disk"
    assert tuple(driver.get_lifetime()) == (1, 2, 3)
    assert [(header, data, room) for header, data, room in device.seen] == [
        ((BlkRequest.FLUSH, 0, 0), b"", [1]),
        ((BlkRequest.GET_ID, 0, 0), b"", [20, 1]),
        ((BlkRequest.GET_LIFETIME, 0, 0), b"", [6, 1]),
    ]


# What the driver does not send


@pytest.mark.clause("blk.driver.device-op.2")
@given(sector=st.integers(-2, SECTORS + 2) | st.just(1 << 64), count=st.integers(-1, SECTORS + 2))
def test_nothing_is_asked_beyond_the_capacity(sector: int, count: int) -> None:
    driver, device = pair()
    if sector >= 0 and count >= 0 and sector + count <= SECTORS:
        return
    verbs: list[Callable[[], object]] = [
        lambda: driver.read(sector, count),
        lambda: driver.discard([(0, 1), (sector, count)]),
        lambda: driver.write_zeroes([(sector, count)]),
    ]
    if count >= 0:
        verbs.append(lambda: driver.write(sector, bytes(count * 512)))
    for verb in verbs:
        with pytest.raises(UsageError):
            verb()
    assert device.seen == []


@pytest.mark.clause("blk.driver.device-op.3")
def test_read_only_is_accepted_and_nothing_is_written() -> None:
    driver, device = pair(MemoryMedium(bytearray(SECTORS * 512), read_only=True))
    assert driver.has(BlkFeature.RO)
    with pytest.raises(UsageError, match="read-only"):
        driver.write(0, bytes(512))
    assert driver.read(0, 2) == bytes(1024)
    assert len(device.seen) == 1
    # Offered and not accepted, it still holds.
    unaware, device = pair(MemoryMedium(bytearray(SECTORS * 512), read_only=True), features=FLUSH)
    assert not unaware.has(BlkFeature.RO)
    with pytest.raises(UsageError, match="read-only"):
        unaware.write(0, bytes(512))


def test_no_range_is_sent_to_a_read_only_disk_that_offers_it() -> None:
    @define(eq=False)
    class Offering(Witness):
        def offered_features(self) -> int:
            return super().offered_features() | bit(BlkFeature.DISCARD)

    device = Offering(MemoryMedium(bytearray(4096), read_only=True))
    driver = BlkDriver(InProcess(device)).start()
    driver.info = evolve(driver.info, discard=RangeLimits())
    with pytest.raises(UsageError, match="read-only"):
        driver.discard([(0, 1)])
    assert device.seen == []


def test_what_was_not_negotiated_is_not_sent() -> None:
    driver, device = pair(features=FLUSH, lifetime=Lifetime())
    verbs: list[Callable[[], object]] = [
        lambda: driver.discard([(0, 1)]),
        lambda: driver.write_zeroes([(0, 1)]),
        lambda: driver.secure_erase([(0, 1)]),
        driver.get_lifetime,
        lambda: driver.set_writeback(False),
    ]
    for verb in verbs:
        with pytest.raises(BlkUnsupported, match="not negotiated"):
            verb()
    with pytest.raises(UsageError, match="whole sectors"):
        driver.write(0, b"x")
    assert device.seen == []


# The cache


@pytest.mark.clause("blk.driver.device-init.2")
@pytest.mark.clause("blk.driver.device-init.3")
@pytest.mark.clause("blk.driver.device-op.12")
@pytest.mark.parametrize(
    ("features", "writeback", "flushes"),
    [(0, False, False), (FLUSH, True, True), (WCE, False, False), (WCE | FLUSH, True, True)],
)
def test_the_driver_takes_the_cache_for_what_it_is(features: int, writeback: bool, flushes: bool) -> None:
    driver, device = pair(features=features)
    assert driver.writeback == writeback
    driver.flush()
    assert [header.type for header, _, _ in device.seen] == [BlkRequest.FLUSH] * flushes
    if features & WCE:
        driver.set_writeback(True)
        assert driver.writeback
        driver.set_writeback(False)
        assert not driver.writeback


@pytest.mark.clause("blk.driver.device-init.1")
def test_a_driver_that_cannot_flush_says_so_instead_of_pretending() -> None:
    driver, _ = pair(features=WCE)
    driver.set_writeback(True)
    with pytest.raises(BlkUnsupported, match="FLUSH"):
        driver.flush()


@pytest.mark.clause("blk.driver.device-op.13")
def test_a_flush_after_storing_0_is_still_sent() -> None:
    driver, device = pair()
    driver.write(0, bytes(512))
    driver.set_writeback(False)
    driver.flush()
    assert [header.type for header, _, _ in device.seen] == [BlkRequest.OUT, BlkRequest.FLUSH]


@pytest.mark.clause("blk.driver.device-init.4")
def test_the_configuration_is_read_after_features_ok() -> None:
    read_at: list[int] = []

    class Watching(InProcess):
        def read_config(self, offset: int, length: int) -> bytes:
            read_at.append(self.read_status())
            return super().read_config(offset, length)

    BlkDriver(Watching(Witness(MemoryMedium.of(512)))).start()
    assert read_at
    assert all(status & DeviceStatus.FEATURES_OK for status in read_at)


def test_an_older_configuration_is_not_read_beyond_its_end() -> None:
    ends: list[int] = []

    class Watching(InProcess):
        def read_config(self, offset: int, length: int) -> bytes:
            ends.append(offset + length)
            return super().read_config(offset, length)

    driver = BlkDriver(Watching(Witness(MemoryMedium.of(512))), features=RING | bit(BlkFeature.SEG_MAX)).start()
    assert max(ends) == virtio_blk_config.end("seg_max") == 16
    assert driver.info.blk_size == 512
    assert driver.info.discard is None


@pytest.mark.clause("blk-zoned.device.device-init.1")
@pytest.mark.clause("blk-zoned.driver.device-init.1")
def test_neither_half_takes_a_disk_for_zoned() -> None:
    @define(eq=False)
    class Offering(Witness):
        def offered_features(self) -> int:
            return super().offered_features() | bit(BlkFeature.ZONED)

    driver = BlkDriver(InProcess(Offering(MemoryMedium.of(4096)))).start()
    assert driver.offered & bit(BlkFeature.ZONED)
    assert not driver.has(BlkFeature.ZONED)
    assert not pair()[0].offered & bit(BlkFeature.ZONED)


# Changes and failures


@pytest.mark.clause("blk.driver.device-op.1")
def test_a_disk_that_grows_and_shrinks() -> None:
    driver, device = pair(NullMedium(8 * 512))
    assert driver.info.capacity == 8
    device.resize(16)
    assert isinstance(driver.transport, InProcess)
    assert driver.transport.config_notifications == 1
    assert driver.refresh().capacity == 16
    device.resize(32)
    assert driver.read(31, 1) == bytes(512)
    device.resize(4)
    # Not yet looked at: the device refuses, and the driver passes that on.
    with pytest.raises(BlkError, match="IN: IOERR") as caught:
        driver.read(4, 1)
    assert caught.value.status == BlkStatus.IOERR
    driver.refresh()
    with pytest.raises(UsageError):
        driver.read(4, 1)


@pytest.mark.clause("blk.driver.device-op.16")
def test_a_failed_range_request_says_nothing_of_its_segments() -> None:
    class Half(MemoryMedium):
        def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
            if offset:
                raise OSError("the second segment fails")
            super().write_zeroes(offset, length, unmap)

    driver, _ = pair(Half(bytearray(b"x" * SECTORS * 512)))
    with pytest.raises(BlkError) as caught:
        driver.write_zeroes([(0, 1), (1, 1)])
    assert (caught.value.request, caught.value.status) == (BlkRequest.WRITE_ZEROES, BlkStatus.IOERR)
    assert not hasattr(caught.value, "segments")


def test_ok_in_a_status_that_nobody_wrote_is_no_ok() -> None:
    class Silent(Witness):
        def handle(self, queue: DeviceQueue, chain: Chain) -> None:
            chain.writable.write(bytes(chain.writable.remaining - 1))

    driver = BlkDriver(InProcess(Silent(MemoryMedium.of(4096)))).start()
    with pytest.raises(RequestError, match="only 512 bytes"):
        driver.read(0, 1)


@given(status=st.integers(0, 255), wrote=st.booleans())
def test_a_device_that_lies_about_ok_is_failed(status: int, wrote: bool) -> None:
    class Liar(Witness):
        def handle(self, queue: DeviceQueue, chain: Chain) -> None:
            tail = chain.writable.split_tail(1)
            if wrote:
                chain.writable.write(bytes(chain.writable.remaining))
            tail.write(bytes([status]))

    transport = InProcess(Liar(MemoryMedium.of(4096)))
    driver = BlkDriver(transport).start()
    if status == BlkStatus.OK and wrote:
        assert driver.read(0, 1) == bytes(512)
    elif status == BlkStatus.OK:
        # Without this, stale memory would pass for a sector.
        with pytest.raises(RequestError, match="only 0 bytes"):
            driver.read(0, 1)
        assert transport.read_status() & DeviceStatus.FAILED
    else:
        with pytest.raises(BlkError) as caught:
            driver.read(0, 1)
        assert caught.value.status == status
        assert isinstance(caught.value, BlkUnsupported) == (status == BlkStatus.UNSUPP)


@pytest.mark.parametrize(
    "lie",
    [
        {"seg_max": 0},
        {"size_max": 1, "seg_max": 2},
        {"num_queues": 0},
        {"num_queues": 9},
    ],
)
def test_a_configuration_that_cannot_be_used_fails_the_start(lie: dict[str, int]) -> None:
    @define(eq=False)
    class Liar(Witness):
        def read_config(self) -> bytes:
            true = virtio_blk_config.decode(super().read_config())
            return virtio_blk_config.encode_values(true._replace(**lie))

    transport = InProcess(Liar(MemoryMedium.of(4096), size_max=4096, num_queues=2))
    with pytest.raises(NegotiationError):
        BlkDriver(transport).start()
    assert transport.read_status() & DeviceStatus.FAILED


def test_a_size_max_of_0_is_taken_for_a_page() -> None:
    """qemu-storage-daemon says 0."""

    @define(eq=False)
    class Nought(Witness):
        def read_config(self) -> bytes:
            return virtio_blk_config.encode_values(virtio_blk_config.decode(super().read_config())._replace(size_max=0))

    device = Nought(MemoryMedium.of(1 << 16), size_max=8192)
    assert BlkDriver(InProcess(device)).start().read(0, 128) == bytes(1 << 16)
    assert {size for _, _, room in device.seen for size in room[:-1]} == {4096}


def test_limits_of_zero_mean_that_the_request_cannot_be_sent() -> None:
    driver, device = pair(discard=RangeLimits(0, 1), write_zeroes=RangeLimits(1, 0))
    for send in (driver.discard, driver.write_zeroes):
        with pytest.raises(BlkUnsupported, match="limits"):
            send([(0, 1)])
    assert device.seen == []


def test_a_chain_without_a_status_byte_needs_a_reset_and_a_reset_recovers() -> None:
    driver, device = pair()
    with pytest.raises(NeedsReset):
        driver.transact(driver.queues[0], [bytes(512)], [])
    transport: Transport = driver.transport
    assert isinstance(transport, InProcess)
    assert isinstance(transport.end.fault, RequestError)
    assert transport.end.fault.queue == 0
    device.seen.clear()
    assert driver.start().read(0, 1) == bytes(512)


def test_every_queue_serves() -> None:
    driver, _ = pair(num_queues=3)
    assert len(driver.queues) == driver.info.num_queues == 3
    for queue in range(3):
        driver.write(queue, bytes([queue]) * 512, queue=queue)
    assert driver.read(0, 3) == b"".join(bytes([q]) * 512 for q in range(3))
    alone, _ = pair(num_queues=3, features=FLUSH)
    assert len(alone.queues) == 1
    many, _ = pair(num_queues=12)
    assert (many.info.num_queues, len(many.queues)) == (12, 8)


def test_info_tells_what_the_device_was_made_with() -> None:
    geometry = {"cylinders": 4, "heads": 3, "sectors": 2}
    topology = {"physical_block_exp": 3, "alignment_offset": 1, "min_io_size": 8, "opt_io_size": 64}
    driver, _ = pair(geometry=geometry, topology=topology, blk_size=4096, discard=RangeLimits(7, 6, 5))
    info = driver.info
    assert info.geometry is not None
    assert info.topology is not None
    assert info.geometry._asdict() == geometry
    assert info.topology._asdict() == topology
    assert (info.capacity, info.blk_size, info.read_only) == (SECTORS, 4096, False)
    assert info.discard == (7, 6, 5)
    assert info.secure_erase == (3, 2, 1)
    assert info.size_max is None
