"""Drivers, and ring kernels of the driver's half, each broken in one clause: the device judges them.

Drivers that ask for something wrong by hand are in `test_conformance_driver.py`; these are ours, with a part broken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.mutants.edits import broken_engine, edited
from tests.mutants.registry import RING, Mutant, judge_driver, register
from virtio_py.device import Device
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.driver import Driver
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.spec import Feature, bit
from virtio_py.transports.in_process import InProcess

VERSION: Final = bit(Feature.VERSION_1)
_INDIRECT: Final = bit(Feature.INDIRECT_DESC)
_EVENTS: Final = bit(Feature.EVENT_IDX)
_PACKED: Final = bit(Feature.RING_PACKED)
_SPLIT_FLAGS: Final = "flags = F_WRITE if segment >= middle else 0"

KERNELS: Final[dict[str, tuple[str, int, str, str, str]]] = {
    "a chain ends in its beginning": (
        "split.driver.descriptor-table.1", 0, "split_write_direct", "address, length, flags, following)\n        index",
        "address, length, flags | F_NEXT, head)\n        index",
    ),
    "in order, backwards": (
        "split.driver.descriptor-table.2", bit(Feature.IN_ORDER), "split_write_direct",
        "following = shadow[index * SHADOW + NEXT]",
        "following = (index + 1 + (index == head)) & (ring.size - 1)",
    ),
    "a table though none was negotiated": (
        "split.driver.indirect-descriptors.1", 0, "split_write_direct", _SPLIT_FLAGS,
        f"{_SPLIT_FLAGS}\n        flags |= F_INDIRECT",
    ),
    "a table in a table": (
        "split.driver.indirect-descriptors.2", _INDIRECT, "split_write_indirect",
        _SPLIT_FLAGS, f"{_SPLIT_FLAGS}\n        flags |= F_INDIRECT",
    ),
    "a chain longer than the queue": (
        "split.driver.indirect-descriptors.3", _INDIRECT, "split_write_indirect",
        "for segment in range(first, end):", "end = first + 20\n    for segment in range(first, end):",
    ),
    "a table with something behind it": (
        "split.driver.indirect-descriptors.4", _INDIRECT, "split_write_indirect", "F_INDIRECT, 0)",
        "F_INDIRECT | F_NEXT, 0)",
    ),
    "a table linked at random": (
        "split.driver.indirect-descriptors.5", _INDIRECT | bit(Feature.IN_ORDER), "split_write_indirect",
        "following = entry + 1", "following = (entry + 1) ^ (end - first > 2 and entry < 2) * 3",
    ),
    "writable ones first": (
        "split.driver.message-framing.1", 0, "split_write_direct", "segment >= middle", "segment < middle",
    ),
    "the index is far ahead": (
        "split.driver.available-ring.1", 0, "split_publish",
        "store_release(ring.avail16, AVAIL_IDX, state[NEXT_AVAILABLE])",
        "store_release(ring.avail16, AVAIL_IDX, (state[NEXT_AVAILABLE] + 999) & 0xFFFF)",
    ),
    "the available flags have another bit": (
        "split.driver.used-buffer-notification-suppression.1", 0, "split_driver_notifications", "0 if enabled",
        "4 if enabled",
    ),
    "the available flags with EVENT_IDX": (
        "split.driver.used-buffer-notification-suppression.3", _EVENTS, "split_publish", "state[SINCE] +=",
        "store_release(ring.avail16, AVAIL_FLAGS, NO_INTERRUPT)\n    state[SINCE] +=",
    ),
    "a list of tables": (
        "packed.driver.indirect-descriptors.1", _PACKED, "packed_flags", "flags |= F_NEXT",
        "flags |= F_NEXT | F_INDIRECT",
    ),
    "a table's entries have NEXT": (
        "packed.driver.indirect-descriptors.2", _PACKED | _INDIRECT, "packed_write_indirect",
        _SPLIT_FLAGS, f"{_SPLIT_FLAGS}\n        flags |= F_NEXT",
    ),
    "a list with a table": (
        "packed.driver.indirect-descriptors.4", _PACKED | _INDIRECT, "packed_add", "| F_INDIRECT",
        "| F_INDIRECT | F_NEXT",
    ),
    "writable ones first in a list": (
        "packed.driver.scatter-gather-support.3", _PACKED, "packed_flags", "segment >= middle", "segment < middle",
    ),
    "the rest of a list never comes": (
        "packed.driver.scatter-gather-support.6", _PACKED, "packed_add",
        "ring16[slot * STRIDE16 + DESC_FLAGS] = packed_flags(segment, middle, end, wrap)", "pass",
    ),
}  # fmt: skip
"""What is wrong: the clause, the features it needs, the kernel, what its source says, and what the mutant's says."""

