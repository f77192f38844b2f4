"""Where a split virtqueue's parts lie: from addresses or an arena to the ring that the kernels take (2.7)."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from virtio_py.errors import MemoryFault, RingError
from virtio_py.memory import Arena, Buffer, GuestMemory
from virtio_py.rings.engine import Engine
from virtio_py.rings.kernels import SplitRing
from virtio_py.rings.layouts import virtq_avail, virtq_desc, virtq_used
from virtio_py.spec import (
    QUEUE_ALIGNMENT_AVAILABLE,
    QUEUE_ALIGNMENT_DESCRIPTOR,
    QUEUE_ALIGNMENT_USED,
    Feature,
    bit,
)


class Placed(Protocol):
    """Whoever knows a queue's size and the guest addresses of its areas."""

    index: int
    size: int
    descriptor_area: int
    driver_area: int
    device_area: int


@frozen
class Areas:
    """A driver's queue in its arena: the three areas, and its indirect tables, if any."""

    descriptor: Buffer
    driver: Buffer
    device: Buffer
    indirect: Buffer | None

    def buffers(self) -> list[Buffer]:
        """All that was allocated."""
        return [b for b in (self.descriptor, self.driver, self.device, self.indirect) if b is not None]


def split_areas(arena: Arena, size: int, indirect: int) -> Areas:
    """Allocates a queue of `size` descriptors, each with an indirect table of `indirect` entries; all zeroed."""
    return Areas(
        arena.allocate(virtq_desc.size * size, QUEUE_ALIGNMENT_DESCRIPTOR),
        arena.allocate(virtq_avail(size).size, QUEUE_ALIGNMENT_AVAILABLE),
        arena.allocate(virtq_used(size).size, QUEUE_ALIGNMENT_USED),
        arena.allocate(virtq_desc.size * size * indirect, virtq_desc.size) if indirect else None,
    )


def split_driver_ring(
    areas: Areas, memory: GuestMemory, size: int, features: int, engine: Engine, indirect: int
) -> SplitRing:
    """The driver's ring over areas of its own arena."""
    start = memory.regions[0].start
    tables = areas.indirect.address - start if areas.indirect else 0
    return SplitRing(
        size=size,
        row=0,
        table=areas.descriptor.address - start,
        avail16=engine.view(areas.driver.view, "H"),
        used16=engine.view(areas.device.view[: virtq_used(size).size // 2 * 2], "H"),
        used32=engine.view(_elements(areas.device.view, size), "I"),
        indirect=indirect,
        indirect_at=tables,
        max_chain=size,
        **_common(size, features),
    )


def split_device_ring(config: Placed, memory: GuestMemory, features: int, engine: Engine, max_chain: int) -> SplitRing:
    """The device's ring at the driver's addresses. Raises RingError for alignment, MemoryFault for no memory."""
    size = config.size
    table = _area(memory, config, config.descriptor_area, virtq_desc.size * size, QUEUE_ALIGNMENT_DESCRIPTOR)
    avail = _area(memory, config, config.driver_area, virtq_avail(size).size, QUEUE_ALIGNMENT_AVAILABLE)
    used = _area(memory, config, config.device_area, virtq_used(size).size, QUEUE_ALIGNMENT_USED)
    row = next(i for i, region in enumerate(memory.regions) if region is memory.find(config.descriptor_area))
    assert len(table) == virtq_desc.size * size
    return SplitRing(
        size=size,
        row=row,
        table=config.descriptor_area - memory.regions[row].start,
        avail16=engine.view(avail, "H"),
        used16=engine.view(used, "H"),
        used32=engine.view(_elements(used, size), "I"),
        indirect=int(bool(features & bit(Feature.INDIRECT_DESC))),
        indirect_at=0,
        max_chain=max_chain,
        **_common(size, features),
    )


def _elements(used: memoryview, size: int) -> memoryview:
    """The used ring up to its last element: whole 32-bit words."""
    return used[: virtq_used(size).end("ring")]


def _common(size: int, features: int) -> dict[str, int]:
    return {
        "used_event": virtq_avail(size).offset("used_event") // 2,
        "avail_event": virtq_used(size).offset("avail_event") // 2,
        "event_idx": int(bool(features & bit(Feature.EVENT_IDX))),
        "in_order": int(bool(features & bit(Feature.IN_ORDER))),
    }


def _area(memory: GuestMemory, config: Placed, address: int, length: int, align: int) -> memoryview:
    if address % align:
        raise RingError(
            f"area at {address:#x} is not aligned to {align}", clause="split.driver.virtqueues.1", queue=config.index
        )
    try:
        return memory.view(address, length)
    except MemoryFault as error:
        error.queue = config.index
        raise
