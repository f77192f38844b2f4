"""Run as a program: the compiled engine under random writes, with untouchable pages on both sides of its memory."""

from __future__ import annotations

import ctypes
import mmap
import random
import sys

from tests.ring_matrix import Case
from virtio_py.errors import PeerError, UsageError
from virtio_py.memory import Arena, GuestMemory, Region
from virtio_py.rings.layouts import pvirtq_desc, virtq_desc
from virtio_py.rings.queue import DeviceQueue, DriverQueue, QueueConfig

PAGE = mmap.PAGESIZE
SIZE = 8
ROUNDS = 3000


def guarded(size: int) -> memoryview:
    """`size` bytes, whole pages, between two pages of which any access is a segmentation fault."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    base = libc.mmap(None, size + 2 * PAGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if libc.mprotect(base + PAGE, size, mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
    return memoryview((ctypes.c_char * size).from_address(base + PAGE)).cast("B")


def spoil(view: memoryview, dice: random.Random, areas: list[tuple[int, int]]) -> None:
    """Overwrites part of the rings: with noise, or with descriptors whose ranges end about where memory does."""
    at, length = dice.choice(areas)
    if dice.random() < 0.5:
        where = at + dice.randrange(length)
        noise = dice.randbytes(min(dice.randint(1, 16), len(view) - where))
        view[where : where + len(noise)] = noise
        return
    slot = at + dice.randrange(max(length // virtq_desc.size, 1)) * virtq_desc.size
    flags = dice.choice([0, 1, 2, 4, 4, 6]) | dice.choice([0, 0x80, 0x8080])
    edge = dice.choice([0x1000, 0x1000 + len(view), dice.randrange(0x1000, 0x1000 + len(view))])
    number = dice.choice([0, 1, 16, 32, 160, 0xFFFFFFF0, dice.randrange(1 << 32)])
    address = (edge + dice.choice([-32, -16, -1, 0, 1, -number])) % (1 << 64)
    record, other = (virtq_desc, "next") if dice.random() < 0.5 else (pvirtq_desc, "id")
    data = record.encode(addr=address, len=number, flags=flags, **{other: dice.choice([0, 1, SIZE - 1, SIZE, 0xFFFF])})
    view[slot : slot + len(data)] = data[: len(view) - slot]


def aim(view: memoryview, dice: random.Random, slot: int) -> None:
    """Turns a descriptor that is available already to the end of the memory: address, length and the three flags."""
    length = dice.choice([1, 2, 16, 32, 48, 160, 0xFFFFFFF0])
    address = 0x1000 + len(view) - dice.choice([0, 1, 2, 16, 32, length, length - 1])
    flags = view[slot + virtq_desc.offset("flags")] & ~7 | dice.choice([0, 1, 2, 4, 4, 4])
    number = dice.choice([SIZE, 0xFFFF, 0x7FFF])
    data = virtq_desc.encode(addr=address % (1 << 64), len=length, flags=flags, next=number)
    for name in ("addr", "len", *dice.choice([(), ("next",)])):
        at, end = virtq_desc.offset(name), virtq_desc.end(name)
        view[slot + at : slot + end] = data[at:end]
    view[slot + virtq_desc.offset("flags")] = flags


def play(case: Case, seed: int) -> int:
    """One queue under fire until it has been tried enough; how many faults were found."""
    dice = random.Random(seed)
    view = guarded(PAGE)
    arena = Arena(GuestMemory([Region(0x1000, view)]))
    driver = DriverQueue(0, SIZE, arena, case.features, case.engine, 2)
    buffers = []
    while arena.free_bytes > 64:
        buffers.append(arena.allocate(32))
    config = QueueConfig(0, "queue", SIZE)
    config.descriptor_area, config.driver_area, config.device_area = (
        driver.descriptor_area, driver.driver_area, driver.device_area
    )  # fmt: skip
    device = config.activate(arena.memory, case.features, case.engine, lambda: None)
    rings = [(area - 0x1000, 16 * SIZE) for area in (driver.descriptor_area, driver.driver_area, driver.device_area)]
    faults = 0
    for _ in range(60):
        if dice.random() < 0.5:
            spoil(view, dice, [*rings, (0, PAGE - 16), (PAGE - 64, 48)])
        else:
            for slot in range(SIZE):
                aim(view, dice, rings[0][0] + slot * virtq_desc.size)
        faults += step(dice, driver, device, [b.extent for b in buffers])
    return faults


def step(dice: random.Random, driver: DriverQueue, device: DeviceQueue, extents: list[tuple[int, int]]) -> int:
    """One of the things that both halves do; 1 if it found a fault."""
    try:
        match dice.randrange(5):
            case 0:
                driver.add([dice.choice(extents)], [dice.choice(extents)])
            case 1:
                driver.take_used()
                driver.enable_notifications()
            case 2:
                driver.needs_notification()
                device.enable_notifications()
            case _:
                chains = device.take()
                for chain in chains:
                    chain.readable.read_all()
                    chain.writable.write(bytes(chain.writable.remaining))
                device.complete(chains)
    except (PeerError, UsageError):
        return 1
    return 0


def main(layout: str) -> None:
    """Many queues; prints how many faults were found."""
    faults = 0
    for seed in range(ROUNDS // 20):
        case = Case(layout, "compiled", seed % 2 == 1, seed % 4 > 1, True)
        faults += play(case, seed)
    print(faults, "faults")


if __name__ == "__main__":
    main(sys.argv[1])
