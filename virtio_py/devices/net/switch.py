"""A learning switch (IEEE 802.1D, without spanning trees) between any number of ports.

switch = Switch()
NetDevice(switch.port())                   the port of a device
switch.plug(TapPort("tap0"))               a port to somewhere else

What is on its way to a device waits in a bounded queue, and an event descriptor makes the loop that serves the device
fetch it: nothing that one driver does is carried out, or found wrong, while another's is served.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from select import POLLIN
from typing import Final

from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import ALL_OFFLOADS
from virtio_py.devices.net.ports.port import BUDGET, Port
from virtio_py.devices.net.segmentation import fit
from virtio_py.errors import RequestError
from virtio_py.watch import Watch

MOST_ADDRESSES: Final = 4096
"""How many stations are remembered; the one that was silent for longest is forgotten first."""
MOST_WAITING: Final = 1024
"""How many packets wait for one port."""


class Switch:
    """Passes packets on to where their address was last heard from, or everywhere."""

    def __init__(self) -> None:
        self._links: dict[Port, Callable[[Packet], None]] = {}
        self._table: OrderedDict[bytes, Port] = OrderedDict()

    def port(self) -> SwitchPort:
        """A new port, for a device. Raises OSError."""
        made = SwitchPort(self)
        self._links[made] = made.take
        return made

    def plug(self, port: Port) -> None:
        """Joins a port to somewhere else."""
        self._links[port] = port.send
        port.attach(lambda packet: self.forward(port, packet))

    def forward(self, source: Port, packet: Packet) -> bool:
        """A packet that came in by `source`; it is always taken."""
        to, sender = packet.frame[:6], packet.frame[6:12]
        if not sender[0] & 1:
            self._learn(sender, source)
        target = None if to[0] & 1 else self._table.get(to)
        for port in list(self._links) if target is None else [target]:
            if port is not source:
                self._hand_over(port, packet)
        return True

    def _hand_over(self, port: Port, packet: Packet) -> None:
        try:
            for part in fit(packet, port.offloads):
                self._links[port](part)
        except RequestError:
            # What its sender says of it is not true; a device has looked before, another port may not have.
            return

    def watch(self) -> Sequence[Watch]:
        """What the ports to somewhere else wait for; those of devices are asked by their devices."""
        return [watch for port in self._links if not isinstance(port, SwitchPort) for watch in port.watch()]

    def _learn(self, sender: bytes, source: Port) -> None:
        self._table[sender] = source
        self._table.move_to_end(sender)
        if len(self._table) > MOST_ADDRESSES:
            self._table.popitem(last=False)

    def remove(self, port: Port) -> None:
        """Unplugs a port, and forgets who was behind it."""
        del self._links[port]
        for station in [station for station, where in self._table.items() if where is port]:
            del self._table[station]


class SwitchPort(Port):
    """One port of a switch, for a device. `send` is the device's side, `take` the switch's."""

    offloads = ALL_OFFLOADS

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self._switch = switch
        self._waiting: deque[Packet] = deque()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def send(self, packet: Packet) -> None:
        """From the device, to the others."""
        self._switch.forward(self, packet)

    def take(self, packet: Packet) -> None:
        """A packet for the device. Dropped if too many wait."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(packet)
            os.eventfd_write(self._event, 1)

    def watch(self) -> Sequence[Watch]:
        """Packets that wait, unless there is no room for them."""
        return () if self.blocked else (Watch(self._event, POLLIN, self.drain),)

    def drain(self) -> None:
        """Hands packets to the device, a budget of them at the most."""
        # The event is read first: what is added from here on raises it again.
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        for _ in range(BUDGET):
            if not self._waiting or not self.deliver(self._waiting.popleft()):
                break
        if self._waiting:
            os.eventfd_write(self._event, 1)

    def reset(self) -> None:
        """What waited was for the driver that is gone."""
        super().reset()
        self._waiting.clear()

    def close(self) -> None:
        """Unplugs the port."""
        self._switch.remove(self)
        os.close(self._event)
