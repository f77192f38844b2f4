"""A driver that breaks the rules on purpose, over any carrier, and what it tries.

    villain = HostileDriver.over(transport)                 the sequence of 3.1.1, then a queue set up and left empty
    villain.chain((0xdead_0000, 4, 0))                      by hand: descriptors that say whatever one likes
    villain.hand.force(3, Descriptor(0x1000, 4))            a chain with an id of one's choice
    outcome = assault(transport, ATTACKS[0])                or one of the table, start to reset

The table names what a device of this package makes of each; `assault` only tells what the device did: a device of
another make may refuse in its own way, and only dying, hanging, or not serving after a reset is wrong in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from itertools import starmap
from typing import Any, Final

from attrs import define, frozen

from virtio_py.driver import Driver, Transport
from virtio_py.errors import Disconnected, MemoryFault, PeerError, RingError, TransportError, UsageError
from virtio_py.memory import Arena, Buffer, GuestMemory
from virtio_py.rings.layouts import virtq_desc
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceStatus, Feature, mask
from virtio_py.testing.hands import INDIRECT, NEXT, WRITE, Descriptor, Hand, PackedHand, SplitHand, encoded, make_hand

LONG_TABLE: Final = 1025
"""Entries of an indirect table that no queue of ours follows to its end."""


class BareDriver(Driver):
    """Runs the initialisation sequence with a device of any type, sets its queues up, and leaves them empty."""

    def check_device(self) -> None:
        """Whatever it is."""

    def filled(self, data: bytes) -> Buffer:
        """A buffer with these bytes, the device's until a reset."""
        return self._filled(data)


@define
class HostileDriver:
    """In the place of the driver of a queue that is set up and empty: chains good or bad, by a hand that writes either.

    good: address of 64 bytes that may be named; scratch: address of room for tables.
    """

    hand: Hand
    good: int
    scratch: int
    driver: BareDriver | None = None
    _lent: tuple[Buffer, ...] = ()

    @classmethod
    def over(cls, transport: Transport, features: int | None = None, index: int = 0, size: int = 8) -> HostileDriver:
        """Initialises the device behind a transport. features: mask to accept, those of split rings by default."""
        chosen = mask(Feature.VERSION_1, Feature.INDIRECT_DESC) if features is None else features
        driver = BareDriver(transport, features=chosen, queue_size=size).start()
        made = cls.on(transport.arena, make_hand(driver.queues[index], transport.arena.memory))
        made.driver = driver
        return made

    def leave(self) -> None:
        """Resets the device and gives back what was taken of the arena; the transport is as good as new."""
        if self.driver is not None:
            self.driver.reset()
            self.driver.transport.arena.free(*self._lent)

    @classmethod
    def on(cls, arena: Arena, hand: Hand) -> HostileDriver:
        """With a hand of one's own, whose memory may have more regions than the arena's."""
        good, scratch = arena.allocate(64), arena.allocate(LONG_TABLE * virtq_desc.size)
        # What comes back for a bad chain, if anything, is nothing to hold against a device.
        hand.lenient = True
        return cls(hand, good.address, scratch.address, lent=(good, scratch))

    @property
    def memory(self) -> GuestMemory:
        """What the device sees."""
        return self.hand.memory

    @property
    def split(self) -> bool:
        """Whether the queue is split."""
        return self.hand.queue.layout == "split"

    @property
    def size(self) -> int:
        """The queue size."""
        return self.hand.size

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

    def chain(self, *descriptors: tuple[int, int, int]) -> int:
        """A chain of (address, length, flags), made available; its id, which is its head in a split queue."""
        return self.hand.add(*starmap(Descriptor, descriptors))

    def table(self, *entries: tuple[int, int, int, int]) -> int:
        """An indirect table of (address, length, flags, next); where it is."""
        layout = self.hand.queue.layout
        self.memory.write(self.scratch, b"".join(encoded(layout, Descriptor(*e[:3]), e[3]) for e in entries))
        return self.scratch

    def loop(self, *following: int, length: int = 4) -> None:
        """Descriptors that are all linked: each to that of the loop which `following` numbers, or beyond it (split)."""
        hand = self.split_hand
        slots = hand.held[hand.stage(*[Descriptor(self.good, length)] * len(following))]
        for slot, step in zip(slots, following, strict=True):
            hand.put(slot, Descriptor(self.good, length, NEXT), slots[step] if step < len(slots) else step)
        hand.publish()

    def head(self, head: int) -> None:
        """A head that may be of no chain (split)."""
        self.split_hand.head(head)
        self.hand.publish()

    def jump(self, distance: int) -> None:
        """The available index goes so far, with nothing behind it (split)."""
        self.split_hand.jump(self.split_hand.published + distance)

    def unended(self, count: int) -> None:
        """So many available descriptors, each with NEXT (packed)."""
        hand = self.packed_hand
        for _ in range(count):
            hand.raw(Descriptor(self.good, 1, NEXT | hand.ownership()), 0)

    @property
    def split_hand(self) -> SplitHand:
        """The hand of a split queue."""
        assert isinstance(self.hand, SplitHand)
        return self.hand

    @property
    def packed_hand(self) -> PackedHand:
        """The hand of a packed queue."""
        assert isinstance(self.hand, PackedHand)
        return self.hand


