"""Driver and device in one process: one arena, and calls instead of a bus.

Notifications are not delivered at once: they wait until the driver waits, or until `step` is called, so that a test
can choose their order.
"""

from __future__ import annotations

import time
from collections import deque

from virtio_py.device import Administrator, Device, DeviceEnd
from virtio_py.driver import Transport
from virtio_py.memory import Arena, GuestMemory
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.queue import DriverQueue
from virtio_py.status import RING_FEATURES
from virtio_py.watch import wait_ready


class InProcess(Transport):
    """The carrier between a Device and a Driver of the same process; it is the device's Notifier too.

    memory_size: bytes of the arena; ring_features: mask of the features offered besides the device's own; admin: makes
    the device the owner of groups.
    used_notifications: how many used buffer notifications have been sent.
    """

    used_notifications: int

    def __init__(
        self,
        device: Device,
        *,
        engine: Engine = REFERENCE,
        memory_size: int = 16 << 20,
        ring_features: int = RING_FEATURES,
        admin: Administrator | None = None,
    ) -> None:
        self._arena = Arena(GuestMemory.of(memory_size, start=0x1000))
        self.end = DeviceEnd(device, self._arena.memory, self, engine, ring_features, admin=admin)
        self._kicks: deque[int] = deque()
        self.used_notifications = 0
        self._config_notifications = 0

    # The device's Notifier

    def used_buffer(self, queue_index: int) -> None:
        """Counts a used buffer notification; the driver looks at its queues whenever it waits."""
        self.used_notifications += 1

    def configuration_change(self) -> None:
        """Counts a configuration change notification."""
        self._config_notifications += 1

    # The driver's Transport

    @property
    def arena(self) -> Arena:
        """The memory of both."""
        return self._arena

    @property
    def device_id(self) -> int:
        """The device type."""
        return self.end.device.device_id

    @property
    def num_queues(self) -> int:
        """How many virtqueues the device has."""
        return self.end.num_queues

    @property
    def admin_queues(self) -> range:
        """The indices of the administration virtqueues."""
        return self.end.admin_queues

    @property
    def config_notifications(self) -> int:
        """How many configuration change notifications the device has sent."""
        return self._config_notifications

    def device_features(self) -> int:
        """What the device offers."""
        return self.end.device_features

    def accept_features(self, features: int) -> None:
        """The driver's choice."""
        self.end.accept_features(features)

    def read_status(self) -> int:
        """The device status field."""
        return self.end.read_status()

    def write_status(self, value: int) -> None:
        """0 resets; kicks that were under way are lost with the queues."""
        if value == 0:
            self._kicks.clear()
        self.end.write_status(value)

    def read_config(self, offset: int, length: int) -> bytes:
        """Part of the configuration space."""
        return self.end.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Stores to the configuration space."""
        self.end.write_config(offset, data)

    def config_generation(self) -> int:
        """The configuration generation."""
        return self.end.config_generation

    def max_queue_size(self, index: int) -> int:
        """The largest size of a queue, 0 if there is no such queue."""
        return self.end.queue(index).max_size if index < self.end.num_queues or index in self.admin_queues else 0

    def enable_queue(self, queue: DriverQueue) -> None:
        """Writes the queue's registers and enables it."""
        config = self.end.queue(queue.index)
        config.size = queue.size
        config.descriptor_area = queue.descriptor_area
        config.driver_area = queue.driver_area
        config.device_area = queue.device_area
        queue.notif_config_data = config.notif_config_data
        self.end.enable_queue(queue.index)

    def reset_queue(self, index: int) -> None:
        """Resets one queue; it is done at once."""
        self.end.reset_queue(index)

    def available_buffer(self, index: int, data: int) -> None:
        """A kick; it is delivered by `step`."""
        self._kicks.append(data)

    def step(self) -> bool:
        """Delivers one kick; False if there is none."""
        if not self._kicks:
            return False
        data = self._kicks.popleft()
        if self.end.notified(data):
            self._kicks.append(data)
        return True

    def wait(self, timeout: float) -> None:
        """Lets the device work. With nothing to deliver, only what stands behind the device can change anything:
        waits for that, or sleeps the time away."""
        if self.step():
            return
        watches = self.end.device.watch()
        if not watches:
            time.sleep(timeout)
            return
        for watch in wait_ready(watches, timeout):
            self.end.attend(watch)

    def close(self) -> None:
        """Nothing is held."""
