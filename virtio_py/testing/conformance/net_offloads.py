"""Large packets through a network device: cut for a driver that cannot take them, marked for one that can (5.1.6)."""

from __future__ import annotations

from typing import Any, Final

from virtio_py.devices.net.header import decode_header, header_size
from virtio_py.devices.net.layout import ETHERNET_HEADER, GSO_FLAGS, Gso, HdrFlag, NetFeature, virtio_net_hdr
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.kinds import net_send
from virtio_py.testing.conformance.net import Received
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Skipped

_F = NetFeature
_IP: Final = bytes.fromhex("4500 0000 0001 0000 4006 0000 0a4f0001 0a4f0002")
_TCP: Final = bytes.fromhex("1000 2000 00000001 00000000 5010 ffff 0000 0000")
_TCP_START: Final = ETHERNET_HEADER + len(_IP)
_HEADERS: Final = _TCP_START + len(_TCP)
_CHECKSUM: Final = 16
"""Where TCP has its checksum."""
_SEGMENT: Final = 1000
_INCOMING: Final = "net.device.incoming-packets"


def folded(data: bytes) -> int:
    """The Internet checksum's sum of 16-bit words, not inverted."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _pseudo(ip: bytes, length: int) -> int:
    return folded(ip[12:20] + bytes([0, 6]) + length.to_bytes(2, "big"))


def tcp_frame(payload: bytes, source: int = 0x1000) -> bytes:
    """A TCP segment over IPv4 whose TCP checksum is that of the pseudo header only. source: its port."""
    length = len(_TCP) + len(payload)
    ip = _IP[:2] + (len(_IP) + length).to_bytes(2, "big") + _IP[4:]
    ip = ip[:10] + (~folded(ip) & 0xFFFF).to_bytes(2, "big") + ip[12:]
    tcp = source.to_bytes(2, "big") + _TCP[2:_CHECKSUM] + _pseudo(ip, length).to_bytes(2, "big") + _TCP[_CHECKSUM + 2 :]
    return b"\xff" * 6 + bytes.fromhex("525400123456 0800") + ip + tcp + payload


def _send(rig: Rig, payload: bytes, gso_size: int) -> None:
    """A packet for the device to finish, and to cut if gso_size is not 0."""
    header = virtio_net_hdr.encode(
        flags=HdrFlag.NEEDS_CSUM,
        gso_type=Gso.TCPV4 if gso_size else Gso.NONE,
        gso_size=gso_size,
        hdr_len=_HEADERS,
        csum_start=_TCP_START,
        csum_offset=_CHECKSUM,
    )
    rig.ask(net_send(rig, tcp_frame(payload), header[: header_size(rig.features)]))


def _packets(rig: Rig, received: Received, payload: int) -> list[tuple[Any, bytes]]:
    """(header, frame) of what comes back until so many bytes of payload have. Raises Skipped where nothing does."""
    found: list[tuple[Any, bytes]] = []

    def enough() -> bool:
        for data, _ in received.used():
            found.append((decode_header(data[: received.header_size]), data[received.header_size :]))
        return sum(len(frame) - _HEADERS for _, frame in found) >= payload

    if not rig.holds(enough, 10 * rig.quiet) and not found:
        raise Skipped("nobody sends our packets back")
    rig.require(bool(found) and sum(len(frame) - _HEADERS for _, frame in found) == payload, "parts of it are missing")
    return found


def _is_finished(frame: bytes) -> bool:
    """Whether the TCP checksum is right. No IP options here."""
    tcp = frame[_TCP_START:]
    return folded(_pseudo(frame[ETHERNET_HEADER:], len(tcp)).to_bytes(2, "big") + tcp) == 0xFFFF


@check(f"{_INCOMING}.5", f"{_INCOMING}.6", devices="net", needs=(_F.CSUM,))
def a_checksum_is_finished(rig: Rig) -> None:
    """A packet sent without a checksum comes back with one, where VIRTIO_NET_F_GUEST_CSUM was not accepted."""
    rig.start(_F.CSUM)
    received = Received(rig, 2048)
    _send(rig, bytes(range(200)), 0)
    [(header, frame)] = _packets(rig, received, 200)
    rig.require(header.flags == 0, f"flags are {header.flags:#x}", f"{_INCOMING}.5")
    rig.should(_is_finished(frame), "a received packet's checksum is not complete")


@check(f"{_INCOMING}.7", f"{_INCOMING}.26", devices="net", needs=(_F.CSUM, _F.HOST_TSO4))
def a_large_packet_is_cut(rig: Rig) -> None:
    """A packet sent to be cut is cut, where VIRTIO_NET_F_GUEST_TSO4 was not accepted."""
    rig.start(_F.CSUM, _F.HOST_TSO4)
    # With room for all of it: so that a packet that is not cut arrives, and is not lost.
    received = Received(rig, 8192)
    _send(rig, bytes(range(250)) * 12, _SEGMENT)
    found = _packets(rig, received, 3000)
    rig.require(len(found) == 3, f"3000 bytes came in {len(found)} packets, where {_SEGMENT} make one")
    for header, frame in found:
        rig.require(header.gso_type == Gso.NONE, f"gso_type is {header.gso_type}")
        rig.should(_is_finished(frame), "a received packet's checksum is not complete")


@check(
    f"{_INCOMING}.19",
    f"{_INCOMING}.20",
    f"{_INCOMING}.27",
    f"{_INCOMING}.28",
    devices="net",
    needs=(_F.CSUM, _F.HOST_TSO4, _F.GUEST_CSUM, _F.GUEST_TSO4),
)
def a_large_packet_is_marked(rig: Rig) -> None:
    """A packet handed over for the driver to cut has NEEDS_CSUM, a segment's size, and offsets that are right."""
    rig.start(_F.CSUM, _F.HOST_TSO4, _F.GUEST_CSUM, _F.GUEST_TSO4)
    received = Received(rig, 8192)
    _send(rig, bytes(range(250)) * 12, _SEGMENT)
    for header, frame in _packets(rig, received, 3000):
        if header.gso_type & ~GSO_FLAGS == Gso.NONE:
            continue
        rig.require(bool(header.flags & HdrFlag.NEEDS_CSUM), f"flags are {header.flags:#x}", f"{_INCOMING}.27")
        rig.require(header.gso_size > 0, "gso_size is 0", f"{_INCOMING}.28")
        at = header.csum_start + header.csum_offset
        good = (header.csum_start, header.csum_offset) == (_TCP_START, _CHECKSUM)
        rig.require(good, f"the checksum goes from {header.csum_start} to {at}", f"{_INCOMING}.20")
        partial = int.from_bytes(frame[at : at + 2], "big")
        wanted = _pseudo(frame[ETHERNET_HEADER:], len(frame) - _TCP_START)
        rig.require(partial == wanted, f"it holds {partial:#x}, not the pseudo header's {wanted:#x}", f"{_INCOMING}.19")
