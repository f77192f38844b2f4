"""ESP in software (RFC 4303): a frame into a protected one and back, in tunnel and in transport mode (RFC 4301).

    transport   Ethernet | IP | ESP header, IV | segment, padding | ICV
    tunnel      Ethernet | outer IP | ESP header, IV | IP packet, padding | ICV

With VIRTIO_CRYPTO_IPSEC_UDP_ENCAP, a UDP header stands in front of ESP's (RFC 3948). The frame must be whole: its
checksums are made, and it is no longer to be segmented. IpsecFailed is raised for a packet that cannot be processed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from virtio_py.devices.net.associations import Association, IpsecFailed
from virtio_py.devices.net.checksum import checksum
from virtio_py.devices.net.ciphers import MAX_ALIGN, MAX_ICV, MAX_IV, Suite
from virtio_py.devices.net.ipsec import TUNNELS, IpsecMode, IpsecOption
from virtio_py.devices.net.parsing import ETHERTYPE_IPV4, ETHERTYPE_IPV6, UDP, Network

ESP: Final = 50
_IPIP, _IPV6 = 4, 41
_VERSION_OF: Final = {_IPIP: 4, _IPV6: 6}
_PROTOCOL_OF: Final = {4: _IPIP, 6: _IPV6}
_ETHERTYPE_OF: Final = {4: ETHERTYPE_IPV4, 6: ETHERTYPE_IPV6}
_ESP_HEADER: Final = struct.Struct(">II")
_UDP_HEADER: Final = struct.Struct(">HHHH")
_TRAILER: Final = 2
_HEADER_BYTES: Final = {4: 20, 6: 40}
_DEFAULT_TTL: Final = 64
_DF: Final = 0x4000
_MAX_PACKET: Final = 65535
_CONGESTED: Final = 3
"""The codepoint CE of explicit congestion notification."""
_OUTSIDE: Final = (0, 43)
"""IPv6 extension headers that every router reads, and that therefore stay in front of ESP: hop-by-hop and routing."""


class Sealed(NamedTuple):
    """Where ESP is in a frame: `start` of its header, `end` of its packet, its SPI, whether UDP is around it."""

    start: int
    end: int
    spi: int
    encapsulated: bool


def find_esp(frame: bytes, network: Network | None) -> Sealed | None:
    """The ESP header of a frame, or None."""
    if network is None or not network.transport or network.protocol not in (ESP, UDP):
        return None
    encapsulated = network.protocol == UDP
    start = network.transport + _UDP_HEADER.size * encapsulated
    if start + _ESP_HEADER.size > network.end:
        return None
    spi, _ = _ESP_HEADER.unpack_from(frame, start)
    # Under UDP, an SPI of 0 marks what is not ESP.
    return Sealed(start, network.end, spi, encapsulated) if spi else None


def expansion(values: Any) -> int:
    """By how many bytes an outbound association of these values makes a packet longer at most."""
    grown = _ESP_HEADER.size + MAX_IV + (MAX_ALIGN - 1 + _TRAILER) + MAX_ICV
    grown += _UDP_HEADER.size if values.options & IpsecOption.UDP_ENCAP else 0
    return grown + (_HEADER_BYTES[values.param.type] if values.mode == IpsecMode.ESP_TUNNEL else 0)


# Outbound


def protect(association: Association, frame: bytes, network: Network | None) -> bytes:
    """The frame as it goes onto the wire."""
    if network is None:
        raise IpsecFailed("it is not an IP packet")
    if network.end - network.start + expansion(association.values) > _MAX_PACKET:
        raise IpsecFailed("it would be too long for an IP packet")
    return (_tunnelled if association.tunnels else _transported)(association, frame, network)


def _tunnelled(association: Association, frame: bytes, network: Network) -> bytes:
    packet = bytearray(frame[network.start : network.end])
    if association.has(IpsecOption.DEC_TTL):
        _decrement_ttl(packet)
    body = _seal(association, bytes(packet), _PROTOCOL_OF[network.version])
    version: int = association.values.param.type
    header = _OUTER[version](association, packet, _protocol(association), len(body))
    return b"".join((frame[: network.start - 2], _ETHERTYPE_OF[version].to_bytes(2, "big"), header, body))


def _protocol(association: Association) -> int:
    return UDP if association.has(IpsecOption.UDP_ENCAP) else ESP


def _traffic_class(association: Association, inner: bytearray, dscp: int) -> int:
    theirs = _class_of(inner)
    dscp = theirs >> 2 if association.has(IpsecOption.COPY_DSCP) else dscp & 0x3F
    return dscp << 2 | (theirs & 3 if association.has(IpsecOption.ECN) else 0)


def _class_of(packet: bytes | bytearray) -> int:
    return packet[1] if packet[0] >> 4 == 4 else (packet[0] & 15) << 4 | packet[1] >> 4


def _outer_v4(association: Association, inner: bytearray, protocol: int, length: int) -> bytes:
    given = TUNNELS[4].decode(association.values.param.union)
    fragment = _DF if given.df else 0
    if association.has(IpsecOption.COPY_DF) and inner[0] >> 4 == 4:
        fragment = int.from_bytes(inner[6:8], "big") & _DF
    header = bytearray(
        struct.pack(
            ">BBHHHBBHII",
            0x45,
            _traffic_class(association, inner, given.dscp),
            _HEADER_BYTES[4] + length,
            # Unique for as long as fragments may be under way.
            association.sequence & 0xFFFF,
            fragment,
            given.ttl or _DEFAULT_TTL,
            protocol,
            0,
            given.src_ip,
            given.dst_ip,
        )
    )
    _set_checksum(header)
    return bytes(header)


def _outer_v6(association: Association, inner: bytearray, protocol: int, length: int) -> bytes:
    given = TUNNELS[6].decode(association.values.param.union)
    word = 6 << 28 | _traffic_class(association, inner, given.dscp) << 20 | given.flabel & 0xFFFFF
    limit = given.hlimit or _DEFAULT_TTL
    return struct.pack(">IHBB", word, length, protocol, limit) + bytes(given.src_addr + given.dst_addr)


_OUTER: Final[dict[int, Callable[[Association, bytearray, int, int], bytes]]] = {4: _outer_v4, 6: _outer_v6}


def _transported(association: Association, frame: bytes, network: Network) -> bytes:
    if network.fragment:
        raise IpsecFailed("transport mode takes whole datagrams")
    field, start = _boundary(frame, network)
    body = _seal(association, frame[start : network.end], frame[field])
    return _rebuilt(frame, network, field, start, _protocol(association), body)


def _boundary(frame: bytes, network: Network) -> tuple[int, int]:
    """The offset of the byte that names what follows, and of what does, behind all that stays outside."""
    if network.version == 4:
        return network.start + 9, network.start + (frame[network.start] & 15) * 4
    field, start = network.start + 6, network.start + 40
    while frame[field] in _OUTSIDE and start + 8 <= network.end:
        field, start = start, start + 8 + frame[start + 1] * 8
    if start > network.end:
        raise IpsecFailed("its headers are longer than it is")
    return field, start


def _rebuilt(frame: bytes, network: Network, field: int, start: int, protocol: int, body: bytes) -> bytes:
    """The frame with another protocol, and another body behind its network header."""
    made = bytearray(frame[:start] + body)
    made[field] = protocol
    _set_length(made, network.start)
    return bytes(made)


def _set_length(made: bytearray, at: int) -> None:
    if made[at] >> 4 == 6:
        made[at + 4 : at + 6] = (len(made) - at - _HEADER_BYTES[6]).to_bytes(2, "big")
        return
    made[at + 2 : at + 4] = (len(made) - at).to_bytes(2, "big")
    header = made[at : at + (made[at] & 15) * 4]
    _set_checksum(header)
    made[at : at + len(header)] = header


def _set_checksum(header: bytearray) -> None:
    """For an IPv4 header at the beginning, whose length it states itself."""
    header[10:12] = bytes(2)
    header[10:12] = checksum(header[: (header[0] & 15) * 4]).to_bytes(2, "big")


def _seal(association: Association, data: bytes, following: int) -> bytes:
    """ESP's header to ICV, in UDP if that is asked for."""
    association.check_lifetime(len(data))
    number, suite = association.next_sequence(), association.suite
    pad = -(len(data) + _TRAILER) % suite.align
    plain = data + bytes(range(1, pad + 1)) + bytes([pad, following])
    head = _ESP_HEADER.pack(association.values.spi, number & 0xFFFFFFFF)
    iv = suite.make_iv(number)
    sealed = head + iv + suite.seal(head, _high(association, number), iv, plain)
    association.processed(len(data))
    if association.has(IpsecOption.UDP_ENCAP):
        ports = association.values.udp_sport, association.values.udp_dport
        # RFC 3948 wants no checksum over IPv4, and RFC 6935 lets a tunnel go without over IPv6.
        sealed = _UDP_HEADER.pack(*ports, _UDP_HEADER.size + len(sealed), 0) + sealed
    return sealed


