"""The driver half: `Transport` is all a driver sees of a carrier, `Driver` is what a driver's author subclasses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, Protocol, Self

from attrs import define, field

from virtio_py.errors import Disconnected, NeedsReset, NegotiationError, PeerError, TimedOut, UsageError
from virtio_py.memory import Arena, Buffer
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceId, DeviceStatus, Feature, bit
from virtio_py.status import (
    INITIALISATION,
    LEGACY_FEATURES,
    PLATFORM_FEATURES,
    RING_FEATURES,
    FeatureNeeds,
    missing_needs,
)

CONFIG_READS: Final = 1000
"""How often a driver reads a configuration that does not stand still before it gives up."""


class Transport(Protocol):
    """The driver's view of a carrier. Offsets, lengths and addresses in bytes.

    legacy_page: 0, or for a legacy interface (1.3.1) the alignment in bytes of its queues, which lie in one piece there
    fixed_queue_sizes: whether a queue has the size that the device says, and no smaller one (legacy PCI)
    used_notifications: how many used buffer notifications have arrived so far, None where that is not counted
    """

    legacy_page: int = 0
    fixed_queue_sizes: bool = False
    used_notifications: int | None = None

    @property
    def tells_status(self) -> bool:
        """Whether the status is what the device says, and not what the carrier has to infer."""
        return True

    @property
    def tells_config(self) -> bool:
        """Whether the configuration can be read."""
        return True

    @property
    def arena(self) -> Arena:
        """Memory shared with the device."""

    @property
    def device_id(self) -> int:
        """The device type on the other side."""

    @property
    def num_queues(self) -> int:
        """How many virtqueues the device has, as far as the carrier tells."""

    @property
    def admin_queues(self) -> range:
        """The indices of the administration virtqueues (2.14), where the carrier has VIRTIO_F_ADMIN_VQ."""
        return range(0)

    @property
    def config_notifications(self) -> int:
        """How many configuration change notifications have arrived so far."""

    def device_features(self) -> int: ...
    def accept_features(self, features: int) -> None: ...
    def read_status(self) -> int: ...
    def write_status(self, value: int) -> None: ...
    def read_config(self, offset: int, length: int) -> bytes: ...
    def write_config(self, offset: int, data: bytes) -> None: ...
    def config_generation(self) -> int: ...

    def max_queue_size(self, index: int) -> int:
        """The largest size of a queue, 0 if the device does not have it."""

    def enable_queue(self, queue: DriverQueue) -> None:
        """Tells the device where the queue's areas are, and enables it."""

    def reset_queue(self, index: int) -> None:
        """Resets one queue (VIRTIO_F_RING_RESET) and returns when the device has confirmed it."""

    def available_buffer(self, index: int, data: int) -> None:
        """Sends an available buffer notification; `data` is that of VIRTIO_F_NOTIFICATION_DATA."""

    def wait(self, timeout: float) -> None:
        """Returns when a notification may have arrived, or after `timeout` seconds."""

    def close(self) -> None:
        """Lets go of the carrier."""


@define(eq=False)
class Exchange:
    """A request of `Driver.transact` that is under way: its memory, and the used length once it is answered.

    overdue: nobody waits for the answer any more
    """

    buffers: list[Buffer]
    length: int | None = field(default=None, init=False)
    overdue: bool = field(default=False, init=False)


