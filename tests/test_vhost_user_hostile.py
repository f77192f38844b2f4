"""Front-ends that mean harm: messages that are cut, stretched, repeated, or come with what does not belong.

Every test ends with a service that still serves. `spec_notes/attacks.md` says which class of attacks each is for.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.test_vhost_user_backend import fresh
from tests.test_vhost_user_server import Running, mappings, open_fds, serving
from tests.vhost_user_frontend import (
    BASIC,
    GUEST,
    PACKED,
    REFUSED,
    SIZE,
    USER,
    FrontEnd,
    R,
    addresses,
    memory_table,
    region,
)
from tests.vhost_user_socket import FEATURES, Client, await_, connected, eventfds
from virtio_py.errors import PeerError
from virtio_py.records import RecordFamily
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_memory import MAX_MEM_SLOTS
from virtio_py.transports.vhost_user_messages import (
    FRONTEND_MESSAGES,
    INVALID_FD,
    Flag,
    Message,
    ProtocolFeature,
    Reply,
)
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES

ALL_PROTOCOL = PROTOCOL_FEATURES | bit(ProtocolFeature.INBAND_NOTIFICATIONS)
every_request = pytest.mark.parametrize("request_", list(R), ids=lambda r: r.name)
both_layouts = pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])


def well_formed(request: R) -> bytes:
    """A payload as long as the message's should be."""
    record = FRONTEND_MESSAGES[request].payload
    if record is m.VhostUserMemory:
        return memory_table([region()])
    if record is m.VhostUserConfig:
        return m.VhostUserConfig(4).encode(size=4)
    if isinstance(record, RecordFamily):
        return record(1).encode()
    return record.encode() if record is not None else b""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = {"protocol": ALL_PROTOCOL, "ring_features": RING_FEATURES | bit(Feature.ACCESS_PLATFORM)}
    with serving(tmp_path_factory.mktemp("hostile") / "sock", **options) as made:  # type: ignore[arg-type]
        yield made


def hung_up(client: Client) -> bool:
    """Whether the server ends the connection, perhaps with something of ours unread."""
    try:
        return client.connection.recv(1) == b""
    except ConnectionResetError:
        return True


@contextlib.contextmanager
def nothing_left(running: Running) -> Iterator[None]:
    """What happens within leaves no descriptor and no mapping behind, and a service that serves."""
    # What other tests have left in cycles would be closed in the middle of this.
    gc.collect()
    idle = running.idle_fds()
    yield
    await_(lambda: open_fds() == idle, "descriptors are closed")
    await_(lambda: mappings() == 0, "memory is unmapped")
    with connected(running.path) as client, eventfds(2) as (kick, call):
        queue = client.start(kick, call)
        assert client.echo(queue, kick, b"still there") == b"still there"
    running.await_line("left")


# A32: framing, and every message cut at every byte


@every_request
@pytest.mark.parametrize("flags", [0, Flag.NEED_REPLY], ids=["", "answered"])
def test_every_message_cut_at_every_byte(request_: R, flags: int) -> None:
    whole = well_formed(request_)
    shape = FRONTEND_MESSAGES[request_]
    needed = 8 if shape.payload is m.VhostUserConfig else len(whole)
    for length in [*range(needed), len(whole) + 1, m.MAX_PAYLOAD]:
        front = fresh()
        held = set(front.books.open)
        payload = whole[:length].ljust(length, b"\0")
        if shape.payload in (m.VhostUserMemory, m.VhostUserConfig) and length > len(whole):
            continue
        with contextlib.suppress(PeerError):
            assert front.send(request_, payload, shape.fds, flags) in (None, REFUSED, b"", bytes(8)), length
        assert front.books.open == held, "nothing is kept, and nothing is taken away"
        front.backend.close()
        assert not front.books.open