def _high(association: Association, number: int) -> bytes:
    return (number >> 32).to_bytes(4, "big") if association.has(IpsecOption.ESN) else b""


# Inbound


def unprotect(association: Association, frame: bytes, network: Network, sealed: Sealed) -> bytes:
    """The frame as it was before it was protected, without padding of Ethernet's."""
    _check_encapsulation(association, frame, network, sealed)
    plain, following, number = _open(association, association.suite, frame, sealed)
    if association.tunnels:
        made = _from_tunnel(association, frame, network, plain, following)
    else:
        field, start = _boundary(frame, network)
        if start != sealed.start - _UDP_HEADER.size * sealed.encapsulated:
            raise IpsecFailed("a header stands between IP and ESP")
        made = _rebuilt(frame, network, field, start, following, plain)
    association.window.accept(number)
    association.processed(len(plain))
    return made


def _check_encapsulation(association: Association, frame: bytes, network: Network, sealed: Sealed) -> None:
    if sealed.encapsulated != association.has(IpsecOption.UDP_ENCAP):
        raise IpsecFailed("it is not encapsulated as its association says")
    if sealed.encapsulated:
        ports = _UDP_HEADER.unpack_from(frame, network.transport)[:2]
        # A translator of addresses changes the source port: that is what the encapsulation is for.
        if ports[1] != association.values.udp_dport:
            raise IpsecFailed(f"it came to port {ports[1]}")


