"""The tracer: every rule can be broken and is named, what follows the protocol breaks none, replies find requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_vhost_user_transcripts import TRANSCRIPTS, Line
from virtio_py.spec import Feature, bit, mask
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_messages import (
    INVALID_FD,
    BackendRequest,
    Flag,
    FrontendRequest,
    Message,
    ProtocolFeature,
)
from virtio_py.transports.vhost_user_rules import RULES
from virtio_py.transports.vhost_user_tracer import BACK, FRONT, MAIN, REQUESTS, Traced, Tracer

R, P = FrontendRequest, ProtocolFeature
OFFERED = mask(Feature.VERSION_1, m.F_PROTOCOL_FEATURES)
PROTOCOL = mask(P.MQ, P.REPLY_ACK, P.BACKEND_REQ, P.CONFIG, P.CONFIGURE_MEM_SLOTS, P.INBAND_NOTIFICATIONS)


def word(value: int) -> bytes:
    return m.u64.encode(u64=value)


class Bench:
    """A tracer, and both sides in the test's hands."""

    def __init__(self) -> None:
        self.tracer = Tracer()
        self.now = 0.0

    def say(
        self, sender: str, request: int, payload: bytes = b"", fds: int = 0, flags: int = 0, channel: str = MAIN
    ) -> Traced:
        self.now += 0.5
        return self.tracer.message(sender, Message(request, flags, payload), fds=fds, time=self.now, channel=channel)

    def ask(self, request: int, payload: bytes = b"", fds: int = 0, flags: int = 0) -> Traced:
        return self.say(FRONT, request, payload, fds, flags)

    def answer(self, request: int, payload: bytes = b"", fds: int = 0, flags: int = Flag.REPLY) -> Traced:
        return self.say(BACK, request, payload, fds, flags)

    def negotiated(self, features: int = OFFERED) -> Bench:
        for get, offer, put, choice in (
            (R.GET_FEATURES, OFFERED | bit(Feature.RING_PACKED), R.SET_FEATURES, features),
            (R.GET_PROTOCOL_FEATURES, PROTOCOL, R.SET_PROTOCOL_FEATURES, PROTOCOL),
        ):
            seen = [self.ask(get), self.answer(get, word(offer)), self.ask(put, word(choice))]
            assert not any(one.broken for one in seen)
        self.ask(R.GET_QUEUE_NUM)
        self.answer(R.GET_QUEUE_NUM, word(2))
        return self


def regions(*spans: tuple[int, int, int]) -> bytes:
    made = [{"guest_phys_addr": g, "memory_size": s, "userspace_addr": u} for g, s, u in spans]
    return m.VhostUserMemory(len(made)).encode(nregions=len(made), regions=made)


def ring(index: int, num: int) -> bytes:
    return m.vhost_vring_state.encode(index=index, num=num)


def places(desc: int, used: int, avail: int) -> bytes:
    return m.vhost_vring_addr.encode(desc_user_addr=desc, used_user_addr=used, avail_user_addr=avail)


ONE = regions((0, 0x10000, 0x7000_0000))
Breaking = Callable[[Bench], Traced]

BREAKING: list[tuple[str, Breaking]] = [
    ("flags", lambda b: b.ask(R.SET_OWNER, flags=Flag.REPLY)),
    ("flags", lambda b: (b.ask(R.GET_FEATURES), b.answer(R.GET_FEATURES, word(0), flags=0))[1]),
    ("known", lambda b: b.ask(99)),
    ("known", lambda b: b.say(BACK, 99, channel=REQUESTS)),
    ("payload", lambda b: b.ask(R.SET_FEATURES, b"1234")),
    ("payload", lambda b: b.ask(R.SET_MEM_TABLE, m.VhostUserMemory(0).encode(nregions=3))),
    ("payload", lambda b: (b.ask(R.GET_FEATURES), b.answer(R.GET_FEATURES, b"12"))[1]),
    ("feature", lambda b: b.ask(R.NET_SET_MTU, word(1500))),
    ("feature", lambda b: b.say(BACK, BackendRequest.SHARED_OBJECT_ADD, bytes(16), channel=REQUESTS)),
    ("offered", lambda b: b.ask(R.SET_FEATURES, word(OFFERED | bit(5)))),
    ("offered", lambda b: b.ask(R.SET_PROTOCOL_FEATURES, word(bit(P.XEN_MMAP)))),
    ("descriptors", lambda b: b.ask(R.SET_OWNER, fds=1)),
    ("descriptors", lambda b: b.ask(R.SET_MEM_TABLE, ONE, fds=2)),
    ("descriptors", lambda b: b.ask(R.SET_VRING_KICK, word(0))),
    ("descriptors", lambda b: b.ask(R.SET_VRING_CALL, word(INVALID_FD), fds=1)),
    ("descriptors", lambda b: b.ask(R.SET_BACKEND_REQ_FD)),
    ("answer", lambda b: b.answer(R.GET_FEATURES, word(0))),
    ("order", lambda b: (b.ask(R.GET_FEATURES), b.ask(R.GET_QUEUE_NUM), b.answer(R.GET_QUEUE_NUM, word(1)))[2]),
    ("regions", lambda b: b.ask(R.SET_MEM_TABLE, regions((0, 0, 0)), fds=1)),
    ("regions", lambda b: b.ask(R.SET_MEM_TABLE, regions((0, 2, 8), (1, 2, 16)), fds=2)),
    ("regions", lambda b: b.ask(R.SET_MEM_TABLE, regions((0, 2, 8), (4, 2, 9)), fds=2)),
    ("ring-index", lambda b: b.ask(R.SET_VRING_NUM, ring(5, 8))),
    ("ring-index", lambda b: b.ask(R.SET_VRING_KICK, word(5), fds=1)),
    ("ring-size", lambda b: b.ask(R.SET_VRING_NUM, ring(0, 0))),
    ("ring-size", lambda b: b.ask(R.SET_VRING_NUM, ring(0, 12))),
    ("ring-size", lambda b: b.ask(R.SET_VRING_NUM, ring(0, 65536))),
    ("ring-address", lambda b: b.ask(R.SET_VRING_ADDR, places(8, 0, 0))),
    ("ring-address", lambda b: (b.ask(R.SET_MEM_TABLE, ONE, 1), b.ask(R.SET_VRING_ADDR, places(0, 0, 0)))[1]),
    ("config", lambda b: b.ask(R.GET_CONFIG, m.VhostUserConfig(8).encode(offset=250, size=8))),
    ("config", lambda b: b.ask(R.GET_CONFIG, m.VhostUserConfig(8).encode(size=9))),
]


