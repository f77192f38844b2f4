"""The requests of vhost-user that concern network devices only: NET_SET_MTU and SEND_RARP."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from virtio_py.device import Device
from virtio_py.errors import MessageError
from virtio_py.spec import mask
from virtio_py.transports.vhost_user_messages import ProtocolFeature

if TYPE_CHECKING:
    from virtio_py.transports.vhost_user_session import Session


@runtime_checkable
class Networked(Protocol):
    """A device with a place in a network."""

    def set_host_mtu(self, mtu: int) -> None:
        """The longest packet that the host lets through, in bytes without Ethernet's header. Raises MessageError."""

    def send_rarp(self, mac: bytes) -> None:
        """Sends a RARP request in the name of a station, so that the network learns where it is. Raises
        MessageError."""


OF_NETWORK: Final = mask(ProtocolFeature.MTU, ProtocolFeature.RARP)


def offered_by(device: Device, protocol_features: int) -> int:
    """These protocol features, and those that only this kind of device can have."""
    return protocol_features | (OF_NETWORK if isinstance(device, Networked) else 0)


def _networked(session: Session) -> Networked:
    if not isinstance(session.device, Networked):
        raise MessageError("the device is in no network")
    return session.device


def net_set_mtu(session: Session, value: Any, fds: list[int]) -> None:
    """NET_SET_MTU."""
    _networked(session).set_host_mtu(value.u64)


def send_rarp(session: Session, value: Any, fds: list[int]) -> None:
    """SEND_RARP: the first 6 bytes of the number are the address."""
    _networked(session).send_rarp(value.u64.to_bytes(8, sys.byteorder)[:6])
