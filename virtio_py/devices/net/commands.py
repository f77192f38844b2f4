"""The driver's side of the control virtqueue: one method a command (5.1.6.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.control_layout import STATS_REPLIES, Ack, StatsType, virtio_net_ctrl
from virtio_py.devices.net.counters import STATS_OF_ROLE, Coalescing, Role
from virtio_py.devices.net.layout import NetFeature, guest_offloads
from virtio_py.driver import Driver
from virtio_py.errors import RequestError, UsageError, VirtioError
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import bit

_F = NetFeature
_UNWRITTEN: Final = 0xFF
_STATS_ROOM: Final = 4096


class NetControlError(VirtioError):
    """The device answered a command with something else than VIRTIO_NET_OK: `ack`."""

    def __init__(self, command: tuple[int, int], ack: int) -> None:
        super().__init__(f"command {command[1]} of class {command[0]} is answered {ack}")
        self.command = command
        self.ack = ack


@frozen
class RssSettings:
    """Parameters of receive-side scaling; queues are numbers of receiveqs, from 0.

    table: of a power of 2 entries;  unclassified: for packets without a hash;  max_tx: transmitqs in use
    """

    hash_types: int
    key: bytes
    table: Sequence[int] = (0,)
    unclassified: int = 0
    max_tx: int = 1

    def encode(self) -> bytes:
        """virtio_net_rss_config."""
        body = c.virtio_net_rss_config(len(self.table)).encode(
            hash_types=self.hash_types,
            indirection_table_mask=len(self.table) - 1,
            unclassified_queue=self.unclassified,
            indirection_table=tuple(self.table),
            max_tx_vq=self.max_tx,
            hash_key_length=len(self.key),
        )
        return body + self.key


class NetCommands(Driver):
    """Every command, for a driver that has `control`, its controlq. Each raises UsageError if the features do not
    allow it, NetControlError if the device refuses it, and what `Driver.transact` raises; `Driver.within` says how long
    they may take."""

    control: DriverQueue | None = None
    pairs: int = 1
    max_pairs: int = 1
    contexts: set[int]
    config: Any

    def command(self, command: tuple[int, int], data: bytes = b"", before: int = 0, result: int = 0) -> bytes:
        """Sends one command. Returns the `before` bytes of its data that the device writes, and of the `result`
        bytes behind `ack` those that it wrote."""
        if self.control is None:
            raise UsageError("VIRTIO_NET_F_CTRL_VQ was not negotiated")
        head = virtio_net_ctrl.encode(class_=command[0], command=command[1])
        sizes = [size for size in (before, 1, result) if size]
        answers, length = self.transact(self.control, [head, *([data] if data else [])], sizes)
        ack = answers[1 if before else 0][0]
        # An ack that nobody wrote reads as 0, which is OK.
        if length <= before:
            self.fail()
            raise RequestError("a command came back without an ack", queue=self.control.index)
        if ack != Ack.OK:
            raise NetControlError(command, ack)
        return answers[0] if before else b"".join(answers[1:])[: length - 1]

    def _need(self, *any_of: NetFeature) -> None:
        if not any(self.has(feature) for feature in any_of):
            raise UsageError(f"VIRTIO_NET_F_{any_of[0].name} was not negotiated")

    # Receive filtering

    def _mode(self, command: tuple[int, int], feature: NetFeature, on: bool) -> None:
        self._need(feature)
        self.command(command, bytes([on]))

    def set_promiscuous(self, on: bool) -> None:
        """Receives everything."""
        self._mode(c.RX_PROMISC, _F.CTRL_RX, on)

    def set_all_multicast(self, on: bool) -> None:
        """Receives every multicast frame."""
        self._mode(c.RX_ALLMULTI, _F.CTRL_RX, on)

    def set_all_unicast(self, on: bool) -> None:
        """Receives every unicast frame."""
        self._mode(c.RX_ALLUNI, _F.CTRL_RX_EXTRA, on)

    def set_no_multicast(self, on: bool) -> None:
        """Receives no multicast frame."""
        self._mode(c.RX_NOMULTI, _F.CTRL_RX_EXTRA, on)

    def set_no_unicast(self, on: bool) -> None:
        """Receives no unicast frame."""
        self._mode(c.RX_NOUNI, _F.CTRL_RX_EXTRA, on)

    def set_no_broadcast(self, on: bool) -> None:
        """Receives no broadcast frame."""
        self._mode(c.RX_NOBCAST, _F.CTRL_RX_EXTRA, on)

    def set_mac_table(self, macs: Iterable[bytes]) -> None:
        """The addresses that are received besides our own, 6 bytes each."""
        self._need(_F.CTRL_RX)
        groups: tuple[list[bytes], list[bytes]] = ([], [])
        for mac in macs:
            groups[mac[0] & 1].append(mac)
        tables = [c.virtio_net_ctrl_mac(len(group)).encode(entries=len(group), macs=group) for group in groups]
        self.command(c.MAC_TABLE_SET, b"".join(tables))

    def set_mac(self, mac: bytes) -> None:
        """Our own address."""
        self._need(_F.CTRL_MAC_ADDR, _F.CTRL_RX)
        self.command(c.MAC_ADDR_SET, mac)

    def add_vlan(self, vlan: int) -> None:
        """Receives frames of a VLAN, 0 to 4095."""
        self._need(_F.CTRL_VLAN)
        self.command(c.VLAN_ADD, c.virtio_net_ctrl_vlan.encode(vlan=vlan))

    def remove_vlan(self, vlan: int) -> None:
        """Receives them no longer."""
        self._need(_F.CTRL_VLAN)
        self.command(c.VLAN_DEL, c.virtio_net_ctrl_vlan.encode(vlan=vlan))

    def acknowledge_announce(self) -> None:
        """Tells the device that we have announced ourselves."""
        self._need(_F.GUEST_ANNOUNCE)
        self.command(c.ANNOUNCE_ACK)

    # Steering

    def set_pairs(self, pairs: int) -> None:
        """How many pairs of queues are used, with automatic steering."""
        self._need(_F.MQ)
        if not 1 <= pairs <= self.max_pairs:
            raise UsageError(f"{pairs} pairs of queues are not from 1 to {self.max_pairs}")
        if self.contexts:
            raise UsageError("RSS contexts are configured")
        # From here on no packet may be put into a transmitq that will not be one.
        before, self.pairs = self.pairs, min(self.pairs, pairs)
        try:
            self.command(c.MQ_VQ_PAIRS_SET, c.virtio_net_ctrl_mq_pairs_set.encode(virtqueue_pairs=pairs))
        except NetControlError:
            self.pairs = before
            raise
        self.pairs = pairs

    def set_rss(self, settings: RssSettings) -> None:
        """Receive-side scaling instead."""
        self._need(_F.RSS)
        self._check_rss(settings)
        self.command(c.MQ_RSS_CONFIG, settings.encode())
        self.pairs = settings.max_tx

    def _check_rss(self, settings: RssSettings) -> None:
        entries = len(settings.table)
        if not entries or entries & (entries - 1) or entries > self.config.rss_max_indirection_table_length:
            raise UsageError(f"an indirection table of {entries} entries")
        if not all(0 <= queue < self.max_pairs for queue in (*settings.table, settings.unclassified)):
            raise UsageError("the indirection table names queues that do not exist")
        self._check_hashing(settings.hash_types, settings.key)

    def _check_hashing(self, hash_types: int, key: bytes) -> None:
        if hash_types & ~self.config.supported_hash_types:
            raise UsageError(f"hash types {hash_types:#x} are not supported")
        if len(key) > self.config.rss_max_key_size:
            raise UsageError(f"a key of {len(key)} bytes")

    def set_hashing(self, hash_types: int, key: bytes) -> None:
        """What is reported of a packet's hash, with automatic steering."""
        self._need(_F.HASH_REPORT)
        self._check_hashing(hash_types, key)
        config = c.virtio_net_hash_config(len(key))
        data = config.encode(hash_types=hash_types, hash_key_length=len(key), hash_key_data=key)
        self.command(c.MQ_HASH_CONFIG, data)

    def set_tunnel_hashing(self, types: int) -> None:
        """The tunnels whose inner headers are hashed."""
        self._need(_F.HASH_TUNNEL)
        if types & ~self.config.supported_tunnel_types:
            raise UsageError(f"tunnel types {types:#x} are not supported")
        self.command(c.HASH_TUNNEL_SET, c.virtnet_hash_tunnel.encode(enabled_tunnel_types=types))

    def max_rss_contexts(self) -> int:
        """How many RSS contexts there can be."""
        self._need(_F.RSS_CONTEXT)
        answer = self.command(c.RSS_CTX_CAP_GET, before=c.virtnet_rss_ctx_cap.size)
        most: int = c.virtnet_rss_ctx_cap.decode(answer).max_rss_contexts
        return most

    def set_rss_context(self, context: int, settings: RssSettings) -> None:
        """Adds the RSS context, or changes it."""
        if not 1 <= context <= self.max_rss_contexts():
            raise UsageError(f"there is no RSS context {context}")
        self._check_rss(settings)
        command = c.RSS_CTX_MOD if context in self.contexts else c.RSS_CTX_ADD
        self.command(command, c.virtnet_rss_ctx_add_modify.encode(rss_ctx_id=context) + settings.encode())
        self.contexts.add(context)

    def remove_rss_context(self, context: int) -> None:
        """Removes the RSS context."""
        self._need(_F.RSS_CONTEXT)
        self.command(c.RSS_CTX_DEL, c.virtnet_rss_ctx_del.encode(rss_ctx_id=context))
        self.contexts.discard(context)

    # Offloads, coalescing, statistics

    def set_offloads(self, offloads: int) -> None:
        """What we take undone, a mask of positions as VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET numbers them."""
        self._need(_F.CTRL_GUEST_OFFLOADS)
        if extra := offloads & ~guest_offloads(self.features):
            raise UsageError(f"offloads {extra:#x} were not negotiated")
        self.command(c.GUEST_OFFLOADS_SET, c.virtio_net_ctrl_guest_offloads.encode(offloads=offloads))

    def set_coalescing(self, *, transmit: Coalescing | None = None, receive: Coalescing | None = None) -> None:
        """When notifications are to come, for all queues of a kind."""
        self._need(_F.NOTF_COAL)
        for command, value in ((c.NOTF_COAL_TX_SET, transmit), (c.NOTF_COAL_RX_SET, receive)):
            if value is not None:
                self.command(command, c.virtio_net_ctrl_coal.encode_values(value))

    def set_queue_coalescing(self, index: int, value: Coalescing) -> None:
        """When notifications are to come, for the virtqueue with an index."""
        self._need(_F.VQ_NOTF_COAL)
        self._check_data_queue(index)
        self.command(c.NOTF_COAL_VQ_SET, c.virtio_net_ctrl_coal_vq.encode(vq_index=index, coal=value))

    def queue_coalescing(self, index: int) -> Coalescing:
        """When notifications come."""
        self._need(_F.VQ_NOTF_COAL)
        self._check_data_queue(index)
        record = c.virtio_net_ctrl_coal_vq
        asked = record.encode(vq_index=index)[: record.offset("coal")]
        answer = self.command(c.NOTF_COAL_VQ_GET, asked, before=c.virtio_net_ctrl_coal.size)
        return Coalescing(*c.virtio_net_ctrl_coal.decode(answer))

    def _check_data_queue(self, index: int) -> None:
        if not 0 <= index < 2 * self.max_pairs:
            raise UsageError(f"queue {index} is no receive or transmit queue")

    def supported_statistics(self) -> int:
        """A mask of StatsType positions."""
        self._need(_F.DEVICE_STATS)
        record = c.virtio_net_stats_capabilities
        types: int = record.decode(self.command(c.STATS_QUERY, result=record.size)).supported_stats_types
        return types

    def statistics(self, index: int, *kinds: StatsType) -> Mapping[StatsType, Mapping[str, int]]:
        """Statistics of the virtqueue with an index: the counters of each kind by their names."""
        self._need(_F.DEVICE_STATS)
        supported = self.supported_statistics()
        role = Role.CONTROL if index == 2 * self.max_pairs else Role(index & 1)
        if not kinds or not all(supported & bit(kind) and kind in STATS_OF_ROLE[role] for kind in kinds):
            raise UsageError(f"queue {index} does not have these statistics")
        asked = c.virtio_net_ctrl_queue_stats.encode(vq_index=index, types_bitmap=sum(bit(kind) for kind in set(kinds)))
        return _parse_statistics(self.command(c.STATS_GET, asked, result=_STATS_ROOM))


def _parse_statistics(data: bytes) -> Mapping[StatsType, Mapping[str, int]]:
    hdr, found, at = c.virtio_net_stats_reply_hdr, {}, 0
    while at + hdr.size <= len(data):
        head = hdr.decode(data, at)
        record = STATS_REPLIES.get(head.type)
        if head.size < hdr.size:
            break
        if record is not None and record.size <= min(head.size, len(data) - at):
            values = record.as_dict(record.decode(data, at))
            del values["hdr"]
            found[StatsType(head.type)] = values
        at += head.size
    return found
