"""The front-end of vhost-user: verbs of a driver's transport in, messages out. No socket, no mapping, no clock in here.

A verb is a generator of calls. Whoever runs it sends each call (`outgoing`), waits for the answer if there is to be
one (`awaits`), and sends into the generator what the answer says (`answer`):

    frontend = Frontend(Share(fd, address, size), Events(call, err))
    run(frontend.open(channel))              the handshake
    run(frontend.accept_features(mask))
    run(frontend.enable_queue(queue, kick))  described now, started when DRIVER_OK is written
    run(frontend.write_status(0xF))
    run(frontend.kick(index))                where notifications are messages; elsewhere `kick` is signalled
    frontend.notice(message)                 a request of the back-end's, on the channel; the bytes of the answer

Most back-ends have no status message. For those the status is kept here, and the back-end infers it in turn: features
that it refuses take FEATURES_OK away, an event on the error descriptor sets DEVICE_NEEDS_RESET, a reset stops every
ring (GET_VRING_BASE). Everything a back-end says is checked: what it breaks is a MessageError.

A back-end that offers INFLIGHT_SHMFD writes down which buffers it has, in a file that we keep. After `open` with the
next one, `resume` hands it the file: that one serves what was left, and nothing is offered again. Without the file all
that is outstanding is offered again (`rings.rewind`), served or not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple, TypeVar

from attrs import define, field, frozen

from virtio_py.errors import MessageError, NegotiationError, UsageError
from virtio_py.rings.queue import DriverQueue, QueueState
from virtio_py.rings.rewind import rewind
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.transports.vhost_user_kept import Kept
from virtio_py.transports.vhost_user_messages import (
    BACKEND_MESSAGES,
    BASELINE_MEMORY_REGIONS,
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    FRONTEND_MESSAGES,
    MAX_CONFIG_SIZE,
    VRING_INDEX_MASK,
    BackendRequest,
    Flag,
    FrontendRequest,
    Message,
    ProtocolFeature,
    Reply,
    VhostUserConfig,
    VhostUserInflight,
    VhostUserLog,
    VhostUserMemory,
    VhostUserMemRegMsg,
    VringFlag,
    decode_payload,
    u64,
    vhost_vring_addr,
    vhost_vring_state,
)
from virtio_py.transports.vhost_user_vring import USED_INDEX_OFFSET, base_of

PROTOCOL_WANTED: Final = mask(
    ProtocolFeature.MQ,
    ProtocolFeature.LOG_SHMFD,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
)
"""The protocol features a front-end takes if they are offered. INBAND_NOTIFICATIONS only if it is told to."""

_INBAND: Final = bit(ProtocolFeature.INBAND_NOTIFICATIONS)
_INBAND_NEEDS: Final = mask(ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK)

MAX_RINGS: Final = VRING_INDEX_MASK + 1
"""The messages that carry descriptors have 8 bits for a ring's index."""

_NOT_CARRIED: Final = mask(
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    Feature.ACCESS_PLATFORM,
    Feature.SR_IOV,
    Feature.NOTIFICATION_DATA,
    Feature.NOTIF_CONFIG_DATA,
    Feature.ADMIN_VQ,
)
"""What no driver is offered: bits that are not virtio's; addresses that would have to be mapped first; notifications
with more in them than an event can carry; what belongs to another bus."""

_R = FrontendRequest
T = TypeVar("T")


@frozen
class Call:
    """One request. payload: bytes; fds: the descriptors beside it; lenient: a refusal is an answer, and no error;
    takes: how many descriptors may come with the answer, which then is sent in as (value, list of descriptors)."""

    request: FrontendRequest
    payload: bytes = b""
    fds: tuple[int, ...] = ()
    lenient: bool = False
    takes: int = 0


Steps = Generator[Call, Any, T]
"""A verb: yields calls, is sent their answers, returns what it found out."""


class Share(NamedTuple):
    """The memory that both sides see: a descriptor, the guest address of its first byte, and its size in bytes.

    Guest addresses and the user addresses of the protocol are the same here."""

    fd: int
    address: int
    size: int


class Events(NamedTuple):
    """Descriptors that the back-end signals: a used buffer of any ring, an error of any ring."""

    call: int
    err: int


@define(eq=False)
class Ring:
    """A queue that the back-end has been told of. kick: the descriptor that we signal."""

    queue: DriverQueue
    kick: int


