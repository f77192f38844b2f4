"""The messages of vhost-user, as tables: identifiers, payload layouts, what each carries and how it is answered.

The facts are those of QEMU's "Vhost-user Protocol" (docs/interop/vhost-user.rst); so are the names, without the
prefix VHOST_USER_. All numbers have the byte order of the machine: both sides run on it. A message is a header of 12
bytes, a payload of `size` bytes, and file descriptors beside its first byte.
"""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag
from typing import Any, Final, NamedTuple

from attrs import define, field
from construct import Array, Bytes, Int8un, Int16un, Int32un, Int64un, Struct

from virtio_py.errors import MessageError
from virtio_py.records import Record, RecordFamily, Register

VERSION: Final = 1
"""The version that stands in the two low bits of a header's flags."""

MAX_PAYLOAD: Final = 4096
"""The longest payload taken, in bytes. The longest that any message defines is shorter."""

MAX_FDS: Final = 8
"""The most file descriptors that any message carries: one for each region of SET_MEM_TABLE."""

MAX_CONFIG_SIZE: Final = 256
"""How far the configuration space reaches in GET_CONFIG and SET_CONFIG, in bytes."""

BASELINE_MEMORY_REGIONS: Final = 8
"""The most regions of SET_MEM_TABLE."""

F_LOG_ALL: Final = 26
"""VHOST_F_LOG_ALL: a bit of SET_FEATURES that is not virtio's; it switches dirty logging for migration."""

F_PROTOCOL_FEATURES: Final = 30
"""VHOST_USER_F_PROTOCOL_FEATURES: a bit of GET_FEATURES that is not virtio's. Without it in SET_FEATURES, rings start
enabled."""

INVALID_FD: Final = 1 << 8
"""In the u64 of SET_VRING_KICK, _CALL and _ERR: no descriptor comes with this message."""

VRING_INDEX_MASK: Final = 0xFF
"""In the same u64: the ring's index."""


class ProtocolFeature(IntEnum):
    """VHOST_USER_PROTOCOL_F_*: positions of bits."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    SHMEM = 20


class FrontendRequest(IntEnum):
    """What a front-end asks of a back-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(IntEnum):
    """What a back-end asks of a front-end, on the channel that SET_BACKEND_REQ_FD gave it."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class Flag(IntFlag):
    """The header's flags above the version."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


class VringFlag(IntFlag):
    """VHOST_VRING_F_*: `flags` of vhost_vring_addr."""

    LOG = 1 << 0


class IotlbPermission(IntFlag):
    """`perm` of vhost_iotlb_msg."""

    READ = 1
    WRITE = 2


