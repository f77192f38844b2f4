"""Virtio over MMIO (4.2), the driver's side: a `Transport` over whatever reads and writes registers.

transport = discover(registers, arena, wait)
driver = EntropyDriver(transport).start()
"""

from __future__ import annotations

from typing import ClassVar, Final

from virtio_py.access import RegisterAccess
from virtio_py.errors import MessageError, NegotiationError
from virtio_py.memory import Arena
from virtio_py.records import Record
from virtio_py.rings.queue import DriverQueue
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
from virtio_py.transports.register_transport import LegacyRegisters, Names, RegisterTransport, Wait
from virtio_py.transports.registers import WORD, ConfigAccess

PAGE: Final = 4096
"""GuestPageSize and QueueAlign of our legacy driver, in bytes."""

_REGISTER: Final = 4


def discover(registers: RegisterAccess, arena: Arena, wait: Wait, config: Record | None = None) -> MmioTransport | None:
    """The transport for the device behind a register block; None for a placeholder (DeviceID 0), to be left alone.

    config: the device type's configuration structure, whose fields decide how wide accesses are; without it they are
    a byte wide. Raises MessageError for what is no virtio device, or of a version we do not know.
    """
    offset = virtio_mmio.offset
    if (magic := registers.read(offset("MagicValue"), _REGISTER)) != MAGIC:
        raise MessageError(f"MagicValue is {magic:#x}", clause="mmio.device.mmio-device-register-layout.1")
    if (version := registers.read(offset("Version"), _REGISTER)) not in _TRANSPORTS:
        raise MessageError(f"Version is {version}", clause="mmio.device.mmio-device-register-layout.2")
    device_id = registers.read(offset("DeviceID"), _REGISTER)
    return _TRANSPORTS[version](registers, device_id, arena, wait, config) if device_id else None


class MmioTransport(RegisterTransport):
    """The driver's view of a register block of version 2; made by `discover`. One thread at a time may call."""

    layout: ClassVar[Record] = virtio_mmio
    names = Names(
        device_features="DeviceFeatures",
        driver_features="DriverFeatures",
        device_select="DeviceFeaturesSel",
        driver_select="DriverFeaturesSel",
        status="Status",
        queue_select="QueueSel",
        queue_size="QueueSizeMax",
        generation="ConfigGeneration",
    )

    def __init__(
        self, registers: RegisterAccess, device_id: int, arena: Arena, wait: Wait, config: Record | None
    ) -> None:
        super().__init__(device_id, arena, wait, ConfigAccess(registers, CONFIG, config))
        self._registers = registers

    def _read(self, name: str) -> int:
        return self._registers.read(self.layout.offset(name), _REGISTER)

    def _write(self, name: str, value: int) -> None:
        self._registers.write(self.layout.offset(name), value, _REGISTER)

    def _write_address(self, name: str, address: int) -> None:
        self._write(f"{name}Low", address & WORD)
        self._write(f"{name}High", address >> 32)

    def enable_queue(self, queue: DriverQueue) -> None:
        """Writes the queue's registers and enables it. Raises NegotiationError if it is in use."""
        self._write("QueueSel", queue.index)
        self._check_idle(queue.index, "QueueReady")
        self._write("QueueSize", queue.size)
        self._write_address("QueueDesc", queue.descriptor_area)
        self._write_address("QueueDriver", queue.driver_area)
        self._write_address("QueueDevice", queue.device_area)
        self._write("QueueReady", 1)

    def _check_idle(self, index: int, name: str) -> None:
        if self._read(name):
            raise NegotiationError(f"{name} says that it is in use already", queue=index)

    def stop_queue(self, index: int) -> None:
        """Stops using a queue. Raises PeerError if the device does not confirm it."""
        self._write("QueueSel", index)
        self._write("QueueReady", 0)
        self.await_zero("QueueReady", index)

    def reset_queue(self, index: int) -> None:
        """Resets one queue. Raises PeerError if the device does not finish."""
        self._write("QueueSel", index)
        self._write("QueueReset", 1)
        self.await_zero("QueueReset", index)

    def shared_memory(self, ident: int) -> tuple[int, int] | None:
        """Guest address and length in bytes of a shared memory region (2.10), None where the device has none."""
        self._write("SHMSel", ident)
        base, length = (self._read(f"{name}Low") | self._read(f"{name}High") << 32 for name in ("SHMBase", "SHMLen"))
        return None if length == NO_REGION else (base, length)

    def available_buffer(self, index: int, data: int) -> None:
        """QueueNotify."""
        self._write("QueueNotify", data)

    def handle_interrupt(self) -> Interrupt:
        """Why the line is up; counts it, and acknowledges what was. For a used buffer, all queues are to be looked at.

        Acknowledged before anybody looks: what is used in between raises the line again.
        """
        events = Interrupt(self._read("InterruptStatus") & (Interrupt.USED_BUFFER | Interrupt.CONFIGURATION_CHANGE))
        if events & Interrupt.CONFIGURATION_CHANGE:
            self._config_notifications += 1
        if events:
            self._write("InterruptACK", events)
        return events

    def wait(self, timeout: float) -> None:
        """Waits for the interrupt, and handles it."""
        self._wait(timeout)
        self.handle_interrupt()


class LegacyMmioTransport(LegacyRegisters, MmioTransport):
    """The driver's view of a register block of version 1, the legacy interface, on a little-endian machine."""

    layout = virtio_mmio_legacy
    names = MmioTransport.names._replace(
        device_features="HostFeatures",
        driver_features="GuestFeatures",
        device_select="HostFeaturesSel",
        driver_select="GuestFeaturesSel",
    )
    legacy_page = PAGE

    def __init__(
        self, registers: RegisterAccess, device_id: int, arena: Arena, wait: Wait, config: Record | None
    ) -> None:
        super().__init__(registers, device_id, arena, wait, config)
        self._write("GuestPageSize", PAGE)

    def device_features(self) -> int:
        """HostFeatures: 32 bits are all there are."""
        self._write(self.names.device_select, 0)
        return super().device_features()

    def accept_features(self, features: int) -> None:
        """GuestFeatures."""
        self._write(self.names.driver_select, 0)
        super().accept_features(features)

    def enable_queue(self, queue: DriverQueue) -> None:
        """Writes the queue's registers and enables it. Raises NegotiationError if it is in use."""
        self._write("QueueSel", queue.index)
        self._check_idle(queue.index, "QueuePFN")
        self._write("QueueSize", queue.size)
        self._write("QueueAlign", PAGE)
        self._write("QueuePFN", queue.descriptor_area // PAGE)

    def stop_queue(self, index: int) -> None:
        """Stops using a queue. Raises PeerError if the device does not confirm it."""
        self._write("QueueSel", index)
        self._write("QueuePFN", 0)
        self.await_zero("QueuePFN", index)


_TRANSPORTS: Final[dict[int, type[MmioTransport]]] = {VERSION: MmioTransport, LEGACY_VERSION: LegacyMmioTransport}
