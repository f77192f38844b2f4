"""What the demonstration does with bare rings: the same random schedule on two engines, and a stopwatch."""

from __future__ import annotations

import random
import time
from typing import Any, Final, NamedTuple

from attrs import define, field

from virtio_py.errors import UsageError
from virtio_py.memory import Arena, Buffer, GuestMemory
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import Engine
from virtio_py.rings.queue import DeviceQueue, DriverQueue, QueueConfig
from virtio_py.spec import Feature, bit, mask

_SIZES: Final = {"split": (2, 4, 8, 16), "packed": (2, 3, 5, 8, 16)}
_CHOICES: Final = (Feature.RING_PACKED, Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.IN_ORDER)
_SEGMENT: Final = 64


@define
class Lane:
    """Both halves of a queue on one engine, in memory of their own, and what has to come back.

    expected: for each token outstanding, the bytes that the device wrote for it, once it has.
    """

    engine: Engine
    features: int
    size: int
    memory_size: int = 1 << 15
    arena: Arena = field(init=False)
    driver: DriverQueue = field(init=False)
    device: DeviceQueue = field(init=False)
    buffers: list[Buffer] = field(init=False)
    taken: list[Chain] = field(factory=list, init=False)
    notifications: int = field(default=0, init=False)
    expected: dict[int, int] = field(factory=dict, init=False)
    sent: int = field(default=0, init=False)
    received: int = field(default=0, init=False)
    order: list[int] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.arena = Arena(GuestMemory.of(self.memory_size))
        self.driver = DriverQueue(0, self.size, self.arena, self.features, self.engine, indirect=4)
        config = QueueConfig(0, "queue", self.size)
        config.descriptor_area, config.driver_area, config.device_area = self.driver.areas
        self.device = config.activate(self.arena.memory, self.features, self.engine, self._notified)
        self.buffers = [self.arena.allocate(_SEGMENT) for _ in range(8)]

    def _notified(self) -> None:
        self.notifications += 1

    @property
    def bytes(self) -> bytes:
        """All of the memory."""
        return bytes(self.arena.memory.regions[0].view)

    # Steps. What they return, and the memory, must not depend on the engine.

    def add(self, segments: list[int], readable: int) -> int:
        """The driver adds a buffer of these segments, the first ones readable, if there is room."""
        extents = [self.buffers[i].extent for i in segments]
        added = self.driver.add_many([(extents[:readable], extents[readable:], self.sent)])
        self.order += [self.sent] * added
        self.sent += added
        return added

    def take(self, limit: int) -> list[tuple[int, int, int]]:
        """The device takes buffers."""
        chains = self.device.take(limit)
        self.taken += chains
        return [(c.id, c.readable.remaining, c.writable.remaining) for c in chains]

    def complete(self, which: int, fill: bool) -> int:
        """The device writes to one of those that it has, and returns it."""
        if not self.taken:
            return 0
        at = which % len(self.taken)
        token = self.order.pop(at)
        chain = self.taken.pop(at)
        chain.writable.write(bytes([token & 0xFF]) * (chain.writable.remaining if fill else 0))
        self.expected[token] = chain.used_length
        self.device.complete([chain])
        return self.notifications

    def take_used(self, limit: int) -> list[tuple[int, int]]:
        """The driver takes buffers back: each must be one that was used, once, with what was written."""
        done = self.driver.take_used(limit)
        for token, length in done:
            if self.expected.pop(token, None) != length:
                raise AssertionError(f"buffer {token} came back with {length} bytes")
        self.received += len(done)
        return done

    def notify(self, driver: bool, wanted: bool) -> bool:
        """One side changes its mind about notifications."""
        half = self.driver if driver else self.device
        if wanted:
            return half.enable_notifications()
        half.disable_notifications()
        return False

    def kick(self) -> bool:
        """Whether the driver would send a notification."""
        return self.driver.needs_notification()


class Outcome(NamedTuple):
    """What a run of random schedules came to. difference: where two engines or a ring and its model disagreed."""

    schedules: int
    steps: int
    buffers: int
    difference: str


def run_schedules(engines: list[Engine], seed: int, seconds: float) -> Outcome:
    """Random schedules, each on all engines in step, until the time is up. One engine runs against the model alone."""
    rng = random.Random(seed)
    schedules = steps = buffers = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        features = bit(Feature.VERSION_1) | mask(*(f for f in _CHOICES if rng.random() < 0.5))
        size = rng.choice(_SIZES["packed" if features & bit(Feature.RING_PACKED) else "split"])
        lanes = [Lane(engine, features, size) for engine in engines]
        schedules += 1
        for _ in range(100):
            name, arguments = _draw(rng, size)
            steps += 1
            if difference := _step(lanes, name, arguments):
                text = f"schedule {schedules} (features {features:#x}, size {size}), {name}{arguments}: {difference}"
                return Outcome(schedules, steps, buffers, text)
        buffers += lanes[0].received
    return Outcome(schedules, steps, buffers, "")


def _draw(rng: random.Random, size: int) -> tuple[str, tuple[Any, ...]]:
    name = rng.choice(("add", "add", "add", "take", "complete", "complete", "take_used", "notify", "kick"))
    segments = [rng.randrange(8) for _ in range(rng.randint(1, min(size, 4)))]
    arguments: dict[str, tuple[Any, ...]] = {
        "add": (segments, rng.randint(0, len(segments))),
        "take": (rng.randint(1, 4),),
        "complete": (rng.randrange(16), rng.random() < 0.7),
        "take_used": (rng.randint(1, 4),),
        "notify": (rng.random() < 0.5, rng.random() < 0.5),
        "kick": (),
    }
    return name, arguments[name]


def _step(lanes: list[Lane], name: str, arguments: tuple[Any, ...]) -> str:
    try:
        results = [getattr(lane, name)(*arguments) for lane in lanes]
    except (AssertionError, UsageError) as error:
        return str(error)
    if any(result != results[0] for result in results):
        return f"the engines return {' and '.join(map(str, results))}"
    memories = [lane.bytes for lane in lanes] if len(lanes) > 1 else []
    return "the engines leave different memory" if any(m != memories[0] for m in memories) else ""


BATCH: Final = 32
"""Buffers that are added, taken, completed and taken back at once when throughput is measured."""


def buffers_a_second(engine: Engine, layout: str, seconds: float) -> float:
    """Buffers through a queue of 256 of one descriptor each: both halves in turn on this thread, by their methods."""
    features = bit(Feature.VERSION_1) | (bit(Feature.RING_PACKED) if layout == "packed" else 0)
    lane = Lane(engine, features, 256)
    batch = [([buffer.extent], (), None) for buffer in lane.buffers] * (BATCH // len(lane.buffers))
    moved, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        lane.driver.add_many(batch)
        lane.device.complete(lane.device.take())
        moved += len(lane.driver.take_used())
    return moved / spent