@pytest.mark.parametrize(("rule", "breaking"), BREAKING)
def test_what_breaks_a_rule_is_named(rule: str, breaking: Breaking) -> None:
    assert rule in [breach.rule for breach in breaking(Bench().negotiated()).broken]


def test_what_is_wrong_before_anything_is_negotiated() -> None:
    bench = Bench()
    assert [b.rule for b in bench.ask(R.SET_OWNER, flags=Flag.NEED_REPLY).broken] == ["need-reply"]
    assert [b.rule for b in bench.ask(R.SET_VRING_ENABLE, ring(0, 1)).broken] == ["ring-enable"]
    assert [b.rule for b in bench.tracer.bad_frame(FRONT, "version 0", time=1).broken] == ["framing"]


def test_every_rule_has_a_test() -> None:
    assert {rule for rule, _ in BREAKING} | {"need-reply", "ring-enable", "framing"} == RULES.keys()


def test_a_packed_ring_need_not_be_a_power_of_two() -> None:
    bench = Bench().negotiated(OFFERED | bit(Feature.RING_PACKED))
    assert not bench.ask(R.SET_VRING_NUM, ring(0, 12)).broken
    bench.ask(R.GET_VRING_BASE, ring(1, 0))
    position = m.vhost_vring_descriptor_indices.encode(index=1, num={"avail_index": 5, "avail_wrap": 1})
    seen = bench.answer(R.GET_VRING_BASE, position)
    assert seen.values["num"]["avail_index"] == 5
    assert not seen.broken


def test_replies_find_their_requests_and_are_timed() -> None:
    bench = Bench().negotiated()
    asked = bench.ask(R.SET_VRING_NUM, ring(0, 8), flags=Flag.NEED_REPLY)
    bench.ask(R.SET_VRING_BASE, ring(0, 0))  # wants no answer
    seen = bench.answer(R.SET_VRING_NUM, word(1))
    assert (seen.kind, seen.answers, seen.seconds, seen.failed, seen.broken) == ("reply", asked.number, 1.0, True, ())
    assert bench.tracer.end() == []
    waiting = bench.ask(R.GET_FEATURES)
    [missing] = bench.tracer.end()
    assert (missing.kind, missing.sender, missing.answers) == ("missing", BACK, waiting.number)
    assert [breach.rule for breach in missing.broken] == ["answer"]


def test_features_have_names() -> None:
    tracer = Tracer({5: "RO"})
    names = tracer.message(FRONT, Message(R.SET_FEATURES, 0, word(OFFERED | 0x22)), fds=0, time=0).features
    assert names == ("bit 1", "RO", "VHOST_USER_F_PROTOCOL_FEATURES", "VERSION_1")
    names = tracer.message(FRONT, Message(R.SET_PROTOCOL_FEATURES, 0, word(1 << 40 | 8)), fds=0, time=0).features
    assert names == ("REPLY_ACK", "bit 40")


messages = st.tuples(
    st.sampled_from([FRONT, BACK]),
    st.integers(0, 50),
    st.integers(0, 3).map(lambda f: f << 2),
    st.binary(max_size=80),
    st.integers(0, 9),
    st.sampled_from([MAIN, REQUESTS]),
)


@given(st.lists(messages, max_size=30))
def test_nothing_is_too_strange_to_be_traced(sent: Sequence[tuple[str, int, int, bytes, int, str]]) -> None:
    tracer = Tracer()
    seen = [
        tracer.message(sender, Message(request, flags, payload), fds=fds, time=n, channel=channel)
        for n, (sender, request, flags, payload, fds, channel) in enumerate(sent)
    ]
    answered = [one.answers for one in seen if one.answers is not None]
    assert len(set(answered)) == len(answered)
    assert all(seen[number - 1].request == one.request for one in seen if (number := one.answers))
    assert {breach.rule for one in seen for breach in one.broken} <= RULES.keys()


# SET_VRING_KICK and its like are recorded without the payload's other bits, and some regions in words of their own.
_AS_RECORDED = {R.SET_MEM_TABLE, R.SET_LOG_BASE, R.SET_INFLIGHT_FD, R.GET_INFLIGHT_FD, R.SET_CONFIG, R.ADD_MEM_REG}


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_what_qemu_says_breaks_no_rule(path: Path) -> None:
    tracer = Tracer()
    for n, text in enumerate(path.read_text().splitlines()):
        line = Line.parse(text)
        if line.request in _AS_RECORDED:
            continue
        flags = Flag.NEED_REPLY * line.need_reply | Flag.REPLY * line.answer
        value = line.words.get("u64", 0)
        payload = word(value) if line.size == 8 and "u64" in line.words else line.payload()[: line.size]
        message = Message(line.request, flags, payload.ljust(line.size, b"\0"))
        seen = tracer.message(BACK if line.answer else FRONT, message, fds=line.fds, time=n)
        assert not seen.broken, text
