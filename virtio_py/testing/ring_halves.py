"""Both halves of one queue in memory that two processes can map, ready for the kernels that keep them busy.

This shell maps memory and opens eventfds; it starts nothing.
"""

from __future__ import annotations

import mmap
import os
from typing import Any, Final

from attrs import define, field

from virtio_py.errors import UsageError
from virtio_py.memory import Arena, GuestMemory, Region
from virtio_py.rings.engine import engine_named
from virtio_py.rings.kernels import COUNTERS, Batch, Words
from virtio_py.rings.queue import DeviceQueue, DriverQueue, QueueConfig, make_batch
from virtio_py.testing.ring_cases import Case

QUEUE_SIZE: Final = 256
SEGMENT_BYTES: Final = 64
MEMORY_START: Final = 0x10_0000
MEMORY_BYTES: Final = 1 << 20

# A table for each descriptor, of no more entries than the longest chain asks for.
_INDIRECT_ENTRIES: Final = 4


@define(eq=False)
class Ground:
    """What both sides have besides the queue: memory behind a file descriptor, and an eventfd each way."""

    fd: int
    kick: int
    call: int
    memory: GuestMemory = field(init=False)

    def __attrs_post_init__(self) -> None:
        mapped = mmap.mmap(self.fd, MEMORY_BYTES)
        self.memory = GuestMemory([Region(MEMORY_START, memoryview(mapped))])

    @classmethod
    def new(cls) -> Ground:
        """Fresh memory. Raises UsageError where the system has no memfd or eventfd."""
        if not hasattr(os, "memfd_create") or not hasattr(os, "eventfd"):
            raise UsageError("this needs memfd_create and eventfd, which only Linux has")
        fd = os.memfd_create("virtio-py rings")
        os.ftruncate(fd, MEMORY_BYTES)
        return cls(fd, os.eventfd(0), os.eventfd(0))

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """What another process needs to stand on the same ground."""
        return self.fd, self.kick, self.call

    def signals(self, case: Case) -> tuple[int, int]:
        """(kick, call) as kernels take them: -1 for polling."""
        return (self.kick, self.call) if case.notify == "eventfd" else (-1, -1)

    def wake(self) -> None:
        """Wakes whoever sleeps on either eventfd."""
        os.eventfd_write(self.kick, 1)
        os.eventfd_write(self.call, 1)

    def close(self) -> None:
        """Gives the descriptors back; the mapping lives as long as somebody uses it."""
        for fd in self.descriptors:
            os.close(fd)


@define(eq=False)
class DriverHalf:
    """The driver's queue and what its kernels take."""

    queue: DriverQueue
    arena: Arena
    done: Batch
    counters: Words

    @property
    def arguments(self) -> tuple[Any, ...]:
        """(ring, state, shadow, memory, batch, done)."""
        q = self.queue
        return q._ring, q._state, q._shadow, q._memory, q._batch, self.done

    @property
    def areas(self) -> tuple[int, int, int]:
        """Guest addresses of the descriptor, driver and device area."""
        return self.queue.descriptor_area, self.queue.driver_area, self.queue.device_area

    def describe(self, n: int, readable: list[tuple[int, int]], writable: list[tuple[int, int]]) -> None:
        """Makes row n of the batch a buffer of these extents; rows go in order."""
        self.queue._describe(n, readable, writable)


@define(eq=False)
class DeviceHalf:
    """The device's queue and what its kernels take."""

    queue: DeviceQueue
    counters: Words

    @property
    def arguments(self) -> tuple[Any, ...]:
        """(ring, state, shadow, memory, batch)."""
        q = self.queue
        return q._bound.ring, q._state, q._shadow, q._bound.memory, q._batch


def make_driver(case: Case, ground: Ground) -> DriverHalf:
    """A new queue at the beginning of the ground's memory, which is zeroed where it takes it."""
    engine = engine_named(case.engine)
    arena = Arena(ground.memory)
    queue = DriverQueue(0, QUEUE_SIZE, arena, case.features, engine, _INDIRECT_ENTRIES)
    return DriverHalf(queue, arena, make_batch(engine, QUEUE_SIZE), engine.words(COUNTERS))


def make_device(case: Case, ground: Ground, areas: tuple[int, int, int]) -> DeviceHalf:
    """The other half, at the addresses that the driver has."""
    config = QueueConfig(0, "benchq", QUEUE_SIZE)
    config.descriptor_area, config.driver_area, config.device_area = areas
    engine = engine_named(case.engine)
    return DeviceHalf(config.activate(ground.memory, case.features, engine, _nobody), engine.words(COUNTERS))


def _nobody() -> None:
    """Kernels decide on notifications themselves; `DeviceQueue` never gets to."""


def fill_batch(case: Case, driver: DriverHalf) -> None:
    """Describes the case's buffers: so many segments each, the last one writable."""
    size = SEGMENT_BYTES * case.chain
    memory = driver.arena.allocate(size * case.batch, SEGMENT_BYTES)
    for n in range(case.batch):
        start = memory.address + n * size
        extents = [(start + SEGMENT_BYTES * i, SEGMENT_BYTES) for i in range(case.chain)]
        driver.describe(n, extents[:-1], extents[-1:])
