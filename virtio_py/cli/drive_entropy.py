"""`virtio-py drive entropy`: bytes from a source of randomness."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from virtio_py.cli.drive_common import Action, Kind, byte_count

if TYPE_CHECKING:
    from virtio_py.devices.entropy import EntropyDriver


def _driver() -> type[EntropyDriver]:
    from virtio_py.devices.entropy import EntropyDriver

    return EntropyDriver


def _add_read(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", type=byte_count, default=16, metavar="BYTES", help="how many (16)")


def _read(driver: EntropyDriver, args: argparse.Namespace) -> int:
    print(driver.read(args.length).hex())
    return 0


KIND: Final = Kind("a source of randomness", _driver, {"read": Action("print random bytes in hex", _add_read, _read)})
"""The row of the table."""
