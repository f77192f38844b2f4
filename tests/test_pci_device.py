"""Virtio over PCI, the device: what it presents and what its registers do, also to drivers that keep to no rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.echo import Echo, config_record
from tests.pci_bench import BASE, OK, SIZE, Bench, bench
from virtio_py.admin.owner import Administration
from virtio_py.device import QueueSpec
from virtio_py.devices.entropy import EntropyDevice
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.devices.scsi.device import ScsiDevice
from virtio_py.errors import MemoryFault, MessageError, NegotiationError, PeerError, RingError, UsageError
from virtio_py.memory import GuestMemory
from virtio_py.pci.virtio_caps import CfgType, virtio_pci_cfg_cap, virtio_pci_common_cfg
from virtio_py.spec import DeviceId, DeviceStatus, Feature, bit, mask
from virtio_py.status import RING_FEATURES
from virtio_py.transports.pci import PciDevice
from virtio_py.transports.pci_layout import MODERN_BAR, NO_VECTOR, SHARED_MEMORY_BAR

VERSION_1 = bit(Feature.VERSION_1)
RESETTABLE = bit(Feature.RING_RESET)
NOTIFICATION_DATA = RING_FEATURES | bit(Feature.NOTIFICATION_DATA)


def started(features: int = RESETTABLE, made: Bench | None = None) -> Bench:
    """A device with both queues enabled and DRIVER_OK set, by hand."""
    made = made or bench()
    made.command(bus_master=1)
    made.negotiate(features)
    for index in range(2):
        made.configure(at=BASE + 0x4000 * index, index=index)
        made.set(queue_enable=1)
    made.set(device_status=OK)
    assert made.get("device_status") == OK
    return made


# Discovery (4.1.2) -------------------------------------------------------------------------------------------------

TYPES = [(EntropyDevice, 4, 0x1005), (ScsiDevice, 8, 0x1004), (lambda: NetDevice(LoopbackPort()), 1, 0x1000)]


@pytest.mark.parametrize(("make", "kind", "transitional"), TYPES)
@pytest.mark.parametrize("subsystem", [(0x1AF4, 0x40), (0x8086, 0xABCD)])
@pytest.mark.clause("pci.device.pci-device-discovery.1")
@pytest.mark.clause("pci.device.pci-device-discovery.2")
@pytest.mark.clause("pci.device.pci-device-discovery.3")
@pytest.mark.clause("pci.device.pci-device-discovery.4")
@pytest.mark.clause("pci.device.pci-device-discovery.5")
@pytest.mark.clause("pci.device.pci-device-discovery.6")
@pytest.mark.clause("pci-legacy.device.pci-device-discovery.1")
@pytest.mark.clause("pci-legacy.device.pci-device-discovery.2")
@pytest.mark.clause("pci-legacy.device.pci-device-discovery.3")
def test_the_ids_are_those_of_the_type(make: type, kind: int, transitional: int, subsystem: tuple[int, int]) -> None:
    memory = GuestMemory.of(1 << 12)
    modern = PciDevice(make(), memory, subsystem=subsystem).function.registers
    legacy = PciDevice(make(), memory, subsystem=subsystem, transitional=True).function.registers
    assert [modern.read(at, 2) for at in (0, 2, 0x2C, 0x2E)] == [0x1AF4, 0x1040 + kind, *subsystem]
    assert modern.read(8, 1) >= 1
    assert modern.read(0x2E, 2) >= 0x40
    assert [legacy.read(at, 2) for at in (0, 2, 0x2C, 0x2E)] == [0x1AF4, transitional, subsystem[0], kind]
    assert legacy.read(8, 1) == 0


def test_a_type_without_a_transitional_id_cannot_be_transitional() -> None:
    class Sound(Echo):
        device_id = DeviceId.SOUND

    with pytest.raises(UsageError, match="transitional"):
        bench(Sound(), transitional=True)
    with pytest.raises(UsageError, match="transitional"):
        bench(transitional=True, legacy_guard=True)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"transitional": True},
    {"legacy_guard": True},
    {"msix_vectors": 0},
    {"msix_vectors": 0x800},
    {"express": False, "vendor_data": [(0x8086, b"abc"), (0x8086, b"")]},
    {"express": False, "shared_memory": {0: memoryview(bytearray(64)), 9: memoryview(bytearray(0x1001))}},
    {"notify_off_multiplier": 0},
    {"ring_features": NOTIFICATION_DATA, "notify_off_multiplier": 0x1000},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o)) or "plain")
@pytest.mark.clause("pci.device.virtio-over-pci-bus.1")
@pytest.mark.clause("pci.device.virtio-structure-pci-capabilities.1")
@pytest.mark.clause("pci.device.common-configuration-structure-layout.1")
@pytest.mark.clause("pci.device.common-configuration-structure-layout.2")
@pytest.mark.clause("pci.device.notification-capability.1")
@pytest.mark.clause("pci.device.isr-status-capability.1")
@pytest.mark.clause("pci.device.pci-configuration-access-capability.1")
def test_whatever_is_asked_for_has_no_problem(options: dict[str, Any]) -> None:
    made = bench(**options)
    function = made.walk()
    assert function.problems == ()
    for kind in (CfgType.COMMON_CFG, CfgType.NOTIFY_CFG, CfgType.ISR_CFG, CfgType.PCI_CFG, CfgType.DEVICE_CFG):
        assert len(made.caps(kind)) == 1
    assert {c["offset"] % 4 for kind in (1, 4) for c in made.caps(CfgType(kind))} == {0}


@pytest.mark.clause("pci.device.device-specific-configuration-prose.1")
@pytest.mark.clause("pci.device.device-specific-configuration.1")
def test_a_configuration_has_a_capability() -> None:
    [cap] = bench().caps(CfgType.DEVICE_CFG)
    assert cap["length"] == config_record.size
    memory = GuestMemory.of(1 << 12)
    net = NetDevice(LoopbackPort())
    assert Bench(PciDevice(net, memory)).caps(CfgType.DEVICE_CFG)[0]["length"] == len(net.read_config())
    assert Bench(PciDevice(EntropyDevice(), memory)).caps(CfgType.DEVICE_CFG) == []


# Common configuration (4.1.4.3) ------------------------------------------------------------------------------------


@pytest.mark.clause("pci.device.pci-device-layout.1")
@pytest.mark.parametrize("halves", [(0, 4), (4, 0)])
def test_halves_of_an_address_are_registers_of_their_own(halves: tuple[int, int]) -> None:
    made = bench()
    for name in ("queue_desc", "queue_driver", "queue_device"):
        at = virtio_pci_common_cfg.offset(name)
        for half in halves:
            made.function.write_bar(MODERN_BAR, at + half, 0x1111_0000 + half, 4)
            assert made.function.read_bar(MODERN_BAR, at + half, 4) == 0x1111_0000 + half
        assert made.get(name) == 0x1111_0004_1111_0000
        made.function.write_bar(MODERN_BAR, at + 4, 0, 4)
        assert made.get(name) == 0x1111_0000


@pytest.mark.clause("pci.device.common-configuration-structure-layout.3")
@pytest.mark.parametrize("selector", [0, 1, 2, 3, 4, 1 << 16, 0xFFFFFFFF])
def test_the_offer_by_any_selector(selector: int) -> None:
    made = bench()
    made.set(device_feature_select=selector)
    assert made.get("device_feature_select") == selector
    wanted = RING_FEATURES >> 32 * selector & 0xFFFFFFFF if selector < 4 else 0
    assert made.get("device_feature") == wanted


@pytest.mark.clause("pci.device.common-configuration-structure-layout.4")
@pytest.mark.clause("pci.device.common-configuration-structure-layout.5")
@pytest.mark.parametrize("selector", [0, 1, 2, 4, 0xFFFFFFFF])
def test_the_choice_reads_back(selector: int) -> None:
    made = bench()
    made.set(driver_feature_select=selector, driver_feature=0xFFFFFFFF)
    made.set(device_feature_select=selector)
    assert made.get("driver_feature_select") == selector
    valid = made.get("device_feature")
    # Bits that are not offered may read back or not: ours do not, and FEATURES_OK is refused all the same.
    assert made.get("driver_feature") & valid == valid
    assert made.get("driver_feature") == valid
    made.set(device_status=OK & ~DeviceStatus.DRIVER_OK)
    assert not made.get("device_status") & DeviceStatus.FEATURES_OK


@pytest.mark.clause("pci.device.common-configuration-structure-layout.6")
def test_the_generation_moves_when_what_was_read_is_stale() -> None:
    made = bench()
    [cap] = made.caps(CfgType.DEVICE_CFG)
    for _ in range(3):
        before = made.get("config_generation")
        low = made.function.read_bar(cap["bar"], cap["offset"], 4)
        made.device.config[0] ^= 0xFF
        assert made.function.read_bar(cap["bar"], cap["offset"], 4) != low
        assert made.get("config_generation") != before
    # Not at each change: 8 bits that count changes would come round.
    before = made.get("config_generation")
    for n in range(256):
        made.device.config[1] = n
        made.machine.end.configuration_changed()
    made.function.read_bar(cap["bar"], cap["offset"], 4)
    assert made.get("config_generation") == (before + 1) & 0xFF


@pytest.mark.clause("pci.device.common-configuration-structure-layout.7")
@pytest.mark.clause("pci.device.common-configuration-structure-layout.8")
@pytest.mark.clause("pci.device.common-configuration-structure-layout.9")
@pytest.mark.clause("pci.device.msi-x-vector-configuration.7")
def test_a_reset_leaves_nothing() -> None:
    made = started()
    made.set(config_msix_vector=0, queue_select=1, queue_msix_vector=1)
    made.machine.end.configuration_changed()
    made.set(device_status=0)
    assert made.get("device_status") == 0
    assert made.get("config_msix_vector") == NO_VECTOR
    assert made.isr() == 0
    for index in range(2):
        made.set(queue_select=index)
        found = [made.get(f"queue_{name}") for name in ("enable", "reset", "msix_vector", "size", "desc")]
        assert found == [0, 0, NO_VECTOR, (64, 16)[index], 0]


@pytest.mark.clause("pci.device.common-configuration-structure-layout.10")
@pytest.mark.clause("pci.device.common-configuration-structure-layout.11")
@pytest.mark.clause("pci.device.common-configuration-structure-layout.12")
@pytest.mark.clause("pci.device.common-configuration-structure-layout.13")
def test_a_queue_reset_shows_while_it_lasts() -> None:
    made = started()
    made.set(queue_select=0, queue_msix_vector=1)
    assert (made.get("queue_enable"), made.get("queue_reset")) == (1, 0)
    seen = []
    made.device.on_reset = lambda index: seen.append((index, made.get("queue_reset")))
    made.set(queue_reset=1)
    assert seen == [(0, 1)]
    assert (made.get("queue_enable"), made.get("queue_reset")) == (0, 0)
    # What the driver wrote is gone, the vector too.
    assert (made.get("queue_size"), made.get("queue_desc"), made.get("queue_msix_vector")) == (64, 0, NO_VECTOR)
    made.configure(size=4)
    made.set(queue_enable=1)
    assert (made.get("queue_enable"), made.get("queue_reset"), made.get("queue_size")) == (1, 0, 4)


def test_a_queue_is_not_reset_without_the_feature() -> None:
    made = started(features=0)
    made.set(queue_select=0, queue_msix_vector=1, queue_reset=1)
    assert (made.get("queue_enable"), made.get("queue_reset"), made.get("queue_msix_vector")) == (1, 0, 1)
    assert isinstance(made.machine.ignored.pop(), NegotiationError)


@pytest.mark.clause("pci.device.common-configuration-structure-layout.14")
@pytest.mark.parametrize("index", [2, 3, 0x7FFF, 0xFFFF])
def test_a_queue_that_is_not_there(index: int) -> None:
    made = bench()
    made.negotiate(RESETTABLE)
    made.set(queue_select=index)
    assert made.get("queue_select") == index
    names = ("size", "enable", "reset", "desc", "driver", "device", "notify_off", "notif_config_data")
    assert {made.get(f"queue_{name}") for name in names} == {0}
    assert made.get("queue_msix_vector") == NO_VECTOR
    made.configure(index=index)
    made.set(queue_msix_vector=0, queue_enable=1, queue_reset=1)
    made.notify(index, at=4 * index)
    assert not made.machine.step()
    assert made.machine.end.fault is None
    assert {made.get(f"queue_{name}") for name in names} == {0}


class Odd(Echo):
    """A device whose queues are of 12."""

    def queues(self) -> list[QueueSpec]:
        return [QueueSpec("oddq", 12), QueueSpec("nextq", 1)]


@pytest.mark.clause("pci.device.common-configuration-structure-layout.15")
def test_a_size_is_a_power_of_two_unless_rings_are_packed() -> None:
    made = bench(Odd())
    assert made.get("queue_size") == 8
    made.negotiate()
    assert made.get("queue_size") == 8
    made.set(queue_desc=BASE, queue_driver=BASE + 0x1000, queue_device=BASE + 0x2000, queue_enable=1)
    active = made.machine.end.active_queue(0)
    assert active is not None
    assert active.size == 8
    made.set(device_status=0)
    made.negotiate(bit(Feature.RING_PACKED))
    assert made.get("queue_size") == 12


def test_what_is_read_only_stays_and_what_is_reserved_does_nothing() -> None:
    made = started()
    for name in ("device_feature", "num_queues", "config_generation", "queue_notify_off", "queue_notif_config_data"):
        before = made.get(name)
        made.set(**{name: before ^ 1})
        assert made.get(name) == before
        assert isinstance(made.machine.ignored.pop(), MessageError)
    made.set(queue_select=0, queue_enable=0)
    assert made.get("queue_enable") == 1
    assert isinstance(made.machine.ignored.pop(), MessageError)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.clause("pci.device.common-configuration-structure-layout.16")
@pytest.mark.clause("pci.device.common-configuration-structure-layout.17")
def test_administration_queues_come_last_and_are_not_counted(count: int) -> None:
    echo = Echo()
    made = bench(echo, admin=Administration(echo, count=count, size=32) if count else None)
    assert made.get("num_queues") == 2
    assert (made.get("admin_queue_index"), made.get("admin_queue_num")) == (0, 0)
    made.negotiate(bit(Feature.ADMIN_VQ) if count else 0)
    assert (made.get("admin_queue_index"), made.get("admin_queue_num")) == (2, count) if count else (0, 0)
    for index in range(2, 4):
        made.set(queue_select=index)
        assert made.get("queue_size") == (32 if index < 2 + count else 0)


# Notifications (4.1.4.4, 4.1.5.2) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [0, 2, 4, 64, 0x1000])
@pytest.mark.parametrize("features", [RING_FEATURES, NOTIFICATION_DATA], ids=["16-bit", "32-bit"])
@pytest.mark.clause("pci.device.notification-capability.2")
@pytest.mark.clause("pci.device.notification-capability.3")
@pytest.mark.clause("pci.device.notification-capability.4")
@pytest.mark.clause("pci.device.notification-capability.5")
@pytest.mark.clause("pci.device.notification-capability.6")
@pytest.mark.clause("pci.device.notification-capability.7")
@pytest.mark.clause("pci.device.notification-capability.8")
@pytest.mark.clause("pci.device.notification-capability.9")
@pytest.mark.clause("pci.device.notification-capability.10")
@pytest.mark.clause("pci.device.notification-capability.11")
def test_every_queue_is_notified_inside_the_structure(multiplier: int, features: int) -> None:
    width = 4 if features == NOTIFICATION_DATA else 2
    if multiplier % width:
        with pytest.raises(UsageError, match=r"notification-capability\.7"):
            bench(ring_features=features, notify_off_multiplier=multiplier)
        return
    made = bench(ring_features=features, notify_off_multiplier=multiplier)
    [cap] = made.caps(CfgType.NOTIFY_CFG)
    assert cap["notify_off_multiplier"] == multiplier
    assert cap["offset"] % width == 0
    for index in range(made.get("num_queues")):
        made.set(queue_select=index)
        assert cap["length"] >= made.get("queue_notify_off") * multiplier + width
        assert multiplier == 0 or made.get("queue_notify_off") == index


@pytest.mark.parametrize("multiplier", [1, 3, 6, 0x80000001])
def test_a_multiplier_that_is_no_even_power_of_two_is_not_presented(multiplier: int) -> None:
    with pytest.raises(UsageError, match=r"notification-capability\.3"):
        bench(notify_off_multiplier=multiplier)


@pytest.mark.parametrize("multiplier", [0, 4, 0x1000])
@pytest.mark.parametrize("data", [0, bit(Feature.NOTIFICATION_DATA)], ids=["16-bit", "32-bit"])
@pytest.mark.parametrize("named", [0, bit(Feature.NOTIF_CONFIG_DATA)], ids=["index", "notif_config_data"])
def test_a_notification_is_for_its_queue_alone(multiplier: int, data: int, named: int) -> None:
    offered = NOTIFICATION_DATA | bit(Feature.NOTIF_CONFIG_DATA)
    made = bench(ring_features=offered, notify_off_multiplier=multiplier)
    for index in range(2):
        made.machine.end.queue(index).notif_config_data = 0x7770 + index
    started(data | named, made)
    made.machine.end.kicks.clear()
    made.set(queue_select=1)
    assert made.get("queue_notif_config_data") == (0x7771 if named else 0)
    name, width = 0x7771 if named else 1, 4 if data else 2
    value = name | (0x8003 << 16 if data else 0)
    made.notify(value, width, at=multiplier)
    assert made.machine.step()
    assert made.machine.end.kicks == {1: 1}
    wrong = [(value, 6 - width, multiplier), (value, 1, multiplier), (0x1234, width, multiplier)]
    wrong += [(value, width, 0)] if multiplier else []
    for value, width, at in wrong:
        made.notify(value, width, at)
        assert not made.machine.step()
        assert isinstance(made.machine.ignored.pop(), MessageError)


# ISR and MSI-X (4.1.4.5, 4.1.5.1.2, 4.1.5.3, 4.1.5.4) ---------------------------------------------------------------

STATUS, INTX = 6, 1 << 3


@pytest.mark.clause("pci.device.isr-status-capability.2")
@pytest.mark.clause("pci.device.isr-status-capability.3")
@pytest.mark.clause("pci.device.isr-status-capability.4")
@pytest.mark.clause("pci.device.isr-status-capability.5")
@pytest.mark.parametrize("vectors", [0, 3])
def test_without_msix_the_line_follows_the_isr_status(vectors: int) -> None:
    made = started(made=bench(msix_vectors=vectors))
    seen: list[int] = []
    keep = made.function.interrupt

    def interrupt(level: bool) -> None:
        keep(level)
        seen.append(made.function.registers.read(STATUS, 2) & INTX)

    made.function.interrupt = interrupt
    made.machine.used_buffer(1)
    assert (made.lines, seen) == ([True], [INTX])
    made.machine.configuration_change()
    assert made.function.registers.read(STATUS, 2) & INTX
    assert made.isr() == 3
    assert (made.isr(), made.lines, seen) == (0, [True, False], [INTX, 0])
    assert not made.function.registers.read(STATUS, 2) & INTX
    made.machine.configuration_change()
    assert (made.isr(), made.lines) == (2, [True, False, True, False])
    # Masked by the standard's own bit, the status still says so.
    made.command(interrupt_disable=1)
    made.machine.used_buffer(0)
    assert made.lines[4:] == []
    assert made.function.registers.read(STATUS, 2) & INTX
    made.command(interrupt_disable=0)
    assert (made.lines[4:], made.isr()) == ([True], 1)


def messages(made: Bench) -> list[int]:
    """Notes the data of messages from now on."""
    sent: list[int] = []
    made.function.send = lambda address, data: sent.append(data)
    return sent


def with_vectors(made: Bench, *vectors: int) -> list[int]:
    made.command(bus_master=1)
    made.msix_control(enable=1)
    for vector in vectors:
        made.unmask(vector)
    return messages(made)


@pytest.mark.clause("pci.device.isr-status-capability.2")
@pytest.mark.clause("pci.device.msi-x-vector-configuration.4")
@pytest.mark.clause("pci.device.msi-x-vector-configuration.6")
def test_with_msix_each_event_has_its_vector() -> None:
    made = started()
    sent = with_vectors(made, 0, 1, 2)
    made.set(config_msix_vector=2)
    made.set(queue_select=0, queue_msix_vector=0)
    made.set(queue_select=1, queue_msix_vector=1)
    assert (made.get("config_msix_vector"), made.get("queue_msix_vector")) == (2, 1)
    seen: list[int] = []

    def send(address: int, data: int) -> None:
        sent.append(data)
        seen.append(made.machine.isr)

    made.function.send = send
    made.machine.used_buffer(0)
    made.machine.used_buffer(1)
    made.machine.configuration_change()
    assert sent == [0, 1, 2]
    # The configuration's bit was there before its message was.
    assert seen == [0, 0, 2]
    assert made.lines == []


@pytest.mark.clause("pci.device.used-buffer-notifications.1")
@pytest.mark.clause("pci.device.notification-of-device-configuration-changes.1")
@pytest.mark.clause("pci.device.msi-x-vector-configuration.5")
def test_an_event_that_is_mapped_to_no_vector_is_silent() -> None:
    made = started()
    sent = with_vectors(made, 0, 1, 2)
    made.machine.used_buffer(0)
    made.machine.configuration_change()
    assert (sent, made.lines) == ([], [])
    made.set(config_msix_vector=0, queue_select=0, queue_msix_vector=1)
    made.set(config_msix_vector=NO_VECTOR, queue_msix_vector=NO_VECTOR)
    assert (made.get("config_msix_vector"), made.get("queue_msix_vector")) == (NO_VECTOR, NO_VECTOR)
    made.machine.used_buffer(0)
    made.machine.configuration_change()
    assert (sent, made.lines) == ([], [])


@pytest.mark.clause("pci.device.msi-x-vector-configuration.1")
@pytest.mark.clause("pci.device.msi-x-vector-configuration.2")
@pytest.mark.clause("pci.device.msi-x-vector-configuration.3")
@pytest.mark.clause("pci.device.msi-x-vector-configuration.4")
@pytest.mark.clause("pci.device.msi-x-vector-configuration.8")
@pytest.mark.clause("pci.device.msi-x-vector-configuration.9")
@pytest.mark.parametrize("vectors", [None, 1, 2, 5, 0x800])
def test_every_vector_of_the_table_can_be_mapped_and_no_other(vectors: int | None) -> None:
    made = bench(msix_vectors=vectors)
    [cap] = made.walk().find(0x11)
    last = cap.fields["message_control"]["table_size"]
    # By default one for each queue and one for the configuration: more would be of no use.
    assert last == (3 if vectors is None else vectors) - 1
    for name in ("config_msix_vector", "queue_msix_vector"):
        for vector in range(last + 1):
            made.set(**{name: vector})
            assert made.get(name) == vector
        for vector in {last + 1, last + 2, 0x7FF, 0x800, 0xFFFE} - set(range(last + 1)):
            made.set(**{name: 0})
            made.set(**{name: vector})
            assert made.get(name) == NO_VECTOR


def test_without_the_capability_no_event_is_mapped() -> None:
    made = bench(msix_vectors=0)
    assert made.walk().find(0x11) == []
    made.set(config_msix_vector=0, queue_msix_vector=0)
    assert (made.get("config_msix_vector"), made.get("queue_msix_vector")) == (NO_VECTOR, NO_VECTOR)


def test_what_a_masked_vector_held_back_does_not_survive_a_reset() -> None:
    made = started()
    sent = with_vectors(made)
    made.set(config_msix_vector=0)
    made.machine.configuration_change()
    made.set(device_status=0)
    made.unmask(0)
    assert sent == []


# Other capabilities (4.1.4.7 … 4.1.4.9) ----------------------------------------------------------------------------


@pytest.mark.clause("pci.device.shared-memory-capability.1")
@pytest.mark.clause("pci.device.shared-memory-capability.2")
@pytest.mark.clause("shm.device.shared-memory-regions.1")
def test_shared_memory_is_memory_and_nothing_else() -> None:
    views = {3: memoryview(bytearray(0x1800)), 0: memoryview(bytearray(16))}
    made = started(made=bench(shared_memory=views, express=False))
    caps = made.caps(CfgType.SHARED_MEMORY_CFG)
    assert [cap["id"] for cap in caps] == [3, 0]
    bar = made.function.bars[SHARED_MEMORY_BAR]
    for cap in caps:
        assert cap["offset"] + cap["length"] <= bar.size
        assert cap["length"] == len(views[cap["id"]])
        assert cap["bar"] == SHARED_MEMORY_BAR
    names = [name for name in virtio_pci_common_cfg.fields if name != "driver_feature"]
    before = [made.get(name) for name in names]
    for at in range(0, bar.size, 4):
        made.function.write_bar(SHARED_MEMORY_BAR, at, 0x0101_0101 * (at % 251), 4)
    assert [made.get(name) for name in names] == before
    assert not made.machine.step()
    assert (made.lines, made.machine.ignored) == ([], type(made.machine.ignored)())
    kept = {ident: bytes(view) for ident, view in views.items()}
    assert kept[3][-4:] == bytes([0x17FC % 251]) * 4
    made.set(device_status=0)
    assert made.driver().echo(b"none of this goes there") == b"none of this goes there"
    assert {ident: bytes(view) for ident, view in views.items()} == kept


@pytest.mark.clause("pci.device.vendor-data-capability.1")
@pytest.mark.clause("pci.device.vendor-data-capability.2")
@pytest.mark.clause("pci.device.vendor-data-capability.3")
@pytest.mark.clause("pci.device.vendor-data-capability.4")
@pytest.mark.clause("pci.device.vendor-data-capability.5")
@pytest.mark.clause("pci.device.virtio-structure-pci-capabilities.2")
def test_vendor_data_is_there_to_be_read() -> None:
    data = [(0x8086, b"abc"), (0x8086, b"de"), (0x1B36, b"")]
    made = started(made=bench(vendor_data=data, express=False))
    caps = made.caps(CfgType.VENDOR_CFG)
    assert [cap["vendor_id"] for cap in caps] == [0x8086, 0x8086, 0x1B36]
    # Padded to whole words, which are counted.
    assert [bytes.fromhex(cap.get("data", "")) for cap in caps] == [b"abc\0\0\0", b"de", b"\0\0"]
    assert [cap["cap_len"] for cap in caps] == [12, 8, 8]
    before = made.function.registers.all
    for cap in caps:
        for _ in range(2):
            for at in range(cap["at"], cap["at"] + cap["cap_len"]):
                made.function.registers.read(at, 1)
        made.function.registers.write(cap["at"] + 4, 0, 4)
    assert made.function.registers.all == before
    assert made.get("device_status") == OK
    with pytest.raises(UsageError, match=r"vendor-data-capability\.3"):
        bench(vendor_data=[(0x1AF4, b"")])
    with pytest.raises(UsageError, match="no room"):
        bench(vendor_data=[(1, bytes(40))])


def window(made: Bench) -> tuple[int, int]:
    [cap] = made.caps(CfgType.PCI_CFG)
    return cap["at"], cap["at"] + virtio_pci_cfg_cap.offset("pci_cfg_data")


def aim(made: Bench, bar: int, offset: int, length: int) -> None:
    at, _ = window(made)
    for name, value, width in (("bar", bar, 1), ("offset", offset, 4), ("length", length, 4)):
        made.function.registers.write(at + virtio_pci_cfg_cap.field("cap").nested.offset(name), value, width)  # type: ignore[union-attr]  # it is a record


@pytest.mark.clause("pci.device.pci-configuration-access-capability.2")
@pytest.mark.clause("pci.device.pci-configuration-access-capability.3")
def test_the_window_reaches_the_structures() -> None:
    made = started()
    _, data = window(made)
    status = virtio_pci_common_cfg.offset("device_status")
    made.machine.configuration_change()
    # Accesses of the window's length, whatever the width of the one to pci_cfg_data.
    for width in (1, 2, 4):
        aim(made, MODERN_BAR, status, 1)
        assert made.function.registers.read(data, width) & 0xFF == OK
    aim(made, MODERN_BAR, virtio_pci_common_cfg.offset("queue_select"), 2)
    made.function.registers.write(data, 0xAAAA_0001, 4)
    assert made.get("queue_select") == 1
    aim(made, MODERN_BAR, virtio_pci_common_cfg.offset("device_feature"), 4)
    assert made.function.registers.read(data, 4) == made.get("device_feature")
    # Through the same registers: reading the ISR status takes it, and a notification kicks.
    [isr], [notify] = made.caps(CfgType.ISR_CFG), made.caps(CfgType.NOTIFY_CFG)
    aim(made, isr["bar"], isr["offset"], 1)
    assert made.function.registers.read(data, 1) == 2
    assert (made.isr(), made.lines) == (0, [True, False])
    aim(made, notify["bar"], notify["offset"] + 4, 2)
    made.function.registers.write(data, 1, 2)
    assert made.machine.step()
    # A window that is not aligned to its length, or of a length that there is not, shows what was there before.
    for offset, length in ((status - 1, 2), (status - 2, 4), (status, 3), (status, 0)):
        made.function.registers.store(data, b"\x5a" * 4)
        aim(made, MODERN_BAR, offset, length)
        assert made.function.registers.read(data, 4) == 0x5A5A5A5A
    aim(made, MODERN_BAR, status, 1)
    made.function.registers.write(data, 0, 1)
    assert made.get("device_status") == 0


@given(
    bar=st.integers(0, 255),
    offset=st.integers(0, 0xFFFFFFFF) | st.integers(0, 0x4000),
    length=st.integers(0, 0xFFFFFFFF) | st.integers(0, 8),
    value=st.integers(0, 0xFFFFFFFF),
)
def test_a_window_into_nowhere_does_nothing(bar: int, offset: int, length: int, value: int) -> None:
    made = bench(transitional=True)
    _, data = window(made)
    aim(made, bar, offset, length)
    made.function.registers.read(data, 4)
    made.function.registers.write(data, value, 4)
    aim(made, bar, offset, 3)
    before = made.function.registers.read(data, 4)
    made.function.registers.write(data, value, 4)
    assert made.function.registers.read(data, 4) == value or before == value
    made.set(device_status=0)
    made.bus.functions.clear()
    again = Bench(made.machine)
    assert again.driver().echo(b"well") == b"well"


@pytest.mark.clause("pci.device.non-transitional-device-with-legacy-driver.1")
@pytest.mark.clause("pci.device.non-transitional-device-with-legacy-driver.2")
def test_a_legacy_driver_that_comes_all_the_same_finds_nothing() -> None:
    made = bench(legacy_guard=True)
    assert made.function.bars[0].io
    assert made.function.registers.read(0x10, 4) & 1
    for offset, value, width in ((18, 1, 1), (17, 0, 1), (18, 0, 2), (16, 0, 4)):
        made.function.write_bar(0, offset, value, width)
        assert made.get("num_queues") == 2
        assert made.function.read_bar(0, 18, 1) == 0
    made.function.write_bar(0, 18, 0, 1)
    for bar, behind in made.function.bars.items():
        for region in behind.regions:
            assert made.function.read_bar(bar, region.offset, 1) == 0
            assert made.function.read_bar(bar, region.offset, 4) == 0
    made.set(device_status=1)
    assert made.machine.end.read_status() == 0
    made.function.reset()
    assert made.driver().echo(b"back") == b"back"


# A21, A22, A24: what must not be done --------------------------------------------------------------------------------


def test_a_queue_in_use_is_locked() -> None:
    """A21: the size and the addresses of a running queue stay what they were."""
    made = started()
    active = made.machine.end.active_queue(0)
    assert active is not None
    before = (made.machine.end.queue(0).size, active.size, active.areas)
    made.configure(size=0x8000, at=0)
    made.set(queue_size=0, queue_enable=1)
    assert (made.machine.end.queue(0).size, active.size, active.areas) == before
    assert made.get("queue_enable") == 1
    assert len(made.machine.ignored) == 9
    assert made.machine.end.fault is None


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"queue_size": 0}, RingError),
        ({"queue_size": 65}, RingError),
        ({"queue_size": 12}, RingError),
        ({"queue_size": 0xFFFF}, RingError),
        ({"queue_desc": BASE + 1}, RingError),
        ({"queue_desc": 0}, MemoryFault),
        ({"queue_device": 0xFFFFFFFF_00000000}, MemoryFault),
        ({"queue_driver": BASE + SIZE - 2}, MemoryFault),
    ],
)
def test_a_queue_that_cannot_be_is_not_enabled(values: dict[str, int], error: type[PeerError]) -> None:
    made = bench()
    made.negotiate()
    made.configure()
    made.set(**values)
    made.set(queue_enable=1)
    assert made.get("queue_enable") == 0
    assert made.get("device_status") & DeviceStatus.DEVICE_NEEDS_RESET
    assert isinstance(made.machine.end.fault, error)
    made.set(device_status=0)
    assert made.driver().echo(b"again") == b"again"


def test_a_queue_is_not_enabled_before_its_features_are_known() -> None:
    made = bench()
    made.configure()
    made.set(queue_enable=1)
    assert made.get("queue_enable") == 0
    assert isinstance(made.machine.ignored.pop(), NegotiationError)


def test_a_queue_is_enabled_by_1_alone() -> None:
    made = bench()
    made.negotiate()
    made.configure()
    for value in (0, 2, 0xFFFF):
        made.set(queue_enable=value)
        assert made.get("queue_enable") == 0
        assert isinstance(made.machine.ignored.pop(), MessageError)


@given(offset=st.integers(0, 0x4100), width=st.sampled_from([1, 2, 3, 4, 8]), value=st.integers(0, (1 << 64) - 1))
def test_configuration_is_read_and_written_inside_its_bounds(offset: int, width: int, value: int) -> None:
    """A22: what lies behind the structure is 0, and is not written."""
    made = bench()
    [cap] = made.caps(CfgType.DEVICE_CFG)
    before = bytes(made.device.config)
    at = offset - cap["offset"]
    if 0 <= at <= cap["length"] - width and width in (1, 2, 4):
        assert made.function.read_bar(cap["bar"], offset, width) == int.from_bytes(before[at : at + width], "little")
        return
    if at + width > 0:
        assert made.function.read_bar(cap["bar"], offset, width) == 0
        made.function.write_bar(cap["bar"], offset, value, width)
    assert made.device.config == before


@pytest.mark.parametrize("where", ["notify", "common", "table", "own ring"])
def test_a_buffer_is_no_register(where: str) -> None:
    """A24: an address in a BAR is not memory, so that no device writes its own registers; a ring is but bytes."""
    made = bench()
    driver = made.driver()
    [cap] = made.caps(CfgType.NOTIFY_CFG)
    queue = driver.queues[0]
    address = {
        "notify": made.function.bar_address(cap["bar"]) + cap["offset"],
        "common": made.function.bar_address(MODERN_BAR),
        "table": made.function.bar_address(1),
        "own ring": queue.descriptor_area,
    }[where]
    readable = made.arena.allocate(4)
    queue.add([readable.extent], [(address, 4)], "token")
    while made.machine.step():
        pass
    status = made.get("device_status")
    driver.kick(queue)
    assert made.machine.step()
    faulty = where != "own ring"
    assert bool(made.get("device_status") & DeviceStatus.DEVICE_NEEDS_RESET) == faulty
    assert isinstance(made.machine.end.fault, MemoryFault) == faulty
    assert faulty or made.get("device_status") == status
    driver.reset()
    assert driver.start().echo(b"alive") == b"alive"


def test_a_function_that_is_no_bus_master_reaches_no_memory() -> None:
    made = bench()
    driver = made.driver()
    while made.machine.step():
        pass
    made.command(bus_master=0)
    made.notify(1, at=4)
    assert not made.machine.step()
    assert not made.machine.work(0)
    made.command(bus_master=1)
    assert made.machine.step()
    assert driver.echo(b"x", queue=1) == b"x"


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["config", "common", "msix", "notify", "legacy", "isr"]),
            st.integers(0, 0x7F),
            st.sampled_from([1, 2, 4]),
            st.sampled_from([0, 1, 3, 8, 11, 15, 64, BASE >> 12, BASE, 0xFFFF, 0xFFFFFFFF])
            | st.integers(0, 0xFFFFFFFF),
        ),
        max_size=60,
    )
)
def test_no_sequence_of_accesses_gets_out_of_the_function(steps: list[tuple[str, int, int, int]]) -> None:
    made = bench(transitional=True, msix_vectors=4)
    places = {"common": (MODERN_BAR, 0), "isr": (MODERN_BAR, 0x1000), "notify": (MODERN_BAR, 0x3000)}
    places |= {"msix": (1, 0), "legacy": (0, 0)}
    for where, offset, width, value in steps:
        if where == "config":
            made.function.registers.write(2 * offset, value, width)
            made.function.registers.read(2 * offset, width)
        else:
            bar, start = places[where]
            made.function.write_bar(bar, start + offset, value, width)
            made.function.read_bar(bar, start + offset, width)
        made.machine.step()
    made.function.reset()
    assert made.driver().echo(b"recovered") == b"recovered"


def test_features_that_no_legacy_interface_has_are_offered_over_pci() -> None:
    wanted = RING_FEATURES | mask(Feature.NOTIF_CONFIG_DATA, Feature.NOTIFICATION_DATA, Feature.ADMIN_VQ)
    assert bench(ring_features=wanted).transport().device_features() == wanted
