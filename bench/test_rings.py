"""The rows of `virtio-py bench rings` through pytest-benchmark: its comparisons, histograms and files.

A round moves a fixed number of buffers, so the times are those of a round; ns a buffer stands in its extra_info.
"""

from __future__ import annotations

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from virtio_py.rings.kernels import common as k
from virtio_py.testing.ring_bench import Bench, row, run_length
from virtio_py.testing.ring_cases import Case
from virtio_py.testing.ring_exchange import Run

ROUNDS = 7
SECONDS = 0.03


def test_rings(case: Case, bench: Bench, benchmark: BenchmarkFixture) -> None:
    if not bench.possible([case]):
        pytest.skip("there is only one processor")
    exchange = bench.exchange(case)
    total = run_length(exchange, case, SECONDS) if benchmark.enabled else case.batch * 2
    benchmark.group = f"{case.engine}, {case.where}, {case.notify}, chain {case.chain}, batch {case.batch}"
    runs: list[Run] = []
    pedantic: Any = benchmark.pedantic
    pedantic(lambda: runs.append(exchange.run(total)), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info.update(row(case, total, runs[-ROUNDS:], exchange.note))
    assert all(run.driver[k.MOVED] == run.device[k.MOVED] == total for run in runs)
