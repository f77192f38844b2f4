"""Our disk driver in front of qemu-storage-daemon: what it writes is what QEMU's tools find in the image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.peers.qsd import storage_daemon
from tests.peers.require import require
from virtio_py.devices.blk.driver import BlkDriver, BlkUnsupported
from virtio_py.devices.blk.layout import BlkFeature
from virtio_py.errors import Disconnected, UsageError
from virtio_py.rings.engine import engine_named
from virtio_py.spec import DeviceId, Feature
from virtio_py.transports.vhost_user_transport import VhostUserTransport

pytestmark = pytest.mark.peer

SECTOR = 512
SIZE = 8 << 20
SECTORS = SIZE // SECTOR


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@contextmanager
def driving(socket: Path, engine: str = "reference", **options: float) -> Iterator[BlkDriver]:
    transport = VhostUserTransport(str(socket), DeviceId.BLOCK, **options)  # type: ignore[arg-type]  # seconds
    with closing(transport):
        yield BlkDriver(transport, engine=engine_named(engine)).start()


def same(image: Path, other: Path) -> bool:
    """Whether QEMU finds the same contents."""
    [qemu_img] = require("qemu-img")
    done = subprocess.run([qemu_img, "compare", "-f", "raw", "-F", "raw", image, other], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_a_disk_written_by_our_driver_is_the_one_that_was_meant(tmp_path: Path, image: Path, engine: str) -> None:
    pattern = Random(4).randbytes(SIZE)
    meant = tmp_path / "meant.img"
    meant.write_bytes(pattern)
    with storage_daemon(tmp_path / "sock", image) as server, driving(server.socket, engine) as driver:
        pieces = [(at, min(at + 777, SECTORS)) for at in range(0, SECTORS, 777)]
        Random(5).shuffle(pieces)
        for start, end in pieces:
            driver.write(start, pattern[start * SECTOR : end * SECTOR])
        driver.flush()
        assert driver.read(1234, 999) == pattern[1234 * SECTOR : 2233 * SECTOR]
        with pytest.raises(UsageError, match="not on a disk"):
            driver.read(SECTORS, 1)
    assert same(image, meant)
    meant.write_bytes(pattern[:-1] + bytes([pattern[-1] ^ 1]))
    assert not same(image, meant)


def test_the_configuration(tmp_path: Path, image: Path) -> None:
    with (
        storage_daemon(tmp_path / "sock", image, queues=2, block_size=4096) as server,
        driving(server.socket) as driver,
    ):
        info = driver.info
        assert (info.capacity, info.blk_size, info.num_queues, len(driver.queues)) == (SECTORS, 4096, 2, 2)
        assert not info.read_only
        assert info.seg_max == 126
        assert info.discard is not None
        assert info.discard.max_seg == 1
        assert driver.get_id() == b"vhost_user_blk"
        assert driver.has(Feature.EVENT_IDX)
        assert not driver.has(Feature.RING_PACKED)
        driver.write(8, b"q" * 4096, queue=1)
        assert driver.read(8, 8, queue=0) == b"q" * 4096


def test_a_disk_that_may_only_be_read(tmp_path: Path, image: Path) -> None:
    image.write_bytes(b"r" * SIZE)
    with storage_daemon(tmp_path / "sock", image, writable=False) as server, driving(server.socket) as driver:
        assert driver.offered >> BlkFeature.RO & 1
        assert driver.read(0, 1) == b"r" * SECTOR
        with pytest.raises(UsageError, match="read-only"):
            driver.write(0, bytes(SECTOR))


def test_discard_gives_storage_back_and_write_zeroes_clears(tmp_path: Path, image: Path) -> None:
    image.write_bytes(os.urandom(SIZE))
    before = image.stat().st_blocks
    with storage_daemon(tmp_path / "sock", image) as server, driving(server.socket) as driver:
        driver.discard([(0, SECTORS // 2)])
        driver.write_zeroes([(SECTORS // 2, 100), (SECTORS - 8, 8)])
        driver.flush()
        assert not any(driver.read(SECTORS // 2, 100) + driver.read(SECTORS - 8, 8))
        assert any(driver.read(SECTORS // 2 + 100, 1))
        with pytest.raises(BlkUnsupported):
            driver.secure_erase([(0, 1)])
    assert image.stat().st_blocks <= before * 6 // 10


def test_a_driver_after_another_and_one_that_starts_again(tmp_path: Path, image: Path) -> None:
    with storage_daemon(tmp_path / "sock", image) as server:
        open_before = None
        for n in range(3):
            with driving(server.socket) as driver:
                driver.write(n, bytes([n]) * SECTOR)
                driver.reset()
                driver.start()
                assert driver.read(0, n + 1) == b"".join(bytes([i]) * SECTOR for i in range(n + 1))
            open_now = server.holdings()
            assert open_before in (None, open_now)
            open_before = open_now


def test_memory_is_added_and_taken_back_piece_by_piece(tmp_path: Path, image: Path) -> None:
    """QEMU's CONFIGURE_MEM_SLOTS. (Its version 7.2 does not offer INFLIGHT_SHMFD.)"""
    image.write_bytes(b"qemu" * (SIZE // 4))
    with storage_daemon(tmp_path / "sock", image) as server, driving(server.socket) as driver:
        transport, queue = driver.transport, driver.queues[0]
        assert isinstance(transport, VhostUserTransport)
        for _ in range(3):
            arena = transport.add_memory(1 << 16)
            header, status, room = transport.arena.allocate(16), transport.arena.allocate(1), arena.allocate(SECTOR)
            queue.add([header.extent], [room.extent, status.extent])
            driver.kick(queue)
            assert driver.wait_used(queue) == [(None, SECTOR + 1)]
            assert bytes(room.view) == b"qemu" * (SECTOR // 4)
            del room
            transport.remove_memory(arena)
        assert driver.read(0, 1) == b"qemu" * (SECTOR // 4)


def test_a_daemon_that_is_killed_and_comes_back(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "sock"
    with storage_daemon(path, image) as first:
        transport = VhostUserTransport(str(path), DeviceId.BLOCK)
        driver = BlkDriver(transport).start()
        driver.write(0, b"1" * SECTOR)
        first.terminate()
        with pytest.raises(Disconnected):
            driver.write(1, b"2" * SECTOR)
    with closing(transport), storage_daemon(path, image):
        transport.reconnect()
        while driver.queues[0].outstanding:
            driver.flush()  # takes the answer that nobody waits for any more
        driver.write(2, b"3" * SECTOR)
        assert driver.read(0, 3) == b"1" * SECTOR + b"2" * SECTOR + b"3" * SECTOR
        transport.close()


def test_the_command(tmp_path: Path, image: Path) -> None:
    pattern = os.urandom(3 * SECTOR)

    def drive(*arguments: str, data: bytes = b"") -> bytes:
        command = [sys.executable, "-m", "virtio_py.cli.main", "drive", "blk", "--socket-path", str(tmp_path / "sock")]
        return subprocess.run([*command, *arguments], input=data, stdout=subprocess.PIPE, check=True, timeout=60).stdout

    with storage_daemon(tmp_path / "sock", image):
        drive("write", "--offset", "1M", data=pattern)
        assert drive("read", "--offset", "0x100001", "--length", "1K") == pattern[1:1025]
        drive("flush")
        info = json.loads(drive("info", "--json"))
        assert info["config"]["id"] == "vhost_user_blk"
        assert "DISCARD" in info["features"]
        assert json.loads(drive("bench", "--seconds", "0.2", "--json"))["requests"] > 10
    assert image.read_bytes()[1 << 20 :][: len(pattern)] == pattern
