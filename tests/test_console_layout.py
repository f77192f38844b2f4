"""The console's structures against the C declarations of 5.3, and where its queues lie."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.layout import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    MOST_PORTS,
    ConsoleEvent,
    ConsoleSize,
    num_queues,
    port_of,
    receiveq,
    virtio_console_config,
    virtio_console_control,
    virtio_console_resize,
)
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.errors import LayoutError, UsageError
from virtio_py.records import Record

U16, U32 = ctypes.c_uint16, ctypes.c_uint32


class CConfig(ctypes.LittleEndianStructure):
    _fields_ = [("cols", U16), ("rows", U16), ("max_nr_ports", U32), ("emerg_wr", U32)]


class CControl(ctypes.LittleEndianStructure):
    _fields_ = [("id", U32), ("event", U16), ("value", U16)]


class CResize(ctypes.LittleEndianStructure):
    _fields_ = [("cols", U16), ("rows", U16)]


@pytest.mark.parametrize(
    ("record", "declared"),
    [(virtio_console_config, CConfig), (virtio_console_control, CControl), (virtio_console_resize, CResize)],
)
def test_records_lie_as_a_c_compiler_lays_them(record: Record, declared: type[ctypes.LittleEndianStructure]) -> None:
    assert record.size == ctypes.sizeof(declared)
    assert {name: field.offset for name, field in record.fields.items()} == {
        name: getattr(declared, name).offset for name in record.fields
    }


def test_a_message_on_the_wire() -> None:
    message = virtio_console_control.encode(id=0xFFFFFFFF, event=ConsoleEvent.RESIZE, value=1)
    assert message == b"\xff\xff\xff\xff\x05\x00\x01\x00"
    assert virtio_console_resize.encode(cols=80, rows=25) == b"\x50\x00\x19\x00"
    assert [event.value for event in ConsoleEvent] == list(range(8))


def test_queues_lie_where_the_specification_lists_them() -> None:
    names = [spec.name for spec in ConsoleDevice([ConsolePort(MemoryEndpoint())], max_ports=3).queues()]
    assert names == [
        "receiveq(port0)",
        "transmitq(port0)",
        "control receiveq",
        "control transmitq",
        "receiveq(port1)",
        "transmitq(port1)",
        "receiveq(port2)",
        "transmitq(port2)",
    ]
    assert [spec.name for spec in ConsoleDevice([]).queues()] == ["receiveq(port0)", "transmitq(port0)"]
    assert num_queues(3) == 8


@given(number=st.integers(0, MOST_PORTS - 1))
def test_every_port_has_two_queues_of_its_own(number: int) -> None:
    queues = {receiveq(number), receiveq(number) + 1}
    assert {port_of(queue) for queue in queues} == {number}
    assert not queues & {CONTROL_RECEIVEQ, CONTROL_TRANSMITQ}
    assert max(queues) < num_queues(MOST_PORTS) <= 1024


def test_what_cannot_be_is_refused_when_it_is_made() -> None:
    for name in ("a\0b", "ä" * 128):
        with pytest.raises(UsageError, match="port name"):
            ConsolePort(MemoryEndpoint(), name)
    with pytest.raises(UsageError, match="ports"):
        ConsoleDevice([], max_ports=MOST_PORTS + 1)
    with pytest.raises(LayoutError):
        ConsoleDevice([], size=ConsoleSize(1 << 16, 1))
    with pytest.raises(UsageError, match="no place"):
        ConsoleDevice([ConsolePort(MemoryEndpoint()), ConsolePort(MemoryEndpoint())])
