"""A capture of everything that passes through a port, as a pcapng file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import IO, Final

from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.ports.port import Port, Receiver
from virtio_py.devices.net.segmentation import fit
from virtio_py.errors import RequestError
from virtio_py.watch import Watch

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_ORDER: Final = 0x1A2B3C4D
_ETHERNET: Final = 1
_END_OF_OPTIONS, _FLAGS, _TIME_RESOLUTION = 0, 2, 9
_INBOUND, _OUTBOUND = 1, 2


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value.ljust(-len(value) % 4 + len(value), b"\0")


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack("<II", kind, total) + body + struct.pack("<I", total)


def file_header() -> bytes:
    """A section with one Ethernet interface whose clock counts nanoseconds."""
    section = struct.pack("<IHHq", _ORDER, 1, 0, -1)
    options = _option(_TIME_RESOLUTION, b"\x09") + _option(_END_OF_OPTIONS, b"")
    return _block(_SECTION, section) + _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, 0) + options)


def packet_block(frame: bytes, nanoseconds: int, outbound: bool) -> bytes:
    """One frame. Outbound is what the driver sent."""
    head = struct.pack("<IIIII", 0, nanoseconds >> 32, nanoseconds & 0xFFFFFFFF, len(frame), len(frame))
    flags = _option(_FLAGS, struct.pack("<I", _OUTBOUND if outbound else _INBOUND)) + _option(_END_OF_OPTIONS, b"")
    return _block(_PACKET, head + frame.ljust(-len(frame) % 4 + len(frame), b"\0") + flags)


class CapturePort(Port):
    """Stands before another port, and writes down what passes in either direction.

    file: binary, owned by the caller;  clock: nanoseconds since 1970;  finish: whether packets are written as the
    frames that they would be on a wire, instead of as they are, with checksums and segmentation missing
    """

    def __init__(self, port: Port, file: IO[bytes], clock: Callable[[], int], finish: bool = True) -> None:
        super().__init__()
        self._port, self._file, self._clock, self._finish = port, file, clock, finish
        self.offloads = port.offloads
        file.write(file_header())

    def attach(self, receiver: Receiver) -> None:
        """See Port."""

        def heard(packet: Packet) -> bool:
            taken = receiver(packet)
            if taken:
                self._write(packet, outbound=False)
            return taken

        self._port.attach(heard)

    def send(self, packet: Packet) -> None:
        """Writes the packet down and passes it on."""
        self._write(packet, outbound=True)
        self._port.send(packet)

    def _write(self, packet: Packet, outbound: bool) -> None:
        now = self._clock()
        for frame in self._frames(packet):
            self._file.write(packet_block(frame, now, outbound))
        self._file.flush()

    def _frames(self, packet: Packet) -> list[bytes]:
        if not self._finish:
            return [packet.frame]
        try:
            return [part.frame for part in fit(packet, 0)]
        except RequestError:
            # What cannot be finished is what one would like to see.
            return [packet.frame]

    def resume(self) -> None:
        """See Port."""
        self._port.resume()

    def reset(self) -> None:
        """See Port."""
        self._port.reset()

    def watch(self) -> Sequence[Watch]:
        """See Port."""
        return self._port.watch()

    def close(self) -> None:
        """Closes the port behind; the file is not ours."""
        self._port.close()
