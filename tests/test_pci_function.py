"""The model of a PCI function and a bus, as the PCI specifications have them; nothing of virtio is in here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.access import RegisterAccess
from virtio_py.errors import MessageError, UsageError
from virtio_py.pci.bars import Bar, Region
from virtio_py.pci.bus import Address, PciBus
from virtio_py.pci.capabilities import CapabilityId, pci_msix_table_entry, pci_vendor_specific
from virtio_py.pci.config_registers import ConfigRegisters, Hook
from virtio_py.pci.enumeration import FoundFunction, enumerate_bus
from virtio_py.pci.function import PciFunction
from virtio_py.pci.header import pci_header_type0
from virtio_py.pci.msix import Msix, pba_size, table_size
from virtio_py.pci.walk import walk

IDS = {"vendor_id": 0x1234, "device_id": 0x5678, "revision_id": 3, "class_code": 0x00FF00}
COMMAND, STATUS, BARS = 4, 6, 0x10
IO, MEMORY, MASTER, NO_INTX = 1, 2, 4, 1 << 10
KINDS = pytest.mark.parametrize("express", [True, False], ids=["express", "conventional"])


@define
class Words:
    """Registers that hold what is written, and note accesses."""

    data: bytearray = field(factory=lambda: bytearray(0x1000))
    log: list[tuple[str, int, int]] = field(factory=list)

    def read(self, offset: int, width: int) -> int:
        self.log.append(("R", offset, width))
        return int.from_bytes(self.data[offset : offset + width], "little")

    def write(self, offset: int, value: int, width: int) -> None:
        self.log.append(("W", offset, width))
        self.data[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")


def function(bars: dict[int, Bar] | None = None, **options: Any) -> PciFunction:
    return PciFunction(IDS, bars or {}, **options)


def offset_of(made: PciFunction, number: int) -> int:
    [capability] = walk(made.registers.all).find(number)
    return capability.offset


# Configuration space -----------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.clause("pci.device.virtio-over-pci-bus.1")
def test_it_decodes_without_a_problem(express: bool) -> None:
    made = function({0: Bar(16, io=True), 2: Bar(1 << 40, wide=True, prefetchable=True)}, express=express)
    found = walk(made.registers.all)
    assert found.problems == ()
    assert len(made.registers.all) == (4096 if express else 256)
    ids = [CapabilityId.POWER_MANAGEMENT, CapabilityId.PCI_EXPRESS if express else CapabilityId.ADVANCED_FEATURES]
    assert [c.id for c in found.capabilities] == ids
    assert (found.vendor_id, found.device_id, found.class_code) == (0x1234, 0x5678, 0x00FF00)


@KINDS
@given(offset=st.integers(0, 4200), value=st.integers(0, (1 << 32) - 1), width=st.sampled_from([1, 2, 3, 4, 8]))
def test_only_what_is_writable_is_written(express: bool, offset: int, value: int, width: int) -> None:
    made = function({1: Bar(0x100), 4: Bar(0x1000, wide=True)}, express=express)
    before = made.registers.all
    made.registers.write(offset, value, width)
    after = made.registers.all
    changed = {n for n, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}
    reset, power = made._reset_at, made._power
    writable = {4, 5, 0x0C, 0x3C, *range(0x14, 0x18), *range(0x20, 0x28), power + 4, reset + 8, reset + 9}
    assert changed <= writable
    aligned = width in (1, 2, 4) and offset % width == 0 and offset + width <= len(after)
    assert not changed or aligned
    if not aligned:
        assert made.registers.read(offset, width) == (1 << 8 * width) - 1


def test_capabilities_are_a_list_with_an_end() -> None:
    registers = ConfigRegisters()
    values = {"cap_id": 9, "cap_len": 3}
    places = [registers.add_capability(pci_vendor_specific, values, extra=bytes(n)) for n in (0, 1, 4, 50)]
    assert places == [0x40, 0x44, 0x48, 0x50]
    links = [registers.read(at, 1) for at in (0x34, 0x41, 0x45, 0x49, 0x51)]
    assert links == [*places, 0]
    with pytest.raises(UsageError, match="no room"):
        registers.add_capability(pci_vendor_specific, values, extra=bytes(150))


# BARs --------------------------------------------------------------------------------------------------------------


@given(
    order=st.integers(4, 31),
    wide=st.booleans(),
    prefetchable=st.booleans(),
    address=st.integers(0, (1 << 64) - 1),
)
def test_a_bar_reads_its_size_where_ones_are_written(order: int, wide: bool, prefetchable: bool, address: int) -> None:
    bar = Bar(1 << order, wide=wide, prefetchable=prefetchable)
    registers = function({2: bar}).registers
    flags = 4 * wide | 8 * prefetchable
    assert registers.read(BARS + 8, 4) == flags
    registers.write(BARS + 8, 0xFFFFFFFF, 4)
    registers.write(BARS + 12, 0xFFFFFFFF, 4)
    assert registers.read(BARS + 8, 4) == (1 << 32) - (1 << order) | flags
    assert registers.read(BARS + 12, 4) == (0xFFFFFFFF if wide else 0)
    for n in range(2):
        registers.write(BARS + 8 + 4 * n, address >> 32 * n & 0xFFFFFFFF, 4)
    kept = address if wide else address & 0xFFFFFFFF
    made = function({2: bar})
    made.registers.store(BARS + 8, registers.load(BARS + 8, 8))
    assert made.bar_address(2) == kept & -(1 << order)


def test_an_io_bar_reads_its_size_where_ones_are_written() -> None:
    registers = function({5: Bar(64, io=True)}).registers
    registers.write(BARS + 20, 0xFFFFFFFF, 4)
    assert registers.read(BARS + 20, 4) == 0xFFFFFFC1


@pytest.mark.parametrize(
    "bars",
    [
        {6: Bar(16)},
        {-1: Bar(16)},
        {5: Bar(16, wide=True)},
        {0: Bar(16, wide=True), 1: Bar(16)},
        {0: Bar(24)},
        {0: Bar(8)},
        {0: Bar(0)},
        {0: Bar(2, io=True)},
        {0: Bar(512, io=True)},
        {0: Bar(16, io=True, wide=True)},
        {0: Bar(16, io=True, prefetchable=True)},
        {0: Bar(1 << 32)},
    ],
)
def test_bars_that_cannot_be(bars: dict[int, Bar]) -> None:
    with pytest.raises(UsageError):
        function(bars)


def test_an_access_reaches_the_region_it_lies_in() -> None:
    low, high = Words(), Words()
    made = function({0: Bar(0x100, [Region(0, 6, low), Region(0x10, 8, high)])})
    made.write_bar(0, 4, 0xBEEF, 2)
    made.write_bar(0, 0x10, 0x12345678, 4)
    assert (made.read_bar(0, 4, 2), made.read_bar(0, 0x12, 2)) == (0xBEEF, 0x1234)
    assert low.log == [("W", 4, 2), ("R", 4, 2)]
    for offset, width in ((4, 4), (6, 1), (0xF, 2), (0x16, 4), (0xFF, 1), (0x1000, 4)):
        assert made.read_bar(0, offset, width) == 0
        made.write_bar(0, offset, 1, width)
    assert made.read_bar(1, 0, 4) == 0
    assert len(low.log) == 2


# MSI-X -------------------------------------------------------------------------------------------------------------


def with_msix(vectors: int = 3) -> tuple[PciFunction, list[tuple[int, int]], int]:
    sent: list[tuple[int, int]] = []
    msix = Msix(vectors, lambda address, data: sent.append((address, data)))
    at = 0x8000
    table = [Region(0, table_size(vectors), msix.table), Region(at, pba_size(vectors), msix.pba)]
    made = function({1: Bar(0x10000, table)})
    made.add_msix(msix, 1, 0, at)
    return made, sent, offset_of(made, CapabilityId.MSI_X) + 2


def store_entry(made: PciFunction, vector: int, address: int, data: int, mask: int) -> None:
    for n, word in enumerate((address & 0xFFFFFFFF, address >> 32, data, mask)):
        made.write_bar(1, 16 * vector + 4 * n, word, 4)


ENABLE, ALL_MASKED = 1 << 15, 1 << 14


def test_a_message_leaves_when_everything_is_open() -> None:
    made, sent, control = with_msix()
    assert made.msix is not None
    store_entry(made, 1, 0xFEE00000, 0x41, mask=0)
    made.msix.fire(1)
    assert (sent, made.msix.pending) == ([], set())
    made.registers.write(control, ENABLE, 2)
    made.msix.fire(1)
    # No bus master, no message; but it is pending, and the array says so.
    assert (sent, made.read_bar(1, 0x8000, 4)) == ([], 2)
    made.registers.write(COMMAND, MASTER, 2)
    assert (sent, made.read_bar(1, 0x8000, 4)) == ([(0xFEE00000, 0x41)], 0)
    made.registers.write(control, ENABLE | ALL_MASKED, 2)
    made.msix.fire(1)
    made.msix.fire(1)
    assert len(sent) == 1
    made.registers.write(control, ENABLE, 2)
    assert len(sent) == 2
    store_entry(made, 1, 0xFEE00000, 0x42, mask=1)
    made.msix.fire(1)
    made.msix.fire(0)
    assert made.read_bar(1, 0x8000, 8) == 3
    made.write_bar(1, 0x8000, 0, 4)
    assert made.read_bar(1, 0x8000, 4) == 3
    made.write_bar(1, 16 + 12, 0, 4)
    assert sent[2:] == [(0xFEE00000, 0x42)]
    assert made.read_bar(1, 0x8000, 4) == 1


def test_what_is_pending_stays_so_while_msix_is_off() -> None:
    made, sent, control = with_msix()
    assert made.msix is not None
    made.registers.write(COMMAND, MASTER, 2)
    made.registers.write(control, ENABLE, 2)
    made.msix.fire(2)
    made.registers.write(control, 0, 2)
    store_entry(made, 2, 8, 8, mask=0)
    assert sent == []
    made.registers.write(control, ENABLE, 2)
    assert sent == [(8, 8)]


@given(st.lists(st.tuples(st.sampled_from(["fire", "mask", "unmask", "hold", "open"]), st.integers(0, 2)), max_size=40))
def test_no_event_is_lost_and_none_is_told_twice(steps: list[tuple[str, int]]) -> None:
    made, sent, control = with_msix()
    assert made.msix is not None
    made.registers.write(COMMAND, MASTER, 2)
    made.registers.write(control, ENABLE, 2)
    masked, pending, held, told = {0, 1, 2}, set[int](), False, list[int]()
    for vector in range(3):
        store_entry(made, vector, 4 * vector, vector, mask=1)
    for step, vector in steps:
        if step == "fire":
            made.msix.fire(vector)
            pending.add(vector)
        elif step in ("mask", "unmask"):
            made.write_bar(1, 16 * vector + 12, int(step == "mask"), 4)
            (masked.add if step == "mask" else masked.discard)(vector)
        else:
            held = step == "hold"
            made.registers.write(control, ENABLE | ALL_MASKED * held, 2)
        free = set() if held else pending - masked
        told += sorted(free)
        pending -= free
        assert [data for _, data in sent] == told
        assert made.read_bar(1, 0x8000, 4) == sum(1 << vector for vector in pending)


def test_the_table_holds_what_it_can() -> None:
    made, _, _ = with_msix(2048)
    assert pci_msix_table_entry.size == 16
    entry = 16 * 2047
    for n in range(4):
        assert made.read_bar(1, entry + 4 * n, 4) == (n == 3)
        made.write_bar(1, entry + 4 * n, 0xFFFFFFFF, 4)
    assert [made.read_bar(1, entry + 4 * n, 4) for n in range(4)] == [0xFFFFFFFC, 0xFFFFFFFF, 0xFFFFFFFF, 1]
    assert made.read_bar(1, entry, 8) == 0xFFFFFFFF_FFFFFFFC
    for vectors in (0, 2049):
        with pytest.raises(UsageError):
            Msix(vectors, lambda address, data: None)
    with pytest.raises(UsageError, match="no region"):
        function({1: Bar(64)}).add_msix(Msix(1, lambda address, data: None), 1, 0, 32)


# INTx, power, reset ------------------------------------------------------------------------------------------------


def test_the_line_is_the_status_bit_unless_disabled() -> None:
    made, _, control = with_msix()
    levels: list[bool] = []
    made.interrupt = levels.append
    made.set_interrupt(True)
    made.set_interrupt(True)
    assert (levels, made.registers.read(STATUS, 2) & 8) == ([True], 8)
    made.registers.write(COMMAND, NO_INTX, 2)
    assert (levels, made.registers.read(STATUS, 2) & 8) == ([True, False], 8)
    made.registers.write(COMMAND, 0, 2)
    assert levels == [True, False, True]
    # Whoever enables MSI-X has the line no more.
    made.registers.write(control, ENABLE, 2)
    assert (levels[3:], made.registers.read(STATUS, 2) & 8) == ([False], 0)
    made.registers.write(control, 0, 2)
    made.set_interrupt(False)
    assert levels[3:] == [False, True, False]


def test_asleep_it_answers_in_configuration_space_alone() -> None:
    words = Words()
    made = function({0: Bar(0x1000, [Region(0, 0x1000, words)])})
    bus = PciBus()
    bus.plug(made, Address(1))
    [found] = enumerate_bus(bus)
    power = offset_of(made, CapabilityId.POWER_MANAGEMENT) + 4
    found.bar(0).write(8, 0x55, 1)
    found.config.write(power, 3, 2)
    assert found.bar(0).read(8, 1) == 0xFF
    assert found.config.read(0, 2) == 0x1234
    assert not made.bus_master
    made.set_interrupt(True)
    assert Address(1) not in bus.interrupts.raised
    found.config.write(power, 0, 2)
    assert found.bar(0).read(8, 1) == 0x55
    assert Address(1) in bus.interrupts.raised
    # D1 and D2 are not supported.
    for state in (1, 2):
        found.config.write(power, state, 2)
        assert found.config.read(power, 2) & 3 == 0


@KINDS
def test_a_function_level_reset_is_as_power_on(express: bool) -> None:
    resets: list[bool] = []
    made = PciFunction(IDS, {0: Bar(0x1000)}, express, on_reset=lambda: resets.append(True))
    made.silent = True
    before = made.registers.all
    for offset in range(0, 256, 4):
        if not made._reset_at <= offset < made._reset_at + 12:
            made.registers.write(offset, 0xFFFFFFFF, 4)
    assert made.registers.all != before
    assert resets == []
    made.registers.write(*((made._reset_at + 8, 1 << 15, 2) if express else (made._reset_at + 4, 1, 1)))
    assert (made.registers.all, resets, made.silent) == (before, [True], False)


def test_a_reset_closes_msix() -> None:
    made, sent, control = with_msix()
    assert made.msix is not None
    made.registers.write(control, ENABLE, 2)
    store_entry(made, 0, 4, 4, mask=0)
    made.msix.fire(0)
    made.reset()
    made.registers.write(COMMAND, MASTER, 2)
    made.registers.write(control, ENABLE, 2)
    assert (sent, made.msix.pending, made.read_bar(1, 12, 4)) == ([], set(), 1)


# The bus -----------------------------------------------------------------------------------------------------------


def populated() -> tuple[PciBus, dict[Address, Words]]:
    bus, words = PciBus(), dict[Address, Words]()
    for place in (Address(1), Address(4), Address(4, 1), Address(4, 7), Address(31)):
        words[place] = Words()
        region = Region(0, 64, words[place])
        bars = {0: Bar(64, [region], io=True), 1: Bar(0x1000, [region]), 2: Bar(1 << 20, [region], wide=True)}
        bus.plug(function(bars), place)
    return bus, words


def test_every_function_is_found_and_answers_where_it_was_put() -> None:
    bus, words = populated()
    found = enumerate_bus(bus)
    assert [f.address for f in found] == list(words)
    assert [str(f.address) for f in found] == ["00:01.0", "00:04.0", "00:04.1", "00:04.7", "00:1f.0"]
    assert {f.config.read(0x0E, 1) for f in found if f.address in (Address(1), Address(31))} == {0}
    assert bus.config(Address(4)).read(0x0E, 1) == 0x80
    spans: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for n, one in enumerate(found):
        for index, bar in one.bars.items():
            assert bar.address % bar.size == 0
            spans[bar.io].append((bar.address, bar.address + bar.size))
            one.bar(index).write(4 * index, 0x1000 * n + index, 4)
            assert one.bar(index).read(4 * index, 4) == 0x1000 * n + index
            assert int.from_bytes(words[one.address].data[4 * index : 4 * index + 4], "little") == 0x1000 * n + index
        assert [(b.index, b.size, b.io) for b in one.bars.values()] == [
            (0, 64, True),
            (1, 0x1000, False),
            (2, 1 << 20, False),
        ]
    for part in spans.values():
        part.sort()
        assert all(a[1] <= b[0] for a, b in pairwise(part))


def test_where_nothing_is_all_ones_are_read() -> None:
    bus, _ = populated()
    assert bus.config(Address(2)).read(0, 4) == 0xFFFFFFFF
    bus.config(Address(2)).write(0, 0, 4)
    assert bus.memory.read(0x1000, 4) == 0xFFFFFFFF
    bus.memory.write(0x1000, 0, 4)
    [*found] = enumerate_bus(bus)
    bar = found[0].bars[1]
    assert bus.memory.read(bar.address + bar.size - 2, 4) == 0xFFFFFFFF
    assert bus.io.read(bar.address, 4) == 0xFFFFFFFF
    found[0].config.write(COMMAND, IO, 2)
    assert bus.memory.read(bar.address, 4) == 0xFFFFFFFF
    found[0].config.write(COMMAND, MEMORY, 2)
    assert bus.memory.read(bar.address, 4) == 0
    with pytest.raises(MessageError, match="no BAR 3"):
        found[0].bar(3)


def test_a_function_that_is_reset_keeps_its_siblings() -> None:
    bus, _ = populated()
    bus.functions[Address(4)].reset()
    assert bus.config(Address(4)).read(0x0E, 1) == 0x80
    assert [f.address for f in enumerate_bus(bus)] == list(bus.functions)


def test_a_device_that_answers_for_all_its_functions_is_one() -> None:
    """As devices do that do not look at the function's number: header type bit 7 is 0."""

    class Careless(PciBus):
        def config(self, address: Address) -> RegisterAccess:
            return super().config(Address(address.device))

    bus = Careless()
    bus.plug(function({0: Bar(16)}), Address(3))
    assert [f.address for f in enumerate_bus(bus)] == [Address(3)]


