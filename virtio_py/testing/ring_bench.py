"""Measures rings: how long a buffer takes from the driver to the device and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from statistics import median
from time import monotonic
from types import TracebackType
from typing import Any, Final

from attrs import asdict, define, field, frozen

from virtio_py.rings.kernels import common as k
from virtio_py.testing.machine import can_run_side_by_side, two_processors
from virtio_py.testing.ring_cases import Case
from virtio_py.testing.ring_exchange import Exchange, PeerProcess, Processes, Run, Threads, Turns
from virtio_py.testing.ring_halves import QUEUE_SIZE, Ground

BY_TURNS_INTERPRETED: Final = "one thread, both halves by turns: interpreted, two would share a lock"
BY_TURNS_ALONE: Final = "one thread, both halves by turns: there is only one processor"
ONE_PROCESSOR: Final = "only one processor: two threads run by turns in one, and two processes are left out"
NOT_PINNED: Final = "threads cannot be pinned on this system: figures are those of wherever it puts them"


@frozen
class Effort:
    """How thorough to be. repeats: runs of a row; seconds: what one run should take; limit: for all rows, or None."""

    repeats: int
    seconds: float
    limit: float | None = None


FULL: Final = Effort(repeats=7, seconds=0.03)
QUICK: Final = Effort(repeats=5, seconds=0.02, limit=30.0)


@define(eq=False)
class Bench:
    """Runs cases one after the other, on the same memory and with the same other process. Close it, or use `with`."""

    ground: Ground = field(factory=Ground.new)
    processors: tuple[int, int] | None = field(factory=two_processors)
    _peer: PeerProcess | None = field(default=None, init=False)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the other process and gives the memory back."""
        if self._peer is not None:
            self._peer.close()
        self.ground.close()

    def limitation(self) -> str:
        """What this machine cannot do, or nothing."""
        if not can_run_side_by_side():
            return ONE_PROCESSOR
        return "" if self.processors else NOT_PINNED

    def possible(self, cases: Iterable[Case]) -> list[Case]:
        """Those of the cases that this machine can run."""
        return [case for case in cases if case.where == "threads" or can_run_side_by_side()]

    def exchange(self, case: Case) -> Exchange:
        """A new queue for a case; the one before it is gone then. Raises EngineUnavailable."""
        if case.where == "processes":
            return Processes(case, self.ground, self.processors and self.processors[0], self._other_process())
        if case.engine == "reference":
            return Turns(case, self.ground, BY_TURNS_INTERPRETED)
        if not can_run_side_by_side():
            return Turns(case, self.ground, BY_TURNS_ALONE)
        return Threads(case, self.ground, self.processors)

    def _other_process(self) -> PeerProcess:
        if self._peer is None:
            self._peer = PeerProcess(self.ground, self.processors and self.processors[1])
        return self._peer


def warm_up(bench: Bench, cases: Iterable[Case]) -> None:
    """Loads, or compiles, every kernel that the cases need."""
    for case in {(c.engine, c.where, c.layout): c for c in cases}.values():
        bench.exchange(case).run(case.batch)


def measure_all(
    bench: Bench, cases: Iterable[Case], effort: Effort, clock: Callable[[], float] = monotonic
) -> Iterator[dict[str, Any]]:
    """A row for each case, until the effort's limit is reached."""
    end = None if effort.limit is None else clock() + effort.limit
    for case in cases:
        if end is not None and clock() > end:
            return
        yield measure(bench.exchange(case), case, effort)


def measure(exchange: Exchange, case: Case, effort: Effort) -> dict[str, Any]:
    """One row: the case, and what it was measured to take."""
    total = run_length(exchange, case, effort.seconds)
    return row(case, total, [exchange.run(total) for _ in range(effort.repeats)], exchange.note)


def run_length(exchange: Exchange, case: Case, seconds: float) -> int:
    """How many buffers keep the exchange busy for some `seconds`: whole batches, and one at least."""
    exchange.run(case.batch)
    total = max(case.batch, 64)
    while (took := exchange.run(total).seconds) < seconds / 4:
        total = int(total * min(16.0, max(2.0, seconds / 2 / took)))
    return max(1, round(total * seconds / took / case.batch)) * case.batch


def row(case: Case, total: int, runs: list[Run], note: str) -> dict[str, Any]:
    """Times in ns for a buffer, there and back; counts for a buffer over all runs. spread: (max - min) / median."""
    samples = [run.seconds / total * 1e9 for run in runs]
    buffers = total * len(runs)
    middle = median(samples)
    available = sum(run.driver[k.NOTIFICATIONS] for run in runs) / buffers
    used = sum(run.device[k.NOTIFICATIONS] for run in runs) / buffers
    return {
        **asdict(case),
        "queue_size": QUEUE_SIZE,
        "ns_per_buffer": middle,
        "ns_min": min(samples),
        "ns_max": max(samples),
        "spread": (max(samples) - min(samples)) / middle,
        "buffers_per_second": 1e9 / middle,
        "notifications_per_buffer": available + used,
        "available_notifications_per_buffer": available,
        "used_notifications_per_buffer": used,
        "sleeps_per_buffer": sum(run.driver[k.SLEEPS] + run.device[k.SLEEPS] for run in runs) / buffers,
        "repeats": len(runs),
        "buffers": total,
        "note": note,
    }
