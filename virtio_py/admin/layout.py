"""The structures of group administration commands (2.12.1), and their numbers.

A command is a head and data, readable, then a status and a result, writable. Where two places of the text give the
opcodes of MODIFY and QUERY in opposite order, the commands' own sections count.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.pci.virtio_legacy import virtio_pci_legacy, virtio_pci_legacy_msix
from virtio_py.records import Record, RecordFamily, Rule


class GroupType(IntEnum):
    """`group_type`: what a group's members are."""

    SELF = 0
    SR_IOV = 1


class Opcode(IntEnum):
    """`opcode`, VIRTIO_ADMIN_CMD_*."""

    LIST_QUERY = 0x0
    LIST_USE = 0x1
    LEGACY_COMMON_CFG_WRITE = 0x2
    LEGACY_COMMON_CFG_READ = 0x3
    LEGACY_DEV_CFG_WRITE = 0x4
    LEGACY_DEV_CFG_READ = 0x5
    LEGACY_NOTIFY_INFO = 0x6
    CAP_ID_LIST_QUERY = 0x7
    DEVICE_CAP_GET = 0x8
    DRIVER_CAP_SET = 0x9
    RESOURCE_OBJ_CREATE = 0xA
    RESOURCE_OBJ_MODIFY = 0xB
    RESOURCE_OBJ_QUERY = 0xC
    RESOURCE_OBJ_DESTROY = 0xD
    DEV_PARTS_METADATA_GET = 0xE
    DEV_PARTS_GET = 0xF
    DEV_PARTS_SET = 0x10
    DEV_MODE_SET = 0x11


LISTS: Final = frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE})
"""What a driver may use before it has said what it will."""
CAPABILITY_COMMANDS: Final = frozenset({Opcode.CAP_ID_LIST_QUERY, Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET})
OBJECT_COMMANDS: Final = frozenset(
    {
        Opcode.RESOURCE_OBJ_CREATE,
        Opcode.RESOURCE_OBJ_MODIFY,
        Opcode.RESOURCE_OBJ_QUERY,
        Opcode.RESOURCE_OBJ_DESTROY,
    }
)
PARTS_COMMANDS: Final = OBJECT_COMMANDS | {
    Opcode.DEV_PARTS_METADATA_GET,
    Opcode.DEV_PARTS_GET,
    Opcode.DEV_PARTS_SET,
    Opcode.DEV_MODE_SET,
}
LEGACY_COMMANDS: Final = frozenset(
    {
        Opcode.LEGACY_COMMON_CFG_WRITE,
        Opcode.LEGACY_COMMON_CFG_READ,
        Opcode.LEGACY_DEV_CFG_WRITE,
        Opcode.LEGACY_DEV_CFG_READ,
    }
)
"""Sets of which a device has all or none."""

UNIT: Final = 8
"""Bytes that the length of either part of a command is a multiple of, and that a list of bits grows by."""

_COMMAND: Final = "2.12.1 Group administration commands"
_LEGACY: Final = "2.12.1.1 Legacy Interfaces"
_CAPS: Final = "2.12.1.2 Device and driver capabilities"
_OBJECTS: Final = "2.12.1.3 Device resource objects"

virtio_admin_cmd = Record(
    "virtio_admin_cmd",
    Struct(
        "opcode" / Int16ul,
        "group_type" / Int16ul,
        "reserved1" / Bytes(12),
        "group_member_id" / Int64ul,
    ),
    cite=_COMMAND,
)
"""The head of the readable part; command_specific_data follows."""
virtio_admin_cmd_status = Record(
    "virtio_admin_cmd",
    Struct("status" / Int16ul, "status_qualifier" / Int16ul, "reserved2" / Bytes(4)),
    cite=_COMMAND,
)
"""The head of the writable part; command_specific_result follows."""
virtio_admin_cmd_list = RecordFamily(
    "virtio_admin_cmd_list", lambda count: Struct("device_admin_cmd_opcodes" / Array(count, Int64ul)), cite=_COMMAND
)
virtio_admin_cmd_query_cap_id_result = RecordFamily(
    "virtio_admin_cmd_query_cap_id_result", lambda count: Struct("supported_caps" / Array(count, Int64ul)), cite=_CAPS
)

