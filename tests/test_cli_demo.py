"""`virtio-py demo`: it ends, it says what it did, and it fails when something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from virtio_py.cli import demo
from virtio_py.cli.demo_rings import run_schedules
from virtio_py.cli.main import main
from virtio_py.errors import EngineUnavailable
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.kernels import common as k

COMMAND = [sys.executable, "-m", "virtio_py.cli.main", "demo", "--seed", "1"]
SECTIONS = ("A structure: ", "A live ring: ", "A disk: ", "A property: ", "Throughput of ")


def test_piped_it_is_plain_and_ends_well() -> None:
    done = subprocess.run(COMMAND, capture_output=True, timeout=240, check=False)
    text = done.stdout.decode()
    assert done.returncode == 0, text + done.stderr.decode()
    assert all(section in text for section in SECTIONS)
    assert "\x1b" not in text
    assert "✗" not in text
    assert text.count("data identical: yes") == 4
    assert max(map(len, text.splitlines())) <= 100


def test_on_a_terminal_it_has_colours() -> None:
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen(COMMAND, stdout=theirs, env=environment) as process:
        os.close(theirs)
        data = b""
        while chunk := _read(ours):
            data += chunk
        assert process.wait(timeout=240) == 0
    os.close(ours)
    assert b"\x1b[" in data
    assert "┌──────┬".encode() in data


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says so when the other side is closed.
        return b""


def test_a_terminal_without_frames_is_no_reason_to_fail() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(COMMAND, capture_output=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert b"A live ring" in done.stdout


def test_without_the_compiled_engine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> Engine:
        raise EngineUnavailable("no numba")

    monkeypatch.setattr(demo, "compiled", missing)
    assert main(["demo", "--seed", "2"]) == 0
    text = capsys.readouterr().out
    assert "No compiled engine here: no numba" in text
    assert all(section in text for section in SECTIONS)
    assert "compiled  " not in text


def broken(name: str, wrong: Any) -> Engine:
    """The reference engine with one kernel wrapped."""
    kernel = REFERENCE.kernels[name]
    return Engine({**REFERENCE.kernels, name: lambda *arguments: wrong(kernel, *arguments)})


def longer(kernel: Any, ring: Any, state: Any, shadow: Any, batch: Any, count: int) -> Any:
    """A device that reports one byte more than it wrote, where it may."""
    buffers = batch.buffers
    for row in range(0, count * k.BUFFER, k.BUFFER):
        limit = shadow[buffers[row + k.ID] * k.SHADOW + k.LIMIT]
        buffers[row + k.LENGTH] = min(buffers[row + k.LENGTH] + 1, limit)
    return kernel(ring, state, shadow, batch, count)


def forgetful(kernel: Any, *arguments: Any) -> bool:
    """A driver that never sends a notification."""
    kernel(*arguments)
    return False


def test_the_property_holds_of_the_reference_engine() -> None:
    found = run_schedules([REFERENCE, REFERENCE], seed=3, seconds=1)
    assert found.difference == ""
    assert found.schedules > 5
    assert found.steps == 100 * found.schedules
    assert found.buffers > found.schedules


@pytest.mark.parametrize(
    ("engines", "complaint"),
    [
        ([REFERENCE, broken("split_available_notification_due", forgetful)], "the engines return True and False"),
        ([broken("packed_complete", longer)], "came back with"),
        ([REFERENCE, broken("split_complete", longer)], "the engines leave different memory"),
    ],
)
def test_a_broken_engine_is_found(engines: list[Engine], complaint: str) -> None:
    assert complaint in run_schedules(engines, seed=4, seconds=20).difference


def test_what_is_wrong_is_told_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "compiled", lambda: broken("split_available_notification_due", forgetful))
    monkeypatch.setattr(demo, "SECTIONS", (demo.differential,))
    assert main(["demo", "--seed", "5"]) == 1
    assert "✗" in capsys.readouterr().out
