"""The network device against drivers that ask for anything: commands, filters, buffers, and hostile ones."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any, cast

import pytest
from attr.exceptions import FrozenAttributeError
from hypothesis import given
from hypothesis import strategies as st

from tests.net_frames import BROADCAST, THEM, US, Wire, ethernet, frame_of, ip, partial_packet, udp
from tests.test_net_pair import RINGS, SmallBuffers, pair, settle
from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.commands import NetControlError, RssSettings
from virtio_py.devices.net.control import COMMANDS, MAX_DATA, serve_command
from virtio_py.devices.net.control_layout import StatsType
from virtio_py.devices.net.counters import Coalescing, Counts
from virtio_py.devices.net.device import ALL_FEATURES, NetDevice
from virtio_py.devices.net.header import Packet, header_size
from virtio_py.devices.net.layout import (
    Duplex,
    Gso,
    HdrFlag,
    NetFeature,
    consistent,
    virtio_net_config,
    virtio_net_hdr,
)
from virtio_py.driver import Driver
from virtio_py.errors import NeedsReset, RequestError, UsageError
from virtio_py.rings.chain import Chain, Reader, Writer
from virtio_py.rings.queue import DeviceQueue, DriverQueue
from virtio_py.spec import DeviceId, DeviceStatus, Feature, bit, mask
from virtio_py.transports.in_process import InProcess

_F = NetFeature
NO_QUEUE = cast(DeviceQueue, None)
V1 = bit(Feature.VERSION_1)
GROUP = b"\1\0\x5e\0\0\1"


class Plain(Driver):
    """A driver that puts whatever a test wants into any queue."""

    device_id = DeviceId.NET
    known_features = mask(*_F)

    def queue_count(self) -> int:
        return self.transport.num_queues


def plain(features: int, port: Wire | None = None, **options: Any) -> tuple[Plain, NetDevice, InProcess]:
    options.setdefault("offered", ALL_FEATURES)
    device = NetDevice(port or Wire(), **options)
    transport = InProcess(device, memory_size=2 << 20)
    return Plain(transport, features=consistent(features) | V1, queue_size=16).start(), device, transport


def chain(readable: list[bytes], writable: list[int]) -> tuple[Chain, list[bytearray]]:
    room = [bytearray(b"\xee" * size) for size in writable]
    made = Chain(0, NO_QUEUE, Reader([memoryview(r) for r in readable]), Writer([memoryview(r) for r in room]))
    return made, room


def ask(device: NetDevice, data: bytes, room: int = 1) -> bytes:
    """What is written for a command."""
    request, [answer] = chain([data], [room])
    serve_command(device, Counts(), request)
    assert answer[request.used_length :] == b"\xee" * (room - request.used_length)
    return bytes(answer[: request.used_length])


# What a device may be


@pytest.mark.clause("net.device.config-layout.1")
@pytest.mark.clause("net.device.config-layout.2")
@pytest.mark.clause("net.device.config-layout.10")
@pytest.mark.clause("net.device.config-layout.11")
@pytest.mark.parametrize(
    "options",
    [
        {"pairs": 0},
        {"pairs": 0x8001},
        {"mtu": 67},
        {"mtu": 65536},
        {"speed": 0x80000000},
        {"speed": -1},
        {"duplex": 2},
        {"mac": GROUP},
        {"mac": b"short"},
        {"offered": bit(_F.IPSEC)},
        {"offered": 0, "pairs": 2},
        {"rss_max_key_size": 300},
    ],
)
def test_what_no_device_can_be(options: dict[str, Any]) -> None:
    with pytest.raises((UsageError, ValueError)):
        NetDevice(Wire(), **options)


@pytest.mark.clause("net.device.config-layout.4")
@pytest.mark.clause("net.device.config-layout.12")
def test_what_does_not_change() -> None:
    device = NetDevice(Wire(), mtu=1500, speed=10)
    with pytest.raises(FrozenAttributeError):
        device.mtu = 1400
    with pytest.raises(UsageError):
        device.set_speed(100, Duplex.FULL)
    device.set_link(False)
    device.set_speed(100, Duplex.HALF)
    config = virtio_net_config.decode(device.read_config())
    assert (config.speed, config.duplex, config.status, config.mtu) == (100, Duplex.HALF, 0, 1500)


@given(offered=st.integers(0, ALL_FEATURES), pairs=st.integers(1, 3), known=st.booleans())
@pytest.mark.clause("net.device.config-layout.14")
@pytest.mark.clause("net-rss.device.config-layout.7")
@pytest.mark.clause("net-rss.device.config-layout.8")
@pytest.mark.clause("net-rss.device.config-layout.13")
@pytest.mark.clause("net.device.multiqueue-mode-prose.1")
def test_every_offer_is_consistent(offered: int, pairs: int, known: bool) -> None:
    offered &= ALL_FEATURES
    # net-ipsec.device.feature-bits-prose.1
    offered |= bit(_F.OUT_NET_HEADER) if offered & bit(_F.IPSEC) else 0
    if not offered & mask(_F.MQ, _F.RSS) or not offered & bit(_F.CTRL_VQ):
        pairs = 1
    device = NetDevice(Wire(), offered=offered, pairs=pairs, mtu=1500 if known else None, speed=1 if known else None)
    offer = device.offered_features()
    assert not offer & ~offered
    assert device.refuse_features(offer) is None
    assert offer & bit(_F.CTRL_VQ) or not offer & mask(_F.CTRL_RX_EXTRA, _F.HASH_REPORT, _F.MQ, _F.RSS)
    config = virtio_net_config.decode(device.read_config())
    assert config.max_virtqueue_pairs == (pairs if offer & mask(_F.MQ, _F.RSS) else 0)
    assert bool(config.mtu) == bool(offer & bit(_F.MTU))
    assert config.rss_max_key_size >= 40 or not offer & mask(_F.RSS, _F.HASH_REPORT)
    assert config.rss_max_indirection_table_length >= 128 or not offer & bit(_F.RSS)
    driver, _, _ = plain(offer, offered=offered, pairs=pairs)
    assert driver.features & ALL_FEATURES == driver.offered & offer


@pytest.mark.parametrize("features", [mask(_F.CSUM, _F.HOST_ECN), mask(_F.CTRL_VQ, _F.HASH_TUNNEL)])
def test_a_feature_that_lacks_any_of_its_needs_is_refused(features: int) -> None:
    _, device, _ = plain(0)
    assert device.refuse_features(features) is not None


# Buffers


@pytest.mark.clause("net.device.setting-up-receive-buffers.1")
@pytest.mark.clause("net.device.setting-up-receive-buffers.2")
@pytest.mark.clause("net.device.incoming-packets.1")
@pytest.mark.clause("net.device.incoming-packets.2")
@pytest.mark.clause("net.device.incoming-packets.3")
@pytest.mark.clause("net.device.incoming-packets.4")
@given(
    sizes=st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=4), min_size=1, max_size=10),
    payload=st.integers(0, 1500),
    hashes=st.booleans(),
    merge=st.booleans(),
)
def test_a_packet_fills_buffers_to_their_end(sizes: list[list[int]], payload: int, hashes: bool, merge: bool) -> None:
    features = (mask(_F.CTRL_VQ, _F.HASH_REPORT) if hashes else 0) | (bit(_F.MRG_RXBUF) if merge else 0)
    wire = Wire()
    driver, _, transport = plain(features, wire)
    header = header_size(driver.features)
    sizes = [group for group in sizes if sum(group) >= header][:4]
    queue, arena = driver.queues[0], transport.arena
    buffers = [[arena.allocate(size) for size in group] for group in sizes]
    for group in buffers:
        for buffer in group:
            buffer.view[:] = b"\xee" * len(buffer.view)
        queue.add((), [buffer.extent for buffer in group], group)
    driver.kick(queue)
    settle(transport)
    frame = frame_of(bytes(n & 255 for n in range(payload)))
    wire.deliver(Packet(frame))
    used = queue.take_used()
    room = [sum(group) for group in sizes]
    if header + len(frame) > (sum(room) if merge else (room or [0])[0]):
        assert not used
        return
    contents = [b"".join(bytes(b.view) for b in group) for group, _ in used]
    lengths = [length for _, length in used]
    assert [len(content) for content in contents[:-1]] == lengths[:-1]
    assert contents[-1][lengths[-1] :] == b"\xee" * (len(contents[-1]) - lengths[-1])
    data = b"".join(content[:length] for content, length in zip(contents, lengths, strict=True))
    assert data[header:] == frame
    fields = virtio_net_hdr.decode(data[:header].ljust(32, b"\0"))
    assert fields.num_buffers == len(used) == (len(used) if merge else 1)
    assert transport.used_notifications == 1


@pytest.mark.clause("net.device.config-layout.5")
@pytest.mark.clause("net.device.config-layout.6")
@pytest.mark.parametrize("vlan", [None, 7])
def test_the_mtu_counts_for_frames_and_not_for_what_is_still_to_be_segmented(vlan: int | None) -> None:
    wire = Wire(offloads=0)
    driver, device, _ = pair(wire, mtu=1000, queue_size=64)
    driver.command(c.RX_PROMISC, b"\1")
    for size, passes in ((960, True), (961, False)):
        wire.deliver(Packet(frame_of(bytes(size), vlan=vlan)))
        assert len(driver.receive_all()) == passes
    wire.deliver(partial_packet(bytes(3000), Gso.TCPV4, 4, 900, vlan))
    assert len(driver.receive_all()) == 1
    driver.send(frame_of(bytes(960), vlan=vlan))
    with pytest.raises(UsageError):
        driver.send(frame_of(bytes(961), vlan=vlan))
    driver.flush()
    assert wire.frames == [frame_of(bytes(960), vlan=vlan)]
    assert device.counts(0)["rx_drops"] == 1


@pytest.mark.clause("net.device.incoming-packets.5")
@pytest.mark.clause("net.device.incoming-packets.17")
@pytest.mark.clause("net.device.incoming-packets.18")
@pytest.mark.clause("net.device.incoming-packets.19")
@pytest.mark.clause("net.device.incoming-packets.27")
@pytest.mark.clause("net.device.incoming-packets.28")
@pytest.mark.clause("net.device.incoming-packets.30")
@pytest.mark.clause("net.device.incoming-packets.31")
@pytest.mark.clause("net-ipsec.device.incoming-packets.16")
@pytest.mark.clause("net-ipsec.device.incoming-packets.39")
@pytest.mark.clause("net-ipsec.device.incoming-packets.42")
@given(features=st.integers(0, ALL_FEATURES), flags=st.integers(0, 255), gso=st.booleans())
def test_a_received_header_says_what_the_driver_can_take(features: int, flags: int, gso: bool) -> None:
    features &= ALL_FEATURES & ~mask(_F.CTRL_VLAN, _F.CTRL_RX)
    wire = Wire()
    driver, _, _ = pair(wire, features & ~bit(_F.RSC_EXT), queue_size=64)
    packet = partial_packet(bytes(1000), Gso.TCPV4, 4, 500) if gso else partial_packet(bytes(900), Gso.NONE, 4)
    # As a port would have it from a peer whose flags mean anything; DATA_VALID is passed on where it is vouched for.
    wire.deliver(packet)
    while driver.receive(timeout=0) is not None:
        header = driver.last_header
        assert driver.has(_F.GUEST_CSUM) or header.flags == 0
        assert not header.flags & (HdrFlag.RSC_INFO | HdrFlag.SECURITY | HdrFlag.SECURITY_ERR)
        assert header.outer_nh_offset == (14 if driver.has(_F.OUT_NET_HEADER) else 0)
        if header.gso_type:
            assert header.flags == HdrFlag.NEEDS_CSUM
            assert (header.gso_size, header.hdr_len, header.csum_start, header.csum_offset) == (500, 54, 34, 16)
        elif header.flags:
            assert (header.csum_start, header.csum_offset) == (34, 16)


@pytest.mark.clause("net.device.incoming-packets.29")
def test_rsc_info() -> None:
    wire = Wire()
    features = mask(_F.RSC_EXT, _F.HOST_TSO4, _F.CSUM, _F.GUEST_CSUM, _F.GUEST_TSO4)
    driver, _, transport = plain(features, wire)
    assert driver.features & bit(_F.RSC_EXT)
    buffer = transport.arena.allocate(4000)
    driver.queues[0].add((), [buffer.extent])
    driver.kick(driver.queues[0])
    settle(transport)
    wire.deliver(partial_packet(bytes(2500), Gso.TCPV4, 4, 1000))
    [(_, length)] = driver.queues[0].take_used()
    header = virtio_net_hdr.decode(bytes(buffer.view[:length]))
    assert header.flags == HdrFlag.RSC_INFO | HdrFlag.NEEDS_CSUM
    assert (header.csum_start, header.csum_offset) == (3, 0)


def test_a_front_end_that_keeps_the_control_queue_to_itself() -> None:
    """As QEMU does: what needs CTRL_VQ comes without it, and pairs of queues are used as they are enabled."""
    wire = Wire()
    device = NetDevice(wire, pairs=3)
    transport = InProcess(device)
    transport.accept_features(mask(_F.MQ, _F.GUEST_ANNOUNCE) | V1)
    transport.write_status(11)
    assert transport.read_status() == 11
    queues = [DriverQueue(n, 16, transport.arena, V1) for n in range(4)]
    for queue in queues:
        if not queue.index & 1:
            for _ in range(16):
                queue.add((), [transport.arena.allocate(200).extent])
        transport.enable_queue(queue)
    transport.write_status(15)
    for n in range(16):
        assert wire.deliver(Packet(ethernet(ip(17, udp(b"", ports=(n, 9))))))
    arrived = [len(queues[n].take_used()) for n in (0, 2)]
    assert sum(arrived) == 16
    assert min(arrived) > 2


# Filters


@pytest.mark.clause("net.device.packet-receive-filtering.1")
@pytest.mark.clause("net.device.packet-receive-filtering.2")
@pytest.mark.clause("net.device.packet-receive-filtering.3")
@pytest.mark.clause("net.device.packet-receive-filtering.4")
@pytest.mark.clause("net.device.packet-receive-filtering.5")
@pytest.mark.clause("net.device.packet-receive-filtering.6")
@pytest.mark.clause("net.device.packet-receive-filtering.7")
@pytest.mark.clause("net.device.packet-receive-filtering.8")
@pytest.mark.clause("net.device.packet-receive-filtering.9")
@pytest.mark.clause("net.device.packet-receive-filtering.10")
@pytest.mark.clause("net.device.packet-receive-filtering.11")
@pytest.mark.clause("net.device.packet-receive-filtering.12")
@pytest.mark.clause("net.device.packet-receive-filtering.13")
@pytest.mark.clause("net.device.packet-receive-filtering.14")
@pytest.mark.clause("net.device.packet-receive-filtering.15")
@pytest.mark.clause("net.device.packet-receive-filtering.16")
@pytest.mark.clause("net.device.packet-receive-filtering.17")
@pytest.mark.clause("net.device.mac-filtering.4")
@pytest.mark.clause("net.device.vlan-filtering.1")
@pytest.mark.clause("net.device.vlan-filtering.2")
@pytest.mark.clause("net.device.vlan-filtering.3")
@given(
    modes=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=8),
    table=st.sets(st.sampled_from([THEM, GROUP]), max_size=2),
    vlans=st.none() | st.sets(st.integers(0, 4), max_size=3),
    to=st.sampled_from([US, THEM, GROUP, BROADCAST, b"\2" + US[1:]]),
    vlan=st.none() | st.integers(0, 4),
)
def test_the_filters_do_what_the_table_of_modes_says(
    modes: list[tuple[int, bool]], table: set[bytes], vlans: set[int] | None, to: bytes, vlan: int | None
) -> None:
    features = ALL_FEATURES & ~mask(_F.RSC_EXT, *([_F.CTRL_VLAN] if vlans is None else []))
    wire = Wire()
    driver, _, _ = pair(wire, features)
    state = [False] * 6
    for mode, on in modes:
        driver.command((0, mode), bytes([on]))
        state[mode] = on
    driver.set_mac_table(table)
    for number in vlans or ():
        driver.add_vlan(number)
    promisc, allmulti, alluni, nomulti, nouni, nobcast = state
    if to == BROADCAST:
        expected = not nobcast
    elif to[0] & 1:
        expected = not nomulti and (allmulti or to in table)
    else:
        expected = not nouni and (alluni or to == US or to in table)
    expected = promisc or (expected and (vlan is None or vlans is None or vlan in vlans))
    wire.deliver(Packet(frame_of(b"", to=to, vlan=vlan)))
    assert bool(driver.receive_all()) == expected


@pytest.mark.clause("net.device.mac-filtering.1")
@pytest.mark.clause("net.device.mac-filtering.2")
@pytest.mark.clause("net.device.mac-filtering.3")
@pytest.mark.clause("net-rss.device.rss-context.2")
@pytest.mark.clause("net-rss.device.inner-header-hash.3")
@pytest.mark.clause("net-coal.device.notifications-coalescing.9")
@pytest.mark.clause("net.device.automatic-receive-steering.1")
def test_a_reset_forgets_what_the_driver_configured() -> None:
    driver, device, _ = pair(Wire(), pairs=2)
    driver.set_mac(THEM)
    assert driver.refresh().mac == THEM
    driver.set_mac_table([THEM, GROUP])
    assert device.filter.macs == {THEM, GROUP}
    driver.add_vlan(3)
    driver.set_promiscuous(True)
    driver.set_rss_context(1, RssSettings(1, bytes(40)))
    driver.set_tunnel_hashing(1)
    driver.set_coalescing(receive=Coalescing(1, 2))
    driver.set_pairs(2) if not driver.contexts else driver.remove_rss_context(1)
    driver.set_offloads(0)
    driver.reset()
    driver.start()
    assert driver.info.mac == US
    assert (device.filter.macs, device.filter.vlans, device.filter.promisc) == (frozenset(), set(), False)
    assert (device.steering.contexts, device.steering.hashing.tunnels, device.steering.pairs) == ({}, 0, 1)
    assert driver.queue_coalescing(0) == Coalescing()
    assert device.offloads == device.negotiated_offloads != 0


@pytest.mark.clause("net.device.gratuitous-packet-sending.1")
def test_the_announcement_is_cleared_before_its_command_is_used() -> None:
    driver, device, _ = pair(Wire())
    device.announce()
    assert driver.refresh().announce
    request, _ = chain([bytes(c.ANNOUNCE_ACK)], [1])
    serve_command(device, Counts(), request)
    assert not request.used
    assert not driver.refresh().announce


# Commands


@given(data=st.binary(max_size=400), room=st.integers(1, 200), features=st.integers(0, ALL_FEATURES))
def test_any_command_is_answered(data: bytes, room: int, features: int) -> None:
    """A16: an ack in every case, and nothing behind the used length."""
    _, device, transport = plain(features & ALL_FEATURES & ~bit(_F.IPSEC))
    answer = ask(device, data, room)
    assert answer
    assert transport.end.fault is None


@given(
    command=st.sampled_from(sorted(COMMANDS)),
    data=st.binary(max_size=60) | st.integers(0, 60).map(bytes),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_a_command_means_the_same_however_it_is_cut(command: tuple[int, int], data: bytes, cuts: list[int]) -> None:
    whole = bytes(command) + data
    bounds = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    parts = [whole[a:b] for a, b in pairwise(bounds)]
    answers = []
    for pieces, room in (([whole], [100]), (parts, [1] * 100)):
        _, device, _ = plain(ALL_FEATURES & ~bit(_F.RSC_EXT), pairs=2)
        request, written = chain(pieces, room)
        serve_command(device, Counts(), request)
        answers.append(b"".join(written)[: request.used_length])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("command", "data"),
    [
        (c.RX_PROMISC, b"\2"),
        (c.RX_PROMISC, b""),
        (c.MAC_ADDR_SET, GROUP),
        (c.MAC_ADDR_SET, b"12345"),
        (c.MAC_TABLE_SET, struct.pack("<I", 0xFFFFFFFF)),
        (c.MAC_TABLE_SET, struct.pack("<I6sI", 1, GROUP, 0)),
        (c.MAC_TABLE_SET, struct.pack("<II6s", 0, 1, US)),
        (c.MAC_TABLE_SET, struct.pack("<IIB", 0, 0, 0)),
        (c.MAC_TABLE_SET, struct.pack("<I", 0)),
        (c.VLAN_ADD, struct.pack("<H", 4096)),
        (c.VLAN_ADD, b"\1"),
        (c.MQ_VQ_PAIRS_SET, struct.pack("<H", 0)),
        (c.MQ_VQ_PAIRS_SET, struct.pack("<H", 3)),
        (c.GUEST_OFFLOADS_SET, struct.pack("<Q", 1 << 63)),
        (c.GUEST_OFFLOADS_SET, struct.pack("<Q", bit(_F.HOST_TSO4))),
        (c.HASH_TUNNEL_SET, struct.pack("<I", 1 << 9)),
        (c.MQ_HASH_CONFIG, struct.pack("<I8xB", 1 << 9, 0)),
        (c.MQ_HASH_CONFIG, struct.pack("<I8xB", 1, 41) + bytes(41)),
        (c.MQ_HASH_CONFIG, struct.pack("<I8xB", 1, 40) + bytes(39)),
        (c.MQ_RSS_CONFIG, RssSettings(1, bytes(40), (0, 1, 2)).encode()),
        (c.MQ_RSS_CONFIG, RssSettings(1, bytes(40), (2,)).encode()),
        (c.MQ_RSS_CONFIG, RssSettings(1, bytes(40), (0,), 2).encode()),
        (c.MQ_RSS_CONFIG, RssSettings(1, bytes(40), (0x8000,)).encode()),
        (c.MQ_RSS_CONFIG, RssSettings(1, bytes(40), (0,) * 256).encode()),
        (c.MQ_RSS_CONFIG, RssSettings(1, bytes(40), (0,), 0, 0).encode()),
        (c.MQ_RSS_CONFIG, RssSettings(1, bytes(40), (0,), 0, 3).encode()),
        (c.MQ_RSS_CONFIG, RssSettings(1, bytes(40)).encode()[:-1]),
        (c.MQ_RSS_CONFIG, struct.pack("<IH", 1, 0xFFFF)),
        (c.RSS_CTX_MOD, struct.pack("<H6x", 1) + RssSettings(1, bytes(40)).encode()),
        (c.RSS_CTX_ADD, struct.pack("<H6x", 0) + RssSettings(1, bytes(40)).encode()),
        (c.RSS_CTX_ADD, struct.pack("<H6x", 9) + RssSettings(1, bytes(40)).encode()),
        (c.RSS_CTX_DEL, struct.pack("<H", 1)),
        (c.NOTF_COAL_VQ_SET, struct.pack("<HHII", 4, 0, 1, 1)),
        (c.NOTF_COAL_VQ_SET, struct.pack("<HHII", 9, 0, 1, 1)),
        (c.NOTF_COAL_TX_SET, bytes(7)),
        (c.STATS_GET, b""),
        (c.STATS_GET, struct.pack("<H6xQ", 5, 1)),
        (c.STATS_GET, struct.pack("<H6xQ", 0, 1 << 4)),
        (c.STATS_GET, struct.pack("<H6xQ", 0, 1 << 16)),
        (c.STATS_GET, struct.pack("<H6xQ", 4, 1)),
        (c.STATS_GET, struct.pack("<H6xQ", 0, 1) + struct.pack("<H6xQ", 0, 1 << 33)),
        ((4, 3), b""),
        ((10, 0), b""),
    ],
)
@pytest.mark.clause("net-rss.device.inner-header-hash.2")
@pytest.mark.clause("net-coal.device.notifications-coalescing.2")
@pytest.mark.clause("net-coal.device.notifications-coalescing.3")
@pytest.mark.clause("net-coal.device.notifications-coalescing.4")
@pytest.mark.clause("net-stats.device.device-statistics.2")
@pytest.mark.clause("net-stats.device.device-statistics.3")
@pytest.mark.clause("net-stats.device.device-statistics.4")
@pytest.mark.clause("net-stats.device.device-statistics.6")
def test_a_bad_command_changes_nothing(command: tuple[int, int], data: bytes) -> None:
    """A16."""
    driver, device, transport = pair(Wire(), pairs=2)

    def state() -> str:
        return repr((device.filter, device.steering, device.offloads, device.coalescing, device.read_config()))

    before = state()
    with pytest.raises(NetControlError):
        driver.command(command, data, result=300)
    assert state() == before
    assert transport.end.fault is None


@pytest.mark.clause("net-stats.device.device-statistics.5")
def test_statistics_of_features_that_were_not_negotiated() -> None:
    driver, _, _ = pair(Wire(), mask(_F.CTRL_VQ, _F.DEVICE_STATS))
    assert driver.supported_statistics() == mask(StatsType.RX_BASIC, StatsType.TX_BASIC, StatsType.CVQ)
    with pytest.raises(NetControlError):
        driver.command(c.STATS_GET, struct.pack("<H6xQ", 0, bit(StatsType.RX_CSUM)), result=100)


@pytest.mark.clause("net-stats.device.device-statistics.1")
@pytest.mark.clause("net-stats.device.device-statistics.7")
@pytest.mark.clause("net-stats.device.device-statistics.8")
@pytest.mark.clause("net-stats.device.device-statistics.9")
@given(room=st.integers(1, 400))
def test_statistics_end_where_the_room_ends(room: int) -> None:
    _, device, _ = pair(Wire(), speed=1)
    entries = struct.pack("<H6xQ", 0, 0xF) + struct.pack("<H6xQ", 1, 0xF0000) + struct.pack("<H6xQ", 2, 1 << 32)
    answer = ask(device, bytes(c.STATS_GET) + entries, room)
    full = ask(device, bytes(c.STATS_GET) + entries, 1000)
    assert answer == full[:room]
    at, seen = 1, []
    while at < len(full):
        kind, _, index, _, size = struct.unpack_from("<BBHHH", full, at)
        seen.append((kind, index, size))
        at += size
    expected = [(0, 56), (1, 40), (2, 40), (3, 24)], [(16, 56), (17, 24), (18, 56), (19, 24)], [(32, 24)]
    assert seen == [(kind, index, size) for index, group in enumerate(expected) for kind, size in group]
    query = ask(device, bytes(c.STATS_QUERY), 100)
    assert query == b"\0" + struct.pack("<Q", mask(*StatsType))


@pytest.mark.clause("net-stats.device.device-statistics.10")
def test_counters_wrap() -> None:
    driver, device, _ = pair(Wire())
    device.counts(1)["tx_packets"] = (1 << 64) - 1
    driver.send(frame_of(b""))
    driver.flush()
    assert driver.statistics(1, StatsType.TX_BASIC)[StatsType.TX_BASIC]["tx_packets"] == 0


@pytest.mark.clause("net-coal.device.notifications-coalescing.1")
@pytest.mark.clause("net-coal.device.notifications-coalescing.5")
@pytest.mark.clause("net-coal.device.notifications-coalescing.6")
def test_a_queue_that_was_disabled_has_the_parameters_of_all() -> None:
    driver, device, transport = pair(Wire())
    driver.set_coalescing(receive=Coalescing(7, 8))
    for index, expected in ((0, Coalescing(7, 8)), (1, Coalescing())):
        # reserved is anything
        driver.command(c.NOTF_COAL_VQ_SET, struct.pack("<HHII", index, 0xBEEF, 5, 6))
        assert driver.queue_coalescing(index) == Coalescing(5, 6)
        transport.end.stop_queue(index)
        with pytest.raises(NetControlError):
            driver.queue_coalescing(index)
        transport.enable_queue(driver.queues[index])
        assert driver.queue_coalescing(index) == expected
    assert device.role(0) == 0


# Hostile drivers


@pytest.mark.parametrize("parts", [[b""], [b"\0"], [b"\0"] * 12, [bytes(12)], [bytes(12), b"x" * 13], [bytes(5)] * 5])
def test_a_transmission_without_a_whole_frame_is_dropped(parts: list[bytes]) -> None:
    """A9: header shorter than its size, or cut anywhere; only a header; a frame shorter than Ethernet's header."""
    wire = Wire()
    driver, device, transport = plain(0, wire)
    before = device.counts(1)["tx_drop_malformed"]
    parts = [part for part in parts if part] or [b"\0"]
    driver.transact(driver.queues[1], parts, [])
    assert not wire.sent
    assert device.counts(1)["tx_drop_malformed"] == before + 1
    assert transport.end.fault is None


