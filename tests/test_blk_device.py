"""The block device against chains made by hand: every clause on its answers, and every chain no driver should send."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import cast

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.device import DeviceEnd
from virtio_py.devices.blk.device import ALL_FEATURES, BlkDevice
from virtio_py.devices.blk.layout import (
    CONFIG_FIELDS,
    BlkFeature,
    BlkRequest,
    BlkStatus,
    RangeLimits,
    virtio_blk_config,
    virtio_blk_discard_write_zeroes,
    virtio_blk_lifetime,
    virtio_blk_req,
)
from virtio_py.devices.blk.media import Medium, MemoryMedium, NullMedium
from virtio_py.devices.blk.requests import REQUESTS, Lifetime
from virtio_py.errors import RequestError, UsageError
from virtio_py.memory import GuestMemory
from virtio_py.rings.chain import Chain, Reader, Writer
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit

OK, IOERR, UNSUPP = BlkStatus.OK, BlkStatus.IOERR, BlkStatus.UNSUPP
SECTORS = 16
RANGES = (BlkRequest.DISCARD, BlkRequest.WRITE_ZEROES, BlkRequest.SECURE_ERASE)
NO_QUEUE = cast(DeviceQueue, None)
FILL = 0xEE


@define
class Disk:
    """A medium with a volatile cache: what is not flushed is lost by `crash`. It can be made to fail."""

    cache: bytearray = field(factory=lambda: bytearray(b"\x55" * SECTORS * 512))
    stable: bytearray = field(factory=lambda: bytearray(b"\x55" * SECTORS * 512))
    read_only: bool = False
    can_deallocate: bool = True
    concurrent: bool = False
    broken: bool = False
    asked: list[str] = field(factory=list)

    @property
    def size(self) -> int:
        return len(self.cache)

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if self.broken:
            raise OSError(errno.EIO, "broken")

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        self._note("read")
        MemoryMedium(self.cache).read_into(offset, views)

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        self._note("write")
        MemoryMedium(self.cache).write_from(offset, views)

    def flush(self) -> None:
        self._note("flush")
        self.stable[:] = self.cache

    def discard(self, offset: int, length: int) -> None:
        self._note("discard")

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._note("unmap" if unmap else "zero")
        self.cache[offset : offset + length] = bytes(length)

    def erase(self, offset: int, length: int) -> None:
        self._note("erase")
        self.cache[offset : offset + length] = bytes(length)

    def resize(self, size: int) -> None:
        MemoryMedium(self.cache).resize(size)
        MemoryMedium(self.stable).resize(size)

    def close(self) -> None: ...


def disk_of(medium: Medium | None = None, features: int | None = None, **options: object) -> BlkDevice:
    """A device that has been negotiated with, all it offers by default."""
    options.setdefault("secure_erase", RangeLimits(8, 4))
    device = BlkDevice(medium or Disk(), **options)  # type: ignore[arg-type]
    device.negotiated(device.offered_features() if features is None else features)
    return device


def cut(data: bytes | bytearray, at: Sequence[int]) -> list[memoryview]:
    points = sorted(min(p, len(data)) for p in at)
    return [memoryview(data)[a:b] for a, b in zip([0, *points], [*points, len(data)], strict=True)]


def ask(
    device: BlkDevice, readable: bytes, room: int = 1, at: Sequence[int] = (), within: bytes = b""
) -> tuple[int, bytes, int]:
    """One chain: its status, the data part of what the device wrote, and the used length."""
    writable = bytearray(within.ljust(room, bytes([FILL])))
    chain = Chain(0, NO_QUEUE, Reader(cut(readable, at)), Writer(cut(writable, at)))
    device.handle(NO_QUEUE, chain)
    assert not chain.deferred
    return writable[-1], bytes(writable[:-1]), chain.used_length


def head(kind: int, sector: int = 0, reserved: int = 0) -> bytes:
    return virtio_blk_req.encode(type=kind, sector=sector, reserved=reserved)


def segments(*parts: tuple[int, int, int]) -> bytes:
    encode = virtio_blk_discard_write_zeroes.encode
    return b"".join(encode(sector=s, num_sectors=n, flags=f) for s, n, f in parts)


# Reading and writing

framings = st.lists(st.integers(0, SECTORS * 512), max_size=5)


@given(sector=st.integers(0, SECTORS), count=st.integers(0, SECTORS), at=framings)
def test_what_is_written_is_read_whatever_the_framing(sector: int, count: int, at: list[int]) -> None:
    count = min(count, SECTORS - sector)
    medium = Disk()
    data = bytes(i % 251 for i in range(count * 512))
    assert ask(disk_of(medium), head(BlkRequest.OUT, sector) + data, 1, at) == (OK, b"", 1)
    expected = bytearray(b"\x55" * SECTORS * 512)
    expected[sector * 512 : sector * 512 + len(data)] = data
    assert medium.cache == expected
    assert ask(disk_of(medium), head(BlkRequest.IN, sector), len(data) + 1, at) == (OK, data, len(data) + 1)


bad_ranges = st.one_of(
    st.tuples(st.integers(SECTORS + 1, (1 << 64) - 1), st.integers(0, 4).map(lambda n: n * 512)),
    st.tuples(st.integers(SECTORS - 3, SECTORS), st.integers(4, 8).map(lambda n: n * 512)),
    st.tuples(st.sampled_from([(1 << 64) - 1, 1 << 63, (1 << 55) - 1, 1 << 55]), st.just(512)),
    st.tuples(st.just(0), st.integers(1, 4000).filter(lambda n: n % 512)),
)


@given(where=bad_ranges)
def test_ranges_outside_or_of_broken_sectors_fail_and_touch_nothing(where: tuple[int, int]) -> None:
    sector, length = where
    medium = Disk()
    device = disk_of(medium)
    # A failed read writes the status and nothing else, and no used length covers what it did not write.
    assert ask(device, head(BlkRequest.IN, sector), length + 1) == (IOERR, bytes([FILL]) * length, 0 if length else 1)
    assert ask(device, head(BlkRequest.OUT, sector) + bytes(length)) == (IOERR, b"", 1)
    assert medium.asked == []


@pytest.mark.parametrize("kind", [BlkRequest.IN, BlkRequest.OUT, BlkRequest.FLUSH, *RANGES])
def test_a_medium_that_fails_is_an_ioerr_and_the_next_request_is_served(kind: BlkRequest) -> None:
    medium = Disk(broken=True)
    device = disk_of(medium)
    readable = {BlkRequest.OUT: bytes(512)} | dict.fromkeys(RANGES, segments((0, 1, 0)))
    room = 513 if kind == BlkRequest.IN else 1
    status, _, used = ask(device, head(kind) + readable.get(kind, b""), room)
    assert (status, used) == (IOERR, 0 if kind == BlkRequest.IN else 1)
    medium.broken = False
    assert ask(device, head(kind) + readable.get(kind, b""), room)[0] == OK


def test_a_read_that_fails_half_way_has_no_used_length() -> None:
    class Half(Disk):
        def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
            views[0][:] = b"\x01" * len(views[0])
            raise OSError(errno.EIO, "half")

    status, _, used = ask(disk_of(Half()), head(BlkRequest.IN), 1025, [512])
    assert (status, used) == (IOERR, 0)


# Chains no driver should send


@given(readable=st.binary(max_size=40), at=framings)
def test_without_a_status_byte_nobody_can_be_told(readable: bytes, at: list[int]) -> None:
    with pytest.raises(RequestError, match="status"):
        disk_of().handle(NO_QUEUE, Chain(0, NO_QUEUE, Reader(cut(readable, at)), Writer([])))


@given(readable=st.binary(max_size=15), room=st.integers(1, 600))
def test_a_header_cut_short_is_an_ioerr(readable: bytes, room: int) -> None:
    assert ask(disk_of(), readable, room) == (IOERR, bytes([FILL]) * (room - 1), 1 if room == 1 else 0)


@pytest.mark.clause("blk-zoned.device.device-op.1")
@given(kind=st.integers(0, (1 << 32) - 1).filter(lambda k: k not in REQUESTS), room=st.integers(1, 600))
def test_unknown_types_are_unsupported(kind: int, room: int) -> None:
    assert ask(disk_of(), head(kind) + bytes(64), room)[:2] == (UNSUPP, bytes([FILL]) * (room - 1))


@pytest.mark.clause("blk-zoned.device.device-op.1")
@pytest.mark.parametrize("kind", [k for k in BlkRequest if k.name.startswith("ZONE_")])
def test_zoned_types_are_unsupported_without_the_feature(kind: BlkRequest) -> None:
    assert ask(disk_of(), head(kind) + bytes(512), 9)[0] == UNSUPP


@given(
    kind=st.one_of(st.sampled_from(BlkRequest), st.integers(0, (1 << 32) - 1)),
    sector=st.integers(0, (1 << 64) - 1) | st.integers(0, SECTORS),
    data=st.binary(max_size=1200) | st.integers(0, 4).map(lambda n: bytes(512 * n)),
    room=st.integers(1, 1200),
    at=framings,
)
def test_any_chain_with_a_status_byte_gets_a_status(
    kind: int, sector: int, data: bytes, room: int, at: list[int]
) -> None:
    status, _, used = ask(disk_of(), head(kind, sector) + data, room, at)
    assert status in (OK, IOERR, UNSUPP)
    assert used <= room


def test_reserved_is_ignored_for_linux_puts_a_priority_there() -> None:
    assert ask(disk_of(), head(BlkRequest.IN, 1, reserved=0xFFFFFFFF), 513)[0] == OK


# Read-only


@pytest.mark.clause("blk.device.device-op.3")
@pytest.mark.clause("blk.device.device-op.4")
@pytest.mark.parametrize("accepted", [0, bit(BlkFeature.RO)])
@pytest.mark.parametrize("kind", [BlkRequest.OUT, *RANGES])
def test_read_only_counts_when_offered(kind: BlkRequest, accepted: int) -> None:
    medium = Disk(read_only=True)
    device = disk_of(medium, accepted)
    assert device.offered_features() & bit(BlkFeature.RO)
    assert not device.offered_features() & bit(BlkFeature.CONFIG_WCE)
    data = bytes(512) if kind == BlkRequest.OUT else segments((0, 1, 0))
    assert ask(device, head(kind) + data) == (IOERR, b"", 1)
    assert medium.asked == []
    assert ask(device, head(BlkRequest.IN), 513) == (OK, b"\x55" * 512, 513)


def test_read_only_is_offered_whatever_the_owner_allows() -> None:
    assert BlkDevice(Disk(read_only=True), features=FLUSH).offered_features() & bit(BlkFeature.RO)


# Identity and wear


@given(serial=st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=20).map(str.encode))
def test_get_id_is_padded_to_20_bytes(serial: bytes) -> None:
    assert ask(disk_of(serial=serial), head(BlkRequest.GET_ID), 21) == (OK, serial.ljust(20, b"\0"), 21)


def test_get_id_into_less_than_20_bytes_fails_and_into_more_says_20() -> None:
    assert ask(disk_of(serial=b"disk"), head(BlkRequest.GET_ID), 20) == (IOERR, bytes([FILL]) * 19, 0)
    status, data, used = ask(disk_of(serial=b"disk"), head(BlkRequest.GET_ID), 31)
    assert (status, data, used) == (OK, b"disk" + bytes(16) + bytes([FILL]) * 10, 20)


@pytest.mark.clause("blk.device.device-op.17")
@pytest.mark.clause("blk.device.device-op.18")
def test_lifetime_is_offered_where_there_is_one() -> None:
    assert not disk_of().offered_features() & bit(BlkFeature.LIFETIME)
    assert ask(disk_of(), head(BlkRequest.GET_LIFETIME), 7)[0] == UNSUPP
    device = disk_of(lifetime=Lifetime(2, 3, 11))
    assert device.offered_features() & bit(BlkFeature.LIFETIME)
    status, data, used = ask(device, head(BlkRequest.GET_LIFETIME), 7)
    assert (status, data.hex(), used) == (OK, "020003000b00", 7)
    assert ask(disk_of(lifetime=Lifetime(), features=0), head(BlkRequest.GET_LIFETIME), 7)[0] == UNSUPP


@pytest.mark.clause("blk.device.device-op.19")
@given(values=st.tuples(st.integers(-1, 5), st.integers(-1, 13), st.integers(-1, 13)))
def test_no_reserved_lifetime_can_be_sent(values: tuple[int, int, int]) -> None:
    if 0 <= values[0] <= 3 and all(0 <= v <= 11 for v in values[1:]):
        device = disk_of(lifetime=Lifetime(*values))
        _, data, _ = ask(device, head(BlkRequest.GET_LIFETIME), 7)
        found = virtio_blk_lifetime.decode(data)
        assert tuple(found) == values
        assert not virtio_blk_lifetime.violations(found)
    else:
        with pytest.raises(ValueError, match=r"must be|not a valid"):
            Lifetime(*values)


# Ranges


@pytest.mark.clause("blk.device.device-op.5")
@pytest.mark.parametrize("kind", RANGES)
@given(
    flags=st.integers(2, (1 << 32) - 1),
    before=st.integers(0, 3),
    outside=st.booleans(),
)
def test_unknown_flags_are_unsupported_in_any_segment(kind: BlkRequest, flags: int, before: int, outside: bool) -> None:
    medium = Disk()
    data = segments(*[(0, 1, 0)] * before, (1 << 40 if outside else 0, 1, flags))
    assert ask(disk_of(medium), head(kind) + data) == (UNSUPP, b"", 1)
    assert medium.asked == []


@pytest.mark.clause("blk.device.device-op.6")
def test_discard_with_unmap_is_unsupported() -> None:
    medium = Disk()
    assert ask(disk_of(medium), head(BlkRequest.DISCARD) + segments((0, 1, 0), (1, 1, 1))) == (UNSUPP, b"", 1)
    assert medium.asked == []


@pytest.mark.clause("blk.device.device-op.7")
@pytest.mark.clause("blk.device.device-op.8")
@pytest.mark.clause("blk.device.device-op.9")
@pytest.mark.parametrize("unmap", [0, 1])
@given(parts=st.lists(st.tuples(st.integers(0, SECTORS - 1), st.integers(0, 8)), min_size=1, max_size=4))
def test_write_zeroes_zeroes_and_nothing_else(unmap: int, parts: list[tuple[int, int]]) -> None:
    parts = [(s, min(n, SECTORS - s)) for s, n in parts]
    medium = Disk()
    device = disk_of(medium)
    data = segments(*[(s, n, unmap) for s, n in parts])
    assert ask(device, head(BlkRequest.WRITE_ZEROES) + data) == (OK, b"", 1)
    expected = bytearray(b"\x55" * SECTORS * 512)
    for s, n in parts:
        expected[s * 512 : (s + n) * 512] = bytes(n * 512)
    assert ask(device, head(BlkRequest.IN), SECTORS * 512 + 1)[1] == expected
    assert set(medium.asked) == {"unmap" if unmap else "zero", "read"}
    assert ask(device, head(BlkRequest.DISCARD) + segments((0, 1, 0)))[0] == OK
    assert medium.asked[-1] == "discard"


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(15),
        bytes(17),
        segments((0, 9, 0)),
        segments(*[(0, 1, 0)] * 5),
        segments((0, 1, 0), (SECTORS, 1, 0)),
        segments(((1 << 64) - 1, 1, 0)),
        segments((SECTORS - 1, 0xFFFFFFFF, 0)),
    ],
)
def test_segments_that_break_a_limit_fail_before_the_first_is_done(kind: BlkRequest, data: bytes) -> None:
    medium = Disk()
    limits = RangeLimits(8, 4)
    device = disk_of(medium, discard=limits, write_zeroes=limits, secure_erase=limits)
    assert ask(device, head(kind) + data) == (IOERR, b"", 1)
    assert medium.asked == []


@pytest.mark.parametrize("kind", RANGES)
def test_ranges_need_their_feature(kind: BlkRequest) -> None:
    device = disk_of(features=bit(BlkFeature.FLUSH))
    assert ask(device, head(kind) + segments((0, 1, 0))) == (UNSUPP, b"", 1)


def test_secure_erase_as_linux_sends_it() -> None:
    """Linux goes by bit 0 of the type and makes the segments device-writable."""
    medium = Disk()
    data = segments((2, 1, 0))
    status, after, used = ask(disk_of(medium), head(BlkRequest.SECURE_ERASE), 17, within=data)
    assert (status, after, used) == (OK, data, 0)
    assert medium.asked == ["erase"]
    assert medium.cache[1024:1536] == bytes(512)
    # The other two have an odd type, and Linux sends them as they should be.
    assert ask(disk_of(medium), head(BlkRequest.WRITE_ZEROES), 17, within=data)[0] == IOERR


# The cache

WCE, FLUSH = bit(BlkFeature.CONFIG_WCE), bit(BlkFeature.FLUSH)


@pytest.mark.clause("blk.device.device-op.13")
@pytest.mark.clause("blk.device.device-op.14")
@pytest.mark.clause("blk.device.device-op.16")
@pytest.mark.parametrize(
    ("features", "stored", "committed"),
    [
        (0, None, True),  # FLUSH was offered, and declined
        (FLUSH, None, False),
        (FLUSH, 0, False),  # without CONFIG_WCE the driver has no say
        (WCE | FLUSH, None, False),
        (WCE | FLUSH, 0, True),
        (WCE | FLUSH, 1, False),
        (WCE | FLUSH, 0xFF, False),
        (WCE, None, True),
        (WCE, 1, False),
    ],
)
@pytest.mark.parametrize("kind", [BlkRequest.OUT, BlkRequest.WRITE_ZEROES])
def test_what_survives_a_crash(features: int, stored: int | None, committed: bool, kind: BlkRequest) -> None:
    medium = Disk()
    device = disk_of(medium, features | bit(BlkFeature.WRITE_ZEROES))
    if stored is not None:
        device.write_config(virtio_blk_config.offset("writeback"), bytes([stored]))
    data = bytes(512) if kind == BlkRequest.OUT else segments((0, 1, 0))
    assert ask(device, head(kind) + data)[0] == OK
    assert medium.cache[:512] == bytes(512)
    assert (medium.stable == medium.cache) == committed


def test_a_device_that_does_not_offer_flush_commits_nothing() -> None:
    medium = Disk()
    device = BlkDevice(medium, features=0)
    device.negotiated(0)
    assert ask(device, head(BlkRequest.OUT) + bytes(512))[0] == OK
    assert "flush" not in medium.asked
    assert ask(device, head(BlkRequest.FLUSH))[0] == UNSUPP


@pytest.mark.clause("blk.device.device-op.14")
def test_a_write_whose_commit_fails_is_not_ok() -> None:
    class NoFlush(Disk):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    assert ask(disk_of(NoFlush(), 0), head(BlkRequest.OUT) + bytes(512))[0] == IOERR


@pytest.mark.clause("blk.device.device-op.15")
@given(sector=st.integers(0, 1 << 40), data=st.binary(max_size=20))
def test_flush_commits(sector: int, data: bytes) -> None:
    medium = Disk()
    device = disk_of(medium)
    assert ask(device, head(BlkRequest.OUT) + bytes(512))[0] == OK
    assert medium.stable != medium.cache
    # Neither a sector nor data mean anything here, but a driver that sends them asked for a flush.
    assert ask(device, head(BlkRequest.FLUSH, sector) + data) == (OK, b"", 1)
    assert medium.stable == medium.cache


@pytest.mark.clause("blk.device.device-init.1")
@pytest.mark.clause("blk.device.device-init.2")
def test_flush_is_offered_and_always_beside_config_wce() -> None:
    assert disk_of().offered_features() & FLUSH
    assert disk_of(Disk(read_only=True)).offered_features() & FLUSH
    with pytest.raises(UsageError, match="CONFIG_WCE"):
        BlkDevice(Disk(), features=ALL_FEATURES & ~FLUSH)


@pytest.mark.clause("blk.device.device-init.3")
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("features", [0, FLUSH, WCE, WCE | FLUSH])
def test_writeback_begins_at_0_without_flush(initial: bool, features: int) -> None:
    device = disk_of(features=features, writeback=initial)
    expected = initial and features != WCE
    assert virtio_blk_config.decode(device.read_config()).writeback == expected
    device.write_config(32, b"\1")
    device.reset()
    device.negotiated(features)
    assert virtio_blk_config.decode(device.read_config()).writeback == expected


def test_reset_forgets_the_cache_mode_and_the_features() -> None:
    device = disk_of()
    device.write_config(32, b"\0")
    assert device.writethrough
    device.reset()
    assert virtio_blk_config.decode(device.read_config()).writeback == 1
    assert not device.has(BlkFeature.CONFIG_WCE)


def test_writeback_is_not_to_be_written_without_its_feature() -> None:
    device = disk_of(features=FLUSH)
    device.write_config(32, b"\0")
    assert virtio_blk_config.decode(device.read_config()).writeback == 1


# Configuration


@pytest.mark.clause("blk.device.device-init.4")
@given(data=st.data())
def test_fields_of_features_not_offered_are_zero_and_padding_is_too(data: st.DataObject) -> None:
    features = data.draw(st.integers(0, ALL_FEATURES)) & ALL_FEATURES
    features |= FLUSH if features & WCE else 0
    device = BlkDevice(
        Disk(),
        features=features,
        size_max=4096,
        num_queues=3,
        geometry={"cylinders": 1, "heads": 2, "sectors": 3},
        topology={"physical_block_exp": 3, "min_io_size": 8},
        secure_erase=RangeLimits(),
        lifetime=Lifetime(),
    )
    config = virtio_blk_config.decode(device.read_config())
    offered = device.offered_features()
    assert config.capacity == SECTORS
    assert virtio_blk_config.violations(config) == []
    for feature, names in CONFIG_FIELDS.items():
        zero = [getattr(config, n) == virtio_blk_config.fields[n].zero for n in names]
        assert not any(zero) if offered & bit(feature) else all(zero), feature.name
    assert offered & ~features == 0


@given(offset=st.integers(0, 96), data=st.binary(min_size=1, max_size=96))
def test_nothing_but_writeback_can_be_written(offset: int, data: bytes) -> None:
    device = disk_of()
    before = device.read_config()
    device.write_config(offset, data)
    after = bytearray(device.read_config())
    if offset <= 32 < offset + len(data):
        assert after[32] == (data[32 - offset] != 0)
    after[32] = before[32]
    assert after == before


@pytest.mark.clause("blk.device.device-op.10")
@pytest.mark.parametrize("can", [True, False])
def test_may_unmap_follows_the_medium(can: bool) -> None:
    config = virtio_blk_config.decode(disk_of(Disk(can_deallocate=can)).read_config())
    assert config.write_zeroes_may_unmap == can


@pytest.mark.clause("blk.device.device-op.1")
@pytest.mark.clause("blk.device.device-op.2")
def test_resize_notifies_and_counts_for_requests_and_generation() -> None:
    told: list[int] = []

    class Ear:
        def used_buffer(self, queue_index: int) -> None: ...

        def configuration_change(self) -> None:
            told.append(1)

    device = BlkDevice(Disk())
    end = DeviceEnd(device, GuestMemory.of(4096), Ear())
    device.resize(SECTORS - 1)
    assert told == []  # 2.3: nobody is up yet
    end.accept_features(device.offered_features() | bit(Feature.VERSION_1))
    for status in (DeviceStatus.ACKNOWLEDGE, 3, 11, 15):
        end.write_status(status)
    assert end.read_config(0, 8) == (SECTORS - 1).to_bytes(8, "little")
    before = end.config_generation
    device.resize(4)
    assert told == [1]
    assert end.config_generation != before
    assert end.read_config(0, 8) == (4).to_bytes(8, "little")
    assert ask(device, head(BlkRequest.IN, 4), 513)[0] == IOERR
    assert ask(device, head(BlkRequest.IN, 3), 513)[0] == OK
    end.reset()
    device.resize(8)
    assert told == [1]


def test_queues_are_named_by_the_specification() -> None:
    assert [q.name for q in BlkDevice(Disk(), num_queues=3).queues()] == ["requestq1", "requestq2", "requestq3"]
    assert BlkDevice(Disk(), num_queues=3).offered_features() & bit(BlkFeature.MQ)
    assert not BlkDevice(Disk()).offered_features() & bit(BlkFeature.MQ)


@pytest.mark.parametrize(
    "wrong",
    [
        {"serial": b"x" * 21},
        {"serial": b"\xff"},
        {"features": bit(BlkFeature.ZONED)},
        {"features": bit(BlkFeature.BARRIER)},
        {"blk_size": 256},
        {"blk_size": 1000},
        {"geometry": {"heads": 256}},
        {"topology": {"no_such_field": 1}},
        {"size_max": 1 << 32},
    ],
)
def test_values_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        BlkDevice(NullMedium(1 << 20), **wrong)  # type: ignore[arg-type]


def test_seg_max_leaves_room_for_header_and_status() -> None:
    device = BlkDevice(Disk(), queue_size=16)
    assert virtio_blk_config.decode(device.read_config()).seg_max == 14
