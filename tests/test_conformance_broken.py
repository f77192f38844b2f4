"""Devices that are broken on purpose, each in one way: the suite finds it, and names the clause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from attrs import frozen

from tests.test_conformance import RING, disk
from virtio_py.device import Device
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.layout import BlkFeature, BlkRequest, virtio_blk_config, virtio_blk_req
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.layout import CONTROL_TRANSMITQ, ConsoleEvent
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.net.control_layout import CtrlClass
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import virtio_net_hdr
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.devices.net.reception import Reception
from virtio_py.devices.net.rss import PacketHash
from virtio_py.devices.scsi.device import ScsiDevice
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.layout import ScsiResponse, virtio_scsi_resp_cmd
from virtio_py.driver import Transport
from virtio_py.rings.chain import Chain
from virtio_py.rings.layouts import virtq_desc, virtq_used, virtq_used_elem
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.testing.conformance import Outcome, run
from virtio_py.transports.in_process import InProcess

# Devices


class Broken(BlkDevice):
    """A disk; what is wrong with it says the class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(MemoryMedium.of(1 << 20), **options)


class WritesToReadable(Broken):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        last = chain.readable.views()[-1]
        super().handle(queue, chain)
        last[-1] ^= 0xFF


class WritesBeside(Broken):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        end = sum(chain.extents[-1]) if chain.extents else 0
        super().handle(queue, chain)
        if end:
            queue.memory.write(end, b"!")


class WritesToTheTable(Broken):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if queue.layout == "split":
            queue.memory.write(queue.areas[0] + virtq_desc.size * chain.id + virtq_desc.offset("len"), b"\7")
        super().handle(queue, chain)


class WantsAHeaderOfItsOwn(Broken):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        views = chain.readable.views()
        if views and len(views[0]) != virtio_blk_req.size:
            chain.writable.split_tail(1).write(b"\1")
            return
        super().handle(queue, chain)


class ClaimsTooMuch(Broken):
    """The used length is that of all the writable memory, and only the status is written."""

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        views = chain.writable.views()
        kept = [bytes(view) for view in views]
        super().handle(queue, chain)
        for view, data in zip(views[:-1], kept, strict=False):
            view[:] = data


class SwallowsOddCuts(Broken):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        views = chain.readable.views()
        if views and len(views[0]) == 1:
            chain.defer()
            return
        super().handle(queue, chain)


class PaddingNotZero(Broken):
    def read_config(self) -> bytes:
        config = bytearray(super().read_config())
        config[virtio_blk_config.offset("unused0")] = 1
        return bytes(config)


class OffersAReservedBit(Broken):
    def offered_features(self) -> int:
        return super().offered_features() | bit(25)


class ForgetsZeroes(Broken):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if _type_of(chain) == BlkRequest.WRITE_ZEROES:
            chain.writable.split_tail(1).write(b"\0")
            return
        super().handle(queue, chain)


class IgnoresFlags(Broken):
    """Says OK to a segment with any flags."""

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        if _type_of(chain) in (BlkRequest.DISCARD, BlkRequest.WRITE_ZEROES) and any(data[-4:]):
            chain.writable.split_tail(1).write(b"\0")
            return
        super().handle(queue, chain)


class ServesZoneRequests(Broken):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if _type_of(chain) >= BlkRequest.ZONE_APPEND:
            chain.writable.split_tail(1).write(b"\0")
            return
        super().handle(queue, chain)


class ReadOnlyOnlyByName(Broken):
    """Offers VIRTIO_BLK_F_RO, and writes all the same."""

    def offered_features(self) -> int:
        return super().offered_features() & ~mask(11, 13, 14) | bit(BlkFeature.RO)


def _type_of(chain: Chain) -> int:
    data = b"".join(chain.readable.views())
    return int.from_bytes(data[:4], "little")


class Net(NetDevice):
    def __init__(self, **options: Any) -> None:
        super().__init__(LoopbackPort(), pairs=2, **options)


class Miscounting(Reception):
    def _fill(self, chains: list[Chain], packet: Packet, found: PacketHash) -> None:
        first = chains[0].writable.views()[0]
        super()._fill(chains, packet, found)
        first[virtio_net_hdr.offset("num_buffers")] = 7


