"""What the benchmarks share: the rows to measure, and one memory and other process for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from virtio_py.testing.ring_bench import Bench
from virtio_py.testing.ring_cases import all_cases, quick_cases


def pytest_addoption(parser: pytest.Parser) -> None:
    """--rows: as many as `virtio-py bench rings` has, or as its --quick has."""
    parser.addoption("--rows", choices=["quick", "full"], default="quick", help="rows of the ring benchmark")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each row to whoever asks for a `case`."""
    if "case" in metafunc.fixturenames:
        rows = all_cases() if metafunc.config.getoption("--rows") == "full" else quick_cases()
        metafunc.parametrize("case", rows, ids=str)


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """The memory that queues lie in, and the process with the device."""
    with Bench() as bench:
        yield bench
