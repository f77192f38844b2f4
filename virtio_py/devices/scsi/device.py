"""The SCSI host device (5.6), the half that serves: logical units behind it, commands in front.

    Device ID       8
    Virtqueues      0 controlq, 1 eventq, 2 … 1+N requestq1 … requestqN
    Configuration   virtio_scsi_config; `sense_size` and `cdb_size` are writable, and at once the sizes that count
    Operation       requests for logical units, task management on controlq, events into eventq's buffers

Units come and go while a driver is at work: `attach` and `detach`. A command that fails is answered with a status and
sense data, one that cannot be delivered with a response; only a chain without room for either is a RequestError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Final

from attrs import Attribute, define, field, validators

from virtio_py.device import Device, DeviceEnd, QueueSpec
from virtio_py.devices.scsi.bus import Bus
from virtio_py.devices.scsi.control import serve_control
from virtio_py.devices.scsi.events import EventQueue
from virtio_py.devices.scsi.layout import (
    CONTROLQ,
    DEFAULT_CDB_SIZE,
    DEFAULT_SENSE_SIZE,
    EVENTQ,
    MAX_LUN,
    MAX_TARGET,
    Address,
    AsyncEvent,
    EventType,
    ResetReason,
    ScsiFeature,
    ScsiResponse,
    decode_lun,
    encode_lun,
    virtio_scsi_config,
    virtio_scsi_event,
)
from virtio_py.devices.scsi.requests import Request, read_request
from virtio_py.devices.scsi.sense import DEVICE_RESET, LUNS_CHANGED, Condition
from virtio_py.devices.scsi.task import Nexus, Outcome, Task
from virtio_py.devices.scsi.tasks import TaskSet
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.errors import UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId, Feature, bit, mask
from virtio_py.watch import Watch

ALL_FEATURES: Final = mask(*ScsiFeature)
DEFAULT_FEATURES: Final = ALL_FEATURES & ~bit(ScsiFeature.T10_PI)
"""T10_PI is for who asks for it: Linux puts its two fields at another place than the specification does."""


SIZES_PART: Final = (0x200, bytes(8))
"""Type and selector of our own device part: `sense_size` and `cdb_size`."""
SUBSCRIPTION_PART: Final = 0x201
"""Type of our own device parts whose selector is a LUN: the asynchronous events that were subscribed to there."""

MMC: Final = 5
"""The INQUIRY device type of which parameter changes are never reported."""


def _check_features(device: ScsiDevice, attribute: Attribute[int], value: int) -> None:
    if value & ~ALL_FEATURES:
        raise UsageError(f"features {value & ~ALL_FEATURES:#x} are not this device's to offer")


@define(eq=False)
class ScsiDevice(Device):
    """A SCSI host. Raises UsageError for a value that cannot be.

    features: mask of what is offered; initiator: the name under which units know this device's driver
    watches:    descriptors that the operator's side waits for, such as one that says to look for new units
    cmd_per_lun: commands that a unit is given at a time; more are BUSY. max_sectors: a hint, sectors of 512 bytes
    """

    device_id: ClassVar[DeviceId] = DeviceId.SCSI
    features: int = field(default=DEFAULT_FEATURES, validator=_check_features, kw_only=True)
    num_queues: int = field(default=1, validator=[validators.ge(1), validators.lt(1 << 15)], kw_only=True)
    queue_size: int = field(default=256, kw_only=True)
    cmd_per_lun: int = field(default=128, validator=validators.ge(1), kw_only=True)
    seg_max: int = field(default=254, kw_only=True)
    max_sectors: int = field(default=32768, kw_only=True)
    initiator: str = field(default="virtio-py", kw_only=True)
    watches: Sequence[Watch] = field(default=(), kw_only=True)
    subscriptions: dict[Address, int] = field(factory=dict, init=False)
    nexus: Nexus = field(init=False)
    _bus: Bus = field(init=False)
    _tasks: TaskSet = field(init=False)
    _events: EventQueue = field(factory=EventQueue, init=False)
    _sense_size: int = field(default=DEFAULT_SENSE_SIZE, init=False)
    _cdb_size: int = field(default=DEFAULT_CDB_SIZE, init=False)
    _negotiated: int = field(default=0, init=False)
    _end: DeviceEnd | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.nexus = Nexus(self.initiator)
        self._bus = Bus(self.nexus)
        self._tasks = TaskSet(self._settled)
        # A value that its field cannot hold is to be refused here, not when a driver comes and reads.
        self.read_config()

    def queues(self) -> Sequence[QueueSpec]:
        """controlq, eventq, and the request queues."""
        names = ["controlq", "eventq", *(f"requestq{n + 1}" for n in range(self.num_queues))]
        return [QueueSpec(name, self.queue_size) for name in names]

    def offered_features(self) -> int:
        """What it was made with."""
        return self.features

    def has(self, feature: int) -> bool:
        """Whether a feature was negotiated."""
        return bool(self._negotiated & bit(feature))

    # Configuration

    def read_config(self) -> bytes:
        """The live configuration: `sense_size` and `cdb_size` are what the driver wrote last."""
        return virtio_scsi_config.encode(
            num_queues=self.num_queues,
            # A chain has two headers too, and is no longer than the queue.
            seg_max=min(self.seg_max, max(self.queue_size - 2, 1)),
            max_sectors=self.max_sectors,
            cmd_per_lun=self.cmd_per_lun,
            event_info_size=virtio_scsi_event.size,
            sense_size=self._sense_size,
            cdb_size=self._cdb_size,
            max_channel=0,
            max_target=MAX_TARGET,
            max_lun=MAX_LUN,
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """`sense_size` and `cdb_size` follow the driver's write, in whatever pieces it comes."""
        config = bytearray(self.read_config())
        config[offset : offset + len(data)] = data
        written = virtio_scsi_config.decode(config)
        self._sense_size, self._cdb_size = written.sense_size, written.cdb_size

    # Units

    @property
    def units(self) -> dict[Address, LogicalUnit]:
        """All units by their addresses."""
        return self._bus.all()

    def attach(self, target: int, lun: int, unit: LogicalUnit) -> None:
        """Puts a unit at a place, and tells a driver that is there (5.6.6.3). Raises UsageError for a place that is
        taken or does not exist, or a unit that has one."""
        self._bus.add(Address(target, lun), unit)
        self._luns_changed(target)
        unit.join(self.nexus)
        unit.watchers.append(self._changed)
        self._transport_reset(Address(target, lun), ResetReason.RESCAN)

    def detach(self, target: int, lun: int) -> LogicalUnit:
        """Takes a unit away; its tasks end with TRANSPORT_FAILURE. Raises UsageError where there is none."""
        address = Address(target, lun)
        unit = self._bus.remove(address)
        self._tasks.end(self.active(target, lun), ScsiResponse.TRANSPORT_FAILURE)
        unit.leave(self.nexus)
        unit.watchers.remove(self._changed)
        self.subscriptions.pop(address, None)
        self._luns_changed(target)
        self._transport_reset(address, ResetReason.REMOVED)
        return unit

    def _luns_changed(self, target: int) -> None:
        # Before DRIVER_OK nobody has seen other LUNs than there are.
        if self._end is not None:
            for other in self._bus.units_of(target).values():
                other.attend(LUNS_CHANGED, only=self.nexus)

    def hard_reset(self, target: int, lun: int) -> None:
        """Resets a unit on the operator's behalf; its tasks end with RESET, and the driver is told."""
        address = Address(target, lun)
        self._tasks.end(self.active(target, lun), ScsiResponse.RESET)
        self._bus.get(address).reset(DEVICE_RESET)
        self._transport_reset(address, ResetReason.HARD)

    def units_of(self, target: int) -> Mapping[int, LogicalUnit]:
        """The units of a target by their LUNs; empty if there is no such target."""
        return self._bus.units_of(target)

    # Events

    def _transport_reset(self, address: Address, reason: ResetReason) -> None:
        if reason is ResetReason.HARD or self.has(ScsiFeature.HOTPLUG):
            self._post(EventType.TRANSPORT_RESET, address, reason)

    def _changed(self, unit: LogicalUnit, change: Condition | AsyncEvent) -> None:
        address = self._bus.address_of(unit)
        if isinstance(change, AsyncEvent):
            if wanted := self.subscriptions.get(address, 0) & change:
                self._post(EventType.ASYNC_NOTIFY, address, wanted)
        elif self.has(ScsiFeature.CHANGE) and unit.device_type != MMC:
            self._post(EventType.PARAM_CHANGE, address, change.asc | change.ascq << 8)

    def _post(self, event: EventType, address: Address, reason: int) -> None:
        # Before DRIVER_OK there is nobody to tell: the driver will look for itself.
        if self._end is None or address.lun is None:
            return
        queue = self._end.active_queue(EVENTQ) if self._end.running else None
        self._events.post(event, encode_lun(address.target, address.lun), reason, queue)

    # The life of a driver

    def negotiated(self, features: int) -> None:
        """What the requests look like follows from the features."""
        self._negotiated = features

    def parts(self) -> Mapping[tuple[int, bytes], bytes]:
        """What the driver wrote to the configuration, and what it wants to hear of. The specification has no parts of
        SCSI hosts."""
        start, end = virtio_scsi_config.offset("sense_size"), virtio_scsi_config.end("cdb_size")
        wanted = {
            (SUBSCRIPTION_PART, encode_lun(address.target, address.lun)): events.to_bytes(4, "little")
            for address, events in self.subscriptions.items()
            if address.lun is not None
        }
        return {SIZES_PART: self.read_config()[start:end], **wanted}

    def takes_part(self, part_type: int, selector: bytes, value: bytes) -> bool:
        """Whether it is the sizes, or a subscription to a unit's events."""
        if part_type == SUBSCRIPTION_PART:
            return len(value) == 4 and decode_lun(selector) in self.units
        sizes = virtio_scsi_config.end("cdb_size") - virtio_scsi_config.offset("sense_size")
        return (part_type, selector) == SIZES_PART and len(value) == sizes

    def set_part(self, part_type: int, selector: bytes, value: bytes) -> None:
        """Sets a part that was found good."""
        if (part_type, selector) == SIZES_PART:
            self.write_config(virtio_scsi_config.offset("sense_size"), value)
        elif (address := decode_lun(selector)) is not None:
            self.subscriptions[address] = int.from_bytes(value, "little")

    def activate(self, end: DeviceEnd, features: int) -> None:
        """DRIVER_OK: from now on there is somebody to hear of events."""
        self._end = end

    def watch(self) -> Sequence[Watch]:
        """What it was made with."""
        return self.watches

    def busy(self) -> bool:
        """Whether a command is under way."""
        return not self._tasks.empty

    def queue_reset(self, index: int) -> None:
        """The buffers of one queue are the driver's again: its tasks are aborted, its events find no room."""
        if index == EVENTQ:
            self._events.forget()
        self._tasks.release(index)
        self._tasks.drop(self._tasks.of_queue(index))

    def reset(self) -> None:
        """Tasks are aborted, sizes are the defaults; units keep what they store, and who has registered with them."""
        self._tasks.drop()
        self._events.reset()
        self.subscriptions.clear()
        for unit in self.units.values():
            unit.initiator_gone(self.nexus)
        self._negotiated, self._end = 0, None
        self._sense_size, self._cdb_size = DEFAULT_SENSE_SIZE, DEFAULT_CDB_SIZE

    # Requests

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serves one chain of any queue. Raises RequestError for one that has no room for an answer."""
        if queue.index == CONTROLQ:
            serve_control(self, chain)
        elif queue.index == EVENTQ:
            self._events.offer(chain)
        else:
            self._command(chain)

    def _command(self, chain: Chain) -> None:
        request = read_request(chain, self._cdb_size, self._sense_size, self.has(ScsiFeature.T10_PI))
        if request is None:
            return
        outcome = self._start(request)
        if outcome is not None:
            request.respond(outcome)
            return
        self._tasks.add(request)

    def _start(self, request: Request) -> Outcome | None:
        """Gives a command to its unit; the outcome, or None while it is under way."""
        if request.bidirectional and not self.has(ScsiFeature.INOUT):
            return Outcome(response=ScsiResponse.FAILURE)
        address = self._bus.resolve(request.lun)
        if address is None:
            return Outcome(response=ScsiResponse.BAD_TARGET)
        if len(self.active(address.target, address.lun)) >= self.cmd_per_lun:
            return Outcome(response=ScsiResponse.BUSY)
        request.address, request.unit = address, self._bus.unit_at(address)
        request.task = Task(
            self.nexus,
            request.cdb,
            request.data_out,
            request.data_in,
            request.pi_out,
            request.pi_in,
            partial(self._bus.luns, address),
            self._tasks.finish,
        )
        return request.unit.execute(request.task)

    # Tasks that take longer

    def active(self, target: int, lun: int | None = None) -> list[Request]:
        """The tasks of a unit, or of a whole target, that are not finished, oldest first."""
        return self._tasks.of(target, lun)

    def end_tasks(self, requests: list[Request], response: ScsiResponse, chain: Chain) -> None:
        """Ends tasks with a response, for a task management function whose own chain is `chain`."""
        # With VIRTIO_F_IN_ORDER a queue keeps back what comes before its turn: the function waits for that turn too.
        waiting = self._tasks.before(requests) if self.has(Feature.IN_ORDER) else []
        self._tasks.end(requests, response)
        self._tasks.hold(chain, waiting)

    def _settled(self) -> None:
        if self._end is not None:
            self._end.settled()
