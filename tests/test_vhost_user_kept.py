"""What a front-end keeps for the next back-end, and what else it agrees on: memory slots, notifications in band."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_vhost_user_server import open_fds
from tests.test_vhost_user_transport import LAYOUT, Puppet, connected, liar, serving
from tests.vhost_user_socket import await_
from virtio_py.devices.blk.batch import Ask, BatchingBlkDriver
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.errors import MessageError, NeedsReset, UsageError
from virtio_py.rings.engine import engine_named
from virtio_py.spec import Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_inflight_file import sealed_file
from virtio_py.transports.vhost_user_inflight_layout import QueueRegionPacked, QueueRegionSplit
from virtio_py.transports.vhost_user_kept import Kept
from virtio_py.transports.vhost_user_messages import FrontendRequest, ProtocolFeature
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES
from virtio_py.transports.vhost_user_transport import VhostUserTransport

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shells need Linux")

INBAND = PROTOCOL_FEATURES | bit(ProtocolFeature.INBAND_NOTIFICATIONS)
both_layouts = pytest.mark.parametrize("layout", LAYOUT)


def disk(**options: int) -> BlkDevice:
    return BlkDevice(MemoryMedium.of(1 << 20), **options)  # type: ignore[arg-type]  # numbers only


def wanted(layout: str) -> int:
    return (1 << 64) - 1 & ~bit(Feature.IN_ORDER) & ~bit(Feature.RING_PACKED) | LAYOUT[layout]


# The region ----------------------------------------------------------------------------------------------------------


def part(transport: VhostUserTransport, layout: str, index: int) -> tuple[int, int]:
    """A queue's part of the region that is kept: its version, and how many buffers are marked."""
    kept = transport._frontend.kept
    assert kept is not None
    record = (QueueRegionPacked if layout == "packed" else QueueRegionSplit)(kept.description.queue_size)
    size = kept.description.mmap_size // kept.description.num_queues
    found = record.decode(os.pread(kept.fd, record.size, index * size))
    return found.version, sum(entry.inflight for entry in found.desc)


@both_layouts
def test_a_queue_reset_empties_its_part_and_a_device_reset_asks_for_another(tmp_path: Path, layout: str) -> None:
    with serving(tmp_path / "disk", disk(num_queues=2)) as path, connected(path) as transport:
        driver = BlkDriver(transport, features=wanted(layout)).start()
        for queue in (0, 1):
            driver.write(0, bytes(512), queue=queue)
        assert [part(transport, layout, index) for index in (0, 1)] == [(1, 0), (1, 0)]
        transport.reset_queue(1)
        assert [part(transport, layout, index)[0] for index in (0, 1)] == [1, 0]
        transport.enable_queue(driver.queues[1])
        first = transport._frontend.kept
        driver.reset()
        assert transport._frontend.kept is None
        driver.start().write(0, bytes(512))
        assert transport._frontend.kept is not first


@both_layouts
@pytest.mark.parametrize("name", ["reference", "compiled"])
def test_a_queue_that_was_reset_begins_anew_with_the_next_back_end(tmp_path: Path, layout: str, name: str) -> None:
    """Its ring is another one, at 0; what its region says must be of that one."""
    features = RING_FEATURES & ~bit(Feature.RING_PACKED) | LAYOUT[layout]
    device = disk(num_queues=2)
    with (
        serving(tmp_path / "disk", device, ring_features=features) as path,
        connected(path, patience=10) as transport,
    ):
        driver = BatchingBlkDriver(transport, engine=engine_named(name), features=wanted(layout)).start()
        for n in range(5):
            driver.write(n, bytes([n]) * 512, queue=1)
        driver.restart_queue(1, 16)
        driver.write(7, b"x" * 512, queue=1)
        transport.reconnect()
        tickets = driver.submit([Ask.write(n, bytes([n + 1]) * 512) for n in range(4)], queue=1)
        for ticket in driver.wait(len(tickets), queue=1):
            ticket.result()
        assert driver.read(0, 1) + driver.read(7, 1) == b"\1" * 512 + b"x" * 512


