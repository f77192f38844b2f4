"""Console driver against console device, in one process: any interleaving against plain streams of bytes."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.layout import ConsoleEvent, ConsoleFeature, ConsoleSize, virtio_console_control
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.console.streams import ConsoleStream, PortClosed, PortTimeout
from virtio_py.errors import NegotiationError, RequestError, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import engine_named
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.transports.in_process import InProcess

RING = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
PACKED = RING | bit(Feature.RING_PACKED)
RINGS = (bit(Feature.VERSION_1), RING, PACKED, PACKED | bit(Feature.IN_ORDER))
MULTIPORT, SIZE = bit(ConsoleFeature.MULTIPORT), bit(ConsoleFeature.SIZE)


@define(eq=False)
class Witness(ConsoleDevice):
    """A console that writes down the control messages it gets, and the directions of what comes in its queues."""

    said: list[tuple[int, ...]] = field(factory=list, init=False)
    directions: set[tuple[bool, bool, bool]] = field(factory=set, init=False)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        transmits = bool(queue.index & 1)
        self.directions.add((transmits, bool(chain.readable.remaining), bool(chain.writable.remaining)))
        if queue.index == 3:
            self.said.append(tuple(virtio_console_control.decode(b"".join(chain.readable.views()))))
        super().handle(queue, chain)


def pair(
    *ports: ConsolePort,
    ring: int = RING,
    features: int = 7,
    queue_size: int = 16,
    engine: str = "reference",
    **options: Any,
) -> tuple[ConsoleDriver, Witness]:
    device, runs = Witness(ports, **options), engine_named(engine)
    transport = InProcess(device, engine=runs, memory_size=2 << 20, ring_features=ring)
    return ConsoleDriver(transport, engine=runs, features=features | ring, queue_size=queue_size).start(), device


def settle(driver: ConsoleDriver, device: ConsoleDevice) -> None:
    """Until there is nothing left to do for either side."""
    assert isinstance(driver.transport, InProcess)
    for _ in range(3):
        while driver.transport.step() or device.pump():
            pass
        driver.poll()


# Bytes

PORTS = 3
which = st.integers(0, PORTS - 1)
steps = st.one_of(
    st.tuples(st.just("feed"), which, st.integers(1, 30_000)),
    st.tuples(st.just("write"), which, st.integers(0, 30_000)),
    st.tuples(st.just("read"), which, st.integers(1, 30_000)),
    st.tuples(st.just("take"), which, st.integers(1, 30_000)),
    st.tuples(st.sampled_from(["open", "close"]), which, st.just(0)),
    st.tuples(st.just("size"), which, st.integers(1, 500)),
    st.tuples(st.sampled_from(["step", "pump", "poll"]), st.just(0), st.just(0)),
)


@define
class Streams:
    """The model: of each port, what is under way in each direction, and how far the numbering of bytes has come."""

    driver: ConsoleDriver
    device: ConsoleDevice
    endpoints: list[MemoryEndpoint]
    ports: list[ConsoleStream]
    to_driver: list[bytearray] = field(factory=lambda: [bytearray() for _ in range(PORTS)])
    to_host: list[bytearray] = field(factory=lambda: [bytearray() for _ in range(PORTS)])
    counter: int = 0

    def data(self, count: int) -> bytes:
        self.counter += count
        return bytes(n % 251 for n in range(self.counter - count, self.counter))

    def feed(self, n: int, count: int) -> None:
        data = self.data(count)
        self.endpoints[n].feed(data)
        self.to_driver[n] += data

    def write(self, n: int, count: int) -> None:
        data = self.data(count)
        try:
            self.ports[n].write(data, timeout=0)
        except PortTimeout as late:
            data = data[: min(late.done, count - 1)]
        self.to_host[n] += data

    def read(self, n: int, count: int) -> None:
        got = self.ports[n].read(count, timeout=0)
        assert len(got) <= count
        self._expect(self.to_driver[n], got)

    def take(self, n: int, count: int) -> None:
        self._expect(self.to_host[n], self.endpoints[n].take(count))

    def _expect(self, stream: bytearray, got: bytes) -> None:
        assert stream.startswith(got)
        del stream[: len(got)]

    def open(self, n: int, _: int) -> None:
        self.ports[n].open()

    def close(self, n: int, _: int) -> None:
        self.ports[n].close()

    def size(self, n: int, cols: int) -> None:
        self.endpoints[n].size = ConsoleSize(cols, 2)

    def step(self, n: int, _: int) -> None:
        assert isinstance(self.driver.transport, InProcess)
        self.driver.transport.step()

    def pump(self, n: int, _: int) -> None:
        self.device.pump()

    def poll(self, n: int, _: int) -> None:
        self.driver.poll()

    def finish(self) -> None:
        """All that is under way arrives, and nothing else."""
        for port in self.ports:
            port.open()
        # A turn moves the capacity of an endpoint at least.
        for _ in range(1000):
            settle(self.driver, self.device)
            for n in range(PORTS):
                self.read(n, 1 << 20)
                self.take(n, 1 << 20)
            if not any(self.to_driver) and not any(self.to_host):
                break
        assert [len(left) for left in self.to_driver + self.to_host] == [0] * 2 * PORTS
        for n, port in enumerate(self.ports):
            expected = self.endpoints[n].size or self.device.size
            # The configuration has the size of port 0, console or not.
            assert port.size in ([expected] if port.console else [expected, None] if n == 0 else [None])


@pytest.mark.parametrize("engine", ["reference", "compiled"])
@settings(max_examples=150, deadline=None)
@given(
    todo=st.lists(steps, max_size=40),
    ring=st.sampled_from(RINGS),
    capacities=st.lists(st.one_of(st.none(), st.integers(1000, 20_000)), min_size=PORTS, max_size=PORTS),
    queue_size=st.sampled_from([2, 4, 16]),
)
def test_any_interleaving_is_a_stream_of_bytes_each_way(
    engine: str, todo: list[tuple[str, int, int]], ring: int, capacities: list[int | None], queue_size: int
) -> None:
    endpoints = [MemoryEndpoint(capacity) for capacity in capacities]
    ports = [ConsolePort(endpoint, f"port {n}", n == 1) for n, endpoint in enumerate(endpoints)]
    driver, device = pair(*ports, ring=ring, engine=engine, max_ports=4, queue_size=queue_size)
    streams = Streams(driver, device, endpoints, [driver.port(f"port {n}") for n in range(PORTS)])
    for verb, n, count in todo:
        getattr(streams, verb)(n, count)
    streams.finish()


@pytest.mark.parametrize("ring", RINGS)
def test_a_single_port_needs_no_conversation(ring: int) -> None:
    endpoint = MemoryEndpoint(capacity=5000)
    driver, device = pair(ConsolePort(endpoint), ring=ring)
    assert len(driver.queues) == 2
    port = driver.port()
    endpoint.feed(bytes(range(256)) * 100)
    device.pump()
    assert port.read_exactly(25_600) == bytes(range(256)) * 100
    port.write(b"x" * 20_000)
    with pytest.raises(PortTimeout):
        port.flush(timeout=0)
    settle(driver, device)
    assert endpoint.take() == b"x" * 5000
    device.pump()
    assert endpoint.take() == b"x" * 5000
    assert (port.console, port.device_open, port.size) == (True, True, (80, 25))
    assert device.said == []


@pytest.mark.clause("console.driver.device-op.1")
@pytest.mark.clause("console.driver.device-op.2")
def test_each_queue_gets_buffers_of_one_direction() -> None:
    endpoint = MemoryEndpoint()
    driver, device = pair(ConsolePort(endpoint), max_ports=2)
    port = driver.port()
    port.open()
    port.write(b"hello")
    endpoint.feed(b"hello")
    settle(driver, device)
    assert port.read() == b"hello"
    assert device.directions == {(True, True, False), (False, False, True)}


def test_a_driver_that_does_not_read_holds_up_the_endpoint() -> None:
    endpoint = MemoryEndpoint()
    driver, device = pair(ConsolePort(endpoint), max_ports=1)
    port = driver.port()
    endpoint.feed(bytes(1 << 20))
    settle(driver, device)
    assert len(endpoint.arriving) == 1 << 20, "the port is not open"
    port.open()
    for _ in range(10):
        settle(driver, device)
    held = (1 << 20) - len(endpoint.arriving)
    assert 1 << 16 <= held <= 1 << 18
    assert len(port.read_exactly(1 << 20)) == 1 << 20


def test_reads_that_time_out_lose_nothing() -> None:
    endpoint = MemoryEndpoint()
    driver, device = pair(ConsolePort(endpoint))
    port = driver.port()
    assert port.read(timeout=0) == b""
    endpoint.feed(b"abcd")
    device.pump()
    with pytest.raises(PortTimeout, match="4 of 5") as late:
        port.read_exactly(5, timeout=0.01)
    assert late.value.done == 4
    assert (port.read(2), port.read_exactly(2)) == (b"ab", b"cd")


# The conversation


@pytest.mark.clause("console.device.overview-text.1")
@pytest.mark.clause("console.device.multiport-text.1")
@pytest.mark.clause("console.driver.multiport.1")
@pytest.mark.clause("console.driver.multiport.2")
@pytest.mark.clause("console.driver.multiport.3")
@pytest.mark.clause("console.driver.multiport.4")
def test_the_conversation_at_the_start() -> None:
    away = MemoryEndpoint(connected=False)
    ports = [
        ConsolePort(MemoryEndpoint(), "one", True),
        ConsolePort(away, "zwei ü", True),
        ConsolePort(MemoryEndpoint()),
    ]
    driver, device = pair(*ports, max_ports=5)
    settle(driver, device)
    assert [(port.name, port.console, port.device_open) for port in driver.ports.values()] == [
        ("one", True, True),
        ("zwei ü", True, False),
        (None, False, True),
    ]
    assert device.said[0] == (0, ConsoleEvent.DEVICE_READY, 1)
    assert [(i, e, v) for i, e, v in device.said if e == ConsoleEvent.PORT_READY] == [(n, 3, 1) for n in range(3)]
    assert [(i, e, v) for i, e, v in device.said if e == ConsoleEvent.PORT_OPEN] == [(0, 6, 1), (1, 6, 1)]
    assert [port.driver_open for port in ports] == [True, True, False]


def test_both_sides_open_and_close() -> None:
    endpoint = MemoryEndpoint(connected=False)
    driver, device = pair(ConsolePort(endpoint, "agent"), max_ports=1)
    port = driver.port("agent")
    seen = [port.device_open]
    port.open()
    port.write(b"for nobody")
    settle(driver, device)
    assert endpoint.take() == b""
    endpoint.connected = True
    settle(driver, device)
    seen.append(port.device_open)
    port.close()
    endpoint.feed(b"later")
    settle(driver, device)
    assert (port.read(timeout=0), port.is_open) == (b"", False)
    port.open()
    assert port.read() == b"later"
    endpoint.connected = False
    settle(driver, device)
    assert [*seen, port.device_open] == [False, True, False]


@pytest.mark.clause("console.device.multiport.1")
@pytest.mark.clause("console.device.multiport.2")
@pytest.mark.clause("console.device.multiport.3")
@settings(max_examples=60)
@given(todo=st.lists(st.tuples(st.sampled_from(["add", "remove", "settle", "ready"]), st.integers(0, 3)), max_size=30))
def test_ports_come_and_go_in_any_order(todo: list[tuple[str, int]]) -> None:
    """The driver raises for an announcement that may not be, so that all of them were good is what is tested."""
    driver, device = pair(max_ports=4)
    names: dict[int, str] = {}
    for turn, (verb, number) in enumerate(todo):
        if verb == "add" and number not in names:
            names[number] = f"{number} {turn}"
            device.add_port(ConsolePort(MemoryEndpoint(), names[number]), number)
        elif verb == "remove" and number in names:
            device.remove_port(number)
            del names[number]
        elif verb == "settle":
            settle(driver, device)
        elif verb == "ready":
            driver._say(0, ConsoleEvent.DEVICE_READY)
    settle(driver, device)
    assert {number: port.name for number, port in driver.ports.items()} == names


def test_a_removed_port_keeps_what_has_arrived_and_takes_no_more() -> None:
    endpoint = MemoryEndpoint(capacity=3)
    driver, device = pair(ConsolePort(endpoint, "agent"), max_ports=2)
    port = driver.port("agent")
    port.open()
    endpoint.feed(b"last words")
    port.write(b"x" * 100)
    settle(driver, device)
    assert device.remove_port(0).endpoint is endpoint
    settle(driver, device)
    assert port.removed
    assert (port.read(4), port.read(), port.read()) == (b"last", b" words", b"")
    with pytest.raises(PortClosed):
        port.write(b"more")
    # The queues are good for the next port, and the buffer that waited was used.
    again = MemoryEndpoint()
    device.add_port(ConsolePort(again, "next"), 0)
    new = driver.port("next")
    new.open()
    again.feed(b"news")
    settle(driver, device)
    assert new.read() == b"news"
    new.write(b"y" * 100_000)
    new.flush()
    assert again.take() == b"y" * 100_000
    with pytest.raises(UsageError):
        driver.port("agent", timeout=0)


def test_a_reset_in_the_middle_begins_anew() -> None:
    endpoint = MemoryEndpoint(capacity=3)
    driver, device = pair(ConsolePort(endpoint, "agent"), max_ports=2)
    driver.port("agent").write(b"abcdef")
    settle(driver, device)
    driver.start()
    port = driver.port("agent")
    port.open()
    assert endpoint.take() == b"abc"
    port.write(b"xyz")
    port.flush()
    assert endpoint.take() == b"xyz"
    endpoint.feed(b"back")
    device.pump()
    assert port.read() == b"back"


# Sizes


@pytest.mark.parametrize("max_ports", [0, 2])
def test_a_size_changes(max_ports: int) -> None:
    endpoint = MemoryEndpoint(size=ConsoleSize(100, 30))
    driver, device = pair(ConsolePort(endpoint, console=True), max_ports=max_ports)
    port = driver.port()
    settle(driver, device)
    assert port.size == driver.size == (100, 30)
    endpoint.size = ConsoleSize(132, 43)
    settle(driver, device)
    assert port.size == driver.size == (132, 43)
    endpoint.size = None
    device.resize(70, 20)
    settle(driver, device)
    assert port.size == driver.size == (70, 20)


def test_no_size_is_spoken_of_where_none_is_offered() -> None:
    endpoint = MemoryEndpoint(size=ConsoleSize(100, 30))
    driver, device = pair(ConsolePort(endpoint, console=True), max_ports=1, size=None)
    settle(driver, device)
    assert not driver.has(ConsoleFeature.SIZE)
    assert (driver.port().size, driver.size) == (None, None)
    assert device.read_config()[:4] == bytes(4)
    with pytest.raises(UsageError):
        device.resize(1, 1)


# Emergencies


@pytest.mark.clause("console.device.device-init.1")
@pytest.mark.clause("console.device.device-init.2")
def test_an_emergency_write_works_on_an_unreset_device() -> None:
    endpoint = MemoryEndpoint(capacity=2)
    device = ConsoleDevice([ConsolePort(endpoint)])
    driver = ConsoleDriver(InProcess(device))
    driver.emergency_write(b"help")
    assert driver.transport.read_status() == 0
    assert endpoint.take() == b"he"
    device.pump()
    assert endpoint.take() == b"lp"
    seen: list[int] = []
    logged = InProcess(ConsoleDevice([], emergency=seen.append))
    ConsoleDriver(logged).emergency_write(b"!")
    # Only the lower byte counts, and of a write that reaches it.
    logged.write_config(8, b"\x41\x42\x43\x44")
    logged.write_config(4, b"\0\0\0\0\x45")
    logged.write_config(9, b"xyz")
    logged.write_config(0, b"\x01\x02\x03\x04")
    assert bytes(seen) == b"!AE"
    assert logged.read_config(8, 4) == bytes(4)


def test_an_emergency_overtakes_what_waits_and_is_bounded() -> None:
    endpoint = MemoryEndpoint(capacity=2)
    driver, device = pair(ConsolePort(endpoint))
    driver.port().write(b"aabb")
    settle(driver, device)
    driver.emergency_write(b"!" * 10_000)
    assert endpoint.take() == b"aa"
    got = b""
    while piece := (device.pump(), endpoint.take())[1]:
        got += piece
    assert got == b"!" * 4096 + b"bb"


def test_an_emergency_write_that_is_not_offered() -> None:
    class Without(ConsoleDevice):
        def offered_features(self) -> int:
            return SIZE

    with pytest.raises(UsageError):
        ConsoleDriver(InProcess(Without([]))).emergency_write(b"!")


# A device that breaks the rules

ADD, REMOVE, NAME = ConsoleEvent.DEVICE_ADD, ConsoleEvent.DEVICE_REMOVE, ConsoleEvent.PORT_NAME


@pytest.mark.parametrize(
    ("number", "event", "clause"),
    [
        (0, ADD, "console.device.multiport.1"),
        (2, ADD, "console.device.multiport.2"),
        ((1 << 32) - 1, ADD, "console.device.multiport.2"),
        (1, REMOVE, "console.device.multiport.3"),
        (1, NAME, ""),
        (1, ConsoleEvent.CONSOLE_PORT, ""),
        (0, ConsoleEvent.RESIZE, ""),
        (0, ConsoleEvent.PORT_READY, ""),
    ],
)
def test_a_driver_gives_up_on_a_device_that_breaks_the_rules(number: int, event: ConsoleEvent, clause: str) -> None:
    driver, device = pair(ConsolePort(MemoryEndpoint()), max_ports=2)
    settle(driver, device)
    device._control.say(number, event)
    with pytest.raises(RequestError) as broken:
        settle(driver, device)
    assert broken.value.clause == clause
    assert driver.transport.read_status() & DeviceStatus.FAILED


def test_a_control_message_without_a_header() -> None:
    driver, device = pair(ConsolePort(MemoryEndpoint()), max_ports=2)
    settle(driver, device)
    room = device._control.room
    chain = room.popleft()
    chain.writable.write(b"short")
    chain.complete()
    with pytest.raises(RequestError, match="5 bytes"):
        driver.poll()


def test_names_are_taken_as_they_are_meant() -> None:
    driver, device = pair(ConsolePort(MemoryEndpoint()), max_ports=2)
    settle(driver, device)
    for payload, name in ((b"with a NUL\0", "with a NUL"), (b"\xff\xfe", "��"), (b"", "")):
        device._control.say(0, NAME, 1, payload)
        settle(driver, device)
        assert driver.ports[0].name == name


@pytest.mark.parametrize(("claimed", "refusal"), [(0, "no port"), ((1 << 32) - 1, "does not have queue")])
def test_a_number_of_ports_that_cannot_be(claimed: int, refusal: str) -> None:
    class Liar(ConsoleDevice):
        def read_config(self) -> bytes:
            return bytes(4) + claimed.to_bytes(4, "little") + bytes(4)

    transport = InProcess(Liar([], max_ports=2))
    with pytest.raises(NegotiationError, match=refusal):
        ConsoleDriver(transport).start()
    assert transport.read_status() & DeviceStatus.FAILED


def test_ports_beyond_what_we_have_queues_for_are_refused() -> None:
    class Small(ConsoleDriver):
        most_ports = 2

    ports = [ConsolePort(MemoryEndpoint(), str(n)) for n in range(4)]
    device = Witness(ports, max_ports=4)
    driver = Small(InProcess(device)).start()
    settle(driver, device)
    assert sorted(driver.ports) == [0, 1]
    assert [said for said in device.said if said[1] == ConsoleEvent.PORT_READY] == [
        (0, 3, 1),
        (1, 3, 1),
        (2, 3, 0),
        (3, 3, 0),
    ]
    device.remove_port(3)
    settle(driver, device)
    assert not driver.transport.read_status() & DeviceStatus.FAILED
