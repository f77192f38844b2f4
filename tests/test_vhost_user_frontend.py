"""The vhost-user front-end without sockets: against our own back-end, and against answers that are wrong."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vhost_user_frontend import GUEST, SIZE, Books, Echo
from virtio_py.errors import (
    MessageError,
    NegotiationError,
    UsageError,
    VirtioError,
)
from virtio_py.memory import Arena, GuestMemory, Region
from virtio_py.rings.queue import DriverQueue
from virtio_py.rings.rewind import rewind
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.status import RING_FEATURES
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_backend import Backend
from virtio_py.transports.vhost_user_frontend import Call, Events, Frontend, Share, Steps, T, check_reply
from virtio_py.transports.vhost_user_messages import (
    BackendRequest,
    Flag,
    FrontendRequest,
    Message,
    ProtocolFeature,
    decode_message,
)
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES
from virtio_py.transports.vhost_user_vring import base_of

OK = int(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK)
LIVE = OK | DeviceStatus.DRIVER_OK
P = ProtocolFeature
PROTOCOLS = {
    "all": PROTOCOL_FEATURES,
    "no status": PROTOCOL_FEATURES & ~bit(P.STATUS),
    "no reset": PROTOCOL_FEATURES & ~mask(P.STATUS, P.RESET_DEVICE),
    "no acknowledgements": PROTOCOL_FEATURES & ~mask(P.STATUS, P.REPLY_ACK),
    "none": 0,
}
BASIC = bit(Feature.VERSION_1)


@define(eq=False)
class Wire:
    """A front-end and our back-end, messages handed over by calls. spoil: may change an answer's bytes."""

    backend: Backend
    frontend: Frontend
    books: Books
    arena: Arena
    spoil: Callable[[Call, bytes], bytes] = lambda _, data: data
    calls: list[Call] = field(factory=list)

    def run(self, steps: Steps[T]) -> T:
        value = None
        while True:
            try:
                call = steps.send(value)
            except StopIteration as done:
                result: T = done.value
                return result
            value = self.exchange(call)

    def exchange(self, call: Call) -> object:
        self.calls.append(call)
        # A descriptor that is sent is another one on the other side.
        fds = [self.books.fd() for _ in call.fds]
        if call.request is FrontendRequest.SET_INFLIGHT_FD:
            self.books.files[fds[0]] = mmap.mmap(call.fds[0], 0)
        reply = self.backend.receive(decode_message(self.frontend.outgoing(call)), fds)
        assert (reply is not None) == self.frontend.awaits(call)
        if reply is None:
            return 0
        lent, self.books.lent = self.books.lent, []
        try:
            value = self.frontend.answer(call, check_reply(call, decode_message(self.spoil(call, reply))))
        except VirtioError:
            for fd in lent:
                os.close(fd)
            raise
        return (value, lent) if call.takes else value

    def start(self, features: int) -> DriverQueue:
        if not self.calls:
            self.run(self.frontend.open(0))
        for status in (1, 3):
            self.run(self.frontend.write_status(status))
        self.run(self.frontend.accept_features(features))
        self.run(self.frontend.write_status(OK))
        assert self.run(self.frontend.read_status()) == OK
        queue = DriverQueue(0, 8, self.arena, features)
        self.run(self.frontend.enable_queue(queue, 1))
        assert not any(ring.active for ring in self.backend.session.rings), "DRIVER_OK is not set"
        self.run(self.frontend.write_status(LIVE))
        return queue

    def echo(self, queue: DriverQueue, text: bytes) -> bytes:
        out, back = self.arena.allocate(len(text)), self.arena.allocate(len(text))
        out.view[:] = text
        queue.add([out.extent], [back.extent], token=text)
        self.backend.kicked(queue.index)
        while self.backend.serve():
            pass
        assert queue.take_used() == [(text, len(text))]
        return bytes(back.view)


def wire(protocol: int = PROTOCOL_FEATURES) -> Wire:
    books = Books()
    backend = Backend(Echo(), books, protocol_features=protocol, ring_features=RING_FEATURES | bit(Feature.IN_ORDER))
    memory = GuestMemory([Region(GUEST, memoryview(books.memory))])
    return Wire(backend, Frontend(Share(2, GUEST, SIZE), Events(3, 4)), books, Arena(memory))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("features", [BASIC, BASIC | bit(Feature.RING_PACKED)], ids=["split", "packed"])
