"""Hostile drivers and hostile devices: each defect that rings have really had, then random bytes."""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring_matrix import ENGINES, LAYOUTS, YES_NO, Case, Pair, pair
from tests.test_in_process import Client, Reverser
from virtio_py.errors import MemoryFault, PeerError, RingError
from virtio_py.memory import Buffer, GuestMemory, Region
from virtio_py.rings.engine import REFERENCE
from virtio_py.rings.kernels import common as k
from virtio_py.rings.layouts import pvirtq_desc, virtq_avail, virtq_desc, virtq_used
from virtio_py.rings.queue import DriverQueue, QueueConfig, QueueState
from virtio_py.spec import DeviceStatus, PackedDescFlag, VirtqDescFlag
from virtio_py.testing.hands import Descriptor, make_hand
from virtio_py.testing.hostile_device import BETRAYALS, Betrayal, HostileDevice, overwriting_engine
from virtio_py.testing.hostile_driver import ATTACKS, BEHIND_A_GOOD_ONE, Attack, HostileDriver
from virtio_py.transports.in_process import InProcess

SIZE: Final = 8
NEXT, WRITE, INDIRECT = int(VirtqDescFlag.NEXT), int(VirtqDescFlag.WRITE), int(VirtqDescFlag.INDIRECT)
AVAIL, USED = int(PackedDescFlag.AVAIL), int(PackedDescFlag.USED)
# The arena begins at 0x1000. Far above it two regions stand side by side, with holes all around.
LOW, MIDDLE, HIGH = 0x20_0000, 0x20_1000, 0x20_2000


def with_regions(memory: GuestMemory) -> GuestMemory:
    """The arena and the two regions behind it."""
    more = [Region(start, memoryview(bytearray(0x1000))) for start in (LOW, MIDDLE)]
    return GuestMemory([*memory.regions, *more])


def _staged(attacks: list[Attack]) -> list[Any]:
    """Each attack on each layout it applies to and each engine."""
    found = []
    for attack, layout, engine in product(attacks, LAYOUTS, ENGINES):
        clause = getattr(attack, layout)
        if clause is not None:
            case = Case(layout, engine, False, False, attack.indirect)
            marks = [pytest.mark.clause(clause)] if clause else []
            found.append(pytest.param(case, attack, clause, id=f"{attack.name}-{layout}-{engine}", marks=marks))
    return found


every_attack = pytest.mark.parametrize(("case", "attack", "clause"), _staged(ATTACKS))
every_late_attack = pytest.mark.parametrize(("case", "attack", "clause"), _staged(BEHIND_A_GOOD_ONE))


def stage(case: Case) -> tuple[Pair, HostileDriver]:
    """A queue whose device sees the regions, and a villain who has its driver's place."""
    made = pair(case, SIZE, memory=1 << 16)
    memory = with_regions(made.arena.memory)
    made.device = made.config.activate(memory, case.features, case.engine, made.notify)
    return made, HostileDriver.on(made.arena, make_hand(made.driver, memory))


@every_attack
def test_a_hostile_driver_is_a_typed_error(case: Case, attack: Attack, clause: str) -> None:
    made, villain = stage(case)
    attack.run(villain)
    before = made.arena.memory.read(made.driver.device_area, 4)
    for _ in range(2):
        with pytest.raises(PeerError) as caught:
            made.device.take()
        assert (type(caught.value), caught.value.clause, caught.value.queue) == (attack.error, clause, 0)
    assert made.notified == 0
    assert made.arena.memory.read(made.driver.device_area, 4) == before, "something was used"
    assert made.device.stop() == QueueState()


@every_late_attack
def test_what_was_good_is_served_first(case: Case, attack: Attack, clause: str) -> None:
    made, villain = stage(case)
    attack.run(villain)
    [chain] = made.device.take()
    assert chain.readable.remaining == 4
    with pytest.raises(PeerError) as caught:
        made.device.take()
    assert (type(caught.value), caught.value.clause) == (attack.error, clause)


