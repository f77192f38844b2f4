"""Features, numbers and structures of the block device (5.2), under the specification's names.

Sectors are 512 bytes everywhere in the protocol, whatever `blk_size` says. All integers are little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, NamedTuple

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.records import Record, Register, Rule

SECTOR: Final = 512
"""Bytes in the unit in which the protocol counts."""

ID_BYTES: Final = 20
"""Bytes of the device ID string that GET_ID fetches, NUL-padded; a string this long has no NUL."""


class BlkFeature(IntEnum):
    """Positions of the feature bits VIRTIO_BLK_F_* (5.2.3)."""

    BARRIER = 0  # legacy
    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    SCSI = 7  # legacy
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    LIFETIME = 15
    SECURE_ERASE = 16
    ZONED = 17


LEGACY_FLUSH_OUT: Final = 5
"""VIRTIO_BLK_T_FLUSH_OUT, which was another FLUSH."""


class BlkRequest(IntEnum):
    """The `type` of a request, VIRTIO_BLK_T_* (5.2.6). Bit 0 does not tell the direction: SECURE_ERASE sends data."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14
    ZONE_APPEND = 15
    ZONE_REPORT = 16
    ZONE_OPEN = 18
    ZONE_CLOSE = 20
    ZONE_FINISH = 22
    ZONE_RESET = 24
    ZONE_RESET_ALL = 26


