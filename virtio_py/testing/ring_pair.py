"""Both halves of one queue in one memory, at any position of the ring: what machines and tests of rings work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import define, field, frozen

from virtio_py.memory import Arena, GuestMemory
from virtio_py.rings.engine import Engine, engine_named
from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import pvirtq_desc, virtq_avail, virtq_used
from virtio_py.rings.queue import DeviceQueue, DriverQueue, QueueConfig, QueueState
from virtio_py.spec import PackedDescFlag
from virtio_py.testing.ring_cases import ring_features


@frozen
class Case:
    """One combination of what rings can negotiate, and the engine that runs them."""

    layout: str
    engine_name: str
    in_order: bool
    event_idx: bool
    indirect: bool

    @property
    def engine(self) -> Engine:
        """The engine itself."""
        return engine_named(self.engine_name)

    @property
    def features(self) -> int:
        """The mask of the feature bits."""
        return ring_features(self.layout, self.in_order, self.event_idx, self.indirect)

    def __str__(self) -> str:
        words = {"in_order": self.in_order, "event_idx": self.event_idx, "indirect": self.indirect}
        return "-".join([self.layout, self.engine_name, *(word for word, wanted in words.items() if wanted)])


@define(eq=False)
class Pair:
    """A driver's and a device's half of one queue. notified: used buffer notifications sent so far."""

    arena: Arena
    driver: DriverQueue
    config: QueueConfig
    device: DeviceQueue = field(init=False)
    notified: int = field(default=0, init=False)

    def notify(self) -> None:
        """The device's used buffer notification."""
        self.notified += 1


def pair(case: Case, size: int, start: int = 0, memory: int = 1 << 17, indirect: int = 16) -> Pair:
    """Both halves over one arena, as they stand after `start` buffers (split) or slots (packed) went through."""
    arena = Arena(GuestMemory.of(memory, start=0x1000))
    driver = DriverQueue(0, size, arena, case.features, case.engine, indirect)
    config = QueueConfig(0, "queue", size)
    config.descriptor_area, config.driver_area = driver.descriptor_area, driver.driver_area
    config.device_area = driver.device_area
    made = Pair(arena, driver, config)
    if start:
        _BEGIN[case.layout](made, start)
    made.device = config.activate(arena.memory, case.features, case.engine, made.notify)
    return made


def poke(memory: GuestMemory, area: int, record: Any, path: str, value: int) -> None:
    """Stores a 16-bit field of a structure at `area`."""
    memory.write(area + record.offset(path), value.to_bytes(2, "little"))


def _begin_split(made: Pair, start: int) -> None:
    driver, memory = made.driver, made.arena.memory
    for word in (k.NEXT_AVAILABLE, k.NEXT_USED, k.PUBLISHED):
        driver._state[word] = start
    for path in ("idx", "used_event"):
        poke(memory, driver.driver_area, virtq_avail(driver.size), path, start)
    for path in ("idx", "avail_event"):
        poke(memory, driver.device_area, virtq_used(driver.size), path, start)
    made.config.state = QueueState(start, start)


def _begin_packed(made: Pair, start: int) -> None:
    """In the first lap: the slots before the start look used, those behind it are still zero."""
    driver, memory = made.driver, made.arena.memory
    slot = start % driver.size
    for word in (k.NEXT_AVAILABLE, k.NEXT_USED, k.PUBLISHED):
        driver._state[word] = slot
    for n in range(slot):
        at = driver.descriptor_area + n * pvirtq_desc.size
        poke(memory, at, pvirtq_desc, "flags", PackedDescFlag.AVAIL | PackedDescFlag.USED)
    made.config.state = QueueState(slot, slot)


_BEGIN: Final[dict[str, Callable[[Pair, int], None]]] = {"split": _begin_split, "packed": _begin_packed}