@pytest.mark.clause("status.device.device-status-field.2")
@pytest.mark.clause("status.device.device-status-field.3")
@pytest.mark.parametrize(("case", "attack", "clause"), _staged([*ATTACKS, *BEHIND_A_GOOD_ONE[1::2]]))
def test_the_driver_is_told_and_a_reset_recovers(case: Case, attack: Attack, clause: str) -> None:
    device = Reverser(SIZE)
    carrier = InProcess(device, engine=case.engine, memory_size=1 << 16, ring_features=case.features)
    driver = Client(carrier, engine=case.engine, features=case.features).start()
    carrier.end.replace_memory(with_regions(carrier.arena.memory))
    attack.run(HostileDriver.on(carrier.arena, make_hand(driver.queues[0], carrier.end.memory)))
    carrier.available_buffer(0, 0)
    while carrier.step():
        pass
    fault = carrier.end.fault
    assert fault is not None
    assert (type(fault), fault.clause, fault.queue) == (attack.error, clause, 0)
    assert carrier.read_status() & DeviceStatus.DEVICE_NEEDS_RESET
    assert carrier.config_notifications == 1
    # All queues are out of service, not only the one that was attacked.
    served = device.served
    driver.queues[1].add([carrier.arena.allocate(64).extent])
    assert carrier.end.available_buffer(1) is False
    assert carrier.end.available_buffer(0) is False
    assert (device.served, carrier.config_notifications) == (served, 1)
    driver.reset()
    driver.start()
    device.served = 0
    assert driver.transact(driver.queues[0], [b"well"], [4])[0] == [b"llew"]


BOTH: Final = [Case(layout, engine, False, False, True) for layout, engine in product(LAYOUTS, ENGINES)]
every_layout = pytest.mark.parametrize("case", BOTH, ids=str)


@pytest.mark.clause("split.driver.descriptor-table.1")
@every_layout
def test_a_chain_has_at_most_two_to_the_32_bytes(case: Case) -> None:
    made, villain = stage(case)
    giant = Region(1 << 40, memoryview(mmap.mmap(-1, 1 << 30)))  # never touched, so that it costs nothing
    memory = GuestMemory([*villain.memory.regions, giant])
    made.device.adopt(made.device.bind(memory))
    villain.chain(*[(giant.start, 1 << 30, WRITE)] * 4)
    [chain] = made.device.take()
    assert chain.writable.remaining == 1 << 32
    villain.chain(*[(giant.start, 1 << 30, WRITE)] * 3, (giant.start, (1 << 30) - 1, WRITE))
    assert len(made.device.take()) == 1
    made, villain = stage(case)
    made.device.adopt(made.device.bind(memory := GuestMemory([*villain.memory.regions, giant])))
    villain.chain(*[(giant.start, 1 << 30, WRITE)] * 4, (giant.start, 1, WRITE))
    with pytest.raises(RingError, match=r"2\^32"):
        made.device.take()
    assert memory.regions[-1] is giant


@every_layout
def test_what_is_odd_but_allowed_is_served(case: Case) -> None:
    """No bytes at no address, a range over two adjacent regions, a WRITE flag on the pointer to a table."""
    made, villain = stage(case)
    villain.memory.write(MIDDLE - 3, b"across")
    villain.chain((0xFFFF_FFFF_FFFF_FFFF, 0, 0), (MIDDLE - 3, 6, 0), (0, 0, WRITE))
    villain.chain((villain.table((MIDDLE - 3, 6, 0, 0)), 16, INDIRECT | WRITE))
    villain.chain((HIGH - 1, 1, WRITE))
    chains = made.device.take()
    assert [c.readable.read_all() for c in chains] == [b"across", b"across", b""]
    assert [c.writable.remaining for c in chains] == [0, 0, 1]


