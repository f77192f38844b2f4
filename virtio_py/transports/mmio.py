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
from typing import ClassVar, Final

from attrs import define, field

from virtio_py.device import Device, DeviceEnd
from virtio_py.errors import MessageError, NegotiationError, PeerError, RingError
from virtio_py.memory import GuestMemory
from virtio_py.records import Record
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.places import legacy_places
from virtio_py.rings.queue import QueueConfig
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.status import LEGACY_RING_FEATURES, RING_FEATURES
from virtio_py.transports.mmio_layout import (
    CONFIG,
    LEGACY_VERSION,
    MAGIC,
    NO_REGION,
    VERSION,
    Interrupt,
    virtio_mmio,
    virtio_mmio_legacy,
)
from virtio_py.transports.registers import WIDTHS, WORD, Kicks, feature_word, with_feature_word

_NOT_OVER_MMIO: Final = mask(Feature.ADMIN_VQ, Feature.NOTIF_CONFIG_DATA)
"""Reserved for future use (4.2.5), and what has no register."""

_REGISTER: Final = 4
"""Bytes of a control register."""

_REMEMBERED: Final = 16


def _no_line(level: bool) -> None:
    """For a driver that polls."""


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
    _selected: dict[str, int] = field(init=False, factory=dict)
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
            return _READS[self.version][self._name(offset, width, _READS)](self) & WORD
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
                _WRITES[self.version][self._name(offset, width, _WRITES)](self, value & WORD)
        except (MessageError, NegotiationError) as error:
            self.ignored.append(error)
        except PeerError as error:
            self.end.needs_reset(error)

    def _check_width(self, offset: int, width: int, widths: tuple[int, ...]) -> None:
        if width not in widths:
            raise MessageError(f"an access of {width} bytes", where=f"offset {offset:#x}")

    def _name(self, offset: int, width: int, directions: Mapping[int, Mapping[str, object]]) -> str:
        self._check_width(offset, width, (_REGISTER,))
        name = self._names.get(offset)
        if name is None or name not in directions[self.version]:
            raise MessageError("no register for this access", where=f"offset {offset:#x}")
        return name

    def step(self) -> bool:
        """Serves one queue that was notified of; False if there is none."""
        return self._kicks.step()

    def work(self, timeout: float) -> bool:
        """`step`, or waits up to `timeout` seconds for what stands behind the device."""
        return self._kicks.work(timeout)

    # Registers of both versions

    def _reset(self) -> None:
        self._kicks.clear()
        self._selected.clear()
        self._set_pending(Interrupt(0))

    def _write_status(self, value: int) -> None:
        self.end.write_status(value)
        if value == 0:
            # After the device's own reset, in the course of which it may still have notified.
            self._reset()

    def _acknowledge(self, value: int) -> None:
        self._set_pending(self._pending & ~Interrupt(value & (Interrupt.USED_BUFFER | Interrupt.CONFIGURATION_CHANGE)))

    def _accept_features(self, value: int) -> None:
        selector = self._selected.get("DriverFeaturesSel", 0)
        self.end.accept_features(with_feature_word(self.end.features, selector, value))

    def _notify(self, value: int) -> None:
        if value >> 16 and not self.end.features & bit(Feature.NOTIFICATION_DATA):
            raise MessageError(f"notification {value:#x} is for no queue")
        self._kicks.add(value)

    # The selected queue

    @property
    def _selected_queue(self) -> int:
        return self._selected.get("QueueSel", 0)

    def _size_max(self) -> int:
        exists = self._selected_queue < self.end.num_queues
        return self.end.queue(self._selected_queue).max_size if exists else 0

    def _ready(self) -> bool:
        return self.end.active_queue(self._selected_queue) is not None

    def _config(self) -> QueueConfig:
        """The selected queue, to be configured. Raises MessageError if there is none, or it is in use."""
        index = self._selected_queue
        if index >= self.end.num_queues:
            raise MessageError(f"there is no queue {index}")
        if self._ready():
            raise MessageError("the queue is in use", clause=_LOCKED, queue=index)
        return self.end.queue(index)

    def _set_size(self, value: int) -> None:
        self._config().size = value

    def _set_half(self, area: str, shift: int, value: int) -> None:
        config = self._config()
        setattr(config, area, getattr(config, area) & ~(WORD << shift) | value << shift)

    def _write_ready(self, value: int) -> None:
        if value == 0:
            if self._ready():
                self.end.stop_queue(self._selected_queue)
            return
        self._config()
        if value != 1:
            raise MessageError(f"QueueReady is 0 or 1, not {value:#x}", queue=self._selected_queue)
        # What the ring looks like is not settled before.
        if not self.end.read_status() & DeviceStatus.FEATURES_OK:
            raise NegotiationError("a queue enabled before FEATURES_OK", queue=self._selected_queue)
        self.end.enable_queue(self._selected_queue)

    def _write_queue_reset(self, value: int) -> None:
        index = self._selected_queue
        if index >= self.end.num_queues or value != 1 or index in self._resetting:
            raise MessageError(f"QueueReset written {value:#x}", queue=index)
        self._resetting.add(index)
        try:
            self.end.reset_queue(index)
        finally:
            self._resetting.remove(index)

    # Shared memory

    def _region(self, part: int, shift: int) -> int:
        region = self.shared_memory.get(self._selected.get("SHMSel", 0), (NO_REGION, NO_REGION))
        return region[part] >> shift


