"""Virtqueues: registers that activate into a device's running queue, and the driver's queue.

    config = QueueConfig(0, "requestq", 256)         registers, as a transport sets them
    queue = config.activate(memory, features, …)     a running queue; "not yet enabled" is a type, not a flag
    queue.take() -> [Chain]   queue.complete([chain])

    queue = DriverQueue(0, 256, arena, features)     the other half
    queue.add(readable, writable, token)   queue.take_used() -> [(token, used length)]

Both sides first look, and sleep only after asking for a notification and looking once more:

    while True:                                      while True:
        queue.disable_notifications()                    done = queue.take_used()
        for chain in queue.take(): …                     if not done and not queue.enable_notifications():
        if not queue.enable_notifications(): sleep           sleep
"""

from __future__ import annotations

from virtio_py.rings.device_queue import DeviceQueue, QueueConfig
from virtio_py.rings.driver_queue import DriverQueue
from virtio_py.rings.half import MAX_CHAIN, Extent, Held, QueueState, make_batch

__all__ = ["MAX_CHAIN", "DeviceQueue", "DriverQueue", "Extent", "Held", "QueueConfig", "QueueState", "make_batch"]
