"""The host's side of a guest's network: a tap interface in a network namespace of its own, so that no test meets
another one's addresses."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from attrs import frozen

from tests.peers.process import Server, serving
from tests.peers.require import require
from tests.peers.uml import GUEST

HOST = "10.77.0.1"
TRANSFER = GUEST / "transfer.py"


def serve_net(socket: Path, *options: str) -> AbstractContextManager[Server]:
    """Our network device as a process of its own."""
    command = [sys.executable, "-m", "virtio_py.cli.main", "serve", "net", "--socket-path", str(socket)]
    return serving([*command, *options], socket, seconds=120)


@frozen
class Namespace:
    """A network namespace of the host."""

    name: str

    def command(self, *argv: str) -> list[str]:
        """What runs `argv` inside."""
        return [*require("ip"), "netns", "exec", self.name, *argv]

    def run(self, *argv: str) -> str:
        """Runs `argv` inside; what it printed."""
        return subprocess.run(self.command(*argv), check=True, capture_output=True, text=True).stdout

    def adopt(self, interface: str, mtu: int = 1500) -> None:
        """Takes a tap interface in, whose far end stays open outside, and gives it an address."""
        subprocess.run([*require("ip"), "link", "set", interface, "netns", self.name], check=True)
        self.run("ip", "link", "set", interface, "mtu", str(mtu), "up")
        self.run("ip", "addr", "add", f"{HOST}/24", "dev", interface)

    @contextmanager
    def transfers(self, sizes: Sequence[tuple[int, int]]) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Ends of transfers that listen, for each (port, megabytes); killed at the end."""
        programs = [
            subprocess.Popen(self.command(sys.executable, str(TRANSFER), "listen", HOST, str(port), str(size)))
            for port, size in sizes
        ]
        try:
            yield programs
        finally:
            for program in programs:
                program.kill()
                program.wait()


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace that is deleted at the end, and every interface in it."""
    [ip] = require("ip")
    made = Namespace(f"virtio-py-{uuid.uuid4().hex[:8]}")
    subprocess.run([ip, "netns", "add", made.name], check=True)
    try:
        yield made
    finally:
        subprocess.run([ip, "netns", "delete", made.name], check=True)
