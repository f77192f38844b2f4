"""What a driver sends: the packet in a chain of a transmitq, read once and judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from virtio_py.devices.net.counters import Counts
from virtio_py.devices.net.header import Packet, annex_of, decode_header, packet_of
from virtio_py.devices.net.layout import (
    ETHERNET_HEADER,
    MAX_FRAME,
    TUNNEL,
    VLAN_TAG,
    Gso,
    HdrFlag,
    NetFeature,
    virtio_net_hdr,
)
from virtio_py.errors import RequestError
from virtio_py.rings.chain import Chain
from virtio_py.spec import bit

_NOT_A_DRIVERS: Final = HdrFlag.DATA_VALID | HdrFlag.RSC_INFO


def read_packet(chain: Chain, header_bytes: int, features: int) -> Packet:
    """The packet in a chain, behind a header of so many bytes. Raises RequestError; what is too long is not read."""
    length = chain.readable.remaining - header_bytes
    if not ETHERNET_HEADER <= length <= MAX_FRAME + VLAN_TAG:
        raise RequestError(f"{length} bytes are no frame")
    header = decode_header(chain.readable.read(header_bytes))
    if header.gso_type & TUNNEL:
        # All rules are of tunnels.
        virtio_net_hdr.validate(header, RequestError)
    elif header.flags & HdrFlag.UDP_TUNNEL_CSUM:
        raise RequestError("UDP_TUNNEL_CSUM without a tunnel", clause="net-tunnel.device.packet-transmission.13")
    # DATA_VALID and RSC_INFO are not the driver's to set: nothing that it says of a checksum is believed.
    if header.flags & _NOT_A_DRIVERS:
        header = header._replace(flags=header.flags & ~_NOT_A_DRIVERS)
    packet = packet_of(header, chain.readable.read_all())
    # Where the network header is told, nobody but IPsec asks: others look for it themselves.
    secured = header.flags & HdrFlag.SECURITY and features & bit(NetFeature.IPSEC)
    return annex_of(packet, header, features) if secured else packet


def count_sent(counts: Counts, packet: Packet, parts: Sequence[Packet]) -> None:
    """Counts a packet and what left for it."""
    size = sum(len(part.frame) for part in parts)
    counts.update(tx_packets=len(parts), tx_bytes=size)
    counts["tx_needs_csum" if packet.needs_csum else "tx_csum_none"] += 1
    if packet.gso == Gso.NONE:
        return
    counts.update(tx_gso_packets=1, tx_gso_bytes=len(packet.frame))
    if parts[0].gso == Gso.NONE:
        counts.update(tx_gso_segments=len(parts), tx_gso_segments_bytes=size)
    else:
        counts.update(tx_gso_packets_noseg=1, tx_gso_bytes_noseg=size)
