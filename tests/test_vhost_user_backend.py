"""The vhost-user back-end without a socket: what real front-ends were seen to send, and what none should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from virtio_py.errors import MessageError, NegotiationError, PeerError
from virtio_py.rings.engine import Engine, engine_named
from virtio_py.rings.queue import DriverQueue, QueueState
from virtio_py.spec import DeviceStatus, Feature, PackedDescFlag, bit, mask
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_messages import (
    FRONTEND_MESSAGES,
    INVALID_FD,
    BackendRequest,
    Flag,
    Message,
    ProtocolFeature,
)
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES
from virtio_py.transports.vhost_user_vring import Vring, base_of

INBAND = PROTOCOL_FEATURES | bit(ProtocolFeature.INBAND_NOTIFICATIONS)
UML_PROTOCOL = mask(ProtocolFeature.REPLY_ACK, ProtocolFeature.BACKEND_REQ, ProtocolFeature.CONFIG)
DPDK_PROTOCOL = mask(ProtocolFeature.MQ, ProtocolFeature.REPLY_ACK, ProtocolFeature.STATUS)

both_layouts = pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])


@pytest.fixture(params=["reference", "compiled"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return engine_named(request.param)


# What User Mode Linux 6.1 sends


def uml_boot(front: FrontEnd, protocol: int = UML_PROTOCOL) -> None:
    front.send(R.SET_OWNER)
    assert front.get(R.GET_FEATURES) & BASIC == BASIC
    front.get(R.GET_PROTOCOL_FEATURES)
    front.send(R.SET_PROTOCOL_FEATURES, m.u64.encode(u64=protocol))
    front.must(R.SET_BACKEND_REQ_FD, fds=1)


def uml_probe(front: FrontEnd, features: int, indices: tuple[int, ...] = (0, 1)) -> list[DriverQueue]:
    front.number(R.SET_FEATURES, features)
    front.share()
    queues = [front.queue(index, features, 256) for index in indices]
    for queue in queues:
        front.call(queue.index)
        front.describe(queue)
    for queue in queues:
        front.number(R.SET_VRING_KICK, queue.index, fds=1)
        if features & bit(m.F_PROTOCOL_FEATURES):
            front.state(R.SET_VRING_ENABLE, queue.index, 1)
    return queues


def uml_remove(front: FrontEnd, queues: list[DriverQueue]) -> None:
    for queue in reversed(queues):
        front.state(R.SET_VRING_ENABLE, queue.index, 0)
    front.get(R.GET_FEATURES)
    for queue in queues:
        queue.release()


@both_layouts
def test_uml_loads_its_driver_again_without_stopping_a_ring(engine: Engine, layout: int) -> None:
    front = FrontEnd(engine)
    uml_boot(front)
    for attempt in range(3):
        queues = uml_probe(front, BASIC | layout)
        assert front.device.activations == attempt + 1
        for text in (b"hello", b"world"):
            for queue in queues:
                assert front.echo(queue, text) == text
        uml_remove(front, queues)
    front.backend.close()
    assert not front.books.open
    assert not front.books.watched


def test_uml_without_the_protocol_bit_never_enables_its_rings() -> None:
    front = FrontEnd()
    uml_boot(front)
    for _ in range(2):
        front.number(R.SET_FEATURES, BASIC)
        [queue] = uml_probe(front, bit(Feature.VERSION_1), (0,))
        assert front.echo(queue, b"hello") == b"hello"
        queue.release()


def test_uml_gets_just_as_many_bytes_of_configuration_as_it_asks_for() -> None:
    front = FrontEnd()
    uml_boot(front)
    for size in range(1, 61):
        asked = m.VhostUserConfig(size).encode(size=size)
        found = front.send(R.GET_CONFIG, asked)
        want = bytes(range(24))[:size].ljust(size, b"\0")
        assert found == m.VhostUserConfig(size).encode(size=size, region=want)


def test_in_band_notifications_need_no_descriptors() -> None:
    front = FrontEnd(protocol=INBAND)
    uml_boot(front, UML_PROTOCOL | bit(ProtocolFeature.INBAND_NOTIFICATIONS))
    channel = max(front.books.open)
    front.number(R.SET_FEATURES, BASIC)
    front.share()
    queue = front.queue(1, BASIC)
    front.describe(queue)
    front.state(R.SET_VRING_ENABLE, 1, 1)
    assert front.device.activations == 0, "a ring starts with its first kick"
    for number in range(3):
        out = front.arena.allocate(4)
        queue.add([out.extent], [front.arena.allocate(4).extent])
        front.state(R.VRING_KICK, 1, 0)
        front.serve()
        assert len(queue.take_used()) == 1
        call = m.vhost_vring_state.encode(index=1)
        assert front.books.sent == [(channel, BackendRequest.VRING_CALL, call)] * (number + 1)


@pytest.mark.parametrize("lacking", [ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK])
def test_in_band_notifications_need_a_channel_and_acknowledgements(lacking: int) -> None:
    front = FrontEnd(protocol=INBAND)
    with pytest.raises(MessageError, match="INBAND"):
        front.send(R.SET_PROTOCOL_FEATURES, m.u64.encode(u64=INBAND & ~bit(lacking)))


# What DPDK's virtio-user 22.11 sends


@both_layouts
def test_dpdk_with_status_messages(engine: Engine, layout: int) -> None:
    front = FrontEnd(engine)
    features = BASIC | layout
    front.send(R.SET_OWNER)
    front.get(R.GET_FEATURES)
    front.get(R.GET_PROTOCOL_FEATURES)
    front.send(R.SET_PROTOCOL_FEATURES, m.u64.encode(u64=DPDK_PROTOCOL))
    calls = [front.call(index) for index in (0, 1)]
    front.send(R.SET_FEATURES, m.u64.encode(u64=features))
    front.number(R.SET_STATUS, 0xB)
    assert [front.get(R.GET_STATUS), front.get(R.GET_STATUS)] == [0xB, 0xB]
    front.share()
    queues = [front.queue(index, features) for index in (0, 1)]
    for queue in queues:
        front.describe(queue, 0x8000 if layout else 0)
        front.number(R.SET_VRING_KICK, queue.index, fds=1)
    front.state(R.SET_VRING_ENABLE, 0, 1)
    assert front.device.activations == 0
    front.number(R.SET_STATUS, 0xF)
    front.state(R.SET_VRING_ENABLE, 1, 1)
    assert front.echo(queues[0], b"zero") == b"zero"
    assert front.echo(queues[1], b"one") == b"one"
    assert front.books.signals == calls
    for queue in queues:
        front.state(R.SET_VRING_ENABLE, queue.index, 0)
        assert front.base(queue.index) == (0x80028002 if layout else 1)
    assert not front.books.watched


# What QEMU sends


def qemu_start(front: FrontEnd, queue: DriverQueue, features: int, base: int) -> None:
    front.number(R.SET_FEATURES, features)
    front.describe(queue, base)
    front.number(R.SET_VRING_KICK, queue.index, fds=1)
    front.number(R.SET_VRING_CALL, queue.index, fds=1)


def qemu_boot(front: FrontEnd) -> None:
    front.send(R.SET_PROTOCOL_FEATURES, m.u64.encode(u64=PROTOCOL_FEATURES & ~bit(ProtocolFeature.STATUS)))
    assert front.get(R.GET_QUEUE_NUM) == 2
    assert front.get(R.GET_MAX_MEM_SLOTS) >= 8
    front.must(R.SET_BACKEND_REQ_FD, fds=1)
    front.number(R.SET_VRING_ERR, 0, fds=1)
    front.must(R.RESET_DEVICE)
    # For all rings, before anything else is known of them.
    front.state(R.SET_VRING_ENABLE, 0, 1)
    front.state(R.SET_VRING_ENABLE, 1, 1)
    front.must(R.ADD_MEM_REG, m.VhostUserMemRegMsg.encode(region=region()), fds=1)


@both_layouts
def test_a_paused_guest_goes_on_where_it_was(engine: Engine, layout: int) -> None:
    front = FrontEnd(engine)
    qemu_boot(front)
    features = BASIC | layout
    queue = front.queue(0, features, 4)
    base = 0
    for round_ in range(5):
        qemu_start(front, queue, features, base)
        resets = front.device.resets
        for text in (b"a", b"bb", b"ccc"):
            assert front.echo(queue, text) == text
        base = front.base(0)
        assert front.device.resets == resets, round_
        assert front.device.activations == 1


def test_a_guest_that_begins_anew_has_reset_the_device() -> None:
    front = FrontEnd()
    qemu_boot(front)
    for attempt in range(3):
        queue = front.queue(0, BASIC)
        qemu_start(front, queue, BASIC, 0)
        assert front.echo(queue, b"hello") == b"hello"
        assert front.base(0) == 1
        assert front.device.activations == attempt + 1
        queue.release()


@both_layouts
def test_a_ring_disabled_and_enabled_goes_on(layout: int) -> None:
    front = FrontEnd()
    uml_boot(front)
    [queue] = uml_probe(front, BASIC | layout, (0,))
    assert front.echo(queue, b"before") == b"before"
    front.state(R.SET_VRING_ENABLE, 0, 0)
    out, back = front.arena.allocate(5), front.arena.allocate(5)
    out.view[:] = b"while"
    queue.add([out.extent], [back.extent])
    front.kick(0)
    assert not queue.take_used()
    front.state(R.SET_VRING_ENABLE, 0, 1)
    front.serve()
    assert len(queue.take_used()) == 1
    assert bytes(back.view) == b"while"
    assert front.device.activations == 1


@both_layouts
def test_memory_comes_and_goes_under_a_running_ring(layout: int) -> None:
    front = FrontEnd()
    qemu_boot(front)
    queue = front.queue(0, BASIC | layout)
    qemu_start(front, queue, BASIC | layout, 0)
    other = m.VhostUserMemRegMsg.encode(region=region(guest_phys_addr=1 << 40, userspace_addr=1 << 41))
    front.must(R.ADD_MEM_REG, other, fds=1)
    assert front.echo(queue, b"more") == b"more"
    front.must(R.REM_MEM_REG, other, fds=1)  # a descriptor that should not be there is put up with, and closed
    assert front.echo(queue, b"less") == b"less"
    front.refused(R.REM_MEM_REG, other)
    front.refused(R.REM_MEM_REG, m.VhostUserMemRegMsg.encode(region=region()))  # the ring lies in it
    assert front.echo(queue, b"kept") == b"kept"


def test_logging_may_be_switched_under_a_running_ring_and_nothing_else() -> None:
    front = FrontEnd()
    uml_boot(front)
    [queue] = uml_probe(front, BASIC, (0,))
    front.must(R.SET_VRING_ADDR, addresses(queue, flags=1, log_guest_addr=0x1000))
    assert front.echo(queue, b"same") == b"same"
    front.must(R.SET_VRING_ADDR, addresses(queue, used_user_addr=USER))
    assert not front.books.watched, "another place: the ring is stopped"


def test_a_ring_that_is_not_kicked_is_polled() -> None:
    front = FrontEnd()
    uml_boot(front)
    front.number(R.SET_FEATURES, BASIC)
    front.share()
    queue = front.queue(0, BASIC)
    front.describe(queue)
    before = front.backend.polling
    front.number(R.SET_VRING_KICK, 0 | INVALID_FD)
    front.number(R.SET_VRING_CALL, 0 | INVALID_FD)
    front.state(R.SET_VRING_ENABLE, 0, 1)
    assert (before, front.backend.polling) == (False, True)
    queue.add([], [front.arena.allocate(4).extent])
    front.serve()
    front.backend.poll()
    front.serve()
    assert len(queue.take_used()) == 1
    assert not front.books.signals


# What a device has to say


def test_a_configuration_change_is_told_while_a_ring_runs() -> None:
    front = FrontEnd()
    uml_boot(front)
    [queue] = uml_probe(front, BASIC, (0,))
    assert front.device.end is not None
    front.device.end.configuration_changed()
    assert [request for _, request, _ in front.books.sent] == [BackendRequest.CONFIG_CHANGE_MSG]
    base = front.base(0)
    front.device.end.configuration_changed()
    assert len(front.books.sent) == 1, "a suspended device keeps silent"
    qemu_start(front, queue, BASIC, base)
    assert len(front.books.sent) == 2


@both_layouts
@pytest.mark.parametrize("status", [False, True], ids=["inferred", "status"])
def test_a_broken_ring_is_told_and_can_be_set_up_again(layout: int, status: bool) -> None:
    front = FrontEnd()
    uml_boot(front, UML_PROTOCOL | (bit(ProtocolFeature.STATUS) if status else 0))
    features = BASIC | layout
    for _ in range(2):
        front.number(R.SET_FEATURES, features)
        if status:
            front.number(R.SET_STATUS, 0xB)
        queues = uml_probe(front, features)
        front.number(R.SET_VRING_ERR, 1, fds=1)
        error = max(front.books.open)
        if status:
            front.number(R.SET_STATUS, 0xF)
        front.books.signals.clear()
        front.books.sent.clear()
        queues[1].add([], [(1 << 40, 16)])
        front.kick(1)
        assert front.books.signals == [error]
        assert [request for _, request, _ in front.books.sent] == [BackendRequest.CONFIG_CHANGE_MSG]
        assert "needs a reset" in front.books.lines[-1]
        assert front.get(R.GET_STATUS) & DeviceStatus.DEVICE_NEEDS_RESET
        for queue in queues:
            queue.release()
    if status:
        front.number(R.SET_STATUS, 0)
        assert front.get(R.GET_STATUS) == 0


# Positions

AVAIL, USED = PackedDescFlag.AVAIL, PackedDescFlag.USED
POSITIONS: list[tuple[int, int, int, QueueState]] = [
    (0, 7, 5, QueueState(7, 5)),
    (PACKED, 0, 0, QueueState(0, 0, 1, 1)),  # User Mode Linux: no wrap counters
    (PACKED, 0, AVAIL, QueueState(0, 0, 1, 1)),  # the same, with something made available already
    (PACKED, 0x8000, 0, QueueState(0, 0, 1, 1)),  # DPDK: half of it
    (PACKED, 0x80008000, 0, QueueState(0, 0, 1, 1)),
    (PACKED, 0x80030004, 0, QueueState(4, 3, 0, 1)),
    (PACKED, 0, AVAIL | USED, QueueState(0, 0, 0, 0)),  # the second lap, from whoever served the first
    (PACKED, 0, USED, QueueState(0, 0, 0, 0)),  # the same, with something made available already
]


@pytest.mark.parametrize(("features", "base", "seen", "state"), POSITIONS)
def test_where_a_ring_begins(features: int, base: int, seen: int, state: QueueState) -> None:
    assert Vring(0, base=base).position(features, seen) == state


@given(st.builds(QueueState, *[st.integers(0, 0x7FFF)] * 2, *[st.integers(0, 1)] * 2))
def test_a_packed_position_survives_the_wire(state: QueueState) -> None:
    base = base_of(PACKED, state)
    literal = base >> 16 != 0 or base == 0
    if literal:
        assert Vring(0, base=base, left=base).position(PACKED, USED) == state


# What no front-end should send


def fresh() -> FrontEnd:
    front = FrontEnd()
    uml_boot(front)
    uml_probe(front, BASIC)
    return front


INDEXED: list[Callable[[int], tuple[int, bytes]]] = [
    *(
        lambda i, r=r: (r, m.vhost_vring_state.encode(index=i, num=1))
        for r in (R.SET_VRING_NUM, R.SET_VRING_BASE, R.SET_VRING_ENABLE)
    ),
    lambda i: (R.SET_VRING_ADDR, m.vhost_vring_addr.encode(index=i)),
    *(lambda i, r=r: (r, m.u64.encode(u64=i)) for r in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)),
]


@pytest.mark.parametrize("index", [2, 255, 0x10000, 0x10001, 0xFFFFFFFF])
@pytest.mark.parametrize("make", INDEXED)
def test_a_ring_that_is_not_there(make: Callable[[int], tuple[int, bytes]], index: int) -> None:
    front = fresh()
    before = set(front.books.open)
    request, payload = make(index)
    front.refused(request, payload, fds=FRONTEND_MESSAGES[request].fds)  # type: ignore[index]  # an IntEnum
    with pytest.raises(PeerError):
        front.send(R.GET_VRING_BASE, m.vhost_vring_state.encode(index=index))
    assert front.books.open == before


@pytest.mark.parametrize("request_", [0, 45, 1000, 0xFFFFFFFF, R.POSTCOPY_LISTEN, R.GPU_SET_SOCKET, R.VRING_KICK])
def test_a_request_not_offered_is_refused_or_hung_up_on(request_: int) -> None:
    front = fresh()
    before = set(front.books.open)
    front.refused(request_, fds=1)
    with pytest.raises(MessageError):
        front.send(request_, fds=3)
    assert front.books.open == before


@pytest.mark.parametrize("request_", [r for r in R if not FRONTEND_MESSAGES[r].fds])
@pytest.mark.parametrize("count", [1, 8])
def test_descriptors_where_none_belong_are_closed(request_: R, count: int) -> None:
    front = fresh()
    before = set(front.books.open)
    try:
        answer = front.send(request_, fds=count)
    except PeerError:
        answer = REFUSED  # which only a request that always has an answer gets
    assert answer == REFUSED
    assert front.books.open == before


def test_a_reply_to_nothing_is_hung_up_on() -> None:
    with pytest.raises(MessageError):
        fresh().send(R.GET_FEATURES, flags=Flag.REPLY)


BAD_TABLES = {
    "no bytes": [region(memory_size=0)],
    "guest wraps": [region(guest_phys_addr=(1 << 64) - 1)],
    "user wraps": [region(userspace_addr=(1 << 64) - 1)],
    "offset wraps": [region(mmap_offset=(1 << 64) - 1)],
    "all": [region(memory_size=(1 << 64) - 1)],
    "short file": [region(mmap_offset=1)],
    "the same twice": [region(), region()],
    "guests overlap": [region(), region(userspace_addr=USER + SIZE, guest_phys_addr=GUEST + SIZE - 1)],
    "users overlap": [region(), region(userspace_addr=USER + SIZE - 1, guest_phys_addr=GUEST + SIZE)],
    "rings elsewhere": [region(guest_phys_addr=GUEST + SIZE)],
    "nothing": [],
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_leaves_the_old_one(name: str) -> None:
    front = FrontEnd()
    uml_boot(front)
    [queue] = uml_probe(front, BASIC, (0,))
    before = set(front.books.open)
    front.refused(R.SET_MEM_TABLE, memory_table(BAD_TABLES[name]), fds=len(BAD_TABLES[name]))
    assert front.books.open == before
    assert front.echo(queue, b"as before") == b"as before"


def test_a_table_with_too_few_descriptors() -> None:
    fresh().refused(R.SET_MEM_TABLE, memory_table([region()]))


@pytest.mark.clause("features.driver.feature-bits.1")
def test_features_that_were_not_offered() -> None:
    with pytest.raises(NegotiationError):
        fresh().send(R.SET_FEATURES, m.u64.encode(u64=1 << 63))


def test_a_legacy_driver_is_refused_when_its_ring_starts() -> None:
    front = FrontEnd()
    uml_boot(front)
    front.number(R.SET_FEATURES, 0)
    front.share()
    front.describe(front.queue(0, BASIC))
    front.refused(R.SET_VRING_KICK, m.u64.encode(u64=0), fds=1)


def test_a_first_set_of_features_that_cannot_be_served_is_forgotten() -> None:
    front = FrontEnd()
    uml_boot(front)
    front.number(R.SET_FEATURES, 0)
    [queue] = uml_probe(front, BASIC, (0,))
    assert front.echo(queue, b"hello") == b"hello"


def test_configuration_is_read_with_the_features_that_were_given() -> None:
    front = FrontEnd()
    uml_boot(front)
    front.number(R.SET_FEATURES, BASIC)
    assert front.backend.session.end.features == bit(Feature.VERSION_1)
    assert front.get(R.GET_STATUS) == 0xB


@pytest.mark.parametrize(
    ("offset", "size", "sent"), [(0, 257, 257), (256, 1, 1), (0xFFFFFFFF, 8, 8), (0, 8, 7), (0, 0xFFFFFFFF, 0)]
)
def test_a_bad_configuration_access_gets_an_empty_answer(offset: int, size: int, sent: int) -> None:
    front = fresh()
    payload = m.VhostUserConfig(sent).encode(offset=offset, size=size)
    assert front.send(R.GET_CONFIG, payload) == b""
    front.refused(R.SET_CONFIG, payload)
    assert front.device.config == bytes(range(24))


def test_configuration_is_written() -> None:
    front = fresh()
    front.must(R.SET_CONFIG, m.VhostUserConfig(2).encode(offset=4, size=2, region=b"ab"))
    assert front.device.config[3:7] == b"\x03ab\x06"


def test_descriptors_are_replaced_not_collected() -> None:
    front = fresh()
    count = len(front.books.open)
    for _ in range(20):
        for request in (R.SET_VRING_KICK, R.SET_VRING_CALL):
            front.number(request, 0, fds=1)
        front.must(R.SET_BACKEND_REQ_FD, fds=1)
        front.share()
    assert len(front.books.open) == count


def test_a_kick_that_cannot_be_watched_is_refused_and_closed() -> None:
    front = fresh()
    bad = front.books.fd()
    front.books.bad.add(bad)
    for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        fd = front.books.fd()
        front.books.bad.add(fd)
        reply = front.backend.receive(Message(request, Flag.NEED_REPLY, m.u64.encode(u64=0)), [fd])
        assert reply is not None
        assert reply[-8:] == m.u64.encode(u64=1)
        assert fd not in front.books.open


# Anything at all

numbers = st.sampled_from([0, 1, 2, 8, 255, 256, GUEST, USER, SIZE, 1 << 32, BASIC, BASIC | PACKED, (1 << 64) - 1])
payloads = st.one_of(
    st.binary(max_size=300),
    st.lists(numbers, max_size=6).map(lambda ns: b"".join(n.to_bytes(8, "little") for n in ns)),
    st.builds(lambda i, n: m.vhost_vring_state.encode(index=i, num=n), st.integers(0, 3), st.integers(0, 9)),
    st.just(memory_table([region()])),
)
any_message = st.tuples(
    st.one_of(st.sampled_from(R), st.integers(0, 2**32 - 1)),
    payloads,
    st.integers(0, 8),
    st.sampled_from([Flag.NEED_REPLY] * 9 + [0]),
)


@settings(max_examples=300)
@given(st.booleans(), st.lists(any_message, max_size=30))
def test_any_messages_are_answered_or_hung_up_on(started: bool, sent: list[tuple[int, bytes, int, int]]) -> None:
    front = fresh() if started else FrontEnd(protocol=INBAND)
    for request, payload, fds, flags in sent:
        try:
            front.send(request, payload, fds, flags)
        except PeerError:
            break
        front.serve()
    front.backend.close()
    assert not front.books.open
    assert not front.books.watched


def session() -> list[tuple[int, bytes, int]]:
    """A whole session, as User Mode Linux sends it, for one ring."""
    queue = FrontEnd().queue(0, BASIC)
    return [
        (R.SET_PROTOCOL_FEATURES, m.u64.encode(u64=UML_PROTOCOL), 0),
        (R.SET_BACKEND_REQ_FD, b"", 1),
        (R.SET_FEATURES, m.u64.encode(u64=BASIC), 0),
        (R.GET_CONFIG, m.VhostUserConfig(4).encode(size=4), 0),
        (R.SET_MEM_TABLE, memory_table([region()]) + bytes(32), 1),
        (R.SET_VRING_CALL, m.u64.encode(u64=0), 1),
        (R.SET_VRING_NUM, m.vhost_vring_state.encode(index=0, num=8), 0),
        (R.SET_VRING_BASE, m.vhost_vring_state.encode(index=0), 0),
        (R.SET_VRING_ADDR, addresses(queue), 0),
        (R.SET_VRING_KICK, m.u64.encode(u64=0), 1),
        (R.SET_VRING_ENABLE, m.vhost_vring_state.encode(index=0, num=1), 0),
        (R.GET_VRING_BASE, m.vhost_vring_state.encode(index=0), 0),
    ]


@pytest.mark.parametrize("at", range(12))
def test_every_truncation_of_every_message_of_a_session(at: int) -> None:
    messages = session()
    request, payload, fds = messages[at]
    # What lies behind the one region of the table is only room.
    needed = 40 if request == R.SET_MEM_TABLE else len(payload)
    for length in range(needed):
        front = FrontEnd()
        for before in messages[:at]:
            front.send(*before)
        held = set(front.books.open)
        if request == R.GET_CONFIG and length >= 12:
            assert front.send(request, payload[:length], fds) in (b"", payload[:12] + bytes(range(4)))
        else:
            with pytest.raises(PeerError):
                front.send(request, payload[:length], fds)
        assert front.books.open == held
        front.backend.close()
        assert not front.books.open