def test_a_session_with_our_back_end(protocol: str, features: int) -> None:
    both = wire(PROTOCOLS[protocol])
    for round_ in range(2):
        queue = both.start(features)
        assert both.echo(queue, b"round %d" % round_) == b"round %d" % round_
        assert both.run(both.frontend.read_status()) == LIVE
        both.run(both.frontend.write_status(0))
        assert both.run(both.frontend.read_status()) == 0
        assert not any(ring.active for ring in both.backend.session.rings)
    both.backend.close()
    assert both.books.open == set()


@pytest.mark.parametrize("protocol", ["all", "no status"])
def test_a_queue_is_reset_and_begins_anew(protocol: str) -> None:
    both = wire(PROTOCOLS[protocol])
    features = mask(Feature.VERSION_1, Feature.RING_RESET, Feature.RING_PACKED)
    queue = both.start(features)
    both.echo(queue, b"before")
    both.run(both.frontend.reset_queue(0))
    with pytest.raises(UsageError):
        both.run(both.frontend.reset_queue(0))
    again = DriverQueue(0, 4, both.arena, features)
    both.run(both.frontend.enable_queue(again, 1))
    assert both.echo(again, b"after") == b"after"


def test_a_packed_ring_begins_with_both_wrap_counters_set() -> None:
    both = wire()
    both.start(BASIC | bit(Feature.RING_PACKED))
    [base] = [c.payload for c in both.calls if c.request is FrontendRequest.SET_VRING_BASE]
    assert m.vhost_vring_state.decode(base).num == 0x8000_8000


def test_features_that_are_refused_take_features_ok_away() -> None:
    both = wire(PROTOCOLS["no status"])
    both.run(both.frontend.open(0))
    both.run(both.frontend.accept_features(1 << 20))
    both.run(both.frontend.write_status(OK))
    assert both.run(both.frontend.read_status()) == OK & ~DeviceStatus.FEATURES_OK


def test_what_the_carrier_cannot_carry_is_not_offered() -> None:
    both = wire()
    both.run(both.frontend.open(0))
    assert both.frontend.offered >> m.F_PROTOCOL_FEATURES & 1
    not_carried = mask(m.F_PROTOCOL_FEATURES, Feature.NOTIFICATION_DATA, Feature.ACCESS_PLATFORM)
    assert not both.frontend.device_features & not_carried
    assert both.frontend.device_features >> Feature.SUSPEND & 1
    other = wire(PROTOCOLS["no status"])
    other.run(other.frontend.open(0))
    assert not other.frontend.device_features >> Feature.SUSPEND & 1


def test_an_error_event_is_a_device_that_needs_a_reset() -> None:
    both = wire(PROTOCOLS["no status"])
    both.start(BASIC)
    both.frontend.broken()
    assert both.run(both.frontend.read_status()) == LIVE | DeviceStatus.DEVICE_NEEDS_RESET


def test_a_running_device_is_asked_for_its_status_once_and_when_in_doubt() -> None:
    both = wire()
    both.start(BASIC)

    def asked() -> int:
        both.run(both.frontend.read_status())
        return sum(c.request is FrontendRequest.GET_STATUS for c in both.calls)

    first = asked()
    assert asked() == first
    both.frontend.doubt()
    assert asked() == first + 1


def test_the_configuration_is_asked_for_from_its_beginning() -> None:
    """QEMU's library for back-ends does not look at the offset."""
    both = wire()
    both.run(both.frontend.open(0))
    assert both.run(both.frontend.read_config(3, 2)) == bytes([3, 4])
    assert m.VhostUserConfig(5).decode(both.calls[-1].payload).offset == 0
    assert both.run(both.frontend.read_config(0, 0)) == b""
    both.run(both.frontend.write_config(4, b"xy"))
    assert both.run(both.frontend.read_config(3, 4)) == b"\3xy\6"
    for bad in ((0, 257), (256, 1), (-1, 1), (0, -1)):
        with pytest.raises(UsageError):
            both.run(both.frontend.read_config(*bad))


