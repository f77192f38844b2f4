"""The endpoints of console ports, with real terminals, sockets and files; and `serve console` as it is started."""

from __future__ import annotations

import argparse
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from virtio_py.cli import serve_console
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoints import Endpoint, MemoryEndpoint
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.console.streams import ConsoleStream
from virtio_py.errors import UsageError
from virtio_py.transports.in_process import InProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these endpoints need Linux")

BULK = bytes(range(256)) * 2000


def port_on(endpoint: Endpoint, max_ports: int = 1) -> ConsoleStream:
    """The driver's port in front of an endpoint."""
    port = ConsoleDriver(InProcess(ConsoleDevice([ConsolePort(endpoint)], max_ports=max_ports))).start().port()
    port.open()
    return port


def until(port: ConsoleStream, condition: Callable[[], bool]) -> None:
    assert port.inlet.driver.wait_until(condition, 10)


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.settimeout(10)
    return client


def idle(port: ConsoleStream) -> bool:
    """Whether nothing behind the device is reported again and again."""
    transport = port.inlet.driver.transport
    assert isinstance(transport, InProcess)
    while transport.step():
        pass
    calls = 0
    for _ in range(20):
        for watch in transport.end.device.watch():
            state = select.poll()
            state.register(watch.fd, watch.events)
            if state.poll(0):
                calls += 1
                transport.end.attend(watch)
    return calls < 5


# UNIX sockets


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sock"


@pytest.fixture
def unix(path: Path) -> Iterator[Any]:
    from virtio_py.devices.console.endpoint_unix import UnixEndpoint

    endpoint = UnixEndpoint(str(path))
    yield endpoint
    endpoint.close()
    assert not path.exists()


def test_a_client_is_the_other_side(unix: Any, path: Path) -> None:
    port = port_on(unix)
    with connect(path) as client:
        until(port, lambda: port.device_open)
        client.sendall(b"hello")
        assert port.read() == b"hello"
        port.write(b"back")
        port.flush()
        assert client.recv(100) == b"back"
        assert idle(port)
    until(port, lambda: not port.device_open)
    assert idle(port)
    with connect(path) as client:
        client.sendall(b"next")
        assert port.read() == b"next"


def test_what_a_client_sent_before_it_left_arrives(unix: Any, path: Path) -> None:
    port = port_on(unix)
    port.close()
    with connect(path) as client:
        until(port, lambda: port.device_open)
        client.sendall(b"last words")
    port.write(b"too late for it")
    port.flush()
    assert idle(port)
    assert port.device_open
    port.open()
    assert port.read() == b"last words"
    until(port, lambda: not port.device_open)


def test_a_client_that_ends_its_sending_half_still_reads(unix: Any, path: Path) -> None:
    port = port_on(unix)
    with connect(path) as client:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert port.read() == b"question"
        assert idle(port)
        port.write(b"answer")
        port.flush()
        assert client.recv(100) == b"answer"
        assert port.device_open
    until(port, lambda: not port.device_open)


def test_a_slow_client_holds_up_the_driver_and_loses_nothing(unix: Any, path: Path) -> None:
    port = port_on(unix)
    with connect(path) as client:
        until(port, lambda: port.device_open)
        rest, got, held_up = memoryview(BULK), bytearray(), False
        # Nothing is read before the driver can send no more.
        while rest:
            count = port.outlet.send(rest)
            rest = rest[count:]
            port.inlet.driver.wait_until(lambda: False, 0.001)
            held_up = held_up or not count
            if held_up:
                got += client.recv(10_000)
        while len(got) < len(BULK):
            port.inlet.driver.wait_until(lambda: False, 0.001)
            got += client.recv(100_000)
        assert held_up
        assert got == BULK


def test_a_path_that_is_taken(unix: Any, path: Path, tmp_path: Path) -> None:
    from virtio_py.devices.console.endpoint_unix import UnixEndpoint

    (tmp_path / "file").write_text("mine")
    for taken in (path, tmp_path / "file", tmp_path / "none" / "sock", tmp_path / ("x" * 120)):
        with pytest.raises(UsageError, match=str(taken)[:40]):
            UnixEndpoint(str(taken))
    assert (tmp_path / "file").read_text() == "mine"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    UnixEndpoint(str(tmp_path / "dead")).close()


# Pseudo-terminals


@pytest.fixture
def terminal() -> Iterator[Any]:
    from virtio_py.devices.console.endpoint_pty import PtyEndpoint

    before = len(os.listdir("/proc/self/fd"))
    endpoint = PtyEndpoint()
    yield endpoint
    endpoint.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_terminal_is_the_other_side_while_it_is_open(terminal: Any) -> None:
    port = port_on(terminal)
    assert not port.device_open
    port.write(b"for nobody" * 10_000)
    port.flush()
    for turn in range(2):
        fd = os.open(terminal.path, os.O_RDWR | os.O_NOCTTY)
        until(port, lambda: port.device_open)
        port.write(b"\x1b[31mred\n")
        port.flush()
        assert os.read(fd, 100) == b"\x1b[31mred\n", turn
        os.write(fd, b"ls\r")
        assert port.read() == b"ls\r"
        assert idle(port)
        os.write(fd, b"bye")
        os.close(fd)
        assert port.read() == b"bye"
        until(port, lambda: not port.device_open)
        assert idle(port)


def test_a_terminal_that_is_not_read_holds_up_the_driver(terminal: Any) -> None:
    port = port_on(terminal)
    fd = os.open(terminal.path, os.O_RDWR | os.O_NOCTTY)
    until(port, lambda: port.device_open)
    port.write(BULK[:60_000])
    port.inlet.driver.wait_until(lambda: False, 0.05)
    assert port.outlet.queue.outstanding
    assert idle(port)
    got = b""
    while len(got) < 60_000:
        got += os.read(fd, 4096)
        port.inlet.driver.wait_until(lambda: False, 0.001)
    os.close(fd)
    assert got == BULK[:60_000]


