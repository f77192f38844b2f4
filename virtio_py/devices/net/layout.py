"""Features, numbers and structures of the network device (5.1), under the specification's names.

All integers are little-endian. What the control virtqueue carries is in `control_layout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Final

from construct import Bytes, Int8ul, Int16ul, Int32ul, Struct

from virtio_py.records import Record, Rule
from virtio_py.spec import bit, mask
from virtio_py.status import FeatureNeeds, missing_needs


class NetFeature(IntEnum):
    """Positions of the feature bits VIRTIO_NET_F_* (5.1.3)."""

    CSUM = 0
    GUEST_CSUM = 1
    CTRL_GUEST_OFFLOADS = 2
    MTU = 3
    MAC = 5
    GSO = 6  # legacy
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    GUEST_UFO = 10
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    HOST_UFO = 14
    MRG_RXBUF = 15
    STATUS = 16
    CTRL_VQ = 17
    CTRL_RX = 18
    CTRL_VLAN = 19
    CTRL_RX_EXTRA = 20
    GUEST_ANNOUNCE = 21
    MQ = 22
    CTRL_MAC_ADDR = 23
    GUEST_RSC4 = 41  # legacy
    GUEST_RSC6 = 42  # legacy
    DEVICE_STATS = 50
    HASH_TUNNEL = 51
    VQ_NOTF_COAL = 52
    NOTF_COAL = 53
    GUEST_USO4 = 54
    GUEST_USO6 = 55
    HOST_USO = 56
    HASH_REPORT = 57
    GUEST_HDRLEN = 59
    RSS = 60
    RSC_EXT = 61
    STANDBY = 62
    SPEED_DUPLEX = 63
    RSS_CONTEXT = 64
    GUEST_UDP_TUNNEL_GSO = 65
    GUEST_UDP_TUNNEL_GSO_CSUM = 66
    HOST_UDP_TUNNEL_GSO = 67
    HOST_UDP_TUNNEL_GSO_CSUM = 68
    OUT_NET_HEADER = 69
    IPSEC = 70


_F = NetFeature

FEATURE_NEEDS: Final[FeatureNeeds] = {
    _F.GUEST_TSO4: (_F.GUEST_CSUM,),
    _F.GUEST_TSO6: (_F.GUEST_CSUM,),
    _F.GUEST_UFO: (_F.GUEST_CSUM,),
    _F.GUEST_USO4: (_F.GUEST_CSUM,),
    _F.GUEST_USO6: (_F.GUEST_CSUM,),
    _F.GUEST_UDP_TUNNEL_GSO: (_F.GUEST_TSO4, _F.GUEST_TSO6, _F.GUEST_USO4, _F.GUEST_USO6),
    _F.GUEST_UDP_TUNNEL_GSO_CSUM: (_F.GUEST_UDP_TUNNEL_GSO,),
    _F.HOST_TSO4: (_F.CSUM,),
    _F.HOST_TSO6: (_F.CSUM,),
    _F.HOST_UFO: (_F.CSUM,),
    _F.HOST_USO: (_F.CSUM,),
    _F.HOST_UDP_TUNNEL_GSO: (_F.HOST_TSO4, _F.HOST_TSO6, _F.HOST_USO),
    _F.HOST_UDP_TUNNEL_GSO_CSUM: (_F.HOST_UDP_TUNNEL_GSO,),
    _F.CTRL_RX: (_F.CTRL_VQ,),
    _F.CTRL_VLAN: (_F.CTRL_VQ,),
    _F.GUEST_ANNOUNCE: (_F.CTRL_VQ,),
    _F.MQ: (_F.CTRL_VQ,),
    _F.CTRL_MAC_ADDR: (_F.CTRL_VQ,),
    _F.NOTF_COAL: (_F.CTRL_VQ,),
    _F.RSS: (_F.CTRL_VQ,),
    _F.VQ_NOTF_COAL: (_F.CTRL_VQ,),
    _F.HASH_TUNNEL: (_F.CTRL_VQ,),
    _F.RSS_CONTEXT: (_F.CTRL_VQ, _F.RSS),
}
"""5.1.3.1, where a feature needs all of others."""

FEATURE_NEEDS_ANY: Final[FeatureNeeds] = {
    _F.GUEST_ECN: (_F.GUEST_TSO4, _F.GUEST_TSO6),
    _F.HOST_ECN: (_F.HOST_TSO4, _F.HOST_TSO6),
    _F.RSC_EXT: (_F.HOST_TSO4, _F.HOST_TSO6),
    _F.HASH_TUNNEL: (_F.RSS, _F.HASH_REPORT),
}
"""5.1.3.1, where a feature needs one of others. RSC_EXT stands here as the table has it; the prose says GUEST_TSO*."""


def missing_any(features: int) -> list[int]:
    """The feature positions of a set that need one of others and have none."""
    groups = FEATURE_NEEDS_ANY.items()
    return [feature for feature, wanted in groups if features & bit(feature) and not features & mask(*wanted)]


def consistent(features: int) -> int:
    """A set of features without those that lack what they need, or are of no use without it (5.1.3.1, 5.1.4.1)."""
    if not features & bit(_F.CTRL_VQ):
        features &= ~mask(_F.HASH_REPORT, _F.CTRL_RX_EXTRA)
    while lacking := [feature for feature, _ in missing_needs(features, FEATURE_NEEDS)] or missing_any(features):
        features &= ~mask(*lacking)
    return features


class NetStatus(IntFlag):
    """`status` of the configuration, VIRTIO_NET_S_* (5.1.4)."""

    LINK_UP = 1
    ANNOUNCE = 2


SPEED_UNKNOWN: Final = 0xFFFFFFFF
SPEED_MAX: Final = 0x7FFFFFFF
"""`speed` in Mbit/s goes up to SPEED_MAX. (A clause writes both numbers with a digit too many for a le32.)"""


class Duplex(IntEnum):
    """`duplex`, as the prose and every implementation have it; a clause has HALF and FULL the other way round."""

    HALF = 0
    FULL = 1
    UNKNOWN = 0xFF


MTU_MIN: Final = 68
MTU_MAX: Final = 65535
MAX_PAIRS: Final = 0x8000
"""VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX."""
RSS_KEY_BYTES: Final = 40
"""The least that `rss_max_key_size` may be."""
RSS_TABLE_ENTRIES: Final = 128
"""The least that `rss_max_indirection_table_length` may be."""

_CONFIG: Final = "5.1.4 Device configuration layout"

virtio_net_config = Record(
    "virtio_net_config",
    Struct(
        "mac" / Bytes(6),
        "status" / Int16ul,
        "max_virtqueue_pairs" / Int16ul,
        "mtu" / Int16ul,
        "speed" / Int32ul,
        "duplex" / Int8ul,
        "rss_max_key_size" / Int8ul,
        "rss_max_indirection_table_length" / Int16ul,
        "supported_hash_types" / Int32ul,
        "supported_tunnel_types" / Int32ul,
    ),
    cite=_CONFIG,
)
"""`mac` is in the order of the wire, `mtu` in bytes without the Ethernet header, `speed` in Mbit/s."""

_RSS_OR_HASH: Final = (_F.RSS, _F.HASH_REPORT)
CONFIG_FIELDS: Final[Mapping[str, tuple[NetFeature, ...]]] = {
    "mac": (_F.MAC,),
    "status": (_F.STATUS,),
    "max_virtqueue_pairs": (_F.MQ, _F.RSS),
    "mtu": (_F.MTU,),
    "speed": (_F.SPEED_DUPLEX,),
    "duplex": (_F.SPEED_DUPLEX,),
    "rss_max_key_size": _RSS_OR_HASH,
    "rss_max_indirection_table_length": (_F.RSS,),
    "supported_hash_types": _RSS_OR_HASH,
    "supported_tunnel_types": (_F.HASH_TUNNEL,),
}
"""Each configuration field, and the features of which one brings it into being."""


def config_length(features: int) -> int:
    """How many bytes of the configuration hold all fields that these features make valid. There are carriers without a
    configuration space: 0 means that nobody need look."""
    names = [name for name, any_of in CONFIG_FIELDS.items() if features & mask(*any_of)]
    return max(map(virtio_net_config.end, names), default=0)


class HdrFlag(IntEnum):
    """`flags` of a packet, VIRTIO_NET_HDR_F_* (5.1.6). Masks; no IntFlag, whose operators take a microsecond each."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4
    UDP_TUNNEL_CSUM = 8
    SECURITY = 16
    SECURITY_ERR = 32
    SECURITY_SA_SOFT_EXPIRY_WARN = 64


