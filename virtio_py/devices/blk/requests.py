"""What a block device does with each type of request: one function a type, and the table that finds it (5.2.6).

A function is given the disk, the `sector` of the header and the chain, which stands behind the header and is already
parted from its status byte. It returns the status. An OSError of the medium is the caller's to turn into IOERR.
Everything is told by the number of bytes, nothing by how the driver cut them into descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from attrs import field, frozen, validators

from virtio_py.devices.blk.layout import (
    ID_BYTES,
    LIFETIME_EXCEEDED,
    SECTOR,
    BlkFeature,
    BlkRequest,
    BlkStatus,
    PreEolInfo,
    RangeLimits,
    virtio_blk_discard_write_zeroes,
    virtio_blk_lifetime,
)
from virtio_py.devices.blk.media import Medium
from virtio_py.devices.blk.zones import Zones
from virtio_py.rings.chain import Chain


@frozen
class Lifetime:
    """The wear of a medium that keeps account of it, as eMMC and UFS do. Raises ValueError for a reserved value.

    estimate_a, estimate_b: wear of SLC and MLC cells in tenths of the lifetime; 0 is undefined, 11 exceeded.
    """

    pre_eol_info: PreEolInfo = field(default=PreEolInfo.UNDEFINED, converter=PreEolInfo)
    estimate_a: int = field(default=0, validator=[validators.ge(0), validators.le(LIFETIME_EXCEEDED)])
    estimate_b: int = field(default=0, validator=[validators.ge(0), validators.le(LIFETIME_EXCEEDED)])


class Disk(Protocol):
    """What a request needs to know of its device."""

    medium: Medium
    serial: bytes
    lifetime: Lifetime | None
    zones: Zones | None

    @property
    def capacity(self) -> int:
        """Sectors."""

    @property
    def read_only(self) -> bool:
        """Whether VIRTIO_BLK_F_RO is offered."""

    @property
    def writethrough(self) -> bool:
        """Whether a write must be committed before its request completes."""

    def has(self, feature: BlkFeature) -> bool:
        """Whether a feature was negotiated."""

    def limits_of(self, feature: BlkFeature) -> RangeLimits:
        """The limits that the configuration states for the requests of a feature."""


class Span(NamedTuple):
    """A range of the medium, in bytes, and whether its storage may be given back."""

    offset: int
    length: int
    unmap: bool = False


def span_of(disk: Disk, sector: int, length: int) -> Span | None:
    """The bytes from `sector` on, or None if they are not whole sectors inside the capacity."""
    # Compared as sectors and by subtraction: no sum of the driver's numbers, which a faster language would wrap.
    count, rest = divmod(length, SECTOR)
    capacity = disk.capacity
    if rest or count > capacity or sector > capacity - count:
        return None
    return Span(sector * SECTOR, length)


def _read(disk: Disk, sector: int, chain: Chain) -> BlkStatus:
    span = span_of(disk, sector, chain.writable.remaining)
    if span is None:
        return BlkStatus.IOERR
    disk.medium.read_into(span.offset, chain.writable.views())
    # Only now do the bytes count as written: a read that failed half-way has a used length of 0 (2.7.8).
    chain.writable.advance(span.length)
    return BlkStatus.OK


def _write(disk: Disk, sector: int, chain: Chain) -> BlkStatus:
    span = span_of(disk, sector, chain.readable.remaining)
    if disk.read_only or span is None:
        return BlkStatus.IOERR
    disk.medium.write_from(span.offset, chain.readable.views())
    return stored(disk)


def stored(disk: Disk) -> BlkStatus:
    """What a write has to do before it completes."""
    if disk.writethrough:
        commit(disk)
    return BlkStatus.OK


def commit(disk: Disk) -> None:
    """What was stored is persistent on return; what zones have become of it, after it."""
    disk.medium.flush()
    if disk.zones is not None:
        disk.zones.commit()


def _flush(disk: Disk, sector: int, chain: Chain) -> BlkStatus:
    if not disk.has(BlkFeature.FLUSH):
        return BlkStatus.UNSUPP
    commit(disk)
    return BlkStatus.OK


def _get_id(disk: Disk, sector: int, chain: Chain) -> BlkStatus:
    return answer(chain, disk.serial.ljust(ID_BYTES, b"\0"))


def _get_lifetime(disk: Disk, sector: int, chain: Chain) -> BlkStatus:
    if disk.lifetime is None or not disk.has(BlkFeature.LIFETIME):
        return BlkStatus.UNSUPP
    wear = disk.lifetime
    return answer(
        chain,
        virtio_blk_lifetime.encode(
            pre_eol_info=wear.pre_eol_info,
            device_lifetime_est_typ_a=wear.estimate_a,
            device_lifetime_est_typ_b=wear.estimate_b,
        ),
    )


def answer(chain: Chain, data: bytes) -> BlkStatus:
    """Puts `data` into the chain, if there is room."""
    if chain.writable.remaining < len(data):
        return BlkStatus.IOERR
    chain.writable.write(data)
    return BlkStatus.OK


class _RangeKind(NamedTuple):
    """A type of request whose data are segments: its feature, whether `unmap` means something, and what it does."""

    feature: BlkFeature
    knows_unmap: bool
    apply: Callable[[Medium, Span], None]


def _ranges(kind: _RangeKind) -> Callable[[Disk, int, Chain], BlkStatus]:
    def serve(disk: Disk, sector: int, chain: Chain) -> BlkStatus:
        # On a read-only disk these are writes, and fail as such, although their features are not even offered.
        if not disk.read_only and not disk.has(kind.feature):
            return BlkStatus.UNSUPP
        return _serve_segments(disk, kind, _segment_bytes(disk, kind, chain))

    return serve


def _segment_bytes(disk: Disk, kind: _RangeKind, chain: Chain) -> bytes | None:
    """The segments' bytes, read once; None if they are no whole segments, or more than the limit."""
    # Linux takes the direction of a request from bit 0 of its type, and so offers SECURE_ERASE's segments as
    # device-writable. They are there to be read all the same.
    linux = kind.feature == BlkFeature.SECURE_ERASE and not chain.readable.remaining
    source = chain.writable if linux else chain.readable
    count, rest = divmod(source.remaining, virtio_blk_discard_write_zeroes.size)
    if rest or not 0 < count <= disk.limits_of(kind.feature).max_seg:
        return None
    return b"".join(source.views())