def test_a_function_answers_nowhere_while_its_bars_are_sized() -> None:
    bus = PciBus()
    bus.plug(function({0: Bar(16, io=True), 1: Bar(16)}), Address(1))
    registers = bus.functions[Address(1)].registers
    registers.write(COMMAND, IO | MEMORY | NO_INTX, 2)
    seen: list[int] = []
    for at in (BARS, BARS + 4):
        registers.add_hook(Hook(at, at + 4, after_write=lambda: seen.append(registers.read(COMMAND, 2))))
    enumerate_bus(bus)
    assert seen == [NO_INTX] * 4
    assert registers.read(COMMAND, 2) == IO | MEMORY | MASTER | NO_INTX


def test_windows_are_not_without_end() -> None:
    bus, _ = populated()
    with pytest.raises(MessageError, match="no room"):
        enumerate_bus(bus, memory=range(0x10000000, 0x10400000))


@pytest.mark.parametrize("place", [Address(1), Address(32), Address(-1), Address(4, 8), Address(2, 1)])
def test_places_that_cannot_be(place: Address) -> None:
    bus, _ = populated()
    with pytest.raises(UsageError):
        bus.plug(function(), place)


@define
class Liar:
    """Configuration space that answers anything."""

    answers: list[int]

    def read(self, offset: int, width: int) -> int:
        self.answers.append(self.answers.pop(0))
        return self.answers[-1] >> 8 * (offset % 4) & (1 << 8 * width) - 1

    def write(self, offset: int, value: int, width: int) -> None: ...


@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=40))
def test_software_takes_any_answer(answers: list[int]) -> None:
    """A hostile function: enumeration ends, with what it understood or MessageError."""

    class Haunted(PciBus):
        def config(self, address: Address) -> Any:
            return liar if address == Address(1) else super().config(address)

    liar = Liar(list(answers))
    try:
        found: list[FoundFunction] = enumerate_bus(Haunted())
    except MessageError:
        return
    for one in found:
        one.read_capabilities()
        assert all(bar.size & (bar.size - 1) == 0 for bar in one.bars.values())


def test_messages_that_nobody_waits_for_are_counted() -> None:
    bus = PciBus()
    message = bus.interrupts.allocate()
    assert bus.interrupts.allocate() != message
    bus.interrupts.deliver(*message)
    bus.interrupts.deliver(message.address, 0x1234)
    assert [bus.interrupts.take(message) for _ in range(2)] == [True, False]
    assert bus.interrupts.stray == 1


def test_the_header_is_that_of_a_type_0_function() -> None:
    values = pci_header_type0.decode(function().registers.all)
    assert (values.header_type.layout, values.interrupt_pin, values.revision_id) == (0, 1, 3)
    assert values.status.capabilities_list == 1
