"""A console as a vhost-user back-end whose ports come and go: `python -m tests.peers.console_server SOCKET`.

Beside SOCKET a datagram socket, SOCKET.commands, takes one command a datagram: "add NAME PATH" (a port on a UNIX
socket at PATH) and "remove NUMBER".
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from select import POLLIN

from attrs import define, field

from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.endpoint_unix import UnixEndpoint
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.transports.vhost_user_server import Server, listening
from virtio_py.watch import Watch


@define(eq=False)
class Commanded(ConsoleDevice):
    """A console that takes commands."""

    commands: socket.socket = field(kw_only=True)

    def watch(self) -> Sequence[Watch]:
        return [*super().watch(), Watch(self.commands.fileno(), POLLIN, self._command)]

    def _command(self) -> None:
        verb, *words = self.commands.recv(1000).decode().split()
        if verb == "add":
            self.add_port(ConsolePort(UnixEndpoint(words[1]), words[0]))
        else:
            self.remove_port(int(words[0])).endpoint.close()


def main(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as commands, listening(path) as listener:
        commands.bind(path + ".commands")
        server = Server(Commanded([], max_ports=3, commands=commands), log=print)
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        with closing(server):
            server.serve(listener)


if __name__ == "__main__":
    main(sys.argv[1])
