"""Pictures of rings: what is in a virtqueue, who owns it, and what is wrong with it by which clause.

    picture_of(queue)                                   a DriverQueue's or DeviceQueue's ring, with its own positions
    picture_of_bytes("packed", 256, dump, 0x1000, …)    a ring in memory, of which nothing else is known
    print(draw(picture))                                as engineers draw it on a whiteboard (`rings.drawing`)

A picture is taken by reading alone: neither side notices. Whatever the memory holds, taking one raises nothing but
MemoryFault for a ring that is not wholly in it: loops, wild indices and the like are problems, and part of the picture.
"""

from __future__ import annotations

from virtio_py.errors import UsageError
from virtio_py.memory import GuestMemory, Region
from virtio_py.rings.picture import RingPicture
from virtio_py.rings.places import LAYOUTS
from virtio_py.rings.queue import DeviceQueue, DriverQueue
from virtio_py.rings.trace_packed import packed_picture
from virtio_py.rings.trace_split import split_picture
from virtio_py.rings.trace_walk import Source
from virtio_py.spec import MAX_QUEUE_SIZE

PICTURES = {"split": split_picture, "packed": packed_picture}


def picture_of(queue: DriverQueue | DeviceQueue) -> RingPicture:
    """A running queue's ring as its own side sees it. The other side may be at work; then parts may not fit together.

    Raises MemoryFault if the memory has been taken away.
    """
    source = Source(
        layout=queue.layout,
        size=queue.size,
        memory=queue.memory,
        areas=queue.areas,
        features=queue.features,
        seen_by="driver" if isinstance(queue, DriverQueue) else "device",
        state=queue.state,
        held=queue.held,
    )
    return PICTURES[queue.layout](source)


def picture_of_bytes(
    layout: str,
    size: int,
    memory: GuestMemory | bytes | bytearray,
    descriptor_at: int,
    driver_at: int | None = None,
    device_at: int | None = None,
    *,
    features: int | None = None,
) -> RingPicture:
    """A ring in memory, all else inferred. Addresses are guest addresses, or offsets into bytes.

    driver_at, device_at: directly behind the area before by default, aligned; features: mask of what was negotiated,
    if known. Buffers outside the memory given are no problem: it may be a part of the guest's. Raises MemoryFault for
    areas outside it, UsageError for a size or layout that cannot be.
    """
    areas = default_areas(layout, size, descriptor_at, driver_at, device_at)
    given = memory if isinstance(memory, GuestMemory) else as_memory(memory)
    return PICTURES[layout](Source(layout, size, given, areas, features, complete=False))


def as_memory(data: bytes | bytearray, start: int = 0) -> GuestMemory:
    """Bytes as guest memory from address `start` on: a bytearray itself, a copy of anything else."""
    view = memoryview(data if isinstance(data, bytearray) else bytearray(data))
    return GuestMemory([Region(start, view)] if data else [])


def default_areas(
    layout: str, size: int, descriptor_at: int, driver_at: int | None, device_at: int | None
) -> tuple[int, int, int]:
    """The three addresses; those not given lie behind the area before, at the next aligned address.

    Raises UsageError for a size or layout that cannot be.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"no ring layout is named {layout!r}, only {' and '.join(LAYOUTS)}")
    if not 0 < size <= MAX_QUEUE_SIZE or (layout == "split" and size & (size - 1)):
        raise UsageError(f"{size} is not the size of a {layout} virtqueue")
    table, driver, device = LAYOUTS[layout].parts(size)
    driver_at = _aligned(descriptor_at + table.size, driver.align) if driver_at is None else driver_at
    device_at = _aligned(driver_at + driver.size, device.align) if device_at is None else device_at
    return descriptor_at, driver_at, device_at


def _aligned(address: int, align: int) -> int:
    return -(-address // align) * align