@define(eq=False)
class Frontend:
    """What a front-end knows of one back-end, and what it has told it.

    offered: the answer of GET_FEATURES; features: what was accepted; protocol: mask of ProtocolFeatures in use;
    num_queues: the answer of GET_QUEUE_NUM, or None where it cannot be asked; rings: by index;
    shares: the memory there is; mem_slots: how many pieces of it there may be;
    dirty: the bitmap in which the back-end is to note what it writes, its address of no meaning, or None;
    config_changes, calls: how many CONFIG_CHANGE_MSG and VRING_CALL have come; kept: the inflight region, or None.

    wanted: mask of the ProtocolFeatures to take; queue_size: entries that a ring may come to have after DRIVER_OK.
    """

    share: Final[Share]
    events: Final[Events]
    wanted: Final[int] = PROTOCOL_WANTED
    queue_size: Final[int] = 0
    offered: int = field(init=False, default=0)
    features: int = field(init=False, default=0)
    protocol: int = field(init=False, default=0)
    num_queues: int | None = field(init=False, default=None)
    rings: Final[dict[int, Ring]] = field(init=False, factory=dict)
    shares: list[Share] = field(init=False)
    mem_slots: int = field(init=False, default=BASELINE_MEMORY_REGIONS)
    dirty: Share | None = field(init=False, default=None)
    config_changes: int = field(init=False, default=0)
    calls: int = field(init=False, default=0)
    kept: Kept | None = field(init=False, default=None)
    _status: int = field(init=False, default=0)
    _written: int = field(init=False, default=0)
    _trusted: bool = field(init=False, default=False)
    _refused: bool = field(init=False, default=False)
    _shared: list[Share] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.shares = [self.share]

    # One call

    def outgoing(self, call: Call) -> bytes:
        """The bytes of a call. Whatever has no answer of its own is to be acknowledged, where that was agreed on."""
        asks = self.has(ProtocolFeature.REPLY_ACK) and FRONTEND_MESSAGES[call.request].reply is Reply.ACK
        return Message(call.request, Flag.NEED_REPLY if asks else 0, call.payload).encode()

    def awaits(self, call: Call) -> bool:
        """Whether an answer will come."""
        return self.has(ProtocolFeature.REPLY_ACK) or FRONTEND_MESSAGES[call.request].reply is not Reply.ACK

    def answer(self, call: Call, message: Message) -> Any:
        """What an answer says: a number, or a payload's values. Raises MessageError, also for a refusal."""
        name, shape = call.request.name, FRONTEND_MESSAGES[call.request]
        if shape.reply is not Reply.VALUE:
            refusal = decode_payload(name, shape._replace(payload=u64), message.payload).u64
            if refusal and not call.lenient:
                raise MessageError(f"the back-end refuses it ({refusal})", where=name)
            return refusal
        if shape.payload is not None:
            return decode_payload(name, shape, message.payload)
        return decode_payload(name, shape._replace(payload=u64), message.payload).u64

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether a protocol feature is in use."""
        return bool(self.protocol >> feature & 1)

    # The handshake

    def open(self, channel: int) -> Steps[None]:
        """The first conversation on a connection. channel: the back-end's end of a socket for its requests."""
        self.protocol, self.num_queues, self._shared, self._trusted = 0, None, [], False
        yield Call(_R.SET_OWNER)
        self.offered = yield Call(_R.GET_FEATURES)
        if self.offered >> F_PROTOCOL_FEATURES & 1:
            chosen = (yield Call(_R.GET_PROTOCOL_FEATURES)) & self.wanted
            if _INBAND_NEEDS & ~chosen:
                chosen &= ~_INBAND
            yield _number(_R.SET_PROTOCOL_FEATURES, chosen)
            self.protocol = chosen
        if self.has(ProtocolFeature.MQ):
            self.num_queues = min((yield Call(_R.GET_QUEUE_NUM)), MAX_RINGS)
        if self.has(ProtocolFeature.BACKEND_REQ):
            yield Call(_R.SET_BACKEND_REQ_FD, fds=(channel,))
        if self.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            self.mem_slots = yield Call(_R.GET_MAX_MEM_SLOTS)
        if not self.has(ProtocolFeature.INFLIGHT_SHMFD):
            self._forget_region()

    @property
    def device_features(self) -> int:
        """What a driver is offered. Suspending a device takes a status that can be read."""
        return self.offered & ~_NOT_CARRIED & ~(0 if self.has(ProtocolFeature.STATUS) else bit(Feature.SUSPEND))

    def accept_features(self, features: int) -> Steps[None]:
        """The driver's choice. A back-end that refuses it is one that does not keep FEATURES_OK."""
        self.features = features
        self._refused = bool((yield self._set_features(lenient=True)))

    def _set_features(self, lenient: bool = False) -> Call:
        ours = self.offered & bit(F_PROTOCOL_FEATURES) | (self.dirty is not None) << F_LOG_ALL
        return _number(_R.SET_FEATURES, self.features | ours, lenient=lenient)

    # Status

    @property
    def driver_status(self) -> int:
        """The status that was written last."""
        return self._written

    def read_status(self) -> Steps[int]:
        """The device status. With DRIVER_OK set and no news it is not asked for again: see `doubt`."""
        if self.has(ProtocolFeature.STATUS) and not self._trusted:
            self._status = yield Call(_R.GET_STATUS)
            if self._status > 0xFF:
                raise MessageError(f"a status has 8 bits, {self._status:#x} has more", where="GET_STATUS")
            self._trusted = bool(self._status & DeviceStatus.DRIVER_OK) and self._status == self._written
        return self._status & ~(DeviceStatus.FEATURES_OK if self._refused else 0)

    def write_status(self, value: int) -> Steps[None]:
        """0 resets. The rings are started with DRIVER_OK, before the back-end hears of it."""
        if value == 0:
            yield from self._reset()
        elif value & ~self._written & DeviceStatus.DRIVER_OK:
            yield from self._track()
            for ring in self.rings.values():
                yield from self._start(ring)
        self._status, self._written, self._trusted = value, value, False
        if self.has(ProtocolFeature.STATUS):
            yield _number(_R.SET_STATUS, value)

    def _reset(self) -> Steps[None]:
        for index in list(self.rings):
            yield from self.reset_queue(index)
        if self._written and self.has(ProtocolFeature.RESET_DEVICE):
            yield Call(_R.RESET_DEVICE)
        self._forget_region()
        self.features, self._refused = 0, False
        if not self.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            self._shared = []

    def doubt(self) -> None:
        """What we know of the status may be old: nothing was heard where something was waited for."""
        self._trusted = False

    def broken(self) -> None:
        """The error descriptor was signalled: the device has given up on a ring."""
        self.doubt()
        if not self.has(ProtocolFeature.STATUS):
            self._status |= DeviceStatus.DEVICE_NEEDS_RESET

    # Configuration space

    def read_config(self, offset: int, length: int) -> Steps[bytes]:
        """Part of the configuration space. Raises NegotiationError where the protocol feature is missing."""
        if length == 0:
            return b""
        # From its beginning: there are back-ends that do not look at the offset.
        size = self._check_config(offset, length)
        record = VhostUserConfig(size)
        value = yield Call(_R.GET_CONFIG, record.encode(offset=0, size=size, flags=0, region=bytes(size)))
        if (value.offset, value.size, len(value.region)) != (0, size, size):
            raise MessageError(f"{len(value.region)} bytes for {size} of the configuration space", where="GET_CONFIG")
        region: bytes = value.region
        return region[offset:]

    def write_config(self, offset: int, data: bytes) -> Steps[None]:
        """Stores to the configuration space. Raises as `read_config`."""
        self._check_config(offset, len(data))
        record = VhostUserConfig(len(data))
        yield Call(_R.SET_CONFIG, record.encode(offset=offset, size=len(data), flags=0, region=data))

    def _check_config(self, offset: int, length: int) -> int:
        if not self.has(ProtocolFeature.CONFIG):
            raise NegotiationError("the back-end does not offer its configuration space")
        if offset < 0 or length < 0 or offset + length > MAX_CONFIG_SIZE:
            raise UsageError(f"[{offset}, +{length}) is not in a configuration space of {MAX_CONFIG_SIZE} bytes")
        return offset + length

    # Rings

    def enable_queue(self, queue: DriverQueue, kick: int) -> Steps[None]:
        """Describes a ring, and starts it if the device is running. Raises UsageError for an index above 255."""
        if queue.index >= MAX_RINGS:
            raise UsageError(f"vhost-user has no ring {queue.index}")
        self.rings[queue.index] = ring = Ring(queue, kick)
        yield from self._describe(ring)
        if self._written & DeviceStatus.DRIVER_OK:
            yield from self._start(ring)

    def _describe(self, ring: Ring) -> Steps[None]:
        yield from self._share_memory()
        queue = ring.queue
        yield _state(_R.SET_VRING_NUM, queue.index, queue.size)
        yield _state(_R.SET_VRING_BASE, queue.index, base_of(self.features, self._position(queue)))
        yield self._places(queue)
        if self.inband:
            return
        yield _number(_R.SET_VRING_CALL, queue.index, self.events.call)
        yield _number(_R.SET_VRING_ERR, queue.index, self.events.err)

    def _places(self, queue: DriverQueue) -> Call:
        places = vhost_vring_addr.encode(
            index=queue.index,
            flags=VringFlag.LOG if self.dirty is not None else 0,
            desc_user_addr=queue.descriptor_area,
            avail_user_addr=queue.driver_area,
            used_user_addr=queue.device_area,
            log_guest_addr=queue.device_area,
        )
        return Call(_R.SET_VRING_ADDR, places)

    def _position(self, queue: DriverQueue) -> QueueState:
        """Where a device is told to begin."""
        if self.kept is None or not self.kept.covers(queue.index, queue.size):
            # Buffers that a back-end before this one was given and did not use come first.
            return rewind(queue)
        # The region tells what was used and what is inflight. Where it is young, nothing is.
        state = queue.state
        if queue.layout == "packed":
            return QueueState(state.next_used, state.next_used, state.used_wrap, state.used_wrap)
        used = int.from_bytes(queue.memory.read(queue.device_area + USED_INDEX_OFFSET, 2), "little")
        return QueueState(used, used)

    def _start(self, ring: Ring) -> Steps[None]:
        index = ring.queue.index
        if not self.inband:
            yield _number(_R.SET_VRING_KICK, index, ring.kick)
        if self.offered >> F_PROTOCOL_FEATURES & 1:
            yield _state(_R.SET_VRING_ENABLE, index, 1)
        if self.inband:
            yield from self.kick(index)

    @property
    def inband(self) -> bool:
        """Whether notifications are messages."""
        return self.has(ProtocolFeature.INBAND_NOTIFICATIONS)

    def kick(self, index: int) -> Steps[None]:
        """An available buffer notification as a message."""
        yield _state(_R.VRING_KICK, index, 0)

    def reset_queue(self, index: int) -> Steps[None]:
        """Stops a ring; the answer means that the back-end touches it no more. Raises UsageError if it is not ours."""
        if index not in self.rings:
            raise UsageError(f"queue {index} is not enabled")
        yield from self._stop(index)
        del self.rings[index]
        if self.kept is not None:
            self.kept.forget(index)

    def _stop(self, index: int) -> Steps[int]:
        if self.offered >> F_PROTOCOL_FEATURES & 1:
            yield _state(_R.SET_VRING_ENABLE, index, 0)
        stopped = yield _state(_R.GET_VRING_BASE, index, 0)
        if stopped.index != index:
            raise MessageError(f"it is about ring {stopped.index}, not {index}", where="GET_VRING_BASE")
        base: int = stopped.num
        return base

    # Inflight tracking

    def _track(self) -> Steps[None]:
        """Sees to it that rings about to start are accounted for, in the region that we have if there is one."""
        if not self.has(ProtocolFeature.INFLIGHT_SHMFD) or not self.rings:
            return
        if self.kept is None:
            most = max(self.queue_size, *(ring.queue.size for ring in self.rings.values()))
            asked = VhostUserInflight.encode(num_queues=max(self.rings) + 1, queue_size=most)
            answer, fds = yield Call(_R.GET_INFLIGHT_FD, asked, takes=1)
            self.kept = Kept.of(VhostUserInflight.decode(asked), answer, fds)
        if self.kept is not None:
            yield Call(_R.SET_INFLIGHT_FD, self.kept.payload(), (self.kept.fd,))

    def _forget_region(self) -> None:
        kept, self.kept = self.kept, None
        if kept is not None:
            kept.close()

    def close(self) -> None:
        """Lets go of what back-ends have sent."""
        self._forget_region()

    # Memory

    def _share_memory(self) -> Steps[None]:
        if self.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            for share in self.shares:
                if share not in self._shared:
                    yield _region(_R.ADD_MEM_REG, share, share.fd)
                    self._shared.append(share)
        elif self._shared != self.shares:
            regions = [_fields(share) for share in self.shares]
            table = VhostUserMemory(len(regions)).encode(nregions=len(regions), regions=regions)
            yield Call(_R.SET_MEM_TABLE, table, tuple(share.fd for share in self.shares))
            self._shared = list(self.shares)

    def add_share(self, share: Share) -> Steps[None]:
        """More memory, under running rings if need be. Raises UsageError if the back-end has no slot for it."""
        # It may be here already: what a back-end that died was told is told again.
        if share not in self.shares:
            if len(self.shares) >= self.mem_slots:
                raise UsageError(f"the back-end takes {self.mem_slots} pieces of memory")
            self.shares.append(share)
        yield from self._share_memory()

    def remove_share(self, share: Share) -> Steps[None]:
        """Takes memory back that was added; nothing of it may be in use."""
        self.shares = [other for other in self.shares if other != share]
        if not self.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            yield from self._share_memory()
        elif share in self._shared:
            self._shared.remove(share)
            yield _region(_R.REM_MEM_REG, share)

    # Moving to another back-end

    def log(self, dirty: Share | None) -> Steps[None]:
        """From now on the back-end notes what it writes in this bitmap, or in none. Raises NegotiationError if it
        cannot."""
        if not self.has(ProtocolFeature.LOG_SHMFD) or not self.offered >> F_LOG_ALL & 1:
            raise NegotiationError("the back-end does not offer to log its writes")
        self.dirty = dirty
        yield from self._log_base()
        yield self._set_features()
        for ring in self.rings.values():
            yield self._places(ring.queue)

    def _log_base(self) -> Steps[None]:
        if self.dirty is not None:
            # Lenient: there are back-ends that answer with the bitmap's size.
            log = VhostUserLog.encode(mmap_size=self.dirty.size, mmap_offset=0)
            yield Call(_R.SET_LOG_BASE, log, (self.dirty.fd,), lenient=True)

    def stop(self) -> Steps[dict[int, int]]:
        """Stops all rings, which are kept for `resume`: what the back-end says of where each stands, as the number of
        SET_VRING_BASE. With the last answer it touches the memory no more."""
        bases: dict[int, int] = {}
        for index in self.rings:
            bases[index] = yield from self._stop(index)
        return bases

    def resume(self) -> Steps[None]:
        """After `open` on a new connection: everything as it was on the old one, with every buffer that is outstanding
        inflight still, or offered again. Raises NegotiationError if the new back-end cannot do what the old one did."""
        if lacking := self.features & ~self.device_features:
            raise NegotiationError(f"features {lacking:#x} were negotiated and are not offered any more")
        status, self._written = self._written, 0
        try:
            yield from self._replay(status)
        finally:
            # Also where this one has gone again: the next is to be told the same.
            self._written = status

    def _replay(self, status: int) -> Steps[None]:
        if not status:
            return
        yield from self._log_base()
        yield from self.write_status(status & (DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER))
        if not status & DeviceStatus.FEATURES_OK:
            return
        yield from self.accept_features(self.features)
        yield from self.write_status(status & ~DeviceStatus.DRIVER_OK)
        if not (yield from self.read_status()) & DeviceStatus.FEATURES_OK:
            raise NegotiationError(f"the back-end refuses features {self.features:#x}, which it had accepted")
        for ring in self.rings.values():
            yield from self._describe(ring)
        yield from self.write_status(status)

    # The back-end's requests

    def notice(self, message: Message) -> bytes | None:
        """Takes a request from the channel; the bytes of the answer, or None. Raises MessageError for any that was not
        agreed on."""
        heard = _NOTICES.get(message.request)
        needs = BACKEND_MESSAGES[BackendRequest(message.request)].needs if heard is not None else None
        if heard is None or needs is None or not self.protocol >> needs & 1:
            raise MessageError(f"request {message.request} of the back-end was not agreed on")
        request = BackendRequest(message.request)
        decode_payload(request.name, BACKEND_MESSAGES[request], message.payload)
        heard(self)
        return message.reply(u64.encode(u64=0)) if message.need_reply else None


