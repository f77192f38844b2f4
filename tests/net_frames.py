"""Frames for the tests of the network device, made by hand: nothing of the code under test is in them."""

from __future__ import annotations

import struct
from collections.abc import Callable

from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import Gso, HdrFlag
from virtio_py.devices.net.ports.port import Port

US, THEM = bytes.fromhex("525400123456"), bytes.fromhex("020000000001")
BROADCAST = b"\xff" * 6
V4 = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6 = (bytes.fromhex("fd000000000000000000000000000001"), bytes.fromhex("fd000000000000000000000000000002"))


def words_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + destination + struct.pack(">BBH", 0, protocol, length)
    return source + destination + struct.pack(">IHBB", length, 0, 0, protocol)


def ip(protocol: int, body: bytes, addresses: tuple[bytes, bytes] = V4, ident: int = 7) -> bytes:
    source, destination = addresses
    if len(source) == 16:
        return struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + source + destination + body
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), ident, 0, 64, protocol, 0) + source + destination
    check = ~words_sum(head) & 0xFFFF
    return head[:10] + struct.pack(">H", check) + head[12:] + body


def ethernet(
    body: bytes, to: bytes = US, sender: bytes = THEM, vlan: int | None = None, kind: int | None = None
) -> bytes:
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, vlan)
    kind = kind if kind is not None else 0x86DD if body[:1] and body[0] >> 4 == 6 else 0x0800
    return to + sender + tag + struct.pack(">H", kind) + body


def tcp(
    payload: bytes, addresses: tuple[bytes, bytes] = V4, flags: int = 0x18, seq: int = 1000, *, partial: bool = False
) -> bytes:
    """A TCP segment; `partial`: with the pseudo header's sum in place of the checksum."""
    head = struct.pack(">HHIIBBHHH", 4000, 5000, seq, 1, 5 << 4, flags, 1024, 0, 0)
    return _transport(head + payload, 6, 16, addresses, partial)


def udp(
    payload: bytes, addresses: tuple[bytes, bytes] = V4, ports: tuple[int, int] = (4000, 5000), *, partial: bool = False
) -> bytes:
    head = struct.pack(">HHHH", *ports, 8 + len(payload), 0)
    return _transport(head + payload, 17, 6, addresses, partial)


def _transport(segment: bytes, protocol: int, at: int, addresses: tuple[bytes, bytes], partial: bool) -> bytes:
    covered = pseudo(*addresses, protocol, len(segment))
    value = words_sum(covered) if partial else ~words_sum(covered + segment) & 0xFFFF
    if protocol == 17 and not partial:
        value = value or 0xFFFF
    return segment[:at] + struct.pack(">H", value) + segment[at + 2 :]


def frame_of(payload: bytes, protocol: int = 6, version: int = 4, to: bytes = US, vlan: int | None = None) -> bytes:
    """A complete frame."""
    addresses = V4 if version == 4 else V6
    segment = tcp(payload, addresses) if protocol == 6 else udp(payload, addresses)
    return ethernet(ip(protocol, segment, addresses), to, vlan=vlan)


def partial_packet(payload: bytes, gso: Gso, version: int, gso_size: int = 0, vlan: int | None = None) -> Packet:
    """A packet whose checksum, and where `gso` says so, whose segmentation is left to somebody else."""
    addresses = V4 if version == 4 else V6
    is_tcp = gso in (Gso.TCPV4, Gso.TCPV6) or (gso == Gso.NONE and not gso_size)
    segment = (tcp if is_tcp else udp)(payload, addresses, partial=True)
    frame = ethernet(ip(6 if is_tcp else 17, segment, addresses), vlan=vlan)
    start = 14 + (20 if version == 4 else 40) + (4 if vlan is not None else 0)
    return Packet(
        frame,
        HdrFlag.NEEDS_CSUM,
        gso,
        gso_size,
        start + (20 if is_tcp else 8),
        start,
        16 if is_tcp else 6,
    )


def checksums_hold(frame: bytes) -> bool:
    """Whether every checksum in an IP frame is right, counted word by word."""
    at = 18 if frame[12:14] == b"\x81\x00" else 14
    if frame[at] >> 4 == 4:
        size, protocol = (frame[at] & 15) * 4, frame[at + 9]
        source, destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        if words_sum(frame[at : at + size]) != 0xFFFF or length != len(frame) - at:
            return False
    else:
        size, protocol = 40, frame[at + 6]
        source, destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        if int.from_bytes(frame[at + 4 : at + 6], "big") != len(frame) - at - 40:
            return False
    segment = frame[at + size :]
    return words_sum(pseudo(source, destination, protocol, len(segment)) + segment) == 0xFFFF


class Wire(Port):
    """A port in a test's hand: what was sent is in `sent`."""

    def __init__(self, offloads: int = 0) -> None:
        super().__init__()
        self.offloads = offloads
        self.sent: list[Packet] = []
        self.hook: Callable[[Packet], None] | None = None

    def send(self, packet: Packet) -> None:
        self.sent.append(packet)
        if self.hook is not None:
            self.hook(packet)

    @property
    def frames(self) -> list[bytes]:
        return [packet.frame for packet in self.sent]
