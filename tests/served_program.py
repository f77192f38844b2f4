"""A back-end in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from attrs import define, field


@define
class Program:
    """`virtio-py serve blk` as a process that can be killed and started again."""

    path: Path
    image: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        command = [sys.executable, "-m", "virtio_py.cli.main", "serve", "blk", "--socket-path", str(self.path)]
        command += ["--blk-file", str(self.image), *self.options]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """SIGKILL. What it had begun is over when this returns."""
        self.process.kill()
        self.process.wait()
