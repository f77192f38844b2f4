"""Persistent reservations (SPC-4 5.12), as far as they concern one target port: who is registered, who holds one.

Nothing outlives the process: "persist through power loss" is not offered.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from attrs import define, field

from virtio_py.devices.scsi.task import Access, Nexus

MAX_REGISTRATIONS: Final = 256


class ReservationType(IntEnum):
    """TYPE of a reservation."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8


ALL_REGISTRANTS: Final = (
    ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
)
ALONE: Final = (ReservationType.WRITE_EXCLUSIVE, ReservationType.EXCLUSIVE_ACCESS)
_WRITE_ONLY: Final = (
    ReservationType.WRITE_EXCLUSIVE,
    ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
)


@define(eq=False)
class Reservations:
    """Who has registered with which key, and who holds the reservation. A key of 0 is none."""

    keys: dict[Nexus, int] = field(factory=dict)
    holder: Nexus | None = None
    type: int = 0
    generation: int = 0

    def holds(self, nexus: Nexus) -> bool:
        """Whether the reservation is held by this initiator."""
        if not self.type:
            return False
        return nexus in self.keys if self.type in ALL_REGISTRANTS else nexus is self.holder

    def conflicts(self, nexus: Nexus, access: Access) -> bool:
        """Whether a command of this access is kept out."""
        if not self.type or access is Access.ALLOWED or self.holds(nexus):
            return False
        if self.type not in ALONE and nexus in self.keys:
            return False
        return access is Access.WRITE or self.type not in _WRITE_ONLY

    def release(self) -> None:
        """There is no reservation any more."""
        self.holder, self.type = None, 0

    def forget(self, nexus: Nexus) -> bool:
        """Removes a registration, and with it the reservation if it was the holder's. Whether that was so."""
        held = self.holds(nexus)
        self.keys.pop(nexus, None)
        gone = held and (self.type not in ALL_REGISTRANTS or not self.keys)
        if gone:
            self.release()
        return gone
