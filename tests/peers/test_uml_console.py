"""`virtio-py serve console` behind the console driver of a real Linux kernel."""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import threading
import tty
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.peers.process import Server, serving, wait_until
from tests.peers.require import require
from tests.peers.uml import Machine, Result, UserModeLinux, VhostUser
from virtio_py.spec import DeviceId

pytestmark = pytest.mark.peer

BULK = 50_000_000


def serve_console(path: Path, *options: str) -> AbstractContextManager[Server]:
    """Our console, as a process of its own."""
    command = [sys.executable, "-m", "virtio_py.cli.main", "serve", "console", "--socket-path", str(path)]
    return serving(command + list(options), path, seconds=120)


def devices(server: Server) -> list[VhostUser]:
    return [VhostUser(server.socket, DeviceId.CONSOLE)]


def check(result: Result) -> list[str]:
    """The lines of a script that must have succeeded, and left nothing for the kernel to complain of."""
    assert result.status == 0, result.output
    assert result.complaints() == []
    return result.output.splitlines()


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.settimeout(60)
    return client


def receive_line(client: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        data += client.recv(100)
    return data


def pty_of(server: Server, name: str) -> int:
    """The terminal that the server has made for a port, opened as by a terminal emulator."""
    found = re.search(rf"port {name}: (\S+)", server.log.read_text())
    assert found is not None
    terminal = os.open(found[1], os.O_RDWR | os.O_NOCTTY)
    tty.setraw(terminal)
    return terminal


def set_size(terminal: int, cols: int, rows: int) -> None:
    [stty] = require("stty")
    # It opens the terminal by its name: a change through what is open already would be noticed with the next key only.
    subprocess.run([stty, "-F", os.ttyname(terminal), "cols", str(cols), "rows", str(rows)], check=True)


def read_until(terminal: int, text: bytes) -> bytes:
    data = b""
    while text not in data:
        data += os.read(terminal, 100)
    return data


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["--packed"], ["--engine", "compiled"]], ids=["split", "packed", "compiled"])
def test_fifty_megabytes_each_way(uml: UserModeLinux, tmp_path: Path, options: list[str]) -> None:
    bulk, got = random.Random(1).randbytes(BULK), hashlib.sha256()
    agent = tmp_path / "agent"
    with serve_console(tmp_path / "sock", "--port", "con=pty", "--port", f"agent=unix:{agent}", *options) as server:
        with connect(agent) as client:
            sender = threading.Thread(target=client.sendall, args=[bulk])
            sender.start()
            arguments = ["agent", str(BULK)]
            with uml.boot("console_bulk.sh", *arguments, devices=devices(server), memory="256M", seconds=200) as guest:
                count = 0
                while count < BULK:
                    got.update(data := client.recv(1 << 20))
                    count += len(data)
                sender.join(60)
                lines = check(guest.result())
        assert f"received: {hashlib.sha256(bulk).hexdigest()}" in lines
        assert f"sent: {got.hexdigest()}" in lines
        assert count == BULK


def test_either_side_closes_and_opens_and_nothing_is_lost(uml: UserModeLinux, tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    with (
        serve_console(
            tmp_path / "sock", "--port", f"other=file:{tmp_path / 'log'}", "--port", f"agent=unix:{agent}"
        ) as server,
        uml.boot("console_open.sh", "agent", devices=devices(server), seconds=30) as guest,
    ):
        with connect(agent) as client:
            client.sendall(b"one\n")
            guest.wait_for("first: one")
        guest.wait_for("the other side has closed")
        with connect(agent) as client:
            client.sendall(b"two\n")
            guest.wait_for("closed here")
            client.sendall(b"three\n")
            assert receive_line(client) == b"done\n"
            lines = check(guest.result())
    assert lines[-1] == "third: three"


@pytest.mark.parametrize("single", [True, False], ids=["single", "multiport"])
def test_a_text_console_and_its_size(uml: UserModeLinux, tmp_path: Path, single: bool) -> None:
    """The specification's order is cols, rows; the guest says rows, cols. With a single port Linux does not look at the
    size before it changes."""
    options = ["--single"] if single else ["--port", f"log=file:{tmp_path / 'log'}"]
    with serve_console(tmp_path / "sock", "--port", "con=pty", *options) as server:
        terminal = pty_of(server, "con")
        set_size(terminal, 100, 30)
        first = "" if single else "30 100"
        with uml.boot("console_tty.sh", "2", first, "40 132", devices=devices(server), seconds=30) as guest:
            for turn in ("1", "2"):
                type_and_resize(guest, terminal, turn)
            lines = check(guest.result())
        os.close(terminal)
    assert lines.count("size: 40 132") == 2
    assert [line for line in lines if "typed" in line] == ["typed: hello 1", "typed: hello 2"]


def type_and_resize(guest: Machine, terminal: int, turn: str) -> None:
    set_size(terminal, 100, 30)
    guest.wait_for(f"ready {turn}")
    os.write(terminal, b"hello %s\n" % turn.encode())
    read_until(terminal, b"printed hello %s" % turn.encode())
    set_size(terminal, 132, 40)
    guest.wait_for(f"resized {turn}")


def test_what_is_printed_for_nobody_does_not_stop_the_guest(uml: UserModeLinux, tmp_path: Path) -> None:
    """Linux spins until a console's buffer is used: it must be, also while no terminal emulator is there."""
    with (
        serve_console(tmp_path / "sock", "--port", "con=pty") as server,
        uml.boot("console_print.sh", "300000", devices=devices(server), seconds=30) as guest,
    ):
        assert "printed: 300000" in check(guest.result())


@pytest.mark.clause("console.device.multiport.1")
@pytest.mark.clause("console.device.multiport.3")
def test_ports_come_and_go(uml: UserModeLinux, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with (
        serving([sys.executable, "-m", "tests.peers.console_server", str(path)], path) as server,
        uml.boot("console_hotplug.sh", "late", "3", devices=devices(server), seconds=30) as guest,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as commands,
    ):
        commands.connect(f"{path}.commands")
        for turn in (b"1", b"2", b"3"):
            guest.wait_for(f"waiting {turn.decode()}")
            agent = tmp_path / f"agent{turn.decode()}"
            commands.send(b"add late %s" % bytes(agent))
            wait_until(agent.exists, "the port's socket", 10)
            with connect(agent) as client:
                client.sendall(b"host %s\n" % turn)
                assert receive_line(client) == b"guest %s\n" % turn
                commands.send(b"remove 0")
                guest.wait_for(f"gone {turn.decode()}")
        lines = check(guest.result())
    assert [line for line in lines if "host" in line] == ["1: host 1", "2: host 2", "3: host 3"]
