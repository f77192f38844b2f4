"""What each request of a vhost-user front-end does: one function each, and the table of them.

A handler takes the session, the payload's values (None: empty) and the message's descriptors; a descriptor that it
keeps it takes out of the list. What it returns is the reply's payload, where the message has a reply of its own.
It raises PeerError before it changes anything that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from virtio_py.errors import MessageError
from virtio_py.memory import ADDRESS_LIMIT
from virtio_py.spec import Feature, mask
from virtio_py.transports.vhost_user_inflight import map_region, region_size
from virtio_py.transports.vhost_user_iotlb import use_memory
from virtio_py.transports.vhost_user_memory import MAX_MEM_SLOTS, MemoryTable
from virtio_py.transports.vhost_user_messages import (
    INVALID_FD,
    MAX_CONFIG_SIZE,
    VRING_INDEX_MASK,
    FrontendRequest,
    ProtocolFeature,
    VhostUserConfig,
    VhostUserInflight,
    VhostUserShMemConfig,
    u64,
    vhost_vring_state,
)
from virtio_py.transports.vhost_user_net import net_set_mtu, send_rarp
from virtio_py.transports.vhost_user_session import Session, ring_of
from virtio_py.transports.vhost_user_state import begin, check
from virtio_py.transports.vhost_user_vring import Vring

Handler = Callable[[Session, Any, list[int]], bytes | None]

_INBAND_NEEDS: Final = mask(ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK)


def _number(value: int) -> bytes:
    return u64.encode(u64=value)


# Features and status


def get_features(session: Session, value: Any, fds: list[int]) -> bytes:
    return _number(session.features_offered)


def set_features(session: Session, value: Any, fds: list[int]) -> None:
    session.set_features(value.u64)


def get_protocol_features(session: Session, value: Any, fds: list[int]) -> bytes:
    return _number(session.protocol_offered)


def set_protocol_features(session: Session, value: Any, fds: list[int]) -> None:
    if extra := value.u64 & ~session.protocol_offered:
        raise MessageError(f"protocol features {extra:#x} were not offered")
    if value.u64 >> ProtocolFeature.INBAND_NOTIFICATIONS & 1 and _INBAND_NEEDS & ~value.u64:
        raise MessageError("INBAND_NOTIFICATIONS needs BACKEND_REQ and REPLY_ACK")
    session.protocol = value.u64


def get_status(session: Session, value: Any, fds: list[int]) -> bytes:
    return _number(session.end.read_status())


def set_status(session: Session, value: Any, fds: list[int]) -> None:
    if value.u64 > 0xFF:
        raise MessageError(f"a status has 8 bits, {value.u64:#x} has more")
    session.set_status(value.u64)


def set_owner(session: Session, value: Any, fds: list[int]) -> None:
    """Marks a session's start, which the connection has marked already."""


def reset_owner(session: Session, value: Any, fds: list[int]) -> None:
    for ring in session.rings:
        _disable(session, ring)


def reset_device(session: Session, value: Any, fds: list[int]) -> None:
    session.loaded = None
    session.restart()
    session.end.reset()
    session.layout_known = False
    for ring in session.rings:
        ring.enabled = False


def get_queue_num(session: Session, value: Any, fds: list[int]) -> bytes:
    return _number(len(session.rings))


# Memory


def set_mem_table(session: Session, value: Any, fds: list[int]) -> None:
    session.replace_table(lambda: MemoryTable.of(value.regions, fds, session.shell))


def get_max_mem_slots(session: Session, value: Any, fds: list[int]) -> bytes:
    return _number(MAX_MEM_SLOTS)


def add_mem_reg(session: Session, value: Any, fds: list[int]) -> None:
    if len(fds) != 1:
        raise MessageError("a region comes with one descriptor")
    session.replace_table(lambda: session.table.with_region(value.region, fds[0], session.shell))


def rem_mem_reg(session: Session, value: Any, fds: list[int]) -> None:
    session.replace_table(lambda: session.table.without_region(value.region))


def iotlb_msg(session: Session, value: Any, fds: list[int]) -> None:
    if not session.translating:
        raise MessageError("an IOTLB message without VIRTIO_F_ACCESS_PLATFORM")
    session.iotlb.apply(value)
    use_memory(session)


# Rings


def set_vring_num(session: Session, value: Any, fds: list[int]) -> None:
    ring = ring_of(session, value.index)
    if not 0 < value.num <= session.end.queue(ring.index).max_size:
        raise MessageError(f"ring {ring.index} cannot have {value.num} entries")
    _reconfigure(session, ring)
    ring.size = value.num


