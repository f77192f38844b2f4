"""A disk by SBC-3: a logical unit of direct access over a block `Medium`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from attrs import Attribute, define, field

from virtio_py.devices.blk.media import Medium
from virtio_py.devices.scsi import blocks, filling, modes, reserve
from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.cdb import Opcode, ServiceAction
from virtio_py.devices.scsi.modes import ModePages, mode_page
from virtio_py.devices.scsi.protection import TUPLE, Protection, generate
from virtio_py.devices.scsi.reservations import Reservations
from virtio_py.devices.scsi.sbc import (
    capacity_bytes,
    characteristics,
    extended,
    limits,
    provisioning,
    read_capacity_10,
    read_capacity_16,
    standard,
    start_stop,
)
from virtio_py.devices.scsi.sense import (
    CAPACITY_CHANGED,
    DEVICE_RESET,
    NO_SENSE,
    SOFTWARE_WRITE_PROTECTED,
    STOPPED,
    WRITE_PROTECTED,
    CheckCondition,
    Condition,
)
from virtio_py.devices.scsi.spc import (
    BASE,
    IDENTIFICATION_PAGES,
    informational_exceptions,
    inquire,
    log_pages,
)
from virtio_py.devices.scsi.task import Access, Key, Operation, Task, allocation
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.errors import UsageError

_WCE, _D_SENSE, _SWP = (modes.CACHING, 2, 2), (modes.CONTROL, 2, 2), (modes.CONTROL, 4, 3)
"""(page, byte, bit) of WRITE CACHE ENABLE, descriptor format sense data, software write protect."""

_PAGES: Final = (
    mode_page(modes.ERROR_RECOVERY, 12, {}, {}),
    mode_page(modes.CACHING, 20, {2: 0x04}, {2: 0x04}),
    # Unrestricted reordering; a task is never kept for longer than there is patience.
    mode_page(modes.CONTROL, 12, {3: 0x10}, {2: 0x04, 4: 0x08}),
    mode_page(modes.EXCEPTIONS, 12, {}, {}),
)


def _check_block_size(disk: ScsiDisk, attribute: Attribute[int], value: int) -> None:
    if value < 512 or value & (value - 1) or value > 1 << 16:
        raise UsageError(f"a block of {value} bytes is not a power of 2 from 512 to 65536")


@define(eq=False)
class ScsiDisk(LogicalUnit):
    """A disk. Raises UsageError for a block size that cannot be.

    block_size: bytes; rotation: revolutions a minute, 1 for a medium that does not turn
    protection: where protection information is kept, or None for a disk formatted without
    """

    device_type: ClassVar[int] = 0x00
    operations: ClassVar[Mapping[Key, Operation]] = {}
    medium: Medium
    block_size: int = field(default=512, validator=_check_block_size, kw_only=True)
    rotation: int = field(default=1, kw_only=True)
    protection: Protection | None = field(default=None, kw_only=True)
    modes: ModePages = field(factory=lambda: ModePages(_PAGES), init=False)
    reservations: Reservations = field(factory=Reservations, init=False)
    _stopped: bool = field(default=False, init=False)
    _size_known: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        if self.protection is not None and self.protection.medium.size < self.blocks * TUPLE:
            raise UsageError(f"{self.blocks} blocks need {self.blocks * TUPLE} bytes of protection information")
        self._size_known = self.blocks

    # State

    @property
    def blocks(self) -> int:
        """How many logical blocks there are."""
        return self.medium.size // self.block_size

    @property
    def thin(self) -> bool:
        """Whether storage can be given back."""
        return self.medium.can_deallocate and not self.medium.read_only

    @property
    def descriptor_sense(self) -> bool:
        return self.modes.bit(*_D_SENSE)

    @property
    def device_specific(self) -> int:
        """The DEVICE-SPECIFIC PARAMETER of a mode header: WP, and DPOFUA."""
        protected = self.medium.read_only or self.modes.bit(*_SWP)
        return (0x80 if protected else 0) | 0x10

    def standing(self) -> Condition:
        return STOPPED if self._stopped else NO_SENSE

    def check_ready(self) -> None:
        """Raises CheckCondition while the unit is stopped."""
        if self._stopped:
            raise CheckCondition(STOPPED)

    def check_writable(self) -> None:
        """Raises CheckCondition where nothing may be written."""
        if self.medium.read_only:
            raise CheckCondition(WRITE_PROTECTED)
        if self.modes.bit(*_SWP):
            raise CheckCondition(SOFTWARE_WRITE_PROTECTED)

    def power(self, start: bool) -> None:
        """START STOP UNIT: what is written is durable before the unit stops."""
        if not start:
            self.flush()
        self._stopped = not start

    def conflicts(self, task: Task, operation: Operation) -> bool:
        return self.reservations.conflicts(task.nexus, operation.access)

    def reset(self, condition: Condition = DEVICE_RESET) -> None:
        """Mode pages are as they were made; registrations and reservations stay (SPC-4 5.12.5)."""
        self.modes.reset()
        self._stopped = False
        LogicalUnit.reset(self, condition)

    def modes_changed(self) -> None:
        """From writeback to writethrough: what is in the cache has to be durable now."""
        if not self.modes.bit(*_WCE):
            self.flush()

    def block_descriptor(self, long: bool) -> bytes:
        """The block descriptor of a mode parameter list."""
        if long:
            return self.blocks.to_bytes(8, "big") + bytes(4) + self.block_size.to_bytes(4, "big")
        return min(self.blocks, 0xFFFFFFFF).to_bytes(4, "big") + self.block_size.to_bytes(4, "big")

    def accepts_descriptor(self, descriptor: bytes) -> bool:
        """Whether a block descriptor leaves the blocks as they are; a number of 0 is "as before"."""
        mine = self.block_descriptor(len(descriptor) == 16)
        half = len(descriptor) // 2
        return descriptor[half:] == mine[half:] and descriptor[:half] in (mine[:half], bytes(half))

    # Blocks

    def load(self, offset: int, length: int) -> bytes:
        """A copy of a range, in bytes. Raises OSError."""
        data = bytearray(length)
        self.medium.read_into(offset, [memoryview(data)])
        return bytes(data)

    def store(self, lba: int, data: bytes, tuples: bytes | None) -> None:
        """Stores whole blocks, with their protection information, which is made here where none is given."""
        self.medium.write_from(lba * self.block_size, [memoryview(data)])
        if self.protection is not None:
            made = generate(data, self.block_size, lba) if tuples is None else tuples
            self.protection.store(lba, [memoryview(made)])

    def fill(self, offset: int, length: int, pattern: bytes, unmap: bool) -> None:
        """Fills a range with copies of a block, which are zeros where storage is to be given back."""
        lba, count = offset // self.block_size, length // self.block_size
        if not any(pattern):
            self.medium.write_zeroes(offset, length, unmap)
            if self.protection is not None:
                self.protection.blank(lba, count)
            return
        step = max((1 << 16) // self.block_size, 1)
        for at in range(0, count, step):
            self.store(lba + at, pattern * min(step, count - at), None)

    def stored(self, force: bool) -> None:
        """Something was written: durable at once without a write cache, or where the CDB demands it."""
        if force or not self.modes.bit(*_WCE):
            self.flush()

    def flush(self) -> None:
        """Commits what was written."""
        self.medium.flush()
        if self.protection is not None:
            self.protection.medium.flush()

    def look_at_size(self) -> None:
        """To be called when the medium may have another size than before: initiators are told if it has."""
        if self.blocks != self._size_known:
            self._size_known = self.blocks
            self.attend(CAPACITY_CHANGED)
            self.notify(CAPACITY_CHANGED)


_VPD: Final = {
    **IDENTIFICATION_PAGES,
    0x86: extended,
    0xB0: limits,
    0xB1: characteristics,
    0xB2: provisioning,
}

ScsiDisk.operations = {
    **BASE,
    **modes.OPERATIONS,
    **reserve.OPERATIONS,
    **blocks.READING,
    **blocks.WRITING,
    **filling.OPERATIONS,
    (Opcode.INQUIRY, None): Operation(
        "INQUIRY", cdbs.inquiry, inquire(standard, _VPD), allocation, deferred_attention=True
    ),
    (Opcode.LOG_SENSE, None): Operation(
        "LOG SENSE", cdbs.log_sense, log_pages({0x2F: informational_exceptions}), allocation
    ),
    (Opcode.READ_CAPACITY_10, None): Operation(
        "READ CAPACITY (10)", cdbs.read_capacity_10, read_capacity_10, capacity_bytes
    ),
    (Opcode.SERVICE_ACTION_IN_16, ServiceAction.SERVICE_ACTION_IN_16_READ_CAPACITY_16): Operation(
        "READ CAPACITY (16)", cdbs.read_capacity_16, read_capacity_16, allocation
    ),
    (Opcode.START_STOP_UNIT, None): Operation("START STOP UNIT", cdbs.start_stop_unit, start_stop, access=Access.WRITE),
}
