"""What a vhost-user back-end knows of one front-end: its memory, its rings, its features, and the device behind them.

vhost-user has a status message, but few front-ends send it. Without it this adapter, never the device, infers what
the driver must have done: a ring that is described, started and enabled can only belong to a driver that has set
DRIVER_OK. And a front-end that begins anew (other features; positions that are not where we stopped; rings switched
off with no question where they stand) has had its driver reset the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol

from attrs import define, field

from virtio_py.device import Device, DeviceEnd
from virtio_py.errors import MemoryFault, MessageError, NegotiationError, PeerError
from virtio_py.memory import DirtyLog, GuestMemory
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.half import Extent
from virtio_py.rings.queue import QueueConfig
from virtio_py.rings.write_log import WriteLog
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.status import RING_FEATURES
from virtio_py.transports.vhost_user_inflight import Inflight, Sealed
from virtio_py.transports.vhost_user_iotlb import Iotlb, forget_when_idle, missed, use_memory
from virtio_py.transports.vhost_user_log import Logging
from virtio_py.transports.vhost_user_memory import Mapper, MemoryTable
from virtio_py.transports.vhost_user_messages import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    BackendRequest,
    Message,
    ProtocolFeature,
    vhost_vring_state,
)
from virtio_py.transports.vhost_user_state import Direction, State, go_on
from virtio_py.transports.vhost_user_vring import FIRST_FLAGS_OFFSET, USED_INDEX_OFFSET, Vring, base_of

PROTOCOL_FEATURES: Final = mask(
    ProtocolFeature.MQ,
    ProtocolFeature.LOG_SHMFD,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
    ProtocolFeature.DEVICE_STATE,
)
"""What a back-end offers unless it is told otherwise, besides MTU and RARP where there is a network.
INBAND_NOTIFICATIONS is served too, but some front-ends take it whenever it is offered, and a message is a slow
kick."""

_NOT_VIRTIO: Final = mask(F_LOG_ALL, F_PROTOCOL_FEATURES)
_NEGOTIATED: Final = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK


class Shell(Mapper, Sealed, Protocol):
    """What the protocol needs from the world. None of these may block."""

    def close(self, fd: int) -> None:
        """Closes a descriptor that came with a message."""

    def watch(self, index: int, fd: int | None) -> None:
        """From now on, call `kicked(index)` when `fd` becomes readable; None: nothing more is watched for this ring.
        Raises MessageError for a descriptor that cannot be watched."""

    def check_event(self, fd: int) -> None:
        """Raises MessageError for a descriptor that `signal` could not be used with."""

    def signal(self, fd: int) -> None:
        """Adds 1 to an event: a used buffer notification, or an error, of one ring."""

    def dirty_log(self, fd: int, size: int, offset: int) -> DirtyLog:
        """A bitmap that is the bytes [offset, offset + size) of a file; others set and clear bits of it meanwhile.
        `fd` stays the caller's. Raises MessageError as `map` does."""

    def check_channel(self, fd: int) -> None:
        """Raises MessageError for a descriptor that `send` could not be used with."""

    def send(self, fd: int, message: bytes) -> None:
        """Sends a request of ours. One that waits to be sent already need not be sent twice."""

    def save(self, fd: int, state: bytes) -> None:
        """Begins to write a device's state to a pipe, as its other end takes it; `fd` is the shell's from now on. What
        was moved before is given up. Raises MessageError, with `fd` the caller's, if that cannot be."""

    def load(self, fd: int, limit: int) -> None:
        """Begins to read a state, of at most `limit` bytes, from a pipe. Otherwise as `save`."""

    def transferred(self) -> bytes | None:
        """The state, if all of it was moved by now, else None. Either way there is nothing more to be moved."""

    def lend(self, size: int) -> None:
        """Sends a new sealed file of so many zero bytes beside the reply that is about to be made. Raises MessageError
        if there is none to be had."""

    def log(self, line: str) -> None:
        """One line for whoever looks after the back-end."""


