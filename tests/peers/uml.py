"""User Mode Linux: a real Linux kernel in a process, with its own virtio drivers, in front of vhost-user devices.

The guest's root is the host's `/`, read-only, so a guest script is any host script and finds the host's programs.
linux.uml connects to its devices while it boots, hence each must listen before; it never connects again.
Virtio itself is built in, device drivers are modules: a guest script loads them with `modprobe virtio_blk`.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define, frozen

from tests.peers.require import require
from virtio_py.spec import DeviceId

HERE = Path(__file__).parent
GUEST = HERE / "guest"
# Of every boot: devices of UML's own, which nobody gave it; a clock that QEMU emulates too slowly.
BOOT_NOISE = ("mmapper_init", "Failed to initialize ubd device", "tsc: Fast TSC calibration failed")
COMPLAINTS = ("error", "fail", "warning:", "bug:", "oops", "reset", "timed out", "timeout", "corrupt", "bogus")
BEGIN, EXIT, END = b"=== begin\n", b"=== exit ", b"=== end\n"  # printed by guest/init.sh


class GuestPanic(Exception):
    """The guest's kernel ended without having finished the script; carries what it printed."""


class GuestTimeout(Exception):
    """The time limit passed, and the guest was killed; carries what it printed."""


@frozen
class VhostUser:
    """A vhost-user device of the guest: the back-end's socket and the type of device behind it."""

    socket: Path
    device_id: DeviceId

    def argument(self) -> str:
        return f"virtio_uml.device={self.socket}:{int(self.device_id)}"


@frozen
class Result:
    """What a guest script left: its exit status, what it wrote (both streams), and the kernel's messages."""

    status: int
    output: str
    dmesg: str

    def complaints(self) -> list[str]:
        """Kernel messages about a device, a driver or a file system that did not behave."""
        lines = [line.lower() for line in self.dmesg.splitlines() if not line.startswith(BOOT_NOISE)]
        return [line for line in lines if any(word in line for word in COMPLAINTS)]


@define
class Machine:
    """A booted guest. Its console is read only while one of the methods waits for something."""

    _process: subprocess.Popen[bytes]
    _deadline: float
    _console: bytes = b""

    @property
    def pid(self) -> int:
        """The main process, and the process group of it and all its helpers."""
        return self._process.pid

    def wait_for(self, text: str) -> None:
        """Wait until the script has printed `text`. Raises GuestPanic, GuestTimeout."""
        while text.encode() not in self._sections()[0]:
            if self._read_to_end():
                raise GuestPanic(self._text())

    def count(self, text: str) -> int:
        """How often the script has printed `text` until now. Raises as `wait_for`."""
        while self._read(0):
            pass
        if self._read_to_end():
            raise GuestPanic(self._text())
        return self._sections()[0].count(text.encode())

    def result(self) -> Result:
        """Wait until the script has ended and the guest is off. Raises GuestPanic, GuestTimeout."""
        while not self._read_to_end():
            pass
        script, status, dmesg, ended = self._sections()
        if not ended or self._exit_status() != 0:
            raise GuestPanic(self._text())
        return Result(int(status), script.decode(errors="replace"), dmesg.decode(errors="replace"))

    def kill(self) -> None:
        """End the guest at once, as when its power fails.

        SIGKILL to the process group is the only way: SIGTERM can send linux.uml into an endless loop, and its I/O
        helpers outlive the main process.
        """
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _sections(self) -> tuple[bytes, bytes, bytes, bytes]:
        """What lies between the marks, and the last mark itself if it has come."""
        script, _, rest = self._console.replace(b"\r\n", b"\n").partition(BEGIN)[2].partition(EXIT)
        status, _, rest = rest.partition(b"\n")
        dmesg, end, _ = rest.partition(END)
        return script, status, dmesg, end

    def _read_to_end(self) -> bool:
        """Read from the console for a moment; whether that was all and the guest is off. Raises GuestTimeout."""
        # Asked before reading, so that what a dead guest printed last is still read.
        off = self._exit_status() is not None
        if time.monotonic() > self._deadline:
            raise GuestTimeout(self._text())
        return not self._read() and off

    def _read(self, seconds: float = 0.1) -> bool:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return False
        chunk = os.read(self._process.stdout.fileno(), 1 << 16)
        self._console += chunk
        return bool(chunk)

    def _exit_status(self) -> int | None:
        """The main process's exit status or signal. It is not reaped yet, so that its group's number stays its own."""
        dead = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if dead is None else dead.si_status

    def _text(self) -> str:
        return self._console[-8000:].decode(errors="replace")


@frozen
class UserModeLinux:
    """Boots guests. `shim` is the library that `build_shim` made."""

    shim: Path

    @contextmanager
    def boot(
        self, script: str, *args: str, devices: Sequence[VhostUser] = (), memory: str = "128M", seconds: float = 60
    ) -> Iterator[Machine]:
        """A guest that runs guest/`script` with `args`, then powers off; killed at the block's end.

        After `seconds` the methods that wait for it raise GuestTimeout.
        """
        # A short name in /tmp: the guest's control socket lies here, and the path of a socket is 107 bytes at most.
        run = Path(tempfile.mkdtemp(prefix="uml.", dir="/tmp"))
        _write_init(run / "init", [str(GUEST / script), *args])
        process = _start(self.shim, _arguments(run, devices, memory))
        machine = Machine(process, time.monotonic() + seconds)
        try:
            with process:
                try:
                    yield machine
                finally:
                    machine.kill()
        finally:
            shutil.rmtree(run, ignore_errors=True)

    def run(
        self, script: str, *args: str, devices: Sequence[VhostUser] = (), memory: str = "128M", seconds: float = 60
    ) -> Result:
        """Boot a guest and wait for its end. Raises GuestPanic, GuestTimeout."""
        with self.boot(script, *args, devices=devices, memory=memory, seconds=seconds) as machine:
            return machine.result()


def build_shim(directory: Path) -> Path:
    """Compile the library that linux.uml needs on processors newer than itself; its path."""
    shim = directory / "uml_fpshim.so"
    [cc] = require("cc")
    subprocess.run([cc, "-O2", "-Wall", "-shared", "-fPIC", "-o", shim, HERE / "uml_fpshim.c"], check=True)
    return shim


def _write_init(path: Path, command: Sequence[str]) -> None:
    path.write_text(f"#!/bin/sh\nexec /bin/sh {shlex.join([str(GUEST / 'init.sh'), *command])}\n")
    path.chmod(0o755)


def _start(shim: Path, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    # Without TMPDIR the guest's memory is an unlinked file in /dev/shm. A standard input that is not /dev/null, or a
    # terminal's process group, would let the guest read from or write to the terminal of the test run.
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"} | {"LD_PRELOAD": str(shim)}
    return subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _arguments(run: Path, devices: Sequence[VhostUser], memory: str) -> list[str]:
    setarch, linux, _ = require("setarch", "linux.uml", "busybox")
    return [
        setarch,
        "-R",  # with random addresses the shared memory would have a gap of some hundred MiB
        linux,
        f"mem={memory}",
        f"uml_dir={run}",
        "umid=guest",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        f"init={run / 'init'}",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        "panic=-1",
        "loglevel=1",  # a panic, and nothing less, is told on the console; 0 would hide it
        *(device.argument() for device in devices),
    ]
