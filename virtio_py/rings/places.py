"""Where a virtqueue's parts lie: from addresses or an arena to the ring that the kernels take (2.7, 2.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from attrs import frozen

from virtio_py.errors import MemoryFault, RingError
from virtio_py.memory import Arena, Buffer, GuestMemory
from virtio_py.rings.engine import Engine
from virtio_py.rings.kernels import PackedRing, SplitRing
from virtio_py.rings.layouts import pvirtq_desc, pvirtq_event_suppress, virtq_avail, virtq_desc, virtq_used
from virtio_py.spec import (
    QUEUE_ALIGNMENT_AVAILABLE,
    QUEUE_ALIGNMENT_DESCRIPTOR,
    QUEUE_ALIGNMENT_EVENT,
    QUEUE_ALIGNMENT_USED,
    Feature,
    bit,
)

CACHE_LINE: Final = 64


class Placed(Protocol):
    """Whoever knows a queue's size and the guest addresses of its areas."""

    index: int
    size: int
    descriptor_area: int
    driver_area: int
    device_area: int


class Part(NamedTuple):
    """What one of a queue's three areas takes, in bytes."""

    size: int
    align: int


class Layout(NamedTuple):
    """One of the two layouts: the sizes of its descriptor, driver and device areas, and how a ring is made of them.

    make: (views of the three areas, what both layouts have in common, engine) -> the ring for the kernels;
    alignment: the clause that asks for it.
    """

    parts: Callable[[int], tuple[Part, Part, Part]]
    make: Callable[[list[memoryview], dict[str, int], Engine], Any]
    alignment: str


def _split_parts(size: int) -> tuple[Part, Part, Part]:
    return (
        Part(virtq_desc.size * size, QUEUE_ALIGNMENT_DESCRIPTOR),
        Part(virtq_avail(size).size, QUEUE_ALIGNMENT_AVAILABLE),
        Part(virtq_used(size).size, QUEUE_ALIGNMENT_USED),
    )


def _split_ring(areas: list[memoryview], common: dict[str, int], engine: Engine) -> SplitRing:
    _, avail, used = areas
    size = common["size"]
    return SplitRing(
        avail16=engine.view(avail, "H"),
        used16=engine.view(used, "H"),
        used32=engine.view(used[: virtq_used(size).end("ring")], "I"),
        used_event=virtq_avail(size).offset("used_event") // 2,
        avail_event=virtq_used(size).offset("avail_event") // 2,
        **common,
    )


def _packed_parts(size: int) -> tuple[Part, Part, Part]:
    event = Part(pvirtq_event_suppress.size, QUEUE_ALIGNMENT_EVENT)
    return Part(pvirtq_desc.size * size, QUEUE_ALIGNMENT_DESCRIPTOR), event, event


def _packed_ring(areas: list[memoryview], common: dict[str, int], engine: Engine) -> PackedRing:
    ring, driver, device = areas
    return PackedRing(
        ring16=engine.view(ring, "H"),
        ring32=engine.view(ring, "I"),
        driver_event=engine.view(driver, "I"),
        device_event=engine.view(device, "I"),
        **common,
    )


LAYOUTS: Final[dict[str, Layout]] = {
    "split": Layout(_split_parts, _split_ring, "split.driver.virtqueues.1"),
    "packed": Layout(_packed_parts, _packed_ring, "packed.driver.virtqueues.1"),
}


def layout_name(features: int) -> str:
    """The key into LAYOUTS that these negotiated features ask for."""
    return "packed" if features & bit(Feature.RING_PACKED) else "split"


@frozen
class Areas:
    """A driver's queue in its arena: the three areas, its indirect tables, if any, and what the areas are pieces of."""

    descriptor: Buffer
    driver: Buffer
    device: Buffer
    indirect: Buffer | None
    whole: Buffer | None = None

    def buffers(self) -> list[Buffer]:
        """All that was allocated."""
        areas = [self.descriptor, self.driver, self.device] if self.whole is None else [self.whole]
        return areas if self.indirect is None else [*areas, self.indirect]


class LegacyPlaces(NamedTuple):
    """Where the parts of a legacy queue lie from its start, and what it takes, in bytes (2.7.2)."""

    driver: int
    device: int
    size: int


