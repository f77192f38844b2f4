"""A back-end that the suite starts itself, and starts anew when it has died or wedged."""

from __future__ import annotations

import os
import shlex
import subprocess
from contextlib import suppress
from time import monotonic, sleep
from types import TracebackType
from typing import Final, Self

from virtio_py.errors import UsageError

_UP: Final = 30.0
"""Seconds that a back-end has to bind its socket."""


class Spawned:
    """Runs `command` (words as in a shell, no shell) until the block ends. Raises UsageError if it does not come up.

    The socket at `path` is removed before each start: its presence is how a back-end shows that it is up.
    """

    def __init__(self, command: str, path: str) -> None:
        self._words: Final = shlex.split(command)
        self._path: Final = path
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def restart(self) -> None:
        """Ends the back-end, if it runs, and starts it."""
        self._end()
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self._process = subprocess.Popen(self._words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = monotonic() + _UP
        while not os.path.exists(self._path):
            if self._process.poll() is not None:
                raise UsageError(f"{self._words[0]} has ended with status {self._process.returncode}")
            if monotonic() > deadline:
                self._end()
                raise UsageError(f"{self._words[0]} has not made {self._path} in {_UP:g} s")
            sleep(0.02)

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            # What is wedged may not hear a signal that asks.
            self._process.kill()
            self._process.wait()
        self._process = None
