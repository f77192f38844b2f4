"""The inflight region as a front-end has it: a file that one back-end made, and the next is handed.

It is never mapped here, so a back-end that makes it shorter harms only itself. What a front-end has to write is nothing
but zeros: a ring that its driver has reset has no buffers inflight, and nobody else can know.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, Self

from attrs import define

from virtio_py.errors import MessageError
from virtio_py.transports.vhost_user_messages import VhostUserInflight

_WHERE: Final = "GET_INFLIGHT_FD"


@define(eq=False)
class Kept:
    """A region. fd: ours until `close`; description: the VhostUserInflight that came with it."""

    fd: int
    description: Any

    @classmethod
    def of(cls, asked: Any, answer: Any, fds: Sequence[int]) -> Self | None:
        """What a back-end answered, or None if it wants no region. asked: the VhostUserInflight that was sent. Raises
        MessageError, with the descriptors closed, for a region that cannot be what was asked for."""
        with ExitStack() as undo:
            for fd in fds:
                undo.callback(os.close, fd)
            if answer.mmap_size == 0:
                return None
            if len(fds) != 1:
                raise MessageError(f"a region comes with {len(fds)} descriptors", where=_WHERE)
            if (answer.num_queues, answer.queue_size) != (asked.num_queues, asked.queue_size):
                raise MessageError("the region is for other queues than was asked", where=_WHERE)
            status = os.fstat(fds[0])
            if not stat.S_ISREG(status.st_mode) or answer.mmap_size > status.st_size - answer.mmap_offset:
                raise MessageError(f"the region's file does not have its {answer.mmap_size} bytes", where=_WHERE)
            undo.pop_all()
        return cls(fds[0], answer)

    def covers(self, index: int, size: int) -> bool:
        """Whether a ring with this index and size is accounted for in it."""
        return bool(index < self.description.num_queues and size <= self.description.queue_size)

    def forget(self, index: int) -> None:
        """A ring was reset: its part of the region becomes one that nobody has written to. Raises MessageError."""
        if index >= self.description.num_queues:
            return
        size = self.description.mmap_size // self.description.num_queues
        try:
            os.pwrite(self.fd, bytes(size), self.description.mmap_offset + index * size)
        except OSError as error:
            raise MessageError(f"the region cannot be written: {error.strerror}", where=_WHERE) from error

    def payload(self) -> bytes:
        """What SET_INFLIGHT_FD carries."""
        return VhostUserInflight.encode_values(self.description)

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self.fd)
