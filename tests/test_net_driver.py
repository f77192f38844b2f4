"""The network driver: what it sends, what it accepts of an offer, and what it thinks of devices that lie."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from tests.net_frames import THEM, US, Wire, checksums_hold, ethernet, frame_of, ip, partial_packet, udp
from tests.test_net_pair import RING, SmallBuffers, settle
from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.commands import NetControlError, RssSettings
from virtio_py.devices.net.control_layout import StatsType
from virtio_py.devices.net.counters import Coalescing
from virtio_py.devices.net.device import ALL_FEATURES, NetDevice
from virtio_py.devices.net.driver import NetDriver, announcement
from virtio_py.devices.net.header import Packet, decode_header, header_size, packet_of
from virtio_py.devices.net.layout import (
    MAX_FRAME,
    TUNNEL,
    Duplex,
    Gso,
    GsoFlag,
    HdrFlag,
    NetFeature,
    virtio_net_hdr,
)
from virtio_py.devices.net.segmentation import fit
from virtio_py.errors import NegotiationError, RequestError, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.transports.in_process import InProcess

_F = NetFeature


@define(eq=False)
class Witness(NetDevice):
    """A network device that writes down what it gets; it may lie in its configuration, and in received headers."""

    seen: list[tuple[int, bytes]] = field(factory=list, init=False)
    writes: list[int] = field(factory=list, init=False)
    lie: bytes | None = field(default=None, init=False)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        self.seen.append((queue.index, b"".join(chain.readable.views())))
        super().handle(queue, chain)

    def write_config(self, offset: int, data: bytes) -> None:
        self.writes.append(offset)

    def read_config(self) -> bytes:
        return super().read_config() if self.lie is None else self.lie

    def sent(self) -> list[tuple[Any, bytes]]:
        """Headers and frames of transmitq1."""
        size = header_size(self.features)
        return [(decode_header(data[:size]), data[size:]) for index, data in self.seen if index == 1]


def pair(features: int = ALL_FEATURES, ring: int = RING, **options: Any) -> tuple[NetDriver, Witness, Wire, InProcess]:
    options.setdefault("offered", ALL_FEATURES)
    wire = Wire()
    device = Witness(wire, **options)
    transport = InProcess(device, memory_size=4 << 20)
    return SmallBuffers(transport, features=features | ring, queue_size=64).start(), device, wire, transport


# What it accepts


@pytest.mark.clause("net.driver.config-layout.2")
@pytest.mark.clause("net.driver.config-layout.3")
@pytest.mark.clause("net.driver.config-layout.7")
@pytest.mark.clause("net.driver.config-layout.10")
@pytest.mark.clause("net.driver.packet-transmission.44")
@pytest.mark.clause("net.device.config-layout.9")
def test_it_accepts_what_it_should() -> None:
    device = NetDevice(Wire(), offered=ALL_FEATURES, mtu=1400)
    driver = SmallBuffers(InProcess(device)).start()
    for feature in (_F.MAC, _F.MTU, _F.STANDBY, _F.GUEST_HDRLEN):
        assert driver.has(feature)
    assert driver.info.mac == US


@pytest.mark.clause("net.driver.config-layout.14")
@pytest.mark.clause("net-rss.driver.config-layout.13")
@pytest.mark.clause("net.driver.multiqueue-mode-prose.1")
@given(features=st.integers(0, ALL_FEATURES))
def test_any_subset_is_accepted_consistently(features: int) -> None:
    driver, device, _, _ = pair(features, pairs=2)
    assert not driver.features & ALL_FEATURES & ~features
    assert device.refuse_features(driver.features) is None
    if not driver.has(_F.CTRL_VQ):
        assert not driver.has(_F.CTRL_RX_EXTRA)
        assert not driver.has(_F.HASH_REPORT)


@pytest.mark.clause("net.driver.config-layout.1")
@pytest.mark.clause("net.driver.config-layout.4")
@pytest.mark.clause("net.driver.config-layout.5")
@pytest.mark.clause("net.driver.config-layout.6")
@pytest.mark.clause("net.driver.config-layout.11")
@pytest.mark.clause("net.driver.config-layout.12")
def test_the_configuration_is_read_and_never_written() -> None:
    driver, device, _, _ = pair(0)
    assert driver.info.link_up
    assert driver.info.mac[0] & 3 == 2
    device.set_link(False)
    assert driver.refresh().link_up
    driver, device, _, _ = pair(speed=100, duplex=Duplex.HALF)
    device.set_link(False)
    device.set_speed(1000, Duplex.FULL)
    assert driver.poll_configuration()
    assert (driver.info.link_up, driver.info.speed, driver.info.duplex) == (False, 1000, Duplex.FULL)
    assert not driver.poll_configuration()
    for speed, duplex in ((0x80000000, 2), (0xFFFFFFFF, 0xFF)):
        device.lie = struct.pack("<6sHHHIBBHII", US, 1, 1, 0, speed, duplex, 40, 128, 0, 0)
        info = driver.refresh()
        assert (info.speed, info.duplex) == (None, Duplex.UNKNOWN)
    assert not device.writes


@pytest.mark.parametrize("pairs", [0, 0x8001])
def test_a_number_of_queues_that_cannot_be(pairs: int) -> None:
    device = Witness(Wire(), pairs=2)
    device.lie = struct.pack("<6sHHHIBBHII", US, 1, pairs, 0, 0, 0, 40, 128, 0, 0)
    transport = InProcess(device)
    with pytest.raises(NegotiationError):
        NetDriver(transport).start()
    assert transport.read_status() & DeviceStatus.FAILED


@pytest.mark.clause("net.driver.setting-up-receive-buffers.1")
@pytest.mark.clause("net.driver.setting-up-receive-buffers.2")
@pytest.mark.clause("net.driver.setting-up-receive-buffers.3")
@pytest.mark.clause("net.driver.setting-up-receive-buffers.5")
@pytest.mark.clause("net.driver.config-layout.8")
@pytest.mark.parametrize("mtu", [None, 1280, 9000])
@given(features=st.integers(0, ALL_FEATURES))
def test_receive_buffers(mtu: int | None, features: int) -> None:
    driver, device, _, transport = pair(features, pairs=2, mtu=mtu)
    settle(transport)
    header = header_size(driver.features)
    big = driver.features & mask(_F.GUEST_TSO4, _F.GUEST_TSO6, _F.GUEST_UFO, _F.GUEST_USO4, _F.GUEST_USO6)
    for n in range(driver.max_pairs):
        sizes = [chain.writable.remaining for chain in device.reception._rooms[2 * n]]
        assert sizes
        if driver.has(_F.MRG_RXBUF):
            assert min(sizes) >= header
        else:
            assert min(sizes) >= header + (65589 if big else 1514)
        assert sum(sizes) >= header + (driver.info.mtu or 0) + 14


# What it sends


@pytest.mark.clause("net.driver.packet-transmission.1")
@pytest.mark.clause("net.driver.packet-transmission.2")
@pytest.mark.clause("net.driver.packet-transmission.3")
@pytest.mark.clause("net.driver.packet-transmission.4")
@pytest.mark.clause("net.driver.packet-transmission.6")
@pytest.mark.clause("net.driver.packet-transmission.8")
@pytest.mark.clause("net.driver.packet-transmission.10")
@pytest.mark.clause("net.driver.packet-transmission.12")
@pytest.mark.clause("net.driver.packet-transmission.27")
@pytest.mark.clause("net.driver.packet-transmission.28")
@pytest.mark.clause("net.driver.packet-transmission.29")
@pytest.mark.clause("net.driver.packet-transmission.32")
@pytest.mark.clause("net.driver.packet-transmission.33")
@pytest.mark.clause("net.driver.packet-transmission.34")
@pytest.mark.clause("net.driver.packet-transmission.35")
@pytest.mark.clause("net.driver.packet-transmission.45")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.17")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.22")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.24")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.25")
@given(
    features=st.integers(0, ALL_FEATURES),
    kind=st.sampled_from([(Gso.TCPV4, 4), (Gso.TCPV6, 6), (Gso.UDP, 4), (Gso.UDP_L4, 6), (Gso.NONE, 4)]),
    flags=st.integers(0, 255),
    gso_bits=st.sampled_from([0, int(GsoFlag.ECN), 0x20, 0x40, 0x60]),
    hint=st.integers(0, 65535),
)
def test_every_header_is_one_that_the_device_may_be_sent(
    features: int, kind: tuple[Gso, int], flags: int, gso_bits: int, hint: int
) -> None:
    driver, device, _, transport = pair(features & ~bit(_F.RSC_EXT))
    gso, version = kind
    packet = partial_packet(bytes(2000), gso, version, 700 if gso else 0)
    packet = packet._replace(flags=packet.flags | flags, gso_type=packet.gso_type | gso_bits, hdr_len=hint)
    try:
        driver.send(packet)
    except RequestError:
        # It does not send what is not true.
        assert gso_bits & TUNNEL
        return
    driver.flush()
    type_of = {Gso.TCPV4: _F.HOST_TSO4, Gso.TCPV6: _F.HOST_TSO6, Gso.UDP: _F.HOST_UFO, Gso.UDP_L4: _F.HOST_USO}
    for header, frame in device.sent():
        assert header.num_buffers == 0
        assert not header.flags & (HdrFlag.DATA_VALID | HdrFlag.RSC_INFO)
        assert not header.gso_type & TUNNEL
        assert not header.flags & (HdrFlag.UDP_TUNNEL_CSUM | HdrFlag.SECURITY)
        assert (header.outer_nh_offset, header.resource_id, header.resource_type) == (0, 0, 0)
        kind_sent = Gso(header.gso_type & ~GsoFlag.ECN)
        if not driver.has(_F.CSUM):
            assert (header.flags, kind_sent) == (0, Gso.NONE)
            assert gso == Gso.UDP or checksums_hold(frame)
        if kind_sent != Gso.NONE:
            assert driver.has(type_of[kind_sent])
            assert header.flags == HdrFlag.NEEDS_CSUM
            assert header.gso_size == 700
            assert header.hdr_len == partial_packet(b"", gso, version, 700).hdr_len
            assert bool(header.gso_type & GsoFlag.ECN) == bool(gso_bits)
            assert not gso_bits or driver.has(_F.HOST_ECN)
        if header.flags & HdrFlag.NEEDS_CSUM:
            assert (header.csum_start, header.csum_offset) == (packet.csum_start, packet.csum_offset)
    assert transport.end.fault is None


@pytest.mark.clause("net.driver.config-layout.9")
@pytest.mark.parametrize("size", [13, MAX_FRAME + 5])
def test_what_is_no_frame_is_not_sent(size: int) -> None:
    driver, _, _, _ = pair()
    with pytest.raises(UsageError):
        driver.send(bytes(size))


def test_sending_more_than_the_queue_holds() -> None:
    driver, _, wire, _ = pair()
    frames = [frame_of(n.to_bytes(2, "big")) for n in range(300)]
    driver.send_all(frames)
    assert wire.frames == frames
    assert not driver.transmitq(0).outstanding


RSS = RssSettings(0, b"")
EVERY_COMMAND: list[Callable[[NetDriver], object]] = [
    lambda driver: driver.set_promiscuous(True),
    lambda driver: driver.set_all_multicast(True),
    lambda driver: driver.set_all_unicast(True),
    lambda driver: driver.set_no_multicast(True),
    lambda driver: driver.set_no_unicast(True),
    lambda driver: driver.set_no_broadcast(True),
    lambda driver: driver.set_mac_table([]),
    lambda driver: driver.set_mac(THEM),
    lambda driver: driver.add_vlan(1),
    lambda driver: driver.remove_vlan(1),
    lambda driver: driver.acknowledge_announce(),
    lambda driver: driver.set_pairs(1),
    lambda driver: driver.set_rss(RSS),
    lambda driver: driver.set_hashing(0, b""),
    lambda driver: driver.set_tunnel_hashing(0),
    lambda driver: driver.max_rss_contexts(),
    lambda driver: driver.set_rss_context(1, RSS),
    lambda driver: driver.remove_rss_context(1),
    lambda driver: driver.set_offloads(0),
    lambda driver: driver.set_coalescing(receive=Coalescing()),
    lambda driver: driver.set_queue_coalescing(0, Coalescing()),
    lambda driver: driver.queue_coalescing(0),
    lambda driver: driver.supported_statistics(),
    lambda driver: driver.statistics(0, StatsType.RX_BASIC),
]


@pytest.mark.clause("net.driver.packet-receive-filtering.1")
@pytest.mark.clause("net.driver.packet-receive-filtering.2")
@pytest.mark.clause("net.driver.mac-filtering.1")
@pytest.mark.clause("net-rss.driver.setting-rss-parameters.1")
@pytest.mark.clause("net-rss.driver.inner-header-hash.1")
@pytest.mark.clause("net-rss.driver.rss-context.1")
@pytest.mark.clause("net-coal.driver.notifications-coalescing.2")
@pytest.mark.clause("net-coal.driver.notifications-coalescing.3")
@pytest.mark.clause("net.driver.setting-offloads-state.1")
def test_no_command_without_its_feature() -> None:
    for features in (0, bit(_F.CTRL_VQ)):
        driver, device, _, _ = pair(features)
        for command in EVERY_COMMAND:
            with pytest.raises(UsageError):
                command(driver)
        assert all(index != 2 for index, _ in device.seen)
    driver, _, _, _ = pair(mask(_F.CTRL_VQ, _F.CTRL_GUEST_OFFLOADS, _F.GUEST_CSUM))
    with pytest.raises(UsageError):
        driver.set_offloads(bit(_F.GUEST_TSO4))
    driver.set_offloads(bit(_F.GUEST_CSUM))


@pytest.mark.clause("net.driver.mac-filtering.2")
@pytest.mark.clause("net.driver.mac-filtering.3")
@pytest.mark.clause("net.driver.mac-filtering.4")
@pytest.mark.clause("net-rss.driver.hash-config-prose.1")
def test_the_bytes_of_commands() -> None:
    driver, device, _, _ = pair(pairs=2)
    group = b"\1" * 6
    driver.set_mac_table([group, THEM, US])
    driver.set_mac_table([])
    driver.set_mac(THEM)
    driver.set_hashing(3, b"key")
    driver.set_rss(RssSettings(3, b"key", (0, 1), 1, 2))
    sent = [data for index, data in device.seen if index == 4]
    assert sent == [
        b"\1\0" + struct.pack("<I", 2) + THEM + US + struct.pack("<I", 1) + group,
        b"\1\0" + bytes(8),
        b"\1\1" + THEM,
        b"\4\2" + struct.pack("<I8xB", 3, 3) + b"key",
        b"\4\1" + struct.pack("<IHHHHHB", 3, 1, 1, 0, 1, 2, 3) + b"key",
    ]


@pytest.mark.clause("net-rss.driver.setting-rss-parameters.2")
@pytest.mark.clause("net-rss.driver.setting-rss-parameters.3")
@pytest.mark.clause("net-rss.driver.setting-rss-parameters.4")
@pytest.mark.clause("net-rss.driver.setting-rss-parameters.5")
@pytest.mark.clause("net-rss.driver.inner-header-hash.2")
@pytest.mark.clause("net-rss.driver.rss-context.3")
@pytest.mark.clause("net-coal.driver.notifications-coalescing.4")
@pytest.mark.clause("net-rss.driver.rss-context.2")
@pytest.mark.clause("net-rss.device.rss-context.1")
@pytest.mark.clause("net-coal.driver.notifications-coalescing.1")
@pytest.mark.clause("net-stats.driver.device-statistics.1")
@pytest.mark.clause("net-stats.driver.device-statistics.2")
def test_what_the_device_cannot_do_is_not_asked() -> None:
    driver, _, _, _ = pair(pairs=2)
    for bad in (
        RssSettings(1 << 9, b""),
        RssSettings(1, bytes(41)),
        RssSettings(1, b"", ()),
        RssSettings(1, b"", (0,) * 3),
        RssSettings(1, b"", (0,) * 256),
        RssSettings(1, b"", (2,)),
        RssSettings(1, b"", (0,), 2),
    ):
        with pytest.raises(UsageError):
            driver.set_rss(bad)
    with pytest.raises(UsageError):
        driver.set_tunnel_hashing(1 << 9)
    with pytest.raises(UsageError):
        driver.statistics(0, StatsType.RX_SPEED)
    with pytest.raises(UsageError):
        driver.statistics(0, StatsType.TX_BASIC)
    with pytest.raises(NetControlError):
        driver.command(c.NOTF_COAL_VQ_GET, bytes(4)[:3], before=8)
    for context in (0, 9):
        with pytest.raises(UsageError):
            driver.set_rss_context(context, RssSettings(1, b""))
    with pytest.raises(UsageError):
        driver.queue_coalescing(4)
    driver.set_rss_context(1, RssSettings(1, b""))
    with pytest.raises(UsageError):
        driver.set_pairs(2)
    driver.remove_rss_context(1)
    driver.set_pairs(2)


@pytest.mark.clause("net.driver.gratuitous-packet-sending.1")
@pytest.mark.clause("net.driver.gratuitous-packet-sending.2")
@pytest.mark.clause("net.driver.automatic-receive-steering.1")
def test_an_announcement() -> None:
    driver, device, wire, _ = pair()
    assert not driver.poll_configuration()
    device.announce()
    assert driver.poll_configuration()
    driver.flush()
    assert wire.frames == [announcement(US)]
    assert [data for index, data in device.seen if index == 2] == [bytes(c.ANNOUNCE_ACK)]
    assert len(announcement(US)) == 60


def tunnel_packet() -> Packet:
    """A TCP super-packet in Geneve, whose outer checksum is left to somebody else."""
    inner = partial_packet(bytes(range(200)) * 10, Gso.TCPV4, 4, 700)
    body = bytes.fromhex("0000655800000000") + inner.frame
    frame = ethernet(ip(17, udp(body, ports=(9, 6081), partial=True)))
    flags, gso_type = HdrFlag.NEEDS_CSUM | HdrFlag.UDP_TUNNEL_CSUM, Gso.TCPV4 | GsoFlag.UDP_TUNNEL_IPV4
    return Packet(frame, flags, gso_type, 700, 50 + 54, 50 + 34, 16, 34, 50 + 14)


PLAIN_GSO = mask(_F.CSUM, _F.HOST_TSO4, _F.HOST_TSO6, _F.HOST_USO)
GUEST_GSO = mask(_F.GUEST_CSUM, _F.GUEST_TSO4, _F.GUEST_TSO6, _F.GUEST_USO4, _F.GUEST_USO6)


@pytest.mark.clause("net-tunnel.driver.packet-transmission.16")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.20")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.21")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.23")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.26")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.36")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.37")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.38")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.39")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.40")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.41")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.42")
@pytest.mark.clause("net-tunnel.driver.packet-transmission.43")
@pytest.mark.clause("net-tunnel.device.incoming-packets.11")
@pytest.mark.clause("net-tunnel.device.incoming-packets.12")
@pytest.mark.clause("net-tunnel.device.incoming-packets.23")
@pytest.mark.clause("net-tunnel.device.incoming-packets.35")
@pytest.mark.clause("net-tunnel.device.incoming-packets.36")
@pytest.mark.clause("net-tunnel.device.incoming-packets.37")
@pytest.mark.parametrize("level", [0, 1, 2])
def test_tunnels_go_as_far_as_was_negotiated(level: int) -> None:
    """level: no tunnels, tunnels without and with the outer checksum left to the other side."""
    wanted = PLAIN_GSO | GUEST_GSO
    wanted |= mask(_F.HOST_UDP_TUNNEL_GSO, _F.GUEST_UDP_TUNNEL_GSO) if level else 0
    wanted |= mask(_F.HOST_UDP_TUNNEL_GSO_CSUM, _F.GUEST_UDP_TUNNEL_GSO_CSUM) if level == 2 else 0
    driver, device, wire, _ = pair(wanted | bit(_F.MRG_RXBUF))
    packet = tunnel_packet()
    driver.send(packet)
    driver.flush()
    wire.deliver(packet)
    received = driver.receive_all()
    expected = [p.frame for p in fit(packet, 0)]
    # A frame that is complete needs nobody: the outer checksum can be summed over each.
    assert all(checksums_hold(frame) and checksums_hold(frame[50:]) for frame in expected)
    for packets in ([packet_of(h, frame) for h, frame in device.sent()], received):
        assert packets == ([packet] if level == 2 else [Packet(frame) for frame in expected])


@pytest.mark.clause("net.device.packet-transmission.14")
@pytest.mark.clause("net.device.incoming-packets.32")
@pytest.mark.clause("net.device.incoming-packets.33")
def test_what_a_driver_says_of_a_checksum_is_not_believed_but_what_a_port_says() -> None:
    driver, device, wire, _ = pair(GUEST_GSO)
    wrong = bytearray(frame_of(b"x"))
    wrong[-1] ^= 1
    queue = driver.transmitq(0)
    for flags in (0, HdrFlag.DATA_VALID):
        driver.transact(queue, [virtio_net_hdr.encode(flags=flags)[:12] + wrong], [])
    assert wire.sent == [Packet(bytes(wrong))] * 2
    for features, flags in ((GUEST_GSO, HdrFlag.DATA_VALID), (0, 0)):
        driver, device, wire, _ = pair(features)
        wire.deliver(Packet(frame_of(b"x"), HdrFlag.DATA_VALID))
        assert driver.receive_all() == [Packet(frame_of(b"x"), flags)]
    assert device.link_up


@pytest.mark.clause("net-tunnel.device.packet-transmission.9")
@pytest.mark.clause("net-tunnel.driver.incoming-packets.9")
@pytest.mark.clause("net.driver.incoming-packets.5")
@pytest.mark.clause("net.device.packet-transmission.5")
@given(outer=st.integers(0, 65535), inner=st.integers(0, 65535), hint=st.integers(0, 65535))
def test_offsets_of_tunnels_mean_nothing_without_one(outer: int, inner: int, hint: int) -> None:
    packet = partial_packet(bytes(2000), Gso.TCPV4, 4, 700)
    lying = packet._replace(outer_th_offset=outer, inner_nh_offset=inner, hdr_len=hint)
    assert [p.frame for p in fit(lying, 0)] == [p.frame for p in fit(packet, 0)]


@pytest.mark.clause("net-rss.device.hash-calculation-prose.1")
@pytest.mark.clause("net-rss.device.hash-calculation-prose.2")
@pytest.mark.clause("net-rss.device.hash-calculation-prose.3")
@pytest.mark.clause("net-rss.device.hash-config-prose.1")
@pytest.mark.clause("net-rss.device.rss-processing.1")
@pytest.mark.parametrize("rss", [False, True])
def test_hashes_are_reported_of_one_pair_of_queues(rss: bool) -> None:
    driver, _, wire, _ = pair(mask(_F.CTRL_VQ, _F.HASH_REPORT, *([_F.RSS] if rss else [])))
    reports = []
    for types in (0, 1, 2):
        driver.set_rss(RssSettings(types, bytes(range(40)))) if rss else driver.set_hashing(types, bytes(range(40)))
        wire.deliver(Packet(frame_of(b"x")))
        assert driver.receive(timeout=0) is not None
        reports.append(driver.last_header.hash_report)
    assert reports == [0, 1, 2]


@pytest.mark.clause("net-rss.driver.inner-header-hash.3")
def test_tunnel_types_that_nobody_has_documented() -> None:
    driver, _, _, _ = pair(supported_tunnel_types=0xFFFFFFFF)
    driver.set_tunnel_hashing(0x1FF)


@pytest.mark.clause("net.driver.automatic-receive-steering-prose.1")
@pytest.mark.clause("net.driver.automatic-receive-steering-prose.2")
def test_every_pair_in_use_can_be_used() -> None:
    driver, device, wire, _ = pair(pairs=3)
    driver.set_pairs(3)
    for n in range(3):
        driver.send(frame_of(bytes([n])), n)
        driver.flush(n)
    assert [index for index, data in device.seen if index in (1, 3, 5)] == [1, 3, 5]
    assert wire.frames == [frame_of(bytes([n])) for n in range(3)]


@pytest.mark.clause("net-coal.device.notifications-coalescing.7")
@pytest.mark.clause("net-coal.device.notifications-coalescing.8")
@pytest.mark.clause("net-stats.driver.device-statistics.3")
def test_coalescing_never_notifies_a_driver_that_does_not_want_to_hear() -> None:
    # With EVENT_IDX a driver cannot be left alone altogether.
    driver, _, wire, transport = pair(ring=RING & ~bit(Feature.EVENT_IDX))
    driver.set_coalescing(receive=Coalescing(1, 1))
    driver.receiveq(0).disable_notifications()
    before = transport.used_notifications
    for _ in range(5):
        wire.deliver(Packet(frame_of(b"")))
    assert transport.used_notifications == before
    every = [kind for kind in StatsType if kind < StatsType.TX_BASIC and kind != StatsType.RX_SPEED]
    found = driver.statistics(0, *every)
    assert set(found) == set(every)
    assert found[StatsType.RX_BASIC]["rx_packets"] == 5


# Devices that lie


def receive(features: int, data: list[bytes]) -> tuple[NetDriver, list[Packet]]:
    """What the driver makes of buffers that a device fills with `data`."""
    driver, device, _, transport = pair(features)
    settle(transport)
    room = device.reception._rooms[0]
    queue = room[0].queue
    chains = [room.popleft() for _ in data]
    for chain, content in zip(chains, data, strict=True):
        chain.writable.write(content)
    queue.complete(chains)
    return driver, driver.receive_all()


def header(**fields: int) -> bytes:
    fields.setdefault("num_buffers", 1)
    return virtio_net_hdr.encode(**fields)[:12]


FRAME = frame_of(b"")


@pytest.mark.parametrize(
    ("features", "data"),
    [
        (0, [b""]),
        (0, [header()[:11]]),
        (bit(_F.MRG_RXBUF), [header(num_buffers=0) + FRAME]),
        (bit(_F.MRG_RXBUF), [header(num_buffers=2) + FRAME]),
        (bit(_F.MRG_RXBUF), [header(num_buffers=65535) + FRAME, FRAME]),
    ],
)
def test_a_device_that_breaks_the_framing_is_given_up(features: int, data: list[bytes]) -> None:
    with pytest.raises(RequestError):
        receive(features, data)


@pytest.mark.clause("net-tunnel.driver.incoming-packets.8")
@pytest.mark.clause("net-tunnel.driver.incoming-packets.10")
@pytest.mark.clause("net-tunnel.driver.incoming-packets.11")
@pytest.mark.clause("net-tunnel.driver.incoming-packets.12")
@pytest.mark.clause("net-tunnel.driver.incoming-packets.13")
@pytest.mark.parametrize(("flags", "gso_type"), [(1, 0x61), (0, 0x21), (3, 0x21), (1, 0x20), (9, 1)])
def test_packets_that_must_not_be_accepted(flags: int, gso_type: int) -> None:
    _, found = receive(0, [header(flags=flags, gso_type=gso_type) + FRAME, header() + FRAME])
    assert found == [Packet(FRAME)]


@pytest.mark.clause("net.driver.incoming-packets.1")
@pytest.mark.clause("net.driver.incoming-packets.6")
@pytest.mark.clause("net.driver.incoming-packets.7")
@given(flags=st.integers(0, 255), hint=st.integers(0, 65535), num_buffers=st.integers(0, 65535))
def test_what_is_not_understood_is_not_looked_at(flags: int, hint: int, num_buffers: int) -> None:
    flags &= ~HdrFlag.NEEDS_CSUM
    _, [packet] = receive(0, [header(flags=flags, hdr_len=hint, csum_start=7, num_buffers=num_buffers) + FRAME])
    assert packet.frame == FRAME
    assert (packet.csum_start, packet.needs_csum) == (0, False)
    assert bool(packet.flags & HdrFlag.DATA_VALID) == bool(flags & HdrFlag.DATA_VALID)


def test_a_command_without_an_ack() -> None:
    driver, device, _, transport = pair()

    def nothing(queue: DeviceQueue, chain: Chain) -> None:
        del queue, chain

    device.handle = nothing  # type: ignore[method-assign]
    with pytest.raises(RequestError):
        driver.set_promiscuous(True)
    assert transport.read_status() & DeviceStatus.FAILED
