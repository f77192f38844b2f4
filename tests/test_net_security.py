"""Inline IPsec through a whole device: packets that name an association, and packets that a rule sends to one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.net_frames import US, V4, Wire, checksums_hold, ethernet, frame_of, ip, partial_packet, udp
from tests.test_net_esp import SUITES, back, both, parameters, there
from tests.test_net_flow import UDP_PORTS, C, R, udp_key
from tests.test_net_pair import RING, SmallBuffers, pair, settle
from virtio_py.admin.client import AdminClient, AdminFailed, GroupClient
from virtio_py.admin.client_objects import CapabilityClient, ObjectClient, ObjectKind
from virtio_py.admin.layout import GroupType
from virtio_py.admin.owner import Administration
from virtio_py.devices.net.device import ALL_FEATURES, NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.flow_driver import FlowDriver
from virtio_py.devices.net.flow_layout import FlowAction, FlowRule, Selector, SelectorType
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.ipsec import (
    IPSEC_INB_SA,
    IPSEC_OUTB_SA,
    IPSEC_RESOURCE_CAP,
    IPSEC_SA_CAP,
    IpsecDirection,
    IpsecMode,
    IpsecOption,
    encode_modes,
    virtio_crypto_ipsec_resource_cap,
    virtio_crypto_resource_obj_ipsec_sa_256b_key,
)
from virtio_py.devices.net.ipsec_driver import INBOUND, OUTBOUND, IpsecDriver
from virtio_py.devices.net.layout import Gso, HdrFlag, NetFeature
from virtio_py.errors import UsageError
from virtio_py.resources import AdminQualifier, AdminStatus
from virtio_py.spec import Feature, bit, mask
from virtio_py.transports.in_process import InProcess

pytest.importorskip("cryptography")

_F = NetFeature
BOTH = mask(_F.IPSEC, _F.OUT_NET_HEADER)
EVERYTHING = ALL_FEATURES & ~mask(_F.RSC_EXT, _F.CTRL_VLAN, _F.CTRL_RX, _F.MTU)
SECURED = HdrFlag.SECURITY
FAILED = HdrFlag.SECURITY | HdrFlag.SECURITY_ERR
ESP_SELECTORS = [
    Selector(SelectorType.ETH, bytes(12) + b"\xff\xff"),
    Selector(SelectorType.IPV4, bytes(9) + b"\xff" + bytes(10)),
]
ESP_KEY = bytes(12) + b"\x08\0" + bytes(9) + b"\x32" + bytes(10)


def owned(wire: Wire, features: int, **options: Any) -> tuple[NetDriver, NetDevice, InProcess, ObjectClient]:
    """A pair with an administration virtqueue."""
    device = NetDevice(wire, offered=ALL_FEATURES & ~mask(_F.RSC_EXT), **options)
    carrier = InProcess(device, memory_size=2 << 20, ring_features=RING, admin=Administration(device))
    accepted = features & device.offered_features() | RING | bit(Feature.ADMIN_VQ)
    driver = SmallBuffers(carrier, features=accepted, queue_size=64).start()
    group = GroupClient(AdminClient(driver), GroupType.SELF)
    return driver, device, carrier, ObjectClient(group, CapabilityClient(group))


def secured(
    wire: Wire, features: int = EVERYTHING, action: FlowAction | None = FlowAction.IPSEC, **options: Any
) -> tuple[NetDriver, NetDevice, InProcess, IpsecDriver]:
    """A pair with IPsec, and a rule for all ESP if an action is given."""
    driver, device, transport, objects = owned(wire, features, **options)
    if action is not None:
        flows = FlowDriver(objects).start()
        flows.create_group(0, priority=0)
        flows.create_classifier(0, ESP_SELECTORS)
        flows.create_rule(0, FlowRule(0, 0, 1, ESP_KEY, action, 0))
    return driver, device, transport, IpsecDriver(driver, objects).start()


def received(driver: NetDriver) -> list[tuple[bytes, int, int, int]]:
    """(frame, flags of security, resource_id, resource_type) of what has arrived."""
    shown = SECURED | HdrFlag.SECURITY_ERR | HdrFlag.SECURITY_SA_SOFT_EXPIRY_WARN
    return [(p.frame, p.flags & shown, p.resource_id, p.resource_type) for p in driver.receive_all()]


# Sending


@pytest.mark.clause("net-ipsec.driver.packet-transmission.47")
@pytest.mark.clause("net-ipsec.driver.packet-transmission.48")
@pytest.mark.clause("net-ipsec.device.ipsec-operation.9")
@pytest.mark.parametrize("suite", SUITES)
def test_what_names_an_association_leaves_protected(suite: str) -> None:
    wire = Wire()
    driver, _, _, ipsec = secured(wire)
    given = parameters(suite, 4)
    ipsec.create_outbound(3, given)
    frames = [frame_of(b"secret"), frame_of(b"open")]
    driver.send_all([ipsec.secured(frames[0], 3), frames[1]])
    _, receiver = both(given)
    assert wire.frames[1] == frames[1]
    assert back(receiver, wire.frames[0]) == frames[0]
    with pytest.raises(UsageError):
        driver.send(ipsec.secured(frames[0], 4))
    ipsec.destroy_outbound(3)
    with pytest.raises(UsageError):
        driver.send(ipsec.secured(frames[0], 3))
    assert len(wire.frames) == 2


def test_segments_are_protected_one_by_one() -> None:
    """Nobody behind the device could segment what is encrypted, whatever its port can do."""
    wire = Wire((1 << 64) - 1)
    driver, _, _, ipsec = secured(wire)
    given = parameters("gcm", 6)
    ipsec.create_outbound(0, given)
    packet = partial_packet(bytes(range(250)) * 10, Gso.TCPV4, 4, 1000)
    driver.send_all([ipsec.secured(packet, 0)])
    _, receiver = both(given)
    assert wire.sent == [Packet(frame) for frame in wire.frames]
    opened = [back(receiver, frame) for frame in wire.frames]
    assert [len(frame) for frame in opened] == [1054, 1054, 554]
    assert all(checksums_hold(frame) for frame in opened)
    assert b"".join(frame[54:] for frame in opened) == bytes(range(250)) * 10


@pytest.mark.clause("net-ipsec.driver.packet-transmission.5")
@pytest.mark.clause("net-ipsec.device.packet-transmission.3")
def test_the_network_header_is_where_the_driver_says() -> None:
    """Behind two tags a device need not look for it; told where it is, it trusts that."""
    wire = Wire()
    driver, device, _, ipsec = secured(wire)
    given = parameters("gcm")
    ipsec.create_outbound(0, given)
    frame = frame_of(b"x")
    tagged = frame[:12] + bytes.fromhex("88a8000181000002") + frame[12:]
    driver.send_all([ipsec.secured(Packet(tagged, outer_nh_offset=22), 0)])
    [made] = wire.frames
    assert made[:22] == tagged[:22]
    assert back(both(given)[1], made[:12] + made[20:]) == frame
    for lie in (1, 13, 21, 0xFFFF):
        driver.send_all([ipsec.secured(Packet(tagged, outer_nh_offset=lie), 0)])
    # The driver hands on what it is told, and the device takes none of it for a header.
    assert len(wire.frames) == 1
    assert device.counts(1)["tx_drop_malformed"] == 4


def test_what_cannot_be_protected_does_not_leave_in_the_clear() -> None:
    wire = Wire()
    driver, device, _, ipsec = secured(wire)
    ipsec.create_outbound(0, parameters("gcm"))
    driver.send_all([ipsec.secured(frame_of(b"x"), 0)])
    # Destroyed behind the driver's back, and a packet that is no packet of IP's.
    driver.send_all([ipsec.secured(b"\xff" * 12 + b"\x12\x34" + bytes(50), 0)])
    device.resource_types()[IPSEC_OUTB_SA].destroy(0)
    driver.send_all([ipsec.secured(frame_of(b"x"), 0)])
    assert len(wire.frames) == 1
    assert device.counts(1)["tx_drop_malformed"] == 2


@pytest.mark.clause("net-ipsec.driver.ipsec-operation.7")
@pytest.mark.parametrize("mtu", [1000, None])
def test_a_protected_packet_fits_the_path(mtu: int | None) -> None:
    wire = Wire()
    features = EVERYTHING | mask(_F.MTU)
    driver, _, _, ipsec = secured(wire, features, mtu=mtu)
    ipsec.create_outbound(0, parameters("gcm", 6))
    limit = (mtu or 1500) + 14
    sent = 0
    for size in range(limit - 200, limit):
        try:
            driver.send_all([ipsec.secured(frame_of(bytes(size - 54)), 0)])
            sent += 1
        except UsageError:
            continue
    assert 80 < sent < 200
    assert limit - 24 < max(len(frame) for frame in wire.frames) <= limit
    # Segments grow, too.
    with pytest.raises(UsageError):
        driver.send(ipsec.secured(partial_packet(bytes(5000), Gso.TCPV4, 4, limit - 60), 0))


# Receiving


@pytest.mark.clause("net-ipsec.device.incoming-packets.38")
@pytest.mark.clause("net-ipsec.device.incoming-packets.40")
@pytest.mark.clause("net-ipsec.device.incoming-packets.41")
@pytest.mark.parametrize("suite", SUITES)
def test_a_rule_opens_packets(suite: str) -> None:
    wire = Wire()
    driver, _, _, ipsec = secured(wire)
    given = parameters(suite, 4, replay_window=32)
    ipsec.create_inbound(5, given)
    sender, _ = both(given)
    frame = frame_of(b"payload")
    made = there(sender, frame)
    wire.deliver(Packet(made))
    wire.deliver(Packet(frame))
    # Again, changed, and of an association that nobody has.
    wire.deliver(Packet(made))
    changed = made[:-1] + bytes([made[-1] ^ 1])
    wire.deliver(Packet(changed))
    stranger = there(both(parameters(suite, 4, spi=0x2000))[0], frame)
    wire.deliver(Packet(stranger))
    assert received(driver) == [
        (frame, SECURED, 5, IPSEC_INB_SA),
        (frame, 0, 0, 0),
        (made, FAILED, 5, IPSEC_INB_SA),
        (changed, FAILED, 5, IPSEC_INB_SA),
        (stranger, FAILED, 0, 0),
    ]


@pytest.mark.clause("net-ipsec.device.incoming-packets.43")
@pytest.mark.clause("net-ipsec.device.incoming-packets.44")
def test_the_driver_hears_that_an_association_expires() -> None:
    wire = Wire()
    driver, _, _, ipsec = secured(wire)
    options = int(IpsecOption.SA_LIFETIME)
    given = parameters("gcm", options=options, lifetime={"packets_soft_limit": 2, "packets_hard_limit": 3})
    ipsec.create_inbound(5, given)
    sender, _ = both(parameters("gcm"))
    for _ in range(4):
        wire.deliver(Packet(there(sender, frame_of(b"x"))))
    warned = SECURED | HdrFlag.SECURITY_SA_SOFT_EXPIRY_WARN
    flags = [flags for _, flags, _, _ in received(driver)]
    assert flags == [SECURED, warned, warned, warned | HdrFlag.SECURITY_ERR]


@pytest.mark.parametrize("action", [FlowAction.IPSEC, FlowAction.IPSEC_RECIRCULATE])
def test_rules_see_what_was_opened_only_if_it_is_recirculated(action: FlowAction) -> None:
    wire = Wire()
    driver, device, _, ipsec = secured(wire, action=action)
    device.flows.create(C, 1, UDP_PORTS)
    device.flows.create(R, 1, FlowRule(0, 1, 0, udp_key(1, 2), FlowAction.DROP, 0).encode())
    given = parameters("gcm", 4)
    ipsec.create_inbound(5, given)
    sender, _ = both(given)
    dropped = ethernet(ip(17, udp(b"drop me", V4, (1, 2))))
    kept = ethernet(ip(17, udp(b"keep me", V4, (1, 3))))
    # A packet of ESP in a packet of ESP: opened once, and not again.
    twice = there(both(parameters("gcm"))[0], kept)
    for frame in (dropped, kept, twice):
        wire.deliver(Packet(there(sender, frame)))
    expected = [kept, twice] if action == FlowAction.IPSEC_RECIRCULATE else [dropped, kept, twice]
    assert received(driver) == [(frame, SECURED, 5, IPSEC_INB_SA) for frame in expected]


def test_what_was_opened_waits_for_a_buffer() -> None:
    """Its sequence number has been seen: opened a second time, it would be a replay."""
    wire = Wire()
    driver, _, transport, ipsec = secured(wire, action=FlowAction.IPSEC)
    given = parameters("gcm", replay_window=64)
    ipsec.create_inbound(5, given)
    sender, _ = both(given)
    frames = [frame_of(bytes([n]) * 20) for n in range(70)]
    waiting = list(frames)
    got: list[tuple[bytes, int, int, int]] = []
    while waiting or wire.blocked:
        while waiting and not wire.blocked:
            wire.deliver(Packet(there(sender, waiting.pop(0))))
        got += received(driver)
        settle(transport)
    got += received(driver)
    assert got == [(frame, SECURED, 5, IPSEC_INB_SA) for frame in frames]


@pytest.mark.clause("net-ipsec.driver.ipsec-processing-order-prose.1")
def test_a_packet_of_an_association_that_is_gone_arrives() -> None:
    wire = Wire()
    driver, _, _, ipsec = secured(wire)
    given = parameters("gcm")
    ipsec.create_inbound(5, given)
    sender, _ = both(given)
    wire.deliver(Packet(there(sender, frame_of(b"x"))))
    ipsec.destroy_inbound(5)
    late = there(sender, frame_of(b"y"))
    wire.deliver(Packet(late))
    assert received(driver) == [(frame_of(b"x"), SECURED, 5, IPSEC_INB_SA), (late, FAILED, 0, 0)]


@pytest.mark.clause("net-ipsec.device.incoming-packets.15")
@pytest.mark.clause("net-ipsec.driver.incoming-packets.2")
@pytest.mark.clause("net-ipsec.driver.incoming-packets.3")
@pytest.mark.parametrize("told", [False, True])
def test_where_the_network_header_is(told: bool) -> None:
    """The driver has it from the device where that was negotiated, and does not look at the field where it was not."""
    wire = Wire()
    driver, _, _ = pair(wire, mask(_F.OUT_NET_HEADER) if told else mask(_F.IPSEC), queue_size=64)
    for frame in (frame_of(b"x"), frame_of(b"x", vlan=3), US + US + b"\x12\x34" + bytes(50)):
        wire.deliver(Packet(frame))
    assert [packet.outer_nh_offset for packet in driver.receive_all()] == ([14, 18, 0] if told else [0, 0, 0])


# What may be


@pytest.mark.clause("net-ipsec.device.feature-bits-prose.1")
def test_ipsec_goes_with_the_network_header() -> None:
    with pytest.raises(UsageError):
        NetDevice(Wire(), offered=mask(_F.IPSEC))
    assert NetDevice(Wire(), offered=BOTH).offered_features() == BOTH


# Commands

KINDS = [(OUTBOUND, IpsecDirection.OUTBOUND), (INBOUND, IpsecDirection.INBOUND)]
CAPS = (IPSEC_RESOURCE_CAP, IPSEC_SA_CAP)
every_kind = pytest.mark.parametrize(("kind", "direction"), KINDS, ids=["outbound", "inbound"])


def refused(ipsec: IpsecDriver, kind: ObjectKind, ident: int, data: bytes) -> tuple[AdminStatus, AdminQualifier]:
    """How the device refuses an object that its driver does not check."""
    ipsec.objects.live.pop((kind.type, ident), None)
    with pytest.raises(AdminFailed) as failed:
        ipsec.objects.create(kind, ident, data, 1 << 20)
    return failed.value.status, failed.value.qualifier


@pytest.mark.clause("net-ipsec.device.ipsec-operation.1")
@pytest.mark.clause("net-ipsec.driver.ipsec-operation.1", "net-ipsec.driver.ipsec-operation.2")
@pytest.mark.clause("net-ipsec.driver.ipsec-operation.3")
def test_the_driver_learns_what_there_is_and_says_what_it_uses() -> None:
    _, _, _, ipsec = secured(Wire(), max_associations=3)
    assert ipsec.objects.capabilities.ids() >= set(CAPS)
    assert [mode.mode for mode in ipsec.modes] == [IpsecMode.ESP_TUNNEL, IpsecMode.ESP_TRANSPORT]
    chosen = ipsec.objects.capabilities.chosen
    assert chosen[IPSEC_RESOURCE_CAP] == virtio_crypto_ipsec_resource_cap.encode(inb_sa_limit=3, outb_sa_limit=3)
    assert set(chosen) >= set(CAPS)
    without, _, _, objects = owned(Wire(), EVERYTHING & ~mask(_F.IPSEC))
    assert not objects.capabilities.ids() & set(CAPS)
    with pytest.raises(UsageError, match="IPsec"):
        IpsecDriver(without, objects).start()


@pytest.mark.clause("net-ipsec.device.ipsec-operation.2", "net-ipsec.device.ipsec-operation.10")
@every_kind
def test_an_object_is_made_changed_asked_for_and_made_again(kind: ObjectKind, direction: IpsecDirection) -> None:
    _, device, _, ipsec = secured(Wire())
    first, second = (parameters("gcm", spi=spi).encode(2, direction) for spi in (0x1000, 0x2000))
    for _ in range(2):
        ipsec.objects.create(kind, 2, first, 64)
        assert ipsec.objects.query(kind, 2)[: len(first)] == first
        ipsec.objects.modify(kind, 2, second)
        assert ipsec.objects.query(kind, 2)[: len(second)] == second
        ipsec.objects.destroy(kind, 2)
        assert device.associations.outbound(2) is device.associations.inbound(0x2000) is None


def test_a_modified_association_goes_on_counting_under_its_key() -> None:
    wire = Wire()
    driver, _, _, ipsec = secured(wire)
    ipsec.create_outbound(0, parameters("gcm"))
    driver.send_all([ipsec.secured(frame_of(b"x"), 0)] * 2)
    same, other = parameters("gcm", options=int(IpsecOption.SA_LIFETIME)), parameters("gcm 256")
    ipsec.objects.modify(OUTBOUND, 0, same.encode(0, IpsecDirection.OUTBOUND))
    driver.send_all([ipsec.secured(frame_of(b"x"), 0)])
    ipsec.objects.modify(OUTBOUND, 0, other.encode(0, IpsecDirection.OUTBOUND))
    driver.send_all([ipsec.secured(frame_of(b"x"), 0)])
    assert [int.from_bytes(frame[38:42], "big") for frame in wire.frames] == [1, 2, 3, 1]


@pytest.mark.clause("net-ipsec.device.ipsec-operation.3")
@every_kind
@pytest.mark.parametrize("missing", CAPS)
def test_without_a_capability_there_is_no_such_command(
    kind: ObjectKind, direction: IpsecDirection, missing: int
) -> None:
    driver, _, _, objects = owned(Wire(), EVERYTHING)
    ipsec = IpsecDriver(driver, objects)
    for number in set(CAPS) - {missing}:
        objects.capabilities.set(number, objects.capabilities.offered(number), lambda offered, chosen: True)
    with pytest.raises(UsageError, match="was not set"):
        objects.create(kind, 0, b"", 1)
    bare = ObjectKind(kind.type, ())
    answer = (AdminStatus.EINVAL, AdminQualifier.INVALID_OPCODE)
    assert refused(ipsec, bare, 0, parameters("gcm").encode(0, direction)) == answer
    objects.live[kind.type, 0] = frozenset()
    for command in (
        lambda: objects.modify(bare, 0, b""),
        lambda: objects.query(bare, 0),
        lambda: objects.destroy(bare, 0),
    ):
        with pytest.raises(AdminFailed, match="INVALID_OPCODE"):
            command()


@pytest.mark.clause("net-ipsec.device.ipsec-operation.4", "net-ipsec.device.ipsec-operation.5")
@pytest.mark.clause("net-ipsec.device.ipsec-operation.6", "net-ipsec.device.ipsec-operation.7")
@pytest.mark.clause("net-ipsec.device.ipsec-operation.8", "net-ipsec.device.ipsec-operation.11")
@every_kind
def test_objects_that_cannot_be_made(kind: ObjectKind, direction: IpsecDirection) -> None:
    _, device, _, ipsec = secured(Wire(), max_associations=4)
    good = parameters("gcm", spi=0x1000).encode(1, direction)
    ipsec.objects.create(kind, 1, good, 4)
    before = repr(device.associations._objects)
    invalid = (AdminStatus.EINVAL, AdminQualifier.INVALID_FIELD)
    assert refused(ipsec, kind, 1, good)[0] == AdminStatus.EEXIST
    assert refused(ipsec, kind, 4, parameters("gcm", spi=0x2000).encode(4, direction)) == invalid
    other = IpsecDirection.INBOUND if direction == IpsecDirection.OUTBOUND else IpsecDirection.OUTBOUND
    wrong = [
        parameters("gcm", spi=0x2000, mode=IpsecMode.AH_TRANSPORT).encode(2, direction),
        parameters("gcm", spi=0x2000, options=int(IpsecOption.COPY_DF)).encode(2, direction),
        parameters("gcm", spi=0x2000, options=1 << 40).encode(2, direction),
        parameters("gcm", spi=0x2000, cipher=2).encode(2, direction),
        parameters("cbc", spi=0x2000, cipher=7).encode(2, direction),
        parameters("cbc", spi=0x2000, authentication=1).encode(2, direction),
        parameters("gcm", spi=0x2000, key=bytes(15)).encode(2, direction),
        parameters("gcm", spi=0).encode(2, direction),
        parameters("gcm", spi=0x2000).encode(2, other),
        bytes(8),
    ]
    if direction == IpsecDirection.INBOUND:
        wrong.append(parameters("gcm", spi=0x2000, replay_window=1025).encode(2, direction))
        wrong.append(good)
    for data in wrong:
        assert refused(ipsec, kind, 2, data) == invalid
    assert repr(device.associations._objects) == before


def test_more_than_is_offered_cannot_be_taken() -> None:
    _, _, _, ipsec = secured(Wire())
    limits = virtio_crypto_ipsec_resource_cap
    ah = {"mode": IpsecMode.AH_TUNNEL}
    for number, data in (
        (IPSEC_RESOURCE_CAP, limits.encode(inb_sa_limit=65, outb_sa_limit=1)),
        (IPSEC_SA_CAP, encode_modes([ah])),
        (IPSEC_SA_CAP, encode_modes([{"mode": IpsecMode.ESP_TUNNEL, "max_cipher_key_len": 33}])),
        (IPSEC_SA_CAP, encode_modes([{"mode": IpsecMode.ESP_TUNNEL, "options": 1 << 20}])),
        (IPSEC_SA_CAP, b"\7"),
    ):
        with pytest.raises(AdminFailed, match="INVALID_FIELD"):
            ipsec.objects.capabilities.set(number, data, lambda offered, chosen: True)
    with pytest.raises(UsageError, match="not offered"):
        ipsec.objects.capabilities.set(IPSEC_RESOURCE_CAP, limits.encode(inb_sa_limit=65), lambda o, c: False)
    # Less can: only what was taken can be had then.
    only = [{"mode": IpsecMode.ESP_TUNNEL, "aead_algo": 2, "max_cipher_key_len": 16}]
    ipsec.objects.capabilities.set(IPSEC_SA_CAP, encode_modes(only), lambda offered, chosen: True)
    transport = parameters("gcm").encode(0, IpsecDirection.OUTBOUND)
    assert refused(ipsec, OUTBOUND, 0, transport)[0] == AdminStatus.EINVAL
    ipsec.create_outbound(0, parameters("gcm", 4))


@pytest.mark.clause("net-ipsec.device.ipsec-operation.12")
def test_a_reset_destroys_associations() -> None:
    driver, device, _, ipsec = secured(Wire())
    ipsec.create_outbound(0, parameters("gcm"))
    ipsec.create_inbound(0, parameters("gcm"))
    driver.reset()
    driver.start()
    assert device.associations.outbound(0) is device.associations.inbound(0x1000) is None
    assert driver.protecting == {}
    group = GroupClient(AdminClient(driver), GroupType.SELF)
    again = IpsecDriver(driver, ObjectClient(group, CapabilityClient(group))).start()
    again.create_outbound(0, parameters("gcm"))
    again.create_inbound(0, parameters("gcm"))


@pytest.mark.clause("net-ipsec.driver.ipsec-operation.4", "net-ipsec.driver.ipsec-operation.5")
@pytest.mark.clause("net-ipsec.driver.ipsec-operation.6")
def test_the_driver_sets_all_there_is_to_be_set() -> None:
    _, _, _, ipsec = secured(Wire())
    given = parameters(
        "cbc",
        6,
        salt=7,
        options=int(IpsecOption.UDP_ENCAP | IpsecOption.SA_LIFETIME),
        udp_ports=(4500, 4501),
        replay_window=64,
        lifetime=dict.fromkeys(
            ("packets_soft_limit", "bytes_soft_limit", "packets_hard_limit", "bytes_hard_limit"), 1 << 20
        ),
    )
    ipsec.create_outbound(3, given)
    ipsec.create_inbound(3, given)
    record = virtio_crypto_resource_obj_ipsec_sa_256b_key
    sent, received = (record.decode(ipsec.objects.query(kind, 3)[: record.size]) for kind in (OUTBOUND, INBOUND))
    assert [name for name in record.fields if not getattr(sent, name)] == []
    # Of an inbound one the tunnel stays out.
    assert (sent.param.type, received.param.type) == (6, 0)
    assert any(sent.param.union)
    assert not any(received.param.union)
    with pytest.raises(UsageError, match="outbound tunnel"):
        ipsec.create_outbound(4, parameters("cbc", mode=IpsecMode.ESP_TUNNEL))
    with pytest.raises(UsageError, match="with the spi"):
        ipsec.create_inbound(4, given)