def legacy_places(size: int, align: int) -> LegacyPlaces:
    """A legacy queue of `size` descriptors, its used ring at a multiple of `align` bytes."""
    driver, available, used = (part.size for part in _split_parts(size))
    device = _round_up(driver + available, align)
    return LegacyPlaces(driver, device, device + _round_up(used, align))


def _round_up(size: int, align: int) -> int:
    return -(-size // align) * align


def _legacy_areas(arena: Arena, size: int, page: int, tables: Buffer | None) -> Areas:
    places = legacy_places(size, page)
    whole = arena.allocate(places.size, page)
    starts, lengths = (0, places.driver, places.device), (part.size for part in _split_parts(size))
    pieces = [Buffer(whole.address + at, whole.view[at : at + n]) for at, n in zip(starts, lengths, strict=True)]
    return Areas(pieces[0], pieces[1], pieces[-1], tables, whole)


def allocate_areas(arena: Arena, layout: str, size: int, indirect: int, page: int = 0) -> Areas:
    """Allocates a queue of `size` descriptors, each with an indirect table of `indirect` entries; all zeroed.

    page: alignment in bytes of a legacy queue, whose areas are one piece; 0 for any other.
    """
    tables = arena.allocate(virtq_desc.size * size * indirect, virtq_desc.size) if indirect else None
    if page:
        return _legacy_areas(arena, size, page, tables)
    # Each part begins a cache line: what one side writes often must not lie beside what the other does.
    parts = [arena.allocate(part.size, max(part.align, CACHE_LINE)) for part in LAYOUTS[layout].parts(size)]
    return Areas(parts[0], parts[1], parts[2], tables)


def driver_ring(areas: Areas, memory: GuestMemory, size: int, features: int, engine: Engine, indirect: int) -> Any:
    """The driver's ring over areas of its own arena, which is one region."""
    start = memory.regions[0].start
    common = {
        "size": size,
        "row": 0,
        "table": areas.descriptor.address - start,
        "indirect": indirect,
        "indirect_at": areas.indirect.address - start if areas.indirect else 0,
        "max_chain": size,
        **_options(features),
    }
    views = [areas.descriptor.view, areas.driver.view, areas.device.view]
    return LAYOUTS[layout_name(features)].make(views, common, engine)


def device_ring(config: Placed, memory: GuestMemory, features: int, engine: Engine, max_chain: int) -> Any:
    """The device's ring at the driver's addresses. Raises RingError for alignment, MemoryFault for no memory."""
    layout = LAYOUTS[layout_name(features)]
    addresses = (config.descriptor_area, config.driver_area, config.device_area)
    views = [
        _area(memory, config.index, address, part, layout.alignment)
        for address, part in zip(addresses, layout.parts(config.size), strict=True)
    ]
    for address, length in written_areas(config, features):
        region = memory.find(address)
        if region is None or not region.writable:
            error = MemoryFault(f"area at {address:#x} is memory that may only be read", queue=config.index)
            error.access = address, length, True
            raise error
    row = next(i for i, region in enumerate(memory.regions) if region is memory.find(config.descriptor_area))
    common = {
        "size": config.size,
        "row": row,
        "table": config.descriptor_area - memory.regions[row].start,
        "indirect": int(bool(features & bit(Feature.INDIRECT_DESC))),
        "indirect_at": 0,
        "max_chain": max_chain,
        **_options(features),
    }
    return layout.make(views, common, engine)


def written_areas(config: Placed, features: int) -> list[tuple[int, int]]:
    """What of a queue a device writes to, as (guest address, length): the whole areas, not single elements."""
    descriptor, _, device = LAYOUTS[layout_name(features)].parts(config.size)
    areas = [(config.device_area, device.size)]
    # Used descriptors of the packed layout are written where the available ones were.
    return [*areas, (config.descriptor_area, descriptor.size)] if layout_name(features) == "packed" else areas


def _options(features: int) -> dict[str, int]:
    return {
        "event_idx": int(bool(features & bit(Feature.EVENT_IDX))),
        "in_order": int(bool(features & bit(Feature.IN_ORDER))),
    }


def _area(memory: GuestMemory, queue: int, address: int, part: Part, clause: str) -> memoryview:
    if address % part.align:
        raise RingError(f"area at {address:#x} is not aligned to {part.align}", clause=clause, queue=queue)
    try:
        return memory.view(address, part.size)
    except MemoryFault as error:
        error.queue, error.access = queue, (address, part.size, False)
        raise
