"""The inflight region of a session: made for GET_INFLIGHT_FD, taken for SET_INFLIGHT_FD, shared out to the rings.

    get     a sealed file that is zeroed; the front-end keeps it for as long as the driver keeps the device
    set     the same file, from this back-end's hand or that of one before it, killed amid its work

The front-end can write to all of it, so `begin` of a tracker believes nothing that it has not checked; and it keeps
the file, which is why only one is mapped that can never be made shorter.
"""

from __future__ import annotations

from typing import Any, Protocol

from attrs import define, field, frozen

from virtio_py.errors import MessageError
from virtio_py.memory import ADDRESS_LIMIT
from virtio_py.rings.layouts import pvirtq_desc
from virtio_py.rings.queue import QueueConfig, QueueState
from virtio_py.spec import MAX_QUEUE_SIZE, Feature
from virtio_py.transports.vhost_user_inflight_layout import ALIGNMENT, part_size
from virtio_py.transports.vhost_user_inflight_packed import PackedTracker
from virtio_py.transports.vhost_user_inflight_split import SplitTracker

RingTracker = SplitTracker | PackedTracker


class Sealed(Protocol):
    """Maps what cannot be made shorter; the shell's duty."""

    def map_sealed(self, fd: int, size: int, offset: int) -> memoryview:
        """As `Mapper.map`, of a file that is sealed against shrinking: else, too, MessageError."""


@frozen
class InflightRegion:
    """A mapped region: num_queues parts, of queue_size entries each."""

    view: memoryview = field(repr=False)
    num_queues: int
    queue_size: int

    def part(self, index: int, packed: bool) -> memoryview:
        """The part of a queue. Raises MessageError where the region was made for the other, smaller layout."""
        size = part_size(packed, self.queue_size)
        if size * self.num_queues > len(self.view):
            raise MessageError(f"an inflight region of {len(self.view)} bytes, for {size * self.num_queues}")
        return self.view[index * size : (index + 1) * size]


def region_size(packed: bool, wanted: Any, num_rings: int) -> int:
    """The bytes of a region with the numbers of queues and entries of a VhostUserInflight. Raises MessageError for
    numbers that cannot be."""
    if not 0 < wanted.num_queues <= num_rings:
        raise MessageError(f"an inflight region for {wanted.num_queues} queues, of {num_rings}")
    if not 0 < wanted.queue_size <= MAX_QUEUE_SIZE:
        raise MessageError(f"an inflight region for queues of {wanted.queue_size}")
    return int(wanted.num_queues) * part_size(packed, wanted.queue_size)


def map_region(packed: bool, given: Any, num_rings: int, fd: int, shell: Sealed) -> InflightRegion:
    """The region that a VhostUserInflight describes. Raises MessageError, with nothing mapped."""
    size = region_size(packed, given, num_rings)
    if given.mmap_size < size:
        raise MessageError(f"an inflight region of {given.mmap_size} bytes, for {size}")
    if given.mmap_offset % ALIGNMENT or given.mmap_offset > ADDRESS_LIMIT - given.mmap_size:
        raise MessageError(f"an inflight region at offset {given.mmap_offset:#x} of its file")
    # All that is claimed has to be there. The layout may still change, to the one that takes more.
    view = shell.map_sealed(fd, given.mmap_size, given.mmap_offset)[: region_size(True, given, num_rings)]
    return InflightRegion(view, given.num_queues, given.queue_size)


@define(eq=False)
class Inflight:
    """The region of a session, if there is one, and who keeps account of which ring in it."""

    region: InflightRegion | None = None
    _trackers: dict[int, RingTracker] = field(init=False, factory=dict)

    def replace(self, region: InflightRegion | None) -> None:
        """From the next start of each ring on, another region."""
        self.region = region
        self._trackers = {}

    def forget(self, index: int | None = None) -> None:
        """The driver has begun a ring anew, or all of them: what we wrote down of them is of no use to anybody."""
        for ring in [index] if index is not None else list(self._trackers):
            if tracker := self._trackers.pop(ring, None):
                tracker.forget()

    def attach(self, config: QueueConfig, features: int, memory: Any) -> None:
        """Sees to it that a queue which is about to start keeps account, and begins where the last account ends.

        config: its areas are known, and its state is what is right without a region. Raises MessageError, MemoryFault.
        """
        config.tracker = None
        region = self.region
        if region is None or config.index >= region.num_queues:
            return
        if config.size > region.queue_size:
            raise MessageError(
                f"ring {config.index} has {config.size} entries, its inflight region {region.queue_size}"
            )
        packed = bool(features >> Feature.RING_PACKED & 1)
        view = region.part(config.index, packed)
        tracker: RingTracker = (PackedTracker if packed else SplitTracker)(view, region.queue_size)

        def flags(slot: int) -> int:
            at = config.descriptor_area + slot * pvirtq_desc.size + pvirtq_desc.offset("flags")
            return int.from_bytes(memory.read(at, 2), "little")

        state: QueueState = tracker.begin(config.state, config.size, flags)
        config.state, config.tracker = state, tracker
        self._trackers[config.index] = tracker
