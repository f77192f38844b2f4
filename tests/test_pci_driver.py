"""Virtio over PCI, the driver: watched while it finds and drives a device, and against devices that are not as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.echo import Echo, EchoDriver, config_record
from tests.pci_bench import PLACE, Access, Bench, bench
from tests.test_pci_device import Odd
from virtio_py.admin.client import AdminClient, GroupClient
from virtio_py.admin.layout import GroupType, Opcode
from virtio_py.admin.owner import Administration
from virtio_py.errors import MessageError, NegotiationError, PeerError
from virtio_py.memory import Arena, GuestMemory
from virtio_py.pci.bars import Bar, Region
from virtio_py.pci.bus import Address, PciBus
from virtio_py.pci.capabilities import CapabilityId
from virtio_py.pci.enumeration import FoundFunction, enumerate_bus
from virtio_py.pci.function import PciFunction
from virtio_py.pci.header import pci_header_type0
from virtio_py.pci.virtio_caps import CfgType, virtio_pci_cap, virtio_pci_cfg_cap, virtio_pci_common_cfg
from virtio_py.spec import Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.pci_discover import discover
from virtio_py.transports.pci_driver import PciTransport
from virtio_py.transports.pci_find import read_function, structures, vendor_data, virtio_type
from virtio_py.transports.pci_layout import NO_VECTOR
from virtio_py.transports.register_device import RegisterBlock
from virtio_py.transports.registers import config_accesses

EVERYTHING = RING_FEATURES | bit(Feature.NOTIFICATION_DATA) | bit(Feature.NOTIF_CONFIG_DATA)
PACKED = bit(Feature.RING_PACKED)


def exercise(made: Bench, features: int | None = None, **options: Any) -> EchoDriver:
    """A driver through everything that a driver does."""
    driver = made.driver(features, **options)
    assert driver.echo(b"hello") == b"hello"
    driver.read_config_bytes(0, config_record.size)
    driver.transport.write_config(0, b"\xaa" * config_record.size)
    if driver.has(Feature.RING_RESET):
        driver.restart_queue(0, 8)
        assert driver.echo(b"after the reset") == b"after the reset"
    made.machine.end.configuration_changed()
    driver.transport.wait(0)
    assert driver.config_changed()
    driver.reset()
    driver.start()
    assert driver.echo(b"anew", queue=1) == b"anew"
    assert not made.machine.ignored
    return driver


# Finding it (4.1.2, 4.1.4) -----------------------------------------------------------------------------------------


def function_of(**header: int) -> PciFunction:
    return PciFunction({"vendor_id": 0x1AF4, **header})


def find(function: PciFunction) -> FoundFunction:
    bus = PciBus()
    bus.plug(function, PLACE)
    [found] = enumerate_bus(bus)
    return found


@pytest.mark.clause("pci.driver.pci-device-discovery.1")
@pytest.mark.clause("pci.driver.pci-device-discovery.2")
@pytest.mark.clause("pci.driver.pci-device-discovery.3")
@pytest.mark.clause("pci.driver.pci-device-discovery.4")
@pytest.mark.parametrize("revision", [0, 1, 0xFF])
@pytest.mark.parametrize("subsystem", [0, 4, 0xFFFF])
def test_a_device_is_known_by_vendor_and_device_id_alone(revision: int, subsystem: int) -> None:
    rest = {"revision_id": revision, "subsystem_id": subsystem, "subsystem_vendor_id": subsystem}
    modern = {0x1040 + kind: kind for kind in range(64)}
    transitional = {0x1000: 1, 0x1001: 2, 0x1002: 5, 0x1003: 3, 0x1004: 8, 0x1005: 4, 0x1009: 9}
    none = dict.fromkeys((0x0FFF, 0x1006, 0x1080, 0xFFFE), None)
    for device_id, kind in (modern | transitional | none).items():
        assert virtio_type(read_function(find(function_of(device_id=device_id, **rest)))) == kind
    assert virtio_type(read_function(find(PciFunction({"vendor_id": 0x1AF5, "device_id": 0x1041})))) is None


def test_what_is_no_virtio_function_is_passed_over() -> None:
    found = find(PciFunction({"vendor_id": 0x8086, "device_id": 0x1041}))
    arena = Arena(GuestMemory.of(64))
    assert discover(found, arena, lambda timeout: None, PciBus().interrupts) is None


def place(kind: int, offset: int, length: int, bar: int = 4, cap_len: int = 16, ident: int = 0) -> dict[str, int]:
    head = {"cap_vndr": 9, "cap_len": cap_len, "cfg_type": kind}
    return {**head, "bar": bar, "id": ident, "offset": offset, "length": length}


def found_with(*capabilities: tuple[dict[str, int], bytes]) -> tuple[FoundFunction, dict[int, list[int]]]:
    """A function with two BARs and these capabilities, and by their types the offsets of those that are usable."""
    function = PciFunction(
        {"vendor_id": 0x1AF4, "device_id": 0x1044}, {0: Bar(0x1000), 4: Bar(0x4000, wide=True)}, express=False
    )
    for values, extra in capabilities:
        function.registers.add_capability(virtio_pci_cap, values, extra=extra)
    found = find(function)
    usable: dict[int, list[int]] = {}
    for structure in structures(found, read_function(found)):
        usable.setdefault(structure.kind, []).append(structure.offset)
    return found, usable


MULTIPLIER = (4).to_bytes(4, "little")


@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.1")
@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.2")
@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.4")
@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.7")
def test_only_usable_structures_count_and_the_first_is_taken() -> None:
    _, usable = found_with(
        (place(0, 0, 64), b""),
        (place(6, 0, 64), b""),
        (place(1, 0, 64, bar=6), b""),
        (place(1, 0, 64, bar=255), b""),
        (place(1, 0, 64, bar=1), b""),  # no such BAR here
        (place(1, 0, 55), b""),  # shorter than any version of it
        (place(1, 0x3FF0, 64), b""),  # sticks out
        (place(1, 0x100, 64), b""),
        (place(1, 0x200, 64), b""),
        (place(200, 0, 64), b""),
    )
    assert usable == {1: [0x100, 0x200]}


@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.3")
@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.6")
def test_longer_than_known_is_well() -> None:
    _, usable = found_with(
        (place(1, 0, 0xFFFFFFFF, cap_len=24), bytes(8)),
        (place(2, 0x3000, 0x80000000, cap_len=28), MULTIPLIER + bytes(8)),
        (place(3, 0x1000, 0x10000), b""),
    )
    assert usable == {1: [0], 2: [0x3000], 3: [0x1000]}
    # But one that says it is shorter than its structure does not count, nor one that configuration space cuts off.
    assert found_with((place(2, 0x3000, 4, cap_len=16), b""))[1] == {}
    function = PciFunction({"vendor_id": 0x1AF4, "device_id": 0x1044}, {4: Bar(0x4000)}, express=False)
    cut = virtio_pci_cap.encode(**place(1, 0, 64))[:8]
    function.registers.store(0xF8, cut)
    function.registers.store(pci_header_type0.offset("capabilities_pointer"), b"\xf8")
    found = find(function)
    assert list(structures(found, read_function(found))) == []


@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.5")
@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.6")
@pytest.mark.parametrize("length", [0x40, 0x1000, 0xFFFF_FFFF])
def test_no_more_is_touched_than_is_needed(length: int) -> None:
    made = bench()
    registers = made.function.registers
    for cap in made.caps(CfgType.COMMON_CFG) + made.caps(CfgType.DEVICE_CFG) + made.caps(CfgType.ISR_CFG):
        registers.store(cap["at"] + virtio_pci_cap.offset("length"), length.to_bytes(4, "little"))
    driver = exercise(made)
    base = made.function.bar_address(4)
    # However long it says it is, a page of it is enough.
    assert driver.transport.read_config(0x0FFC, 8) == bytes(8)
    assert base + 0x3000 not in {access.offset for access in made.log if access.way == "R"}
    made.log[:] = [a for a in made.log if not 0x2FFC <= a.offset - base < 0x3000]
    for access in made.log:
        if access.space == "memory" and base <= access.offset < base + 0x3000:
            at = access.offset - base
            assert at < 0x40 or at == 0x1000 or 0x2000 <= at < 0x2000 + config_record.size


def old_device(length: int) -> Bench:
    """A function whose common configuration says it is shorter."""
    made = bench(ring_features=EVERYTHING | bit(Feature.ADMIN_VQ))
    [cap] = made.caps(CfgType.COMMON_CFG)
    made.function.registers.store(cap["at"] + virtio_pci_cap.offset("length"), length.to_bytes(4, "little"))
    return made


@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.7")
@pytest.mark.parametrize(
    ("length", "lost"),
    [
        (56, {Feature.NOTIF_CONFIG_DATA, Feature.RING_RESET, Feature.ADMIN_VQ}),
        (58, {Feature.RING_RESET, Feature.ADMIN_VQ}),
        (60, {Feature.ADMIN_VQ}),
        (64, set()),
    ],
)
def test_an_older_structure_has_no_registers_for_newer_features(length: int, lost: set[Feature]) -> None:
    made = old_device(length)
    offered = made.transport().device_features()
    assert offered == made.machine.ring_features & ~sum(bit(feature) for feature in lost)
    assert exercise(made, features=offered & ~bit(Feature.ADMIN_VQ)).features
    assert all(a.offset + a.width <= length for a in made.accesses(CfgType.COMMON_CFG))


def test_a_device_without_what_it_needs_is_refused() -> None:
    with pytest.raises(NegotiationError, match="COMMON_CFG"):
        old_device(55).transport()
    made = bench()
    [cap] = made.caps(CfgType.NOTIFY_CFG)
    made.function.registers.store(cap["at"] + virtio_pci_cap.offset("length"), bytes(4))
    with pytest.raises(NegotiationError, match="NOTIFY_CFG"):
        made.transport()


@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.8")
@pytest.mark.clause("pci.driver.pci-configuration-access-capability.2")
def test_capabilities_are_not_written_and_the_window_not_looked_into() -> None:
    made = bench(vendor_data=[(0x8086, b"data")], express=False)
    exercise(made)
    spans = [(c.offset, c.offset + len(c.raw)) for c in made.walk().capabilities if c.id == 9]
    assert len(spans) == 6
    [cap] = made.caps(CfgType.PCI_CFG)
    data = cap["at"] + virtio_pci_cfg_cap.offset("pci_cfg_data")
    for access in made.log:
        if access.space == "config":
            end = access.offset + access.width
            assert access.way == "R" or not any(access.offset < high and low < end for low, high in spans)
            assert end <= data or access.offset >= data + 4


def test_a_window_is_all_that_a_driver_needs() -> None:
    """VIRTIO_PCI_CAP_PCI_CFG alone: no access to any BAR."""
    made = bench(transitional=True)
    driver = exercise(made, window=True)
    assert isinstance(driver.transport, PciTransport)
    assert not driver.transport.msix
    assert {access.space for access in made.log} == {"config"}


@pytest.mark.clause("pci.driver.pci-configuration-access-capability.1")
@pytest.mark.clause("pci.driver.pci-configuration-access-capability.2")
@pytest.mark.clause("pci.driver.virtio-structure-pci-capabilities.8")
def test_the_window_is_aimed_at_structures_before_it_is_used() -> None:
    made = bench()
    found = made.find()
    caps = [c for kind in (1, 2, 3, 4) for c in made.caps(CfgType(kind))]
    [window] = made.caps(CfgType.PCI_CFG)
    fields = {window["at"] + virtio_pci_cap.offset(name): name for name in ("bar", "offset", "length")}
    data = window["at"] + virtio_pci_cfg_cap.offset("pci_cfg_data")
    made.log.clear()
    transport = discover(found, made.arena, made.machine.work, made.bus.interrupts, config_record, window=True)
    assert transport is not None
    EchoDriver(transport).start().echo(b"through the window")
    aimed: dict[str, int] = {}
    used = 0
    for access in made.log:
        if access.offset in fields and access.way == "W":
            aimed[fields[access.offset]] = access.value
            assert fields[access.offset] != "offset" or access.value % aimed["length"] == 0
        elif access.offset == data:
            used += 1
            inside = [
                c
                for c in caps
                if c["bar"] == aimed["bar"]
                and c["offset"] <= aimed["offset"]
                and aimed["offset"] + aimed["length"] <= c["offset"] + c["length"]
            ]
            assert inside
            assert aimed["length"] in (1, 2, 4)
            assert access.width == aimed["length"]
        elif access.way == "W":
            assert not window["at"] <= access.offset < data + 4
    assert used > 50


@pytest.mark.clause("pci.driver.vendor-data-capability.1")
@pytest.mark.clause("pci.driver.vendor-data-capability.2")
def test_vendor_data_is_for_reports_and_by_its_vendor() -> None:
    data = [(0x8086, b"abcd12"), (0x1B36, b"zz"), (0x8086, b"")]
    with_data, without = bench(vendor_data=data, express=False), bench(express=False)
    function = read_function(with_data.find())
    assert vendor_data(function, 0x8086) == [b"abcd12", b"\0\0"]
    assert vendor_data(function, 0x1B36) == [b"zz"]
    assert vendor_data(function, 0x1234) == []
    for made in (with_data, without):
        exercise(made)
    # What the driver does does not depend on it, and it writes none.
    seen = [[a for a in made.log if a.space != "config"] for made in (with_data, without)]
    assert seen[0] == seen[1]


def test_shared_memory_is_found_by_its_id() -> None:
    views = {3: memoryview(bytearray(0x1800)), 0: memoryview(bytearray(b"hello virtio"))}
    made = bench(shared_memory=views, express=False)
    transport = made.transport()
    found = transport.shared_memory(0)
    assert found is not None
    address, length = found
    assert length == 12
    assert bytes(made.bus.memory.read(address + n, 1) for n in range(length)) == b"hello virtio"
    made.bus.memory.write(address + 4, 0x2A2A, 2)
    assert bytes(views[0]) == b"hell**virtio"
    assert transport.shared_memory(3) == (made.function.bar_address(2), 0x1800)
    assert transport.shared_memory(1) is None


# Registers (4.1.3, 4.1.4.3) ----------------------------------------------------------------------------------------

READ_ONLY = {"device_feature", "num_queues", "config_generation", "queue_notify_off", "queue_notif_config_data"}
READ_ONLY |= {"admin_queue_index", "admin_queue_num"}
MODES = pytest.mark.parametrize(
    "features",
    [
        RING_FEATURES & ~PACKED,
        RING_FEATURES,
        EVERYTHING & ~PACKED,
        EVERYTHING,
    ],
    ids=["split", "packed", "split-data", "packed-data"],
)


@MODES
@pytest.mark.clause("pci.driver.pci-device-layout.1")
@pytest.mark.clause("pci.driver.pci-device-layout.2")
@pytest.mark.clause("pci.driver.common-configuration-structure-layout.1")
def test_fields_are_accessed_at_their_width_and_written_only_where_they_may(features: int) -> None:
    made = bench(ring_features=EVERYTHING)
    exercise(made, features)
    fields = {f.offset: (name, f.size) for name, f in virtio_pci_common_cfg.fields.items()}
    for access in made.accesses(CfgType.COMMON_CFG):
        if access.offset in fields:
            name, size = fields[access.offset]
            assert access.width == min(size, 4)
            assert access.way == "R" or name not in READ_ONLY
        else:
            assert fields[access.offset - 4][1] == 8
            assert access.width == 4
    wanted = set(config_accesses(config_record))
    assert {(a.offset, a.width) for a in made.accesses(CfgType.DEVICE_CFG)} == wanted
    assert {a.width for a in made.accesses(CfgType.ISR_CFG)} <= {1}


@MODES
@pytest.mark.clause("pci.driver.common-configuration-structure-layout.2")
@pytest.mark.clause("pci.driver.common-configuration-structure-layout.3")
@pytest.mark.clause("pci.driver.common-configuration-structure-layout.4")
@pytest.mark.clause("pci.driver.common-configuration-structure-layout.5")
@pytest.mark.clause("pci.driver.common-configuration-structure-layout.6")
@pytest.mark.clause("pci.driver.common-configuration-structure-layout.7")
@pytest.mark.clause("pci.driver.common-configuration-structure-layout.8")
@pytest.mark.clause("pci.driver.common-configuration-structure-layout.9")
def test_queues_are_set_up_and_reset_in_order(features: int) -> None:
    made = bench(ring_features=EVERYTHING)
    exercise(made, features)
    written: dict[int, set[str]] = {}
    sizes: list[int] = []
    selected, waiting, resetting = 0, False, False
    for way, name, value in made.common():
        if waiting:
            # After a reset: nothing but reads of the status, until it is 0.
            assert (way, name) == ("R", "device_status")
            waiting = value != 0
        elif resetting:
            assert (way, name) == ("R", "queue_reset")
            resetting = value != 0
        elif way == "R":
            continue
        elif name == "device_status" and value == 0:
            waiting = True
            written.clear()
        elif name == "queue_select":
            selected = value
        elif name == "queue_reset":
            assert value == 1
            resetting = True
            written.pop(selected)
        elif name == "queue_enable":
            assert value == 1
            assert written[selected] == {f"queue_{n}" for n in ("size", "desc", "driver", "device", "msix_vector")}
            written[selected].add(name)
        elif name.startswith("queue_"):
            assert "queue_enable" not in written.setdefault(selected, set())
            written[selected].add(name)
            if name == "queue_size":
                sizes.append(value)
    assert all(sizes)
    assert all(size & (size - 1) == 0 for size in sizes)
    # The queue that was reset came back with another size.
    assert sizes[:3] == [64, 16, 8]


class Slow:
    """The registers of a common configuration in which a queue reset takes its time, or never ends."""

    def __init__(self, inner: RegisterBlock, polls: int, after: int = 0) -> None:
        self.inner, self.polls, self.left, self.after = inner, polls, 0, after

    def read(self, offset: int, width: int) -> int:
        if offset == virtio_pci_common_cfg.offset("queue_reset") and self.left:
            self.left -= 1
            return 1
        if offset == virtio_pci_common_cfg.offset("queue_enable") and self.after:
            return self.after
        return self.inner.read(offset, width)

    def write(self, offset: int, value: int, width: int) -> None:
        if offset == virtio_pci_common_cfg.offset("queue_reset"):
            self.left = self.polls
        self.inner.write(offset, value, width)


def slowed(polls: int, after: int = 0) -> Bench:
    made = bench()
    bar = made.function.bars[4]
    first = bar.regions[0]
    assert isinstance(first.access, RegisterBlock)
    slow = Region(first.offset, first.size, Slow(first.access, polls, after))
    made.function.bars = {**made.function.bars, 4: Bar(bar.size, [slow, *bar.regions[1:]], wide=True)}
    return made


@pytest.mark.clause("pci.driver.common-configuration-structure-layout.7")
def test_a_queue_reset_is_over_when_the_device_says_so() -> None:
    made = slowed(7)
    exercise(made)
    start = made.common().index(("W", "queue_reset", 1))
    polls = [access for access in made.common()[start:] if access[1] == "queue_reset"][1:]
    assert [value for _, _, value in polls] == [1] * 7 + [0]
    never = slowed(1 << 40).driver()
    with pytest.raises(PeerError, match="queue_reset"):
        never.restart_queue(0)


def test_a_queue_that_is_in_use_is_not_set_up_and_one_that_stays_so_is_told() -> None:
    driver = bench().driver()
    with pytest.raises(NegotiationError, match="in use"):
        driver.transport.enable_queue(driver.queues[0])
    with pytest.raises(NegotiationError, match="in use"):
        slowed(0, after=1).driver()
    made = slowed(0)
    driver = made.driver()
    slow = made.function.bars[4].regions[0].access
    assert isinstance(slow, Slow)
    slow.after = 1
    with pytest.raises(MessageError, match="queue_enable"):
        driver.restart_queue(0)


@pytest.mark.clause("pci.driver.common-configuration-structure-layout.10")
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("wanted", [0, 1])
def test_administration_queues_are_set_up_at_their_indices(count: int, wanted: int) -> None:
    echo = Echo()
    made = bench(echo, admin=Administration(echo, count=count) if count else None)
    driver = EchoDriver(made.transport(), features=RING_FEATURES | bit(Feature.ADMIN_VQ) * wanted).start()
    indices = [*range(2, 2 + count)] if wanted else []
    assert [*driver.transport.admin_queues] == [queue.index for queue in driver.admin_queues] == indices
    assert driver.transport.num_queues == len(driver.queues) == 2
    assert driver.echo(b"beside them") == b"beside them"
    if indices:
        used = GroupClient(AdminClient(driver), GroupType.SELF).used
        assert {Opcode.LIST_QUERY, Opcode.LIST_USE} <= used


@pytest.mark.clause("pci.driver.common-configuration-structure-layout.11")
def test_one_administration_queue_of_two_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PciTransport, "admin_queues", property(lambda self: range(2, 3)))
    echo = Echo()
    made = bench(echo, admin=Administration(echo, count=2))
    driver = EchoDriver(made.transport(), features=RING_FEATURES | bit(Feature.ADMIN_VQ)).start()
    assert [queue.index for queue in driver.admin_queues] == [2]
    assert GroupClient(AdminClient(driver), GroupType.SELF).used
    assert made.machine.end.active_queue(3) is None


# Notifications (4.1.5.2) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [0, 4, 0x1000])
@pytest.mark.parametrize("data", [0, bit(Feature.NOTIFICATION_DATA)], ids=["16-bit", "32-bit"])
@pytest.mark.parametrize("named", [0, bit(Feature.NOTIF_CONFIG_DATA)], ids=["index", "notif_config_data"])
@pytest.mark.clause("pci.driver.available-buffer-notifications.1")
@pytest.mark.clause("pci.driver.available-buffer-notifications.2")
@pytest.mark.clause("pci.driver.available-buffer-notifications.3")
@pytest.mark.clause("pci.driver.available-buffer-notifications.4")
@pytest.mark.clause("pci.driver.available-buffer-notifications.5")
@pytest.mark.clause("pci.driver.available-buffer-notifications.6")
def test_a_notification_is_as_wide_and_says_what_was_negotiated(multiplier: int, data: int, named: int) -> None:
    made = bench(ring_features=EVERYTHING, notify_off_multiplier=multiplier)
    for index in range(2):
        made.machine.end.queue(index).notif_config_data = 0x1230 + index
    driver = made.driver(bit(Feature.VERSION_1) | data | named)
    made.log.clear()
    assert driver.echo(b"x", queue=1) == b"x"
    name = 0x1231 if named else 1
    # The high half: where the driver adds next, after one buffer.
    expected = (
        Access("memory", "W", multiplier, 4, 1 << 16 | name) if data else Access("memory", "W", multiplier, 2, name)
    )
    assert made.accesses(CfgType.NOTIFY_CFG) == [expected]
    assert not made.machine.ignored


def test_a_notification_that_would_miss_its_structure_is_not_sent() -> None:
    made = bench(notify_off_multiplier=0x400)
    [cap] = made.caps(CfgType.NOTIFY_CFG)
    made.function.registers.store(cap["at"] + virtio_pci_cap.offset("length"), (0x401).to_bytes(4, "little"))
    with pytest.raises(NegotiationError, match="behind their structure"):
        made.driver()


# Interrupts (4.1.5.1.2 … 4.1.5.5) ----------------------------------------------------------------------------------


@pytest.mark.clause("pci.driver.msi-x-vector-configuration.1")
@pytest.mark.clause("pci.driver.msi-x-vector-configuration.2")
@pytest.mark.clause("pci.driver.msi-x-vector-configuration.3")
@pytest.mark.clause("pci.driver.msi-x-vector-configuration.4")
@pytest.mark.clause("pci.driver.msi-x-vector-configuration.5")
@pytest.mark.parametrize("vectors", [0, 1, 2, 3, 4, 0x7FF, 0x800])
def test_any_number_of_vectors_will_do(vectors: int) -> None:
    made = bench(msix_vectors=vectors)
    driver = exercise(made)
    assert isinstance(driver.transport, PciTransport)
    # One vector tells nothing of why it fires: the line does.
    assert driver.transport.msix == (vectors >= 2)
    mapped: dict[int, int] = {}
    selected, accesses = 0, made.common()
    for n, (way, name, value) in enumerate(accesses):
        if (way, name) == ("W", "queue_select"):
            selected = value
        if way == "W" and name.endswith("msix_vector"):
            assert value < vectors
            assert accesses[n + 1] == ("R", name, value)
            mapped[selected if name.startswith("queue") else -1] = value
    assert mapped == ({} if vectors < 2 else {-1: 0, 0: 1, 1: min(2, vectors - 1)})


def test_vectors_are_written_while_all_are_masked() -> None:
    made = bench()
    made.driver()
    [cap] = made.walk().find(CapabilityId.MSI_X)
    base, control = made.function.bar_address(1), cap.offset + 2
    open_ = True
    for access in made.log:
        if access.space == "config" and access.way == "W" and access.offset == control:
            assert access.value >> 15
            open_ = not access.value >> 14 & 1
        elif access.space == "memory" and base <= access.offset < base + 48:
            assert not open_
    assert open_


def test_a_size_is_asked_for_anew_after_a_reset() -> None:
    made = bench(Odd())
    transport = made.transport()
    for features, size in ((RING_FEATURES & ~PACKED, 8), (RING_FEATURES, 12)):
        driver = EchoDriver(transport, features=features).start()
        assert driver.queues[0].size == size
        driver.reset()


class Stingy(RegisterBlock):
    """A common configuration that maps events to some vectors only."""

    allowed: Callable[[str, int], bool]
    name: Callable[[int], str]

    def write(self, offset: int, value: int, width: int) -> None:
        vectors = {virtio_pci_common_cfg.offset(f"{n}_msix_vector"): n for n in ("config", "queue")}
        if offset in vectors and not type(self).allowed(vectors[offset], value):
            value = NO_VECTOR
        super().write(offset, value, width)


def stingy(allowed: Callable[[str, int], bool]) -> Bench:
    made = bench(msix_vectors=8)
    made.function.bars[4].regions[0].access.__class__ = type("Some", (Stingy,), {"allowed": staticmethod(allowed)})
    return made


@pytest.mark.clause("pci.driver.msi-x-vector-configuration.6")
def test_a_vector_that_is_refused_is_replaced() -> None:
    fewer = stingy(lambda name, vector: vector < 2)
    assert exercise(fewer).queues
    assert (fewer.get("config_msix_vector"), fewer.get("queue_msix_vector")) == (0, 1)
    one = stingy(lambda name, vector: vector == 0)
    exercise(one)
    one.set(queue_select=0)
    assert one.get("queue_msix_vector") == 0
    line = stingy(lambda name, vector: name == "queue")
    driver = exercise(line)
    assert isinstance(driver.transport, PciTransport)
    assert not driver.transport.msix
    with pytest.raises(NegotiationError, match="no vector"):
        stingy(lambda name, vector: name == "config").driver()


class Lying(RegisterBlock):
    """A common configuration whose events are mapped to vector 2, whatever was asked for."""

    def read(self, offset: int, width: int) -> int:
        mapped = offset == virtio_pci_common_cfg.offset("config_msix_vector")
        return 2 if mapped else super().read(offset, width)


def test_a_vector_that_reads_back_as_another_is_told() -> None:
    made = bench()
    made.function.bars[4].regions[0].access.__class__ = Lying
    with pytest.raises(NegotiationError, match="reads 0x2"):
        made.driver()


@pytest.mark.clause("pci.driver.isr-status-capability.1")
def test_with_msix_the_isr_status_is_left_alone() -> None:
    made = bench()
    exercise(made)
    assert made.accesses(CfgType.ISR_CFG) == []
    by_line = bench(msix_vectors=0)
    exercise(by_line)
    assert by_line.accesses(CfgType.ISR_CFG)


@pytest.mark.clause("pci.driver.notification-of-device-configuration-changes.1")
@pytest.mark.parametrize("vectors", [0, 1, 3])
def test_one_interrupt_may_be_for_all(vectors: int) -> None:
    made = bench(msix_vectors=vectors) if vectors != 3 else stingy(lambda name, vector: vector == 0)
    driver = made.driver()
    while made.machine.step():
        pass
    driver.transport.wait(0)
    driver.config_changed()
    for queue in driver.queues:
        queue.add([driver.transport.arena.allocate(4).extent], token=queue.index)
        driver.kick(queue)
    made.log.clear()
    while made.machine.step():
        pass
    made.machine.end.configuration_changed()
    driver.transport.wait(0)
    assert driver.config_changed()
    assert [driver.wait_used(queue, timeout=0)[0][0] for queue in driver.queues] == [0, 1]
    # The ISR status was read once: what a second read returns is lost to the first.
    assert len(made.accesses(CfgType.ISR_CFG)) == (vectors != 3)


def test_a_line_that_is_not_ours_is_not_looked_into() -> None:
    made = bench(msix_vectors=0)
    driver = made.driver()
    driver.transport.wait(0)
    made.isr()
    made.log.clear()
    made.bus.interrupts.set_line(Address(9), True)
    driver.transport.wait(0)
    assert made.accesses(CfgType.ISR_CFG) == []


# Hostile devices ---------------------------------------------------------------------------------------------------


@given(
    changes=st.lists(st.tuples(st.integers(0x34, 255) | st.integers(0x84, 0xFC), st.integers(0, 255)), max_size=6),
    legacy=st.sampled_from([None, False, True]),
    window=st.booleans(),
)
def test_any_configuration_space_is_driven_or_refused(
    changes: list[tuple[int, int]], legacy: bool | None, window: bool
) -> None:
    made = bench(transitional=True, vendor_data=[(1, b"")])
    for at, byte in changes:
        made.function.registers.store(at, bytes([byte]))
    found = made.find()
    try:
        arguments = (found, made.arena, made.machine.work, made.bus.interrupts)
        transport = discover(*arguments, legacy=legacy, window=window)
    except PeerError:
        return
    assert transport is not None
    transport.device_features()
    transport.read_config(0, 8)
    assert vendor_data(read_function(found), 0x8086) == []


def test_registers_that_are_all_ones_are_no_device() -> None:
    """As of a function that was pulled out."""
    made = bench()
    transport = made.transport()
    made.bus.functions.clear()
    driver = EchoDriver(transport)
    with pytest.raises(NegotiationError, match="status"):
        driver.await_status(0, timeout=0)
    assert transport.max_queue_size(0) == 0xFFFF
