"""`virtio-py conform-driver`: judges whichever vhost-user front-end connects, clause by clause.

    virtio-py conform-driver --listen /run/disk.sock --device blk

It serves a device of its own (a disk in memory, a network that sends all frames back, a console that nobody reads)
and watches the driver. It ends when the front-end leaves, after `--budget` seconds, or with SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from virtio_py.cli.conform import add_common, finish

if TYPE_CHECKING:
    from virtio_py.device import Device
    from virtio_py.testing.conformance.driver import Judge

_DISK: Final = 64 << 20


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("conform-driver", help="judge the driver that connects to a vhost-user socket")
    parser.add_argument("--listen", metavar="PATH", required=True, help="listen on a UNIX socket at PATH")
    add_common(parser)
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="end after so many seconds")
    parser.add_argument("--packed", action="store_true", help="offer packed virtqueues")
    parser.add_argument("--queue-pairs", type=int, default=1, metavar="N", help="of a network device (1)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves one front-end; 1 if it breaks a clause. Raises OSError, VirtioError for a place that cannot be had."""
    from virtio_py.testing.conformance.driver import judged

    judge = judged(_MAKE[args.device](args), args.device)
    _serve(judge, args)
    return finish(args, judge.ledger.verdicts(args.only), f"virtio-py conform-driver {args.device}")


def _serve(judge: Judge, args: argparse.Namespace) -> None:
    from virtio_py.spec import Feature, bit
    from virtio_py.status import RING_FEATURES
    from virtio_py.transports.vhost_user_server import Server, listening

    def log(line: str) -> None:
        print(f"virtio-py: {line}", file=sys.stderr, flush=True)
        judge.ledger.heard(line)

    features = RING_FEATURES & ~bit(Feature.RING_PACKED) | bit(Feature.IN_ORDER) | args.packed << Feature.RING_PACKED
    server = Server(judge, log=log, ring_features=features)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, lambda *_: server.stop())
    if args.budget is not None:
        signal.setitimer(signal.ITIMER_REAL, args.budget)
    with closing(server), listening(args.listen) as listener:
        server.serve_one(listener)


def _blk(args: argparse.Namespace) -> Device:
    from virtio_py.devices.blk.device import BlkDevice
    from virtio_py.devices.blk.media import MemoryMedium

    return BlkDevice(MemoryMedium.of(_DISK))


def _net(args: argparse.Namespace) -> Device:
    from virtio_py.devices.net.device import NetDevice
    from virtio_py.devices.net.ports.simple import LoopbackPort

    return NetDevice(LoopbackPort(), pairs=args.queue_pairs)


def _scsi(args: argparse.Namespace) -> Device:
    from virtio_py.devices.blk.media import MemoryMedium
    from virtio_py.devices.scsi.device import ScsiDevice
    from virtio_py.devices.scsi.disk import ScsiDisk

    device = ScsiDevice()
    device.attach(0, 0, ScsiDisk(MemoryMedium.of(_DISK)))
    return device


def _console(args: argparse.Namespace) -> Device:
    from virtio_py.devices.console.device import ConsoleDevice
    from virtio_py.devices.console.endpoints import MemoryEndpoint
    from virtio_py.devices.console.ports import ConsolePort

    return ConsoleDevice([ConsolePort(MemoryEndpoint(), "tty", console=True)], max_ports=4)


_MAKE: Final = {"blk": _blk, "net": _net, "scsi": _scsi, "console": _console}
"""What is served."""
