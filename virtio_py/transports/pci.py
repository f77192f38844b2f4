"""Virtio over PCI (4.1), the device's side: a PCI function around a `DeviceEnd`.

machine = PciDevice(EntropyDevice(), memory)
bus.plug(machine.function, Address(1))      a bus reaches configuration space and BARs
machine.step()                              serves one queue that was kicked

What becomes of accesses that the specification forbids: see `register_device`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, field

from virtio_py.device import Administrator, DeviceEnd
from virtio_py.errors import MessageError
from virtio_py.pci.function import PciFunction
from virtio_py.pci.msix import MAX_VECTORS, Msix
from virtio_py.pci.virtio_caps import VIRTIO_PCI_VENDOR_ID
from virtio_py.spec import Feature, bit
from virtio_py.status import LEGACY_RING_FEATURES
from virtio_py.transports import pci_structures
from virtio_py.transports.pci_layout import MSIX_BAR, NO_VECTOR, WIDEST_NOTIFICATION, Isr
from virtio_py.transports.register_device import RegisterDevice
from virtio_py.transports.registers import feature_word

_FEW_VECTORS: Final = 2
_MIN_SUBSYSTEM: Final = 0x40


@define(eq=False)
class PciDevice(RegisterDevice):
    """A function whose BARs hold a device's structures. One thread at a time may call.

    transitional: has the legacy interface as well, and the ids that legacy drivers look for
    legacy_guard: not transitional, but lets legacy drivers that come all the same fail (4.1.4.11)
    express: a PCI Express function, or a conventional one
    msix_vectors: how many; None for one a queue and one for the configuration, 0 for no MSI-X
    notify_off_multiplier: bytes between the queues' addresses for notifications, 0 for one address
    shared_memory: regions (2.10) by their ids; vendor_data: (vendor id, bytes) of vendor data capabilities
    subsystem: Subsystem Vendor ID and Device ID; the latter follows from the type where it is transitional
    admin: makes the device the owner of groups (2.12); its administration virtqueues come behind the device's own

    Raises UsageError for what the specification does not let a device present.
    """

    transitional: bool = field(default=False, kw_only=True)
    legacy_guard: bool = field(default=False, kw_only=True)
    express: bool = field(default=True, kw_only=True)
    msix_vectors: int | None = field(default=None, kw_only=True)
    notify_off_multiplier: int = field(default=WIDEST_NOTIFICATION, kw_only=True)
    shared_memory: Mapping[int, memoryview] = field(factory=dict, kw_only=True)
    vendor_data: Sequence[tuple[int, bytes]] = field(default=(), kw_only=True)
    subsystem: tuple[int, int] = field(default=(VIRTIO_PCI_VENDOR_ID, _MIN_SUBSYSTEM), kw_only=True)
    admin: Administrator | None = field(default=None, kw_only=True)
    function: PciFunction = field(init=False)
    config_vector: int = field(init=False, default=NO_VECTOR)
    vectors_of: dict[int, int] = field(init=False, factory=dict)
    msix: Msix | None = field(init=False, default=None)
    config_length: int = field(init=False, default=0)
    isr: Isr = field(init=False, default=Isr(0))

    def __attrs_post_init__(self) -> None:
        RegisterDevice.__attrs_post_init__(self)
        self.config_length = len(self.device.read_config())
        vectors = self.msix_vectors
        if vectors is None:
            vectors = min(max(self.all_queues + 1, _FEW_VECTORS), MAX_VECTORS)
        if vectors:
            self.msix = Msix(vectors, lambda address, data: self.function.send(address, data))
        bars = dict(pci_structures.bars(self))
        ids = pci_structures.ids(self)
        self.function = PciFunction(ids, bars, self.express, on_reset=lambda: self.write_status(0))
        if self.msix is not None:
            self.function.add_msix(self.msix, MSIX_BAR, 0, pci_structures.pba_offset(self.msix))
        pci_structures.add_capabilities(self)

    def make_end(self) -> DeviceEnd:
        """See RegisterDevice."""
        return DeviceEnd(self.device, self.memory, self, self.engine, self.ring_features, admin=self.admin)

    def silence(self) -> None:
        """A legacy driver has come to where none should: it finds nothing in any BAR, until a reset."""
        self.function.silent = True

    # The device's Notifier

    def used_buffer(self, queue_index: int) -> None:
        """An interrupt for the queue: its vector's message, or the line (4.1.5.3)."""
        if self.msix is not None and self.msix.enabled:
            self._fire(self.msix, self.vectors_of.get(queue_index, NO_VECTOR))
        else:
            self._set_isr(self.isr | Isr.QUEUE)

    def configuration_change(self) -> None:
        """An interrupt for the configuration; the ISR status says so whatever carries it (4.1.5.4)."""
        self._set_isr(self.isr | Isr.DEVICE_CONFIGURATION)
        if self.msix is not None:
            self._fire(self.msix, self.config_vector)

    def _fire(self, msix: Msix, vector: int) -> None:
        if vector != NO_VECTOR:
            msix.fire(vector)

    def _set_isr(self, isr: Isr) -> None:
        self.isr = isr
        self.function.set_interrupt(bool(isr))

    def take_isr(self) -> int:
        """The ISR status, which is 0 afterwards."""
        isr = self.isr
        self._set_isr(Isr(0))
        return isr

    def mappable(self, vector: int) -> int:
        """The vector if an event can be mapped to it, else NO_VECTOR."""
        return vector if self.msix is not None and vector < self.msix.vectors else NO_VECTOR

    # Registers

    @property
    def selected_queue(self) -> int:
        """queue_select, of either interface."""
        return self.selected.get("queue_select", 0)

    @property
    def all_queues(self) -> int:
        """The number of virtqueues, administration virtqueues included."""
        return self.end.num_queues + len(self.end.admin_queues)

    def queue_exists(self) -> bool:
        """See RegisterDevice."""
        return self.selected_queue < self.all_queues

    def accepted(self, selector: int) -> int:
        """32 of the feature bits that the driver has accepted, those that are offered."""
        return feature_word(self.end.features & self.end.device_features, selector)

    def use_interface(self, *, legacy: bool) -> None:
        """One of the two interfaces is being touched: has the device, if it is in reset."""
        if self.end.read_status() == 0 and self.end.legacy != legacy:
            self.end.legacy = legacy
            rings = (self.ring_features | bit(Feature.ANY_LAYOUT)) & LEGACY_RING_FEATURES
            self.end.ring_features = rings if legacy else self.ring_features
            self.end.accept_features(0)

    def forget(self) -> None:
        """See RegisterDevice."""
        RegisterDevice.forget(self)
        self.config_vector = NO_VECTOR
        self.vectors_of.clear()
        if self.msix is not None:
            self.msix.pending.clear()
        self._set_isr(Isr(0))

    def notified(self, offset: int, value: int, width: int) -> None:
        """A write to where notifications go."""
        self.obey(lambda: self._notify(offset, value, width))

    def _notify(self, offset: int, value: int, width: int) -> None:
        wanted = WIDEST_NOTIFICATION if self.has(Feature.NOTIFICATION_DATA) else WIDEST_NOTIFICATION // 2
        if width != wanted:
            raise MessageError(f"a notification of {width} bytes, not {wanted}", where=f"offset {offset:#x}")
        index = self.end.notified_queue(value)
        if offset != index * self.notify_off_multiplier:
            raise MessageError(f"notification {value:#x} is for a queue elsewhere", where=f"offset {offset:#x}")
        self.kicks.add(value)

    def step(self) -> bool:
        """Serves one queue that was notified of; False if there is none, or the function may not reach memory."""
        return self.function.bus_master and self.kicks.step()

    def work(self, timeout: float) -> bool:
        """`step`, or waits up to `timeout` seconds for what stands behind the device."""
        return self.function.bus_master and self.kicks.work(timeout)
