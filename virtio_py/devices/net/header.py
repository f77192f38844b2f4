"""The header in front of every packet: how long it is, and its meaning as a Packet."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from virtio_py.devices.net.layout import GSO_FLAGS, Gso, HdrFlag, NetFeature, virtio_net_hdr
from virtio_py.spec import Feature, bit, mask

_LADDER: Final = (
    (mask(NetFeature.OUT_NET_HEADER, NetFeature.IPSEC), virtio_net_hdr.size),
    # A clause names only the HOST feature, the structure's comment both.
    (mask(NetFeature.HOST_UDP_TUNNEL_GSO, NetFeature.GUEST_UDP_TUNNEL_GSO), virtio_net_hdr.end("inner_nh_offset")),
    (mask(NetFeature.HASH_REPORT), virtio_net_hdr.end("padding_reserved")),
    (mask(Feature.VERSION_1, NetFeature.MRG_RXBUF), virtio_net_hdr.end("num_buffers")),
    (0, virtio_net_hdr.end("csum_offset")),
)
"""A ladder, not a sum: offsets are fixed, and what a rung does not use is padding to those above it."""


def header_size(features: int) -> int:
    """Bytes of `virtio_net_hdr` with these features, the same for receiving and sending: 10, 12, 20, 24 or 32."""
    return next(size for needed, size in _LADDER if features & needed or not needed)


class Packet(NamedTuple):
    """A frame, and what is still to be done to it before it may go onto a wire.

    frame:        Ethernet header and payload, without a frame check sequence
    flags:        mask of HdrFlag;  gso_type: a Gso with bits of GsoFlag
    gso_size:     bytes of payload in a segment;  hdr_len: bytes of all headers, a hint and no more
    csum_start:   where the sum over the packet begins; csum_offset: where the result goes, from there
    outer_th_offset, inner_nh_offset: where the tunnel's UDP and the tunnelled network header are
    outer_nh_offset: where the network header is, 0 if that is not told
    resource_id, resource_type: with the flag SECURITY, the security association
    """

    frame: bytes
    flags: int = 0
    gso_type: int = 0
    gso_size: int = 0
    hdr_len: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    outer_th_offset: int = 0
    inner_nh_offset: int = 0
    outer_nh_offset: int = 0
    resource_id: int = 0
    resource_type: int = 0

    @property
    def gso(self) -> int:
        """The Gso in `gso_type`, or a number that is none."""
        return self.gso_type & ~GSO_FLAGS

    @property
    def needs_csum(self) -> bool:
        """Whether the checksum is not complete."""
        return bool(self.flags & HdrFlag.NEEDS_CSUM)

    def annexed(self, other: Packet) -> Packet:
        """The same packet with what another says of the network header and of security."""
        return self._replace(
            flags=self.flags & ~SECURITY_FLAGS | other.flags & SECURITY_FLAGS,
            outer_nh_offset=other.outer_nh_offset,
            resource_id=other.resource_id,
            resource_type=other.resource_type,
        )


SECURITY_FLAGS: Final = HdrFlag.SECURITY | HdrFlag.SECURITY_ERR | HdrFlag.SECURITY_SA_SOFT_EXPIRY_WARN
_CODEC: Final = virtio_net_hdr.codec
_MEANT: Final = HdrFlag.NEEDS_CSUM | HdrFlag.DATA_VALID | HdrFlag.UDP_TUNNEL_CSUM


def decode_header(data: bytes) -> Any:
    """The header's fields from its bytes, as many as there are; those behind its end are 0."""
    return virtio_net_hdr.decode(data.ljust(virtio_net_hdr.size, b"\0"))


def packet_of(header: Any, frame: bytes) -> Packet:
    """The packet that a header and a frame make. What a flag does not bring into being is left out of it."""
    flags = header.flags & _MEANT
    if not flags and not header.gso_type:
        return Packet(frame, hdr_len=header.hdr_len)
    packet = Packet(frame, flags, header.gso_type, hdr_len=header.hdr_len)
    # With RSC_INFO the two fields are counters.
    if flags & HdrFlag.NEEDS_CSUM and not header.flags & HdrFlag.RSC_INFO:
        packet = packet._replace(csum_start=header.csum_start, csum_offset=header.csum_offset)
    if packet.gso != Gso.NONE:
        packet = packet._replace(
            gso_size=header.gso_size, outer_th_offset=header.outer_th_offset, inner_nh_offset=header.inner_nh_offset
        )
    return packet


def annex_of(packet: Packet, header: Any, features: int) -> Packet:
    """The same packet with what the header says of the network header and of security, as far as the features bring
    these fields into being."""
    if features & bit(NetFeature.OUT_NET_HEADER):
        packet = packet._replace(outer_nh_offset=header.outer_nh_offset)
    if features & bit(NetFeature.IPSEC) and header.flags & HdrFlag.SECURITY:
        packet = packet._replace(
            flags=packet.flags | header.flags & SECURITY_FLAGS,
            resource_id=header.resource_id,
            resource_type=header.resource_type,
        )
    return packet


def encode_header(
    packet: Packet, size: int, *, num_buffers: int = 0, hash_value: int = 0, hash_report: int = 0
) -> bytes:
    """The first `size` bytes of a packet's header."""
    return _CODEC.pack(
        packet.flags,
        packet.gso_type,
        packet.hdr_len,
        packet.gso_size,
        packet.csum_start,
        packet.csum_offset,
        num_buffers,
        hash_value,
        hash_report,
        0,
        packet.outer_th_offset,
        packet.inner_nh_offset,
        packet.outer_nh_offset,
        packet.resource_id,
        packet.resource_type,
    )[:size]
