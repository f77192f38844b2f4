"""What the devices of `virtio-py drive` have in common: rows, sizes as people write them, what `info` says."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from enum import IntEnum
from typing import Any, Final, NamedTuple

from virtio_py.driver import Driver

_UNITS: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Action(NamedTuple):
    """Something that a driver can be told to do; it returns the exit status."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Any, argparse.Namespace], int]


class Kind(NamedTuple):
    """A device type. driver: imports and returns the class, which is made as Driver is."""

    help: str
    driver: Callable[[], type[Driver]]
    actions: Mapping[str, Action]


def byte_count(text: str) -> int:
    """A number of bytes, decimal or 0x…, with K, M or G for powers of 1024. Raises ArgumentTypeError."""
    factor = _UNITS.get(text[-1:].lower(), 1)
    try:
        value = int(text[:-1] if factor > 1 else text, 0) * factor
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return value


def opened(path: str, mode: str) -> Any:
    """A file, or with "-" the standard stream for "rb" or "wb", which stays open."""
    if path == "-":
        return nullcontext((sys.stdout if "w" in mode else sys.stdin).buffer)
    return open(path, mode)  # our caller's `with` closes it


def print_rate(as_json: bool, name: str, count: int, seconds: float, size: int) -> None:
    """How many requests of `size` bytes there were in so many seconds."""
    rate = count / seconds if seconds else 0.0
    if as_json:
        print(json.dumps({"requests": count, "seconds": seconds, "iops": rate, "bytes_per_second": rate * size}))
        return
    print(f"{rate:.0f} IOPS, {rate * size / 1e6:.1f} MB/s: {count} {name} in {seconds:.2f} s")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Adds the options of reading at random."""
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long (5)")
    parser.add_argument("--block-size", type=byte_count, default=4096, metavar="BYTES", help="of each request (4096)")
    parser.add_argument("--queue-depth", type=int, default=1, metavar="N", help="requests under way at a time (1)")
    add_json(parser)


def print_info(driver: Driver, names: type[IntEnum] | None, config: Mapping[str, Any], as_json: bool) -> None:
    """The features, by name, and the configuration's fields; None is a field that there is not."""
    from virtio_py.spec import Feature

    known = {bit.value: bit.name for bit in [*Feature, *(names or [])]}
    features = [known.get(n, str(n)) for n in range(driver.features.bit_length()) if driver.has(n)]
    fields = {name: _plain(value) for name, value in config.items() if value is not None}
    if as_json:
        print(json.dumps({"device": driver.device_id.name, "features": features, "config": fields}, indent=2))
        return
    print(f"features  {driver.features:#x}  {' '.join(features)}")
    for name, value in fields.items():
        shown = " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:<{max(map(len, fields))}}  {shown}")


def _plain(value: Any) -> Any:
    """A structure's values as a dict, for JSON."""
    return value._asdict() if hasattr(value, "_asdict") else value
