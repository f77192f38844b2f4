"""What a disk's driver has set by requests and writes: the cache mode, and the zones (5.2.6.2, 5.2.6)."""

from __future__ import annotations

from collections.abc import Iterable

from construct import Int8ul, Int32ul, Int64ul, Struct

from virtio_py.devices.blk.layout import ZoneState
from virtio_py.devices.blk.zones import Zones
from virtio_py.devices.saved import Parts
from virtio_py.errors import MessageError, UsageError
from virtio_py.records import Record

blk_state = Record("blk_state", Struct("cached" / Int8ul, "zones" / Int32ul), cite="this package's own")
"""As many zone_state follow, and then the implicitly opened ones: their number, and their first sectors, in the order
of their last writes."""

zone_state = Record("zone_state", Struct("state" / Int8ul, "wp" / Int64ul), cite="this package's own")
_number = Record("number", Struct("number" / Int64ul), cite="this package's own")


def save(cached: bool, zones: Zones | None) -> bytes:
    """The state of a disk."""
    found = list(zones.all) if zones is not None else []
    head = blk_state.encode(cached=cached, zones=len(found))
    implicit = zones.implicit if zones is not None else []
    return b"".join(
        [head, *(zone_state.encode(state=z.state, wp=z.wp) for z in found), *_numbers([len(implicit), *implicit])]
    )


def _numbers(values: Iterable[int]) -> list[bytes]:
    return [_number.encode(number=value) for value in values]


def load(zones: Zones | None, state: bytes) -> bool:
    """Takes the zones over, and returns whether writes are cached. Raises MessageError, with nothing changed."""
    parts = Parts(state)
    head = parts.record(blk_state)
    found = [parts.record(zone_state) for _ in range(min(head.zones, parts.left))]
    implicit = [parts.record(_number).number for _ in range(min(parts.record(_number).number, parts.left))]
    parts.end()
    if len(found) != (len(list(zones.all)) if zones is not None else 0):
        raise MessageError(f"a state of {len(found)} zones")
    if zones is not None:
        try:
            zones.adopt([(ZoneState(z.state), z.wp) for z in found], implicit)
        except (ValueError, UsageError) as error:
            raise MessageError(f"a state of zones that cannot be: {error}") from error
    return bool(head.cached)