HARD: Final = {
    "a table's entries have NEXT": "the device's half passes over such flags, as it may; the judge did not look either",
}


def _broken(function: Callable[..., object], old: str, new: str) -> type[BlkDriver]:
    """Our driver, with a method broken."""
    return type("Broken", (BlkDriver,), {function.__name__: edited(function, old, new)})


METHODS: Final[dict[str, tuple[str, Callable[..., object], str, str]]] = {
    "a flush of a sector": (
        "blk.driver.device-op.4", BlkDriver.flush, "BlkRequest.FLUSH, queue", "BlkRequest.FLUSH, 7, queue",
    ),
    "an ID of 21 bytes": ("blk.driver.device-op.8", BlkDriver.get_id, "ID_BYTES", "ID_BYTES + 1"),
    "a step is left out": (
        "basic.driver.device-initialization.1", Driver.start, "if step.status and",
        "if step.status > DeviceStatus.ACKNOWLEDGE and",
    ),
    "a status is written over": (
        "status.driver.device-status-field.1", Driver.start,
        "self.transport.read_status() | step.status)", "(self.transport.read_status() | step.status) & ~2)",
    ),
    "features are chosen twice": (
        "basic.driver.device-initialization.5", Driver.check_features_ok,
        "if not self.transport.legacy_page",
        "self.transport.accept_features(self.features)\n    if not self.transport.legacy_page",
    ),
    "the used flags are not zeroed": (
        "split.driver.available-buffer-notification-suppression.1", Driver.set_up,
        "if self.has(Feature.ADMIN_VQ):",
        "self.transport.arena.memory.write(self.queues[0].device_area, b'\\1')\n    if self.has(Feature.ADMIN_VQ):",
    ),
}  # fmt: skip
"""What is wrong: the clause, the method, what its source says, and what it says in the mutant."""


def _disk() -> Device:
    return BlkDevice(MemoryMedium.of(1 << 20))


def _requests(driver: BlkDriver) -> None:
    driver.timeout = 0.2
    driver.start()
    driver.write(8, bytes(8192))
    driver.read(8, 16)
    driver.flush()
    driver.get_id()


def use(ring: int, engine: Engine = REFERENCE, kind: type[BlkDriver] = BlkDriver) -> Callable[[InProcess], None]:
    features = BlkDriver.known_features | ring
    return lambda carrier: _requests(kind(carrier, engine=engine, features=features, queue_size=16))


def _register(name: str, clause: str, ring: int, use: Callable[[InProcess], None]) -> None:
    judge = judge_driver("blk", _disk, use, RING & (VERSION | ring))
    register(Mutant(name, clause, judge, "drivers", hard=HARD.get(name, "")))


for _name, (_clause, _features, *_edit) in KERNELS.items():
    _register(_name, _clause, _features, use(_features, broken_engine(*_edit)))
for _name, (_clause, _method, _old, _new) in METHODS.items():
    _register(_name, _clause, 0, use(0, kind=_broken(_method, _old, _new)))
