"""This process's standard input and output behind a port, as a terminal in raw mode where it is one.

The descriptors are shared with whoever started us: their flags are not ours to change. Each is opened once more
through /proc, which gives a description of our own that may be non-blocking. A socket cannot be, and is refused.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import sys
import termios
import tty
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from virtio_py.devices.console.endpoints import read_some, write_some
from virtio_py.devices.console.layout import ConsoleSize
from virtio_py.errors import UsageError

_IN, _OUT = 0, 1


class StdioEndpoint:
    """Standard input and output, once in a process. Raises UsageError, OSError where they cannot be used.

    A terminal is in raw mode until `close`, except that ^C still interrupts us. Its size is the terminal's, and a
    change of it is noticed (SIGWINCH), which needs the main thread. The end of the input is not the end of the port.
    """

    connected = True

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise UsageError(f"standard input behind a port needs Linux (/proc), not {sys.platform}")
        self._input = _own(_IN, os.O_RDONLY)
        self._output = _own(_OUT, os.O_WRONLY)
        self._ended = False
        self._resized = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._terminal = termios.tcgetattr(_IN) if os.isatty(_IN) else None
        self._handler: Any = None
        if self._terminal is not None:
            tty.setraw(_IN)
            _keep_signals()
        if os.isatty(_OUT):
            self._handler = signal.signal(signal.SIGWINCH, self._winch)

    def _winch(self, number: int, frame: FrameType | None) -> None:
        os.eventfd_write(self._resized, 1)

    @property
    def size(self) -> ConsoleSize | None:
        """See Endpoint."""
        return ConsoleSize(*os.get_terminal_size(_OUT)) if os.isatty(_OUT) else None

    def watch(self, readable: bool, writable: bool) -> Mapping[int, int]:
        """See Endpoint."""
        wanted = {self._resized: select.POLLIN}
        if readable and not self._ended:
            wanted[self._input] = select.POLLIN
        if writable:
            wanted[self._output] = select.POLLOUT
        return wanted

    def refresh(self) -> None:
        """See Endpoint."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._resized)

    def read(self, limit: int) -> bytes:
        """See Endpoint."""
        if self._ended:
            return b""
        data = read_some(self._input, limit)
        self._ended = data == b""
        return data or b""

    def write(self, views: Sequence[memoryview]) -> int:
        """See Endpoint."""
        return write_some(self._output, views)

    def close(self) -> None:
        """See Endpoint."""
        if self._handler is not None:
            signal.signal(signal.SIGWINCH, self._handler)
        if self._terminal is not None:
            termios.tcsetattr(_IN, termios.TCSADRAIN, self._terminal)
        for fd in (self._input, self._output, self._resized):
            os.close(fd)
        self.connected = False


def _own(fd: int, flags: int) -> int:
    """Another description of what is open as `fd`. Raises UsageError for a socket, which has none."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        # Nobody waits for a file; opened once more, it would be written from its beginning.
        return os.dup(fd)
    if stat.S_ISSOCK(mode):
        raise UsageError(f"descriptor {fd} is a socket; a port can have one by its path")
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _keep_signals() -> None:
    mode = termios.tcgetattr(_IN)
    mode[tty.LFLAG] |= termios.ISIG
    termios.tcsetattr(_IN, termios.TCSADRAIN, mode)