def set_vring_base(session: Session, value: Any, fds: list[int]) -> None:
    ring = ring_of(session, value.index)
    _reconfigure(session, ring)
    ring.base = value.num


def set_vring_addr(session: Session, value: Any, fds: list[int]) -> None:
    ring = ring_of(session, value.index)
    # On a running ring this may only switch logging (flags, log_guest_addr).
    if not ring.active or _areas(value) != _areas(ring.addresses):
        _reconfigure(session, ring)
    before, ring.addresses = ring.addresses, value
    try:
        session.log_writes(session.logging.pages)
    except MessageError:
        ring.addresses = before
        raise


def _areas(addresses: Any) -> tuple[int, int, int]:
    return addresses.desc_user_addr, addresses.avail_user_addr, addresses.used_user_addr


def _reconfigure(session: Session, ring: Vring) -> None:
    # Some front-ends only disable a ring before they set it up again, or do not even do that.
    if ring.active or ring.suspended:
        session.halt(ring)


def get_vring_base(session: Session, value: Any, fds: list[int]) -> bytes:
    ring = ring_of(session, value.index)
    session.halt(ring)
    ring.left = ring.base
    # QEMU 7.2, with the protocol feature STATUS, first resets the device and then asks where its rings had been. A
    # machine that is moved elsewhere goes on from there.
    base = ring.base if ring.size else ring.before
    return vhost_vring_state.encode(index=ring.index, num=base)


def set_vring_enable(session: Session, value: Any, fds: list[int]) -> None:
    ring = ring_of(session, value.index)
    if value.num > 1:
        raise MessageError(f"a ring is enabled with 1 and disabled with 0, not {value.num}")
    if value.num:
        session.enable(ring)
    else:
        _disable(session, ring)


def _disable(session: Session, ring: Vring) -> None:
    session.suspend(ring)
    ring.enabled = False


def vring_kick(session: Session, value: Any, fds: list[int]) -> None:
    ring = ring_of(session, value.index)
    ring.started = True
    session.settle(ring)
    session.due(ring.index)


def set_vring_kick(session: Session, value: Any, fds: list[int]) -> None:
    ring, fd = _ring_and_fd(session, value.u64, fds)
    session.replace_kick(ring, fd)
    fds.clear()
    ring.started, ring.polled = True, fd is None
    session.settle(ring)


def set_vring_call(session: Session, value: Any, fds: list[int]) -> None:
    ring, fd = _ring_and_fd(session, value.u64, fds)
    session.replace_event(ring, "call", fd)
    fds.clear()
    if ring.active and fd is not None:
        # QEMU starts a ring and gives it the driver's event afterwards: what was used meanwhile was told to an event
        # that nobody looks at any more, and a driver that waits for it would wait for ever.
        session.shell.signal(fd)


def set_vring_err(session: Session, value: Any, fds: list[int]) -> None:
    ring, fd = _ring_and_fd(session, value.u64, fds)
    session.replace_event(ring, "err", fd)
    fds.clear()


def _ring_and_fd(session: Session, value: int, fds: list[int]) -> tuple[Vring, int | None]:
    if value & ~(VRING_INDEX_MASK | INVALID_FD):
        raise MessageError(f"{value:#x} is not a ring index and a flag")
    ring = ring_of(session, value & VRING_INDEX_MASK)
    if len(fds) != (0 if value & INVALID_FD else 1):
        raise MessageError(f"{len(fds)} descriptors come with {value:#x}")
    return ring, fds[0] if fds else None


# Inflight tracking


def get_inflight_fd(session: Session, value: Any, fds: list[int]) -> bytes:
    # Who asks before it sets features, as QEMU does for a SCSI host, gets what is enough for either layout.
    size = region_size(not session.layout_known or _is_packed(session), value, len(session.rings))
    session.shell.lend(size)
    return VhostUserInflight.encode(mmap_size=size, num_queues=value.num_queues, queue_size=value.queue_size)


def set_inflight_fd(session: Session, value: Any, fds: list[int]) -> None:
    if len(fds) != 1:
        raise MessageError("an inflight region comes with one descriptor")
    session.inflight.replace(map_region(_is_packed(session), value, len(session.rings), fds[0], session.shell))


def _is_packed(session: Session) -> bool:
    return bool(session.features >> Feature.RING_PACKED & 1)


