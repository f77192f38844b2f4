"""`virtio-py inspect`: decode PCI configuration space from files, sysfs or this machine, as text or JSON.

With --ring it draws a virtqueue from a memory dump instead (`inspect_ring`), and with --function it shows a function of
this package (`inspect_function`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from virtio_py.cli import inspect_function, inspect_ring
from virtio_py.cli.inspect_text import function_lines
from virtio_py.errors import MessageError
from virtio_py.pci.dump import format_dump, looks_like_text, parse_dump
from virtio_py.pci.header import CONFIG_SPACE_MAX
from virtio_py.pci.walk import Function, is_virtio, walk

SYSFS_DEVICES: Final = Path("/sys/bus/pci/devices")

# lspci -xxxx takes some 14 kB a function; a file beyond this is something else.
_FILE_MAX: Final = 64 << 20


def add_parser(subparsers: Any) -> None:
    """Adds the command to argparse's `subparsers`."""
    parser = subparsers.add_parser(
        "inspect",
        help="decode PCI configuration space, or draw a virtqueue from a memory dump",
        description="Decode PCI configuration space, virtio's capabilities and all others, as lspci -vvv does; or, "
        "with --ring, draw a virtqueue that lies in a memory dump; or, with --function, show a function of our own.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="raw bytes (64 to 4096, such as sysfs' config), a device's folder in sysfs, or a hex dump as lspci -xxxx "
        "prints it; default: every virtio function of this machine",
    )
    parser.add_argument("--json", action="store_true", help="a list of functions, numbers as numbers")
    inspect_ring.add_arguments(parser)
    inspect_function.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints every function named by the arguments; raises VirtioError or OSError for a path that cannot be decoded."""
    if args.function is None:
        inspect_function.refuse_arguments(args)
    if args.ring is not None:
        return inspect_ring.run(args)
    inspect_ring.refuse_arguments(args)
    if args.function is not None:
        return _show_own(args)
    functions = [f for path in args.paths for f in read_functions(Path(path))]
    if not args.paths:
        functions = list(virtio_functions())
    return _show(functions, args.json)


def _show_own(args: argparse.Namespace) -> int:
    dumped = inspect_function.dumped_function(args)
    if args.hex:
        print(format_dump(dumped), end="")
        return 0
    return _show([walk(bytes(dumped.config), dumped.address)], args.json)


def _show(functions: list[Function], as_json: bool) -> int:
    if as_json:
        print(json.dumps([f.as_dict() for f in functions], indent=2))
    elif functions:
        _print_text(functions)
    else:
        print("no virtio function on this machine", file=sys.stderr)
    return 0


def virtio_functions(devices: Path = SYSFS_DEVICES) -> Iterator[Function]:
    """The virtio functions below a folder such as /sys/bus/pci/devices; none when there is no such folder."""
    for folder in sorted(devices.iterdir()) if devices.is_dir() else []:
        ids = _kernel_ids(folder)
        if ids and is_virtio(*ids):
            yield from read_functions(folder)


def read_functions(path: Path) -> list[Function]:
    """The functions of one file or sysfs folder. Raises OSError, or MessageError that names the path."""
    ids = _kernel_ids(path if path.is_dir() else path.parent)
    file = path / "config" if path.is_dir() else path
    data = _read(file)
    try:
        if not data:
            raise MessageError("the file is empty")
        if looks_like_text(data):
            return [walk(bytes(f.config), _name(path, f.address)) for f in parse_dump(data.decode("ascii"))]
        # A virtual function's own ids read 0xffff; the kernel knows whose it is.
        return [walk(data, str(path), virtio=is_virtio(*ids) if ids and file.name == "config" else None)]
    except MessageError as error:
        raise MessageError(f"{path}: {error}") from error


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        data = stream.read(_FILE_MAX + 1)
    if len(data) > _FILE_MAX:
        raise MessageError(f"{file}: more than {_FILE_MAX} bytes, neither {CONFIG_SPACE_MAX} raw bytes nor a dump")
    return data


def _name(path: Path, address: str) -> str:
    return f"{path}#{address}" if address else str(path)


def _kernel_ids(folder: Path) -> tuple[int, int] | None:
    try:
        vendor, device = (int((folder / name).read_text(), 16) for name in ("vendor", "device"))
    except (OSError, ValueError):
        return None
    return vendor, device


def _print_text(functions: list[Function]) -> None:
    blocks = ["\n".join(function_lines(f)) for f in functions]
    text = "\n\n".join(blocks)
    if sys.stdout.isatty():
        _print_coloured(text)
    else:
        print(text)


def _print_coloured(text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    shown = Text(text)
    shown.highlight_regex(r"(?m)^\S.*$", "bold")
    shown.highlight_regex(r"(?m)^\tProblem.*$", "bold red")
    shown.highlight_regex(r"\[[0-9a-f]{2,3}(?: v\d+)?\]", "cyan")
    shown.highlight_regex(r"[A-Za-z0-9>-]+\+(?=[\s,)]|$)", "green")
    Console(highlight=False, soft_wrap=True).print(shown)