class BlkStatus(IntEnum):
    """The status byte, VIRTIO_BLK_S_* (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    ZONE_INVALID_CMD = 3
    ZONE_UNALIGNED_WP = 4
    ZONE_OPEN_RESOURCE = 5
    ZONE_ACTIVE_RESOURCE = 6


class ZonedModel(IntEnum):
    """`zoned.model`, VIRTIO_BLK_Z_* (5.2.4)."""

    NONE = 0
    HM = 1
    HA = 2


class ZoneType(IntEnum):
    """`z_type`, VIRTIO_BLK_ZT_* (5.2.6)."""

    CONV = 1
    SWR = 2
    SWP = 3


class ZoneState(IntEnum):
    """`z_state`, VIRTIO_BLK_ZS_* (5.2.6)."""

    NOT_WP = 0
    EMPTY = 1
    IOPEN = 2
    EOPEN = 3
    CLOSED = 4
    RDONLY = 13
    FULL = 14
    OFFLINE = 15


class PreEolInfo(IntEnum):
    """`pre_eol_info`, VIRTIO_BLK_PRE_EOL_INFO_*: how many of the reserved blocks are consumed (5.2.6)."""

    UNDEFINED = 0
    NORMAL = 1
    WARNING = 2
    URGENT = 3


LIFETIME_EXCEEDED: Final = 11
"""The largest lifetime estimate; 1 to 10 are tenths of the lifetime, 0 is "undefined", what is above is reserved."""

_OPERATION: Final = "5.2.6 Device Operation"
_CONFIG: Final = "5.2.4 Device configuration layout"

virtio_blk_req = Record(
    "virtio_blk_req", Struct("type" / Int32ul, "reserved" / Int32ul, "sector" / Int64ul), cite=_OPERATION
)
"""The fixed head of a request. `data` follows it, readable or writable, and `status` is the last writable byte."""

virtio_blk_req_za = Record("virtio_blk_req_za", Struct("append_sector" / Int64ul, "status" / Int8ul), cite=_OPERATION)
"""The writable tail of a ZONE_APPEND request, which has a whole sector number in front of its status."""

_flags = Register(Int32ul, unmap=1, reserved=31)

virtio_blk_discard_write_zeroes = Record(
    "virtio_blk_discard_write_zeroes",
    Struct("sector" / Int64ul, "num_sectors" / Int32ul, "flags" / _flags),
    cite=_OPERATION,
    rules=(Rule("blk.device.device-op.5", "flags", lambda s: s.flags.reserved == 0, "an unknown flag is set"),),
)
"""One segment of DISCARD, WRITE_ZEROES or SECURE_ERASE."""

virtio_blk_lifetime = Record(
    "virtio_blk_lifetime",
    Struct("pre_eol_info" / Int16ul, "device_lifetime_est_typ_a" / Int16ul, "device_lifetime_est_typ_b" / Int16ul),
    cite=_OPERATION,
    rules=(
        Rule(
            "blk.device.device-op.19",
            "pre_eol_info",
            lambda v: v.pre_eol_info <= PreEolInfo.URGENT,
            "a reserved value",
        ),
        Rule(
            "blk.device.device-op.19",
            "device_lifetime_est_typ_a",
            lambda v: v.device_lifetime_est_typ_a <= LIFETIME_EXCEEDED,
            "a reserved value",
        ),
        Rule(
            "blk.device.device-op.19",
            "device_lifetime_est_typ_b",
            lambda v: v.device_lifetime_est_typ_b <= LIFETIME_EXCEEDED,
            "a reserved value",
        ),
    ),
)

virtio_blk_geometry = Record(
    "virtio_blk_geometry", Struct("cylinders" / Int16ul, "heads" / Int8ul, "sectors" / Int8ul), cite=_CONFIG
)

virtio_blk_topology = Record(
    "virtio_blk_topology",
    Struct(
        "physical_block_exp" / Int8ul,
        "alignment_offset" / Int8ul,
        "min_io_size" / Int16ul,
        "opt_io_size" / Int32ul,
    ),
    cite=_CONFIG,
)

virtio_blk_zoned_characteristics = Record(
    "virtio_blk_zoned_characteristics",
    Struct(
        "zone_sectors" / Int32ul,
        "max_open_zones" / Int32ul,
        "max_active_zones" / Int32ul,
        "max_append_sectors" / Int32ul,
        "write_granularity" / Int32ul,
        "model" / Int8ul,
        "unused2" / Array(3, Int8ul),
    ),
    cite=_CONFIG,
)

virtio_blk_config = Record(
    "virtio_blk_config",
    Struct(
        "capacity" / Int64ul,
        "size_max" / Int32ul,
        "seg_max" / Int32ul,
        "geometry" / virtio_blk_geometry.layout,
        "blk_size" / Int32ul,
        "topology" / virtio_blk_topology.layout,
        "writeback" / Int8ul,
        "unused0" / Int8ul,
        "num_queues" / Int16ul,
        "max_discard_sectors" / Int32ul,
        "max_discard_seg" / Int32ul,
        "discard_sector_alignment" / Int32ul,
        "max_write_zeroes_sectors" / Int32ul,
        "max_write_zeroes_seg" / Int32ul,
        "write_zeroes_may_unmap" / Int8ul,
        "unused1" / Array(3, Int8ul),
        "max_secure_erase_sectors" / Int32ul,
        "max_secure_erase_seg" / Int32ul,
        "secure_erase_sector_alignment" / Int32ul,
        "zoned" / virtio_blk_zoned_characteristics.layout,
    ),
    cite=_CONFIG,
    rules=(
        Rule("blk.device.device-init.4", "unused0", lambda c: c.unused0 == 0, "padding is not zero"),
        Rule("blk.device.device-init.4", "unused1", lambda c: not any(c.unused1), "padding is not zero"),
    ),
)
"""Sizes `size_max`, `blk_size` and `write_granularity` are in bytes, `*_sectors` and `*_alignment` in sectors."""

CONFIG_FIELDS: Final[Mapping[BlkFeature, tuple[str, ...]]] = {
    BlkFeature.SIZE_MAX: ("size_max",),
    BlkFeature.SEG_MAX: ("seg_max",),
    BlkFeature.GEOMETRY: ("geometry",),
    BlkFeature.BLK_SIZE: ("blk_size",),
    BlkFeature.TOPOLOGY: ("topology",),
    BlkFeature.CONFIG_WCE: ("writeback",),
    BlkFeature.MQ: ("num_queues",),
    BlkFeature.DISCARD: ("max_discard_sectors", "max_discard_seg", "discard_sector_alignment"),
    BlkFeature.WRITE_ZEROES: ("max_write_zeroes_sectors", "max_write_zeroes_seg", "write_zeroes_may_unmap"),
    BlkFeature.SECURE_ERASE: (
        "max_secure_erase_sectors",
        "max_secure_erase_seg",
        "secure_erase_sector_alignment",
    ),
    BlkFeature.ZONED: ("zoned",),
}
"""Which configuration fields exist by which feature; `capacity` always does. A field whose feature is not offered
reads as zero, and may lie behind the end of an older device's configuration."""


def config_length(features: int) -> int:
    """How many bytes of the configuration hold all the fields that these features bring into being."""
    names = [name for feature, group in CONFIG_FIELDS.items() if features >> feature & 1 for name in group]
    return max(map(virtio_blk_config.end, ["capacity", *names]))


class RangeLimits(NamedTuple):
    """What one DISCARD, WRITE_ZEROES or SECURE_ERASE request may hold: sectors a segment, and segments.

    alignment: in sectors, a hint for where to split; WRITE_ZEROES has none.
    """

    max_sectors: int = (1 << 31) // SECTOR
    max_seg: int = 32
    alignment: int = 1


virtio_blk_zone_report = Record(
    "virtio_blk_zone_report", Struct("nr_zones" / Int64ul, "reserved" / Bytes(56)), cite=_OPERATION
)
"""The head of a zone report; `nr_zones` whole descriptors follow it."""

virtio_blk_zone_descriptor = Record(
    "virtio_blk_zone_descriptor",
    Struct(
        "z_cap" / Int64ul,
        "z_start" / Int64ul,
        "z_wp" / Int64ul,
        "z_type" / Int8ul,
        "z_state" / Int8ul,
        "reserved" / Bytes(38),
    ),
    cite=_OPERATION,
)