@pytest.mark.parametrize("features", [BASIC, BASIC | bit(Feature.RING_PACKED)], ids=["split", "packed"])
def test_writes_are_logged_under_running_rings_and_by_the_next_back_end_too(features: int) -> None:
    both = wire(PROTOCOLS["no status"])
    queue = both.start(features)
    both.echo(queue, b"before")
    assert not any(both.books.bitmap)
    both.run(both.frontend.log(Share(5, 0, len(both.books.bitmap))))
    both.echo(queue, b"after")
    assert any(both.books.bitmap)
    bases = both.run(both.frontend.stop())
    assert bases == {0: base_of(features, rewind(queue))}
    other = wire(PROTOCOLS["no status"])
    other.books.memory, other.books.bitmap[:] = both.books.memory, bytes(len(other.books.bitmap))
    other.frontend, other.arena = both.frontend, both.arena
    other.run(both.frontend.open(0))
    other.run(both.frontend.resume())
    assert other.echo(queue, b"elsewhere") == b"elsewhere"
    assert any(other.books.bitmap)
    other.run(other.frontend.log(None))
    other.books.bitmap[:] = bytes(len(other.books.bitmap))
    other.echo(queue, b"unlogged")
    assert not any(other.books.bitmap)


def test_a_back_end_that_cannot_log_is_not_asked_to() -> None:
    both = wire(PROTOCOLS["none"])
    both.start(BASIC)
    before = len(both.calls)
    with pytest.raises(NegotiationError):
        both.run(both.frontend.log(Share(5, 0, 8)))
    assert len(both.calls) == before


def test_no_configuration_space_without_its_feature() -> None:
    both = wire(0)
    both.run(both.frontend.open(0))
    with pytest.raises(NegotiationError):
        both.run(both.frontend.read_config(0, 1))


def test_another_back_end_must_offer_what_was_negotiated() -> None:
    both = wire()
    both.start(BASIC | bit(Feature.RING_PACKED))
    both.frontend.offered &= ~bit(Feature.RING_PACKED)
    with pytest.raises(NegotiationError, match="not offered any more"):
        both.run(both.frontend.resume())


def session(both: Wire) -> None:
    """Every verb there is."""
    both.start(BASIC)
    both.run(both.frontend.read_config(0, 8))
    both.run(both.frontend.write_config(0, b"x"))
    both.run(both.frontend.read_status())
    both.run(both.frontend.reset_queue(0))
    both.run(both.frontend.write_status(0))


# Before REPLY_ACK is agreed on, SET_OWNER and SET_PROTOCOL_FEATURES have no answer that could be wrong.
UNANSWERED = {FrontendRequest.SET_OWNER, FrontendRequest.SET_PROTOCOL_FEATURES}


def answered() -> list[FrontendRequest]:
    both = wire()
    session(both)
    return sorted({call.request for call in both.calls} - UNANSWERED)


@pytest.mark.parametrize("request_", answered(), ids=lambda r: r.name)
def test_each_answer_of_another_size_is_an_error(request_: FrontendRequest) -> None:
    for change in (b"", b"\0" * 5, b"\0" * 300):

        def spoil(call: Call, reply: bytes, change: bytes = change) -> bytes:
            return Message(request_, Flag.REPLY, change).encode() if call.request is request_ else reply

        both = wire()
        both.spoil = spoil
        with pytest.raises(MessageError):
            session(both)


@given(at=st.integers(0, 30), request=st.integers(0, 50), flags=st.integers(0, 15), payload=st.binary(max_size=40))
@settings(deadline=None, max_examples=200)
def test_whatever_one_answer_is_the_outcome_is_an_error_of_this_package(
    at: int, request: int, flags: int, payload: bytes
) -> None:
    both = wire()

    def spoil(call: Call, reply: bytes) -> bytes:
        return Message(request, flags & ~3, payload).encode() if len(both.calls) == at else reply

    both.spoil = spoil
    with contextlib.suppress(VirtioError, AssertionError):
        session(both)


@pytest.mark.parametrize(
    "wrong", [Message(2, Flag.REPLY, bytes(8)), Message(1, 0, bytes(8)), Message(1, Flag.NEED_REPLY, bytes(8))]
)
def test_an_answer_to_something_else_is_an_error(wrong: Message) -> None:
    with pytest.raises(MessageError):
        check_reply(Call(FrontendRequest.GET_FEATURES), wrong)


def test_only_a_configuration_change_is_heard_on_the_channel() -> None:
    both = wire()
    both.run(both.frontend.open(0))
    news = Message(BackendRequest.CONFIG_CHANGE_MSG)
    assert both.frontend.notice(news) is None
    answer = both.frontend.notice(news._replace(flags=Flag.NEED_REPLY))
    assert answer is not None
    assert decode_message(answer) == Message(BackendRequest.CONFIG_CHANGE_MSG, Flag.REPLY, bytes(8))
    assert both.frontend.config_changes == 2
    for bad in (news._replace(payload=b"x"), Message(BackendRequest.VRING_CALL, 0, bytes(8)), Message(99)):
        with pytest.raises(MessageError):
            both.frontend.notice(bad)
