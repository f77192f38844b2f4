"""What the README shows is true: its first block of Python runs, and its commands are those of the command line."""

from __future__ import annotations

import re
from pathlib import Path

from virtio_py.cli.main import COMMANDS

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_opening_example_runs_and_is_short() -> None:
    [example] = blocks("python")
    assert len(example.strip().splitlines()) <= 25
    exec(compile(example, "README.md", "exec"), {})


def test_every_command_shown_exists() -> None:
    shown = set(re.findall(r"virtio-py ([a-z]+)", README))
    assert shown
    assert shown <= set(COMMANDS)


def test_the_command_under_tests_ends_with_pytest() -> None:
    after = README.split("\n## Tests\n", 1)[1]
    [command] = re.findall(r"^```\n(.*?)^```$", after, re.MULTILINE | re.DOTALL)[:1]
    assert command.strip().endswith("pytest")
