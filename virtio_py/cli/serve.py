"""`virtio-py serve`: a device as a vhost-user back-end, by QEMU's conventions for back-end programs.

    virtio-py serve blk --socket-path /run/disk.sock --blk-file disk.img
    virtio-py serve entropy --fd 3

`--print-capabilities` prints what a management layer may ask for, as JSON. The program does not put itself into the
background; SIGTERM ends it with status 0, and its socket is removed. The conventions want a program whose options are
the back-end's alone: `virtio-py-blk` and `virtio-py-rng` are such names of this command.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from virtio_py.cli import serve_console, serve_net, serve_scsi, serve_zones
from virtio_py.cli.main import main
from virtio_py.errors import UsageError

if TYPE_CHECKING:
    import socket

    from virtio_py.device import Device


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("serve", help="serve a device to vhost-user front-ends")
    devices = parser.add_subparsers(dest="device", required=True, metavar="DEVICE", parser_class=type(parser))
    for name, backend in BACKENDS.items():
        sub = devices.add_parser(name, help=backend.help)
        _add_common(sub, several=backend.serve is not None)
        backend.add_options(sub)
        sub.set_defaults(run=run)


def _add_common(parser: argparse.ArgumentParser, several: bool) -> None:
    if several:
        parser.add_argument(
            "--socket-path", metavar="PATH", action="append", help="listen on a UNIX socket at PATH; may be repeated"
        )
        parser.set_defaults(fd=None)
    else:
        _add_place(parser)
    _add_engine(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket-path", metavar="PATH", help="listen on a UNIX socket at PATH")
    where.add_argument("--fd", type=int, metavar="FDNUM", help="use the socket open as FDNUM, listening or connected")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--print-capabilities", action="store_true", help="print capabilities as JSON and exit")
    parser.add_argument("--engine", choices=("reference", "compiled"), default="reference", help="what runs the rings")
    parser.add_argument("--packed", action="store_true", help="offer packed virtqueues")
    parser.add_argument("--in-order", action="store_true", help="offer to use buffers in the order they come in")
    parser.add_argument(
        "--iommu", action="store_true", help="offer VIRTIO_F_ACCESS_PLATFORM: addresses are the front-end's IOMMU's"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="serve from N processes, a front-end each at a time, and replace those that die",
    )
    parser.add_argument(
        "--sealed", action="store_true", help="refuse memory whose file the front-end could make shorter"
    )
    parser.add_argument(
        "--inband-notifications", action="store_true", help="offer to replace event descriptors by messages"
    )


def _add_blk(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--blk-file", metavar="PATH", help="the file or block special file behind the disk")
    parser.add_argument("--read-only", action="store_true", help="let nothing be written")
    parser.add_argument("--direct", action="store_true", help="go past the page cache (O_DIRECT)")
    parser.add_argument("--num-queues", type=int, default=1, metavar="N", help="request queues (1)")
    parser.add_argument("--queue-size", type=int, default=256, metavar="N", help="the largest queue size taken (256)")
    parser.add_argument(
        "--serial", default="virtio-py", metavar="TEXT", help="the disk's identification, at most 20 bytes (virtio-py)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads that serve the request queues side by side (1)"
    )
    serve_zones.add_options(parser)


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """The device has no options."""


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT. Raises VirtioError, OSError for a world that is not as it was said to be."""
    backend = BACKENDS[args.device]
    if args.print_capabilities:
        print(json.dumps(backend.capabilities, indent=2))
        return 0
    if args.socket_path is None and args.fd is None:
        raise UsageError("one of --socket-path and --fd is needed")
    if backend.serve is not None:
        if args.workers is not None and args.workers != 1:
            raise UsageError("interfaces that talk to each other are served by one process, which --workers 1 replaces")
        return _supervised(args, partial(backend.serve, args, args.socket_path, **_options(args)))
    if args.workers is None:
        # The device first, with all that stands behind it: whoever finds the socket finds everything.
        with backend.make(args) as device, _socket(args) as sock:
            _serve(device, args, sock)
        return 0
    with _socket(args) as sock:
        return _supervised(args, partial(_serve_made, backend, args, sock), sock)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    from virtio_py.rings.engine import engine_named
    from virtio_py.spec import Feature, bit, mask
    from virtio_py.status import RING_FEATURES
    from virtio_py.transports.vhost_user_messages import ProtocolFeature
    from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES

    withheld = 0 if args.device in _STATUS_PASSED_ON else bit(ProtocolFeature.STATUS)
    inband = args.inband_notifications << ProtocolFeature.INBAND_NOTIFICATIONS
    return {
        "engine": engine_named(args.engine),
        "log": _log,
        "sealed": args.sealed,
        "protocol_features": PROTOCOL_FEATURES & ~withheld | inband,
        "ring_features": RING_FEATURES & ~mask(Feature.RING_PACKED, Feature.IN_ORDER)
        | args.packed << Feature.RING_PACKED
        | args.in_order << Feature.IN_ORDER
        | args.iommu << Feature.ACCESS_PLATFORM,
    }


