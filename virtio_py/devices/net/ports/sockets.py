"""UNIX sockets to another network program, in the framing of QEMU's `-netdev stream` and `-netdev dgram`.

dgram:   a datagram is a frame
stream:  a frame stands behind its length in bytes, 32 bits in network order

Neither knows of offloads: frames are complete.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Sequence
from select import POLLIN, POLLOUT
from typing import Final

from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import ETHERNET_HEADER, MAX_FRAME, VLAN_TAG
from virtio_py.devices.net.ports.port import BUDGET, Port
from virtio_py.errors import UsageError
from virtio_py.watch import Watch

_LONGEST: Final = MAX_FRAME + VLAN_TAG
_MOST_QUEUED: Final = 1 << 20
"""Bytes that wait to be sent on a stream before frames are dropped."""


def _remove_stale(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise UsageError(f"{path} exists and is not a socket")
        os.unlink(path)


class DatagramPort(Port):
    """Frames to and from the socket at `peer`; ours is at `path`. As QEMU's local.path and remote.path."""

    def __init__(self, path: str, peer: str) -> None:
        super().__init__()
        self._path, self._peer = path, peer
        _remove_stale(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind(path)
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, error.strerror, path) from error

    def send(self, packet: Packet) -> None:
        """Sends a frame; it is lost where nobody takes it."""
        with contextlib.suppress(OSError):
            self._socket.sendto(packet.frame, self._peer)

    def watch(self) -> Sequence[Watch]:
        """Frames, unless one waits already."""
        return () if self.blocked else (Watch(self._socket.fileno(), POLLIN, self._read),)

    def _read(self) -> None:
        for _ in range(BUDGET):
            try:
                frame = self._socket.recv(_LONGEST + 1)
            except BlockingIOError:
                return
            if ETHERNET_HEADER <= len(frame) <= _LONGEST and not self.deliver(Packet(frame)):
                return

    def close(self) -> None:
        """Closes and removes our socket."""
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


class StreamFrames:
    """Takes a stream of bytes apart into frames. `broken`: a length that no frame has was found; nothing follows."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.broken = False

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that these bytes complete; those that are too short for a header are left out."""
        self._data += data
        found, at = [], 0
        while at + 4 <= len(self._data):
            length = int.from_bytes(self._data[at : at + 4], "big")
            if length > _LONGEST:
                self.broken = True
                break
            if at + 4 + length > len(self._data):
                break
            if length >= ETHERNET_HEADER:
                found.append(bytes(self._data[at + 4 : at + 4 + length]))
            at += 4 + length
        del self._data[:at]
        return found


class StreamPort(Port):
    """Frames over a stream socket at `path`: connects there if somebody listens, else listens for one at a time."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._frames = StreamFrames()
        self._ready: list[bytes] = []
        self._out = bytearray()
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            peer.close()
            self._listen()
        except OSError as error:
            peer.close()
            raise OSError(error.errno, error.strerror, path) from error
        else:
            self._adopt(peer)

    def _listen(self) -> None:
        _remove_stale(self._path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        try:
            self._listener.bind(self._path)
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise OSError(error.errno, error.strerror, self._path) from error

    def _adopt(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        self._peer, self._frames, self._ready, self._out = peer, StreamFrames(), [], bytearray()

    def send(self, packet: Packet) -> None:
        """Sends a frame, or drops it whole where there is nobody, or too much waits."""
        if self._peer is None or len(self._out) > _MOST_QUEUED:
            return
        self._out += len(packet.frame).to_bytes(4, "big") + packet.frame
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out and self._peer is not None:
                del self._out[: self._peer.send(self._out, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()

    def watch(self) -> Sequence[Watch]:
        """A connection to come, or what comes over the one there is."""
        if self._peer is None:
            return () if self._listener is None else (Watch(self._listener.fileno(), POLLIN, self._accept),)
        events = (0 if self.blocked else POLLIN) | (POLLOUT if self._out else 0)
        # A peer that has hung up is reported whatever is asked for: not to be asked while nothing can be read.
        return (Watch(self._peer.fileno(), events, self._attend),) if events else ()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            self._adopt(self._listener.accept()[0])

    def _attend(self) -> None:
        self._flush()
        if not self.blocked:
            self._read()

    def _read(self) -> None:
        if self._peer is None:
            return
        try:
            data = self._peer.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._ready += self._frames.feed(data)
            self._drain()
        if not data or self._frames.broken:
            self._hang_up()

    def _drain(self) -> None:
        while self._ready and not self.blocked:
            self.deliver(Packet(self._ready.pop(0)))

    def resume(self) -> None:
        """See Port."""
        super().resume()
        self._drain()

    def _hang_up(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._peer, self._out = None, bytearray()

    def close(self) -> None:
        """Closes the connection, and removes the socket if it was ours."""
        self._hang_up()
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
