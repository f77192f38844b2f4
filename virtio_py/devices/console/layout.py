"""Features, numbers and structures of the console device (5.3), under the specification's names.

All integers are little-endian. Which queue belongs to which port is fixed (5.3.2): port 0 has queues 0 and 1, the
control queues are 2 and 3, and port n from 1 on has 2n + 2 and 2n + 3.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from construct import Int16ul, Int32ul, Struct

from virtio_py.records import Record


class ConsoleFeature(IntEnum):
    """Positions of the feature bits VIRTIO_CONSOLE_F_* (5.3.3)."""

    SIZE = 0
    MULTIPORT = 1
    EMERG_WRITE = 2


class ConsoleEvent(IntEnum):
    """`event` of a control message, VIRTIO_CONSOLE_* (5.3.6.2). The text also calls DEVICE_ADD "PORT_ADD"."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class ConsoleSize(NamedTuple):
    """A terminal's size in characters."""

    cols: int
    rows: int


virtio_console_config = Record(
    "virtio_console_config",
    Struct("cols" / Int16ul, "rows" / Int16ul, "max_nr_ports" / Int32ul, "emerg_wr" / Int32ul),
    cite="5.3.4 Device configuration layout",
)
"""`emerg_wr` is for the driver to write, at any time; the size is that of port 0."""

virtio_console_control = Record(
    "virtio_console_control",
    Struct("id" / Int32ul, "event" / Int16ul, "value" / Int16ul),
    cite="5.3.6.2 Multiport Device Operation",
)
"""A control message; behind RESIZE stands a virtio_console_resize, behind PORT_NAME the name in UTF-8, without NUL."""

virtio_console_resize = Record(
    "virtio_console_resize", Struct("cols" / Int16ul, "rows" / Int16ul), cite="5.3.6.2 Multiport Device Operation"
)
"""In the specification's order. Linux has had it both ways round."""

CONTROL_RECEIVEQ: Final = 2
CONTROL_TRANSMITQ: Final = 3

MOST_PORTS: Final = 511
"""Ports whose queues a device of 1024 queues, as large as carriers have it, can hold beside the control queues."""


def receiveq(port: int) -> int:
    """The index of a port's receiveq; its transmitq is the next one."""
    return 2 * port + 2 if port else 0


def port_of(queue: int) -> int:
    """The port to which a queue belongs that is not a control queue."""
    return max(queue // 2 - 1, 0)


def num_queues(max_nr_ports: int) -> int:
    """How many queues a device has: two without VIRTIO_CONSOLE_F_MULTIPORT, when max_nr_ports is 0."""
    return 2 * (max_nr_ports + 1) if max_nr_ports else 2
