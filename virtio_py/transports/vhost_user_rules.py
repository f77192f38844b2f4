"""The rules of the vhost-user protocol that can be told from the messages alone, each a small function.

They are those of QEMU's "Vhost-user Protocol" (docs/interop/vhost-user.rst), in the order of its sections. A breach
has the name of its rule; `RULES` says where each one comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from attrs import define, field

from virtio_py.spec import MAX_QUEUE_SIZE, Feature, bit
from virtio_py.transports.vhost_user_messages import (
    BASELINE_MEMORY_REGIONS,
    F_PROTOCOL_FEATURES,
    INVALID_FD,
    MAX_CONFIG_SIZE,
    VRING_INDEX_MASK,
    BackendRequest,
    Flag,
    FrontendRequest,
    Message,
    ProtocolFeature,
    Shape,
)

RULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "framing": "Header: version 1, a payload no longer than any message has",
        "flags": "Header: only REPLY and NEED_REPLY are defined, and a request is no reply",
        "known": "Front-end and back-end message types: a request that the table has",
        "payload": "Message payload: its size is that of the message",
        "feature": "Protocol features: a message waits for the feature that brings it",
        "need-reply": "VHOST_USER_PROTOCOL_F_REPLY_ACK: NEED_REPLY only with it, or after it",
        "descriptors": "Ancillary data: only the messages that say so carry descriptors, and these must",
        "offered": "Feature negotiation: only what GET_FEATURES or GET_PROTOCOL_FEATURES offered is accepted",
        "answer": "Communication: each reply belongs to a request, and each request that wants one gets one",
        "order": "Communication: requests are answered in their order",
        "regions": "Memory regions: at most 8 in SET_MEM_TABLE, none empty, none overlapping another",
        "ring-index": "SET_VRING_*: an index below what GET_QUEUE_NUM allows",
        "ring-size": "SET_VRING_NUM: from 1 to 32768, a power of 2 unless the ring is packed",
        "ring-address": "SET_VRING_ADDR: user addresses inside the memory regions, aligned",
        "ring-enable": "SET_VRING_ENABLE: only with VHOST_USER_F_PROTOCOL_FEATURES",
        "config": "GET_CONFIG, SET_CONFIG: within 256 bytes, and the size is that of the region",
    }
)


class Breach(NamedTuple):
    """A rule, by its name in RULES, and what was wrong."""

    rule: str
    message: str


@define
class Session:
    """What the messages so far have settled; None: not said yet."""

    features_offered: int | None = None
    features: int = 0
    protocol_offered: int | None = None
    protocol: int = 0
    queues: int | None = None
    regions: list[Any] = field(factory=list)

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether a protocol feature was accepted."""
        return bool(self.protocol & bit(feature))

    def accepted(self, feature: Feature) -> bool:
        """Whether a feature of the device was accepted."""
        return bool(self.features & bit(feature))

    def learn_request(self, channel: str, message: Message, values: Any) -> None:
        """What a request, which was judged, settles."""
        if channel == "main" and values is not None and (learn := _REQUESTS_TEACH.get(message.request)):
            learn(self, values)

    def learn_reply(self, channel: str, request: int, values: Any) -> None:
        """What a reply settles."""
        if channel == "main" and values is not None and (name := _REPLIES_TEACH.get(request)):
            setattr(self, name, values.u64)


_R = FrontendRequest
_NUMBERS: Final = {"main": frozenset(map(int, FrontendRequest)), "requests": frozenset(map(int, BackendRequest))}


def _set_features(session: Session, values: Any) -> None:
    session.features = values.u64


def _set_protocol_features(session: Session, values: Any) -> None:
    session.protocol = values.u64


def _set_regions(session: Session, values: Any) -> None:
    session.regions = list(values.regions)


def _add_region(session: Session, values: Any) -> None:
    session.regions.append(values.region)


def _remove_region(session: Session, values: Any) -> None:
    session.regions = [region for region in session.regions if region[:3] != values.region[:3]]