Act = Callable[[HostileDriver], object]


@frozen
class Attack:
    """What a driver does, and what it comes to here: the error, and the clause for each layout it applies to ("" where
    no clause says it, None where the layout has no such thing).

    kind: the class in `attacks.ATTACK_CLASSES`; indirect: whether VIRTIO_F_INDIRECT_DESC is to be negotiated; spoils:
    whether what the ring says afterwards has no meaning, so that only a reset helps.
    """

    name: str
    kind: str
    run: Act
    error: type[PeerError]
    split: str | None = None
    packed: str | None = None
    indirect: bool = True
    spoils: bool = False

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


def _loop(*following: int, length: int = 4) -> Act:
    return lambda v: v.loop(*following, length=length)


def _force(*idents: Callable[[HostileDriver], int]) -> Act:
    """Chains of four readable bytes, with these ids."""

    def run(v: HostileDriver) -> None:
        for ident in idents:
            v.hand.force(ident(v), Descriptor(v.good, 4))

    return run


def _is(number: int) -> Callable[[HostileDriver], int]:
    return lambda v: number


def _size(v: HostileDriver) -> int:
    return v.size


def _long_table(v: HostileDriver) -> None:
    entries = [(v.good, 1, NEXT if v.split and n < LONG_TABLE - 1 else 0, n + 1) for n in range(LONG_TABLE)]
    v.chain((v.table(*entries), LONG_TABLE * virtq_desc.size, INDIRECT))


def _head_behind(v: HostileDriver) -> None:
    v.chain((v.good, 4, 0))
    v.head(v.size)


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
    Attack("self-loop", "A1", _loop(0), RingError, _LOOP),
    Attack("loop-of-two", "A1", _loop(1, 0), RingError, _LOOP),
    Attack("loop-of-nothing", "A3", _loop(0, length=0), RingError, _LOOP),
    Attack(
        "loop-inside-table",
        "A1",
        lambda v: v.chain((v.table((v.good, 4, NEXT, 1), (v.good, 4, NEXT, 0)), 32, INDIRECT)),
        RingError,
        _LOOP,
    ),
    Attack("next-is-the-size", "A2", lambda v: v.loop(v.size), RingError, ""),
    Attack("next-is-all-ones", "A2", _loop(0xFFFF), RingError, ""),
    Attack(
        "next-leaves-the-table", "A2", lambda v: v.chain((v.table((v.good, 4, NEXT, 1)), 16, INDIRECT)), RingError, ""
    ),
    Attack("head-is-the-size", "A2", lambda v: v.head(v.size), RingError, ""),
    Attack("head-is-all-ones", "A2", lambda v: v.head(0xFFFF), RingError, ""),
    Attack("index-jumps", "A2", lambda v: v.jump(v.size + 1), RingError, _INDEX, spoils=True),
    Attack("index-goes-back", "A2", lambda v: v.jump(-1), RingError, _INDEX, spoils=True),
    # Packed alone: ids and availability
    Attack("id-is-the-size", "A4", _force(_size), RingError, None, ""),
    Attack("id-is-all-ones", "A4", _force(_is(0xFFFF)), RingError, None, ""),
    Attack("follower-is-not-available", "A4", lambda v: v.unended(1), RingError, None, _PACKED_LIST, spoils=True),
    Attack(
        "ring-is-one-list-without-end", "A1", lambda v: v.unended(v.size), RingError, None, _PACKED_LIST, spoils=True
    ),
]
"""Attacks with one bad buffer, in a queue that is empty."""

