"""`DeviceEnd`: everything that a driver can do to a device, in the specification's verbs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from attrs import define, field

from virtio_py.config_space import ConfigSpace
from virtio_py.device.author import Administrator, Device, Notifier
from virtio_py.device.service import serve
from virtio_py.errors import MemoryFault, MessageError, NegotiationError, PeerError, UsageError
from virtio_py.memory import GuestMemory
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.queue import DeviceQueue, QueueConfig, QueueState
from virtio_py.spec import DeviceStatus, Feature, bit
from virtio_py.status import LEGACY_FEATURES, RING_FEATURES, missing_needs
from virtio_py.watch import Watch

Result = TypeVar("Result")

_DRIVERS_BITS: Final = (
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.DRIVER_OK
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.FAILED
)
"""The status bits that a driver adds by writing them; SUSPEND it asks for."""


@define(eq=False)
class DeviceEnd:
    """Everything a driver can do to a device, in the specification's verbs, whatever carries them.

    One thread at a time may call. A PeerError raised below ends here: it becomes DEVICE_NEEDS_RESET with a
    configuration change notification, all queues stop, and `fault` says what it was until the next reset.

    ring_features: mask of the features offered besides the device's own.
    legacy:        the carrier has the legacy interface (1.3.1): 32 feature bits, no VERSION_1, no FEATURES_OK.
    missed:        asked about a MemoryFault in a queue: True if the address may yet come to be mapped, and the carrier
                   serves the queue again then. Nothing of the chain was taken.
    admin:         makes the device the owner of groups; for a carrier that has VIRTIO_F_ADMIN_VQ.
    resets:        how often the device has been reset.
    kicks, calls:  available and used buffer notifications since the last reset, by the index of the queue.
    """

    device: Final[Device]
    memory: GuestMemory
    notifier: Notifier
    engine: Engine = REFERENCE
    ring_features: int = RING_FEATURES
    legacy: bool = False
    missed: Callable[[MemoryFault], bool] = field(default=lambda fault: False)
    admin: Administrator | None = None
    resets: int = field(default=0, init=False)
    fault: PeerError | None = field(default=None, init=False)
    features: int = field(default=0, init=False)
    kicks: Counter[int] = field(init=False, factory=Counter)
    calls: Counter[int] = field(init=False, factory=Counter)
    _status: int = field(default=0, init=False)
    _configs: list[QueueConfig] = field(init=False)
    _queues: dict[int, DeviceQueue] = field(init=False, factory=dict)
    _space: ConfigSpace = field(init=False)
    _suspending: bool = field(default=False, init=False)
    _config_pending: bool = field(default=False, init=False)
    _halted: bool = field(default=False, init=False)
    _halt_waiters: list[Callable[[], None]] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        specs = [*self.device.queues(), *(self.admin.queues() if self.admin is not None else ())]
        self._configs = [QueueConfig(i, spec.name, spec.size) for i, spec in enumerate(specs)]
        self._space = ConfigSpace(self.device.read_config, self.device.write_config)

    # Features (2.2)

    @property
    def device_features(self) -> int:
        """The mask of all feature bits offered."""
        offered = self.device.offered_features() | self.ring_features
        offered |= bit(Feature.ADMIN_VQ) if self.admin is not None else 0
        return offered & LEGACY_FEATURES if self.legacy else offered

    def accept_features(self, features: int) -> None:
        """The driver's choice; judged when FEATURES_OK is written, frozen from then on."""
        # The legacy interface has no FEATURES_OK: there, DRIVER_OK settles it.
        if self._status & (DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK):
            raise NegotiationError(
                "feature bits written after FEATURES_OK", clause="basic.driver.device-initialization.5"
            )
        self.features = features

    def refusal(self, features: int) -> str | None:
        """Why a choice of features cannot be accepted, or None."""
        if extra := features & ~self.device_features:
            return f"bits {extra:#x} were not offered"
        if missing := missing_needs(features, self.device.feature_needs):
            return f"bit {missing[0][0]} needs bit {missing[0][1]}"
        if not self.legacy and not features & bit(Feature.VERSION_1):
            return "VIRTIO_F_VERSION_1 is not accepted"
        return self.device.refuse_features(features)

    # Status (2.1)

    def read_status(self) -> int:
        """The device status field."""
        return self._status

    def write_status(self, value: int) -> None:
        """0 resets. Bits that only the device sets, or that were refused, do not follow the driver's write."""
        if value == 0:
            self.reset()
            return
        if self.suspended:
            # The byte that resumes is the byte that suspended, DRIVER_OK and SUSPEND both set: our own state decides.
            if value & DeviceStatus.DRIVER_OK:
                self._resume()
            return
        if value & DeviceStatus.SUSPEND and self._started and self.features & bit(Feature.SUSPEND):
            # From here on nothing is taken; before DRIVER_OK, or not negotiated, the bit is ignored.
            self._suspending = True
            self.settled()
            return
        # DEVICE_NEEDS_RESET is the device's: a driver's read-modify-write must neither set nor clear it.
        added = value & ~self._status & _DRIVERS_BITS
        if added & DeviceStatus.FEATURES_OK and self.refusal(self.features) is not None:
            added &= ~DeviceStatus.FEATURES_OK
        settled = added & DeviceStatus.FEATURES_OK
        if added & DeviceStatus.DRIVER_OK and not (self._status | added) & DeviceStatus.FEATURES_OK:
            if self.legacy and self.refusal(self.features) is None:
                settled = added
            else:
                added &= ~DeviceStatus.DRIVER_OK
        self._status |= added
        if settled:
            self.device.negotiated(self.features)
        if added & DeviceStatus.DRIVER_OK:
            self._start()

    def _start(self) -> None:
        self.device.activate(self, self.features)
        self._serve_all()

    def _serve_all(self) -> None:
        # Buffers may have been made available before DRIVER_OK, when no notification was allowed.
        for index, queue in list(self._queues.items()):
            # Nobody delivers this call again, and notifications are off until a queue is found empty. A queue holds
            # at most its size of buffers, and each call serves some.
            for _ in range(queue.size + 1):
                if not self.available_buffer(index):
                    break

    # Suspend (3.4)

    @property
    def suspended(self) -> bool:
        """Whether the device is suspended: SUSPEND is set and DRIVER_OK clear."""
        return bool(self._status & DeviceStatus.SUSPEND)

    def settled(self) -> None:
        """For a device whose `busy` has ended: completes a suspension that waited for it, or a halt."""
        if self.device.busy() or not (self._suspending or self._halted):
            return
        for queue in self._queues.values():
            queue.pause()
        if self._suspending:
            self._suspending = False
            self._status = self._status & ~DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND
        self._tell_halted()

    def _tell_halted(self) -> None:
        waiters, self._halt_waiters = self._halt_waiters, []
        for done in waiters:
            done()

    def _resume(self) -> None:
        self._status = self._status & ~DeviceStatus.SUSPEND | DeviceStatus.DRIVER_OK
        self._go_on()

    def _go_on(self) -> None:
        """After a suspension or a halt, unless there is the other still."""
        if self.suspended or self._halted:
            return
        for queue in self._queues.values():
            queue.resume()
        if self._config_pending and self._status & DeviceStatus.DRIVER_OK:
            self._config_pending = False
            self.notifier.configuration_change()
        self._serve_all()

    # Stopped by the owner of a group (2.12.1.4, VIRTIO_ADMIN_CMD_DEV_MODE_SET)

    @property
    def halted(self) -> bool:
        """Whether the owner of the device's group has stopped it, and what was under way has ended."""
        return self._halted and not self.device.busy()

    def halt(self) -> bool:
        """Stops the device: no buffer is looked at and no notification sent until `unhalt`, whatever the driver does.

        True if it has stopped; otherwise what is under way is finished first, see `when_halted`.
        """
        self._halted = True
        self.settled()
        return self.halted

    def when_halted(self, done: Callable[[], None]) -> None:
        """Has `done` called when what was under way has ended, or the device goes on before."""
        self._halt_waiters.append(done)

    def unhalt(self) -> None:
        """Goes on, with what the driver has made available meanwhile."""
        self._halted = False
        self._tell_halted()
        self._go_on()

    def reset(self) -> None:
        """Back to the state after power-on (2.4). No notification leaves from here on until DRIVER_OK."""
        self._status = 0
        self.features = 0
        self.fault = None
        for queue in self._queues.values():
            queue.stop()
        self._queues.clear()
        self._configs = [config.fresh() for config in self._configs]
        self._space.reset()
        self.kicks.clear()
        self.calls.clear()
        self._suspending = self._config_pending = False
        self.resets += 1
        self.device.reset()
        if self.admin is not None:
            self.admin.reset()
        self.settled()

    @property
    def running(self) -> bool:
        """Whether the device may consume buffers: DRIVER_OK is set, and neither DEVICE_NEEDS_RESET nor on its way to
        being suspended, nor halted."""
        return self._started and not self._suspending and not self._halted

    @property
    def _started(self) -> bool:
        wanted = DeviceStatus.DRIVER_OK | DeviceStatus.DEVICE_NEEDS_RESET
        return self._status & wanted == DeviceStatus.DRIVER_OK

    def needs_reset(self, error: PeerError) -> None:
        """Gives up until the driver resets: DEVICE_NEEDS_RESET, then a configuration change notification."""
        # Without the frames it came through, which hold views of the driver's memory.
        self.fault = error.with_traceback(None)
        for queue in self._queues.values():
            queue.stop()
        self._status |= DeviceStatus.DEVICE_NEEDS_RESET
        self._tell_configuration()

    # Configuration space (2.5)

    def read_config(self, offset: int, length: int) -> bytes:
        """`length` bytes of the configuration space; what lies behind its end reads as zeros."""
        return self._space.read(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Stores to the configuration space. What lies behind its end is dropped, and everything while suspended."""
        if not self.suspended:
            self._space.write(offset, data)

    @property
    def config_generation(self) -> int:
        """Changes between two reads whenever what the driver read first is no longer true (2.5)."""
        return self._space.generation

    def configuration_changed(self) -> None:
        """For the device: the configuration structure has changed; the driver is told once it is up and not asleep."""
        self._space.changed()
        self._tell_configuration()

    def _tell_configuration(self) -> None:
        if self.suspended or self._halted:
            self._config_pending = True
        elif self._status & DeviceStatus.DRIVER_OK:
            self.notifier.configuration_change()

    # Virtqueues (2.6)

    @property
    def num_queues(self) -> int:
        """How many virtqueues the device has, administration virtqueues not counted."""
        return len(self._configs) - len(self.admin_queues)

    @property
    def admin_queues(self) -> range:
        """The indices of the administration virtqueues (2.14)."""
        count = len(self.admin.queues()) if self.admin is not None else 0
        return range(len(self._configs) - count, len(self._configs))

    def queue(self, index: int) -> QueueConfig:
        """The registers of a queue. Raises UsageError for an index that the device does not have."""
        if not 0 <= index < len(self._configs):
            raise UsageError(f"the device has no queue {index}, only {len(self._configs)}")
        return self._configs[index]

    def active_queue(self, index: int) -> DeviceQueue | None:
        """The running queue, for a device that takes chains on its own initiative, or None."""
        return self._queues.get(index)

    def enable_queue(self, index: int) -> None:
        """Activates a configured queue. Raises UsageError if it is active, PeerError if its registers are bad."""
        if index in self._queues:
            raise UsageError(f"queue {index} is enabled already")
        config = self.queue(index)
        queue = config.activate(self.memory, self.features, self.engine, lambda: self._used_buffer(index))
        if self.device.moderates:
            queue.hold = lambda: self.device.hold_notification(index)
        if self._halted:
            queue.pause()
        self._queues[index] = queue

    def configure_queue(self, config: QueueConfig) -> None:
        """Replaces the registers of a queue that is not enabled."""
        self._configs[config.index] = config

    def _used_buffer(self, index: int) -> None:
        self.calls[index] += 1
        self.notifier.used_buffer(index)

    def stop_queue(self, index: int) -> QueueState:
        """Takes a queue out of service and returns where to go on: its deferred chains are to be taken anew there."""
        queue = self._queues.pop(index, None)
        if queue is not None and self.device.moderates and self.running:
            # What was held back is not known where the queue goes on.
            queue.notify()
        return queue.stop() if queue is not None else self.queue(index).state

    def reset_queue(self, index: int) -> None:
        """A queue reset (2.6.1): the queue is as it was before it was first set up, and its buffers are the driver's.

        Raises NegotiationError if VIRTIO_F_RING_RESET was not negotiated.
        """
        if not self.features & bit(Feature.RING_RESET):
            raise NegotiationError("a queue reset without VIRTIO_F_RING_RESET", queue=index)
        old = self.queue(index)
        self.stop_queue(index)
        self._configs[index] = old.fresh()
        self._server(index).queue_reset(index)

    def _server(self, index: int) -> Device | Administrator:
        if index in self.admin_queues and self.admin is not None:
            if not self.features & bit(Feature.ADMIN_VQ):
                raise NegotiationError("an administration virtqueue without VIRTIO_F_ADMIN_VQ", queue=index)
            return self.admin
        return self.device

    def replace_memory(self, memory: GuestMemory) -> None:
        """Swaps the memory under the running queues. Raises PeerError, with all as before, if a ring is not in it."""
        bindings = [(queue, queue.bind(memory)) for queue in self._queues.values()]
        for queue, binding in bindings:
            queue.adopt(binding)
        self.memory = memory

    def notified(self, data: int) -> bool:
        """An available buffer notification as it came, 16 or 32 bits (2.9), for the queue that its low half names.

        Where the driver stands, in the high half, is a hint; the ring is what counts. Raises MessageError for a value
        that stands for no queue. Returns what `available_buffer` does.
        """
        return self.available_buffer(self.notified_queue(data))

    def notified_queue(self, data: int) -> int:
        """The index of the queue that a notification names, for a carrier that serves it later. Raises MessageError."""
        name = data & 0xFFFF
        named = [
            q.notif_config_data if self.features & bit(Feature.NOTIF_CONFIG_DATA) else q.index for q in self._configs
        ]
        if name not in named:
            raise MessageError(f"notification {data:#x} is for no queue")
        return named.index(name)

    def available_buffer(self, index: int) -> bool:
        """An available buffer notification: serves the queue. True if work is left, beyond the budget of one call."""
        self.kicks[index] += 1
        return self.serve_queue(index)

    def serve_beside(self, index: int) -> bool:
        """As `available_buffer`, for a thread that serves this queue beside others: what goes wrong is raised, as a
        PeerError, and is to be given to `attempt` when no queue is served. That stops them all."""
        queue = self._queues.get(index)
        if queue is None or not self.running:
            return False
        self.kicks[index] += 1
        return serve(self.device, queue)

    def serve_queue(self, index: int) -> bool:
        """Serves a queue, as on a notification. For a device, too, that needs what may have become available."""
        queue = self._queues.get(index)
        return queue is not None and bool(self.attempt(lambda: serve(self._server(index), queue), index))

    def attempt(self, work: Callable[[], Result], index: int | None = None) -> Result | None:
        """Does work for a queue, such as a device does on its own initiative: None if it may not work now, or if a
        PeerError came out of it, which becomes DEVICE_NEEDS_RESET."""
        if not self.running:
            return None
        try:
            return work()
        except PeerError as error:
            error.queue = index if error.queue is None else error.queue
            if not (isinstance(error, MemoryFault) and self.missed(error)):
                self.needs_reset(error)
            return None

    def attend(self, watch: Watch) -> None:
        """One of the descriptors that `Device.watch` named is ready. A fault found on the way ends as in any queue."""
        self.guard(watch.ready)

    def guard(self, work: Callable[[], object]) -> None:
        """Does work on behalf of the driver: a PeerError that comes out of it becomes DEVICE_NEEDS_RESET."""
        try:
            work()
        except PeerError as error:
            self.needs_reset(error)
