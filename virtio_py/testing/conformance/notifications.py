"""Used buffer notifications: sent where they are asked for, kept back where they are not (2.7.7, 2.8.7)."""

from __future__ import annotations

from typing import Final

from virtio_py.spec import AvailFlag, Feature
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.hands import Hand, SplitHand

_PACKED: Final = "prose.packed.event-suppression"
_PREFIX: Final = "split.device.used-buffer-notification-suppression"


def _quiet_hand(rig: Rig) -> Hand:
    """The queue of good requests, once no notification is on its way any more; the others ask for none."""
    for hand in rig.hands.values():
        hand.notify_never()
    hand = rig.hands[rig.kind.good(rig).queue]
    rig.good()
    rig.pause()
    return hand


def _notified(rig: Rig, expected: bool) -> bool:
    """Whether a good request brings a notification, waited for as long as makes sense."""
    before = rig.heard
    rig.good()
    return rig.holds(lambda: rig.heard > before, rig.patience if expected else rig.quiet)


@check(f"{_PREFIX}.1", f"{_PREFIX}.3")
def a_notification_comes(rig: Rig) -> None:
    """With flags 0 each used buffer brings a notification, whatever used_event says."""
    rig.start()
    hand = _quiet_hand(rig)
    assert isinstance(hand, SplitHand)
    hand.notify_always()
    for distance in (0, -1, 1000, 0x8000):
        hand.driver[hand.word("used_event")] = hand.seen + distance & 0xFFFF
        rig.require(_notified(rig, True), f"no notification comes with used_event {distance:+d} from the used index")


@check(_PACKED)
def a_notification_comes_packed(rig: Rig) -> None:
    """With RING_EVENT_FLAGS_ENABLE each used buffer brings a notification."""
    rig.start()
    _quiet_hand(rig).notify_always()
    for _ in range(3):
        rig.require(_notified(rig, True), "no notification comes")


@check(f"{_PREFIX}.2")
def no_notification_if_none_is_wanted(rig: Rig) -> None:
    """With flags 1 no notification comes."""
    rig.start()
    _quiet_hand(rig).notify_never()
    rig.should(not any(_notified(rig, False) for _ in range(3)), "notifications come with VIRTQ_AVAIL_F_NO_INTERRUPT")


@check(_PACKED)
def no_notification_if_disabled(rig: Rig) -> None:
    """With RING_EVENT_FLAGS_DISABLE no notification comes."""
    rig.start()
    _quiet_hand(rig).notify_never()
    rig.should(not any(_notified(rig, False) for _ in range(3)), "notifications come with RING_EVENT_FLAGS_DISABLE")


@check(f"{_PREFIX}.4", needs=(Feature.EVENT_IDX,))
def the_flag_means_nothing_with_event_idx(rig: Rig) -> None:
    """With VIRTIO_F_EVENT_IDX bit 0 of flags has no influence."""
    rig.start(Feature.EVENT_IDX)
    hand = _quiet_hand(rig)
    assert isinstance(hand, SplitHand)
    for _ in range(3):
        hand.driver[hand.word("flags")] = int(AvailFlag.NO_INTERRUPT)
        hand.notify_at(0)
        rig.require(_notified(rig, True), "no notification comes with flags 1 and used_event at the next buffer")


@check(f"{_PREFIX}.5", _PACKED, needs=(Feature.EVENT_IDX,))
def the_event_brings_a_notification(rig: Rig) -> None:
    """With VIRTIO_F_EVENT_IDX the buffer that the event names brings a notification."""
    rig.start(Feature.EVENT_IDX, size=32)
    hand, request = _quiet_hand(rig), rig.kind.good(rig)
    rig.require(len(request.readable + request.writable) <= 4, "the good request is too long for this check")
    for distance in (0, 1, 3):
        hand.notify_never()
        _arm(rig, hand, distance)
        before = rig.heard
        for _ in range(distance + 1):
            rig.good()
        rig.require(
            rig.holds(lambda: rig.heard > before),  # noqa: B023
            f"no notification comes with the event {distance} buffers ahead",
        )


@check(f"{_PREFIX}.5", _PACKED, needs=(Feature.EVENT_IDX,))
def the_event_lies_within_a_batch(rig: Rig) -> None:
    """With VIRTIO_F_EVENT_IDX a notification comes though buffers behind the event are used at once with it."""
    rig.start(Feature.EVENT_IDX, size=32)
    hand, request = _quiet_hand(rig), rig.kind.good(rig)
    # Often enough that a batch goes around the end of the ring, with the event before the end and behind it.
    for distance in (0, 1, 3, 1, 3, 0):
        hand.notify_never()
        _arm(rig, hand, distance)
        before = rig.heard
        sent = [rig.stage(request) for _ in range(5)]
        rig.publish(request.queue)
        for one in sent:
            rig.collect(one)
        rig.require(
            rig.holds(lambda: rig.heard > before),  # noqa: B023
            f"no notification comes for 5 buffers with the event {distance} ahead of the first",
        )


@check(f"{_PREFIX}.6", _PACKED, needs=(Feature.EVENT_IDX,))
def other_buffers_bring_none(rig: Rig) -> None:
    """With VIRTIO_F_EVENT_IDX the buffers before the one that the event names bring no notification."""
    rig.start(Feature.EVENT_IDX, size=32)
    hand = _quiet_hand(rig)
    _arm(rig, hand, 3)
    rig.should(not any(_notified(rig, False) for _ in range(3)), "notifications come before the event")


def _arm(rig: Rig, hand: Hand, distance: int) -> None:
    """The event: so many good requests from now, 0 being the next. In a packed ring it names a slot."""
    request = rig.kind.good(rig)
    each = 1 if isinstance(hand, SplitHand) else len(request.readable + request.writable)
    hand.notify_at(distance * each)
