"""What no driver may write to a ring: a device refuses it or lives with it, and goes on either way.

PASS: it goes on as if nothing had been; REJECT: it hangs up, or asks for a reset and recovers by one, or answers with
an error; WEDGED: a good request that comes later is not answered. The clause is the one that the driver breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from attrs import frozen

from virtio_py.errors import Disconnected, NeedsReset
from virtio_py.spec import Feature
from virtio_py.testing.conformance.checks import Check, check
from virtio_py.testing.conformance.hands import INDIRECT, NEXT, WRITE, Descriptor, Hand, table
from virtio_py.testing.conformance.packed_hand import PackedHand
from virtio_py.testing.conformance.rig import NOWHERE, Rig
from virtio_py.testing.conformance.split_hand import SplitHand
from virtio_py.testing.conformance.verdicts import Wedged

_NO_CLAUSE: Final = "status.device.device-status-field.2"
"""Where no clause says what a driver must not do: an address without memory, a descriptor that is not in the table."""


@frozen
class Villain:
    """The place of a driver: a rig, the hand of the queue under attack, and memory that is good."""

    rig: Rig
    hand: Hand
    good: int

    def chain(self, *descriptors: Descriptor) -> None:
        """A chain with the flags it should have, if not more."""
        self.hand.add(*descriptors)

    def refer(self, *entries: Descriptor, flags: int = 0, length: int | None = None) -> Descriptor:
        """A descriptor of a table with these entries."""
        content = table(entries, self.rig.layout)
        place = self.rig.transport.arena.allocate(max(len(content), 64))
        place.view[: len(content)] = content
        return Descriptor(place.address, len(content) if length is None else length, INDIRECT | flags)

    def loop(self, *following: int, length: int = 4) -> None:
        """Descriptors, from the first free one on, each linked to the next of `following` (split)."""
        assert isinstance(self.hand, SplitHand)
        self.hand.stage(*[Descriptor(self.good, length)] * len(following))
        slots = next(reversed(self.hand.held.values()))
        for slot, step in zip(slots, following, strict=True):
            self.hand.put(slot, Descriptor(self.good, length, NEXT), slots[step] if step < len(slots) else step)
        self.hand.publish()

    def head(self, head: int) -> None:
        """A head that is of no chain (split)."""
        assert isinstance(self.hand, SplitHand)
        self.hand.head(head)
        self.hand.publish()

    def jump(self, distance: int) -> None:
        """The available index goes somewhere (split)."""
        assert isinstance(self.hand, SplitHand)
        self.hand.jump(self.hand.published + distance)

    def endless(self) -> None:
        """A list of which the whole ring is a part, without an end (packed)."""
        assert isinstance(self.hand, PackedHand)
        for _ in range(self.hand.size):
            self.hand.raw(Descriptor(self.good, 1, NEXT | self.hand.ownership()), 0)

    def cut_off(self) -> None:
        """A list whose second descriptor is not available (packed)."""
        assert isinstance(self.hand, PackedHand)
        self.hand.raw(Descriptor(self.good, 1, NEXT | self.hand.ownership()), 0)


Act = Callable[[Villain], None]


@frozen
class Attack:
    """split, packed: the clause broken in either layout, "" where it does not apply; spoils: only a reset helps."""

    name: str
    title: str
    act: Act
    split: str = _NO_CLAUSE
    packed: str = _NO_CLAUSE
    indirect: bool = False
    spoils: bool = False


def _one(address: int, length: int, flags: int = 0) -> Act:
    return lambda v: v.chain(Descriptor(address, length, flags))


def _in_table(address: int, length: int) -> Act:
    return lambda v: v.chain(v.refer(Descriptor(address, length)))


def _two(first: int, second: int) -> Act:
    return lambda v: v.chain(Descriptor(v.good, 4, first), Descriptor(v.good, 4, second))


def _split_only(
    name: str, title: str, act: Act, clause: str = _NO_CLAUSE, *, indirect: bool = False, spoils: bool = False
) -> Attack:
    return Attack(name, title, act, clause, "", indirect, spoils)


_FRAMING: Final = ("split.driver.message-framing.1", "packed.driver.scatter-gather-support.3")
_LOOP: Final = "split.driver.descriptor-table.1"

ATTACKS: Final = [
    Attack("outside", "a readable buffer where no memory is", _one(NOWHERE, 16)),
    Attack("outside_writable", "a writable buffer where no memory is", _one(NOWHERE, 16, WRITE)),
    Attack("address_0", "a buffer at address 0", _one(0, 16)),
    Attack("wraps", "a buffer that wraps around the end of the address space", _one((1 << 64) - 4, 8), _LOOP),
    Attack("last_address", "a buffer at the last address", _one((1 << 64) - 1, 1)),
    Attack("sign_bit", "an address with bit 63 set", lambda v: v.chain(Descriptor(v.good | 1 << 63, 4))),
    Attack("longest", "a buffer of 4 GiB - 1 bytes", lambda v: v.chain(Descriptor(v.good, 0xFFFFFFFF, WRITE))),
    Attack("readable_last", "a readable buffer behind a writable one", _two(WRITE, 0), *_FRAMING),
    Attack("nothing", "a buffer of no bytes", lambda v: v.chain(Descriptor(v.good, 0))),
    Attack("only_writable", "a chain with nothing to read", lambda v: v.chain(Descriptor(v.good, 16, WRITE))),
    Attack(
        "table_unasked",
        "an indirect table, which was not negotiated",
        lambda v: v.chain(v.refer(Descriptor(v.good, 4))),
        "split.driver.indirect-descriptors.1",
        "packed.driver.indirect-descriptors.1",
    ),
    Attack(
        "table_nested",
        "an indirect table in an indirect table",
        lambda v: v.chain(v.refer(v.refer(Descriptor(v.good, 4)))),
        "split.driver.indirect-descriptors.2",
        "packed.driver.indirect-descriptors.2",
        indirect=True,
    ),
    Attack(
        "table_and_next",
        "a descriptor with INDIRECT and NEXT",
        lambda v: v.chain(v.refer(Descriptor(v.good, 4), flags=NEXT), Descriptor(v.good, 4)),
        "split.driver.indirect-descriptors.4",
        "packed.driver.indirect-descriptors.4",
        indirect=True,
    ),
    Attack("table_empty", "an indirect table of no bytes", lambda v: v.chain(v.refer(length=0)), indirect=True),
    Attack(
        "table_odd",
        "an indirect table of 17 bytes",
        lambda v: v.chain(v.refer(Descriptor(v.good, 4), length=17)),
        indirect=True,
    ),
    Attack("table_outside", "an indirect table where no memory is", _one(NOWHERE, 16, INDIRECT), indirect=True),
    Attack(
        "table_huge",
        "an indirect table of 4 GiB - 16 bytes",
        lambda v: v.chain(v.refer(Descriptor(v.good, 4), length=0xFFFFFFF0)),
        indirect=True,
    ),
    Attack("entry_outside", "a table's buffer where no memory is", _in_table(NOWHERE, 16), indirect=True),
    _split_only("self_loop", "a descriptor linked to itself", lambda v: v.loop(0), _LOOP),
    _split_only("loop_of_two", "two descriptors linked to each other", lambda v: v.loop(1, 0), _LOOP),
    _split_only("loop_of_nothing", "a loop of no bytes", lambda v: v.loop(0, length=0), _LOOP),
    _split_only(
        "loop_in_table",
        "a loop in an indirect table",
        lambda v: v.chain(v.refer(Descriptor(v.good, 4, NEXT))),
        _LOOP,
        indirect=True,
    ),
    _split_only("next_outside", "a link behind the table", lambda v: v.loop(v.hand.size)),
    _split_only("next_far_outside", "a link to 65535", lambda v: v.loop(0xFFFF)),
    _split_only("head_outside", "a head behind the table", lambda v: v.head(v.hand.size)),
    _split_only("head_far_outside", "a head of 65535", lambda v: v.head(0xFFFF)),
    _split_only(
        "index_jumps",
        "an available index further on than the queue is long",
        lambda v: v.jump(v.hand.size + 1),
        "split.driver.available-ring.1",
        spoils=True,
    ),
    _split_only(
        "index_goes_back",
        "an available index that goes back",
        lambda v: v.jump(-1),
        "split.driver.available-ring.1",
        spoils=True,
    ),
    Attack(
        "endless",
        "a list as long as the ring, without an end",
        lambda v: v.endless(),
        "",
        "packed.driver.scatter-gather-support.2",
        spoils=True,
    ),
    Attack(
        "cut_off",
        "a list whose second descriptor is not available",
        lambda v: v.cut_off(),
        "",
        "packed.driver.scatter-gather-support.6",
        spoils=True,
    ),
]
"""Each by itself; the device is fresh for every one."""


def _checks_of(attack: Attack) -> Iterator[Check]:
    def run(rig: Rig) -> None:
        _stage(rig, attack)

    run.__name__, run.__doc__ = f"hostile_{attack.name}", f"{attack.title}: the device goes on"
    needs = (Feature.INDIRECT_DESC,) if attack.indirect else ()
    for layout, clause in (("split", attack.split), ("packed", attack.packed)):
        if clause:
            yield check(clause, layouts=layout, needs=needs, hostile=True)(run)


def _stage(rig: Rig, attack: Attack) -> None:
    rig.start(*((Feature.INDIRECT_DESC,) if attack.indirect else ()), size=16)
    rig.good()
    index = rig.kind.good(rig).queue
    hand = rig.hands[index]
    hand.lenient = True
    attack.act(Villain(rig, hand, rig.transport.arena.allocate(64).address))
    rig.kick(index)
    try:
        rig.holds(lambda: bool(rig.look(index)) or rig.needs_reset, rig.quiet)
        if rig.needs_reset:
            raise NeedsReset("the device sets DEVICE_NEEDS_RESET")
        if not attack.spoils:
            rig.good()
            return
    except (NeedsReset, Disconnected) as error:
        raise rig.rejected(attack.title, error) from error
    except Wedged as error:
        raise _wedged(rig, attack, error) from error
    rig.start()
    rig.good()


def _wedged(rig: Rig, attack: Attack, error: Wedged) -> Wedged:
    after = "a reset does not help"
    with suppress(Wedged, NeedsReset, Disconnected):
        rig.start()
        rig.good()
        after = "a reset helps"
    return Wedged(f"{attack.title}: {error}, no reset is asked for, {after}")


HOSTILE: Final[list[Check]] = [one for attack in ATTACKS for one in _checks_of(attack)]
"""The checks."""
