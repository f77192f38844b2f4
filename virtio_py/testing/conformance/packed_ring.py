"""What only the packed layout has (2.8)."""

from __future__ import annotations

from virtio_py.spec import PackedDescFlag
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.hands import PackedHand


def packed_hand(rig: Rig) -> PackedHand:
    """The hand of the queue that good requests go to."""
    hand = rig.hands[rig.kind.good(rig).queue]
    assert isinstance(hand, PackedHand)
    return hand


@check("packed.device.virtqueues.1")
def a_size_that_is_no_power_of_2(rig: Rig) -> None:
    """Chains are taken in ring order, across the end of a ring of 7 as well."""
    rig.start(size=7)
    for _ in range(40):
        rig.good()


@check("packed.device.descriptor-table.3")
def only_what_is_available_is_used(rig: Rig) -> None:
    """What the driver has not made available is neither taken nor used, in any lap."""
    rig.start(size=8)
    hand, request = packed_hand(rig), rig.kind.good(rig)
    for _ in range(20):
        sent = rig.stage(request)
        ahead = hand.at
        behind = _rows(hand)[ahead]
        rig.publish(request.queue)
        rig.collect(sent)
        rig.kick(request.queue)
        rig.require(_rows(hand)[ahead] == behind, f"slot {ahead} is written, which is not available")


@check("packed.device.descriptor-table.4")
def what_is_used_stays(rig: Rig) -> None:
    """A used descriptor is not changed any more."""
    rig.start(size=16)
    hand, request = packed_hand(rig), rig.kind.good(rig)
    first = hand.at
    rig.collect(rig.send(request))
    used = _rows(hand)[first]
    rig.collect(rig.send(request))
    rig.pause()
    rig.require(_rows(hand)[first] == used, f"slot {first} was used, and is changed again")


@check("packed.device.virtqueues.2")
def a_used_descriptor_bears_its_lap(rig: Rig) -> None:
    """A used descriptor has AVAIL and USED as the device's wrap counter says, and the buffer's id."""
    rig.start(size=4)
    hand, request = packed_hand(rig), rig.kind.good(rig)
    mark = PackedDescFlag.AVAIL | PackedDescFlag.USED
    for _ in range(12):
        sent = rig.send(request)
        at, wrap = hand.used_at, hand.used_wrap
        rig.collect(sent)
        flags = hand.flags_at(at) & mark
        rig.require(flags == (mark if wrap else 0), f"slot {at} has flags {flags:#x} in a lap with wrap counter {wrap}")


def _rows(hand: PackedHand) -> list[bytes]:
    data = hand.descriptors()
    step = len(data) // hand.size
    return [data[n * step : (n + 1) * step] for n in range(hand.size)]