class IotlbType(IntEnum):
    """`type` of vhost_iotlb_msg."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


# Payloads

vhost_user_header = Record(
    "vhost_user_header",
    Struct(
        "request" / Int32un,
        "flags" / Register(Int32un, version=2, reply=1, need_reply=1, reserved=28),
        "size" / Int32un,
    ),
    cite="Message Specification, Header",
)

u64 = Record("u64", Struct("u64" / Int64un), cite="A single 64-bit integer")

vhost_vring_state = Record(
    "vhost_vring_state", Struct("index" / Int32un, "num" / Int32un), cite="A vring state description"
)

vhost_vring_descriptor_indices = Record(
    "vhost_vring_descriptor_indices",
    Struct(
        "index" / Int32un,
        "num" / Register(Int32un, avail_index=15, avail_wrap=1, used_index=15, used_wrap=1),
    ),
    cite="Vring descriptor indices for packed virtqueues",
)

vhost_vring_addr = Record(
    "vhost_vring_addr",
    Struct(
        "index" / Int32un,
        "flags" / Int32un,
        "desc_user_addr" / Int64un,
        "used_user_addr" / Int64un,
        "avail_user_addr" / Int64un,
        "log_guest_addr" / Int64un,
    ),
    cite="A vring address description",
)

_REGION: Final = Struct(
    "guest_phys_addr" / Int64un, "memory_size" / Int64un, "userspace_addr" / Int64un, "mmap_offset" / Int64un
)

VhostUserMemoryRegion = Record("VhostUserMemoryRegion", _REGION, cite="Memory region description")

VhostUserMemRegMsg = Record(
    "VhostUserMemRegMsg", Struct("padding" / Int64un, "region" / _REGION), cite="Single memory region description"
)

VhostUserMemory = RecordFamily(
    "VhostUserMemory",
    lambda count: Struct("nregions" / Int32un, "padding" / Int32un, "regions" / Array(count, _REGION)),
    cite="Multiple memory regions description",
)

VhostUserLog = Record("VhostUserLog", Struct("mmap_size" / Int64un, "mmap_offset" / Int64un), cite="Log description")

vhost_iotlb_msg = Record(
    "vhost_iotlb_msg",
    Struct(
        "iova" / Int64un,
        "size" / Int64un,
        "uaddr" / Int64un,
        "perm" / Int8un,
        "type" / Int8un,
        "padding" / Bytes(6),
    ),
    cite="An IOTLB message; a C structure, hence the padding",
)

VhostUserConfig = RecordFamily(
    "VhostUserConfig",
    lambda size: Struct("offset" / Int32un, "size" / Int32un, "flags" / Int32un, "region" / Bytes(size)),
    cite="Virtio device config space",
)

VhostUserVringArea = Record(
    "VhostUserVringArea", Struct("u64" / Int64un, "size" / Int64un, "offset" / Int64un), cite="Vring area description"
)

VhostUserInflight = Record(
    "VhostUserInflight",
    Struct(
        "mmap_size" / Int64un,
        "mmap_offset" / Int64un,
        "num_queues" / Int16un,
        "queue_size" / Int16un,
        "padding" / Bytes(4),
    ),
    cite="Inflight description; a C structure, hence the padding, which QEMU insists on",
)

VhostUserShared = Record("VhostUserShared", Struct("uuid" / Bytes(16)), cite="VhostUserShared")

VhostUserTransferDeviceState = Record(
    "VhostUserTransferDeviceState",
    Struct("direction" / Int32un, "phase" / Int32un),
    cite="Device state transfer parameters",
)

VhostUserMMap = Record(
    "VhostUserMMap",
    Struct(
        "shmid" / Int8un,
        "padding" / Bytes(7),
        "fd_offset" / Int64un,
        "shm_offset" / Int64un,
        "len" / Int64un,
        "flags" / Int64un,
    ),
    cite="VIRTIO shared memory mapping",
)

VhostUserShMemConfig = RecordFamily(
    "VhostUserShMemConfig",
    lambda count: Struct("nregions" / Int32un, "padding" / Int32un, "memory_sizes" / Array(count, Int64un)),
    cite="VIRTIO Shared Memory Region configuration",
)


# What each message carries, and how it is answered

Payload = Record | RecordFamily | None


class Reply(Enum):
    """How a request is answered."""

    ACK = "a u64, 0 for success, and only if NEED_REPLY is set"
    ALWAYS_ACK = "a u64, 0 for success, whether asked or not"
    VALUE = "a payload of its own; NEED_REPLY changes nothing"


class Shape(NamedTuple):
    """One row of the table: payload layout (None: empty), reply, the largest number of descriptors, and the protocol
    feature (a position) without which the message is not to be sent."""

    payload: Payload = None
    reply: Reply = Reply.ACK
    fds: int = 0
    needs: int | None = None


_R, _P = FrontendRequest, ProtocolFeature

FRONTEND_MESSAGES: Final = {
    _R.GET_FEATURES: Shape(reply=Reply.VALUE),
    _R.SET_FEATURES: Shape(u64),
    _R.SET_OWNER: Shape(),
    _R.RESET_OWNER: Shape(),
    _R.SET_MEM_TABLE: Shape(VhostUserMemory, fds=BASELINE_MEMORY_REGIONS),
    _R.SET_LOG_BASE: Shape(VhostUserLog, Reply.ALWAYS_ACK, fds=1, needs=_P.LOG_SHMFD),
    _R.SET_LOG_FD: Shape(fds=1, needs=_P.LOG_SHMFD),
    _R.SET_VRING_NUM: Shape(vhost_vring_state),
    _R.SET_VRING_ADDR: Shape(vhost_vring_addr),
    _R.SET_VRING_BASE: Shape(vhost_vring_state),
    _R.GET_VRING_BASE: Shape(vhost_vring_state, Reply.VALUE),
    _R.SET_VRING_KICK: Shape(u64, fds=1),
    _R.SET_VRING_CALL: Shape(u64, fds=1),
    _R.SET_VRING_ERR: Shape(u64, fds=1),
    _R.GET_PROTOCOL_FEATURES: Shape(reply=Reply.VALUE),
    _R.SET_PROTOCOL_FEATURES: Shape(u64),
    _R.GET_QUEUE_NUM: Shape(reply=Reply.VALUE, needs=_P.MQ),
    _R.SET_VRING_ENABLE: Shape(vhost_vring_state),
    _R.SEND_RARP: Shape(u64, needs=_P.RARP),
    _R.NET_SET_MTU: Shape(u64, needs=_P.MTU),
    _R.SET_BACKEND_REQ_FD: Shape(fds=1, needs=_P.BACKEND_REQ),
    _R.IOTLB_MSG: Shape(vhost_iotlb_msg, Reply.ALWAYS_ACK),
    _R.SET_VRING_ENDIAN: Shape(vhost_vring_state, needs=_P.CROSS_ENDIAN),
    _R.GET_CONFIG: Shape(VhostUserConfig, Reply.VALUE, needs=_P.CONFIG),
    _R.SET_CONFIG: Shape(VhostUserConfig, needs=_P.CONFIG),
    _R.CREATE_CRYPTO_SESSION: Shape(reply=Reply.VALUE, needs=_P.CRYPTO_SESSION),
    _R.CLOSE_CRYPTO_SESSION: Shape(u64, needs=_P.CRYPTO_SESSION),
    _R.POSTCOPY_ADVISE: Shape(reply=Reply.VALUE, needs=_P.PAGEFAULT),
    _R.POSTCOPY_LISTEN: Shape(needs=_P.PAGEFAULT),
    _R.POSTCOPY_END: Shape(reply=Reply.ALWAYS_ACK, needs=_P.PAGEFAULT),
    _R.GET_INFLIGHT_FD: Shape(VhostUserInflight, Reply.VALUE, needs=_P.INFLIGHT_SHMFD),
    _R.SET_INFLIGHT_FD: Shape(VhostUserInflight, fds=1, needs=_P.INFLIGHT_SHMFD),
    _R.GPU_SET_SOCKET: Shape(fds=1),
    _R.RESET_DEVICE: Shape(needs=_P.RESET_DEVICE),
    _R.VRING_KICK: Shape(vhost_vring_state, needs=_P.INBAND_NOTIFICATIONS),
    _R.GET_MAX_MEM_SLOTS: Shape(reply=Reply.VALUE, needs=_P.CONFIGURE_MEM_SLOTS),
    _R.ADD_MEM_REG: Shape(VhostUserMemRegMsg, fds=1, needs=_P.CONFIGURE_MEM_SLOTS),
    # "SHOULD" carry none, but a back-end is to put up with one.
    _R.REM_MEM_REG: Shape(VhostUserMemRegMsg, fds=1, needs=_P.CONFIGURE_MEM_SLOTS),
    _R.SET_STATUS: Shape(u64, needs=_P.STATUS),
    _R.GET_STATUS: Shape(reply=Reply.VALUE, needs=_P.STATUS),
    _R.GET_SHARED_OBJECT: Shape(VhostUserShared, Reply.VALUE, needs=_P.SHARED_OBJECT),
    _R.SET_DEVICE_STATE_FD: Shape(VhostUserTransferDeviceState, Reply.VALUE, fds=1, needs=_P.DEVICE_STATE),
    _R.CHECK_DEVICE_STATE: Shape(reply=Reply.VALUE, needs=_P.DEVICE_STATE),
    _R.GET_SHMEM_CONFIG: Shape(reply=Reply.VALUE, needs=_P.SHMEM),
}
"""Every request of a front-end."""

_B = BackendRequest

BACKEND_MESSAGES: Final = {
    _B.IOTLB_MSG: Shape(vhost_iotlb_msg, needs=_P.BACKEND_REQ),
    _B.CONFIG_CHANGE_MSG: Shape(needs=_P.CONFIG),
    _B.VRING_HOST_NOTIFIER_MSG: Shape(VhostUserVringArea, fds=1, needs=_P.HOST_NOTIFIER),
    _B.VRING_CALL: Shape(vhost_vring_state, needs=_P.INBAND_NOTIFICATIONS),
    _B.VRING_ERR: Shape(vhost_vring_state, needs=_P.INBAND_NOTIFICATIONS),
    _B.SHARED_OBJECT_ADD: Shape(VhostUserShared, needs=_P.SHARED_OBJECT),
    _B.SHARED_OBJECT_REMOVE: Shape(VhostUserShared, needs=_P.SHARED_OBJECT),
    _B.SHARED_OBJECT_LOOKUP: Shape(VhostUserShared, Reply.VALUE, needs=_P.SHARED_OBJECT),
    _B.SHMEM_MAP: Shape(VhostUserMMap, fds=1, needs=_P.SHMEM),
    _B.SHMEM_UNMAP: Shape(VhostUserMMap, needs=_P.SHMEM),
}
"""Every request of a back-end."""


# Framing


class Message(NamedTuple):
    """A message without its descriptors. request: a number, not yet known to be one we have heard of; flags: the
    header's, without the version."""

    request: int
    flags: int = 0
    payload: bytes = b""

    @property
    def need_reply(self) -> bool:
        """Whether the sender asks for an acknowledgement."""
        return bool(self.flags & Flag.NEED_REPLY)

    def encode(self) -> bytes:
        """The bytes on the wire."""
        flags = VERSION | self.flags
        return vhost_user_header.encode(request=self.request, flags=flags, size=len(self.payload)) + self.payload

    def reply(self, payload: bytes) -> bytes:
        """The bytes of the answer to this message."""
        return Message(self.request, Flag.REPLY, payload).encode()


