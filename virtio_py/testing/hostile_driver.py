"""A driver that breaks the rules on purpose, over any carrier, and what it tries.

    villain = HostileDriver.over(transport)                 the sequence of 3.1.1, then a queue set up and left empty
    villain.chain((0xdead_0000, 4, 0))                      by hand: descriptors that say whatever one likes
    outcome = assault(transport, ATTACKS[0])                or one of the table, start to reset

The table names what a device of this package makes of each; `assault` only tells what the device did: a device of
another make may refuse in its own way, and only dying, hanging, or not serving after a reset is wrong in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from attrs import define, frozen

from virtio_py.driver import Driver, Transport
from virtio_py.errors import Disconnected, MemoryFault, PeerError, RingError, TransportError
from virtio_py.memory import Arena, Buffer, GuestMemory
from virtio_py.rings.layouts import pvirtq_desc, virtq_avail, virtq_desc, virtq_used
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceStatus, Feature, PackedDescFlag, VirtqDescFlag, mask

NEXT, WRITE, INDIRECT = int(VirtqDescFlag.NEXT), int(VirtqDescFlag.WRITE), int(VirtqDescFlag.INDIRECT)
AVAIL, USED = int(PackedDescFlag.AVAIL), int(PackedDescFlag.USED)

LONG_TABLE: Final = 1025
"""Entries of an indirect table that no queue of ours follows to its end."""

Descriptor = tuple[int, int, int]
"""(address, length, flags): NEXT is added to all but the last of a chain."""


class BareDriver(Driver):
    """Runs the initialisation sequence with a device of any type, sets its queues up, and leaves them empty."""

    def check_device(self) -> None:
        """Whatever it is."""

    def filled(self, data: bytes) -> Buffer:
        """A buffer with these bytes, the device's until a reset."""
        return self._filled(data)


@define
class HostileDriver:
    """Writes a driver's structures by hand, into the areas of a queue that a real driver set up and left empty.

    memory: what the device sees; good: address of 64 bytes that may be named; scratch: address of room for tables.
    """

    memory: GuestMemory
    queue: DriverQueue
    good: int
    scratch: int
    published: int = 0
    mark: int = AVAIL  # what makes a descriptor available in this lap (packed)
    driver: BareDriver | None = None
    _lent: tuple[Buffer, ...] = ()

    @classmethod
    def over(cls, transport: Transport, features: int | None = None, index: int = 0, size: int = 8) -> HostileDriver:
        """Initialises the device behind a transport. features: mask to accept, those of split rings by default."""
        chosen = mask(Feature.VERSION_1, Feature.INDIRECT_DESC) if features is None else features
        driver = BareDriver(transport, features=chosen, queue_size=size).start()
        made = cls.on(transport.arena, transport.arena.memory, driver.queues[index])
        made.driver = driver
        return made

    def leave(self) -> None:
        """Resets the device and gives back what was taken of the arena; the transport is as good as new."""
        if self.driver is not None:
            self.driver.reset()
            self.driver.transport.arena.free(*self._lent)

    @classmethod
    def on(cls, arena: Arena, memory: GuestMemory, queue: DriverQueue) -> HostileDriver:
        """In the place of the driver of a queue that is empty. `memory` may have more regions than the arena's."""
        good, scratch = arena.allocate(64), arena.allocate(LONG_TABLE * virtq_desc.size)
        return cls(memory, queue, good.address, scratch.address, lent=(good, scratch))

    @property
    def split(self) -> bool:
        """Whether the queue is split."""
        return self.queue.layout == "split"

    @property
    def size(self) -> int:
        """The queue size."""
        return self.queue.size

    @property
    def start(self) -> int:
        """The address of the memory's first byte; the byte in front of it is a hole, or there is none."""
        return self.memory.regions[0].start

    @property
    def end(self) -> int:
        """The address behind the first region; a hole, unless the next one begins there."""
        return self.memory.regions[0].end

    @property
    def last(self) -> int:
        """The address behind all memory."""
        return self.memory.regions[-1].end

    @property
    def hole(self) -> int:
        """An address far from all memory."""
        return self.last + 0x30_0000

    # By hand

    def put(self, slot: int, address: int, length: int, flags: int, other: int) -> None:
        """A descriptor, whatever it says. `other` is next (split) or id (packed)."""
        at = self.queue.descriptor_area + slot * virtq_desc.size
        record, name = (virtq_desc, "next") if self.split else (pvirtq_desc, "id")
        self.memory.write(at, record.encode(addr=address, len=length, flags=flags, **{name: other}))

    def head(self, head: int) -> None:
        """Makes a chain available (split)."""
        avail = virtq_avail(self.size)
        step = avail.field("ring").size // self.size
        at = self.queue.driver_area + avail.offset("ring") + self.published % self.size * step
        self.memory.write(at, head.to_bytes(2, "little"))
        self.index(self.published + 1)

    def index(self, idx: int) -> None:
        """Stores the available index (split)."""
        self.published = idx
        at = self.queue.driver_area + virtq_avail(self.size).offset("idx")
        self.memory.write(at, (idx & 0xFFFF).to_bytes(2, "little"))

    def chain(self, *descriptors: Descriptor, at: int = 0, ident: int = 0) -> None:
        """A chain in consecutive slots, made available."""
        last = len(descriptors) - 1
        for n, (address, length, flags) in enumerate(descriptors):
            flags |= NEXT if n < last else 0
            if self.split:
                self.put(at + n, address, length, flags, at + n + 1 if n < last else 0)
            else:
                self.put(at + n, address, length, flags | self.mark, ident)
        if self.split:
            self.head(at)

    def table(self, *entries: tuple[int, int, int, int]) -> int:
        """An indirect table of (address, length, flags, next); where it is."""
        record = virtq_desc if self.split else pvirtq_desc
        other = "next" if self.split else "id"
        data = b"".join(record.encode(addr=a, len=n, flags=f, **{other: x}) for a, n, f, x in entries)
        self.memory.write(self.scratch, data)
        return self.scratch