_REQUESTS_TEACH: Final[Mapping[int, Callable[[Session, Any], None]]] = {
    _R.SET_FEATURES: _set_features,
    _R.SET_PROTOCOL_FEATURES: _set_protocol_features,
    _R.SET_MEM_TABLE: _set_regions,
    _R.ADD_MEM_REG: _add_region,
    _R.REM_MEM_REG: _remove_region,
}
_REPLIES_TEACH: Final[Mapping[int, str]] = {
    _R.GET_FEATURES: "features_offered",
    _R.GET_PROTOCOL_FEATURES: "protocol_offered",
    _R.GET_QUEUE_NUM: "queues",
}


def request(session: Session, channel: str, message: Message, shape: Shape, fds: int, values: Any) -> list[Breach]:
    """What is wrong with a request at this moment. values: its payload decoded, None if it is empty or cannot be."""
    broken = [*_acknowledgement(session, message, values), *_general(session, message, shape, fds)]
    if message.request not in _NUMBERS[channel]:
        return [*broken, Breach("known", f"no request is numbered {message.request}")]
    if channel == "main":
        broken += _descriptors(message, shape, fds, values)
        broken += (found for judge in _JUDGES.get(message.request, ()) for found in _judged(judge, session, values))
    return broken


def reply(message: Message, asked: bool, oldest: bool) -> list[Breach]:
    """What is wrong with a reply. asked: whether a request of its number waits; oldest: whether none waits longer."""
    broken = []
    if not message.flags & Flag.REPLY:
        broken.append(Breach("flags", "a reply without its flag"))
    if not asked:
        broken.append(Breach("answer", "nothing was asked that this could answer"))
    elif not oldest:
        broken.append(Breach("order", "an older request still waits"))
    return broken


def _judged(judge: Callable[[Session, Any], Iterator[Breach]], session: Session, values: Any) -> Iterator[Breach]:
    return judge(session, values) if values is not None else iter(())


def _acknowledgement(session: Session, message: Message, values: Any) -> Iterator[Breach]:
    accepted = session.protocol
    if message.request == _R.SET_PROTOCOL_FEATURES and hasattr(values, "u64"):
        accepted |= values.u64
    if message.need_reply and not accepted & bit(ProtocolFeature.REPLY_ACK):
        yield Breach("need-reply", "an acknowledgement is asked for without REPLY_ACK")


def _general(session: Session, message: Message, shape: Shape, fds: int) -> Iterator[Breach]:
    if message.flags & Flag.REPLY:
        yield Breach("flags", "a request with the flag of a reply")
    if shape.needs is not None and not session.protocol & bit(shape.needs):
        yield Breach("feature", f"{ProtocolFeature(shape.needs).name} was not negotiated")
    if fds > shape.fds:
        yield Breach("descriptors", f"{fds} descriptors, where {shape.fds or 'none'} may come")


_ONE_DESCRIPTOR: Final = {
    _R.SET_LOG_BASE,
    _R.SET_LOG_FD,
    _R.SET_BACKEND_REQ_FD,
    _R.SET_INFLIGHT_FD,
    _R.ADD_MEM_REG,
    _R.SET_DEVICE_STATE_FD,
}
_EVENTS: Final = {_R.SET_VRING_KICK, _R.SET_VRING_CALL, _R.SET_VRING_ERR}


def _descriptors(message: Message, shape: Shape, fds: int, values: Any) -> Iterator[Breach]:
    wanted = fds
    if message.request in _ONE_DESCRIPTOR:
        wanted = 1
    elif message.request in _EVENTS and values is not None:
        wanted = 0 if values.u64 & INVALID_FD else 1
    elif message.request == _R.SET_MEM_TABLE and values is not None:
        wanted = values.nregions
    if fds != wanted and fds <= shape.fds:
        yield Breach("descriptors", f"{fds} descriptors instead of {wanted}")


def _offered(what: str, word: int, offered: int | None) -> Iterator[Breach]:
    if offered is not None and word & ~offered:
        yield Breach("offered", f"{what} {word & ~offered:#x} were not offered")


def _features_offered(session: Session, values: Any) -> Iterator[Breach]:
    yield from _offered("features", values.u64, session.features_offered)