@pytest.mark.parametrize("features", [0, mask(_F.CTRL_VQ, _F.HASH_REPORT), mask(_F.OUT_NET_HEADER)])
def test_a_header_of_any_size_is_cut_off(features: int) -> None:
    """A10: and in single bytes, which is no less a header (A9)."""
    wire = Wire()
    driver, _, _ = plain(features, wire)
    size = header_size(driver.features)
    frame = frame_of(b"")
    driver.transact(driver.queues[1], [bytes(size) + frame], [])
    driver.transact(driver.queues[1], [b"\0"] * 8 + [bytes(size - 8) + frame[:1], frame[1:]], [])
    assert wire.frames == [frame, frame]


@pytest.mark.parametrize("queue", [0, 2])
def test_a_buffer_that_has_no_room_for_an_answer_needs_a_reset(queue: int) -> None:
    """A9: a receive buffer that cannot hold a header, a command without a byte for its ack."""
    driver, _, transport = plain(mask(_F.CTRL_VQ, _F.MRG_RXBUF))
    with pytest.raises(NeedsReset):
        driver.transact(driver.queues[queue], *(([], [11]) if queue == 0 else ([b"\0\0\0"], [])))
    assert isinstance(transport.end.fault, RequestError)
    assert transport.config_notifications == 1
    driver.start()
    assert transport.end.fault is None