def _supervised(args: argparse.Namespace, work: Callable[[], None], sock: socket.socket | None = None) -> int:
    """Does the work here, or in processes that are replaced. Returns the program's status."""
    from virtio_py.transports.vhost_user_server import is_listening
    from virtio_py.transports.vhost_user_supervisor import Supervisor

    if args.workers is None:
        work()
        return 0
    if sock is not None:
        if not is_listening(sock):
            raise UsageError("workers take turns at a listening socket, and this one is connected")
        # Whoever connected may have been taken by another of them.
        sock.setblocking(False)
    supervisor = Supervisor(args.workers, work, log=_log)
    _on_signals(supervisor.stop)
    return supervisor.run()


def _on_signals(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())


def _serve_made(backend: Kind, args: argparse.Namespace, sock: socket.socket) -> None:
    with backend.make(args) as device:
        _serve(device, args, sock)


def _serve(device: Device, args: argparse.Namespace, sock: socket.socket) -> None:
    from virtio_py.transports.vhost_user_server import Server

    server = Server(device, **_options(args), threads=getattr(args, "threads", 1))
    _on_signals(server.stop)
    with closing(server):
        server.serve(sock)


def _socket(args: argparse.Namespace) -> AbstractContextManager[socket.socket]:
    from virtio_py.transports.vhost_user_server import inherited, listening

    return listening(args.socket_path) if args.fd is None else inherited(args.fd)


def _log(line: str) -> None:
    # In one piece: workers have one standard error.
    sys.stderr.write(f"virtio-py: {line}\n")
    sys.stderr.flush()


def _make_blk(args: argparse.Namespace) -> AbstractContextManager[Device]:
    from virtio_py.devices.blk.device import BlkDevice
    from virtio_py.devices.blk.direct import DirectFileMedium
    from virtio_py.devices.blk.media import FileMedium

    if args.blk_file is None:
        raise UsageError("--blk-file is needed")
    medium = (DirectFileMedium if args.direct else FileMedium)(args.blk_file, args.read_only)
    zones = serve_zones.make(args, medium.size)
    device = BlkDevice(
        medium,
        serial=args.serial.encode(),
        num_queues=args.num_queues,
        queue_size=args.queue_size,
        zones=zones,
    )
    keeping = serve_zones.keep(args, zones)

    def close() -> None:
        keeping()
        medium.close()

    return _Holding(device, close)


def _make_entropy(args: argparse.Namespace) -> AbstractContextManager[Device]:
    from virtio_py.devices.entropy import EntropyDevice

    return _Holding(EntropyDevice(), lambda: None)


class _Holding(AbstractContextManager["Device"]):
    """A device, and how to let go of what stands behind it."""

    def __init__(self, device: Device, close: Callable[[], None]) -> None:
        self._device = device
        self._close = close

    def __enter__(self) -> Device:
        return self._device

    def __exit__(self, *_: object) -> None:
        self._close()


def _make_none(args: argparse.Namespace) -> AbstractContextManager[Device]:
    raise UsageError("this is not one device")


_STATUS_PASSED_ON: Final = ("blk", "net")
"""The devices whose status QEMU 7.2 passes on. Of any other, where the protocol feature STATUS is offered, it passes
FEATURES_OK on and never DRIVER_OK, and the device would never start."""


class Kind(NamedTuple):
    """A device that can be served: `make` is for one socket, `serve` instead of it for any number."""

    help: str
    capabilities: Mapping[str, Any]
    add_options: Callable[[argparse.ArgumentParser], None]
    make: Callable[[argparse.Namespace], AbstractContextManager[Device]] = _make_none
    serve: Callable[..., None] | None = None


BACKENDS: Final[dict[str, Kind]] = {
    "blk": Kind("a disk", {"type": "block", "features": ["read-only", "blk-file"]}, _add_blk, _make_blk),
    "console": Kind(serve_console.HELP, serve_console.CAPABILITIES, serve_console.add_options, serve_console.make),
    "net": Kind(serve_net.HELP, serve_net.CAPABILITIES, serve_net.add_options, serve=serve_net.serve),
    "scsi": Kind(serve_scsi.HELP, serve_scsi.CAPABILITIES, serve_scsi.add_options, serve_scsi.make),
    "entropy": Kind("a source of randomness", {"type": "rng", "features": []}, _add_nothing, _make_entropy),
}
"""The devices; `capabilities` are in the words of QEMU's vhost-user.json."""


def _program(kind: str) -> Callable[[], int]:
    """A program of its own for one device, as QEMU's conventions want it: `virtio-py-blk` for `virtio-py serve blk`."""
    return lambda: main(["serve", kind, *sys.argv[1:]])


blk, console, net, rng, scsi = map(_program, ("blk", "console", "net", "entropy", "scsi"))
