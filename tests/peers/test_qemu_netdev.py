"""QEMU's own network back-ends at the other end of our socket ports: a QEMU without a machine joins two of them by a
hub, so that every frame that goes into one of our ports has to come out of the other, having been QEMU's in between."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import pytest

from tests.net_frames import frame_of, partial_packet
from tests.peers.process import listening, wait_until
from tests.peers.require import require
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import Gso, NetFeature
from virtio_py.devices.net.ports.port import Port
from virtio_py.devices.net.ports.sockets import DatagramPort, StreamPort
from virtio_py.devices.net.segmentation import fit
from virtio_py.spec import bit
from virtio_py.transports.in_process import InProcess
from virtio_py.watch import wait_ready

pytestmark = pytest.mark.peer

FRAMES = [frame_of(bytes([n]) * size) for n, size in enumerate([0, 1, 46, 100, 1000, 1446])]


def stream(name: str, place: Path) -> tuple[str, Port]:
    """A connection that QEMU makes."""
    path = place / name
    return f"stream,id={name},server=off,addr.type=unix,addr.path={path}", StreamPort(str(path))


def dgram(name: str, place: Path) -> tuple[str, Port]:
    ours, theirs = place / name, place / f"{name}.qemu"
    option = f"dgram,id={name},local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}"
    return option, DatagramPort(str(ours), str(theirs))


KINDS: dict[str, Callable[[str, Path], tuple[str, Port]]] = {"stream": stream, "dgram": dgram}


@contextmanager
def qemu(netdevs: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU whose network back-ends are joined by a hub. It has to run (no -S): stopped, it forwards nothing."""
    [program] = require("qemu-system-x86_64")
    options = ["-machine", "none", "-nodefaults", "-display", "none", "-monitor", "none", "-serial", "none"]
    for netdev in netdevs:
        name = netdev.split("id=")[1].split(",")[0]
        options += ["-netdev", netdev, "-netdev", f"hubport,id=hub-{name},hubid=0,netdev={name}"]
    with log.open("wb") as output:
        process = subprocess.Popen([program, *options], stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def attend(*ports: Port, seconds: float = 0.05) -> None:
    """What a device's loop does for its port."""
    for watch in wait_ready([watch for port in ports for watch in port.watch()], seconds):
        watch.ready()


def delivered(port: Port) -> list[bytes]:
    """Where the frames go that come to a port."""
    got: list[bytes] = []

    def receive(packet: Packet) -> bool:
        got.append(packet.frame)
        return True

    port.attach(receive)
    return got


def arrives(one: Port, other: Port, got: list[bytes], frames: Sequence[bytes], log: Path) -> None:
    """Frames that are sent into one port come out of the other, once QEMU has joined them."""
    deadline = time.monotonic() + 20
    while not got:
        assert time.monotonic() < deadline, log.read_text()
        one.send(Packet(FRAMES[0]))
        attend(one, other)
    quiet = 0
    while quiet < 3:
        before = len(got)
        attend(one, other)
        quiet = quiet + 1 if len(got) == before else 0
    got.clear()
    for frame in frames:
        one.send(Packet(frame))
    while len(got) < len(frames):
        assert time.monotonic() < deadline, (got, log.read_text())
        attend(one, other)
    assert got == list(frames)


@pytest.mark.parametrize(("one", "other"), list(product(KINDS, KINDS)))
def test_frames_pass_through_qemu(tmp_path: Path, one: str, other: str) -> None:
    log = tmp_path / "log"
    (first, a), (second, b) = (KINDS[kind](name, tmp_path) for kind, name in ((one, "a"), (other, "b")))
    with ExitStack() as stack:
        for port in (a, b):
            stack.callback(port.close)
        stack.enter_context(qemu([first, second], log))
        to_a, to_b = delivered(a), delivered(b)
        arrives(a, b, to_b, FRAMES, log)
        to_a.clear()
        arrives(b, a, to_a, FRAMES[::-1], log)


def test_qemu_listens_and_we_connect(tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "server"
    second, b = stream("b", tmp_path)
    with ExitStack() as stack:
        stack.callback(b.close)
        server = f"stream,id=a,server=on,addr.type=unix,addr.path={path}"
        stack.enter_context(qemu([server, second], log))
        wait_until(lambda: listening(path), "QEMU's socket", 30)
        a = StreamPort(str(path))
        stack.callback(a.close)
        arrives(a, b, delivered(b), FRAMES, log)


def test_a_qemu_that_dies_is_followed_by_another(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (first, a), (second, b) = stream("a", tmp_path), stream("b", tmp_path)
    with ExitStack() as stack:
        for port in (a, b):
            stack.callback(port.close)
        for _ in range(2):
            with qemu([first, second], log) as process:
                arrives(a, b, delivered(b), FRAMES, log)
                process.kill()
                process.wait()
            for port in (a, b):
                attend(port)


def test_drivers_talk_through_qemu(tmp_path: Path) -> None:
    """Two interfaces with their drivers; what one leaves to be segmented, the wire has in pieces."""
    log = tmp_path / "log"
    (first, a), (second, b) = stream("a", tmp_path), dgram("b", tmp_path)
    with ExitStack() as stack:
        for port in (a, b):
            stack.callback(port.close)
        drivers = []
        for port in (a, b):
            device = NetDevice(port)
            features = device.offered_features() & ~bit(NetFeature.CTRL_VLAN) | (1 << 32)
            drivers.append(NetDriver(InProcess(device), features=features).start())
        stack.enter_context(qemu([first, second], log))
        packet = partial_packet(os.urandom(5000), Gso.TCPV4, 4, 1400)
        expected = [part.frame for part in fit(packet, 0)]
        deadline = time.monotonic() + 10
        while drivers[1].receive(timeout=0.05) is None:
            assert time.monotonic() < deadline, log.read_text()
            drivers[0].send_all([frame_of(b"is anybody there?")])
            drivers[0].receive_all()
            drivers[0].transport.wait(0.01)
        while drivers[1].receive(timeout=0.2) is not None:
            pass
        drivers[0].send_all([packet])
        found = [drivers[1].receive(timeout=5) for _ in expected]
        assert [p and p.frame for p in found] == expected
