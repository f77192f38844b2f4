"""T10 protection information: 8 bytes a block, a guard (CRC), an application tag, a reference tag (SBC-3 4.22).

The data of a protected unit lie on one medium, their protection information on another. Types 1 and 3 are here: in
type 1 the reference tag is the low 32 bits of the block's address, in type 3 it says nothing. Type 2 needs CDBs of 32
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from attrs import field, frozen, validators
from construct import Int16ub, Int32ub, Struct

from virtio_py.devices.blk.media import Medium
from virtio_py.devices.scsi.sense import GUARD_CHECK_FAILED, REFERENCE_TAG_CHECK_FAILED, CheckCondition
from virtio_py.records import Record

protection_information = Record(
    "protection_information",
    Struct("guard" / Int16ub, "application_tag" / Int16ub, "reference_tag" / Int32ub),
    cite="SBC-3 4.22.2",
)

TUPLE: Final = protection_information.size
"""Bytes of protection information a block."""

POLYNOMIAL: Final = 0x8BB7
ESCAPE: Final = 0xFFFF
"""An application tag that says: nothing of this block is checked."""


def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (POLYNOMIAL if crc & 0x8000 else 0)) & 0xFFFF
        entries.append(crc)
    return tuple(entries)


_TABLE: Final = _table()


def crc16_t10dif(data: bytes | bytearray | memoryview) -> int:
    """CRC-16/T10-DIF: the guard tag of a block. Not reflected, begins with 0, no final XOR."""
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFF00) ^ _TABLE[crc >> 8 ^ byte]
    return crc


class Checks(NamedTuple):
    """Which tags a command has checked."""

    guard: bool
    reference: bool


CHECKS: Final[dict[int, Checks]] = {
    0: Checks(True, True),
    1: Checks(True, True),
    2: Checks(False, True),
    3: Checks(False, False),
    4: Checks(True, False),
    5: Checks(True, True),
}
"""By RDPROTECT, WRPROTECT or VRPROTECT; what is not here is reserved (SBC-3, tables 68 and 112)."""


def generate(data: bytes, block_size: int, lba: int) -> bytes:
    """The protection information of whole blocks from `lba` on."""
    return b"".join(
        protection_information.encode(
            guard=crc16_t10dif(data[at : at + block_size]), reference_tag=(lba + at // block_size) & 0xFFFFFFFF
        )
        for at in range(0, len(data), block_size)
    )


def verify(data: bytes, tuples: bytes, block_size: int, lba: int, checks: Checks, kind: int = 1) -> None:
    """Checks whole blocks from `lba` on. Raises CheckCondition, ABORTED COMMAND with the block's address."""
    for n in range(len(data) // block_size):
        found = protection_information.decode(tuples, n * TUPLE)
        if found.application_tag == ESCAPE and (kind != 3 or found.reference_tag == 0xFFFFFFFF):
            continue
        if checks.guard and found.guard != crc16_t10dif(data[n * block_size : (n + 1) * block_size]):
            raise CheckCondition(GUARD_CHECK_FAILED, information=lba + n)
        if checks.reference and kind == 1 and found.reference_tag != (lba + n) & 0xFFFFFFFF:
            raise CheckCondition(REFERENCE_TAG_CHECK_FAILED, information=lba + n)


@frozen
class Protection:
    """That a unit is formatted with protection information.

    type: 1 or 3; medium: where it lies, 8 bytes a block. A block never written must have all ones there: `blank`.
    """

    medium: Medium
    type: int = field(default=1, validator=validators.in_((1, 3)))

    def blank(self, lba: int, count: int) -> None:
        """What stands for blocks that nobody has written: no tag is checked."""
        ones = memoryview(b"\xff" * (TUPLE * 4096))
        for at in range(0, count, 4096):
            part = ones[: TUPLE * min(4096, count - at)]
            self.store(lba + at, [part])

    def load(self, lba: int, count: int) -> bytes:
        """The protection information of a range of blocks."""
        data = bytearray(count * TUPLE)
        # A medium gives and takes whole sectors; tuples are smaller.
        offset, start, end = self._sectors(lba, len(data))
        whole = bytearray(end - offset)
        self.medium.read_into(offset, [memoryview(whole)])
        return bytes(whole[start : start + len(data)])

    def store(self, lba: int, views: Sequence[memoryview]) -> None:
        """Stores the protection information of blocks from `lba` on."""
        data = b"".join(views)
        offset, start, end = self._sectors(lba, len(data))
        whole = bytearray(end - offset)
        self.medium.read_into(offset, [memoryview(whole)])
        whole[start : start + len(data)] = data
        self.medium.write_from(offset, [memoryview(whole)])

    def _sectors(self, lba: int, length: int) -> tuple[int, int, int]:
        """Whole sectors around the tuples of a range: their offset, where the tuples begin in them, their end."""
        first = lba * TUPLE
        offset = first - first % 512
        return offset, first - offset, -(-(first + length) // 512) * 512