@define(eq=False)
class LegacyMmioDevice(MmioDevice):
    """A device's register block, version 1: the legacy interface (4.2.4), for little-endian guests.

    ring_features: what is offered besides the device's own; bits past 31 cannot be.
    """

    version: ClassVar[int] = LEGACY_VERSION
    layout: ClassVar[Record] = virtio_mmio_legacy

    ring_features: int = LEGACY_RING_FEATURES
    _page_size: int = field(init=False, default=0)
    _aligns: dict[int, int] = field(init=False, factory=dict)
    _pages: dict[int, int] = field(init=False, factory=dict)

    def _make_end(self) -> DeviceEnd:
        return DeviceEnd(self.device, self.memory, self, self.engine, self.ring_features, legacy=True)

    def _reset(self) -> None:
        # The page size stays: drivers write it when they find the device, and reset it only then.
        MmioDevice._reset(self)
        self._aligns.clear()
        self._pages.clear()

    def _set_page_size(self, value: int) -> None:
        self._page_size = value

    def _set_align(self, value: int) -> None:
        self._config()
        self._aligns[self._selected_queue] = value

    def _read_page(self) -> int:
        return self._pages.get(self._selected_queue, 0) if self._ready() else 0

    def _write_page(self, value: int) -> None:
        index = self._selected_queue
        if value == 0:
            if self._ready():
                self.end.stop_queue(index)
            return
        config = self._config()
        align = self._aligns.get(index, 0)
        for what, size in (("GuestPageSize", self._page_size), ("QueueAlign", align)):
            if not size or size & (size - 1):
                raise RingError(f"{what} is {size}, no power of 2", queue=index)
        if not 0 < config.size <= config.max_size:
            raise RingError(f"queue size {config.size} is not from 1 to {config.max_size}", queue=index)
        places = legacy_places(config.size, align)
        config.descriptor_area = value * self._page_size
        config.driver_area = config.descriptor_area + places.driver
        config.device_area = config.descriptor_area + places.device
        self.end.enable_queue(index)
        self._pages[index] = value


_LOCKED: Final = "mmio.driver.mmio-device-register-layout.15"
_Read = Callable[[MmioDevice], int]
_Write = Callable[[MmioDevice, int], None]


def _select(name: str) -> _Write:
    def select(machine: MmioDevice, value: int) -> None:
        machine._selected[name] = value

    return select


def _half(area: str, shift: int) -> _Write:
    return lambda machine, value: machine._set_half(area, shift, value)


def _legacy(write: Callable[[LegacyMmioDevice, int], None]) -> _Write:
    def checked(machine: MmioDevice, value: int) -> None:
        assert isinstance(machine, LegacyMmioDevice)
        write(machine, value)

    return checked


def _queue_page(machine: MmioDevice) -> int:
    assert isinstance(machine, LegacyMmioDevice)
    return machine._read_page()


_COMMON_READS: Final[dict[str, _Read]] = {
    "MagicValue": lambda m: MAGIC,
    "Version": lambda m: m.version,
    "DeviceID": lambda m: m.device.device_id,
    "VendorID": lambda m: m.vendor_id,
    "QueueSizeMax": MmioDevice._size_max,
    "InterruptStatus": lambda m: m._pending,
    "Status": lambda m: m.end.read_status(),
}
_COMMON_WRITES: Final[dict[str, _Write]] = {
    "QueueSel": _select("QueueSel"),
    "QueueSize": MmioDevice._set_size,
    "QueueNotify": MmioDevice._notify,
    "InterruptACK": MmioDevice._acknowledge,
    "Status": MmioDevice._write_status,
}


def _offer(machine: MmioDevice) -> int:
    return feature_word(machine.end.device_features, machine._selected.get("DeviceFeaturesSel", 0))


_READS: Final[dict[int, dict[str, _Read]]] = {
    VERSION: _COMMON_READS
    | {
        "DeviceFeatures": _offer,
        "QueueReady": MmioDevice._ready,
        "SHMLenLow": lambda m: m._region(1, 0),
        "SHMLenHigh": lambda m: m._region(1, 32),
        "SHMBaseLow": lambda m: m._region(0, 0),
        "SHMBaseHigh": lambda m: m._region(0, 32),
        "QueueReset": lambda m: m._selected_queue in m._resetting,
        "ConfigGeneration": lambda m: m.end.config_generation,
    },
    LEGACY_VERSION: _COMMON_READS | {"HostFeatures": _offer, "QueuePFN": _queue_page},
}
"""The registers that can be read, by version and name: those of direction R and RW."""

_WRITES: Final[dict[int, dict[str, _Write]]] = {
    VERSION: _COMMON_WRITES
    | {
        "DeviceFeaturesSel": _select("DeviceFeaturesSel"),
        "DriverFeatures": MmioDevice._accept_features,
        "DriverFeaturesSel": _select("DriverFeaturesSel"),
        "QueueReady": MmioDevice._write_ready,
        "QueueDescLow": _half("descriptor_area", 0),
        "QueueDescHigh": _half("descriptor_area", 32),
        "QueueDriverLow": _half("driver_area", 0),
        "QueueDriverHigh": _half("driver_area", 32),
        "QueueDeviceLow": _half("device_area", 0),
        "QueueDeviceHigh": _half("device_area", 32),
        "SHMSel": _select("SHMSel"),
        "QueueReset": MmioDevice._write_queue_reset,
    },
    LEGACY_VERSION: _COMMON_WRITES
    | {
        "HostFeaturesSel": _select("DeviceFeaturesSel"),
        "GuestFeatures": MmioDevice._accept_features,
        "GuestFeaturesSel": _select("DriverFeaturesSel"),
        "GuestPageSize": _legacy(LegacyMmioDevice._set_page_size),
        "QueueAlign": _legacy(LegacyMmioDevice._set_align),
        "QueuePFN": _legacy(LegacyMmioDevice._write_page),
    },
}
"""The registers that can be written, by version and name: those of direction W and RW."""