def _open(association: Association, suite: Suite, frame: bytes, sealed: Sealed) -> tuple[bytes, int, int]:
    """(what was protected, the protocol that it is of, its sequence number)."""
    body = sealed.start + _ESP_HEADER.size + suite.iv
    # At least the trailer must be there, in whole units.
    if sealed.end - body < max(suite.align, _TRAILER) + suite.icv:
        raise IpsecFailed("it ends early")
    head = frame[sealed.start : sealed.start + _ESP_HEADER.size]
    number = association.window.number(int.from_bytes(head[4:], "big"))
    if not association.window.admits(number):
        raise IpsecFailed(f"the sequence number {number} came before, or is too old")
    iv = frame[body - suite.iv : body]
    plain = suite.open(head, _high(association, number), iv, frame[body : sealed.end])
    if plain is None:
        raise IpsecFailed("it is not genuine")
    pad, following = plain[-2:]
    if pad + _TRAILER > len(plain):
        raise IpsecFailed(f"a padding of {pad} bytes in {len(plain)}")
    data = plain[: -(pad + _TRAILER)]
    association.check_lifetime(len(data))
    return data, following, number


def _from_tunnel(association: Association, frame: bytes, network: Network, plain: bytes, following: int) -> bytes:
    version = _VERSION_OF.get(following)
    if version is None or len(plain) < _HEADER_BYTES[version] or plain[0] >> 4 != version:
        raise IpsecFailed(f"protocol {following} in a tunnel")
    packet = bytearray(plain)
    if association.has(IpsecOption.ECN):
        _merge_congestion(packet, _class_of(frame[network.start : network.start + 2]) & 3)
    if association.has(IpsecOption.DEC_TTL):
        _decrement_ttl(packet)
    return frame[: network.start - 2] + _ETHERTYPE_OF[version].to_bytes(2, "big") + bytes(packet)


def _merge_congestion(packet: bytearray, outer: int) -> None:
    """RFC 6040: congestion met by the tunnel is congestion met by the packet, which is lost if it cannot say so."""
    if outer != _CONGESTED:
        return
    if not _class_of(packet) & 3:
        raise IpsecFailed("congestion, and a packet that cannot tell of it")
    if packet[0] >> 4 == 4:
        packet[1] |= _CONGESTED
        _set_checksum(packet)
    else:
        packet[1] |= _CONGESTED << 4


def _decrement_ttl(packet: bytearray) -> None:
    at = 8 if packet[0] >> 4 == 4 else 7
    if packet[at] <= 1:
        raise IpsecFailed("its time to live is over")
    packet[at] -= 1
    if at == 8:
        _set_checksum(packet)
