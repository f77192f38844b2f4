"""Sends back whatever comes by TCP, once all of it is there, and prints its MD5 sum, one line a connection.

echo.py ADDRESS PORT
"""

from __future__ import annotations

import hashlib
import socket
import sys


def main(address: str, port: str) -> None:
    with socket.create_server((address, int(port))) as server:
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as stream:
                data = stream.read()
                print(hashlib.md5(data).hexdigest(), flush=True)
                connection.sendall(data)


main(*sys.argv[1:])
