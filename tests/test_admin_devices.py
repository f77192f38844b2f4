"""What drivers have made of their devices comes along when these are put together elsewhere (2.13), type by type."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.net_frames import THEM, Wire
from tests.scsi_tools import disk
from tests.test_admin_parts import PACKED, RINGS, SPLIT, Seat
from tests.test_net_pair import SmallBuffers
from virtio_py.admin.parts_layout import Part
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.layout import ConsoleEvent
from virtio_py.devices.console.parts import MESSAGE_PART, PORT_PART
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.commands import RssSettings
from virtio_py.devices.net.counters import Coalescing
from virtio_py.devices.net.device import ALL_FEATURES, NetDevice
from virtio_py.devices.net.layout import NetFeature
from virtio_py.devices.net.parts import CVQ_CFG_PART, LISTED, virtio_net_dev_part_cvq_selector
from virtio_py.devices.scsi.device import SIZES_PART, SUBSCRIPTION_PART, ScsiDevice
from virtio_py.devices.scsi.driver import ScsiDriver
from virtio_py.devices.scsi.layout import Address
from virtio_py.spec import DeviceStatus, bit

# Network


def cards(**options: Any) -> Seat:
    offered = ALL_FEATURES & ~bit(NetFeature.RSC_EXT)
    return Seat([NetDevice(Wire(), offered=offered, pairs=3, **options) for _ in range(2)], SmallBuffers, PACKED)


def configuration(device: NetDevice) -> Any:
    steering = device.steering
    rss = steering.rss
    return (
        device.filter,
        steering.pairs,
        rss and (rss.table, rss.unclassified, rss.hashing),
        steering.hashing,
        device.offloads,
        device.read_config()[:6],
    )


def configure(driver: SmallBuffers) -> None:
    driver.set_promiscuous(True)
    driver.set_promiscuous(False)
    driver.set_all_multicast(True)
    driver.set_no_broadcast(True)
    driver.set_mac_table([THEM, b"\x01\x00\x5e\x00\x00\x01"])
    driver.set_mac(b"\x02\0\0\0\0\7")
    for vlan in (5, 7, 4095):
        driver.add_vlan(vlan)
    driver.remove_vlan(7)
    driver.set_pairs(2)
    driver.set_offloads(0)
    driver.set_tunnel_hashing(1)
    driver.set_coalescing(transmit=Coalescing(3, 4), receive=Coalescing(5, 6))


@pytest.mark.parametrize("rss", [False, True])
def test_what_control_commands_configured_comes_along(rss: bool) -> None:
    seat = cards()
    configure(seat.driver)
    if rss:
        seat.driver.set_rss(RssSettings(1 << 1, bytes(range(40)), (0, 2, 1, 0), 1, 3))
    before = configuration(seat.ends[0].device)
    parts = seat.migrate()
    assert configuration(seat.ends[1].device) == before
    assert configuration(seat.ends[0].device) != before
    assert (seat.ends[1].device.steering.rss is not None) is rss
    # And on, from what was put together.
    assert seat.migrate() == parts
    assert configuration(seat.ends[0].device) == before
    seat.driver.set_pairs(1)
    seat.migrate()
    assert seat.ends[1].device.steering.rss is None


def test_parts_of_a_network_card_are_commands() -> None:
    seat = cards()
    configure(seat.driver)
    found = {
        virtio_net_dev_part_cvq_selector.decode(part.selector)[:2]: part.value
        for part in seat.migrate()
        if part.type == CVQ_CFG_PART
    }
    assert found[c.RX_PROMISC] == b"\0"
    assert found[c.RX_ALLMULTI] == b"\1"
    assert found[c.VLAN_ADD] == bytes([5, 0, 255, 15])
    assert found[c.MQ_VQ_PAIRS_SET] == b"\2\0"
    assert found[c.MAC_ADDR_SET] == b"\x02\0\0\0\0\7"
    assert set(found) - LISTED == {c.GUEST_OFFLOADS_SET, c.HASH_TUNNEL_SET, c.NOTF_COAL_RX_SET, c.NOTF_COAL_TX_SET}


def test_a_configuration_that_does_not_go_with_the_features_needs_a_reset() -> None:
    seat = cards()
    source, target = seat.members
    source.stop()
    parts = source.capture()
    target.stop()
    selector = virtio_net_dev_part_cvq_selector.encode(class_=4, command=0)
    target.restore([*parts, Part(CVQ_CFG_PART, selector, b"\x63\0")])
    target.resume()
    assert seat.ends[1].read_status() & DeviceStatus.DEVICE_NEEDS_RESET
    assert "99 pairs" in str(seat.ends[1].fault)


@pytest.mark.parametrize(
    ("selector", "value"),
    [(b"\x08" + bytes(7), b""), (b"\4\0\1" + bytes(5), b"\2\0"), (b"\4\0" + bytes(6), bytes(1 << 18))],
)
def test_other_parts_are_not_a_network_cards(selector: bytes, value: bytes) -> None:
    assert not NetDevice(Wire()).takes_part(CVQ_CFG_PART, selector, value)


# SCSI


def test_a_scsi_hosts_sizes_and_subscriptions_come_along() -> None:
    unit = disk()
    hosts = [ScsiDevice() for _ in range(2)]
    for host in hosts:
        host.attach(0, 3, unit)
    seat = Seat(hosts, ScsiDriver, SPLIT)
    seat.driver.set_sizes(cdb_size=40, sense_size=64)
    seat.driver.subscribe(0, 3, 4)
    seat.driver.write(0, 3, 5, b"\x55" * 512)
    before = hosts[0].read_config(), dict(hosts[0].subscriptions)
    parts = seat.migrate()
    assert (hosts[1].read_config(), hosts[1].subscriptions) == before
    assert {part.type for part in parts} >= {SIZES_PART[0], SUBSCRIPTION_PART}
    assert seat.driver.read(0, 3, 5, 1) == b"\x55" * 512
    assert not hosts[1].takes_part(SUBSCRIPTION_PART, b"\1\0\0\5" + bytes(4), bytes(4))
    assert not hosts[1].takes_part(SIZES_PART[0], bytes(8), bytes(4))
    assert Address(0, 3) in hosts[1].units


# Console


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("multiport", [False, True])
def test_a_conversation_goes_on_at_another_console(multiport: bool, ring: int) -> None:
    ends = [[MemoryEndpoint(), MemoryEndpoint()] for _ in range(2)]
    ports = [[ConsolePort(end, name=f"p{n}") for n, end in enumerate(pair)] for pair in ends]
    most = 3 if multiport else 0
    consoles = [ConsoleDevice(some[: 2 if multiport else 1], max_ports=most) for some in ports]
    seat = Seat(consoles, ConsoleDriver, ring)
    which = 1 if multiport else 0
    stream = seat.driver.port(which)
    stream.open()
    settle(seat)
    for n in range(6):
        here = ends[seat.here][which]
        text = bytes([65 + n]) * 10
        here.feed(text)
        settle(seat)
        assert stream.read_exactly(10) == text
        stream.write(text)
        settle(seat)
        assert here.take() == text
        seat.migrate()
    assert not seat.ends[seat.here].fault


def settle(seat: Seat) -> None:
    for _ in range(3):
        while seat.carrier.step() or seat.ends[seat.here].device.pump():
            pass
        seat.driver.poll()


def test_a_message_that_waits_comes_along() -> None:
    consoles = [ConsoleDevice([ConsolePort(MemoryEndpoint())], max_ports=4) for _ in range(2)]
    seat = Seat(consoles, ConsoleDriver, SPLIT)
    seat.driver.port(0)
    settle(seat)
    source = consoles[0]
    # More than the driver has room for, and it does not look.
    for number, event in product(range(4), ConsoleEvent):
        source._control.say(number, event)
    waiting = dict(source._control.messages)
    assert waiting
    parts = seat.migrate()
    assert {part.value for part in parts if part.type == MESSAGE_PART} == set(waiting.values())
    now = consoles[1]._control.messages
    assert {name: now[name] for name in waiting} == waiting


def test_parts_of_ports_that_there_are_not() -> None:
    console = ConsoleDevice([ConsolePort(MemoryEndpoint())], max_ports=4)
    assert console.takes_part(PORT_PART, bytes(8), b"\7")
    assert not console.takes_part(PORT_PART, b"\1" + bytes(7), b"\7")
    assert not console.takes_part(PORT_PART, bytes(8), b"\x10")
    assert not console.takes_part(MESSAGE_PART, b"\4\0\0\0\6" + bytes(3), bytes(8))
    assert not console.takes_part(MESSAGE_PART, bytes(8), bytes(7))
