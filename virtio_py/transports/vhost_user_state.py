"""The state of a device goes from one back-end to another (DEVICE_STATE): what a driver has set by requests.

Rings travel in GET_VRING_BASE and SET_VRING_BASE, memory is the front-end's. What is left are the parts of the device's
own type (2.13, `Device.parts`), under a head that says whose they are. The front-end moves the bytes from the one to
the other and may do with them as it likes, so that the head and all behind it are judged before they are of use.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from construct import Bytes, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.device import Device
from virtio_py.errors import MessageError, PeerError
from virtio_py.records import Record
from virtio_py.spec import DeviceStatus
from virtio_py.transports.vhost_user_messages import INVALID_FD, u64

if TYPE_CHECKING:
    from virtio_py.transports.vhost_user_session import Session

MAX_STATE: Final = 16 << 20
"""The most bytes of state that are taken in."""

MAGIC: Final = b"virtio\x00\x01"

state_head = Record(
    "state_head",
    Struct(
        "magic" / Bytes(len(MAGIC)),
        "device_id" / Int16ul,
        "reserved" / Int16ul,
        "length" / Int32ul,
        "features" / Int64ul,
        "features_high" / Int64ul,
    ),
    cite="this package's own",
)
"""In front of a device's state: `length` bytes of parts follow, of a device with these features negotiated."""

part_head = Record(
    "part_head", Struct("type" / Int16ul, "selector" / Bytes(8), "length" / Int32ul), cite="this package's own"
)
"""In front of a part's value of `length` bytes."""

_NEGOTIATED: Final = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK


class Direction(IntEnum):
    """`direction` of VhostUserTransferDeviceState."""

    SAVE = 0
    LOAD = 1


STOPPED: Final = 0
"""The one `phase` there is: no ring is in service."""


class State(NamedTuple):
    """A device's parts as bytes, and the features that were negotiated; 0 for none, and then no parts."""

    features: int
    words: bytes


def encode(device_id: int, state: State) -> bytes:
    """The bytes of a state."""
    low, high = state.features & (1 << 64) - 1, state.features >> 64
    head = state_head.encode(
        magic=MAGIC, device_id=device_id, length=len(state.words), features=low, features_high=high
    )
    return head + state.words


def decode(device_id: int, data: bytes) -> State:
    """The other way round. Raises MessageError for what is not a state of this kind of device."""
    if len(data) < state_head.size:
        raise MessageError(f"a state has a head of {state_head.size} bytes, not {len(data)}")
    head = state_head.decode(data)
    if head.magic != MAGIC or head.device_id != device_id:
        raise MessageError(f"not a state of a device of type {device_id}")
    if head.length != len(data) - state_head.size:
        raise MessageError(f"a state of {head.length} bytes in {len(data) - state_head.size}")
    return State(head.features | head.features_high << 64, data[state_head.size :])


def begin(session: Session, value: Any, fds: list[int]) -> bytes:
    """SET_DEVICE_STATE_FD: starts to move the state. The reply: no descriptor of ours, and whether it is refused."""
    try:
        _begin(session, value, fds)
    except MessageError as error:
        session.shell.log(f"refused: {error}")
        return u64.encode(u64=INVALID_FD | 1)
    fds.clear()
    return u64.encode(u64=INVALID_FD)


def _begin(session: Session, value: Any, fds: list[int]) -> None:
    if value.direction not in list(Direction) or value.phase != STOPPED:
        raise MessageError(f"a state is not moved in direction {value.direction}, phase {value.phase}")
    if any(ring.active for ring in session.rings):
        raise MessageError("a state is moved while no ring is in service")
    if len(fds) != 1:
        raise MessageError("a state is moved through one descriptor")
    if value.direction == Direction.SAVE:
        session.shell.save(fds[0], encode(session.device.device_id, _save(session)))
    else:
        session.shell.load(fds[0], MAX_STATE)
    session.moving = Direction(value.direction)


def _save(session: Session) -> State:
    if session.loaded is not None:
        # It came here, and goes on before it was of use.
        return session.loaded
    end = session.end
    settled = end.read_status() & DeviceStatus.FEATURES_OK
    return State(end.features, encode_parts(session.device)) if settled else State(0, b"")


def encode_parts(device: Device) -> bytes:
    """What a driver has made of a device."""
    parts = device.parts().items()
    return b"".join(part_head.encode(type=t, selector=s, length=len(value)) + value for (t, s), value in parts)


def set_parts(device: Device, words: bytes) -> None:
    """Makes the same of a device that was just negotiated. Raises PeerError for what it does not take."""
    at = 0
    while at < len(words):
        if len(words) - at < part_head.size:
            raise MessageError("the head of a part ends early")
        head = part_head.decode(words, at)
        at += part_head.size
        value = words[at : at + head.length]
        if len(value) != head.length or not device.takes_part(head.type, head.selector, value):
            raise MessageError(f"the device does not take part {head.type:#x} with {len(value)} of {head.length} bytes")
        device.set_part(head.type, head.selector, value)
        at += head.length


def check(session: Session, value: Any, fds: list[int]) -> bytes:
    """CHECK_DEVICE_STATE: 0 if all was moved, and what came can be gone on with."""
    moving, session.moving = session.moving, None
    data = session.shell.transferred() if moving is not None else None
    try:
        if data is None:
            raise MessageError("no state was moved to its end")
        if moving == Direction.LOAD:
            _take_over(session, decode(session.device.device_id, data))
    except PeerError as error:
        session.shell.log(f"refused: {error}")
        return u64.encode(u64=1)
    return u64.encode(u64=0)


def _take_over(session: Session, state: State) -> None:
    """Tries a state out on the device as it is now, and keeps it for when the front-end has negotiated as much."""
    session.loaded = None
    if state.features == 0 and not state.words:
        return
    if any(ring.active for ring in session.rings):
        raise MessageError("a ring was started before the state was checked")
    session.restart()
    end = session.end
    end.reset()
    try:
        end.write_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
        end.accept_features(state.features)
        end.write_status(_NEGOTIATED)
        if not end.read_status() & DeviceStatus.FEATURES_OK:
            raise MessageError(f"a state with features {state.features:#x}, which cannot be served")
        set_parts(session.device, state.words)
    finally:
        end.reset()
    session.loaded = state


def go_on(session: Session) -> None:
    """FEATURES_OK is set: a state that was kept becomes the device's, if it is of the same features."""
    state = session.loaded
    if state is None or not session.end.read_status() & DeviceStatus.FEATURES_OK:
        return
    if session.end.features != state.features:
        session.shell.log(f"a state with features {state.features:#x} is of no use with {session.end.features:#x}")
        session.loaded = None
        return
    set_parts(session.device, state.words)
