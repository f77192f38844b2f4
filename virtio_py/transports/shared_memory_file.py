"""The world around the shared memory carrier, on Linux: the file, its doorbells, and the device's loop.

A device in one process and a driver in another, in any order, over a file that whoever comes first creates:

    from virtio_py.devices.entropy import EntropyDevice
    from virtio_py.transports.shared_memory_file import SharedFile, serve

    with SharedFile.named("/dev/shm/entropy", 1 << 20) as shared:
        serve(EntropyDevice(), shared)

    from virtio_py.devices.entropy import EntropyDriver
    from virtio_py.transports.shared_memory_file import SharedFile, connect

    with SharedFile.named("/dev/shm/entropy", 1 << 20) as shared:
        print(EntropyDriver(connect(shared)).start().read(16).hex())

A named file has no doorbells: both sides look at it every now and then. `SharedFile.anonymous` is a memfd with a pair
of eventfds, which the other process inherits (`fds`), or is sent over a UNIX socket (`send`, `receive`).

A memfd is sealed, so that nobody can take away the memory under a mapping. A named file cannot be: whoever may write
to it can make it shorter, and kill the processes that have it mapped. Its mode is 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from virtio_py.device import Device
from virtio_py.errors import Disconnected, MessageError, TransportError
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.status import RING_FEATURES
from virtio_py.transports.shared_memory import Page, SharedMemoryEnd, SharedMemoryTransport
from virtio_py.watch import wait_ready

POLL_INTERVAL: Final = 0.00005
"""Seconds between two looks at a file that has no doorbells."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_FLAGS: Final = os.EFD_CLOEXEC | os.EFD_NONBLOCK
_MESSAGE: Final = b"virtio-py shared memory"
_SEEN: Final = ("used_notifications", "config_notifications", "reply_sequence")


class SharedFile:
    """A mapped file, and the doorbells that go with it, if any: eventfds that wake the device and the driver.

    `close` closes the descriptors; the mapping ends with the last view of it.
    """

    def __init__(self, fd: int, to_device: int | None = None, to_driver: int | None = None) -> None:
        """Takes over the descriptors. Raises MessageError, with them closed, for a file that is no carrier's."""
        self.fd = fd
        self.to_device = to_device
        self.to_driver = to_driver
        try:
            self.page: Final = Page(memoryview(mmap.mmap(fd, os.fstat(fd).st_size)))
        except (MessageError, ValueError, OSError) as error:
            self.close()
            raise MessageError(f"the file cannot be shared memory: {error}") from error

    @classmethod
    def anonymous(cls, size: int) -> Self:
        """A new memfd of `size` bytes, sealed, with doorbells."""
        fd = os.memfd_create("virtio", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
        shared = cls(fd, os.eventfd(0, _FLAGS), os.eventfd(0, _FLAGS))
        shared.page.initialise()
        return shared

    @classmethod
    def named(cls, path: str, size: int, timeout: float = 5.0) -> Self:
        """The file at `path`, created with `size` bytes if nothing is there.

        Raises MessageError for a file that is not of this carrier after `timeout` seconds, TransportError where there
        can be none.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.ftruncate(fd, size)
        except FileExistsError:
            return cls._attached(path, timeout)
        except OSError as error:
            raise TransportError(f"{path}: {error.strerror}") from error
        shared = cls(fd)
        shared.page.initialise()
        return shared

    @classmethod
    def _attached(cls, path: str, timeout: float) -> Self:
        # Whoever created it may not have come to its size and its first page yet.
        deadline = time.monotonic() + timeout
        while True:
            try:
                shared = cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                shared.page.check()
                return shared
            except MessageError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)

    @property
    def fds(self) -> list[int]:
        """The file, and the doorbells: what another process needs to make a SharedFile of its own."""
        return [fd for fd in (self.fd, self.to_device, self.to_driver) if fd is not None]

    def send(self, connection: socket.socket) -> None:
        """Hands the descriptors to the other side of a UNIX socket."""
        socket.send_fds(connection, [_MESSAGE], self.fds)

    @classmethod
    def receive(cls, connection: socket.socket) -> Self:
        """What the other side has sent. Raises Disconnected, MessageError for a message of another kind or a file that
        could shrink."""
        message, fds, _, _ = socket.recv_fds(connection, len(_MESSAGE), 3, socket.MSG_CMSG_CLOEXEC)
        try:
            if not message:
                raise Disconnected("nobody sends a file")
            if message != _MESSAGE or len(fds) != 3:
                raise MessageError(f"{len(fds)} descriptors and {message!r} are no shared memory")
            _check_sealed(fds[0])
        except (Disconnected, MessageError):
            for fd in fds:
                os.close(fd)
            raise
        shared = cls(*fds)
        shared.page.check()
        return shared

    def close(self) -> None:
        """Closes the descriptors."""
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.to_device = self.to_driver = None
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_sealed(fd: int) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise MessageError("the file is no memfd") from error
    if not seals & fcntl.F_SEAL_SHRINK:
        raise MessageError("the memory could be taken away: F_SEAL_SHRINK is not set")


def _ringer(fd: int | None) -> Callable[[], None]:
    """Rings a doorbell, if there is one, without ever waiting: one whose count is at its end has been rung."""

    def ring() -> None:
        if fd is not None:
            room = select.poll()
            room.register(fd, select.POLLOUT)
            if room.poll(0):
                os.eventfd_write(fd, 1)

    return ring


def _quiet(fd: int) -> None:
    # Whether reads wait is the other side's to change, too: this one is asked not to.
    with contextlib.suppress(BlockingIOError):
        os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)


def connect(shared: SharedFile) -> SharedMemoryTransport:
    """The driver's transport over a file, which must stay open."""
    page, bell = shared.page, shared.to_driver
    seen: list[int] = []

    def poll(timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while (now := [page.get(name) for name in _SEEN]) == seen and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
        seen[:] = now

    def sleep(timeout: float) -> None:
        if bell is not None:
            wait_ready((), timeout, bell)
            _quiet(bell)

    return SharedMemoryTransport(page, _ringer(shared.to_device), poll if bell is None else sleep)


class Server:
    """A device's loop over a file. Runs until `stop`, which may be called from anywhere."""

    def __init__(
        self,
        device: Device,
        shared: SharedFile,
        *,
        engine: Engine = REFERENCE,
        ring_features: int = RING_FEATURES,
    ) -> None:
        shared.page.check()
        self._shared: Final = shared
        self._stop: Final = os.eventfd(0, _FLAGS)
        self._stopped = False
        self.end: Final = SharedMemoryEnd(device, shared.page, _ringer(shared.to_driver), engine, ring_features)

    def run(self) -> None:
        """Serves the device until `stop`."""
        while not self._stopped:
            if not self.end.step():
                self._wait()

    def _wait(self) -> None:
        bell, end = self._shared.to_device, self.end.end
        watches = end.device.watch()
        if bell is None:
            ready = wait_ready(watches, 0) if watches else []
            time.sleep(0 if ready else POLL_INTERVAL)
        else:
            ready = wait_ready(watches, None, bell, self._stop)
            _quiet(bell)
        for watch in ready:
            end.attend(watch)

    def stop(self) -> None:
        """Makes `run` return."""
        self._stopped = True
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Lets go of the server's own descriptor; the file is the caller's."""
        os.close(self._stop)


def serve(device: Device, shared: SharedFile, *, engine: Engine = REFERENCE) -> None:
    """Serves a device over a file for ever."""
    server = Server(device, shared, engine=engine)
    try:
        server.run()
    finally:
        server.close()
