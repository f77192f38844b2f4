"""The dispatcher of `virtio-py`: each command is a module of this package with `add_parser`, which sets `run`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Final

from virtio_py.errors import VirtioError

COMMANDS: Final = ("bench", "clauses", "conform", "conform_driver", "demo", "drive", "inspect", "serve", "trace")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status, or 2 with one line on stderr when the arguments or the world are wrong."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        # Where the locale has no frames and arrows, a question mark is better than nothing at all.
        sys.stdout.reconfigure(errors="replace")
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        return _closed_pipe()
    except (VirtioError, OSError) as error:
        print(f"virtio-py: {_one_line(error)}", file=sys.stderr)
        return 2
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # it does not return either
        self.exit(2, f"virtio-py: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="virtio-py", description="The virtio 1.4 specification as executable Python.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name in COMMANDS:
        import_module(f"virtio_py.cli.{name}").add_parser(subparsers)
    return parser


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return " ".join(str(error).split())


def _closed_pipe() -> int:
    # The reader has gone (`| head`): what is still buffered must not raise once more when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
