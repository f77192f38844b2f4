"""The table of attacks in `spec_notes/attacks.md` names tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = (TESTS.parent / "spec_notes" / "attacks.md").read_text()


def test_every_class_has_a_test_that_is_there_or_says_why_not() -> None:
    rows = re.findall(r"^\| (A\d+) \|.*\| ([^|]*) \|$", TABLE, re.MULTILINE)
    assert [name for name, _ in rows] == [f"A{n}" for n in range(21, 34)]
    for name, tests in rows:
        found = re.findall(r"`(\w+\.py)::(\w+)`", tests)
        assert found or tests.startswith("none: "), name
        for file, function in found:
            tree = ast.parse((TESTS / file).read_text())
            assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, f"{file}::{function}"
