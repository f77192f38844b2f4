"""What only the split layout has (2.7)."""

from __future__ import annotations

from functools import partial

from virtio_py.spec import Feature
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.parts import Sent
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Skipped, Wedged
from virtio_py.testing.hands import SplitHand


def split_hand(rig: Rig) -> SplitHand:
    """The hand of the queue that good requests go to."""
    hand = rig.hands[rig.kind.good(rig).queue]
    assert isinstance(hand, SplitHand)
    return hand


@check("split.device.descriptor-table.4")
def the_descriptor_table_stays(rig: Rig) -> None:
    """The device writes nothing to the descriptor table."""
    rig.start()
    hand, request = split_hand(rig), rig.kind.good(rig)
    for _ in range(4):
        sent = rig.stage(request)
        before = hand.descriptors()
        rig.publish(request.queue)
        rig.collect(sent)
        rig.require(hand.descriptors() == before, "the descriptor table has changed")


@check("split.device.used-ring.1")
def the_element_is_there_with_the_index(rig: Rig) -> None:
    """A used element is written before the index that covers it."""
    rig.start()
    # Elements are poisoned when they are taken, and the hand refuses poison.
    for _ in range(200):
        rig.good()


@check("split.device.available-buffer-notification-suppression.1")
def used_flags_are_0_or_1(rig: Rig) -> None:
    """Without VIRTIO_F_EVENT_IDX the flags of the used ring are 0 or 1."""
    rig.start()
    _flags(rig, {0, 1})


@check("split.device.available-buffer-notification-suppression.3")
def used_flags_are_0(rig: Rig) -> None:
    """With VIRTIO_F_EVENT_IDX the flags of the used ring are 0."""
    rig.start(Feature.EVENT_IDX)
    _flags(rig, {0})


def _flags(rig: Rig, allowed: set[int]) -> None:
    hand, request = split_hand(rig), rig.kind.good(rig)
    seen = {hand.flags}

    def used(sent: Sent) -> bool:
        seen.add(hand.flags)
        return rig.is_used(sent)

    for _ in range(20):
        sent = rig.send(request)
        rig.holds(partial(used, sent))
        rig.collect(sent)
    rig.pause()
    seen.add(hand.flags)
    rig.require(seen <= allowed, f"flags of the used ring have been {sorted(seen)}")


@check("split.device.used-ring.2")
def the_index_wraps(rig: Rig) -> None:
    """Buffers come back when the indices pass 65535."""
    if not rig.thorough:
        raise Skipped("65536 requests take seconds, and are made only if asked for")
    rig.start(size=64)
    hand, request = split_hand(rig), rig.kind.good(rig)
    descriptors = [part.descriptor for part in rig.parts(request)]
    for _ in range((1 << 16) // (64 // len(descriptors)) + 2):
        sent = [hand.stage(*descriptors) for _ in range(64 // len(descriptors))]
        rig.publish(request.queue)
        if not rig.holds(lambda: (rig.look(request.queue) or True) and not hand.held):
            raise Wedged(f"{len(hand.held)} of {len(sent)} buffers do not come back at index {hand.published}")
