"""The console device (5.3), the half that serves: ports in front, an endpoint behind each.

    Device ID       3
    Virtqueues      0 receiveq(port0)  1 transmitq(port0), and with VIRTIO_CONSOLE_F_MULTIPORT
                    2 control receiveq  3 control transmitq  4 receiveq(port1)  5 transmitq(port1) …
    Configuration   virtio_console_config; `emerg_wr` is writable at any time, even before a reset
    Operation       the bytes of a port's queues are a stream each; framing carries no meaning
    Conversation    driver                          device                                 (5.3.6.2, see control.py)
                    DEVICE_READY(1)           ->
                                              <-    DEVICE_ADD for every port
                    PORT_READY(1)             ->
                                              <-    CONSOLE_PORT, RESIZE, PORT_NAME, PORT_OPEN: what applies
                    PORT_OPEN(1)              ->    now the port's endpoint is read

A chain here has no status byte: one that breaks the specification is a RequestError, hence DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Final

from attrs import Attribute, define, field

from virtio_py.device import Device, DeviceEnd, QueueSpec
from virtio_py.devices.console import parts
from virtio_py.devices.console.control import Control
from virtio_py.devices.console.layout import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    MOST_PORTS,
    ConsoleFeature,
    ConsoleSize,
    num_queues,
    port_of,
    receiveq,
    virtio_console_config,
)
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.errors import RequestError, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId, bit
from virtio_py.watch import Watch

_EMERG_WR: Final = virtio_console_config.offset("emerg_wr")


def _check_max_ports(device: ConsoleDevice, attribute: Attribute[int], value: int) -> None:
    if not 0 <= value <= MOST_PORTS:
        raise UsageError(f"{value} ports are not from 0 to {MOST_PORTS}")


def _ignore(port: ConsolePort) -> None:
    """Nobody has asked to hear of failures."""


@define(eq=False)
class ConsoleDevice(Device):
    """A console. Raises UsageError for what cannot be.

    first:     the ports that there are at the beginning, numbered from 0
    max_ports: max_nr_ports, with VIRTIO_CONSOLE_F_MULTIPORT; 0 is a single port, without control queues
    size:      of port 0 where its endpoint has none of its own, or None not to offer VIRTIO_CONSOLE_F_SIZE
    emergency: called with each byte of an emergency write; by default it goes to port 0
    failed:    called with a port whose endpoint has failed: see its `failure`
    """

    device_id: ClassVar[DeviceId] = DeviceId.CONSOLE
    first: Sequence[ConsolePort]
    max_ports: int = field(default=0, validator=_check_max_ports, kw_only=True)
    size: ConsoleSize | None = field(default=ConsoleSize(80, 25), kw_only=True)
    emergency: Callable[[int], None] | None = field(default=None, kw_only=True)
    failed: Callable[[ConsolePort], None] = field(default=_ignore, kw_only=True)
    queue_size: int = field(default=256, kw_only=True)
    ports: dict[int, ConsolePort] = field(factory=dict, init=False)
    _control: Control = field(init=False)
    _rooms: defaultdict[int, deque[Chain]] = field(factory=lambda: defaultdict(deque), init=False)
    _config_told: bytes = field(default=b"", init=False)
    _features: int = field(default=0, init=False)
    _end: DeviceEnd | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._control = Control(self.ports, self.max_ports, self._attend)
        # A size that its fields cannot hold is to be refused here, not when a driver comes and reads.
        self.read_config()
        for port in self.first:
            self.add_port(port)

    # What the device is

    def queues(self) -> Sequence[QueueSpec]:
        """Those of all ports that there could be, in the order of 5.3.2."""
        names = [f"{kind}(port{n})" for n in range(max(self.max_ports, 1)) for kind in ("receiveq", "transmitq")]
        if self.max_ports:
            names[2:2] = ["control receiveq", "control transmitq"]
        return [QueueSpec(name, self.queue_size) for name in names[: num_queues(self.max_ports)]]

    def offered_features(self) -> int:
        """EMERG_WRITE always; SIZE and MULTIPORT where there is something behind them."""
        size = bit(ConsoleFeature.SIZE) if self.size is not None else 0
        multiport = bit(ConsoleFeature.MULTIPORT) if self.max_ports else 0
        return size | multiport | bit(ConsoleFeature.EMERG_WRITE)

    def has(self, feature: ConsoleFeature) -> bool:
        """Whether a feature was negotiated."""
        return bool(self._features & bit(feature))

    # Configuration

    def read_config(self) -> bytes:
        """Fields whose features are not offered are zero, and so is `emerg_wr`."""
        size = (self.ports[0].size if 0 in self.ports else self.size) or ConsoleSize(0, 0)
        return virtio_console_config.encode(cols=size.cols, rows=size.rows, max_nr_ports=self.max_ports)

    def write_config(self, offset: int, data: bytes) -> None:
        """An emergency write is good at any time, whatever was negotiated: its lower byte is passed on (5.3.5.1)."""
        at = _EMERG_WR - offset
        if not 0 <= at < len(data):
            return
        if self.emergency is not None:
            self.emergency(data[at])
        elif 0 in self.ports:
            self.ports[0].urge(data[at])

    def resize(self, cols: int, rows: int) -> None:
        """The size of every port whose endpoint has none of its own. Raises UsageError where no size is offered."""
        if self.size is None:
            raise UsageError("the device does not offer VIRTIO_CONSOLE_F_SIZE")
        virtio_console_config.encode(cols=cols, rows=rows)
        self.size = ConsoleSize(cols, rows)
        for port in self.ports.values():
            port.usual_size = self.size
        self.pump()

    # Ports

    def add_port(self, port: ConsolePort, number: int | None = None) -> int:
        """Adds a port, also while a driver is at work; its number, by default the first that is free.

        Raises UsageError if there is no place for it.
        """
        places = range(max(self.max_ports, 1))
        at = next((n for n in places if n not in self.ports), -1) if number is None else number
        if at not in places or at in self.ports:
            raise UsageError(f"there is no place for a port {'more' if number is None else number}")
        self.ports[at] = port
        port.number, port.usual_size, port.room = at, self.size, self._rooms[receiveq(at)]
        # Without MULTIPORT a driver does not open port 0, it uses it.
        port.driver_open = at == 0 and self._running and not self._control.active
        self._control.added(port)
        self._attend(port)
        return at

    def remove_port(self, number: int) -> ConsolePort:
        """Takes a port away, also while a driver is at work; its endpoint is left to the caller.

        Raises UsageError if there is no such port, or it is the only one that the device can have.
        """
        if number not in self.ports or not self.max_ports:
            raise UsageError(f"there is no port {number} that could be removed")
        port = self.ports.pop(number)
        self._drop_stale(port)
        self._control.removed(port)
        port.leave()
        return port

    # The endpoints

    def watch(self) -> Sequence[Watch]:
        """What the endpoints wait for, of that which can be served now."""
        return list(self._watches())

    def _watches(self) -> Iterator[Watch]:
        for port in self.ports.values():
            self._drop_stale(port)
            for fd, events in port.watch().items():
                yield Watch(fd, events, partial(self._attend, port))

    def pump(self) -> bool:
        """Looks after all ports: to be called when an endpoint that has no descriptor has changed. True if more can
        be done at once."""
        more = False
        for port in self.ports.values():
            more |= self._attend(port)
        return more

    def _attend(self, port: ConsolePort) -> bool:
        port.refresh()
        self._drop_stale(port)
        if not self._running:
            port.send_urgent()
            return False
        port.flush()
        more = port.deliver()
        self._notice(port)
        return more

    @property
    def _running(self) -> bool:
        return self._end is not None and self._end.running

    def _notice(self, port: ConsolePort) -> None:
        """Tells the driver who has come, who has gone, and what has another size."""
        if port.failure is not None and not port.told_failure:
            port.told_failure = True
            self.failed(port)
        self._control.tell(port)
        config = self.read_config()
        if config != self._config_told and self._end is not None:
            self._config_told = config
            self._end.configuration_changed()

    # The life of a driver

    def activate(self, end: DeviceEnd, features: int) -> None:
        """DRIVER_OK. Without MULTIPORT, port 0 is open from now on; with it, the driver has to say so."""
        self._end, self._features = end, features
        self._config_told = self.read_config()
        self._control.active = self.has(ConsoleFeature.MULTIPORT)
        if not self._control.active and 0 in self.ports:
            self.ports[0].driver_open = True

    def parts(self) -> Mapping[tuple[int, bytes], bytes]:
        """What driver and device have told each other of ports."""
        return parts.parts_of(self._control)

    def takes_part(self, part_type: int, selector: bytes, value: bytes) -> bool:
        """Whether it is of a port that there is."""
        return parts.takes(self._control, part_type, selector, value)

    def set_part(self, part_type: int, selector: bytes, value: bytes) -> None:
        """Sets a part that was found good."""
        parts.restore(self._control, part_type, selector, value)

    def reset(self) -> None:
        """The driver has taken back its buffers. Ports and endpoints stay as they are."""
        self._end, self._features = None, 0
        self._rooms.clear()
        self._control.reset()
        for number, port in self.ports.items():
            port.forget()
            port.room = self._rooms[receiveq(number)]

    # Chains

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serves one chain. Raises RequestError for one that its queue does not allow."""
        transmits = bool(queue.index & 1)
        _check_direction(chain, transmits)
        self._drop_stale(self.ports.get(port_of(queue.index)))
        if queue.index >= CONTROL_RECEIVEQ and not self._control.active:
            raise RequestError("VIRTIO_CONSOLE_F_MULTIPORT was not negotiated, so this queue does not exist")
        self._handlers.get(queue.index, self._transmit if transmits else self._receive)(queue, chain)

    @property
    def _handlers(self) -> Mapping[int, Callable[[DeviceQueue, Chain], None]]:
        return {CONTROL_RECEIVEQ: self._control.offer, CONTROL_TRANSMITQ: self._control.receive}

    def _transmit(self, queue: DeviceQueue, chain: Chain) -> None:
        port = self.ports.get(port_of(queue.index))
        # What is sent to a port that is being removed is dropped: the driver may not have heard of it yet.
        if port is not None:
            port.transmit(chain)
            if port.failure is not None:
                self._notice(port)

    def _receive(self, queue: DeviceQueue, chain: Chain) -> None:
        port = self.ports.get(port_of(queue.index))
        room = self._rooms[queue.index]
        if room and room[0].queue is not queue:
            # Those of a port that is gone, in a queue that was stopped since.
            room.clear()
        chain.defer()
        room.append(chain)
        # If there was room before, what the endpoint had is delivered, and it is watched for more.
        if port is not None and len(room) == 1:
            port.deliver()
            self._notice(port)

    def _drop_stale(self, port: ConsolePort | None) -> None:
        """Forgets buffers of queues that have been stopped or reset: they are the driver's again, and what was put
        there would be lost."""
        end = self._end
        for kept in (self._control.room, *((port.room, port.pending) if port is not None else ())):
            if kept and end is not None and end.active_queue(kept[0].queue.index) is not kept[0].queue:
                kept.clear()


def _check_direction(chain: Chain, transmits: bool) -> None:
    if transmits and chain.writable.remaining:
        raise RequestError("a transmitq's buffer has device-writable bytes", clause="console.driver.device-op.2")
    if not transmits and chain.readable.remaining:
        raise RequestError("a receiveq's buffer has device-readable bytes", clause="console.driver.device-op.1")
    if not transmits and not chain.writable.remaining:
        raise RequestError("a receiveq's buffer has no room for a byte")
