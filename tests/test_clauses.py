"""The index of clauses, the record of what observes them, and the page made from both."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from virtio_py.cli.main import main
from virtio_py.errors import UsageError
from virtio_py.testing.clauses import as_markdown, load, notes_folder, write_record

ROOT = Path(__file__).parent.parent
pytest_plugins = ["pytester"]


def functions(path: Path) -> set[str]:
    """The names of all functions in a source file."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_the_record_is_of_these_tests() -> None:
    """Stale when a test that observed a clause was renamed or removed since the last full run was recorded."""
    recorded = {test for tests in load(notes_folder()).tests.values() for test in tests}
    assert recorded
    for path in {test.split("::")[0] for test in recorded}:
        names = {test.split("::")[-1] for test in recorded if test.startswith(f"{path}::")}
        # A state machine's one test is a method that Hypothesis makes.
        gone = names - functions(ROOT / path) - {"runTest"}
        assert not gone, f"{path} has no {gone}: run pytest -m '' --record-clauses spec_notes"


def test_the_page_is_made_from_the_record() -> None:
    assert (ROOT / "spec_notes" / "coverage.md").read_text() == as_markdown(load(ROOT / "spec_notes")), (
        "stale: run virtio-py clauses --write"
    )


def test_reasons_are_given_only_where_no_test_observes() -> None:
    coverage = load(notes_folder())
    assert not coverage.reasons.keys() & coverage.tests.keys()
    assert all(reason.endswith(".") for reason in coverage.reasons.values())


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clauses", "--json", "--area", "blk"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["area"] for row in rows} == {"blk", "blk-legacy", "blk-zoned"}
    assert all({"id", "level", "scope", "area", "status", "tests"} <= row.keys() for row in rows)
    assert {row["status"] for row in rows} <= {"tested", "argued", "open"}


def test_an_unknown_clause_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clauses.tsv").write_text((ROOT / "spec_notes" / "clauses.tsv").read_text())
    write_record(tmp_path, [("no.such.clause", "tests/test_x.py::test_y")])
    with pytest.raises(UsageError, match=r"no\.such\.clause"):
        load(tmp_path)


def test_only_tests_that_pass_are_recorded(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.clause("a.1", "a.3")
        @pytest.mark.parametrize("n", [1, 2])
        def test_passes(n): pass

        @pytest.mark.clause("a.2")
        def test_skips(): pytest.skip("no peer")
        """
    )
    plugin = ("-p", "virtio_py.testing.plugin")
    assert pytester.runpytest_subprocess(*plugin, "--record-clauses", ".").ret == 0
    assert (pytester.path / "tested.tsv").read_text().splitlines()[1:] == [
        "a.1\ttest_only_tests_that_pass_are_recorded.py::test_passes",
        "a.3\ttest_only_tests_that_pass_are_recorded.py::test_passes",
    ]
    pytester.makepyfile(test_other="def test_fails(): assert False")
    (pytester.path / "tested.tsv").unlink()
    assert pytester.runpytest_subprocess(*plugin, "--record-clauses", ".").ret == 1
    assert not (pytester.path / "tested.tsv").exists()
