"""A CD-ROM drive by MMC-6: one data track over a `Medium`, blocks of 2048 bytes, a tray that opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from attrs import define, field
from construct import Int8ub, Int16ub, Int32ub, Struct

from virtio_py.devices.blk.media import Medium
from virtio_py.devices.scsi import blocks, modes
from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.cdb import Opcode
from virtio_py.devices.scsi.disk import capacity_10
from virtio_py.devices.scsi.layout import AsyncEvent
from virtio_py.devices.scsi.modes import ModePages, mode_page
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
from virtio_py.devices.scsi.unit import Key, LogicalUnit, Operation, Task, allocation
from virtio_py.devices.scsi.vpd import MMC_6_VERSION, SAM_5_VERSION, SPC_4_VERSION, inquiry_data
from virtio_py.records import Record, Register

BLOCK: Final = 2048
LEAD_OUT: Final = 0xAA
_DATA_TRACK: Final = 0x14
"""ADR 1 and CONTROL 4: a data track that may not be copied digitally."""

_PAGES: Final = (
    mode_page(modes.ERROR_RECOVERY, 12, {}, {}),
    # Byte 4 onwards: multi-session; a tray, ejected by command, that can be locked; 4x and 2 KiB of buffer.
    mode_page(modes.CAPABILITIES, 22, {2: 0x03, 4: 0x40, 6: 0x29, 8: 0x02, 9: 0xC2, 13: 0x02, 14: 0x02, 15: 0xC2}, {}),
)

toc_header = Record("toc_header", Struct("length" / Int16ub, "first" / Int8ub, "last" / Int8ub), cite="MMC-6 6.25.2")
toc_track = Record(
    "toc_track_descriptor",
    Struct("reserved" / Int8ub, "adr_control" / Int8ub, "track" / Int8ub, "reserved1" / Int8ub, "start" / Int32ub),
    cite="MMC-6 6.25.3.2",
)
toc_full = Record(
    "toc_full_descriptor",
    Struct(
        "session" / Int8ub,
        "adr_control" / Int8ub,
        "tno" / Int8ub,
        "point" / Int8ub,
        "minute" / Int8ub,
        "second" / Int8ub,
        "frame" / Int8ub,
        "zero" / Int8ub,
        "pminute" / Int8ub,
        "psecond" / Int8ub,
        "pframe" / Int8ub,
    ),
    cite="MMC-6 6.25.3.4",
)
feature_descriptor = Record(
    "feature_descriptor",
    Struct(
        "code" / Int16ub,
        "flags" / Register(Int8ub, current=1, persistent=1, version=4, reserved=2),
        "additional_length" / Int8ub,
    ),
    cite="MMC-6 5.2.2",
)

CD_ROM_PROFILE: Final = 0x0008


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


# Table of contents


def _msf(lba: int) -> tuple[int, int, int]:
    """Minute, second and frame of a block; two seconds lie before the first."""
    seconds, frame = divmod(lba + 150, 75)
    return min(seconds // 60, 255), seconds % 60, frame


def _address(lba: int, msf: int) -> int:
    return int.from_bytes(bytes([0, *_msf(lba)]), "big") if msf else lba


def _toc(unit: ScsiCdrom, cdb: Any) -> bytes:
    if cdb.track > 1 and cdb.track != LEAD_OUT:
        raise invalid_in_cdb(6)
    starts = {LEAD_OUT: unit.blocks} if cdb.track == LEAD_OUT else {1: 0, LEAD_OUT: unit.blocks}
    return b"".join(
        toc_track.encode(adr_control=_DATA_TRACK, track=track, start=_address(lba, cdb.flags.msf))
        for track, lba in starts.items()
    )


def _sessions(unit: ScsiCdrom, cdb: Any) -> bytes:
    return toc_track.encode(adr_control=_DATA_TRACK, track=1, start=_address(0, cdb.flags.msf))


def _raw_toc(unit: ScsiCdrom, cdb: Any) -> bytes:
    places = {0xA0: (1, 0, 0), 0xA1: (1, 0, 0), 0xA2: _msf(unit.blocks), 1: _msf(0)}
    return b"".join(
        toc_full.encode(session=1, adr_control=_DATA_TRACK, point=point, pminute=minute, psecond=second, pframe=frame)
        for point, (minute, second, frame) in places.items()
    )


_FORMATS: Final[Mapping[int, Callable[[ScsiCdrom, Any], bytes]]] = {0: _toc, 1: _sessions, 2: _raw_toc}


def _read_toc(unit: ScsiCdrom, task: Task, cdb: Any) -> None:
    make = _FORMATS.get(cdb.format.code)
    if make is None:
        raise invalid_in_cdb(2, 3)
    unit.check_ready()
    body = make(unit, cdb)
    task.reply(toc_header.encode(length=len(body) + 2, first=1, last=1) + body, cdb.allocation)


# Features


def _profile(unit: ScsiCdrom) -> int:
    return CD_ROM_PROFILE if unit.loaded else 0


def _profile_list(unit: ScsiCdrom) -> bytes:
    return CD_ROM_PROFILE.to_bytes(2, "big") + bytes([int(unit.loaded), 0])


def _random_readable(unit: ScsiCdrom) -> bytes:
    return BLOCK.to_bytes(4, "big") + (1).to_bytes(2, "big") + bytes(2)


# Code: version, whether it is always current, and the data that follow the descriptor.
_FEATURES: Final[Mapping[int, tuple[int, bool, Callable[[ScsiCdrom], bytes]]]] = {
    0x0000: (0, True, _profile_list),
    0x0001: (2, True, lambda unit: bytes([0, 0, 0, 1, 1, 0, 0, 0])),
    0x0002: (1, True, lambda unit: bytes([2, 0, 0, 0])),
    0x0003: (0, True, lambda unit: bytes([0x29, 0, 0, 0])),
    0x0010: (0, False, _random_readable),
    0x001E: (2, False, lambda unit: bytes(4)),
    0x0100: (0, True, lambda unit: b""),
    0x0105: (0, True, lambda unit: bytes(4)),
}
_ALL, _CURRENT, _ONE = range(3)


def _get_configuration(unit: ScsiCdrom, task: Task, cdb: Any) -> None:
    if cdb.flags.rt > _ONE:
        raise invalid_in_cdb(1, 1)
    body = b"".join(
        _feature(unit, code) for code, (_, always, _) in _FEATURES.items() if _wanted(cdb, code, always or unit.loaded)
    )
    head = (len(body) + 4).to_bytes(4, "big") + bytes(2) + _profile(unit).to_bytes(2, "big")
    task.reply(head + body, cdb.allocation)


def _wanted(cdb: Any, code: int, current: bool) -> bool:
    if cdb.flags.rt == _ONE:
        return bool(code == cdb.starting_feature)
    return bool(code >= cdb.starting_feature and (cdb.flags.rt == _ALL or current))


def _feature(unit: ScsiCdrom, code: int) -> bytes:
    version, always, make = _FEATURES[code]
    data = make(unit)
    flags = {"current": int(always or unit.loaded), "persistent": int(always), "version": version}
    return feature_descriptor.encode(code=code, flags=flags, additional_length=len(data)) + data


_MEDIA_CLASS: Final = 4


def _get_event_status(unit: ScsiCdrom, task: Task, cdb: Any) -> None:
    # Waiting for an event is for drives that can queue; who wants to be told subscribes (5.6.6.2).
    if not cdb.flags.polled:
        raise invalid_in_cdb(1, 0)
    if not cdb.classes & 1 << _MEDIA_CLASS:
        task.reply(bytes([0, 2, 0x80, 1 << _MEDIA_CLASS]), cdb.allocation)
        return
    body = bytes([unit.take_event() if cdb.allocation > 4 else 0, unit.media_status, 0, 0])
    task.reply(bytes([0, 6, _MEDIA_CLASS, 1 << _MEDIA_CLASS]) + body, cdb.allocation)


def _disc_information(unit: ScsiCdrom, task: Task, cdb: Any) -> None:
    if cdb.flags.data_type:
        raise invalid_in_cdb(1, 2)
    unit.check_ready()
    # A finished disc with one complete session and one track; no bar code, no application code.
    head = (32).to_bytes(2, "big") + bytes([0x0E, 1, 1, 1, 1, 0x20, 0, 0, 0, 0])
    task.reply(head.ljust(34, b"\0"), cdb.allocation)


def _mechanism_status(unit: ScsiCdrom, task: Task, cdb: Any) -> None:
    task.reply(bytes([0, 0x10 if unit.media_status & 1 else 0, 0, 0, 0, 0, 0, 0]), cdb.allocation)


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
    (Opcode.READ_TOC, None): Operation("READ TOC", cdbs.read_toc, _read_toc, allocation),
    (Opcode.GET_CONFIGURATION, None): Operation(
        "GET CONFIGURATION", cdbs.get_configuration, _get_configuration, allocation, deferred_attention=True
    ),
    (Opcode.GET_EVENT_STATUS_NOTIFICATION, None): Operation(
        "GET EVENT STATUS NOTIFICATION", cdbs.get_event_status, _get_event_status, allocation, deferred_attention=True
    ),
    (Opcode.READ_DISC_INFORMATION, None): Operation(
        "READ DISC INFORMATION", cdbs.read_disc_information, _disc_information, allocation
    ),
    (Opcode.MECHANISM_STATUS, None): Operation(
        "MECHANISM STATUS", cdbs.mechanism_status, _mechanism_status, allocation
    ),
    (Opcode.START_STOP_UNIT, None): Operation("START STOP UNIT", cdbs.start_stop_unit, _start_stop),
    (Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL, None): Operation(
        "PREVENT ALLOW MEDIUM REMOVAL", cdbs.prevent_allow, _prevent_allow
    ),
}
