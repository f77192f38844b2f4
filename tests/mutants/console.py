"""Consoles, each broken in one clause of 5.3."""

from __future__ import annotations

from typing import Final

from tests.mutants.registry import mutant
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.layout import CONTROL_TRANSMITQ, ConsoleEvent, virtio_console_config
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue

_PORTS: Final = "console.device.multiport"


class Console(ConsoleDevice):
    """A console, and a port besides."""

    def __init__(self) -> None:
        ports = [ConsolePort(MemoryEndpoint(), "tty", console=True), ConsolePort(MemoryEndpoint(), "agent")]
        super().__init__(ports, max_ports=4)


class Says(Console):
    """Says something wrong when it is told that the driver is ready."""

    number, event, payload = 0, ConsoleEvent.DEVICE_ADD, b""

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        super().handle(queue, chain)
        if queue.index == CONTROL_TRANSMITQ and data[4:6] == bytes([ConsoleEvent.DEVICE_READY, 0]):
            self._control.say(self.number, self.event, 1, self.payload)


@mutant("console", f"{_PORTS}.1")
class AddsAPortTwice(Says):
    """Port 0."""


@mutant("console", f"{_PORTS}.3")
class RemovesAPortThatWasNot(Says):
    number, event = 3, ConsoleEvent.DEVICE_REMOVE


@mutant("console", "prose.console.config")
class HasNoPorts(Console):
    def read_config(self) -> bytes:
        config = bytearray(super().read_config())
        start, end = virtio_console_config.offset("max_nr_ports"), virtio_console_config.end("max_nr_ports")
        config[start:end] = bytes(end - start)
        return bytes(config)


@mutant("console", "console.device.device-init.1")
class FallsSilentInAnEmergency(Console):
    silent = False

    def write_config(self, offset: int, data: bytes) -> None:
        super().write_config(offset, data)
        self.silent = True

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if self.silent:
            chain.defer()
        else:
            super().handle(queue, chain)


@mutant("console", "prose.console.control")
class WaitsForAPortThatIsNot(Console):
    """A message about a port that there is not keeps it busy for ever."""

    lost = False

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        self.lost |= queue.index == CONTROL_TRANSMITQ and data[:4] == b"\xff\xff\0\0"
        if self.lost:
            chain.defer()
        else:
            super().handle(queue, chain)

    def reset(self) -> None:
        super().reset()
        self.lost = False


@mutant("console", "split.device.used-ring.1")
class LosesOutput(Console):
    """Each 20th piece of output is never used."""

    pieces = 0

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        super().handle(queue, chain)
        self.pieces += queue.index == 1
        if queue.index == 1 and self.pieces % 20 == 0:
            chain.defer()


@mutant("console", "console.device.multiport.2")
class AddsAPortTooMany(Console):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        super().handle(queue, chain)
        if queue.index == CONTROL_TRANSMITQ:
            self._control.say(77, ConsoleEvent.DEVICE_ADD)
