"""What a vhost-user back-end knows of one ring, and how a ring's position travels in SET_ and GET_VRING_BASE."""

from __future__ import annotations

from typing import Any, Final

from attrs import define

from virtio_py.records import Register
from virtio_py.rings.layouts import pvirtq_desc, virtq_used
from virtio_py.rings.queue import QueueState
from virtio_py.spec import Feature, PackedDescFlag
from virtio_py.transports.vhost_user_messages import vhost_vring_descriptor_indices


def _indices() -> Register:
    register = vhost_vring_descriptor_indices.field("num").register
    assert register is not None
    return register


_INDICES: Final = _indices()
_FIRST_LAP: Final = _INDICES.join({"avail_wrap": 1, "used_wrap": 1})
USED_INDEX_OFFSET: Final = virtq_used(1).offset("idx")
"""Where a split ring's used index lies in its device area."""
FIRST_FLAGS_OFFSET: Final = pvirtq_desc.offset("flags")
"""Where the flags of a packed ring's first descriptor lie in its descriptor area."""


@define(eq=False)
class Vring:
    """One ring, as the messages have described it so far.

    size: entries, 0 before SET_VRING_NUM; base: the number of SET_VRING_BASE, or where the ring was left;
    addresses: the vhost_vring_addr, user addresses; kick, call, err: descriptors, or None;
    enabled: SET_VRING_ENABLE; started: a kick may come, or has come (by descriptor, by polling, in band);
    polled: the front-end will not kick; active: the device serves it;
    suspended: it was active and only SET_VRING_ENABLE stopped it;
    left: where the device left it when it was stopped last, as a base, or None;
    before: where it stood, as a base, when the driver last reset the device.
    """

    index: int
    size: int = 0
    base: int = 0
    addresses: Any = None
    kick: int | None = None
    call: int | None = None
    err: int | None = None
    enabled: bool = False
    started: bool = False
    polled: bool = False
    active: bool = False
    suspended: bool = False
    left: int | None = None
    before: int = 0

    @property
    def ready(self) -> bool:
        """Whether all is known and said that lets the device serve the ring."""
        return self.enabled and self.started and self.size > 0 and self.addresses is not None

    def forget(self) -> None:
        """Back to a ring that no message has described, except for its descriptors and whether it is enabled."""
        self.before = self.base
        self.size, self.base, self.addresses = 0, 0, None
        self.started = self.polled = self.suspended = False
        self.left = None

    def position(self, features: int, seen: int) -> QueueState:
        """Where the ring is to begin. seen: two bytes of the ring's memory, as a number, for what no message carries:
        the used index of a split ring, the first descriptor's flags of a packed one."""
        if not features >> Feature.RING_PACKED & 1:
            return QueueState(self.base & 0xFFFF, seen)
        # User Mode Linux starts packed rings at 0, without the wrap counters that begin at 1. But 0 is also the start
        # of every second lap, where QEMU may hand a ring over. A lap begins at the first descriptor, and that it has
        # been used stays to be seen: available for the second lap, it looks as on no fresh ring.
        base = _FIRST_LAP if self.base == 0 and not seen & PackedDescFlag.USED else self.base
        # DPDK's front-end gives the available half only: nothing is in flight, so the used half is the same.
        num = _INDICES.split(base if base >> 16 else base | base << 16)
        return QueueState(num.avail_index, num.used_index, num.avail_wrap, num.used_wrap)


def base_of(features: int, state: QueueState) -> int:
    """The number that GET_VRING_BASE answers."""
    if not features >> Feature.RING_PACKED & 1:
        return state.next_available
    return _INDICES.join(
        {
            "avail_index": state.next_available,
            "avail_wrap": state.available_wrap,
            "used_index": state.next_used,
            "used_wrap": state.used_wrap,
        }
    )
