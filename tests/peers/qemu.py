"""QEMU's system emulation: a whole machine in software, Linux in it, and vhost-user devices of ours on its PCI bus.

No KVM: every instruction is translated (TCG), so a boot takes some four seconds. What the guest writes to its memory
our back-ends see in theirs, since it is a shared file.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from tests.peers.initramfs import Kernel, build
from tests.peers.process import wait_until
from tests.peers.require import require
from tests.peers.uml import BEGIN, Machine

APPEND = "console=ttyS0 printk.time=0 quiet loglevel=1 panic=-1 tsc=reliable no_timer_check init_on_alloc=0"


@frozen
class Device:
    """A vhost-user device of the machine: the back-end's socket, and QEMU's arguments, {c} being the socket's name."""

    socket: Path
    arguments: tuple[str, ...]

    def line(self, number: int) -> list[str]:
        """The arguments, as the device with this number."""
        name = f"c{number}"
        chosen = [argument.format(c=name) for argument in self.arguments]
        return ["-chardev", f"socket,id={name},path={self.socket}", *chosen]


def blk(path: Path, *options: str, kind: str = "vhost-user-blk-pci") -> Device:
    """A disk."""
    return Device(path, ("-device", ",".join([kind, "chardev={c}", *options])))


def scsi(path: Path, *options: str, kind: str = "vhost-user-scsi-pci") -> Device:
    """A SCSI host."""
    return Device(path, ("-device", ",".join([kind, "chardev={c}", *options])))


def net(path: Path, *options: str, kind: str = "virtio-net-pci") -> Device:
    """A network interface. Without interrupt messages: with them QEMU 7.2's vhost-user net crashes under TCG."""
    device = ",".join([kind, "netdev=n{c}", "vectors=0", *options])
    return Device(path, ("-netdev", "vhost-user,id=n{c},chardev={c}", "-device", device))


@define
class Monitor:
    """QEMU's machine protocol (QMP): commands and their answers, a line of JSON each."""

    _socket: socket.socket
    _lines: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._lines = self._socket.makefile("rb")
        self._next()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """What a command returns; events before its answer are dropped."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._next()
            assert "error" not in answer, f"{command}: {answer}"
            if "return" in answer:
                return answer["return"]

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, "QEMU has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the conversation; the machine goes on."""
        self._lines.close()
        self._socket.close()


@define
class Guest:
    """A machine that runs. serial: its console, with the marks of guest/qemu_init.sh."""

    serial: Machine
    _control: Path

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """The machine protocol."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self._control))
            monitor = Monitor(connection)
            try:
                yield monitor
            finally:
                monitor.close()

    def migrate(self, to: Path, text: str, times: int) -> None:
        """Moves the guest to the machine that listens at `to`, and ends this one.

        When almost all memory has been copied the guest goes on here until its script has printed `text` so many times
        more: what a device writes from then on comes along only if it was noted.
        """
        with self.monitor() as monitor:
            # QEMU is to ask once what was written, at the end. Under software emulation, moves that asked again and
            # again were seen to corrupt guests, whatever the back-end did (a race in its notdirty_write, as far as we
            # can tell). So the guest stands still when that begins, and with no downtime QEMU does not ask in between.
            monitor.ask("stop")
            monitor.ask("migrate-set-parameters", **{"max-bandwidth": 32 << 20, "downtime-limit": 0})
            monitor.ask("migrate", uri=f"unix:{to}")
            wait_until(lambda: _migration(monitor)["status"] == "active", "the move's begin", 60)
            monitor.ask("cont")
            wait_until(lambda: 0 < _migration(monitor)["ram"]["remaining"] < 4 << 20 or _done(monitor), "a copy", 60)
            monitor.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 19})
            wanted = self.serial.count(text) + times
            wait_until(lambda: _done(monitor) or self.serial.count(text) >= wanted, f"{text!r}", 60)
            monitor.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
            wait_until(lambda: _done(monitor), "the machine's move", 60)
            monitor.ask("quit")


def _migration(monitor: Monitor) -> dict[str, Any]:
    """What QEMU tells of a migration that has not failed."""
    state: dict[str, Any] = monitor.ask("query-migrate")
    assert state["status"] not in ("failed", "cancelled"), state
    return {"ram": {"remaining": 0}} | state


@frozen
class Qemu:
    """Boots guests with one kernel."""

    kernel: Kernel

    @contextmanager
    def boot(
        self,
        script: Sequence[str],
        modules: Sequence[str],
        *,
        devices: Sequence[Device],
        programs: Sequence[str] = (),
        incoming: Path | None = None,
        memory: int = 256,
        seconds: float = 60,
    ) -> Iterator[Guest]:
        """A machine that runs guest/`script`, a name and its arguments, and ends; killed at the block's end.

        modules: of the kernel, to be loaded first; programs: of the host, to be there; memory: MiB;
        incoming: instead of booting, wait there for a guest that another machine had booted in the same way.
        """
        run = Path(tempfile.mkdtemp(prefix="qemu.", dir="/tmp"))  # short: the path of a socket is 107 bytes at most
        try:
            if incoming is None:
                build(run / "initrd", self.kernel, modules, require(*programs), script)
            process = _start(self._arguments(run, devices, memory, incoming))
            with process:
                serial = Machine(process, time.monotonic() + seconds, BEGIN if incoming else b"")
                try:
                    yield Guest(serial, run / "qmp")
                finally:
                    serial.kill()
        finally:
            shutil.rmtree(run, ignore_errors=True)

    def _arguments(self, run: Path, devices: Sequence[Device], memory: int, incoming: Path | None) -> list[str]:
        [program] = require("qemu-system-x86_64")
        fixed = f"""
            -accel tcg -machine q35,memory-backend=mem -cpu max -m {memory}M -smp 1 -nodefaults -no-user-config
            -object memory-backend-memfd,id=mem,size={memory}M,share=on -display none -serial stdio -no-reboot
            -qmp unix:{run / "qmp"},server=on,wait=off
        """
        boots = ["-kernel", str(self.kernel.image), "-initrd", str(run / "initrd"), "-append", APPEND]
        start = ["-incoming", f"unix:{incoming}"] if incoming else boots
        return [program, *fixed.split(), *start, *(a for n, device in enumerate(devices) for a in device.line(n))]


def _start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env={name: value for name, value in os.environ.items() if name != "TMPDIR"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _done(monitor: Monitor) -> bool:
    return bool(_migration(monitor)["status"] == "completed")
