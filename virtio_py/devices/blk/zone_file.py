"""The states of zones in a file beside the disk's: what a drive keeps in its own store, so that it outlives a restart.

A header says which disk it is of, then one entry stands for each zone. An entry is stored whenever its zone changes,
after the data that it speaks of: a program that is killed has lost nothing. The disk's flush makes it persistent.

After a restart no zone is open, as after power was off: open zones are closed, or empty if nothing was written to them.
"""

from __future__ import annotations

import os
from typing import Any, Final

from construct import Bytes, Int8ul, Int32ul, Int64ul, Struct

from virtio_py.devices.blk.layout import ZoneState
from virtio_py.devices.blk.zone_states import OPEN, Zone
from virtio_py.devices.blk.zones import Zones
from virtio_py.errors import UsageError
from virtio_py.records import Record

_MAGIC: Final = b"virtio zones 1\0\0"
_HEADER: Final = Record(
    "zones",
    Struct(
        "magic" / Bytes(16),
        "capacity" / Int64ul,
        "zone_sectors" / Int64ul,
        "zone_capacity" / Int64ul,
        "conventional" / Int32ul,
        "model" / Int8ul,
        "reserved" / Bytes(3),
    ),
)
_ENTRY: Final = Record("zone", Struct("wp" / Int64ul, "state" / Int8ul, "reserved" / Bytes(7)))


class ZoneFile:
    """The file at `path`, which is made if it is not there; `zones` are as it says, and it is as they are, from now on.

    Raises UsageError for a file that is not of these zones, OSError for one that cannot be had.
    """

    def __init__(self, path: str, zones: Zones) -> None:
        self._zones = zones
        self._header = _header_of(zones)
        self._dirty = False
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(self._fd).st_size:
                self._load(path)
            self._store_all()
        except BaseException:
            os.close(self._fd)
            raise
        zones.journal = self

    def _load(self, path: str) -> None:
        count = len(self._zones)
        size = _HEADER.size + count * _ENTRY.size
        data = os.pread(self._fd, size + 1, 0)
        if len(data) != size or data[: _HEADER.size] != self._header:
            raise UsageError(f"{path} does not hold the states of these zones")
        entries = [_ENTRY.decode(data, at) for at in range(_HEADER.size, size, _ENTRY.size)]
        if not all(entry.state in tuple(ZoneState) for entry in entries):
            raise UsageError(f"{path} has states that are none")
        self._zones.restore([_rested(entry) for entry in entries])

    def _store_all(self) -> None:
        # The header last: a file that was not finished is of no zones.
        for zone in self._zones:
            self.store(zone)
        os.pwrite(self._fd, self._header, 0)
        self._dirty = True
        self.commit()

    def store(self, zone: Zone) -> None:
        """A zone has changed."""
        at = _HEADER.size + zone.start // self._zones.zone_sectors * _ENTRY.size
        os.pwrite(self._fd, _ENTRY.encode(wp=zone.wp, state=zone.state), at)
        self._dirty = True

    def commit(self) -> None:
        """What was stored is persistent on return."""
        if self._dirty:
            os.fsync(self._fd)
            self._dirty = False

    def close(self) -> None:
        """Commits, and lets go of the file."""
        self._zones.journal = None
        self.commit()
        os.close(self._fd)


def _header_of(zones: Zones) -> bytes:
    return _HEADER.encode(
        magic=_MAGIC,
        capacity=zones.capacity,
        zone_sectors=zones.zone_sectors,
        zone_capacity=zones.zone_sectors if zones.zone_capacity is None else zones.zone_capacity,
        conventional=zones.conventional,
        model=zones.model,
    )


def _rested(entry: Any) -> tuple[ZoneState, int]:
    state = ZoneState(entry.state)
    return (ZoneState.CLOSED if state in OPEN else state), entry.wp
