"""A TCP transfer that is checked at both ends: transfer.py listen|connect ADDRESS PORT MEGABYTES.

Whoever connects sends first; then the other one sends as much back. Both print the rate, and fail if a byte differs.
"""

from __future__ import annotations

import hashlib
import random
import socket
import sys
import time
from collections.abc import Iterator

MEGABYTE = 1 << 20


def blocks(count: int) -> Iterator[bytes]:
    """The same for everybody: no block is like another."""
    source = random.Random(count)
    return (source.randbytes(MEGABYTE) for _ in range(count))


def digest(count: int) -> str:
    total = hashlib.sha256()
    for block in blocks(count):
        total.update(block)
    return total.hexdigest()


def send(connection: socket.socket, count: int) -> None:
    for block in blocks(count):
        connection.sendall(block)


def receive(connection: socket.socket, count: int) -> None:
    total, left = hashlib.sha256(), count * MEGABYTE
    began = time.monotonic()
    while left:
        data = connection.recv(min(left, MEGABYTE))
        if not data:
            sys.exit(f"{left} bytes are missing")
        total.update(data)
        left -= len(data)
    if total.hexdigest() != digest(count):
        sys.exit("the bytes differ")
    print(f"received {count} MiB, {count / (time.monotonic() - began):.0f} MiB/s", flush=True)


def main(mode: str, address: str, port: str, megabytes: str) -> None:
    count = int(megabytes)
    if mode == "listen":
        with socket.create_server((address, int(port))) as server:
            connection, _ = server.accept()
        with connection:
            receive(connection, count)
            send(connection, count)
    else:
        with socket.create_connection((address, int(port)), timeout=60) as connection:
            connection.settimeout(None)
            send(connection, count)
            receive(connection, count)


main(*sys.argv[1:])
