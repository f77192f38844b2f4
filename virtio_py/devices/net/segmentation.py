"""Segmentation offloads done in software: `fit` turns a packet into packets that its receiver can take.

The same function serves both directions and every port: what a driver sends to a port that knows no offloads, what a
port has for a driver that knows none, what one guest sends to another through a switch. A receiver is a mask of
offloads, in the positions of VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET. Whoever wrote the packet is not trusted: every
offset is held against the headers that are in the frame. RequestError says that a packet cannot be what it claims.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from virtio_py.devices.net.checksum import checksum, complete, transport_checksum
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import (
    OFFLOAD_TUNNEL_GSO,
    OFFLOAD_TUNNEL_GSO_CSUM,
    TUNNEL,
    Gso,
    GsoFlag,
    HdrFlag,
    NetFeature,
)
from virtio_py.devices.net.parsing import TCP, UDP, Network, network_at, network_of
from virtio_py.errors import RequestError
from virtio_py.spec import bit

MAX_SEGMENTS: Final = 2048
"""The most segments one packet is cut into: 64 KiB at the smallest segment size that TCP stacks use, and some more."""

_PLAIN_FLAGS: Final = HdrFlag.NEEDS_CSUM | HdrFlag.DATA_VALID
_TUNNEL_BIT: Final[Mapping[int, int]] = {4: GsoFlag.UDP_TUNNEL_IPV4, 6: GsoFlag.UDP_TUNNEL_IPV6}
_FIN_PSH, _CWR = 0x09, 0x80
_MORE_FRAGMENTS: Final = 0x2000

_NEEDS: Final[Mapping[tuple[int, int], int]] = {
    (Gso.TCPV4, 4): NetFeature.GUEST_TSO4,
    (Gso.TCPV6, 6): NetFeature.GUEST_TSO6,
    (Gso.UDP, 4): NetFeature.GUEST_UFO,
    (Gso.UDP, 6): NetFeature.GUEST_UFO,
    (Gso.UDP_L4, 4): NetFeature.GUEST_USO4,
    (Gso.UDP_L4, 6): NetFeature.GUEST_USO6,
}
"""(type, version of the network header whose payload is cut): the offload it takes. No other pair can be."""


class Shape(NamedTuple):
    """Where things are in a packet to be segmented: the network header whose payload is cut, the tunnel's network
    header or None, and the offset of the payload."""

    network: Network
    outer: Network | None
    payload: int


def _malformed(why: str, clause: str = "") -> RequestError:
    return RequestError(f"a packet to be segmented {why}", clause=clause)


def shape_of(packet: Packet) -> Shape:
    """Judges a packet whose `gso_type` is not NONE. Raises RequestError."""
    if not packet.needs_csum:
        raise _malformed("without NEEDS_CSUM", "net.driver.packet-transmission.32")
    if not packet.gso_size:
        raise _malformed("into segments of 0 bytes", "net.driver.packet-transmission.33")
    outer = network_of(packet.frame)
    tunnel = bool(packet.gso_type & TUNNEL)
    network = _inner(packet, outer) if tunnel else outer
    if network is None or (packet.gso, network.version) not in _NEEDS:
        raise _malformed(f"of type {packet.gso_type:#x} has another network header")
    protocol = TCP if packet.gso in (Gso.TCPV4, Gso.TCPV6) else UDP
    if network.protocol != protocol or not network.transport or network.transport != packet.csum_start:
        raise _malformed(f"has no transport header at {packet.csum_start}", "net.driver.packet-transmission.30")
    payload = _payload(packet, network.transport, protocol)
    if (len(packet.frame) - payload - 1) // packet.gso_size >= MAX_SEGMENTS:
        raise _malformed(f"into more than {MAX_SEGMENTS} segments")
    return Shape(network, outer if tunnel else None, payload)


def _inner(packet: Packet, outer: Network | None) -> Network | None:
    if packet.gso_type & TUNNEL == TUNNEL or packet.gso == Gso.UDP:
        raise _malformed("has two tunnel bits, or one that its type cannot have")
    if outer is None or outer.protocol != UDP or not outer.transport or outer.transport != packet.outer_th_offset:
        raise _malformed(
            f"has no tunnel header at {packet.outer_th_offset}", "net-tunnel.driver.packet-transmission.37"
        )
    if packet.inner_nh_offset < outer.transport + 8:
        raise _malformed("has its headers in no order", "net-tunnel.driver.packet-transmission.37")
    return network_at(packet.frame, packet.inner_nh_offset)


def _payload(packet: Packet, transport: int, protocol: int) -> int:
    frame, offset = packet.frame, 16 if protocol == TCP else 6
    if packet.csum_offset != offset or transport + (20 if protocol == TCP else 8) > len(frame):
        raise _malformed(f"has no checksum at {transport}+{packet.csum_offset}", "net.driver.packet-transmission.30")
    header = (frame[transport + 12] >> 4) * 4 if protocol == TCP else 8
    if header < 8 or (protocol == TCP and header < 20) or transport + header > len(frame):
        raise _malformed("ends in its headers")
    return transport + header


def fit(packet: Packet, offloads: int, outer_tunnel_bits: bool = False) -> Iterator[Packet]:
    """What a receiver with this mask of offloads can be given for the packet, in order. Raises RequestError.

    A packet that is still to be segmented has a `hdr_len` that is true, whatever it was before, and of the tunnel bits
    the one that names the inner network header's version: or, with `outer_tunnel_bits`, the outer one's.
    """
    if not packet.flags and not packet.gso_type and not packet.hdr_len:
        yield packet
        return
    if packet.gso == Gso.NONE:
        done = complete(packet)
        # Completed in any case: so that an offset that lies is found here, and not by the receiver.
        kept = packet if offloads & bit(NetFeature.GUEST_CSUM) else done._replace(flags=0)
        yield kept._replace(flags=kept.flags & _PLAIN_FLAGS, gso_type=0, hdr_len=0)
        return
    shape = shape_of(packet)
    if not _required(packet, shape) & ~offloads:
        yield _passed_on(packet, shape, outer_tunnel_bits)
        return
    for frame in _CUTTERS[packet.gso](packet, shape):
        yield Packet(bytes(frame))


def _passed_on(packet: Packet, shape: Shape, outer_tunnel_bits: bool) -> Packet:
    flags, gso_type = packet.flags & HdrFlag.NEEDS_CSUM, packet.gso_type & ~TUNNEL
    if shape.outer is not None:
        flags |= packet.flags & HdrFlag.UDP_TUNNEL_CSUM
        gso_type |= _TUNNEL_BIT[(shape.outer if outer_tunnel_bits else shape.network).version]
    return packet._replace(flags=flags, gso_type=gso_type, hdr_len=shape.payload)


def _required(packet: Packet, shape: Shape) -> int:
    """The offloads that the packet takes as it is."""
    needed = bit(NetFeature.GUEST_CSUM) | bit(_NEEDS[packet.gso, shape.network.version])
    if packet.gso_type & GsoFlag.ECN:
        needed |= bit(NetFeature.GUEST_ECN)
    if shape.outer is not None:
        needed |= bit(OFFLOAD_TUNNEL_GSO)
        if packet.flags & HdrFlag.UDP_TUNNEL_CSUM:
            needed |= bit(OFFLOAD_TUNNEL_GSO_CSUM)
    return needed


def segment_count(packet: Packet) -> int:
    """How many segments the packet stands for."""
    return max(1, -(-(len(packet.frame) - packet.hdr_len) // packet.gso_size)) if packet.gso_size else 1


def _pieces(packet: Packet, shape: Shape) -> Iterator[tuple[int, int, bytearray]]:
    """Each segment: its number, the offset of its payload in the whole, its bytes with headers not yet adapted."""
    frame, start, size = packet.frame, shape.payload, packet.gso_size
    for number, at in enumerate(range(start, max(len(frame), start + 1), size)):
        yield number, at - start, bytearray(frame[:start] + frame[at : at + size])


def _cut_tcp(packet: Packet, shape: Shape) -> Iterator[bytearray]:
    at = shape.network.transport
    sequence = int.from_bytes(packet.frame[at + 4 : at + 8], "big")
    total = len(packet.frame) - shape.payload
    for number, offset, piece in _pieces(packet, shape):
        piece[at + 4 : at + 8] = (sequence + offset & 0xFFFFFFFF).to_bytes(4, "big")
        # What announces the end belongs to the last segment, what answers congestion to the first.
        if offset + packet.gso_size < total:
            piece[at + 13] &= ~_FIN_PSH
        if number:
            piece[at + 13] &= ~_CWR
        _finish(piece, shape, number, at + 16)
        yield _finish_tunnel(piece, packet, shape, number)


def _cut_udp(packet: Packet, shape: Shape) -> Iterator[bytearray]:
    at = shape.network.transport
    for number, _, piece in _pieces(packet, shape):
        piece[at + 4 : at + 6] = (len(piece) - at).to_bytes(2, "big")
        _finish(piece, shape, number, at + 6)
        yield _finish_tunnel(piece, packet, shape, number)


def _finish(piece: bytearray, shape: Shape, number: int, field: int) -> None:
    """Lengths and checksums of the network header and the transport header, whose checksum is at `field`."""
    network = shape.network
    set_length(piece, network, number)
    piece[field : field + 2] = bytes(2)
    value = transport_checksum(network.source, network.destination, network.protocol, piece[network.transport :])
    piece[field : field + 2] = value.to_bytes(2, "big")


def _finish_tunnel(piece: bytearray, packet: Packet, shape: Shape, number: int) -> bytearray:
    if shape.outer is None:
        return piece
    at = shape.outer.transport
    had_sum = any(piece[at + 6 : at + 8]) or packet.flags & HdrFlag.UDP_TUNNEL_CSUM
    piece[at + 4 : at + 6] = (len(piece) - at & 0xFFFF).to_bytes(2, "big")
    set_length(piece, shape.outer, number)
    if had_sum:
        piece[at + 6 : at + 8] = bytes(2)
        value = transport_checksum(shape.outer.source, shape.outer.destination, UDP, piece[at:])
        piece[at + 6 : at + 8] = value.to_bytes(2, "big")
    return piece


def set_length(piece: bytearray, network: Network, number: int = 0) -> None:
    """Makes a network header fit the frame that it is in; IPv4 headers of one packet count their identification up."""
    at = network.start
    if network.version == 6:
        piece[at + 4 : at + 6] = (len(piece) - at - 40).to_bytes(2, "big")
        return
    piece[at + 2 : at + 4] = (len(piece) - at).to_bytes(2, "big")
    identification = int.from_bytes(piece[at + 4 : at + 6], "big") + number & 0xFFFF
    piece[at + 4 : at + 6] = identification.to_bytes(2, "big")
    _set_header_checksum(piece, network)


def _set_header_checksum(piece: bytearray, network: Network) -> None:
    at = network.start
    end = at + (piece[at] & 15) * 4
    piece[at + 10 : at + 12] = bytes(2)
    piece[at + 10 : at + 12] = checksum(piece[at:end]).to_bytes(2, "big")


def _fragment(packet: Packet, shape: Shape) -> Iterator[bytearray]:
    """UFO: one datagram, checksummed as a whole, in IP fragments."""
    network = shape.network
    size = packet.gso_size & ~7
    if network.extended or not size:
        raise _malformed(f"cannot be cut into fragments of {packet.gso_size} bytes")
    frame = complete(packet).frame
    start = network.transport
    for at in range(start, len(frame), size):
        more = at + size < len(frame)
        yield _FRAGMENTS[network.version](frame, network, at, frame[at : at + size], more)


def _fragment_v4(frame: bytes, network: Network, at: int, data: bytes, more: bool) -> bytearray:
    piece = bytearray(frame[: network.transport] + data)
    word = (at - network.transport) // 8 | (_MORE_FRAGMENTS if more else 0)
    piece[network.start + 6 : network.start + 8] = word.to_bytes(2, "big")
    set_length(piece, network)
    return piece


def _fragment_v6(frame: bytes, network: Network, at: int, data: bytes, more: bool) -> bytearray:
    word = (at - network.transport) | more
    # The identification only has to differ from that of other datagrams between the two.
    identification = zlib.crc32(frame).to_bytes(4, "big")
    header = bytes([UDP, 0]) + word.to_bytes(2, "big") + identification
    piece = bytearray(frame[: network.transport] + header + data)
    piece[network.start + 6] = 44
    set_length(piece, network)
    return piece


_FRAGMENTS: Final[Mapping[int, Callable[[bytes, Network, int, bytes, bool], bytearray]]] = {
    4: _fragment_v4,
    6: _fragment_v6,
}

_CUTTERS: Final[Mapping[int, Callable[[Packet, Shape], Iterator[bytearray]]]] = {
    Gso.TCPV4: _cut_tcp,
    Gso.TCPV6: _cut_tcp,
    Gso.UDP_L4: _cut_udp,
    Gso.UDP: _fragment,
}
