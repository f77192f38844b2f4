"""What a console's driver and device have told each other, as device parts (2.13): the specification has none for it.

Type 0x200, selector: a port's number, or 2^64 - 1 for the device itself; the value is a byte of flags. Type 0x201,
selector: a port's number and an event; the value is a control message that the driver has had no room for yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from construct import Int16ul, Int32ul, Struct

from virtio_py.devices.console.control import Control
from virtio_py.devices.console.layout import virtio_console_control
from virtio_py.records import Record

PORT_PART: Final = 0x200
MESSAGE_PART: Final = 0x201
_DEVICE: Final = bytes([255]) * 8
_FLAGS: Final = ("announced", "ready", "driver_open", "told_open")
_message = Record("console_message_selector", Struct("id" / Int32ul, "event" / Int16ul, "reserved" / Int16ul))


def parts_of(control: Control) -> Mapping[tuple[int, bytes], bytes]:
    """All of them, with MULTIPORT; without it there is nothing to be told."""
    if not control.active:
        return {}
    found = {(PORT_PART, _DEVICE): bytes([control.ready])}
    for number, port in control.ports.items():
        flags = sum(getattr(port, name) << n for n, name in enumerate(_FLAGS))
        found[PORT_PART, number.to_bytes(8, "little")] = bytes([flags])
    for (number, event), message in control.messages.items():
        found[MESSAGE_PART, _message.encode(id=number, event=event)] = message
    return found


def takes(control: Control, part_type: int, selector: bytes, value: bytes) -> bool:
    """Whether a part is of a port that there is, or of the device."""
    if part_type == MESSAGE_PART:
        return virtio_console_control.size <= len(value) <= 512 and _message.decode(selector).id < control.max_ports
    known = selector == _DEVICE or int.from_bytes(selector, "little") in control.ports
    return part_type == PORT_PART and known and len(value) == 1 and value[0] < 1 << len(_FLAGS)


def restore(control: Control, part_type: int, selector: bytes, value: bytes) -> None:
    """Sets a part that was found good. What a port's size was told to be is not carried: it is told again."""
    if part_type == MESSAGE_PART:
        found = _message.decode(selector)
        control.messages[found.id, found.event] = value
    elif selector == _DEVICE:
        control.ready = bool(value[0])
    else:
        port = control.ports[int.from_bytes(selector, "little")]
        for n, name in enumerate(_FLAGS):
            setattr(port, name, bool(value[0] >> n & 1))
