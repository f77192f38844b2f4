"""`virtio-py drive console`: a console's driver on the command line. A port is named by its name or its number."""

from __future__ import annotations

import argparse
import json
import sys
from time import monotonic
from typing import TYPE_CHECKING, Final

from virtio_py.cli.drive_common import Action, Kind, add_json, byte_count, opened, print_info

if TYPE_CHECKING:
    from virtio_py.devices.console.driver import ConsoleDriver
    from virtio_py.devices.console.streams import ConsoleStream

_CHUNK: Final = 1 << 16


def _driver() -> type[ConsoleDriver]:
    from virtio_py.devices.console.driver import ConsoleDriver

    return ConsoleDriver


def _info(driver: ConsoleDriver, args: argparse.Namespace) -> int:
    from virtio_py.devices.console.layout import ConsoleFeature

    size = driver.size
    config = {"size": size, "ports": driver.max_nr_ports or 1}
    print_info(driver, ConsoleFeature, config, args.json)
    return 0


def _add_list(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("--seconds", type=float, default=0.3, metavar="S", help="how long to wait for ports (0.3)")


def _list(driver: ConsoleDriver, args: argparse.Namespace) -> int:
    # The device says when there is another port, never that there are no more.
    driver.wait_until(lambda: False, args.seconds)
    ports = [
        {"port": n, "name": p.name, "console": p.console, "open": p.device_open, "size": p.size}
        for n, p in sorted(driver.ports.items())
    ]
    if args.json:
        print(json.dumps(ports, indent=2))
        return 0
    for port in ports:
        words = [word for word in ("console", "open") if port[word]]
        print(f"{port['port']}  {port['name'] or '-'}  {' '.join(words)}")
    return 0


def _add_port(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", metavar="NAME", default="0", help="the port's name or number (0)")


def _port(driver: ConsoleDriver, args: argparse.Namespace) -> ConsoleStream:
    port = driver.port(int(args.port) if args.port.isdecimal() else args.port)
    port.open()
    return port


def _add_write(parser: argparse.ArgumentParser) -> None:
    _add_port(parser)
    parser.add_argument("--input", metavar="FILE", default="-", help="what to write (standard input)")


def _write(driver: ConsoleDriver, args: argparse.Namespace) -> int:
    port = _port(driver, args)
    with opened(args.input, "rb") as source:
        while data := source.read(_CHUNK):
            port.write(data)
    port.flush()
    return 0


def _add_read(parser: argparse.ArgumentParser) -> None:
    _add_port(parser)
    parser.add_argument("--length", type=byte_count, metavar="BYTES", help="how many at most (no limit)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long at most (5)")


def _read(driver: ConsoleDriver, args: argparse.Namespace) -> int:
    port = _port(driver, args)
    deadline, left = monotonic() + args.seconds, _CHUNK if args.length is None else args.length
    while left and (data := port.read(min(left, _CHUNK), max(0.0, deadline - monotonic()))):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        left -= len(data) if args.length is not None else 0
    return 0


KIND: Final = Kind(
    "a console",
    _driver,
    {
        "info": Action("print what the console is", add_json, _info),
        "list": Action("print the ports", _add_list, _list),
        "read": Action("print what a port receives", _add_read, _read),
        "write": Action("send bytes to a port", _add_write, _write),
    },
)
"""The row of the table."""
