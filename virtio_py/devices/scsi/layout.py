"""Features, numbers and structures of the SCSI host device (5.6), under the specification's names.

All integers are little-endian; what SCSI itself defines (CDBs, sense, parameter data) is big-endian and lies in `cdb`
and its neighbours. A request is cut by sizes that the driver writes to the configuration:

    readable   virtio_scsi_req_cmd, cdb[cdb_size], with T10_PI virtio_scsi_req_pi and pi_out[pi_bytesout], dataout
    writable   virtio_scsi_resp_cmd, sense[sense_size], with T10_PI pi_in[pi_bytesin], datain
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.records import Record, Rule

CONTROLQ: Final = 0
EVENTQ: Final = 1
REQUESTQ: Final = 2
"""The first request queue."""

DEFAULT_SENSE_SIZE: Final = 96
DEFAULT_CDB_SIZE: Final = 32
MAX_TARGET: Final = 255
MAX_LUN: Final = 16383


class ScsiFeature(IntEnum):
    """Positions of the feature bits VIRTIO_SCSI_F_* (5.6.3)."""

    INOUT = 0
    HOTPLUG = 1
    CHANGE = 2
    T10_PI = 3


class ScsiResponse(IntEnum):
    """The `response` byte, VIRTIO_SCSI_S_* (5.6.6.1, 5.6.6.2)."""

    OK = 0
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


FUNCTION_COMPLETE: Final = ScsiResponse.OK
"""VIRTIO_SCSI_S_FUNCTION_COMPLETE has the number of VIRTIO_SCSI_S_OK."""


class TaskAttribute(IntEnum):
    """`task_attr`, VIRTIO_SCSI_S_* (5.6.6.1)."""

    SIMPLE = 0
    ORDERED = 1
    HEAD = 2
    ACA = 3


class ControlType(IntEnum):
    """`type` of a request on controlq, VIRTIO_SCSI_T_* (5.6.6.2)."""

    TMF = 0
    AN_QUERY = 1
    AN_SUBSCRIBE = 2


class Tmf(IntEnum):
    """`subtype` of a task management function, VIRTIO_SCSI_T_TMF_* (5.6.6.2)."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


class AsyncEvent(IntFlag):
    """Bits of `event_requested` and `event_actual`, VIRTIO_SCSI_EVT_ASYNC_* (5.6.6.2)."""

    OPERATIONAL_CHANGE = 2
    POWER_MGMT = 4
    EXTERNAL_REQUEST = 8
    MEDIA_CHANGE = 16
    MULTI_HOST = 32
    DEVICE_BUSY = 64


class EventType(IntEnum):
    """`event` without its bit 31, VIRTIO_SCSI_T_* (5.6.6.3)."""

    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNC_NOTIFY = 2
    PARAM_CHANGE = 3


EVENTS_MISSED: Final = 0x80000000
"""VIRTIO_SCSI_T_EVENTS_MISSED: bit 31 of `event`."""


class ResetReason(IntEnum):
    """`reason` of a TRANSPORT_RESET, VIRTIO_SCSI_EVT_RESET_* (5.6.6.3)."""

    HARD = 0
    RESCAN = 1
    REMOVED = 2


_CONFIG: Final = "5.6.4 Device configuration layout"
_REQUEST: Final = "5.6.6.1 Device Operation: Request Queues"
_CONTROL: Final = "5.6.6.2 Device Operation: controlq"
_EVENT: Final = "5.6.6.3 Device Operation: eventq"

virtio_scsi_config = Record(
    "virtio_scsi_config",
    Struct(
        "num_queues" / Int32ul,
        "seg_max" / Int32ul,
        "max_sectors" / Int32ul,
        "cmd_per_lun" / Int32ul,
        "event_info_size" / Int32ul,
        "sense_size" / Int32ul,
        "cdb_size" / Int32ul,
        "max_channel" / Int16ul,
        "max_target" / Int16ul,
        "max_lun" / Int32ul,
    ),
    cite=_CONFIG,
    rules=(
        Rule("scsi.device.config-layout-text.3", "max_channel", lambda c: c.max_channel == 0, "it is not zero"),
        Rule("scsi.device.config-layout-text.4", "max_target", lambda c: c.max_target <= MAX_TARGET, "above 255"),
        Rule("scsi.device.config-layout-text.5", "max_lun", lambda c: c.max_lun <= MAX_LUN, "above 16383"),
    ),
)