def _protocol_offered(session: Session, values: Any) -> Iterator[Breach]:
    yield from _offered("protocol features", values.u64, session.protocol_offered)
    if session.features_offered is not None and not session.features_offered & bit(F_PROTOCOL_FEATURES):
        yield Breach("feature", "VHOST_USER_F_PROTOCOL_FEATURES was not offered")


def _regions(session: Session, values: Any) -> Iterator[Breach]:
    if values.nregions > BASELINE_MEMORY_REGIONS:
        yield Breach("regions", f"{values.nregions} regions")
    yield from _apart(list(values.regions))


def _one_more_region(session: Session, values: Any) -> Iterator[Breach]:
    yield from _apart([*session.regions, values.region])


def _apart(regions: list[Any]) -> Iterator[Breach]:
    if any(region.memory_size == 0 for region in regions):
        yield Breach("regions", "a region of no bytes")
    for name in ("guest_phys_addr", "userspace_addr"):
        spans = sorted((getattr(region, name), region.memory_size) for region in regions)
        for (low, size), (high, _) in pairwise(spans):
            if low + size > high:
                yield Breach("regions", f"regions overlap at {name} {high:#x}")


def _ring_index(session: Session, values: Any) -> Iterator[Breach]:
    index = values.index if hasattr(values, "index") and not callable(values.index) else values.u64 & VRING_INDEX_MASK
    # Network back-ends count pairs of queues, and the control queue is beside them; no message says which type it is.
    if session.queues is not None and index > 2 * session.queues:
        yield Breach("ring-index", f"ring {index}, where GET_QUEUE_NUM says {session.queues}")


def _ring_size(session: Session, values: Any) -> Iterator[Breach]:
    size = values.num
    if not 0 < size <= MAX_QUEUE_SIZE or (size & (size - 1) and not session.accepted(Feature.RING_PACKED)):
        yield Breach("ring-size", f"a ring of {size}")


def _ring_address(session: Session, values: Any) -> Iterator[Breach]:
    packed = session.accepted(Feature.RING_PACKED)
    for name, align in (("desc", 16), ("used", 4), ("avail", 4 if packed else 2)):
        address = getattr(values, f"{name}_user_addr")
        if address % align:
            yield Breach("ring-address", f"{name}_user_addr {address:#x} is not aligned to {align}")
        # With ACCESS_PLATFORM these are I/O addresses, which only the IOTLB can place.
        if not session.accepted(Feature.ACCESS_PLATFORM) and session.regions and not _inside(session, address):
            yield Breach("ring-address", f"{name}_user_addr {address:#x} is in no region")


def _inside(session: Session, address: int) -> bool:
    return any(0 <= address - region.userspace_addr < region.memory_size for region in session.regions)


def _enable(session: Session, values: Any) -> Iterator[Breach]:
    if not session.features & bit(F_PROTOCOL_FEATURES) and session.protocol_offered is None:
        yield Breach("ring-enable", "VHOST_USER_F_PROTOCOL_FEATURES was not negotiated")


def _config(session: Session, values: Any) -> Iterator[Breach]:
    if values.offset + values.size > MAX_CONFIG_SIZE:
        yield Breach("config", f"bytes {values.offset} to {values.offset + values.size}")
    if values.size != len(values.region):
        yield Breach("config", f"a size of {values.size} with {len(values.region)} bytes")


_JUDGES: Final[Mapping[int, tuple[Callable[[Session, Any], Iterator[Breach]], ...]]] = {
    _R.SET_FEATURES: (_features_offered,),
    _R.SET_PROTOCOL_FEATURES: (_protocol_offered,),
    _R.SET_MEM_TABLE: (_regions,),
    _R.ADD_MEM_REG: (_one_more_region,),
    _R.SET_VRING_NUM: (_ring_index, _ring_size),
    _R.SET_VRING_ADDR: (_ring_index, _ring_address),
    _R.SET_VRING_BASE: (_ring_index,),
    _R.GET_VRING_BASE: (_ring_index,),
    _R.SET_VRING_KICK: (_ring_index,),
    _R.SET_VRING_CALL: (_ring_index,),
    _R.SET_VRING_ERR: (_ring_index,),
    _R.SET_VRING_ENABLE: (_ring_index, _enable),
    _R.GET_CONFIG: (_config,),
    _R.SET_CONFIG: (_config,),
}
