"""What a driver owes a device in features, status and configuration, and the device it: every device type alike."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import pytest
from attrs import define, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_every_carrier import DEVICES, Row
from tests.test_suspend import Echo, EchoDriver
from virtio_py.device import Device, QueueSpec
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.layout import BlkFeature, virtio_blk_config
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.console.layout import ConsoleFeature
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.layout import FEATURE_NEEDS, NetFeature
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.devices.scsi.layout import ScsiFeature
from virtio_py.driver import Driver
from virtio_py.errors import NeedsReset, NegotiationError, RequestError, UsageError, VirtioError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId, DeviceStatus, Feature, bit, mask
from virtio_py.status import RING_FEATURES, missing_needs
from virtio_py.testing.hostile_device import Liar
from virtio_py.testing.strategies import open_feature_sets
from virtio_py.transports.in_process import InProcess

every_device = pytest.mark.parametrize("row", DEVICES.values(), ids=list(DEVICES))
KNOWN: dict[DeviceId, type[IntEnum] | None] = {
    DeviceId.ENTROPY: None,
    DeviceId.BLOCK: BlkFeature,
    DeviceId.NET: NetFeature,
    DeviceId.SCSI: ScsiFeature,
    DeviceId.CONSOLE: ConsoleFeature,
}
VERSION_1 = bit(Feature.VERSION_1)


class Recorder(InProcess):
    """Writes down what the driver does to the device; `offer` stands for the device's offer, where it is given."""

    def __init__(self, device: Device, *, offer: int | None = None, **options: Any) -> None:
        super().__init__(device, memory_size=1 << 20, **options)
        self.offer = offer
        self.log: list[tuple[Any, ...]] = []

    def device_features(self) -> int:
        self.log.append(("offer",))
        return super().device_features() if self.offer is None else self.offer

    def accept_features(self, features: int) -> None:
        self.log.append(("accept", features))
        super().accept_features(features)

    def write_status(self, value: int) -> None:
        self.log.append(("status", value))
        super().write_status(value)

    def read_config(self, offset: int, length: int) -> bytes:
        self.log.append(("read", offset, length))
        return super().read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        self.log.append(("write", offset, data))
        super().write_config(offset, data)

    def available_buffer(self, index: int, data: int) -> None:
        self.log.append(("kick", index))
        super().available_buffer(index, data)

    @property
    def accepted(self) -> int:
        """What the driver accepted last."""
        return [int(entry[1]) for entry in self.log if entry[0] == "accept"][-1]


def disk() -> BlkDevice:
    return BlkDevice(MemoryMedium.of(64 * 512))


def negotiate(carrier: Recorder, driver: Driver) -> int:
    """What the driver accepts of an offer that is not the device's own; the device may refuse it afterwards."""
    driver.negotiate()
    return carrier.accepted


# Features -----------------------------------------------------------------------------------------------------------


@pytest.mark.clause("features.driver.feature-bits.2")
@given(offer=open_feature_sets(mask(*NetFeature), FEATURE_NEEDS))
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_is_accepted_without_what_it_needs(offer: int) -> None:
    """The offer itself lacks something that it should not; the driver's choice never does."""
    carrier = Recorder(NetDevice(LoopbackPort()), offer=offer | VERSION_1)
    chosen = negotiate(carrier, NetDriver(carrier))
    assert missing_needs(chosen, FEATURE_NEEDS) == []
    assert not chosen & ~(offer | VERSION_1)


@pytest.mark.clause("features.driver.feature-bits.3")
@pytest.mark.clause("features.driver.reserved-feature-bits.10")
@every_device
def test_what_is_unknown_or_not_for_this_carrier_is_not_accepted(row: Row) -> None:
    """All of 128 bits are offered: what is accepted has a name, and SR_IOV, which only PCI has, is not in it."""
    carrier = Recorder(row.device(), offer=(1 << 128) - 1)
    chosen = negotiate(carrier, row.driver(carrier))
    known = KNOWN[row.driver.device_id]
    assert not chosen & ~(mask(*Feature) | mask(*(known or ())))
    assert not chosen & bit(Feature.SR_IOV)
    assert carrier.log[0] == ("offer",), "the offer is looked at before anything is accepted"
    assert [entry[0] for entry in carrier.log].count("accept") == 1


