"""Many requests of the block driver under way at a time: any order of completion, one publish, one kick, time-outs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.devices.blk.batch import Ask, BatchingBlkDriver, Ticket
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkError, BlkUnsupported
from virtio_py.devices.blk.layout import BlkFeature, BlkRequest, BlkStatus
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.errors import NeedsReset, RequestError, UsageError, VirtioError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.transports.in_process import InProcess

SECTORS = 64
SPLIT = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
PACKED = SPLIT | bit(Feature.RING_PACKED)
PLAIN = bit(Feature.VERSION_1)


@define(eq=False)
class Shuffling(BlkDevice):
    """A disk that answers when it likes: requests wait in a pool, and leave it in a random order, a few at a time.

    What a request does happens when it leaves, too. `most` is how many were ever in the pool; a `stuck` disk lets
    none go.
    """

    dice: random.Random = field(factory=lambda: random.Random(0), kw_only=True)
    stuck: bool = False
    pool: list[Chain] = field(factory=list, init=False)
    most: int = field(default=0, init=False)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        chain.defer()
        self.pool.append(chain)
        self.most = max(self.most, len(self.pool))

    def release(self) -> None:
        if self.stuck:
            return
        self.dice.shuffle(self.pool)
        for _ in range(self.dice.randint(1, 4)):
            if self.pool:
                chain = self.pool.pop()
                # The queue is nothing to a disk.
                super().handle(chain.queue, chain)  # type: ignore[arg-type]  # a Completer is enough
                chain.complete()

    def reset(self) -> None:
        super().reset()
        self.pool.clear()


class Waiting(InProcess):
    """Lets the device release something whenever the driver waits."""

    def wait(self, timeout: float) -> None:
        super().wait(0)
        device = self.end.device
        assert isinstance(device, Shuffling)
        device.release()


def pair(
    ring: int = SPLIT, seed: int = 0, queue_size: int = 16, memory_size: int = 1 << 20, num_queues: int = 1
) -> tuple[BatchingBlkDriver, Shuffling, Waiting]:
    device = Shuffling(MemoryMedium.of(SECTORS * 512), dice=random.Random(seed), num_queues=num_queues)
    transport = Waiting(device, ring_features=ring, memory_size=memory_size)
    driver = BatchingBlkDriver(transport, queue_size=queue_size)
    driver.wanted |= ring
    return driver.start(), device, transport


def sector(byte: int, count: int = 1) -> bytes:
    return bytes([byte]) * (512 * count)


# Sequences


@st.composite
def rounds(draw: st.DrawFn) -> list[list[Ask]]:
    """Rounds of requests; within a round, nothing touches what another one writes, for nothing orders them."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        cuts = sorted(draw(st.sets(st.integers(0, SECTORS), min_size=2, max_size=24)))
        asks = []
        for start, end in pairwise(cuts):
            count = min(end - start, 6)
            match draw(st.sampled_from("rwf-")):
                case "r":
                    asks.append(Ask.read(start, count))
                case "w":
                    asks.append(Ask.write(start, sector(draw(st.integers(1, 255)), count)))
                case "f":
                    asks.append(Ask.flush())
        found.append(draw(st.permutations(asks)))
    return found


