"""A disk as a vhost-user back-end that dies of the first bad ring, as programs without checks do: `… SOCKET`."""

from __future__ import annotations

import os
import sys

from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.transports.vhost_user_server import Server, listening


def die(line: str) -> None:
    if "needs a reset" in line:
        os._exit(1)


if __name__ == "__main__":
    server = Server(BlkDevice(MemoryMedium.of(1 << 20)), log=die)
    with listening(sys.argv[1]) as listener:
        server.serve(listener)