virtio_scsi_req_cmd = Record(
    "virtio_scsi_req_cmd",
    Struct("lun" / Bytes(8), "id" / Int64ul, "task_attr" / Int8ul, "prio" / Int8ul, "crn" / Int8ul),
    cite=_REQUEST,
)
"""The readable part up to `cdb`."""

virtio_scsi_req_pi = Record(
    "virtio_scsi_req_pi", Struct("pi_bytesout" / Int32ul, "pi_bytesin" / Int32ul), cite=_REQUEST
)
"""What follows `cdb` with VIRTIO_SCSI_F_T10_PI. Linux's `virtio_scsi_cmd_req_pi` has these in front of `cdb`, against
the specification: the bit can be offered to drivers that go by the specification only."""

virtio_scsi_resp_cmd = Record(
    "virtio_scsi_resp_cmd",
    Struct(
        "sense_len" / Int32ul,
        "residual" / Int32ul,
        "status_qualifier" / Int16ul,
        "status" / Int8ul,
        "response" / Int8ul,
    ),
    cite=_REQUEST,
)
"""The writable part up to `sense`."""

virtio_scsi_ctrl = Record("virtio_scsi_ctrl", Struct("type" / Int32ul), cite=_CONTROL)

virtio_scsi_ctrl_tmf = Record(
    "virtio_scsi_ctrl_tmf",
    Struct("type" / Int32ul, "subtype" / Int32ul, "lun" / Bytes(8), "id" / Int64ul),
    cite=_CONTROL,
)
"""The readable part; one `response` byte is to be written."""

virtio_scsi_ctrl_an = Record(
    "virtio_scsi_ctrl_an",
    Struct("type" / Int32ul, "lun" / Bytes(8), "event_requested" / Int32ul),
    cite=_CONTROL,
)

virtio_scsi_ctrl_an_resp = Record(
    "virtio_scsi_ctrl_an_resp", Struct("event_actual" / Int32ul, "response" / Int8ul), cite=_CONTROL
)
"""The writable part of virtio_scsi_ctrl_an."""

virtio_scsi_event = Record(
    "virtio_scsi_event", Struct("event" / Int32ul, "lun" / Bytes(8), "reason" / Int32ul), cite=_EVENT
)

REPORT_LUNS_WELL_KNOWN: Final = bytes.fromhex("c101000000000000")
"""`lun` of the REPORT LUNS well-known logical unit."""


class Address(NamedTuple):
    """A logical unit of a target. lun is None for the target's own REPORT LUNS well-known logical unit."""

    target: int
    lun: int | None


def single_level_lun(lun: int) -> bytes:
    """The 8 bytes of a LUN as REPORT LUNS lists it: peripheral device addressing below 256, flat above."""
    if lun < 256:
        return bytes([0, lun, 0, 0, 0, 0, 0, 0])
    return bytes([0x40 | lun >> 8, lun & 0xFF, 0, 0, 0, 0, 0, 0])


def encode_lun(target: int, lun: int) -> bytes:
    """The `lun` field for a logical unit. Linux takes an event's LUN for one of REPORT LUNS, so both look the same."""
    return bytes([1, target]) + single_level_lun(lun)[:6]


def decode_lun(field: bytes) -> Address | None:
    """The logical unit that a `lun` field addresses, or None if it is of no format that we know."""
    # Only the first level exists: what follows it would address inside something that we do not have.
    if field[0] != 1 or any(field[4:]):
        return None
    target, level = field[1], field[2:4]
    if level[0] == 0:
        return Address(target, level[1])
    if level[0] >> 6 == 1:
        return Address(target, (level[0] & 0x3F) << 8 | level[1])
    return Address(target, None) if level == REPORT_LUNS_WELL_KNOWN[:2] else None
