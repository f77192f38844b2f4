"""Virtio over MMIO (4.2), the device's side: a machine of registers around a `DeviceEnd`.

machine = MmioDevice(EntropyDevice(), memory, interrupt=line)
machine.read(offset, width)    machine.write(offset, value, width)      what a bus calls
machine.step()                                                          serves one queue that was kicked

What becomes of accesses that the specification forbids: see `register_device`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from attrs import define, field

from virtio_py.device import DeviceEnd
from virtio_py.errors import MessageError
from virtio_py.records import Record
from virtio_py.spec import Feature, mask
from virtio_py.transports.mmio_layout import (
    CONFIG,
    MAGIC,
    NO_REGION,
    VERSION,
    Interrupt,
    virtio_mmio,
)
from virtio_py.transports.register_device import (
    ConfigBlock,
    Read,
    RegisterBlock,
    RegisterDevice,
    Write,
    half,
    select,
)

_NOT_OVER_MMIO: Final = mask(Feature.ADMIN_VQ, Feature.NOTIF_CONFIG_DATA)
"""Reserved for future use (4.2.5), and what has no register."""


def _no_line(level: bool) -> None:
    """For a driver that polls."""


@define(eq=False)
class MmioDevice(RegisterDevice):
    """A device's register block, version 2. One thread at a time may call.

    interrupt:     called with the level of the interrupt line whenever it changes
    shared_memory: regions (2.10) by their ids: guest address and length in bytes
    """

    version: ClassVar[int] = VERSION
    layout: ClassVar[Record] = virtio_mmio
    readable: ClassVar[Mapping[str, Read]]
    writable: ClassVar[Mapping[str, Write]]
    locked_clause: ClassVar[str] = "mmio.driver.mmio-device-register-layout.15"

    interrupt: Callable[[bool], None] = _no_line
    shared_memory: Mapping[int, tuple[int, int]] = field(factory=dict)
    vendor_id: int = 0
    _control: RegisterBlock = field(init=False)
    _config: ConfigBlock = field(init=False)
    _pending: Interrupt = field(init=False, default=Interrupt(0))

    def __attrs_post_init__(self) -> None:
        RegisterDevice.__attrs_post_init__(self)
        self._control = RegisterBlock(self, self.layout, self.readable, self.writable)
        self._config = ConfigBlock(self)

    def make_end(self) -> DeviceEnd:
        """See RegisterDevice."""
        return DeviceEnd(self.device, self.memory, self, self.engine, self.ring_features & ~_NOT_OVER_MMIO)

    # The device's Notifier

    def used_buffer(self, queue_index: int) -> None:
        """Sets bit 0 of InterruptStatus."""
        self._set_pending(self._pending | Interrupt.USED_BUFFER)

    def configuration_change(self) -> None:
        """Sets bit 1 of InterruptStatus."""
        self._set_pending(self._pending | Interrupt.CONFIGURATION_CHANGE)

    def _set_pending(self, pending: Interrupt) -> None:
        before, self._pending = self._pending, pending
        if bool(before) != bool(pending):
            self.interrupt(bool(pending))

    # The bus

    def read(self, offset: int, width: int) -> int:
        """What a read of `width` bytes at `offset` returns, little-endian."""
        if offset >= CONFIG:
            return self._config.read(offset - CONFIG, width)
        return self._control.read(offset, width)

    def write(self, offset: int, value: int, width: int) -> None:
        """A write of `width` bytes at `offset`."""
        if offset >= CONFIG:
            self._config.write(offset - CONFIG, value, width)
        else:
            self._control.write(offset, value, width)

    # Registers of both versions

    def forget(self) -> None:
        """See RegisterDevice."""
        RegisterDevice.forget(self)
        self._set_pending(Interrupt(0))

    def _acknowledge(self, value: int) -> None:
        self._set_pending(self._pending & ~Interrupt(value & (Interrupt.USED_BUFFER | Interrupt.CONFIGURATION_CHANGE)))

    def accept_features(self, value: int) -> None:
        """DriverFeatures."""
        self.accept(self.selected.get("DriverFeaturesSel", 0), value)

    def _notify(self, value: int) -> None:
        if value >> 16 and not self.has(Feature.NOTIFICATION_DATA):
            raise MessageError(f"notification {value:#x} is for no queue")
        self.kicks.add(value)

    # The selected queue

    @property
    def selected_queue(self) -> int:
        """QueueSel."""
        return self.selected.get("QueueSel", 0)

    def _size_max(self) -> int:
        return self.end.queue(self.selected_queue).max_size if self.queue_exists() else 0

    def _set_size(self, value: int) -> None:
        self.idle_queue().size = value

    def _write_ready(self, value: int) -> None:
        if value == 0:
            if self.in_use():
                self.end.stop_queue(self.selected_queue)
            return
        self.idle_queue()
        if value != 1:
            raise MessageError(f"QueueReady is 0 or 1, not {value:#x}", queue=self.selected_queue)
        self.enable()

    # Shared memory

    def _region(self, part: int, shift: int) -> int:
        region = self.shared_memory.get(self.selected.get("SHMSel", 0), (NO_REGION, NO_REGION))
        return region[part] >> shift


def offer(machine: MmioDevice) -> int:
    """DeviceFeatures."""
    return machine.offer(machine.selected.get("DeviceFeaturesSel", 0))


COMMON_READS: Final[Mapping[str, Read]] = {
    "MagicValue": lambda m: MAGIC,
    "Version": lambda m: m.version,
    "DeviceID": lambda m: m.device.device_id,
    "VendorID": lambda m: m.vendor_id,
    "QueueSizeMax": MmioDevice._size_max,
    "InterruptStatus": lambda m: m._pending,
    "Status": lambda m: m.end.read_status(),
}
"""The registers that can be read in both versions: those of direction R and RW."""

COMMON_WRITES: Final[Mapping[str, Write]] = {
    "QueueSel": select("QueueSel"),
    "QueueSize": MmioDevice._set_size,
    "QueueNotify": MmioDevice._notify,
    "InterruptACK": MmioDevice._acknowledge,
    "Status": MmioDevice.write_status,
}
"""The registers that can be written in both versions: those of direction W and RW."""

MmioDevice.readable = {
    **COMMON_READS,
    "DeviceFeatures": offer,
    "QueueReady": MmioDevice.in_use,
    "SHMLenLow": lambda m: m._region(1, 0),
    "SHMLenHigh": lambda m: m._region(1, 32),
    "SHMBaseLow": lambda m: m._region(0, 0),
    "SHMBaseHigh": lambda m: m._region(0, 32),
    "QueueReset": lambda m: m.selected_queue in m.resetting,
    "ConfigGeneration": lambda m: m.end.config_generation,
}
MmioDevice.writable = {
    **COMMON_WRITES,
    "DeviceFeaturesSel": select("DeviceFeaturesSel"),
    "DriverFeatures": MmioDevice.accept_features,
    "DriverFeaturesSel": select("DriverFeaturesSel"),
    "QueueReady": MmioDevice._write_ready,
    "QueueDescLow": half("descriptor_area", 0),
    "QueueDescHigh": half("descriptor_area", 32),
    "QueueDriverLow": half("driver_area", 0),
    "QueueDriverHigh": half("driver_area", 32),
    "QueueDeviceLow": half("device_area", 0),
    "QueueDeviceHigh": half("device_area", 32),
    "SHMSel": select("SHMSel"),
    "QueueReset": MmioDevice.reset_queue,
}