def _changed(frontend: Frontend) -> None:
    frontend.config_changes += 1
    frontend.doubt()


def _called(frontend: Frontend) -> None:
    frontend.calls += 1


_NOTICES: Final[dict[int, Callable[[Frontend], None]]] = {
    BackendRequest.CONFIG_CHANGE_MSG: _changed,
    BackendRequest.VRING_CALL: _called,
    BackendRequest.VRING_ERR: Frontend.broken,
}
"""What is done about a request of the back-end's. Which ring it is about does not matter: all are looked at."""


def check_reply(call: Call, message: Message) -> Message:
    """The message, if it is the reply to this call: else the conversation is out of step. Raises MessageError."""
    if message.request != call.request or not message.flags & Flag.REPLY:
        raise MessageError(f"an answer to {message.request}, with flags {message.flags:#x}", where=call.request.name)
    return message


def _number(request: FrontendRequest, value: int, *fds: int, lenient: bool = False) -> Call:
    return Call(request, u64.encode(u64=value), fds, lenient)


def _fields(share: Share) -> dict[str, int]:
    address, size = share.address, share.size
    return {"guest_phys_addr": address, "memory_size": size, "userspace_addr": address, "mmap_offset": 0}


def _region(request: FrontendRequest, share: Share, *fds: int) -> Call:
    return Call(request, VhostUserMemRegMsg.encode(region=_fields(share)), fds)


def _state(request: FrontendRequest, index: int, num: int) -> Call:
    return Call(request, vhost_vring_state.encode(index=index, num=num))
