"""Devices whose end is broken: features, status, reset, configuration, notifications, suspending (2.1 to 2.6, 3.4)."""

from __future__ import annotations

from typing import Final

from tests.mutants.registry import Carrier, mutant
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.layout import BlkFeature
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.layout import NetFeature
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.errors import PeerError
from virtio_py.rings.layouts import virtq_used, virtq_used_elem
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceStatus, Feature, bit

_S = DeviceStatus
_SUSPEND: Final = "basic.device.device-suspend"


class Disk(BlkDevice):
    """A sound one, to be broken."""

    def __init__(self) -> None:
        super().__init__(MemoryMedium.of(1 << 20))


# Features


@mutant("net", "features.device.feature-bits.1")
class OffersCtrlRxAlone(NetDevice):
    def __init__(self) -> None:
        super().__init__(LoopbackPort())

    def offered_features(self) -> int:
        return super().offered_features() & ~bit(NetFeature.CTRL_VQ)


@mutant("blk", "features.device.feature-bits.2")
class WantsFlush(Disk):
    def refuse_features(self, features: int) -> str | None:
        return None if features & bit(BlkFeature.FLUSH) else "without FLUSH"


@mutant(
    "blk",
    "features.device.feature-bits.5",
    hard="it was found, as a choice refused (feature-bits.2), and not as one that had been taken before",
)
class TakesAChoiceOnce(Disk):
    taken = 0

    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self.taken += 1

    def refuse_features(self, features: int) -> str | None:
        return "once is enough" if self.taken else None


@mutant("blk", "features.device.reserved-feature-bits.1", Disk)
class IsOfTheOldTimes(Carrier):
    def device_features(self) -> int:
        return super().device_features() & ~bit(Feature.VERSION_1)


# Status and reset


@mutant("blk", "prose.status.read-back", Disk)
class ForgetsTheDriver(Carrier):
    def read_status(self) -> int:
        status = super().read_status()
        return status if status & _S.DRIVER_OK else status & ~_S.DRIVER


@mutant("blk", "status.device.device-status-field.1", Disk)
class NotifiesTooEarly(Carrier):
    def wait(self, timeout: float) -> None:
        if self.end.read_status() & (_S.FEATURES_OK | _S.DRIVER_OK) == _S.FEATURES_OK:
            self.used_buffer(0)
        super().wait(timeout)


@mutant(
    "blk",
    "reset.device.device-reset.1",
    Disk,
    within="status.device.device-status-field.3",
    hard="a reset in operation is good; only one that follows a fault is not, and it is no check of this clause that "
    "makes one: the rig names it, wherever it happens",
)
class NeedsResetForEver(Carrier):
    spoilt = 0

    def read_status(self) -> int:
        self.spoilt |= super().read_status() & _S.DEVICE_NEEDS_RESET
        return super().read_status() | self.spoilt


@mutant("blk", "reset.device.device-reset.2", Disk)
class NotifiesAtAReset(Carrier):
    def write_status(self, value: int) -> None:
        running = self.end.running
        super().write_status(value)
        if running and value == 0:
            self.used_buffer(0)


@mutant("blk", "reset.device.device-reset.2", Disk)
class WritesToTheOldRing(Carrier):
    ring = 0

    def enable_queue(self, queue: DriverQueue) -> None:
        super().enable_queue(queue)
        self.ring = queue.device_area

    def wait(self, timeout: float) -> None:
        if self.ring and self.end.read_status() == 0:
            self.arena.memory.write(self.ring, b"\1\0")
        super().wait(timeout)


@mutant("blk", "config.device.device-configuration-space.1", Disk)
class ConfigurationComesLate(Carrier):
    def read_config(self, offset: int, length: int) -> bytes:
        return super().read_config(offset, length) if self.end.read_status() & _S.FEATURES_OK else bytes(length)


# Queues


@mutant("blk", "vq.device.virtqueue-reset.1", Disk)
class NotifiesForAQueueThatWasReset(Carrier):
    def wait(self, timeout: float) -> None:
        if self.end.running and self.end.active_queue(0) is None:
            self.used_buffer(0)
        super().wait(timeout)


@mutant("blk", "vq.device.virtqueue-re-enable.1", Disk)
class KeepsASize(Carrier):
    def reset_queue(self, index: int) -> None:
        self.kept = self.end.queue(index).size
        super().reset_queue(index)

    def enable_queue(self, queue: DriverQueue) -> None:
        sized = self.end.queue(queue.index)
        super().enable_queue(queue)
        kept = getattr(self, "kept", 0)
        if kept:
            self.end.stop_queue(queue.index)
            sized.size = kept
            self.end.enable_queue(queue.index)


class _Resents(Carrier):
    """Gives up for a notification with nothing behind it."""

    def available_buffer(self, index: int, data: int) -> None:
        queue = self.end.active_queue(index)
        if queue is not None and self.end.running and not queue.enable_notifications():
            self.end.needs_reset(PeerError("a needless notification"))
        super().available_buffer(index, data)


@mutant("blk", "split.device.available-buffer-notification-suppression.5", Disk)
class ResentsANeedlessKick(_Resents):
    """With both layouts, the clause of one."""


