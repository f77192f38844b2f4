"""A device's state on its way through a descriptor of the front-end's: as fast as the other side allows, no waiting."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable
from typing import Final

from attrs import define, field

from virtio_py.errors import MessageError


@define
class Transfer:
    """The one end of a pipe, or of a socket, and the bytes that go through it. Raises MessageError for any other kind.

    data: what is to be written, or what was read; limit: the most bytes to be read, None when writing
    over: all is written, or the other side has closed its end; failure: why there will be no more
    """

    fd: int
    data: bytes = b""
    limit: int | None = None
    over: bool = field(init=False, default=False)
    failure: str | None = field(init=False, default=None)
    _moved: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        mode = os.fstat(self.fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise MessageError("a state is moved through a pipe or a socket")

    @property
    def events(self) -> int:
        """What to wait for, an epoll mask."""
        return select.EPOLLOUT if self.limit is None else select.EPOLLIN

    def step(self) -> None:
        """Moves what can be moved at once."""
        try:
            while not self.over and self.failure is None:
                self._write() if self.limit is None else self._read(self.limit)
        except BlockingIOError:
            return
        except OSError as error:
            self.failure = f"the state's descriptor fails: {error.strerror}"

    def _write(self) -> None:
        part = memoryview(self.data)[self._moved :]
        self._moved += os.pwritev(self.fd, [part], -1, os.RWF_NOWAIT) if part else 0
        self.over = self._moved == len(self.data)

    def _read(self, limit: int) -> None:
        part = bytearray(1 << 16)
        count = os.preadv(self.fd, [part], -1, os.RWF_NOWAIT)
        self.over = count == 0
        self.data += part[:count]
        if len(self.data) > limit:
            self.failure = f"a state of more than {limit} bytes"


@define
class Transfers:
    """A session's transfers, of which there is one at a time, in a loop that waits for `epoll`."""

    epoll: Final[select.epoll]
    log: Final[Callable[[str], None]]
    _now: Transfer | None = field(init=False, default=None)
    _last: Transfer | None = field(init=False, default=None)

    @property
    def fd(self) -> int | None:
        """The descriptor that something is moved through now."""
        return self._now.fd if self._now is not None else None

    def begin(self, transfer: Transfer) -> None:
        """Starts another transfer, which closes its descriptor when it ends. What was moved before is given up."""
        self.close()
        self.epoll.register(transfer.fd, transfer.events)
        self._now = self._last = transfer
        self.step()

    def step(self) -> None:
        """Moves what can be moved at once."""
        if self._now is not None:
            self._now.step()
            if self._now.over or self._now.failure is not None:
                self._end()

    def _end(self) -> None:
        # Whoever reads what we wrote waits for our end to be closed.
        if self._now is not None:
            self.epoll.unregister(self._now.fd)
            os.close(self._now.fd)
            self._now = None

    def close(self) -> None:
        """Gives up what is being moved, and forgets what was."""
        self._end()
        self._last = None

    def finish(self) -> bytes | None:
        """What was moved, if that has come to its end by now, else None. Nothing is moved afterwards."""
        self.step()
        found = self._last
        self.close()
        if found is not None and found.failure is not None:
            self.log(f"refused: {found.failure}")
        return found.data if found is not None and found.over else None
