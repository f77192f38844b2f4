"""What carriers made of registers have in common on the device's side: a machine of registers around a `DeviceEnd`.

A block of registers is a `Record` and two tables, what a read of each register returns and what a write does. Nothing
that a driver does to a register raises. What the specification forbids has no effect (reads are 0) and is kept in
`ignored`; a queue that is enabled where it cannot be becomes DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NamedTuple

from attrs import define, field

from virtio_py.access import WIDTHS
from virtio_py.device import Device, DeviceEnd
from virtio_py.errors import MessageError, NegotiationError, PeerError, RingError
from virtio_py.memory import GuestMemory
from virtio_py.records import Record
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.places import legacy_places
from virtio_py.rings.queue import QueueConfig
from virtio_py.spec import DeviceStatus, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.registers import WORD, Kicks, feature_word, with_feature_word

_REMEMBERED: Final = 16

Read = Callable[[Any], int]
Write = Callable[[Any, int], None]


class Place(NamedTuple):
    """A register, or half of one of 64 bits: its name in the tables, and its width in bytes."""

    name: str
    width: int


LOW: Final = "Low"
HIGH: Final = "High"
"""What the tables put behind the name of a register of 64 bits for its halves."""


def places_of(layout: Record) -> dict[int, Place]:
    """The registers of a block by their offsets in bytes; those of 64 bits are two (4.1.3)."""
    found: dict[int, Place] = {}
    for name, field_ in layout.fields.items():
        if field_.kind == "int" and field_.size in WIDTHS:
            found[field_.offset] = Place(name, field_.size)
        elif field_.kind == "int":
            half = field_.size // 2
            found[field_.offset] = Place(name + LOW, half)
            found[field_.offset + half] = Place(name + HIGH, half)
    return found


@define(eq=False)
class RegisterDevice:
    """A device behind registers. One thread at a time may call.

    ring_features: mask of the features offered besides the device's own
    ignored:       the last things a driver did that it must not do
    selected:      the registers whose values say what others are about
    """

    locked_clause: ClassVar[str] = ""

    device: Device
    memory: GuestMemory
    engine: Engine = REFERENCE
    ring_features: int = field(default=RING_FEATURES, kw_only=True)
    ignored: deque[PeerError] = field(init=False, factory=lambda: deque(maxlen=_REMEMBERED))
    end: DeviceEnd = field(init=False)
    selected: dict[str, int] = field(init=False, factory=dict)
    kicks: Kicks = field(init=False)
    resetting: set[int] = field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        self.end = self.make_end()
        self.kicks = Kicks(self.end)

    def make_end(self) -> DeviceEnd:
        """The end around the device; called once."""
        return DeviceEnd(self.device, self.memory, self, self.engine, self.ring_features)

    # The device's Notifier

    def used_buffer(self, queue_index: int) -> None:
        """A used buffer notification for one queue (2.3)."""
        raise NotImplementedError(f"{type(self).__name__} sends no notifications")

    def configuration_change(self) -> None:
        """A configuration change notification (2.3)."""
        raise NotImplementedError(f"{type(self).__name__} sends no notifications")

    # Accesses

    def answer(self, read: Callable[[], int]) -> int:
        """What `read` returns; 0, and a line in `ignored`, for what a driver must not do."""
        try:
            return read()
        except PeerError as error:
            self.ignored.append(error)
            return 0

    def obey(self, write: Callable[[], None]) -> None:
        """Does `write`; what a driver must not do has no effect, and a queue that cannot be needs a reset."""
        try:
            write()
        except (MessageError, NegotiationError) as error:
            self.ignored.append(error)
        except PeerError as error:
            self.end.needs_reset(error)

    def step(self) -> bool:
        """Serves one queue that was notified of; False if there is none."""
        return self.kicks.step()

    def work(self, timeout: float) -> bool:
        """`step`, or waits up to `timeout` seconds for what stands behind the device."""
        return self.kicks.work(timeout)

    # What all blocks of registers have

    def forget(self) -> None:
        """The device was reset: so are the registers."""
        self.kicks.clear()
        self.selected.clear()

    def write_status(self, value: int) -> None:
        """The device status."""
        self.end.write_status(value)
        if value == 0:
            # After the device's own reset, in the course of which it may still have notified.
            self.forget()

    def offer(self, selector: int) -> int:
        """32 of the device's feature bits."""
        return feature_word(self.end.device_features, selector)

    def accept(self, selector: int, value: int) -> None:
        """32 of the driver's feature bits."""
        self.end.accept_features(with_feature_word(self.end.features, selector, value))

    def has(self, feature: int) -> bool:
        """Whether a feature bit was accepted."""
        return bool(self.end.features & bit(feature))

    # The queue that a register selects

    @property
    def selected_queue(self) -> int:
        """The index that was written last, of a queue that is there or not."""
        raise NotImplementedError(f"{type(self).__name__} selects no queue")

    def queue_exists(self) -> bool:
        """Whether the device has the selected queue."""
        return self.selected_queue < self.end.num_queues

    def in_use(self) -> bool:
        """Whether the selected queue is enabled."""
        return self.end.active_queue(self.selected_queue) is not None

    def idle_queue(self) -> QueueConfig:
        """The selected queue, to be configured. Raises MessageError if there is none, or it is in use."""
        index = self.selected_queue
        if not self.queue_exists():
            raise MessageError(f"there is no queue {index}")
        if self.in_use():
            raise MessageError("the queue is in use", clause=self.locked_clause, queue=index)
        return self.end.queue(index)

    def enable(self) -> None:
        """Enables the selected queue. Raises NegotiationError before FEATURES_OK."""
        # What the ring looks like is not settled before.
        if not self.end.read_status() & DeviceStatus.FEATURES_OK:
            raise NegotiationError("a queue enabled before FEATURES_OK", queue=self.selected_queue)
        self.end.enable_queue(self.selected_queue)

    def enable_legacy(self, page: int, page_size: int, align: int) -> None:
        """Enables the selected queue of a legacy interface (2.7.2), one piece that begins with page number `page`."""
        config = self.idle_queue()
        for what, size in (("the page size", page_size), ("the alignment", align)):
            if not size or size & (size - 1):
                raise RingError(f"{what} is {size}, no power of 2", queue=config.index)
        if not 0 < config.size <= config.max_size:
            raise RingError(f"queue size {config.size} is not from 1 to {config.max_size}", queue=config.index)
        places = legacy_places(config.size, align)
        config.descriptor_area = page * page_size
        config.driver_area = config.descriptor_area + places.driver
        config.device_area = config.descriptor_area + places.device
        self.end.enable_queue(config.index)

    def reset_queue(self, value: int) -> None:
        """1 resets the selected queue (2.6.1)."""
        index = self.selected_queue
        if not self.queue_exists() or value != 1 or index in self.resetting:
            raise MessageError(f"a queue reset written as {value:#x}", queue=index)
        self.resetting.add(index)
        try:
            self.end.reset_queue(index)
        finally:
            self.resetting.remove(index)


