"""SCSI status codes and sense data (SAM-5, SPC-4 clause 4.5), in both formats."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from construct import Bytes, Int8ub, Int32ub, Struct

from virtio_py.records import Record, Register


class ScsiStatus(IntEnum):
    """Status codes (SAM-5)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class SenseKey(IntEnum):
    """Sense keys (SPC-4)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    ABORTED_COMMAND = 0xB
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


class Condition(NamedTuple):
    """What has happened: sense key, additional sense code and its qualifier."""

    key: int
    asc: int
    ascq: int


_ILLEGAL, _ATTENTION = SenseKey.ILLEGAL_REQUEST, SenseKey.UNIT_ATTENTION
NO_SENSE: Final = Condition(SenseKey.NO_SENSE, 0x00, 0x00)
STOPPED: Final = Condition(SenseKey.NOT_READY, 0x04, 0x02)
NO_MEDIUM: Final = Condition(SenseKey.NOT_READY, 0x3A, 0x00)
READ_ERROR: Final = Condition(SenseKey.MEDIUM_ERROR, 0x11, 0x00)
WRITE_ERROR: Final = Condition(SenseKey.MEDIUM_ERROR, 0x0C, 0x00)
PARAMETER_LIST_LENGTH: Final = Condition(_ILLEGAL, 0x1A, 0x00)
INVALID_OPCODE: Final = Condition(_ILLEGAL, 0x20, 0x00)
LBA_OUT_OF_RANGE: Final = Condition(_ILLEGAL, 0x21, 0x00)
INVALID_FIELD_IN_CDB: Final = Condition(_ILLEGAL, 0x24, 0x00)
LUN_NOT_SUPPORTED: Final = Condition(_ILLEGAL, 0x25, 0x00)
INVALID_FIELD_IN_LIST: Final = Condition(_ILLEGAL, 0x26, 0x00)
INVALID_RELEASE: Final = Condition(_ILLEGAL, 0x26, 0x04)
SAVING_NOT_SUPPORTED: Final = Condition(_ILLEGAL, 0x39, 0x00)
REMOVAL_PREVENTED: Final = Condition(_ILLEGAL, 0x53, 0x02)
INSUFFICIENT_REGISTRATION_RESOURCES: Final = Condition(_ILLEGAL, 0x55, 0x04)
MEDIUM_CHANGED: Final = Condition(_ATTENTION, 0x28, 0x00)
POWER_ON: Final = Condition(_ATTENTION, 0x29, 0x00)
DEVICE_RESET: Final = Condition(_ATTENTION, 0x29, 0x03)
NEXUS_LOSS: Final = Condition(_ATTENTION, 0x29, 0x07)
MODE_CHANGED: Final = Condition(_ATTENTION, 0x2A, 0x01)
RESERVATIONS_PREEMPTED: Final = Condition(_ATTENTION, 0x2A, 0x03)
RESERVATIONS_RELEASED: Final = Condition(_ATTENTION, 0x2A, 0x04)
REGISTRATIONS_PREEMPTED: Final = Condition(_ATTENTION, 0x2A, 0x05)
CAPACITY_CHANGED: Final = Condition(_ATTENTION, 0x2A, 0x09)
COMMANDS_CLEARED: Final = Condition(_ATTENTION, 0x2F, 0x00)
LUNS_CHANGED: Final = Condition(_ATTENTION, 0x3F, 0x0E)
WRITE_PROTECTED: Final = Condition(SenseKey.DATA_PROTECT, 0x27, 0x00)
SOFTWARE_WRITE_PROTECTED: Final = Condition(SenseKey.DATA_PROTECT, 0x27, 0x02)
SPACE_ALLOCATION_FAILED: Final = Condition(SenseKey.DATA_PROTECT, 0x27, 0x07)
GUARD_CHECK_FAILED: Final = Condition(SenseKey.ABORTED_COMMAND, 0x10, 0x01)
REFERENCE_TAG_CHECK_FAILED: Final = Condition(SenseKey.ABORTED_COMMAND, 0x10, 0x03)
MISCOMPARE: Final = Condition(SenseKey.MISCOMPARE, 0x1D, 0x00)

fixed_sense = Record(
    "fixed_sense",
    Struct(
        "head" / Register(Int8ub, response_code=7, valid=1),
        "obsolete" / Int8ub,
        "flags" / Register(Int8ub, sense_key=4, reserved=1, ili=1, eom=1, filemark=1),
        "information" / Int32ub,
        "additional_length" / Int8ub,
        "command_specific" / Int32ub,
        "asc" / Int8ub,
        "ascq" / Int8ub,
        "field_replaceable_unit" / Int8ub,
        "key_specific" / Bytes(3),
    ),
    cite="SPC-4 4.5.3",
)

descriptor_sense = Record(
    "descriptor_sense",
    Struct(
        "head" / Register(Int8ub, response_code=7, reserved=1),
        "key" / Register(Int8ub, sense_key=4, reserved=4),
        "asc" / Int8ub,
        "ascq" / Int8ub,
        "reserved" / Bytes(3),
        "additional_length" / Int8ub,
    ),
    cite="SPC-4 4.5.2",
)

_FIXED, _DESCRIPTOR = 0x70, 0x72


class FieldPointer(NamedTuple):
    """The place of a bad field: byte, its most significant bit or None, and whether it lies in the CDB or the data."""

    byte: int
    bit: int | None = None
    in_cdb: bool = True

    def encode(self) -> bytes:
        """Sense key specific bytes."""
        flags = 0x80 | (0x40 if self.in_cdb else 0) | (0 if self.bit is None else 0x08 | self.bit)
        return bytes([flags]) + self.byte.to_bytes(2, "big")


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION. Raised by what carries it out, caught where the task ends.

    information: the INFORMATION field (an LBA, or the offset of a byte that differs), or None; field: what was wrong.
    """

    def __init__(
        self, condition: Condition, *, information: int | None = None, field: FieldPointer | None = None
    ) -> None:
        super().__init__(f"{condition.key:x}/{condition.asc:02x}/{condition.ascq:02x}")
        self.condition = condition
        self.information = information
        self.field = field

    def encode(self, descriptors: bool = False) -> bytes:
        """The sense data of this condition."""
        return encode_sense(self.condition, self.information, self.field, descriptors)


