"""What passes between a vhost-user front-end and a back-end, understood: no sockets, only messages that were seen.

    tracer = Tracer()
    seen = tracer.message("front-end", Message(1), fds=0, time=0.0)      # GET_FEATURES
    seen = tracer.message("back-end", Message(1, Flag.REPLY, payload), fds=0, time=0.0002)
    seen.answers, seen.seconds, seen.values, seen.broken

Each message is decoded with the names of its fields, replies are matched to their requests and timed, and every rule
of the protocol that a message breaks is named (`vhost_user_rules`). The tracer judges and never interferes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, Final

from attrs import asdict, define, evolve, field, frozen

from virtio_py.errors import MessageError
from virtio_py.records import RecordFamily
from virtio_py.spec import Feature, bit
from virtio_py.transports import vhost_user_rules as rules
from virtio_py.transports.vhost_user_messages import (
    BACKEND_MESSAGES,
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    FRONTEND_MESSAGES,
    BackendRequest,
    FrontendRequest,
    Message,
    ProtocolFeature,
    Reply,
    Shape,
    VhostUserShMemConfig,
    decode_payload,
    u64,
    vhost_vring_descriptor_indices,
)
from virtio_py.transports.vhost_user_rules import Breach, Session

FRONT, BACK = "front-end", "back-end"
MAIN, REQUESTS = "main", "requests"
"""The channels: the connection itself, and the one that SET_BACKEND_REQ_FD made for the back-end's requests."""

_R = FrontendRequest
_UNKNOWN: Final = Shape()
_TABLES: Final[Mapping[str, tuple[type[IntEnum], Mapping[Any, Shape]]]] = {
    MAIN: (FrontendRequest, FRONTEND_MESSAGES),
    REQUESTS: (BackendRequest, BACKEND_MESSAGES),
}
_ASKERS: Final = {MAIN: FRONT, REQUESTS: BACK}
_OTHER: Final = {FRONT: BACK, BACK: FRONT}
_OWN_BITS: Final = {F_LOG_ALL: "VHOST_F_LOG_ALL", F_PROTOCOL_FEATURES: "VHOST_USER_F_PROTOCOL_FEATURES"}
_OTHER_REPLIES: Final = {
    _R.GET_SHMEM_CONFIG: Shape(VhostUserShMemConfig),
    _R.POSTCOPY_ADVISE: Shape(),
    _R.SET_DEVICE_STATE_FD: Shape(u64),
    _R.GET_SHARED_OBJECT: Shape(u64),
}
"""Replies that are neither a u64 nor have the layout of their request."""

_FEATURE_WORDS: Final = {_R.GET_FEATURES, _R.SET_FEATURES}
_PROTOCOL_WORDS: Final = {_R.GET_PROTOCOL_FEATURES, _R.SET_PROTOCOL_FEATURES}


