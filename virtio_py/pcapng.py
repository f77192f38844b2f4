"""pcapng, as much of it as a capture needs: one section with one interface, and packets with a time and a direction."""

from __future__ import annotations

import struct
from typing import Final

LINKTYPE_ETHERNET: Final = 1
LINKTYPE_USER0: Final = 147
"""For protocols that have no number of their own."""

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_ORDER: Final = 0x1A2B3C4D
_END_OF_OPTIONS, _COMMENT, _FLAGS, _TIME_RESOLUTION = 0, 1, 2, 9
_INBOUND, _OUTBOUND = 1, 2


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value.ljust(-len(value) % 4 + len(value), b"\0")


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack("<II", kind, total) + body + struct.pack("<I", total)


def file_header(linktype: int = LINKTYPE_ETHERNET) -> bytes:
    """A section with one interface whose clock counts nanoseconds."""
    section = struct.pack("<IHHq", _ORDER, 1, 0, -1)
    options = _option(_TIME_RESOLUTION, b"\x09") + _option(_END_OF_OPTIONS, b"")
    return _block(_SECTION, section) + _block(_INTERFACE, struct.pack("<HHI", linktype, 0, 0) + options)


def packet_block(packet: bytes, nanoseconds: int, outbound: bool, comment: str = "") -> bytes:
    """One packet, at a time since 1970. A comment is shown beside it, at most 65,535 bytes of UTF-8."""
    head = struct.pack("<IIIII", 0, nanoseconds >> 32, nanoseconds & 0xFFFFFFFF, len(packet), len(packet))
    options = _option(_COMMENT, comment.encode()[:0xFFFF]) if comment else b""
    options += _option(_FLAGS, struct.pack("<I", _OUTBOUND if outbound else _INBOUND)) + _option(_END_OF_OPTIONS, b"")
    return _block(_PACKET, head + packet.ljust(-len(packet) % 4 + len(packet), b"\0") + options)
