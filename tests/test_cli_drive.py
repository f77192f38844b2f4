"""`virtio-py drive` against `virtio-py serve`, both as programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

import pytest

from tests.net_frames import THEM, Wire, ethernet, ip, words_sum
from tests.test_cli_serve import program
from tests.vhost_user_socket import await_
from virtio_py.cli.drive_common import byte_count
from virtio_py.cli.drive_net_ping import ACTION
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.header import Packet
from virtio_py.transports.in_process import InProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="vhost-user needs Linux")

COMMAND = [sys.executable, "-m", "virtio_py.cli.main", "drive"]


def drive(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], input=data, capture_output=True, timeout=60, check=False)


def connectable(path: Path) -> bool:
    return drive("blk", "--socket-path", str(path), "flush").returncode == 0


def test_a_disk_is_written_and_read(tmp_path: Path) -> None:
    image, path = tmp_path / "disk.img", tmp_path / "sock"
    image.write_bytes(bytes(1 << 20))
    pattern = os.urandom(300_032)
    (tmp_path / "input").write_bytes(pattern)
    where = ["blk", "--socket-path", str(path)]
    with program("blk", "--socket-path", str(path), "--blk-file", str(image), "--packed"):
        await_(lambda: connectable(path), "the server", 60)
        assert drive(*where, "write", "--offset", "512", "--input", str(tmp_path / "input")).returncode == 0
        assert drive(*where, "--split", "read", "--offset", "0x201", "--length", "300000").stdout == pattern[1:300_001]
        assert drive(*where, "read", "--output", str(tmp_path / "output")).returncode == 0
        assert (tmp_path / "output").read_bytes() == image.read_bytes() == (bytes(512) + pattern).ljust(1 << 20, b"\0")
        packed, split = (json.loads(drive(*where, *o, "info", "--json").stdout) for o in ([], ["--split"]))
        assert packed["config"]["capacity"] == split["config"]["capacity"] == 2048
        assert set(packed["features"]) - set(split["features"]) == {"RING_PACKED"}
        assert b"capacity" in drive(*where, "info").stdout
        assert b" IOPS, " in drive(*where, "bench", "--seconds", "0.1", "--block-size", "1K").stdout
        deep = drive(*where, "bench", "--seconds", "0.1", "--queue-depth", "16", "--json")
        assert json.loads(deep.stdout)["requests"] >= 16
        for bad in (
            ["read", "--offset", "2M"],
            ["read", "--length", "-1"],
            ["write", "--offset", "7"],
            ["write", "--offset", "1M"],
            ["write", "--input", str(tmp_path / "nowhere")],
            ["bench", "--block-size", "100"],
            ["bench", "--queue-depth", "0"],
        ):
            done = drive(*where, *bad, data=bytes(512))
            assert done.returncode == 2, bad
            assert done.stderr.startswith(b"virtio-py: ")
            assert done.stderr.count(b"\n") == 1


def test_a_disk_of_odd_input_is_refused(tmp_path: Path) -> None:
    image, path = tmp_path / "disk.img", tmp_path / "sock"
    image.write_bytes(bytes(1 << 16))
    with program("blk", "--socket-path", str(path), "--blk-file", str(image)):
        await_(lambda: connectable(path), "the server", 60)
        done = drive("blk", "--socket-path", str(path), "write", data=b"odd")
    assert (done.returncode, done.stderr) == (2, b"virtio-py: the last 3 bytes of - are not a whole sector\n")


def test_randomness(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with program("entropy", "--socket-path", str(path)):
        await_(path.exists, "the socket", 60)
        where = ["entropy", "--socket-path", str(path), "read"]
        await_(lambda: drive(*where).returncode == 0, "the server", 60)
        first, second = (bytes.fromhex(drive(*where, "--length", "32").stdout.decode()) for _ in range(2))
    assert len(first) == len(second) == 32
    assert first != second


def test_nobody_listens(tmp_path: Path) -> None:
    done = drive("blk", "--socket-path", str(tmp_path / "nowhere"), "info")
    assert done.returncode == 2
    assert done.stderr == f"virtio-py: {tmp_path}/nowhere: No such file or directory\n".encode()


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("512", 512), ("0x10", 16), ("1K", 1024), ("2m", 2 << 20)])
def test_sizes(text: str, value: int) -> None:
    assert byte_count(text) == value


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "one"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        byte_count(text)


def answers(*arguments: str) -> bytes:
    done = drive(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_units_of_a_host(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    (tmp_path / "disk.img").write_bytes(b"block 0".ljust(1 << 16, b"."))
    where = ["scsi", "--socket-path", str(path)]
    with program("scsi", "--socket-path", str(path), "--lun", f"3:7={tmp_path / 'disk.img'}"):
        await_(lambda: drive(*where, "info").returncode == 0, "the server", 60)
        [unit] = json.loads(answers(*where, "list", "--json"))
        assert (unit["target"], unit["lun"], unit["type"]) == (3, 7, 0)
        assert answers(*where, "list").startswith(b"3:7 ")
        assert json.loads(answers(*where, "info", "--json"))["config"]["max_target"] == 255
        assert answers(*where, "execute", "3:7", "08 00 00 00 01 00", "--length", "512")[:8] == b"block 0."
        assert json.loads(answers(*where, "inquiry", "3:7", "--json"))["blocks"] == 128
        assert b"block_size" in answers(*where, "inquiry", "3:7")
        (tmp_path / "input").write_bytes(bytes(range(256)) * 100)
        answers(*where, "write", "3:7", "--offset", "1K", "--input", str(tmp_path / "input"))
        answers(*where, "read", "3:7", "--output", str(tmp_path / "output"))
        whole = b"block 0".ljust(1024, b".") + bytes(range(256)) * 100
        assert (tmp_path / "output").read_bytes() == (tmp_path / "disk.img").read_bytes()
        assert (tmp_path / "output").read_bytes() == whole.ljust(1 << 16, b".")
        assert answers(*where, "read", "3:7", "--offset", "512", "--length", "1K") == whole[512:1536]
        deep = json.loads(answers(*where, "bench", "3:7", "--seconds", "0.2", "--queue-depth", "8", "--json"))
        assert deep["requests"] >= 64
        unknown = drive(*where, "execute", "3:7", "ff0000000000")
        assert (unknown.returncode, unknown.stdout) == (1, b"")
        assert b"status 0x2, sense 70" in unknown.stderr
        for bad in (
            ["execute", "3", "00"],
            ["execute", "3:7", "0x"],
            ["execute", "3:7", "00", "--length", "1M"],
            ["inquiry", "3:8"],
            ["read", "3:7", "--offset", "64K", "--length", "512"],
            ["read", "3:7", "--length", "100"],
            ["bench", "3:7", "--queue-depth", "0"],
        ):
            assert drive(*where, *bad).returncode == 2, bad


def test_ports_of_a_console(tmp_path: Path) -> None:
    path, output = tmp_path / "sock", tmp_path / "output"
    where = ["console", "--socket-path", str(path)]
    with program("console", "--socket-path", str(path), "--port", f"agent=file:{output}"):
        await_(lambda: drive(*where, "list", "--seconds", "0").returncode == 0, "the server", 60)
        [port] = json.loads(answers(*where, "list", "--json"))
        assert (port["port"], port["name"], port["console"]) == (0, "agent", False)
        assert answers(*where, "list").startswith(b"0  agent")
        assert json.loads(answers(*where, "info", "--json"))["config"]["ports"] >= 1
        drive(*where, "write", "--port", "agent", data=bytes(100_000))
        drive(*where, "write", data=b"by number")
        assert output.read_bytes() == bytes(100_000) + b"by number"
        assert answers(*where, "read", "--port", "agent", "--seconds", "0.1") == b""
        assert drive(*where, "read", "--port", "nobody").returncode == 2


def test_a_network_interface(tmp_path: Path) -> None:
    """Two interfaces on a switch: what one command sends, the other receives."""
    paths = [tmp_path / "a", tmp_path / "b"]
    frame = b"\xff" * 6 + bytes.fromhex("525400000001 0800") + bytes(50)
    where, other = (["net", "--socket-path", str(path)] for path in paths)
    sockets = [word for path in paths for word in ("--socket-path", str(path))]
    with program("net", *sockets, "--port", "switch"):
        await_(lambda: drive(*where, "info").returncode == 0, "the server", 60)
        assert json.loads(answers(*where, "info", "--json"))["config"]["mac"].startswith("52:54:00")
        receiver = subprocess.Popen(
            [*COMMAND, *other, "receive", "--count", "2", "--seconds", "30", "--json"], stdout=subprocess.PIPE
        )
        while receiver.poll() is None:
            assert drive(*where, "send", data=frame.hex().encode() + b"\n").returncode == 0
        assert receiver.stdout is not None
        got = receiver.stdout.read().splitlines()
        receiver.stdout.close()
        assert [bytes.fromhex(json.loads(line)["frame"]) for line in got] == [frame] * 2
        assert receiver.returncode == 0
        assert drive(*where, "receive", "--seconds", "0.1").returncode == 1
        assert drive(*where, "send", data=b"no hex").returncode == 2
        counted = json.loads(answers(*where, "bench", "--seconds", "0.2", "--json"))
        assert counted["sent"] >= 64
        assert counted["packets_per_second"] > 0
        assert b" packets/s, " in answers(*where, "bench", "--seconds", "0.1", "--frame-size", "1K", "--batch", "4")
        for bad in (["bench", "--frame-size", "3"], ["bench", "--to", "nobody"], ["ping", "10.0.0.1", "--from", "me"]):
            assert drive(*where, *bad).returncode == 2, bad
        lonely = drive(*where, "ping", "10.0.0.1", "--from", "10.0.0.2", "--wait", "0.1")
        assert (lonely.returncode, lonely.stderr) == (2, b"virtio-py: nobody has 10.0.0.1\n")


class Host(Wire):
    """A host on a wire, by its text books: it says who it is, and returns echoes, all but number 1."""

    mac, address = THEM, bytes([10, 0, 0, 9])

    def send(self, packet: Packet) -> None:
        super().send(packet)
        frame = packet.frame
        if frame[12:14] == b"\x08\x06" and frame[38:42] == self.address:
            arp = frame[14:20] + b"\0\2" + self.mac + self.address + frame[22:32]
            self.deliver(Packet(frame[6:12] + self.mac + frame[12:14] + arp))
        elif frame[23:24] == b"\1" and frame[34] == 8:
            assert checksums_of(frame)
            reply = bytearray(frame[34:])
            reply[0], reply[2:4] = 0, bytes(2)
            reply[2:4] = (~words_sum(bytes(reply)) & 0xFFFF).to_bytes(2, "big")
            if reply[7] != 1:
                self.deliver(Packet(ethernet(ip(1, b"noise"), frame[6:12])))
                self.deliver(Packet(ethernet(ip(1, bytes(reply), (self.address, frame[26:30])), frame[6:12])))


def checksums_of(frame: bytes) -> bool:
    return words_sum(frame[14:34]) == words_sum(frame[34:]) == 0xFFFF


def test_a_host_is_asked_for_echoes(capsys: pytest.CaptureFixture[str]) -> None:
    driver = NetDriver(InProcess(NetDevice(Host()))).start()
    parser = ArgumentParser()
    ACTION.add_options(parser)
    asked = ["10.0.0.9", "--from", "10.0.0.1", "--wait", "0.1"]
    assert ACTION.run(driver, parser.parse_args([*asked, "--json"])) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["mac"] == THEM.hex(":")
    assert [time is not None for time in found["milliseconds"]] == [True, False, True]
    assert ACTION.run(driver, parser.parse_args([*asked, "--count", "1"])) == 0
    assert capsys.readouterr().out.startswith("10.0.0.9 (02:00:00:00:00:01) 0: ")