@given(
    todo=rounds(),
    ring=st.sampled_from([PLAIN, SPLIT, PACKED]),
    seed=st.integers(0, 1 << 20),
    queue_size=st.sampled_from([8, 16, 64]),
    depth=st.integers(1, 30),
)
def test_batches_do_what_a_list_of_sectors_does(
    todo: list[list[Ask]], ring: int, seed: int, queue_size: int, depth: int
) -> None:
    driver, device, _ = pair(ring, seed, queue_size)
    model = [bytes(512)] * SECTORS
    for asks in todo:
        # A memory of the round's beginning: what is read is not written in the same round.
        tickets = driver.run(iter(asks), depth=depth)
        assert [t.ask for t in tickets] == asks
        for ticket in tickets:
            kind, at, data, count = ticket.ask
            expected = b"".join(model[at : at + count]) if kind == BlkRequest.IN else b""
            assert ticket.result() == expected
        for kind, at, data, _ in asks:
            if kind == BlkRequest.OUT:
                model[at : at + len(data) // 512] = [data[n : n + 512] for n in range(0, len(data), 512)]
    assert device.most <= depth
    assert driver.read(0, SECTORS) == b"".join(model)
    assert driver.queues[0].outstanding == 0


@given(seed=st.integers(0, 1 << 20), number=st.integers(1, 16), ring=st.sampled_from([SPLIT, PACKED]))
def test_tickets_come_in_the_order_of_completion(seed: int, number: int, ring: int) -> None:
    driver, device, transport = pair(ring, seed, queue_size=32)
    tickets = driver.submit(Ask.read(n, 1) for n in range(number))
    assert len(tickets) == number
    seen: list[Ticket] = []
    transport.step()
    assert driver.poll() == []
    while device.pool:
        device.release()
        some = driver.poll()
        assert 0 < len(some) <= 4
        assert all(t.done for t in some)
        seen += some
    assert sorted(map(id, seen)) == sorted(map(id, tickets))


def test_the_order_is_really_not_that_of_submission() -> None:
    driver, _, _ = pair(seed=1)
    tickets = driver.submit(Ask.read(n, 1) for n in range(10))
    assert driver.wait(10) != tickets


# One publish, one notification


@pytest.mark.parametrize("ring", [PLAIN, SPLIT, PACKED])
def test_a_batch_is_one_publish_and_one_kick(ring: int) -> None:
    driver, device, transport = pair(ring, queue_size=64)
    transport.step()
    before = transport.end.kicks[0]
    assert len(driver.submit(Ask.read(n, 1) for n in range(12))) == 12
    transport.step()
    assert transport.end.kicks[0] == before + 1
    assert device.most == 12
    assert len(driver.wait(12)) == 12


def test_depth_bounds_what_is_under_way() -> None:
    driver, device, _ = pair(queue_size=64)
    assert len(driver.run((Ask.read(n % SECTORS, 1) for n in range(200)), depth=5)) == 200
    assert device.most == 5


def test_queues_are_apart() -> None:
    driver, _, _ = pair(num_queues=2)
    first = driver.submit([Ask.write(0, sector(1))], queue=0)
    second = driver.submit([Ask.write(1, sector(2)), Ask.flush()], queue=1)
    assert driver.wait(1, queue=0) == first
    assert set(map(id, driver.wait(2, queue=1))) == set(map(id, second))
    assert driver.read(0, 2) == sector(1) + sector(2)


# What does not fit


def test_a_full_queue_takes_the_first_ones() -> None:
    driver, _, _ = pair(PLAIN, queue_size=8)
    # A header, a sector and a status: 3 of 8 descriptors.
    asks = [Ask.read(n, 1) for n in range(5)]
    tickets = driver.submit(asks)
    assert [t.ask for t in tickets] == asks[:2]
    assert driver.submit(asks[2:]) == []
    assert len(driver.wait(2)) == 2
    assert [t.ask for t in driver.submit(asks[2:])] == asks[2:4]


def test_memory_that_runs_out_ends_a_batch_and_is_given_back() -> None:
    driver, _, transport = pair(queue_size=16, memory_size=1 << 16)
    free = transport.arena.free_bytes
    asks = [Ask.read(0, 16) for _ in range(12)]
    tickets = driver.submit(asks)
    assert 0 < len(tickets) < 12
    driver.wait(len(tickets))
    assert transport.arena.free_bytes == free
    assert len(driver.run(asks)) == 12
    assert transport.arena.free_bytes == free


@pytest.mark.parametrize(
    "bad",
    [
        Ask.read(SECTORS, 1),
        Ask.read(-1, 1),
        Ask.read(0, 0),
        Ask.write(0, b"x"),
        Ask.write(SECTORS - 1, sector(1, 2)),
        Ask(BlkRequest.GET_ID),
        Ask(BlkRequest.ZONE_APPEND, 0, sector(1)),
    ],
)
def test_one_that_cannot_be_asked_stops_the_batch_before_it_starts(bad: Ask) -> None:
    driver, device, transport = pair()
    with pytest.raises(UsageError):
        driver.submit([Ask.write(0, sector(1)), bad])
    transport.step()
    assert device.pool == []
    assert driver.queues[0].outstanding == 0


def test_more_than_one_request_holds_is_refused_and_an_absent_flush_too() -> None:
    device = Shuffling(MemoryMedium.of(SECTORS * 512), size_max=512, seg_max=2)
    driver = BatchingBlkDriver(
        Waiting(device), features=mask(Feature.VERSION_1, BlkFeature.SIZE_MAX, BlkFeature.SEG_MAX)
    )
    driver.start()
    with pytest.raises(UsageError, match="at most 2 sectors"):
        driver.submit([Ask.read(0, 3)])
    with pytest.raises(BlkUnsupported, match="FLUSH"):
        driver.submit([Ask.flush()])
    driver.submit([Ask.read(0, 1)])
    with pytest.raises(UsageError, match="2 completions are wanted of 1"):
        driver.wait(2)
    # The synchronous methods have the queue for themselves, or not at all.
    with pytest.raises(UsageError, match="outstanding"):
        driver.read(0, 1)


# What goes wrong


def test_a_failure_is_in_its_own_ticket() -> None:
    driver, device, _ = pair()
    good, bad = driver.submit([Ask.write(0, sector(7)), Ask.read(SECTORS - 1, 1)])
    with pytest.raises(UsageError, match="not completed"):
        good.result()
    device.resize(8)
    driver.wait(2)
    assert good.result() == b""
    with pytest.raises(BlkError) as caught:
        bad.result()
    assert caught.value.status == BlkStatus.IOERR


def test_time_runs_out_for_some_and_a_reset_takes_their_memory_back() -> None:
    driver, device, transport = pair()
    free = transport.arena.free_bytes
    tickets = driver.submit(Ask.read(n, 1) for n in range(6))
    transport.step()
    device.release()
    done = 6 - len(device.pool)
    assert 0 < done < 6
    device.stuck = True
    with pytest.raises(VirtioError, match="in time"):
        driver.wait(6, timeout=0.02)
    # What was answered before is not lost.
    assert len(driver.poll()) == done
    assert transport.arena.free_bytes < free
    with pytest.raises(VirtioError, match="in time"):
        driver.run([Ask.read(0, 1)], timeout=0.02)
    device.stuck = False
    driver.start()
    assert transport.arena.free_bytes == free
    assert sum(t.done for t in tickets) == done
    assert driver.run([Ask.read(0, 1)])[0].result() == bytes(512)


def test_a_device_that_gives_up_is_noticed() -> None:
    driver, _, transport = pair()
    driver.submit([Ask.read(0, 1)])
    transport.step()
    transport.end.needs_reset(RequestError("a fault"))
    with pytest.raises(NeedsReset):
        driver.wait(1)


def test_ok_in_a_status_that_nobody_wrote_is_no_ok() -> None:
    class Silent(BlkDevice):
        def handle(self, queue: DeviceQueue, chain: Chain) -> None:
            chain.writable.write(bytes(chain.writable.remaining - 1))

    transport = InProcess(Silent(MemoryMedium.of(4096)))
    driver = BatchingBlkDriver(transport).start()
    first, second = driver.submit([Ask.read(0, 1), Ask.read(1, 1)])
    assert len(driver.wait(2)) == 2
    for ticket in (first, second):
        with pytest.raises(RequestError, match="only 512 bytes"):
            ticket.result()
    assert transport.read_status() & DeviceStatus.FAILED


def endless() -> Iterator[Ask]:
    while True:
        yield Ask.flush()


def test_run_takes_no_more_than_it_can_use() -> None:
    driver, _, _ = pair()
    asks = endless()
    with pytest.raises(VirtioError, match="in time"):
        driver.run(asks, timeout=0.05)
