"""Network driver against network device, in one process: any sequence of frames against two plain lists."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.net_frames import BROADCAST, THEM, US, Wire, checksums_hold, frame_of, partial_packet
from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.commands import NetControlError, RssSettings
from virtio_py.devices.net.control_layout import StatsType
from virtio_py.devices.net.counters import Coalescing
from virtio_py.devices.net.device import ALL_FEATURES, NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.header import Packet, header_size
from virtio_py.devices.net.layout import ALL_OFFLOADS, Duplex, Gso, NetFeature
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.devices.net.segmentation import fit
from virtio_py.errors import UsageError
from virtio_py.rings.engine import engine_named
from virtio_py.spec import Feature, bit, mask
from virtio_py.transports.in_process import InProcess

_F = NetFeature
RING = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
PACKED = RING | bit(Feature.RING_PACKED)
RINGS = (bit(Feature.VERSION_1), RING, PACKED, PACKED | bit(Feature.IN_ORDER), RING | bit(Feature.IN_ORDER))
every_engine = pytest.mark.parametrize("engine", ["reference", "compiled"])
WIDE = mask(_F.HOST_UDP_TUNNEL_GSO, _F.GUEST_UDP_TUNNEL_GSO, _F.OUT_NET_HEADER, _F.HASH_REPORT, _F.MRG_RXBUF)


class SmallBuffers(NetDriver):
    """A driver whose buffers merge often, and take little of the arena."""

    merged_size = 200
    receive_bytes = 1 << 18


def pair(
    port: Any = None,
    features: int | None = None,
    ring: int = RING,
    queue_size: int = 16,
    driver_class: type[NetDriver] = SmallBuffers,
    engine: str = "reference",
    **options: Any,
) -> tuple[NetDriver, NetDevice, InProcess]:
    options.setdefault("offered", ALL_FEATURES & ~bit(_F.RSC_EXT))
    device = NetDevice(port or Wire(), **options)
    wanted = device.offered_features() if features is None else features
    runs = engine_named(engine)
    transport = InProcess(device, engine=runs, memory_size=2 << 20, ring_features=ring)
    driver = driver_class(transport, engine=runs, features=wanted | ring, queue_size=queue_size)
    return driver.start(), device, transport


def settle(transport: InProcess) -> None:
    while transport.step():
        pass


frames = st.integers(0, 3000).map(lambda n: frame_of(bytes(i * 7 & 255 for i in range(n))))
steps = st.one_of(st.tuples(st.just("send"), frames), st.tuples(st.just("arrive"), frames), st.tuples(st.just("read")))


@every_engine
@settings(deadline=None)
@given(todo=st.lists(steps, max_size=30), ring=st.sampled_from(RINGS), features=st.integers(0, ALL_FEATURES))
def test_any_sequence_of_frames_goes_both_ways(
    engine: str, todo: list[tuple[Any, ...]], ring: int, features: int
) -> None:
    # The filters have tests of their own, and 64 KiB buffers do not fit many times.
    features &= ALL_FEATURES & ~mask(_F.CTRL_VLAN, _F.RSC_EXT)
    wire = Wire()
    driver, device, transport = pair(wire, features, ring, engine=engine)
    sent: list[bytes] = []
    arrived: list[bytes] = []
    read: list[bytes] = []
    longest = 1 << 20 if driver.has(_F.MRG_RXBUF) else driver._buffer_size() - header_size(driver.features)
    for step in todo:
        if step[0] == "send":
            driver.send(step[1])
            sent.append(step[1])
        elif step[0] == "arrive":
            settle(transport)
            # A frame that no buffer holds is lost; one that has to wait is not.
            if not wire.blocked:
                before = device.counts(0)["rx_drops"]
                wire.deliver(Packet(step[1]))
                if device.counts(0)["rx_drops"] == before:
                    arrived.append(step[1])
                else:
                    assert len(step[1]) > min(longest, 16 * 200 - 32)
        else:
            read += [p.frame for p in driver.receive_all()]
    for _ in range(3):
        read += [p.frame for p in driver.receive_all()]
        settle(transport)
    driver.flush()
    assert wire.frames == sent
    assert read == arrived
    assert transport.end.fault is None


@settings(deadline=None)
@given(
    payload=st.binary(min_size=1, max_size=4000),
    kind=st.sampled_from([(Gso.TCPV4, 4), (Gso.TCPV6, 6), (Gso.UDP_L4, 4), (Gso.UDP_L4, 6), (Gso.NONE, 4)]),
    size=st.integers(8, 1460),
    features=st.integers(0, ALL_FEATURES),
    offloads=st.integers(0, ALL_OFFLOADS).map(lambda o: o & ALL_OFFLOADS),
    mrg=st.booleans(),
)
def test_offloads_are_done_by_whoever_is_able_to(
    payload: bytes, kind: tuple[Gso, int], size: int, features: int, offloads: int, mrg: bool
) -> None:
    """The wire has the same bytes whoever does the work, and so does the driver that gets them back."""
    gso, version = kind
    packet = partial_packet(payload, gso, version, size if gso else 0)
    expected = [p.frame for p in fit(packet, 0)]
    assert all(checksums_hold(frame) for frame in expected)
    wire = Wire(offloads)
    features &= ~mask(_F.CTRL_VLAN, _F.RSC_EXT, _F.MTU) & ALL_FEATURES
    features = features | bit(_F.MRG_RXBUF) if mrg else features
    driver, _, transport = pair(wire, features, queue_size=64)
    driver.send(packet)
    driver.flush()
    assert [p.frame for left in wire.sent for p in fit(left, 0)] == expected
    for left in list(wire.sent):
        wire.deliver(left)
    got = driver.receive_all()
    assert [p.frame for p in got for p in fit(p, 0)] == expected
    allowed = driver.features
    for p in got:
        assert not p.needs_csum or allowed & bit(_F.GUEST_CSUM)
        assert p.gso == Gso.NONE or p.hdr_len == packet.hdr_len
    assert transport.end.fault is None


def test_loopback() -> None:
    driver, _, _ = pair(LoopbackPort(), queue_size=8)
    for n in range(100):
        driver.send(frame_of(bytes([n]) * n))
        packet = driver.receive()
        assert packet is not None
        assert packet.frame == frame_of(bytes([n]) * n)
    assert driver.receive(timeout=0) is None


@pytest.mark.clause("net.device.automatic-receive-steering.1")
@pytest.mark.clause("net.device.automatic-receive-steering.2")
@pytest.mark.clause("net.device.automatic-receive-steering-prose.2")
@pytest.mark.clause("net.driver.automatic-receive-steering.2")
@pytest.mark.clause("net.driver.automatic-receive-steering.3")
@pytest.mark.clause("net.driver.automatic-receive-steering.4")
def test_automatic_steering() -> None:
    wire = Wire()
    driver, device, _ = pair(wire, pairs=4)
    assert [q.name for q in device.queues()][-1] == "controlq"
    with pytest.raises(UsageError):
        driver.send(frame_of(b""), 1)
    for n in range(10):
        wire.deliver(Packet(frame_of(bytes([n]))))
    assert len(driver.receive_all(0)) == 10
    with pytest.raises(UsageError):
        driver.set_pairs(5)
    with pytest.raises(UsageError):
        driver.set_pairs(0)
    driver.set_pairs(3)
    driver.receive_all(0)
    # Out by transmitq3: the answers come in by receiveq3.
    out = frame_of(b"x", to=THEM)
    driver.send(out, 2)
    driver.flush(2)
    answer = US + THEM + out[12:26] + out[30:34] + out[26:30] + out[36:38] + out[34:36] + out[38:]
    wire.deliver(Packet(answer))
    assert [len(driver.receive_all(n)) for n in range(4)] == [0, 0, 1, 0]
    driver.set_pairs(2)
    for _ in range(3):
        wire.deliver(Packet(answer))
    assert sum(len(driver.receive_all(n)) for n in (0, 1)) == 3
    assert not driver.receive_all(2)


def test_rss_and_hash_reports() -> None:
    wire = Wire()
    driver, _, _ = pair(wire, pairs=4)
    key = bytes(range(40))
    driver.set_rss(RssSettings(0x1FF, key, (3, 1, 2, 0), 2, 4))
    wire.deliver(Packet(frame_of(b"hello")))
    [number] = [n for n in range(4) if driver.receive(n, timeout=0)]
    header = driver.last_header
    assert header.hash_report == 2
    assert (3, 1, 2, 0)[header.hash_value & 3] == number
    wire.deliver(Packet(BROADCAST + THEM + b"\x08\x06" + bytes(46)))
    assert driver.receive(2, timeout=0) is not None
    assert driver.last_header.hash_report == 0
    for bad in (
        RssSettings(1 << 20, key),
        RssSettings(1, bytes(41)),
        RssSettings(1, key, (0, 1, 2)),
        RssSettings(1, key, (4,)),
    ):
        with pytest.raises(UsageError):
            driver.set_rss(bad)
        with pytest.raises(NetControlError):
            driver.command(c.MQ_RSS_CONFIG, bad.encode())


def test_statistics_coalescing_contexts_and_offloads() -> None:
    wire = Wire()
    driver, _, _ = pair(wire, pairs=2, speed=1000, queue_size=64)
    driver.send(partial_packet(bytes(3000), Gso.TCPV4, 4, 1000))
    driver.flush()
    found = driver.statistics(1, StatsType.TX_BASIC, StatsType.TX_GSO, StatsType.TX_CSUM)
    assert found[StatsType.TX_BASIC]["tx_packets"] == 3
    assert found[StatsType.TX_GSO]["tx_gso_segments"] == 3
    assert found[StatsType.TX_CSUM]["tx_needs_csum"] == 1
    assert driver.statistics(4, StatsType.CVQ)[StatsType.CVQ]["ok_num"] == 4
    assert driver.queue_coalescing(0) == Coalescing()
    driver.set_coalescing(receive=Coalescing(15, 10))
    driver.set_queue_coalescing(1, Coalescing(3, 4))
    assert [driver.queue_coalescing(n) for n in range(3)] == [Coalescing(15, 10), Coalescing(3, 4), Coalescing(15, 10)]
    driver.set_coalescing(transmit=Coalescing(1, 1))
    assert driver.queue_coalescing(1) == Coalescing(1, 1)
    assert driver.max_rss_contexts() == 8
    driver.set_rss_context(1, RssSettings(1, bytes(40)))
    driver.set_rss_context(1, RssSettings(2, bytes(40)))
    driver.remove_rss_context(1)
    driver.set_tunnel_hashing(1 << 4)
    packet = partial_packet(bytes(3000), Gso.TCPV4, 4, 1000)
    wire.deliver(packet)
    assert len(driver.receive_all()) == 1
    driver.set_offloads(0)
    wire.deliver(packet)
    assert [checksums_hold(p.frame) for p in driver.receive_all()] == [True] * 3


def test_filters_link_and_announcement() -> None:
    wire = Wire()
    driver, device, _ = pair(wire, mtu=1500, speed=10, duplex=Duplex.HALF)

    def passes(frame: bytes) -> bool:
        wire.deliver(Packet(frame))
        return bool(driver.receive_all())

    tagged, group, foreign = frame_of(b"", vlan=5), frame_of(b"", to=b"\1\0\0\0\0\1"), frame_of(b"", to=THEM)
    assert passes(frame_of(b""))
    assert passes(frame_of(b"", to=BROADCAST))
    assert not any(map(passes, (tagged, group, foreign)))
    driver.add_vlan(5)
    driver.set_mac_table([THEM, group[:6]])
    assert all(map(passes, (tagged, group, foreign)))
    driver.set_no_multicast(True)
    driver.set_all_multicast(True)
    assert not passes(group)
    driver.set_promiscuous(True)
    assert passes(group)
    driver.set_mac(b"\2" * 6)
    assert driver.refresh().mac == b"\2" * 6
    device.announce()
    assert driver.poll_configuration()
    assert wire.frames[-1][6:12] == b"\2" * 6
    assert not driver.info.announce
    device.set_link(False)
    assert driver.poll_configuration()
    assert not driver.info.link_up
    assert (driver.info.speed, driver.info.duplex, driver.info.mtu) == (10, Duplex.HALF, 1500)
    driver.reset()
    driver.start()
    assert driver.info.mac == US
