"""A pseudo-terminal behind a port: a terminal emulator opens its name, and is the other side (Linux).

Somebody is there while the terminal is open anywhere. A pty tells of its last closing (a hang-up, as long as it
lasts), but not of its next opening: that, inotify does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import sys
import termios
import tty
from collections.abc import Mapping, Sequence
from select import POLLHUP, POLLIN, POLLOUT, poll

from virtio_py.devices.console.endpoints import read_some, write_some
from virtio_py.devices.console.layout import ConsoleSize
from virtio_py.errors import UsageError

_IN_CLOSE_WRITE, _IN_CLOSE_NOWRITE, _IN_OPEN = 0x08, 0x10, 0x20


class PtyEndpoint:
    """A pseudo-terminal in raw mode; `path` is what a terminal emulator opens. Raises UsageError where there are none.

    Its size is what the emulator sets (TIOCSWINSZ, as `stty -F PATH cols 80 rows 25` does), and unknown until it does.
    Nothing tells of that by itself: it is noticed when the terminal is next opened, closed or typed at.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise UsageError(f"a pty behind a port needs Linux (inotify), not {sys.platform}")
        self._fd, terminal = os.openpty()
        self.path = os.ttyname(terminal)
        # Raw, so that it does not echo to the driver what the driver sends.
        tty.setraw(terminal)
        os.close(terminal)
        os.set_blocking(self._fd, False)
        self._events = _inotify(self.path)
        self.connected = False

    @property
    def size(self) -> ConsoleSize | None:
        """See Endpoint."""
        rows, cols, _, _ = struct.unpack("HHHH", fcntl.ioctl(self._fd, termios.TIOCGWINSZ, bytes(8)))
        return ConsoleSize(cols, rows) if cols and rows else None

    def watch(self, readable: bool, writable: bool) -> Mapping[int, int]:
        """See Endpoint. While nobody is there, the hang-up is not asked for: it would be reported for ever."""
        events = (POLLIN if readable else 0) | (POLLOUT if writable else 0)
        return {self._events: POLLIN} | ({self._fd: events} if events and self.connected else {})

    def refresh(self) -> None:
        """See Endpoint."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._events, 1 << 12):
                pass
        # What was typed before the terminal was closed is to be read first; `read` notices the end.
        self.connected = self.connected or not self._hung_up()

    def _hung_up(self) -> bool:
        state = poll()
        state.register(self._fd, 0)
        return any(events & POLLHUP for _, events in state.poll(0))

    def read(self, limit: int) -> bytes:
        """See Endpoint."""
        if not self.connected:
            return b""
        try:
            return read_some(self._fd, limit) or b""
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.connected = False
            return b""

    def write(self, views: Sequence[memoryview]) -> int:
        """See Endpoint. What nobody is there to see is dropped: a guest must not wait for a terminal emulator."""
        if self._hung_up():
            return sum(map(len, views))
        return write_some(self._fd, views)

    def close(self) -> None:
        """See Endpoint."""
        os.close(self._fd)
        os.close(self._events)
        self.connected = False


def _inotify(path: str) -> int:
    """A descriptor that is readable once `path` has been opened or closed. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    _checked(libc.inotify_add_watch(fd, os.fsencode(path), _IN_OPEN | _IN_CLOSE_WRITE | _IN_CLOSE_NOWRITE))
    return fd


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
