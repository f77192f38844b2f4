"""`virtio-py drive blk`: a disk's driver on the command line. Offsets and lengths are bytes, 1M is 2^20."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from random import Random
from time import perf_counter
from typing import IO, TYPE_CHECKING, Final

from virtio_py.cli.drive_common import Action, Kind, add_bench, add_json, byte_count, opened, print_info, print_rate
from virtio_py.errors import UsageError

if TYPE_CHECKING:
    from virtio_py.devices.blk.batch import BatchingBlkDriver
    from virtio_py.devices.blk.driver import BlkDriver

_SECTOR: Final = 512
_CHUNK: Final = 1 << 18


def _driver() -> type[BlkDriver]:
    from virtio_py.devices.blk.batch import BatchingBlkDriver

    return BatchingBlkDriver


def _info(driver: BlkDriver, args: argparse.Namespace) -> int:
    from attrs import fields

    from virtio_py.devices.blk.layout import BlkFeature

    config = {name: getattr(driver.info, name) for name in (f.name for f in fields(type(driver.info)))}
    print_info(driver, BlkFeature, {"id": driver.get_id().decode(errors="replace"), **config}, args.json)
    return 0


def _add_read(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offset", type=byte_count, default=0, metavar="BYTES", help="where to begin (0)")
    parser.add_argument("--length", type=byte_count, metavar="BYTES", help="how many (up to the disk's end)")
    parser.add_argument("--output", metavar="FILE", default="-", help="where to put them (standard output)")


def _read(driver: BlkDriver, args: argparse.Namespace) -> int:
    size = driver.info.capacity * _SECTOR
    end = size if args.length is None else args.offset + args.length
    if not args.offset <= end <= size:
        raise UsageError(f"bytes [{args.offset}, {end}) are not on a disk of {size}")
    with opened(args.output, "wb") as output:
        for at in range(args.offset // _SECTOR * _SECTOR, end, _CHUNK):
            sectors = -(-(min(at + _CHUNK, end) - at) // _SECTOR)
            data = driver.read(at // _SECTOR, sectors)
            output.write(data[max(args.offset - at, 0) : end - at])
    return 0


def _add_write(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offset", type=byte_count, default=0, metavar="BYTES", help="where to begin (0)")
    parser.add_argument("--input", metavar="FILE", default="-", help="what to write (standard input)")


def _write(driver: BlkDriver, args: argparse.Namespace) -> int:
    """Whole sectors; what is on the disk when it ends is durable."""
    if args.offset % _SECTOR:
        raise UsageError(f"offset {args.offset} is not a multiple of {_SECTOR}")
    at = args.offset // _SECTOR
    with opened(args.input, "rb") as source:
        for data in _chunks(source):
            if rest := len(data) % _SECTOR:
                raise UsageError(f"the last {rest} bytes of {args.input} are not a whole sector")
            driver.write(at, data)
            at += len(data) // _SECTOR
    driver.flush()
    return 0


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while data := source.read(_CHUNK):
        yield data


def _flush(driver: BlkDriver, args: argparse.Namespace) -> int:
    driver.flush()
    return 0


def _bench(driver: BatchingBlkDriver, args: argparse.Namespace) -> int:
    """Reads at random places, `--queue-depth` of them under way at a time."""
    sectors, rest = divmod(args.block_size, _SECTOR)
    blocks = driver.info.capacity // sectors if sectors else 0
    if rest or not blocks:
        raise UsageError(f"blocks of {args.block_size} bytes are not whole sectors of a disk of {driver.info.capacity}")
    if args.queue_depth < 1:
        raise UsageError(f"a queue depth of {args.queue_depth} keeps nothing under way")
    # The first one may have to wait for a compiler.
    driver.read(0, sectors)
    count, taken = _read_at_random(driver, blocks, sectors, args)
    print_rate(args.json, "reads", count, taken, args.block_size)
    return 0


def _read_at_random(
    driver: BatchingBlkDriver, blocks: int, sectors: int, args: argparse.Namespace
) -> tuple[int, float]:
    """How many reads completed, and in how many seconds."""
    from virtio_py.devices.blk.batch import Ask

    place, count, under_way, start = Random(0), 0, 0, perf_counter()
    while (taken := perf_counter() - start) < args.seconds or under_way:
        missing = args.queue_depth - under_way if taken < args.seconds else 0
        asks = [Ask.read(place.randrange(blocks) * sectors, sectors) for _ in range(missing)]
        under_way += len(driver.submit(asks)) if asks else 0
        if not under_way:
            raise UsageError(f"there is no room for a read of {args.block_size} bytes")
        for ticket in driver.wait(1, args.timeout):
            ticket.result()
            under_way, count = under_way - 1, count + 1
    return count, taken


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """The action has no options."""


KIND: Final = Kind(
    "a disk",
    _driver,
    {
        "info": Action("print what the disk is", add_json, _info),
        "read": Action("read bytes", _add_read, _read),
        "write": Action("write whole sectors, and flush", _add_write, _write),
        "flush": Action("make all writes durable", _add_nothing, _flush),
        "bench": Action("read at random, and count", add_bench, _bench),
    },
)
"""The row of the table."""
