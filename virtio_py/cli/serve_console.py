"""`virtio-py serve console`: what `serve` needs to know of consoles.

    virtio-py serve console --socket-path /run/console.sock --port con=stdio --port agent=unix:/run/agent.sock

A port's name is how the guest finds it. Ports on a pty or on standard input and output are offered as text consoles,
unless `--console` names others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from virtio_py.errors import UsageError

if TYPE_CHECKING:
    from virtio_py.device import Device
    from virtio_py.devices.console.device import ConsoleDevice
    from virtio_py.devices.console.endpoints import Endpoint
    from virtio_py.devices.console.ports import ConsolePort

HELP: Final = "a console, and named ports"
CAPABILITIES: Final[Mapping[str, Any]] = {"type": "console", "features": []}
_TERMINALS: Final = ("pty", "stdio")


class PortOption(NamedTuple):
    """A `--port`: NAME=KIND or NAME=KIND:PATH."""

    name: str
    kind: str
    path: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that only consoles have."""
    parser.add_argument(
        "--port",
        action="append",
        default=[],
        type=_port_option,
        metavar="NAME=KIND",
        help="a port on pty, stdio, unix:PATH (listens there) or file:PATH (appends to it); may be repeated",
    )
    parser.add_argument(
        "--console",
        action="append",
        default=[],
        metavar="NAME",
        help="offer this port as a text console; may be repeated (those on pty and stdio)",
    )
    parser.add_argument("--single", action="store_true", help="do not offer MULTIPORT: one port, without a name")
    parser.add_argument(
        "--size", type=_size, default=(80, 25), metavar="COLSxROWS", help="of ports on no terminal (80x25)"
    )


def _port_option(text: str) -> PortOption:
    name, equals, rest = text.partition("=")
    kind, _, path = rest.partition(":")
    if not equals or kind not in ENDPOINTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=KIND with a kind of {', '.join(ENDPOINTS)}")
    if bool(path) == (kind in _TERMINALS):
        raise argparse.ArgumentTypeError(f"{text!r}: {kind} {'has no' if path else 'needs a'} path")
    return PortOption(name, kind, path)


def _size(text: str) -> tuple[int, int]:
    cols, by, rows = text.partition("x")
    if not (by and cols.isdecimal() and rows.isdecimal() and max(int(cols), int(rows)) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not COLSxROWS")
    return int(cols), int(rows)


def make(args: argparse.Namespace) -> AbstractContextManager[Device]:
    """The device that the options describe, with its endpoints open. Raises UsageError, OSError."""
    if not args.port:
        raise UsageError("at least one --port is needed")
    if args.single and len(args.port) > 1:
        raise UsageError("--single has one --port")
    names = [option.name for option in args.port]
    if unknown := set(args.console) - set(names):
        raise UsageError(f"there is no port {', '.join(sorted(unknown))} that could be a console")
    if len(set(names)) < len(names) or sum(option.kind == "stdio" for option in args.port) > 1:
        raise UsageError("two ports have the same name, or both are stdio")
    return _device(args)


@contextmanager
def _device(args: argparse.Namespace) -> Iterator[Device]:
    from virtio_py.devices.console.device import ConsoleDevice
    from virtio_py.devices.console.layout import ConsoleSize

    with ExitStack() as stack:
        ports = [_port(option, args.console, stack) for option in args.port]
        device: ConsoleDevice = ConsoleDevice(
            ports, max_ports=0 if args.single else len(ports), size=ConsoleSize(*args.size), failed=_log_failure
        )
        yield device


def _port(option: PortOption, consoles: list[str], stack: ExitStack) -> ConsolePort:
    from virtio_py.devices.console.ports import ConsolePort

    endpoint = ENDPOINTS[option.kind](option)
    stack.callback(endpoint.close)
    is_console = option.name in consoles if consoles else option.kind in _TERMINALS
    return ConsolePort(endpoint, option.name, is_console)


def _log_failure(port: ConsolePort) -> None:
    assert port.failure is not None
    print(f"virtio-py: port {port.name}: {port.failure.strerror}\r", file=sys.stderr, flush=True)


def _pty(option: PortOption) -> Endpoint:
    from virtio_py.devices.console.endpoint_pty import PtyEndpoint

    endpoint = PtyEndpoint()
    print(f"virtio-py: port {option.name}: {endpoint.path}", file=sys.stderr, flush=True)
    return endpoint


def _stdio(option: PortOption) -> Endpoint:
    from virtio_py.devices.console.endpoint_stdio import StdioEndpoint

    return StdioEndpoint()


def _unix(option: PortOption) -> Endpoint:
    from virtio_py.devices.console.endpoint_unix import UnixEndpoint

    return UnixEndpoint(option.path)


def _file(option: PortOption) -> Endpoint:
    from virtio_py.devices.console.endpoint_file import FileEndpoint

    return FileEndpoint(option.path)


ENDPOINTS: Final[Mapping[str, Callable[[PortOption], Endpoint]]] = {
    "pty": _pty,
    "stdio": _stdio,
    "unix": _unix,
    "file": _file,
}
"""What can stand behind a port."""