@frozen
class Traced:
    """One message that passed.

    number: counted from 1; time: seconds since the beginning; sender: "front-end" or "back-end"; channel: "main" or
    "requests"; kind: "request", "reply", "missing" (a reply) or "bytes" (no message at all); fds: descriptors that
    came with it; values: the payload's fields by name; features: the names of the bits, for the messages that carry
    features; answers: the number of the request that this is the reply to, and seconds since then; failed: whether it
    is a reply that says so; broken: rules.
    """

    number: int
    time: float
    sender: str
    channel: str
    kind: str
    request: int
    name: str
    flags: int
    size: int
    fds: int
    values: Any = None
    features: tuple[str, ...] = ()
    answers: int | None = None
    seconds: float | None = None
    failed: bool = False
    broken: tuple[Breach, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What JSON can carry."""
        broken = [breach._asdict() for breach in self.broken]
        return asdict(self, recurse=False) | {"features": list(self.features), "broken": broken}


@define
class Tracer:
    """One connection, from its first message on. device_features: names of the device type's own bits, if known."""

    device_features: Mapping[int, str] = field(factory=dict)
    session: Session = field(factory=Session, init=False)
    _count: int = field(default=0, init=False)
    _waiting: dict[str, deque[Traced]] = field(factory=lambda: {MAIN: deque(), REQUESTS: deque()}, init=False)

    def message(self, sender: str, message: Message, *, fds: int, time: float, channel: str = MAIN) -> Traced:
        """The next message that `sender` sent on a channel."""
        self._count += 1
        numbers, table = _TABLES[channel]
        known = numbers._value2member_map_.get(message.request)
        seen = Traced(
            self._count,
            time,
            sender,
            channel,
            "request" if sender == _ASKERS[channel] else "reply",
            message.request,
            known.name if known else f"unknown {message.request}",
            message.flags,
            len(message.payload),
            fds,
        )
        shape = table.get(known, _UNKNOWN)
        judge = self._request if seen.kind == "request" else self._reply
        return judge(seen, message, shape, known is not None)

    def bad_frame(self, sender: str, reason: str, *, time: float, channel: str = MAIN) -> Traced:
        """What cannot be taken apart into messages any more: from here on only bytes are passed on."""
        self._count += 1
        broken = (Breach("framing", reason),)
        return Traced(self._count, time, sender, channel, "bytes", 0, "not a message", 0, 0, 0, broken=broken)

    def end(self) -> list[Traced]:
        """The replies that never came, each with the number of its request."""
        broken = (Breach("answer", "a reply that never came"),)
        return [
            evolve(request, sender=_OTHER[request.sender], kind="missing", answers=request.number, broken=broken)
            for waiting in self._waiting.values()
            for request in waiting
        ]

    def _request(self, seen: Traced, message: Message, shape: Shape, known: bool) -> Traced:
        values, broken = self._decode(seen, shape, message.payload, known)
        seen = evolve(seen, values=_fields(values), features=self._names(seen, values))
        broken += rules.request(self.session, seen.channel, message, shape, seen.fds, values)
        seen = evolve(seen, broken=tuple(broken))
        # First what it settles: User Mode Linux wants the very message that accepts REPLY_ACK to be acknowledged.
        self.session.learn_request(seen.channel, message, values)
        if self._is_answered(seen.channel, message, shape):
            self._waiting[seen.channel].append(seen)
        return seen

    def _is_answered(self, channel: str, message: Message, shape: Shape) -> bool:
        if shape.reply is Reply.VALUE:
            return True
        if channel == MAIN and message.request == _R.SET_LOG_BASE:
            return self.session.has(ProtocolFeature.LOG_SHMFD)
        asked = message.need_reply and self.session.has(ProtocolFeature.REPLY_ACK)
        return asked or (shape.reply is Reply.ALWAYS_ACK and message.request != _R.IOTLB_MSG)

    def _reply(self, seen: Traced, message: Message, shape: Shape, known: bool) -> Traced:
        waiting = self._waiting[seen.channel]
        request = next((asked for asked in waiting if asked.request == message.request), None)
        broken = rules.reply(message, bool(request), bool(waiting) and waiting[0] is request)
        if request is None:
            return evolve(seen, broken=tuple(broken))
        waiting.remove(request)
        values, more = self._decode(seen, self._reply_shape(seen, shape), message.payload, known)
        self.session.learn_reply(seen.channel, message.request, values)
        return evolve(
            seen,
            values=_fields(values),
            features=self._names(seen, values),
            answers=request.number,
            seconds=seen.time - request.time,
            failed=shape.reply is not Reply.VALUE and values is not None and values.u64 != 0,
            broken=tuple(broken + more),
        )

    def _reply_shape(self, seen: Traced, shape: Shape) -> Shape:
        if seen.channel == MAIN and seen.request == _R.GET_VRING_BASE and self.session.accepted(Feature.RING_PACKED):
            return Shape(vhost_vring_descriptor_indices)
        if seen.channel == MAIN and seen.request in _OTHER_REPLIES:
            return _OTHER_REPLIES[FrontendRequest(seen.request)]
        return Shape(u64) if shape.reply is not Reply.VALUE or shape.payload is None else shape

    def _decode(self, seen: Traced, shape: Shape, payload: bytes, known: bool) -> tuple[Any, list[Breach]]:
        if not known:
            return None, []
        if seen.kind == "reply" and not payload and isinstance(shape.payload, RecordFamily):
            return None, []  # GET_CONFIG that failed: a reply without a payload.
        try:
            return decode_payload(seen.name, shape, payload), []
        except MessageError as error:
            return None, [Breach("payload", str(error))]

    def _names(self, seen: Traced, values: Any) -> tuple[str, ...]:
        if values is None or seen.channel != MAIN or not hasattr(values, "u64"):
            return ()
        if seen.request in _FEATURE_WORDS:
            return tuple(self._feature_names(values.u64))
        if seen.request in _PROTOCOL_WORDS:
            return tuple(_protocol_names(values.u64))
        return ()

    def _feature_names(self, word: int) -> Iterator[str]:
        for position in _bits(word):
            own = _OWN_BITS.get(position) or self.device_features.get(position)
            yield own or (Feature(position).name if position in Feature._value2member_map_ else f"bit {position}")


def _protocol_names(word: int) -> Iterator[str]:
    for position in _bits(word):
        known = position in ProtocolFeature._value2member_map_
        yield ProtocolFeature(position).name if known else f"bit {position}"


def _bits(word: int) -> Iterator[int]:
    return (position for position in range(64) if word & bit(position))


def _fields(values: Any) -> Any:
    # A record's as_dict is the same for the values of any record.
    return None if values is None else u64.as_dict(values)
