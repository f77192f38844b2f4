"""The Internet checksum (RFC 1071), and completing one that a sender left to us."""

from __future__ import annotations

from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import HdrFlag
from virtio_py.errors import RequestError

UDP_CHECKSUM = 6
"""Offset in bytes of the checksum in a UDP header; no other protocol that is offloaded has its own there."""


def ones_sum(data: bytes | bytearray | memoryview) -> int:
    """The 16-bit one's complement sum of `data`, in network order, padded with a zero byte where its length is odd.

    2^16 is 1 modulo 2^16 - 1, so that the sum of the words is the remainder of the whole as one number. Where that
    is zero, the sum is 0xffff, unless there was nothing but zeros to add.
    """
    number = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    return number % 0xFFFF or (0xFFFF if number else 0)


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The Internet checksum of `data`; 0 if `data` holds a valid one."""
    return ~ones_sum(data) & 0xFFFF


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """The bytes that a TCP or UDP checksum covers besides segment and header: the addresses, 4 or 16 bytes each."""
    if len(source) == 4:
        return source + destination + bytes([0, protocol]) + length.to_bytes(2, "big")
    return source + destination + length.to_bytes(4, "big") + bytes([0, 0, 0, protocol])


def transport_checksum(source: bytes, destination: bytes, protocol: int, segment: bytes | bytearray) -> int:
    """The checksum of a TCP or UDP segment whose own checksum field is 0; never 0 itself for UDP."""
    value = checksum(pseudo_header(source, destination, protocol, len(segment)) + segment)
    return value or (0xFFFF if protocol == 17 else 0)


def complete(packet: Packet) -> Packet:
    """The same packet with its checksum in place. Raises RequestError for one that would lie outside the frame."""
    if not packet.needs_csum:
        return packet
    frame = bytearray(packet.frame)
    at = packet.csum_start + packet.csum_offset
    if at + 2 > len(frame):
        raise RequestError(
            f"a checksum at {packet.csum_start}+{packet.csum_offset} of {len(frame)} bytes",
            clause="net.driver.packet-transmission.30",
        )
    # The field holds the sum over the pseudo header, not inverted, and is part of what is added up.
    value = checksum(memoryview(frame)[packet.csum_start :])
    if not value and packet.csum_offset == UDP_CHECKSUM:
        value = 0xFFFF
    frame[at : at + 2] = value.to_bytes(2, "big")
    return packet._replace(frame=bytes(frame), flags=packet.flags & ~HdrFlag.NEEDS_CSUM, csum_start=0, csum_offset=0)
