"""The zones of a disk as a device part (2.13), of which the specification has none: states, and write pointers."""

from __future__ import annotations

from typing import Final

from construct import Int8ul, Int64ul, Struct

from virtio_py.devices.blk.layout import ZoneState
from virtio_py.devices.blk.zones import Zones
from virtio_py.errors import MessageError, UsageError
from virtio_py.records import Record

ZONES_PART: Final = (0x201, bytes(8))
"""Its type and selector. The value: a zone_state of every zone, then an opened_zone of each that is implicitly open, in
the order of their last writes."""

zone_state = Record("zone_state", Struct("state" / Int8ul, "wp" / Int64ul), cite="this package's own")
opened_zone = Record("opened_zone", Struct("start" / Int64ul), cite="this package's own")


def zones_value(zones: Zones) -> bytes:
    """The value of the part."""
    states = [zone_state.encode(state=zone.state, wp=zone.wp) for zone in zones]
    return b"".join([*states, *(opened_zone.encode(start=start) for start in zones.implicit)])


def least_zones_value(zones: Zones) -> int:
    """The bytes of a value where no zone is implicitly open."""
    return zone_state.size * len(zones)


def adopt_zones(zones: Zones, value: bytes) -> None:
    """Goes on with such zones. Raises MessageError, with nothing changed, for what they can never be in."""
    end = least_zones_value(zones)
    if (len(value) - end) % opened_zone.size:
        raise MessageError(f"{len(value)} bytes of zones")
    found = [zone_state.decode(value, at) for at in range(0, end, zone_state.size)]
    implicit = [opened_zone.decode(value, at).start for at in range(end, len(value), opened_zone.size)]
    try:
        zones.adopt([(ZoneState(zone.state), zone.wp) for zone in found], implicit)
    except (ValueError, UsageError) as error:
        raise MessageError(f"zones that cannot be: {error}") from error