@every_layout
def test_memory_that_the_device_may_only_read(case: Case) -> None:
    """It may be read; it is neither a buffer to write to, nor a place for what of the ring the device writes."""
    made, villain = stage(case)
    shared = villain.memory.regions[1].view
    only = GuestMemory([*villain.memory.regions, Region(1 << 32, shared, writable=False)])
    made.device.adopt(made.device.bind(only))
    villain.memory.write(LOW, b"read me")
    villain.chain((1 << 32, 7, 0))
    villain.chain((1 << 32, 7, WRITE))
    [chain] = made.device.take()
    assert chain.readable.read_all() == b"read me"
    with pytest.raises(MemoryFault):
        made.device.take()
    for area, allowed in (("descriptor", case.layout == "split"), ("driver", True), ("device", False)):
        config = QueueConfig(0, "queue", SIZE)
        config.descriptor_area, config.driver_area, config.device_area = made.device.areas
        setattr(config, f"{area}_area", 1 << 32)
        if allowed:
            config.activate(only, case.features, case.engine, made.notify)
            continue
        with pytest.raises(MemoryFault) as caught:
            config.activate(only, case.features, case.engine, made.notify)
        assert caught.value.queue == 0


@pytest.mark.clause("split.device.indirect-descriptors.2")
@pytest.mark.clause("split.device.indirect-descriptors.1")
@pytest.mark.parametrize("engine", ENGINES)
def test_direct_descriptors_before_a_table_are_one_buffer(engine: str) -> None:
    made, villain = stage(Case("split", engine, False, False, True))
    villain.memory.write(LOW, b"firstthen")
    table = villain.table((LOW + 5, 4, NEXT, 2), (0, 0, 0, 0), (LOW, 3, WRITE, 0))
    villain.chain((LOW, 5, 0), (table, 48, INDIRECT | WRITE))
    [chain] = made.device.take()
    assert (chain.readable.read_all(), chain.writable.remaining) == (b"firstthen", 3)


# The registers of a queue ------------------------------------------------------------------------------------------

REGISTERS: Final = [
    ("size", 0, RingError),
    ("size", 2 * SIZE, RingError),
    ("size", 1 << 16, RingError),
    ("size", -1, RingError),
    ("descriptor_area", 0x1008, RingError),
    ("driver_area", 0x1001, RingError),
    ("device_area", 0x1002, RingError),
    *(
        (area, at, MemoryFault)
        for area in ("descriptor_area", "driver_area", "device_area")
        for at in (0, HIGH, 1 << 63)
    ),
    ("descriptor_area", HIGH - 16, MemoryFault),
    ("state", QueueState(1 << 16, 0), RingError),
    ("state", QueueState(0, 1 << 32), RingError),
    ("state", QueueState(-1, 0), RingError),
]


@pytest.mark.clause("split.driver.virtqueues.1")
@pytest.mark.clause("packed.driver.virtqueues.1")
@every_layout
@pytest.mark.parametrize(("register", "value", "error"), REGISTERS, ids=lambda v: str(v))
def test_bad_registers_activate_nothing(case: Case, register: str, value: Any, error: type[PeerError]) -> None:
    made, villain = stage(case)
    setattr(made.config, register, value)
    with pytest.raises(PeerError) as caught:
        made.config.activate(villain.memory, case.features, case.engine, made.notify)
    assert (type(caught.value), caught.value.queue) == (error, 0)


@every_layout
def test_only_a_packed_queue_may_be_no_power_of_two(case: Case) -> None:
    made, villain = stage(case)
    made.config.size = 6
    if case.layout == "packed":
        made.config.activate(villain.memory, case.features, case.engine, made.notify)
        made.config.state = QueueState(6, 0)
        with pytest.raises(RingError, match="positions"):
            made.config.activate(villain.memory, case.features, case.engine, made.notify)
        return
    with pytest.raises(RingError, match="power of 2"):
        made.config.activate(villain.memory, case.features, case.engine, made.notify)


@every_layout
def test_a_ring_that_leaves_memory_keeps_the_old_memory(case: Case) -> None:
    device = Reverser(SIZE)
    carrier = InProcess(device, engine=case.engine, memory_size=1 << 16, ring_features=case.features)
    driver = Client(carrier, engine=case.engine, features=case.features).start()
    memory = carrier.end.memory
    with pytest.raises(MemoryFault):
        carrier.end.replace_memory(GuestMemory.of(64))
    assert carrier.end.memory is memory
    assert driver.transact(driver.queues[0], [b"same"], [4])[0] == [b"emas"]


# Hostile devices ---------------------------------------------------------------------------------------------------