HEADERS = {
    "version 0": (R.GET_FEATURES, 0, 0),
    "version 2": (R.GET_FEATURES, 2, 0),
    "version 3": (R.GET_FEATURES, 3, 0),
    "a reply": (R.GET_FEATURES, 1 | Flag.REPLY, 0),
    "a reply that wants one": (R.SET_FEATURES, 1 | Flag.REPLY | Flag.NEED_REPLY, 8),
    "too long": (R.SET_CONFIG, 1, m.MAX_PAYLOAD + 1),
    "as long as can be": (R.SET_CONFIG, 1, 0xFFFFFFFF),
    "request 0": (0, 1, 0),
    "request that nobody knows": (0xFFFFFFFF, 1, 0),
    "a payload that never comes": (R.SET_FEATURES, 1, 8),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_cannot_be_is_hung_up_on(running: Running, name: str) -> None:
    request, flags, size = HEADERS[name]
    with nothing_left(running), connected(running.path) as client:
        payload = bytes(min(size, 8))[: 7 if "never" in name else 8]
        client.connection.send(m.vhost_user_header.encode(request=request, flags=flags, size=size) + payload)
        with contextlib.suppress(OSError):
            client.connection.shutdown(socket.SHUT_WR)
        assert hung_up(client)


def test_answers_are_given_to_whoever_asks_even_before_it_was_agreed(running: Running) -> None:
    with nothing_left(running), connected(running.path) as client:
        client.send(R.SET_OWNER, flags=Flag.NEED_REPLY)
        assert client.reply() == Message(R.SET_OWNER, Flag.REPLY, bytes(8))
        client.send(1000, flags=Flag.NEED_REPLY)
        assert client.reply() == Message(1000, Flag.REPLY, REFUSED)


def test_a_message_byte_by_byte_and_many_at_once_are_the_same(running: Running) -> None:
    asked = Message(R.GET_QUEUE_NUM).encode()
    with nothing_left(running), connected(running.path) as client:
        for byte in asked:
            client.connection.send(bytes([byte]))
        assert client.reply().payload == m.u64.encode(u64=2)
        client.connection.send(asked * 50)
        assert [client.reply().payload for _ in range(50)] == [m.u64.encode(u64=2)] * 50


# A26: indices and numbers at their edges


EDGES = [
    2,
    3,
    0xFE,
    0xFF,
    0x100,
    0x101,
    0x200,
    0xFFFF,
    0x10000,
    0x10001,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
]
STATES = [R.SET_VRING_NUM, R.SET_VRING_BASE, R.GET_VRING_BASE, R.SET_VRING_ENABLE, R.VRING_KICK]
EVENTS = [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR]


@pytest.mark.parametrize("index", EDGES)
def test_a_ring_index_is_never_cut_to_one_that_is_there(index: int) -> None:
    front = FrontEnd(protocol=ALL_PROTOCOL)
    with contextlib.ExitStack() as stack:
        stack.callback(front.backend.close)
        before = [(ring.size, ring.base, ring.enabled, ring.kick) for ring in front.backend.session.rings]
        for request in STATES:
            refuse(front, request, m.vhost_vring_state.encode(index=index, num=1))
        refuse(front, R.SET_VRING_ADDR, m.vhost_vring_addr.encode(index=index))
        for request in EVENTS:
            for value in {index & ~INVALID_FD, index | 1 << 32, index | 1 << 63, index << 32 | 1}:
                if value not in (0, 1):
                    refuse(front, request, m.u64.encode(u64=value), 1)
        assert [(r.size, r.base, r.enabled, r.kick) for r in front.backend.session.rings] == before
        assert not front.books.open


def refuse(front: FrontEnd, request: int, payload: bytes, fds: int = 0) -> None:
    try:
        assert front.send(request, payload, fds, Flag.NEED_REPLY) == REFUSED
    except PeerError:
        assert FRONTEND_MESSAGES[R(request)].reply is Reply.VALUE


@pytest.mark.parametrize("num", [0, 257, 0x8000, 0xFFFF, 0x10000, 0x10001, 0x80000000, 0xFFFFFFFF])
def test_a_ring_size_that_cannot_be(num: int) -> None:
    front = fresh()
    front.refused(R.SET_VRING_NUM, m.vhost_vring_state.encode(index=0, num=num))
    assert front.backend.session.rings[0].active, "and the ring goes on as it was"


@both_layouts
@given(base=st.integers(0, 0xFFFFFFFF), size=st.integers(1, 256))
@settings(deadline=None, max_examples=150)
def test_any_position_and_size_is_refused_or_served(layout: int, base: int, size: int) -> None:
    front = FrontEnd()
    front.number(R.SET_FEATURES, BASIC | layout)
    front.share()
    queue = front.queue(0, BASIC | layout)
    front.state(R.SET_VRING_NUM, 0, size)
    front.state(R.SET_VRING_BASE, 0, base)
    front.must(R.SET_VRING_ADDR, addresses(queue))
    front.number(R.SET_VRING_KICK, 0, fds=1)
    front.send(R.SET_VRING_ENABLE, m.vhost_vring_state.encode(index=0, num=1), flags=Flag.NEED_REPLY)
    front.backend.kicked(0)
    front.serve()
    assert front.get(R.GET_QUEUE_NUM) == 2
    front.backend.close()
    assert not front.books.open


# A25: descriptors, none of which may stay


@every_request
@pytest.mark.parametrize("count", [1, 9, 253])
def test_descriptors_beside_any_message_do_not_stay(running: Running, request_: R, count: int) -> None:
    with nothing_left(running), eventfds(count) as many, connected(running.path) as client:
        client.send(request_, well_formed(request_), many, Flag.NEED_REPLY)
        with contextlib.suppress(ConnectionError):
            client.connection.recv(1)


def test_descriptors_beside_a_message_in_pieces_do_not_stay(running: Running) -> None:
    data = Message(R.SET_FEATURES, Flag.NEED_REPLY, m.u64.encode(u64=BASIC)).encode()
    for cut in range(1, len(data)):
        idle = running.idle_fds()
        with eventfds(5) as many, connected(running.path) as client:
            socket.send_fds(client.connection, [data[:cut]], many)
            with contextlib.suppress(BrokenPipeError):
                socket.send_fds(client.connection, [data[cut:]], many)
            assert hung_up(client), "descriptors do not belong to this message"
        await_(lambda: open_fds() == idle, "descriptors are closed")  # noqa: B023
        running.lines.clear()


# A27: repetition


def repeated(client: Client, kick: int, call: int, channel: int) -> dict[str, Callable[[], None]]:
    """Every message that sets something, as often as one likes."""
    queue = DriverQueue(0, 8, client.arena, FEATURES)

    def send(request: R, payload: bytes = b"", *fds: int) -> Callable[[], None]:
        return lambda: client.send(request, payload, fds)

    def state(request: R, num: int) -> Callable[[], None]:
        return send(request, m.vhost_vring_state.encode(index=0, num=num))

    def number(request: R, value: int, *fds: int) -> Callable[[], None]:
        return send(request, m.u64.encode(u64=value), *fds)

    other = m.VhostUserMemRegMsg.encode(region=region(guest_phys_addr=1 << 40, userspace_addr=1 << 41))
    add, remove = send(R.ADD_MEM_REG, other, client.memory_fd), send(R.REM_MEM_REG, other)
    return {
        "SET_OWNER": send(R.SET_OWNER),
        "SET_FEATURES": number(R.SET_FEATURES, FEATURES),
        "SET_FEATURES, others": both(number(R.SET_FEATURES, BASIC), number(R.SET_FEATURES, FEATURES)),
        "SET_PROTOCOL_FEATURES": number(R.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES & ~bit(ProtocolFeature.STATUS)),
        "SET_MEM_TABLE": send(R.SET_MEM_TABLE, memory_table([region()]), client.memory_fd),
        "ADD_MEM_REG, REM_MEM_REG": both(add, remove),
        "SET_BACKEND_REQ_FD": send(R.SET_BACKEND_REQ_FD, b"", channel),
        "SET_VRING_CALL": number(R.SET_VRING_CALL, 0, call),
        "SET_VRING_ERR": number(R.SET_VRING_ERR, 0, call),
        "SET_VRING_NUM": state(R.SET_VRING_NUM, 8),
        "SET_VRING_BASE": state(R.SET_VRING_BASE, 0),
        "SET_VRING_ADDR": send(R.SET_VRING_ADDR, addresses(queue)),
        "SET_VRING_KICK": number(R.SET_VRING_KICK, 0, kick),
        "SET_VRING_ENABLE": both(state(R.SET_VRING_ENABLE, 0), state(R.SET_VRING_ENABLE, 1)),
        "SET_CONFIG": send(R.SET_CONFIG, m.VhostUserConfig(4).encode(size=4, region=b"abcd")),
        "RESET_DEVICE": send(R.RESET_DEVICE),
        "SET_STATUS": number(R.SET_STATUS, 0),
        "SET_DEVICE_STATE_FD": lambda: begin_transfer(client),
    }


def both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def send() -> None:
        first()
        second()

    return send


def begin_transfer(client: Client) -> None:
    ours, theirs = os.pipe()
    client.send(R.SET_DEVICE_STATE_FD, m.VhostUserTransferDeviceState.encode(direction=1), [ours])
    os.close(ours)
    os.close(theirs)
    client.reply()


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "times", [100, pytest.param(10_000, marks=pytest.mark.long)], ids=["a hundred", "ten thousand"]
)
def test_what_is_set_again_and_again_takes_no_more(running: Running, times: int) -> None:
    with (
        nothing_left(running),
        connected(running.path) as client,
        eventfds(2) as (kick, call),
        socket.socket(socket.AF_UNIX) as channel,
    ):
        messages = repeated(client, kick, call, channel.fileno())

        def all_of(count: int) -> None:
            for send in messages.values():
                for _ in range(count):
                    send()
                assert client.ask(R.GET_QUEUE_NUM) == 2

        all_of(max(20, times // 20))
        descriptors, memory, regions = open_fds(), resident(), mappings()
        all_of(times)
        # The log is the test's.
        running.lines.clear()
        assert (open_fds(), mappings()) == (descriptors, regions)
        # Ten thousand times each, twelve bytes a message would be more.
        assert resident() - memory < 2 << 20, "bytes more after so many messages"
        # They hold views of the client's memory.
        messages.clear()


# A29: memory tables that overlap, wrap or lie: see also test_a_bad_table_leaves_the_old_one


def test_there_are_only_so_many_regions() -> None:
    front = fresh()
    before = set(front.books.open)
    for n in range(1, MAX_MEM_SLOTS + 3):
        one = m.VhostUserMemRegMsg.encode(region=region(guest_phys_addr=n << 40, userspace_addr=n << 44))
        if n < MAX_MEM_SLOTS:
            front.must(R.ADD_MEM_REG, one, fds=1)
        else:
            front.refused(R.ADD_MEM_REG, one, fds=1)
    assert front.books.open == before


spans = st.sampled_from(
    [0, 1, GUEST, USER, SIZE, SIZE - 1, 1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - SIZE, (1 << 64) - 1]
)


@given(st.lists(st.tuples(spans, spans, spans, spans), min_size=1, max_size=8), st.booleans())
@example([((1 << 63) - 1, 1, 0, 0)], False).via("its end fits no signed word")
@example([(1 << 63, 1, 0, 0)], True)
@settings(deadline=None, max_examples=200)
def test_any_table_is_taken_whole_or_not_at_all(numbers: list[tuple[int, int, int, int]], one_by_one: bool) -> None:
    front = fresh()
    regions = [
        region(guest_phys_addr=guest, memory_size=size, userspace_addr=user, mmap_offset=offset)
        for guest, size, user, offset in numbers
    ]
    before = front.backend.session.table
    if one_by_one:
        for one in regions:
            front.send(R.ADD_MEM_REG, m.VhostUserMemRegMsg.encode(region=one), 1, Flag.NEED_REPLY)
    else:
        answer = front.send(R.SET_MEM_TABLE, memory_table(regions), len(regions), Flag.NEED_REPLY)
        assert answer == bytes(8) or front.backend.session.table is before
    front.backend.kicked(0)
    front.serve()
    assert front.get(R.GET_QUEUE_NUM) == 2


def test_files_that_are_no_memory_are_refused(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    flags = {"read only": os.O_RDONLY, "write only": os.O_WRONLY, "a path": os.O_PATH}
    with nothing_left(running), connected(running.path) as client, contextlib.ExitStack() as stack:
        opened = [os.open(path, flag) for flag in flags.values()]
        opened += [os.open(name, os.O_RDWR) for name in ("/dev/zero", "/dev/null")]
        opened += [os.open(tmp_path, os.O_RDONLY), *os.pipe(), os.eventfd(0), client.connection.fileno()]
        for fd in opened[:-1]:
            stack.callback(os.close, fd)
        for fd in opened:
            assert client.ask(R.SET_MEM_TABLE, memory_table([region()]), [fd]) == 1
        short = os.memfd_create("short")
        stack.callback(os.close, short)
        for size in (0, 1, SIZE - 1):
            os.ftruncate(short, size)
            assert client.ask(R.SET_MEM_TABLE, memory_table([region()]), [short]) == 1
        os.ftruncate(short, SIZE)
        assert client.ask(R.SET_MEM_TABLE, memory_table([region(mmap_offset=1)]), [short]) == 1
        assert client.ask(R.SET_MEM_TABLE, memory_table([region()]), [short]) == 0


# A30: descriptors of the wrong kind


def odd_descriptors(tmp_path: Path) -> list[int]:
    """One of each kind that is no event; who gets them closes them."""
    made = [os.open(tmp_path, os.O_RDONLY), os.open("/dev/null", os.O_RDWR), os.open("/dev/zero", os.O_RDWR)]
    made += [os.memfd_create("odd"), os.open(tmp_path / "odd", os.O_CREAT | os.O_RDWR), os.pidfd_open(os.getpid())]
    epoll = select.epoll()
    made += [*os.pipe(), os.dup(epoll.fileno())]
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / f"listening{time.monotonic_ns()}"))
    listening.listen(1)
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    return [*made, listening.detach(), datagrams.detach(), os.eventfd(1, os.EFD_SEMAPHORE)]


@pytest.mark.parametrize("request_", [*EVENTS, R.SET_BACKEND_REQ_FD, R.SET_DEVICE_STATE_FD], ids=lambda r: r.name)
def test_descriptors_of_the_wrong_kind_do_no_harm(running: Running, tmp_path: Path, request_: R) -> None:
    payload = {
        R.SET_BACKEND_REQ_FD: b"",
        R.SET_DEVICE_STATE_FD: m.VhostUserTransferDeviceState.encode(direction=1),
    }.get(request_, m.u64.encode(u64=1))
    with nothing_left(running), connected(running.path) as client, eventfds(2) as (kick, call):
        client.start(kick, call, 1)
        for fd in odd_descriptors(tmp_path):
            # Refused or put up with, but never waited for.
            client.send(request_, payload, [fd], Flag.NEED_REPLY)
            client.reply()
            os.close(fd)
            os.eventfd_write(kick, 1)
            assert client.ask(R.GET_QUEUE_NUM) == 2


@pytest.mark.parametrize("request_", [*EVENTS, R.SET_BACKEND_REQ_FD, R.SET_DEVICE_STATE_FD], ids=lambda r: r.name)
def test_the_connection_itself_is_no_event(running: Running, request_: R) -> None:
    """Whoever hands us the other end of their connection would keep us waiting for its end: it is we who hold it."""
    state = m.VhostUserTransferDeviceState.encode(direction=1)
    payload = {R.SET_BACKEND_REQ_FD: b"", R.SET_DEVICE_STATE_FD: state}.get(request_, m.u64.encode(u64=1))
    with nothing_left(running), connected(running.path) as client, connected(running.path) as waiting:
        for connection in (client.connection, waiting.connection):
            assert client.ask(request_, payload, [connection.fileno()]) & 1


def test_a_call_that_fails_is_the_front_ends_loss(running: Running) -> None:
    with nothing_left(running), connected(running.path) as client, eventfds(1) as [kick]:
        ours, theirs = os.pipe()
        queue = client.start(kick, theirs)
        os.close(theirs)
        os.close(ours)
        client.add(queue, b"nobody will hear of this")
        os.eventfd_write(kick, 1)
        await_(lambda: bool(client.ask(R.GET_STATUS) & 64), "the device needs a reset")
        # It holds views of the client's memory.
        del queue


# A21, A22, A24: registers at the wrong time, and rings that point at themselves


@both_layouts
@pytest.mark.parametrize("request_", [R.SET_VRING_NUM, R.SET_VRING_BASE, R.SET_VRING_ADDR], ids=lambda r: r.name)
def test_a_running_ring_is_stopped_before_it_is_changed(layout: int, request_: R) -> None:
    front = FrontEnd()
    front.number(R.SET_FEATURES, BASIC | layout)
    front.share()
    queue = front.queue(0, BASIC | layout)
    front.describe(queue)
    front.number(R.SET_VRING_KICK, 0, fds=1)
    front.state(R.SET_VRING_ENABLE, 0, 1)
    assert front.echo(queue, b"before") == b"before"
    payload = m.vhost_vring_state.encode(index=0, num=256)
    front.must(request_, addresses(queue, desc_user_addr=USER + SIZE // 2) if request_ == R.SET_VRING_ADDR else payload)
    queue.add([], [front.arena.allocate(8).extent])
    front.backend.kicked(0)
    front.serve()
    assert not queue.take_used(), "it takes a new kick descriptor to start it again"
    assert not front.backend.session.rings[0].active


@both_layouts
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("area", ["descriptor_area", "driver_area", "device_area"])
def test_a_buffer_may_be_the_ring_itself(layout: int, write: bool, area: str) -> None:
    front = FrontEnd()
    front.number(R.SET_FEATURES, BASIC | layout)
    front.share()
    queue = front.queue(0, BASIC | layout)
    front.describe(queue)
    front.number(R.SET_VRING_KICK, 0, fds=1)
    front.state(R.SET_VRING_ENABLE, 0, 1)
    ring, other = (getattr(queue, area), 4), front.arena.allocate(4)
    other.view[:] = b"\xff" * 4
    queue.add([other.extent], [ring]) if write else queue.add([ring], [other.extent])
    front.kick(0)
    for _ in range(20):
        front.backend.kicked(0)
        front.serve()
    assert front.get(R.GET_QUEUE_NUM) == 2
    front.send(R.RESET_DEVICE)
    queue.release()
    again = front.queue(0, BASIC | layout)
    front.number(R.SET_FEATURES, BASIC | layout)
    front.describe(again)
    front.number(R.SET_VRING_KICK, 0, fds=1)
    front.state(R.SET_VRING_ENABLE, 0, 1)
    assert front.echo(again, b"after a reset") == b"after a reset"
