"""A back-end that the suite starts itself, and starts anew when it has died or wedged."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from types import TracebackType
from typing import Final, Self

from virtio_py.errors import TransportError, UsageError

_UP: Final = 30.0
"""Seconds that a back-end has to come up."""


class Spawned:
    """Runs `command` (words as in a shell, no shell) until the block ends. Raises UsageError if it does not come up.

    path: of its socket, removed before each start; greet: connects and hangs up, or raises OSError or TransportError.
    A program that has bound its socket may take a while to answer there.
    """

    def __init__(self, command: str, path: str, greet: Callable[[], None]) -> None:
        self._words: Final = shlex.split(command)
        self._path: Final = path
        self._greet: Final = greet
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
        while not self._answers():
            if self._process.poll() is not None:
                raise UsageError(f"{self._words[0]} has ended with status {self._process.returncode}")
            if monotonic() > deadline:
                self._end()
                raise UsageError(f"{self._words[0]} does not answer at {self._path} within {_UP:g} s")
            sleep(0.02)

    def _answers(self) -> bool:
        try:
            self._greet()
        except (OSError, TransportError):
            return False
        return True

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
