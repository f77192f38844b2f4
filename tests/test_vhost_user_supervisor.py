"""Workers that die and are replaced: memory that is taken away under load, and whoever else is served meanwhile."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_cli_serve import COMMAND, program
from tests.test_vhost_user_transport import connected as driving
from tests.vhost_user_frontend import SIZE, R, memory_table, region
from tests.vhost_user_socket import MEMORY, Client, await_, connected, eventfds
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.layout import BlkRequest, virtio_blk_req
from virtio_py.devices.entropy import EntropyDriver
from virtio_py.errors import UsageError
from virtio_py.spec import DeviceId
from virtio_py.transports.vhost_user_supervisor import Supervisor, _delay

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="serving vhost-user needs Linux")
SECTOR = 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def serve(tmp_path: Path, image: Path, *more: str) -> list[str]:
    return ["blk", "--socket-path", str(tmp_path / "sock"), "--blk-file", str(image), *more]


def await_listener(path: str) -> None:
    """Between bind and listen the path is there already, and a connection is refused."""
    with socket.socket(socket.AF_UNIX) as probe:
        await_(lambda: probe.connect_ex(path) == 0, f"somebody listens at {path}", 60)


def children(process: subprocess.Popen[str]) -> set[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return {int(number) for number in found.split()}


@contextlib.contextmanager
def program_with_errors(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The program, and the lines that it has written to its standard error so far."""
    lines: list[str] = []
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        reader = threading.Thread(target=lambda stream: lines.extend(iter(stream.readline, "")), args=[process.stderr])
        reader.start()
        try:
            yield process, lines
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, lines
        finally:
            process.kill()
            reader.join(10)


def shrink_under(client: Client, kick: int, call: int) -> None:
    """Has the device read and write for a while, and takes its memory away meanwhile."""
    queue = client.start(kick, call)
    header = client.arena.allocate(virtio_blk_req.size)
    header.view[:] = virtio_blk_req.encode(type=BlkRequest.IN, sector=0)
    data, status = client.arena.allocate(64 * SECTOR), client.arena.allocate(1)
    for _ in range(50):
        queue.add([header.extent], [data.extent, status.extent])
        os.eventfd_write(kick, 1)
        await_(lambda: bool(queue.take_used()), "a request is used")
    queue.add([header.extent], [data.extent, status.extent])
    # Not sealed, and ours: nobody can keep us from it.
    os.ftruncate(client.memory_fd, 0)
    os.eventfd_write(kick, 1)
    assert client.connection.recv(1) == b"", "who served us is gone"


def verify_until(path: str, done: threading.Event, counts: list[int]) -> None:
    """An honest front-end: writes and reads back, all the time, over one connection."""
    rng = random.Random(1)
    with driving(path) as transport:
        driver = BlkDriver(transport).start()
        while not done.is_set():
            data = rng.randbytes(8 * SECTOR)
            sector = rng.randrange(1000)
            driver.write(sector, data)
            assert driver.read(sector, 8) == data
            counts[0] += 1


def test_memory_that_is_taken_away_under_load_costs_one_front_end_only_itself(tmp_path: Path, image: Path) -> None:
    path = str(tmp_path / "sock")
    done, counts = threading.Event(), [0]
    with program_with_errors(*serve(tmp_path, image, "--workers", "2")) as (process, lines):
        await_listener(path)
        honest = threading.Thread(target=verify_until, args=[path, done, counts])
        honest.start()
        try:
            await_(lambda: counts[0] > 10, "the honest one is served", 60)
            workers = children(process)
            assert len(workers) == 2
            for attempt in range(3):
                before = counts[0]
                with connected(path) as client, eventfds(2) as (kick, call):
                    shrink_under(client, kick, call)
                await_(lambda: sum("SIGBUS" in line for line in lines) == attempt + 1, f"SIGBUS in {lines}")  # noqa: B023
                await_(lambda: counts[0] > before + 10, "the honest one is served on")  # noqa: B023
            await_(lambda: len(children(process)) == 2, "those that died are replaced")
            assert len(workers & children(process)) == 1, "and the one that serves the honest one is not"
            with driving(path) as transport:
                assert len(BlkDriver(transport).start().read(0, 1)) == SECTOR
        finally:
            done.set()
            honest.join(20)
        assert not honest.is_alive()
    assert not Path(path).exists()


