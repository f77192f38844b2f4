"""`virtio-py drive net`: a network interface's driver on the command line. Frames are hex, one a line."""

from __future__ import annotations

import argparse
import json
from time import monotonic
from typing import TYPE_CHECKING, Final

from virtio_py.cli.drive_common import Action, Kind, add_json, print_info
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


KIND: Final = Kind(
    "a network interface",
    _driver,
    {
        "info": Action("print what the interface is", add_json, _info),
        "receive": Action("print frames that arrive", _add_receive, _receive),
        "send": Action("send frames", _add_send, _send),
    },
)
"""The row of the table."""