@mutant("blk", "packed.device.descriptor-table.3", Disk)
class ResentsANeedlessKickOfAPackedQueue(_Resents):
    """Likewise."""


# Suspending


@mutant("blk", f"{_SUSPEND}.1", Disk)
class SuspendsTooEarly(Carrier):
    early = 0

    def write_status(self, value: int) -> None:
        super().write_status(value)
        self.early = value & _S.SUSPEND if value & (_S.FEATURES_OK | _S.DRIVER_OK) == _S.FEATURES_OK else 0

    def read_status(self) -> int:
        return super().read_status() | self.early


@mutant("blk", f"{_SUSPEND}.3", Disk)
class NotifiesInItsSleep(Carrier):
    def wait(self, timeout: float) -> None:
        if self.end.suspended:
            self.used_buffer(0)
        super().wait(timeout)


@mutant("blk", f"{_SUSPEND}.5", Disk)
class ChangesInItsSleep(Carrier):
    def read_config(self, offset: int, length: int) -> bytes:
        data = super().read_config(offset, length)
        return bytes(length) if self.end.suspended else data


@mutant("blk", f"{_SUSPEND}.8", Disk)
class DoesNotSleep(Carrier):
    def write_status(self, value: int) -> None:
        super().write_status(value & ~_S.SUSPEND)


@mutant("blk", f"{_SUSPEND}.9", Disk)
class SleepsForEver(Carrier):
    def write_status(self, value: int) -> None:
        if value == 0 or not self.end.suspended:
            super().write_status(value)


# What several clauses are about


@mutant("blk", "split.device.used-buffer-notification-suppression.3", Disk)
@mutant("blk", "split.device.used-buffer-notification-suppression.5", Disk, name="NeverNotifiesEvents")
class NeverNotifies(Carrier):
    def used_buffer(self, queue_index: int) -> None:
        """It would."""


@mutant("blk", "status.device.device-status-field.3", Disk)
class KeepsItsFaultsToItself(Carrier):
    def configuration_change(self) -> None:
        """It would."""


@mutant("blk", "status.device.device-status-field.1", Disk)
class BeginsTooEarly(Carrier):
    def write_status(self, value: int) -> None:
        super().write_status(value | (DeviceStatus.DRIVER_OK if value & DeviceStatus.FEATURES_OK else 0))

    def available_buffer(self, index: int, data: int) -> None:
        super().available_buffer(index, data)

    def wait(self, timeout: float) -> None:
        for index in range(self.num_queues):
            self.end.serve_queue(index)
        super().wait(timeout)


@mutant("blk", "reset.device.device-reset.1", Disk)
class StatusIsNeverZero(Carrier):
    def read_status(self) -> int:
        return super().read_status() | DeviceStatus.ACKNOWLEDGE


@mutant("blk", "features.device.feature-bits.3", Disk)
class TakesAnyFeatures(Carrier):
    def accept_features(self, features: int) -> None:
        super().accept_features(features & self.device_features())


@mutant("blk", "vq.device.virtqueue-reset.2", Disk)
class RemembersAQueue(Carrier):
    """A queue that is set up anew goes on where it stood."""

    def reset_queue(self, index: int) -> None:
        state = self.end.stop_queue(index)
        super().reset_queue(index)
        self.end.queue(index).state = state


@mutant("blk", "basic.device.device-suspend.4", Disk)
class SuspendsNothing(Carrier):
    """Says that it is suspended, and serves on."""

    asleep = False

    def write_status(self, value: int) -> None:
        suspend = bool(value & DeviceStatus.SUSPEND and self.end.features & bit(Feature.SUSPEND))
        self.asleep = suspend and not self.asleep and bool(value & DeviceStatus.DRIVER_OK)
        if not suspend:
            super().write_status(value)

    def read_status(self) -> int:
        status = super().read_status()
        return status & ~DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND if self.asleep else status


@mutant("blk", "split.device.used-ring.2", Disk)
class LiesAboutLengths(Carrier):
    """The used length is one byte more than there is room for (split)."""

    def step(self) -> bool:
        more = super().step()
        for index in range(self.num_queues):
            queue = self.end.active_queue(index)
            if queue is not None and queue.layout == "split":
                used = virtq_used(queue.size)
                at = queue.areas[2] + used.offset("ring") + virtq_used_elem.offset("len") + 2
                queue.memory.write(at, b"\x7f")
        return more


@mutant("blk", "split.device.available-buffer-notification-suppression.1", Disk)
class SetsUsedFlags(Carrier):
    """The flags of the used ring have a bit that nobody knows (split)."""

    def step(self) -> bool:
        more = super().step()
        queue = self.end.active_queue(0)
        if queue is not None and queue.layout == "split":
            queue.memory.write(queue.areas[2] + virtq_used(queue.size).offset("flags"), b"\4\0")
        return more


@mutant("blk", "split.driver.indirect-descriptors.1", Disk)
class DiesQuietly(Carrier):
    """What is bad in a ring stops it, and nobody is told."""

    def read_status(self) -> int:
        return super().read_status() & ~DeviceStatus.DEVICE_NEEDS_RESET
