"""Flow filters by administration commands: from capability to packet, with both halves."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin_tools import BAD_FIELD, BAD_OPCODE, OK, Answer
from tests.net_frames import US, V4, Wire, ethernet, ip, udp
from tests.test_net_flow import UDP_PORTS, group, udp_key
from tests.test_net_pair import RINGS, SmallBuffers
from virtio_py.admin.client import AdminClient, AdminFailed, GroupClient
from virtio_py.admin.client_objects import CapabilityClient, ObjectClient
from virtio_py.admin.layout import (
    OBJECT_COMMANDS,
    GroupType,
    Opcode,
    virtio_admin_cmd,
    virtio_admin_cmd_resource_obj_create_data,
)
from virtio_py.admin.owner import Administration
from virtio_py.devices.net.device import ALL_FEATURES, NetDevice
from virtio_py.devices.net.flow_driver import FlowDriver
from virtio_py.devices.net.flow_layout import (
    FF_ACTION_CAP,
    FF_RESOURCE_CAP,
    FF_SELECTOR_CAP,
    PARTIAL_MASK,
    FlowAction,
    FlowLimits,
    FlowObject,
    FlowRule,
    Selector,
    SelectorType,
    decode_selectors,
    encode_selectors,
)
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import NetFeature
from virtio_py.errors import UsageError
from virtio_py.resources import AdminStatus
from virtio_py.spec import Feature, bit, mask
from virtio_py.transports.in_process import InProcess

CAPS = (FF_RESOURCE_CAP, FF_SELECTOR_CAP, FF_ACTION_CAP)
G, C, R = FlowObject.GROUP, FlowObject.CLASSIFIER, FlowObject.RULE


class Card:
    """A network card with an administration virtqueue, and its driver."""

    def __init__(self, ring: int = RINGS[1], **options: Any) -> None:
        self.wire = Wire()
        self.device = NetDevice(self.wire, offered=ALL_FEATURES & ~bit(NetFeature.RSC_EXT), **options)
        self.carrier = InProcess(
            self.device, memory_size=2 << 20, ring_features=ring, admin=Administration(self.device)
        )
        features = self.device.offered_features() & ~mask(NetFeature.CTRL_VLAN) | ring | bit(Feature.ADMIN_VQ)
        self.driver = SmallBuffers(self.carrier, features=features, queue_size=16).start()

    def objects(self) -> ObjectClient:
        client = GroupClient(AdminClient(self.driver), GroupType.SELF)
        return ObjectClient(client, CapabilityClient(client))

    def send(self, opcode: int, data: bytes = b"") -> Answer:
        head = virtio_admin_cmd.encode(opcode=opcode)
        [answer], length = self.driver.transact(self.driver.admin_queues[0], [head + data], [512])
        return Answer.of(answer[:length])

    def create(self, kind: int, ident: int, data: bytes) -> tuple[int, int]:
        head = virtio_admin_cmd_resource_obj_create_data.encode(hdr={"type": kind, "id": ident})
        return self.send(Opcode.RESOURCE_OBJ_CREATE, head + data).state

    def arrivals(self, port: int) -> list[int]:
        self.wire.deliver(Packet(ethernet(ip(17, udp(b"", V4, (port, 9))), US)))
        return [len(self.driver.receive_all(n)) for n in range(self.device.pairs)]


@pytest.mark.clause("net-flow.device.flow-filter.1")
def test_a_device_with_flow_filters_says_so() -> None:
    assert Card().objects().capabilities.ids() >= set(CAPS)


@pytest.mark.clause("net-flow.device.flow-filter.2", "net-flow.driver.flow-filter.1")
@pytest.mark.parametrize("ring", RINGS)
def test_rules_that_come_by_commands_direct_packets(ring: int) -> None:
    card = Card(ring, pairs=3)
    flows = FlowDriver(card.objects()).start()
    flows.create_group(0, priority=3)
    flows.create_classifier(5, decode_selectors(UDP_PORTS))
    flows.create_rule(0, FlowRule(0, 5, 7, udp_key(1, 9), FlowAction.DIRECT_RX_VQ, 4))
    flows.create_rule(9, FlowRule(0, 5, 8, udp_key(2, 9), FlowAction.DROP))
    assert [card.arrivals(port) for port in (1, 2, 3)] == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    kinds = flows.objects
    rule = FlowRule(0, 5, 7, udp_key(3, 9), FlowAction.DIRECT_RX_VQ, 2)
    by_kind = {kind: flows.objects._kinds[kind] for kind in FlowObject}
    kinds.modify(by_kind[R], 0, rule.encode())
    assert kinds.query(by_kind[R], 0).startswith(rule.encode())
    assert kinds.query(by_kind[C], 5).startswith(UDP_PORTS)
    assert kinds.query(by_kind[G], 0).startswith(group(3))
    assert [card.arrivals(port) for port in (1, 2, 3)] == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    flows.destroy(R, 0)
    flows.destroy(R, 9)
    kinds.modify(by_kind[G], 0, group(4))
    assert card.device.flows.groups == {0: 4}
    kinds.modify(by_kind[C], 5, encode_selectors([Selector(SelectorType.ETH, bytes(14))]))
    flows.destroy(G, 0)
    flows.destroy(C, 5)
    assert card.arrivals(3) == [1, 0, 0]


@pytest.mark.clause("net-flow.device.flow-filter.3", "net-flow.driver.flow-filter.1")
@pytest.mark.parametrize("missing", CAPS)
def test_without_one_of_the_capabilities_nothing_can_be_done_with_objects(missing: int) -> None:
    card = Card()
    objects = card.objects()
    capabilities = objects.capabilities
    for ident in set(CAPS) - {missing}:
        capabilities.set(ident, capabilities.offered(ident), lambda offered, chosen: True)
    for opcode in OBJECT_COMMANDS:
        for kind in FlowObject:
            head = virtio_admin_cmd_resource_obj_create_data.encode(hdr={"type": kind, "id": 0})
            assert card.send(opcode, head + group(1)).state == BAD_OPCODE
    with pytest.raises(UsageError, match=f"{missing:#x} was not set"):
        FlowDriver(objects).create_group(0, 1)


@pytest.mark.clause("admin-cap.driver.caps.2", "admin-cap.driver.caps.3", "admin-cap.driver.caps.4")
def test_a_driver_takes_less_and_is_held_to_it() -> None:
    card = Card()
    flows = FlowDriver(card.objects()).start(FlowLimits(2, 3, 4, 4, 9, 1))
    with pytest.raises(UsageError, match="not offered like this"):
        FlowDriver(card.objects()).start(FlowLimits(groups_limit=17))
    flows.create_group(1, 1)
    with pytest.raises(UsageError, match="not below 2"):
        flows.create_group(2, 2)
    assert card.create(G, 2, group(2)) == BAD_FIELD
    with pytest.raises(AdminFailed, match="EINVAL"):
        flows.create_classifier(0, decode_selectors(UDP_PORTS))


def test_more_than_is_offered_is_refused_by_the_device_too() -> None:
    card = Card()
    objects = card.objects()

    def take(ident: int, data: bytes) -> None:
        objects.capabilities.set(ident, data, lambda offered, chosen: True)

    for ident, data in [
        (FF_RESOURCE_CAP, FlowLimits(rules_limit=1025).encode()),
        (FF_SELECTOR_CAP, encode_selectors([Selector(9, b"")])),
        (FF_ACTION_CAP, b"\1" + bytes(7) + b"\5"),
    ]:
        with pytest.raises(AdminFailed) as failed:
            take(ident, data)
        assert (failed.value.status, failed.value.qualifier) == BAD_FIELD
    take(FF_SELECTOR_CAP, encode_selectors([Selector(SelectorType.ETH, b"\xff" * 6 + bytes(8))]))
    take(FF_ACTION_CAP, b"\1" + bytes(7) + b"\1")
    take(FF_RESOURCE_CAP, FlowLimits().encode())
    assert card.create(G, 0, group(1)) == OK
    for mask_bytes, flags, state in [
        (b"\xff" * 6 + bytes(8), 0, OK),
        (b"\xff" * 12 + bytes(2), 0, BAD_FIELD),
        (b"\xff" + bytes(13), PARTIAL_MASK, BAD_FIELD),
    ]:
        data = encode_selectors([Selector(SelectorType.ETH, mask_bytes, flags)])
        assert card.create(C, state != OK, data) == state
    dropped, directed = (FlowRule(0, 0, 1, bytes(14), action) for action in (FlowAction.DROP, FlowAction.DIRECT_RX_VQ))
    assert card.create(R, 0, directed.encode()) == BAD_FIELD
    assert card.create(R, 0, dropped.encode()) == OK


@pytest.mark.clause("net-flow.driver.flow-filter.2", "net-flow.driver.flow-filter.4")
def test_groups_and_classifiers_outlive_their_rules() -> None:
    card = Card()
    flows = FlowDriver(card.objects()).start()
    flows.create_group(0, 1)
    flows.create_classifier(0, decode_selectors(UDP_PORTS))
    flows.create_rule(0, FlowRule(0, 0, 0, udp_key(1, 2), FlowAction.DROP))
    for kind in (G, C):
        with pytest.raises(UsageError, match="depends on it"):
            flows.destroy(kind, 0)
    assert (set(card.device.flows.groups), set(card.device.flows.classifiers)) == ({0}, {0})
    flows.destroy(R, 0)
    flows.destroy(G, 0)
    flows.destroy(C, 0)


@pytest.mark.clause("net-flow.driver.flow-filter.6", "net-flow.driver.flow-filter.7")
def test_rules_of_a_group_have_priorities_of_their_own() -> None:
    card = Card()
    flows = FlowDriver(card.objects()).start()
    for ident in (0, 1):
        flows.create_group(ident, ident)
    flows.create_classifier(0, decode_selectors(UDP_PORTS))
    rule = FlowRule(0, 0, 5, udp_key(1, 2), FlowAction.DROP)
    flows.create_rule(0, rule)
    with pytest.raises(UsageError, match="priority 5"):
        flows.create_rule(1, rule._replace(keys=udp_key(3, 4)))
    with pytest.raises(UsageError, match="not below 255"):
        flows.create_rule(1, rule._replace(priority=255))
    flows.create_rule(1, rule._replace(priority=6))
    flows.create_rule(2, rule._replace(group=1))
    flows.destroy(R, 0)
    flows.create_rule(0, rule)
    assert set(card.device.flows.rules) == {0, 1, 2}


def test_a_modification_that_cannot_be_leaves_all_as_it_was() -> None:
    card = Card()
    flows = FlowDriver(card.objects()).start()
    flows.create_group(0, 1)
    flows.create_group(1, 2)
    kind = flows.objects._kinds[G]
    with pytest.raises(AdminFailed) as failed:
        flows.objects.modify(kind, 0, group(2))
    assert failed.value.status == AdminStatus.EINVAL
    assert card.device.flows.groups == {0: 1, 1: 2}
