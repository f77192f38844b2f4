"""A back-end's process is killed amid verified writes, time and again; the front-end goes on with the next one.

What is inflight at a kill is in the region that the front-end keeps, and nowhere else: the driver adds nothing twice.
Every sector has one writer at a time, so what it must hold is known: what was written last.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from attrs import define, field

from tests.served_program import Program
from virtio_py.devices.blk.batch import Ask, BatchingBlkDriver, Ticket
from virtio_py.rings.engine import engine_named
from virtio_py.spec import DeviceId, Feature, bit
from virtio_py.transports.vhost_user_inflight_layout import (
    DescStatePacked,
    DescStateSplit,
    QueueRegionPacked,
    QueueRegionSplit,
)
from virtio_py.transports.vhost_user_transport import VhostUserTransport

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shells need Linux")

SECTORS = 512
PARTS = 4
"""Sectors of one write."""


@contextlib.contextmanager
def program(path: Path, *options: str) -> Iterator[Program]:
    image = path / "disk.img"
    image.write_bytes(bytes(SECTORS * 512))
    made = Program(path / "sock", image, options)
    made.start()
    try:
        yield made
    finally:
        made.kill()


def connection(made: Program) -> VhostUserTransport:
    deadline = time.monotonic() + 60
    while True:
        try:
            return VhostUserTransport(str(made.path), DeviceId.BLOCK, patience=60)
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@define
class Writer:
    """Keeps writes under way all over the disk, and a model of what is on it.

    content: the number that was written last to each extent of sectors, and completed; under_way: tickets with the
    numbers that they write.
    """

    driver: BatchingBlkDriver
    chance: random.Random
    content: dict[int, int] = field(factory=dict)
    under_way: dict[int, tuple[Ticket, int]] = field(factory=dict)
    number: int = 0
    submitted: int = 0
    completed: int = 0

    def submit(self, count: int) -> None:
        free = [at for at in range(0, SECTORS, PARTS) if at not in self.under_way]
        asks = []
        for at in self.chance.sample(free, min(count, len(free))):
            self.number += 1
            asks.append((at, self.number, Ask.write(at, stamp(self.number))))
        tickets = self.driver.submit([ask for _, _, ask in asks])
        for (at, number, _), ticket in zip(asks, tickets, strict=False):
            self.under_way[at] = ticket, number
        self.submitted += len(tickets)

    def collect(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            ticket.result()
            known, number = self.under_way.pop(ticket.ask.sector)
            assert known is ticket
            self.content[ticket.ask.sector] = number
            self.completed += 1

    def verify(self, ats: list[int]) -> None:
        """What was completed is there."""
        for at in ats:
            if at in self.content:
                assert self.driver.read(at, PARTS) == stamp(self.content[at]), f"sector {at}"


def stamp(number: int) -> bytes:
    """What a write of this number writes."""
    return number.to_bytes(8, "little") * (64 * PARTS)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["reference", "compiled"])
@pytest.mark.parametrize("layout", ["split", "packed"])
def test_killed_amid_verified_writes(tmp_path: Path, layout: str, name: str) -> None:
    """50 kills in the four cases together, at random moments; every second one waits for a moment that hurts."""
    chance = random.Random(f"{layout} {name}")
    packed = bit(Feature.RING_PACKED)
    options = ["--engine", name, *(["--packed"] if layout == "packed" else [])]
    with program(tmp_path, *options) as made, contextlib.closing(connection(made)) as transport:
        features = (1 << 64) - 1 & ~bit(Feature.IN_ORDER) & ~(0 if layout == "packed" else packed)
        driver = BatchingBlkDriver(transport, engine=engine_named(name), features=features).start()
        assert driver.has(Feature.RING_PACKED) == (layout == "packed")
        writer, left = Writer(driver, chance), []
        for n in range(13 if name == "reference" else 12):
            left.append(kill_amid(writer, made, Region.of(driver), aimed=n % 2 == 0))
        writer.collect(driver.wait(len(writer.under_way), timeout=60) if writer.under_way else [])
        assert writer.completed == writer.submitted == writer.number
        driver.flush()
        writer.verify(list(range(0, SECTORS, PARTS)))
        assert sum(map(bool, left)) >= 3, f"the kills hit nothing: {left}"


def kill_amid(writer: Writer, made: Program, region: Region, aimed: bool) -> int:
    """One kill: how many writes the region says the back-end had. The driver adds nothing again."""
    driver = writer.driver
    delay, killer = writer.chance.uniform(0.001, 0.08), None
    moment = time.monotonic() + delay
    if not aimed:
        # By another process: a thread of ours would get its turn when we call the system, which is when we kick.
        killer = subprocess.Popen(["sh", "-c", f"sleep {delay:.4f}; kill -9 {made.process.pid}"])
    while made.process.poll() is None:
        writer.submit(writer.chance.randint(1, 24))
        writer.collect(driver.poll())
        if aimed and time.monotonic() > moment and region.inflight:
            made.kill()
    assert killer is None or killer.wait() == 0
    writer.collect(driver.poll())
    [queue], had = driver.queues, region.inflight
    added = queue.state.next_available, queue.memory.read(queue.driver_area, 4 + 2 * queue.size)
    made.start()
    writer.collect(driver.wait(len(writer.under_way), timeout=60) if writer.under_way else [])
    assert not writer.under_way
    if queue.layout == "split":
        # Not one entry of the available ring has been made, or moved.
        assert added == (queue.state.next_available, queue.memory.read(queue.driver_area, 4 + 2 * queue.size))
    assert region.inflight == 0
    writer.verify(writer.chance.sample(range(0, SECTORS, PARTS), 20))
    return had


class Region(NamedTuple):
    """Where the front-end keeps what is inflight in its one queue: a file, and which of its bytes are the marks."""

    fd: int
    size: int
    first: int
    step: int

    @classmethod
    def of(cls, driver: BatchingBlkDriver) -> Region:
        assert isinstance(driver.transport, VhostUserTransport)
        kept = driver.transport._frontend.kept
        assert kept is not None, "the back-end keeps no account"
        assert kept.description.mmap_offset == 0
        packed = driver.has(Feature.RING_PACKED)
        family, state = (QueueRegionPacked, DescStatePacked) if packed else (QueueRegionSplit, DescStateSplit)
        record = family(kept.description.queue_size)
        return cls(kept.fd, record.size, record.offset("desc") + state.offset("inflight"), state.size)

    @property
    def inflight(self) -> int:
        """How many buffers are marked."""
        return sum(os.pread(self.fd, self.size, 0)[self.first :: self.step])
