"""The console device against drivers breaking the rules: DEVICE_NEEDS_RESET or nothing, and no more than was asked."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.layout import ConsoleEvent, ConsoleFeature, ConsoleSize, virtio_console_control
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.errors import NeedsReset, RequestError
from virtio_py.rings.chain import Chain, Reader, Writer
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import Feature, bit, mask
from virtio_py.transports.in_process import InProcess

RING = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
RECEIVEQ, TRANSMITQ, CONTROL_RECEIVEQ, CONTROL_TRANSMITQ = range(4)


class Mute(ConsoleDriver):
    """Sets up the queues, and then neither offers buffers nor says anything by itself."""

    def started(self) -> None:
        """Nothing."""


def mute(*ports: ConsolePort, max_ports: int = 2, features: int = 7) -> tuple[Mute, ConsoleDevice, InProcess]:
    device = ConsoleDevice(ports or [ConsolePort(MemoryEndpoint())], max_ports=max_ports)
    transport = InProcess(device, memory_size=1 << 20)
    return Mute(transport, features=features | RING).start(), device, transport


def say(driver: ConsoleDriver, number: int, event: int, value: int = 1) -> None:
    message = virtio_console_control.encode(id=number, event=event, value=value)
    driver.transact(driver.queues[CONTROL_TRANSMITQ], [message], [])


def deliver(transport: InProcess) -> None:
    while transport.step():
        pass


def needs_reset(driver: ConsoleDriver, queue: int, readable: Sequence[bytes], writable: Sequence[int]) -> RequestError:
    """What the device says of a buffer, as its last word before a reset; and a reset recovers."""
    transport = driver.transport
    assert isinstance(transport, InProcess)
    with pytest.raises(NeedsReset):
        driver.transact(driver.queues[queue], readable, writable)
    fault = transport.end.fault
    assert isinstance(fault, RequestError)
    assert fault.queue == queue
    assert transport.config_notifications == 1
    again = ConsoleDriver(transport).start()
    assert again.port(0).number == 0
    return fault


# A9: messages shorter than their header, and cut anywhere


@pytest.mark.parametrize("length", range(1, 8))
def test_a_short_control_message(length: int) -> None:
    driver, _, _ = mute()
    assert f"{length} bytes" in str(needs_reset(driver, CONTROL_TRANSMITQ, [bytes(length)], []))


@given(cuts=st.lists(st.integers(1, 11), max_size=6, unique=True))
@settings(max_examples=30)
def test_a_control_message_in_pieces_and_with_more_behind_it(cuts: list[int]) -> None:
    driver, device, _ = mute()
    message = virtio_console_control.encode(event=ConsoleEvent.DEVICE_READY, value=1) + b"more"
    points = [0, *sorted(cuts), len(message)]
    driver.transact(driver.queues[CONTROL_TRANSMITQ], [message[a:b] for a, b in pairwise(points)], [])
    assert device.ports[0].announced


@pytest.mark.parametrize(
    ("queue", "readable", "writable", "clause"),
    [
        (RECEIVEQ, [b"x"], [4], "console.driver.device-op.1"),
        (RECEIVEQ, [b"x"], [], "console.driver.device-op.1"),
        (TRANSMITQ, [b"x"], [4], "console.driver.device-op.2"),
        (TRANSMITQ, [], [4], "console.driver.device-op.2"),
        (CONTROL_RECEIVEQ, [b"x"], [4], "console.driver.device-op.1"),
        (CONTROL_TRANSMITQ, [bytes(8)], [4], "console.driver.device-op.2"),
    ],
)
def test_a_buffer_of_the_wrong_direction(queue: int, readable: list[bytes], writable: list[int], clause: str) -> None:
    driver, _, _ = mute()
    assert needs_reset(driver, queue, readable, writable).clause == clause


# A17: ports and events that cannot be, names that do not fit


@pytest.mark.parametrize("number", [2, 3, 1 << 16, (1 << 32) - 1])
@pytest.mark.parametrize("event", [ConsoleEvent.PORT_READY, ConsoleEvent.PORT_OPEN])
def test_a_port_that_cannot_be(number: int, event: ConsoleEvent) -> None:
    driver, _, _ = mute()
    message = virtio_console_control.encode(id=number, event=event, value=1)
    needs_reset(driver, CONTROL_TRANSMITQ, [message], [])


@pytest.mark.parametrize("event", [1, 2, 4, 5, 7, 8, 255, 65535])
def test_an_event_that_a_driver_does_not_send(event: int) -> None:
    driver, _, _ = mute()
    say(driver, (1 << 32) - 1, ConsoleEvent.DEVICE_READY)
    needs_reset(driver, CONTROL_TRANSMITQ, [virtio_console_control.encode(event=event, value=1)], [])


@pytest.mark.parametrize("size", [1, 7, 8, 15])
def test_a_message_that_does_not_fit_is_not_cut(size: int) -> None:
    name = "12345678" if size > 8 else ""
    driver, _, _ = mute(ConsolePort(MemoryEndpoint(), name))
    say(driver, 0, ConsoleEvent.DEVICE_READY)
    if size >= 8:
        driver.transact(driver.queues[CONTROL_RECEIVEQ], [], [size])
        say(driver, 0, ConsoleEvent.PORT_READY)
        if not name:
            # PORT_OPEN is a header alone.
            assert driver.transact(driver.queues[CONTROL_RECEIVEQ], [], [size])[1] == 8
            return
    needs_reset(driver, CONTROL_RECEIVEQ, [], [size])


def test_a_port_that_is_not_there_or_not_announced_is_passed_over() -> None:
    """A driver may have written this before it heard of a removal."""
    endpoint = MemoryEndpoint()
    endpoint.feed(b"secret")
    driver, device, transport = mute(ConsolePort(endpoint))
    for number in (0, 1):
        say(driver, number, ConsoleEvent.PORT_READY)
        say(driver, number, ConsoleEvent.PORT_OPEN)
    assert not device.ports[0].ready
    assert not device.ports[0].driver_open
    driver.transact(driver.queues[5], [b"to nobody"], [])
    assert transport.end.fault is None


def test_without_multiport_there_are_no_control_queues() -> None:
    class Insistent(Mute):
        def queue_count(self) -> int:
            super().queue_count()
            return 4

    device = ConsoleDevice([ConsolePort(MemoryEndpoint())], max_ports=2)
    driver = Insistent(InProcess(device), features=RING).start()
    assert not driver.has(ConsoleFeature.MULTIPORT)
    assert "MULTIPORT" in str(needs_reset(driver, CONTROL_TRANSMITQ, [bytes(8)], []))


# A12: no more is said to be written than was


@given(data=st.binary(min_size=1, max_size=40), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4))
@settings(max_examples=30)
def test_a_receive_buffer_tells_what_was_written_and_the_rest_is_untouched(data: bytes, sizes: list[int]) -> None:
    endpoint = MemoryEndpoint()
    driver, device, transport = mute(ConsolePort(endpoint), features=0)
    buffers = [driver.borrow(size) for size in sizes]
    for buffer in buffers:
        buffer.view[:] = b"\xee" * len(buffer.view)
    driver.queues[RECEIVEQ].add([], [buffer.extent for buffer in buffers])
    driver.kick(driver.queues[RECEIVEQ])
    deliver(transport)
    endpoint.feed(data)
    device.pump()
    [(_, length)] = driver.queues[RECEIVEQ].take_used()
    assert length == min(len(data), sum(sizes))
    written = b"".join(bytes(buffer.view) for buffer in buffers)
    assert written == data[:length] + b"\xee" * (sum(sizes) - length)
    assert endpoint.arriving == data[length:]


def test_a_transmit_buffer_is_used_with_nothing_written() -> None:
    driver, _, _ = mute(features=0)
    assert driver.transact(driver.queues[TRANSMITQ], [b"abc"], []) == ([], 0)


# A19: a driver that asks for more than it takes


@pytest.mark.parametrize("event", [ConsoleEvent.DEVICE_READY, ConsoleEvent.PORT_READY, ConsoleEvent.PORT_OPEN])
def test_answers_that_nobody_takes_do_not_pile_up(event: ConsoleEvent) -> None:
    endpoints = [MemoryEndpoint() for _ in range(2)]
    driver, device, _ = mute(*(ConsolePort(endpoint, "name", True) for endpoint in endpoints))
    say(driver, 0, ConsoleEvent.DEVICE_READY)
    for turn in range(200):
        say(driver, turn % 2, event, turn % 3)
        endpoints[turn % 2].connected = bool(turn % 5)
        endpoints[turn % 2].size = ConsoleSize(turn + 1, turn + 1)
        device.pump()
    assert len(device._control.messages) <= 2 * len(ConsoleEvent)


@define(eq=False)
class Counting:
    """An endpoint that takes anything, and counts."""

    taken: int = 0
    connected: bool = True
    size: ConsoleSize | None = None
    longest: int = 0

    def watch(self, readable: bool, writable: bool) -> Mapping[int, int]:
        return {}

    def refresh(self) -> None: ...

    def read(self, limit: int) -> bytes:
        self.longest = max(self.longest, limit)
        return b""

    def write(self, views: Sequence[memoryview]) -> int:
        self.longest = max(self.longest, len(views))
        self.taken += (count := sum(map(len, views)))
        return count

    def close(self) -> None: ...


@define
class FakeQueue:
    """What a chain made by hand needs of its queue."""

    index: int
    done: list[Chain] = field(factory=list)

    def complete(self, chains: Sequence[Chain]) -> None:
        self.done += chains


def test_giant_buffers_cost_no_memory() -> None:
    endpoint = Counting()
    port = ConsolePort(endpoint)
    device = ConsoleDevice([port])
    page = bytearray(1 << 16)
    out, back = FakeQueue(TRANSMITQ), FakeQueue(RECEIVEQ)
    views = [memoryview(page)] * 60_000
    device.handle(cast(DeviceQueue, out), Chain(0, out, Reader(views), Writer([])))
    assert endpoint.taken == 60_000 << 16
    assert endpoint.longest <= 1024
    port.driver_open = True
    device.handle(cast(DeviceQueue, back), Chain(0, back, Reader([]), Writer(views)))
    assert 0 < endpoint.longest <= 1 << 16


def test_deferred_buffers_are_the_queues_and_no_more() -> None:
    endpoint = MemoryEndpoint(capacity=0)
    driver, device, transport = mute(ConsolePort(endpoint), features=0)
    queue = driver.queues[TRANSMITQ]
    buffer = driver.borrow(16)
    assert queue.add_many([([buffer.extent], [], n) for n in range(1000)]) == queue.size
    driver.kick(queue)
    deliver(transport)
    assert not queue.take_used()
    endpoint.capacity = 40
    device.pump()
    assert [token for token, _ in queue.take_used()] == [0, 1]
    endpoint.capacity = None
    device.pump()
    assert [token for token, _ in queue.take_used()] == list(range(2, queue.size))
    assert len(endpoint.take()) == 16 * queue.size


# Queues that stop, endpoints that fail


def test_receive_buffers_of_a_queue_that_was_stopped_get_nothing() -> None:
    endpoint = MemoryEndpoint()
    driver, device, transport = mute(ConsolePort(endpoint), features=0)
    buffer = driver.borrow(16)
    driver.queues[RECEIVEQ].add([], [buffer.extent])
    driver.kick(driver.queues[RECEIVEQ])
    deliver(transport)
    transport.end.stop_queue(RECEIVEQ)
    endpoint.feed(b"kept")
    device.pump()
    assert endpoint.arriving == b"kept"
    assert bytes(buffer.view) == bytes(16)


def test_transmit_buffers_of_a_queue_that_was_stopped_are_not_read_any_more() -> None:
    """They are the driver's again, with other bytes in them perhaps."""
    endpoint = MemoryEndpoint(capacity=2)
    driver, device, transport = mute(ConsolePort(endpoint), features=0)
    buffer = driver.borrow(4)
    buffer.view[:] = b"sent"
    driver.queues[TRANSMITQ].add([buffer.extent])
    driver.kick(driver.queues[TRANSMITQ])
    deliver(transport)
    transport.end.stop_queue(TRANSMITQ)
    buffer.view[:] = b"mine"
    assert endpoint.take() == b"se"
    device.pump()
    assert endpoint.take() == b""