def decode_header(data: bytes) -> tuple[Message, int]:
    """A header of 12 bytes as a message that lacks its payload, and the payload's size in bytes.

    Raises MessageError for a version that is not ours and for a payload longer than any message has.
    """
    header = vhost_user_header.decode(data)
    if header.flags.version != VERSION:
        raise MessageError(f"version {header.flags.version} is not spoken, only {VERSION}", where="header")
    if header.size > MAX_PAYLOAD:
        raise MessageError(f"a payload of {header.size} bytes is longer than {MAX_PAYLOAD}", where="header")
    flags = header.flags.reply * Flag.REPLY | header.flags.need_reply * Flag.NEED_REPLY
    return Message(header.request, flags), header.size


def decode_message(data: bytes) -> Message:
    """One whole message. Raises MessageError, also when bytes are missing or left over."""
    if len(data) < vhost_user_header.size:
        raise MessageError(f"a header has {vhost_user_header.size} bytes, not {len(data)}", where="header")
    message, size = decode_header(data)
    payload = data[vhost_user_header.size :]
    if len(payload) != size:
        raise MessageError(f"{size} bytes of payload are announced, {len(payload)} are here")
    return message._replace(payload=bytes(payload))


def decode_payload(name: str, shape: Shape, payload: bytes) -> Any:
    """The values of a payload, None for an empty one. Raises MessageError when the size is not the message's."""
    if isinstance(shape.payload, RecordFamily):
        return _decode_counted(name, shape.payload, payload)
    size = shape.payload.size if shape.payload else 0
    if len(payload) != size:
        raise MessageError(f"a payload of {len(payload)} bytes, not {size}", where=name)
    return shape.payload.decode(payload) if shape.payload else None


