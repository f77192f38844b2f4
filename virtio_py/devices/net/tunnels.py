"""Encapsulated packets: the inner network header of those tunnels whose inner headers are hashed (5.1.6.4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final

from virtio_py.devices.net.parsing import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ETHERTYPE_VLAN,
    UDP,
    Network,
    network_at,
)


class TunnelType(IntEnum):
    """VIRTIO_NET_HASH_TUNNEL_TYPE_*."""

    GRE_2784 = 1 << 0
    GRE_2890 = 1 << 1
    GRE_7676 = 1 << 2
    GRE_UDP = 1 << 3
    VXLAN = 1 << 4
    VXLAN_GPE = 1 << 5
    GENEVE = 1 << 6
    IPIP = 1 << 7
    NVGRE = 1 << 8


ALL_TUNNEL_TYPES: Final = (1 << 9) - 1

_GRE, _IPIP, _IPV6 = 47, 4, 41
_GRE_PORT, _VXLAN_PORT, _VXLAN_GPE_PORT, _GENEVE_PORT = 4754, 4789, 4790, 6081
_TRANSPARENT_ETHERNET: Final = 0x6558
_CHECKSUM, _KEY, _SEQUENCE = 0x8000, 0x2000, 0x1000

_Place = tuple[int, int]
"""(tunnel type, offset of the inner network header); (0, 0) where there is none."""
_NOWHERE: Final[_Place] = (0, 0)


def inner_network(frame: bytes, outer: Network, enabled: int) -> Network | None:
    """The tunnelled network header behind an outer one, if the tunnel is of an enabled type."""
    find = _PROTOCOLS.get(outer.protocol)
    if find is None or not outer.transport:
        return None
    kind, at = find(frame, outer)
    return network_at(frame, at) if kind & enabled else None


def _ip(frame: bytes, outer: Network) -> _Place:
    return TunnelType.IPIP, outer.transport


def _gre(frame: bytes, outer: Network) -> _Place:
    return _gre_at(frame, outer.transport, 0, outer.version)


def _gre_at(frame: bytes, at: int, known: int, version: int) -> _Place:
    flags, protocol = (int.from_bytes(frame[n : n + 2], "big") for n in (at, at + 2))
    behind = at + 4 + 4 * bool(flags & _CHECKSUM) + 4 * bool(flags & _KEY) + 4 * bool(flags & _SEQUENCE)
    if protocol == _TRANSPARENT_ETHERNET:
        # NVGRE is GRE with a key, and Ethernet in it.
        kind = TunnelType.NVGRE if flags & _KEY and not flags & (_CHECKSUM | _SEQUENCE) else TunnelType.GRE_2890
        return known or kind, _behind_ethernet(frame, behind)
    if protocol not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
        return _NOWHERE
    plain = TunnelType.GRE_7676 if version == 6 else TunnelType.GRE_2784
    return known or (TunnelType.GRE_2890 if flags & (_KEY | _SEQUENCE) else plain), behind


def _behind_ethernet(frame: bytes, at: int) -> int:
    return at + (18 if int.from_bytes(frame[at + 12 : at + 14], "big") == ETHERTYPE_VLAN else 14)


def _udp(frame: bytes, outer: Network) -> _Place:
    at = outer.transport
    find = _PORTS.get(int.from_bytes(frame[at + 2 : at + 4], "big"))
    return find(frame, at + 8) if find is not None and at + 16 <= len(frame) else _NOWHERE


def _vxlan(frame: bytes, at: int) -> _Place:
    return TunnelType.VXLAN, _behind_ethernet(frame, at + 8)


def _vxlan_gpe(frame: bytes, at: int) -> _Place:
    # The next protocol: 1 IPv4, 2 IPv6, 3 Ethernet.
    protocol = frame[at + 3]
    if protocol not in (1, 2, 3):
        return _NOWHERE
    return TunnelType.VXLAN_GPE, _behind_ethernet(frame, at + 8) if protocol == 3 else at + 8


def _geneve(frame: bytes, at: int) -> _Place:
    behind = at + 8 + 4 * (frame[at] & 0x3F)
    ethernet = int.from_bytes(frame[at + 2 : at + 4], "big") == _TRANSPARENT_ETHERNET
    return TunnelType.GENEVE, _behind_ethernet(frame, behind) if ethernet else behind


_PORTS: Final[Mapping[int, Callable[[bytes, int], _Place]]] = {
    _GRE_PORT: lambda frame, at: _gre_at(frame, at, TunnelType.GRE_UDP, 4),
    _VXLAN_PORT: _vxlan,
    _VXLAN_GPE_PORT: _vxlan_gpe,
    _GENEVE_PORT: _geneve,
}
_PROTOCOLS: Final[Mapping[int, Callable[[bytes, Network], _Place]]] = {
    _IPIP: _ip,
    _IPV6: _ip,
    _GRE: _gre,
    UDP: _udp,
}
