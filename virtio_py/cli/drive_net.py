"""`virtio-py drive net`: a network interface's driver on the command line. Frames are hex, one a line."""

from __future__ import annotations

import argparse
import json
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Final

from virtio_py.cli import drive_net_ping
from virtio_py.cli.drive_common import Action, Kind, add_json, byte_count, print_info
from virtio_py.cli.drive_net_ping import parse_mac
from virtio_py.errors import UsageError

if TYPE_CHECKING:
    from virtio_py.devices.net.driver import NetDriver


def _driver() -> type[NetDriver]:
    from virtio_py.devices.net.driver import NetDriver

    return NetDriver


def _info(driver: NetDriver, args: argparse.Namespace) -> int:
    from attrs import fields

    from virtio_py.devices.net.layout import NetFeature

    config = {f.name: getattr(driver.info, f.name) for f in fields(type(driver.info))}
    config |= {"mac": driver.info.mac.hex(":"), "duplex": driver.info.duplex.name}
    print_info(driver, NetFeature, config, args.json)
    return 0


def _add_receive(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=1, metavar="N", help="how many frames at most (1)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long at most (5)")
    add_json(parser)


def _receive(driver: NetDriver, args: argparse.Namespace) -> int:
    """Status 1 if fewer came. Packets are finished first: what the device left to us is done in software."""
    from virtio_py.devices.net.segmentation import fit

    deadline, count = monotonic() + args.seconds, 0
    while count < args.count and (packet := driver.receive(timeout=max(0.0, deadline - monotonic()))) is not None:
        for whole in fit(packet, 0):
            _show(whole.frame, args.json)
        count += 1
    return int(count < args.count)


def _show(frame: bytes, as_json: bool) -> None:
    print(json.dumps({"length": len(frame), "frame": frame.hex()}) if as_json else frame.hex(), flush=True)


def _add_send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", metavar="FILE", default="-", help="frames in hex, one a line (standard input)")


def _send(driver: NetDriver, args: argparse.Namespace) -> int:
    with open(0 if args.input == "-" else args.input, closefd=args.input != "-") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                frame = bytes.fromhex(line)
            except ValueError:
                raise UsageError(f"line {number} of {args.input} is not hex") from None
            driver.send(frame)
    driver.flush()
    return 0


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long (5)")
    parser.add_argument("--frame-size", type=byte_count, default=60, metavar="BYTES", help="of each frame (60)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="frames for each notification (64)")
    parser.add_argument("--to", metavar="MAC", default="ff:ff:ff:ff:ff:ff", help="whom they are for (everybody)")
    add_json(parser)


def _bench(driver: NetDriver, args: argparse.Namespace) -> int:
    """Frames of an Ethertype that is free for experiments; those that arrive meanwhile are counted, too."""
    if args.frame_size < 14 or args.batch < 1:
        raise UsageError(f"{args.batch} frames of {args.frame_size} bytes")
    frame = (parse_mac(args.to) + driver.info.mac + b"\x88\xb5").ljust(args.frame_size, b"\0")
    # The first one may have to wait for a compiler.
    driver.send_all([frame])
    sent, received, start = 0, 0, perf_counter()
    while (taken := perf_counter() - start) < args.seconds:
        driver.send_all([frame] * args.batch)
        sent, received = sent + args.batch, received + len(driver.receive_all())
    rate = sent / taken
    result = {"sent": sent, "received": received, "seconds": taken, "packets_per_second": rate}
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{rate:.0f} packets/s, {rate * args.frame_size / 1e6:.1f} MB/s: {sent} sent, {received} received")
    return 0


KIND: Final = Kind(
    "a network interface",
    _driver,
    {
        "info": Action("print what the interface is", add_json, _info),
        "bench": Action("send frames, and count", _add_bench, _bench),
        "ping": drive_net_ping.ACTION,
        "receive": Action("print frames that arrive", _add_receive, _receive),
        "send": Action("send frames", _add_send, _send),
    },
)
"""The row of the table."""
