"""A driver's half of a queue that is written by hand, for either layout: what checks and attacks work with.

hand = make_hand(queue, memory)
hand.add(Descriptor(address, 512, WRITE))               a chain, made available
hand.force(3, Descriptor(address, 512))                 one under an id that may be taken
hand.used()                                             what came back, or Failed for what cannot
"""

from __future__ import annotations

from virtio_py.memory import GuestMemory
from virtio_py.rings.queue import DriverQueue
from virtio_py.testing.hands.hand import INDIRECT, NEXT, WRITE, Descriptor, Hand, Used, encoded, table
from virtio_py.testing.hands.packed import PackedHand
from virtio_py.testing.hands.split import SplitHand

__all__ = [
    "INDIRECT",
    "NEXT",
    "WRITE",
    "Descriptor",
    "Hand",
    "PackedHand",
    "SplitHand",
    "Used",
    "encoded",
    "make_hand",
    "table",
]


def make_hand(queue: DriverQueue, memory: GuestMemory) -> Hand:
    """The hand for a queue's layout. queue: one that is empty; memory: what the device sees."""
    return {"split": SplitHand, "packed": PackedHand}[queue.layout](queue, memory)