def asked(**values: int) -> Any:
    return m.VhostUserInflight.decode(m.VhostUserInflight.encode(**({"num_queues": 2, "queue_size": 8} | values)))


def pipe_end() -> int:
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs


KEPT_LIES: dict[str, tuple[dict[str, int], Callable[[], list[int]]]] = {
    "no descriptor": ({"mmap_size": 512}, list),
    "two": ({"mmap_size": 512}, lambda: [sealed_file(512), sealed_file(512)]),
    "a pipe": ({"mmap_size": 512}, lambda: [pipe_end()]),
    "a shorter file": ({"mmap_size": 513}, lambda: [sealed_file(512)]),
    "an offset": ({"mmap_size": 512, "mmap_offset": 1}, lambda: [sealed_file(512)]),
    "all bytes": ({"mmap_size": (1 << 64) - 1, "mmap_offset": (1 << 64) - 1}, lambda: [sealed_file(512)]),
    "other queues": ({"mmap_size": 512, "num_queues": 0}, lambda: [sealed_file(512)]),
    "other entries": ({"mmap_size": 512, "queue_size": 9}, lambda: [sealed_file(512)]),
}


@pytest.mark.parametrize("lie", KEPT_LIES)
def test_a_region_that_was_not_asked_for_is_not_kept(lie: str) -> None:
    values, files = KEPT_LIES[lie]
    before = open_fds()
    with pytest.raises(MessageError):
        Kept.of(asked(), asked(**values), files())
    assert open_fds() == before


def test_a_back_end_may_want_no_region() -> None:
    before = open_fds()
    assert Kept.of(asked(), asked(mmap_size=0), []) is None
    assert Kept.of(asked(), asked(mmap_size=0), [sealed_file(64)]) is None
    assert open_fds() == before


def test_descriptors_beside_an_answer_that_breaks_off_are_closed(tmp_path: Path) -> None:
    """A region that comes with an answer of another size; the connection is over, and nothing is left."""

    def meddle(puppet: Puppet, request: FrontendRequest) -> None:
        if request is FrontendRequest.GET_INFLIGHT_FD:
            fd = sealed_file(512)
            header = m.vhost_user_header.encode(request=request, flags=5, size=3)
            socket.send_fds(puppet.connection, [header + bytes(3)], [fd])
            os.close(fd)

    gc.collect()
    before = open_fds()
    with liar(tmp_path / "sock", Puppet(meddle)) as path:
        transport = VhostUserTransport(path, 2, timeout=2)
        with contextlib.closing(transport), pytest.raises(MessageError):
            BlkDriver(transport).start()
        del transport
    await_(lambda: gc.collect() >= 0 and open_fds() == before, "all is closed")


# Memory slots --------------------------------------------------------------------------------------------------------

SLOTLESS = PROTOCOL_FEATURES & ~bit(ProtocolFeature.CONFIGURE_MEM_SLOTS)


@pytest.mark.parametrize("protocol", [PROTOCOL_FEATURES, SLOTLESS], ids=["slots", "table"])
def test_memory_comes_and_goes_under_running_rings(tmp_path: Path, protocol: int) -> None:
    with (
        serving(tmp_path / "disk", disk(), protocol_features=protocol) as path,
        connected(path, patience=10) as transport,
    ):
        driver = BlkDriver(transport).start()
        driver.write(3, b"abc" * 512)
        arena = transport.add_memory(5000)
        room = arena.allocate(512)
        for _ in range(2):
            room.view[:] = bytes(512)
            read_into(driver, 3, room.extent)
            assert bytes(room.view) == (b"abc" * 512)[:512]
            # Whoever comes next has it, too.
            transport.reconnect()
        with pytest.raises(UsageError, match="no memory was added"):
            transport.remove_memory(transport.arena)
        address = room.extent
        del room
        transport.remove_memory(arena)
        assert driver.read(3, 1) == (b"abc" * 512)[:512]
        with pytest.raises(NeedsReset):
            read_into(driver, 3, address)


