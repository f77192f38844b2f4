"""What a frame is: Ethernet, VLAN, IPv4, IPv6 and the ports above them. Bytes on a wire are in network order.

Nothing here fails: what cannot be made out of a frame is simply not known of it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_VLAN: Final = 0x8100
ETHERTYPE_IPV6: Final = 0x86DD
TCP: Final = 6
UDP: Final = 17
_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_HOME_ADDRESS: Final = 0xC9
_MOST_EXTENSIONS: Final = 8


class Network(NamedTuple):
    """A network header and what it says of the transport header behind it.

    start: offset of the network header;  end: offset behind the packet, by its own length, inside the frame
    version: 4 or 6;  protocol: what follows, the last of IPv6's chain;  transport: its offset, or 0 in a fragment
    source, destination: addresses, 4 or 16 bytes;  fragment: whether this is not a whole datagram
    home, routed: addresses of IPv6 extension headers to be hashed in their place, or None
    extended: whether there are IPv6 extension headers
    """

    start: int
    end: int
    version: int
    protocol: int
    transport: int
    source: bytes
    destination: bytes
    fragment: bool = False
    extended: bool = False
    home: bytes | None = None
    routed: bytes | None = None


class Flow(NamedTuple):
    """Who talks to whom: (source, destination, protocol, source port, destination port)."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int

    def reversed(self) -> Flow:
        """The same conversation, as the other side sends it."""
        return Flow(self.destination, self.source, self.protocol, self.destination_port, self.source_port)


def link_header(frame: bytes) -> tuple[int, int]:
    """The Ethertype and the offset of what it names, past one VLAN tag."""
    kind, at = int.from_bytes(frame[12:14], "big"), 14
    if kind == ETHERTYPE_VLAN:
        kind, at = int.from_bytes(frame[16:18], "big"), 18
    return kind, at


def vlan_id(frame: bytes) -> int | None:
    """The VLAN a frame is tagged for, 0 to 4095, or None."""
    if int.from_bytes(frame[12:14], "big") != ETHERTYPE_VLAN or len(frame) < 16:
        return None
    return int.from_bytes(frame[14:16], "big") & 0xFFF


def network_of(frame: bytes) -> Network | None:
    """The network header of an Ethernet frame, or None if it is not IP."""
    kind, at = link_header(frame)
    return network_at(frame, at) if kind in (ETHERTYPE_IPV4, ETHERTYPE_IPV6) else None


def network_at(frame: bytes, at: int) -> Network | None:
    """The IPv4 or IPv6 header at an offset, or None."""
    version = frame[at] >> 4 if at < len(frame) else 0
    return _ipv4(frame, at) if version == 4 else _ipv6(frame, at) if version == 6 else None


def _ipv4(frame: bytes, at: int) -> Network | None:
    length = (frame[at] & 15) * 4
    if length < 20 or at + length > len(frame):
        return None
    total = int.from_bytes(frame[at + 2 : at + 4], "big")
    fragment = bool(int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF)
    return Network(
        at,
        # A GSO packet of more than 64 KiB, and some that are only to be segmented, state no length.
        min(at + total, len(frame)) if total >= length else len(frame),
        4,
        frame[at + 9],
        0 if fragment else at + length,
        frame[at + 12 : at + 16],
        frame[at + 16 : at + 20],
        fragment,
    )


def _ipv6(frame: bytes, at: int) -> Network | None:
    if at + 40 > len(frame):
        return None
    payload = int.from_bytes(frame[at + 4 : at + 6], "big")
    end = min(at + 40 + payload, len(frame)) if payload else len(frame)
    found = Network(at, end, 6, frame[at + 6], at + 40, frame[at + 8 : at + 24], frame[at + 24 : at + 40])
    for _ in range(_MOST_EXTENSIONS):
        if found.protocol not in (_HOP, _ROUTING, _FRAGMENT, _DESTINATION) or found.transport + 8 > end:
            break
        found = _extension(frame, found)
    return found._replace(transport=0) if found.fragment else found


def _extension(frame: bytes, found: Network) -> Network:
    at, kind = found.transport, found.protocol
    length = 8 if kind == _FRAGMENT else 8 + frame[at + 1] * 8
    found = found._replace(protocol=frame[at], transport=at + length, extended=True)
    if kind == _FRAGMENT:
        return found._replace(fragment=bool(int.from_bytes(frame[at + 2 : at + 4], "big") & 0xFFF9))
    if kind == _ROUTING and frame[at + 2] == 2 and length >= 24:
        return found._replace(routed=frame[at + 8 : at + 24])
    return found._replace(home=_home_address(frame[at + 2 : at + length])) if kind == _DESTINATION else found


def _home_address(options: bytes) -> bytes | None:
    at = 0
    while at + 2 <= len(options):
        if options[at] == _HOME_ADDRESS and options[at + 1] == 16 and at + 18 <= len(options):
            return options[at + 2 : at + 18]
        at += 1 if options[at] == 0 else 2 + options[at + 1]
    return None


def ports_of(frame: bytes, network: Network) -> tuple[int, int] | None:
    """(source port, destination port) of a TCP or UDP packet, or None."""
    at = network.transport
    least = {TCP: 20, UDP: 8}.get(network.protocol)
    if not at or least is None or at + least > len(frame):
        return None
    return int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")


def flow_of(frame: bytes, network: Network) -> Flow:
    """The flow of a packet; ports are 0 where it has none."""
    return Flow(network.source, network.destination, network.protocol, *(ports_of(frame, network) or (0, 0)))
