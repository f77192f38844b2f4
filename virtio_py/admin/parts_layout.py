"""The structures of device parts (2.13, 2.12.1.4): what a device's state is made of when it is carried elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.admin.layout import virtio_admin_cmd_resource_obj_cmd_hdr
from virtio_py.records import Record, RecordFamily
from virtio_py.resources import AdminStatus, Refused

DEV_PARTS_CAP: Final = 0x0000
"""VIRTIO_DEV_PARTS_CAP."""
OBJ_DEV_PARTS: Final = 0x000
"""VIRTIO_RESOURCE_OBJ_DEV_PARTS."""
STOPPED: Final = 1 << 0
"""VIRTIO_ADMIN_CMD_DEV_MODE_F_STOPPED, as a mask."""
OPTIONAL: Final = 1 << 0
"""VIRTIO_DEV_PART_F_OPTIONAL, as a mask."""


class PartsUse(IntEnum):
    """VIRTIO_RESOURCE_OBJ_DEV_PARTS_TYPE_*."""

    GET = 0
    SET = 1


class Metadata(IntEnum):
    """VIRTIO_ADMIN_CMD_DEV_PARTS_METADATA_TYPE_*."""

    SIZE = 0
    COUNT = 1
    LIST = 2


class Selection(IntEnum):
    """VIRTIO_ADMIN_CMD_DEV_PARTS_GET_TYPE_*."""

    SELECTED = 0
    ALL = 1


class PartType(IntEnum):
    """VIRTIO_DEV_PART_*, in the order in which parts are captured and restored.

    VQ_STATE is our own, at the end of the range for device types: the specification has no part for where a queue
    stands, which in a packed ring cannot be told from the memory.
    """

    DEV_FEATURES = 0x100
    DRV_FEATURES = 0x101
    PCI_COMMON_CFG = 0x102
    DEVICE_STATUS = 0x103
    VQ_CFG = 0x104
    VQ_NOTIFY_CFG = 0x105
    VQ_STATE = 0x5FF


_PARTS: Final = "2.13 Device parts"
_COMMANDS: Final = "2.12.1.4 Device parts"

virtio_dev_parts_cap = Record(
    "virtio_dev_parts_cap",
    Struct("get_parts_resource_objects_limit" / Int8ul, "set_parts_resource_objects_limit" / Int8ul),
    cite=_COMMANDS,
)
virtio_resource_obj_dev_parts = Record(
    "virtio_resource_obj_dev_parts", Struct("type" / Int8ul, "reserved" / Bytes(7)), cite=_COMMANDS
)
virtio_admin_cmd_dev_parts_data = Record(
    "virtio_admin_cmd_dev_parts_metadata_data",
    Struct("hdr" / virtio_admin_cmd_resource_obj_cmd_hdr.layout, "type" / Int8ul, "reserved" / Bytes(7)),
    cite=_COMMANDS,
)
"""Also the head of virtio_admin_cmd_dev_parts_get_data, where hdr_list follows."""
virtio_admin_cmd_dev_parts_metadata_result = Record(
    "virtio_admin_cmd_dev_parts_metadata_result", Struct("count" / Int32ul, "reserved" / Int32ul), cite=_COMMANDS
)
"""What the three readings of the union have in common: a size in bytes, or a count; the headers follow."""
virtio_admin_cmd_dev_mode_set_data = Record(
    "virtio_admin_cmd_dev_mode_set_data", Struct("flags" / Int8ul), cite=_COMMANDS
)

virtio_dev_part_hdr = Record(
    "virtio_dev_part_hdr",
    Struct(
        "part_type" / Int16ul,
        "flags" / Int8ul,
        "reserved" / Int8ul,
        "selector" / Bytes(8),
        "length" / Int32ul,
    ),
    cite=_PARTS,
)
pci_common_cfg = Record("pci_common_cfg", Struct("offset" / Int32ul, "reserved" / Int32ul), cite=_PARTS)
vq_index = Record("vq_index", Struct("index" / Int16ul, "reserved" / Bytes(6)), cite=_PARTS)
"""Two readings of `selector`; the third is the device type's."""

virtio_dev_part_features = RecordFamily(
    "virtio_dev_part_features", lambda count: Struct("feature_bits" / Array(count, Int64ul)), cite=_PARTS
)
virtio_dev_part_vq_cfg = Record(
    "virtio_dev_part_vq_cfg",
    Struct(
        "queue_size" / Int16ul,
        "vector" / Int16ul,
        "enabled" / Int16ul,
        "reserved" / Int16ul,
        "queue_desc" / Int64ul,
        "queue_driver" / Int64ul,
        "queue_device" / Int64ul,
    ),
    cite=_PARTS,
)
virtio_dev_part_vq_notify_data = Record(
    "virtio_dev_part_vq_notify_data",
    Struct("queue_notify_off" / Int16ul, "queue_notif_config_data" / Int16ul, "reserved" / Bytes(4)),
    cite=_PARTS,
)
virtio_py_dev_part_vq_state = Record(
    "virtio_py_dev_part_vq_state",
    Struct(
        "next_available" / Int16ul,
        "next_used" / Int16ul,
        "available_wrap" / Int8ul,
        "used_wrap" / Int8ul,
        "reserved" / Bytes(2),
    ),
)
"""Ours: see PartType.VQ_STATE."""

FEATURE_WORDS: Final = 2


class Part(NamedTuple):
    """A part with its value; what it is a part of is told by `type` and `selector`."""

    type: int
    selector: bytes
    value: bytes
    flags: int = 0

    @property
    def key(self) -> tuple[int, bytes]:
        """What makes two parts the same one."""
        return self.type, self.selector

    def header(self) -> bytes:
        """Its virtio_dev_part_hdr."""
        return virtio_dev_part_hdr.encode(
            part_type=self.type, flags=self.flags, selector=self.selector, length=len(self.value)
        )

    def encode(self) -> bytes:
        """Its virtio_dev_part."""
        return self.header() + self.value


def encode_parts(parts: list[Part]) -> bytes:
    """The parts, one right behind the other."""
    return b"".join(part.encode() for part in parts)


def decode_parts(data: bytes) -> Iterator[Part]:
    """The parts of a list, up to its end or to zeros: a command's length is rounded up, and may be more. Raises Refused
    for a part whose value is not all there."""
    at = 0
    while len(data) - at >= virtio_dev_part_hdr.size:
        head: Any = virtio_dev_part_hdr.decode(data, at)
        if not head.part_type:
            return
        at += virtio_dev_part_hdr.size
        if head.length > len(data) - at:
            raise Refused(AdminStatus.EINVAL, f"part {head.part_type:#x} of {head.length} bytes ends early")
        yield Part(head.part_type, head.selector, data[at : at + head.length], head.flags)
        at += head.length


def decode_headers(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The keys of a list of headers, which ends like that of parts."""
    for at in range(0, len(data) - virtio_dev_part_hdr.size + 1, virtio_dev_part_hdr.size):
        head: Any = virtio_dev_part_hdr.decode(data, at)
        if head.part_type:
            yield head.part_type, head.selector


NO_SELECTOR: Final = bytes(8)