def read_into(driver: BlkDriver, sector: int, extent: tuple[int, int]) -> None:
    """One read, of 512 bytes, to an address of the caller's choice."""
    queue, arena = driver.queues[0], driver.transport.arena
    header, status = arena.allocate(16), arena.allocate(1)
    header.view[8:] = sector.to_bytes(8, "little")
    queue.add([header.extent], [extent, status.extent])
    driver.kick(queue)
    assert driver.wait_used(queue) == [(None, 513)]
    assert bytes(status.view) == b"\0"


def test_there_are_as_many_slots_as_the_back_end_says(tmp_path: Path) -> None:
    with serving(tmp_path / "disk", disk()) as path, connected(path) as transport:
        BlkDriver(transport).start()
        assert transport._frontend.mem_slots == 32
        arenas = [transport.add_memory(4096) for _ in range(31)]
        with pytest.raises(UsageError, match="32 pieces"):
            transport.add_memory(4096)
        transport.remove_memory(arenas.pop())
        transport.add_memory(4096)


def test_memory_that_comes_and_goes_leaves_no_descriptor(tmp_path: Path) -> None:
    with serving(tmp_path / "disk", disk()) as path, connected(path) as transport:
        driver = BlkDriver(transport).start()

        def once() -> int:
            transport.remove_memory(transport.add_memory(4096))
            driver.read(0, 1)
            gc.collect()
            return open_fds()

        assert {once() for _ in range(3)} == {once()}


# Notifications in band -----------------------------------------------------------------------------------------------


@both_layouts
@pytest.mark.parametrize("protocol", [INBAND, INBAND & ~bit(ProtocolFeature.STATUS)], ids=["status", "no status"])
def test_notifications_are_messages(tmp_path: Path, layout: str, protocol: int) -> None:
    features = RING_FEATURES & ~bit(Feature.RING_PACKED) | LAYOUT[layout]
    device = disk(num_queues=2)
    with (
        serving(tmp_path / "disk", device, protocol_features=protocol, ring_features=features) as path,
        contextlib.closing(VhostUserTransport(path, 2, inband=True, patience=10)) as transport,
    ):
        driver = BatchingBlkDriver(transport, features=wanted(layout)).start()
        assert transport._frontend.inband
        pattern = os.urandom(1 << 15)
        driver.write(5, pattern, queue=1)
        assert driver.read(5, 64) == pattern
        assert transport._frontend.calls
        transport.reconnect()
        assert driver.read(5, 64, queue=1) == pattern
        driver.restart_queue(0, 16)
        assert driver.read(5, 64) == pattern
        with pytest.raises(NeedsReset):
            # Nothing that a disk could answer: VRING_ERR, in band, or the status tells.
            driver.transact(driver.queues[0], [bytes(16)], [])
        driver.reset()
        assert driver.start().read(5, 64) == pattern


@pytest.mark.parametrize("lacking", [ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK])
def test_notifications_stay_events_where_messages_would_have_no_channel(tmp_path: Path, lacking: int) -> None:
    with (
        serving(tmp_path / "disk", disk(), protocol_features=INBAND & ~bit(lacking)) as path,
        contextlib.closing(VhostUserTransport(path, 2, inband=True)) as transport,
    ):
        assert BlkDriver(transport).start().read(0, 1) == bytes(512)
        assert not transport._frontend.inband


def test_a_driver_that_waits_is_woken_by_a_message(tmp_path: Path) -> None:
    """By the message, and long before it would look by itself."""
    with (
        serving(tmp_path / "disk", disk(), protocol_features=INBAND) as path,
        contextlib.closing(VhostUserTransport(path, 2, inband=True)) as transport,
    ):
        driver = BatchingBlkDriver(transport).start()
        queue = driver.queues[0]
        queue.enable_notifications()
        before = transport._frontend.calls
        driver.submit([Ask.read(0, 1)])
        start = time.monotonic()
        # The buffer may be back before anybody waits; its message comes all the same.
        while transport._frontend.calls == before:
            transport.wait(30)
        assert time.monotonic() - start < 10
        assert queue.take_used()