class RegisterBlock:
    """A machine's block of registers, as a bus reaches it: a `RegisterAccess` that never raises.

    readable, writable: by the names of the registers in `layout`, what a read returns and what a write does;
    enter: called before each access.
    """

    def __init__(
        self,
        machine: RegisterDevice,
        layout: Record,
        readable: Mapping[str, Read],
        writable: Mapping[str, Write],
        enter: Callable[[], None] = lambda: None,
    ) -> None:
        self._machine = machine
        self._enter = enter
        self._places = places_of(layout)
        self._readable = readable
        self._writable = writable

    def read(self, offset: int, width: int) -> int:
        """What a read of `width` bytes at `offset` returns, little-endian."""
        machine = self._machine
        self._enter()
        return machine.answer(lambda: self._readable[self._name(offset, width, self._readable)](machine) & WORD)

    def write(self, offset: int, value: int, width: int) -> None:
        """A write of `width` bytes at `offset`."""
        machine = self._machine
        self._enter()
        value &= (1 << 8 * width) - 1
        machine.obey(lambda: self._writable[self._name(offset, width, self._writable)](machine, value))

    def _name(self, offset: int, width: int, table: Mapping[str, object]) -> str:
        place = self._places.get(offset)
        if place is None or place.width != width:
            raise MessageError(f"no register of {width} bytes is here", where=f"offset {offset:#x}")
        if place.name not in table:
            raise MessageError(f"{place.name} is not for this access", where=f"offset {offset:#x}")
        return place.name


class ConfigBlock:
    """A device's configuration structure as a block of registers: a `RegisterAccess` that never raises."""

    def __init__(self, machine: RegisterDevice) -> None:
        self._machine = machine

    def read(self, offset: int, width: int) -> int:
        """What a read of `width` bytes at `offset` returns, little-endian."""
        return self._machine.answer(lambda: self._read(offset, width))

    def _read(self, offset: int, width: int) -> int:
        _check_width(offset, width)
        return int.from_bytes(self._machine.end.read_config(offset, width), "little")

    def write(self, offset: int, value: int, width: int) -> None:
        """A write of `width` bytes at `offset`."""
        self._machine.obey(lambda: self._write(offset, value, width))

    def _write(self, offset: int, value: int, width: int) -> None:
        _check_width(offset, width)
        self._machine.end.write_config(offset, (value & (1 << 8 * width) - 1).to_bytes(width, "little"))


def _check_width(offset: int, width: int) -> None:
    if width not in WIDTHS:
        raise MessageError(f"an access of {width} bytes", where=f"offset {offset:#x}")


def select(name: str) -> Write:
    """A register whose value says what others are about."""

    def write(machine: RegisterDevice, value: int) -> None:
        machine.selected[name] = value

    return write


def half(area: str, shift: int) -> Write:
    """32 bits of the address of one of a queue's areas, from `shift` on."""

    def write(machine: RegisterDevice, value: int) -> None:
        config = machine.idle_queue()
        setattr(config, area, getattr(config, area) & ~(WORD << shift) | value << shift)

    return write
