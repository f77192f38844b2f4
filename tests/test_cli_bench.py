"""`virtio-py bench rings`: what it prints and writes, what it refuses, and the parts that measure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from virtio_py.cli import bench as command
from virtio_py.cli.bench_show import MARKERS, fill_markdown, save_plot
from virtio_py.cli.main import main
from virtio_py.errors import Disconnected, UsageError
from virtio_py.testing import machine as machines
from virtio_py.testing import ring_bench
from virtio_py.testing.machine import can_run_side_by_side
from virtio_py.testing.ring_bench import Bench, Effort, measure, measure_all, warm_up
from virtio_py.testing.ring_cases import AXES, Case, all_cases, quick_cases
from virtio_py.testing.ring_exchange import Turns

two_processors = pytest.mark.skipif(not can_run_side_by_side(), reason="two processes need a processor each")

CONTRACT: Final = {
    "layout": str,
    "in_order": bool,
    "event_idx": bool,
    "batch": int,
    "chain": int,
    "indirect": bool,
    "notify": str,
    "engine": str,
    "where": str,
    "ns_per_buffer": float,
    "buffers_per_second": float,
}
ONE_ROW: Final = ["--quick", "--layout", "packed", "--in-order", "yes", "--engine", "reference", "--where", "threads"]
BRIEF: Final = Effort(repeats=5, seconds=0.002)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


def test_every_combination_is_a_row_once() -> None:
    cases = all_cases()
    assert len(set(cases)) == len(cases) == 2 * 2 * 2 * 4 * 2 * 2 * 2 * 2 * 2
    assert {case.batch for case in cases} == {1, 8, 32, 256}
    assert {case.chain for case in cases} == {1, 3}
    assert len({str(case) for case in cases}) == len(cases)


def test_the_quick_rows_have_every_value_of_every_choice() -> None:
    quick = quick_cases()
    assert len(set(quick)) == len(quick) < 60
    assert set(quick) <= set(all_cases())
    for axis, values in AXES.items():
        assert {getattr(case, axis) for case in quick} == set(values)


QUICK: Final = [case for case in quick_cases() if case.layout == "packed" and case.in_order]


@two_processors
@pytest.mark.parametrize("case", QUICK, ids=str)
def test_a_row_is_what_was_measured(case: Case, bench: Bench) -> None:
    row = measure(bench.exchange(case), case, BRIEF)
    assert {key: type(row[key]) for key in CONTRACT} == CONTRACT
    assert Case(**{key: row[key] for key in AXES}) == case
    assert 0 < row["ns_min"] <= row["ns_per_buffer"] <= row["ns_max"]
    assert row["buffers_per_second"] == pytest.approx(1e9 / row["ns_per_buffer"])
    assert row["spread"] == pytest.approx((row["ns_max"] - row["ns_min"]) / row["ns_per_buffer"])
    assert row["repeats"] == 5
    assert row["buffers"] % case.batch == 0
    if case.notify == "poll":
        assert row["notifications_per_buffer"] == row["sleeps_per_buffer"] == 0
    assert bool(row["note"]) == (case.engine == "reference" and case.where == "threads")


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("layout", AXES["layout"])
def test_by_turns_every_batch_is_a_notification_each_way(layout: str, event_idx: bool, bench: Bench) -> None:
    case = Case(layout, event_idx=event_idx, batch=8, notify="eventfd", engine="reference")
    row = measure(bench.exchange(case), case, BRIEF)
    assert row["available_notifications_per_buffer"] == row["used_notifications_per_buffer"] == 1 / 8


def test_a_run_is_as_long_as_asked_for(bench: Bench) -> None:
    """Ten times the time is ten times the buffers, roughly: this machine may be busy with something else."""
    case = Case(engine="reference")
    short, long = (ring_bench.run_length(bench.exchange(case), case, seconds) for seconds in (0.01, 0.1))
    assert 2 < long / short < 50


def test_when_the_time_is_up_no_more_rows_are_begun(bench: Bench) -> None:
    cases = [Case(engine="reference", batch=batch) for batch in (1, 8, 32)]
    clock = count(0, 10)
    rows = list(measure_all(bench, cases, Effort(5, 0.001, limit=25), lambda: next(clock)))
    assert [row["batch"] for row in rows] == [1, 8]


@two_processors
def test_the_other_process_may_die(bench: Bench) -> None:
    case = Case(where="processes", engine="reference")
    exchange = bench.exchange(case)
    exchange.run(100)
    peer: Any = bench._peer
    peer.process.send_signal(signal.SIGKILL)
    peer.process.wait()
    with pytest.raises(Disconnected):
        exchange.run(100)


@two_processors
def test_the_other_process_ends_with_this_one() -> None:
    program = """
