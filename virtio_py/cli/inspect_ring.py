"""`virtio-py inspect --ring`: a virtqueue that lies in a memory dump, drawn or as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from virtio_py.errors import MemoryFault, MessageError, UsageError
from virtio_py.rings.drawing import MAX_ROWS, draw
from virtio_py.rings.picture import RingPicture
from virtio_py.rings.places import LAYOUTS
from virtio_py.rings.trace import as_memory, default_areas, picture_of_bytes

_FILE_MAX: Final = 1 << 30
"""Bytes of a dump at most: it is read as a whole."""

_NUMBERS: Final = {
    "--queue-size": ("N", "queue size, in descriptors"),
    "--desc-at": ("OFFSET", "where in the file the descriptor table (split) or ring (packed) begins"),
    "--driver-at": (
        "OFFSET",
        "the available ring, or the driver's event suppression structure; default: behind the descriptors",
    ),
    "--device-at": ("OFFSET", "the used ring, or the device's event suppression structure; default: behind those"),
    "--base": ("ADDRESS", "guest address of the file's first byte, to follow indirect tables; default: 0"),
    "--features": ("MASK", "the negotiated features, where they are known"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what a ring needs to a parser that has `paths` and `--json`."""
    group = parser.add_argument_group("a ring in a memory dump", "Numbers may be hexadecimal, as in 0x1000.")
    group.add_argument("--ring", choices=list(LAYOUTS), help="the layout: draw the virtqueue in the file PATH")
    for option, (metavar, text) in _NUMBERS.items():
        group.add_argument(option, type=_number, metavar=metavar, help=text)
    group.add_argument(
        "--rows", type=_number, default=MAX_ROWS, help=f"rows that a table shows at most; default: {MAX_ROWS}"
    )


def refuse_arguments(args: argparse.Namespace) -> None:
    """Raises UsageError for arguments of a ring where no --ring is."""
    for option in _NUMBERS:
        if _value(args, option) is not None:
            raise UsageError(f"{option} needs --ring {' or '.join(LAYOUTS)}")


def run(args: argparse.Namespace) -> int:
    """Prints the ring; raises VirtioError or OSError for arguments or a file that do not hold one."""
    if args.function is not None:
        raise UsageError("--ring and --function are two things")
    for option in ("--queue-size", "--desc-at"):
        if _value(args, option) is None:
            raise UsageError(f"--ring needs {option}")
    if len(args.paths) != 1:
        raise UsageError(f"--ring draws one file, {len(args.paths)} are given")
    picture = read_ring(Path(args.paths[0]), args)
    print(json.dumps(picture.as_dict(), indent=2) if args.json else draw(picture, args.rows))
    return 0


def read_ring(path: Path, args: argparse.Namespace) -> RingPicture:
    """The picture of the ring in a file. Raises OSError, UsageError, or MessageError that names the file."""
    data = _read(path)
    base = args.base or 0
    offsets = default_areas(args.ring, args.queue_size, args.desc_at, args.driver_at, args.device_at)
    try:
        memory = as_memory(data, base)
        areas = [base + offset for offset in offsets]
        return picture_of_bytes(args.ring, args.queue_size, memory, *areas, features=args.features)
    except MemoryFault as error:
        where = ", ".join(f"{offset:#x}" for offset in offsets)
        raise MessageError(f"{path}: {len(data)} bytes do not hold the areas at {where}") from error


def _read(path: Path) -> bytearray:
    with path.open("rb") as stream:
        data = bytearray(stream.read(_FILE_MAX + 1))
    if len(data) > _FILE_MAX:
        raise MessageError(f"{path}: more than {_FILE_MAX} bytes")
    return data


def _value(args: argparse.Namespace, option: str) -> Any:
    return getattr(args, option.removeprefix("--").replace("-", "_"))


def _number(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value
