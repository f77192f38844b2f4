"""What a console device and its driver have told each other (5.3.6.2), for another one to go on with."""

from __future__ import annotations

from typing import Any

from construct import Int8ul, Int16ul, Int32ul, Struct

from virtio_py.devices.console.control import Control
from virtio_py.devices.console.layout import ConsoleEvent, ConsoleSize, virtio_console_control
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.saved import Parts
from virtio_py.errors import MessageError
from virtio_py.records import Record, Register

console_state = Record(
    "console_state",
    Struct("ready" / Int8ul, "ports" / Int16ul, "messages" / Int16ul),
    cite="this package's own",
)
"""`ports` console_port_state follow, and `messages` saved_message that wait to be sent."""

_TOLD = Register(Int8ul, announced=1, ready=1, driver_open=1, told_open=1, sized=1, reserved=3)

console_port_state = Record(
    "console_port_state",
    Struct("number" / Int32ul, "told" / _TOLD, "cols" / Int16ul, "rows" / Int16ul),
    cite="this package's own",
)

saved_message = Record("saved_message", Struct("length" / Int16ul), cite="this package's own")
"""In front of `length` bytes: a virtio_console_control and what is behind it."""


def save(control: Control) -> bytes:
    """The state of all ports."""
    messages = control.waiting()
    ports = [_save_port(port) for port in control.ports.values()]
    head = console_state.encode(ready=control.ready, ports=len(ports), messages=len(messages))
    return head + b"".join([*ports, *(saved_message.encode(length=len(m)) + m for m in messages)])


def _save_port(port: ConsolePort) -> bytes:
    size = port.told_size
    told = {name: getattr(port, name) for name in ("announced", "ready", "driver_open", "told_open")}
    cols, rows = size or ConsoleSize(0, 0)
    return console_port_state.encode(
        number=port.number, told=_TOLD.join({**told, "sized": size is not None}), cols=cols, rows=rows
    )


def load(control: Control, state: bytes) -> None:
    """Takes a state over. Ports that are here and were not there are announced to the driver, and those that were
    there and are not here removed. Raises MessageError for what cannot be."""
    parts = Parts(state)
    head = parts.record(console_state)
    control.ready = bool(head.ready)
    gone = []
    for _ in range(head.ports):
        saved = parts.record(console_port_state)
        if saved.number >= max(control.max_ports, 1):
            raise MessageError(f"a state of port {saved.number}, which cannot be")
        port = control.ports.get(saved.number)
        if port is not None:
            _load_port(port, saved)
        elif saved.told.announced:
            gone.append(saved.number)
    for _ in range(head.messages):
        _load_message(control, parts.take(parts.record(saved_message).length))
    parts.end()
    for number in gone:
        control.say(number, ConsoleEvent.DEVICE_REMOVE)
    for port in control.ports.values():
        control.added(port)


def _load_port(port: ConsolePort, saved: Any) -> None:
    told, size = saved.told, ConsoleSize(saved.cols, saved.rows)
    port.announced, port.ready = bool(told.announced), bool(told.ready)
    port.driver_open, port.told_open = bool(told.driver_open), bool(told.told_open)
    port.told_size = size if told.sized else None


def _load_message(control: Control, message: bytes) -> None:
    if len(message) < virtio_console_control.size:
        raise MessageError(f"a control message of {len(message)} bytes")
    head = virtio_console_control.decode(message)
    if head.id not in control.ports or head.event not in set(ConsoleEvent):
        # Of a port that is not here; what the driver is to hear of that is said below.
        return
    control.say(head.id, ConsoleEvent(head.event), head.value, message[virtio_console_control.size :])
