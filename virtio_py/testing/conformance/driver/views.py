"""What the judges of one type of device know of the driver before them."""

from __future__ import annotations

from typing import ClassVar

from attrs import define, field

from virtio_py.device import Device
from virtio_py.rings.queue import DeviceQueue
from virtio_py.testing.conformance.driver.ledger import Ledger


@define(eq=False)
class View:
    """features: what was negotiated, 0 before; device: the one that does the work."""

    ledger: Ledger
    device: Device
    features: int = field(init=False, default=0)

    def has(self, feature: int) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.features >> feature & 1)

    def offers(self, feature: int) -> bool:
        """Whether the device offers it."""
        return bool(self.device.offered_features() >> feature & 1)

    def should_accept(self, feature: int, clause: str, name: str) -> None:
        """A feature that is better accepted wherever it is offered."""
        if self.offers(feature):
            self.ledger.should(clause, self.has(feature), f"{name} is left")


class Kind:
    """What belongs to one type of device. A subclass sees what its driver negotiates, writes and asks for."""

    clauses: ClassVar[tuple[str, ...]] = ()

    def negotiated(self, view: View) -> None:
        """FEATURES_OK."""

    def wrote(self, view: View, offset: int, data: bytes) -> None:
        """The driver wrote to the configuration."""

    def request(self, view: View, queue: DeviceQueue, readable: bytes, writable: int) -> None:
        """A buffer, before it is served: its readable bytes, and how many are writable."""
