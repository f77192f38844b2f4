"""`virtio-py bench rings`: what a buffer costs, driver to device and back, whatever the ring was asked to do."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from virtio_py.cli.bench_show import MARKERS, fill_markdown, print_rows, save_plot, with_progress
from virtio_py.errors import UsageError
from virtio_py.testing.machine import machine
from virtio_py.testing.ring_bench import FULL, QUICK, Bench, Effort, measure_all, warm_up
from virtio_py.testing.ring_cases import AXES, Case, all_cases, quick_cases

_WORDS: Final = {"no": False, "yes": True}


def add_parser(subparsers: Any) -> None:
    """Adds the command to argparse's `subparsers`."""
    parser = subparsers.add_parser("bench", help="measure", description="Measure this package on this machine.")
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=type(parser))
    rings = what.add_parser(
        "rings",
        help="the descriptor rings, both halves",
        description="Measure both halves of both rings against each other: each row is one combination of options. "
        f"All {len(all_cases())} rows take some five minutes; --quick takes {len(quick_cases())} of them.",
    )
    rings.add_argument("--quick", action="store_true", help="a selection of rows, within 40 seconds")
    rings.add_argument("--json", type=Path, metavar="FILE", help="write the machine and all rows here")
    rings.add_argument("--plot", type=Path, metavar="FILE.png", help="draw ns a buffer over the batch (extra: plot)")
    rings.add_argument(
        "--markdown", type=Path, metavar="FILE", help=f"write the table between {MARKERS[0]} and {MARKERS[1]} there"
    )
    chosen = rings.add_argument_group("only some rows", "each may be given more than once")
    for axis, values in AXES.items():
        words = [_word(value) for value in values]
        chosen.add_argument(f"--{axis.replace('_', '-')}", dest=axis, action="append", choices=words, default=[])
    rings.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and writes the files that were asked for. Raises UsageError, EngineUnavailable, OSError."""
    _check_outputs(args)
    effort = QUICK if args.quick else FULL
    about = machine()
    with Bench() as bench:
        cases = bench.possible(_wanted(args))
        if not cases:
            raise UsageError("no row is left to measure")
        about |= {"processors": bench.processors, "limitation": bench.limitation()}
        rows = _measure(bench, cases, effort)
    print_rows(about, rows, len(cases))
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(fill_markdown(args.markdown.read_text(), about, rows))
    if args.plot:
        save_plot(args.plot, about, rows)
    return 0


def _measure(bench: Bench, cases: list[Case], effort: Effort) -> list[dict[str, Any]]:
    warm_up(bench, cases)
    return with_progress(measure_all(bench, cases, effort), len(cases))


def _wanted(args: argparse.Namespace) -> list[Case]:
    def fits(case: Case) -> bool:
        return all(_word(getattr(case, axis)) in (getattr(args, axis) or [_word(getattr(case, axis))]) for axis in AXES)

    return [case for case in (quick_cases() if args.quick else all_cases()) if fits(case)]


def _word(value: Any) -> str:
    return next((word for word, meaning in _WORDS.items() if value is meaning), str(value))


def _check_outputs(args: argparse.Namespace) -> None:
    """Before minutes of measuring: raises UsageError or OSError for what could not be written afterwards."""
    if args.plot and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: install virtio-py with its extra `plot`")
    for path in (args.json, args.plot):
        if path:
            path.open("ab").close()
    if args.markdown:
        fill_markdown(args.markdown.read_text(), {}, [])
