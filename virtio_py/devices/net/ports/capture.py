"""A capture of everything that passes through a port, as a pcapng file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import IO

from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.ports.port import Port, Receiver
from virtio_py.devices.net.segmentation import fit
from virtio_py.errors import RequestError
from virtio_py.pcapng import file_header, packet_block
from virtio_py.watch import Watch


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
