"""One port of a console device: the driver's buffers on one side, an endpoint on the other, and no byte in between.

A buffer of the transmitq that the endpoint does not take at once stays deferred, in order, until it does; from the
endpoint no more is read than the driver's receive buffers have room for. Neither side can make us hold the other's
bytes, and none is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Final

from attrs import Attribute, define, field

from virtio_py.devices.console.endpoints import IOV_MOST, Endpoint
from virtio_py.devices.console.layout import ConsoleSize
from virtio_py.errors import UsageError
from virtio_py.rings.chain import Chain

_READ_MOST: Final = 1 << 16
"""Bytes read from an endpoint in one go."""
_TURN: Final = 1 << 18
"""Bytes delivered to the driver before others get their turn."""
_URGENT_MOST: Final = 1 << 12
"""Bytes of emergency writes that wait for the endpoint."""
_NAME_MOST: Final = 255


def _check_name(port: ConsolePort, attribute: Attribute[str], value: str) -> None:
    if "\0" in value or len(value.encode()) > _NAME_MOST:
        raise UsageError(f"the port name {value!r:.40} has a NUL, or more than {_NAME_MOST} bytes")


@define(eq=False)
class ConsolePort:
    """A port and its endpoint. Raises UsageError for a name that no message could carry.

    number:  the device's number for it; usual_size: that of an endpoint without one of its own, None: nobody asks
    name:    the tag by which the driver's side finds the port, or "" for none
    console: whether the driver is told to use it as a text console
    failure: the endpoint's error, once it has one; from then on nobody is there
    room:    the driver's receive buffers, which belong to the queue and outlive the port
    pending: the driver's transmit buffers that the endpoint has not taken yet
    """

    endpoint: Endpoint
    name: str = field(default="", validator=_check_name)
    console: bool = False
    failure: OSError | None = field(default=None, init=False)
    number: int = field(default=-1, init=False)
    usual_size: ConsoleSize | None = field(default=None, init=False)
    # What the driver and we have told each other.
    announced: bool = field(default=False, init=False)
    ready: bool = field(default=False, init=False)
    driver_open: bool = field(default=False, init=False)
    told_open: bool = field(default=False, init=False)
    told_failure: bool = field(default=False, init=False)
    told_size: ConsoleSize | None = field(default=None, init=False)
    room: deque[Chain] = field(factory=deque, init=False)
    pending: deque[Chain] = field(factory=deque, init=False)
    _urgent: bytearray = field(factory=bytearray, init=False)

    # The endpoint, whose failure is remembered

    @property
    def connected(self) -> bool:
        """Whether somebody is on the other side."""
        return self.failure is None and self.endpoint.connected

    @property
    def size(self) -> ConsoleSize | None:
        """How large the terminal is, where the device speaks of sizes at all."""
        if self.usual_size is None or self.failure is not None:
            return self.usual_size
        return self.endpoint.size or self.usual_size

    def watch(self) -> Mapping[int, int]:
        """What the endpoint is to be watched for."""
        if self.failure is not None:
            return {}
        return self.endpoint.watch(self.driver_open and bool(self.room), bool(self.pending or self._urgent))

    def refresh(self) -> None:
        """Lets the endpoint see who is there."""
        if self.failure is None:
            try:
                self.endpoint.refresh()
            except OSError as error:
                self.failure = error

    def _write(self, views: list[memoryview]) -> int:
        """What the endpoint takes. With nobody there it is all of it, as on a line with nothing at its end."""
        if self.connected:
            try:
                return self.endpoint.write(views)
            except OSError as error:
                self.failure = error
        return sum(map(len, views))

    def _read(self, limit: int) -> bytes:
        if self.connected:
            try:
                return self.endpoint.read(limit)
            except OSError as error:
                self.failure = error
        return b""

    # From the driver

    def transmit(self, chain: Chain) -> None:
        """A buffer of the transmitq: taken at once, or deferred."""
        if self.pending or self._urgent or not self._taken(chain):
            chain.defer()
            self.pending.append(chain)

    def _taken(self, chain: Chain) -> bool:
        """Passes on what the endpoint takes of a chain; whether that was all. The pieces are handed over as they lie
        in the driver's memory: 4 GiB of them cost no memory of ours."""
        stream = chain.readable
        while stream.remaining:
            views = stream.views()[:IOV_MOST]
            count = self._write(views)
            stream.advance(count)
            if count < sum(map(len, views)):
                return False
        return True

    def urge(self, byte: int) -> None:
        """An emergency write: ahead of everything that waits, and lost only if thousands wait before it."""
        if len(self._urgent) < _URGENT_MOST:
            self._urgent.append(byte)
        self.send_urgent()

    def send_urgent(self) -> bool:
        """Passes on what emergency writes have left; whether that was all."""
        if self._urgent:
            del self._urgent[: self._write([memoryview(bytes(self._urgent))])]
        return not self._urgent

    def flush(self) -> None:
        """Goes on with what was deferred, as far as the endpoint takes it."""
        if not self.send_urgent():
            return
        while self.pending and self._taken(self.pending[0]):
            self.pending.popleft().complete()

    # To the driver

    def deliver(self) -> bool:
        """Reads what the driver has room for; True if it stopped only because others are to have their turn."""
        left = _TURN
        while self.driver_open and self.room and left > 0:
            room = sum(chain.writable.remaining for chain in islice(self.room, _READ_MOST >> 8))
            data = self._read(min(room, _READ_MOST))
            if not data:
                return False
            left -= len(data)
            self._fill(data)
        return left <= 0

    def _fill(self, data: bytes) -> None:
        at, full = 0, []
        while at < len(data):
            chain = self.room.popleft()
            part = data[at : at + chain.writable.remaining]
            chain.writable.write(part)
            at += len(part)
            full.append(chain)
        full[0].queue.complete(full)

    # Coming and going

    def forget(self) -> None:
        """The device was reset: the driver has taken back its buffers, and knows of nothing."""
        self.room = deque()
        self.pending.clear()
        self.announced = self.ready = self.driver_open = self.told_open = False
        self.told_size = None

    def leave(self) -> None:
        """The port is removed: what waits to be sent is dropped, and its buffers are used."""
        waiting = list(self.pending)
        self.forget()
        for chain in waiting:
            chain.complete()