def _use(*elements: tuple[int, int]) -> Callable[[HostileDevice], None]:
    def run(device: HostileDevice) -> None:
        for ident, length in elements:
            device.use(ident, length)

    return run


# The published ones, and those that take two buffers in the device's hand: 0 and 1, of four writable bytes each.
WITH_TWO: Final = [
    *BETRAYALS,
    Betrayal("second-length", "A7", _use((0, 4), (1, 5)), good=1),
    Betrayal("order-broken", "A8", _use((1, 4)), layouts=("split",), in_order=True),
    # A run that ends with 1 tells of 0 too; what stands in the slot that it skips is never looked at.
    Betrayal("order-skips-a-slot", "A8", _use((1, 4), (0, 4)), 2, LAYOUTS, True),
]


def _betrayals() -> list[Any]:
    return [
        pytest.param(Case(layout, engine, b.in_order, False, False), b, id=f"{b.name}-{layout}-{engine}")
        for b in WITH_TWO
        for layout, engine in product(b.layouts, ENGINES)
    ]


@pytest.mark.parametrize(("case", "betrayal"), _betrayals())
def test_a_hostile_device_is_a_typed_error(case: Case, betrayal: Betrayal) -> None:
    made = pair(case, SIZE)
    buffer = made.arena.allocate(4)
    made.driver.add_many([([], [buffer.extent], 0), ([], [buffer.extent], 1)])
    betrayal.run(HostileDevice(made.driver, made.arena.memory))
    if betrayal.good:
        assert len(made.driver.take_used()) == betrayal.good
    if betrayal.good == 2:
        assert made.driver.take_used() == []
        return
    for _ in range(2):
        with pytest.raises(RingError) as caught:
            made.driver.take_used()
        assert caught.value.queue == 0
    assert made.driver.outstanding == 2 - betrayal.good


@every_layout
def test_the_driver_sets_failed_and_can_start_again(case: Case) -> None:
    device = Reverser(SIZE)
    carrier = InProcess(device, engine=case.engine, memory_size=1 << 16, ring_features=case.features)
    driver = Client(carrier, engine=case.engine, features=case.features).start()
    buffer = carrier.arena.allocate(4)
    driver.queues[0].add([], [buffer.extent])
    HostileDevice(driver.queues[0], carrier.arena.memory).use(0, 5)
    with pytest.raises(RingError):
        driver.wait_used(driver.queues[0])
    assert carrier.read_status() & DeviceStatus.FAILED
    driver.reset()
    driver.start()
    assert driver.transact(driver.queues[0], [b"well"], [4])[0] == [b"llew"]


# The other side writes between any two of our loads ----------------------------------------------------------------


@pytest.mark.parametrize(("layout", "indirect", "in_order"), list(product(LAYOUTS, YES_NO, YES_NO)))
def test_what_was_read_once_is_what_is_used(layout: str, indirect: bool, in_order: bool) -> None:
    """A14: had anything been read twice, or read back after the check, the ones would show."""
    case = Case(layout, "reference", in_order, True, indirect)
    made = pair(case, SIZE)
    made.device = made.config.activate(made.arena.memory, case.features, overwriting_engine(), made.notify)
    text, room = made.arena.allocate(5), made.arena.allocate(7)
    text.view[:] = b"hello"
    made.driver.add([text.extent] * 2, [room.extent], "token")
    [chain] = made.device.take()
    assert chain.readable.read_all() == b"hellohello"
    chain.writable.write(b"goodbye")
    chain.complete()
    assert made.driver.take_used() == [("token", 7)]
    # Now the driver's loads: its device overwrites the used element as soon as it was read.
    made = pair(case, SIZE)
    made.driver = DriverQueue(0, SIZE, made.arena, case.features, overwriting_engine())
    made.config.descriptor_area, made.config.driver_area = made.driver.descriptor_area, made.driver.driver_area
    made.config.device_area = made.driver.device_area
    made.device = made.config.activate(made.arena.memory, case.features, REFERENCE, made.notify)
    room = made.arena.allocate(7)
    made.driver.add([], [room.extent], "token")
    [chain] = made.device.take()
    chain.writable.write(b"good")
    chain.complete()
    assert made.driver.take_used() == [("token", 4)]


