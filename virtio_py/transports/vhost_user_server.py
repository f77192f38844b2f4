"""A vhost-user back-end as a server: one front-end at a time, and the next when it has gone (Linux only).

server = Server(BlkDevice(medium), log=print)
with listening("/run/blk.sock") as listener:
    server.serve(listener)                until `server.stop()`, from a signal handler or another thread
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Final

from virtio_py.device import Device
from virtio_py.errors import Disconnected, PeerError, UsageError
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.status import RING_FEATURES
from virtio_py.transports.vhost_user_client import Client
from virtio_py.transports.vhost_user_messages import ProtocolFeature
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES


class Server:
    """Serves one device to front-ends, one after another. `log` is called with one line for what is worth knowing.

    threads: how many serve its queues side by side, if the device is `concurrent`; 1: none besides the caller
    sealed: whether memory is refused whose file the front-end could make shorter under us

    Raises UsageError for threads that cannot be, and where the system is not Linux: epoll, eventfd and reads that do
    not wait come from there.
    """

    def __init__(
        self,
        device: Device,
        *,
        engine: Engine = REFERENCE,
        log: Callable[[str], None],
        protocol_features: int = PROTOCOL_FEATURES,
        ring_features: int = RING_FEATURES,
        threads: int = 1,
        sealed: bool = False,
    ) -> None:
        if sys.platform != "linux":
            raise UsageError(f"serving vhost-user needs Linux (epoll, eventfd, preadv2), not {sys.platform}")
        if threads < 1 or (threads > 1 and not device.concurrent):
            raise UsageError(f"{threads} threads cannot serve this device: its queues have something in common")
        if threads > 1 and protocol_features >> ProtocolFeature.INBAND_NOTIFICATIONS & 1:
            raise UsageError("in-band notifications share one socket, and are not for several threads")
        self.threads: Final = threads
        self.sealed: Final = sealed
        self.device: Final = device
        self.engine: Final = engine
        self.log: Final = log
        self.protocol_features: Final = protocol_features
        self.ring_features: Final = ring_features
        self._stop: Final = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def stop(self) -> None:
        """Makes `serve` return, now or when it is called next. May be called from a signal handler."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Lets go of the server's own descriptor."""
        os.close(self._stop)

    def serve(self, sock: socket.socket) -> None:
        """Serves what connects to a listening socket, until `stop`; or a connected one, until it ends."""
        if not is_listening(sock):
            self.serve_client(sock)
            return
        with select.epoll() as epoll:
            epoll.register(sock, select.EPOLLIN)
            epoll.register(self._stop, select.EPOLLIN)
            while self._stop not in dict(epoll.poll()):
                # Whoever connected may be gone already, or have been taken by another process that listens here.
                with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                    self.serve_client(sock.accept()[0])

    def serve_one(self, listener: socket.socket) -> None:
        """Serves the first that connects to a listening socket, until it leaves or `stop`."""
        with select.epoll() as epoll:
            epoll.register(listener, select.EPOLLIN)
            epoll.register(self._stop, select.EPOLLIN)
            if self._stop not in dict(epoll.poll()):
                self.serve_client(listener.accept()[0])

    def serve_client(self, connection: socket.socket) -> None:
        """Serves one connection to its end, and closes it."""
        client = Client(
            connection,
            self._stop,
            self.device,
            self.log,
            engine=self.engine,
            protocol_features=self.protocol_features,
            ring_features=self.ring_features,
            threads=self.threads,
            sealed=self.sealed,
        )
        try:
            client.run()
        except PeerError as error:
            self.log(f"hung up on the front-end: {error}")
        except Disconnected as error:
            self.log(str(error))
        finally:
            client.end()


@contextlib.contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    """A listening UNIX socket at `path`, which is removed at the end. One that a dead server left behind is replaced.

    Raises UsageError if something else is there, or somebody listens; OSError if the path cannot be had.
    """
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        try:
            listener.listen(16)
            listener.setblocking(False)
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _remove_stale(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise UsageError(f"somebody listens at {path} already")


def is_listening(sock: socket.socket) -> bool:
    """Whether front-ends connect to a socket, and it is not connected itself."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def inherited(fd: int) -> socket.socket:
    """The UNIX stream socket, listening or connected, that our parent left open as descriptor `fd`.

    Raises UsageError if it is something else, OSError if it is not open.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise UsageError(f"descriptor {fd} is not a socket: {error.strerror}") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise UsageError(f"descriptor {fd} is not a UNIX stream socket")
    os.set_inheritable(fd, False)
    return sock
