"""A missing peer must never pass unnoticed where continuous integration relies on it."""

from __future__ import annotations

import pytest

from tests.peers.require import require

MISSING = "no such program"


def test_programs_are_found_in_order() -> None:
    shell, environment = require("sh", "env")
    assert (shell.rpartition("/")[2], environment.rpartition("/")[2]) == ("sh", "env")


def test_a_missing_program_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=MISSING):
        require("sh", MISSING)


def test_a_missing_program_fails_under_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=MISSING):
        require("sh", MISSING)
