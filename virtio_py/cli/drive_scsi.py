"""`virtio-py drive scsi`: a SCSI host's driver on the command line."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Final

from virtio_py.cli.drive_common import Action, Kind, add_json, byte_count, print_info
from virtio_py.errors import UsageError

if TYPE_CHECKING:
    from virtio_py.devices.scsi.driver import ScsiDriver

_MOST: Final = 1 << 18


def _driver() -> type[ScsiDriver]:
    from virtio_py.devices.scsi.driver import ScsiDriver

    return ScsiDriver


def _info(driver: ScsiDriver, args: argparse.Namespace) -> int:
    from virtio_py.devices.scsi.layout import ScsiFeature

    print_info(driver, ScsiFeature, driver.refresh()._asdict(), args.json)
    return 0


def _list(driver: ScsiDriver, args: argparse.Namespace) -> int:
    units = [{"target": at.target, "lun": at.lun, **found._asdict()} for at, found in driver.scan().items()]
    if args.json:
        print(json.dumps(units, indent=2))
        return 0
    for unit in units:
        name = " ".join(str(unit[key]).strip() for key in ("vendor", "product", "revision"))
        print(f"{unit['target']}:{unit['lun']}  type {unit['type']:#04x}  {name}")
    return 0


def _add_execute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("unit", metavar="T:L", type=_unit, help="target and LUN")
    parser.add_argument("cdb", metavar="HEX", help="the command's bytes")
    parser.add_argument("--length", type=byte_count, default=0, metavar="BYTES", help="data to come in at most (0)")
    parser.add_argument("--input", metavar="FILE", help="data to go out")


def _unit(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not TARGET:LUN")
    return int(found[1]), int(found[2])


def _execute(driver: ScsiDriver, args: argparse.Namespace) -> int:
    """The data that came in go to standard output, how it ended to standard error; status 1 if it did not end well."""
    try:
        cdb = bytes.fromhex(args.cdb)
    except ValueError:
        raise UsageError(f"{args.cdb!r} are not bytes in hex") from None
    if args.length > _MOST:
        raise UsageError(f"{args.length} bytes do not fit into one command, {_MOST} do")
    from virtio_py.devices.scsi.sense import SenseKey

    (target, lun), data_out = args.unit, _content(args.input)
    result = driver.execute(target, lun, cdb, data_out, args.length)
    if result.condition is not None and result.condition.key == SenseKey.UNIT_ATTENTION:
        # Every unit begins with one: this process has just reset the host.
        result = driver.execute(target, lun, cdb, data_out, args.length)
    sys.stdout.buffer.write(result.data)
    if not result.good:
        ended = f"response {result.response}, status {result.status:#x}"
        print(f"virtio-py: {ended}, sense {result.sense.hex() or 'none'}", file=sys.stderr)
    return int(not result.good)


def _content(path: str | None) -> bytes:
    if path is None:
        return b""
    with open(path, "rb") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise UsageError(f"{path} does not fit into one command, {_MOST} bytes do")
    return data


KIND: Final = Kind(
    "a SCSI host",
    _driver,
    {
        "info": Action("print what the host is", add_json, _info),
        "list": Action("print its units", add_json, _list),
        "execute": Action("send one command to a unit", _add_execute, _execute),
    },
)
"""The row of the table."""
