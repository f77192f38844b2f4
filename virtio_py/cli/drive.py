"""`virtio-py drive`: our drivers at work on any vhost-user back-end.

    virtio-py drive blk --socket-path /run/disk.sock info
    virtio-py drive blk --socket-path /run/disk.sock read --offset 0 --length 1M --output first.img
    virtio-py drive entropy --socket-path /run/rng.sock read --length 16
    virtio-py drive net --socket-path /run/net.sock ping 10.0.0.1 --from 10.0.0.2
    virtio-py drive scsi --socket-path /run/scsi.sock read 0:1 --length 64K --output start.img

One process is the whole virtual machine: it has memory that the back-end maps, a driver that initialises the device
and sends it requests, and ends when they are done. A back-end that leaves in the middle is looked for `--patience`
seconds, and given again what it had not finished.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import Any, Final

from virtio_py.cli import drive_blk, drive_console, drive_entropy, drive_net, drive_scsi
from virtio_py.cli.drive_common import Kind

DRIVERS: Final[dict[str, Kind]] = {
    "blk": drive_blk.KIND,
    "console": drive_console.KIND,
    "entropy": drive_entropy.KIND,
    "net": drive_net.KIND,
    "scsi": drive_scsi.KIND,
}
"""What can be driven."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("drive", help="drive a device behind a vhost-user socket")
    devices = parser.add_subparsers(dest="device", required=True, metavar="DEVICE", parser_class=type(parser))
    for name, kind in DRIVERS.items():
        sub = devices.add_parser(name, help=kind.help)
        _add_common(sub)
        actions = sub.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=type(parser))
        for action, does in kind.actions.items():
            one = actions.add_parser(action, help=does.help)
            does.add_options(one)
            one.set_defaults(run=run)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket-path", metavar="PATH", required=True, help="the socket that the back-end listens on")
    parser.add_argument("--engine", choices=("reference", "compiled"), default="reference", help="what runs the rings")
    parser.add_argument("--split", action="store_true", help="use no packed virtqueues, even if they are offered")
    parser.add_argument("--queue-size", type=int, default=256, metavar="N", help="descriptors of each queue (256)")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds for each answer (10)")
    parser.add_argument(
        "--patience", type=float, default=0.0, metavar="S", help="seconds to look for a back-end that has gone (0)"
    )


def run(args: argparse.Namespace) -> int:
    """Connects, initialises, does the action, resets the device. Raises VirtioError, OSError."""
    from virtio_py.rings.engine import engine_named
    from virtio_py.spec import Feature, bit
    from virtio_py.status import RING_FEATURES
    from virtio_py.transports.vhost_user_transport import VhostUserTransport

    kind = DRIVERS[args.device]
    make = kind.driver()
    transport = VhostUserTransport(args.socket_path, make.device_id, timeout=args.timeout, patience=args.patience)
    with closing(transport):
        wanted = (make.known_features | RING_FEATURES) & ~(bit(Feature.RING_PACKED) if args.split else 0)
        driver = make(transport, engine=engine_named(args.engine), features=wanted, queue_size=args.queue_size)
        driver.timeout = args.timeout
        driver.start()
        status = kind.actions[args.action].run(driver, args)
        transport.write_status(0)
    return status
