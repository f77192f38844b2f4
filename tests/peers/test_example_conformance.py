"""The example of the conformance suite, against qemu-storage-daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.require import require

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.peer
def test_the_example_judges_a_back_end_in_c(tmp_path: Path) -> None:
    require("qemu-storage-daemon")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 << 20))
    done = subprocess.run(
        [
            sys.executable,
            "examples/conformance_testing_a_backend.py",
            str(image),
            str(tmp_path / "socket"),
            "--only",
            "split.device",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    *broken, counts = done.stdout.splitlines()
    assert "PASS" in counts
    # What it prints is what its status says.
    assert done.returncode == bool(broken)
    assert all(line.split()[0] in ("FAIL", "WEDGED") and line.split()[1].startswith("split.") for line in broken)