# Random bytes ------------------------------------------------------------------------------------------------------

ADDRESSES = st.sampled_from([0x1000, 0x1100, LOW, LOW, MIDDLE - 2, HIGH - 2, HIGH, 0, 1 << 63, (1 << 64) - 2])
LENGTHS = st.sampled_from([1, 2, 4, 16, 32, 0, 40, 0xFFFFFFFF])
FLAGS = st.sampled_from([0, 0, WRITE, WRITE, INDIRECT, NEXT, NEXT | WRITE, INDIRECT | NEXT, 7])
SLOTS = st.integers(0, SIZE - 1)
DESCRIPTORS = st.builds(Descriptor, ADDRESSES, LENGTHS, FLAGS)
NOISE = st.one_of(
    st.tuples(st.just("descriptor"), SLOTS, ADDRESSES, LENGTHS, FLAGS, st.integers(0, SIZE)),
    st.tuples(st.just("raw"), st.integers(0, 700), st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("index"), st.sampled_from([-1, 1, 2, SIZE + 1])),
    st.tuples(st.just("used index"), st.sampled_from([-1, 1, 2, SIZE + 1])),
)
DRIVER = st.one_of(
    st.tuples(st.just("chain"), SLOTS, st.lists(DESCRIPTORS, min_size=1, max_size=3)),
    st.tuples(st.just("add"), st.integers(1, 3), st.integers(0, 3)),
    st.tuples(st.just("take used"), st.integers(0, SIZE)),
    st.tuples(st.just("kick")),
)
DEVICE = st.one_of(
    st.tuples(st.just("use"), st.integers(0, SIZE), st.sampled_from([0, 1, 8, 9, 0xFFFFFFFF])),
    st.tuples(st.just("take"), st.integers(0, SIZE)),
    st.tuples(st.just("complete"), st.integers(0, 3)),
    st.tuples(st.just("wishes"), st.booleans()),
)
STEPS = st.lists(st.one_of(DRIVER, DEVICE, DRIVER, DEVICE, NOISE), min_size=10, max_size=50)


@define
class Chaos:
    """A queue on which both halves work while both are hostile, and a log of all that comes out."""

    case: Case
    log: list[Any] = field(factory=list)
    chains: list[Any] = field(factory=list)
    made: Pair = field(init=False)
    villain: HostileDriver = field(init=False)
    impostor: HostileDevice = field(init=False)
    buffer: Buffer = field(init=False)

    def run(self, steps: list[tuple[Any, ...]]) -> tuple[list[Any], list[bytes]]:
        """The log, and the memory as it is left."""
        self.made, self.villain = stage(self.case)
        self.impostor = HostileDevice(self.made.driver, self.villain.memory)
        self.buffer = self.made.arena.allocate(8)
        for name, *arguments in steps:
            try:
                result = getattr(self, "do_" + name.replace(" ", "_"))(*arguments)
            except PeerError as error:
                result = (type(error).__name__, str(error))
            self.log.append((name, result, self.made.notified))
        return self.log, [bytes(region.view) for region in self.villain.memory.regions]

    def do_descriptor(self, slot: int, address: int, length: int, flags: int, other: int) -> None:
        self.villain.hand.put(slot, Descriptor(address, length, flags), other)

    def do_chain(self, at: int, descriptors: list[Descriptor]) -> None:
        """A chain where the device looks next."""
        villain, ident = self.villain, at
        if villain.split:
            villain.split_hand.published = self._index(self.made.driver.driver_area, virtq_avail(SIZE))
        else:
            state, hand, ident = self.made.device.state, villain.packed_hand, len(self.log) % SIZE
            at, hand.at, hand.wrap = state.next_available, state.next_available, state.available_wrap
        villain.hand.force(ident, *descriptors[: SIZE - at])

    def _index(self, area: int, record: Any) -> int:
        return int.from_bytes(self.villain.memory.read(area + record.offset("idx"), 2), "little")

    def do_index(self, move: int) -> None:
        if self.villain.split:
            self.villain.split_hand.jump(self._index(self.made.driver.driver_area, virtq_avail(SIZE)) + move)

    def do_raw(self, offset: int, data: bytes) -> None:
        self.villain.memory.write(self.villain.memory.regions[0].start + offset, data)

    def do_add(self, readable: int, writable: int) -> Any:
        extent = self.buffer.extent
        return self.made.driver.add_many([([extent] * readable, [extent] * writable, len(self.log))])

    def do_use(self, ident: int, length: int) -> None:
        """A used element where the driver looks next."""
        state = self.made.driver._state
        self.impostor.shown = int(state[k.NEXT_USED])
        self.impostor.mark = AVAIL | USED | WRITE if state[k.USED_WRAP] else WRITE
        self.impostor.use(ident, length)

    def do_used_index(self, move: int) -> None:
        if self.villain.split:
            self.impostor.index(self._index(self.made.driver.device_area, virtq_used(SIZE)) + move)

    def do_take(self, limit: int) -> Any:
        taken = self.made.device.take(limit)
        self.chains += taken
        return [(c.id, c.readable.remaining, c.writable.remaining, c.readable.read_all()[:64]) for c in taken]

    def do_take_used(self, limit: int) -> Any:
        return self.made.driver.take_used(limit)

    def do_complete(self, count: int) -> None:
        chosen, self.chains = self.chains[:count], self.chains[count:]
        for chain in chosen:
            chain.writable.write(b"\x55" * min(chain.writable.remaining, 5))
        self.made.device.complete(chosen)

    def do_kick(self) -> Any:
        return self.made.driver.needs_notification()

    def do_wishes(self, enabled: bool) -> Any:
        if enabled:
            return self.made.driver.enable_notifications(), self.made.device.enable_notifications()
        self.made.driver.disable_notifications()
        self.made.device.disable_notifications()
        return None


