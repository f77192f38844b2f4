"""What software does with a bus: finds the functions, sizes and places their BARs, by configuration accesses alone.

for found in enumerate_bus(bus):
    found.read_capabilities()            what `walk` makes of its header and capabilities
    found.bar(4).read(offset, width)     registers, wherever the BAR was placed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

from attrs import define, frozen

from virtio_py.access import RegisterAccess
from virtio_py.errors import MessageError
from virtio_py.pci import walk
from virtio_py.pci.bars import BAR_BYTES, BAR_COUNT, bar_register
from virtio_py.pci.bus import DEVICES, FUNCTIONS, Address
from virtio_py.pci.capabilities import CapabilityId, pci_capability, pci_vendor_specific
from virtio_py.pci.header import (
    CAPABILITIES_POINTER,
    CONFIG_SPACE_MIN,
    CONVENTIONAL_SIZE,
    pci_header_common,
    pci_header_type0,
)

MEMORY_WINDOW: Final = range(0xC000_0000, 0xFEC0_0000)
IO_WINDOW: Final = range(0x1000, 0x1_0000)
"""Where BARs are placed, in bytes."""

_ABSENT: Final = 0xFFFF
_WORD: Final = 4
_ALL_ONES: Final = 0xFFFF_FFFF
_TYPE_0: Final = 0


class Machine(Protocol):
    """How software reaches a bus."""

    @property
    def memory(self) -> RegisterAccess:
        """Memory space by addresses."""

    @property
    def io(self) -> RegisterAccess:
        """I/O space by addresses."""

    def config(self, address: Address) -> RegisterAccess:
        """The configuration space of whatever is at a place."""


@frozen
class FoundBar:
    """A BAR that was sized and placed: its address and size in bytes."""

    index: int
    address: int
    size: int
    io: bool


@frozen
class FoundFunction:
    """A function, its BARs placed; nothing of it is known but what its registers have said."""

    address: Address
    config: RegisterAccess
    bars: Mapping[int, FoundBar]
    machine: Machine

    def bar(self, index: int) -> RegisterAccess:
        """The registers of a BAR by their offsets. Raises MessageError if there is no such BAR."""
        if index not in self.bars:
            raise MessageError(f"the function at {self.address} has no BAR {index}")
        bar = self.bars[index]
        return Shifted(self.machine.io if bar.io else self.machine.memory, bar.address)

    def read_capabilities(self, stop: Callable[[bytes], int] = lambda head: CONVENTIONAL_SIZE) -> walk.Function:
        """The header and the conventional capabilities, read one by one and decoded. Nothing is read twice.

        stop: from a vendor specific capability's first 4 bytes, how many of its bytes may be read.
        """
        image = bytearray(CONVENTIONAL_SIZE)
        self._read_into(image, 0, CONFIG_SPACE_MIN)
        at = image[CAPABILITIES_POINTER[_TYPE_0]] & ~(_WORD - 1)
        seen: set[int] = set()
        while CONFIG_SPACE_MIN <= at <= CONVENTIONAL_SIZE - _WORD and at not in seen:
            seen.add(at)
            self._read_into(image, at, at + _WORD)
            self._read_into(image, at + _WORD, at + _length(bytes(image[at : at + _WORD]), stop))
            at = image[at + pci_capability.offset("cap_next")] & ~(_WORD - 1)
        return walk.walk(bytes(image), str(self.address))

    def _read_into(self, image: bytearray, start: int, end: int) -> None:
        for at in range(start, min(end, len(image)), _WORD):
            image[at : at + _WORD] = self.config.read(at, _WORD).to_bytes(_WORD, "little")


_LENGTHS: Final = {CapabilityId.MSI_X: 12, CapabilityId.POWER_MANAGEMENT: 8}


def _length(head: bytes, stop: Callable[[bytes], int]) -> int:
    """How many bytes of a capability to read, from its first four."""
    if head[pci_capability.offset("cap_id")] == CapabilityId.VENDOR_SPECIFIC:
        return min(head[pci_vendor_specific.offset("cap_len")], stop(head))
    return _LENGTHS.get(CapabilityId(head[0]), _WORD) if head[0] in set(CapabilityId) else _WORD


class Shifted:
    """Registers by their offsets from `base`."""

    def __init__(self, registers: RegisterAccess, base: int) -> None:
        self._registers = registers
        self._base = base

    def read(self, offset: int, width: int) -> int:
        """What a read of `width` bytes at `offset` returns, little-endian."""
        return self._registers.read(self._base + offset, width)

    def write(self, offset: int, value: int, width: int) -> None:
        """A write of `width` bytes at `offset`."""
        self._registers.write(self._base + offset, value, width)


@define
class _Window:
    """Addresses not yet given to a BAR."""

    left: range

    def take(self, size: int) -> int:
        start = -(-self.left.start // size) * size
        if start + size > self.left.stop:
            raise MessageError(f"no room for a BAR of {size} bytes")
        self.left = range(start + size, self.left.stop)
        return start


def enumerate_bus(machine: Machine, memory: range = MEMORY_WINDOW, io: range = IO_WINDOW) -> list[FoundFunction]:
    """All functions, their BARs placed in these windows and switched on. Raises MessageError where they do not fit."""
    windows = {True: _Window(io), False: _Window(memory)}
    return [_bring_up(machine, address, windows) for address in _addresses(machine)]


def _addresses(machine: Machine) -> Iterator[Address]:
    for device in range(DEVICES):
        first = machine.config(Address(device))
        if first.read(0, 2) == _ABSENT:
            continue
        kind = pci_header_common.register("header_type")
        several = kind.split(first.read(pci_header_common.offset("header_type"), 1)).multi_function
        for function in range(FUNCTIONS if several else 1):
            if machine.config(Address(device, function)).read(0, 2) != _ABSENT:
                yield Address(device, function)


def _bring_up(machine: Machine, address: Address, windows: Mapping[bool, _Window]) -> FoundFunction:
    config = machine.config(address)
    command, at = pci_header_type0.register("command"), pci_header_type0.offset("command")
    before = config.read(at, 2)
    # While a BAR reads its size it must answer nowhere.
    config.write(at, before & ~command.join({"io_space": 1, "memory_space": 1}), 2)
    kind = pci_header_common.register("header_type").split(config.read(pci_header_common.offset("header_type"), 1))
    bars = {bar.index: bar for bar in _place_bars(config, windows)} if kind.layout == _TYPE_0 else {}
    config.write(at, before | command.join({"io_space": 1, "memory_space": 1, "bus_master": 1}), 2)
    return FoundFunction(address, config, bars, machine)


def _place_bars(config: RegisterAccess, windows: Mapping[bool, _Window]) -> Iterator[FoundBar]:
    index = 0
    while index < BAR_COUNT:
        at = bar_register(index)
        low = _answer(config, at)
        io, wide = bool(low & 1), low & 7 == 4 and index + 1 < BAR_COUNT
        bits = 64 if wide else 32
        ones = low & ~(3 if io else 15) | (_answer(config, at + BAR_BYTES) << 32 if wide else 0)
        # The upper half of an I/O BAR may be hardwired to 0.
        ones |= 0xFFFF_0000 if io and ones else 0
        if ones:
            size = (1 << bits) - ones
            if size & (size - 1):
                raise MessageError(f"BAR {index} answers {ones:#x}, the mask of no size")
            start = windows[io].take(size)
            config.write(at, start & _ALL_ONES, _WORD)
            if wide:
                config.write(at + BAR_BYTES, start >> 32, _WORD)
            yield FoundBar(index, start, size, io)
        index += 2 if wide else 1


def _answer(config: RegisterAccess, at: int) -> int:
    """What a base address register reads after ones were written: its size, and what it maps."""
    config.write(at, _ALL_ONES, _WORD)
    return config.read(at, _WORD)
