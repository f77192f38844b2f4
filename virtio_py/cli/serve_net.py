"""`virtio-py serve net`: what `serve` needs to know of network interfaces.

    virtio-py serve net --socket-path /run/a.sock --port tap:tap0
    virtio-py serve net --socket-path /run/a.sock --socket-path /run/b.sock --port switch --port tap:tap0

One socket and one port are joined directly; more of either are joined by a learning switch.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from virtio_py.errors import UsageError

if TYPE_CHECKING:
    from virtio_py.devices.net.device import NetDevice
    from virtio_py.devices.net.ports.port import Port
    from virtio_py.devices.net.switch import Switch

HELP: Final = "network interfaces"
CAPABILITIES: Final[Mapping[str, Any]] = {"type": "net", "features": []}
_SWITCH: Final = "switch"
_DEFAULT_MAC: Final = "52:54:00:12:34:56"


class PortOption(NamedTuple):
    """A `--port`: KIND or KIND:ARGUMENT."""

    kind: str
    argument: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that only network interfaces have."""
    parser.add_argument(
        "--port",
        action="append",
        default=[],
        type=_port_option,
        metavar="KIND",
        help="tap:NAME, loopback, sink, switch, dgram:PATH,PEER or stream:PATH; may be repeated",
    )
    parser.add_argument("--pcap", metavar="FILE", help="write down all that passes (of the first socket), as pcapng")
    parser.add_argument(
        "--mac", type=_mac, default=_mac(_DEFAULT_MAC), metavar="MAC", help=f"of the first socket ({_DEFAULT_MAC})"
    )
    parser.add_argument("--queue-pairs", type=int, default=1, metavar="N", help="receive and transmit queues (1)")
    parser.add_argument("--queue-size", type=int, default=256, metavar="N", help="the largest queue size taken (256)")
    parser.add_argument("--mtu", type=int, metavar="BYTES", help="the largest packet, without Ethernet's header")
    parser.add_argument("--speed", type=int, metavar="MBIT", help="what the guest is told of the link")
    parser.add_argument("--no-offloads", action="store_true", help="offer neither checksum nor segmentation offloads")


def _port_option(text: str) -> PortOption:
    kind, colon, argument = text.partition(":")
    if kind != _SWITCH and kind not in PORTS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join((*PORTS, _SWITCH))}")
    if bool(argument) != (kind in _WITH_ARGUMENT) or (colon and not argument):
        raise argparse.ArgumentTypeError(
            f"{text!r}: {kind} {'needs an' if kind in _WITH_ARGUMENT else 'has no'} argument"
        )
    return PortOption(kind, argument)


def _mac(text: str) -> bytes:
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not the address of a station")
    return mac


def serve(args: argparse.Namespace, sockets: list[str], **options: Any) -> None:
    """Serves one interface at each of the sockets until SIGTERM or SIGINT; `options` as for `Servers`.

    Raises UsageError, OSError for a world that is not as it was said to be."""
    from virtio_py.transports.vhost_user_servers import Servers

    with ExitStack() as stack:
        devices, watch = _devices(args, sockets, stack)
        servers = stack.enter_context(Servers(devices, watch=watch, **options))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: servers.stop())
        servers.serve()


def _devices(args: argparse.Namespace, sockets: list[str], stack: ExitStack) -> Any:
    if len(set(sockets)) < len(sockets):
        raise UsageError("two sockets have the same path")
    kinds = [option for option in args.port if option.kind != _SWITCH]
    if not args.port:
        raise UsageError("at least one --port is needed")
    outside = [_opened(option, stack) for option in kinds]
    if len(kinds) == len(args.port) == len(sockets) == 1:
        return {sockets[0]: _device(args, outside[0], 0, stack)}, lambda: ()
    return _switched(args, sockets, outside, stack)


def _switched(args: argparse.Namespace, sockets: list[str], outside: list[Port], stack: ExitStack) -> Any:
    from virtio_py.devices.net.switch import Switch

    switch: Switch = Switch()
    for port in outside:
        switch.plug(port)
    devices = {}
    for n, path in enumerate(sockets):
        port = switch.port()
        stack.callback(port.close)
        devices[path] = _device(args, port, n, stack)
    return devices, switch.watch


def _device(args: argparse.Namespace, port: Port, number: int, stack: ExitStack) -> NetDevice:
    from virtio_py.devices.net.device import OFFLOAD_FEATURES, USUAL_FEATURES, NetDevice

    if args.pcap is not None and number == 0:
        from virtio_py.devices.net.ports.capture import CapturePort

        file = stack.enter_context(Path(args.pcap).open("wb"))  # noqa: SIM115  # the stack closes it
        port = CapturePort(port, file, time.time_ns)
    device: NetDevice = NetDevice(
        port,
        # Further sockets count the first one's address up.
        mac=((int.from_bytes(args.mac, "big") + number) & ((1 << 48) - 1)).to_bytes(6, "big"),
        pairs=args.queue_pairs,
        queue_size=args.queue_size,
        mtu=args.mtu,
        speed=args.speed,
        offered=USUAL_FEATURES & ~(OFFLOAD_FEATURES if args.no_offloads else 0),
    )
    return device


def _opened(option: PortOption, stack: ExitStack) -> Port:
    port = PORTS[option.kind](option.argument)
    stack.callback(port.close)
    return port


def _tap(name: str) -> Port:
    from virtio_py.devices.net.ports.tap import TapPort

    return TapPort(name)


def _loopback(_: str) -> Port:
    from virtio_py.devices.net.ports.simple import LoopbackPort

    return LoopbackPort()


def _sink(_: str) -> Port:
    from virtio_py.devices.net.ports.simple import SinkPort

    return SinkPort()


def _dgram(argument: str) -> Port:
    from virtio_py.devices.net.ports.sockets import DatagramPort

    path, comma, peer = argument.partition(",")
    if not comma:
        raise UsageError("dgram needs two paths, dgram:OURS,THEIRS")
    return DatagramPort(path, peer)


def _stream(path: str) -> Port:
    from virtio_py.devices.net.ports.sockets import StreamPort

    return StreamPort(path)


PORTS: Final[Mapping[str, Callable[[str], Port]]] = {
    "tap": _tap,
    "loopback": _loopback,
    "sink": _sink,
    "dgram": _dgram,
    "stream": _stream,
}
"""What can stand behind an interface."""
_WITH_ARGUMENT: Final = ("tap", "dgram", "stream")


def log(line: str) -> None:
    """One line for whoever looks after the program."""
    print(f"virtio-py: {line}", file=sys.stderr, flush=True)
