"""A CD-ROM drive by MMC-6: one data track over a `Medium`, blocks of 2048 bytes, a tray that opens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from attrs import define, field

from virtio_py.devices.blk.media import Medium
from virtio_py.devices.scsi import blocks, modes
from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.cdb import Opcode
from virtio_py.devices.scsi.layout import AsyncEvent
from virtio_py.devices.scsi.mmc import (
    BLOCK,
    disc_information,
    get_configuration,
    get_event_status,
    mechanism_status,
    read_toc,
)
from virtio_py.devices.scsi.modes import ModePages, mode_page
from virtio_py.devices.scsi.sbc import capacity_10
from virtio_py.devices.scsi.sense import (
    DEVICE_RESET,
    MEDIUM_CHANGED,
    NO_MEDIUM,
    NO_SENSE,
    REMOVAL_PREVENTED,
    CheckCondition,
    Condition,
    invalid_in_cdb,
)
from virtio_py.devices.scsi.spc import BASE, IDENTIFICATION_PAGES, inquire
from virtio_py.devices.scsi.task import Key, Nexus, Operation, Task, allocation
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.devices.scsi.vpd import MMC_6_VERSION, SAM_5_VERSION, SPC_4_VERSION, inquiry_data

_PAGES: Final = (
    mode_page(modes.ERROR_RECOVERY, 12, {}, {}),
    # Byte 4 onwards: multi-session; a tray, ejected by command, that can be locked; 4x and 2 KiB of buffer.
    mode_page(modes.CAPABILITIES, 22, {2: 0x03, 4: 0x40, 6: 0x29, 8: 0x02, 9: 0xC2, 13: 0x02, 14: 0x02, 15: 0xC2}, {}),
)


@define(eq=False)
class ScsiCdrom(LogicalUnit):
    """A CD-ROM drive, with a disc or without.

    Nothing is ever written. `insert` and `eject` are the operator's; initiators hear of both.
    """

    device_type: ClassVar[int] = 0x05
    operations: ClassVar[Mapping[Key, Operation]] = {}
    medium: Medium | None = None
    modes: ModePages = field(factory=lambda: ModePages(_PAGES), init=False)
    protection: None = field(default=None, init=False)
    block_size: int = field(default=BLOCK, init=False)
    _locked: bool = field(default=False, init=False)
    _open: bool = field(default=False, init=False)
    _event: int = field(default=0, init=False)

    # The disc

    @property
    def loaded(self) -> bool:
        """Whether there is a disc that can be read."""
        return self.medium is not None and not self._open

    @property
    def blocks(self) -> int:
        """Blocks of 2048 bytes, 0 without a disc."""
        return self.medium.size // BLOCK if self.medium is not None and self.loaded else 0

    def insert(self, medium: Medium) -> None:
        """Puts a disc into the tray and closes it."""
        self.medium, self._open = medium, False
        self._media_event(_NEW_MEDIA)
        self.attend(MEDIUM_CHANGED)

    def eject(self) -> Medium | None:
        """Opens the tray and takes the disc out."""
        medium, self.medium = self.medium, None
        self._open = True
        self._media_event(_MEDIA_REMOVAL)
        return medium

    def _media_event(self, event: int) -> None:
        self._event = event
        self.notify(AsyncEvent.MEDIA_CHANGE)

    def async_events(self) -> AsyncEvent:
        return AsyncEvent.MEDIA_CHANGE

    # State

    def standing(self) -> Condition:
        return NO_SENSE if self.loaded else NO_MEDIUM

    def check_ready(self) -> None:
        """Raises CheckCondition without a disc."""
        if not self.loaded:
            raise CheckCondition(NO_MEDIUM)

    def load(self, offset: int, length: int) -> bytes:
        """A copy of a range, in bytes. Raises OSError, CheckCondition."""
        self.check_ready()
        assert self.medium is not None
        data = bytearray(length)
        self.medium.read_into(offset, [memoryview(data)])
        return bytes(data)

    @property
    def device_specific(self) -> int:
        """The DEVICE-SPECIFIC PARAMETER of a mode header: none for this type."""
        return 0

    def block_descriptor(self, long: bool) -> bytes:
        """MMC has no block descriptors."""
        return b""

    def accepts_descriptor(self, descriptor: bytes) -> bool:
        """MMC has no block descriptors."""
        return False

    def modes_changed(self) -> None:
        """No page of a drive can be changed."""

    def lock(self, locked: bool) -> None:
        """PREVENT ALLOW MEDIUM REMOVAL."""
        self._locked = locked

    def tray(self, start: bool, loej: bool) -> None:
        """START STOP UNIT. Raises CheckCondition for a tray that is locked."""
        if not loej:
            return
        if not start and self._locked:
            raise CheckCondition(REMOVAL_PREVENTED)
        if self._open == start:
            self._open = not start
            self._media_event(_NEW_MEDIA if start and self.medium is not None else _MEDIA_REMOVAL)

    def take_event(self) -> int:
        """The media event code that waits, which is cleared by this."""
        event, self._event = self._event, 0
        return event

    def initiator_gone(self, nexus: Nexus) -> None:
        """Nobody is left who could unlock the tray."""
        self._locked = False

    @property
    def media_status(self) -> int:
        """MEDIA STATUS: bit 0 the tray is open, bit 1 a disc is there."""
        return int(self._open) | (2 if self.loaded else 0)

    def reset(self, condition: Condition = DEVICE_RESET) -> None:
        """The tray is unlocked."""
        self._locked = False
        self.modes.reset()
        LogicalUnit.reset(self, condition)


_NEW_MEDIA, _MEDIA_REMOVAL = 2, 3


def _standard(unit: ScsiCdrom) -> bytes:
    return inquiry_data(unit, (SAM_5_VERSION, SPC_4_VERSION, MMC_6_VERSION), removable={"rmb": 1})


def _read_capacity(unit: ScsiCdrom, task: Task, cdb: Any) -> None:
    unit.check_ready()
    data = capacity_10.encode(last_lba=max(unit.blocks - 1, 0), block_size=BLOCK)
    task.reply(data, capacity_10.size)


def _capacity_bytes(unit: Any, cdb: Any) -> int:
    return capacity_10.size


def _start_stop(unit: ScsiCdrom, task: Task, cdb: Any) -> None:
    if cdb.power.condition:
        raise invalid_in_cdb(4, 7)
    unit.tray(bool(cdb.power.start), bool(cdb.power.loej))


def _prevent_allow(unit: ScsiCdrom, task: Task, cdb: Any) -> None:
    unit.lock(bool(cdb.prevent.value & 1))


_READS: Final = (Opcode.READ_6, Opcode.READ_10, Opcode.READ_12)

ScsiCdrom.operations = {
    **BASE,
    **modes.OPERATIONS,
    **{(opcode, None): blocks.READING[opcode, None] for opcode in _READS},
    (Opcode.INQUIRY, None): Operation(
        "INQUIRY", cdbs.inquiry, inquire(_standard, IDENTIFICATION_PAGES), allocation, deferred_attention=True
    ),
    (Opcode.READ_CAPACITY_10, None): Operation(
        "READ CAPACITY (10)", cdbs.read_capacity_10, _read_capacity, _capacity_bytes
    ),
    (Opcode.READ_TOC, None): Operation("READ TOC", cdbs.read_toc, read_toc, allocation),
    (Opcode.GET_CONFIGURATION, None): Operation(
        "GET CONFIGURATION", cdbs.get_configuration, get_configuration, allocation, deferred_attention=True
    ),
    (Opcode.GET_EVENT_STATUS_NOTIFICATION, None): Operation(
        "GET EVENT STATUS NOTIFICATION", cdbs.get_event_status, get_event_status, allocation, deferred_attention=True
    ),
    (Opcode.READ_DISC_INFORMATION, None): Operation(
        "READ DISC INFORMATION", cdbs.read_disc_information, disc_information, allocation
    ),
    (Opcode.MECHANISM_STATUS, None): Operation("MECHANISM STATUS", cdbs.mechanism_status, mechanism_status, allocation),
    (Opcode.START_STOP_UNIT, None): Operation("START STOP UNIT", cdbs.start_stop_unit, _start_stop),
    (Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL, None): Operation(
        "PREVENT ALLOW MEDIUM REMOVAL", cdbs.prevent_allow, _prevent_allow
    ),
}
