"""A device's state on its way through a descriptor of the front-end's: as fast as the other side allows, no waiting."""

from __future__ import annotations

import os
import select
import stat

from attrs import define, field

from virtio_py.errors import MessageError


@define
class Transfer:
    """The one end of a pipe, or of a socket, and the bytes that go through it. Whoever made this closes `fd`.

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
