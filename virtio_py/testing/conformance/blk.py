"""The block device (5.2). What is written to is read before, and put back: the last blocks of the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from attrs import evolve

from virtio_py.devices.blk.layout import (
    ID_BYTES,
    SECTOR,
    BlkFeature,
    BlkRequest,
    BlkStatus,
    ZonedModel,
    config_length,
    virtio_blk_config,
    virtio_blk_discard_write_zeroes,
    virtio_blk_lifetime,
)
from virtio_py.spec import bit
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.kinds import BLOCK, blk_request, blk_status, host_managed
from virtio_py.testing.conformance.parts import Answer, recut
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Failed, Rejected, Skipped

_F, _R, _S = BlkFeature, BlkRequest, BlkStatus
_SECTORS: Final = BLOCK // SECTOR
_PATTERN: Final = bytes(range(251)) * 17
_RANGES: Final = {_F.DISCARD: _R.DISCARD, _F.WRITE_ZEROES: _R.WRITE_ZEROES, _F.SECURE_ERASE: _R.SECURE_ERASE}
_ZONE_REQUESTS: Final = (15, 16, 18, 20, 22, 24, 26)


def _config(rig: Rig) -> Any:
    """The configuration, as far as the offer brings it into being; the rest is 0."""
    length = config_length(rig.offered)
    return virtio_blk_config.decode(rig.need_config(length).ljust(virtio_blk_config.size, b"\0"))


def _scratch(rig: Rig) -> int:
    """The sector of the disk's last whole block. Raises Skipped where nothing may be written."""
    if rig.offered & bit(_F.RO):
        raise Skipped("the disk is read-only")
    if rig.offered & bit(_F.ZONED) and _config(rig).zoned.model != ZonedModel.NONE:
        raise Skipped("a disk with zones is not written to just anywhere")
    capacity: int = _config(rig).capacity
    if capacity < 2 * _SECTORS:
        raise Skipped(f"a disk of {capacity} sectors has no room for this")
    return (capacity // _SECTORS - 1) * _SECTORS


def _read(rig: Rig, sector: int, sectors: int = _SECTORS) -> bytes:
    request = blk_request(_R.IN, sector, room=sectors * SECTOR, status=_S.OK)
    return rig.ask(request).data[:-1]


def _write(rig: Rig, sector: int, data: bytes) -> None:
    rig.ask(blk_request(_R.OUT, sector, data, status=_S.OK))


@contextmanager
def _borrowed(rig: Rig) -> Iterator[int]:
    """A block that may be written to; what was in it is put back, if the device is still there."""
    sector = _scratch(rig)
    before = _read(rig, sector)
    yield sector
    _write(rig, sector, before)


def _status(answer: Answer) -> int:
    return answer.data[-1]


def _segment(sector: int, sectors: int, unmap: int = 0, reserved: int = 0) -> bytes:
    flags = {"unmap": unmap, "reserved": reserved}
    return virtio_blk_discard_write_zeroes.encode(sector=sector, num_sectors=sectors, flags=flags)


# Features and configuration


@check("blk.device.device-init.1", devices="blk", layouts="split")
def flush_is_offered(rig: Rig) -> None:
    """VIRTIO_BLK_F_FLUSH is offered."""
    rig.should(bool(rig.offered & bit(_F.FLUSH)), "VIRTIO_BLK_F_FLUSH is not offered")


@check("blk.device.device-init.2", devices="blk", layouts="split", needs=(_F.CONFIG_WCE,))
def config_wce_comes_with_flush(rig: Rig) -> None:
    """VIRTIO_BLK_F_CONFIG_WCE is offered with VIRTIO_BLK_F_FLUSH only."""
    rig.require(bool(rig.offered & bit(_F.FLUSH)), "VIRTIO_BLK_F_CONFIG_WCE is offered without VIRTIO_BLK_F_FLUSH")


@check("blk.device.device-init.3", devices="blk", layouts="split", needs=(_F.CONFIG_WCE,))
def writeback_begins_at_0_without_flush(rig: Rig) -> None:
    """With VIRTIO_BLK_F_CONFIG_WCE and without VIRTIO_BLK_F_FLUSH, writeback begins at 0."""
    rig.start(_F.CONFIG_WCE)
    rig.require(_config(rig).writeback == 0, f"writeback is {_config(rig).writeback}")


@check("blk.device.device-init.4", devices="blk", layouts="split")
def padding_is_zero(rig: Rig) -> None:
    """unused0 and unused1 of the configuration are zero."""
    violations = virtio_blk_config.violations(_config(rig))
    rig.require(not violations, "; ".join(f"{v.field} is not zero" for v in violations))


@check("blk.device.device-op.10", devices="blk", layouts="split", needs=(_F.WRITE_ZEROES,))
def may_unmap_is_a_truth_value(rig: Rig) -> None:
    """write_zeroes_may_unmap is 0 or 1."""
    value = _config(rig).write_zeroes_may_unmap
    rig.should(value in (0, 1), f"write_zeroes_may_unmap is {value}")


# Data


@check("split.device.message-framing.1", "packed.device.scatter-gather-support.1", devices="blk")
def what_is_written_is_read(rig: Rig) -> None:
    """What is written is what is read, however header, data and status are cut."""
    rig.start()
    with _borrowed(rig) as sector:
        data = _PATTERN[:BLOCK]
        for step, (cut, joined) in enumerate([((16,), False), ((7, 9, 1000, 96), False), ((1, 500, 515), True)]):
            rotated = data[step:] + data[:step]
            request = blk_request(_R.OUT, sector, rotated, status=_S.OK)
            rig.ask(evolve(request, readable=recut(request.readable, *cut)))
            read = blk_request(_R.IN, sector, room=BLOCK, status=_S.OK)
            answer = rig.ask(evolve(read, writable=(BLOCK + 1,) if joined else (1, BLOCK - 7, 6, 1)))
            if answer.data[:-1] != rotated:
                raise Failed(f"what was written in pieces {cut} reads otherwise")


@check("blk.driver.device-op.2", devices="blk")
def beyond_the_capacity(rig: Rig) -> None:
    """What lies behind the capacity is not read or written."""
    rig.start()
    capacity = _config(rig).capacity
    for kind, sector in ((_R.IN, capacity), (_R.IN, (1 << 64) - 1), (_R.IN, capacity - 1), (_R.OUT, capacity)):
        data, room = (bytes(2 * SECTOR), 0) if kind == _R.OUT else (b"", 2 * SECTOR)
        status = _status(rig.ask(blk_request(kind, sector, data, room)))
        rig.require(status != _S.OK, f"{kind.name} of two sectors at {sector} of {capacity} ends with OK")
    rig.good()
    raise Rejected("each such request has an error status")


@check("blk.driver.device-op.6", devices="blk")
def half_a_sector(rig: Rig) -> None:
    """Data that are not whole sectors are refused, or served as far as they go."""
    rig.start()
    rig.refusable(blk_request(_R.IN, 0, room=SECTOR + 100, status=_S.OK), "a read of a sector and 100 bytes")


@check("blk.driver.device-op.8", devices="blk")
def the_id_has_20_bytes(rig: Rig) -> None:
    """GET_ID is answered with 20 bytes, or is not supported."""
    rig.start()
    answer = rig.ask(blk_request(_R.GET_ID, room=ID_BYTES))
    if _status(answer) == _S.UNSUPP:
        raise Skipped("GET_ID is not supported")
    rig.require(_status(answer) == _S.OK, f"GET_ID ends with {blk_status(_status(answer))}")
    rig.require(b"\xa5" not in answer.data[:-1].partition(b"\0")[0], "the ID is not written")


@check("blk.device.device-op.15", devices="blk", needs=(_F.FLUSH,))
def a_flush_is_answered(rig: Rig) -> None:
    """A flush after writes ends with OK."""
    rig.start(_F.FLUSH)
    for _ in range(3):
        rig.ask(blk_request(_R.FLUSH, status=_S.OK))
    with _borrowed(rig) as sector:
        _write(rig, sector, _PATTERN[:BLOCK])
        rig.ask(blk_request(_R.FLUSH, status=_S.OK))


@check("blk.device.device-op.3", "blk.device.device-op.4", devices="blk", needs=(_F.RO,))
def a_read_only_disk_is_not_written(rig: Rig) -> None:
    """A write to a read-only disk ends with IOERR and changes nothing, whether RO was accepted or not."""
    for features in ((), (_F.RO,)):
        rig.start(*features)
        before = _read(rig, 0)
        status = _status(rig.ask(blk_request(_R.OUT, 0, bytes(a ^ 0xFF for a in before))))
        rig.require(status == _S.IOERR, f"the write ends with {blk_status(status)}", "blk.device.device-op.3")
        rig.require(_read(rig, 0) == before, "the disk has changed", "blk.device.device-op.4")


# Ranges


@check("blk.device.device-op.5", devices="blk")
def unknown_flags_are_unsupported(rig: Rig) -> None:
    """A segment with an unknown flag ends with UNSUPP."""
    offered = [feature for feature in _RANGES if rig.offered & bit(feature)]
    if not offered:
        raise Skipped("none of DISCARD, WRITE_ZEROES and SECURE_ERASE is offered")
    rig.start(*offered)
    with _borrowed(rig) as sector:
        for feature in offered:
            for reserved in (1, 1 << 30):
                data = _segment(sector, _SECTORS, reserved=reserved)
                status = _status(rig.ask(blk_request(_RANGES[feature], data=data)))
                rig.require(
                    status == _S.UNSUPP,
                    f"{feature.name} with flags {reserved << 1:#x} ends with {blk_status(status)}",
                )


@check("blk.device.device-op.6", devices="blk", needs=(_F.DISCARD,))
def discard_with_unmap_is_unsupported(rig: Rig) -> None:
    """A DISCARD with unmap set ends with UNSUPP."""
    rig.start(_F.DISCARD)
    with _borrowed(rig) as sector:
        status = _status(rig.ask(blk_request(_R.DISCARD, data=_segment(sector, _SECTORS, unmap=1))))
        rig.require(status == _S.UNSUPP, f"it ends with {blk_status(status)}")


@check("blk.device.device-op.7", devices="blk", needs=(_F.DISCARD,))
def a_discard_is_answered(rig: Rig) -> None:
    """A DISCARD within the limits ends with OK, and the sectors can be read and written."""
    rig.start(_F.DISCARD)
    with _borrowed(rig) as sector:
        rig.ask(blk_request(_R.DISCARD, data=_segment(sector, _SECTORS), status=_S.OK))
        _read(rig, sector)
        _write(rig, sector, _PATTERN[:BLOCK])
        rig.require(_read(rig, sector) == _PATTERN[:BLOCK], "what is written to a discarded block reads otherwise")


@check("blk.device.device-op.9", devices="blk", needs=(_F.WRITE_ZEROES,))
def zeroes_are_read(rig: Rig) -> None:
    """After WRITE_ZEROES, with unmap or without, zeroes are read, there and nowhere else."""
    rig.start(_F.WRITE_ZEROES)
    with _borrowed(rig) as sector:
        for unmap in (0, 1):
            _write(rig, sector, _PATTERN[:BLOCK])
            data = _segment(sector, _SECTORS, unmap)
            rig.ask(blk_request(_R.WRITE_ZEROES, data=data, status=_S.OK))
            rig.require(not any(_read(rig, sector)), f"with unmap {unmap} something else than zeroes is read")


@check("blk.driver.device-op.7", devices="blk", needs=(_F.WRITE_ZEROES,))
def a_range_that_is_cut_off(rig: Rig) -> None:
    """A WRITE_ZEROES of a segment and a half is refused, and nothing else happens."""
    rig.start(_F.WRITE_ZEROES)
    sector = _scratch(rig)
    data = _segment(sector, 0) + bytes(8)
    rig.refusable(blk_request(_R.WRITE_ZEROES, data=data, status=_S.OK), "a segment and a half")


@check("blk.driver.device-op.11", devices="blk", needs=(_F.WRITE_ZEROES,))
def too_many_segments(rig: Rig) -> None:
    """More segments than max_write_zeroes_seg are refused, or served."""
    rig.start(_F.WRITE_ZEROES)
    count = _config(rig).max_write_zeroes_seg + 1
    if count > 4096:
        raise Skipped(f"{count - 1} segments are allowed")
    with _borrowed(rig) as sector:
        data = _segment(sector, 1) * count
        rig.refusable(blk_request(_R.WRITE_ZEROES, data=data, status=_S.OK), f"{count} segments")


@check("blk.device.device-op.19", devices="blk", needs=(_F.LIFETIME,))
def a_lifetime_is_no_reserved_value(rig: Rig) -> None:
    """GET_LIFETIME has no reserved values."""
    rig.start(_F.LIFETIME)
    answer = rig.ask(blk_request(_R.GET_LIFETIME, room=virtio_blk_lifetime.size, status=_S.OK))
    violations = virtio_blk_lifetime.violations(virtio_blk_lifetime.decode(answer.data[:-1]))
    rig.require(not violations, "; ".join(f"{v.field} is reserved" for v in violations))


@check("blk.driver.device-op.12", devices="blk", needs=(_F.CONFIG_WCE,))
def writeback_can_be_switched(rig: Rig) -> None:
    """writeback reads as it was written, and writes are served in both modes."""
    rig.start(_F.CONFIG_WCE, _F.FLUSH)
    rig.need_config()
    before = _config(rig).writeback
    with _borrowed(rig) as sector:
        for value in (0, 1, before):
            rig.transport.write_config(virtio_blk_config.offset("writeback"), bytes([value]))
            rig.require(_config(rig).writeback == value, f"writeback is not {value}, which was written to it")
            _write(rig, sector, _PATTERN[:BLOCK])
            rig.require(_read(rig, sector) == _PATTERN[:BLOCK], f"data are lost with writeback {value}")


# Zones


@check("blk-zoned.device.device-op.1", devices="blk")
def without_zones_no_zone_requests(rig: Rig) -> None:
    """Without VIRTIO_BLK_F_ZONED the requests of zones end with UNSUPP."""
    if host_managed(rig):
        raise Skipped("a host-managed disk needs VIRTIO_BLK_F_ZONED")
    rig.start()
    for kind in _ZONE_REQUESTS:
        room = BLOCK if kind == _R.ZONE_REPORT else 0
        data = bytes(BLOCK) if kind == _R.ZONE_APPEND else b""
        status = _status(rig.ask(blk_request(kind, 0, data, room)))
        rig.require(status == _S.UNSUPP, f"{_R(kind).name} ends with {blk_status(status)}")


@check("blk-zoned.device.device-init.4", devices="blk", layouts="split", needs=(_F.ZONED,))
def a_host_managed_disk_needs_zones(rig: Rig) -> None:
    """A host-managed disk does not take a driver without VIRTIO_BLK_F_ZONED."""
    if not host_managed(rig):
        raise Skipped("the disk is not host-managed")
    rig.refuses(rig.choose() & ~bit(_F.ZONED), "a choice without VIRTIO_BLK_F_ZONED")


@check("blk-zoned.device.device-init.8", "blk-zoned.device.device-init.16", devices="blk", needs=(_F.ZONED,))
def zones_are_described(rig: Rig) -> None:
    """A zoned disk has a zone size, and its padding is zero."""
    rig.negotiate(rig.choose(_F.ZONED))
    zoned = _config(rig).zoned
    if zoned.model == ZonedModel.NONE:
        raise Skipped("the disk has no zones")
    rig.require(zoned.zone_sectors > 0, "zone_sectors is 0", "blk-zoned.device.device-init.8")
    rig.require(not any(zoned.unused2), "unused2 is not zero", "blk-zoned.device.device-init.16")