class CountsBuffersWrong(Net):
    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self.reception = Miscounting(features)


class DropsTaggedFrames(Net):
    def receive(self, packet: Packet) -> bool:
        return True if packet.frame[12:14] == b"\x81\0" else super().receive(packet)


class AddressUnchanged(Net):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        if queue.index in (2, 4) and data[:2] == bytes([CtrlClass.MAC, 1]):
            chain.writable.write(b"\0")
            return
        super().handle(queue, chain)


class Scsi(ScsiDevice):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.attach(0, 0, ScsiDisk(MemoryMedium.of(1 << 20)))


class AnswersForTheAbsent(Scsi):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        if queue.index == 2 and data[1:2] not in (b"\0", b""):
            chain.writable.write(virtio_scsi_resp_cmd.encode(response=ScsiResponse.FAILURE))
            return
        super().handle(queue, chain)


class KeepsItsSizes(Scsi):
    def reset(self) -> None:
        sizes = self._sense_size, self._cdb_size
        super().reset()
        self._sense_size, self._cdb_size = sizes


class AddsAPortTwice(ConsoleDevice):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        super().handle(queue, chain)
        if queue.index == CONTROL_TRANSMITQ and data[4:6] == bytes([ConsoleEvent.DEVICE_READY, 0]):
            self._control._send()
            self._control.say(0, ConsoleEvent.DEVICE_ADD)


class AddsAPortTooMany(ConsoleDevice):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        super().handle(queue, chain)
        if queue.index == CONTROL_TRANSMITQ:
            self._control.say(77, ConsoleEvent.DEVICE_ADD)


# Carriers: what is broken belongs to a device, but is its end's to get right


class Carrier(InProcess):
    """A device in process whose end is broken; what is wrong with it says the class."""

    def __init__(self, device: Device | None = None) -> None:
        super().__init__(disk() if device is None else device, ring_features=RING)


class NeverNotifies(Carrier):
    def used_buffer(self, queue_index: int) -> None:
        """It would."""


class KeepsItsFaultsToItself(Carrier):
    def configuration_change(self) -> None:
        """It would."""


class BeginsTooEarly(Carrier):
    def write_status(self, value: int) -> None:
        super().write_status(value | (DeviceStatus.DRIVER_OK if value & DeviceStatus.FEATURES_OK else 0))

    def available_buffer(self, index: int, data: int) -> None:
        super().available_buffer(index, data)

    def wait(self, timeout: float) -> None:
        for index in range(self.num_queues):
            self.end.serve_queue(index)
        super().wait(timeout)


class StatusIsNeverZero(Carrier):
    def read_status(self) -> int:
        return super().read_status() | DeviceStatus.ACKNOWLEDGE


class TakesAnyFeatures(Carrier):
    def accept_features(self, features: int) -> None:
        super().accept_features(features & self.device_features())


class RemembersAQueue(Carrier):
    """A queue that is set up anew goes on where it stood."""

    def reset_queue(self, index: int) -> None:
        state = self.end.stop_queue(index)
        super().reset_queue(index)
        self.end.queue(index).state = state


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


class SetsUsedFlags(Carrier):
    """The flags of the used ring have a bit that nobody knows (split)."""

    def step(self) -> bool:
        more = super().step()
        queue = self.end.active_queue(0)
        if queue is not None and queue.layout == "split":
            queue.memory.write(queue.areas[2] + virtq_used(queue.size).offset("flags"), b"\4\0")
        return more


class DiesQuietly(Carrier):
    """What is bad in a ring stops it, and nobody is told."""

    def read_status(self) -> int:
        return super().read_status() & ~DeviceStatus.DEVICE_NEEDS_RESET


# What is found


@frozen
class Case:
    """kind: what it is judged as; clause: that is to be found broken, or not answered any more."""

    kind: str
    make: Callable[[], Device] | type[Carrier]
    clause: str
    outcome: Outcome = Outcome.FAIL

    def connect(self) -> Transport:
        made = self.make()
        return made if isinstance(made, Carrier) else Carrier(made)


