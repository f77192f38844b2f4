"""Every driver against a device that lets it wait: a typed error in time, and nothing that came too late is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.net_frames import Wire, frame_of
from tests.scsi_tools import BLOCKS, RINGS, SlowUnit, disk
from tests.test_blk_batch import Shuffling, Waiting, sector
from tests.test_blk_batch import pair as blk_pair
from tests.test_net_pair import pair as net_pair
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.console.streams import PortTimeout
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.header import Packet
from virtio_py.devices.scsi import commands
from virtio_py.devices.scsi.batch import BatchingScsiDriver, ScsiAsk
from virtio_py.devices.scsi.device import ScsiDevice
from virtio_py.devices.scsi.layout import Tmf
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.driver import Driver
from virtio_py.errors import TimedOut, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import Feature, bit, mask
from virtio_py.transports.in_process import InProcess

RING = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.RING_RESET)


class Mute(InProcess):
    """A carrier that delivers nothing while it is mute."""

    mute = False

    def wait(self, timeout: float) -> None:
        if self.mute:
            time.sleep(min(timeout, 0.005))
        else:
            super().wait(timeout)


@define(eq=False)
class Dozing(EntropyDevice):
    """A source that keeps requests until it is told to answer."""

    asleep: bool = True
    kept: list[Chain] = field(factory=list, init=False)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if not self.asleep:
            super().handle(queue, chain)
            return
        chain.defer()
        self.kept.append(chain)

    def wake(self) -> None:
        self.asleep = False
        for chain in self.kept:
            chain.writable.write(b"\xaa" * chain.writable.remaining)
            chain.complete()
        self.kept.clear()


def dozing(ring: int = RING) -> tuple[EntropyDriver, Dozing, InProcess]:
    device = Dozing()
    transport = InProcess(device, memory_size=1 << 18, ring_features=ring)
    return EntropyDriver(transport, queue_size=8).start(), device, transport


@pytest.mark.parametrize("ring", [RING, RING | bit(Feature.RING_PACKED)])
def test_a_late_answer_is_taken_and_not_mistaken(ring: int) -> None:
    driver, device, transport = dozing(ring)
    free = transport.arena.free_bytes
    for late in (1, 2):
        with pytest.raises(TimedOut):
            driver.read(16, timeout=0.01)
        assert driver.queues[0].outstanding == late
    device.wake()
    # Two answers lie in the queue that were asked for by nobody here.
    assert driver.read(8, timeout=1) != b"\xaa" * 8
    assert driver.queues[0].outstanding == 0
    assert transport.arena.free_bytes == free


def test_a_queue_that_is_restarted_gives_all_back() -> None:
    driver, device, transport = dozing()
    free = transport.arena.free_bytes
    with pytest.raises(TimedOut):
        driver.read(16, timeout=0.01)
    driver.restart_queue(0)
    assert transport.arena.free_bytes == free
    device.asleep = False
    assert len(driver.read(8)) == 8


def test_what_came_before_the_time_was_over_is_kept() -> None:
    driver, device, _ = dozing()
    queue = driver.queues[0]
    buffers = [driver._borrow(4) for _ in range(3)]
    for name, buffer in zip("abc", buffers, strict=True):
        queue.add([], [buffer.extent], name)
    driver.kick(queue)
    driver.transport.wait(0)
    for chain in device.kept[:2]:
        chain.writable.write(b"1234")
        chain.complete()
    for _ in range(2):
        with pytest.raises(TimedOut):
            driver.wait_used(queue, 3, timeout=0.01)
    with pytest.raises(UsageError, match="outstanding"):
        driver.transact(queue, [], [1])
    device.kept[2].complete()
    assert driver.wait_used(queue, 3) == [("a", 4), ("b", 4), ("c", 0)]


def test_blocks_of_time() -> None:
    driver, _, _ = dozing()
    driver.timeout = 0.02
    start = time.monotonic()
    with pytest.raises(TimedOut):
        driver.read(4)
    with pytest.raises(TimedOut), driver.within(0.03), driver.within(10):
        driver.read(4)
    with pytest.raises(TimedOut), driver.within(10):
        driver.read(4, timeout=0.03)
    with driver.within(0.01):
        time.sleep(0.02)
    assert 0.07 < time.monotonic() - start < 5
    with driver.within(None):
        assert driver.deadline(None) < time.monotonic() + 0.03


def reading(driver: Any) -> None:
    driver.read(0, 64, timeout=0.02)


BLK_CALLS: list[Callable[[Any], object]] = [
    reading,
    lambda d: d.write(0, bytes(512), timeout=0.02),
    lambda d: d.flush(timeout=0.02),
    lambda d: d.get_id(timeout=0.02),
    lambda d: d.discard([(0, 8)], timeout=0.02),
    lambda d: d.write_zeroes([(0, 8)], timeout=0.02),
]


@pytest.mark.parametrize("call", BLK_CALLS)
def test_a_disk_that_does_not_answer(call: Callable[[Any], object]) -> None:
    driver, device, transport = blk_pair()
    free = transport.arena.free_bytes
    driver.write(0, sector(7, 64))
    device.stuck = True
    start = time.monotonic()
    with pytest.raises(TimedOut):
        call(driver)
    assert time.monotonic() - start < 2
    device.stuck = False
    device.release()
    while device.pool:
        device.release()
    assert driver.read(32, 8) == sector(7, 8)
    assert transport.arena.free_bytes == free


def test_the_time_is_for_all_pieces() -> None:
    """Each piece alone would have been in time."""

    class Slow(Waiting):
        def wait(self, timeout: float) -> None:
            time.sleep(0.02)
            super().wait(timeout)

    device = Shuffling(MemoryMedium.of(64 * 512), seg_max=1, size_max=512, dice=random.Random(1))
    transport = Slow(device, memory_size=1 << 20)
    from virtio_py.devices.blk.batch import BatchingBlkDriver

    driver = BatchingBlkDriver(transport).start()
    assert len(driver.read(0, 2, timeout=0.5)) == 1024
    start = time.monotonic()
    with pytest.raises(TimedOut):
        driver.read(0, 64, timeout=0.3)
    assert time.monotonic() - start < 1


# Network


def muted(driver: NetDriver | Driver) -> Mute:
    driver.transport.__class__ = Mute
    assert isinstance(driver.transport, Mute)
    return driver.transport


@pytest.mark.parametrize("ring", [RING, RING | bit(Feature.RING_PACKED)])
def test_an_interface_that_does_not_send(ring: int) -> None:
    wire = Wire()
    driver, _, _ = net_pair(wire, ring=ring, queue_size=8)
    transport = muted(driver)
    transport.mute = True
    frames = [frame_of(bytes([n]) * 40) for n in range(30)]
    with pytest.raises(TimedOut):
        driver.send_all(frames, timeout=0.02)
    under_way = driver.transmitq(0).outstanding
    assert 0 < under_way <= 8
    with pytest.raises(TimedOut):
        driver.flush(timeout=0.02)
    with pytest.raises(TimedOut), driver.within(0.02):
        driver.set_promiscuous(True)
    assert driver.receive(timeout=0.01) is None
    transport.mute = False
    driver.flush()
    assert wire.frames == frames[:under_way]
    # The late command had been carried out; this one is.
    driver.set_promiscuous(False)
    driver.send_all(frames)
    assert wire.frames == frames[:under_way] + frames


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 1400), max_size=60), queue_size=st.sampled_from([4, 8, 64]))
def test_a_batch_of_frames_takes_few_notifications(sizes: list[int], queue_size: int) -> None:
    wire = Wire()
    driver, _, transport = net_pair(wire, ring=RING & ~bit(Feature.EVENT_IDX), queue_size=queue_size)
    frames = [frame_of(bytes(size)) for size in sizes]
    before = transport.end.kicks[1]
    driver.send_all(frames)
    assert wire.frames == frames
    assert transport.end.kicks[1] - before <= -(-len(frames) // queue_size) * 2
    two = [frame_of(bytes([n])) for n in range(2)]
    for frame in two:
        wire.deliver(Packet(frame))
    assert [packet.frame for packet in driver.receive_many(2, timeout=1)] == two
    assert driver.receive_many(1, timeout=0) == []


def test_a_batch_that_memory_does_not_hold() -> None:
    wire = Wire()
    driver, _, transport = net_pair(wire, queue_size=64)
    left = transport.arena.free_bytes
    frames = [frame_of(bytes(1400))] * 50
    # All but some KiB are taken.
    taken = [driver._borrow(left - 8192)]
    driver.send_all(frames)
    assert wire.frames == frames
    driver._give_back(taken)
    assert transport.arena.free_bytes == left
    taken = []
    with suppress(UsageError):
        while True:
            taken.append(driver._borrow(512))
    with pytest.raises(UsageError):
        driver.send_all(frames, timeout=1)
    with pytest.raises(UsageError):
        driver.send_all(frames, pair=1)
    driver._give_back(taken)


# SCSI


def scsi_pair(
    units: dict[tuple[int, int], LogicalUnit], ring: int = RING, **options: Any
) -> tuple[BatchingScsiDriver, InProcess]:
    device = ScsiDevice(**options)
    for (target, lun), unit in units.items():
        device.attach(target, lun, unit)
    transport = InProcess(device, memory_size=2 << 20, ring_features=ring)
    driver = BatchingScsiDriver(transport, queue_size=32).start()
    for target, lun in units:
        driver.test_unit_ready(target, lun) if not isinstance(units[target, lun], SlowUnit) else None
    return driver, transport


def scsi_steps() -> st.SearchStrategy[list[list[tuple[str, int, int, int]]]]:
    """Rounds in which no two commands touch one block: nothing orders them."""
    step = st.tuples(st.sampled_from("rw"), st.integers(0, 1), st.integers(0, 7), st.integers(1, 255))
    return st.lists(st.lists(step, max_size=16, unique_by=lambda s: (s[1], s[2])), max_size=4)


@settings(deadline=None)
@given(todo=scsi_steps(), ring=st.sampled_from(RINGS), depth=st.integers(1, 20), most=st.sampled_from([1, 3, 128]))
def test_batches_of_commands_do_what_lists_of_blocks_do(
    todo: list[list[tuple[str, int, int, int]]], ring: int, depth: int, most: int
) -> None:
    driver, transport = scsi_pair({(0, 0): disk(), (1, 5): disk()}, ring, cmd_per_lun=most)
    free = transport.arena.free_bytes
    models = {where: [bytes(512)] * BLOCKS for where in ((0, 0), (1, 5))}
    for steps in todo:
        asks, expected = [], []
        for kind, unit, place, byte in steps:
            target, lun = ((0, 0), (1, 5))[unit]
            blocks = models[target, lun]
            if kind == "r":
                asks.append(ScsiAsk.read(target, lun, place * 8, 8))
                expected.append(b"".join(blocks[place * 8 : place * 8 + 8]))
            else:
                asks.append(ScsiAsk.write(target, lun, place * 8, bytes([byte]) * 4096))
                expected.append(b"")
                blocks[place * 8 : place * 8 + 8] = [bytes([byte]) * 512] * 8
        results = driver.run(iter(asks), depth=depth)
        assert [(r.good, r.data) for r in results] == [(True, data) for data in expected]
    assert transport.arena.free_bytes == free


def test_commands_of_a_batch_time_out_and_end_later() -> None:
    slow = SlowUnit(MemoryMedium.of(4096))
    driver, transport = scsi_pair({(0, 0): slow})
    free = transport.arena.free_bytes
    asks = [ScsiAsk(0, 0, commands.test_unit_ready())] * 3
    before = transport.end.kicks[2]
    tickets = driver.submit_many(asks)
    assert len(tickets) == 3
    with pytest.raises(TimedOut):
        driver.wait_some(tickets, timeout=0.02)
    assert transport.end.kicks[2] == before + 1
    slow.go_on()
    slow.go_on()
    assert driver.wait_some(tickets, 2, timeout=1) == tickets[:2]
    with pytest.raises(TimedOut):
        driver.execute(0, 0, commands.test_unit_ready(), timeout=0.02)
    slow.go_on()
    slow.go_on()
    assert driver.wait_some(tickets, 3, timeout=1) == tickets
    driver.poll()
    assert transport.arena.free_bytes == free
    with pytest.raises(UsageError):
        driver.wait_some(tickets, 4)


def test_a_host_that_does_not_answer() -> None:
    driver, _ = scsi_pair({(0, 0): disk()})
    transport = muted(driver)
    transport.mute = True
    calls: Iterator[Callable[[], object]] = iter(
        [
            lambda: driver.read(0, 0, 0, 1, timeout=0.02),
            lambda: driver.write(0, 0, 0, bytes(512), timeout=0.02),
            lambda: driver.task_management(Tmf.LOGICAL_UNIT_RESET, 0, timeout=0.02),
            lambda: driver.run([ScsiAsk.read(0, 0, 0, 1)], timeout=0.02),
        ]
    )
    for call in calls:
        with pytest.raises(TimedOut):
            call()
    with pytest.raises(TimedOut), driver.within(0.02):
        driver.inquiry(0, 0)
    transport.mute = False
    # What came late has ended the pending attention of the reset, too.
    assert driver.read(0, 0, 0, 1) == bytes(512)


def test_more_commands_than_there_is_room_for() -> None:
    driver, _ = scsi_pair({(0, 0): disk()})
    huge = ScsiAsk(0, 0, commands.transfer("READ", 0, 1), data_in_length=4 << 20)
    with pytest.raises(UsageError):
        driver.submit_many([huge])
    assert driver.submit_many([]) == []
    ready = ScsiAsk(0, 0, commands.test_unit_ready())
    tickets = driver.submit_many([ready, huge, ready])
    assert len(tickets) == 1
    assert driver.wait_some(tickets) == tickets


# Console


def test_a_port_that_does_not_take() -> None:
    driver = ConsoleDriver(InProcess(ConsoleDevice([ConsolePort(MemoryEndpoint())]), memory_size=1 << 20)).start()
    port = driver.port(0)
    transport = muted(driver)
    transport.mute = True
    with pytest.raises(PortTimeout):
        port.write(bytes(1 << 20), timeout=0.02)
    with pytest.raises(TimedOut), driver.within(0.02):
        port.flush()
    assert port.read(timeout=0.01) == b""