@pytest.mark.clause("features.driver.feature-bits.6")
def test_a_driver_makes_do_with_an_offer_of_nothing() -> None:
    device = EntropyDevice(lambda count: b"r" * count)
    carrier = InProcess(device, ring_features=VERSION_1)
    assert EntropyDriver(carrier).start().read(9) == b"r" * 9
    plain = Recorder(disk(), ring_features=VERSION_1)
    driver = BlkDriver(plain, features=0).start()
    assert driver.features == VERSION_1
    driver.write(2, b"w" * 512)
    assert driver.read(2, 1) == b"w" * 512


@pytest.mark.clause("features.device.feature-bits.1")
@pytest.mark.clause("features.device.feature-bits.4")
@pytest.mark.clause("features.device.reserved-feature-bits.1")
@pytest.mark.clause("features.device.reserved-feature-bits.10")
@every_device
def test_an_offer_is_closed_and_holds_nothing_without_a_name(row: Row) -> None:
    device = row.device()
    offer = InProcess(device).device_features()
    assert missing_needs(offer, device.feature_needs) == []
    known = KNOWN[row.driver.device_id]
    assert not offer & ~(RING_FEATURES | mask(*(known or ())))
    assert offer & VERSION_1
    assert not offer & bit(Feature.SR_IOV)


@pytest.mark.clause("features.device.feature-bits.1")
def test_the_offer_of_a_whole_network_device_is_closed() -> None:
    offer = NetDevice(LoopbackPort()).offered_features()
    assert missing_needs(offer, FEATURE_NEEDS) == []


@pytest.mark.clause("features.driver.reserved-feature-bits.1")
@pytest.mark.clause("features.driver.reserved-feature-bits.6")
@every_device
def test_version_1_and_packed_rings_are_accepted_when_offered(row: Row) -> None:
    carrier = Recorder(row.device())
    assert row.driver(carrier).start().features & mask(Feature.VERSION_1, Feature.RING_PACKED) == mask(
        Feature.VERSION_1, Feature.RING_PACKED
    )
    # VERSION_1 even where the caller wants nothing at all.
    carrier = Recorder(row.device())
    assert negotiate(carrier, row.driver(carrier, features=0)) == VERSION_1


@pytest.mark.clause("features.driver.reserved-feature-bits.2")
@every_device
def test_a_device_without_version_1_is_refused(row: Row) -> None:
    carrier = Recorder(row.device(), ring_features=bit(Feature.RING_PACKED))
    with pytest.raises(NegotiationError):
        row.driver(carrier).start()
    assert carrier.read_status() & DeviceStatus.FAILED


@pytest.mark.clause("features.device.reserved-feature-bits.2")
@every_device
def test_a_driver_without_version_1_is_refused(row: Row) -> None:
    carrier = InProcess(row.device())
    carrier.write_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
    carrier.accept_features(0)
    carrier.write_status(carrier.read_status() | DeviceStatus.FEATURES_OK)
    assert not carrier.read_status() & DeviceStatus.FEATURES_OK


# Status -------------------------------------------------------------------------------------------------------------


@pytest.mark.clause("status.driver.device-status-field.3")
@every_device
def test_a_device_given_up_is_reset_first(row: Row) -> None:
    carrier = Recorder(row.device())
    driver = row.driver(carrier).start()
    driver.fail()
    assert carrier.read_status() & DeviceStatus.FAILED
    carrier.log.clear()
    driver.start()
    assert next(entry for entry in carrier.log if entry[0] == "status") == ("status", 0)
    assert not carrier.read_status() & DeviceStatus.FAILED


@define(eq=False)
class Stumbler(Device):
    """Answers the first buffer, keeps the second, and finds fault with the third."""

    device_id = DeviceId.ENTROPY
    kept: list[Chain] = field(factory=list)

    def queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec("requestq", 8)]

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        text = chain.readable.read_all()
        if text == b"bad":
            raise RequestError("a bad request")
        if text == b"slow":
            chain.defer()
            self.kept.append(chain)
        chain.writable.write(text)

    def reset(self) -> None:
        self.kept.clear()


