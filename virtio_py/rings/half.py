"""What both halves of a virtqueue have: an engine, private state, room for a batch, and where they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from attrs import frozen

from virtio_py.errors import PeerError
from virtio_py.rings.engine import Engine
from virtio_py.rings.faults import fault
from virtio_py.rings.kernels import Batch
from virtio_py.rings.kernels import common as k
from virtio_py.rings.places import layout_name
from virtio_py.spec import Feature, bit

Extent = tuple[int, int]
"""A range of guest memory: (address, length in bytes)."""

MAX_CHAIN: Final = 1024
"""The longest chain a device follows where the queue is shorter: drivers have been seen to use indirect tables
longer than their queue, against split.driver.indirect-descriptors.3."""


@frozen
class QueueState:
    """Where a queue stands: all that a snapshot needs besides the memory. Split indices are free-running."""

    next_available: int = 0
    next_used: int = 0
    available_wrap: int = 1
    used_wrap: int = 1


def make_batch(engine: Engine, size: int) -> Batch:
    """Room for all buffers of a queue, and for the segments of the longest chain at least."""
    return Batch(engine.words(k.BUFFER * size), engine.words(k.SEGMENT * max(2 * size, MAX_CHAIN + 1)))


class Held(NamedTuple):
    """A buffer that one half keeps track of: ring slots it takes (1 for each in a split device), writable bytes."""

    slots: int
    writable: int


class Half:
    """What both halves of a queue have: an engine, private state, and room for a batch."""

    def __init__(self, index: int, size: int, features: int, engine: Engine) -> None:
        self.index: Final = index
        self.size: Final = size
        self.features: Final = features
        self.engine: Final = engine
        self.layout: Final = layout_name(features)
        self.in_order: Final = bool(features & bit(Feature.IN_ORDER))
        self._state = engine.words(k.STATE_WORDS)
        self._shadow = engine.words(k.SHADOW * size)
        self._batch = make_batch(engine, size)

    @property
    def state(self) -> QueueState:
        """Where this half stands."""
        words = (k.NEXT_AVAILABLE, k.NEXT_USED, k.AVAILABLE_WRAP, k.USED_WRAP)
        return QueueState(*(int(self._state[word]) for word in words))

    @property
    def held(self) -> dict[int, Held]:
        """The buffers that a driver has outstanding, or a device has taken and not used, by their ids.

        A driver's with VIRTIO_F_IN_ORDER, where ids go round, begin with the oldest.
        """
        oldest = int(self._state[k.OLDEST])
        ids = (i % self.size for i in range(oldest, oldest + self.size))
        rows = ((i, self._shadow[i * k.SHADOW : (i + 1) * k.SHADOW]) for i in ids)
        return {i: Held(int(row[k.SLOTS]), int(row[k.LIMIT])) for i, row in rows if row[k.SLOTS]}

    def _kernel(self, name: str) -> Callable[..., Any]:
        return self.engine.kernels[f"{self.layout}_{name}"]

    def _raise(self, code: int) -> PeerError:
        return fault(code, self._state, self.layout, self.index)
