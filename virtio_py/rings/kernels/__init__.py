"""The ring loops: plain functions that are the reference engine as they stand, and beside C once numba has them.

A function marked `@kernel` is only registered. REFERENCE calls these very functions; `compiled()` compiles the same
code objects. So they are written in the part of Python that both understand: ints, tuples, named tuples of arrays.
All numbers are signed 64-bit in one engine and unbounded in the other: nothing here may depend on which.

Every value that the other side can write is read once, into a local, and the local is checked before it is used.
What we ourselves must remember lives in `state` and `shadow`, private arrays, never read back from shared memory.

Memory ordering. Each ring has two publications and, with suppression, two store-then-load races; there is no other
synchronisation. Split (packed: the flags word of the list's first descriptor, of the used descriptor):

    publication           store_release by              load_acquire by
    available buffers     split_publish: avail.idx      split_take
    used buffers          split_complete: used.idx      split_take_used

A release store is after all earlier stores; an acquire load is before all later loads. So whoever sees the new index
sees the descriptors and elements it covers. On x86 both are plain moves, and still needed: they bind the compiler.

    race                       one side                                other side
    shall the device kick?     split_complete stores used.idx, fence,  split_driver_notifications stores used_event
    (used notification)        loads used_event or avail.flags         or avail.flags, fence, loads used.idx
    shall the driver kick?     split_publish stores avail.idx, fence,  split_device_notifications stores avail_event
    (available notification)   loads avail_event or used.flags         or used.flags, fence, loads avail.idx

Each side stores its own word, then looks at the other's. Release and acquire let the load pass the store, x86 does
too (its store buffer), and then both sides would see the old word and both would sleep. The two `fence`s, one on each
side, forbid just that: at least one side sees what the other stored.
"""

from __future__ import annotations

from virtio_py.rings.kernels.common import (
    COUNTERS,
    KERNELS,
    TWINS,
    Batch,
    Memory,
    PackedRing,
    SplitRing,
    Words,
    kernel,
    locate,
    mapped,
    need_event,
)
from virtio_py.rings.kernels.packed_device import (
    packed_complete,
    packed_device_notifications,
    packed_take,
    packed_used_notification_due,
)
from virtio_py.rings.kernels.packed_driver import (
    packed_add,
    packed_available_notification_due,
    packed_driver_notifications,
    packed_publish,
    packed_take_used,
)
from virtio_py.rings.kernels.split_device import (
    split_complete,
    split_device_notifications,
    split_take,
    split_used_notification_due,
)
from virtio_py.rings.kernels.split_driver import (
    split_add,
    split_available_notification_due,
    split_driver_notifications,
    split_publish,
    split_take_used,
)
from virtio_py.rings.kernels.stress import stress_pattern

__all__ = [
    "COUNTERS",
    "KERNELS",
    "TWINS",
    "Batch",
    "Memory",
    "PackedRing",
    "SplitRing",
    "Words",
    "kernel",
    "locate",
    "mapped",
    "need_event",
    "packed_add",
    "packed_available_notification_due",
    "packed_complete",
    "packed_device_notifications",
    "packed_driver_notifications",
    "packed_publish",
    "packed_take",
    "packed_take_used",
    "packed_used_notification_due",
    "split_add",
    "split_available_notification_due",
    "split_complete",
    "split_device_notifications",
    "split_driver_notifications",
    "split_publish",
    "split_take",
    "split_take_used",
    "split_used_notification_due",
    "stress_pattern",
]
