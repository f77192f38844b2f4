"""The shared memory carrier: two real processes, each of which may die, and a page that either side may scribble on."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.errors import Disconnected, MessageError, NeedsReset, NegotiationError, TransportError, VirtioError
from virtio_py.spec import DeviceStatus
from virtio_py.transports import shared_memory_file
from virtio_py.transports.shared_memory import (
    QUEUES,
    WINDOW,
    Page,
    SharedMemoryEnd,
    SharedMemoryTransport,
    Verb,
    virtio_shared_memory,
)
from virtio_py.transports.shared_memory_file import SharedFile, connect

ROOT = Path(__file__).parent.parent
SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A name for a file in memory, as long as there is such a place."""
    where = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    name = where / f"virtio-py-test-{os.getpid()}-{time.monotonic_ns()}"
    yield str(name)
    name.unlink(missing_ok=True)


def process(program: str, *fds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, pass_fds=fds, stdout=subprocess.PIPE, text=True
    )


DEVICE = """
    from virtio_py.devices.entropy import EntropyDevice
    from virtio_py.transports.shared_memory_file import SharedFile, serve

    with SharedFile({fds}) as shared:
        serve(EntropyDevice(lambda count: b"{letter}" * count), shared)
"""


def device(shared: SharedFile, letter: str) -> subprocess.Popen[str]:
    """A device in a process of its own, which inherits the descriptors."""
    return process(DEVICE.format(fds=", ".join(map(str, shared.fds)), letter=letter), *shared.fds)


def kill(victim: subprocess.Popen[str]) -> None:
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    assert victim.stdout is not None
    victim.stdout.close()


@pytest.mark.parametrize("driver_first", [False, True])
def test_the_programs_of_the_docstring_meet(path: str, driver_first: bool) -> None:
    programs = [program.replace("/dev/shm/entropy", path) for program in _programs()]
    assert [len([line for line in program.splitlines() if line]) for program in programs] == [4, 4]
    if driver_first:
        driver = process(programs[1])
        time.sleep(0.3)
        serving = process(programs[0])
    else:
        serving = process(programs[0])
        driver = process(programs[1])
    try:
        printed, _ = driver.communicate(timeout=30)
        assert re.fullmatch(r"[0-9a-f]{32}\n", printed)
    finally:
        kill(serving)


def _programs() -> list[str]:
    """The indented programs of the docstring, the device's and the driver's."""
    lines = (shared_memory_file.__doc__ or "").splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)
    return ["from virtio_py.devices." + part.strip() for part in code.split("from virtio_py.devices.")[1:]]


def test_a_device_dies_and_comes_back() -> None:
    with SharedFile.anonymous(SIZE) as shared:
        first = device(shared, "a")
        driver = EntropyDriver(connect(shared)).start()
        assert driver.read(100) == b"a" * 100
        kill(first)
        with pytest.raises(VirtioError):
            driver.transact(driver.queues[0], [], [8], timeout=0.2)
        second = device(shared, "b")
        try:
            with pytest.raises(NeedsReset):
                driver.wait_used(driver.queues[0], timeout=20)
            assert driver.config_changed()
            assert driver.start().read(100) == b"b" * 100
        finally:
            kill(second)
        assert driver.transport.arena.free_bytes > SIZE // 2


DRIVER = """
    from virtio_py.devices.entropy import EntropyDriver
    from virtio_py.transports.shared_memory_file import SharedFile, connect

    with SharedFile({fds}) as shared:
        driver = EntropyDriver(connect(shared)).start()
        print(driver.read(8), flush=True)
        while True:
            driver.read(8)
"""


@pytest.mark.parametrize("doorbells", [True, False])
def test_a_driver_dies_and_comes_back(doorbells: bool) -> None:
    with SharedFile.anonymous(SIZE) as shared:
        fds = shared.fds if doorbells else [shared.fd]
        serving = process(DEVICE.format(fds=", ".join(map(str, fds)), letter="c"), *fds)
        try:
            for _ in range(2):
                driver = process(DRIVER.format(fds=", ".join(map(str, fds))), *fds)
                assert driver.stdout is not None
                assert driver.stdout.readline() == "b'cccccccc'\n"
                kill(driver)
            with SharedFile(*map(os.dup, fds)) as again:
                assert EntropyDriver(connect(again)).start().read(5) == b"ccccc"
        finally:
            kill(serving)


def test_a_file_goes_over_a_socket() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there, SharedFile.anonymous(SIZE) as shared:
        serving = device(shared, "d")
        try:
            shared.send(here)
            with SharedFile.receive(there) as received:
                assert EntropyDriver(connect(received)).start().read(9) == b"d" * 9
        finally:
            kill(serving)


@pytest.mark.parametrize("case", ["nothing", "too few", "other words", "not sealed", "no memfd"])
def test_what_is_no_shared_memory_is_refused(case: str, tmp_path: Path) -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    count = len(os.listdir("/proc/self/fd"))
    with SharedFile.anonymous(SIZE) as shared, here, there:
        loose = os.memfd_create("loose") if case == "not sealed" else os.open(tmp_path, os.O_RDONLY)
        fds = [loose, *shared.fds[1:]] if case in ("not sealed", "no memfd") else shared.fds
        words = b"something of that length" if case == "other words" else shared_memory_file._MESSAGE
        if case == "nothing":
            here.shutdown(socket.SHUT_WR)
        else:
            socket.send_fds(here, [words], fds[:2] if case == "too few" else fds)
        with pytest.raises(Disconnected if case == "nothing" else MessageError):
            SharedFile.receive(there)
        os.close(loose)
    # A mapping keeps a descriptor of its own.
    del shared
    assert len(os.listdir("/proc/self/fd")) == count - 2


