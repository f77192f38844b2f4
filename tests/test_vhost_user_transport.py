"""A driver's transport to vhost-user back-ends: our own server, back-ends that die, and back-ends that lie."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from attrs import define, field

from tests.served_program import Program
from tests.test_vhost_user_frontend import PROTOCOLS, P
from tests.test_vhost_user_server import open_fds
from tests.vhost_user_socket import await_
from virtio_py.device import Device
from virtio_py.devices.blk.batch import Ask, BatchingBlkDriver
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.errors import (
    Disconnected,
    MessageError,
    NeedsReset,
    TransportError,
    UsageError,
    VirtioError,
)
from virtio_py.rings.engine import engine_named
from virtio_py.spec import DeviceId, Feature, bit, mask
from virtio_py.status import RING_FEATURES
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_messages import (
    BackendRequest,
    Flag,
    FrontendRequest,
    Message,
    decode_message,
)
from virtio_py.transports.vhost_user_server import Server, listening
from virtio_py.transports.vhost_user_transport import VhostUserTransport

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shells need Linux")


# Our own server ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(path: Path, device: Device, **options: object) -> Iterator[str]:
    """A server in a thread; the path of its socket."""
    lines: list[str] = []
    server = Server(device, log=lines.append, **options)  # type: ignore[arg-type]  # whatever Server takes
    with listening(str(path)) as listener:
        thread = threading.Thread(target=server.serve, args=[listener])
        thread.start()
        try:
            yield str(path)
        finally:
            server.stop()
            thread.join(10)
            assert not thread.is_alive()
    server.close()


@contextlib.contextmanager
def connected(path: str, device_id: int = DeviceId.BLOCK, **options: float) -> Iterator[VhostUserTransport]:
    transport = VhostUserTransport(path, device_id, **options)  # type: ignore[arg-type]  # seconds
    try:
        yield transport
    finally:
        transport.close()


LAYOUT = {"split": 0, "packed": bit(Feature.RING_PACKED)}
ORDER = {"any order": 0, "in order": bit(Feature.IN_ORDER)}


@pytest.mark.parametrize(
    ("layout", "order", "name", "protocol"),
    list(product(LAYOUT, ORDER, ["reference", "compiled"], ["all", "no status", "no acknowledgements"])),
)
def test_devices_are_driven(tmp_path: Path, layout: str, order: str, name: str, protocol: str) -> None:
    engine = engine_named(name)
    features = RING_FEATURES & ~bit(Feature.RING_PACKED) | LAYOUT[layout] | ORDER[order]
    options = {"engine": engine, "ring_features": features, "protocol_features": PROTOCOLS[protocol]}
    disk = BlkDevice(MemoryMedium.of(1 << 20), num_queues=2)
    with serving(tmp_path / "disk", disk, **options) as path, connected(path) as transport:
        driver = BlkDriver(transport, engine=engine, features=(1 << 64) - 1 & ~(1 << 17)).start()
        assert driver.has(Feature.RING_PACKED) == (layout == "packed")
        assert driver.has(Feature.IN_ORDER) == (order == "in order")
        assert (driver.info.capacity, len(driver.queues)) == (2048, 2)
        pattern = os.urandom(1 << 16)
        driver.write(100, pattern, queue=1)
        assert driver.read(100, 128) == pattern
        driver.flush()
        driver.restart_queue(1, 16)
        assert driver.read(100, 128, queue=1) == pattern
        driver.reset()
        assert driver.start().read(100, 128) == pattern
    with (
        serving(tmp_path / "rng", EntropyDevice(), **options) as path,
        connected(path, DeviceId.ENTROPY) as transport,
    ):
        assert len(EntropyDriver(transport, engine=engine).start().read(5000)) == 5000


def test_a_configuration_change_arrives(tmp_path: Path) -> None:
    disk = BlkDevice(MemoryMedium.of(1 << 20))
    with serving(tmp_path / "disk", disk) as path, connected(path) as transport:
        driver = BlkDriver(transport).start()
        assert not driver.config_changed()
        disk.medium.resize(1 << 21)
        disk.capacity_changed()
        await_(driver.config_changed, "the news")
        assert driver.refresh().capacity == 4096
        driver.write(4095, bytes(512))


@pytest.mark.parametrize("protocol", ["all", "no status"])
def test_a_broken_ring_is_a_device_that_needs_a_reset(tmp_path: Path, protocol: str) -> None:
    device = EntropyDevice()
    options = {"protocol_features": PROTOCOLS[protocol]}
    with serving(tmp_path / "rng", device, **options) as path, connected(path, DeviceId.ENTROPY) as transport:
        driver = EntropyDriver(transport).start()
        start = time.monotonic()
        with pytest.raises(NeedsReset):
            driver.transact(driver.queues[0], [b"readable"], [8])
        assert time.monotonic() - start < 3
        driver.reset()
        assert len(driver.start().read(8)) == 8


def test_nothing_is_left_open(tmp_path: Path) -> None:
    with serving(tmp_path / "disk", BlkDevice(MemoryMedium.of(1 << 20), num_queues=4)) as path:

        def once() -> int:
            with connected(path, patience=5) as transport:
                BlkDriver(transport).start().write(0, bytes(512))
                transport.reconnect()
            del transport
            gc.collect()
            before = -1
            while before != open_fds():
                before = open_fds()
                time.sleep(0.05)
            return before

        assert {once() for _ in range(3)} == {once()}


def test_nothing_is_left_open_when_there_is_no_back_end(tmp_path: Path) -> None:
    gc.collect()
    before = open_fds()
    for _ in range(3):
        with pytest.raises(OSError, match="No such file"):
            VhostUserTransport(str(tmp_path / "nowhere"), DeviceId.BLOCK)
    gc.collect()
    assert open_fds() == before


def test_the_memory_cannot_be_made_shorter(tmp_path: Path) -> None:
    with serving(tmp_path / "disk", BlkDevice(MemoryMedium.of(1 << 20))) as path, connected(path) as transport:
        fd = transport._frontend.share.fd
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)


# Moving to another back-end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUT)
def test_a_driver_moves_to_another_back_end_with_what_is_under_way(tmp_path: Path, layout: str) -> None:
    medium = MemoryMedium.of(1 << 20)
    contents = [os.urandom(512) for _ in range(20)]
    medium.write_from(0, [memoryview(sector) for sector in contents])
    with (
        serving(tmp_path / "first", BlkDevice(medium)) as first,
        serving(tmp_path / "second", BlkDevice(medium)) as second,
        connected(first) as transport,
    ):
        driver = BatchingBlkDriver(transport, features=(1 << 33) - 1 & ~(1 << 17) | LAYOUT[layout]).start()
        transport.start_logging()
        for sector, content in enumerate(contents[:10]):
            transport.dirty_pages()
            assert driver.read(sector, 1) == content
            assert content in dirty_bytes(transport)
        tickets = driver.submit([Ask.write(100 + n, content) for n, content in enumerate(contents)])
        assert set(transport.stop_queues()) == {0}
        transport.move(second)
        assert driver.wait(len(tickets)) == tickets
        assert driver.read(100, 20) == b"".join(contents)
        transport.dirty_pages()
        assert driver.read(10, 1) == contents[10]
        assert contents[10] in dirty_bytes(transport), "the second one logs as well"
        transport.stop_logging()
        assert driver.read(11, 1) == contents[11]


def dirty_bytes(transport: VhostUserTransport) -> bytes:
    """What lies in dirty pages."""
    first, end = transport.arena.memory.regions[0].start, transport.arena.memory.regions[0].end
    runs = transport.dirty_pages()
    assert all(first <= at < at + length <= end for at, length in runs)
    return b"".join(transport.arena.memory.read(at, length) for at, length in runs)


def test_logging_is_begun_once_and_ended(tmp_path: Path) -> None:
    with serving(tmp_path / "disk", BlkDevice(MemoryMedium.of(1 << 20))) as path, connected(path) as transport:
        BlkDriver(transport).start()
        with pytest.raises(UsageError):
            transport.dirty_pages()
        transport.start_logging()
        with pytest.raises(UsageError):
            transport.start_logging()
        transport.stop_logging()
        with pytest.raises(UsageError):
            transport.dirty_pages()


# Back-ends that die --------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    made = Program(tmp_path / "sock", image)
    made.start()
    try:
        yield made
    finally:
        made.kill()


def first_connection(program: Program, **options: float) -> VhostUserTransport:
    found: list[VhostUserTransport] = []

    def attempt() -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            found.append(VhostUserTransport(str(program.path), DeviceId.BLOCK, **options))  # type: ignore[arg-type]
        return bool(found)

    await_(attempt, "the program", 60)
    return found[0]


def test_a_back_end_that_dies_is_noticed_at_once(program: Program) -> None:
    with contextlib.closing(first_connection(program)) as transport:
        driver = BlkDriver(transport).start()
        program.process.send_signal(signal.SIGSTOP)
        threading.Timer(0.3, program.process.kill).start()
        start = time.monotonic()
        with pytest.raises(Disconnected):
            driver.read(0, 1)
        assert 0.2 < time.monotonic() - start < 3
        for verb in (transport.read_status, lambda: transport.wait(1), lambda: transport.read_config(0, 8)):
            with pytest.raises(Disconnected):
                verb()
        with pytest.raises(Disconnected, match="nobody listens"):
            transport.reconnect(0.1)


@pytest.mark.parametrize("layout", LAYOUT)
def test_a_request_that_a_dead_back_end_left_is_served_by_the_next(program: Program, layout: str) -> None:
    with contextlib.closing(first_connection(program)) as transport:
        driver = BlkDriver(transport, features=(1 << 33) - 1 & ~(1 << 17) | LAYOUT[layout]).start()
        driver.write(0, b"a" * 512)
        program.process.send_signal(signal.SIGSTOP)
        threading.Timer(0.2, program.process.kill).start()
        with pytest.raises(Disconnected):
            driver.write(1, b"b" * 512)
        program.process.wait()
        program.start()
        transport.reconnect(60)
        # Nobody waits for the answer any more; it is taken on the way to the next one.
        assert driver.read(0, 2) == b"a" * 512 + b"b" * 512
        assert not driver.queues[0].outstanding


@pytest.mark.parametrize("layout", LAYOUT)
def test_writes_go_on_while_back_ends_are_killed(program: Program, layout: str) -> None:
    """A driver with patience sees nothing; every write that completed is on the disk."""
    with contextlib.closing(first_connection(program, patience=60)) as transport:
        driver = BatchingBlkDriver(transport, features=(1 << 33) - 1 & ~(1 << 17) | LAYOUT[layout]).start()
        stop, done = threading.Event(), [0]

        def murder() -> None:
            for seconds in (0.05, 0.11, 0.02, 0.07):
                time.sleep(seconds)
                program.kill()
                program.start()
                # Until it serves us again, there is nobody worth killing.
                seen = done[0]
                await_(lambda seen=seen: done[0] > seen + 2 * BATCH, "progress", 60)  # type: ignore[misc]
            stop.set()

        killer = threading.Thread(target=murder)
        killer.start()
        while not stop.is_set():
            asks = [Ask.write(n % 2048, stamp(n)) for n in range(done[0], done[0] + BATCH)]
            for ticket in driver.run(asks, timeout=60):
                ticket.result()
            done[0] += BATCH
        killer.join()
        driver.flush()
        for n in range(max(0, done[0] - 2048), done[0]):
            assert driver.read(n % 2048, 1) == stamp(n)


BATCH = 24


def stamp(n: int) -> bytes:
    """A sector's worth of a number."""
    return n.to_bytes(8, "little") * 64


