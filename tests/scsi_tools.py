"""What the SCSI tests share: pairs of driver and device, units that take their time, chains made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from attrs import define, field

from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.scsi.device import DEFAULT_FEATURES, ScsiDevice
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.driver import ScsiDriver
from virtio_py.devices.scsi.layout import virtio_scsi_req_cmd, virtio_scsi_resp_cmd
from virtio_py.devices.scsi.task import Nexus, Outcome, Task
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.rings.chain import Chain, Reader, Writer
from virtio_py.rings.engine import engine_named
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import Feature, mask
from virtio_py.transports.in_process import InProcess

BLOCKS = 64
RING = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
PACKED = RING | mask(Feature.RING_PACKED)
RINGS = (mask(Feature.VERSION_1), RING, PACKED, PACKED | mask(Feature.IN_ORDER))
FILL = 0xEE


@define
class ThinMedium(MemoryMedium):
    """A memory medium that says it can deallocate."""

    can_deallocate: bool = field(default=True, init=False)


def disk(blocks: int = BLOCKS, **options: Any) -> ScsiDisk:
    medium = ThinMedium(bytearray(blocks * options.get("block_size", 512)))
    return ScsiDisk(medium, **options)


@define(eq=False)
class SlowUnit(ScsiDisk):
    """A disk that answers nothing but INQUIRY until it is told to."""

    tasks: list[Task] = field(factory=list, init=False)
    aborted: list[Task] = field(factory=list, init=False)

    def execute(self, task: Task) -> Outcome | None:
        if task.cdb[0] in (0x12, 0xA0):
            return ScsiDisk.execute(self, task)
        self.tasks.append(task)
        return None

    def abort(self, task: Task) -> None:
        self.tasks.remove(task)
        self.aborted.append(task)

    def go_on(self) -> None:
        """Finishes the oldest task."""
        task = self.tasks.pop(0)
        outcome = ScsiDisk.execute(self, task)
        assert outcome is not None
        task.finish(outcome)


def pair(
    units: Mapping[tuple[int, int], LogicalUnit] | None = None,
    *,
    ring: int = RING,
    features: int | None = None,
    queue_size: int = 16,
    offered: int = DEFAULT_FEATURES,
    engine: str = "reference",
    **options: Any,
) -> tuple[ScsiDriver, ScsiDevice]:
    """A started driver and its device, with a disk at target 0, LUN 0 unless other units are given."""
    device = ScsiDevice(features=offered, **options)
    for (target, lun), unit in (units if units is not None else {(0, 0): disk()}).items():
        device.attach(target, lun, unit)
    runs = engine_named(engine)
    transport = InProcess(device, engine=runs, memory_size=4 << 20, ring_features=ring)
    wanted = device.offered_features() if features is None else features
    driver = ScsiDriver(transport, engine=runs, features=wanted | ring, queue_size=queue_size).start()
    deliver(driver)
    return driver, device


def deliver(driver: ScsiDriver) -> None:
    """Delivers the notifications that are under way, such as that of new event buffers."""
    assert isinstance(driver.transport, InProcess)
    while driver.transport.step():
        pass


def carried_out(unit: LogicalUnit, cdb: bytes, data_out: bytes = b"", room: int = 0, nexus: Nexus | None = None) -> Any:
    """(outcome, data in) of a command given to a unit without any transport."""
    written = bytearray(room)
    who = nexus or NEXUS
    task = Task(who, cdb, Reader([memoryview(data_out)]), Writer([memoryview(written)]))
    outcome = unit.execute(task)
    return outcome, bytes(written[: task.data_in.position])


NEXUS = Nexus()


@define(eq=False)
class Queue:
    """A completer that remembers."""

    index: int
    done: ClassVar[list[Chain]]

    def complete(self, chains: Sequence[Chain]) -> None:
        for chain in chains:
            chain.used = True


def cut(data: bytes | bytearray, at: Sequence[int]) -> list[memoryview]:
    points = sorted(min(p, len(data)) for p in at)
    return [memoryview(data)[a:b] for a, b in zip([0, *points], [*points, len(data)], strict=True)]


def ask(device: ScsiDevice, index: int, readable: bytes, room: int, at: Sequence[int] = ()) -> tuple[bytes, int, Chain]:
    """One chain on a queue: the writable part afterwards, the used length, and the chain."""
    writable = bytearray([FILL]) * room
    queue = Queue(index)
    chain = Chain(0, queue, Reader(cut(readable, at)), Writer(cut(writable, at)))
    device.handle(cast(DeviceQueue, queue), chain)
    return bytes(writable), chain.used_length, chain


def command(lun: bytes, cdb: bytes, data_out: bytes = b"", cdb_size: int = 32, tag: int = 1) -> bytes:
    """The readable part of a request."""
    return virtio_scsi_req_cmd.encode(lun=lun, id=tag) + cdb.ljust(cdb_size, b"\0") + data_out


def response(written: bytes) -> Any:
    return virtio_scsi_resp_cmd.decode(written)
