"""A PCI bus without bridges: functions in their places, who answers at an address, and where interrupts arrive.

bus = PciBus()
bus.plug(function, Address(1))
bus.config(Address(1)).read(0, 2)      configuration space; all ones where no function is
bus.memory.read(address, 4)            whichever function's BAR lies there; likewise bus.io

`enumeration` is what software does with one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from attrs import define, field

from virtio_py.access import RegisterAccess
from virtio_py.errors import UsageError
from virtio_py.pci.function import PciFunction

DEVICES: Final = 32
FUNCTIONS: Final = 8

_MESSAGES: Final = 0xFEE0_0000
"""Where messages go, as on a PC: no memory is there."""


class Address(NamedTuple):
    """A function's place on the bus."""

    device: int
    function: int = 0

    def __str__(self) -> str:
        return f"00:{self.device:02x}.{self.function}"


class Message(NamedTuple):
    """What an interrupt message writes, and where."""

    address: int
    data: int


@define(eq=False)
class InterruptController:
    """Where interrupts arrive: messages that were allocated, and lines by the function that raises them.

    stray: how many messages came that nobody had allocated
    """

    stray: int = field(init=False, default=0)
    raised: set[Address] = field(init=False, factory=set)
    _arrived: dict[Message, bool] = field(init=False, factory=dict)

    def allocate(self) -> Message:
        """A message that no other vector has."""
        message = Message(_MESSAGES, len(self._arrived))
        self._arrived[message] = False
        return message

    def deliver(self, address: int, data: int) -> None:
        """A function sends a message."""
        if Message(address, data) in self._arrived:
            self._arrived[Message(address, data)] = True
        else:
            self.stray += 1

    def take(self, message: Message) -> bool:
        """Whether the message has come since this was last asked."""
        came, self._arrived[message] = self._arrived[message], False
        return came

    def set_line(self, address: Address, level: bool) -> None:
        """A function raises or lowers its line."""
        if level:
            self.raised.add(address)
        else:
            self.raised.discard(address)


@define(eq=False)
class PciBus:
    """Bus 0 of a machine. One thread at a time may call."""

    interrupts: InterruptController = field(factory=InterruptController)
    functions: dict[Address, PciFunction] = field(init=False, factory=dict)
    memory: RegisterAccess = field(init=False)
    io: RegisterAccess = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.memory = _Space(self, io=False)
        self.io = _Space(self, io=True)

    def plug(self, function: PciFunction, address: Address) -> None:
        """Puts a function on the bus. Raises UsageError where it cannot be; function 0 comes first."""
        if not (0 <= address.device < DEVICES and 0 <= address.function < FUNCTIONS) or address in self.functions:
            raise UsageError(f"there is no free place {address}")
        if address.function:
            first = self.functions.get(Address(address.device))
            if first is None:
                raise UsageError(f"a device has its function 0 before its function {address.function}")
            first.set_multi_function()
        self.functions[address] = function
        function.interrupt = lambda level: self.interrupts.set_line(address, level)
        function.send = self.interrupts.deliver

    def config(self, address: Address) -> RegisterAccess:
        """The configuration space of whatever is at a place."""
        return _Config(self, address)

    def claims(self, io: bool) -> Iterator[tuple[PciFunction, int, int, int]]:
        """(function, BAR, address, size in bytes) of all BARs that answer in a space now."""
        for function in self.functions.values():
            if function.decodes(io):
                for index, bar in function.bars.items():
                    if bar.io == io:
                        yield function, index, function.bar_address(index), bar.size


class _Config:
    """A function's configuration space; a place without a function reads as all ones."""

    def __init__(self, bus: PciBus, address: Address) -> None:
        self._bus = bus
        self._address = address

    def read(self, offset: int, width: int) -> int:
        function = self._bus.functions.get(self._address)
        return (1 << 8 * width) - 1 if function is None else function.registers.read(offset, width)

    def write(self, offset: int, value: int, width: int) -> None:
        function = self._bus.functions.get(self._address)
        if function is not None:
            function.registers.write(offset, value, width)


class _Space:
    """Memory or I/O space: the first BAR that claims an access has it, what none claims reads as all ones."""

    def __init__(self, bus: PciBus, io: bool) -> None:
        self._bus = bus
        self._io = io

    def _find(self, address: int, width: int) -> tuple[PciFunction, int, int] | None:
        for function, index, start, size in self._bus.claims(self._io):
            if start <= address and address + width <= start + size:
                return function, index, address - start
        return None

    def read(self, offset: int, width: int) -> int:
        found = self._find(offset, width)
        return (1 << 8 * width) - 1 if found is None else found[0].read_bar(*found[1:], width)

    def write(self, offset: int, value: int, width: int) -> None:
        found = self._find(offset, width)
        if found is not None:
            found[0].write_bar(*found[1:], value, width)
