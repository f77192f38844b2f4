"""A stress of two cores: every byte of every buffer checked on both sides, through `rings.kernels.stress`."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from virtio_py.rings.kernels import common as k
from virtio_py.testing.machine import two_processors
from virtio_py.testing.ring_cases import Case
from virtio_py.testing.ring_exchange import Side, clear, local_side, side_by_side
from virtio_py.testing.ring_halves import QUEUE_SIZE, DeviceHalf, DriverHalf, Ground, make_device, make_driver

# Each takes two descriptors, or one with a table: so many can be outstanding at once.
_PLACES: Final = QUEUE_SIZE

MEANINGS: Final = {
    -1: "it did not get to run",
    0: "all is well",
    k.STOPPED: "it was stopped, because the other half had failed or the time was up",
    k.WRONG_REQUEST: "the device read what the driver did not send it then",
    k.WRONG_ANSWER: "the driver read what the device did not answer",
    k.WRONG_LENGTH: "the driver was told a length that the device did not write",
    k.WRONG_FILLING: "bytes were written that nobody should have written",
    k.WRONG_ORDER: "a buffer came back before an older one, in order",
    k.NOT_SENT: "a buffer came back that was not sent, or had come back before",
}
"""What a half may end with, besides the faults of a ring."""


@frozen
class Outcome:
    """How it ended: either half's code, the bytes both checked, and the driver's time in seconds."""

    driver: int
    device: int
    bytes_checked: int
    seconds: float

    @property
    def well(self) -> bool:
        """Whether nothing was wrong."""
        return self.driver == self.device == 0

    def __str__(self) -> str:
        if self.well:
            return f"{self.bytes_checked:,} bytes checked in {self.seconds:.1f} s, none wrong"
        told = ((name, getattr(self, name)) for name in ("driver", "device"))
        return "; ".join(f"{name}: {MEANINGS.get(code, f'fault {code} of the ring')}" for name, code in told)


def bytes_of(total: int) -> int:
    """How many bytes both halves together have to check in a run of `total` buffers."""
    return total * (k.READABLE_BYTES + k.READABLE_BYTES + k.WRITABLE_BYTES)


def stress(case: Case, total: int, timeout: float | None = None) -> Outcome:
    """Moves `total` buffers, polling, in batches of up to the case's; stops after `timeout` seconds."""
    ground = Ground.new()
    try:
        return _stress(case, ground, total, timeout)
    finally:
        ground.close()


def _stress(case: Case, ground: Ground, total: int, timeout: float | None) -> Outcome:
    driver = make_driver(case, ground)
    device = make_device(case, ground, driver.areas)
    here, there = two_processors() or (None, None)
    sides = [_driver(case, driver, ground, here, total), _device(case, device, ground, there, total)]
    codes = side_by_side(sides, timeout)
    checked = driver.counters[k.BYTES] + device.counters[k.BYTES]
    return Outcome(codes[0], codes[1], int(checked), sides[0].seconds)


def _driver(case: Case, half: DriverHalf, ground: Ground, processor: int | None, total: int) -> Side:
    engine = half.queue.engine
    owners, places = engine.words(k.OWNER * QUEUE_SIZE), engine.words(_PLACES)
    memory = half.arena.allocate(k.PIECE * _PLACES, k.PIECE)
    for n in range(_PLACES):
        places[n] = memory.address + n * k.PIECE
    for n in range(case.batch):
        half.describe(n, [(memory.address, k.READABLE_BYTES)], [(memory.address, k.WRITABLE_BYTES)])
    kernel = engine.kernels[f"{case.layout}_stress_driver"]
    arguments = (*half.arguments, owners, places, half.counters, total, case.batch)
    clear(half.counters)
    return local_side(lambda: int(kernel(*arguments)), half.counters, ground, processor)


def _device(case: Case, half: DeviceHalf, ground: Ground, processor: int | None, total: int) -> Side:
    kernel = half.queue.engine.kernels[f"{case.layout}_stress_device"]
    arguments = (*half.arguments, half.counters, total, case.batch)
    clear(half.counters)
    return local_side(lambda: int(kernel(*arguments)), half.counters, ground, processor)
