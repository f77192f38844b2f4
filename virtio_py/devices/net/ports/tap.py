"""A tap interface of Linux, each packet with a virtio_net_hdr in front: offloads go through as they are.

The interface is made if it is not there, and then goes with us; making it takes CAP_NET_ADMIN, using one that an
administrator has made for us does not.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from select import POLLIN
from typing import Final

from virtio_py.devices.net.header import Packet, decode_header, encode_header, packet_of
from virtio_py.devices.net.layout import MAX_FRAME, VLAN_TAG, NetFeature, virtio_net_hdr
from virtio_py.devices.net.ports.port import BUDGET, Port
from virtio_py.errors import TransportError, UsageError
from virtio_py.spec import bit, mask
from virtio_py.watch import Watch

_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ, _TUNSETVNETLE = 0x400454CA, 0x400454D0, 0x400454D8, 0x400454DC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_NAME_BYTES: Final = 16
_HEADER: Final = virtio_net_hdr.end("num_buffers")

_F = NetFeature
_TUN_F: Final[Mapping[int, int]] = {
    _F.GUEST_CSUM: 0x01,
    _F.GUEST_TSO4: 0x02,
    _F.GUEST_TSO6: 0x04,
    _F.GUEST_ECN: 0x08,
    _F.GUEST_USO4: 0x20,
    _F.GUEST_USO6: 0x40,
}
"""What the kernel may leave undone to packets that we read, by the position of the offload."""
_BASIC: Final = mask(_F.GUEST_CSUM, _F.GUEST_TSO4, _F.GUEST_TSO6, _F.GUEST_ECN)


class TapPort(Port):
    """The far end of the interface `name`. Raises UsageError, OSError if it cannot be had.

    What the kernel accepts without the last touch is what it can also give: USO only since Linux 6.2.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if sys.platform != "linux":
            raise UsageError("a tap interface needs Linux")
        if not 0 < len(name.encode()) < _NAME_BYTES:
            raise UsageError(f"{name!r} cannot be the name of an interface")
        self.name = name
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._configure()
        except OSError as error:
            os.close(self._fd)
            raise OSError(error.errno, error.strerror, name) from error

    def _configure(self) -> None:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", self.name.encode(), flags))
        fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, struct.pack("i", _HEADER))
        fcntl.ioctl(self._fd, _TUNSETVNETLE, struct.pack("i", 1))
        for offloads in (mask(*_TUN_F), _BASIC):
            try:
                fcntl.ioctl(self._fd, _TUNSETOFFLOAD, sum(flag for at, flag in _TUN_F.items() if offloads & bit(at)))
            except OSError as error:
                if offloads == _BASIC:
                    raise
                del error
                continue
            self.offloads = offloads
            return

    def send(self, packet: Packet) -> None:
        """The packet comes out of the interface. Dropped if it is down, or what its kernel thinks no packet."""
        try:
            os.write(self._fd, encode_header(packet, _HEADER) + packet.frame)
        except OSError as error:
            if error.errno == 77:  # EBADFD: the interface was deleted
                raise TransportError(f"{self.name}: the interface is gone") from error

    def watch(self) -> Sequence[Watch]:
        """What goes into the interface, unless it has to wait."""
        return () if self.blocked else (Watch(self._fd, POLLIN, self._read),)

    def _read(self) -> None:
        for _ in range(BUDGET):
            try:
                data = os.read(self._fd, _HEADER + MAX_FRAME + VLAN_TAG)
            except BlockingIOError:
                return
            except OSError as error:
                raise TransportError(f"{self.name}: {error.strerror}") from error
            if not self.deliver(packet_of(decode_header(data[:_HEADER]), data[_HEADER:])):
                return

    def close(self) -> None:
        """Lets go of the interface."""
        os.close(self._fd)