# Back-ends that lie --------------------------------------------------------------------------------------------------

Script = Callable[[socket.socket], None]


@contextlib.contextmanager
def liar(path: Path, script: Script) -> Iterator[str]:
    """Somebody who listens, and does to the first connection what the script says."""

    def attend() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            script(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=attend, daemon=True)
        thread.start()
        yield str(path)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        assert not thread.is_alive()


def header(request: int, size: int, flags: int = 1 | Flag.REPLY) -> bytes:
    return m.vhost_user_header.encode(request=request, flags=flags, size=size)


def hold(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def say(*parts: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        for part in parts:
            connection.sendall(part)
        hold(connection)

    return script


def leave(*parts: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        connection.recv(4096)
        for part in parts:
            connection.sendall(part)

    return script


def drip(connection: socket.socket) -> None:
    for byte in header(1, 4000) + bytes(4000):
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def with_descriptors(connection: socket.socket) -> None:
    socket.send_fds(connection, [header(1, 8) + bytes(8)], [0] * 3)
    hold(connection)


def with_a_hundred_descriptors(connection: socket.socket) -> None:
    socket.send_fds(connection, [header(1, 8) + bytes(8)], [0] * 100)
    hold(connection)


LIES: dict[str, tuple[Script, type[VirtioError]]] = {
    "silence": (hold, TransportError),
    "gone at once": (lambda connection: None, Disconnected),
    "gone amid a header": (leave(header(1, 8)[:5]), Disconnected),
    "gone amid a payload": (leave(header(1, 8) + bytes(3)), Disconnected),
    "drop by drop": (drip, TransportError),
    "half an answer": (say(header(1, 8) + bytes(7)), TransportError),
    "another request": (say(header(2, 8) + bytes(8)), MessageError),
    "no reply": (say(header(1, 8, 1) + bytes(8)), MessageError),
    "another version": (say(header(1, 8, 2 | Flag.REPLY) + bytes(8)), MessageError),
    "too long": (say(header(1, 5000)), MessageError),
    "longest": (say(header(1, 0xFFFF_FFFF)), MessageError),
    "too short": (say(header(1, 7) + bytes(7)), MessageError),
    "descriptors": (with_descriptors, MessageError),
    "a hundred descriptors": (with_a_hundred_descriptors, MessageError),
    "noise": (say(bytes(range(256)) * 16), MessageError),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_errors_and_leave_nothing_open(tmp_path: Path, lie: str) -> None:
    script, error = LIES[lie]
    gc.collect()
    before = open_fds()
    start = time.monotonic()
    with liar(tmp_path / "sock", script) as path, pytest.raises(error):
        VhostUserTransport(path, DeviceId.BLOCK, timeout=0.4)
    assert time.monotonic() - start < 5
    gc.collect()
    assert open_fds() == before


@define
class Puppet:
    """A back-end that answers what it is told to. meddle: called with each request before it is answered."""

    meddle: Callable[[Puppet, FrontendRequest], None]
    connection: socket.socket = field(init=False)
    channel: socket.socket = field(init=False)

    def __call__(self, connection: socket.socket) -> None:
        self.connection, assembler, fds = connection, m.Assembler(), list[int]()
        while True:
            data, came, _, _ = socket.recv_fds(connection, assembler.wanted, 8)
            fds += came
            if not data:
                return
            if message := assembler.feed(data):
                self._keep(message, fds)
                self.meddle(self, FrontendRequest(message.request))
                self._answer(message)

    def _keep(self, message: Message, fds: list[int]) -> None:
        if message.request == FrontendRequest.SET_BACKEND_REQ_FD:
            self.channel = socket.socket(fileno=fds.pop())
        while fds:
            os.close(fds.pop())

    def _answer(self, message: Message) -> None:
        numbers = {
            FrontendRequest.GET_FEATURES: bit(Feature.VERSION_1) | bit(m.F_PROTOCOL_FEATURES),
            FrontendRequest.GET_PROTOCOL_FEATURES: mask(P.BACKEND_REQ, P.CONFIG, P.REPLY_ACK, P.STATUS, P.MQ),
            FrontendRequest.GET_QUEUE_NUM: 1 << 63,
            FrontendRequest.GET_STATUS: 0x100,
        }
        number = m.u64.encode(u64=numbers.get(FrontendRequest(message.request), 0))
        if message.request == FrontendRequest.GET_CONFIG:
            self.connection.sendall(message.reply(message.payload))
        elif message.need_reply or message.request in numbers:
            self.connection.sendall(message.reply(number))


@contextlib.contextmanager
def puppet(path: Path, meddle: Callable[[Puppet, FrontendRequest], None]) -> Iterator[VhostUserTransport]:
    made = Puppet(meddle)
    with liar(path, made) as where:
        with connected(where, timeout=1) as transport:
            yield transport
        made.channel.close()


NEWS = Message(BackendRequest.CONFIG_CHANGE_MSG, Flag.NEED_REPLY)


def test_the_channel_is_answered_while_an_answer_is_awaited(tmp_path: Path) -> None:
    """A back-end of one thread waits for our answer before it gives its own."""

    def meddle(puppet: Puppet, request: FrontendRequest) -> None:
        if request == FrontendRequest.GET_CONFIG:
            puppet.channel.settimeout(5)
            puppet.channel.sendall(NEWS.encode())
            assert decode_message(puppet.channel.recv(100)) == Message(NEWS.request, Flag.REPLY, bytes(8))

    with puppet(tmp_path / "sock", meddle) as transport:
        assert transport.read_config(0, 4) == bytes(4)
        assert transport.config_generation() == 1


def test_a_channel_that_is_closed_is_no_end(tmp_path: Path) -> None:
    def meddle(puppet: Puppet, request: FrontendRequest) -> None:
        if request == FrontendRequest.GET_CONFIG:
            puppet.channel.close()

    with puppet(tmp_path / "sock", meddle) as transport:
        for _ in range(2):
            assert transport.read_config(0, 4) == bytes(4)
            assert transport.config_notifications == 0


@pytest.mark.parametrize("noise", [b"\xff" * 12, Message(77).encode(), NEWS._replace(payload=b"x").encode()])
def test_noise_on_the_channel_ends_the_conversation(tmp_path: Path, noise: bytes) -> None:
    def meddle(puppet: Puppet, request: FrontendRequest) -> None:
        if request == FrontendRequest.GET_CONFIG:
            threading.Timer(0.2, puppet.channel.sendall, [noise]).start()

    with puppet(tmp_path / "sock", meddle) as transport:
        transport.read_config(0, 4)
        with pytest.raises(MessageError):
            transport.wait(5)
        with pytest.raises(Disconnected):
            transport.read_config(0, 4)


def test_an_answer_that_nobody_asked_for(tmp_path: Path) -> None:
    def meddle(puppet: Puppet, request: FrontendRequest) -> None:
        if request == FrontendRequest.GET_CONFIG:
            puppet.connection.sendall(Message(request, Flag.REPLY, m.VhostUserConfig(4).encode(size=4)).encode())

    with puppet(tmp_path / "sock", meddle) as transport:
        transport.read_config(0, 4)
        with pytest.raises(MessageError, match="nobody has asked"):
            transport.wait(5)
        with pytest.raises(Disconnected):
            transport.wait(5)


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    with puppet(tmp_path / "sock", lambda puppet, request: None) as transport:
        assert transport.num_queues == 256, "no message could name more"
        assert transport.max_queue_size(256) == 0
        with pytest.raises(MessageError, match="8 bits"):
            transport.read_status()
        with pytest.raises(UsageError):
            transport.available_buffer(0, 0)


def test_a_back_end_that_talks_without_end_does_not_keep_us(tmp_path: Path) -> None:
    def meddle(puppet: Puppet, request: FrontendRequest) -> None:
        if request == FrontendRequest.GET_CONFIG:
            with contextlib.suppress(OSError):
                puppet.channel.settimeout(0.5)
                puppet.channel.sendall(NEWS._replace(flags=0).encode() * 20000)

    with puppet(tmp_path / "sock", meddle) as transport:
        assert transport.read_config(0, 4) == bytes(4)
        start = time.monotonic()
        transport.wait(0.1)
        assert time.monotonic() - start < 1