Act = Callable[[HostileDriver], None]


@frozen
class Attack:
    """What a driver does, and what it comes to here: the error, and the clause for each layout it applies to ("" where
    no clause says it, None where the layout has no such thing).

    kind: the class in `attacks.ATTACK_CLASSES`; indirect: whether VIRTIO_F_INDIRECT_DESC is to be negotiated.
    """

    name: str
    kind: str
    run: Act
    error: type[PeerError]
    split: str | None = None
    packed: str | None = None
    indirect: bool = True

    def applies(self, layout: str) -> bool:
        """Whether the attack is one on a queue of this layout."""
        return getattr(self, layout) is not None


def _range(name: str, where: Callable[[HostileDriver], int], length: int, kind: str = "A5") -> list[Attack]:
    """A bad address range, in each kind of descriptor."""

    def direct(flags: int) -> Act:
        return lambda v: v.chain((where(v), length, flags))

    def entry(v: HostileDriver) -> None:
        v.chain((v.table((where(v), length, 0, 0)), 16, INDIRECT))

    acts = {"readable": direct(0), "writable": direct(WRITE), "entry": entry}
    return [Attack(f"{name}-{part}", kind, act, MemoryFault, "", "") for part, act in acts.items()]


def _table_of(length: int) -> Act:
    return lambda v: v.chain((v.scratch, length, INDIRECT))


def _links(*following: Callable[[HostileDriver], int], length: int = 4) -> Act:
    """Descriptors from 0 on that are all linked (split), whereto they should not."""

    def run(v: HostileDriver) -> None:
        for n, other in enumerate(following):
            v.put(n, v.good, length, NEXT, other(v))
        v.head(0)

    return run


def _is(number: int) -> Callable[[HostileDriver], int]:
    return lambda v: number


def _size(v: HostileDriver) -> int:
    return v.size


def _head(head: Callable[[HostileDriver], int]) -> Act:
    return lambda v: v.head(head(v))


def _ident(ident: Callable[[HostileDriver], int]) -> Act:
    return lambda v: v.chain((v.good, 4, 0), ident=ident(v))


def _two_heads(second: Callable[[HostileDriver], int]) -> Act:
    def run(v: HostileDriver) -> None:
        v.chain((v.good, 4, 0))
        v.head(second(v))

    return run


def _two_ids(second: Callable[[HostileDriver], int]) -> Act:
    def run(v: HostileDriver) -> None:
        v.chain((v.good, 4, 0), at=0, ident=3)
        v.chain((v.good, 4, 0), at=1, ident=second(v))

    return run


def _long_table(v: HostileDriver) -> None:
    entries = [(v.good, 1, NEXT if v.split and n < LONG_TABLE - 1 else 0, n + 1) for n in range(LONG_TABLE)]
    v.chain((v.table(*entries), LONG_TABLE * virtq_desc.size, INDIRECT))


def _one_list(v: HostileDriver) -> None:
    for slot in range(v.size):
        v.put(slot, v.good, 1, NEXT | AVAIL, 0)


def _follower_missing(v: HostileDriver) -> None:
    v.put(0, v.good, 1, NEXT | AVAIL, 0)


_LOOP, _DIRECTION = "split.driver.descriptor-table.1", "split.driver.message-framing.1"
_PACKED_DIRECTION, _PACKED_LIST = "packed.driver.scatter-gather-support.3", "packed.driver.scatter-gather-support.6"
_INDIRECT, _PACKED_INDIRECT = "split.driver.indirect-descriptors", "packed.driver.indirect-descriptors"
_INDEX = "split.driver.available-ring.1"

