"""The legacy interface over PCI: transitional devices by either interface, and drivers that find only one of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.echo import Echo, EchoDriver, config_record
from tests.pci_bench import BASE, SIZE, Bench, bench
from tests.test_pci_device import Odd
from virtio_py.errors import MemoryFault, MessageError, NegotiationError
from virtio_py.pci.capabilities import CapabilityId
from virtio_py.pci.virtio_caps import CfgType
from virtio_py.pci.virtio_legacy import legacy_config_offset, virtio_pci_legacy
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.status import LEGACY_RING_FEATURES
from virtio_py.transports.pci_discover import discover
from virtio_py.transports.pci_layout import NO_VECTOR
from virtio_py.transports.pci_legacy_driver import LegacyPciTransport


def transitional(device: Echo | None = None, **options: int) -> Bench:
    return bench(device, transitional=True, **options)


def get(made: Bench, name: str) -> int:
    return made.function.read_bar(0, virtio_pci_legacy.offset(name), virtio_pci_legacy.field(name).size)


def put(made: Bench, **values: int) -> None:
    for name, value in values.items():
        made.function.write_bar(0, virtio_pci_legacy.offset(name), value, virtio_pci_legacy.field(name).size)


def hide_capabilities(made: Bench) -> None:
    """As a legacy device, from before there were virtio capabilities."""
    for capability in made.walk().find(CapabilityId.VENDOR_SPECIFIC):
        made.function.registers.store(capability.offset, bytes([CapabilityId.ADVANCED_FEATURES]))


# The device --------------------------------------------------------------------------------------------------------


@pytest.mark.clause("pci-legacy.device.pci-device-layout.1")
@pytest.mark.clause("pci-legacy.device.device-layout-detection.1")
def test_the_legacy_registers_are_io_at_bar_0() -> None:
    # 4.1.4.10: the table's bits, added up.
    places = {"device_features": 0, "driver_features": 4, "queue_address": 8, "queue_size": 12, "queue_select": 14}
    places |= {"queue_notify": 16, "device_status": 18, "isr_status": 19}
    assert {name: f.offset for name, f in virtio_pci_legacy.fields.items()} == places
    made = transitional()
    assert made.function.registers.read(0x10, 4) & 3 == 1
    assert made.function.bars[0].io
    assert get(made, "device_features") == LEGACY_RING_FEATURES
    put(made, queue_select=1)
    assert (get(made, "queue_size"), get(made, "queue_select"), get(made, "device_status")) == (16, 1, 0)


def test_a_function_that_is_not_transitional_has_none() -> None:
    assert 0 not in bench().function.bars


@pytest.mark.clause("pci-legacy.device.pci-device-layout.3")
@pytest.mark.clause("pci-legacy.device.pci-device-layout.2")
@given(at=st.integers(0, config_record.size - 1), width=st.sampled_from([1, 2, 4]), enabled=st.booleans())
def test_configuration_follows_the_header_at_any_width(at: int, width: int, enabled: bool) -> None:
    made = transitional()
    made.msix_control(enable=int(enabled))
    start = 24 if enabled else 20
    assert legacy_config_offset(enabled) == start
    length = min(width, config_record.size - at)
    natural = bytes(made.device.config)[at : at + length].ljust(width, b"\0")
    assert made.function.read_bar(0, start + at, width) == int.from_bytes(natural, "little")
    made.function.write_bar(0, start + at, 0xC3A5_7B1E & (1 << 8 * width) - 1, width)
    assert made.device.config[at : at + length] == (0xC3A5_7B1E).to_bytes(4, "little")[:length]
    made.msix_control(enable=1 - int(enabled))
    # "If you turn it off again, they move back."
    assert made.function.read_bar(0, 44 - start + at, 1) == 0x1E


@pytest.mark.clause("pci-legacy.device.pci-device-layout.3")
def test_the_vectors_stand_between_while_msix_is_enabled() -> None:
    made = transitional()
    made.msix_control(enable=1)
    assert [made.function.read_bar(0, at, 2) for at in (20, 22)] == [NO_VECTOR, NO_VECTOR]
    made.function.write_bar(0, 20, 0, 2)
    made.function.write_bar(0, 22, 1, 2)
    assert [made.function.read_bar(0, at, 2) for at in (20, 22)] == [0, 1]
    assert (made.get("config_msix_vector"), made.get("queue_msix_vector")) == (0, 1)
    made.function.write_bar(0, 22, 0x7FF, 2)
    assert made.function.read_bar(0, 22, 2) == NO_VECTOR


@pytest.mark.clause("pci-legacy.device.pci-device-layout.4")
def test_features_past_31_are_not_acknowledged() -> None:
    made = transitional()
    # Written by the other interface first, then not.
    made.set(driver_feature_select=1, driver_feature=1)
    assert made.machine.end.features == bit(Feature.VERSION_1)
    put(made, driver_features=bit(Feature.EVENT_IDX), device_status=7)
    assert made.machine.end.features == bit(Feature.EVENT_IDX)
    assert get(made, "device_status") == 7
    assert get(made, "driver_features") == bit(Feature.EVENT_IDX)


def test_the_interface_that_is_touched_in_reset_has_the_device() -> None:
    made = transitional()

    def is_legacy() -> bool:
        return made.machine.end.legacy

    assert get(made, "device_features") & bit(Feature.ANY_LAYOUT)
    assert is_legacy()
    made.set(device_feature_select=1)
    assert made.get("device_feature") & 1
    assert not is_legacy()
    made.negotiate()
    put(made, device_status=7)
    assert not is_legacy()
    # A page number in a device that is driven the other way is no queue.
    put(made, queue_address=BASE >> 12)
    assert get(made, "queue_address") == 0
    assert isinstance(made.machine.ignored.pop(), MessageError)
    made.set(device_status=0)
    put(made, device_status=1)
    assert is_legacy()
    made.set(device_status=0)
    assert made.driver().has(Feature.VERSION_1)


@pytest.mark.parametrize("order", ["legacy first", "modern first"])
def test_both_interfaces_one_after_the_other(order: str) -> None:
    made = transitional()

    def use(legacy: bool) -> None:
        transport = made.legacy_transport() if legacy else made.transport()
        driver = EchoDriver(transport).start()
        assert driver.has(Feature.VERSION_1) != legacy
        assert driver.echo(b"by this one") == b"by this one"
        driver.reset()

    for legacy in ([True, False] if order == "legacy first" else [False, True]) * 2:
        use(legacy)
    assert not made.machine.ignored


def test_a_queue_has_the_size_that_the_device_says() -> None:
    made = transitional(Odd())
    driver = EchoDriver(made.legacy_transport(), queue_size=4).start()
    assert [queue.size for queue in driver.queues] == [8, 1]
    assert driver.echo(b"!" * 3) == b"!" * 3


@pytest.mark.parametrize("page", [1, (BASE + SIZE) >> 12, 0xFFFFFFFF])
def test_a_queue_where_no_memory_is(page: int) -> None:
    made = transitional()
    put(made, device_status=3, queue_address=page)
    assert get(made, "queue_address") == 0
    assert get(made, "device_status") & DeviceStatus.DEVICE_NEEDS_RESET
    assert isinstance(made.machine.end.fault, MemoryFault)


def test_a_queue_is_locked_and_let_go() -> None:
    made = transitional()
    put(made, device_status=3, queue_address=BASE >> 12)
    assert get(made, "queue_address") == BASE >> 12
    put(made, queue_address=(BASE >> 12) + 4)
    assert get(made, "queue_address") == BASE >> 12
    assert isinstance(made.machine.ignored.pop(), MessageError)
    put(made, queue_address=0)
    assert get(made, "queue_address") == 0
    put(made, queue_select=7, queue_address=BASE >> 12)
    assert (get(made, "queue_size"), get(made, "queue_address")) == (0, 0)
    put(made, queue_select=0, queue_address=BASE >> 12, device_status=0)
    assert (get(made, "queue_address"), get(made, "device_status")) == (0, 0)


def test_reading_the_isr_status_takes_it() -> None:
    made = transitional()
    made.machine.used_buffer(0)
    made.machine.configuration_change()
    assert made.lines == [True]
    assert get(made, "isr_status") == 3
    assert (made.lines, get(made, "isr_status"), made.isr()) == ([True, False], 0, 0)


# The driver --------------------------------------------------------------------------------------------------------


@pytest.mark.clause("pci-legacy.driver.pci-device-layout.1")
@pytest.mark.clause("pci-legacy.driver.pci-device-layout.2")
@pytest.mark.clause("pci-legacy.driver.pci-device-layout.3")
@pytest.mark.parametrize("vectors", [0, 1, 2, 3])
def test_the_driver_uses_bar_0_and_nothing_else(vectors: int) -> None:
    made = transitional(msix_vectors=vectors)
    transport = made.legacy_transport()
    made.log.clear()
    driver = EchoDriver(transport).start()
    assert driver.features == mask(Feature.ANY_LAYOUT, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
    assert driver.echo(b"as of old") == b"as of old"
    assert transport.msix == (vectors >= 2)
    made.machine.end.configuration_changed()
    driver.transport.wait(0)
    assert driver.config_changed()
    before = bytes(made.device.config)
    made.log.clear()
    assert driver.read_config_bytes(0, config_record.size) == before
    base, start = made.function.bar_address(0), 24 if vectors >= 2 else 20
    found = {a.offset - base - start for a in made.log}
    assert min(found) == 0
    assert max(found) < config_record.size
    assert {a.space for a in made.log} == {"io"}
    driver.reset()
    driver.start()
    # The table of MSI-X is all of memory that was touched.
    touched = [a.offset for a in made.log if a.space == "memory"]
    if vectors < 2:
        assert not touched
    else:
        table = made.function.bar_address(1)
        assert all(table <= offset < table + 16 * vectors for offset in touched)
    statuses = [value for way, name, value in made.legacy() if (way, name) == ("W", "device_status")]
    assert statuses[:4] == [0, 0, 1, 3]
    assert not made.machine.ignored


def configurations() -> Iterator[tuple[str, Bench, bool | None]]:
    yield "modern", bench(), None
    yield "transitional", transitional(), None
    old = transitional()
    hide_capabilities(old)
    yield "legacy", old, None


@pytest.mark.clause("pci-legacy.driver.device-layout-detection.1")
@pytest.mark.clause("pci-legacy.driver.device-layout-detection.2")
def test_the_legacy_interface_is_for_devices_without_capabilities() -> None:
    for name, made, choice in configurations():
        found = made.find()
        made.log.clear()
        arguments = (found, made.arena, made.machine.work, made.bus.interrupts, config_record)
        transport = discover(*arguments, legacy=choice)
        assert transport is not None
        # The list of capabilities was walked before anything else was touched.
        assert {a.space for a in made.log} == {"config"}
        assert {a.offset for a in made.log} >= {c.offset for c in made.walk().capabilities}
        assert isinstance(transport, LegacyPciTransport) == (name == "legacy")
        assert EchoDriver(transport).start().echo(b"found") == b"found"


@pytest.mark.clause("pci-legacy.driver.device-layout-detection.3")
@pytest.mark.clause("pci-legacy.driver.device-layout-detection.4")
def test_a_driver_without_the_legacy_interface_leaves_such_a_device_alone() -> None:
    for name, made, _ in configurations():
        found = made.find()
        made.log.clear()
        arguments = (found, made.arena, made.machine.work, made.bus.interrupts)
        if name != "legacy":
            assert discover(*arguments, legacy=False) is not None
            continue
        with pytest.raises(NegotiationError, match="COMMON_CFG"):
            discover(*arguments, legacy=False)
        assert {(a.space, a.way) for a in made.log} == {("config", "R")}
        assert {a.offset for a in made.log} >= {c.offset for c in made.walk().capabilities}


def test_a_legacy_interface_that_is_not_there() -> None:
    with pytest.raises(NegotiationError, match="no legacy interface"):
        bench().legacy_transport()
    made = bench()
    hide_capabilities(made)
    with pytest.raises(NegotiationError, match="no legacy interface"):
        made.transport()
    assert made.caps(CfgType.COMMON_CFG) == []


def test_no_single_queue_is_reset_there() -> None:
    driver = EchoDriver(transitional().legacy_transport()).start()
    with pytest.raises(NegotiationError, match="resets no single queue"):
        driver.transport.reset_queue(0)
    with pytest.raises(NegotiationError, match="in use"):
        driver.transport.enable_queue(driver.queues[0])