class Gso(IntEnum):
    """`gso_type` of a packet, VIRTIO_NET_HDR_GSO_* (5.1.6), the bits of GsoFlag aside."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


class GsoFlag(IntEnum):
    """Bits that stand beside a Gso in `gso_type`. Masks, as HdrFlag."""

    UDP_TUNNEL_IPV4 = 0x20
    UDP_TUNNEL_IPV6 = 0x40
    ECN = 0x80


TUNNEL: Final = GsoFlag.UDP_TUNNEL_IPV4 | GsoFlag.UDP_TUNNEL_IPV6
GSO_FLAGS: Final = TUNNEL | int(GsoFlag.ECN)

virtio_net_hdr = Record(
    "virtio_net_hdr",
    Struct(
        "flags" / Int8ul,
        "gso_type" / Int8ul,
        "hdr_len" / Int16ul,
        "gso_size" / Int16ul,
        "csum_start" / Int16ul,
        "csum_offset" / Int16ul,
        "num_buffers" / Int16ul,
        "hash_value" / Int32ul,
        "hash_report" / Int16ul,
        "padding_reserved" / Int16ul,
        "outer_th_offset" / Int16ul,
        "inner_nh_offset" / Int16ul,
        "outer_nh_offset" / Int16ul,
        "resource_id" / Int32ul,
        "resource_type" / Int16ul,
    ),
    cite="5.1.6 Device Operation",
    rules=(
        Rule(
            "net-tunnel.device.packet-transmission.8",
            "gso_type",
            lambda h: h.gso_type & TUNNEL != TUNNEL,
            "both tunnel bits are set",
        ),
        Rule(
            "net-tunnel.device.packet-transmission.10",
            "flags",
            lambda h: not h.gso_type & TUNNEL or bool(h.flags & HdrFlag.NEEDS_CSUM),
            "a tunnel bit is set, NEEDS_CSUM is not",
        ),
        Rule(
            "net-tunnel.device.packet-transmission.11",
            "flags",
            lambda h: not h.gso_type & TUNNEL or not h.flags & HdrFlag.DATA_VALID,
            "a tunnel bit and DATA_VALID are set",
        ),
        Rule(
            "net-tunnel.device.packet-transmission.12",
            "gso_type",
            lambda h: not h.gso_type & TUNNEL or bool(h.gso_type & ~GSO_FLAGS),
            "a tunnel bit is set, but there is nothing to segment",
        ),
    ),
)
"""The header in its full length; how much of it there is, `header.header_size` says. Lengths are in bytes, offsets in
bytes from the packet's first byte, which stands behind the header; `csum_offset` is relative to `csum_start`."""