BEHIND_A_GOOD_ONE: Final = [
    Attack("same-head-in-flight", "A8", lambda v: v.head(v.chain((v.good, 4, 0))), RingError, ""),
    Attack("second-head-out-of-range", "A8", _head_behind, RingError, ""),
    Attack("same-id-in-flight", "A8", _force(_is(3), _is(3)), RingError, None, ""),
    Attack("second-id-out-of-range", "A8", _force(_is(3), _size), RingError, None, ""),
]
"""Attacks whose first buffer, of four readable bytes, is good. A device that uses it before it looks at the second
finds nothing wrong with the same head or id again."""

ODDITIES: Final = [
    Attack("nothing", "A3", lambda v: v.chain((v.good, 0, 0)), PeerError, "", ""),
    Attack("nothing-to-read", "A9", lambda v: v.chain((v.good, 16, WRITE)), PeerError, "", ""),
    # Where the table is not looked for in flags that are reserved there, its 16 bytes are the buffer.
    Attack(
        "table-in-table",
        "A1",
        lambda v: v.chain((v.table((v.scratch, 16, INDIRECT, 0)), 16, INDIRECT)),
        PeerError,
        None,
        f"{_PACKED_INDIRECT}.2",
    ),
]
"""What a ring lets through: if there is an error, it is the request's, and otherwise the buffer is used."""


class Outcome(Enum):
    """What a device did about an attack, as its driver can see it."""

    TOLD = "DEVICE_NEEDS_RESET is set"
    USED = "something was put on the used ring"
    SILENT = "nothing happened"
    GONE = "the carrier is gone"


def assault(
    transport: Transport, attack: Attack, layout: str = "split", index: int = 0, patience: float = 0.5
) -> Outcome:
    """One attack on a queue of the device behind `transport`, from initialisation to what came of it, and a reset.

    patience: seconds that the device gets to do something. Raises NegotiationError for a device that does not start,
    or does not come back from the reset, UsageError for one that has no queues of this layout.
    """
    packed = (Feature.RING_PACKED,) if layout == "packed" else ()
    indirect = (Feature.INDIRECT_DESC,) if attack.indirect else ()
    try:
        villain = HostileDriver.over(transport, mask(Feature.VERSION_1, *packed, *indirect), index)
        if villain.hand.queue.layout != layout:
            villain.leave()
            raise UsageError(f"the device has no {layout} queues")
        attack.run(villain)
        transport.available_buffer(index, villain.hand.queue.notification_data)
        outcome = _await(transport, villain, time.monotonic() + patience)
        villain.leave()
    except (Disconnected, TransportError):
        return Outcome.GONE
    return outcome


def _await(transport: Transport, villain: HostileDriver, deadline: float) -> Outcome:
    while time.monotonic() < deadline:
        if transport.read_status() & DeviceStatus.DEVICE_NEEDS_RESET:
            return Outcome.TOLD
        if villain.hand.any_used:
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
