"""`virtio-py serve blk` behind the block driver of a real Linux kernel."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.peers.blk import check_tree, make_file_system, modes, run_ext4
from tests.peers.process import Server, serving
from tests.peers.uml import Result, UserModeLinux, VhostUser
from virtio_py.spec import DeviceId

pytestmark = pytest.mark.peer

Serve = Callable[..., AbstractContextManager[Server]]


def serve_blk(socket: Path, engine: str, image: Path, *options: str) -> AbstractContextManager[Server]:
    """Our block device with `image` behind it, as a process of its own."""
    command = [sys.executable, "-m", "virtio_py.cli.main", "serve", "blk", "--socket-path", str(socket)]
    # The first run of the compiled engine compiles, hence the long wait for it to listen.
    arguments = ["--blk-file", str(image), "--num-queues", "2", "--engine", engine, *options]
    return serving(command + arguments, socket, seconds=120)


@pytest.fixture(params=["reference", "compiled"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Serve:
    """serve(image, *options): our block device, on each engine in turn."""
    return partial(serve_blk, tmp_path / "disk.sock", request.param)


def run(uml: UserModeLinux, server: Server, script: str, *args: str) -> Result:
    """The result of a guest script that must succeed, and leave nothing for the kernel to complain of."""
    result = uml.run(script, *args, devices=[_disk(server)])
    assert result.status == 0, result.output
    assert result.complaints() == []
    return result


def _disk(server: Server) -> VhostUser:
    return VhostUser(server.socket, DeviceId.BLOCK)


@pytest.mark.long
@pytest.mark.clause("blk.device.device-op.9")
def test_a_file_system_survives(uml: UserModeLinux, serve: Serve, disk_image: Path, tmp_path: Path) -> None:
    with serve(disk_image) as server:
        run_ext4(uml, server.socket, disk_image)
    check_tree(disk_image, tmp_path)


def test_a_read_only_disk_is_read_and_not_written(
    uml: UserModeLinux, serve: Serve, disk_image: Path, tmp_path: Path
) -> None:
    make_file_system(disk_image, tmp_path, {"file": "hello"})
    before = hashlib.sha256(disk_image.read_bytes()).hexdigest()
    with serve(disk_image, "--read-only") as server:
        result = run(uml, server, "blk_readonly.sh")
    assert {"ro: 1", f"disk: {before}", "file: hello"} <= set(result.output.splitlines())
    assert hashlib.sha256(disk_image.read_bytes()).hexdigest() == before


def test_a_driver_that_is_loaded_again_finds_the_same_disk(uml: UserModeLinux, serve: Serve, disk_image: Path) -> None:
    with serve(disk_image) as server:
        first, second, third = modes(run(uml, server, "blk_modes.sh", "3").output)
    assert first["size"] == str(disk_image.stat().st_size // 512)
    assert (first["ro"], first["set_through"], first["set_back"]) == ("0", "write through", "write back")
    assert min(int(first["discard_max_bytes"]), int(first["write_zeroes_max_bytes"])) > 0
    assert "serial" in first
    # What the cache's mode was at first is the device's choice; from then on it is the driver's.
    assert first | {"write_cache": "write back", "cache_type": "write back"} == second == third


def test_a_client_that_vanishes_leaves_nothing_behind(uml: UserModeLinux, serve: Serve, disk_image: Path) -> None:
    with serve(disk_image) as server:
        run(uml, server, "blk_modes.sh", "1")
        after_the_first = server.holdings()
        for _ in range(2):
            with uml.boot("blk_busy.sh", devices=[_disk(server)]) as guest:
                guest.wait_for("busy")
                guest.kill()
            assert server.holdings() == after_the_first
        run(uml, server, "blk_modes.sh", "1")
        assert server.holdings() == after_the_first
        assert server.terminate() == 0


def test_sigterm_ends_the_server_while_a_guest_uses_it(uml: UserModeLinux, serve: Serve, disk_image: Path) -> None:
    with serve(disk_image) as server, uml.boot("blk_busy.sh", devices=[_disk(server)]) as guest:
        guest.wait_for("busy")
        assert server.terminate() == 0
    assert not server.socket.exists()
