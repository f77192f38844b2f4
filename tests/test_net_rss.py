"""The Toeplitz hash against the published verification suite, and what of a packet is hashed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net_frames import V4, V6, ethernet, ip, tcp, udp
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.parsing import Flow, network_of
from virtio_py.devices.net.rss import (
    ALL_HASH_TYPES,
    MOST_FLOWS,
    NO_HASH,
    HashConfig,
    HashType,
    RssConfig,
    Steering,
    toeplitz,
)
from virtio_py.devices.net.tunnels import ALL_TUNNEL_TYPES, TunnelType

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
# Destination, source (address and port of each), hash over addresses, hash over addresses and ports.
VECTORS_V4 = [
    ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323E8FC2, 0x51CCC178),
    ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xD718262A, 0xC626B0EA),
    ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xD2D0A5DE, 0x5C2B394A),
    ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xAFC7327F),
    ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5D1809C5, 0x10E828A2),
]
VECTORS_V6 = [
    ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2CC18CD5, 0x40207D3D),
    ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0F0C461C, 0xDDE51BBF),
    ("fe80::200:f8ff:fe21:67cf", 38024, "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, 0x4B61E985, 0x02D1FEEF),
]
T = HashType
VARIANTS = [(vector, 4) for vector in VECTORS_V4] + [(vector, 6) for vector in VECTORS_V6]


def packed(address: str) -> bytes:
    import ipaddress

    return ipaddress.ip_address(address).packed


def with_ports(segment: bytes, source: int, destination: int) -> bytes:
    return struct.pack(">HH", source, destination) + segment[4:]


@pytest.mark.parametrize(("vector", "version"), VARIANTS)
def test_published_vectors(vector: tuple[str, int, str, int, int, int], version: int) -> None:
    destination, dport, source, sport, addresses_only, with_tcp = vector
    addresses = packed(source), packed(destination)
    assert toeplitz(KEY, b"".join(addresses)) == addresses_only
    assert toeplitz(KEY, b"".join(addresses) + struct.pack(">HH", sport, dport)) == with_tcp
    frame = ethernet(ip(6, with_ports(tcp(b"", addresses), sport, dport), addresses))
    network = network_of(frame)
    ip_type, tcp_type = (T.IPV4, T.TCPV4) if version == 4 else (T.IPV6, T.TCPV6)
    assert HashConfig(ip_type | tcp_type, KEY).hash(frame, network) == (with_tcp, tcp_type.bit_length())
    assert HashConfig(ip_type | T.UDPV4, KEY).hash(frame, network) == (addresses_only, ip_type.bit_length())
    assert HashConfig(T.UDPV4 | T.UDPV6, KEY).hash(frame, network) == NO_HASH


def bitwise(key: bytes, data: bytes) -> int:
    """The definition: for each set bit of the input, the 32 bits of the key that begin there."""
    number, width, value = int.from_bytes(key, "big"), 8 * len(key), 0
    for at in range(8 * len(data)):
        if data[at // 8] >> (7 - at % 8) & 1:
            value ^= number >> (width - 32 - at) & 0xFFFFFFFF
    return value


@given(key=st.binary(min_size=40, max_size=40), data=st.binary(max_size=36))
def test_the_tables_are_the_definition(key: bytes, data: bytes) -> None:
    assert toeplitz(key, data) == bitwise(key, data)


def extended(home: bytes | None, routed: bytes | None, body: bytes, protocol: int) -> bytes:
    """An IPv6 frame with a destination options header and a routing header of type 2."""
    if home is not None:
        # A pad of two options, then the home address.
        body = bytes([protocol, 2, 0, 0, 1, 0, 0xC9, 16]) + home + body
        protocol = 60
    if routed is not None:
        body = bytes([protocol, 2, 2, 1, 0, 0, 0, 0]) + routed + body
        protocol = 43
    return ethernet(ip(protocol, body, V6))


@pytest.mark.parametrize("has_home", [False, True])
@pytest.mark.parametrize("has_route", [False, True])
@pytest.mark.parametrize(("kind", "protocol"), [(T.TCP_EX, 6), (T.UDP_EX, 17), (T.IP_EX, 58)])
def test_extension_headers(has_home: bool, has_route: bool, kind: T, protocol: int) -> None:
    home, routed = bytes(range(16)), bytes(range(16, 32))
    body = tcp(b"x", V6) if protocol == 6 else udp(b"x", V6)
    frame = extended(home if has_home else None, routed if has_route else None, body, protocol)
    data = (home if has_home else V6[0]) + (routed if has_route else V6[1]) + (body[:4] if protocol != 58 else b"")
    found = HashConfig(ALL_HASH_TYPES, KEY).hash(frame, network_of(frame))
    if has_home or has_route:
        assert found == (bitwise(KEY, data), kind.bit_length())
        plain = T.TCPV6 | T.UDPV6 | T.IPV6
        expected = bitwise(KEY, V6[0] + V6[1] + (body[:4] if protocol != 58 else b""))
        assert HashConfig(plain, KEY).hash(frame, network_of(frame)).value == expected
    else:
        assert found.report in (T.TCPV6.bit_length(), T.UDPV6.bit_length(), T.IPV6.bit_length())


INNER = ip(17, udp(b"inner", V4, (1, 2)), V4)
OUTER = (bytes([192, 168, 0, 1]), bytes([192, 168, 0, 2]))
ETHER_INNER = ethernet(INNER)


def in_udp(port: int, body: bytes) -> bytes:
    return ip(17, udp(body, OUTER, (33333, port)), OUTER)


TUNNELS = {
    TunnelType.GRE_2784: ip(47, bytes.fromhex("00000800") + INNER, OUTER),
    TunnelType.GRE_2890: ip(47, bytes.fromhex("20000800 00000007") + INNER, OUTER),
    TunnelType.GRE_UDP: in_udp(4754, bytes.fromhex("00000800") + INNER),
    TunnelType.VXLAN: in_udp(4789, bytes.fromhex("08000000 00000700") + ETHER_INNER),
    TunnelType.VXLAN_GPE: in_udp(4790, bytes.fromhex("0c000001 00000700") + INNER),
    TunnelType.GENEVE: in_udp(6081, bytes.fromhex("01006558 00000700 00000000") + ETHER_INNER),
    TunnelType.IPIP: ip(4, INNER, OUTER),
    TunnelType.NVGRE: ip(47, bytes.fromhex("20006558 00000700") + ETHER_INNER, OUTER),
}


@pytest.mark.clause("net-rss.device.inner-header-hash.1")
@pytest.mark.parametrize("kind", TUNNELS)
def test_inner_headers(kind: TunnelType) -> None:
    frame = ethernet(TUNNELS[kind])
    network = network_of(frame)
    inner = toeplitz(KEY, V4[0] + V4[1] + struct.pack(">HH", 1, 2))
    assert HashConfig(ALL_HASH_TYPES, KEY, kind).hash(frame, network) == (inner, 3)
    outer = HashConfig(ALL_HASH_TYPES, KEY, ALL_TUNNEL_TYPES & ~kind).hash(frame, network)
    assert outer.value != inner
    assert outer == HashConfig(ALL_HASH_TYPES, KEY).hash(frame, network)


@given(
    frame=st.binary(max_size=120),
    start=st.sampled_from(
        [
            b"",
            ethernet(b"")[:12] + b"\x08\0\x45",
            ethernet(TUNNELS[TunnelType.GENEVE])[:60],
            ethernet(b"")[:12] + b"\x86\xdd\x60",
        ]
    ),
)
def test_any_bytes_are_hashed_or_not(frame: bytes, start: bytes) -> None:
    frame = start + frame
    network = network_of(frame)
    found = HashConfig(ALL_HASH_TYPES, KEY, ALL_TUNNEL_TYPES).hash(frame, network)
    assert found == NO_HASH or 1 <= found.report <= 9
    assert network is None or network.end <= len(frame)


@pytest.mark.clause("net-rss.device.rss-processing.2")
@pytest.mark.clause("net-rss.device.rss-processing.3")
@pytest.mark.clause("net-rss.device.rss-processing.4")
@given(
    table=st.integers(0, 7).flatmap(lambda n: st.tuples(*[st.integers(0, 7)] * (1 << n))), port=st.integers(0, 65535)
)
def test_rss_chooses_by_the_table(table: tuple[int, ...], port: int) -> None:
    steering = Steering(rss=RssConfig(HashConfig(T.TCPV4, KEY), table, 5, 8))
    frame = ethernet(ip(6, with_ports(tcp(b""), port, 80)))
    value = bitwise(KEY, V4[0] + V4[1] + struct.pack(">HH", port, 80))
    queue = table[value % len(table)]
    assert steering.choose(frame, network_of(frame), lambda n: True) == (queue, (value, 2))
    assert steering.choose(frame, network_of(frame), lambda n: n != queue)[0] is None
    unhashed = ethernet(ip(17, udp(b"")))
    assert steering.choose(unhashed, network_of(unhashed), lambda n: True) == (5, NO_HASH)


@pytest.mark.clause("net.device.automatic-receive-steering.3")
@pytest.mark.clause("net.device.automatic-receive-steering.4")
@pytest.mark.clause("net.device.automatic-receive-steering-prose.2")
@pytest.mark.clause("net.device.automatic-receive-steering-prose.3")
def test_automatic_steering_follows_what_was_sent() -> None:
    steering = Steering()
    steering.automatic(4)
    out = ethernet(ip(6, tcp(b"")))
    back = ethernet(ip(6, with_ports(tcp(b"", (V4[1], V4[0])), 5000, 4000), (V4[1], V4[0])))
    steering.transmitted(out, 3)
    assert steering.choose(back, network_of(back), lambda n: True) == (3, NO_HASH)
    assert steering.choose(back, network_of(back), lambda n: n == 1)[0] == 1
    assert steering.choose(back, network_of(back), lambda n: False)[0] is None
    for n in range(MOST_FLOWS + 100):
        steering.transmitted(ethernet(ip(6, with_ports(tcp(b""), n & 0xFFFF, n >> 16))), 1)
    assert len(steering._flows) == MOST_FLOWS
    queues = {steering.choose(f, network_of(f), lambda n: True)[0] for f in map(unknown, range(200))}
    assert queues == {0, 1, 2, 3}
    steering.automatic(1)
    assert steering.choose(back, network_of(back), lambda n: True)[0] == 0


def unknown(port: int) -> bytes:
    return ethernet(ip(17, udp(b"", V4, (port, 9))))


def test_a_flow_reversed_twice_is_itself() -> None:
    flow = Flow(b"a", b"b", 6, 1, 2)
    assert flow.reversed() == Flow(b"b", b"a", 6, 2, 1)
    assert flow.reversed().reversed() == flow
    assert Packet(b"").gso == 0