@pytest.mark.clause("status.driver.device-status-field.4")
@pytest.mark.clause("basic.driver.device-cleanup.2")
def test_what_was_under_way_when_the_device_broke_is_neither_done_nor_undone() -> None:
    """The answer of the slow request was written, but nobody is told; its memory is the device's until the reset."""
    carrier = InProcess(Stumbler(), memory_size=1 << 16)
    driver = EchoDriver(carrier).start()
    free = carrier.arena.free_bytes
    queue = driver.queues[0]
    for text in (b"slow", b"bad"):
        sent, room = driver._filled(text), driver._borrow(8)
        queue.add([sent.extent], [room.extent], text)
    driver.kick(queue)
    with pytest.raises(NeedsReset):
        driver.wait_used(queue, 1)
    assert queue.outstanding == 2
    assert carrier.arena.free_bytes < free
    driver.reset()
    assert driver.queues == []
    driver.start()
    assert carrier.arena.free_bytes == free
    assert driver.transact(driver.queues[0], [b"fine"], [4])[0] == [b"fine"]


@pytest.mark.clause("basic.driver.device-cleanup.2")
def test_a_request_that_times_out_keeps_its_memory_until_a_reset() -> None:
    carrier = InProcess(Stumbler(), memory_size=1 << 16)
    driver = EchoDriver(carrier).start()
    free = carrier.arena.free_bytes
    with pytest.raises(VirtioError, match="in time"):
        driver.transact(driver.queues[0], [b"slow"], [8], timeout=0.01)
    assert carrier.arena.free_bytes < free
    driver.reset()
    assert driver.start().queues[0].outstanding == 0
    assert carrier.arena.free_bytes == free


# Configuration ------------------------------------------------------------------------------------------------------


@pytest.mark.clause("basic.driver.device-initialization.4")
@every_device
def test_the_configuration_is_not_written_before_features_ok(row: Row) -> None:
    carrier = Recorder(row.device())
    row.driver(carrier).start()
    settled = next(n for n, e in enumerate(carrier.log) if e[0] == "status" and e[1] & DeviceStatus.FEATURES_OK)
    assert not [entry for entry in carrier.log[:settled] if entry[0] == "write"]


@pytest.mark.clause("basic.driver.device-initialization.3")
@every_device
def test_the_configuration_can_be_read_while_features_are_chosen(row: Row) -> None:
    device = row.device()
    carrier = InProcess(device)
    carrier.write_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
    whole = device.read_config()
    assert carrier.read_config(0, len(whole)) == whole
    assert carrier.read_status() == DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER


@pytest.mark.clause("config.driver.device-configuration-space.3")
def test_fields_of_features_that_were_not_negotiated_are_left_alone() -> None:
    """What stands there is noise, and neither read past the fields that are there nor believed."""
    noise = virtio_blk_config.encode(capacity=64)[:8] + b"\xa5" * (virtio_blk_config.size - 8)
    carrier = Recorder(Liar(disk(), config=noise))
    driver = BlkDriver(carrier, features=VERSION_1).start()
    assert driver.info.capacity == 64
    assert (driver.info.seg_max, driver.info.size_max, driver.info.discard, driver.info.num_queues) == (None,) * 3 + (
        1,
    )
    reads = [entry for entry in carrier.log if entry[0] == "read"]
    assert reads
    assert max(offset + length for _, offset, length in reads) <= 8
    assert driver.read(63, 1) == bytes(512)


@pytest.mark.clause("config.driver.device-configuration-space.4")
@pytest.mark.clause("config.driver.device-configuration-space.5")
@every_device
def test_a_configuration_may_be_longer_than_we_know(row: Row) -> None:
    device = row.device()
    driver = row.driver(InProcess(Liar(device, config=device.read_config() + b"\x5a" * 512), memory_size=4 << 20))
    driver.start()
    row_device: Any = device
    row.exercise(driver, row_device)


