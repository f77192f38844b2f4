"""The control virtqueue's commands and structures (5.1.6.5), under the specification's names."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.records import Record, RecordFamily, Register


class CtrlClass(IntEnum):
    """`class` of virtio_net_ctrl."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5
    NOTF_COAL = 6
    HASH_TUNNEL = 7
    STATS = 8
    RSS_CTX = 9


RX_PROMISC: Final = (CtrlClass.RX, 0)
RX_ALLMULTI: Final = (CtrlClass.RX, 1)
RX_ALLUNI: Final = (CtrlClass.RX, 2)
RX_NOMULTI: Final = (CtrlClass.RX, 3)
RX_NOUNI: Final = (CtrlClass.RX, 4)
RX_NOBCAST: Final = (CtrlClass.RX, 5)
MAC_TABLE_SET: Final = (CtrlClass.MAC, 0)
MAC_ADDR_SET: Final = (CtrlClass.MAC, 1)
VLAN_ADD: Final = (CtrlClass.VLAN, 0)
VLAN_DEL: Final = (CtrlClass.VLAN, 1)
ANNOUNCE_ACK: Final = (CtrlClass.ANNOUNCE, 0)
MQ_VQ_PAIRS_SET: Final = (CtrlClass.MQ, 0)
MQ_RSS_CONFIG: Final = (CtrlClass.MQ, 1)
MQ_HASH_CONFIG: Final = (CtrlClass.MQ, 2)
GUEST_OFFLOADS_SET: Final = (CtrlClass.GUEST_OFFLOADS, 0)
NOTF_COAL_TX_SET: Final = (CtrlClass.NOTF_COAL, 0)
NOTF_COAL_RX_SET: Final = (CtrlClass.NOTF_COAL, 1)
NOTF_COAL_VQ_SET: Final = (CtrlClass.NOTF_COAL, 2)
NOTF_COAL_VQ_GET: Final = (CtrlClass.NOTF_COAL, 3)
HASH_TUNNEL_SET: Final = (CtrlClass.HASH_TUNNEL, 0)
STATS_QUERY: Final = (CtrlClass.STATS, 0)
STATS_GET: Final = (CtrlClass.STATS, 1)
RSS_CTX_CAP_GET: Final = (CtrlClass.RSS_CTX, 0)
RSS_CTX_ADD: Final = (CtrlClass.RSS_CTX, 1)
RSS_CTX_MOD: Final = (CtrlClass.RSS_CTX, 2)
RSS_CTX_DEL: Final = (CtrlClass.RSS_CTX, 3)
"""Each command as (class, command)."""


class Ack(IntEnum):
    """`ack` of virtio_net_ctrl, VIRTIO_NET_*."""

    OK = 0
    ERR = 1


_CONTROL: Final = "5.1.6.5 Control Virtqueue"

virtio_net_ctrl = Record("virtio_net_ctrl", Struct("class_" / Int8ul, "command" / Int8ul), cite=_CONTROL)
"""The head of a command, whose `class` is a word of Python; data, `ack` and a result follow."""

virtio_net_ctrl_mac = RecordFamily(
    "virtio_net_ctrl_mac",
    lambda entries: Struct("entries" / Int32ul, "macs" / Array(entries, Bytes(6))),
    cite=_CONTROL,
)
"""A table of `entries` addresses; MAC_TABLE_SET carries two, of unicast and of multicast addresses."""

virtio_net_ctrl_vlan = Record("virtio_net_ctrl_vlan", Struct("vlan" / Int16ul), cite=_CONTROL)
virtio_net_ctrl_mq_pairs_set = Record(
    "virtio_net_ctrl_mq_pairs_set", Struct("virtqueue_pairs" / Int16ul), cite=_CONTROL
)
virtio_net_ctrl_guest_offloads = Record("virtio_net_ctrl_guest_offloads", Struct("offloads" / Int64ul), cite=_CONTROL)
virtnet_hash_tunnel = Record("virtnet_hash_tunnel", Struct("enabled_tunnel_types" / Int32ul), cite=_CONTROL)

virtio_net_hash_config = RecordFamily(
    "virtio_net_hash_config",
    lambda key: Struct(
        "hash_types" / Int32ul, "reserved" / Array(4, Int16ul), "hash_key_length" / Int8ul, "hash_key_data" / Bytes(key)
    ),
    cite=_CONTROL,
)
"""By the length of the key. The layout is that of virtio_net_rss_config with a table of one entry."""

rss_rq_id = Register(Int16ul, vq_index_1_16=15, reserved=1)