import os
from virtio_py.testing.ring_bench import Bench
from virtio_py.testing.ring_cases import Case
bench = Bench()
bench.exchange(Case(where="processes", engine="reference")).run(10)
print(bench._peer.process.pid, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    pid = int(done.stdout)
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        subprocess.run(["sleep", "0.05"], check=True)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("it goes on without anybody to ask it for anything")


# One processor -----------------------------------------------------------------------------------------------------


def test_with_one_processor_both_halves_take_turns(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert bench.limitation() == ring_bench.ONE_PROCESSOR
    assert {case.where for case in bench.possible(all_cases())} == {"threads"}
    exchange = bench.exchange(Case())
    assert isinstance(exchange, Turns)
    assert exchange.run(64).driver[0] == 64
    assert exchange.note == ring_bench.BY_TURNS_ALONE


def test_where_threads_cannot_be_pinned_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with Bench() as bench:
        assert bench.processors is None
        assert bench.limitation() == ring_bench.NOT_PINNED
        warm_up(bench, [Case()])


@pytest.mark.parametrize(
    ("siblings", "allowed", "chosen"),
    [
        ({}, {0, 1}, (0, 1)),
        ({0: "0-1", 1: "0-1", 2: "2-3"}, {0, 1, 2, 3}, (0, 2)),
        ({0: "0,4"}, {0, 4}, (0, 4)),
        ({0: "0,4"}, {0, 4, 7}, (0, 7)),
        ({}, {5}, None),
    ],
)
def test_the_two_processors_are_of_two_cores_if_they_can(
    siblings: dict[int, str],
    allowed: set[int],
    chosen: tuple[int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cpu, text in siblings.items():
        (tmp_path / str(cpu)).write_text(text + "\n")
    monkeypatch.setattr(machines, "_SIBLINGS", str(tmp_path / "{}"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed)
    assert machines.two_processors() == chosen


# The command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    files = ["--json", str(tmp_path / "rows.json"), "--markdown", str(readme)]
    assert main(["bench", "rings", *ONE_ROW, *files]) == 0
    out = capsys.readouterr().out
    assert "ns/buffer" in out
    assert "in order" in out
    assert "by turns" in out
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["machine"].keys() >= {"cpu", "cores", "python", "numba", "load_average", "processors"}
    [row] = written["rows"]
    assert row.keys() >= CONTRACT.keys()
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert f"{row['ns_per_buffer']:.1f}" in text


def test_without_matplotlib_one_line_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert main(["bench", "rings", "--quick", "--plot", str(tmp_path / "plot.png")]) == 2
    assert capsys.readouterr().err == "virtio-py: --plot needs matplotlib: install virtio-py with its extra `plot`\n"


@pytest.mark.parametrize("option", ["--json", "--plot", "--markdown"])
def test_a_file_that_cannot_be_written_is_noticed_before_measuring(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if option == "--plot":
        pytest.importorskip("matplotlib")
    assert main(["bench", "rings", option, str(tmp_path / "no" / "file")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No such file" in error


def test_a_file_without_markers_is_left_alone() -> None:
    with pytest.raises(UsageError):
        fill_markdown("nothing here", {}, [])


def test_no_row_left_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rings", "--quick", "--engine", "reference", "--batch", "1"]) == 2
    assert capsys.readouterr().err == "virtio-py: no row is left to measure\n"


def test_the_plot_is_a_picture(tmp_path: Path, bench: Bench) -> None:
    pytest.importorskip("matplotlib")
    cases = [Case(engine="reference", batch=batch, layout=layout) for batch in (1, 8) for layout in AXES["layout"]]
    rows = [measure(bench.exchange(case), case, BRIEF) for case in cases]
    path = tmp_path / "plot.png"
    about = {**machines.machine(), "processors": bench.processors, "limitation": bench.limitation()}
    save_plot(path, about, rows)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_bar_is_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rings", *ONE_ROW]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\x1b" not in captured.out
