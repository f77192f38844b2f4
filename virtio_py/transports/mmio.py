"""Virtio over MMIO (4.2), the device's side: a machine of registers around a `DeviceEnd`.

machine = MmioDevice(EntropyDevice(), memory, interrupt=line)
machine.read(offset, width)    machine.write(offset, value, width)      what a bus calls
machine.step()                                                          serves one queue that was kicked

Nothing that a driver does to the registers raises. What the specification forbids has no effect (reads are 0) and is
kept in `ignored`; a queue that is enabled where it cannot be becomes DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from attrs import define, field

from virtio_py.device import Device, DeviceEnd
from virtio_py.errors import MessageError, NegotiationError, PeerError
from virtio_py.memory import GuestMemory
from virtio_py.records import Record
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.queue import QueueConfig
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.status import RING_FEATURES
from virtio_py.transports.mmio_layout import (
    CONFIG,
    MAGIC,
    NO_REGION,
    VERSION,
    Interrupt,
    virtio_mmio,
)
from virtio_py.transports.registers import WIDTHS, WORD, Kicks, feature_word, with_feature_word

_NOT_OVER_MMIO: Final = mask(Feature.ADMIN_VQ, Feature.NOTIF_CONFIG_DATA)
"""Reserved for future use (4.2.5), and what has no register."""

_REGISTER: Final = 4
"""Bytes of a control register."""

_REMEMBERED: Final = 16


def _no_line(level: bool) -> None:
    """For a driver that polls."""


_LOCKED: Final = "mmio.driver.mmio-device-register-layout.15"

Read = Callable[[Any], int]
Write = Callable[[Any, int], None]


def select(name: str) -> Write:
    """A register whose value says what others are about."""

    def write(machine: MmioDevice, value: int) -> None:
        machine.selected[name] = value

    return write


def _half(area: str, shift: int) -> Write:
    return lambda machine, value: machine._set_half(area, shift, value)


@define(eq=False)
class MmioDevice:
    """A device's register block, version 2. One thread at a time may call.

    interrupt:     called with the level of the interrupt line whenever it changes
    ring_features: mask of the features offered besides the device's own
    shared_memory: regions (2.10) by their ids: guest address and length in bytes
    ignored:       the last things a driver did that it must not do
    """

    version: ClassVar[int] = VERSION
    layout: ClassVar[Record] = virtio_mmio
    readable: ClassVar[Mapping[str, Read]]
    writable: ClassVar[Mapping[str, Write]]

    device: Device
    memory: GuestMemory
    engine: Engine = REFERENCE
    interrupt: Callable[[bool], None] = _no_line
    ring_features: int = RING_FEATURES
    shared_memory: Mapping[int, tuple[int, int]] = field(factory=dict)
    vendor_id: int = 0
    ignored: deque[PeerError] = field(init=False, factory=lambda: deque(maxlen=_REMEMBERED))
    end: DeviceEnd = field(init=False)
    _kicks: Kicks = field(init=False)
    _names: dict[int, str] = field(init=False)
    selected: dict[str, int] = field(init=False, factory=dict)
    _pending: Interrupt = field(init=False, default=Interrupt(0))
    _resetting: set[int] = field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        self.end = self._make_end()
        self._kicks = Kicks(self.end)
        self._names = {f.offset: name for name, f in self.layout.fields.items() if f.kind == "int"}

    def _make_end(self) -> DeviceEnd:
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
        try:
            if offset >= CONFIG:
                self._check_width(offset, width, WIDTHS)
                return int.from_bytes(self.end.read_config(offset - CONFIG, width), "little")
            return self.readable[self._name(offset, width, self.readable)](self) & WORD
        except PeerError as error:
            self.ignored.append(error)
            return 0

    def write(self, offset: int, value: int, width: int) -> None:
        """A write of `width` bytes at `offset`."""
        try:
            if offset >= CONFIG:
                self._check_width(offset, width, WIDTHS)
                data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
                self.end.write_config(offset - CONFIG, data)
            else:
                self.writable[self._name(offset, width, self.writable)](self, value & WORD)
        except (MessageError, NegotiationError) as error:
            self.ignored.append(error)
        except PeerError as error:
            self.end.needs_reset(error)

    def _check_width(self, offset: int, width: int, widths: tuple[int, ...]) -> None:
        if width not in widths:
            raise MessageError(f"an access of {width} bytes", where=f"offset {offset:#x}")

    def _name(self, offset: int, width: int, table: Mapping[str, object]) -> str:
        self._check_width(offset, width, (_REGISTER,))
        name = self._names.get(offset)
        if name is None or name not in table:
            raise MessageError("no register for this access", where=f"offset {offset:#x}")
        return name

    def step(self) -> bool:
        """Serves one queue that was notified of; False if there is none."""
        return self._kicks.step()

    def work(self, timeout: float) -> bool:
        """`step`, or waits up to `timeout` seconds for what stands behind the device."""
        return self._kicks.work(timeout)

    # Registers of both versions

    def forget(self) -> None:
        """The device was reset: so are the registers."""
        self._kicks.clear()
        self.selected.clear()
        self._set_pending(Interrupt(0))

    def _write_status(self, value: int) -> None:
        self.end.write_status(value)
        if value == 0:
            # After the device's own reset, in the course of which it may still have notified.
            self.forget()

    def _acknowledge(self, value: int) -> None:
        self._set_pending(self._pending & ~Interrupt(value & (Interrupt.USED_BUFFER | Interrupt.CONFIGURATION_CHANGE)))

    def accept_features(self, value: int) -> None:
        """DriverFeatures."""
        selector = self.selected.get("DriverFeaturesSel", 0)
        self.end.accept_features(with_feature_word(self.end.features, selector, value))

    def _notify(self, value: int) -> None:
        if value >> 16 and not self.end.features & bit(Feature.NOTIFICATION_DATA):
            raise MessageError(f"notification {value:#x} is for no queue")
        self._kicks.add(value)

    # The selected queue

    @property
    def selected_queue(self) -> int:
        """QueueSel."""
        return self.selected.get("QueueSel", 0)

    def _size_max(self) -> int:
        exists = self.selected_queue < self.end.num_queues
        return self.end.queue(self.selected_queue).max_size if exists else 0

    def in_use(self) -> bool:
        """Whether the selected queue is enabled."""
        return self.end.active_queue(self.selected_queue) is not None

    def idle_queue(self) -> QueueConfig:
        """The selected queue, to be configured. Raises MessageError if there is none, or it is in use."""
        index = self.selected_queue
        if index >= self.end.num_queues:
            raise MessageError(f"there is no queue {index}")
        if self.in_use():
            raise MessageError("the queue is in use", clause=_LOCKED, queue=index)
        return self.end.queue(index)

    def _set_size(self, value: int) -> None:
        self.idle_queue().size = value

    def _set_half(self, area: str, shift: int, value: int) -> None:
        config = self.idle_queue()
        setattr(config, area, getattr(config, area) & ~(WORD << shift) | value << shift)

    def _write_ready(self, value: int) -> None:
        if value == 0:
            if self.in_use():
                self.end.stop_queue(self.selected_queue)
            return
        self.idle_queue()
        if value != 1:
            raise MessageError(f"QueueReady is 0 or 1, not {value:#x}", queue=self.selected_queue)
        # What the ring looks like is not settled before.
        if not self.end.read_status() & DeviceStatus.FEATURES_OK:
            raise NegotiationError("a queue enabled before FEATURES_OK", queue=self.selected_queue)
        self.end.enable_queue(self.selected_queue)

    def _write_queue_reset(self, value: int) -> None:
        index = self.selected_queue
        if index >= self.end.num_queues or value != 1 or index in self._resetting:
            raise MessageError(f"QueueReset written {value:#x}", queue=index)
        self._resetting.add(index)
        try:
            self.end.reset_queue(index)
        finally:
            self._resetting.remove(index)

    # Shared memory

    def _region(self, part: int, shift: int) -> int:
        region = self.shared_memory.get(self.selected.get("SHMSel", 0), (NO_REGION, NO_REGION))
        return region[part] >> shift


def offer(machine: MmioDevice) -> int:
    """DeviceFeatures."""
    return feature_word(machine.end.device_features, machine.selected.get("DeviceFeaturesSel", 0))


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
    "Status": MmioDevice._write_status,
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
    "QueueReset": lambda m: m.selected_queue in m._resetting,
    "ConfigGeneration": lambda m: m.end.config_generation,
}
MmioDevice.writable = {
    **COMMON_WRITES,
    "DeviceFeaturesSel": select("DeviceFeaturesSel"),
    "DriverFeatures": MmioDevice.accept_features,
    "DriverFeaturesSel": select("DriverFeaturesSel"),
    "QueueReady": MmioDevice._write_ready,
    "QueueDescLow": _half("descriptor_area", 0),
    "QueueDescHigh": _half("descriptor_area", 32),
    "QueueDriverLow": _half("driver_area", 0),
    "QueueDriverHigh": _half("driver_area", 32),
    "QueueDeviceLow": _half("device_area", 0),
    "QueueDeviceHigh": _half("device_area", 32),
    "SHMSel": select("SHMSel"),
    "QueueReset": MmioDevice._write_queue_reset,
}
