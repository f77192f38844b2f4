"""`virtio-py conform`: the conformance suite against any vhost-user back-end.

    virtio-py conform --socket-path /run/disk.sock --device blk
    virtio-py conform --socket-path /run/net.sock --device net --json verdicts.json --spawn 'my-back-end /run/net.sock'

The device is written to: a disk's last blocks are, and put back; a console prints. The back-end is to have nothing else
to do, and to take one front-end after another.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.table import Table

    from virtio_py.driver import Transport
    from virtio_py.testing.conformance.verdicts import Verdict

_COLOURS: Final = {"PASS": "green", "FAIL": "bold red", "REJECT": "cyan", "WEDGED": "bold magenta", "SKIP": "dim"}


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("conform", help="judge a device behind a vhost-user socket, clause by clause")
    parser.add_argument("--socket-path", metavar="PATH", required=True, help="the socket that the back-end listens on")
    add_common(parser)
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no check after so many (none)")
    parser.add_argument("--patience", type=float, default=2.0, metavar="S", help="seconds to wait for an answer (2)")
    parser.add_argument("--thorough", action="store_true", help="also what takes more than a few seconds")
    parser.add_argument("--queues", type=int, default=64, metavar="N", help="how many queues to suppose (64)")
    parser.add_argument(
        "--spawn", metavar="COMMAND", help="starts the back-end: now, and again whenever it has died or wedged"
    )
    parser.set_defaults(run=run)


def add_common(parser: argparse.ArgumentParser) -> None:
    """What `conform` and `conform-driver` have in common."""
    parser.add_argument("--device", choices=("blk", "net", "scsi", "console"), required=True, help="what it is")
    parser.add_argument("--json", metavar="FILE", help='write {"verdicts": [{"clause", "verdict", "detail", …}]}')
    parser.add_argument("--junit", metavar="FILE", help="write the same as JUnit XML")
    parser.add_argument("--only", default="", metavar="CLAUSE", help="only this clause, or those that begin with it")


def run(args: argparse.Namespace) -> int:
    """Judges; 1 if anything is FAIL or WEDGED. Raises OSError, VirtioError if there is nobody to begin with."""
    from virtio_py.testing.conformance.run import Suite, kind_named, select

    chosen = select(args.device, args.only)
    with _spawning(args) as restart:
        # Whoever is not there at all is not judged.
        _connect(args).close()
        suite = Suite(
            lambda: _connect(args),
            kind_named(args.device),
            args.patience,
            restart=restart,
            thorough=args.thorough,
        )
        verdicts = list(_shown(suite.run(chosen, args.budget)))
    return finish(args, verdicts, f"virtio-py conform {args.device}")


def _connect(args: argparse.Namespace) -> Transport:
    from virtio_py.testing.conformance.run import kind_named
    from virtio_py.transports.vhost_user_transport import VhostUserTransport

    return VhostUserTransport(
        args.socket_path, kind_named(args.device).device_id, num_queues=args.queues, timeout=args.patience
    )


@contextmanager
def _spawning(args: argparse.Namespace) -> Iterator[Any]:
    """What starts the back-end anew, or None; it is started, and ended at the end."""
    if args.spawn is None:
        yield None
        return
    from virtio_py.testing.conformance.spawn import Spawned

    with Spawned(args.spawn, args.socket_path, lambda: _connect(args).close()) as spawned:
        yield spawned.restart


def _shown(verdicts: Iterator[Verdict]) -> Iterator[Verdict]:
    """Passes verdicts on, and says on a terminal how far it has come."""
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        for verdict in verdicts:
            status.update(f"{verdict.name}: {verdict.clause}")
            yield verdict


def finish(args: argparse.Namespace, verdicts: Sequence[Verdict], title: str) -> int:
    """Prints the verdicts, writes what is to be written; the exit status."""
    from rich.console import Console

    from virtio_py.testing.conformance.verdicts import as_json, as_junit, exit_status

    if args.json:
        Path(args.json).write_text(as_json(verdicts))
    if args.junit:
        Path(args.junit).write_text(as_junit(verdicts, title))
    console = Console()
    console.print(table_of(verdicts))
    counts = Counter(str(verdict.verdict) for verdict in verdicts)
    console.print(f"{len(verdicts)} verdicts: " + ", ".join(f"{counts[name]} {name}" for name in _COLOURS))
    return exit_status(verdicts)


def table_of(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts as a table, the worst of them last, where they are seen. What was skipped is a row a reason."""
    from rich.table import Table
    from rich.text import Text

    table = Table("verdict", "clause", "detail", "s", box=None, padding=(0, 1, 0, 0))
    table.columns[1].overflow = "fold"
    for reason, count in Counter(v.detail for v in verdicts if v.verdict == "SKIP").items():
        table.add_row(Text("SKIP", _COLOURS["SKIP"]), Text(f"{count} of them"), Text(reason))
    for name in ("PASS", "REJECT", "WEDGED", "FAIL"):
        for v in (v for v in verdicts if v.verdict == name):
            table.add_row(Text(name, _COLOURS[name]), Text(v.clause), Text(v.detail), f"{v.seconds:.2f}")
    return table