def invalid_in_cdb(byte: int, bit: int | None = None) -> CheckCondition:
    """INVALID FIELD IN CDB with a pointer to it."""
    return CheckCondition(INVALID_FIELD_IN_CDB, field=FieldPointer(byte, bit))


def invalid_in_list(byte: int, bit: int | None = None) -> CheckCondition:
    """INVALID FIELD IN PARAMETER LIST with a pointer to it."""
    return CheckCondition(INVALID_FIELD_IN_LIST, field=FieldPointer(byte, bit, False))


def encode_sense(
    condition: Condition,
    information: int | None = None,
    field: FieldPointer | None = None,
    descriptors: bool = False,
) -> bytes:
    """Sense data in fixed format (18 bytes), or in descriptor format (8 bytes and a descriptor a detail)."""
    key, asc, ascq = condition
    specific = field.encode() if field else bytes(3)
    if not descriptors:
        # Four bytes hold no larger value, and then it is not valid.
        fits = information is not None and information < 1 << 32
        return fixed_sense.encode(
            head={"response_code": _FIXED, "valid": int(fits)},
            flags={"sense_key": key},
            information=information if fits else 0,
            additional_length=fixed_sense.size - 8,
            asc=asc,
            ascq=ascq,
            key_specific=specific,
        )
    details = b""
    if information is not None:
        details += b"\x00\x0a\x80\x00" + information.to_bytes(8, "big")
    if field is not None:
        details += b"\x02\x06\x00\x00" + specific + b"\x00"
    head = descriptor_sense.encode(
        head={"response_code": _DESCRIPTOR},
        key={"sense_key": key},
        asc=asc,
        ascq=ascq,
        additional_length=len(details),
    )
    return head + details


def decode_sense(sense: bytes) -> Condition | None:
    """The condition in sense data of either format, or None for what is too short or of another format."""
    code = sense[0] & 0x7F if sense else 0
    if code in (_DESCRIPTOR, _DESCRIPTOR + 1) and len(sense) >= 4:
        return Condition(sense[1] & 0xF, sense[2], sense[3])
    if code in (_FIXED, _FIXED + 1) and len(sense) >= 3:
        padded = sense.ljust(fixed_sense.size, b"\0")
        return Condition(padded[2] & 0xF, padded[12], padded[13])
    return None
