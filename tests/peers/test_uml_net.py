"""`virtio-py serve net` behind the network driver of a real Linux kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.net import namespace, serve_net
from tests.peers.require import require
from tests.peers.uml import Result, UserModeLinux, VhostUser
from virtio_py.spec import DeviceId

pytestmark = [pytest.mark.peer, pytest.mark.long]

VARIANTS = {
    "plain": ("--no-offloads",),
    "offloads": (),
    "packed": ("--packed",),
    "compiled": ("--engine", "compiled"),
}


def check(result: Result) -> None:
    assert result.status == 0, result.output
    assert result.complaints() == []


@pytest.mark.clause("net.device.automatic-receive-steering-prose.1")
@pytest.mark.clause("net.device.mac-filtering.3")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_guest_on_a_tap_interface(uml: UserModeLinux, tap: str, tmp_path: Path, variant: str) -> None:
    require("ip", "ping", "ethtool", "linux.uml")
    size = 200 if variant == "offloads" else 20
    options = ["--port", f"tap:{tap}", "--queue-pairs", "2", "--mtu", "9000", *VARIANTS[variant]]
    with serve_net(tmp_path / "net.sock", *options) as server, namespace() as host:
        host.adopt(tap, mtu=9000)
        with host.transfers([(41700, size), (41701, 8)]) as listeners:
            result = uml.run(
                "net_tap.sh",
                sys.executable,
                str(size),
                "2",
                devices=[VhostUser(server.socket, DeviceId.NET)],
                memory="256M",
                seconds=240,
            )
            check(result)
            assert [listener.wait(10) for listener in listeners] == [0, 0]
    assert result.output.count(" 0% packet loss") == 5
    assert "combined 2" in result.output.splitlines()
    assert "reset" not in server.log.read_text()


@pytest.mark.clause("net.device.vlan-filtering.2")
@pytest.mark.parametrize("variant", ["plain", "offloads", "packed"])
def test_two_guests_on_a_switch(uml: UserModeLinux, tmp_path: Path, variant: str) -> None:
    require("ip", "ping", "linux.uml")
    size = 200 if variant == "offloads" else 10
    first, second, capture = tmp_path / "a.sock", tmp_path / "b.sock", tmp_path / "net.pcapng"
    options = ["--socket-path", str(second), "--port", "switch", *VARIANTS[variant]]
    if variant == "packed":
        options += ["--pcap", str(capture)]
    with serve_net(first, *options) as server:
        devices = [[VhostUser(path, DeviceId.NET)] for path in (first, second)]
        common = [sys.executable, str(size)]
        with uml.boot("net_switch.sh", *common, "listen", "1", "2", devices=devices[0], seconds=240) as listener:
            listener.wait_for("ready")
            check(uml.run("net_switch.sh", *common, "connect", "2", "1", devices=devices[1], seconds=240))
            check(listener.result())
        assert "reset" not in server.log.read_text()
    if capture.exists():
        check_capture(capture)


def check_capture(path: Path) -> None:
    """What passed, in tshark's opinion: no frame is malformed, and no checksum is wrong."""
    [tshark] = require("tshark")
    command = [tshark, "-r", str(path), "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
    command += ["-o", "udp.check_checksum:TRUE"]
    bad = "ip.checksum.status == Bad || tcp.checksum.status == Bad || udp.checksum.status == Bad || _ws.malformed"
    found = subprocess.run([*command, "-Y", bad], check=True, capture_output=True, text=True).stdout
    assert found == ""
    good = "tcp.checksum.status == Good && tcp.len > 1000"
    assert subprocess.run([*command, "-Y", good], check=True, capture_output=True, text=True).stdout.count("\n") > 1000
