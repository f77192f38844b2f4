"""A carrier nobody has heard of, in less than sixty lines: each verb is a line of text that goes over a wire.

It is written against `Transport` and `DeviceEnd` alone; what needs no translation, such as `write_status`, has none.
"""

import json
from functools import partial
from typing import Any

from virtio_py.device import Device, DeviceEnd
from virtio_py.memory import Arena, GuestMemory
from virtio_py.rings.engine import Engine
from virtio_py.rings.queue import DriverQueue


class Telegraph:
    def __init__(self, device: Device, engine: Engine, features: int, size: int) -> None:
        self._arena, self._kicks, self._changes = Arena(GuestMemory.of(size, 0x2000)), list[int](), 0
        self.end = DeviceEnd(device, self._arena.memory, self, engine, features)

    def __getattr__(self, verb: str) -> Any:
        return partial(self._wire, verb)

    legacy_page = 0
    arena = property(lambda self: self._arena)
    device_id = property(lambda self: self.end.device.device_id)
    num_queues = property(lambda self: self._wire("num_queues"))
    config_notifications = property(lambda self: self._changes)

    def used_buffer(self, queue_index: int) -> None: ...

    def configuration_change(self) -> None:
        self._changes += 1

    def _wire(self, verb: str, *arguments: Any) -> Any:
        name, given = json.loads(json.dumps([verb, arguments]))
        found = getattr(self.end, name)
        return json.loads(json.dumps(found(*given) if callable(found) else found, default=bytes.hex))

    def read_config(self, offset: int, length: int) -> bytes:
        return bytes.fromhex(self._wire("read_config", offset, length))

    def write_config(self, offset: int, data: bytes) -> None:
        self.end.write_config(offset, data)

    def max_queue_size(self, index: int) -> int:
        return self.end.queue(index).max_size if index < self.end.num_queues else 0

    def enable_queue(self, queue: DriverQueue) -> None:
        config = self.end.queue(queue.index)
        config.size, (config.descriptor_area, config.driver_area, config.device_area) = queue.size, queue.areas
        self._wire("enable_queue", queue.index)

    def available_buffer(self, index: int, data: int) -> None:
        self._kicks.append(index)

    def wait(self, timeout: float) -> None:
        if self._kicks and self._wire("available_buffer", index := self._kicks.pop(0)):
            self._kicks.append(index)
