"""The pytest plugin: the marker `clause`, what a run says of clauses, and the fixture `virtio_pair`.

Light to import: pytest loads it in every run on a machine where the package is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """--record-clauses FOLDER."""
    parser.getgroup("virtio").addoption(
        "--record-clauses",
        metavar="FOLDER",
        help="write FOLDER/tested.tsv: which passing test observed which clause of the virtio specification",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and the recorder."""
    config.addinivalue_line(
        "markers", "clause(id, ...): the normative clauses of the virtio specification that a test observes"
    )
    folder = config.getoption("--record-clauses")
    config.pluginmanager.register(Recorder(Path(folder) if folder else None), "virtio-clauses")


@pytest.fixture
def virtio_pair() -> Iterator[Callable[..., Any]]:
    """A function that connects a device and a driver class, and returns the driver, started: see `pairs.connected`.

    virtio_pair(device, MyDriver, layout="packed", engine="compiled", carrier="mmio")
    """
    from virtio_py.testing.pairs import connected

    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(connected(*arguments, **options))


class Recorder:
    """Collects the clauses of tests that passed, and writes them to `folder`, if any, when the run ends well. Those of
    tests that failed are a section of the report."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.observed: set[tuple[str, str]] = set()
        self.broken: set[tuple[str, str]] = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """A test that passed observed what it is marked with; a parametrised one counts once."""
        outcome = yield
        report = outcome.get_result()
        if report.when == "call" and not report.skipped:
            test = item.nodeid.split("[", 1)[0]
            found = self.observed if report.passed else self.broken
            found |= {(clause, test) for mark in item.iter_markers("clause") for clause in mark.args}

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Which clauses do not hold, by the tests that say so; how many were observed, with -v."""
        if self.broken:
            terminalreporter.section("virtio: clauses that do not hold")
            for clause, test in sorted(self.broken):
                terminalreporter.write_line(f"{clause}  {test}")
        if self.observed and terminalreporter.verbosity > 0:
            clauses = {clause for clause, _ in self.observed - self.broken}
            terminalreporter.section("virtio: clauses observed")
            terminalreporter.write_line(f"{len(clauses)} clauses, {len(self.observed)} times")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Writes the record, if one is wanted; of a run with failures none is kept."""
        if self.folder is not None and exitstatus == pytest.ExitCode.OK:
            from virtio_py.testing.clauses import write_record

            write_record(self.folder, self.observed)
