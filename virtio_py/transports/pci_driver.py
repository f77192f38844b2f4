"""Virtio over PCI (4.1), the driver's side: a `Transport` over a function's structures; `discover` makes it."""

from __future__ import annotations

from typing import Final

from virtio_py.errors import MessageError, NegotiationError
from virtio_py.pci.virtio_caps import CfgType, virtio_pci_common_cfg
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import Feature, bit
from virtio_py.transports.pci_find import Mapper
from virtio_py.transports.pci_interrupted import InterruptedTransport, Place
from virtio_py.transports.pci_layout import WIDEST_NOTIFICATION
from virtio_py.transports.register_transport import Names
from virtio_py.transports.registers import WORD, ConfigAccess

_NEEDS_FIELD: Final = {
    Feature.NOTIF_CONFIG_DATA: "queue_notif_config_data",
    Feature.RING_RESET: "queue_reset",
    Feature.ADMIN_VQ: "admin_queue_num",
}
"""Features whose registers the structure of an older device does not have."""


class PciTransport(InterruptedTransport):
    """The driver's view of a function that is not used by its legacy interface. One thread at a time may call."""

    names = Names(
        device_features="device_feature",
        driver_features="driver_feature",
        device_select="device_feature_select",
        driver_select="driver_feature_select",
        status="device_status",
        queue_select="queue_select",
        queue_size="queue_size",
        generation="config_generation",
    )

    def __init__(self, place: Place, structures: Mapper) -> None:
        config = structures.find(CfgType.DEVICE_CFG)
        super().__init__(place, ConfigAccess(config, 0, place.config), use_msix=not structures.window)
        self._structures = structures
        self._common = structures.find(CfgType.COMMON_CFG)
        self._isr = structures.find(CfgType.ISR_CFG)
        self._notify = structures.find(CfgType.NOTIFY_CFG)
        self._multiplier: int = self._notify.fields["notify_off_multiplier"]
        self._features = 0
        self._doorbells: dict[int, tuple[int, int]] = {}

    def _read(self, name: str) -> int:
        return self._common.read(virtio_pci_common_cfg.offset(name), virtio_pci_common_cfg.field(name).size)

    def _write(self, name: str, value: int) -> None:
        self._common.write(virtio_pci_common_cfg.offset(name), value, virtio_pci_common_cfg.field(name).size)

    def _write_address(self, name: str, address: int) -> None:
        at, half = virtio_pci_common_cfg.offset(name), virtio_pci_common_cfg.field(name).size // 2
        self._common.write(at, address & WORD, half)
        self._common.write(at + half, address >> 32, half)

    def _take_isr(self) -> int:
        return self._isr.read(0, 1)

    @property
    def num_queues(self) -> int:
        """num_queues, which leaves out administration virtqueues."""
        return self._read("num_queues")

    @property
    def admin_queues(self) -> range:
        """The indices of the administration virtqueues; none without VIRTIO_F_ADMIN_VQ."""
        if not self._features & bit(Feature.ADMIN_VQ):
            return range(0)
        first, count = self._read("admin_queue_index"), self._read("admin_queue_num")
        return range(first, first + count)

    def device_features(self) -> int:
        """The offer, less what the structure has no registers for."""
        offered = super().device_features()
        for feature, name in _NEEDS_FIELD.items():
            if virtio_pci_common_cfg.end(name) > self._common.length:
                offered &= ~bit(feature)
        return offered

    def accept_features(self, features: int) -> None:
        """The choice; with it, the event that needs no queue is mapped."""
        super().accept_features(features)
        self._features = features

    def enable_queue(self, queue: DriverQueue) -> None:
        """Writes the queue's registers and enables it. Raises NegotiationError if it is in use, or cannot be
        notified."""
        self._write("queue_select", queue.index)
        if self._read("queue_enable"):
            raise NegotiationError("queue_enable says that it is in use already", queue=queue.index)
        self._write("queue_size", queue.size)
        self.map_queue(queue.index)
        self._write_address("queue_desc", queue.descriptor_area)
        self._write_address("queue_driver", queue.driver_area)
        self._write_address("queue_device", queue.device_area)
        self._doorbells[queue.index] = self._doorbell(queue.index)
        if self._features & bit(Feature.NOTIF_CONFIG_DATA):
            queue.notif_config_data = self._read("queue_notif_config_data")
        self._write("queue_enable", 1)

    def _doorbell(self, index: int) -> tuple[int, int]:
        """(offset, width in bytes) of the selected queue's notifications."""
        data = bool(self._features & bit(Feature.NOTIFICATION_DATA))
        width = WIDEST_NOTIFICATION if data else WIDEST_NOTIFICATION // 2
        offset = self._read("queue_notify_off") * self._multiplier
        if offset + width > self._notify.length:
            raise NegotiationError(f"notifications go to {offset:#x}, behind their structure's end", queue=index)
        return offset, width

    def reset_queue(self, index: int) -> None:
        """Resets one queue. Raises PeerError if the device does not finish."""
        self._write("queue_select", index)
        self._write("queue_reset", 1)
        self.await_zero("queue_reset", index)
        if self._read("queue_enable"):
            raise MessageError("queue_enable is not 0 after a queue reset", queue=index)

    def available_buffer(self, index: int, data: int) -> None:
        """Writes to where the queue is notified: 16 bits, or 32 with VIRTIO_F_NOTIFICATION_DATA."""
        offset, width = self._doorbells[index]
        self._notify.write(offset, data, width)

    def shared_memory(self, ident: int) -> tuple[int, int] | None:
        """Address and length in bytes of a shared memory region (2.10), None where the device has none."""
        return self._structures.shared_memory(ident)
