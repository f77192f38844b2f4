"""The block device (5.2), the half that asks. Positions and lengths are sectors of 512 bytes, data are bytes.

driver = BlkDriver(transport).start()
driver.info.capacity                     sectors
driver.write(8, bytes(512))
driver.read(8, 1)
driver.flush()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Final

from attrs import frozen

from virtio_py.devices.blk.layout import (
    ID_BYTES,
    SECTOR,
    BlkFeature,
    BlkRequest,
    BlkStatus,
    RangeLimits,
    config_length,
    virtio_blk_config,
    virtio_blk_discard_write_zeroes,
    virtio_blk_lifetime,
    virtio_blk_req,
)
from virtio_py.driver import Driver
from virtio_py.errors import NegotiationError, RequestError, UsageError, VirtioError
from virtio_py.spec import DeviceId, bit, mask

_MOST_BYTES: Final = 1 << 18
"""Bytes of data in one request, whatever the device would take: a request lies in the arena as a whole."""

_PAGE: Final = 4096


class BlkError(VirtioError):
    """The device failed a request: `status` is its answer, a number that may be none of BlkStatus."""

    def __init__(self, request: BlkRequest, status: int, why: str = "") -> None:
        known = BlkStatus(status).name if status in BlkStatus.__members__.values() else f"status {status}"
        super().__init__(f"{request.name}: {why or known}")
        self.request = request
        self.status = status


class BlkUnsupported(BlkError):
    """The device does not have this type of request, as its features or its answer say."""

    def __init__(self, request: BlkRequest, why: str = "") -> None:
        super().__init__(request, BlkStatus.UNSUPP, why)


@frozen
class BlkInfo:
    """What the configuration says, of the fields that the negotiated features bring into being; else None.

    capacity: sectors; read_only: offered, whether accepted or not; blk_size: bytes, 512 where the device names none;
    may_unmap: whether WRITE_ZEROES may give storage back.
    """

    capacity: int
    read_only: bool
    blk_size: int
    num_queues: int
    size_max: int | None
    seg_max: int | None
    geometry: Any | None
    topology: Any | None
    discard: RangeLimits | None
    write_zeroes: RangeLimits | None
    may_unmap: bool
    secure_erase: RangeLimits | None


class BlkDriver(Driver):
    """A disk's driver. One request is under way at a time; `batch` has the driver for many.

    Every method raises BlkError when the device fails the request, BlkUnsupported when it cannot be asked,
    UsageError for a range outside the capacity or a write to a read-only disk, TimedOut after `timeout` seconds in
    all, `Driver.timeout` a request where none is given, and what else `Driver.transact` raises.

    most_queues: of the device's request queues, how many are set up
    """

    device_id = DeviceId.BLOCK
    known_features = mask(*BlkFeature) & ~mask(BlkFeature.BARRIER, BlkFeature.SCSI, BlkFeature.ZONED)
    most_queues: ClassVar[int] = 8
    info: BlkInfo

    # Initialisation

    def queue_count(self) -> int:
        """The configuration is read here for the first time, with FEATURES_OK set: `writeback` must not be before."""
        self.refresh()
        if not self.info.num_queues:
            raise NegotiationError("the device has VIRTIO_BLK_F_MQ and no queue")
        return min(self.info.num_queues, self.most_queues)

    def ready(self) -> None:
        """Step 8: settles how requests are cut. Raises NegotiationError where no sector would fit."""
        info = self.info
        # Without SEG_MAX nothing is promised beyond one descriptor of data.
        segments = min(1 if info.seg_max is None else info.seg_max, min(queue.size for queue in self.queues) - 2)
        # QEMU's qemu-storage-daemon offers SIZE_MAX and says 0; Linux takes that for a page.
        self._segment = _MOST_BYTES if info.size_max is None else min(info.size_max or _PAGE, _MOST_BYTES)
        self._most = min(max(segments, 0) * self._segment, _MOST_BYTES) // SECTOR
        if not self._most:
            raise NegotiationError(f"{segments} segments of {self._segment} bytes hold no sector")

    def refresh(self) -> BlkInfo:
        """Reads the configuration again: to be called after a configuration change notification, for the capacity."""
        # No further than the negotiated features reach: an older device's configuration may end there.
        data = self.read_config_bytes(0, config_length(self.features))
        config = virtio_blk_config.decode(data.ljust(virtio_blk_config.size, b"\0"))
        present = self._present
        self.info = BlkInfo(
            capacity=config.capacity,
            read_only=bool(self.offered & bit(BlkFeature.RO)),
            blk_size=present(BlkFeature.BLK_SIZE, config.blk_size) or SECTOR,
            num_queues=config.num_queues if self.has(BlkFeature.MQ) else 1,
            size_max=present(BlkFeature.SIZE_MAX, config.size_max),
            seg_max=present(BlkFeature.SEG_MAX, config.seg_max),
            geometry=present(BlkFeature.GEOMETRY, config.geometry),
            topology=present(BlkFeature.TOPOLOGY, config.topology),
            discard=self._limits(BlkFeature.DISCARD, config),
            write_zeroes=self._limits(BlkFeature.WRITE_ZEROES, config),
            may_unmap=bool(present(BlkFeature.WRITE_ZEROES, config.write_zeroes_may_unmap)),
            secure_erase=self._limits(BlkFeature.SECURE_ERASE, config),
        )
        return self.info

    def _present(self, feature: BlkFeature, value: Any) -> Any:
        return value if self.has(feature) else None

    def _limits(self, feature: BlkFeature, config: Any) -> RangeLimits | None:
        if not self.has(feature):
            return None
        name = feature.name.lower()
        # WRITE_ZEROES has no alignment.
        fields = (f"max_{name}_sectors", f"max_{name}_seg", f"{name}_sector_alignment")
        return RangeLimits(*(getattr(config, field, 1) for field in fields))

    # Data

    def read(self, sector: int, count: int, queue: int = 0, timeout: float | None = None) -> bytes:
        """`count` sectors from `sector` on."""
        self._check_range(sector, count)
        parts: list[bytes] = []
        with self.within(timeout):
            for at, part in self._pieces(sector, count):
                parts += self._request(BlkRequest.IN, at, room=self._cut(part * SECTOR), queue=queue)
        return b"".join(parts)

    def write(self, sector: int, data: bytes, queue: int = 0, timeout: float | None = None) -> None:
        """Stores whole sectors of data from `sector` on. Durable at once, or after `flush`: see `writeback`."""
        count, rest = divmod(len(data), SECTOR)
        if rest:
            raise UsageError(f"{len(data)} bytes are not whole sectors")
        self._check_write(sector, count)
        with self.within(timeout):
            for at, part in self._pieces(sector, count):
                start = (at - sector) * SECTOR
                self._request(BlkRequest.OUT, at, data[start : start + part * SECTOR], queue=queue)

    def flush(self, queue: int = 0, timeout: float | None = None) -> None:
        """On return, all writes that had completed are durable. Asks nothing of a device that writes through."""
        if self.has(BlkFeature.FLUSH):
            self._request(BlkRequest.FLUSH, queue=queue, timeout=timeout)
        elif self.writeback:
            raise BlkUnsupported(BlkRequest.FLUSH, "VIRTIO_BLK_F_FLUSH was not negotiated")

    def get_id(self, queue: int = 0, timeout: float | None = None) -> bytes:
        """The device ID string, at most 20 bytes, without its padding."""
        [answer] = self._request(BlkRequest.GET_ID, room=[ID_BYTES], queue=queue, timeout=timeout)
        return answer.partition(b"\0")[0]

    def get_lifetime(self, queue: int = 0, timeout: float | None = None) -> Any:
        """The fields of virtio_blk_lifetime. `virtio_blk_lifetime.violations` tells of values that are reserved."""
        self._need(BlkFeature.LIFETIME, BlkRequest.GET_LIFETIME)
        room = [virtio_blk_lifetime.size]
        [answer] = self._request(BlkRequest.GET_LIFETIME, room=room, queue=queue, timeout=timeout)
        return virtio_blk_lifetime.decode(answer)

    # Ranges

    def discard(self, ranges: Iterable[tuple[int, int]], queue: int = 0, timeout: float | None = None) -> None:
        """The content of the ranges (sector, number of sectors) is no longer needed; nothing is known of it then."""
        self._need(BlkFeature.DISCARD, BlkRequest.DISCARD)
        self._send_ranges(BlkRequest.DISCARD, self.info.discard, ranges, False, queue, timeout)

    def write_zeroes(
        self, ranges: Iterable[tuple[int, int]], unmap: bool = False, queue: int = 0, timeout: float | None = None
    ) -> None:
        """The ranges (sector, number of sectors) read as zeros; `unmap` lets the device give their storage back.

        After a BlkError nothing is known of any of the ranges."""
        self._need(BlkFeature.WRITE_ZEROES, BlkRequest.WRITE_ZEROES)
        self._send_ranges(BlkRequest.WRITE_ZEROES, self.info.write_zeroes, ranges, unmap, queue, timeout)

    def secure_erase(self, ranges: Iterable[tuple[int, int]], queue: int = 0, timeout: float | None = None) -> None:
        """The content of the ranges (sector, number of sectors) is gone for good."""
        self._need(BlkFeature.SECURE_ERASE, BlkRequest.SECURE_ERASE)
        self._send_ranges(BlkRequest.SECURE_ERASE, self.info.secure_erase, ranges, False, queue, timeout)

    def _send_ranges(
        self,
        request: BlkRequest,
        limits: RangeLimits | None,
        ranges: Iterable[tuple[int, int]],
        unmap: bool,
        queue: int,
        timeout: float | None,
    ) -> None:
        if limits is None or not (limits.max_sectors and limits.max_seg):
            raise BlkUnsupported(request, f"the device's limits are {limits}")
        wanted = list(ranges)
        self._check_writable()
        for sector, count in wanted:
            self._check_range(sector, count)
        record = virtio_blk_discard_write_zeroes
        segments = (
            record.encode(sector=at, num_sectors=part, flags={"unmap": int(unmap)})
            for sector, count in wanted
            for at, part in split_range(sector, count, limits)
        )
        together = min(limits.max_seg, self._most * SECTOR // record.size)
        with self.within(timeout):
            while batch := b"".join(islice(segments, together)):
                self._request(request, data=batch, queue=queue)

    # The cache

    @property
    def writeback(self) -> bool:
        """Whether a write may be lost until the next flush: as the device says, else as the features tell (5.2.5)."""
        if not self.has(BlkFeature.CONFIG_WCE):
            return self.has(BlkFeature.FLUSH)
        return self.transport.read_config(virtio_blk_config.offset("writeback"), 1) != b"\0"

    def set_writeback(self, on: bool) -> None:
        """Chooses the cache mode. Writes that were volatile before stay so until a flush, in either mode."""
        self._need(BlkFeature.CONFIG_WCE, BlkRequest.FLUSH)
        self.write_config_bytes(virtio_blk_config.offset("writeback"), bytes([on]))

    # What requests have in common

    def _need(self, feature: BlkFeature, request: BlkRequest) -> None:
        if not self.has(feature):
            raise BlkUnsupported(request, f"VIRTIO_BLK_F_{feature.name} was not negotiated")

    def _check_writable(self) -> None:
        if self.info.read_only:
            raise UsageError("the device is read-only")

    def _check_write(self, sector: int, count: int) -> None:
        self._check_writable()
        self._check_range(sector, count)

    def _check_range(self, sector: int, count: int) -> None:
        # A disk may have grown: one look at the configuration before refusing.
        if (
            sector < 0
            or count < 0
            or (sector + count > self.info.capacity and sector + count > self.refresh().capacity)
        ):
            raise UsageError(f"sectors [{sector}, +{count}) are not on a disk of {self.info.capacity}")

    def _pieces(self, sector: int, count: int) -> Iterator[tuple[int, int]]:
        for at in range(sector, sector + count, self._most):
            yield at, min(self._most, sector + count - at)

    def _cut(self, length: int) -> list[int]:
        """The lengths of the descriptors for `length` bytes of data."""
        return [min(self._segment, length - at) for at in range(0, length, self._segment)]

    def _request(
        self,
        request: BlkRequest,
        sector: int = 0,
        data: bytes = b"",
        room: Sequence[int] = (),
        queue: int = 0,
        timeout: float | None = None,
    ) -> list[bytes]:
        answers, length = self.transact(self.queues[queue], self._parts(request, sector, data), [*room, 1], timeout)
        self._judge(request, answers[-1][0], length, sum(room), queue)
        return answers[:-1]

    def _parts(self, request: BlkRequest, sector: int, data: bytes) -> list[bytes]:
        header = virtio_blk_req.encode(type=request, sector=sector)
        return [header, *(data[at : at + self._segment] for at in range(0, len(data), self._segment))]

    def _judge(self, request: BlkRequest, status: int, length: int, room: int, queue: int) -> None:
        if status == BlkStatus.UNSUPP:
            raise BlkUnsupported(request)
        if status != BlkStatus.OK:
            raise BlkError(request, status)
        # OK is 0, which is also what a status reads that nobody wrote, and data that nobody wrote are no data.
        # Of legacy devices no used length is believed (blk-legacy.driver.device-op.2).
        if length <= room and not self.transport.legacy_page:
            self.fail()
            raise RequestError(f"{request.name} is OK, but only {length} bytes of it were written", queue=queue)


def split_range(sector: int, count: int, limits: RangeLimits) -> Iterator[tuple[int, int]]:
    """Cuts a range into parts of at most max_sectors, where possible at multiples of the alignment."""
    while count:
        part = min(count, limits.max_sectors)
        over = (sector + part) % max(limits.alignment, 1)
        if part < count and over < part:
            part -= over
        yield sector, part
        sector, count = sector + part, count - part