@pytest.mark.parametrize("when", ["read", "write", "refresh"])
def test_an_endpoint_that_fails_is_closed_to_the_driver(when: str) -> None:
    class Failing(MemoryEndpoint):
        broken = ""

        def _check(self, what: str) -> None:
            if self.broken == what:
                raise OSError(errno.EIO, "it broke")

        def refresh(self) -> None:
            self._check("refresh")

        def read(self, limit: int) -> bytes:
            self._check("read")
            return super().read(limit)

        def write(self, views: Sequence[memoryview]) -> int:
            self._check("write")
            return super().write(views)

    failed: list[ConsolePort] = []
    endpoint = Failing()
    device = ConsoleDevice([ConsolePort(endpoint)], max_ports=1, failed=failed.append)
    driver = ConsoleDriver(InProcess(device)).start()
    port = driver.port()
    port.open()
    port.write(b"before")
    port.flush()
    assert port.device_open
    endpoint.broken = when
    port.write(b"after")
    device.pump()
    port.flush()
    assert driver.wait_until(lambda: not port.device_open, 5)
    port.write(b"into the void")
    port.flush()
    device.pump()
    assert failed == [device.ports[0]]
    assert str(failed[0].failure) == f"[Errno {errno.EIO}] it broke"


def test_what_is_offered_follows_from_what_there_is() -> None:
    assert ConsoleDevice([]).offered_features() == mask(ConsoleFeature.SIZE, ConsoleFeature.EMERG_WRITE)
    assert ConsoleDevice([], size=None, max_ports=1).offered_features() == mask(
        ConsoleFeature.MULTIPORT, ConsoleFeature.EMERG_WRITE
    )
    assert ConsoleDevice([], max_ports=7).read_config() == b"\x50\0\x19\0\x07\0\0\0\0\0\0\0"
    assert bit(ConsoleFeature.EMERG_WRITE) == 4
