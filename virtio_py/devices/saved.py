"""Reading the state that a device of ours has saved (`Device.save_state`), which may have been through other hands."""

from __future__ import annotations

from typing import Any

from virtio_py.errors import MessageError
from virtio_py.records import Record


class Parts:
    """A state, from its beginning to its end. Raises MessageError where it ends too early, or too late."""

    def __init__(self, state: bytes) -> None:
        self._state = state
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return len(self._state) - self._at

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise MessageError(f"the state ends {count - self.left} bytes early")
        self._at += count
        return self._state[self._at - count : self._at]

    def record(self, record: Record) -> Any:
        """The next bytes as a record."""
        return record.decode(self.take(record.size))

    def end(self) -> None:
        """There must be nothing more."""
        if self.left:
            raise MessageError(f"{self.left} bytes behind the state")