CASES: Final = {
    case.make.__name__ if name is None else name: case
    for name, case in (
        (None, Case("blk", WritesToReadable, "split.device.descriptor-table.1")),
        (None, Case("blk", WritesBeside, "packed.device.descriptor-table.1")),
        (None, Case("blk", WritesToTheTable, "split.device.descriptor-table.4")),
        (None, Case("blk", WantsAHeaderOfItsOwn, "split.device.message-framing.1")),
        (None, Case("blk", ClaimsTooMuch, "split.device.used-ring.2")),
        (None, Case("blk", SwallowsOddCuts, "packed.device.scatter-gather-support.1", Outcome.WEDGED)),
        (None, Case("blk", PaddingNotZero, "blk.device.device-init.4")),
        (None, Case("blk", OffersAReservedBit, "features.device.feature-bits.4")),
        (None, Case("blk", ForgetsZeroes, "blk.device.device-op.9")),
        ("IgnoresFlags", Case("blk", IgnoresFlags, "blk.device.device-op.5")),
        ("IgnoresUnmap", Case("blk", IgnoresFlags, "blk.device.device-op.6")),
        (None, Case("blk", ServesZoneRequests, "blk-zoned.device.device-op.1")),
        (None, Case("blk", ReadOnlyOnlyByName, "blk.device.device-op.3")),
        (None, Case("net", CountsBuffersWrong, "net.device.incoming-packets.1")),
        ("CountsMergedBuffersWrong", Case("net", CountsBuffersWrong, "net.device.incoming-packets.2")),
        (None, Case("net", DropsTaggedFrames, "net.device.vlan-filtering.1")),
        (None, Case("net", AddressUnchanged, "net.device.mac-filtering.3")),
        (None, Case("scsi", AnswersForTheAbsent, "scsi.device.request-queues.5")),
        (None, Case("scsi", KeepsItsSizes, "scsi.device.config-layout.1")),
        ("AddsAPortTwice", Case("console", lambda: _console(AddsAPortTwice), "console.device.multiport.1")),
        ("AddsAPortTooMany", Case("console", lambda: _console(AddsAPortTooMany), "console.device.multiport.2")),
        (None, Case("blk", NeverNotifies, "split.device.used-buffer-notification-suppression.3")),
        ("NeverNotifiesEvents", Case("blk", NeverNotifies, "split.device.used-buffer-notification-suppression.5")),
        (None, Case("blk", KeepsItsFaultsToItself, "status.device.device-status-field.3")),
        (None, Case("blk", BeginsTooEarly, "status.device.device-status-field.1")),
        (None, Case("blk", StatusIsNeverZero, "reset.device.device-reset.1")),
        (None, Case("blk", TakesAnyFeatures, "features.device.feature-bits.3")),
        (None, Case("blk", RemembersAQueue, "vq.device.virtqueue-reset.2", Outcome.WEDGED)),
        (None, Case("blk", SuspendsNothing, "basic.device.device-suspend.4")),
        (None, Case("blk", LiesAboutLengths, "split.device.used-ring.2")),
        (None, Case("blk", SetsUsedFlags, "split.device.available-buffer-notification-suppression.1")),
        (None, Case("blk", DiesQuietly, "split.driver.indirect-descriptors.1", Outcome.WEDGED)),
    )
}
"""Each is found by its clause."""


def _console(kind: type[ConsoleDevice]) -> ConsoleDevice:
    return kind([ConsolePort(MemoryEndpoint(), "tty", console=True)], max_ports=4)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_broken_device_is_found(case: Case) -> None:
    verdicts = run(case.connect, case.kind, only=case.clause, patience=0.15, quiet=0.02)
    assert case.outcome in {verdict.verdict for verdict in verdicts if verdict.clause == case.clause}, verdicts


def test_a_sound_device_is_not() -> None:
    for clause in {case.clause for case in CASES.values() if case.kind == "blk"}:
        verdicts = run(Carrier, "blk", only=clause, patience=0.5, quiet=0.02)
        assert not {Outcome.FAIL, Outcome.WEDGED} & {verdict.verdict for verdict in verdicts}, verdicts