def test_memory_that_takes_a_seal_cannot_be_taken_away(tmp_path: Path, image: Path) -> None:
    with program(*serve(tmp_path, image)), connected(str(tmp_path / "sock")) as client, eventfds(2) as (kick, call):
        os.close(client.memory_fd)
        client.memory_fd = os.memfd_create(MEMORY, os.MFD_ALLOW_SEALING)
        os.ftruncate(client.memory_fd, SIZE)
        client.memory = mmap.mmap(client.memory_fd, SIZE)
        client.start(kick, call)
        with pytest.raises(PermissionError):
            os.ftruncate(client.memory_fd, SIZE - 1)
        os.ftruncate(client.memory_fd, SIZE + 4096)


def test_memory_that_takes_no_seal_may_be_refused(tmp_path: Path, image: Path) -> None:
    with program(*serve(tmp_path, image, "--sealed")), connected(str(tmp_path / "sock")) as client:
        with (tmp_path / "memory").open("w+b") as file:
            file.truncate(SIZE)
            for fd in (client.memory_fd, file.fileno()):
                assert client.ask(R.SET_MEM_TABLE, memory_table([region()]), [fd]) == 1
        sealed = os.memfd_create(MEMORY, os.MFD_ALLOW_SEALING)
        os.ftruncate(sealed, SIZE)
        assert client.ask(R.SET_MEM_TABLE, memory_table([region()]), [sealed]) == 0
        os.close(sealed)


def test_as_many_front_ends_as_workers_are_served_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with program("entropy", "--socket-path", path, "--workers", "3"):
        await_listener(path)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                transport = stack.enter_context(driving(path, DeviceId.ENTROPY))
                assert len(EntropyDriver(transport).start().read(16)) == 16


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_is_killed_is_replaced_as_often_as_it_takes(tmp_path: Path, image: Path, number: int) -> None:
    path = str(tmp_path / "sock")
    with program_with_errors(*serve(tmp_path, image, "--workers", "1")) as (process, lines):
        await_listener(path)
        for _ in range(3):
            with driving(path) as transport:
                assert len(BlkDriver(transport).start().read(0, 1)) == SECTOR
                [worker] = children(process)
                if number == signal.SIGTERM:
                    break
                os.kill(worker, number)
            await_(lambda: worker not in children(process) and len(children(process)) == 1, "another")  # noqa: B023
        assert sum("another takes its place" in line for line in lines) == (3 if number != signal.SIGTERM else 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_supervisor_however_it_ends(tmp_path: Path, image: Path, number: int) -> None:
    path = str(tmp_path / "sock")
    with subprocess.Popen([*COMMAND, *serve(tmp_path, image, "--workers", "2")], text=True) as process:
        await_listener(path)
        with connected(path) as client:
            assert client.ask(R.GET_QUEUE_NUM) == 1
            await_(lambda: len(children(process)) == 2, "both are there")
            workers = children(process)
            process.send_signal(number)
            assert client.connection.recv(1) == b""
        assert process.wait(20) == (0 if number != signal.SIGKILL else -number)
        await_(lambda: not any(Path(f"/proc/{worker}/root").is_symlink() for worker in workers), "they are gone")


COMPLAINTS = {
    "no workers": ["--workers", "0"],
    "less": ["--workers", "-1"],
    "no such disk": ["--workers", "2", "--blk-file", "/nowhere/at/all"],
}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_what_cannot_be_is_told_once_and_tried_no_more(tmp_path: Path, image: Path, name: str) -> None:
    command = [*COMMAND, *serve(tmp_path, image, *COMPLAINTS[name])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert {line.split(":")[0] for line in done.stderr.splitlines()} == {"virtio-py"}
    assert not (tmp_path / "sock").exists()


def test_a_connected_socket_is_not_for_several(tmp_path: Path, image: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*COMMAND, "blk", "--fd", str(theirs.fileno()), "--blk-file", str(image), "--workers", "1"]
        done = subprocess.run(
            command, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 2
    assert "connected" in done.stderr


def test_a_supervisor_whose_workers_are_done_is_done() -> None:
    code = (
        "from virtio_py.transports.vhost_user_supervisor import Supervisor\n"
        "raise SystemExit(Supervisor(3, lambda: print('done\\n', end='', flush=True), log=print).run())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "done\n" * 3


def test_who_dies_again_and_again_is_replaced_ever_more_slowly() -> None:
    delays = [_delay(deaths) for deaths in range(100)]
    assert delays == sorted(delays)
    assert (delays[0], delays[1] > 0, delays[-1]) == (0, True, 2)
    with pytest.raises(UsageError):
        Supervisor(0, lambda: None, log=print)
