"""`virtio-py drive net … ping`: asks a host for its address (ARP), and for echoes (ICMP).

The frames are made and read here, by our own driver and nobody's network stack: what answers is what stands behind the
interface.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable
from functools import partial
from ipaddress import AddressValueError, IPv4Address
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Final

from virtio_py.cli.drive_common import Action, add_json
from virtio_py.errors import UsageError

if TYPE_CHECKING:
    from virtio_py.devices.net.driver import NetDriver

_ARP: Final = struct.Struct(">HHBBH6s4s6s4s")
_IPV4: Final = struct.Struct(">BBHHHBBH4s4s")
_ECHO: Final = struct.Struct(">BBHHH")
_ECHO_REPLY, _ECHO_REQUEST, _ICMP = 0, 8, 1
_PAYLOAD: Final = bytes(range(56))
_IDENT: Final = 0x7669


def parse_mac(text: str) -> bytes:
    """Six bytes. Raises UsageError."""
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6:
        raise UsageError(f"{text!r} is not an Ethernet address")
    return mac


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="ADDRESS", type=_address, help="the host's IPv4 address")
    parser.add_argument(
        "--from", dest="source", metavar="ADDRESS", type=_address, required=True, help="ours, on the same network"
    )
    parser.add_argument("--count", type=int, default=3, metavar="N", help="how many echoes (3)")
    parser.add_argument("--wait", type=float, default=1.0, metavar="S", help="seconds for each answer (1)")
    add_json(parser)


def arp_request(mac: bytes, source: bytes, target: bytes) -> bytes:
    """A frame that asks who has an address, 4 bytes."""
    body = _ARP.pack(1, 0x0800, 6, 4, 1, mac, source, bytes(6), target)
    return (b"\xff" * 6 + mac + b"\x08\x06" + body).ljust(60, b"\0")


def arp_answer(frame: bytes, target: bytes) -> bytes | None:
    """The Ethernet address that a frame tells of an IPv4 address, or None."""
    if frame[12:14] != b"\x08\x06" or len(frame) < 14 + _ARP.size:
        return None
    kind, protocol, _, _, operation, mac, address, _, _ = _ARP.unpack_from(frame, 14)
    found: bytes = mac
    return found if (kind, protocol, operation, address) == (1, 0x0800, 2, target) else None


def echo_request(link: bytes, source: bytes, target: bytes, number: int) -> bytes:
    """A frame with an echo request, behind 12 bytes of Ethernet addresses."""
    from virtio_py.devices.net.checksum import checksum

    def summed(data: bytes, at: int) -> bytes:
        return data[:at] + checksum(data).to_bytes(2, "big") + data[at + 2 :]

    message = summed(_ECHO.pack(_ECHO_REQUEST, 0, 0, _IDENT, number) + _PAYLOAD, 2)
    length = _IPV4.size + len(message)
    header = summed(_IPV4.pack(0x45, 0, length, number, 0, 64, _ICMP, 0, source, target), 10)
    return link + b"\x08\0" + header + message


def echo_answer(frame: bytes, target: bytes, number: int) -> bool:
    """Whether a frame is the answer to the echo request of this number."""
    from virtio_py.devices.net.parsing import network_of

    network = network_of(frame)
    if network is None or network.version != 4 or network.protocol != _ICMP or network.source != target:
        return False
    message = frame[network.transport : network.end] if network.transport else b""
    if len(message) < _ECHO.size:
        return False
    kind, _, _, ident, found = _ECHO.unpack_from(message)
    return (kind, ident, found, message[_ECHO.size :]) == (_ECHO_REPLY, _IDENT, number, _PAYLOAD)


def _await(driver: NetDriver, seconds: float, accept: Callable[[bytes], bool]) -> bool:
    """Whether a frame came that is accepted; the others are nobody's."""
    from virtio_py.devices.net.segmentation import fit

    deadline = monotonic() + seconds
    while (packet := driver.receive(timeout=max(0.0, deadline - monotonic()))) is not None:
        if any(accept(whole.frame) for whole in fit(packet, 0)):
            return True
    return False


def _find(driver: NetDriver, source: bytes, target: bytes, seconds: float) -> bytes | None:
    """The Ethernet address of the target."""
    found: bytes | None = None

    def answered(frame: bytes) -> bool:
        nonlocal found
        found = arp_answer(frame, target)
        return found is not None

    driver.send(arp_request(driver.info.mac, source, target))
    _await(driver, seconds, answered)
    return found


def _ping(driver: NetDriver, args: argparse.Namespace) -> int:
    """Status 1 unless all were answered."""
    source, target = args.source.packed, args.target.packed
    mac = _find(driver, source, target, args.wait)
    if mac is None:
        raise UsageError(f"nobody has {args.target}")
    times: list[float | None] = []
    for number in range(args.count):
        start = perf_counter()
        driver.send(echo_request(mac + driver.info.mac, source, target, number))
        answered = _await(driver, args.wait, partial(echo_answer, target=target, number=number))
        times.append((perf_counter() - start) * 1000 if answered else None)
        if not args.json:
            print(f"{args.target} ({mac.hex(':')}) {number}: " + (f"{times[-1]:.2f} ms" if answered else "no answer"))
    if args.json:
        print(json.dumps({"target": str(args.target), "mac": mac.hex(":"), "milliseconds": times}))
    return int(None in times)


ACTION: Final = Action("ask a host for echoes", _add_options, _ping)
"""The row of the table."""
