"""`virtio-py trace`: a look between any vhost-user front-end and any back-end.

    virtio-py trace --listen /run/front.sock --connect /run/disk.sock --rings

The front-end is given the first socket, the back-end listens on the second. Every message passes through, with its
descriptors, and is printed with the names of its fields and features; replies are matched to their requests and
timed; what breaks a rule of the protocol is said at once.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, Final

from attrs import define, field

if TYPE_CHECKING:
    from virtio_py.cli.trace_files import TraceFile
    from virtio_py.cli.trace_show import Printer
    from virtio_py.transports.vhost_user_follower import RingSeen
    from virtio_py.transports.vhost_user_messages import Message
    from virtio_py.transports.vhost_user_proxy import Proxy, Route
    from virtio_py.transports.vhost_user_tracer import Traced

DEVICES: Final = {
    "blk": ("virtio_py.devices.blk.layout", "BlkFeature"),
    "console": ("virtio_py.devices.console.layout", "ConsoleFeature"),
    "net": ("virtio_py.devices.net.layout", "NetFeature"),
    "scsi": ("virtio_py.devices.scsi.layout", "ScsiFeature"),
}
"""Where a device type's own features have their names: no message says of which type the device is."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("trace", help="look between a vhost-user front-end and a back-end")
    parser.add_argument("--listen", metavar="PATH", required=True, help="the socket to make for front-ends")
    parser.add_argument("--connect", metavar="PATH", required=True, help="the socket that the back-end listens on")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON; the file is complete at any moment")
    parser.add_argument("--pcapng", metavar="FILE", help="write the messages as a capture, decoded in the comments")
    parser.add_argument("--rings", action="store_true", help="follow the rings in the memory that is shared")
    parser.add_argument("--device", choices=sorted(DEVICES), help="name the device type's own feature bits")
    parser.add_argument("--once", action="store_true", help="end when the first front-end has left")
    parser.add_argument("--quiet", action="store_true", help="print nothing but broken rules and the summary")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Passes messages on until SIGTERM or SIGINT. Raises OSError, VirtioError."""
    from virtio_py.cli.trace_files import JsonFile, PcapngFile
    from virtio_py.cli.trace_show import Printer
    from virtio_py.transports.vhost_user_proxy import Proxy
    from virtio_py.transports.vhost_user_server import listening

    with ExitStack() as stack:
        files: list[TraceFile] = []
        for path, kind in ((args.json, JsonFile), (args.pcapng, PcapngFile)):
            if path is not None:
                opened: IO[bytes] = stack.enter_context(open(path, "wb"))
                files.append(kind(opened))
        desk = _Desk(args, Printer(args.quiet), files)
        proxy = Proxy(desk.route, lambda line: print(f"virtio-py: {line}", file=sys.stderr, flush=True))
        desk.proxy = proxy
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: proxy.stop())
        proxy.serve(stack.enter_context(listening(args.listen)))
        desk.printer.summary()
    return 0


@define(eq=False)
class _Desk:
    """Opens routes, and passes on what is seen on them."""

    args: argparse.Namespace
    printer: Printer
    files: list[TraceFile]
    proxy: Proxy | None = None
    _sessions: int = field(default=0, init=False)

    def route(self, front: socket.socket) -> Route:
        """A connection to the back-end for a front-end. Raises OSError."""
        from virtio_py.transports.vhost_user_follower import RingFollower
        from virtio_py.transports.vhost_user_proxy import Route
        from virtio_py.transports.vhost_user_tracer import Tracer

        back = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            back.connect(self.args.connect)
        except OSError:
            back.close()
            raise
        self._sessions += 1
        session = self._sessions

        def ring(seen: RingSeen) -> None:
            self.printer.ring(session, seen)
            for file in self.files:
                file.ring(session, seen)

        def message(seen: Traced, passed: Message | None) -> None:
            self.printer.message(session, seen)
            for file in self.files:
                file.message(session, seen, passed)

        follower = RingFollower(ring) if self.args.rings else None
        return Route(front, back, Tracer(dict(_names(self.args.device))), message, follower, self._ended)

    def _ended(self) -> None:
        if self.args.once and self.proxy is not None:
            self.proxy.stop()


def _names(device: str | None) -> Iterator[tuple[int, str]]:
    if device is not None:
        from importlib import import_module

        module, name = DEVICES[device]
        for feature in getattr(import_module(module), name):
            yield int(feature), feature.name
