"""What a CD-ROM drive says of its disc and of itself (MMC-6): table of contents, features, events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from construct import Int8ub, Int16ub, Int32ub, Struct

from virtio_py.devices.scsi.sense import invalid_in_cdb
from virtio_py.devices.scsi.task import Task
from virtio_py.records import Record, Register

BLOCK: Final = 2048
LEAD_OUT: Final = 0xAA
_DATA_TRACK: Final = 0x14
"""ADR 1 and CONTROL 4: a data track that may not be copied digitally."""

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


class Drive(Protocol):
    """What these commands need to know of their drive."""

    @property
    def loaded(self) -> bool:
        """Whether there is a disc that can be read."""

    @property
    def blocks(self) -> int:
        """Blocks of 2048 bytes."""

    @property
    def media_status(self) -> int:
        """MEDIA STATUS: bit 0 the tray is open, bit 1 a disc is there."""

    def check_ready(self) -> None:
        """Raises CheckCondition without a disc."""

    def take_event(self) -> int:
        """The media event code that waits, which is cleared by this."""


# Table of contents


def _msf(lba: int) -> tuple[int, int, int]:
    """Minute, second and frame of a block; two seconds lie before the first."""
    seconds, frame = divmod(lba + 150, 75)
    return min(seconds // 60, 255), seconds % 60, frame


def _address(lba: int, msf: int) -> int:
    return int.from_bytes(bytes([0, *_msf(lba)]), "big") if msf else lba


def _toc(unit: Drive, cdb: Any) -> bytes:
    if cdb.track > 1 and cdb.track != LEAD_OUT:
        raise invalid_in_cdb(6)
    starts = {LEAD_OUT: unit.blocks} if cdb.track == LEAD_OUT else {1: 0, LEAD_OUT: unit.blocks}
    return b"".join(
        toc_track.encode(adr_control=_DATA_TRACK, track=track, start=_address(lba, cdb.flags.msf))
        for track, lba in starts.items()
    )


def _sessions(unit: Drive, cdb: Any) -> bytes:
    return toc_track.encode(adr_control=_DATA_TRACK, track=1, start=_address(0, cdb.flags.msf))


def _raw_toc(unit: Drive, cdb: Any) -> bytes:
    places = {0xA0: (1, 0, 0), 0xA1: (1, 0, 0), 0xA2: _msf(unit.blocks), 1: _msf(0)}
    return b"".join(
        toc_full.encode(session=1, adr_control=_DATA_TRACK, point=point, pminute=minute, psecond=second, pframe=frame)
        for point, (minute, second, frame) in places.items()
    )


_FORMATS: Final[Mapping[int, Callable[[Drive, Any], bytes]]] = {0: _toc, 1: _sessions, 2: _raw_toc}


def read_toc(unit: Drive, task: Task, cdb: Any) -> None:
    """READ TOC: the track and the lead-out, the first session, or both as they lie on the disc."""
    make = _FORMATS.get(cdb.format.code)
    if make is None:
        raise invalid_in_cdb(2, 3)
    unit.check_ready()
    body = make(unit, cdb)
    task.reply(toc_header.encode(length=len(body) + 2, first=1, last=1) + body, cdb.allocation)


# Features


def _profile(unit: Drive) -> int:
    return CD_ROM_PROFILE if unit.loaded else 0


def _profile_list(unit: Drive) -> bytes:
    return CD_ROM_PROFILE.to_bytes(2, "big") + bytes([int(unit.loaded), 0])


def _random_readable(unit: Drive) -> bytes:
    return BLOCK.to_bytes(4, "big") + (1).to_bytes(2, "big") + bytes(2)


# Code: version, whether it is always current, and the data that follow the descriptor.
_FEATURES: Final[Mapping[int, tuple[int, bool, Callable[[Drive], bytes]]]] = {
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


def get_configuration(unit: Drive, task: Task, cdb: Any) -> None:
    """GET CONFIGURATION: the profile, and which features there are, or are current."""
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


def _feature(unit: Drive, code: int) -> bytes:
    version, always, make = _FEATURES[code]
    data = make(unit)
    flags = {"current": int(always or unit.loaded), "persistent": int(always), "version": version}
    return feature_descriptor.encode(code=code, flags=flags, additional_length=len(data)) + data


_MEDIA_CLASS: Final = 4


def get_event_status(unit: Drive, task: Task, cdb: Any) -> None:
    """GET EVENT STATUS NOTIFICATION: of all classes of events there is only that of media."""
    # Waiting for an event is for drives that can queue; who wants to be told subscribes (5.6.6.2).
    if not cdb.flags.polled:
        raise invalid_in_cdb(1, 0)
    if not cdb.classes & 1 << _MEDIA_CLASS:
        task.reply(bytes([0, 2, 0x80, 1 << _MEDIA_CLASS]), cdb.allocation)
        return
    body = bytes([unit.take_event() if cdb.allocation > 4 else 0, unit.media_status, 0, 0])
    task.reply(bytes([0, 6, _MEDIA_CLASS, 1 << _MEDIA_CLASS]) + body, cdb.allocation)


def disc_information(unit: Drive, task: Task, cdb: Any) -> None:
    """READ DISC INFORMATION."""
    if cdb.flags.data_type:
        raise invalid_in_cdb(1, 2)
    unit.check_ready()
    # A finished disc with one complete session and one track; no bar code, no application code.
    head = (32).to_bytes(2, "big") + bytes([0x0E, 1, 1, 1, 1, 0x20, 0, 0, 0, 0])
    task.reply(head.ljust(34, b"\0"), cdb.allocation)


def mechanism_status(unit: Drive, task: Task, cdb: Any) -> None:
    """MECHANISM STATUS."""
    task.reply(bytes([0, 0x10 if unit.media_status & 1 else 0, 0, 0, 0, 0, 0, 0]), cdb.allocation)
