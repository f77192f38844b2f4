"""Ports without an outside: loopback, sink and source."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from select import POLLOUT
from typing import Final

from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import ALL_OFFLOADS
from virtio_py.devices.net.ports.port import BUDGET, Port
from virtio_py.watch import Watch

_MOST_WAITING: Final = 256


class LoopbackPort(Port):
    """What is sent comes back. Packets that the driver has no room for wait, up to a bound."""

    offloads = ALL_OFFLOADS

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[Packet] = deque()

    def send(self, packet: Packet) -> None:
        """Returns the packet, behind those that wait."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(packet)
        self._drain()

    def _drain(self) -> None:
        while self._waiting and not self.blocked:
            self.deliver(self._waiting.popleft())

    def resume(self) -> None:
        """See Port."""
        super().resume()
        self._drain()

    def reset(self) -> None:
        """See Port."""
        super().reset()
        self._waiting.clear()


class SinkPort(Port):
    """Counts what is sent, and swallows it."""

    offloads = ALL_OFFLOADS

    def __init__(self) -> None:
        super().__init__()
        self.packets = 0
        self.bytes = 0

    def send(self, packet: Packet) -> None:
        """Counts the packet."""
        self.packets += 1
        self.bytes += len(packet.frame)


class SourcePort(SinkPort):
    """Sends packets as fast as the driver takes them, as long as there are any.

    ready: a descriptor that can always be written, which makes a loop call us; without one, room alone does
    """

    def __init__(self, packets: Iterator[Packet], ready: int | None = None) -> None:
        super().__init__()
        self._packets: Iterator[Packet] | None = packets
        self._ready = ready

    def pump(self) -> None:
        """Delivers packets, a budget of them at the most."""
        for _ in range(BUDGET):
            packet = next(self._packets, None) if self._packets is not None and not self.blocked else None
            if packet is None:
                break
            self.deliver(packet)

    def resume(self) -> None:
        """See Port. Without a loop, room is what makes it go on."""
        super().resume()
        if self._ready is None:
            self.pump()

    def watch(self) -> Sequence[Watch]:
        """See Device.watch."""
        return () if self._ready is None or self.blocked else (Watch(self._ready, POLLOUT, self.pump),)
