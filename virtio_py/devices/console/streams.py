"""A port as its driver has it: a stream of bytes in each direction, on a receiveq and a transmitq.

What has arrived and is not read stays here, up to a limit; beyond it receive buffers are kept back, so that the
device has to wait, and with it whoever sends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import define, field

from virtio_py.devices.console.layout import ConsoleSize
from virtio_py.errors import TimedOut, VirtioError
from virtio_py.memory import Buffer
from virtio_py.rings.queue import DriverQueue, Extent

if TYPE_CHECKING:
    from virtio_py.devices.console.driver import ConsoleDriver

CHUNK: Final = 4096
"""Bytes in a buffer, of either queue."""
_BUFFERS: Final = 16
"""Buffers of either queue that are under way at once."""
_UNREAD_MOST: Final = 1 << 16
"""Bytes that may wait to be read before receive buffers are kept back."""


class PortTimeout(TimedOut):
    """The time is over. `done`: how many bytes were dealt with before."""

    def __init__(self, message: str, done: int) -> None:
        super().__init__(message)
        self.done = done


class PortClosed(VirtioError):
    """The port is not there any more, or not open."""


@define(eq=False)
class Inlet:
    """The receive side of one port's queues. It outlives the port: what was posted cannot be taken back.

    unread: the bytes of the port that there is now
    """

    driver: ConsoleDriver
    queue: DriverQueue
    unread: bytearray = field(factory=bytearray, init=False)
    _idle: list[Buffer] = field(factory=list, init=False)
    _filled: bool = field(default=False, init=False)

    def fill(self) -> None:
        """Posts receive buffers, as many as there are, while not too much is unread."""
        if not self._filled:
            self._filled = True
            self._idle = [self.driver.borrow(CHUNK) for _ in range(min(_BUFFERS, self.queue.size))]
        if self._idle and len(self.unread) < _UNREAD_MOST:
            self.queue.add_many([([], [buffer.extent], buffer) for buffer in self._idle])
            self._idle = []
            self.driver.kick(self.queue)

    def renew(self) -> bytearray:
        """There is another port, or none: what the old one has received is no longer ours."""
        self.unread = bytearray()
        return self.unread

    def drain(self) -> None:
        """Takes in what the device has filled."""
        for buffer, length in self.driver.used(self.queue):
            self.unread += buffer.view[:length]
            self._idle.append(buffer)
        if self._filled:
            self.fill()


@define(eq=False)
class Outlet:
    """The transmit side of one port's queues, which outlives the port too."""

    driver: ConsoleDriver
    queue: DriverQueue
    _free: list[Buffer] = field(factory=list, init=False)
    _made: int = field(default=0, init=False)

    def send(self, data: memoryview) -> int:
        """Passes on the front of `data`, as far as there are buffers; how many bytes that was."""
        sent = 0
        requests: list[tuple[list[Extent], list[Extent], Buffer]] = []
        while sent < len(data) and (buffer := self._buffer()) is not None:
            part = data[sent : sent + CHUNK]
            buffer.view[: len(part)] = part
            requests.append(([(buffer.address, len(part))], [], buffer))
            sent += len(part)
        if requests:
            self.queue.add_many(requests)
            self.driver.kick(self.queue)
        return sent

    def _buffer(self) -> Buffer | None:
        if self._free:
            return self._free.pop()
        if self._made >= min(_BUFFERS, self.queue.size):
            return None
        self._made += 1
        return self.driver.borrow(CHUNK)

    def drain(self) -> None:
        """Takes back the buffers that the device has used."""
        self._free += [buffer for buffer, _ in self.driver.used(self.queue)]


@define(eq=False)
class ConsoleStream:
    """One port. Its attributes are what the device has said last, as of the latest call of any method, or `poll`.

    number: the port's; name: its tag, or None; console: whether to be used as a text console;
    device_open: whether somebody is on the other side; size: of the terminal, or None;
    removed: whether the device has taken the port away

    Every method may raise what `Driver.wait_used` raises: NeedsReset, and PeerError with FAILED set.
    """

    number: int
    inlet: Inlet = field(repr=False)
    outlet: Outlet = field(repr=False)
    _unread: bytearray = field(repr=False)
    name: str | None = field(default=None, init=False)
    console: bool = field(default=False, init=False)
    device_open: bool = field(default=False, init=False)
    size: ConsoleSize | None = field(default=None, init=False)
    is_open: bool = field(default=False, init=False)
    removed: bool = field(default=False, init=False)

    @property
    def _driver(self) -> ConsoleDriver:
        return self.inlet.driver

    def open(self) -> None:
        """Tells the device that somebody is here (PORT_OPEN); it then sends what its side has."""
        self._driver.set_open(self, True)

    def close(self) -> None:
        """Tells the device that nobody is here any more. What has arrived can still be read."""
        self._driver.set_open(self, False)

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Hands all of `data` to the device, in order. Raises PortTimeout, PortClosed when the port is removed."""
        view, done = memoryview(data), 0

        def progress() -> bool:
            nonlocal done
            if self.removed:
                raise PortClosed(f"port {self.number} was removed")
            done += self.outlet.send(view[done:])
            return done == len(view)

        if not self._driver.wait_until(progress, timeout):
            raise PortTimeout(f"the device took {done} of {len(view)} bytes in time", done)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until the device has used all that was written. Raises PortTimeout."""
        queue = self.outlet.queue
        if not self._driver.wait_until(lambda: not queue.outstanding, timeout):
            raise PortTimeout(f"the device holds {queue.outstanding} buffers", 0)

    def read(self, most: int = 1 << 16, timeout: float | None = None) -> bytes:
        """What has arrived, at least 1 and up to `most` bytes; none after `timeout` seconds, or at once if the port
        is removed."""
        self._driver.wait_until(lambda: bool(self._unread) or self.removed, timeout)
        return self._cut(most)

    def read_exactly(self, count: int, timeout: float | None = None) -> bytes:
        """`count` bytes. Raises PortTimeout and keeps what has arrived; `count` may be any number."""
        parts: deque[bytes] = deque()
        missing = count

        def progress() -> bool:
            nonlocal missing
            parts.append(self._cut(missing))
            missing -= len(parts[-1])
            return not missing or self.removed

        if not self._driver.wait_until(progress, timeout) or missing:
            self._unread[:0] = b"".join(parts)
            raise PortTimeout(f"{count - missing} of {count} bytes have arrived", count - missing)
        return b"".join(parts)

    def _cut(self, most: int) -> bytes:
        data = bytes(self._unread[:most])
        del self._unread[: len(data)]
        self.inlet.fill()
        return data
