"""The legacy interface of members (2.12.1.1): registers by commands, and drivers that are served so."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.admin_tools import BAD_FIELD, OK, Owner, owner
from tests.net_frames import Wire, frame_of
from virtio_py.admin.functions import enabled_functions
from virtio_py.admin.layout import (
    LEGACY_COMMANDS,
    NOTIFY_ENTRIES,
    GroupType,
    NotifyPlace,
    Opcode,
    numbers_of,
    virtio_admin_cmd_legacy_notify_info_result,
    virtio_admin_cmd_legacy_rd_data,
    virtio_admin_cmd_legacy_wr_data,
    virtio_pci_legacy_common_cfg,
    virtio_pci_legacy_notify_info,
)
from virtio_py.admin.legacy import PAGE
from virtio_py.admin.legacy_transport import LegacyTransport
from virtio_py.admin.member import Member, NotifyAddress
from virtio_py.device import Device
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.layout import BlkFeature, virtio_blk_config
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.entropy import EntropyDevice
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import virtio_net_config
from virtio_py.driver import Driver
from virtio_py.errors import NegotiationError, UsageError
from virtio_py.pci.extended_sriov import pci_sriov
from virtio_py.records import Record
from virtio_py.spec import DeviceStatus, Feature, bit
from virtio_py.status import LEGACY_RING_FEATURES
from virtio_py.transports.in_process import InProcess

SECTORS = 32
COMMON = virtio_pci_legacy_common_cfg
OWNERS = NotifyAddress(NotifyPlace.OWNER, 4, 0x1000)
MEMBERS = NotifyAddress(NotifyPlace.MEMBER, 2, 0x22)


class Lent:
    """A member whose owner lends it the legacy interface, and whoever drives it that way."""

    def __init__(self, device: Device, config: Record, notify: tuple[NotifyAddress, ...] = ()) -> None:
        self.carrier = InProcess(device, memory_size=2 << 20)
        self.end = self.carrier.end
        self.member = Member(self.end, config=config, notify=notify)
        self.owner: Owner = owner(None, [self.member])
        self.config = config
        self.written: list[NotifyAddress] = []

    def write_bar(self, address: NotifyAddress, data: bytes) -> None:
        """What a carrier does with a write to a BAR."""
        self.written.append(address)
        assert self.owner.functions is not None
        legacy = self.owner.functions.legacy
        assert legacy.write_notification(address.place, 1, address.bar, address.offset, data)

    def transport(self, **options: Any) -> LegacyTransport:
        group = self.owner.client(GroupType.SR_IOV)
        device_id = self.end.device.device_id
        return LegacyTransport(group, 1, device_id, self.carrier.arena, self.config, self.carrier.wait, **options)

    def read(self, opcode: Opcode, offset: int, room: int) -> tuple[tuple[int, int], bytes]:
        data = virtio_admin_cmd_legacy_rd_data.encode(offset=offset)
        answer = self.owner.send(opcode, 1, 1, data, room)
        return answer.state, answer.result[:room]

    def write(self, opcode: Opcode, offset: int, data: bytes) -> tuple[int, int]:
        head = virtio_admin_cmd_legacy_wr_data.encode(offset=offset)
        return self.owner.send(opcode, 1, 1, head + data).state


def disk(**options: Any) -> Lent:
    found = Lent(BlkDevice(MemoryMedium.of(SECTORS * 512), **options), virtio_blk_config)
    found.owner.use_all(1)
    return found


READ, WRITE = Opcode.LEGACY_COMMON_CFG_READ, Opcode.LEGACY_COMMON_CFG_WRITE
READ_DEVICE, WRITE_DEVICE = Opcode.LEGACY_DEV_CFG_READ, Opcode.LEGACY_DEV_CFG_WRITE


# Registers


@pytest.mark.clause("admin-legacy.device.legacy-cmds.1", "admin-legacy.device.legacy-cmds.12")
def test_the_commands_are_there_together() -> None:
    for found, complete in ((disk().owner, True), (owner(None, [Member(InProcess(EntropyDevice()).end)]), False)):
        opcodes = numbers_of(found.send(Opcode.LIST_QUERY, 1).result)
        assert (opcodes & LEGACY_COMMANDS == LEGACY_COMMANDS) is complete
        assert (Opcode.LEGACY_NOTIFY_INFO in opcodes) is complete
        assert bool(opcodes & LEGACY_COMMANDS) is complete


def test_a_member_without_the_interface_has_none_beside_one_that_has() -> None:
    members = [disk().member, Member(InProcess(EntropyDevice()).end)]
    found = owner(None, members)
    found.use_all(1)
    offset = virtio_admin_cmd_legacy_rd_data.encode(offset=COMMON.offset("device_status"))
    assert found.send(READ, 1, 1, offset, 1).state == OK
    assert found.send(READ, 1, 2, offset, 1).state[0] != 0


@pytest.mark.clause("admin-legacy.device.legacy-cmds.3")
@given(st.integers(0, 40), st.integers(0, 40))
def test_an_access_is_of_one_field_of_the_common_configuration(offset: int, length: int) -> None:
    found = disk()
    inside = length and any(
        field.offset <= offset and offset + length <= field.offset + field.size for field in COMMON.fields.values()
    )
    assert found.read(READ, offset, length)[0] == (OK if inside else BAD_FIELD)
    assert found.write(WRITE, offset, bytes(length)) == (OK if inside else BAD_FIELD)


def leaves(record: Record, base: int = 0) -> list[tuple[int, int]]:
    found = []
    for field in record.fields.values():
        at = base + field.offset
        found += leaves(field.nested, at) if field.nested is not None else [(at, at + field.size)]
    return found


@pytest.mark.clause("admin-legacy.device.legacy-cmds.4", "admin-legacy.device.legacy-cmds.8")
@given(st.integers(0, 120), st.integers(0, 12))
def test_an_access_is_of_one_field_of_the_devices_configuration(offset: int, length: int) -> None:
    found = disk()
    inside = length and any(at <= offset and offset + length <= end for at, end in leaves(virtio_blk_config))
    state, data = found.read(READ_DEVICE, offset, length)
    assert state == (OK if inside else BAD_FIELD)
    assert found.write(WRITE_DEVICE, offset, bytes(length)) == (OK if inside else BAD_FIELD)
    if inside:
        assert data == found.end.device.read_config()[offset : offset + length]


@pytest.mark.clause("admin-legacy.device.legacy-cmds.2", "admin-legacy.device.legacy-cmds.6")
def test_registers_are_little_endian_and_read_as_over_a_legacy_carrier() -> None:
    found = disk()
    state, data = found.read(READ, COMMON.offset("device_features"), 4)
    assert state == OK
    offered = int.from_bytes(data, "little")
    assert offered == (found.end.device.offered_features() | LEGACY_RING_FEATURES) & 0xFFFFFFFF
    assert offered & bit(BlkFeature.SEG_MAX)
    # A part of a field is the bytes of it.
    for n in range(4):
        assert found.read(READ, n, 1) == (OK, data[n : n + 1])
    assert found.read(READ, COMMON.offset("queue_size"), 2) == (OK, b"\0\1")
    assert found.read(READ, COMMON.offset("queue_address"), 4) == (OK, bytes(4))
    assert found.read(READ, COMMON.offset("config_msix_vector"), 2) == (OK, b"\xff\xff")
    # And the end itself is as it was: another driver finds all of it.
    assert found.end.device_features & bit(Feature.VERSION_1)


@pytest.mark.clause("admin-legacy.device.legacy-cmds.5", "admin-legacy.device.legacy-cmds.7")
def test_registers_are_written_as_over_a_legacy_carrier() -> None:
    found = disk()

    def put(name: str, value: bytes) -> tuple[int, int]:
        return found.write(WRITE, COMMON.offset(name), value)

    assert put("driver_features", bytes([0, 2, 0, 0])) == OK
    assert found.write(WRITE, COMMON.offset("driver_features") + 1, b"\x0a") == OK
    assert found.end.features == 0xA00
    for status in (1, 3, 7):
        assert put("device_status", bytes([status])) == OK
        assert found.end.read_status() == status
    assert put("queue_select", b"\0\0") == OK
    assert put("queue_address", (16).to_bytes(4, "little")) == OK
    config = found.end.queue(0)
    assert config.descriptor_area == 16 * PAGE
    assert config.device_area % PAGE == 0
    assert found.end.active_queue(0) is not None
    assert found.read(READ, COMMON.offset("queue_address"), 4) == (OK, (16).to_bytes(4, "little"))
    for name, value in (("config_msix_vector", b"\1\0"), ("queue_msix_vector", b"\2\0")):
        assert put(name, value) == OK
        assert found.read(READ, COMMON.offset(name), 2) == (OK, value)
    assert put("queue_address", bytes(4)) == OK
    assert found.end.active_queue(0) is None
    assert found.write(WRITE_DEVICE, virtio_blk_config.offset("writeback"), b"\0") == OK
    assert found.read(READ_DEVICE, virtio_blk_config.offset("writeback"), 1) == (OK, b"\0")
    assert put("device_status", b"\0") == OK
    assert found.read(READ, COMMON.offset("queue_msix_vector"), 2) == (OK, b"\xff\xff")
    # What is only read is left as it is.
    for name in ("device_features", "queue_size", "isr_status"):
        assert put(name, bytes(COMMON.field(name).size)) == OK
    assert found.read(READ, COMMON.offset("queue_size"), 2) == (OK, b"\0\1")


@pytest.mark.parametrize(
    ("name", "value"), [("queue_address", 0x7FFFFFFF), ("queue_notify", 5), ("queue_select", 9), ("driver_features", 9)]
)
def test_a_driver_that_is_wrong_is_the_members_affair(name: str, value: int) -> None:
    found = disk()
    for status in (1, 3, 7):
        found.write(WRITE, COMMON.offset("device_status"), bytes([status]))
    offset, size = COMMON.offset(name), COMMON.field(name).size
    assert found.write(WRITE, offset, value.to_bytes(size, "little")) == OK
    if name == "queue_select":
        assert found.read(READ, COMMON.offset("queue_size"), 2) == (OK, b"\0\0")
        assert found.read(READ, COMMON.offset("queue_address"), 4) == (OK, bytes(4))
        assert found.write(WRITE, COMMON.offset("queue_msix_vector"), b"\1\0") == OK
        assert found.write(WRITE, COMMON.offset("queue_address"), b"\1\0\0\0") == OK
    assert found.end.read_status() & DeviceStatus.DEVICE_NEEDS_RESET
    assert not found.owner.carrier.end.read_status() & DeviceStatus.DEVICE_NEEDS_RESET


# Notifications


@pytest.mark.clause(
    "admin-legacy.device.legacy-cmds.13",
    "admin-legacy.device.legacy-cmds.15",
    "admin-legacy.device.legacy-cmds.16",
)
@pytest.mark.parametrize("notify", [(), (OWNERS,), (MEMBERS, OWNERS), (MEMBERS, OWNERS, MEMBERS)])
def test_addresses_are_listed_up_to_an_end(notify: tuple[NotifyAddress, ...]) -> None:
    found = Lent(EntropyDevice(), virtio_blk_config, notify)
    found.owner.use_all(1)
    answer = found.owner.send(Opcode.LEGACY_NOTIFY_INFO, 1, 1)
    entries = virtio_admin_cmd_legacy_notify_info_result.decode(answer.result).entries
    assert [(e.flags, e.bar, e.offset) for e in entries[: len(notify)]] == [(a.place, a.bar, a.offset) for a in notify]
    assert all(entry == virtio_pci_legacy_notify_info.decode(bytes(16)) for entry in entries[len(notify) :])
    assert entries[-1].flags == 0


@pytest.mark.clause("admin-legacy.device.legacy-cmds.14", "admin-legacy.device.legacy-cmds.17")
def test_addresses_that_cannot_be_are_not_taken() -> None:
    for place, bar, offset in [
        (NotifyPlace.END, 2, 0),
        (NotifyPlace.OWNER, 0, 0),
        (NotifyPlace.OWNER, 6, 0),
        (NotifyPlace.MEMBER, 2, 1),
    ]:
        with pytest.raises(UsageError):
            NotifyAddress(place, bar, offset)
    end = InProcess(EntropyDevice()).end
    with pytest.raises(UsageError, match="no room for the end"):
        Member(end, notify=[OWNERS] * NOTIFY_ENTRIES)
    bars = pci_sriov.decode(enabled_functions(1))._asdict()
    lent = Member(end, config=virtio_blk_config, notify=[MEMBERS])
    for addresses, why in (([0x1000, 0, 0x2000, 0, 0, 0], "hardwired to zero"), ([0, 0x1000, 0, 0, 0, 0], "no BAR 2")):
        with pytest.raises(UsageError, match=why):
            owner(None, [lent], capability=bytearray(pci_sriov.encode(**(bars | {"vf_base_address": addresses}))))
    found = owner(None, [lent])
    assert found.functions is not None
    assert found.functions.registers.vf_base_address[0] == 0


def big_if(wanted: NotifyPlace, place: NotifyPlace, bar: int) -> int:
    """The bytes of all BARs, of one place."""
    return 1 << 16 if place == wanted else 0


@pytest.mark.clause("admin-legacy.device.legacy-cmds.11")
def test_a_notification_at_an_address_is_the_same_as_one_in_the_register() -> None:
    for address in (None, OWNERS, MEMBERS):
        found = Lent(BlkDevice(MemoryMedium.of(SECTORS * 512)), virtio_blk_config, (OWNERS, MEMBERS))
        options: dict[str, Any] = {}
        if address is not None:
            options = {"bar_size": partial(big_if, address.place), "write_bar": found.write_bar}
        driver = BlkDriver(found.transport(**options)).start()
        driver.write(3, b"\x33" * 512)
        assert driver.read(3, 1) == b"\x33" * 512
        assert set(found.written) == ({address} if address is not None else set())
    assert found.owner.functions is not None
    assert not found.owner.functions.legacy.write_notification(NotifyPlace.OWNER, 1, 4, 0, b"\0\0")


# Drivers


@pytest.mark.clause(
    "admin-legacy.driver.legacy-cmds.1", "admin-legacy.driver.legacy-cmds.2", "admin-legacy.driver.legacy-cmds.3"
)
def test_a_legacy_disk_driver_works_through_the_owner() -> None:
    storage = MemoryMedium.of(SECTORS * 512)
    found = Lent(BlkDevice(storage), virtio_blk_config)
    driver = BlkDriver(found.transport()).start()
    assert not driver.has(Feature.VERSION_1)
    assert driver.info.capacity == SECTORS
    data = bytes(range(256)) * 8
    driver.write(5, data)
    assert driver.read(5, 4) == data
    assert bytes(storage.data[5 * 512 :][: len(data)]) == data
    driver.set_writeback(False)
    assert found.end.device.read_config()[virtio_blk_config.offset("writeback")] == 0
    assert found.end.fault is None
    # A driver of today comes after it.
    modern: Driver = BlkDriver(found.carrier).start()
    assert modern.has(Feature.VERSION_1)
    assert modern.read(5, 4) == data  # type: ignore[attr-defined]  # a BlkDriver, seen as any driver


def test_a_legacy_network_driver_works_through_the_owner() -> None:
    wire = Wire()
    found = Lent(NetDevice(wire), virtio_net_config)
    driver = NetDriver(found.transport()).start()
    sent = frame_of(b"to them")
    driver.send(sent)
    assert wire.frames == [sent]
    while found.carrier.step():
        pass
    assert wire.deliver(Packet(frame_of(b"to us")))
    packet = driver.receive()
    assert packet is not None
    assert packet.frame == frame_of(b"to us")


def test_what_a_legacy_transport_cannot_do() -> None:
    transport = disk().transport()
    assert (transport.num_queues, transport.config_notifications, transport.config_generation()) == (1, 0, 0)
    with pytest.raises(UsageError, match="no room"):
        transport.accept_features(bit(Feature.VERSION_1))
    with pytest.raises(UsageError, match="resets no queues"):
        transport.reset_queue(0)
    driver = BlkDriver(disk().transport(), queue_size=64)
    with pytest.raises(NegotiationError, match="has the size"):
        driver.start()


entries: st.SearchStrategy[dict[str, int]] = st.builds(
    dict,
    flags=st.integers(0, 4),
    bar=st.integers(0, 7),
    offset=st.one_of(st.integers(0, 64), st.integers(0, (1 << 64) - 1)),
)


@pytest.mark.clause(
    "admin-legacy.driver.legacy-cmds.4",
    "admin-legacy.driver.legacy-cmds.5",
    "admin-legacy.driver.legacy-cmds.6",
    "admin-legacy.driver.legacy-cmds.7",
    "admin-legacy.driver.legacy-cmds.8",
    "admin-legacy.driver.legacy-cmds.9",
)
@settings(deadline=None)
@given(st.lists(entries, min_size=NOTIFY_ENTRIES, max_size=NOTIFY_ENTRIES))
def test_a_driver_takes_the_first_address_that_makes_sense(told: list[dict[str, int]]) -> None:
    found = disk()
    transport = found.transport()
    answer = virtio_admin_cmd_legacy_notify_info_result.encode(entries=told)
    transport._group = Told(answer)  # type: ignore[assignment]  # a device that says anything

    def bar_size(place: NotifyPlace, bar: int) -> int:
        return {(NotifyPlace.OWNER, 1): 64, (NotifyPlace.MEMBER, 2): 32, (NotifyPlace.OWNER, 0): 64}.get(
            (place, bar), 0
        )

    ends = [n for n, entry in enumerate(told) if entry["flags"] == 0]
    before_end = told[: ends[0]] if ends else told
    good = [
        entry
        for entry in before_end
        if (entry["flags"], entry["bar"]) in ((1, 1), (2, 2))
        and entry["offset"] % 2 == 0
        and entry["offset"] < (64 if entry["flags"] == 1 else 32)
    ]
    addresses = transport.notify_addresses(bar_size)
    assert [(a.place, a.bar, a.offset) for a in addresses] == [(e["flags"], e["bar"], e["offset"]) for e in good]


class Told:
    """A group whose device gives one answer to everything."""

    def __init__(self, answer: bytes) -> None:
        self.used = frozenset(Opcode)
        self.answer = answer

    def command(self, opcode: Opcode, member: int, data: bytes = b"", room: int = 0) -> bytes:
        return self.answer