def test_a_queue_that_the_features_do_not_have() -> None:
    driver, _, transport = plain(mask(_F.CTRL_VQ), pairs=3)
    with pytest.raises(NeedsReset):
        driver.transact(driver.queues[4], [bytes(60)], [])
    assert transport.end.fault is not None


@given(
    sizes=st.lists(st.integers(12, 100), min_size=1, max_size=12),
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=6),
    ring=st.sampled_from(RINGS),
)
def test_no_receive_buffer_is_lost_or_used_twice(sizes: list[int], lengths: list[int], ring: int) -> None:
    """A11: whether or not a packet fits, every buffer comes back once, or is still there."""
    device = NetDevice(wire := Wire(), offered=ALL_FEATURES)
    transport = InProcess(device, memory_size=1 << 20, ring_features=ring)
    driver = Plain(transport, features=bit(_F.MRG_RXBUF) | ring, queue_size=16).start()
    queue = driver.queues[0]
    for n, size in enumerate(sizes):
        queue.add((), [transport.arena.allocate(size).extent], n)
    driver.kick(queue)
    settle(transport)
    for length in lengths:
        wire.deliver(Packet(frame_of(bytes(length))))
    used = [token for token, _ in queue.take_used()]
    assert used == list(range(len(used)))
    assert queue.outstanding == len(sizes) - len(used) == len(device.reception._rooms.get(0, ()))
    driver.reset()
    assert not device.reception._rooms


