"""`virtio-py clauses`: every normative clause, and whether it is tested, argued or open."""

from __future__ import annotations

import argparse
import json
from typing import Any

from virtio_py.testing.clauses import STATUSES, as_markdown, load, notes_folder


def add_parser(subparsers: Any) -> None:
    """The command and its options."""
    parser = subparsers.add_parser("clauses", help="the specification's clauses: tested, argued or open")
    parser.add_argument("--area", help="only this area, such as split, packed, blk or net")
    parser.add_argument("--open", action="store_true", help="only what is neither tested nor argued")
    parser.add_argument("--json", action="store_true", help="a list of {id, level, scope, area, status, tests, …}")
    parser.add_argument("--write", action="store_true", help="write spec_notes/coverage.md anew")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the clauses asked for. Raises UsageError outside a checkout."""
    folder = notes_folder()
    coverage = load(folder)
    if args.write:
        (folder / "coverage.md").write_text(as_markdown(coverage))
        return 0
    chosen = coverage.select(args.area, args.open)
    if args.json:
        print(json.dumps([coverage.row(clause) for clause in chosen], indent=1))
        return 0
    for clause in chosen:
        row = coverage.row(clause)
        print(f"{row['status']:7} {clause.level:10} {clause.scope:9} {clause.id}")
        print(f"        {clause.gist}")
        for line in filter(None, row["tests"] or [row["reason"]]):
            print(f"        {line}")
    statuses = [coverage.status(clause) for clause in chosen]
    print(f"{len(statuses)} clauses: " + ", ".join(f"{statuses.count(status)} {status}" for status in STATUSES))
    return 0