@define(eq=False)
class Session:
    """One front-end's session with a device. It is its end's notifier.

    protocol_offered: mask of ProtocolFeatures; ring_features: mask, as for DeviceEnd; features: what SET_FEATURES
    gave last; layout_known: whether it has come since the last RESET_DEVICE; protocol: what SET_PROTOCOL_FEATURES
    gave; channel: the descriptor for requests of ours, or None; beside: where rings that are due are handed to, to be
    served by others (`DeviceEnd.serve_beside`), or None; moving: which way a state of the device is being moved;
    loaded: one that came, until a ring is in service; logging: what is written down for a migration.
    """

    device: Final[Device]
    shell: Final[Shell]
    engine: Final[Engine] = REFERENCE
    protocol_offered: Final[int] = PROTOCOL_FEATURES
    ring_features: Final[int] = RING_FEATURES
    end: DeviceEnd = field(init=False)
    rings: list[Vring] = field(init=False)
    table: MemoryTable = field(init=False, factory=MemoryTable)
    iotlb: Iotlb = field(init=False, factory=Iotlb)
    inflight: Inflight = field(init=False, factory=Inflight)
    features: int = field(init=False, default=0)
    layout_known: bool = field(init=False, default=False)
    protocol: int = field(init=False, default=0)
    channel: int | None = field(init=False, default=None)
    beside: Callable[[int], None] | None = field(init=False, default=None)
    moving: Direction | None = field(init=False, default=None)
    loaded: State | None = field(init=False, default=None)
    logging: Logging = field(init=False)
    _due: dict[int, None] = field(init=False, factory=dict)
    _anew: bool = field(init=False, default=True)
    _config_news: bool = field(init=False, default=False)
    _told: PeerError | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.end = DeviceEnd(
            self.device, GuestMemory(()), self, self.engine, self.ring_features, missed=partial(missed, self)
        )
        self.rings = [Vring(i) for i in range(self.end.num_queues)]
        self.logging = Logging(self._tell_log, self._resolve)

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether a protocol feature was acknowledged."""
        return bool(self.protocol >> feature & 1)

    @property
    def features_offered(self) -> int:
        """What GET_FEATURES answers: the device's features, and those that are the protocol's."""
        logs = self.protocol_offered >> ProtocolFeature.LOG_SHMFD & 1
        return self.end.device_features | bit(F_PROTOCOL_FEATURES) | logs << F_LOG_ALL

    # The driver, as far as messages tell

    def set_features(self, features: int) -> None:
        """SET_FEATURES. Under running rings only what is not virtio's may change; all else is a driver that begins
        anew. Raises NegotiationError for bits that were not offered."""
        if extra := features & ~self.features_offered:
            raise NegotiationError(f"features {extra:#x} were not offered", clause="features.driver.feature-bits.1")
        changed = (features ^ self.features) & ~_NOT_VIRTIO
        if changed or self.end.fault is not None or self._switched_off():
            self.restart()
        was, self.features, self.layout_known = self.translating, features, True
        if was != self.translating:
            use_memory(self)
        self.log_writes(self.logging.pages)
        if self._anew and not self.has(ProtocolFeature.STATUS):
            # If these cannot be served the front-end hears of it when it starts a ring: some send a first, empty set.
            self._negotiate()
        if not features & bit(F_PROTOCOL_FEATURES):
            for ring in self.rings:
                self.enable(ring)

    def _switched_off(self) -> bool:
        # User Mode Linux, when its driver goes, disables the rings and never asks where they stand.
        return any(r.suspended for r in self.rings) and not any(r.active for r in self.rings)

    def restart(self) -> None:
        """The driver has reset the device: all rings are stopped and forgotten, only memory and events stay."""
        for ring in self.rings:
            self.halt(ring)
            ring.forget()
        self.inflight.forget()
        self._anew = True
        if self.end.read_status() & (DeviceStatus.FEATURES_OK | DeviceStatus.DEVICE_NEEDS_RESET):
            self.end.reset()

    def set_status(self, status: int) -> None:
        """SET_STATUS. Rings become active with DRIVER_OK, and those already described do so before it."""
        if status == 0:
            self.loaded = None
            self.restart()
            self.end.reset()
            return
        had = self.end.read_status()
        if status & ~had & DeviceStatus.FEATURES_OK:
            self.end.accept_features(self.features & ~_NOT_VIRTIO)
        self.end.write_status(status & ~DeviceStatus.DRIVER_OK)
        if status & ~had & DeviceStatus.FEATURES_OK:
            go_on(self)
        if status & ~had & DeviceStatus.DRIVER_OK and self.end.read_status() & DeviceStatus.FEATURES_OK:
            for ring in self.rings:
                self.activate_ready(ring)
            self.end.write_status(status)

    def _negotiate(self) -> None:
        """What the driver must have done before it set up rings (3.1.1), where no status message tells: a device that
        begins anew is reset and given the features, so that its configuration is what the driver is to see."""
        self.end.reset()
        self.inflight.forget()
        for ring in self.rings:
            ring.active = False
        self.end.write_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
        self.end.accept_features(self.features & ~_NOT_VIRTIO)
        self.end.write_status(_NEGOTIATED)
        go_on(self)
        self._anew = not self.end.read_status() & DeviceStatus.FEATURES_OK

    # Rings

    def enable(self, ring: Vring) -> None:
        """SET_VRING_ENABLE 1, or what makes it needless."""
        ring.enabled = True
        self.settle(ring)

    def settle(self, ring: Vring) -> None:
        """Puts a ring in service if all is known and said that it takes. Raises PeerError if that cannot be done."""
        if ring.active or not ring.ready:
            return
        if self.has(ProtocolFeature.STATUS):
            if self.end.read_status() & DeviceStatus.DRIVER_OK:
                self.activate_ready(ring)
            return
        moved = ring.left is not None and ring.left != ring.base and not any(r.active for r in self.rings)
        if self._anew or moved or self.end.fault is not None:
            self._negotiate()
        if self._anew:
            raise NegotiationError(f"features {self.features:#x} cannot be served")
        self.activate_ready(ring)
        self.end.write_status(_NEGOTIATED | DeviceStatus.DRIVER_OK)

    def _activate(self, ring: Vring) -> None:
        config = self.end.queue(ring.index)
        config.size = ring.size
        config.descriptor_area = self._address(ring.addresses.desc_user_addr)
        config.driver_area = self._address(ring.addresses.avail_user_addr)
        config.device_area = self._address(ring.addresses.used_user_addr)
        config.state = ring.position(self.end.features, self._seen(config))
        if ring.left not in (None, ring.base):
            self.inflight.forget(ring.index)
        self.inflight.attach(config, self.end.features, self.end.memory)
        log = self._log(ring, self.logging.pages)
        self.end.enable_queue(ring.index)
        self._note(ring.index, log)
        ring.active, ring.suspended = True, False
        self.loaded = None
        # There may be buffers from before, for which no kick will come; and used ones, of which nobody has told.
        self.due(ring.index)
        if config.tracker is not None and (queue := self.end.active_queue(ring.index)):
            queue.remind()
        if self._config_news:
            self.configuration_change()

    def _address(self, user_address: int) -> int:
        # With an IOMMU they are I/O addresses, which are what the end's memory is in.
        return user_address if self.translating else self.table.translate(user_address)

    def _seen(self, config: QueueConfig) -> int:
        packed = self.end.features & bit(Feature.RING_PACKED)
        at = config.descriptor_area + FIRST_FLAGS_OFFSET if packed else config.device_area + USED_INDEX_OFFSET
        try:
            return int.from_bytes(self.end.memory.read(at, 2), "little")
        except MemoryFault as fault:
            fault.access = at, 2, True
            raise

    def suspend(self, ring: Vring) -> None:
        """Takes a ring out of service. `base` is where it stands; everything else it needs to go on is kept."""
        self.iotlb.waiting.pop(ring.index, None)
        if ring.active:
            ring.left = ring.base = base_of(self.end.features, self.end.stop_queue(ring.index))
            ring.active, ring.suspended = False, True
            self._due.pop(ring.index, None)

    def halt(self, ring: Vring) -> None:
        """Stops a ring: it takes a new kick (a descriptor, or one in band) to start it."""
        self.suspend(ring)
        forget_when_idle(self)
        ring.suspended = ring.started = ring.polled = False
        self.replace_kick(ring, None)

    def replace_kick(self, ring: Vring, fd: int | None) -> None:
        """Watches another kick descriptor, or none. Raises MessageError, with the old one gone."""
        if ring.kick is not None:
            self.shell.watch(ring.index, None)
            self.shell.close(ring.kick)
            ring.kick = None
        if fd is not None:
            self.shell.watch(ring.index, fd)
            ring.kick = fd

    def log_writes(self, pages: DirtyLog | None) -> None:
        """Has the running queues note what they write in this bitmap, as far as the messages ask for it. Raises
        MessageError, with all as before, if it is too small for a ring."""
        logs = {ring.index: self._log(ring, pages) for ring in self.rings if ring.active}
        for index, log in logs.items():
            self._note(index, log)
        self.logging.pages = pages

    def _note(self, index: int, log: WriteLog | None) -> None:
        # Absent if the device has needed a reset meanwhile.
        if queue := self.end.active_queue(index):
            queue.log = log

    def _log(self, ring: Vring, pages: DirtyLog | None) -> WriteLog | None:
        return self.logging.of_queue(pages, self.features, ring.addresses, self.end.queue(ring.index))

    def _resolve(self, extent: Extent) -> Iterable[Extent]:
        """The guest's addresses of what was written. Where a mapping has gone since, it may have been anywhere."""
        if not self.translating:
            return [extent]
        users = self.iotlb.space.targets(*extent)
        if sum(length for _, length in users) < extent[1]:
            return [(region.guest_address, region.size) for region in self.table.regions]
        return [part for user in users for part in self.table.guest_extents(*user)]

    def _tell_log(self) -> None:
        if self.logging.event is not None:
            self.shell.signal(self.logging.event)

    # Work

    def due(self, index: int) -> None:
        """The ring is to be served."""
        self._due[index] = None

    def serve(self) -> bool:
        """Serves every ring that is due, one budget each. True if something is left to do."""
        turn, self._due = list(self._due), {}
        for index in turn:
            if not self.rings[index].active or index in self.iotlb.waiting:
                continue
            if self.beside is not None:
                self.beside(index)
            elif self.end.available_buffer(index):
                self.due(index)
        self._tell_fault()
        return bool(self._due)

    def _tell_fault(self) -> None:
        fault = self.end.fault
        if fault is self._told:
            return
        self._told = fault
        if fault is not None:
            self.shell.log(f"the device needs a reset: {fault}")
            for ring in self.rings:
                if fault.queue in (None, ring.index):
                    self._notify(ring.err, BackendRequest.VRING_ERR, ring.index)

    def replace_table(self, change: Callable[[], MemoryTable]) -> None:
        """Puts the table that `change` makes in the place of the old one, which stays if anything raises PeerError."""
        table = change()
        if not self.translating:
            self.end.replace_memory(table.memory)
        self.table = table
        self.iotlb.retarget(table.user_memory)
        if self.translating:
            use_memory(self)

    @property
    def translating(self) -> bool:
        """Whether rings and descriptors hold I/O addresses."""
        return bool(self.features >> Feature.ACCESS_PLATFORM & 1)

    def activate_ready(self, ring: Vring) -> None:
        """Puts a ring in service if all is known that it takes; one whose I/O addresses are not mapped waits."""
        if ring.active or not ring.ready:
            return
        try:
            self._activate(ring)
        except MemoryFault as fault:
            fault.queue = ring.index
            if not missed(self, fault):
                raise

    def close(self) -> None:
        """The front-end is gone: resets the device, closes every descriptor, lets go of the memory."""
        # It may come back, with what was inflight: that is not to be forgotten, as it is when a driver resets.
        self.inflight.replace(None)
        self.restart()
        self.end.reset()
        self.end.replace_memory(GuestMemory(()))
        self.table, self.iotlb, self._told = MemoryTable(), Iotlb(), None
        for ring in self.rings:
            self.replace_event(ring, "call", None)
            self.replace_event(ring, "err", None)
        self.replace_event(self.logging, "event", None)
        self.logging.pages = None
        self.replace_channel(None)

    def replace_event(self, holder: Vring | Logging, name: str, fd: int | None) -> None:
        """Another descriptor to signal: name is a ring's "call" or "err", or the log's "event". Raises MessageError,
        with the old one kept."""
        if fd is not None:
            self.shell.check_event(fd)
        old: int | None = getattr(holder, name)
        setattr(holder, name, fd)
        if old is not None:
            self.shell.close(old)

    def replace_channel(self, fd: int | None) -> None:
        """Another channel for our requests. Raises MessageError, with the old one kept."""
        if fd is not None:
            self.shell.check_channel(fd)
        old, self.channel = self.channel, fd
        if old is not None:
            self.shell.close(old)

    # Notifier

    def used_buffer(self, queue_index: int) -> None:
        """By the ring's call descriptor, or in band; a front-end that gave neither polls."""
        self._notify(self.rings[queue_index].call, BackendRequest.VRING_CALL, queue_index)

    def _notify(self, fd: int | None, request: BackendRequest, index: int) -> None:
        if fd is not None:
            self.shell.signal(fd)
        elif self.channel is not None and self.has(ProtocolFeature.INBAND_NOTIFICATIONS):
            self.shell.send(self.channel, Message(request, 0, vhost_vring_state.encode(index=index)).encode())

    def configuration_change(self) -> None:
        """CONFIG_CHANGE_MSG; while all rings are stopped nothing may be sent, so the news waits for the first."""
        running = any(ring.active for ring in self.rings)
        self._config_news = not running
        if running and self.channel is not None and self.has(ProtocolFeature.CONFIG):
            self.shell.send(self.channel, Message(BackendRequest.CONFIG_CHANGE_MSG).encode())


def ring_of(session: Session, index: int) -> Vring:
    """The ring with this index. Raises MessageError if the device does not have it."""
    if not 0 <= index < len(session.rings):
        raise MessageError(f"there is no ring {index}, only {len(session.rings)}")
    return session.rings[index]