@pytest.mark.parametrize("max_ports", [0, 1])
def test_a_terminals_size_is_the_ports(terminal: Any, max_ports: int) -> None:
    device = ConsoleDevice([ConsolePort(terminal, console=True)], max_ports=max_ports)
    port = ConsoleDriver(InProcess(device)).start().port()
    until(port, lambda: port.size == (80, 25))
    fd = os.open(terminal.path, os.O_RDWR | os.O_NOCTTY)
    termios.tcsetwinsize(fd, (43, 132))
    os.close(fd)
    until(port, lambda: port.size == (132, 43))


# Files


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    from virtio_py.devices.console.endpoint_file import FileEndpoint

    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    endpoint = FileEndpoint(str(log))
    port = port_on(endpoint)
    port.write(BULK)
    port.flush()
    assert port.read(timeout=0) == b""
    assert idle(port)
    endpoint.close()
    assert log.read_bytes() == b"before\n" + BULK


def test_a_full_disk_closes_the_port() -> None:
    from virtio_py.devices.console.endpoint_file import FileEndpoint

    endpoint = FileEndpoint("/dev/full")
    port = port_on(endpoint)
    port.write(b"does not fit")
    port.flush()
    until(port, lambda: not port.device_open)
    endpoint.close()


# Standard input and output

ECHO = """
import sys
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoint_stdio import StdioEndpoint
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.transports.in_process import InProcess
endpoint = StdioEndpoint()
port = ConsoleDriver(InProcess(ConsoleDevice([ConsolePort(endpoint)]))).start().port()
size = None
while True:
    if port.size != size:
        size = port.size
        port.write(b"size %d %d\\n" % size)
    data = port.read(timeout=0.05)
    port.write(data.upper())
    if b"q" in data:
        break
port.flush()
endpoint.close()
"""


def test_standard_input_and_output_as_pipes() -> None:
    text = b"abc" * 50_000 + b"q"
    done = subprocess.run([sys.executable, "-c", ECHO], input=text, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"size 80 25\n" + text.upper()


def test_standard_input_and_output_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abcq")
    with (tmp_path / "in").open("rb") as file, (tmp_path / "out").open("ab") as out:
        out.write(b"kept\n")
        out.flush()
        subprocess.run([sys.executable, "-c", ECHO], stdin=file, stdout=out, timeout=60, check=True)
    assert (tmp_path / "out").read_bytes() == b"kept\nsize 80 25\nABCQ"


def test_standard_input_and_output_as_a_terminal() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-c", ECHO]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, start_new_session=True)
    read_until(ours, b"size 100 30\n")
    assert not termios.tcgetattr(theirs)[tty.LFLAG] & (termios.ECHO | termios.ICANON)
    os.write(ours, b"a")
    read_until(ours, b"A")
    termios.tcsetwinsize(theirs, (43, 132))
    process.send_signal(signal.SIGWINCH)
    read_until(ours, b"size 132 43\n")
    os.write(ours, b"q")
    assert process.wait(10) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def read_until(fd: int, text: bytes) -> None:
    data, deadline = b"", time.monotonic() + 20
    while text not in data:
        assert select.select([fd], [], [], max(0, deadline - time.monotonic()))[0], data
        data += os.read(fd, 1000)


# The command line


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve_console.add_options(parser)
    return parser.parse_args(argv)


def test_the_options_describe_the_device(tmp_path: Path) -> None:
    log, sock = tmp_path / "log", tmp_path / "sock"
    args = parse("--port", "con=pty", "--port", f"log=file:{log}", "--port", f"a=unix:{sock}", "--size", "90x30")
    with serve_console.make(args) as device:
        assert isinstance(device, ConsoleDevice)
        assert [(p.name, p.console) for p in device.ports.values()] == [("con", True), ("log", False), ("a", False)]
        assert (device.max_ports, device.size) == (3, (90, 30))
        assert sock.exists()
    assert not sock.exists()
    args = parse("--port", f"log=file:{log}", "--port", "con=pty", "--console", "log")
    with serve_console.make(args) as device:
        assert isinstance(device, ConsoleDevice)
        assert [p.console for p in device.ports.values()] == [True, False]
    with serve_console.make(parse("--port", "x=pty", "--single")) as device:
        assert isinstance(device, ConsoleDevice)
        assert (device.max_ports, len(device.queues())) == (0, 2)


@pytest.mark.parametrize(
    "argv",
    [
        ["--port", "pty"],
        ["--port", "x=tty"],
        ["--port", "x=pty:/dev/x"],
        ["--port", "x=unix"],
        ["--port", "x=file:"],
        ["--port", "x=pty", "--size", "80"],
        ["--port", "x=pty", "--size", "80x65536"],
    ],
)
def test_options_that_cannot_be_parsed(argv: list[str]) -> None:
    with pytest.raises(argparse.ArgumentError):
        parse(*argv)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--port", "x=pty", "--port", "x=pty"],
        ["--port", "x=stdio", "--port", "y=stdio"],
        ["--port", "x=pty", "--console", "y"],
        ["--port", "x=pty", "--port", "y=pty", "--single"],
        ["--port", "x=unix:/nowhere/at/all"],
        ["--port", "x\0=pty"],
    ],
)
def test_options_that_make_no_device(argv: list[str]) -> None:
    with pytest.raises(UsageError), serve_console.make(parse(*argv)):
        pass


def test_a_memory_endpoint_has_nothing_to_watch() -> None:
    device = ConsoleDevice([ConsolePort(MemoryEndpoint())])
    assert device.watch() == []