virtio_admin_cmd_cap_get_data = Record(
    "virtio_admin_cmd_cap_get_data", Struct("id" / Int16ul, "reserved" / Bytes(6)), cite=_CAPS
)
virtio_admin_cmd_cap_set_data = Record(
    "virtio_admin_cmd_cap_set_data", Struct("id" / Int16ul, "reserved" / Bytes(6)), cite=_CAPS
)
"""The head; cap_specific_data follows."""

virtio_admin_cmd_resource_obj_cmd_hdr = Record(
    "virtio_admin_cmd_resource_obj_cmd_hdr",
    Struct("type" / Int16ul, "reserved" / Bytes(2), "id" / Int32ul),
    cite=_OBJECTS,
)
virtio_admin_cmd_resource_obj_create_data = Record(
    "virtio_admin_cmd_resource_obj_create_data",
    Struct("hdr" / virtio_admin_cmd_resource_obj_cmd_hdr.layout, "flags" / Int64ul),
    cite=_OBJECTS,
)
"""The head of CREATE and, by other names, of MODIFY and QUERY; resource_obj_specific_data follows."""

virtio_admin_cmd_legacy_wr_data = Record(
    "virtio_admin_cmd_legacy_common_cfg_wr_data", Struct("offset" / Int8ul, "reserved" / Bytes(7)), cite=_LEGACY
)
"""The head; the bytes to write follow. The structure for the device-specific configuration is the same."""
virtio_admin_cmd_legacy_rd_data = Record(
    "virtio_admin_cmd_legacy_common_cfg_rd_data", Struct("offset" / Int8ul), cite=_LEGACY
)


class NotifyPlace(IntEnum):
    """`flags` of virtio_pci_legacy_notify_info: whose BAR it is."""

    END = 0
    OWNER = 1
    MEMBER = 2


NOTIFY_ENTRIES: Final = 4
virtio_pci_legacy_notify_info = Record(
    "virtio_pci_legacy_notify_info",
    Struct("flags" / Int8ul, "bar" / Int8ul, "padding" / Bytes(6), "offset" / Int64ul),
    cite=_LEGACY,
    rules=(
        Rule("admin-legacy.device.legacy-cmds.15", "offset", lambda v: v.offset % 2 == 0, "is not aligned to 2 bytes"),
        Rule("admin-legacy.device.legacy-cmds.14", "bar", lambda v: 1 <= v.bar <= 5, "is none of BAR 1 to 5"),
        Rule("admin-legacy.driver.legacy-cmds.6", "flags", lambda v: v.flags in (1, 2), "is reserved"),
    ),
)
virtio_admin_cmd_legacy_notify_info_result = Record(
    "virtio_admin_cmd_legacy_notify_info_result",
    Struct("entries" / Array(NOTIFY_ENTRIES, virtio_pci_legacy_notify_info.layout)),
    cite=_LEGACY,
)

virtio_pci_legacy_common_cfg = Record(
    "virtio_pci_legacy_common_cfg",
    Struct(*virtio_pci_legacy.layout.subcons, *virtio_pci_legacy_msix.layout.subcons),
    cite=virtio_pci_legacy.cite,
)
"""Both parts in one, as while MSI-X is enabled. (The text gives the structure no name.)"""


_LIST_MOST: Final = (1 << 16) // 8


def bits_of(numbers: Iterable[int], family: RecordFamily, name: str) -> bytes:
    """A list of 64-bit words in which the bits of `numbers` are set, as long as it takes."""
    word = sum(1 << number for number in set(numbers))
    count = -(-word.bit_length() // 64)
    return family(count).encode(**{name: [word >> 64 * n & (1 << 64) - 1 for n in range(count)]})


def numbers_of(data: bytes) -> frozenset[int]:
    """The numbers, of 16 bits at the most, whose bits are set in a list of 64-bit words."""
    return frozenset(8 * at + n for at, byte in enumerate(data[:_LIST_MOST]) if byte for n in range(8) if byte >> n & 1)