FUZZED: Final = list(product(LAYOUTS, YES_NO, YES_NO))


@pytest.mark.parametrize(("layout", "in_order", "event_idx"), FUZZED)
@given(steps=STEPS)
@settings(max_examples=250, deadline=None)
def test_both_engines_come_to_the_same_whatever_is_written(
    layout: str, in_order: bool, event_idx: bool, steps: list[tuple[Any, ...]]
) -> None:
    reference, compiled = (Chaos(Case(layout, engine, in_order, event_idx, True)).run(steps) for engine in ENGINES)
    assert reference == compiled


@pytest.mark.clause("split.device.message-framing.2")
@pytest.mark.clause("packed.device.scatter-gather-support.2")
@every_layout
def test_the_longest_queue_of_the_longest_tables_is_bounded(case: Case) -> None:
    """Each of 32768 heads names the same table of 1024 entries: one call takes what a batch holds, no more."""
    config = QueueConfig(0, "queue", 32768)
    memory = GuestMemory.of(4 << 20, start=0x10000)
    descriptors, table, rest = 0x10000, 0x10000 + 16 * 32768, 0x10000 + 16 * 32768 + 1024 * 16
    record, other = (virtq_desc, "next") if case.layout == "split" else (pvirtq_desc, "id")
    flags = INDIRECT | (AVAIL if case.layout == "packed" else 0)
    for n in range(1024):
        link = {other: n + 1}
        memory.write(table + 16 * n, record.encode(addr=rest, len=1, flags=NEXT if n < 1023 else 0, **link))
    for n in range(32768):
        memory.write(descriptors + 16 * n, record.encode(addr=table, len=16 * 1024, flags=flags, **{other: n}))
    config.descriptor_area, config.driver_area, config.device_area = descriptors, rest, rest + (1 << 17)
    if case.layout == "split":
        avail = virtq_avail(32768)
        memory.write(rest, avail.encode(idx=32768, ring=list(range(32768))))
    queue = config.activate(memory, case.features, case.engine, lambda: None)
    chains = queue.take()
    assert 0 < len(chains) <= 64
    assert all(c.readable.remaining == 1024 for c in chains)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_compiled_engine_stays_inside_the_memory(layout: str) -> None:
    """In a process of its own: the memory lies between pages that may not be touched, and a fault would kill it."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "tests.guard_pages", layout],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"killed by signal {-done.returncode}: {done.stderr[-2000:]}"
    assert "faults" in done.stdout
