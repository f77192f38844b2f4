"""Follows the rings of a vhost-user session from beside: memory, positions and events, by what the messages share.

Memory is mapped, and only read. The events of a ring pass through here, one wake-up more each, so that every one of
them is a moment at which to look. A file that was made shorter is not touched any more.
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final
from weakref import WeakKeyDictionary

from attrs import asdict, define, field, frozen

from virtio_py.errors import MemoryFault, MessageError, UsageError
from virtio_py.memory import GuestMemory
from virtio_py.rings.layouts import virtq_avail, virtq_used
from virtio_py.rings.picture import Problem, RingPicture
from virtio_py.rings.trace import picture_of_bytes
from virtio_py.spec import Feature, bit
from virtio_py.transports.vhost_user_memory import MemoryTable
from virtio_py.transports.vhost_user_messages import (
    FRONTEND_MESSAGES,
    INVALID_FD,
    VRING_INDEX_MASK,
    FrontendRequest,
    Message,
    decode_payload,
)
from virtio_py.transports.vhost_user_tracer import Traced

_R = FrontendRequest
_LOOK_INTERVAL: Final = 0.2
"""Seconds between two whole pictures of a ring: one takes milliseconds, an event microseconds."""


@frozen
class RingSeen:
    """A ring at one moment. event: "kick", "call" or "stop"; available, used: buffers since the last one, None where
    only a picture could tell and it was too early for one (packed); outstanding: as of now; problems: new ones."""

    time: float
    ring: int
    event: str
    available: int | None = None
    used: int | None = None
    outstanding: int | None = None
    problems: tuple[Problem, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What JSON can carry."""
        return asdict(self)


@define
class _Ring:
    size: int = 0
    areas: tuple[int, int, int] | None = None  # guest addresses: descriptor, driver, device
    positions: tuple[int, int] | None = None  # free-running avail.idx and used.idx when last looked at (split)
    looked: float = -1.0
    known: set[Problem] = field(factory=set)


@define
class _Event:
    """An event that passes: read here, written there."""

    ring: int
    name: str
    source: int
    target: int

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)


