"""Peers that run beside a test: started, waited for until they listen, ended by SIGTERM, and held to a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

POLL_SECONDS = 0.02
SO_ACCEPTCON = 0x10000


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Return as soon as `condition` holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(POLL_SECONDS)


def listening(path: Path) -> bool:
    """Whether a UNIX socket listens at `path`. Asked of the kernel: to connect would be to be the first client."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return any(len(row) > 7 and row[7] == str(path) and int(row[3], 16) & SO_ACCEPTCON for row in rows)


@frozen
class Server:
    """A running server process and the UNIX socket that it listens on."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    def descriptors(self) -> int:
        """How many file descriptors the process has open at this moment."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def guest_mappings(self) -> int:
        """How many mappings of a guest's memory it has: of files that are deleted, as those of User Mode Linux are."""
        return Path(f"/proc/{self.process.pid}/maps").read_text().count("/dev/shm/")

    def holdings(self, samples: int = 20, seconds: float = 15) -> tuple[int, int]:
        """Open descriptors and guest mappings, once `samples` looks have found the same. Raises TimeoutError."""
        seen: list[tuple[int, int]] = []

        def stable() -> bool:
            seen.append((self.descriptors(), self.guest_mappings()))
            return len(seen) >= samples and len(set(seen[-samples:])) == 1

        wait_until(stable, "a stable number of descriptors and mappings", seconds)
        return seen[-1]

    def terminate(self, seconds: float = 15) -> int:
        """Ask the process to end with SIGTERM; its exit status. Raises subprocess.TimeoutExpired."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def _up(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"ended with {self.process.returncode} before it listened:\n{self.log.read_text()}")
        return listening(self.socket)


@contextmanager
def serving(argv: Sequence[str], socket: Path, seconds: float = 60) -> Iterator[Server]:
    """Run `argv` until the block ends; entered when it listens on `socket`. Its output goes to `socket` + ".log".

    On a normal exit the process must end with status 0 when asked by SIGTERM, if the block has not ended it already.
    """
    log = socket.with_name(socket.name + ".log")
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    server = Server(process, socket, log)
    try:
        wait_until(server._up, f"{argv[0]} listening on {socket}", seconds)
        yield server
        status = process.returncode if process.poll() is not None else server.terminate()
        assert status == 0, f"{argv[0]} ended with {status}:\n{log.read_text()}"
    finally:
        process.kill()
        process.wait()
