"""Virtio over MMIO, the legacy interface (4.2.4), the device's side: queues are found by a page number.

machine = LegacyMmioDevice(EntropyDevice(), memory, interrupt=line)         otherwise as a MmioDevice
"""

from __future__ import annotations

from typing import ClassVar

from attrs import define, field

from virtio_py.device import DeviceEnd
from virtio_py.records import Record
from virtio_py.status import LEGACY_RING_FEATURES
from virtio_py.transports.mmio import COMMON_READS, COMMON_WRITES, MmioDevice, offer
from virtio_py.transports.mmio_layout import LEGACY_VERSION, virtio_mmio_legacy
from virtio_py.transports.register_device import select


@define(eq=False)
class LegacyMmioDevice(MmioDevice):
    """A device's register block, version 1: the legacy interface (4.2.4), for little-endian guests.

    ring_features: what is offered besides the device's own; bits past 31 cannot be.
    """

    version: ClassVar[int] = LEGACY_VERSION
    layout: ClassVar[Record] = virtio_mmio_legacy

    ring_features: int = field(default=LEGACY_RING_FEATURES, kw_only=True)
    _page_size: int = field(init=False, default=0)
    _aligns: dict[int, int] = field(init=False, factory=dict)
    _pages: dict[int, int] = field(init=False, factory=dict)

    def make_end(self) -> DeviceEnd:
        """See RegisterDevice."""
        return DeviceEnd(self.device, self.memory, self, self.engine, self.ring_features, legacy=True)

    def forget(self) -> None:
        """See MmioDevice."""
        # The page size stays: drivers write it when they find the device, and reset it only then.
        MmioDevice.forget(self)
        self._aligns.clear()
        self._pages.clear()

    def _set_page_size(self, value: int) -> None:
        self._page_size = value

    def _set_align(self, value: int) -> None:
        self.idle_queue()
        self._aligns[self.selected_queue] = value

    def _read_page(self) -> int:
        return self._pages.get(self.selected_queue, 0) if self.in_use() else 0

    def _write_page(self, value: int) -> None:
        index = self.selected_queue
        if value == 0:
            if self.in_use():
                self.end.stop_queue(index)
            return
        self.enable_legacy(value, self._page_size, self._aligns.get(index, 0))
        self._pages[index] = value


LegacyMmioDevice.readable = {**COMMON_READS, "HostFeatures": offer, "QueuePFN": LegacyMmioDevice._read_page}
LegacyMmioDevice.writable = {
    **COMMON_WRITES,
    "HostFeaturesSel": select("DeviceFeaturesSel"),
    "GuestFeatures": MmioDevice.accept_features,
    "GuestFeaturesSel": select("DriverFeaturesSel"),
    "GuestPageSize": LegacyMmioDevice._set_page_size,
    "QueueAlign": LegacyMmioDevice._set_align,
    "QueuePFN": LegacyMmioDevice._write_page,
}
