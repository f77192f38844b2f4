"""Descriptors behind a device: waited for, passed on, and never remembered from one wait to the next."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from select import POLLIN, POLLOUT

import pytest
from attrs import define, field

from tests.vhost_user_frontend import R
from tests.vhost_user_socket import await_, connected
from virtio_py.device import DeviceEnd
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.errors import RequestError
from virtio_py.spec import DeviceStatus
from virtio_py.transports.in_process import InProcess
from virtio_py.transports.vhost_user_server import Server, listening
from virtio_py.watch import Watch, wait_ready


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def nothing() -> None:
    """For watches that are only looked at."""


def test_only_what_is_ready_is_told_of(pipe: tuple[int, int]) -> None:
    reading, writing = Watch(pipe[0], POLLIN, nothing), Watch(pipe[1], POLLOUT, nothing)
    assert wait_ready([reading, writing], None) == [writing]
    assert wait_ready([reading], 0) == []
    os.write(pipe[1], b"x")
    assert wait_ready([reading, writing], None) == [reading, writing]
    # A carrier's own descriptor ends the wait, and is not among the watches.
    assert wait_ready([], None, pipe[0]) == []


def test_two_watches_of_one_descriptor_are_both_heard(pipe: tuple[int, int]) -> None:
    one, other = Watch(pipe[1], POLLOUT, nothing), Watch(pipe[1], POLLIN, nothing)
    assert wait_ready([one, other], None) == [one, other]


@define(eq=False)
class Watching(EntropyDevice):
    """Reads a pipe whenever it is ready."""

    fd: int = -1
    read: list[bytes] = field(factory=list, init=False)

    def watch(self) -> Sequence[Watch]:
        return [Watch(self.fd, POLLIN, self._ready)]

    def _ready(self) -> None:
        self.read.append(os.read(self.fd, 100))
        if self.read[-1] == b"bad":
            raise RequestError("what the driver did came to light")


def test_waiting_in_process_attends_to_the_device(pipe: tuple[int, int]) -> None:
    device = Watching(fd=pipe[0])
    transport = InProcess(device)
    EntropyDriver(transport).start()
    transport.wait(0)
    while transport.step():
        pass
    os.write(pipe[1], b"one")
    transport.wait(60)
    assert device.read == [b"one"]


def test_a_fault_found_while_attending_needs_a_reset(pipe: tuple[int, int]) -> None:
    device = Watching(fd=pipe[0])
    transport = InProcess(device)
    end: DeviceEnd = transport.end
    EntropyDriver(transport).start()
    os.write(pipe[1], b"bad")
    end.attend(device.watch()[0])
    assert isinstance(end.fault, RequestError)
    assert end.read_status() & DeviceStatus.DEVICE_NEEDS_RESET
    assert transport.config_notifications == 1


@pytest.mark.skipif(sys.platform != "linux", reason="serving vhost-user needs Linux")
def test_the_vhost_user_loop_attends_between_messages(pipe: tuple[int, int], tmp_path: Path) -> None:
    device, path = Watching(fd=pipe[0]), str(tmp_path / "sock")
    server = Server(device, log=lambda line: None)
    with listening(path) as listener:
        thread = threading.Thread(target=server.serve, args=[listener])
        thread.start()
        with connected(path) as client:
            for text in (b"one", b"two"):
                os.write(pipe[1], text)
                await_(partial(device.read.__contains__, text), "the pipe is read")
                assert client.ask(R.GET_QUEUE_NUM) == 1
        server.stop()
        thread.join(10)
    server.close()
    assert device.read == [b"one", b"two"]
