"""The console device (5.3)."""

from __future__ import annotations

from typing import Any, Final

from virtio_py.devices.console.layout import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    ConsoleEvent,
    ConsoleFeature,
    virtio_console_config,
    virtio_console_control,
    virtio_console_resize,
)
from virtio_py.testing.conformance.checks import Check, check
from virtio_py.testing.conformance.kinds import Request
from virtio_py.testing.conformance.parts import Sent
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Failed

_F = ConsoleFeature
_ROOM: Final = 256
_FROM_DEVICE: Final = (
    ConsoleEvent.DEVICE_ADD,
    ConsoleEvent.DEVICE_REMOVE,
    ConsoleEvent.CONSOLE_PORT,
    ConsoleEvent.RESIZE,
    ConsoleEvent.PORT_OPEN,
    ConsoleEvent.PORT_NAME,
)


def _config(rig: Rig) -> Any:
    return virtio_console_config.decode(rig.need_config(virtio_console_config.size))


@check(
    "console.device.device-init.1",
    "console.device.device-init.2",
    devices="console",
    layouts="split",
    needs=(_F.EMERG_WRITE,),
)
def an_emergency_write_is_taken(rig: Rig) -> None:
    """emerg_wr can be written to before anything else, and changes nothing for who comes after."""
    rig.reset()
    rig.need_config(virtio_console_config.size)
    for byte in b"virtio-py\r\n":
        rig.transport.write_config(virtio_console_config.offset("emerg_wr"), byte.to_bytes(4, "little"))
    rig.start()
    rig.good()


@check("prose.console.config", devices="console", layouts="split", needs=(_F.MULTIPORT,))
def there_is_a_port(rig: Rig) -> None:
    """With VIRTIO_CONSOLE_F_MULTIPORT max_nr_ports is not 0."""
    rig.require(_config(rig).max_nr_ports > 0, "max_nr_ports is 0")


def _message(event: int, port: int = 0, value: int = 1) -> bytes:
    return virtio_console_control.encode(id=port, event=event, value=value)


@check("split.device.message-framing.1", "packed.device.scatter-gather-support.1", devices="console")
def output_in_pieces(rig: Rig) -> None:
    """What is written to a port may be cut anywhere, and is taken in order."""
    rig.start()
    for pieces in ((b"a", b"b", b"c\r\n"), (b"virtio-py",), (b"\r", b"\n")):
        rig.ask(Request(1, pieces))


@check("console.driver.device-op.2", devices="console")
def a_writable_buffer_for_output(rig: Rig) -> None:
    """A writable buffer in a transmit queue is refused or passed over, and nothing else happens."""
    rig.start()
    rig.refusable(Request(1, (b"x",), (16,)), "a writable buffer for output")
    rig.good()


class Conversation:
    """The control queues of a device with several ports."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.ports: set[int] = set()
        self.messages: list[tuple[Any, bytes]] = []
        self._posted: list[Sent] = []
        rig.start(_F.MULTIPORT)
        rig.require(CONTROL_TRANSMITQ in rig.hands, "max_nr_ports leaves no queues to speak of ports in")
        self._post(16)

    def _post(self, count: int) -> None:
        self._posted += [self.rig.stage(Request(CONTROL_RECEIVEQ, (), (_ROOM,))) for _ in range(count)]
        self.rig.publish(CONTROL_RECEIVEQ)

    def say(self, event: ConsoleEvent, port: int = 0, value: int = 1) -> None:
        """A message to the device, which has to take it."""
        self.rig.ask(Request(CONTROL_TRANSMITQ, (_message(event, port, value),)))

    def wait(self) -> None:
        """Gives the device time to say what it has to say."""
        self.rig.pause()
        self.listen()
        self.rig.pause()
        self.listen()

    def listen(self) -> set[int]:
        """Takes in what the device has said; the ports that there are by now."""
        done = [sent for sent in self._posted if self.rig.is_used(sent)]
        self._posted = [sent for sent in self._posted if sent not in done]
        for sent in done:
            answer = self.rig.take(sent)
            data = answer.data[: answer.length]
            if len(data) < virtio_console_control.size:
                raise Failed(f"a control message has {len(data)} bytes")
            message = virtio_console_control.decode(data[: virtio_console_control.size])
            self._hear(message)
            self.messages.append((message, data[virtio_console_control.size :]))
        if done:
            self._post(len(done))
        return self.ports

    def _hear(self, message: Any) -> None:
        if message.event not in _FROM_DEVICE:
            raise Failed(f"event {message.event} is none that a device sends")
        if message.event == ConsoleEvent.DEVICE_ADD:
            if message.id in self.ports:
                raise Failed(f"port {message.id} is added twice", clause="console.device.multiport.1")
            if message.id >= (most := _config(self.rig).max_nr_ports):
                raise Failed(f"port {message.id} of {most} is added", clause="console.device.multiport.2")
            self.ports.add(message.id)
        elif message.id not in self.ports:
            known = message.event == ConsoleEvent.DEVICE_REMOVE
            raise Failed(
                f"event {message.event} is about port {message.id}, which was not added",
                clause="console.device.multiport.3" if known else "",
            )
        elif message.event == ConsoleEvent.DEVICE_REMOVE:
            self.ports.remove(message.id)

    def of(self, event: ConsoleEvent) -> list[tuple[Any, bytes]]:
        """The messages of one event that have come."""
        return [(message, payload) for message, payload in self.messages if message.event == event]


@check(
    "console.device.multiport.1",
    "console.device.multiport.2",
    "console.device.multiport.3",
    devices="console",
    needs=(_F.MULTIPORT,),
)
def ports_are_announced(rig: Rig) -> None:
    """After DEVICE_READY ports are added, each once, below max_nr_ports, and messages are about those."""
    talk = Conversation(rig)
    talk.say(ConsoleEvent.DEVICE_READY)
    rig.require(rig.holds(lambda: bool(talk.listen())), "no port is added after DEVICE_READY")
    for port in sorted(talk.ports):
        talk.say(ConsoleEvent.PORT_READY, port)
    talk.wait()
    for port in sorted(talk.ports):
        talk.say(ConsoleEvent.PORT_OPEN, port)
    talk.wait()
    for _, payload in talk.of(ConsoleEvent.RESIZE):
        rig.require(len(payload) == virtio_console_resize.size, f"RESIZE has {len(payload)} bytes")
    for _, payload in talk.of(ConsoleEvent.PORT_NAME):
        rig.should(bool(payload) and b"\0" not in payload, f"a port's name is {payload!r}")


def _nonsense(name: str, what: str, message: bytes) -> Check:
    def run(rig: Rig) -> None:
        Conversation(rig)
        rig.refusable(Request(CONTROL_TRANSMITQ, (message,)), what)
        rig.goes_on(what)

    run.__name__, run.__doc__ = name, f"{what}: the device goes on"
    return check("prose.console.control", devices="console", needs=(_F.MULTIPORT,))(run)


NONSENSE: Final = [
    _nonsense(name, what, message)
    for name, what, message in (
        ("no_such_port", "PORT_READY of port 65535", _message(ConsoleEvent.PORT_READY, 0xFFFF)),
        ("no_port_at_all", "PORT_OPEN of port 4294967295", _message(ConsoleEvent.PORT_OPEN, 0xFFFFFFFF)),
        ("no_such_event", "an event that there is not", _message(0x4242)),
        ("half_a_message", "a control message of 3 bytes", bytes(3)),
    )
]
"""Control messages that mean nothing."""