@define(eq=False)
class RingFollower:
    """A `Follower`. seen: called with what was seen at every event."""

    seen: Callable[[RingSeen], None]
    _began: float = field(factory=monotonic, init=False)
    _table: MemoryTable = field(factory=MemoryTable, init=False)
    _ends: WeakKeyDictionary[mmap.mmap, int] = field(factory=WeakKeyDictionary, init=False)  # of what files must hold
    _features: int = field(default=0, init=False)
    _rings: dict[int, _Ring] = field(factory=dict, init=False)
    _events: dict[tuple[int, str], _Event] = field(factory=dict, init=False)

    # The proxy's calls

    def passing(self, seen: Traced, message: Message, fds: list[int]) -> list[int]:
        """See Follower."""
        learn = _LEARN.get(message.request)
        if learn is None or seen.values is None:
            return fds
        shape = FRONTEND_MESSAGES[FrontendRequest(message.request)]
        values = decode_payload(seen.name, shape, message.payload)
        # What the front-end says may be wrong; then the back-end will say so, and we look at nothing.
        with suppress(MessageError, MemoryFault):
            return learn(self, seen.name, values, fds) or fds
        return fds

    def descriptors(self) -> Sequence[int]:
        """See Follower."""
        return [event.source for event in self._events.values()]

    def ready(self, fd: int) -> None:
        """See Follower. The event goes on before anybody looks."""
        key = next((key for key, event in self._events.items() if event.source == fd), None)
        # The number may have been another descriptor's when somebody waited for it; to read would be to wait.
        if key is None or not _is_ready(fd, select.POLLIN):
            return
        # Whoever made these may have made pipes of them, or closed them.
        count = b""
        with suppress(OSError):
            count = os.read(fd, 8)
        if not count:
            self._events.pop(key).close()
            return
        event = self._events[key]
        # An event that would have to wait, in a pipe that is full, is lost: many are as good as one.
        with suppress(OSError):
            if _is_ready(event.target, select.POLLOUT):
                os.write(event.target, count)
        self._look(event.ring, event.name)

    def close(self) -> None:
        """See Follower."""
        for event in self._events.values():
            event.close()
        self._table = MemoryTable()

    # What messages say

    def _set_features(self, name: str, values: Any, fds: list[int]) -> None:
        self._features = values.u64

    def _set_table(self, name: str, values: Any, fds: list[int]) -> None:
        self._table = MemoryTable.of(values.regions, fds, self)

    def _add_region(self, name: str, values: Any, fds: list[int]) -> None:
        if len(fds) != 1:
            raise MessageError(f"one region comes with {len(fds)} descriptors")
        self._table = self._table.with_region(values.region, fds[0], self)

    def _remove_region(self, name: str, values: Any, fds: list[int]) -> None:
        self._table = self._table.without_region(values.region)

    def _set_size(self, name: str, values: Any, fds: list[int]) -> None:
        self._ring(values.index).size = values.num

    def _set_areas(self, name: str, values: Any, fds: list[int]) -> None:
        ring = self._ring(values.index)
        users = (values.desc_user_addr, values.avail_user_addr, values.used_user_addr)
        descriptor, driver, device = (self._table.translate(user) for user in users)
        ring.areas, ring.positions, ring.known = (descriptor, driver, device), None, set()

    def _stop_ring(self, name: str, values: Any, fds: list[int]) -> None:
        if values.index in self._rings:
            self._rings[values.index].looked = -1.0
            self._look(values.index, "stop")

    def _interpose(self, name: str, values: Any, fds: list[int]) -> list[int] | None:
        index, kind = values.u64 & VRING_INDEX_MASK, "kick" if name == "SET_VRING_KICK" else "call"
        if (old := self._events.pop((index, kind), None)) is not None:
            old.close()
        if values.u64 & INVALID_FD or len(fds) != 1:
            return None
        ours = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # The front-end writes to what it sent for kicks, and reads from what it sent for calls.
        source, target = (fds[0], ours) if kind == "kick" else (ours, fds[0])
        self._events[index, kind] = _Event(index, kind, source, target)
        ring = self._ring(index)
        if ring.areas is not None and ring.positions is None and not self._features & bit(Feature.RING_PACKED):
            # From here on the descriptor is ours: whatever the areas are, another has to go on in its place.
            with suppress(MemoryFault):
                self._moved(ring)
        return [os.dup(ours)]

    def _ring(self, index: int) -> _Ring:
        return self._rings.setdefault(index, _Ring())

    # Memory

    def map(self, fd: int, size: int, offset: int) -> memoryview:
        """See Mapper. Nothing is ever written to it. Raises MessageError."""
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        try:
            mapping = mmap.mmap(fd, offset + size - start, offset=start)
        except (OSError, ValueError) as error:
            raise MessageError(f"a region cannot be mapped: {error}") from error
        self._ends[mapping] = offset + size
        return memoryview(mapping)[offset - start :]

    def _whole(self) -> bool:
        return all(mapping.size() >= end for mapping, end in self._ends.items())

    # Looking

    def _look(self, index: int, event: str) -> None:
        now, ring = monotonic() - self._began, self._ring(index)
        if ring.areas is None or not ring.size or not self._whole():
            self.seen(RingSeen(now, index, event))
            return
        picture = self._picture(ring, now)
        outstanding = picture.outstanding if picture else None
        available = used = None
        if not self._features & bit(Feature.RING_PACKED):
            # An area may end before its index does, and a region may have gone.
            with suppress(MemoryFault):
                available, used, outstanding = self._moved(ring)
        problems = tuple(found for found in picture.problems if found not in ring.known) if picture else ()
        ring.known.update(problems)
        self.seen(RingSeen(now, index, event, available, used, outstanding, problems))

    def _picture(self, ring: _Ring, now: float) -> RingPicture | None:
        if now - ring.looked < _LOOK_INTERVAL and ring.looked >= 0:
            return None
        ring.looked = now
        layout = "packed" if self._features & bit(Feature.RING_PACKED) else "split"
        assert ring.areas is not None
        with suppress(UsageError, MemoryFault):
            return picture_of_bytes(layout, ring.size, self._table.memory, *ring.areas, features=self._features)
        return None

    def _moved(self, ring: _Ring) -> tuple[int | None, int | None, int]:
        assert ring.areas is not None
        memory: GuestMemory = self._table.memory
        at = (ring.areas[1] + virtq_avail(1).offset("idx"), ring.areas[2] + virtq_used(1).offset("idx"))
        available, used = (memory.view(address, 2).cast("H")[0] for address in at)
        before, ring.positions = ring.positions, (available, used)
        outstanding = (available - used) & 0xFFFF
        if before is None:
            return None, None, outstanding
        return (available - before[0]) & 0xFFFF, (used - before[1]) & 0xFFFF, outstanding


def _is_ready(fd: int, events: int) -> bool:
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(0))


_LEARN: Final[dict[int, Callable[[RingFollower, str, Any, list[int]], list[int] | None]]] = {
    _R.SET_FEATURES: RingFollower._set_features,
    _R.SET_MEM_TABLE: RingFollower._set_table,
    _R.ADD_MEM_REG: RingFollower._add_region,
    _R.REM_MEM_REG: RingFollower._remove_region,
    _R.SET_VRING_NUM: RingFollower._set_size,
    _R.SET_VRING_ADDR: RingFollower._set_areas,
    _R.GET_VRING_BASE: RingFollower._stop_ring,
    _R.SET_VRING_KICK: RingFollower._interpose,
    _R.SET_VRING_CALL: RingFollower._interpose,
}
