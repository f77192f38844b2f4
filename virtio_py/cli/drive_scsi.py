"""`virtio-py drive scsi`: a SCSI host's driver on the command line."""

from __future__ import annotations

import argparse
import json
import re
import sys
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING, Final

from virtio_py.cli.drive_common import Action, Kind, add_bench, add_json, byte_count, opened, print_info, print_rate
from virtio_py.errors import UsageError

if TYPE_CHECKING:
    from virtio_py.devices.scsi.batch import BatchingScsiDriver
    from virtio_py.devices.scsi.commands import Capacity
    from virtio_py.devices.scsi.driver import ScsiDriver

_MOST: Final = 1 << 18
_DISK: Final = 0
"""The peripheral device type of a unit of blocks."""


def _driver() -> type[ScsiDriver]:
    from virtio_py.devices.scsi.batch import BatchingScsiDriver

    return BatchingScsiDriver


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
    _add_unit(parser)
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


def _add_unit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("unit", metavar="T:L", type=_unit, help="target and LUN")


def _add_inquiry(parser: argparse.ArgumentParser) -> None:
    _add_unit(parser)
    add_json(parser)


def _inquiry(driver: ScsiDriver, args: argparse.Namespace) -> int:
    """What the unit is, and of a disk its size; the page of its designations as it came."""
    target, lun = args.unit
    found = driver.inquiry(target, lun)._asdict()
    if found["qualifier"]:
        raise UsageError(f"there is no unit {target}:{lun}")
    if found["type"] == _DISK:
        found |= driver.capacity(target, lun)._asdict()
    found["designation"] = driver.vital_product_data(target, lun, 0x83)[4:].hex()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        print(f"{name:<12} {str(value).strip()}")
    return 0


def _add_place(parser: argparse.ArgumentParser) -> None:
    _add_unit(parser)
    parser.add_argument("--offset", type=byte_count, default=0, metavar="BYTES", help="where to begin (0)")


def _add_read(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.add_argument("--length", type=byte_count, metavar="BYTES", help="how many (up to the unit's end)")
    parser.add_argument("--output", metavar="FILE", default="-", help="where to put them (standard output)")


def _read(driver: ScsiDriver, args: argparse.Namespace) -> int:
    target, lun = args.unit
    size = driver.capacity(target, lun)
    length = size.blocks * size.block_size - args.offset if args.length is None else args.length
    start, end = _blocks(size, args.offset, length)
    step = max(_MOST // size.block_size, 1)
    with opened(args.output, "wb") as output:
        for at in range(start, end, step):
            output.write(driver.read(target, lun, at, min(step, end - at), size.block_size))
    return 0


def _blocks(size: Capacity, offset: int, length: int) -> tuple[int, int]:
    """The blocks that hold a range, [first, behind the last). Raises UsageError if they are not whole, or not there."""
    if offset % size.block_size or length % size.block_size:
        raise UsageError(f"bytes [{offset}, +{length}) are not whole blocks of {size.block_size}")
    start, end = offset // size.block_size, (offset + length) // size.block_size
    if not 0 <= start <= end <= size.blocks:
        raise UsageError(f"blocks [{start}, {end}) are not on a unit of {size.blocks}")
    return start, end


def _add_write(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.add_argument("--input", metavar="FILE", default="-", help="what to write (standard input)")


def _write(driver: ScsiDriver, args: argparse.Namespace) -> int:
    """Whole blocks; what is on the unit when it ends is durable."""
    target, lun = args.unit
    size, offset = driver.capacity(target, lun), args.offset
    with opened(args.input, "rb") as source:
        while data := source.read(max(_MOST // size.block_size, 1) * size.block_size):
            start, _ = _blocks(size, offset, len(data))
            driver.write(target, lun, start, data, size.block_size)
            offset += len(data)
    driver.synchronize_cache(target, lun)
    return 0


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _add_unit(parser)
    add_bench(parser)


def _bench(driver: BatchingScsiDriver, args: argparse.Namespace) -> int:
    """Reads at random places, `--queue-depth` of them under way at a time."""
    from virtio_py.devices.scsi.batch import ScsiAsk

    target, lun = args.unit
    size = driver.capacity(target, lun)
    number, rest = divmod(args.block_size, size.block_size)
    places = size.blocks // number if number else 0
    if rest or not places or args.queue_depth < 1:
        raise UsageError(f"{args.queue_depth} reads of {args.block_size} bytes from {size.blocks} of {size.block_size}")
    # The first one may have to wait for a compiler.
    driver.read(target, lun, 0, number, size.block_size)
    dice, done, start = Random(0), 0, perf_counter()
    while perf_counter() - start < args.seconds:
        lbas = [dice.randrange(places) * number for _ in range(args.queue_depth * 8)]
        asks = [ScsiAsk.read(target, lun, lba, number, size.block_size) for lba in lbas]
        for result in driver.run(asks, depth=args.queue_depth):
            done += result.good
    print_rate(args.json, "reads", done, perf_counter() - start, args.block_size)
    return 0


KIND: Final = Kind(
    "a SCSI host",
    _driver,
    {
        "info": Action("print what the host is", add_json, _info),
        "list": Action("print its units", add_json, _list),
        "inquiry": Action("print what a unit is", _add_inquiry, _inquiry),
        "read": Action("read whole blocks", _add_read, _read),
        "write": Action("write whole blocks, and make them durable", _add_write, _write),
        "bench": Action("read at random, and count", _add_bench, _bench),
        "execute": Action("send one command to a unit", _add_execute, _execute),
    },
)
"""The row of the table."""