@given(
    fields=st.dictionaries(st.sampled_from(sorted(virtio_net_hdr.fields)), st.integers(0, 255) | st.integers(0, 65535))
)
@pytest.mark.clause("net.device.packet-transmission.1")
@pytest.mark.clause("net.device.packet-transmission.2")
@pytest.mark.clause("net.device.packet-transmission.6")
@pytest.mark.clause("net.device.packet-transmission.7")
@pytest.mark.clause("net-ipsec.device.packet-transmission.4")
@pytest.mark.clause("net-ipsec.device.packet-transmission.15")
def test_any_header_is_sent_or_dropped(fields: dict[str, int]) -> None:
    """A15."""
    fields = {name: value & 255 if name in ("flags", "gso_type") else value for name, value in fields.items()}
    wire = Wire()
    driver, device, transport = plain(mask(_F.CSUM, _F.HOST_TSO4, _F.OUT_NET_HEADER), wire)
    frame = partial_packet(bytes(600), Gso.TCPV4, 4, 100).frame
    driver.transact(driver.queues[1], [virtio_net_hdr.encode(**fields) + frame], [])
    assert wire.sent or device.counts(1)["tx_drop_malformed"]
    assert transport.end.fault is None
    flags = fields.get("flags", 0)
    if not flags & (HdrFlag.NEEDS_CSUM | HdrFlag.UDP_TUNNEL_CSUM) and not fields.get("gso_type", 0):
        # Nothing else in the header has a meaning then.
        assert wire.sent == [Packet(frame)]


