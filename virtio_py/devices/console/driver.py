"""The console device (5.3), the half that asks: ports as streams of bytes.

driver = ConsoleDriver(transport).start()
driver.emergency_write(b"!")                at any time, before `start` too
port = driver.port("org.example.agent")     waits until the device has given a port this name
port.open()
port.write(b"hello\\n")
port.read()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, ClassVar, Final

from virtio_py.devices.console.layout import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    ConsoleEvent,
    ConsoleFeature,
    ConsoleSize,
    num_queues,
    receiveq,
    virtio_console_config,
    virtio_console_control,
    virtio_console_resize,
)
from virtio_py.devices.console.streams import ConsoleStream, Inlet, Outlet
from virtio_py.driver import Driver
from virtio_py.errors import NeedsReset, NegotiationError, PeerError, RequestError, UsageError
from virtio_py.memory import Buffer
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceId, DeviceStatus, bit, mask

_CONTROL_BUFFERS: Final = 16
_CONTROL_ROOM: Final = 1024
"""Bytes in a control receive buffer; a longer name is the device's fault."""


class ConsoleDriver(Driver):
    """A console's driver. `ports` are those that the device has announced, by number.

    most_ports: of the device's ports, how many get queues; others are refused when they are announced
    max_nr_ports: how many there can be, 0 without MULTIPORT
    """

    device_id = DeviceId.CONSOLE
    known_features = mask(*ConsoleFeature)
    most_ports: ClassVar[int] = 32
    ports: dict[int, ConsoleStream]
    _lanes: dict[int, tuple[Inlet, Outlet]]
    _free: list[Buffer]

    # Initialisation

    def queue_count(self) -> int:
        """Two; with VIRTIO_CONSOLE_F_MULTIPORT, those of as many ports as there can be, and the control queues."""
        self.ports, self._lanes, self._free = {}, {}, []
        self.max_nr_ports = self._config().max_nr_ports if self.has(ConsoleFeature.MULTIPORT) else 0
        self._max_ports = min(self.max_nr_ports, self.most_ports)
        if self.has(ConsoleFeature.MULTIPORT) and not self._max_ports:
            raise NegotiationError("the device has VIRTIO_CONSOLE_F_MULTIPORT and no port")
        return num_queues(self._max_ports)

    def started(self) -> None:
        """Without MULTIPORT port 0 is there and open; with it, tells the device that we listen."""
        if not self.has(ConsoleFeature.MULTIPORT):
            port = self._add(0)
            port.console = port.device_open = port.is_open = True
            port.size = self.size
            return
        self._offer([self.borrow(_CONTROL_ROOM) for _ in range(min(_CONTROL_BUFFERS, self._control_in.size))])
        self._say(0, ConsoleEvent.DEVICE_READY)

    def _config(self) -> Any:
        return virtio_console_config.decode(self.read_config_bytes(0, virtio_console_config.size))

    @property
    def size(self) -> ConsoleSize | None:
        """The configuration's size, which is that of port 0, or None where SIZE was not negotiated."""
        if not self.has(ConsoleFeature.SIZE):
            return None
        config = self._config()
        return ConsoleSize(config.cols, config.rows)

    def emergency_write(self, data: bytes) -> None:
        """Puts bytes out one by one, without queues or features (5.3.5). Raises UsageError if it is not offered."""
        if not self.transport.device_features() & bit(ConsoleFeature.EMERG_WRITE):
            raise UsageError("the device does not offer VIRTIO_CONSOLE_F_EMERG_WRITE")
        for byte in data:
            self.write_config_bytes(virtio_console_config.offset("emerg_wr"), byte.to_bytes(4, "little"))

    # Ports

    def port(self, which: int | str = 0, timeout: float | None = None) -> ConsoleStream:
        """The port with a number or a name, waited for. Raises UsageError if it does not come in time."""
        if not self.wait_until(lambda: self._find(which) is not None, timeout):
            raise UsageError(f"there is no port {which!r}")
        found = self._find(which)
        assert found is not None
        return found

    def _find(self, which: int | str) -> ConsoleStream | None:
        if isinstance(which, int):
            return self.ports.get(which)
        return next((port for port in self.ports.values() if port.name == which), None)

    def _add(self, number: int) -> ConsoleStream:
        if number not in self._lanes:
            incoming, outgoing = self.queues[receiveq(number) : receiveq(number) + 2]
            self._lanes[number] = Inlet(self, incoming), Outlet(self, outgoing)
        inlet, outlet = self._lanes[number]
        self.ports[number] = port = ConsoleStream(number, inlet, outlet, inlet.renew())
        inlet.fill()
        return port

    def set_open(self, port: ConsoleStream, is_open: bool) -> None:
        """Says PORT_OPEN for a port; without MULTIPORT there is nobody to tell."""
        if not port.removed:
            port.is_open = is_open
            if self.has(ConsoleFeature.MULTIPORT):
                self._say(port.number, ConsoleEvent.PORT_OPEN, int(is_open))

    # The control conversation

    @property
    def _control_in(self) -> DriverQueue:
        return self.queues[CONTROL_RECEIVEQ]

    def _offer(self, buffers: list[Buffer]) -> None:
        self._control_in.add_many([([], [buffer.extent], buffer) for buffer in buffers])
        self.kick(self._control_in)

    def _say(self, number: int, event: ConsoleEvent, value: int = 1) -> None:
        queue = self.queues[CONTROL_TRANSMITQ]
        if queue.outstanding >= min(_CONTROL_BUFFERS, queue.size):
            self._free += [buffer for buffer, _ in self.wait_used(queue)]
        buffer = self._free.pop() if self._free else self.borrow(virtio_console_control.size)
        buffer.view[:] = virtio_console_control.encode(id=number, event=event, value=value)
        queue.add([buffer.extent], [], buffer)
        self.kick(queue)

    def _converse(self) -> None:
        self._free += [buffer for buffer, _ in self.used(self.queues[CONTROL_TRANSMITQ])]
        for buffer, length in self.used(self._control_in):
            message = bytes(buffer.view[:length])
            self._offer([buffer])
            self._hear(message)

    def _hear(self, data: bytes) -> None:
        if len(data) < virtio_console_control.size:
            raise RequestError(f"a control message of {len(data)} bytes", queue=CONTROL_RECEIVEQ)
        message, payload = virtio_console_control.decode(data), data[virtio_console_control.size :]
        react = _REACTIONS.get(message.event)
        if react is None:
            raise RequestError(f"a device does not send event {message.event}", queue=CONTROL_RECEIVEQ)
        react(self, message.id, message.value, payload)

    def _known(self, number: int) -> ConsoleStream:
        if number not in self.ports:
            raise RequestError(f"the device speaks of port {number}, which it has not added", queue=CONTROL_RECEIVEQ)
        return self.ports[number]

    def _device_add(self, number: int, value: int, payload: bytes) -> None:
        if number in self.ports:
            raise RequestError(f"port {number} is there already", clause="console.device.multiport.1")
        if number >= self.max_nr_ports:
            raise RequestError(f"port {number} cannot be", clause="console.device.multiport.2")
        if number < self._max_ports:
            self._add(number)
        self._say(number, ConsoleEvent.PORT_READY, int(number < self._max_ports))

    def _device_remove(self, number: int, value: int, payload: bytes) -> None:
        if self._max_ports <= number < self.max_nr_ports:
            # One that we refused when it came.
            return
        if number not in self.ports:
            raise RequestError(f"port {number} is not there to be removed", clause="console.device.multiport.3")
        port = self.ports.pop(number)
        # What has arrived stays readable; the queues go on with whoever comes next.
        port.inlet.drain()
        port.inlet.renew()
        port.removed, port.is_open, port.device_open = True, False, False

    def _console_port(self, number: int, value: int, payload: bytes) -> None:
        port = self._known(number)
        port.console = True
        self.set_open(port, True)

    def _resize(self, number: int, value: int, payload: bytes) -> None:
        if len(payload) < virtio_console_resize.size:
            raise RequestError(f"a size of {len(payload)} bytes", queue=CONTROL_RECEIVEQ)
        self._known(number).size = ConsoleSize(*virtio_console_resize.decode(payload))

    def _port_open(self, number: int, value: int, payload: bytes) -> None:
        self._known(number).device_open = bool(value)

    def _port_name(self, number: int, value: int, payload: bytes) -> None:
        # There is to be no NUL at its end, but QEMU sends one.
        self._known(number).name = payload.partition(b"\0")[0].decode(errors="replace")

    # Work

    def poll(self) -> None:
        """Takes in what the device has done, without waiting. Raises as `wait_used` does."""
        with self._failing():
            if self.has(ConsoleFeature.MULTIPORT):
                self._converse()
            for inlet, outlet in self._lanes.values():
                inlet.drain()
                outlet.drain()
            if self.config_changed() and 0 in self.ports and self.has(ConsoleFeature.SIZE):
                self.ports[0].size = self.size

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except PeerError:
            self.fail()
            raise

    def wait_until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Works until `condition` holds; False after `timeout` seconds. Raises as `wait_used` does."""
        deadline = self.deadline(timeout)
        while True:
            self.poll()
            if condition():
                return True
            if self.transport.read_status() & DeviceStatus.DEVICE_NEEDS_RESET:
                raise NeedsReset("the device has set DEVICE_NEEDS_RESET")
            left = deadline - monotonic()
            if left <= 0:
                return False
            # Every queue is asked, also after one has said that there is something: its flag must be up to date.
            if not sum([queue.enable_notifications() for queue in self.queues]):
                self.transport.wait(min(left, 0.05))

    def used(self, queue: DriverQueue) -> list[tuple[Buffer, int]]:
        """What the device has used of a queue: (buffer, used length in bytes) each. Raises PeerError."""
        return self._take_used(queue)

    def borrow(self, size: int) -> Buffer:
        """Memory that the device may reach until the next reset."""
        return self._borrow(size)


_REACTIONS: Final[Mapping[int, Callable[[ConsoleDriver, int, int, bytes], None]]] = {
    ConsoleEvent.DEVICE_ADD: ConsoleDriver._device_add,
    ConsoleEvent.DEVICE_REMOVE: ConsoleDriver._device_remove,
    ConsoleEvent.CONSOLE_PORT: ConsoleDriver._console_port,
    ConsoleEvent.RESIZE: ConsoleDriver._resize,
    ConsoleEvent.PORT_OPEN: ConsoleDriver._port_open,
    ConsoleEvent.PORT_NAME: ConsoleDriver._port_name,
}
"""What a device says."""
