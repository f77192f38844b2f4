"""Ports with real descriptors: sockets, capture files, a tap interface, the switch, and `virtio-py serve net`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net_frames import BROADCAST, THEM, US, Wire, frame_of, partial_packet
from tests.peers.process import serving
from tests.test_net_pair import pair, settle
from tests.vhost_user_frontend import R
from tests.vhost_user_socket import connected
from virtio_py.cli.main import main
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import ALL_OFFLOADS, Gso, NetFeature
from virtio_py.devices.net.ports.capture import CapturePort
from virtio_py.devices.net.ports.port import Port
from virtio_py.devices.net.ports.simple import LoopbackPort, SinkPort, SourcePort
from virtio_py.devices.net.ports.sockets import DatagramPort, StreamFrames, StreamPort
from virtio_py.devices.net.ports.tap import TapPort
from virtio_py.devices.net.segmentation import fit
from virtio_py.devices.net.switch import MOST_ADDRESSES, MOST_WAITING, Switch, SwitchPort
from virtio_py.errors import UsageError
from virtio_py.spec import bit
from virtio_py.watch import wait_ready

FRAMES = [frame_of(bytes([n]) * n) for n in range(20)]


class Taker:
    """A receiver with so much room, and no more."""

    def __init__(self, port: Port, room: int = 1 << 30) -> None:
        self.room = room
        self.packets: list[Packet] = []
        port.attach(self)

    def __call__(self, packet: Packet) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.packets.append(packet)
        return True

    @property
    def frames(self) -> list[bytes]:
        return [packet.frame for packet in self.packets]


def turn(*ports: Port) -> bool:
    """One turn of a loop; whether anything was ready."""
    ready = wait_ready([watch for port in ports for watch in port.watch()], 0.05)
    for watch in ready:
        watch.ready()
    return bool(ready)


def until(done: Callable[[], bool], *ports: Port) -> None:
    for _ in range(1000):
        if done():
            return
        turn(*ports)
    raise AssertionError("it does not come")


# Sockets


@given(
    frames=st.lists(st.binary(min_size=14, max_size=200), max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=8).map(sorted),
)
def test_a_stream_is_cut_into_frames_wherever_it_is_cut(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    stream, found, at = StreamFrames(), [], 0
    for end in [*cuts, len(data)]:
        found += stream.feed(data[at : max(at, end)])
        at = max(at, end)
    assert found == frames
    assert not stream.broken
    assert stream.feed(b"\0\0\0\3abc") == []
    stream.feed(b"\0\x02\0\0")
    assert stream.broken


def test_stream_ports_talk_to_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "net")
    first, second = StreamPort(path), StreamPort(path)
    here, there = Taker(first), Taker(second, room=3)
    turn(first)
    for frame in FRAMES:
        first.send(Packet(frame))
        second.send(Packet(frame))
    until(lambda: here.frames == FRAMES, first, second)
    until(lambda: second.blocked, first, second)
    assert there.frames == FRAMES[:3]
    there.room = 1000
    second.resume()
    until(lambda: there.frames == FRAMES, first, second)
    second.close()
    assert turn(first)
    third = StreamPort(path)
    turn(first)
    third.send(Packet(FRAMES[0]))
    until(lambda: here.frames[-1] == FRAMES[0], first)
    third.close()
    first.close()
    assert not Path(path).exists()


def test_a_stream_peer_that_sends_nonsense_is_hung_up_on(tmp_path: Path) -> None:
    path = str(tmp_path / "net")
    port = StreamPort(path)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        turn(port)
        peer.sendall(b"\xff\xff\xff\xff")
        turn(port)
        peer.settimeout(5)
        assert peer.recv(1) == b""
    port.send(Packet(FRAMES[0]))
    port.close()


def test_a_stream_peer_that_does_not_read_costs_a_bounded_amount(tmp_path: Path) -> None:
    path = str(tmp_path / "net")
    port = StreamPort(path)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        turn(port)
        for _ in range(200):
            port.send(Packet(bytes(60000)))
        assert len(port._out) < 2 << 20
        total = 0
        peer.settimeout(0.2)
        while True:
            turn(port)
            try:
                total += len(peer.recv(1 << 16))
            except TimeoutError:
                break
        assert total % 60004 == 0
    port.close()


def test_datagram_ports_talk_to_each_other(tmp_path: Path) -> None:
    one, two = str(tmp_path / "1"), str(tmp_path / "2")
    first = DatagramPort(one, two)
    first.send(Packet(FRAMES[0]))
    second = DatagramPort(two, one)
    there = Taker(second, room=5)
    for frame in FRAMES[:8]:
        first.send(Packet(frame))
    until(lambda: second.blocked, second)
    assert second.watch() == ()
    there.room = 100
    second.resume()
    until(lambda: there.frames == FRAMES[:8], second)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"short", two)
    turn(second)
    assert there.frames == FRAMES[:8]
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [lambda p: DatagramPort(p, p), StreamPort])
def test_a_file_in_the_way_is_kept(make: Callable[[str], Port], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises((UsageError, OSError)):
        make(str(path))
    assert path.read_text() == "precious"


# Simple ports


def test_sink_and_source() -> None:
    sink = SinkPort()
    driver, _, _ = pair(sink)
    driver.send_all(FRAMES)
    assert (sink.packets, sink.bytes) == (len(FRAMES), sum(map(len, FRAMES)))
    source = SourcePort(iter([Packet(frame) for frame in FRAMES]))
    driver, _, transport = pair(source, queue_size=8)
    source.pump()
    got: list[bytes] = []
    for _ in range(20):
        got += [p.frame for p in driver.receive_all()]
        settle(transport)
    assert got == FRAMES


def test_a_source_in_a_loop() -> None:
    reading, writing = os.pipe()
    source = SourcePort((Packet(FRAMES[0]) for _ in range(200)), writing)
    taker = Taker(source, 100)
    until(lambda: source.blocked, source)
    assert source.watch() == ()
    taker.room = 1000
    source.resume()
    until(lambda: len(taker.frames) == 200, source)
    os.close(reading)
    os.close(writing)


def test_a_loopback_keeps_a_bounded_number() -> None:
    port = LoopbackPort()
    taker = Taker(port, 0)
    for _ in range(1000):
        port.send(Packet(FRAMES[0]))
    taker.room = 10_000
    port.resume()
    assert 0 < len(taker.packets) < 300


# Captures


def test_a_capture_holds_what_passed_in_either_direction(tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    wire = Wire(ALL_OFFLOADS)
    ticks = iter(range(1_700_000_000_000_000_000, 1 << 62, 1001))
    with path.open("wb") as file:
        port = CapturePort(wire, file, lambda: next(ticks))
        taker = Taker(port)
        packet = partial_packet(bytes(3000), Gso.TCPV4, 4, 1000)
        port.send(packet)
        assert wire.sent == [packet]
        assert wire.deliver(Packet(FRAMES[3]))
        assert taker.frames == [FRAMES[3]]
        taker.room = 0
        assert not wire.deliver(Packet(FRAMES[4]))
        taker.room = 1
        port.resume()
    data = path.read_bytes()
    frames, outbound, times, at = [], [], [], 0
    while at < len(data):
        kind, total = (int.from_bytes(data[n : n + 4], "little") for n in (at, at + 4))
        assert total % 4 == 0
        assert int.from_bytes(data[at + total - 4 : at + total], "little") == total
        if kind == 6:
            length = int.from_bytes(data[at + 20 : at + 24], "little")
            frames.append(data[at + 28 : at + 28 + length])
            times.append(
                int.from_bytes(data[at + 12 : at + 16], "little") << 32
                | int.from_bytes(data[at + 16 : at + 20], "little")
            )
            outbound.append(data[at + total - 12] == 2)
        at += total
    assert frames == [p.frame for p in fit(packet, 0)] + [FRAMES[3], FRAMES[4]]
    assert outbound == [True] * 3 + [False] * 2
    assert len(set(times)) == 3
    assert all(1_700_000_000 <= t // 10**9 <= 1_700_000_001 for t in times)


@pytest.mark.peer
def test_tshark_reads_captures(tmp_path: Path) -> None:
    from tests.peers.require import require

    [tshark] = require("tshark")
    path = tmp_path / "net.pcapng"
    with path.open("wb") as file:
        port = CapturePort(SinkPort(), file, lambda: 1_700_000_000_123_456_789)
        for gso, version in (
            (Gso.TCPV4, 4),
            (Gso.TCPV6, 6),
            (Gso.UDP_L4, 4),
            (Gso.UDP_L4, 6),
            (Gso.UDP, 4),
            (Gso.UDP, 6),
        ):
            for vlan in (None, 5):
                port.send(partial_packet(bytes(3000), gso, version, 1000, vlan))
        port.send(partial_packet(b"odd", Gso.NONE, 4))
    options = [x for kind in ("ip", "tcp", "udp") for x in ("-o", f"{kind}.check_checksum:TRUE")]
    fields = ["frame.time_epoch", *[f"{kind}.checksum.status" for kind in ("ip", "tcp", "udp")]]

    command = [tshark, "-r", str(path), *options, "-T", "fields", *[x for f in fields for x in ("-e", f)]]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 2 * (4 * 3 + 2 * 4) + 1
    verdicts = [line.split("\t") for line in lines]
    assert {v[0] for v in verdicts} == {"1700000000.123456789"}
    assert {v[1] for v in verdicts} <= {"", "1"}
    assert {v[2] for v in verdicts} == {"", "1"}
    assert {v[3] for v in verdicts} == {"", "1"}


# The switch


def station(number: int) -> bytes:
    return b"\2\0\0\0" + number.to_bytes(2, "big")


def test_a_switch_learns() -> None:
    switch = Switch()
    outside = Wire()
    ports = [switch.port() for _ in range(3)]
    takers = [Taker(port) for port in ports]
    switch.plug(outside)

    def arrivals() -> list[int]:
        for port in ports:
            port.drain()
        found = [len(taker.packets) for taker in takers] + [len(outside.sent)]
        for taker in takers:
            taker.packets.clear()
        outside.sent.clear()
        return found

    def frame(to: bytes, sender: bytes) -> Packet:
        return Packet(to + sender + FRAMES[5][12:])

    ports[0].send(frame(station(1), station(0)))
    assert arrivals() == [0, 1, 1, 1]
    ports[1].send(frame(station(0), station(1)))
    assert arrivals() == [1, 0, 0, 0]
    outside.deliver(frame(station(0), station(9)))
    assert arrivals() == [1, 0, 0, 0]
    ports[2].send(frame(BROADCAST, station(2)))
    assert arrivals() == [1, 1, 0, 1]
    ports[2].send(frame(station(2), station(2)))
    assert arrivals() == [0, 0, 0, 0]
    # A station that moves is found at its new place, one that is unplugged everywhere.
    outside.deliver(frame(BROADCAST, station(1)))
    arrivals()
    ports[0].send(frame(station(1), station(0)))
    assert arrivals() == [0, 0, 0, 1]
    switch.remove(outside)
    ports[0].send(frame(station(1), station(0)))
    assert arrivals() == [0, 1, 1, 0]
    # A sender that cannot be one is not learnt.
    ports[0].send(frame(station(7), BROADCAST))
    assert arrivals() == [0, 1, 1, 0]
    for n in range(MOST_ADDRESSES + 10):
        ports[1].send(frame(station(2), station(n)))
    assert len(switch._table) == MOST_ADDRESSES
    for port in ports:
        port.close()
    assert not switch._links


def test_a_switch_finishes_packets_for_ports_that_cannot() -> None:
    switch, outside = Switch(), Wire()
    port = switch.port()
    switch.plug(outside)
    packet = partial_packet(bytes(3000), Gso.TCPV4, 4, 1000)
    port.send(packet)
    assert outside.sent == list(fit(packet, 0))
    port.send(packet._replace(csum_start=3))
    assert len(outside.sent) == 3
    port.close()


def test_a_switch_port_holds_a_bounded_number() -> None:
    switch = Switch()
    sender, receiver = switch.port(), switch.port()
    taker = Taker(receiver, 0)
    for _ in range(MOST_WAITING + 50):
        sender.send(Packet(FRAMES[1]))
    until(lambda: receiver.blocked, receiver)
    assert receiver.watch() == ()
    taker.room = 1 << 30
    receiver.resume()
    until(lambda: not turn(receiver), receiver)
    assert len(taker.packets) == MOST_WAITING
    sender.close()
    receiver.close()


def test_two_drivers_on_a_switch() -> None:
    switch = Switch()
    ports: list[SwitchPort] = [switch.port(), switch.port()]
    one, _, _ = pair(ports[0], mac=US, queue_size=64)
    two, _, _ = pair(ports[1], mac=THEM, features=bit(NetFeature.MAC), queue_size=64)
    packet = partial_packet(bytes(3000), Gso.TCPV4, 4, 1000)
    packet = packet._replace(frame=THEM + US + packet.frame[12:])
    one.send(packet)
    one.flush()
    turn(*ports)
    assert [p.frame for p in two.receive_all()] == [p.frame for p in fit(packet, 0)]
    assert one.receive_all() == []
    for port in ports:
        port.close()


# A tap interface


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/net/tun").exists(), reason="making a tap interface takes root")
def test_a_tap_interface() -> None:
    name = f"vpy{os.getpid() % 100000}"
    port = TapPort(name)
    taker = Taker(port)
    try:
        assert port.offloads & bit(NetFeature.GUEST_TSO4)
        assert name in os.listdir("/sys/class/net")
        # Down: what is sent is lost, which is no error.
        port.send(Packet(FRAMES[0]))
        with pytest.raises(OSError, match=name):
            TapPort(name)
        if shutil.which("ip"):
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
            port.send(Packet(FRAMES[0]))
            # A kernel that comes up says something: router solicitation, multicast reports.
            until(lambda: bool(taker.packets), port)
            assert all(len(frame) >= 14 for frame in taker.frames)
    finally:
        port.close()
    assert name not in os.listdir("/sys/class/net")


@pytest.mark.parametrize("name", ["", "x" * 16])
def test_a_name_that_no_interface_can_have(name: str) -> None:
    with pytest.raises(UsageError):
        TapPort(name)


# The program


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "loopback"],
        ["--socket-path", "x"],
        ["--socket-path", "x", "--port", "nothing"],
        ["--socket-path", "x", "--port", "tap"],
        ["--socket-path", "x", "--port", "sink:1"],
        ["--socket-path", "x", "--port", "dgram:1"],
        ["--socket-path", "x", "--port", "sink", "--mac", "01:00:00:00:00:00"],
        ["--socket-path", "x", "--port", "sink", "--mtu", "3"],
        ["--socket-path", "x", "--port", "sink", "--queue-pairs", "0"],
        ["--socket-path", "x", "--socket-path", "x", "--port", "switch"],
        ["--socket-path", "/nonexistent/x", "--port", "sink"],
        ["--socket-path", "x", "--port", "sink", "--pcap", "/nonexistent/y"],
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["serve", "net", *arguments])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    assert status == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="serving vhost-user needs Linux")
def test_the_program_serves_several_sockets_and_ends(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    command = [sys.executable, "-m", "virtio_py.cli.main", "serve", "net", "--port", "switch", "--queue-pairs", "2"]
    command += ["--port", f"stream:{tmp_path / 'out'}", "--pcap", str(tmp_path / "pcap")]
    for path in paths:
        command += ["--socket-path", str(path)]
    with serving(command, paths[-1]) as server:
        with connected(str(paths[0])) as one, connected(str(paths[2])) as two:
            assert one.ask(R.GET_QUEUE_NUM) == two.ask(R.GET_QUEUE_NUM) == 5
        with connected(str(paths[0])) as one:
            assert one.ask(R.GET_FEATURES) & bit(NetFeature.MQ)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.log", "pcap"]


@pytest.mark.skipif(sys.platform != "linux", reason="serving vhost-user needs Linux")
def test_servers_outlive_front_ends_that_break_the_protocol(tmp_path: Path) -> None:
    from virtio_py.transports.vhost_user_servers import Servers

    lines: list[str] = []
    paths = [str(tmp_path / name) for name in "ab"]
    with Servers({path: NetDevice(SinkPort()) for path in paths}, log=lines.append) as servers:
        thread = threading.Thread(target=servers.serve)
        thread.start()
        with connected(paths[1]) as good:
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(paths[0])
                bad.sendall(b"\xff" * 12)
                bad.settimeout(5)
                assert bad.recv(100) == b""
            assert good.ask(R.GET_QUEUE_NUM) == 3
            with connected(paths[0]) as again:
                assert again.ask(R.GET_QUEUE_NUM) == 3
        servers.stop()
        thread.join(10)
        assert not thread.is_alive()
    assert any("hung up" in line for line in lines)
    assert list(tmp_path.iterdir()) == []