@pytest.mark.clause("net-tunnel.device.packet-transmission.8")
@pytest.mark.clause("net-tunnel.device.packet-transmission.10")
@pytest.mark.clause("net-tunnel.device.packet-transmission.11")
@pytest.mark.clause("net-tunnel.device.packet-transmission.12")
@pytest.mark.clause("net-tunnel.device.packet-transmission.13")
@pytest.mark.parametrize(
    ("flags", "gso_type"),
    [(1, 0x61), (0, 0x21), (3, 0x21), (1, 0x20), (9, 1), (8, 0)],
)
def test_tunnels_that_must_not_be_accepted(flags: int, gso_type: int) -> None:
    wire = Wire()
    driver, device, _ = plain(
        mask(_F.CSUM, _F.HOST_TSO4, _F.HOST_TSO6, _F.HOST_USO, _F.HOST_UDP_TUNNEL_GSO, _F.HOST_UDP_TUNNEL_GSO_CSUM),
        wire,
    )
    header = virtio_net_hdr.encode(flags=flags, gso_type=gso_type, gso_size=100, csum_start=34, csum_offset=16)
    driver.transact(driver.queues[1], [header[: header_size(driver.features)] + frame_of(bytes(300))], [])
    assert not wire.sent
    assert device.counts(1)["tx_drop_malformed"] == 1