def _serve_segments(disk: Disk, kind: _RangeKind, data: bytes | None) -> BlkStatus:
    if data is None:
        return BlkStatus.IOERR
    record = virtio_blk_discard_write_zeroes
    segments = [record.decode(data, at) for at in range(0, len(data), record.size)]
    if any(s.flags.reserved or (s.flags.unmap and not kind.knows_unmap) for s in segments):
        return BlkStatus.UNSUPP
    spans = [_segment_span(disk, kind, s) for s in segments]
    # All are judged before the first is carried out, so that a refused request has changed nothing.
    if disk.read_only or None in spans:
        return BlkStatus.IOERR
    whole = [span for span in spans if span is not None]
    if refusal := _refusal_of_zones(disk, kind, whole):
        return refusal
    for span in whole:
        kind.apply(disk.medium, span)
        if disk.zones is not None and _resets(disk, kind):
            disk.zones.erased(span.offset // SECTOR, span.length // SECTOR)
    return stored(disk)


def _refusal_of_zones(disk: Disk, kind: _RangeKind, spans: Sequence[Span]) -> BlkStatus:
    """Why the zones of a disk do not let this be done to their content, or OK."""
    if disk.zones is None:
        return BlkStatus.OK
    judge = disk.zones.refusal_of_erase if _resets(disk, kind) else disk.zones.refusal_of_change
    answers = (judge(span.offset // SECTOR, span.length // SECTOR) for span in spans)
    return next(filter(None, answers), BlkStatus.OK)


def _resets(disk: Disk, kind: _RangeKind) -> bool:
    """Whether this is SECURE_ERASE where it is a reset of zones, too."""
    return kind.feature == BlkFeature.SECURE_ERASE and disk.has(BlkFeature.ZONED)


def _segment_span(disk: Disk, kind: _RangeKind, segment: Any) -> Span | None:
    span = span_of(disk, segment.sector, segment.num_sectors * SECTOR)
    if span is None or segment.num_sectors > disk.limits_of(kind.feature).max_sectors:
        return None
    return span._replace(unmap=bool(segment.flags.unmap))


_DISCARD: Final = _RangeKind(BlkFeature.DISCARD, False, lambda medium, s: medium.discard(s.offset, s.length))
_WRITE_ZEROES: Final = _RangeKind(
    BlkFeature.WRITE_ZEROES, True, lambda medium, s: medium.write_zeroes(s.offset, s.length, s.unmap)
)
# `unmap` "is only used in write zeroes commands", and only for discard is it said to be refused.
_SECURE_ERASE: Final = _RangeKind(BlkFeature.SECURE_ERASE, True, lambda medium, s: medium.erase(s.offset, s.length))

REQUESTS: Final[Mapping[int, Callable[[Disk, int, Chain], BlkStatus]]] = {
    BlkRequest.IN: _read,
    BlkRequest.OUT: _write,
    BlkRequest.FLUSH: _flush,
    BlkRequest.GET_ID: _get_id,
    BlkRequest.GET_LIFETIME: _get_lifetime,
    BlkRequest.DISCARD: _ranges(_DISCARD),
    BlkRequest.WRITE_ZEROES: _ranges(_WRITE_ZEROES),
    BlkRequest.SECURE_ERASE: _ranges(_SECURE_ERASE),
}
"""Every type that is not here is UNSUPP. A disk with zones has more, in `zone_requests`."""