# Dirty logging


def set_log_base(session: Session, value: Any, fds: list[int]) -> None:
    if len(fds) != 1:
        raise MessageError("the bitmap comes with one descriptor")
    if not 0 < value.mmap_size <= ADDRESS_LIMIT - value.mmap_offset:
        raise MessageError(f"a bitmap of {value.mmap_size:#x} bytes at {value.mmap_offset:#x} cannot be")
    session.log_writes(session.shell.dirty_log(fds[0], value.mmap_size, value.mmap_offset))


def set_log_fd(session: Session, value: Any, fds: list[int]) -> None:
    if len(fds) != 1:
        raise MessageError("the log's event comes with one descriptor")
    session.replace_event(session.logging, "event", fds[0])
    fds.clear()


# Configuration space, and the channel for our requests


def get_config(session: Session, value: Any, fds: list[int]) -> bytes:
    if value.offset + value.size > MAX_CONFIG_SIZE or len(value.region) not in (0, value.size):
        return b""
    region = session.end.read_config(value.offset, value.size)
    return VhostUserConfig(value.size).encode(offset=value.offset, size=value.size, flags=value.flags, region=region)


def set_config(session: Session, value: Any, fds: list[int]) -> None:
    if value.offset + value.size > MAX_CONFIG_SIZE or len(value.region) != value.size:
        raise MessageError(f"{len(value.region)} bytes for [{value.offset}, +{value.size}) of the configuration space")
    if value.flags > 1:
        raise MessageError(f"configuration space flags {value.flags:#x} are not known")
    session.end.write_config(value.offset, value.region)


def set_backend_req_fd(session: Session, value: Any, fds: list[int]) -> None:
    if len(fds) != 1:
        raise MessageError("the channel comes with one descriptor")
    session.replace_channel(fds[0])
    fds.clear()


_R = FrontendRequest

HANDLERS: Final[dict[FrontendRequest, Handler]] = {
    _R.GET_FEATURES: get_features,
    _R.SET_FEATURES: set_features,
    _R.SET_OWNER: set_owner,
    _R.RESET_OWNER: reset_owner,
    _R.SET_MEM_TABLE: set_mem_table,
    _R.SET_LOG_BASE: set_log_base,
    _R.SET_LOG_FD: set_log_fd,
    _R.SET_VRING_NUM: set_vring_num,
    _R.SET_VRING_ADDR: set_vring_addr,
    _R.SET_VRING_BASE: set_vring_base,
    _R.GET_VRING_BASE: get_vring_base,
    _R.SET_VRING_KICK: set_vring_kick,
    _R.SET_VRING_CALL: set_vring_call,
    _R.SET_VRING_ERR: set_vring_err,
    _R.GET_PROTOCOL_FEATURES: get_protocol_features,
    _R.SET_PROTOCOL_FEATURES: set_protocol_features,
    _R.GET_QUEUE_NUM: get_queue_num,
    _R.SET_VRING_ENABLE: set_vring_enable,
    _R.SET_BACKEND_REQ_FD: set_backend_req_fd,
    _R.IOTLB_MSG: iotlb_msg,
    _R.GET_INFLIGHT_FD: get_inflight_fd,
    _R.SET_INFLIGHT_FD: set_inflight_fd,
    _R.GET_CONFIG: get_config,
    _R.SET_CONFIG: set_config,
    _R.RESET_DEVICE: reset_device,
    _R.VRING_KICK: vring_kick,
    _R.GET_MAX_MEM_SLOTS: get_max_mem_slots,
    _R.ADD_MEM_REG: add_mem_reg,
    _R.REM_MEM_REG: rem_mem_reg,
    _R.SEND_RARP: send_rarp,
    _R.NET_SET_MTU: net_set_mtu,
    _R.SET_DEVICE_STATE_FD: begin,
    _R.CHECK_DEVICE_STATE: check,
    _R.SET_STATUS: set_status,
    _R.GET_STATUS: get_status,
}
"""The requests that are served; a request that is not here is refused."""

NOTHING: Final[dict[FrontendRequest, bytes]] = {
    _R.POSTCOPY_ADVISE: b"",
    _R.GET_SHARED_OBJECT: b"",
    _R.GET_SHMEM_CONFIG: VhostUserShMemConfig(0).encode(),
}
"""What is not offered, and can be said so in the answer that is due: no descriptor (no page faults are handed over, no
object is shared), no region. That fails one request of the front-end's, and not the whole device."""
