"""The network device (5.1), the half that serves: a Port behind it, frames of Ethernet in front.

    Device ID       1
    Virtqueues      0 receiveq1, 1 transmitq1, … 2(N-1) receiveqN, 2(N-1)+1 transmitqN, 2N controlq;
                    N is max_virtqueue_pairs where VIRTIO_NET_F_MQ or VIRTIO_NET_F_RSS was negotiated, and else 1
    Configuration   virtio_net_config, read-only
    Operation       transmitq: header and frame, readable. receiveq: room for header and frame, kept until a frame
                    comes. controlq: see `control`

Between driver and port stands `segmentation.fit`: either side is given what it can take, and software does the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from attrs import Attribute, define, field, setters, validators

from virtio_py.device import Device, DeviceEnd, QueueSpec
from virtio_py.devices.net import parts
from virtio_py.devices.net.associations import AssociationTable
from virtio_py.devices.net.control import Refused, carry_out, serve_command
from virtio_py.devices.net.counters import Coalescing, CoalescingTable, Counts, Role
from virtio_py.devices.net.filtering import ReceiveFilter
from virtio_py.devices.net.flow_filter import FlowTable
from virtio_py.devices.net.flow_layout import FLOW_ACTIONS, IPSEC_ACTIONS, FlowAction, FlowRule
from virtio_py.devices.net.flow_objects import FlowObjects
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import (
    CONFIG_FIELDS,
    ETHERNET_HEADER,
    FEATURE_NEEDS,
    MAX_PAIRS,
    MTU_MAX,
    MTU_MIN,
    OFFLOAD_OF_GUEST_FEATURE,
    OFFLOAD_OF_HOST_FEATURE,
    RSS_KEY_BYTES,
    RSS_TABLE_ENTRIES,
    SPEED_MAX,
    SPEED_UNKNOWN,
    VLAN_TAG,
    Duplex,
    Gso,
    HdrFlag,
    NetFeature,
    NetStatus,
    consistent,
    guest_offloads,
    missing_any,
    virtio_net_config,
)
from virtio_py.devices.net.moderation import Moderation
from virtio_py.devices.net.parsing import network_of, vlan_id
from virtio_py.devices.net.ports.port import Port
from virtio_py.devices.net.rarp import rarp_request
from virtio_py.devices.net.reception import Reception
from virtio_py.devices.net.rss import ALL_HASH_TYPES, NO_HASH, PacketHash, Steering
from virtio_py.devices.net.security import receive_secured, secure
from virtio_py.devices.net.segmentation import fit
from virtio_py.devices.net.transmission import count_sent, read_packet
from virtio_py.devices.net.tunnels import ALL_TUNNEL_TYPES
from virtio_py.errors import MessageError, RequestError, UsageError
from virtio_py.resources import Capability, ResourceType
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId, bit, mask
from virtio_py.watch import Watch

_F = NetFeature
NOT_OFFERED: Final = mask(_F.GSO, _F.GUEST_RSC4, _F.GUEST_RSC6)
"""What this device cannot offer: legacy bits."""
ALL_FEATURES: Final = mask(*_F) & ~NOT_OFFERED
WIDE_FEATURES: Final = ~((1 << 64) - 1)
"""Bits that a carrier with a 64-bit feature word cannot name."""
USUAL_FEATURES: Final = ALL_FEATURES & ~WIDE_FEATURES & ~mask(_F.RSC_EXT, _F.STANDBY)
"""What is offered unless another mask is given: RSC_EXT would take the checksum's place away from the driver, and a
standby has to be the standby of something."""

_MULTIQUEUE: Final = mask(_F.MQ, _F.RSS)
_COALESCING: Final = mask(_F.NOTF_COAL, _F.VQ_NOTF_COAL)
_ANNEX: Final = mask(_F.OUT_NET_HEADER, _F.IPSEC)
OFFLOAD_FEATURES: Final = mask(
    *OFFLOAD_OF_GUEST_FEATURE, *OFFLOAD_OF_HOST_FEATURE, _F.CTRL_GUEST_OFFLOADS, _F.GUEST_HDRLEN
)
"""All that has to do with checksums and segmentation."""


def _check_features(device: NetDevice, attribute: Attribute[int], value: int) -> None:
    if value & ~ALL_FEATURES:
        raise UsageError(f"features {value & ~ALL_FEATURES:#x} are not this device's to offer")
    if value & bit(_F.IPSEC) and not value & bit(_F.OUT_NET_HEADER):
        # net-ipsec.device.feature-bits-prose.1
        raise UsageError("VIRTIO_NET_F_IPSEC goes with VIRTIO_NET_F_OUT_NET_HEADER")


def _check_mac(device: NetDevice, attribute: Attribute[Any], value: bytes | None) -> None:
    if value is not None and (len(value) != 6 or value[0] & 1):
        raise UsageError(f"{value.hex(':')} is not the address of a station")


def _check_pairs(device: NetDevice, attribute: Attribute[int], value: int) -> None:
    if not 1 <= value <= MAX_PAIRS:
        raise UsageError(f"{value} pairs of queues are not from 1 to {MAX_PAIRS}")


def _check_mtu(device: NetDevice, attribute: Attribute[Any], value: int | None) -> None:
    if value is not None and not MTU_MIN <= value <= MTU_MAX:
        raise UsageError(f"an MTU of {value} is not from {MTU_MIN} to {MTU_MAX}")


def _check_speed(device: NetDevice, attribute: Attribute[Any], value: int | None) -> None:
    if value not in (None, SPEED_UNKNOWN) and not 0 <= value <= SPEED_MAX:
        raise UsageError(f"a speed of {value} Mbit/s is not from 0 to {SPEED_MAX}")


@define(eq=False)
class NetDevice(Device):
    """A network interface. Raises UsageError for a value that cannot be.

    port:      what is at the other end of the link
    mac:       the address that the driver is given, or None to let it choose
    pairs:     receive and transmit queues of each kind
    mtu, speed, duplex: what the driver is told, or None for nothing; bytes without Ethernet's header, Mbit/s
    features:  mask of what may be offered; a bit is offered where there is also something behind it
    max_associations: how many of IPsec there may be in each direction
    outer_tunnel_bits: whether the driver wants the tunnel bits of `gso_type` to tell the outer network header's
               version, as Linux does, and not the inner one's, as the clauses say
    """

    device_id: ClassVar[DeviceId] = DeviceId.NET
    moderates = True
    # A vhost-user front-end may keep controlq to itself, and then hands on what depends on it without CTRL_VQ.
    feature_needs = {feature: tuple(n for n in needs if n != _F.CTRL_VQ) for feature, needs in FEATURE_NEEDS.items()}
    port: Port
    mac: bytes | None = field(default=b"\x52\x54\x00\x12\x34\x56", validator=_check_mac, kw_only=True)
    pairs: int = field(default=1, validator=_check_pairs, kw_only=True)
    mtu: int | None = field(default=None, validator=_check_mtu, on_setattr=setters.frozen, kw_only=True)
    speed: int | None = field(default=None, validator=_check_speed, kw_only=True)
    duplex: Duplex = field(default=Duplex.FULL, converter=Duplex, kw_only=True)
    queue_size: int = field(default=256, kw_only=True)
    offered: int = field(default=USUAL_FEATURES, validator=_check_features, kw_only=True)
    rss_max_key_size: int = field(default=RSS_KEY_BYTES, kw_only=True)
    rss_max_indirection_table_length: int = field(default=RSS_TABLE_ENTRIES, kw_only=True)
    supported_hash_types: int = field(default=ALL_HASH_TYPES, kw_only=True)
    supported_tunnel_types: int = field(default=ALL_TUNNEL_TYPES, kw_only=True)
    max_rss_contexts: int = field(default=8, validator=validators.ge(1), kw_only=True)
    max_associations: int = field(default=64, validator=validators.ge(1), kw_only=True)
    outer_tunnel_bits: bool = field(default=False, kw_only=True)
    features: int = field(default=0, init=False)
    offloads: int = field(default=0, init=False)
    link_up: bool = field(default=True, init=False)
    filter: ReceiveFilter = field(init=False, factory=ReceiveFilter)
    steering: Steering = field(init=False, factory=Steering)
    coalescing: CoalescingTable = field(init=False, factory=CoalescingTable)
    moderation: Moderation = field(init=False)
    configured: dict[tuple[int, int], bytes] = field(init=False, factory=dict)
    reception: Reception = field(init=False, factory=Reception)
    flows: FlowTable = field(init=False, factory=FlowTable)
    _flow_objects: FlowObjects = field(init=False)
    associations: AssociationTable = field(init=False, factory=AssociationTable)
    _opened: deque[Packet] = field(init=False, factory=deque)
    _opened_from: Packet | None = field(default=None, init=False)
    _announcing: bool = field(default=False, init=False)
    _own_mac: bytes | None = field(init=False)
    _end: DeviceEnd | None = field(default=None, init=False)
    _counts: dict[int, Counts] = field(init=False, factory=dict)
    _starved: bool = field(default=False, init=False)
    _host_mtu: int | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if self.pairs > 1 and not self.offered_features() & mask(_F.MQ, _F.RSS):
            raise UsageError("more than one pair of queues takes VIRTIO_NET_F_MQ or VIRTIO_NET_F_RSS")
        self._own_mac = self.mac
        self._flow_objects = FlowObjects(self.flows)
        self.moderation = Moderation(self._notify)
        self.port.attach(self.receive)
        # A value that its field cannot hold is to be refused here, not when a driver comes and reads.
        self.read_config()

    # What the device is

    def offered_features(self) -> int:
        """The mask of the features that are allowed and have something behind them."""
        absent = {
            _F.MAC: self.mac is None,
            _F.MTU: self.mtu is None,
            _F.SPEED_DUPLEX: self.speed is None,
            _F.MQ: self.pairs == 1,
        }
        return consistent(self.offered & ~mask(*(feature for feature, missing in absent.items() if missing)))

    def refuse_features(self, features: int) -> str | None:
        """A feature that needs one of others must not be accepted without any (5.1.3.1)."""
        lonely = missing_any(features)
        return f"bit {lonely[0]} lacks what it needs" if lonely else None

    def queues(self) -> Sequence[QueueSpec]:
        """All there can be; where neither MQ nor RSS is accepted, controlq is number 2 and the rest is not used."""
        names = [f"{kind}{n + 1}" for n in range(self.pairs) for kind in ("receiveq", "transmitq")]
        control = ["controlq"] if self.offered_features() & bit(_F.CTRL_VQ) else []
        return [QueueSpec(name, self.queue_size) for name in names + control]

    def has(self, feature: NetFeature) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.features & bit(feature))

    def role(self, index: int) -> Role | None:
        """What a virtqueue is for with the features that were negotiated, None if it does not exist."""
        pairs = self.pairs if self.features & _MULTIQUEUE else 1
        if 0 <= index < 2 * pairs:
            return Role(index & 1)
        return Role.CONTROL if index == 2 * pairs and self.has(_F.CTRL_VQ) else None

    def in_service(self, index: int) -> DeviceQueue | None:
        """The running virtqueue with this index, or None."""
        return self._end.active_queue(index) if self._end is not None else None

    def counts(self, index: int) -> Counts:
        """The counters of a queue since the last reset, by the names that VIRTIO_NET_CTRL_STATS_GET reports."""
        found = self._counts_of(index)
        if self._end is not None:
            prefix = "tx" if index & 1 else "rx"
            found[f"{prefix}_notifications"] = self._end.kicks[index]
            found[f"{prefix}_interrupts"] = self._end.calls[index]
        return found

    def _counts_of(self, index: int) -> Counts:
        return self._counts.setdefault(index, Counts())

    # Configuration

    def read_config(self) -> bytes:
        """The structure in its full length of 1.4; fields whose features are not offered are zero."""
        offered = self.offered_features()
        status = (NetStatus.LINK_UP * self.link_up) | (NetStatus.ANNOUNCE * self._announcing)
        values: dict[str, Any] = {
            "mac": self._own_mac,
            "status": status,
            "max_virtqueue_pairs": self.pairs,
            "mtu": self._mtu,
            "speed": self.speed,
            "duplex": self.duplex,
            "rss_max_key_size": self.rss_max_key_size,
            "rss_max_indirection_table_length": self.rss_max_indirection_table_length,
            "supported_hash_types": self.supported_hash_types,
            "supported_tunnel_types": self.supported_tunnel_types,
        }
        here = [name for name, any_of in CONFIG_FIELDS.items() if offered & mask(*any_of)]
        return virtio_net_config.encode(**{name: values[name] for name in here})

    def set_link(self, up: bool) -> None:
        """Plugs the cable in, or pulls it; the driver is told by `status`. Speed and duplex may change only while
        the link is down."""
        self.link_up = up
        self._changed()

    def set_speed(self, speed: int | None, duplex: Duplex) -> None:
        """Another speed and duplex, told with the next configuration change. Raises UsageError while the link is up
        (net.device.config-layout.12)."""
        if self.link_up:
            raise UsageError("speed and duplex do not change while the link is up")
        self.speed, self.duplex = speed, duplex

    def announce(self) -> None:
        """Asks the driver to tell the network where it is now, as after a migration (5.1.6.5.4)."""
        if self.has(_F.GUEST_ANNOUNCE):
            self._announcing = True
            self._changed()

    def clear_announce(self) -> None:
        """The driver has done so."""
        self._announcing = False

    def set_mac(self, mac: bytes) -> None:
        """The driver's own choice of address."""
        self._own_mac = self.filter.mac = mac

    def _changed(self) -> None:
        if self._end is not None:
            self._end.configuration_changed()

    # The life of a driver

    @property
    def negotiated_offloads(self) -> int:
        """The offloads that the features allow to be enabled; all are until the driver says otherwise."""
        return guest_offloads(self.features)

    def negotiated(self, features: int) -> None:
        """Everything that a driver may configure, as it is before it does."""
        self.features = features
        self.offloads = self.negotiated_offloads
        self.reception = Reception(features)
        receiveqs = [index for index in range(2 * self.pairs) if self.role(index) == Role.RX]
        self.flows = FlowTable(receiveqs, actions=FLOW_ACTIONS + IPSEC_ACTIONS * self.has(_F.IPSEC))
        self._flow_objects = FlowObjects(self.flows)
        self.associations = AssociationTable(self.max_associations, self.max_associations)
        vlans: set[int] | None = set() if self.has(_F.CTRL_VLAN) else None
        # A driver that was not given the address has one of its own, of which it may never tell.
        mac = self._own_mac if self.has(_F.MAC) else None
        self.filter = ReceiveFilter(mac, self.has(_F.CTRL_RX), vlans)

    def activate(self, end: DeviceEnd, features: int) -> None:
        """DRIVER_OK: frames may be delivered from now on."""
        self._end = end

    def reset(self) -> None:
        """Forgets the driver; link and port are as they were."""
        self.features = self.offloads = 0
        self._end, self._announcing, self._starved = None, False, False
        self._own_mac = self.mac
        self.filter, self.steering, self.coalescing = ReceiveFilter(), Steering(), CoalescingTable()
        self.reception, self.flows, self.associations = Reception(), FlowTable(), AssociationTable()
        self._opened_from = None
        self.moderation = Moderation(self._notify)
        self._flow_objects = FlowObjects(self.flows)
        self.configured.clear()
        self._counts.clear()
        self.port.reset()

    # What the host has to say

    def set_host_mtu(self, mtu: int) -> None:
        """The longest packet that the host lets through, in bytes without Ethernet's header; outlasts resets. Raises
        MessageError for one that cannot be."""
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise MessageError(f"an MTU of {mtu} is not from {MTU_MIN} to {MTU_MAX}")
        if mtu != self._mtu:
            self._host_mtu = mtu
            self._changed()

    @property
    def _mtu(self) -> int | None:
        return self.mtu if self._host_mtu is None else self._host_mtu

    def send_rarp(self, mac: bytes) -> None:
        """Tells the network, in the driver's name, where this station is now. Raises MessageError for an address that
        no station has."""
        if mac[0] & 1 or mac == bytes(6):
            raise MessageError(f"{mac.hex(':')} is not the address of a station")
        if self.link_up:
            self.port.send(Packet(rarp_request(mac)))

    def parts(self) -> Mapping[tuple[int, bytes], bytes]:
        """What the driver has configured by control commands."""
        return parts.parts_of(self.configured, self.filter.vlans)

    def takes_part(self, part_type: int, selector: bytes, value: bytes) -> bool:
        """Whether it is the configuration that a control command makes."""
        return parts.takes(part_type, selector, value)

    def set_part(self, part_type: int, selector: bytes, value: bytes) -> None:
        """Makes the configuration anew. Raises PeerError if the negotiated features do not go with it."""
        for command, data in parts.commands_of(selector, value):
            try:
                carry_out(self, command, data)
            except Refused as refused:
                raise RequestError(f"a part that cannot be set: {refused}") from refused

    def capabilities(self) -> Mapping[int, Capability]:
        """Those of flow filters, and of IPsec once it is negotiated."""
        security = self.associations.capabilities() if self.has(_F.IPSEC) else {}
        return {**self._flow_objects.capabilities(), **security}

    def resource_types(self) -> Mapping[int, ResourceType]:
        """Those of flow filters, and of IPsec once it is negotiated."""
        security = self.associations.resource_types() if self.has(_F.IPSEC) else {}
        return {**self._flow_objects.resource_types(), **security}

    def queue_reset(self, index: int) -> None:
        """The buffers kept of a queue are the driver's again."""
        self.reception.forget(index)
        self.moderation.forget(index)

    def watch(self) -> Sequence[Watch]:
        """What the port waits for, and the times of notifications that are held back."""
        return [*self.port.watch(), *self.moderation.watch()]

    def hold_notification(self, index: int) -> bool:
        """Whether coalescing has the driver wait for it."""
        if not self.features & _COALESCING or self.role(index) not in (Role.RX, Role.TX):
            return False
        return self.moderation.holds(index, *self._moderated(index))

    def _moderated(self, index: int) -> tuple[Coalescing, int]:
        """The parameters of a queue, and how many packets have passed it."""
        queue, role = self.in_service(index), Role(index & 1)
        limits = self.coalescing.of(role, queue) if queue is not None else Coalescing()
        return limits, self._counts_of(index)["rx_packets" if role == Role.RX else "tx_packets"]

    def _notify(self, index: int) -> None:
        queue = self.in_service(index)
        if queue is not None and self._end is not None and self._end.running:
            queue.notify()

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serves one chain of any queue. Raises RequestError for one that nobody can be told of otherwise."""
        role = self.role(queue.index)
        if role is None:
            raise RequestError("the queue does not exist with these features", clause="features.driver.feature-bits.2")
        _SERVE[role](self, queue, chain)

    def _control(self, queue: DeviceQueue, chain: Chain) -> None:
        serve_command(self, self.counts(queue.index), chain)
        self.moderation.recheck(self._moderated)

    def _transmit(self, queue: DeviceQueue, chain: Chain) -> None:
        counts = self._counts_of(queue.index)
        try:
            packet = read_packet(chain, self.reception.header_bytes, self.features)
            leaving = self._leaving(packet)
        except RequestError:
            # There is nobody to tell, and nothing else is wrong with the queue: the packet is lost, as on a wire.
            counts.update(tx_drops=1, tx_drop_malformed=1)
            return
        if not self.link_up:
            counts["tx_drops"] += 1
            return
        count_sent(counts, packet, leaving)
        self.steering.transmitted(packet.frame, queue.index // 2)
        for part in leaving:
            self.port.send(part)

    def _leaving(self, packet: Packet) -> list[Packet]:
        if packet.flags & HdrFlag.SECURITY:
            return secure(self.associations, packet)
        return list(fit(packet, self.port.offloads))

    def _keep(self, queue: DeviceQueue, chain: Chain) -> None:
        self.reception.keep(queue, chain)
        if self._starved:
            self._starved, self.reception.serving = False, True
            self.port.resume()
            self.reception.serving = False

    # What comes from the port

    def receive(self, packet: Packet) -> bool:
        """A packet from the port. False if there is no buffer for it, and nothing was done."""
        end = self._end
        if end is None or not self.link_up:
            return True
        taken = end.attempt(lambda: self._receive(end, packet))
        self._starved = taken is False
        return taken is not False

    def _receive(self, end: DeviceEnd, packet: Packet) -> bool:
        frame = packet.frame
        if len(frame) < ETHERNET_HEADER or not self.filter.accepts(frame):
            return self._drop(0)
        rule = self._rule(frame)
        if rule is not None and rule.action in IPSEC_ACTIONS:
            return self._receive_secured(end, packet, rule)
        return self._receive_clear(end, packet, rule)

    def _rule(self, frame: bytes) -> FlowRule | None:
        return self.flows.match(frame, network_of(frame)) if self.flows.rules else None

    def _receive_secured(self, end: DeviceEnd, packet: Packet, rule: FlowRule) -> bool:
        """Opens a packet and delivers what is in it. What finds no buffer waits here, opened: when the port comes with
        the packet again, its sequence number has been seen."""
        if self._opened_from is not packet:
            try:
                parts = list(fit(packet, 0))
            except RequestError:
                return self._drop(0)
            self._opened = deque(receive_secured(self.associations, part) for part in parts)
        while self._opened:
            part = self._opened[0]
            # Once more through the rules, and only once: a packet that would come here again is steered.
            again = self._rule(part.frame) if rule.action == FlowAction.IPSEC_RECIRCULATE else None
            if not self._receive_clear(end, part, again):
                self._opened_from = packet
                return False
            self._opened.popleft()
        self._opened_from = None
        return True

    def _receive_clear(self, end: DeviceEnd, packet: Packet, rule: FlowRule | None) -> bool:
        index, found = self._steer(end, packet.frame, rule)
        queue = end.active_queue(index) if index is not None else None
        if queue is None:
            return self._drop(0)
        try:
            parts = list(fit(packet, self.offloads, self.outer_tunnel_bits))
        except RequestError:
            return self._drop(queue.index)
        if self.features & _ANNEX:
            parts = [self._annexed(part, packet) for part in parts]
        return self._deliver(end, queue, parts, found)

    def _annexed(self, part: Packet, whole: Packet) -> Packet:
        network = network_of(part.frame) if self.has(_F.OUT_NET_HEADER) else None
        return part.annexed(whole)._replace(outer_nh_offset=network.start if network is not None else 0)

    def _steer(self, end: DeviceEnd, frame: bytes, rule: FlowRule | None) -> tuple[int | None, PacketHash]:
        """The virtqueue that a frame goes to, None for none, and its hash: flow filters come before all steering."""
        if self.pairs == 1 and self.steering.plain and rule is None and end.active_queue(0) is not None:
            return 0, NO_HASH
        network = network_of(frame)
        if self.has(_F.MQ) and not self.has(_F.CTRL_VQ):
            # Then nobody will say how many pairs are used: those that were enabled are.
            self.steering.pairs = max(1, sum(end.active_queue(2 * n) is not None for n in range(self.pairs)))
        number, found = self.steering.choose(frame, network, lambda n: end.active_queue(2 * n) is not None)
        if rule is not None and rule.action in FLOW_ACTIONS:
            return (rule.vq_index if rule.action == FlowAction.DIRECT_RX_VQ else None), found
        return (None if number is None else 2 * number), found

    def _deliver(self, end: DeviceEnd, queue: DeviceQueue, parts: list[Packet], found: PacketHash) -> bool:
        for n, part in enumerate(parts):
            if self._too_long(part):
                self._drop(queue.index)
            elif not self.reception.deliver(end, queue, part, found, self._counts_of(queue.index)):
                # Of a packet that was begun, the rest is lost: its sender will find out.
                self._counts_of(queue.index).update(rx_drops=n > 0, rx_drop_overruns=n > 0)
                return n > 0
        return True

    def _too_long(self, packet: Packet) -> bool:
        if self._mtu is None or not self.has(_F.MTU) or packet.gso != Gso.NONE:
            return False
        tag = VLAN_TAG if vlan_id(packet.frame) is not None else 0
        return len(packet.frame) > self._mtu + ETHERNET_HEADER + tag

    def _drop(self, index: int) -> bool:
        self._counts_of(index)["rx_drops"] += 1
        return True


_SERVE: Final[Mapping[Role, Callable[[NetDevice, DeviceQueue, Chain], None]]] = {
    Role.RX: NetDevice._keep,
    Role.TX: NetDevice._transmit,
    Role.CONTROL: NetDevice._control,
}
