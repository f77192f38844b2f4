"""What a network device counts, and what it remembers of notification coalescing (5.1.6.5.8, 5.1.6.5.9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from attrs import define, field

from virtio_py.devices.net.control_layout import STATS_REPLIES, StatsType, virtio_net_stats_reply_hdr
from virtio_py.devices.net.layout import NetFeature
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import mask


class Role(IntEnum):
    """What a virtqueue is for."""

    RX = 0
    TX = 1
    CONTROL = 2


STATS_OF_ROLE: Final[Mapping[Role, tuple[StatsType, ...]]] = {
    Role.RX: (StatsType.RX_BASIC, StatsType.RX_CSUM, StatsType.RX_GSO, StatsType.RX_SPEED),
    Role.TX: (StatsType.TX_BASIC, StatsType.TX_CSUM, StatsType.TX_GSO, StatsType.TX_SPEED),
    Role.CONTROL: (StatsType.CVQ,),
}
"""Which statistics a virtqueue has."""

_F = NetFeature
STATS_NEED: Final[Mapping[StatsType, int]] = {
    StatsType.RX_CSUM: mask(_F.GUEST_CSUM),
    StatsType.RX_GSO: mask(_F.GUEST_TSO4, _F.GUEST_TSO6),
    StatsType.RX_SPEED: mask(_F.SPEED_DUPLEX),
    StatsType.TX_CSUM: mask(_F.CSUM),
    StatsType.TX_GSO: mask(_F.HOST_TSO4, _F.HOST_TSO6, _F.HOST_USO),
    StatsType.TX_SPEED: mask(_F.SPEED_DUPLEX),
}
"""Statistics that exist only if one of these features was negotiated."""

_WRAP: Final = (1 << 64) - 1


def has_stats(kind: StatsType, features: int) -> bool:
    """Whether a statistic exists with these features."""
    needed = STATS_NEED.get(kind)
    return needed is None or bool(features & needed)


def encode_stats(kind: StatsType, vq_index: int, counts: Mapping[str, int]) -> bytes:
    """One reply: header and counters, which wrap at 2^64."""
    record = STATS_REPLIES[kind]
    hdr = virtio_net_stats_reply_hdr.encode(type=kind, vq_index=vq_index, size=record.size)
    values = {name: counts.get(name, 0) & _WRAP for name in record.fields if name != "hdr"}
    return hdr + record.encode(**values)[len(hdr) :]


class Coalescing(NamedTuple):
    """max_packets, max_usecs: how many packets, and for how long, a notification may wait; 0 in either is never."""

    max_packets: int = 0
    max_usecs: int = 0


@define
class CoalescingTable:
    """The parameters that each queue has; `moderation` acts upon them."""

    receive: Coalescing = field(factory=Coalescing)
    transmit: Coalescing = field(factory=Coalescing)
    queues: dict[int, tuple[DeviceQueue, Coalescing]] = field(factory=dict)

    def set_all(self, role: Role, indices: Sequence[int], value: Coalescing) -> None:
        """TX_SET or RX_SET: the last command counts, whichever it was."""
        if role == Role.TX:
            self.transmit = value
        else:
            self.receive = value
        for index in indices:
            self.queues.pop(index, None)

    def of(self, role: Role, queue: DeviceQueue) -> Coalescing:
        """What holds for a running queue. What was set for one that has been disabled since is forgotten."""
        owner, value = self.queues.get(queue.index, (None, Coalescing()))
        if owner is queue:
            return value
        return self.transmit if role == Role.TX else self.receive


Counts = Counter[str]
"""The counters of one queue, by the names of the fields that report them."""
