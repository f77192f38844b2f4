"""What both interfaces over PCI have in common on the driver's side: two registers of vectors, and the ISR status."""

from __future__ import annotations

from typing import Final, NamedTuple

from virtio_py.errors import NegotiationError
from virtio_py.memory import Arena
from virtio_py.pci.enumeration import FoundFunction
from virtio_py.pci.walk import Function
from virtio_py.records import Record
from virtio_py.transports.pci_interrupts import Interrupts, MsixVectors, find_vectors
from virtio_py.transports.pci_layout import NO_VECTOR, Isr
from virtio_py.transports.register_transport import RegisterTransport, Wait
from virtio_py.transports.registers import ConfigAccess

_CONFIG: Final = "config_msix_vector"
_QUEUE: Final = "queue_msix_vector"

CONFIG_VECTOR: Final = 0
FIRST_QUEUE_VECTOR: Final = 1


class Place(NamedTuple):
    """A virtio function, and what a transport over it needs besides.

    config: the device type's configuration structure, or None
    """

    found: FoundFunction
    function: Function
    device_id: int
    arena: Arena
    wait: Wait
    interrupts: Interrupts
    config: Record | None


class InterruptedTransport(RegisterTransport):
    """A driver's view with interrupts. One vector is for the configuration and one for each queue; where there are not
    so many, queues share the last one, and where the device refuses one, a queue shares another.
    """

    def __init__(self, place: Place, config: ConfigAccess, use_msix: bool) -> None:
        super().__init__(place.device_id, place.arena, place.wait, config)
        self._place = place
        self._vectors: MsixVectors | None = None
        if use_msix:
            self._vectors = find_vectors(place.found, place.function, place.interrupts)
        self._msix = False

    def _take_isr(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} has no ISR status")

    @property
    def msix(self) -> bool:
        """Whether interrupts are messages now; else they are the line."""
        return self._msix

    def write_status(self, value: int) -> None:
        """The device status. After a reset no vector is mapped, and queues have their own sizes again."""
        if value == 0:
            self._sizes.clear()
        super().write_status(value)

    def accept_features(self, features: int) -> None:
        """The choice; with it, the event that needs no queue is mapped."""
        super().accept_features(features)
        self._map_config()

    def _map_config(self) -> None:
        if self._vectors is None:
            return
        # On first: over the legacy interface, the registers are there only then.
        self._vectors.enable(self.num_queues + 1)
        self._msix = self._mapped(_CONFIG, CONFIG_VECTOR)
        if not self._msix:
            self._vectors.disable()

    def _mapped(self, name: str, vector: int) -> bool:
        """Maps an event to a vector: whether the device could."""
        self._write(name, vector)
        got = self._read(name)
        if got not in (vector, NO_VECTOR):
            raise NegotiationError(f"{name} reads {got:#x}, was written {vector:#x}")
        return got == vector

    def map_queue(self, index: int) -> None:
        """Maps the selected queue's event. Raises NegotiationError if the device refuses every vector."""
        if not self._msix or self._vectors is None:
            return
        own = min(FIRST_QUEUE_VECTOR + index, self._vectors.count - 1)
        choices = dict.fromkeys((own, FIRST_QUEUE_VECTOR, CONFIG_VECTOR))
        if not any(self._mapped(_QUEUE, vector) for vector in choices):
            raise NegotiationError("the device maps the queue to no vector", queue=index)

    def handle_interrupt(self) -> None:
        """Takes the interrupts that have come: counts those for the configuration. All queues are to be looked at."""
        if self._msix and self._vectors is not None:
            self._config_notifications += self._vectors.taken().count(CONFIG_VECTOR)
        # The ISR status is read once: reading clears it, and one interrupt may be for both.
        elif self._place.found.address in self._place.interrupts.raised:
            self._config_notifications += bool(self._take_isr() & Isr.DEVICE_CONFIGURATION)

    def wait(self, timeout: float) -> None:
        """Waits for an interrupt, and handles it."""
        self._wait(timeout)
        self.handle_interrupt()