ATTACKS: Final = [
    *_range("outside", lambda v: v.hole, 4),
    *_range("below", lambda v: 0 if v.start >= 4 else v.hole, 4),
    *_range("first-byte-outside", lambda v: v.start - 1 if v.start else v.last, 2),
    *_range("last-byte-outside", lambda v: v.last - 3, 4),
    *_range("into-the-hole", lambda v: v.end - 2, 4),
    *_range("across-the-hole", lambda v: v.end - 2, 0x1F_0000),
    *_range("wraps-at-64-bits", lambda v: (1 << 64) - 4, 8, "A6"),
    *_range("last-address", lambda v: (1 << 64) - 1, 1, "A6"),
    *_range("sign-bit", lambda v: 1 << 63, 4, "A6"),
    *_range("good-but-for-the-sign", lambda v: (1 << 63) + v.good, 4, "A6"),
    *_range("longest", lambda v: v.good, 0xFFFFFFFF),
    Attack(
        "readable-behind-writable",
        "A9",
        lambda v: v.chain((v.good, 4, WRITE), (v.good, 4, 0)),
        RingError,
        _DIRECTION,
        _PACKED_DIRECTION,
    ),
    Attack(
        "readable-behind-writable-indirect",
        "A9",
        lambda v: v.chain((v.table((v.good, 4, WRITE | (NEXT if v.split else 0), 1), (v.good, 4, 0, 0)), 32, INDIRECT)),
        RingError,
        _DIRECTION,
        _PACKED_DIRECTION,
    ),
    Attack(
        "indirect-not-negotiated",
        "A4",
        lambda v: v.chain((v.table((v.good, 4, 0, 0)), 16, INDIRECT)),
        RingError,
        f"{_INDIRECT}.1",
        f"{_PACKED_INDIRECT}.1",
        indirect=False,
    ),
    Attack(
        "indirect-nested",
        "A1",
        lambda v: v.chain((v.table((v.scratch, 16, INDIRECT, 0)), 16, INDIRECT)),
        RingError,
        f"{_INDIRECT}.2",
    ),
    Attack(
        "indirect-and-next",
        "A4",
        lambda v: v.chain((v.table((v.good, 4, 0, 0)), 16, INDIRECT | NEXT), (v.good, 4, 0)),
        RingError,
        f"{_INDIRECT}.4",
        f"{_PACKED_INDIRECT}.4",
    ),
    Attack(
        "indirect-behind-next",
        "A4",
        lambda v: v.chain((v.good, 4, 0), (v.table((v.good, 4, 0, 0)), 16, INDIRECT)),
        RingError,
        None,
        f"{_PACKED_INDIRECT}.4",
    ),
    *(Attack(f"table-of-{n}-bytes", "A2", _table_of(n), RingError, "", "") for n in (0, 1, 8, 17, 0xFFFFFFFF)),
    Attack("table-outside", "A5", lambda v: v.chain((v.hole, 16, INDIRECT)), MemoryFault, "", ""),
    Attack("table-ends-outside", "A5", lambda v: v.chain((v.last - 16, 32, INDIRECT)), MemoryFault, "", ""),
    Attack("table-wraps", "A6", lambda v: v.chain(((1 << 64) - 16, 32, INDIRECT)), MemoryFault, "", ""),
    Attack("table-of-4-gib", "A19", lambda v: v.chain((v.scratch, 0xFFFFFFF0, INDIRECT)), MemoryFault, "", ""),
    Attack(
        "table-longer-than-any-chain",
        "A2",
        _long_table,
        RingError,
        f"{_INDIRECT}.3",
        "packed.driver.scatter-gather-support.2",
    ),
    # Split alone: links and indices
    Attack("self-loop", "A1", _links(_is(0)), RingError, _LOOP),
    Attack("loop-of-two", "A1", _links(_is(1), _is(0)), RingError, _LOOP),
    Attack("loop-of-nothing", "A3", _links(_is(0), length=0), RingError, _LOOP),
    Attack(
        "loop-inside-table",
        "A1",
        lambda v: v.chain((v.table((v.good, 4, NEXT, 1), (v.good, 4, NEXT, 0)), 32, INDIRECT)),
        RingError,
        _LOOP,
    ),
    Attack("next-is-the-size", "A2", _links(_size), RingError, ""),
    Attack("next-is-all-ones", "A2", _links(_is(0xFFFF)), RingError, ""),
    Attack(
        "next-leaves-the-table", "A2", lambda v: v.chain((v.table((v.good, 4, NEXT, 1)), 16, INDIRECT)), RingError, ""
    ),
    Attack("head-is-the-size", "A2", _head(_size), RingError, ""),
    Attack("head-is-all-ones", "A2", _head(_is(0xFFFF)), RingError, ""),
    Attack("index-jumps", "A2", lambda v: v.index(v.size + 1), RingError, _INDEX),
    Attack("index-goes-back", "A2", lambda v: v.index(0xFFFF), RingError, _INDEX),
    # Packed alone: ids and availability
    Attack("id-is-the-size", "A4", _ident(_size), RingError, None, ""),
    Attack("id-is-all-ones", "A4", _ident(_is(0xFFFF)), RingError, None, ""),
    Attack("follower-is-not-available", "A4", _follower_missing, RingError, None, _PACKED_LIST),
    Attack("ring-is-one-list-without-end", "A1", _one_list, RingError, None, _PACKED_LIST),
]
"""Attacks with one bad buffer, in a queue that is empty."""

