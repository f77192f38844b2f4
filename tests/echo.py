"""A device that answers with what it got, its driver, and a configuration with fields of every width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from attrs import define, field
from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.device import Device, QueueSpec
from virtio_py.driver import Driver
from virtio_py.records import Record
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId

config_record = Record(
    "config",
    Struct("wide" / Int64ul, "word" / Int32ul, "half" / Int16ul, "bytes" / Bytes(2), "list" / Array(2, Int8ul)),
)


@define(eq=False)
class Echo(Device):
    """Answers each chain with its own bytes."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    config: bytearray = field(factory=lambda: bytearray(range(1, config_record.size + 1)))
    on_reset: Callable[[int], None] = field(default=lambda index: None)
    live: Callable[[], bytes] | None = None
    served: int = 0

    def queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec("firstq", 64), QueueSpec("secondq", 16)]

    def read_config(self) -> bytes:
        return bytes(self.config) if self.live is None else self.live()

    def write_config(self, offset: int, data: bytes) -> None:
        self.config[offset : offset + len(data)] = data

    def queue_reset(self, index: int) -> None:
        self.on_reset(index)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        self.served += 1
        chain.writable.write(chain.readable.read_all()[: chain.writable.remaining])


class EchoDriver(Driver):
    device_id = DeviceId.ENTROPY

    def echo(self, text: bytes, queue: int = 0) -> bytes:
        return self.transact(self.queues[queue], [text], [len(text)])[0][0]