def test_a_memfd_cannot_be_taken_away() -> None:
    with SharedFile.anonymous(SIZE) as shared:
        assert fcntl.fcntl(shared.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        with pytest.raises(PermissionError):
            os.ftruncate(shared.fd, 0)


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(8192)])
def test_a_file_of_somebody_else(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    with pytest.raises(MessageError):
        SharedFile.named(path, SIZE, timeout=0.01)
    assert Path(path).read_bytes() == content
    with pytest.raises(TransportError):
        SharedFile.named(f"{path}/below", SIZE)


# The page, in one process ------------------------------------------------------------------------------------------


def both(size: int = SIZE, patience: int = 50) -> tuple[SharedMemoryEnd, SharedMemoryTransport, Page]:
    page = Page(memoryview(bytearray(size)))
    page.initialise()
    end = SharedMemoryEnd(EntropyDevice(lambda count: b"e" * count), page)
    return end, SharedMemoryTransport(page, lambda: None, lambda timeout: end.step(), patience), page


def test_every_word_is_where_one_access_reaches_it() -> None:
    assert virtio_shared_memory.size == 4096
    for name, found in virtio_shared_memory.fields.items():
        assert found.offset % (8 if name == "request_arguments" else 4) == 0, name


@given(
    verb=st.integers(0, 10) | st.integers(0, (1 << 32) - 1),
    arguments=st.lists(
        st.sampled_from([0, 1, 2, 15, QUEUES, WINDOW, WINDOW + 1, 4096, 1 << 32, (1 << 64) - 1])
        | st.integers(0, (1 << 64) - 1),
        max_size=5,
    ),
    status=st.sampled_from([0, 3, 11, 15]),
)
def test_no_question_gets_out_of_the_mailbox(verb: int, arguments: list[int], status: int) -> None:
    end, transport, page = both(1 << 18)
    driver = EntropyDriver(transport)
    if status:
        driver.start()
    page.arguments = tuple(arguments)
    page.put("request_verb", verb)
    page.advance("request_sequence")
    end.step()
    assert page.get("reply_sequence") == page.get("request_sequence")
    assert page.get("reply_refused") == (end.refused is not None)
    assert driver.start().read(3) == b"eee"


@pytest.mark.parametrize("verb", [Verb.READ_CONFIG, Verb.WRITE_CONFIG])
@pytest.mark.parametrize("length", [WINDOW + 1, 1 << 32, (1 << 64) - 1])
def test_more_configuration_than_the_window_holds(verb: Verb, length: int) -> None:
    end, _, page = both()
    before = bytes(page._bytes)
    page.arguments = (0, length)
    page.put("request_verb", verb)
    page.advance("request_sequence")
    end.step()
    assert page.get("reply_refused") == 1
    window = virtio_shared_memory.offset("window")
    assert bytes(page._bytes)[window:] == before[window:]


@given(data=st.data())
def test_a_page_full_of_anything_does_no_harm(data: st.DataObject) -> None:
    end, _, page = both(1 << 14)
    at = data.draw(st.integers(0, virtio_shared_memory.size - 64))
    page._bytes[at : at + 64] = data.draw(st.binary(min_size=64, max_size=64))
    for _ in range(3):
        end.step()


@pytest.mark.parametrize("size", [0, 100, virtio_shared_memory.size])
def test_a_file_without_room_for_memory(size: int) -> None:
    with pytest.raises(MessageError):
        Page(memoryview(bytearray(size)))


def test_nobody_answers() -> None:
    page = Page(memoryview(bytearray(SIZE)))
    page.initialise()
    with pytest.raises(Disconnected):
        EntropyDriver(SharedMemoryTransport(page, lambda: None, lambda timeout: None, 5)).start()


def test_a_new_device_wants_a_reset_and_nothing_else_first() -> None:
    end, transport, page = both()
    driver = EntropyDriver(transport).start()
    new = SharedMemoryEnd(EntropyDevice(lambda count: b"n" * count), page)
    assert transport.read_status() == DeviceStatus.DEVICE_NEEDS_RESET
    transport._wait = lambda timeout: new.step()
    driver.fail()
    assert transport.read_status() == DeviceStatus.DEVICE_NEEDS_RESET
    with pytest.raises(NegotiationError):
        transport.accept_features(0)
    with pytest.raises(NegotiationError):
        transport.enable_queue(driver.queues[0])
    with pytest.raises(NegotiationError):
        transport.reset_queue(0)
    assert transport.max_queue_size(0) == 256
    assert driver.start().read(2) == b"nn"
    assert end.end.read_status()


def test_a_question_left_by_a_dead_driver_is_answered_before_the_next() -> None:
    _, transport, page = both()
    page.arguments = (DeviceStatus.FAILED,)
    page.put("request_verb", Verb.WRITE_STATUS)
    page.advance("request_sequence")
    assert EntropyDriver(transport).start().read(1) == b"e"
