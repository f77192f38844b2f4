"""A zone, the states it can be in, and the transitions between them (5.2.6), as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import define

from virtio_py.devices.blk.layout import BlkRequest, ZoneState, ZoneType

EMPTY, IOPEN, EOPEN, CLOSED = ZoneState.EMPTY, ZoneState.IOPEN, ZoneState.EOPEN, ZoneState.CLOSED
FULL, RDONLY, OFFLINE = ZoneState.FULL, ZoneState.RDONLY, ZoneState.OFFLINE

OPEN: Final = frozenset({IOPEN, EOPEN})
ACTIVE: Final = OPEN | {CLOSED}
WRITABLE: Final = ACTIVE | {EMPTY}
"""The states that have a valid write pointer."""

TRANSITIONS: Final[Mapping[BlkRequest, Mapping[ZoneState, ZoneState]]] = {
    BlkRequest.ZONE_OPEN: dict.fromkeys((EMPTY, IOPEN, EOPEN, CLOSED), EOPEN),
    BlkRequest.ZONE_CLOSE: dict.fromkeys((IOPEN, EOPEN, CLOSED), CLOSED),
    BlkRequest.ZONE_FINISH: dict.fromkeys((EMPTY, IOPEN, EOPEN, CLOSED, FULL), FULL),
    BlkRequest.ZONE_RESET: dict.fromkeys((EMPTY, IOPEN, EOPEN, CLOSED, FULL), EMPTY),
}
"""Where each request takes a zone, by the state that it is in. What is not here cannot be done: ZONE_INVALID_CMD.
One more: CLOSE takes a zone back to EMPTY if nothing was written to it."""

FAILURES: Final[Mapping[ZoneState, frozenset[ZoneState]]] = {
    RDONLY: WRITABLE | {FULL},
    OFFLINE: WRITABLE | {FULL, RDONLY},
}
"""Which states a failing medium can take a zone out of, into each of these."""


@define(eq=False)
class Zone:
    """One zone: sectors [start, start + size), of which `capacity` can be written.

    wp: the write pointer; in a FULL or RDONLY zone where the data end, behind which nothing was ever written.
    """

    start: int
    size: int
    capacity: int
    type: ZoneType
    state: ZoneState
    wp: int

    @property
    def end(self) -> int:
        """The sector behind those that can be written."""
        return self.start + self.capacity

    @property
    def pointer(self) -> int:
        """`z_wp` as it is reported: where it is undefined, the sector behind the zone."""
        return self.wp if self.state in WRITABLE else self.start + self.size