@pytest.mark.clause("config.driver.device-configuration-space.1")
def test_a_field_of_64_bits_is_read_until_it_stands_still() -> None:
    """The capacity changes between the two halves of its first read; the driver sees the old one or the new, no mix."""
    old, new = 0x1_0000_0001, 0x2_0000_0002

    class Torn(InProcess):
        reads = 0

        def read_config(self, offset: int, length: int) -> bytes:
            self.reads += 1
            before = super().read_config(offset, length)
            if self.reads > 1:
                return before
            liar.config = virtio_blk_config.encode(capacity=new)
            self.end.configuration_changed()
            after = super().read_config(offset, length)
            return before[:4] + after[4:]

    liar = Liar(disk(), config=virtio_blk_config.encode(capacity=old))
    carrier = Torn(liar)
    assert BlkDriver(carrier, features=VERSION_1).start().info.capacity == new
    assert carrier.reads == 2


# Suspend ------------------------------------------------------------------------------------------------------------


@pytest.mark.clause("basic.driver.device-suspend.1")
def test_suspend_is_for_a_running_device_that_has_it() -> None:
    carrier = Recorder(Echo())
    driver = EchoDriver(carrier, features=VERSION_1).start()
    with pytest.raises(UsageError):
        driver.suspend()
    fresh = EchoDriver(carrier)
    with pytest.raises(UsageError):
        fresh.suspend()
    assert not [e for e in carrier.log if e[0] == "status" and e[1] & DeviceStatus.SUSPEND]


@pytest.mark.clause("basic.driver.device-suspend.3")
@pytest.mark.clause("basic.driver.device-suspend.4")
@pytest.mark.clause("basic.driver.device-suspend.5")
def test_a_suspended_device_is_left_alone() -> None:
    carrier = Recorder(Echo())
    driver = EchoDriver(carrier).start()
    driver.suspend()
    carrier.log.clear()
    with pytest.raises(UsageError):
        driver.transact(driver.queues[0], [b"hello"], [5])
    with pytest.raises(UsageError):
        driver.queues[1].add([driver._filled(b"x").extent])
    with pytest.raises(UsageError):
        driver.kick(driver.queues[0])
    with pytest.raises(UsageError):
        driver.write_config_bytes(0, b"z")
    assert [entry for entry in carrier.log if entry[0] in ("kick", "write")] == []
    assert all(queue.outstanding == 0 for queue in driver.queues)
    driver.resume()
    assert driver.transact(driver.queues[0], [b"hello"], [5])[0] == [b"HELLO"]
    driver.suspend()
    driver.start()  # a reset wakes it as well
    assert driver.transact(driver.queues[0], [b"again"], [5])[0] == [b"AGAIN"]


# Used length, framing -----------------------------------------------------------------------------------------------


@pytest.mark.clause("split.driver.used-ring.1")
@pytest.mark.clause("split.driver.used-ring.2")
@given(length=st.integers(1, 8))
@settings(deadline=None, max_examples=20)
def test_what_lies_behind_the_used_length_is_not_looked_at(length: int) -> None:
    class Sloppy(EntropyDevice):
        def handle(self, queue: DeviceQueue, chain: Chain) -> None:
            for view in chain.writable.views():
                view[:] = b"\xee" * len(view)
            chain.writable.write(b"r" * min(length, chain.writable.remaining))

    rings = RING_FEATURES & ~bit(Feature.RING_PACKED)
    driver = EntropyDriver(InProcess(Sloppy(), memory_size=1 << 20, ring_features=rings)).start()
    assert driver.read(20) == b"r" * 20


@pytest.mark.clause("split.driver.message-framing.2")
def test_a_request_is_in_no_more_pieces_than_it_has_parts() -> None:
    """Head, data, status: three descriptors for any read or write that SIZE_MAX lets go in one piece."""
    counts: list[int] = []

    class Counting(Recorder):
        def available_buffer(self, index: int, data: int) -> None:
            counts.append(driver.queues[index].size - driver.queues[index].free_slots)
            super().available_buffer(index, data)

    rings = VERSION_1  # no indirect tables: each piece is a descriptor of the ring
    carrier = Counting(disk(), ring_features=rings)
    driver = BlkDriver(carrier, features=rings).start()
    counts.clear()
    driver.write(0, bytes(8 * 512))
    driver.read(0, 8)
    assert counts == [3, 3]
