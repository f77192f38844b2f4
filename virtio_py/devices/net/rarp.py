"""A RARP request (RFC 903): what a station that has moved sends, so that every switch learns where it is now."""

from __future__ import annotations

from construct import Bytes, Int8ub, Int16ub, Struct

from virtio_py.records import Record

_ETHERNET, _IPV4, _RARP, _REQUEST_REVERSE = 1, 0x0800, 0x8035, 3
_SHORTEST = 60
"""The shortest frame of Ethernet, without its check sequence."""

rarp_frame = Record(
    "rarp_frame",
    Struct(
        "destination" / Bytes(6),
        "source" / Bytes(6),
        "ethertype" / Int16ub,
        "hardware" / Int16ub,
        "protocol" / Int16ub,
        "hardware_bytes" / Int8ub,
        "protocol_bytes" / Int8ub,
        "operation" / Int16ub,
        "sender_mac" / Bytes(6),
        "sender_ip" / Bytes(4),
        "target_mac" / Bytes(6),
        "target_ip" / Bytes(4),
    ),
    cite="RFC 903",
)


def rarp_request(mac: bytes) -> bytes:
    """The frame, broadcast by the station with this address, which asks for its own IP address."""
    frame = rarp_frame.encode(
        destination=b"\xff" * 6,
        source=mac,
        ethertype=_RARP,
        hardware=_ETHERNET,
        protocol=_IPV4,
        hardware_bytes=6,
        protocol_bytes=4,
        operation=_REQUEST_REVERSE,
        sender_mac=mac,
        target_mac=mac,
    )
    return frame.ljust(_SHORTEST, b"\0")
