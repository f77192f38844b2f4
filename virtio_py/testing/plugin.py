"""The pytest plugin: the marker `clause`, and a record of which clauses a run observed.

Light to import: pytest loads it in every run on a machine where the package is installed.
"""

from __future__ import annotations

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
    """Registers the marker, and the recorder if a record is wanted."""
    config.addinivalue_line(
        "markers", "clause(id): the normative clause of the virtio specification that a test observes"
    )
    if folder := config.getoption("--record-clauses"):
        config.pluginmanager.register(Recorder(Path(folder)), "virtio-clauses")


class Recorder:
    """Collects the clauses of tests that passed, and writes them when the run ends well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.observed: set[tuple[str, str]] = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """A test that passed observed what it is marked with; a parametrised one counts once."""
        outcome = yield
        report = outcome.get_result()
        if report.when == "call" and report.passed:
            test = item.nodeid.split("[", 1)[0]
            self.observed |= {(mark.args[0], test) for mark in item.iter_markers("clause")}

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Writes the record; of a run with failures none is kept."""
        if exitstatus == pytest.ExitCode.OK:
            from virtio_py.testing.clauses import write_record

            write_record(self.folder, self.observed)
