"""`virtio-py trace` as a program, between `serve` and `drive`: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli_serve import program
from tests.vhost_user_socket import await_
from virtio_py.transports.vhost_user_rules import RULES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="vhost-user needs Linux")

COMMAND = [sys.executable, "-m", "virtio_py.cli.main"]


def trace(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, "trace", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("packed", [[], ["--packed"]], ids=["split", "packed"])
def test_a_session_is_told_in_print_and_in_files(tmp_path: Path, packed: list[str]) -> None:
    front, back, told, capture = (tmp_path / name for name in ("front", "back", "told.json", "told.pcapng"))
    with program("entropy", "--socket-path", str(back), *packed):
        await_(back.exists, "the server", 60)
        files = ("--json", str(told), "--pcapng", str(capture))
        process = trace("--listen", str(front), "--connect", str(back), "--rings", "--once", *files)
        await_(front.exists, "the proxy", 60)
        assert json.loads(told.read_text()) == {"events": []}
        drive = [*COMMAND, "drive", "entropy", "--socket-path", str(front), "read", "--length", "16"]
        assert len(subprocess.run(drive, capture_output=True, timeout=60, check=True).stdout.split()) >= 1
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "→ SET_FEATURES" in printed
    assert "No rule was broken." in printed
    events = json.loads(told.read_text())["events"]
    assert {event["type"] for event in events} == {"message", "ring"}
    replies = [event for event in events if event["type"] == "message" and event["kind"] == "reply"]
    assert replies
    assert all(reply["seconds"] > 0 and not reply["failed"] for reply in replies)
    kicks = [event for event in events if event["type"] == "ring" and event["event"] == "kick"]
    assert len(kicks) == 1
    assert (kicks[0]["available"] is None) == bool(packed)
    assert capture.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"


def test_what_is_no_message_is_passed_on_and_named(tmp_path: Path) -> None:
    front, back = tmp_path / "front", tmp_path / "back"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(back))
        listener.listen()
        process = trace("--listen", str(front), "--connect", str(back), "--quiet", "--once")
        await_(front.exists, "the proxy", 60)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(front))
            behind = listener.accept()[0]
            client.sendall(b"\xff" * 40)
            got = b""
            while len(got) < 40:
                got += behind.recv(64)
            assert got == b"\xff" * 40
            behind.close()
            printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "breaks 'framing'" in printed
    assert RULES["framing"] in " ".join(printed.split())


def test_it_ends_when_asked_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    process = trace("--listen", str(tmp_path / "front"), "--connect", str(tmp_path / "nowhere"))
    await_((tmp_path / "front").exists, "the proxy", 60)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    for bad in (["--listen", str(tmp_path / "no" / "folder"), "--connect", "x"], ["--listen", "x"]):
        process = trace(*bad)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 2
        assert len(errors.splitlines()) == 1
