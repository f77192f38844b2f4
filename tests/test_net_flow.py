"""Flow filters: structures, what may be created, and which rule decides over a frame."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net_frames import THEM, US, V4, V6, Wire, ethernet, frame_of, ip, tcp, udp
from tests.test_net_pair import pair
from virtio_py.devices.net.device import ALL_FEATURES
from virtio_py.devices.net.flow_filter import FlowTable
from virtio_py.devices.net.flow_layout import (
    ALL_SELECTORS,
    FF_ACTION_CAP,
    FF_RESOURCE_CAP,
    FF_SELECTOR_CAP,
    PARTIAL_MASK,
    SELECTOR_BYTES,
    FlowAction,
    FlowLimits,
    FlowObject,
    FlowRule,
    Selector,
    SelectorType,
    decode_selectors,
    encode_selectors,
    is_whole,
)
from virtio_py.devices.net.flow_objects import FlowObjects
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import NetFeature
from virtio_py.devices.net.parsing import network_of
from virtio_py.resources import AdminStatus, Refused
from virtio_py.spec import bit, mask

T = SelectorType
G, C, R = FlowObject.GROUP, FlowObject.CLASSIFIER, FlowObject.RULE
ETHERTYPE = bytes(12) + b"\xff\xff"
PROTOCOL = {4: bytes(9) + b"\xff" + bytes(10), 6: bytes(6) + b"\xff" + bytes(33)}
PORTS = b"\xff" * 4 + bytes(4)


def classifier(*selectors: Selector) -> bytes:
    return encode_selectors(selectors)


UDP_PORTS = classifier(Selector(T.ETH, ETHERTYPE), Selector(T.IPV4, PROTOCOL[4]), Selector(T.UDP, PORTS))


def udp_key(source: int, destination: int) -> bytes:
    return bytes(12) + b"\x08\0" + bytes(9) + b"\x11" + bytes(10) + struct.pack(">HH4x", source, destination)


def group(priority: int) -> bytes:
    return struct.pack("<H", priority)


def table(**options: Any) -> FlowTable:
    made = FlowTable((0, 2, 4), **options)
    made.create(G, 1, group(10))
    made.create(C, 1, UDP_PORTS)
    return made


def rule(keys: bytes = udp_key(1, 2), **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "group": 1,
        "classifier": 1,
        "priority": 5,
        "keys": keys,
        "action": FlowAction.DIRECT_RX_VQ,
        "vq_index": 2,
    }
    return FlowRule(**(values | changes)).encode()


def refused(status: AdminStatus, made: FlowTable, kind: FlowObject, ident: int, data: bytes | None = None) -> None:
    before = repr(made)
    with pytest.raises(Refused) as caught:
        made.destroy(kind, ident) if data is None else made.create(kind, ident, data)
    assert caught.value.status == status
    assert repr(made) == before


def test_bytes_of_structures() -> None:
    made = table()
    offers = {ident: found.offer() for ident, found in FlowObjects(made).capabilities().items()}
    assert offers[FF_RESOURCE_CAP] == struct.pack("<IIIIBBBB", 16, 64, 1024, 1024, 255, 3, 0, 0)
    assert offers[FF_ACTION_CAP] == b"\2" + bytes(7) + b"\1\2"
    capability = offers[FF_SELECTOR_CAP]
    assert capability[:16] == b"\6" + bytes(7) + b"\1\1\0\0\x0e\0\0\0"
    assert decode_selectors(capability) == ALL_SELECTORS
    assert SELECTOR_BYTES == {1: 14, 2: 20, 3: 40, 4: 20, 5: 8, 6: 8}
    data = rule()
    assert data[:16] == struct.pack("<IIBBBBHH", 1, 1, 5, 42, 2, 0, 2, 0)
    made.create(R, 7, data)
    assert made.query(R, 7) == data
    assert made.query(C, 1) == UDP_PORTS
    assert made.query(G, 1) == group(10)
    with pytest.raises(Refused):
        made.query(R, 8)


@given(
    data=st.binary(max_size=80),
    start=st.sampled_from([b"", b"\1" + bytes(7), b"\2" + bytes(7) + b"\1\0\0\0\x0e\0\0\0"]),
)
def test_any_bytes_are_selectors_or_refused(data: bytes, start: bytes) -> None:
    try:
        found = decode_selectors(start + data)
    except Refused:
        return
    # What is reserved is not looked at.
    assert decode_selectors(encode_selectors(found)) == found


@pytest.mark.parametrize(
    ("kind", "part", "whole"),
    [
        (T.ETH, b"\xff" * 5 + bytes(9), b"\xff" * 6 + bytes(8)),
        (T.IPV4, b"\xf0" + bytes(19), b"\xff" + bytes(19)),
        (T.IPV4, bytes(6) + b"\x80" + bytes(13), bytes(6) + b"\xe0" + bytes(13)),
        (T.IPV6, bytes(8) + b"\xff" * 8 + bytes(24), bytes(8) + b"\xff" * 16 + bytes(16)),
        (T.TCP, b"\xff" + bytes(19), bytes(13) + b"\x12" + bytes(6)),
    ],
)
@pytest.mark.clause("net-flow.device.flow-filter.26")
@pytest.mark.clause("net-flow.driver.flow-filter.15")
def test_masks_of_parts_of_fields(kind: SelectorType, part: bytes, whole: bytes) -> None:
    assert is_whole(Selector(kind, whole))
    if kind == T.IPV4 and part[0]:
        assert is_whole(Selector(kind, part))
    else:
        assert not is_whole(Selector(kind, part))
    if kind == T.ETH:
        made = table()
        refused(AdminStatus.EINVAL, made, C, 2, classifier(Selector(kind, part)))
        made.create(C, 2, classifier(Selector(kind, part, PARTIAL_MASK)))
        made.create(C, 3, classifier(Selector(kind, whole, PARTIAL_MASK)))
        strict = FlowTable(selectors=[Selector(T.ETH, b"\xff" * 14)])
        refused(AdminStatus.EINVAL, strict, C, 2, classifier(Selector(kind, part, PARTIAL_MASK)))
        strict.create(C, 2, classifier(Selector(kind, whole, PARTIAL_MASK)))


@pytest.mark.clause("net-flow.device.flow-filter.4")
@pytest.mark.clause("net-flow.device.flow-filter.5")
@pytest.mark.clause("net-flow.device.flow-filter.6")
@pytest.mark.clause("net-flow.device.flow-filter.7")
@pytest.mark.clause("net-flow.device.flow-filter.8")
@pytest.mark.clause("net-flow.driver.flow-filter.3")
@pytest.mark.clause("net-flow.driver.flow-filter.5")
def test_groups_and_classifiers_that_cannot_be() -> None:
    made = table(limits=FlowLimits(groups_limit=3, classifiers_limit=2, rules_per_group_limit=2))
    refused(AdminStatus.EEXIST, made, G, 1, group(11))
    refused(AdminStatus.EINVAL, made, G, 2, group(10))
    made.create(G, 2, group(11))
    refused(AdminStatus.ENOSPC, made, G, 3, group(12))
    made.create(C, 2, classifier(Selector(T.ETH, bytes(14))))
    refused(AdminStatus.ENOSPC, made, C, 3, UDP_PORTS)
    made.create(R, 0, rule())
    refused(AdminStatus.EBUSY, made, G, 1)
    refused(AdminStatus.EBUSY, made, C, 1)
    refused(AdminStatus.ENXIO, made, G, 9)
    made.destroy(R, 0)
    made.destroy(G, 1)
    made.destroy(C, 1)
    made.create(C, 1, UDP_PORTS)


@pytest.mark.parametrize(
    "selectors",
    [
        [],
        [Selector(T.IPV4, PROTOCOL[4])],
        [Selector(T.ETH, ETHERTYPE), Selector(T.UDP, PORTS)],
        [Selector(T.ETH, bytes(14)), Selector(T.IPV4, PROTOCOL[4])],
        [Selector(T.ETH, ETHERTYPE), Selector(T.IPV6, bytes(40)), Selector(T.UDP, PORTS)],
        [Selector(T.ETH, ETHERTYPE), Selector(T.IPV4, PROTOCOL[4]), Selector(T.UDP, PORTS), Selector(T.UDP, PORTS)],
        [Selector(T.ETH, bytes(13))],
        [Selector(7, bytes(8))],
    ],
)
@pytest.mark.clause("net-flow.driver.flow-filter.8")
@pytest.mark.clause("net-flow.driver.flow-filter.9")
@pytest.mark.clause("net-flow.driver.flow-filter.10")
@pytest.mark.clause("net-flow.driver.flow-filter.11")
@pytest.mark.clause("net-flow.driver.flow-filter.12")
def test_classifiers_that_make_no_sense(selectors: list[Selector]) -> None:
    refused(AdminStatus.EINVAL, table(), C, 2, classifier(*selectors))


@pytest.mark.parametrize(
    "changes",
    [
        {"group": 9},
        {"classifier": 9},
        {"priority": 255},
        {"action": FlowAction.IPSEC},
        {"vq_index": 1},
        {"vq_index": 6},
        {"keys": udp_key(1, 2)[:-1]},
        {"keys": udp_key(1, 2) + b"\0"},
        {"keys": udp_key(1, 2).replace(b"\x08\0", b"\x86\xdd", 1)},
        {"keys": udp_key(1, 2).replace(b"\x11", b"\x06", 1)},
    ],
)
@pytest.mark.clause("net-flow.device.flow-filter.9")
@pytest.mark.clause("net-flow.device.flow-filter.10")
@pytest.mark.clause("net-flow.device.flow-filter.12")
@pytest.mark.clause("net-flow.device.flow-filter.13")
@pytest.mark.clause("net-flow.driver.flow-filter.13")
@pytest.mark.clause("net-flow.driver.flow-filter.14")
def test_rules_that_cannot_be(changes: dict[str, Any]) -> None:
    made = table()
    refused(AdminStatus.EINVAL, made, R, 1, rule(**changes))
    made.create(R, 1, rule())


@pytest.mark.clause("net-flow.device.flow-filter.11")
def test_ids_of_rules_are_below_the_limits() -> None:
    made = table(limits=FlowLimits(rules_limit=20, rules_per_group_limit=10))
    refused(AdminStatus.EINVAL, made, R, 10, rule())
    made.create(R, 9, rule())


rules_of = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 2), st.sampled_from(FlowAction)), max_size=12
)


@pytest.mark.clause("net-flow.device.flow-filter.15")
@pytest.mark.clause("net-flow.device.flow-filter.16")
@pytest.mark.clause("net-flow.device.flow-filter.17")
@pytest.mark.clause("net-flow.device.flow-filter.18")
@pytest.mark.clause("net-flow.device.flow-filter.19")
@pytest.mark.clause("net-flow.device.flow-filter.21")
@pytest.mark.clause("net-flow.device.flow-filter.22")
@given(rules=rules_of, port=st.integers(0, 2), priorities=st.permutations(range(4)))
def test_the_first_rule_of_the_highest_priority_decides(
    rules: list[tuple[int, int, int, FlowAction]], port: int, priorities: list[int]
) -> None:
    made = FlowTable((0, 2, 4), actions=tuple(FlowAction))
    made.create(C, 1, UDP_PORTS)
    for n, priority in enumerate(priorities):
        made.create(G, n, group(priority))
    for ident, (in_group, priority, key, action) in enumerate(rules):
        made.create(R, ident, rule(udp_key(key, 9), group=in_group, priority=priority, action=action))
    frame = ethernet(ip(17, udp(b"", V4, (port, 9))))
    found = made.match(frame, network_of(frame))
    hits = [(priorities[g], p) for g, p, key, _ in rules if key == port]
    if not hits:
        assert found is None
    else:
        assert found is not None
        assert (priorities[found.group], found.priority) == max(hits)


@pytest.mark.parametrize(
    ("frame", "selectors", "keys"),
    [
        (frame_of(b"", 6, 4), [T.ETH, T.IPV4, T.TCP], None),
        (frame_of(b"", 17, 6), [T.ETH, T.IPV6, T.UDP], None),
        (ethernet(ip(50, bytes(8))), [T.ETH, T.IPV4, T.ESP], None),
        (ethernet(ip(0, bytes([6, 0]) + bytes(6) + tcp(b"", V6), V6)), [T.ETH, T.IPV6, T.TCP], 6),
        (US + THEM + b"\x08\x06" + bytes(46), [T.ETH], None),
    ],
)
def test_headers_are_matched_whole(frame: bytes, selectors: list[SelectorType], keys: int | None) -> None:
    made = FlowTable()
    made.create(G, 0, group(0))
    made.create(C, 0, classifier(*[Selector(kind, b"\xff" * SELECTOR_BYTES[kind]) for kind in selectors]))
    network = network_of(frame)
    key = frame[:14]
    if network is not None:
        head = bytearray(frame[14 : 34 if network.version == 4 else 54])
        if keys is not None:
            head[6] = keys
        at = network.transport
        key += bytes(head) + frame[at : at + SELECTOR_BYTES[selectors[2]]]
    made.create(R, 0, FlowRule(0, 0, 0, key, FlowAction.DROP).encode())
    assert made.match(frame, network) is not None
    other = frame[:5] + bytes([frame[5] ^ 1]) + frame[6:]
    assert made.match(other, network) is None
    assert made.match(b"\0" * 14, None) is None


@pytest.mark.clause("net-flow.device.flow-filter.14")
@pytest.mark.clause("net-flow.device.flow-filter.20")
@pytest.mark.clause("net-flow.device.flow-filter.23")
@pytest.mark.clause("net-flow.device.flow-filter.24")
@pytest.mark.clause("net-flow.device.flow-filter.25")
def test_rules_stand_between_filters_and_steering() -> None:
    wire = Wire()
    features = ALL_FEATURES & ~mask(NetFeature.RSC_EXT, NetFeature.CTRL_VLAN)
    driver, device, transport = pair(wire, features, pairs=3)
    flows = device.flows
    assert flows.receiveqs == [0, 2, 4]
    flows.create(G, 0, group(0))
    flows.create(C, 0, UDP_PORTS)
    for ident, (port, action) in enumerate([(1, FlowAction.DIRECT_RX_VQ), (2, FlowAction.DROP)]):
        flows.create(R, ident, FlowRule(0, 0, ident, udp_key(port, 9), action, 4).encode())

    def arrivals(port: int, to: bytes = US) -> list[int]:
        wire.deliver(Packet(ethernet(ip(17, udp(b"", V4, (port, 9))), to)))
        return [len(driver.receive_all(n)) for n in range(3)]

    assert arrivals(1) == [0, 0, 1]
    assert arrivals(2) == [0, 0, 0]
    assert arrivals(3) == [1, 0, 0]
    assert arrivals(1, THEM) == [0, 0, 0]
    transport.end.stop_queue(4)
    assert arrivals(1) == [0, 0, 0]
    assert arrivals(3) == [1, 0, 0]
    driver.reset()
    assert not device.flows.rules
    assert bit(NetFeature.MQ) & features
