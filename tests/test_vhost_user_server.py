"""The vhost-user server with real sockets, descriptors and mappings, and a front-end in the same process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vhost_user_frontend import SIZE, Echo, R, addresses, memory_table, region
from tests.vhost_user_socket import FEATURES, MEMORY, Client, await_, connected, eventfds, readable, receive
from virtio_py.device import Device
from virtio_py.errors import UsageError
from virtio_py.rings.engine import Engine, engine_named
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_messages import BackendRequest, Message, ProtocolFeature
from virtio_py.transports.vhost_user_server import Server, inherited, listening
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="serving vhost-user needs Linux")


@define
class Running:
    """A server in a thread of its own."""

    path: str
    server: Server
    device: Device
    lines: list[str]
    thread: threading.Thread

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def idle_fds(self) -> int:
        """How many descriptors are open while nobody is connected, once the server is up."""
        with connected(self.path) as client:
            client.ask(R.GET_QUEUE_NUM)
        self.await_line("left")
        self.lines.clear()
        before = -1
        while before != open_fds():
            before = open_fds()
            time.sleep(0.02)
        return before

    def await_line(self, text: str) -> None:
        await_(lambda: any(text in line for line in self.lines), f"{text!r} in {self.lines}")


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count(MEMORY)


@pytest.fixture(params=["reference", "compiled"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return engine_named(request.param)


@contextlib.contextmanager
def serving(
    path: Path,
    engine: Engine | None = None,
    protocol: int = PROTOCOL_FEATURES,
    ring_features: int = RING_FEATURES,
    device: Device | None = None,
) -> Iterator[Running]:
    lines, device = list[str](), device or Echo()
    server = Server(
        device,
        engine=engine or engine_named("reference"),
        log=lines.append,
        protocol_features=protocol,
        ring_features=ring_features,
    )
    with listening(str(path)) as listener:
        running = Running(str(path), server, device, lines, threading.Thread(target=server.serve, args=[listener]))
        running.thread.start()
        try:
            yield running
        finally:
            running.stop()
    server.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path / "sock") as made:
        yield made


def test_requests_are_served(tmp_path: Path, engine: Engine) -> None:
    with (
        serving(tmp_path / "sock", engine) as running,
        connected(running.path) as client,
        eventfds(2) as (kick, call),
    ):
        queue = client.start(kick, call)
        for number in range(100):
            text = b"request %d" % number
            answer = client.add(queue, text)
            os.eventfd_write(kick, 1)
            assert readable(call)
            os.eventfd_read(call)
            assert queue.take_used() == [(text, len(text))]
            assert answer == text
            queue.enable_notifications()
        assert not fcntl.fcntl(kick, fcntl.F_GETFL) & os.O_NONBLOCK, "the flag is shared with the front-end"


def test_sockets_are_put_up_with_as_events(running: Running) -> None:
    """User Mode Linux gives one end of a socket pair for the call; 8 bytes are written, none read."""
    ours, theirs = socket.socketpair()
    with ours, connected(running.path) as client, eventfds(1) as [kick]:
        with theirs:
            queue = client.start(kick, theirs.fileno())
        ours.send(b"not to be read")
        client.add(queue, b"x")
        os.eventfd_write(kick, 1)
        assert readable(ours.fileno())
        assert ours.recv(100) == struct.pack("=Q", 1)


def test_an_event_that_is_full_makes_nobody_wait(running: Running) -> None:
    full = (1 << 64) - 2
    with connected(running.path) as client, eventfds(1) as [kick], eventfds(1) as [call]:
        queue = client.start(kick, call)
        os.eventfd_write(call, full)
        for _ in range(3):
            assert client.echo(queue, kick, b"x") == b"x"
        assert os.eventfd_read(call) == full


def test_a_kick_that_somebody_else_has_read_makes_nobody_wait(running: Running) -> None:
    with connected(running.path) as client, eventfds(2) as (kick, call):
        client.start(kick, call)
        for _ in range(200):
            os.eventfd_write(kick, 1)
            if readable(kick, 0):
                with contextlib.suppress(BlockingIOError):
                    os.preadv(kick, [bytearray(8)], -1, os.RWF_NOWAIT)
        assert client.ask(R.GET_QUEUE_NUM) == 2


def test_in_band_notifications(tmp_path: Path) -> None:
    protocol = PROTOCOL_FEATURES | bit(ProtocolFeature.INBAND_NOTIFICATIONS)
    ours, theirs = socket.socketpair()
    with serving(tmp_path / "sock", protocol=protocol) as running, connected(running.path) as client, ours:
        client.number(R.SET_PROTOCOL_FEATURES, protocol & ~bit(ProtocolFeature.STATUS))
        with theirs:
            assert client.ask(R.SET_BACKEND_REQ_FD, fds=[theirs.fileno()]) == 0
        client.number(R.SET_FEATURES, FEATURES)
        client.share()
        queue = DriverQueue(1, 8, client.arena, FEATURES)
        client.state(R.SET_VRING_NUM, 1, 8)
        assert client.ask(R.SET_VRING_ADDR, addresses(queue)) == 0
        client.state(R.SET_VRING_ENABLE, 1, 1)
        client.add(queue, b"x")
        client.state(R.VRING_KICK, 1, 0)
        ours.settimeout(10)
        assert receive(ours) == (BackendRequest.VRING_CALL, 0, m.vhost_vring_state.encode(index=1))


def session(client: Client, kick: int, call: int) -> list[tuple[bytes, list[int]]]:
    """A start of one ring, as bytes and descriptors."""
    queue = DriverQueue(0, 8, client.arena, FEATURES)
    return [
        (Message(request, 0, payload).encode(), fds)
        for request, payload, fds in (
            (R.GET_FEATURES, b"", []),
            (R.SET_FEATURES, m.u64.encode(u64=FEATURES), []),
            (R.SET_MEM_TABLE, memory_table([region()]), [client.memory_fd]),
            (R.SET_VRING_CALL, m.u64.encode(u64=0), [call]),
            (R.SET_VRING_ERR, m.u64.encode(u64=0), [call]),
            (R.SET_VRING_NUM, m.vhost_vring_state.encode(index=0, num=8), []),
            (R.SET_VRING_ADDR, addresses(queue), []),
            (R.SET_VRING_KICK, m.u64.encode(u64=0), [kick]),
            (R.SET_VRING_ENABLE, m.vhost_vring_state.encode(index=0, num=1), []),
        )
    ]


@pytest.mark.parametrize("cut", [0, 1, 12, 15], ids=["between", "in the header", "before the payload", "in it"])
def test_a_client_may_vanish_at_any_time(running: Running, cut: int) -> None:
    with eventfds(2) as (kick, call):
        idle = running.idle_fds()
        for count in range(9):
            with connected(running.path) as client:
                messages = session(client, kick, call)
                for data, fds in messages[:count]:
                    socket.send_fds(client.connection, [data], fds)
                data, fds = messages[count]
                if cut:
                    socket.send_fds(client.connection, [data[:cut]], fds)
            await_(lambda: len(running.lines) == count + 1, "the server sees that we left")  # noqa: B023
            # Or, with answers unread, that the connection was reset.
            assert "left" in running.lines[-1] or "reset" in running.lines[-1] or "listen" in running.lines[-1]
            await_(lambda: open_fds() == idle, "descriptors are closed")
            await_(lambda: mappings() == 0, "memory is unmapped")
        with connected(running.path) as client:
            queue = client.start(kick, call)
            assert client.echo(queue, kick, b"still there") == b"still there"


def test_a_second_client_is_served_when_the_first_leaves(running: Running) -> None:
    with connected(running.path) as first:
        assert first.ask(R.GET_QUEUE_NUM) == 2
        with connected(running.path) as second:
            second.send(R.GET_QUEUE_NUM)
            assert not readable(second.connection.fileno(), 0.1)
            first.connection.close()
            assert second.reply().payload == m.u64.encode(u64=2)


@pytest.mark.parametrize("count", [1, 8, 9, 200])
def test_descriptors_that_do_not_belong_are_closed(running: Running, count: int) -> None:
    with eventfds(count) as many:
        idle = running.idle_fds()
        with connected(running.path) as client:
            client.send(R.GET_FEATURES, fds=many)
            assert client.connection.recv(1) == b"", "hung up"
        running.await_line("hung up on the front-end")
        await_(lambda: open_fds() == idle, "descriptors are closed")


def test_refusals_close_what_came_and_leave_the_client(running: Running, tmp_path: Path) -> None:
    with connected(running.path) as client, (tmp_path / "file").open("wb") as file:
        client.number(R.SET_FEATURES, FEATURES)
        idle = open_fds()
        for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
            assert client.ask(request, m.u64.encode(u64=0), [file.fileno()]) == 1
        assert client.ask(R.SET_BACKEND_REQ_FD, fds=[file.fileno()]) == 1
        short = memory_table([region(memory_size=SIZE + 1)])
        for fd in (client.memory_fd, file.fileno(), client.connection.fileno()):
            assert client.ask(R.SET_MEM_TABLE, short, [fd]) == 1
        with open(f"/proc/self/fd/{client.memory_fd}", "rb") as unwritable:
            assert client.ask(R.SET_MEM_TABLE, memory_table([region()]), [unwritable.fileno()]) == 1
        assert client.ask(999) == 1
        assert open_fds() == idle
        assert client.ask(R.GET_QUEUE_NUM) == 2


def test_a_region_need_not_begin_on_a_page(running: Running) -> None:
    with connected(running.path) as client:
        table = memory_table([region(memory_size=100, mmap_offset=SIZE - 100)])
        assert client.ask(R.SET_MEM_TABLE, table, [client.memory_fd]) == 0


def test_a_client_that_never_reads_does_not_keep_the_server(running: Running) -> None:
    with connected(running.path) as client:
        client.connection.setblocking(False)
        question = Message(R.GET_FEATURES).encode()

        def blocked() -> bool:
            try:
                client.connection.send(question)
            except BlockingIOError:
                return True
            return False

        await_(blocked, "the server stops reading")
        running.stop()


@pytest.mark.parametrize("rest", [b"", b"\x01\x00\x00"])
def test_stop_ends_a_session_at_once(running: Running, rest: bytes) -> None:
    with connected(running.path) as client, eventfds(2) as (kick, call):
        client.start(kick, call)
        client.connection.send(rest or b"\x01")
        running.stop()
        assert isinstance(running.device, Echo)
        assert running.device.resets > 1


def test_a_stop_before_the_first_client(running: Running) -> None:
    running.stop()


def test_a_socket_left_by_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(path) as running, connected(running.path) as client:
        assert client.ask(R.GET_QUEUE_NUM) == 2
        with pytest.raises(UsageError, match="listens"), listening(str(path)):
            pass
    assert not path.exists()


def test_what_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(UsageError, match="not a socket"), listening(str(path)):
        pass
    assert path.read_text() == "precious"


def test_a_connected_socket_is_served_to_its_end() -> None:
    ours, theirs = socket.socketpair()
    lines = list[str]()
    server = Server(Echo(), log=lines.append)
    thread = threading.Thread(target=server.serve, args=[inherited(theirs.detach())])
    thread.start()
    client = Client(ours)
    assert client.ask(R.GET_QUEUE_NUM) == 2
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    server.close()
    assert lines == ["the front-end has left"]


def test_descriptors_that_cannot_be_served() -> None:
    with eventfds(1) as [fd], pytest.raises(UsageError, match="not a socket"):
        inherited(fd)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams, pytest.raises(UsageError, match="UNIX stream"):
        inherited(datagrams.fileno())


@given(data=st.binary(max_size=64), count=st.integers(0, 9))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_leave_the_server_as_it_was(running: Running, data: bytes, count: int) -> None:
    idle = running.idle_fds()
    with connected(running.path) as client, eventfds(count) as fds:
        socket.send_fds(client.connection, [data or b"\x01"], fds)
    running.await_line("")
    await_(lambda: open_fds() == idle, "descriptors are closed")
