"""The block driver for disks with zones (5.2.6); one without zones it drives as any other. Positions are sectors.

driver = ZonedBlkDriver(transport).start()
driver.zoned.zone_sectors                None instead of `zoned` if the disk has no zones
driver.report_zones()                    [ZoneInfo(start=0, ..., type=ZoneType.SWR, state=ZoneState.EMPTY, ...), ...]
driver.append(0, bytes(4096))            the sector where the data went
driver.reset_zone(0)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Final, NamedTuple

from attrs import evolve, frozen

from virtio_py.devices.blk.batch import Ask, BatchingBlkDriver, Ticket
from virtio_py.devices.blk.driver import BlkDriver, BlkInfo, BlkUnsupported
from virtio_py.devices.blk.layout import (
    SECTOR,
    BlkFeature,
    BlkRequest,
    RangeLimits,
    ZonedModel,
    ZoneState,
    ZoneType,
    virtio_blk_config,
    virtio_blk_req_za,
    virtio_blk_zone_descriptor,
    virtio_blk_zone_report,
    virtio_blk_zoned_characteristics,
)
from virtio_py.devices.blk.zone_states import WRITABLE
from virtio_py.errors import NegotiationError, RequestError, UsageError
from virtio_py.spec import bit

_ZONED: Final = virtio_blk_config.offset("zoned")
_MODEL: Final = _ZONED + virtio_blk_zoned_characteristics.offset("model")
_APPEND_SECTOR: Final = virtio_blk_req_za.offset("status")
"""Bytes of `append_sector`, which is all that the tail has in front of its status."""


@frozen
class ZonedInfo:
    """What the configuration says of zones: sectors, numbers of zones (0: no limit), write_granularity in bytes."""

    model: ZonedModel
    zone_sectors: int
    max_open_zones: int
    max_active_zones: int
    max_append_sectors: int
    write_granularity: int

    @property
    def grain(self) -> int:
        """The write granularity in sectors."""
        return self.write_granularity // SECTOR


@frozen
class ZoneInfo:
    """What the device reports of a zone: sectors. write_pointer: None in a state that has none."""

    start: int
    size: int
    capacity: int
    type: ZoneType
    state: ZoneState
    write_pointer: int | None


class _Writable(NamedTuple):
    """What never changes of a zone: whether it is written in sequence, and the sector behind the last writable one."""

    sequential: bool
    end: int


class ZonedBlkDriver(BatchingBlkDriver):
    """A disk's driver that knows zones. Raises what `BlkDriver` does; a BlkError's status may be one of zones.

    A write or read may span zones, and is cut at their edges. Writing a Sequential Write Required zone elsewhere than
    at its write pointer is the caller's affair, and the device's to refuse (ZONE_UNALIGNED_WP).

    models: which models a subclass can handle. Without HM, a host-managed disk is not started (FAILED); without HA, a
    host-aware one is an ordinary disk.
    """

    known_features = BlkDriver.known_features | bit(BlkFeature.ZONED)
    models: ClassVar[frozenset[ZonedModel]] = frozenset(ZonedModel)
    zoned: ZonedInfo | None = None

    # Initialisation

    def negotiate(self) -> None:
        """Step 4, in which the model has a say (5.2.5.1)."""
        wanted = self.wanted
        self.wanted &= ~self._unwanted()
        try:
            super().negotiate()
        finally:
            self.wanted = wanted

    def _unwanted(self) -> int:
        """The mask of the features that the model of zones makes useless or forbids."""
        if not self.transport.device_features() & self.wanted & bit(BlkFeature.ZONED):
            return 0
        model = self.read_config_bytes(_MODEL, 1)[0]
        if model == ZonedModel.HM:
            if ZonedModel.HM not in self.models:
                raise NegotiationError("the disk is host-managed", clause="blk-zoned.driver.device-init.4")
            return bit(BlkFeature.DISCARD)
        return 0 if model in self.models else bit(BlkFeature.ZONED)

    def refresh(self) -> BlkInfo:
        """Reads the configuration again, `zoned` too. Raises NegotiationError for zones that cannot be used."""
        info = super().refresh()
        self.zoned = self._read_zoned() if self.has(BlkFeature.ZONED) else None
        if self.zoned is not None and info.secure_erase is not None:
            # Each part has to be a multiple of zones.
            zone, limits = self.zoned.zone_sectors, info.secure_erase
            whole = RangeLimits(limits.max_sectors - limits.max_sectors % zone, limits.max_seg, zone)
            self.info = evolve(info, secure_erase=whole)
        return self.info

    def _read_zoned(self) -> ZonedInfo | None:
        record = virtio_blk_zoned_characteristics
        fields = record.as_dict(record.decode(self.read_config_bytes(_ZONED, record.size)))
        if fields["model"] == ZonedModel.NONE:
            return None
        if fields["model"] not in self.models:
            raise NegotiationError(f"the model of zones has become {fields['model']}")
        zoned = ZonedInfo(ZonedModel(fields.pop("model")), **{k: v for k, v in fields.items() if k != "unused2"})
        if not zoned.zone_sectors or not zoned.grain or zoned.write_granularity % SECTOR:
            raise NegotiationError(f"no zones can be written as {zoned}")
        return zoned

    def ready(self) -> None:
        """Step 8: a request of data is a multiple of the write granularity, too."""
        super().ready()
        self._writable: dict[int, _Writable] = {}
        if self.zoned is not None:
            self._most -= self._most % self.zoned.grain
            if not self._most:
                raise NegotiationError(f"no request holds {self.zoned.write_granularity} bytes")

    # Data

    def append(self, sector: int, data: bytes, queue: int = 0, timeout: float | None = None) -> int:
        """Stores data at the write pointer of the zone that begins with `sector`; returns where that was.

        At most `max_append_sectors`, and a multiple of the write granularity: one request, or UsageError.
        """
        self._check_append(sector, data)
        [answer] = self._request(BlkRequest.ZONE_APPEND, sector, data, [_APPEND_SECTOR], queue, timeout)
        return self._placed(sector, data, answer)

    @staticmethod
    def appending(sector: int, data: bytes) -> Ask:
        """`append`, to be submitted; `appended` tells where the data went."""
        return Ask(BlkRequest.ZONE_APPEND, sector, data)

    def appended(self, ticket: Ticket) -> int:
        """Where a completed append has put its data. Raises as `Ticket.result`."""
        return self._placed(ticket.ask.sector, ticket.ask.data, ticket.result())

    def _placed(self, sector: int, data: bytes, answer: bytes) -> int:
        at = int.from_bytes(answer, "little")
        if not sector <= at <= sector + self._zones(BlkRequest.ZONE_APPEND).zone_sectors - len(data) // SECTOR:
            self.fail()
            raise RequestError(f"data for the zone at {sector} went to sector {at}")
        return at

    def _check_append(self, sector: int, data: bytes) -> None:
        zoned = self._zones(BlkRequest.ZONE_APPEND)
        if not zoned.max_append_sectors:
            raise BlkUnsupported(BlkRequest.ZONE_APPEND, "the device's max_append_sectors is 0")
        self._check_start(sector)
        self._check_writable()
        most = min(zoned.max_append_sectors, self._most)
        if len(data) % zoned.write_granularity or not 0 < len(data) <= most * SECTOR:
            raise UsageError(f"{len(data)} bytes are not 1 to {most} sectors, of a multiple of {zoned.grain}")

    def _room(self, ask: Ask) -> list[int]:
        if ask.request != BlkRequest.ZONE_APPEND:
            return super()._room(ask)
        self._check_append(ask.sector, ask.data)
        return [_APPEND_SECTOR]

    def _pieces(self, sector: int, count: int) -> Iterator[tuple[int, int]]:
        for at, part in self._by_zone(sector, count):
            yield from super()._pieces(at, part)

    def _by_zone(self, sector: int, count: int) -> Iterator[tuple[int, int]]:
        """A range cut at the edges of zones."""
        while count:
            part = (
                count if self.zoned is None else min(count, self.zoned.zone_sectors - sector % self.zoned.zone_sectors)
            )
            yield sector, part
            sector, count = sector + part, count - part

    def _check_write(self, sector: int, count: int) -> None:
        super()._check_write(sector, count)
        if self.zoned is None:
            return
        grain = self.zoned.grain
        for at, part in self._by_zone(sector, count):
            zone = self._writable_part(at - at % self.zoned.zone_sectors)
            if zone.sequential and (at % grain or part % grain):
                raise UsageError(f"sectors [{at}, +{part}) are not multiples of the write granularity, {grain}")
            if part > zone.end - at:
                raise UsageError(f"sectors [{at}, +{part}) do not end where their zone does, at {zone.end}")

    def _writable_part(self, start: int) -> _Writable:
        # Neither type nor capacity ever changes: each zone is asked for once.
        if start not in self._writable:
            [zone] = self.report_zones(start, 1)
            self._writable[start] = _Writable(zone.type != ZoneType.CONV, zone.start + zone.capacity)
        return self._writable[start]

    def secure_erase(self, ranges: Iterable[tuple[int, int]], queue: int = 0, timeout: float | None = None) -> None:
        """As `BlkDriver.secure_erase`; the ranges are whole zones of full size, which are EMPTY afterwards."""
        wanted = list(ranges)
        if self.zoned is not None and any(n % self.zoned.zone_sectors for pair in wanted for n in pair):
            raise UsageError(f"what is erased is whole zones of {self.zoned.zone_sectors} sectors")
        super().secure_erase(wanted, queue, timeout)

    # Zones

    def report_zones(
        self, sector: int = 0, most: int | None = None, queue: int = 0, timeout: float | None = None
    ) -> list[ZoneInfo]:
        """The zones from the one that holds `sector` on, all or at most so many."""
        size = self._zones(BlkRequest.ZONE_REPORT).zone_sectors
        self._check_range(sector, 1)
        start = sector - sector % size
        number = -(-(self.info.capacity - start) // size)
        left = number if most is None else min(most, number)
        zones: list[ZoneInfo] = []
        with self.within(timeout):
            while left:
                zones += (some := self._report(start, left, queue))
                start, left = start + len(some) * size, left - len(some)
        return zones

    def _report(self, start: int, most: int, queue: int) -> list[ZoneInfo]:
        head, each = virtio_blk_zone_report, virtio_blk_zone_descriptor
        wanted = min(most, (self._most * SECTOR - head.size) // each.size)
        room = self._cut(head.size + wanted * each.size)
        answer = b"".join(self._request(BlkRequest.ZONE_REPORT, start, room=room, queue=queue))
        number = head.decode(answer).nr_zones
        if not 0 < number <= wanted:
            self.fail()
            raise RequestError(f"{number} zones are reported where {wanted} were asked for", queue=queue)
        return [self._zone_info(answer, n, start, queue) for n in range(number)]

    def _zone_info(self, answer: bytes, n: int, start: int, queue: int) -> ZoneInfo:
        zone_sectors = self._zones(BlkRequest.ZONE_REPORT).zone_sectors
        start += n * zone_sectors
        each = virtio_blk_zone_descriptor
        raw = each.decode(answer, virtio_blk_zone_report.size + n * each.size)
        size = min(zone_sectors, self.info.capacity - start)
        valid = raw.z_type in ZoneType.__members__.values() and raw.z_state in ZoneState.__members__.values()
        moving = raw.z_state in WRITABLE
        sound = (
            valid
            and raw.z_start == start
            and raw.z_cap <= size
            and (raw.z_type == ZoneType.CONV) == (raw.z_state == ZoneState.NOT_WP)
            and (not moving or start <= raw.z_wp <= start + raw.z_cap)
        )
        if not sound:
            self.fail()
            raise RequestError(f"the zone at {start} is reported as {each.as_dict(raw)}", queue=queue)
        pointer = raw.z_wp if moving else None
        return ZoneInfo(start, size, raw.z_cap, ZoneType(raw.z_type), ZoneState(raw.z_state), pointer)

    def reset_all_zones(self, queue: int = 0, timeout: float | None = None) -> None:
        """Makes all zones EMPTY that can be."""
        self._zones(BlkRequest.ZONE_RESET_ALL)
        self._check_writable()
        self._request(BlkRequest.ZONE_RESET_ALL, queue=queue, timeout=timeout)

    def open_zone(self, sector: int, queue: int = 0, timeout: float | None = None) -> None:
        """Makes the zone that begins with `sector` EOPEN: it stays open until it is closed, full or reset."""
        self._manage(BlkRequest.ZONE_OPEN, sector, queue, timeout)

    def close_zone(self, sector: int, queue: int = 0, timeout: float | None = None) -> None:
        """Makes an open zone CLOSED, or EMPTY if nothing was written to it."""
        self._manage(BlkRequest.ZONE_CLOSE, sector, queue, timeout)

    def finish_zone(self, sector: int, queue: int = 0, timeout: float | None = None) -> None:
        """Makes the zone FULL; what was not written of it reads as the device likes."""
        self._manage(BlkRequest.ZONE_FINISH, sector, queue, timeout)

    def reset_zone(self, sector: int, queue: int = 0, timeout: float | None = None) -> None:
        """Makes the zone EMPTY."""
        self._manage(BlkRequest.ZONE_RESET, sector, queue, timeout)

    def _manage(self, request: BlkRequest, sector: int, queue: int, timeout: float | None) -> None:
        self._zones(request)
        self._check_start(sector)
        self._check_writable()
        self._request(request, sector, queue=queue, timeout=timeout)

    def _zones(self, request: BlkRequest) -> ZonedInfo:
        if self.zoned is None:
            raise BlkUnsupported(request, "the disk has no zones")
        return self.zoned

    def _check_start(self, sector: int) -> None:
        zone_sectors = self._zones(BlkRequest.ZONE_REPORT).zone_sectors
        self._check_range(sector, 1)
        if sector % zone_sectors:
            raise UsageError(f"no zone begins with sector {sector}")
