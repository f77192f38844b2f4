"""The block device (5.2), the half that serves: a `Medium` behind it, sectors of 512 bytes in front.

    Device ID       2
    Virtqueues      0 … N-1  requestq1 … requestqN; N is 1, or with VIRTIO_BLK_F_MQ num_queues
    Configuration   virtio_blk_config; only `writeback` is writable, and only with VIRTIO_BLK_F_CONFIG_WCE
    Operation       header (readable), data (readable or writable), status (the last writable byte)

A request that fails is answered with a status, and the next one is served. Only a chain without a byte for the
status cannot be answered: RequestError, which becomes DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from attrs import Attribute, define, field, validators

from virtio_py.device import Device, DeviceEnd, QueueSpec
from virtio_py.devices.blk.layout import (
    CONFIG_FIELDS,
    ID_BYTES,
    LEGACY_FLUSH_OUT,
    SECTOR,
    BlkFeature,
    BlkRequest,
    BlkStatus,
    RangeLimits,
    virtio_blk_config,
    virtio_blk_req,
)
from virtio_py.devices.blk.media import Medium
from virtio_py.devices.blk.requests import REQUESTS, Lifetime
from virtio_py.devices.blk.zone_parts import ZONES_PART, adopt_zones, least_zones_value, zones_value
from virtio_py.devices.blk.zone_requests import ZONE_REQUESTS, check_zones, is_host_managed
from virtio_py.devices.blk.zones import Zones
from virtio_py.errors import RequestError, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId, Feature, bit, mask

ALL_FEATURES: Final = mask(
    BlkFeature.SIZE_MAX,
    BlkFeature.SEG_MAX,
    BlkFeature.GEOMETRY,
    BlkFeature.RO,
    BlkFeature.BLK_SIZE,
    BlkFeature.FLUSH,
    BlkFeature.TOPOLOGY,
    BlkFeature.CONFIG_WCE,
    BlkFeature.MQ,
    BlkFeature.DISCARD,
    BlkFeature.WRITE_ZEROES,
    BlkFeature.LIFETIME,
    BlkFeature.SECURE_ERASE,
)
"""What this device can offer: all but the legacy bits. VIRTIO_BLK_F_ZONED is offered by having zones."""

_WRITEBACK: Final = virtio_blk_config.offset("writeback")
WRITEBACK_PART: Final = (0x200, bytes(8))
"""Type and selector of our own device part: `writeback`."""


def _check_serial(device: BlkDevice, attribute: Attribute[bytes], value: bytes) -> None:
    if len(value) > ID_BYTES or not value.isascii():
        raise UsageError(f"the device ID string {value!r} is not ASCII of at most {ID_BYTES} bytes")


def _check_features(device: BlkDevice, attribute: Attribute[int], value: int) -> None:
    if value & ~ALL_FEATURES:
        raise UsageError(f"features {value & ~ALL_FEATURES:#x} are not this device's to offer")
    if value & bit(BlkFeature.CONFIG_WCE) and not value & bit(BlkFeature.FLUSH):
        raise UsageError("VIRTIO_BLK_F_CONFIG_WCE cannot be offered without VIRTIO_BLK_F_FLUSH")


def _check_block(device: BlkDevice, attribute: Attribute[int], value: int) -> None:
    if value < SECTOR or value & (value - 1):
        raise UsageError(f"a block size of {value} is not a power of 2 from {SECTOR} on")


@define(eq=False)
class BlkDevice(Device):
    """A disk. Sizes are bytes unless they are called sectors. Raises UsageError for a value that cannot be.

    features:   mask of what may be offered; a bit is offered where there is also something behind it
    writeback:  the cache mode after a reset: True writeback, False writethrough
    size_max:   bytes in a descriptor of data, 0 for no limit;  seg_max: descriptors of data in a request, 0 likewise
    blk_size:   what the driver should use as its block; the protocol's unit stays 512
    geometry, topology: fields of virtio_blk_geometry and virtio_blk_topology, or None for none
    secure_erase: limits, or None where the medium cannot promise that erased data are gone
    lifetime:   the medium's wear, or None where it keeps no account of it
    zones:      of the whole medium, which then keeps its size; or None. They outlast resets, like the medium
    """

    device_id: ClassVar[DeviceId] = DeviceId.BLOCK
    medium: Medium
    serial: bytes = field(default=b"", validator=_check_serial, kw_only=True)
    features: int = field(default=ALL_FEATURES, validator=_check_features, kw_only=True)
    writeback: bool = field(default=True, kw_only=True)
    num_queues: int = field(default=1, validator=[validators.ge(1), validators.lt(1 << 16)], kw_only=True)
    queue_size: int = field(default=256, kw_only=True)
    size_max: int = field(default=0, kw_only=True)
    seg_max: int = field(default=254, kw_only=True)
    blk_size: int = field(default=SECTOR, validator=_check_block, kw_only=True)
    geometry: Mapping[str, int] | None = field(default=None, kw_only=True)
    topology: Mapping[str, int] | None = field(default=None, kw_only=True)
    discard: RangeLimits = field(default=RangeLimits(), kw_only=True)
    write_zeroes: RangeLimits = field(default=RangeLimits(), kw_only=True)
    secure_erase: RangeLimits | None = field(default=None, kw_only=True)
    lifetime: Lifetime | None = field(default=None, kw_only=True)
    zones: Zones | None = field(default=None, kw_only=True)
    _negotiated: int = field(default=0, init=False)
    _cached: bool = field(init=False)
    _end: DeviceEnd | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._cached = self.writeback
        if self.zones is not None:
            most = self.size_max * self._seg_max if self.size_max and self.seg_max else None
            check_zones(self.zones, self.medium.size // SECTOR, self.secure_erase, most)
        # A value that its field cannot hold is to be refused here, not when a driver comes and reads.
        self.read_config()

    # What the device is

    @property
    def capacity(self) -> int:
        """Sectors; of zones, the number stands."""
        return self.medium.size // SECTOR if self.zones is None else self.zones.capacity

    @property
    def _seg_max(self) -> int:
        # A chain has a header and a status too, and is no longer than the queue, in an indirect table neither.
        return min(self.seg_max, max(self.queue_size - 2, 1))

    @property
    def read_only(self) -> bool:
        """Whether VIRTIO_BLK_F_RO is offered: it counts, accepted or not."""
        return self.medium.read_only

    @property
    def _sources(self) -> Mapping[BlkFeature, object]:
        """What stands behind each feature; where it is falsy, the feature is not offered."""
        writable = not self.read_only
        anywhere = writable and not is_host_managed(self.zones)
        return {
            BlkFeature.SIZE_MAX: self.size_max,
            BlkFeature.SEG_MAX: self.seg_max,
            BlkFeature.GEOMETRY: self.geometry,
            BlkFeature.RO: self.read_only,
            BlkFeature.BLK_SIZE: True,
            BlkFeature.FLUSH: True,
            BlkFeature.TOPOLOGY: self.topology,
            BlkFeature.CONFIG_WCE: writable,
            BlkFeature.MQ: self.num_queues > 1,
            BlkFeature.DISCARD: anywhere,
            BlkFeature.WRITE_ZEROES: anywhere,
            BlkFeature.LIFETIME: self.lifetime,
            BlkFeature.SECURE_ERASE: writable and self.secure_erase,
            BlkFeature.ZONED: self.zones is not None,
        }

    def offered_features(self) -> int:
        """The mask of the features that are allowed and have something behind them; RO and ZONED always, if so."""
        behind = mask(*(feature for feature, source in self._sources.items() if source))
        return behind & (self.features | mask(BlkFeature.RO, BlkFeature.ZONED))

    def refuse_features(self, features: int) -> str | None:
        """Host-managed zones are of no use to a driver that does not know them (5.2.5.2)."""
        if is_host_managed(self.zones) and not features & bit(BlkFeature.ZONED):
            return "VIRTIO_BLK_F_ZONED is not accepted, and the zones are host-managed"
        return None

    def queues(self) -> Sequence[QueueSpec]:
        """requestq1 … requestqN."""
        return [QueueSpec(f"requestq{n + 1}", self.queue_size) for n in range(self.num_queues)]

    def limits_of(self, feature: BlkFeature) -> RangeLimits:
        """The limits that the configuration states for DISCARD, WRITE_ZEROES or SECURE_ERASE."""
        return {
            BlkFeature.DISCARD: self.discard,
            BlkFeature.WRITE_ZEROES: self.write_zeroes,
            BlkFeature.SECURE_ERASE: self.secure_erase or RangeLimits(),
        }[feature]

    # Configuration

    def read_config(self) -> bytes:
        """The structure in its full length of 1.4; fields whose features are not offered are zero."""
        values = self._config_values()
        offered = self.offered_features()
        absent = [name for feature, names in CONFIG_FIELDS.items() if not offered & bit(feature) for name in names]
        return virtio_blk_config.encode(**{name: value for name, value in values.items() if name not in absent})

    def _config_values(self) -> dict[str, Any]:
        erase = self.limits_of(BlkFeature.SECURE_ERASE)
        return {
            "capacity": self.capacity,
            "size_max": self.size_max,
            "seg_max": self._seg_max,
            "geometry": self.geometry or {},
            "blk_size": self.blk_size,
            "topology": self.topology or {},
            "writeback": self._cached,
            "num_queues": self.num_queues,
            "max_discard_sectors": self.discard.max_sectors,
            "max_discard_seg": self.discard.max_seg,
            "discard_sector_alignment": self.discard.alignment,
            "max_write_zeroes_sectors": self.write_zeroes.max_sectors,
            "max_write_zeroes_seg": self.write_zeroes.max_seg,
            "write_zeroes_may_unmap": self.medium.can_deallocate,
            "max_secure_erase_sectors": erase.max_sectors,
            "max_secure_erase_seg": erase.max_seg,
            "secure_erase_sector_alignment": erase.alignment,
            "zoned": self._zoned_characteristics(),
        }

    def _zoned_characteristics(self) -> dict[str, Any]:
        # A driver looks at the model before it chooses its features; one that has declined zones sees none.
        declined = self._negotiated and not self.has(BlkFeature.ZONED)
        return {} if self.zones is None or declined else self.zones.characteristics()

    def write_config(self, offset: int, data: bytes) -> None:
        """`writeback` is the one field that a driver may write."""
        at = _WRITEBACK - offset
        if 0 <= at < len(data) and self.has(BlkFeature.CONFIG_WCE):
            self._cached = data[at] != 0

    def resize(self, sectors: int) -> None:
        """Changes the capacity, and tells the driver (5.2.6.2). Raises OSError if the medium cannot follow, UsageError
        for a disk of zones."""
        if self.zones is not None:
            raise UsageError("a disk of zones keeps its size")
        self.medium.resize(sectors * SECTOR)
        self.capacity_changed()

    def capacity_changed(self) -> None:
        """The medium has another size than before: a configuration change."""
        if self._end is not None:
            self._end.configuration_changed()

    # The life of a driver

    def negotiated(self, features: int) -> None:
        """The cache mode follows from the features; CONFIG_WCE without FLUSH begins as writethrough (5.2.5.2)."""
        self._negotiated = features
        self._cached = self.writeback and not (self.has(BlkFeature.CONFIG_WCE) and not self.has(BlkFeature.FLUSH))

    def has(self, feature: BlkFeature) -> bool:
        """Whether a feature was negotiated."""
        return bool(self._negotiated & bit(feature))

    @property
    def writethrough(self) -> bool:
        """Whether a write is committed before it completes. There are three modes, not two (5.2.6.2):

        - CONFIG_WCE negotiated: what the driver wrote to `writeback`, at any time
        - FLUSH without it: writeback, the driver flushes
        - neither, although FLUSH was offered: writethrough, for the driver has no way of asking

        Where FLUSH was not even offered, the device has said that it does not care.
        """
        if self.has(BlkFeature.CONFIG_WCE):
            return not self._cached
        return bool(self.offered_features() & bit(BlkFeature.FLUSH)) and not self.has(BlkFeature.FLUSH)

    def parts(self) -> Mapping[tuple[int, bytes], bytes]:
        """The cache mode, where the driver can have changed it, and the zones. The specification has no parts of block
        devices."""
        cached = {WRITEBACK_PART: bytes([self._cached])} if self.has(BlkFeature.CONFIG_WCE) else {}
        return cached if self.zones is None else cached | {ZONES_PART: zones_value(self.zones)}

    def takes_part(self, part_type: int, selector: bytes, value: bytes) -> bool:
        """Whether it is the cache mode, or zones that could be this disk's."""
        if (part_type, selector) == ZONES_PART:
            return self.zones is not None and len(value) >= least_zones_value(self.zones)
        return (part_type, selector) == WRITEBACK_PART and value in (b"\0", b"\1")

    def set_part(self, part_type: int, selector: bytes, value: bytes) -> None:
        """Sets the cache mode, or the zones. Raises MessageError for zones that cannot be."""
        if (part_type, selector) == WRITEBACK_PART:
            self._cached = value != b"\0"
        elif self.zones is not None:
            adopt_zones(self.zones, value)

    def activate(self, end: DeviceEnd, features: int) -> None:
        """DRIVER_OK: from now on a change of the capacity has somebody to hear of it."""
        self._end = end

    def reset(self) -> None:
        """The cache mode is as it was made; what the medium holds is not touched."""
        self._negotiated, self._end, self._cached = 0, None, self.writeback

    # Requests

    @property
    def concurrent(self) -> bool:
        """A request touches its own chain and the medium; only zones are everybody's."""
        return self.zones is None and self.medium.concurrent

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serves one request. Raises RequestError for a chain that has no room for the status."""
        if not chain.writable.remaining:
            raise RequestError("a request has no byte for its status")
        status = chain.writable.split_tail(1)
        status.write(bytes([self._serve(chain)]))

    def _serve(self, chain: Chain) -> BlkStatus:
        if chain.readable.remaining < virtio_blk_req.size:
            return BlkStatus.IOERR
        # `reserved` is not looked at: it was the priority once, and Linux still fills it.
        header = virtio_blk_req.decode(chain.readable.read(virtio_blk_req.size))
        legacy = not self._negotiated & bit(Feature.VERSION_1)
        # An old name of FLUSH (blk-legacy.device.device-op.2).
        kind = BlkRequest.FLUSH if legacy and header.type == LEGACY_FLUSH_OUT else header.type
        serve = (REQUESTS if self.zones is None else ZONE_REQUESTS).get(kind)
        if serve is None:
            return BlkStatus.UNSUPP
        try:
            status = serve(self, header.sector, chain)
            # A driver that has declined zones knows none of their answers.
            return BlkStatus.IOERR if status > BlkStatus.UNSUPP and not self.has(BlkFeature.ZONED) else status
        except OSError:
            # The driver is told by the status; what went wrong in detail is between the medium and its owner.
            return BlkStatus.IOERR
