"""I/O virtual addresses (VIRTIO_F_ACCESS_PLATFORM) and dirty logs, against plain models."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.errors import MemoryFault, UsageError
from virtio_py.memory import AddressSpace, Arena, DirtyLog, GuestMemory, Region
from virtio_py.rings.engine import engine_named
from virtio_py.rings.places import written_areas
from virtio_py.rings.queue import DriverQueue, QueueConfig
from virtio_py.rings.write_log import WriteLog
from virtio_py.spec import Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.in_process import InProcess

STEP = st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 20), st.integers(0, 60))


@given(st.lists(STEP, max_size=12))
@settings(max_examples=200, deadline=None)
def test_an_address_space_is_a_dict_of_bytes(steps: list[tuple[bool, int, int, int]]) -> None:
    target = GuestMemory.of(64)
    target.write(0, bytes(range(64)))
    space, model = AddressSpace(target), dict[int, int]()
    for mapping, iova, size, address in steps:
        wanted = range(iova, iova + size)
        if not mapping:
            space.unmap(iova, size)
            model = {at: byte for at, byte in model.items() if at not in wanted}
        elif address + size > 64:
            with pytest.raises(MemoryFault):
                space.map(iova, size, address)
        elif model.keys() & set(wanted):
            with pytest.raises(UsageError):
                space.map(iova, size, address)
        else:
            space.map(iova, size, address)
            model |= {iova + n: address + n for n in range(size)}
    memory = space.memory()
    seen = {r.start + n: byte for r in memory.regions for n, byte in enumerate(r.view)}
    assert seen == model


@pytest.mark.clause("features.driver.reserved-feature-bits.4")
@pytest.mark.parametrize("engine_name", ["reference", "compiled"])
@pytest.mark.parametrize("layout", [0, bit(Feature.RING_PACKED)], ids=["split", "packed"])
def test_rings_and_descriptors_hold_io_addresses(engine_name: str, layout: int) -> None:
    engine = engine_named(engine_name)
    features = bit(Feature.VERSION_1) | bit(Feature.ACCESS_PLATFORM) | layout
    driver_memory = GuestMemory.of(1 << 16, start=0x7000_0000)
    arena = Arena(driver_memory)
    queue = DriverQueue(0, 8, arena, features, engine)
    # The same bytes at other addresses: what the driver's addresses mean is for the platform to say.
    target = GuestMemory.of(1, start=0)
    target = GuestMemory([type(target.regions[0])(0x1000, driver_memory.regions[0].view)])
    space = AddressSpace(target)
    space.map(0x7000_0000, 0x8000, 0x1000)
    space.map(0x7000_8000, 0x4000, 0x9000, writable=False)
    config = QueueConfig(0, "q", 8)
    config.descriptor_area, config.driver_area, config.device_area = (
        queue.descriptor_area,
        queue.driver_area,
        queue.device_area,
    )
    device = config.activate(space.memory(), features, engine, lambda: None)
    inside = arena.allocate(0x5000)
    across = (0x7000_7FFE, 4)
    queue.add([across], [(inside.address, 4)], "ok")
    [chain] = device.take()
    chain.writable.write(b"done")
    device.complete([chain])
    assert queue.take_used() == [("ok", 4)]
    assert bytes(inside.view[:4]) == b"done"
    queue.add([], [across], "may not be written")
    with pytest.raises(MemoryFault):
        device.take()


@pytest.mark.clause("features.driver.reserved-feature-bits.3")
@pytest.mark.clause("features.driver.reserved-feature-bits.4")
@pytest.mark.parametrize("engine_name", ["reference", "compiled"])
@pytest.mark.parametrize("layout", [0, bit(Feature.RING_PACKED)], ids=["split", "packed"])
def test_a_driver_accepts_translation_and_works_behind_it(engine_name: str, layout: int) -> None:
    """Its pages lie in reverse order in physical memory; only the mapping that the platform has makes sense of it."""
    engine, page = engine_named(engine_name), 4096
    rings = RING_FEATURES & ~bit(Feature.RING_PACKED) | layout | bit(Feature.ACCESS_PLATFORM)
    carrier = InProcess(EntropyDevice(lambda n: b"r" * n), engine=engine, memory_size=1 << 16, ring_features=rings)
    [seen] = carrier.arena.memory.regions
    physical = [Region((99 - n) * page, seen.view[n * page : (n + 1) * page]) for n in range(len(seen.view) // page)]
    space = AddressSpace(GuestMemory(physical))
    for n, region in enumerate(physical):
        space.map(seen.start + n * page, page, region.start)
    carrier.end.replace_memory(space.memory())
    driver = EntropyDriver(carrier, engine=engine, queue_size=8).start()
    assert driver.features & bit(Feature.ACCESS_PLATFORM)
    assert driver.read(10_000) == b"r" * 10_000
    driver.reset()
    carrier.end.replace_memory(GuestMemory(physical))
    with pytest.raises(MemoryFault):
        driver.start()


@pytest.mark.clause("features.driver.reserved-feature-bits.7")
def test_a_driver_accepts_the_order_of_the_platform() -> None:
    rings = RING_FEATURES | bit(Feature.ORDER_PLATFORM)
    for offered in (rings, RING_FEATURES):
        driver = EntropyDriver(InProcess(EntropyDevice(lambda n: b"r" * n), ring_features=offered)).start()
        assert driver.features & bit(Feature.ORDER_PLATFORM) == offered & bit(Feature.ORDER_PLATFORM)
        assert driver.read(3) == b"rrr"


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), max_size=10), st.integers(1, 20))
@settings(deadline=None)
def test_a_dirty_log_has_a_bit_for_each_page_touched_and_no_other(writes: list[tuple[int, int]], length: int) -> None:
    log = DirtyLog(memoryview(bytearray(length)), page=16)
    pages = set()
    for address, size in writes:
        log.mark(address, size)
        pages |= {at // 16 for at in range(address, address + size)}
    marked = {n for n in range(8 * length) if log.bits[n // 8] >> n % 8 & 1}
    assert marked == {page for page in pages if page < 8 * length}


@pytest.mark.parametrize("layout", [0, bit(Feature.RING_PACKED)], ids=["split", "packed"])
def test_a_queue_logs_the_data_it_wrote_and_its_ring(layout: int) -> None:
    features = bit(Feature.VERSION_1) | layout
    arena = Arena(GuestMemory.of(1 << 16))
    queue = DriverQueue(0, 8, arena, features)
    config = QueueConfig(0, "q", 8)
    config.descriptor_area, config.driver_area, config.device_area = (
        queue.descriptor_area,
        queue.driver_area,
        queue.device_area,
    )
    device = config.activate(arena.memory, features, engine_named("reference"), lambda: None)
    pages = DirtyLog(memoryview(bytearray(2)))
    device.log = WriteLog(pages, areas=tuple(written_areas(config, features)))
    data = arena.allocate(3 * 4096, align=4096)
    queue.add([(data.address, 100)], [(data.address + 4000, 8192), (data.address + 200, 1)])
    before = bytes(arena.memory.regions[0].view)
    [chain] = device.take()
    status = chain.writable.split_tail(1)
    chain.writable.write(b"x" * 10)
    status.write(b"s")
    device.complete([chain])
    after = bytes(arena.memory.regions[0].view)
    written = {n // 4096 for n in range(len(before)) if before[n] != after[n]}
    logged = {n for n in range(16) if pages.bits[n // 8] >> n % 8 & 1}
    assert written <= logged
    ring = {area // 4096 for area in (queue.descriptor_area, queue.device_area)}
    assert logged <= ring | {data.address // 4096}, "what was not written is not logged"