def test_giants() -> None:
    """A19: what is too large is not even read; a receive buffer of any size is as good as another."""
    wire = Wire()
    driver, _, transport = plain(mask(_F.CTRL_VQ), wire)
    page = transport.arena.allocate(1 << 16)
    extents = [page.extent] * 15
    driver.queues[1].add(extents, ())
    driver.kick(driver.queues[1])
    assert driver.wait_used(driver.queues[1]) == [(None, 0)]
    assert not wire.sent
    ack = transport.arena.allocate(1)
    driver.queues[2].add(extents[: MAX_DATA // (1 << 16) + 1], [ack.extent])
    driver.kick(driver.queues[2])
    assert driver.wait_used(driver.queues[2]) == [(None, 1)]
    assert ack.view[0] == 1
    driver.queues[0].add((), extents)
    driver.kick(driver.queues[0])
    settle(transport)
    wire.deliver(Packet(frame_of(b"")))
    assert driver.queues[0].take_used() == [(None, 12 + len(frame_of(b"")))]


def test_a_driver_that_never_stops_sending_leaves_room_for_others() -> None:
    """A20: one call serves a bounded number of buffers, although each one makes the next available."""
    wire = Wire()
    driver, _, transport = plain(0, wire)
    queue, frame = driver.queues[1], bytes(12) + frame_of(b"")
    buffer = transport.arena.allocate(len(frame))
    buffer.view[:] = frame

    def more(_: Packet) -> None:
        queue.take_used()
        if queue.free_slots:
            queue.add([buffer.extent], ())

    wire.hook = more
    queue.add([buffer.extent], ())
    assert transport.end.available_buffer(1)
    assert 0 < len(wire.sent) < 1000


def test_frames_that_wait_come_in_order_when_there_is_room() -> None:
    """A20, the other way: a port that never stops is held off by a driver without buffers, and nothing is lost."""
    wire = Wire()
    driver, _, transport = pair(wire, queue_size=4, driver_class=SmallBuffers)
    sent = [frame_of(bytes([n]) * 50) for n in range(10)]
    received: list[bytes] = []
    for frame in sent:
        while wire.blocked:
            received += [p.frame for p in driver.receive_all()]
            settle(transport)
        wire.deliver(Packet(frame))
    while len(received) < len(sent):
        received += [p.frame for p in driver.receive_all()]
        settle(transport)
    assert received == sent


def test_a_driver_that_is_gone_takes_nothing_with_it() -> None:
    wire = Wire()
    driver, device, transport = pair(wire, queue_size=4)
    taken = [wire.deliver(Packet(frame_of(bytes([n])))) for n in range(6)]
    assert taken == [True] * 4 + [False] * 2
    driver.reset()
    assert wire.deliver(Packet(frame_of(b"nobody is there")))
    driver.start()
    assert driver.receive_all() == []
    assert transport.read_status() & DeviceStatus.DRIVER_OK
    assert device.role(99) is None


def test_a_queue_that_is_reset_gives_its_buffers_back() -> None:
    wire = Wire()
    ring = V1 | bit(Feature.RING_RESET)
    driver, device, _ = pair(wire, ring=ring)
    assert wire.deliver(Packet(frame_of(b"1")))
    assert len(driver.receive_all()) == 1
    assert device.reception._rooms[0]
    driver.transport.reset_queue(0)
    assert 0 not in device.reception._rooms
    assert wire.deliver(Packet(frame_of(b"2")))
