"""The device's side of the control conversation (5.3.6.2).

Messages to the driver wait for its control receive buffers. What waits is bounded by the number of ports, whatever
the driver or the endpoints do: of each event of each port only the latest is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from attrs import define, field

from virtio_py.devices.console.layout import (
    ConsoleEvent,
    virtio_console_control,
    virtio_console_resize,
)
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.errors import RequestError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue


@define(eq=False)
class Control:
    """What has been said, and what waits to be said.

    ports: the device's, by number; opened: called with a port that the driver has just opened
    room: the driver's control receive buffers
    active: whether MULTIPORT was negotiated; ready: whether the driver has sent DEVICE_READY
    """

    ports: Final[Mapping[int, ConsolePort]]
    max_ports: Final[int]
    opened: Final[Callable[[ConsolePort], object]]
    active: bool = field(default=False, init=False)
    ready: bool = field(default=False, init=False)
    messages: dict[tuple[int, ConsoleEvent], bytes] = field(factory=dict, init=False)
    room: deque[Chain] = field(factory=deque, init=False)

    def reset(self) -> None:
        """The driver is gone, with its buffers."""
        self.active = self.ready = False
        self.messages.clear()
        self.room.clear()

    # To the driver

    def offer(self, queue: DeviceQueue, chain: Chain) -> None:
        """A control receive buffer. Raises RequestError if the message that is due does not fit into it."""
        chain.defer()
        self.room.append(chain)
        self._send()

    def say(self, number: int, event: ConsoleEvent, value: int = 0, payload: bytes = b"") -> None:
        """Sends a message, now or when there is room for it. It takes the place of one like it that still waits."""
        self.messages.pop((number, event), None)
        header = virtio_console_control.encode(id=number, event=event, value=value)
        self.messages[number, event] = header + payload
        self._send()

    def _send(self) -> None:
        while self.messages and self.room:
            key = next(iter(self.messages))
            chain = self.room.popleft()
            if chain.writable.remaining < len(self.messages[key]):
                raise RequestError(
                    f"{chain.writable.remaining} bytes for a control message of {len(self.messages[key])}",
                    queue=chain.queue.index,
                )
            chain.writable.write(self.messages.pop(key))
            chain.complete()

    def added(self, port: ConsolePort) -> None:
        """A port is there: announces it, once, to a driver that is ready."""
        if self.ready and not port.announced:
            port.announced = True
            self.say(port.number, ConsoleEvent.DEVICE_ADD)

    def removed(self, port: ConsolePort) -> None:
        """A port is gone: tells the driver, if it has heard of the port."""
        unheard = (port.number, ConsoleEvent.DEVICE_ADD) in self.messages
        for event in set(ConsoleEvent) - {ConsoleEvent.DEVICE_REMOVE}:
            self.messages.pop((port.number, event), None)
        if port.announced and not unheard:
            self.say(port.number, ConsoleEvent.DEVICE_REMOVE)

    def tell(self, port: ConsolePort) -> None:
        """Tells what has changed about a port since the driver was last told, if it knows the port."""
        if not port.ready:
            return
        size = port.size
        if port.console and size is not None and size != port.told_size:
            port.told_size = size
            payload = virtio_console_resize.encode(cols=size.cols, rows=size.rows)
            self.say(port.number, ConsoleEvent.RESIZE, payload=payload)
        if port.connected != port.told_open:
            port.told_open = port.connected
            self.say(port.number, ConsoleEvent.PORT_OPEN, int(port.told_open))

    # From the driver

    def receive(self, queue: DeviceQueue, chain: Chain) -> None:
        """A message from the driver; bytes behind its header are not looked at.

        Raises RequestError if it is too short, names a port that cannot be, or an event that a driver does not send.
        """
        if chain.readable.remaining < virtio_console_control.size:
            raise RequestError(f"a control message of {chain.readable.remaining} bytes")
        message = virtio_console_control.decode(chain.readable.read(virtio_console_control.size))
        if message.event == ConsoleEvent.DEVICE_READY:
            # Its port number means nothing; Linux sends 2^32 - 1.
            self._device_ready(bool(message.value))
            return
        react = _REACTIONS.get(message.event)
        if react is None or message.id >= self.max_ports:
            raise RequestError(f"a control message with event {message.event} for port {message.id}")
        port = self.ports.get(message.id)
        # There may be none, or one that is not announced yet: the driver wrote this before it heard of a removal.
        if port is not None and port.announced:
            react(self, port, bool(message.value))

    def _device_ready(self, success: bool) -> None:
        self.ready = success
        for port in self.ports.values():
            self.added(port)

    def _port_ready(self, port: ConsolePort, success: bool) -> None:
        again, port.ready = port.ready and success, success
        if not success or again:
            return
        if port.console:
            self.say(port.number, ConsoleEvent.CONSOLE_PORT, 1)
        if port.name:
            self.say(port.number, ConsoleEvent.PORT_NAME, 1, port.name.encode())
        self.tell(port)

    def _port_open(self, port: ConsolePort, is_open: bool) -> None:
        port.driver_open = is_open
        if is_open:
            self.opened(port)


_REACTIONS: Final[Mapping[int, Callable[[Control, ConsolePort, bool], None]]] = {
    ConsoleEvent.PORT_READY: Control._port_ready,
    ConsoleEvent.PORT_OPEN: Control._port_open,
}
"""What a driver says of a port, besides DEVICE_READY."""
