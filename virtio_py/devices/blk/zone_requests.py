"""What a disk with zones does with requests (5.2.6): the zoned types, and reading and writing inside zones.

Where VIRTIO_BLK_F_ZONED was not negotiated (host-aware disks only), zones are kept all the same, and the seven types
are UNSUPP. The functions are of the shape that `requests` describes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from virtio_py.devices.blk.layout import (
    SECTOR,
    BlkFeature,
    BlkRequest,
    BlkStatus,
    RangeLimits,
    ZonedModel,
    virtio_blk_req_za,
    virtio_blk_zone_descriptor,
    virtio_blk_zone_report,
)
from virtio_py.devices.blk.requests import REQUESTS, Disk, Span, answer, span_of, stored
from virtio_py.devices.blk.zone_states import Zone
from virtio_py.devices.blk.zones import Zones
from virtio_py.errors import UsageError
from virtio_py.rings.chain import Chain, Stream

_APPEND_SECTOR: Final = virtio_blk_req_za.offset("status") - virtio_blk_req_za.offset("append_sector")

ZonedServe = Callable[[Disk, Zones, int, Chain], BlkStatus]


def _zoned(serve: ZonedServe, feature_needed: bool = True) -> Callable[[Disk, int, Chain], BlkStatus]:
    def serve_zones(disk: Disk, sector: int, chain: Chain) -> BlkStatus:
        if disk.zones is None or (feature_needed and not disk.has(BlkFeature.ZONED)):
            return BlkStatus.UNSUPP
        return serve(disk, disk.zones, sector, chain)

    return serve_zones


# Data


def _read(disk: Disk, zones: Zones, sector: int, chain: Chain) -> BlkStatus:
    span = span_of(disk, sector, chain.writable.remaining)
    if span is None:
        return BlkStatus.IOERR
    count = span.length // SECTOR
    if refusal := zones.refusal_of_read(sector, count):
        return refusal
    room = Stream(chain.writable.views())
    for run in zones.runs(sector, count):
        views = room.views(run.sectors * SECTOR)
        if run.written:
            disk.medium.read_into(run.sector * SECTOR, views)
        else:
            # Whatever the medium has there is from before the zone's last reset.
            for view in views:
                view[:] = bytes(len(view))
        room.advance(run.sectors * SECTOR)
    chain.writable.advance(span.length)
    return BlkStatus.OK


def _write(disk: Disk, zones: Zones, sector: int, chain: Chain) -> BlkStatus:
    span = span_of(disk, sector, chain.readable.remaining)
    if disk.read_only or span is None:
        return BlkStatus.IOERR
    if refusal := zones.refusal_of_write(sector, span.length // SECTOR):
        return refusal
    return _store(disk, zones, span, chain)


def _store(disk: Disk, zones: Zones, span: Span, chain: Chain) -> BlkStatus:
    """Stores what was not refused. The write pointer moves last: a medium that fails leaves it where it is."""
    sector, count = span.offset // SECTOR, span.length // SECTOR
    for gap in zones.gaps(sector, count):
        disk.medium.write_zeroes(gap.sector * SECTOR, gap.sectors * SECTOR, False)
    disk.medium.write_from(span.offset, chain.readable.views())
    status = stored(disk)
    zones.written(sector, count)
    if disk.writethrough:
        zones.commit()
    return status


def _append(disk: Disk, zones: Zones, sector: int, chain: Chain) -> BlkStatus:
    span = span_of(disk, sector, chain.readable.remaining)
    refusal = _refusal_of_append(disk, zones, sector, chain)
    zone = zones.at(sector)
    if refusal or span is None or zone is None:
        return refusal or BlkStatus.ZONE_INVALID_CMD
    at = zone.wp
    status = _store(disk, zones, span._replace(offset=at * SECTOR), chain)
    # Where the data went stands right in front of the status, whatever room there is before it.
    chain.writable.split_tail(_APPEND_SECTOR).write(at.to_bytes(_APPEND_SECTOR, "little"))
    return status


def _refusal_of_append(disk: Disk, zones: Zones, sector: int, chain: Chain) -> BlkStatus:
    count, rest = divmod(chain.readable.remaining, SECTOR)
    if disk.read_only or rest or chain.writable.remaining < _APPEND_SECTOR:
        return BlkStatus.IOERR
    return zones.refusal_of_append(sector, count)


# Zones


def _report(disk: Disk, zones: Zones, sector: int, chain: Chain) -> BlkStatus:
    room = chain.writable.remaining - virtio_blk_zone_report.size
    if room < 0:
        return BlkStatus.IOERR
    reported = zones.report(sector, room // virtio_blk_zone_descriptor.size)
    if reported is None:
        return BlkStatus.ZONE_INVALID_CMD
    head = virtio_blk_zone_report.encode(nr_zones=len(reported), reserved=bytes(56))
    return answer(chain, head + b"".join(map(_descriptor, reported)))


def _descriptor(zone: Zone) -> bytes:
    return virtio_blk_zone_descriptor.encode(
        z_cap=zone.capacity,
        z_start=zone.start,
        z_wp=zone.pointer,
        z_type=zone.type,
        z_state=zone.state,
        reserved=bytes(38),
    )


def _manage(request: BlkRequest) -> ZonedServe:
    def serve(disk: Disk, zones: Zones, sector: int, chain: Chain) -> BlkStatus:
        if disk.read_only:
            return BlkStatus.IOERR
        status = zones.manage(request, sector)
        zones.commit()
        return status

    return serve


def _reset_all(disk: Disk, zones: Zones, sector: int, chain: Chain) -> BlkStatus:
    if disk.read_only:
        return BlkStatus.IOERR
    zones.reset_all()
    zones.commit()
    return BlkStatus.OK


ZONE_REQUESTS: Final[Mapping[int, Callable[[Disk, int, Chain], BlkStatus]]] = {
    **REQUESTS,
    BlkRequest.IN: _zoned(_read, feature_needed=False),
    BlkRequest.OUT: _zoned(_write, feature_needed=False),
    BlkRequest.ZONE_APPEND: _zoned(_append),
    BlkRequest.ZONE_REPORT: _zoned(_report),
    BlkRequest.ZONE_OPEN: _zoned(_manage(BlkRequest.ZONE_OPEN)),
    BlkRequest.ZONE_CLOSE: _zoned(_manage(BlkRequest.ZONE_CLOSE)),
    BlkRequest.ZONE_FINISH: _zoned(_manage(BlkRequest.ZONE_FINISH)),
    BlkRequest.ZONE_RESET: _zoned(_manage(BlkRequest.ZONE_RESET)),
    BlkRequest.ZONE_RESET_ALL: _zoned(_reset_all),
}
"""`requests.REQUESTS` for a disk with zones."""


def check_zones(zones: Zones, sectors: int, erase: RangeLimits | None, most_bytes: int | None) -> None:
    """Whether zones go with the rest of a device: its sectors, its limits for SECURE_ERASE, and the product of its
    seg_max and size_max in bytes, where it states both. Raises UsageError."""
    wrong = {
        f"the zones are of {zones.capacity} sectors, the medium is of {sectors}": zones.capacity != sectors,
        "secure erase is aligned to zones, and takes whole ones": erase is not None
        and (erase.alignment % zones.zone_sectors != 0 or erase.max_sectors < zones.zone_sectors),
        "max_append does not exceed seg_max * size_max": most_bytes is not None
        and zones.max_append * SECTOR > most_bytes,
    }
    for rule, broken in wrong.items():
        if broken:
            raise UsageError(rule)


def is_host_managed(zones: Zones | None) -> bool:
    """Whether only a driver that knows zones can use the disk. It has no requests that change sectors out of sequence,
    DISCARD and WRITE_ZEROES: the driver must not even accept the former there (5.2.5.1)."""
    return zones is not None and zones.model == ZonedModel.HM
