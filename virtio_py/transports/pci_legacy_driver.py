"""The legacy interface over PCI (4.1.4.10), the driver's side, on a little-endian machine; `discover` makes it."""

from __future__ import annotations

from virtio_py.access import RegisterAccess
from virtio_py.errors import NegotiationError
from virtio_py.pci.virtio_legacy import (
    LEGACY_BAR,
    LEGACY_PAGE,
    legacy_config_offset,
    virtio_pci_legacy,
    virtio_pci_legacy_msix,
)
from virtio_py.rings.queue import DriverQueue
from virtio_py.transports.pci_interrupted import InterruptedTransport, Place
from virtio_py.transports.register_transport import LegacyRegisters, Names
from virtio_py.transports.registers import ConfigAccess


class LegacyPciTransport(LegacyRegisters, InterruptedTransport):
    """The driver's view of the registers in BAR 0. One thread at a time may call."""

    legacy_page = LEGACY_PAGE
    fixed_queue_sizes = True
    names = Names(
        device_features="device_features",
        driver_features="driver_features",
        device_select="",
        driver_select="",
        status="device_status",
        queue_select="queue_select",
        queue_size="queue_size",
    )

    def __init__(self, place: Place) -> None:
        self._registers = place.found.bar(LEGACY_BAR)
        config = ConfigAccess(_Following(self), 0, place.config)
        super().__init__(place, config, use_msix=True)

    @property
    def registers(self) -> RegisterAccess:
        """BAR 0."""
        return self._registers

    def _find(self, name: str) -> tuple[int, int]:
        if name in virtio_pci_legacy.fields:
            return virtio_pci_legacy.offset(name), virtio_pci_legacy.field(name).size
        at = virtio_pci_legacy.size + virtio_pci_legacy_msix.offset(name)
        return at, virtio_pci_legacy_msix.field(name).size

    def _read(self, name: str) -> int:
        return self._registers.read(*self._find(name))

    def _write(self, name: str, value: int) -> None:
        at, width = self._find(name)
        self._registers.write(at, value, width)

    def _take_isr(self) -> int:
        return self._read("isr_status")

    def accept_features(self, features: int) -> None:
        """The choice; with it, the event that needs no queue is mapped."""
        super().accept_features(features)
        self._map_config()

    def enable_queue(self, queue: DriverQueue) -> None:
        """Writes the queue's page number, which enables it. Raises NegotiationError if it is in use."""
        self._write("queue_select", queue.index)
        if self._read("queue_address"):
            raise NegotiationError("queue_address says that it is in use already", queue=queue.index)
        self.map_queue(queue.index)
        self._write("queue_address", queue.descriptor_area // LEGACY_PAGE)

    def reset_queue(self, index: int) -> None:
        """Raises NegotiationError: VIRTIO_F_RING_RESET is no feature of a legacy interface."""
        raise NegotiationError("a legacy interface resets no single queue", queue=index)

    def available_buffer(self, index: int, data: int) -> None:
        """queue_notify."""
        self._write("queue_notify", data)


class _Following:
    """The registers behind the header, which move when MSI-X is switched on or off."""

    def __init__(self, transport: LegacyPciTransport) -> None:
        self._transport = transport

    def read(self, offset: int, width: int) -> int:
        return self._transport.registers.read(legacy_config_offset(self._transport.msix) + offset, width)

    def write(self, offset: int, value: int, width: int) -> None:
        self._transport.registers.write(legacy_config_offset(self._transport.msix) + offset, value, width)
