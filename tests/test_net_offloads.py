"""Checksums, segmentation and fragmentation in software, against frames made by hand; headers and their sizes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net_frames import V4, V6, checksums_hold, ethernet, frame_of, ip, partial_packet, tcp, udp, words_sum
from virtio_py.devices.net.checksum import checksum, complete, ones_sum
from virtio_py.devices.net.header import Packet, annex_of, decode_header, encode_header, header_size, packet_of
from virtio_py.devices.net.layout import (
    ALL_OFFLOADS,
    OFFLOAD_TUNNEL_GSO,
    OFFLOAD_TUNNEL_GSO_CSUM,
    Gso,
    GsoFlag,
    HdrFlag,
    NetFeature,
    virtio_net_hdr,
)
from virtio_py.devices.net.segmentation import MAX_SEGMENTS, fit
from virtio_py.errors import RequestError
from virtio_py.spec import Feature, bit, mask

_F = NetFeature
KINDS = [(Gso.TCPV4, 4), (Gso.TCPV6, 6), (Gso.UDP_L4, 4), (Gso.UDP_L4, 6), (Gso.UDP, 4), (Gso.UDP, 6)]
NEEDED = {
    (Gso.TCPV4, 4): _F.GUEST_TSO4,
    (Gso.TCPV6, 6): _F.GUEST_TSO6,
    (Gso.UDP_L4, 4): _F.GUEST_USO4,
    (Gso.UDP_L4, 6): _F.GUEST_USO6,
    (Gso.UDP, 4): _F.GUEST_UFO,
    (Gso.UDP, 6): _F.GUEST_UFO,
}


# Headers


@given(features=st.integers(0, (1 << 71) - 1))
@pytest.mark.clause("net.driver.setting-up-receive-buffers.4")
def test_the_header_is_a_ladder(features: int) -> None:
    """A10: one function, each rung by its features."""

    def has(*positions: int) -> bool:
        return bool(features & mask(*positions))

    if has(_F.OUT_NET_HEADER, _F.IPSEC):
        expected = 32
    elif has(_F.HOST_UDP_TUNNEL_GSO, _F.GUEST_UDP_TUNNEL_GSO):
        expected = 24
    elif has(_F.HASH_REPORT):
        expected = 20
    else:
        expected = 12 if has(Feature.VERSION_1, _F.MRG_RXBUF) else 10
    assert header_size(features) == expected


def test_offsets_of_the_header() -> None:
    offsets = {name: virtio_net_hdr.offset(name) for name in virtio_net_hdr.fields}
    assert offsets == {
        "flags": 0,
        "gso_type": 1,
        "hdr_len": 2,
        "gso_size": 4,
        "csum_start": 6,
        "csum_offset": 8,
        "num_buffers": 10,
        "hash_value": 12,
        "hash_report": 16,
        "padding_reserved": 18,
        "outer_th_offset": 20,
        "inner_nh_offset": 22,
        "outer_nh_offset": 24,
        "resource_id": 26,
        "resource_type": 30,
    }
    assert virtio_net_hdr.size == 32


@given(
    packet=st.builds(
        Packet,
        st.just(b"frame"),
        st.just(HdrFlag.NEEDS_CSUM | HdrFlag.UDP_TUNNEL_CSUM | HdrFlag.SECURITY),
        st.sampled_from([1, 4, 5, 0x81, 0x21, 0x44]),
        *[st.integers(0, 65535)] * 9,
    ),
    size=st.sampled_from([24, 32]),
    features=st.sampled_from([0, bit(NetFeature.OUT_NET_HEADER), bit(NetFeature.IPSEC)]),
)
def test_a_header_survives(packet: Packet, size: int, features: int) -> None:
    data = encode_header(packet, size, num_buffers=3, hash_value=0x12345678, hash_report=9)
    assert len(data) == size
    header = decode_header(data)
    found = annex_of(packet_of(header, b"frame"), header, features)
    # Of the last fields, those that there is room for, and a feature.
    told = packet.outer_nh_offset if size == 32 and features & bit(NetFeature.OUT_NET_HEADER) else 0
    resource = packet[-2:] if size == 32 and features & bit(NetFeature.IPSEC) else (0, 0)
    flags = packet.flags if features & bit(NetFeature.IPSEC) else packet.flags & ~HdrFlag.SECURITY
    assert found == Packet(b"frame", flags, *packet[2:-3], told, *resource)
    assert (header.num_buffers, header.hash_value, header.hash_report) == (3, 0x12345678, 9)


@pytest.mark.clause("net.driver.incoming-packets.1")
@pytest.mark.clause("net.driver.incoming-packets.4")
@pytest.mark.clause("net.device.packet-transmission.1")
@pytest.mark.clause("net.device.packet-transmission.2")
@given(flags=st.integers(0, 255), start=st.integers(0, 65535), offset=st.integers(0, 65535))
def test_what_a_flag_does_not_bring_is_not_there(flags: int, start: int, offset: int) -> None:
    header = decode_header(virtio_net_hdr.encode(flags=flags, csum_start=start, csum_offset=offset))
    packet = packet_of(header, b"")
    used = flags & HdrFlag.NEEDS_CSUM and not flags & HdrFlag.RSC_INFO
    assert (packet.csum_start, packet.csum_offset) == ((start, offset) if used else (0, 0))
    assert not packet.flags & ~(HdrFlag.NEEDS_CSUM | HdrFlag.DATA_VALID | HdrFlag.UDP_TUNNEL_CSUM)


# Checksums


@given(data=st.binary(max_size=300) | st.binary(max_size=8).map(lambda b: b * 9) | st.just(b"\xff\xff" * 5))
def test_the_sum_is_that_of_the_words(data: bytes) -> None:
    assert ones_sum(data) == words_sum(data)


def test_published_checksum() -> None:
    """RFC 1071, section 3, and an IPv4 header that half the internet quotes."""
    assert ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2
    assert checksum(bytes.fromhex("45000073000040004011 0000 c0a80001c0a800c7")) == 0xB861


@given(payload=st.binary(max_size=200), version=st.sampled_from([4, 6]), kind=st.sampled_from(["tcp", "udp"]))
@pytest.mark.clause("net.device.incoming-packets.6")
@pytest.mark.clause("net.device.incoming-packets.20")
@pytest.mark.clause("net.driver.packet-transmission.30")
def test_completing_makes_the_same_frame(payload: bytes, version: int, kind: str) -> None:
    addresses = V4 if version == 4 else V6
    make, protocol, offset = (tcp, 6, 16) if kind == "tcp" else (udp, 17, 6)
    whole = ethernet(ip(protocol, make(payload, addresses), addresses))
    part = ethernet(ip(protocol, make(payload, addresses, partial=True), addresses))
    start = 34 if version == 4 else 54
    done = complete(Packet(part, HdrFlag.NEEDS_CSUM, csum_start=start, csum_offset=offset))
    assert done == Packet(whole)
    assert checksums_hold(done.frame)


def test_a_udp_checksum_is_never_zero() -> None:
    # The payload makes the sum come out as all ones.
    for n in range(1 << 16):
        segment = udp(n.to_bytes(2, "big"), partial=True)
        if (
            words_sum(
                ip(17, segment)[12:20]
                + b"\0\x11"
                + len(segment).to_bytes(2, "big")
                + segment[:6]
                + n.to_bytes(2, "big")
            )
            == 0xFFFF
        ):
            break
    frame = ethernet(ip(17, segment))
    done = complete(Packet(frame, HdrFlag.NEEDS_CSUM, csum_start=34, csum_offset=6))
    assert done.frame[40:42] == b"\xff\xff"
    assert checksums_hold(done.frame)


# Segmentation


@pytest.mark.clause("net.device.incoming-packets.26")
@given(payload=st.binary(min_size=1, max_size=5000), kind=st.sampled_from(KINDS[:4]), size=st.integers(8, 1460))
def test_segments_carry_the_payload_and_hold(payload: bytes, kind: tuple[Gso, int], size: int) -> None:
    packet = partial_packet(payload, *kind, size)
    parts = [p.frame for p in fit(packet, 0)]
    head = packet.hdr_len
    assert b"".join(frame[head:] for frame in parts) == payload
    assert all(len(frame) - head == size for frame in parts[:-1])
    assert 0 < len(parts[-1]) - head <= size
    assert all(map(checksums_hold, parts))
    assert all(p == Packet(p.frame) for p in fit(packet, 0))
    at = packet.csum_start
    if kind[0] in (Gso.TCPV4, Gso.TCPV6):
        sequences = [int.from_bytes(frame[at + 4 : at + 8], "big") for frame in parts]
        assert sequences == [1000 + n * size for n in range(len(parts))]
    else:
        assert all(int.from_bytes(frame[at + 4 : at + 6], "big") == len(frame) - at for frame in parts)
    if kind[1] == 4:
        assert [int.from_bytes(frame[18:20], "big") for frame in parts] == list(range(7, 7 + len(parts)))


def test_flags_belong_to_the_first_or_the_last_segment() -> None:
    segment = tcp(bytes(30), flags=0x80 | 0x40 | 0x18 | 0x01, partial=True)
    packet = Packet(ethernet(ip(6, segment)), HdrFlag.NEEDS_CSUM, Gso.TCPV4 | GsoFlag.ECN, 10, 54, 34, 16)
    assert [p.frame[47] for p in fit(packet, 0)] == [0x80 | 0x40 | 0x10, 0x40 | 0x10, 0x40 | 0x18 | 0x01]


@given(payload=st.binary(min_size=1, max_size=4000), version=st.sampled_from([4, 6]), size=st.integers(8, 1480))
def test_fragments_are_put_together_again(payload: bytes, version: int, size: int) -> None:
    parts = [p.frame for p in fit(partial_packet(payload, Gso.UDP, version, size), 0)]
    whole = frame_of(payload, 17, version)
    datagram, at, more = bytearray(), 14, True
    for frame in parts:
        assert more
        if version == 4:
            word, head = int.from_bytes(frame[20:22], "big"), 20
            offset, more = (word & 0x1FFF) * 8, bool(word & 0x2000)
            assert words_sum(frame[14:34]) == 0xFFFF
            assert int.from_bytes(frame[16:18], "big") == len(frame) - 14
        else:
            assert (frame[20], frame[54]) == (44, 17)
            word, head = int.from_bytes(frame[56:58], "big"), 48
            offset, more = word & 0xFFF8, bool(word & 1)
            assert int.from_bytes(frame[18:20], "big") == len(frame) - 54
        assert offset == len(datagram)
        datagram += frame[at + head :]
    assert not more
    assert bytes(datagram) == whole[14 + (20 if version == 4 else 40) :]


@pytest.mark.clause("net.device.incoming-packets.7")
@pytest.mark.clause("net.device.incoming-packets.8")
@pytest.mark.clause("net.device.incoming-packets.9")
@pytest.mark.clause("net.device.incoming-packets.10")
@pytest.mark.clause("net.driver.packet-transmission.7")
@pytest.mark.clause("net.driver.packet-transmission.9")
@pytest.mark.clause("net.driver.packet-transmission.11")
@pytest.mark.clause("net.driver.packet-transmission.13")
@pytest.mark.clause("net.driver.packet-transmission.31")
@given(kind=st.sampled_from(KINDS), offloads=st.integers(0, (1 << 56) - 1), hint=st.integers(0, 65535))
def test_a_type_goes_on_only_by_its_own_offload(kind: tuple[Gso, int], offloads: int, hint: int) -> None:
    offloads &= ALL_OFFLOADS
    packet = partial_packet(bytes(3000), *kind, 1000)._replace(hdr_len=hint)
    parts = list(fit(packet, offloads))
    if offloads & bit(NEEDED[kind]) and offloads & bit(_F.GUEST_CSUM):
        # A hdr_len that was wrong is right from here on.
        assert parts == [partial_packet(bytes(3000), *kind, 1000)]
    else:
        assert len(parts) > 1
        assert all(p.gso_type == Gso.NONE and not p.flags for p in parts)


@pytest.mark.clause("net.device.incoming-packets.13")
@pytest.mark.clause("net.device.incoming-packets.14")
@pytest.mark.clause("net.driver.packet-transmission.14")
@pytest.mark.clause("net.driver.packet-transmission.15")
@pytest.mark.parametrize("ecn", [False, True])
def test_ecn_takes_an_offload_of_its_own(ecn: bool) -> None:
    packet = partial_packet(bytes(3000), Gso.TCPV4, 4, 1000)
    packet = packet._replace(gso_type=Gso.TCPV4 | GsoFlag.ECN)
    parts = list(fit(packet, mask(_F.GUEST_CSUM, _F.GUEST_TSO4, *([_F.GUEST_ECN] if ecn else []))))
    assert parts == [packet] if ecn else len(parts) == 3


def tunnelled(payload: bytes, checksummed: bool) -> Packet:
    """TCP in IPv6 in Ethernet in Geneve in IPv4."""
    inner = ethernet(ip(6, tcp(payload, V6, partial=True), V6))
    segment = udp(bytes.fromhex("0000655800000000") + inner, ports=(9, 6081), partial=True)
    if not checksummed:
        segment = segment[:6] + b"\0\0" + segment[8:]
    frame = ethernet(ip(17, segment))
    start = 14 + 20 + 8 + 8 + 14 + 40
    flags = HdrFlag.NEEDS_CSUM | (HdrFlag.UDP_TUNNEL_CSUM if checksummed else 0)
    gso_type = Gso.TCPV6 | GsoFlag.UDP_TUNNEL_IPV4
    return Packet(frame, flags, gso_type, 1000, start + 20, start, 16, 34, start - 40)


@pytest.mark.clause("net-tunnel.device.incoming-packets.21")
@pytest.mark.clause("net-tunnel.device.incoming-packets.22")
@pytest.mark.clause("net-tunnel.device.incoming-packets.34")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.18")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.19")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.46")
@pytest.mark.clause("net-tunnel.device.incoming-packets.24")
@pytest.mark.clause("net-tunnel.device.incoming-packets.25")
@pytest.mark.parametrize("checksummed", [False, True])
def test_tunnels(checksummed: bool) -> None:
    packet = tunnelled(bytes(range(250)) * 10, checksummed)
    everything = mask(_F.GUEST_CSUM, _F.GUEST_TSO6, OFFLOAD_TUNNEL_GSO)
    enough = everything | (bit(OFFLOAD_TUNNEL_GSO_CSUM) if checksummed else 0)
    by_inner = packet._replace(gso_type=Gso.TCPV6 | GsoFlag.UDP_TUNNEL_IPV6)
    for written in (packet, by_inner):
        assert list(fit(written, enough)) == [by_inner]
        assert list(fit(written, enough, outer_tunnel_bits=True)) == [packet]
    assert list(fit(packet._replace(flags=packet.flags | HdrFlag.DATA_VALID), enough)) == [by_inner]
    for offloads in {0, everything} - {enough}:
        parts = [p.frame for p in fit(packet, offloads)]
        assert b"".join(frame[packet.hdr_len :] for frame in parts) == bytes(range(250)) * 10
        for frame in parts:
            assert checksums_hold(frame[50:])
            assert checksums_hold(frame) == checksummed
            assert words_sum(frame[14:34]) == 0xFFFF
            assert (frame[40:42] == b"\0\0") != checksummed


# A15: whatever the offsets say


@given(
    base=st.sampled_from(KINDS).map(lambda kind: partial_packet(bytes(200), *kind, 50))
    | st.just(tunnelled(bytes(99), True)),
    change=st.dictionaries(
        st.sampled_from(
            [
                "flags",
                "gso_type",
                "gso_size",
                "hdr_len",
                "csum_start",
                "csum_offset",
                "outer_th_offset",
                "inner_nh_offset",
            ]
        ),
        st.integers(0, 255) | st.integers(0, 65535),
    ),
    cut=st.integers(14, 400),
    offloads=st.integers(0, (1 << 56) - 1).map(lambda o: o & ALL_OFFLOADS),
)
@pytest.mark.clause("net.device.packet-transmission.7")
@pytest.mark.clause("net.driver.incoming-packets.6")
def test_offsets_that_lie_are_refused_or_harmless(
    base: Packet, change: dict[str, int], cut: int, offloads: int
) -> None:
    packet = base._replace(frame=base.frame[:cut], **change)
    try:
        parts = list(fit(packet, offloads))
    except RequestError:
        return
    assert len(parts) <= MAX_SEGMENTS
    assert sum(len(p.frame) for p in parts) <= (len(packet.frame) + 8) * len(parts)
    for p in parts:
        assert not p.needs_csum or p.csum_start + p.csum_offset + 2 <= len(p.frame)
        assert p.gso == Gso.NONE or p.hdr_len <= len(p.frame)


@pytest.mark.parametrize(
    "change",
    [
        {"flags": 0},
        {"gso_size": 0},
        {"gso_size": 1},
        {"csum_start": 35},
        {"csum_offset": 6},
        {"gso_type": int(Gso.TCPV6)},
        {"gso_type": 2},
        {"gso_type": 0x21},
        {"gso_type": 0x61},
        {"frame": partial_packet(b"", Gso.TCPV4, 4, 9).frame[:50]},
    ],
)
@pytest.mark.clause("net.driver.packet-transmission.32")
@pytest.mark.clause("net.driver.packet-transmission.33")
def test_what_cannot_be_segmented_is_refused(change: dict[str, Any]) -> None:
    packet = partial_packet(bytes(40_000), Gso.TCPV4, 4, 100)
    assert len(list(fit(packet, 0))) == 400
    with pytest.raises(RequestError):
        list(fit(packet._replace(**change), ALL_OFFLOADS))