ETHERNET_HEADER: Final = 14
VLAN_TAG: Final = 4
MAX_FRAME: Final = 65589
"""Bytes of the largest packet: Ethernet and IPv6 headers, and a payload of 65535 (5.1.6.3)."""

# The offloads of a receiver, as VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET numbers them: mostly, but not always, as features.

OFFLOAD_TUNNEL_GSO: Final = 46
OFFLOAD_TUNNEL_GSO_CSUM: Final = 47

OFFLOAD_OF_GUEST_FEATURE: Final[Mapping[int, int]] = {
    **{f: int(f) for f in (_F.GUEST_CSUM, _F.GUEST_TSO4, _F.GUEST_TSO6, _F.GUEST_ECN, _F.GUEST_UFO)},
    _F.GUEST_UDP_TUNNEL_GSO: OFFLOAD_TUNNEL_GSO,
    _F.GUEST_UDP_TUNNEL_GSO_CSUM: OFFLOAD_TUNNEL_GSO_CSUM,
    _F.GUEST_USO4: int(_F.GUEST_USO4),
    _F.GUEST_USO6: int(_F.GUEST_USO6),
}
"""What a driver can receive: feature position to offload position."""

OFFLOAD_OF_HOST_FEATURE: Final[Mapping[int, tuple[int, ...]]] = {
    _F.CSUM: (_F.GUEST_CSUM,),
    _F.HOST_TSO4: (_F.GUEST_TSO4,),
    _F.HOST_TSO6: (_F.GUEST_TSO6,),
    _F.HOST_ECN: (_F.GUEST_ECN,),
    _F.HOST_UFO: (_F.GUEST_UFO,),
    _F.HOST_USO: (_F.GUEST_USO4, _F.GUEST_USO6),
    _F.HOST_UDP_TUNNEL_GSO: (OFFLOAD_TUNNEL_GSO,),
    _F.HOST_UDP_TUNNEL_GSO_CSUM: (OFFLOAD_TUNNEL_GSO_CSUM,),
}
"""What a device can be sent, in the same positions: feature position to offload positions."""


def guest_offloads(features: int) -> int:
    """The mask of offload positions that the driver can receive."""
    return mask(*(to for feature, to in OFFLOAD_OF_GUEST_FEATURE.items() if features & bit(feature)))


def host_offloads(features: int) -> int:
    """The mask of offload positions that the device can be sent."""
    return mask(
        *(to for feature, all_of in OFFLOAD_OF_HOST_FEATURE.items() if features & bit(feature) for to in all_of)
    )


ALL_OFFLOADS: Final = mask(*OFFLOAD_OF_GUEST_FEATURE.values())
"""Every offload: a receiver that takes packets as they are."""