class Driver:
    """A driver for one device. A subclass names its device, its features and its queues, and adds requests.

    device_id: the device type it drives; known_features: mask of its device-type features it can use;
    feature_needs: which of them need which others; needed_features: mask without which it cannot run.
    timeout: seconds that an answer is waited for where nobody says anything else, see `within`
    """

    device_id: ClassVar[DeviceId]
    known_features: ClassVar[int] = 0
    feature_needs: ClassVar[FeatureNeeds] = {}
    needed_features: ClassVar[int] = bit(Feature.VERSION_1)

    def __init__(
        self,
        transport: Transport,
        *,
        engine: Engine = REFERENCE,
        features: int | None = None,
        queue_size: int = 256,
    ) -> None:
        """features: mask to accept at most; all that are known and offered by default."""
        self.transport = transport
        self.engine = engine
        self.timeout = 5.0
        self.wanted = (self.known_features | RING_FEATURES | PLATFORM_FEATURES) if features is None else features
        self.queue_size = queue_size
        self.offered = 0
        self.features = 0
        self.queues: list[DriverQueue] = []
        self.admin_queues: list[DriverQueue] = []
        self._config_heard = 0
        self._asleep = False
        # What the device may still write to: a request that timed out keeps its memory until its answer, or a reset.
        self._lent: list[Buffer] = []
        self._exchanges: dict[int, list[Exchange]] = {}
        self._early: dict[int, list[tuple[Any, int]]] = {}
        self._deadline: float | None = None

    # What a subclass fills in

    def queue_count(self) -> int:
        """How many queues to set up; may read the configuration, the features are settled."""
        return self.transport.num_queues

    def started(self) -> None:
        """DRIVER_OK is set: post receive buffers, ask the device for its details."""

    # The initialisation sequence (3.1.1), a table in `status`

    def start(self) -> Self:
        """Runs the sequence. Raises NegotiationError, with FAILED set, if the device cannot be used."""
        try:
            for step in INITIALISATION:
                getattr(self, step.method)()
                if step.status and not (self.transport.legacy_page and step.status == DeviceStatus.FEATURES_OK):
                    self.transport.write_status(self.transport.read_status() | step.status)
        except PeerError:
            self.fail()
            raise
        self._kick_all()
        self.started()
        return self

    def reset(self) -> None:
        """Resets the device and waits until the status reads 0; queues of an earlier start are given back."""
        self.transport.write_status(0)
        self.await_status(0)
        for queue in self.queues + self.admin_queues:
            queue.release()
        self.queues, self.admin_queues = [], []
        self._asleep = False
        self._give_back(list(self._lent))
        self._exchanges.clear()
        self._early.clear()

    def await_status(self, wanted: int, timeout: float = 5.0) -> None:
        """Waits until the device status reads `wanted`. Raises NegotiationError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (status := self.transport.read_status()) != wanted:
            if wanted and status & DeviceStatus.DEVICE_NEEDS_RESET:
                raise NeedsReset("the device has set DEVICE_NEEDS_RESET")
            if time.monotonic() > deadline:
                raise NegotiationError(f"the device status does not become {wanted:#x}")
            self.transport.wait(0.001)

    def acknowledge(self) -> None:
        """Step 2: the device has been noticed."""

    def check_device(self) -> None:
        """Step 3: we know how to drive it."""
        if self.transport.device_id != self.device_id:
            raise NegotiationError(f"device type {self.transport.device_id} is not {self.device_id.name}")

    def negotiate(self) -> None:
        """Step 4: the offer, less what is not known, not wanted, or lacks something that it needs."""
        self.offered = self.transport.device_features()
        # VERSION_1 must be accepted when it is offered, whatever the caller wanted; and so must ANY_LAYOUT of old.
        legacy = bool(self.transport.legacy_page)
        chosen = self.offered & (self.wanted | bit(Feature.ANY_LAYOUT if legacy else Feature.VERSION_1))
        while missing := missing_needs(chosen, self.feature_needs):
            chosen &= ~bit(missing[0][0])
        needed = self.needed_features & LEGACY_FEATURES if legacy else self.needed_features
        if lacking := needed & ~chosen:
            raise NegotiationError(f"features {lacking:#x} are not offered", clause="features.driver.feature-bits.7")
        self.features = chosen
        self.transport.accept_features(chosen)

    def features_chosen(self) -> None:
        """Step 5: FEATURES_OK is about to be written."""

    def check_features_ok(self) -> None:
        """Step 6: a device that does not keep FEATURES_OK cannot be used with our choice. A legacy one has none."""
        if not self.transport.legacy_page and not self.transport.read_status() & DeviceStatus.FEATURES_OK:
            raise NegotiationError(
                f"the device refuses features {self.features:#x}", clause="basic.driver.device-initialization.2"
            )

    def set_up(self) -> None:
        """Step 7: the queues, administration virtqueues included."""
        for index in range(self.queue_count()):
            self.queues.append(self._enabled_queue(index, self.queue_size))
        if self.has(Feature.ADMIN_VQ):
            self.admin_queues = [self._enabled_queue(index, self.queue_size) for index in self.transport.admin_queues]

    def _enabled_queue(self, index: int, wanted: int) -> DriverQueue:
        size = self.transport.max_queue_size(index)
        if not self.transport.fixed_queue_sizes:
            size = min(size, wanted)
        if size == 0:
            raise NegotiationError(f"the device does not have queue {index}", queue=index)
        if not self.has(Feature.RING_PACKED):
            # A split queue's size is a power of 2, even if the device's limit is none.
            size = 1 << size.bit_length() - 1
        queue = DriverQueue(
            index, size, self.transport.arena, self.features, self.engine, page=self.transport.legacy_page
        )
        self.transport.enable_queue(queue)
        return queue

    def restart_queue(self, index: int, size: int | None = None) -> DriverQueue:
        """A queue reset, and the queue set up anew (2.6.1), of another size if wanted; its buffers are ours again.

        Raises UsageError if VIRTIO_F_RING_RESET was not negotiated.
        """
        if not self.has(Feature.RING_RESET):
            raise UsageError("VIRTIO_F_RING_RESET was not negotiated")
        self.transport.reset_queue(index)
        self.queues[index].release()
        for exchange in self._exchanges.pop(index, []):
            self._give_back(exchange.buffers)
        self._early.pop(index, None)
        self.queues[index] = self._enabled_queue(index, self.queue_size if size is None else size)
        return self.queues[index]

    def suspend(self, timeout: float = 5.0) -> None:
        """Suspends the device (3.4) and waits until it is: until `resume` nothing may be added, kicked or configured.

        Raises UsageError if VIRTIO_F_SUSPEND was not negotiated, NeedsReset, or NegotiationError after `timeout`.
        """
        if not self.has(Feature.SUSPEND):
            raise UsageError("VIRTIO_F_SUSPEND was not negotiated")
        status = self.transport.read_status()
        self._suspended(True)
        self.transport.write_status(status | DeviceStatus.SUSPEND)
        self.await_status(status & ~DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND, timeout)

    def resume(self, timeout: float = 5.0) -> None:
        """Lets a suspended device go on, and waits until it does; then tells it of all queues. Raises as `suspend`."""
        status = self.transport.read_status() & ~DeviceStatus.SUSPEND | DeviceStatus.DRIVER_OK
        self.transport.write_status(status | DeviceStatus.SUSPEND)
        self.await_status(status, timeout)
        self._suspended(False)
        self._kick_all()

    def _check_awake(self) -> None:
        if self._asleep:
            raise UsageError("the device is suspended")

    def _suspended(self, asleep: bool) -> None:
        self._asleep = asleep
        for queue in self.queues:
            queue.closed = asleep

    def ready(self) -> None:
        """Step 8: DRIVER_OK is about to be written."""

    def _kick_all(self) -> None:
        for queue in self.queues + self.admin_queues:
            self.kick(queue)

    def fail(self) -> None:
        """Tells the device that we have given up on it (FAILED), if it is there to hear it."""
        with contextlib.suppress(Disconnected):
            self.transport.write_status(self.transport.read_status() | DeviceStatus.FAILED)

    def has(self, feature: int) -> bool:
        """Whether a feature bit was negotiated."""
        return bool(self.features >> feature & 1)

    # Requests

    def kick(self, queue: DriverQueue) -> None:
        """Sends an available buffer notification if the device asks for one. Raises UsageError while suspended."""
        self._check_awake()
        if queue.needs_notification():
            self.transport.available_buffer(queue.index, queue.notification_data)

    def read_config_bytes(self, offset: int, length: int) -> bytes:
        """Part of the configuration space, read again until the generation stood still (2.5.1). Raises PeerError if it
        never does: a device that changes it for ever must not keep us here."""
        for _ in range(CONFIG_READS):
            before = self.transport.config_generation()
            data = self.transport.read_config(offset, length)
            if self.transport.config_generation() == before:
                return data
        raise PeerError(f"the configuration changed during each of {CONFIG_READS} reads")

    def write_config_bytes(self, offset: int, data: bytes) -> None:
        """Stores to the configuration space. Raises UsageError while the device is suspended."""
        self._check_awake()
        self.transport.write_config(offset, data)

    def config_changed(self) -> bool:
        """Whether a configuration change notification has arrived since this was last asked."""
        heard, self._config_heard = self._config_heard, self.transport.config_notifications
        return heard != self._config_heard

    @contextlib.contextmanager
    def within(self, timeout: float | None) -> Iterator[None]:
        """Gives all that is done in the block `timeout` seconds together; None changes nothing.

        A block inside a block cannot prolong it. Time spent elsewhere counts, and ends nothing by itself: what waits
        for an answer raises TimedOut."""
        before = self._deadline
        if timeout is not None:
            self._deadline = self.deadline(timeout)
        try:
            yield
        finally:
            self._deadline = before

    def deadline(self, timeout: float | None) -> float:
        """Until when to wait, in the seconds of time.monotonic: `timeout` from now, or what `within` leaves of it."""
        if timeout is None:
            return time.monotonic() + self.timeout if self._deadline is None else self._deadline
        return min(time.monotonic() + timeout, float("inf") if self._deadline is None else self._deadline)

    def wait_used(self, queue: DriverQueue, count: int = 1, timeout: float | None = None) -> list[tuple[Any, int]]:
        """Waits for `count` used buffers: (token, used length in bytes) each. Raises NeedsReset, or PeerError with
        FAILED set if the device broke its ring, or TimedOut after `timeout` seconds: the next call has what came."""
        deadline = self.deadline(timeout)
        done: list[tuple[Any, int]] = []
        while True:
            done += self._take_used(queue)
            if len(done) >= count:
                return done
            try:
                self._check_alive(deadline)
            except TimedOut:
                self._early[queue.index] = done
                raise
            self._pause(queue, deadline)

    def _pause(self, queue: DriverQueue, deadline: float) -> None:
        if not queue.enable_notifications():
            self.transport.wait(max(0.0, min(0.05, deadline - time.monotonic())))

    def _take_used(self, queue: DriverQueue) -> list[tuple[Any, int]]:
        try:
            used = queue.take_used()
        except PeerError:
            self.fail()
            raise
        if self._exchanges.get(queue.index):
            used = [answer for answer in used if not self._answered(queue, *answer)]
        return self._early.pop(queue.index, []) + used if self._early else used

    def _answered(self, queue: DriverQueue, token: Any, length: int) -> bool:
        """Whether it is the answer to one of `transact`, that waits for it or does so no more."""
        if not isinstance(token, Exchange):
            return False
        token.length = length
        self._exchanges[queue.index].remove(token)
        if token.overdue:
            self._give_back(token.buffers)
        return True

    def _check_alive(self, deadline: float) -> None:
        if self.transport.read_status() & DeviceStatus.DEVICE_NEEDS_RESET:
            raise NeedsReset("the device has set DEVICE_NEEDS_RESET")
        if time.monotonic() > deadline:
            raise TimedOut("the device did not use the buffer in time")

    def transact(
        self, queue: DriverQueue, readable: Sequence[bytes], writable: Sequence[int], timeout: float | None = None
    ) -> tuple[list[bytes], int]:
        """One request, start to end: sends the readable parts, returns the writable ones (of these sizes, in bytes)
        and the used length. But for requests that timed out, the queue must be idle. Raises as `wait_used`."""
        self._check_awake()
        if late := self._exchanges.get(queue.index):
            self._early[queue.index] = self._take_used(queue)
        if queue.outstanding > len(late or ()) or self._early.get(queue.index):
            raise UsageError(f"queue {queue.index} has buffers outstanding")
        sent = [self._filled(part) for part in readable]
        received = [self._borrow(size) for size in writable]
        token = Exchange(sent + received)
        queue.add([b.extent for b in sent], [b.extent for b in received], token)
        self._exchanges.setdefault(queue.index, []).append(token)
        self.kick(queue)
        length = self._await_answer(queue, token, self.deadline(timeout))
        answers = [bytes(b.view) for b in received]
        self._give_back(token.buffers)
        return answers, length

    def _await_answer(self, queue: DriverQueue, token: Exchange, deadline: float) -> int:
        try:
            while True:
                # Nothing but answers to `transact` can come here, and these are not returned.
                self._take_used(queue)
                if token.length is not None:
                    return token.length
                self._check_alive(deadline)
                self._pause(queue, deadline)
        finally:
            token.overdue = token.length is None

    def _borrow(self, size: int) -> Buffer:
        buffer = self.transport.arena.allocate(size)
        self._lent.append(buffer)
        return buffer

    def _filled(self, part: bytes) -> Buffer:
        buffer = self._borrow(len(part))
        buffer.view[:] = part
        return buffer

    def _give_back(self, buffers: list[Buffer]) -> None:
        self.transport.arena.free(*buffers)
        for buffer in buffers:
            self._lent.remove(buffer)