BEHIND_A_GOOD_ONE: Final = [
    Attack("same-head-in-flight", "A8", _two_heads(_is(0)), RingError, ""),
    Attack("second-head-out-of-range", "A8", _two_heads(_size), RingError, ""),
    Attack("same-id-in-flight", "A8", _two_ids(_is(3)), RingError, None, ""),
    Attack("second-id-out-of-range", "A8", _two_ids(_size), RingError, None, ""),
]
"""Attacks whose first buffer, of four readable bytes, is good. A device that uses it before it looks at the second
finds nothing wrong with the same head or id again."""


class Outcome(Enum):
    """What a device did about an attack, as its driver can see it."""

    TOLD = "DEVICE_NEEDS_RESET is set"
    USED = "something was put on the used ring"
    SILENT = "nothing happened"
    GONE = "the carrier is gone"


def _used(villain: HostileDriver) -> bool:
    """Whether the device has used anything in a queue that nobody else worked on."""
    if villain.split:
        at = villain.queue.device_area + virtq_used(villain.size).offset("idx")
        return villain.memory.read(at, 2) != bytes(2)
    flags = villain.queue.descriptor_area + pvirtq_desc.offset("flags")
    word = int.from_bytes(villain.memory.read(flags, 2), "little")
    return word & (AVAIL | USED) == AVAIL | USED


def assault(
    transport: Transport, attack: Attack, layout: str = "split", index: int = 0, patience: float = 0.5
) -> Outcome:
    """One attack on a queue of the device behind `transport`, from initialisation to what came of it, and a reset.

    patience: seconds that the device gets to do something. Raises NegotiationError for a device that does not start,
    or does not come back from the reset.
    """
    packed = (Feature.RING_PACKED,) if layout == "packed" else ()
    indirect = (Feature.INDIRECT_DESC,) if attack.indirect else ()
    try:
        villain = HostileDriver.over(transport, mask(Feature.VERSION_1, *packed, *indirect), index)
        attack.run(villain)
        transport.available_buffer(index, villain.queue.notification_data)
        outcome = _await(transport, villain, time.monotonic() + patience)
        villain.leave()
    except (Disconnected, TransportError):
        return Outcome.GONE
    return outcome


def _await(transport: Transport, villain: HostileDriver, deadline: float) -> Outcome:
    while time.monotonic() < deadline:
        if transport.read_status() & DeviceStatus.DEVICE_NEEDS_RESET:
            return Outcome.TOLD
        if _used(villain):
            return Outcome.USED
        transport.wait(0.01)
    return Outcome.SILENT


# Registers ----------------------------------------------------------------------------------------------------------


@frozen
class Misuse:
    """Something done to a running device over its transport that is not allowed then, or with that value."""

    name: str
    kind: str
    run: Callable[[Transport, DriverQueue], Any]


MISUSES: Final = [
    Misuse("features-after-features-ok", "A21", lambda t, q: t.accept_features(t.device_features())),
    Misuse("queue-enabled-twice", "A21", lambda t, q: t.enable_queue(q)),
    Misuse("queue-that-is-not-there", "A26", lambda t, q: t.available_buffer(0xFFFF, 0xFFFF)),
    Misuse("queue-index-of-high-bits", "A26", lambda t, q: t.available_buffer(0x1_0000, 0x1_0000)),
    Misuse("all-status-bits", "A21", lambda t, q: t.write_status(0xFF)),
    Misuse("configuration-read-behind-its-end", "A22", lambda t, q: t.read_config(0x1000, 8)),
    Misuse("configuration-write-behind-its-end", "A22", lambda t, q: t.write_config(0xF000, bytes(4))),
]
"""What they raise at the caller depends on the carrier; the device has to be there afterwards, and reset."""
