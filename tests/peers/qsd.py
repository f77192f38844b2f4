"""qemu-storage-daemon as a vhost-user-blk back-end: the reference that the guest scripts are proved against.

Version 7.2 never sends VHOST_USER_BACKEND_CONFIG_CHANGE_MSG: it cannot show a resize to a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.process import Server, serving
from tests.peers.require import require


def _arguments(path: Path, image: Path, queues: int, writable: bool, block_size: int) -> list[str]:
    return [
        "--blockdev",
        f"driver=file,node-name=disk0,filename={image},discard=unmap,read-only={'off' if writable else 'on'}",
        "--export",
        f"type=vhost-user-blk,id=export0,node-name=disk0,addr.type=unix,addr.path={path},num-queues={queues},"
        f"writable={'on' if writable else 'off'},logical-block-size={block_size}",
    ]


@contextmanager
def storage_daemon(
    path: Path, image: Path, *, queues: int = 1, writable: bool = True, block_size: int = 512
) -> Iterator[Server]:
    """Export `image` as a vhost-user-blk device on the socket `path`."""
    [program] = require("qemu-storage-daemon")
    with serving([program, *_arguments(path, image, queues, writable, block_size)], path) as server:
        yield server
