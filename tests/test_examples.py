"""The examples run, as their first lines say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from virtio_py.devices.entropy import EntropyDevice
from virtio_py.transports.vhost_user_server import Server, listening

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def python(*arguments: str) -> str:
    """Runs Python in a process of its own; its output. Fails if it does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "conformance_testing_a_backend.py",  # in tests/peers
        "property_testing_a_driver.py",
        "vhost_user_fuzz.py",
        "writing_a_device.py",
    }


def test_writing_a_device() -> None:
    assert python("examples/writing_a_device.py").count("(50, 40)") == 8


def test_property_testing_a_driver() -> None:
    assert " passed" in python("-m", "pytest", "-q", "examples/property_testing_a_driver.py")


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_vhost_user_fuzz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "socket")
    server = Server(EntropyDevice(), log=lambda line: None)
    with listening(path) as listener:
        thread = Thread(target=lambda: server.serve(listener))
        thread.start()
        try:
            status = load("vhost_user_fuzz").main([path, "--examples", "8"])
        finally:
            server.stop()
            thread.join(20)
    server.close()
    assert status == 0, capsys.readouterr().out
    assert "the back-end holds" in capsys.readouterr().out
