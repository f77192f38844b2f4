"""`virtio-py serve` as a program: options, capabilities, sockets, signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.vhost_user_frontend import R
from tests.vhost_user_socket import Client, await_, connected, eventfds, readable
from virtio_py.cli.main import main
from virtio_py.cli.serve import BACKENDS
from virtio_py.devices.blk.layout import BlkFeature, virtio_blk_config
from virtio_py.transports import vhost_user_messages as m

COMMAND = [sys.executable, "-m", "virtio_py.cli.main", "serve"]
SECTOR = 512

linux = pytest.mark.skipif(sys.platform != "linux", reason="serving vhost-user needs Linux")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTOR) + b"second sector".ljust(SECTOR, b"."))
    return path


@contextlib.contextmanager
def program(*arguments: str, fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """The program, which must end by SIGTERM with status 0."""
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, pass_fds=fds) as process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
            assert process.returncode == 0, errors
        finally:
            process.kill()


def test_capabilities_are_printed_whatever_else_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "blk", "--print-capabilities", "--socket-path", "/nowhere/at/all"]) == 0
    assert json.loads(capsys.readouterr().out) == {"type": "block", "features": ["read-only", "blk-file"]}
    assert main(["serve", "entropy", "--print-capabilities"]) == 0
    assert json.loads(capsys.readouterr().out) == {"type": "rng", "features": []}


def test_management_layers_find_descriptions_of_programs_that_exist() -> None:
    scripts = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    types = {str(kind.capabilities["type"]) for kind in BACKENDS.values()}
    described = [json.loads(f.read_text()) for f in (files("virtio_py") / "share" / "vhost-user").iterdir()]
    assert {d["type"] for d in described} == types
    for description in described:
        assert set(description) == {"description", "type", "binary", "tags"}
        assert Path(description["binary"]).name in scripts


COMPLAINTS = {
    "no socket": ["blk", "--blk-file", "IMAGE"],
    "two sockets": ["blk", "--blk-file", "IMAGE", "--fd", "3", "--socket-path", "x"],
    "no disk": ["blk", "--socket-path", "x"],
    "no such disk": ["blk", "--socket-path", "x", "--blk-file", "IMAGE.not"],
    "long serial": ["blk", "--socket-path", "x", "--blk-file", "IMAGE", "--serial", "x" * 21],
    "zones of no size": ["blk", "--socket-path", "x", "--blk-file", "IMAGE", "--zoned", "host-managed"],
    "size of no zones": ["blk", "--socket-path", "x", "--blk-file", "IMAGE", "--zone-size", "1"],
    "zones that cannot be": [
        "blk",
        "--socket-path",
        "x",
        "--blk-file",
        "IMAGE",
        *["--zoned", "host-aware", "--zone-size", "0"],
    ],
    "unknown zones": ["blk", "--socket-path", "x", "--blk-file", "IMAGE", "--zoned", "drive-managed"],
    "no such folder": ["blk", "--socket-path", "/nowhere/at/all", "--blk-file", "IMAGE"],
    "not a socket": ["blk", "--fd", "0", "--blk-file", "IMAGE"],
    "not open": ["entropy", "--fd", "999"],
    "no device": [],
    "unknown device": ["toaster"],
}


@linux
@pytest.mark.parametrize("name", COMPLAINTS)
def test_complaints_are_one_line_and_status_2(name: str, image: Path) -> None:
    arguments = [a.replace("IMAGE", str(image)) for a in COMPLAINTS[name]]
    done = subprocess.run(
        [*COMMAND, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("virtio-py: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@linux
@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_randomness_is_served_to_one_client_after_another(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "sock"
    with program("entropy", "--socket-path", str(path), "--engine", engine):
        await_(path.exists, "the socket", 60)
        for _ in range(2):
            with connected(str(path)) as client, eventfds(2) as (kick, call):
                queue = client.start(kick, call)
                room = client.arena.allocate(64)
                queue.add([], [room.extent])
                os.eventfd_write(kick, 1)
                assert readable(call)
                assert [length for _, length in queue.take_used()] == [64]
                assert bytes(room.view) != bytes(64)
                del room, queue
    assert not path.exists()


def read_sector(client: Client, sector: int) -> bytes:
    """One virtio_blk_req of type IN."""
    with eventfds(2) as (kick, call):
        queue = client.start(kick, call)
        header, data, status = (client.arena.allocate(size) for size in (16, SECTOR, 1))
        header.view[8:] = sector.to_bytes(8, "little")
        status.view[0] = 0xFF
        queue.add([header.extent], [data.extent, status.extent])
        os.eventfd_write(kick, 1)
        assert readable(call)
        assert [length for _, length in queue.take_used()] == [SECTOR + 1]
        assert status.view[0] == 0
        return bytes(data.view)


@linux
def test_a_disk_behind_an_inherited_listener(tmp_path: Path, image: Path) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fd = listener.fileno()
        with (
            program("blk", "--fd", str(fd), "--blk-file", str(image), "--num-queues", "3", fds=(fd,)),
            connected(path) as client,
        ):
            assert client.ask(R.GET_QUEUE_NUM) == 3
            client.send(R.GET_CONFIG, m.VhostUserConfig(8).encode(size=8))
            assert m.VhostUserConfig(8).decode(client.reply().payload).region == (2).to_bytes(8, "little")
            assert read_sector(client, 1).startswith(b"second sector..")


@linux
@pytest.mark.parametrize(("model", "number"), [("host-managed", 1), ("host-aware", 2)])
def test_a_disk_with_zones(tmp_path: Path, image: Path, model: str, number: int) -> None:
    path = tmp_path / "sock"
    limits = ("--max-open", "3", "--max-active", "4", "--max-append", "1")
    disk = ("--blk-file", str(image), "--zoned", model, "--zone-size", "1", *limits)
    with program("blk", "--socket-path", str(path), *disk):
        await_(path.exists, "the socket")
        with connected(str(path)) as client:
            assert client.ask(R.GET_FEATURES) >> BlkFeature.ZONED & 1
            size = virtio_blk_config.size
            client.send(R.GET_CONFIG, m.VhostUserConfig(size).encode(size=size))
            config = virtio_blk_config.decode(m.VhostUserConfig(size).decode(client.reply().payload).region)
            assert tuple(config.zoned)[:6] == (1, 3, 4, 1, SECTOR, number)


@linux
def test_a_connection_that_was_inherited_ends_the_program_when_it_ends(image: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        command = [*COMMAND, "blk", "--fd", str(fd), "--blk-file", str(image), "--read-only"]
        process = subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.DEVNULL)
    client = Client(ours)
    assert client.ask(R.GET_QUEUE_NUM) == 1
    client.close()
    assert process.wait(20) == 0
