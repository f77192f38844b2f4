"""Virtio over MMIO, register by register: the device against drivers that do what they must not, the driver watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from tests.echo import Echo, EchoDriver, config_record
from virtio_py.errors import MemoryFault, MessageError, NegotiationError, PeerError, RingError
from virtio_py.memory import Arena, GuestMemory
from virtio_py.records import Record
from virtio_py.spec import DeviceId, DeviceStatus, Feature, bit, mask
from virtio_py.status import RING_FEATURES
from virtio_py.transports.mmio import MmioDevice
from virtio_py.transports.mmio_driver import LegacyMmioTransport, MmioTransport, discover
from virtio_py.transports.mmio_layout import CONFIG, virtio_mmio, virtio_mmio_legacy
from virtio_py.transports.mmio_legacy import LegacyMmioDevice
from virtio_py.transports.registers import FEATURE_WORDS, config_accesses

BASE = 0x10000
CLAUSE = "mmio.{}.mmio-device-register-layout.{}"

# Transcribed from the two tables of 4.2: offset, name, direction.
TABLE = """
000 MagicValue R, 004 Version R, 008 DeviceID R, 00c VendorID R, 010 DeviceFeatures R, 014 DeviceFeaturesSel W,
020 DriverFeatures W, 024 DriverFeaturesSel W, 030 QueueSel W, 034 QueueSizeMax R, 038 QueueSize W, 044 QueueReady RW,
050 QueueNotify W, 060 InterruptStatus R, 064 InterruptACK W, 070 Status RW, 080 QueueDescLow W, 084 QueueDescHigh W,
090 QueueDriverLow W, 094 QueueDriverHigh W, 0a0 QueueDeviceLow W, 0a4 QueueDeviceHigh W, 0ac SHMSel W,
0b0 SHMLenLow R, 0b4 SHMLenHigh R, 0b8 SHMBaseLow R, 0bc SHMBaseHigh R, 0c0 QueueReset RW, 0fc ConfigGeneration R"""
LEGACY_TABLE = """
000 MagicValue R, 004 Version R, 008 DeviceID R, 00c VendorID R, 010 HostFeatures R, 014 HostFeaturesSel W,
020 GuestFeatures W, 024 GuestFeaturesSel W, 028 GuestPageSize W, 030 QueueSel W, 034 QueueSizeMax R, 038 QueueSize W,
03c QueueAlign W, 040 QueuePFN RW, 050 QueueNotify W, 060 InterruptStatus R, 064 InterruptACK W, 070 Status RW"""


def registers(table: str) -> dict[int, tuple[str, str]]:
    rows = [row.split() for row in table.replace("\n", " ").split(",")]
    return {int(offset, 16): (name, direction) for offset, name, direction in rows}


DIRECTIONS = {1: registers(LEGACY_TABLE), 2: registers(TABLE)}


@define(eq=False)
class Bench:
    """A machine, its memory and interrupt line, and every access made to it: (R or W, offset, width, value)."""

    machine: MmioDevice
    lines: list[bool] = field(factory=list)
    log: list[tuple[str, int, int, int]] = field(factory=list)
    arena: Arena = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.arena = Arena(self.machine.memory)
        self.machine.interrupt = self.lines.append

    @property
    def device(self) -> Echo:
        assert isinstance(self.machine.device, Echo)
        return self.machine.device

    def read(self, offset: int, width: int) -> int:
        value = self.machine.read(offset, width)
        self.log.append(("R", offset, width, value))
        return value

    def write(self, offset: int, value: int, width: int) -> None:
        self.log.append(("W", offset, width, value))
        self.machine.write(offset, value, width)

    def get(self, name: str) -> int:
        return self.machine.read(self.machine.layout.offset(name), 4)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self.machine.write(self.machine.layout.offset(name), value, 4)

    def transport(self) -> MmioTransport:
        transport = discover(self, self.arena, self.machine.work, config_record)
        assert transport is not None
        return transport

    def driver(self, features: int | None = None) -> EchoDriver:
        return EchoDriver(self.transport(), features=features).start()

    def accesses(self) -> list[tuple[str, str, int]]:
        """(direction, register, value) of the accesses to control registers."""
        names = DIRECTIONS[self.machine.version]
        return [(way, names[at][0], value) for way, at, _, value in self.log if at < CONFIG]


def bench(**options: Any) -> Bench:
    return Bench(MmioDevice(Echo(), GuestMemory.of(1 << 18, BASE), **options))


def legacy_bench() -> Bench:
    return Bench(LegacyMmioDevice(Echo(), GuestMemory.of(1 << 18, BASE)))


BENCHES = pytest.mark.parametrize("make", [bench, legacy_bench])
OK = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK


def negotiated(features: int = bit(Feature.VERSION_1) | bit(Feature.RING_RESET), **options: Any) -> Bench:
    """A machine with FEATURES_OK set and no queue enabled, by hand."""
    made = bench(**options)
    made.set(DriverFeaturesSel=1, DriverFeatures=features >> 32)
    made.set(Status=OK & ~DeviceStatus.DRIVER_OK)
    assert made.get("Status") & DeviceStatus.FEATURES_OK
    return made


def configure(made: Bench, size: int = 8, at: int = BASE) -> None:
    made.set(QueueSize=size, QueueDescLow=at, QueueDriverLow=at + 0x1000, QueueDeviceLow=at + 0x2000)


# The device --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("record", "version"), [(virtio_mmio_legacy, 1), (virtio_mmio, 2)])
def test_the_layout_is_the_table(record: Record, version: int) -> None:
    declared = {f.offset: name for name, f in record.fields.items() if f.kind == "int"}
    assert declared == {offset: name for offset, (name, _) in DIRECTIONS[version].items()}
    assert record.size == CONFIG == 0x100


@BENCHES
@pytest.mark.clause("mmio.device.mmio-device-register-layout.1")
@pytest.mark.clause("mmio.device.mmio-device-register-layout.2")
def test_a_driver_finds_what_is_there(make: Callable[[], Bench]) -> None:
    made = make()
    assert made.get("MagicValue") == 0x74726976
    assert made.get("Version") == (2 if make is bench else 1)
    assert made.get("DeviceID") == DeviceId.ENTROPY


@BENCHES
@given(offset=st.integers(0, CONFIG - 1), width=st.integers(0, 9), value=st.integers(0, (1 << 64) - 1))
def test_what_is_no_access_to_a_register_does_nothing(
    make: Callable[[], Bench], offset: int, width: int, value: int
) -> None:
    made = make()
    allowed = DIRECTIONS[made.machine.version].get(offset, ("", ""))[1] if width == 4 else ""
    before = made.get("Status")
    if "R" not in allowed:
        assert made.machine.read(offset, width) == 0
        assert isinstance(made.machine.ignored.pop(), MessageError)
    if "W" not in allowed:
        made.machine.write(offset, value, width)
        assert isinstance(made.machine.ignored.pop(), MessageError)
        assert made.get("Status") == before


@BENCHES
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(sorted({*registers(TABLE), *registers(LEGACY_TABLE), CONFIG, CONFIG + 8})),
            st.sampled_from([0, 1, 2, 3, 8, 11, 15, 64, BASE, 0x10000, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF),
        ),
        max_size=60,
    )
)
def test_no_sequence_of_writes_gets_out_of_the_machine(make: Callable[[], Bench], steps: list[tuple[int, int]]) -> None:
    made = make()
    for offset, value in steps:
        made.machine.write(offset, value, 4)
        made.machine.read(offset, 4)
        made.machine.step()
    made.machine.write(virtio_mmio.offset("Status"), 0, 4)
    assert made.driver().echo(b"recovered") == b"recovered"


@given(offset=st.integers(CONFIG, 0x1_0000_0000), width=st.integers(0, 9), value=st.integers(0, (1 << 64) - 1))
def test_configuration_takes_any_place_and_refuses_odd_widths(offset: int, width: int, value: int) -> None:
    made = bench()
    before = bytes(made.device.config)
    at = offset - CONFIG
    wanted = before[at : at + width].ljust(width, b"\0") if width in (1, 2, 4) else b""
    assert made.machine.read(offset, width) == int.from_bytes(wanted, "little")
    made.machine.write(offset, value, width)
    assert len(made.device.config) == len(before)
    assert len(made.machine.ignored) == (0 if width in (1, 2, 4) else 2)


@pytest.mark.clause("mmio.device.mmio-device-register-layout.3")
@pytest.mark.clause("mmio.device.mmio-device-register-layout.4")
def test_an_event_stays_until_it_is_acknowledged() -> None:
    made = bench()
    driver = made.driver()
    assert made.get("InterruptStatus") == 0
    queue = driver.queues[0]
    buffer = driver.transport.arena.allocate(8)
    queue.add([buffer.extent])
    driver.kick(queue)
    made.lines.clear()
    made.machine.step()
    assert (made.get("InterruptStatus"), made.lines) == (1, [True])
    made.device.config[0] ^= 1
    made.machine.end.configuration_changed()
    assert (made.get("InterruptStatus"), made.lines) == (3, [True])
    made.set(InterruptACK=1)
    assert (made.get("InterruptStatus"), made.lines) == (2, [True])
    made.set(InterruptACK=0xFFFFFFFF)
    assert (made.get("InterruptStatus"), made.lines) == (0, [True, False])


@BENCHES
@pytest.mark.clause("mmio.device.mmio-device-register-layout.5")
@pytest.mark.clause("mmio.device.mmio-device-register-layout.6")
@pytest.mark.clause("mmio.device.mmio-device-register-layout.9")
def test_reset_clears_interrupts_and_queues(make: Callable[[], Bench]) -> None:
    made = make()
    made.driver()
    made.machine.end.configuration_changed()
    assert made.get("InterruptStatus")
    made.set(Status=0)
    assert made.get("InterruptStatus") == 0
    assert made.lines[-1] is False
    in_use = "QueueReady" if make is bench else "QueuePFN"
    for index in (0, 1):
        made.set(QueueSel=index)
        assert made.get(in_use) == 0
        if make is bench:
            assert made.get("QueueReset") == 0


@pytest.mark.clause("mmio.device.mmio-device-register-layout.7")
def test_the_generation_moves_when_what_was_read_is_stale() -> None:
    made = bench()
    before = made.get("ConfigGeneration")
    low = made.machine.read(CONFIG, 4)
    made.device.config[0] ^= 0xFF
    assert made.machine.read(CONFIG, 4) != low
    assert made.get("ConfigGeneration") != before


@pytest.mark.clause("mmio.device.mmio-device-register-layout.8")
def test_a_queue_that_is_not_ready_is_left_alone() -> None:
    made = bench()
    driver = made.driver()
    transport = driver.transport
    assert isinstance(transport, MmioTransport)
    transport.stop_queue(0)
    served = made.device.served
    area = bytes(made.machine.memory.view(BASE, 1 << 18))
    made.set(QueueNotify=0)
    while made.machine.step():
        pass
    assert made.device.served == served
    assert bytes(made.machine.memory.view(BASE, 1 << 18)) == area


@pytest.mark.clause("mmio.device.mmio-device-register-layout.10")
@pytest.mark.clause("mmio.device.mmio-device-register-layout.11")
@pytest.mark.clause("mmio.device.mmio-device-register-layout.12")
@pytest.mark.clause("mmio.device.mmio-device-register-layout.13")
def test_a_queue_reset_shows_while_it_lasts() -> None:
    made = negotiated()
    configure(made)
    made.set(QueueReady=1)
    assert (made.get("QueueReady"), made.get("QueueReset")) == (1, 0)
    seen = []
    made.device.on_reset = lambda index: seen.append((index, made.get("QueueReset")))
    made.set(QueueReset=1)
    assert seen == [(0, 1)]
    assert (made.get("QueueReady"), made.get("QueueReset")) == (0, 0)
    configure(made, size=4)
    made.set(QueueReady=1)
    assert (made.get("QueueReady"), made.get("QueueReset")) == (1, 0)


def test_a_queue_is_not_reset_without_the_feature() -> None:
    made = negotiated(bit(Feature.VERSION_1))
    configure(made)
    made.set(QueueReady=1, QueueReset=1)
    assert (made.get("QueueReady"), made.get("QueueReset")) == (1, 0)
    assert isinstance(made.machine.ignored.pop(), NegotiationError)


@pytest.mark.parametrize("selector", [FEATURE_WORDS, 1 << 16, 0xFFFFFFFF])
def test_a_feature_selector_may_be_anything(selector: int) -> None:
    made = bench()
    made.set(DeviceFeaturesSel=selector)
    assert made.get("DeviceFeatures") == 0
    made.set(DriverFeaturesSel=selector, DriverFeatures=0)
    made.set(DriverFeaturesSel=1, DriverFeatures=1)
    made.set(Status=OK & ~DeviceStatus.DRIVER_OK)
    assert made.get("Status") & DeviceStatus.FEATURES_OK
    made.set(Status=0)
    made.set(DriverFeaturesSel=1, DriverFeatures=1)
    # Taken for another word, the bit would be one that is offered.
    made.set(DriverFeaturesSel=selector, DriverFeatures=bit(Feature.INDIRECT_DESC))
    made.set(Status=OK & ~DeviceStatus.DRIVER_OK)
    assert not made.get("Status") & DeviceStatus.FEATURES_OK


def test_features_are_frozen_with_features_ok() -> None:
    made = negotiated()
    made.set(DriverFeatures=0)
    assert made.machine.end.features == bit(Feature.VERSION_1) | bit(Feature.RING_RESET)
    assert isinstance(made.machine.ignored.pop(), NegotiationError)


def test_what_mmio_cannot_carry_is_not_offered() -> None:
    wanted = RING_FEATURES | mask(Feature.ADMIN_VQ, Feature.NOTIF_CONFIG_DATA)
    assert bench(ring_features=wanted).transport().device_features() == RING_FEATURES


def test_a_queue_in_use_is_locked() -> None:
    """A21: the size and the addresses of a running queue stay what they were."""
    made = negotiated()
    configure(made)
    made.set(QueueReady=1, Status=OK)
    config = made.machine.end.queue(0)
    before = (config.size, *made.machine.end.active_queue(0).areas)  # type: ignore[union-attr]  # it is active
    configure(made, size=0x8000, at=0)
    made.set(QueueReady=1)
    made.set(QueueDescHigh=1, QueueDriverHigh=1, QueueDeviceHigh=1)
    assert len(made.machine.ignored) == 8
    assert (config.size, config.descriptor_area, config.driver_area, config.device_area) == before
    assert made.machine.end.fault is None


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"QueueSize": 0}, RingError),
        ({"QueueSize": 65}, RingError),
        ({"QueueSize": 12}, RingError),
        ({"QueueSize": 0xFFFFFFFF}, RingError),
        ({"QueueDescLow": BASE + 1}, RingError),
        ({"QueueDescLow": 0}, MemoryFault),
        ({"QueueDeviceHigh": 0xFFFFFFFF}, MemoryFault),
        ({"QueueDriverLow": BASE + (1 << 18) - 2}, MemoryFault),
    ],
)
def test_a_queue_that_cannot_be_is_not_enabled(values: dict[str, int], error: type[PeerError]) -> None:
    made = negotiated()
    configure(made)
    made.set(**values)
    made.set(QueueReady=1)
    assert made.get("QueueReady") == 0
    assert made.get("Status") & DeviceStatus.DEVICE_NEEDS_RESET
    assert isinstance(made.machine.end.fault, error)
    made.set(Status=0)
    assert made.driver().echo(b"again") == b"again"


def test_a_queue_is_not_enabled_before_its_features_are_known() -> None:
    made = bench()
    configure(made)
    made.set(QueueReady=1)
    assert made.get("QueueReady") == 0
    assert isinstance(made.machine.ignored.pop(), NegotiationError)


@pytest.mark.parametrize("index", [2, 0x10000, 0xFFFFFFFF])
def test_a_queue_that_is_not_there(index: int) -> None:
    made = negotiated()
    made.set(QueueSel=index)
    assert (made.get("QueueSizeMax"), made.get("QueueReady"), made.get("QueueReset")) == (0, 0, 0)
    configure(made)
    made.set(QueueReady=1)
    made.set(QueueReset=1, QueueNotify=index)
    assert not made.machine.step()
    assert made.machine.end.fault is None
    assert len(made.machine.ignored) == 7


def test_a_million_kicks_are_one() -> None:
    made = bench()
    driver = made.driver()
    while made.machine.step():
        pass
    for _ in range(1000):
        made.set(QueueNotify=1)
    assert made.machine.step()
    assert not made.machine.step()
    assert driver.echo(b"x", queue=1) == b"x"


@pytest.mark.parametrize("in_high_half", [0, 5, 0x8003])
def test_notification_data_names_the_queue_in_its_low_half(in_high_half: int) -> None:
    ring = RING_FEATURES | bit(Feature.NOTIFICATION_DATA)
    made = bench(ring_features=ring)
    made.driver(features=ring)
    while made.machine.step():
        pass
    before = dict(made.machine.end.kicks)
    made.set(QueueNotify=in_high_half << 16 | 1)
    assert made.machine.step()
    assert made.machine.end.kicks == before | {1: before.get(1, 0) + 1}
    assert not made.machine.ignored


@pytest.mark.parametrize("value", [0x10000, 0x10001, 0xFFFF0000])
def test_without_notification_data_the_high_half_is_no_hint(value: int) -> None:
    made = bench()
    made.driver()
    while made.machine.step():
        pass
    made.set(QueueNotify=value)
    assert not made.machine.step()
    assert isinstance(made.machine.ignored.pop(), MessageError)


def test_shared_memory_regions_by_id() -> None:
    made = bench(shared_memory={0: (0x1_2345_6000, 0x2_0000_1000), 7: (0x8000, 0x10)})
    transport = made.transport()
    assert transport.shared_memory(0) == (0x1_2345_6000, 0x2_0000_1000)
    assert transport.shared_memory(7) == (0x8000, 0x10)
    for ident in (1, 0xFFFFFFFF):
        assert transport.shared_memory(ident) is None
        made.set(SHMSel=ident)
        assert {made.get(f"SHM{part}{half}") for part in ("Len", "Base") for half in ("Low", "High")} == {0xFFFFFFFF}


# The driver --------------------------------------------------------------------------------------------------------


@define(eq=False)
class Script:
    """Registers that answer what they are told to, and note what is read and written."""

    values: dict[int, int]
    log: list[tuple[str, int]] = field(factory=list)
    written: list[int] = field(factory=list)

    def read(self, offset: int, width: int) -> int:
        self.log.append(("R", offset))
        return self.values.get(offset, 0)

    def write(self, offset: int, value: int, width: int) -> None:
        self.log.append(("W", offset))
        self.written.append(value)


def _find(**values: int) -> tuple[Script, Callable[[], MmioTransport | None]]:
    given = {"MagicValue": 0x74726976, "Version": 2, "DeviceID": 4} | values
    script = Script({virtio_mmio.offset(name): value for name, value in given.items()})
    return script, lambda: discover(script, Arena(GuestMemory.of(64)), lambda timeout: None)


@pytest.mark.clause("mmio.driver.mmio-device-register-layout.6")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.7")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.8")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.9")
@pytest.mark.clause("mmio.driver.device-initialization.1")
@pytest.mark.parametrize(
    ("values", "reads"),
    [({"MagicValue": 0x76697274}, [0]), ({"Version": 0}, [0, 4]), ({"Version": 3}, [0, 4])],
)
def test_what_is_no_device_we_know_is_left_alone(values: dict[str, int], reads: list[int]) -> None:
    script, find = _find(**values)
    with pytest.raises(MessageError):
        find()
    assert script.log == [("R", offset) for offset in reads]


@pytest.mark.clause("mmio.driver.mmio-device-register-layout.10")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.11")
@pytest.mark.clause("mmio.driver.device-initialization.2")
@pytest.mark.clause("mmio.driver.device-initialization.3")
@pytest.mark.clause("mmio.driver.device-initialization.4")
@pytest.mark.parametrize("version", [1, 2])
def test_a_placeholder_is_left_alone_without_a_word(version: int) -> None:
    script, find = _find(DeviceID=0, Version=version)
    assert find() is None
    assert script.log == [("R", 0), ("R", 4), ("R", 8)]


def _exercise(made: Bench) -> EchoDriver:
    """A driver through everything that a driver does."""
    driver = made.driver()
    transport = driver.transport
    assert isinstance(transport, MmioTransport)
    assert driver.echo(b"hello") == b"hello"
    driver.read_config_bytes(0, config_record.size)
    transport.write_config(0, b"\xaa" * config_record.size)
    if driver.has(Feature.RING_RESET):
        driver.restart_queue(0, 8)
        assert driver.echo(b"after the reset") == b"after the reset"
    driver.reset()
    driver.start()
    transport.stop_queue(1)
    assert driver.echo(b"anew") == b"anew"
    return driver


@BENCHES
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.1")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.2")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.3")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.4")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.22")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.23")
@pytest.mark.clause("mmio.driver.device-initialization.5")
def test_the_driver_keeps_to_the_table(make: Callable[[], Bench]) -> None:
    made = make()
    _exercise(made)
    directions = DIRECTIONS[made.machine.version]
    for way, offset, width, _ in made.log:
        if offset < CONFIG:
            assert width == 4
            assert way in directions[offset][1]
            assert not directions[offset][0].startswith("SHM")
        else:
            assert offset + width <= CONFIG + config_record.size
    assert not made.machine.ignored


@BENCHES
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.5")
def test_each_field_is_accessed_at_its_own_width(make: Callable[[], Bench]) -> None:
    wanted = [(0, 4), (4, 4), (8, 4), (12, 2), (14, 1), (15, 1), (16, 1), (17, 1)]
    assert config_accesses(config_record) == wanted
    made = make()
    transport = made.transport()
    made.log.clear()
    assert transport.read_config(0, config_record.size) == bytes(made.device.config)
    assert {(at - CONFIG, width) for _, at, width, _ in made.log} == set(wanted)
    made.log.clear()
    transport.write_config(0, bytes(range(100, 100 + config_record.size)))
    assert [(at - CONFIG, width) for _, at, width, _ in made.log] == wanted
    assert made.device.config == bytes(range(100, 100 + config_record.size))


@given(offset=st.integers(0, 20), length=st.integers(0, 24))
def test_any_slice_of_the_configuration_reads_and_writes_as_it_is(offset: int, length: int) -> None:
    made = bench()
    transport = made.transport()
    assert transport.read_config(offset, length) == bytes(made.device.config)[offset:][:length].ljust(length, b"\0")
    before = bytearray(made.device.config)
    transport.write_config(offset, bytes(length))
    before[offset : offset + length] = bytes(len(before[offset : offset + length]))
    assert made.device.config == before


@BENCHES
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.12")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.13")
def test_a_selector_is_written_before_features(make: Callable[[], Bench]) -> None:
    made = make()
    made.driver()
    accesses = made.accesses()
    features = ("DeviceFeatures", "DriverFeatures") if make is bench else ("HostFeatures", "GuestFeatures")
    for name in features:
        at = [n for n, (_, register, _) in enumerate(accesses) if register == name]
        assert at
        assert all(accesses[n - 1][:2] == ("W", f"{name}Sel") for n in at)


@pytest.mark.clause("mmio.driver.mmio-device-register-layout.14")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.15")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.16")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.17")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.21")
@pytest.mark.clause("mmio.driver.device-initialization.6")
def test_queues_are_set_up_and_stopped_in_order() -> None:
    made = bench()
    _exercise(made)
    ready: dict[int, bool] = {}
    selected, accesses = 0, made.accesses()
    for n, (way, name, value) in enumerate(accesses):
        if name == "QueueSel":
            selected = value
        elif name == "Status" and way == "W" and value == 0:
            ready.clear()
        elif name == "QueueSize":
            assert value <= (64, 16)[selected]
        if way == "W" and name == "QueueReady":
            ready[selected] = bool(value)
            assert value or accesses[n + 1] == ("R", "QueueReady", 0)
        elif way == "W" and name == "QueueReset":
            assert accesses[n + 1] == ("R", "QueueReset", 0)
            ready[selected] = False
        elif name.startswith("Queue") and name.endswith(("Size", "Low", "High")):
            assert not ready.get(selected)
    statuses = [value for way, name, value in accesses if (way, name) == ("W", "Status")]
    assert statuses[:5] == [0, 1, 3, 11, 15]


@pytest.mark.clause("mmio.driver.mmio-device-register-layout.21")
def test_a_queue_reset_that_never_ends_is_told() -> None:
    script, find = _find(QueueReset=1)
    transport = find()
    assert transport is not None
    with pytest.raises(PeerError, match="QueueReset"):
        transport.reset_queue(0)
    assert script.log.count(("R", virtio_mmio.offset("QueueReset"))) > 100


@BENCHES
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.18")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.19")
@pytest.mark.clause("mmio.driver.mmio-device-register-layout.20")
@pytest.mark.clause("mmio.driver.notifications-from-the-device.1")
@pytest.mark.clause("mmio.driver.notifications-from-the-device.3")
@pytest.mark.parametrize("status", [0, 1, 2, 3, 0xFFFFFFFC, 0xFFFFFFFF])
def test_an_interrupt_is_looked_into_and_acknowledged(make: Callable[[], Bench], status: int) -> None:
    script, find = _find(InterruptStatus=status, Version=make().machine.version)
    transport = find()
    assert transport is not None
    script.log.clear()
    script.written.clear()
    assert transport.handle_interrupt() == status & 3
    assert script.log[0] == ("R", virtio_mmio.offset("InterruptStatus"))
    assert script.log[1:] == ([("W", virtio_mmio.offset("InterruptACK"))] if status & 3 else [])
    assert script.written == ([status & 3] if status & 3 else [])
    assert transport.config_notifications == (status >> 1 & 1)


@BENCHES
@pytest.mark.clause("mmio.driver.notifications-from-the-device.2")
def test_one_interrupt_is_for_every_queue(make: Callable[[], Bench]) -> None:
    made = make()
    driver = made.driver()
    for queue in driver.queues:
        queue.add([driver.transport.arena.allocate(4).extent], token=queue.index)
        driver.kick(queue)
    while made.machine.step():
        pass
    driver.transport.wait(0)
    assert [driver.wait_used(queue, timeout=0)[0][0] for queue in driver.queues] == [0, 1]
    assert [name for _, name, _ in made.accesses()].count("InterruptACK") == 1


def test_a_queue_in_use_is_not_set_up() -> None:
    made = bench()
    driver = made.driver()
    with pytest.raises(NegotiationError, match="in use"):
        driver.transport.enable_queue(driver.queues[0])


# Legacy ------------------------------------------------------------------------------------------------------------


@pytest.mark.clause("features-legacy.driver.feature-bits.1")
@pytest.mark.clause("features-legacy.device.feature-bits.1")
@pytest.mark.clause("features-legacy.device.reserved-feature-bits.3")
@pytest.mark.clause("features-legacy.driver.reserved-feature-bits.1")
@pytest.mark.clause("basic-legacy.driver.device-initialization.1")
def test_a_legacy_device_is_driven_without_features_ok() -> None:
    made = legacy_bench()
    driver = _exercise(made)
    assert isinstance(driver.transport, LegacyMmioTransport)
    assert driver.features == mask(Feature.ANY_LAYOUT, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
    statuses = [value for way, name, value in made.accesses() if (way, name) == ("W", "Status")]
    assert statuses[:4] == [0, 1, 3, 7]


@pytest.mark.clause("split-legacy.driver.virtqueue-layout.2")
@pytest.mark.clause("split-legacy.driver.virtqueue-layout.3")
@pytest.mark.clause("split-legacy.device.virtqueue-layout.1")
@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_a_legacy_queue_lies_in_one_piece(size: int) -> None:
    made = legacy_bench()
    driver = EchoDriver(made.transport(), queue_size=size).start()
    queue = driver.queues[0]
    first = queue.descriptor_area
    assert first % 4096 == 0
    # 2.7.2: the descriptors, the available ring behind them, the used ring on the next page.
    assert queue.driver_area == first + 16 * size
    assert queue.device_area == first + -(-(16 * size + 6 + 2 * size) // 4096) * 4096
    active = made.machine.end.active_queue(0)
    assert active is not None
    assert active.areas == queue.areas
    made.set(QueueSel=0)
    assert made.get("QueuePFN") == first // 4096
    used = [16 * q.size + 6 + 2 * q.size for q in driver.queues], [6 + 8 * q.size for q in driver.queues]
    pages = sum(-(-length // 4096) for lengths in used for length in lengths)
    indirect = sum(16 * q.size * min(q.size, 16) for q in driver.queues)
    before = made.arena.free_bytes
    driver.reset()
    assert made.arena.free_bytes == before + pages * 4096 + indirect


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"GuestPageSize": 0}, RingError),
        ({"GuestPageSize": 100}, RingError),
        ({"QueueAlign": 0}, RingError),
        ({"QueueAlign": 3}, RingError),
        ({"QueueAlign": 1}, RingError),
        ({"QueueAlign": 1 << 31}, MemoryFault),
        ({"QueueSize": 0}, RingError),
        ({"QueueSize": 0xFFFFFFFF}, RingError),
        ({"GuestPageSize": 1 << 31, "QueuePFN": 0xFFFFFFFF}, MemoryFault),
    ],
)
def test_a_legacy_queue_that_cannot_be_is_not_enabled(values: dict[str, int], error: type[PeerError]) -> None:
    made = legacy_bench()
    made.set(Status=3, GuestPageSize=4096, QueueSize=2, QueueAlign=4096)
    made.set(**{name: value for name, value in values.items() if name != "QueuePFN"})
    made.set(QueuePFN=values.get("QueuePFN", BASE >> 12))
    assert made.get("QueuePFN") == 0
    assert made.get("Status") & DeviceStatus.DEVICE_NEEDS_RESET
    assert isinstance(made.machine.end.fault, error)


def test_the_page_size_outlives_a_reset() -> None:
    """Drivers write it once, when they find the device, and reset the device after that."""
    made = legacy_bench()
    made.set(GuestPageSize=4096)
    made.set(Status=0)
    made.set(QueueSize=2, QueueAlign=4096, QueuePFN=BASE >> 12)
    assert made.get("QueuePFN") == BASE >> 12


def test_a_legacy_driver_that_accepts_what_was_not_offered_is_not_served() -> None:
    made = legacy_bench()
    made.set(GuestFeatures=1, Status=7)
    assert not made.get("Status") & DeviceStatus.DRIVER_OK


@pytest.mark.clause("config-legacy.driver.device-configuration-space.1")
def test_a_legacy_configuration_is_read_until_it_stands_still() -> None:
    made = legacy_bench()
    transport = made.transport()
    values = iter([b"\x01" * 18, b"\x02" * 18])
    made.device.live = lambda: next(values, b"\x03" * 18)
    assert transport.read_config(0, 2) == b"\x03\x03"
    counter = iter(range(1 << 20))
    made.device.live = lambda: bytes([next(counter) % 251]) * 18
    with pytest.raises(PeerError, match="changed"):
        transport.read_config(8, 4)
