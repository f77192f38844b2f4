"""The follower of rings against front-ends that say what is not so: it looks at less, and passes on all the same."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import define, field

from tests.test_vhost_user_server import open_fds
from tests.test_vhost_user_tracer import places, regions, ring, word
from virtio_py.transports.vhost_user_follower import RingFollower, RingSeen
from virtio_py.transports.vhost_user_messages import FrontendRequest as R
from virtio_py.transports.vhost_user_messages import Message, VhostUserMemRegMsg
from virtio_py.transports.vhost_user_tracer import FRONT, Tracer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shells need Linux")

USER = 0x7000_0000


def region(guest: int, size: int = 0x10000) -> bytes:
    where = {"guest_phys_addr": guest, "memory_size": size, "userspace_addr": USER + guest}
    return VhostUserMemRegMsg.encode(region=where)


@define
class Session:
    """A front-end's messages, as the proxy hands them on."""

    looks: list[RingSeen] = field(factory=list)
    follower: RingFollower = field(init=False)
    tracer: Tracer = field(factory=Tracer)

    def __attrs_post_init__(self) -> None:
        self.follower = RingFollower(self.looks.append)

    def say(self, request: int, payload: bytes, *fds: int) -> list[int]:
        message = Message(request, 0, payload)
        seen = self.tracer.message(FRONT, message, fds=len(fds), time=0.0)
        return self.follower.passing(seen, message, list(fds))

    def memory(self, request: int, payload: bytes, size: int = 0x20000) -> None:
        """A message with one file, which the proxy closes when it is sent."""
        fd = os.memfd_create("memory")
        os.ftruncate(fd, size)
        self.say(request, payload, fd)
        os.close(fd)

    def kick(self, fd: int) -> None:
        """The ring's event, and the one that goes to the back-end instead."""
        [given] = self.say(R.SET_VRING_KICK, word(0), fd)
        os.close(given)


@pytest.fixture
def session() -> Iterator[Session]:
    before = open_fds()
    made = Session()
    yield made
    made.follower.close()
    assert open_fds() == before


def eventfd(count: int = 0) -> int:
    return os.eventfd(count, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


@pytest.mark.parametrize(
    ("request_", "payload"), [(R.ADD_MEM_REG, region(0)), (R.SET_MEM_TABLE, regions((0, 0x1000, USER)))]
)
def test_a_region_without_its_file_passes(session: Session, request_: int, payload: bytes) -> None:
    assert session.say(request_, payload) == []


def test_regions_that_come_and_go_leave_no_file_open(session: Session) -> None:
    session.memory(R.SET_MEM_TABLE, regions((0, 0x10000, USER)))
    before = open_fds()
    for _ in range(3):
        session.memory(R.ADD_MEM_REG, region(0x10000))
        assert open_fds() > before
        session.say(R.REM_MEM_REG, region(0x10000))
        assert open_fds() == before


def test_a_removed_file_may_shrink(session: Session) -> None:
    """What is shared no more is not what a look relies upon."""
    session.memory(R.SET_MEM_TABLE, regions((0, 0x10000, USER)))
    fd = os.memfd_create("more")
    os.ftruncate(fd, 0x10000)
    session.say(R.ADD_MEM_REG, region(0x10000), fd)
    session.say(R.REM_MEM_REG, region(0x10000))
    os.ftruncate(fd, 0)
    os.close(fd)
    ring_at(session, 0)
    session.follower.ready(kicked(session))
    assert session.looks[-1].outstanding == 0


def ring_at(session: Session, guest: int) -> None:
    session.say(R.SET_VRING_NUM, ring(0, 8))
    session.say(R.SET_VRING_ADDR, places(USER + guest, USER + guest + 0x200, USER + guest + 0x100))


def kicked(session: Session) -> int:
    session.kick(eventfd(1))
    [source] = session.follower.descriptors()
    return source


def test_a_ring_whose_memory_has_gone_is_not_looked_at(session: Session) -> None:
    session.memory(R.ADD_MEM_REG, region(0))
    ring_at(session, 0)
    source = kicked(session)
    session.say(R.REM_MEM_REG, region(0))
    session.follower.ready(source)
    assert [(look.event, look.available, look.outstanding) for look in session.looks] == [("kick", None, None)]


def test_a_ring_at_the_very_end_of_its_memory_is_not_looked_at(session: Session) -> None:
    session.memory(R.ADD_MEM_REG, region(0))
    session.say(R.SET_VRING_NUM, ring(0, 8))
    last: Any = USER + 0xFFFE
    session.say(R.SET_VRING_ADDR, places(USER, last, last))
    session.follower.ready(kicked(session))
    assert session.looks[-1].outstanding is None


def test_an_event_that_is_not_there_any_more(session: Session) -> None:
    """Its number was another one's when somebody waited for it."""
    session.kick(eventfd())
    session.follower.ready(session.follower.descriptors()[0])
    assert session.looks == []
    session.follower.ready(9999)


def test_an_event_whose_writer_has_left_is_waited_for_no_more(session: Session) -> None:
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    session.kick(read)
    os.write(write, bytes(8))
    os.close(write)
    session.follower.ready(read)
    assert [look.event for look in session.looks] == ["kick"]
    assert session.follower.descriptors() == [read]
    session.follower.ready(read)
    assert session.follower.descriptors() == []


def test_a_call_that_nobody_takes_does_not_hold_up_the_rest(session: Session) -> None:
    read, write = os.pipe2(os.O_CLOEXEC)
    os.write(write, bytes(fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)))
    [given] = session.say(R.SET_VRING_CALL, word(0), write)
    os.eventfd_write(given, 1)
    os.close(given)
    session.follower.ready(session.follower.descriptors()[0])
    assert [look.event for look in session.looks] == ["call"]
    os.close(read)