def _decode_counted(name: str, family: RecordFamily, payload: bytes) -> Any:
    head = family(0)
    if len(payload) < head.size:
        raise MessageError(f"a payload of {len(payload)} bytes lacks its {head.size} first ones", where=name)
    if family is VhostUserConfig:
        return family(len(payload) - head.size).decode(payload)
    count = head.decode(payload).nregions
    # Bytes behind the last region are room for regions that are not there: User Mode Linux always sends two.
    if count > BASELINE_MEMORY_REGIONS or family(count).size > len(payload):
        raise MessageError(f"{count} regions in a payload of {len(payload)} bytes", where=name)
    return family(count).decode(payload)


@define
class Assembler:
    """Puts a stream together into messages. `wanted` bytes may be read next, never more: descriptors come with the
    first byte of the message that they belong to."""

    _buffer: bytearray = field(init=False, factory=bytearray)
    _message: Message | None = field(init=False, default=None)
    _size: int = field(init=False, default=vhost_user_header.size)

    @property
    def wanted(self) -> int:
        """Bytes that are missing from the header or payload under way."""
        return self._size - len(self._buffer)

    @property
    def idle(self) -> bool:
        """Whether the stream stands between two messages."""
        return self._message is None and not self._buffer

    def feed(self, data: bytes) -> Message | None:
        """Takes at most `wanted` bytes; returns a message when it is whole. Raises MessageError for a bad header."""
        self._buffer += data
        if self._message is None and not self.wanted:
            self._message, self._size = decode_header(bytes(self._buffer))
            self._buffer.clear()
        if self._message is None or self.wanted:
            return None
        whole = self._message._replace(payload=bytes(self._buffer))
        self._message, self._size = None, vhost_user_header.size
        self._buffer.clear()
        return whole