virtio_net_rss_config = RecordFamily(
    "virtio_net_rss_config",
    lambda entries: Struct(
        "hash_types" / Int32ul,
        "indirection_table_mask" / Int16ul,
        "unclassified_queue" / rss_rq_id,
        "indirection_table" / Array(entries, rss_rq_id),
        "max_tx_vq" / Int16ul,
        "hash_key_length" / Int8ul,
    ),
    cite=_CONTROL,
)
"""By the number of entries in the indirection table; `hash_key_length` bytes of `hash_key_data` follow."""

virtnet_rss_ctx_cap = Record("virtnet_rss_ctx_cap", Struct("max_rss_contexts" / Int16ul), cite=_CONTROL)
virtnet_rss_ctx_add_modify = Record(
    "virtnet_rss_ctx_add_modify", Struct("rss_ctx_id" / Int16ul, "reserved" / Bytes(6)), cite=_CONTROL
)
"""The head; a virtio_net_rss_config follows."""
virtnet_rss_ctx_del = Record("virtnet_rss_ctx_del", Struct("rss_ctx_id" / Int16ul), cite=_CONTROL)

virtio_net_ctrl_coal = Record(
    "virtio_net_ctrl_coal", Struct("max_packets" / Int32ul, "max_usecs" / Int32ul), cite=_CONTROL
)
virtio_net_ctrl_coal_vq = Record(
    "virtio_net_ctrl_coal_vq",
    Struct("vq_index" / Int16ul, "reserved" / Int16ul, "coal" / virtio_net_ctrl_coal.layout),
    cite=_CONTROL,
)

virtio_net_stats_capabilities = Record(
    "virtio_net_stats_capabilities", Struct("supported_stats_types" / Int64ul), cite=_CONTROL
)
virtio_net_ctrl_queue_stats = Record(
    "virtio_net_ctrl_queue_stats",
    Struct("vq_index" / Int16ul, "reserved" / Array(3, Int16ul), "types_bitmap" / Int64ul),
    cite=_CONTROL,
)
"""One entry of what STATS_GET asks for."""
virtio_net_stats_reply_hdr = Record(
    "virtio_net_stats_reply_hdr",
    Struct("type" / Int8ul, "reserved" / Int8ul, "vq_index" / Int16ul, "reserved1" / Int16ul, "size" / Int16ul),
    cite=_CONTROL,
)


class StatsType(IntEnum):
    """VIRTIO_NET_STATS_TYPE_REPLY_*: a number in replies, the position of a bit in capabilities and requests."""

    RX_BASIC = 0
    RX_CSUM = 1
    RX_GSO = 2
    RX_SPEED = 3
    TX_BASIC = 16
    TX_CSUM = 17
    TX_GSO = 18
    TX_SPEED = 19
    CVQ = 32


def _stats(name: str, *counters: str) -> Record:
    return Record(
        name,
        Struct("hdr" / virtio_net_stats_reply_hdr.layout, *(counter / Int64ul for counter in counters)),
        cite=_CONTROL,
    )


STATS_REPLIES: Final[Mapping[StatsType, Record]] = {
    StatsType.CVQ: _stats("virtio_net_stats_cvq", "command_num", "ok_num"),
    StatsType.RX_BASIC: _stats(
        "virtio_net_stats_rx_basic",
        "rx_notifications",
        "rx_packets",
        "rx_bytes",
        "rx_interrupts",
        "rx_drops",
        "rx_drop_overruns",
    ),
    StatsType.TX_BASIC: _stats(
        "virtio_net_stats_tx_basic",
        "tx_notifications",
        "tx_packets",
        "tx_bytes",
        "tx_interrupts",
        "tx_drops",
        "tx_drop_malformed",
    ),
    StatsType.RX_CSUM: _stats(
        "virtio_net_stats_rx_csum", "rx_csum_valid", "rx_needs_csum", "rx_csum_none", "rx_csum_bad"
    ),
    StatsType.TX_CSUM: _stats("virtio_net_stats_tx_csum", "tx_csum_none", "tx_needs_csum"),
    StatsType.RX_GSO: _stats(
        "virtio_net_stats_rx_gso",
        "rx_gso_packets",
        "rx_gso_bytes",
        "rx_gso_packets_coalesced",
        "rx_gso_bytes_coalesced",
    ),
    StatsType.TX_GSO: _stats(
        "virtio_net_stats_tx_gso",
        "tx_gso_packets",
        "tx_gso_bytes",
        "tx_gso_segments",
        "tx_gso_segments_bytes",
        "tx_gso_packets_noseg",
        "tx_gso_bytes_noseg",
    ),
    StatsType.RX_SPEED: _stats(
        "virtio_net_stats_rx_speed", "rx_packets_allowance_exceeded", "rx_bytes_allowance_exceeded"
    ),
    StatsType.TX_SPEED: _stats(
        "virtio_net_stats_tx_speed", "tx_packets_allowance_exceeded", "tx_bytes_allowance_exceeded"
    ),
}
"""The structure of each statistic; `hdr.size` counts the header in."""
