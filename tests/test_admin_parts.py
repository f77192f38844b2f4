"""Device parts (2.13, 2.12.1.4): members that are stopped, taken apart, and put together elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.admin_tools import BAD_FIELD, OK, Owner, members, owner
from tests.net_frames import Wire, frame_of
from tests.ring_matrix import ENGINES
from tests.test_net_pair import SmallBuffers
from virtio_py.admin.client import AdminFailed
from virtio_py.admin.client_parts import MemberClient
from virtio_py.admin.layout import (
    OBJECT_COMMANDS,
    PARTS_COMMANDS,
    GroupType,
    Opcode,
    numbers_of,
    virtio_admin_cmd_resource_obj_cmd_hdr,
    virtio_admin_cmd_resource_obj_create_data,
)
from virtio_py.admin.member import Member
from virtio_py.admin.parts_layout import (
    DEV_PARTS_CAP,
    NO_SELECTOR,
    OPTIONAL,
    Metadata,
    Part,
    PartsUse,
    PartType,
    decode_parts,
    encode_parts,
    pci_common_cfg,
    virtio_admin_cmd_dev_parts_data,
    virtio_dev_part_hdr,
    virtio_dev_part_vq_cfg,
    virtio_dev_parts_cap,
    vq_index,
)
from virtio_py.device import Device, DeviceEnd
from virtio_py.devices.blk.batch import Ask, BatchingBlkDriver, Ticket
from virtio_py.devices.blk.device import WRITEBACK_PART, BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.header import Packet
from virtio_py.driver import Driver
from virtio_py.errors import NeedsReset, UsageError
from virtio_py.resources import AdminQualifier, AdminStatus, Refused
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import REFERENCE, Engine, engine_named
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.in_process import InProcess

SECTORS = 16
PACKED = RING_FEATURES
SPLIT = RING_FEATURES & ~bit(Feature.RING_PACKED)
RINGS = [SPLIT, PACKED, SPLIT | bit(Feature.IN_ORDER), PACKED | bit(Feature.IN_ORDER)]


class Seat:
    """A driver at work on one member of an owner, which can be given another of them to work on."""

    def __init__(
        self, devices: Sequence[Device], kind: type[Driver], features: int = RING_FEATURES, engine: Engine = REFERENCE
    ) -> None:
        self.carriers = [
            InProcess(device, engine=engine, memory_size=1 << 20, ring_features=features) for device in devices
        ]
        self.ends: list[Any] = [carrier.end for carrier in self.carriers]
        self.carrier = self.carriers[0]
        for end in self.ends:
            # A hypervisor's part: the guest's memory comes along, and notifications go to where the guest is.
            end.memory, end.notifier = self.carrier.arena.memory, self.carrier
        self.owner = owner(None, [Member(end) for end in self.ends])
        self.members = self.owner.members()
        self.here = 0
        wanted = kind.known_features | features
        self.driver: Any = kind(self.carrier, engine=engine, features=wanted, queue_size=8).start()

    def migrate(self) -> list[Part]:
        """Takes the device apart where it is, and puts it together at the other place; the driver sees none of it."""
        source, target = self.members[self.here], self.members[1 - self.here]
        source.stop()
        parts = source.capture()
        target.stop()
        target.restore(parts)
        self.here = 1 - self.here
        self.carrier.end = self.ends[self.here]
        target.resume()
        # The source is free for somebody else.
        self.ends[1 - self.here].write_status(0)
        source.resume()
        return parts


# Nothing is lost


class SlowDisk(BlkDevice):
    """A disk that serves its requests when it is told to, in any order."""

    def __attrs_post_init__(self) -> None:
        BlkDevice.__attrs_post_init__(self)
        self.held: list[tuple[DeviceQueue, Chain]] = []
        self.end: DeviceEnd | None = None

    def activate(self, end: DeviceEnd, features: int) -> None:
        BlkDevice.activate(self, end, features)
        self.end = end

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        chain.defer()
        self.held.append((queue, chain))

    def busy(self) -> bool:
        return bool(self.held)

    def reset(self) -> None:
        BlkDevice.reset(self)
        self.held.clear()

    def work(self, which: int = 0) -> None:
        """Finishes one request."""
        if self.held:
            queue, chain = self.held.pop(which % len(self.held))
            BlkDevice.handle(self, queue, chain)
            chain.complete()
            if self.end is not None:
                self.end.settled()


def work_on(disks: Sequence[SlowDisk]) -> None:
    """The newest request first, of each disk."""
    for disk in disks:
        disk.work(-1)


steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, SECTORS - 1), st.integers(1, 255)),
    st.tuples(st.just("read"), st.integers(0, SECTORS - 1), st.just(0)),
    st.tuples(st.just("kick"), st.just(0), st.just(0)),
    st.tuples(st.just("work"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("migrate"), st.just(0), st.just(0)),
    st.tuples(st.just("poll"), st.just(0), st.just(0)),
)


@pytest.mark.clause(
    "admin-parts.device.device-parts.9",
    "admin-parts.device.device-parts.10",
    "admin-parts.device.device-parts.16",
    "admin-parts.device.device-parts.11",
)
@settings(deadline=None)
@given(st.lists(steps, max_size=40), st.sampled_from(RINGS))
def test_a_disk_that_is_migrated_amid_its_traffic_loses_nothing(todo: list[tuple[Any, ...]], ring: int) -> None:
    storage = bytearray(SECTORS * 512)
    disks = [SlowDisk(MemoryMedium(storage)) for _ in range(2)]
    seat = Seat(disks, BatchingBlkDriver, ring)
    seat.owner.carrier.idle = partial(work_on, disks)
    promised = [b"\0" * 512] * SECTORS
    pending: dict[int, Ticket] = {}
    for verb, n, value in todo:
        if verb in ("write", "read") and n not in pending and seat.driver.queues[0].free_slots >= 3:
            data = bytes([value]) * 512
            [pending[n]] = seat.driver.submit([Ask.write(n, data) if verb == "write" else Ask.read(n, 1)])
            promised[n] = data if verb == "write" else promised[n]
        elif verb == "kick":
            seat.carrier.step()
        elif verb == "work":
            disks[seat.here].work(n)
        elif verb == "migrate":
            seat.migrate()
            assert not disks[1 - seat.here].held
        elif verb == "poll":
            settle(pending, promised, seat.driver.poll())
    while pending:
        seat.carrier.step()
        disks[seat.here].work()
        settle(pending, promised, seat.driver.poll())
    assert bytes(storage) == b"".join(promised)
    assert seat.ends[seat.here].fault is None


def settle(pending: dict[int, Ticket], promised: list[bytes], done: Sequence[Ticket]) -> None:
    """Each request is answered once, a read with what was there: no other request for its sector is under way."""
    for ticket in done:
        assert pending.pop(ticket.ask.sector) is ticket
        if ticket.ask.sectors:
            assert ticket.result() == promised[ticket.ask.sector]
        else:
            ticket.result()


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("ring", RINGS)
def test_receive_buffers_come_along(ring: int, engine_name: str) -> None:
    wires = [Wire(), Wire()]
    seat = Seat([NetDevice(wire) for wire in wires], SmallBuffers, ring, engine_named(engine_name))
    sent, got = [frame_of(bytes([n]) * 60) for n in range(40)], []
    for n, frame in enumerate(sent):
        while seat.carrier.step():
            pass
        if n % 3 == 2:
            seat.migrate()
        assert wires[seat.here].deliver(Packet(frame))
        got.append(seat.driver.receive().frame)
        seat.driver.send(frame)
    while seat.carrier.step():
        pass
    assert got == sent
    assert sorted(wires[0].frames + wires[1].frames) == sorted(sent)


@pytest.mark.parametrize("ring", RINGS)
def test_an_entropy_device_goes_on(ring: int) -> None:
    seat = Seat([EntropyDevice(lambda n: b"a" * n), EntropyDevice(lambda n: b"b" * n)], EntropyDriver, ring)
    for n in range(20):
        assert seat.driver.read(20) == (b"b" if n % 2 else b"a") * 20
        seat.migrate()


# What a device is made of


def taken_apart(ring: int = SPLIT) -> tuple[Seat, list[Part]]:
    seat = Seat([BlkDevice(MemoryMedium.of(SECTORS * 512)) for _ in range(2)], BlkDriver, ring)
    seat.members[0].stop()
    return seat, seat.members[0].capture()


@pytest.mark.clause(
    "admin-parts.device.device-parts.3",
    "admin-parts.device.device-parts.25",
    "admin-parts.device.device-parts.26",
    "admin-parts.device.device-parts.27",
    "admin-parts.device.device-parts.30",
)
def test_parts_are_told_in_the_order_of_the_table() -> None:
    seat, parts = taken_apart()
    types = [part.type for part in parts]
    assert types == sorted(types)
    assert types[:4] == [
        PartType.DEV_FEATURES,
        PartType.DRV_FEATURES,
        PartType.PCI_COMMON_CFG,
        PartType.DEVICE_STATUS,
    ]
    assert [part.key for part in parts] == seat.members[0].metadata()
    wanted = [part.key for part in reversed(parts)]
    assert seat.members[0].capture(wanted) == parts


def test_parts_say_what_the_device_is() -> None:
    seat, parts = taken_apart()
    found = {part.key: part for part in parts}
    end, queue = seat.ends[0], seat.driver.queues[0]
    assert int.from_bytes(found[PartType.DEV_FEATURES, NO_SELECTOR].value, "little") == end.device_features
    assert found[PartType.DEV_FEATURES, NO_SELECTOR].flags == OPTIONAL
    assert int.from_bytes(found[PartType.DRV_FEATURES, NO_SELECTOR].value, "little") == seat.driver.features
    assert found[PartType.PCI_COMMON_CFG, pci_common_cfg.encode(offset=18)].value == b"\1\0"
    assert found[PartType.DEVICE_STATUS, NO_SELECTOR].value == b"\x0f"
    cfg = virtio_dev_part_vq_cfg.decode(found[PartType.VQ_CFG, vq_index.encode(index=0)].value)
    assert (cfg.queue_size, cfg.enabled, cfg.queue_desc) == (queue.size, 1, queue.descriptor_area)
    assert (cfg.queue_driver, cfg.queue_device) == (queue.driver_area, queue.device_area)
    assert found[WRITEBACK_PART].value == b"\1"


@pytest.mark.clause("admin-parts.device.device-parts.2", "admin-parts.device.device-parts.24")
def test_parts_can_be_had_again_running_or_not_and_those_that_are_not_there_are_passed_over() -> None:
    seat, parts = taken_apart()
    source = seat.members[0]
    assert source.capture() == source.capture() == parts
    source.resume()
    assert source.capture() == parts
    nowhere = [(PartType.VQ_CFG, vq_index.encode(index=9)), (0x555, bytes(8))]
    assert source.capture([*nowhere, parts[1].key]) == [parts[1]]


@pytest.mark.clause("admin-parts.device.device-parts.5")
def test_parts_can_be_set_again_and_a_few_at_a_time() -> None:
    seat, parts = taken_apart()
    target = seat.members[1]
    target.stop()
    for part in parts:
        target.restore([part])
    target.restore(parts)
    assert target.capture() == parts
    target.resume()
    assert target.capture() == parts


@pytest.mark.clause("admin-parts.device.device-parts.23")
def test_a_reset_takes_all_parts_back_to_what_they_were_at_first() -> None:
    seat, parts = taken_apart()
    target = seat.members[1]
    fresh = target.capture()
    target.stop()
    target.restore(parts)
    seat.ends[1].write_status(0)
    assert target.capture() == fresh
    target.resume()
    assert target.capture() == fresh
    seat.ends[0].write_status(0)
    assert seat.members[0].capture() == fresh


# What cannot be set


def changed(parts: list[Part], kind: int, value: bytes, selector: bytes | None = None) -> list[Part]:
    return [
        part._replace(value=value) if part.type == kind and selector in (None, part.selector) else part
        for part in parts
    ]


@pytest.mark.clause("admin-parts.device.device-parts.6")
def test_a_part_has_the_length_that_it_has_here() -> None:
    seat, parts = taken_apart()
    target = seat.members[1]
    target.stop()
    fresh = target.capture()
    for part in parts:
        for value in (part.value + b"\0", part.value[:-1], b""):
            with pytest.raises(AdminFailed) as failed:
                target.restore(changed(parts, part.type, value))
            assert (failed.value.status, failed.value.qualifier) == BAD_FIELD
            assert target.capture() == fresh


@pytest.mark.clause(
    "admin-parts.device.device-parts.7", "admin-parts.device.device-parts.31", "admin-parts.device.device-parts.32"
)
@pytest.mark.parametrize("kind", [PartType.DEV_FEATURES, PartType.PCI_COMMON_CFG])
def test_what_a_device_has_of_itself_is_compared_and_not_set(kind: PartType) -> None:
    seat, _ = taken_apart()
    target = seat.members[1]
    target.stop()
    fresh = target.capture()
    [own] = [part for part in fresh if part.type == kind]
    target.restore([own])
    assert not seat.owner.functions.members[1].staged  # type: ignore[union-attr]  # a seat's owner has functions
    for flip in range(8 * len(own.value)):
        value = (int.from_bytes(own.value, "little") ^ 1 << flip).to_bytes(len(own.value), "little")
        with pytest.raises(AdminFailed):
            target.restore([own._replace(value=value)])
    target.resume()
    assert target.capture() == fresh


def queue_part(parts: list[Part], **values: Any) -> bytes:
    [own] = [part for part in parts if part.type == PartType.VQ_CFG]
    return virtio_dev_part_vq_cfg.encode(**(virtio_dev_part_vq_cfg.decode(own.value)._asdict() | values))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (PartType.DRV_FEATURES, lambda parts: bytes(15) + b"\x80"),
        (PartType.VQ_CFG, lambda parts: queue_part(parts, queue_size=0)),
        (PartType.VQ_CFG, lambda parts: queue_part(parts, queue_size=512)),
        (PartType.VQ_CFG, lambda parts: queue_part(parts, enabled=2)),
        (PartType.VQ_NOTIFY_CFG, lambda parts: b"\1" + bytes(7)),
        (WRITEBACK_PART[0], lambda parts: b"\2"),
    ],
)
def test_values_that_cannot_be_are_refused_at_once(kind: int, change: Callable[[list[Part]], bytes]) -> None:
    seat, parts = taken_apart()
    target = seat.members[1]
    target.stop()
    with pytest.raises(AdminFailed) as failed:
        target.restore(changed(parts, kind, change(parts)))
    assert (failed.value.status, failed.value.qualifier) == BAD_FIELD
    assert not seat.owner.functions.members[1].staged  # type: ignore[union-attr]  # a seat's owner has functions


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (PartType.DRV_FEATURES, lambda parts: bytes(16)),
        (PartType.VQ_CFG, lambda parts: queue_part(parts, queue_desc=1 << 40)),
        (PartType.VQ_CFG, lambda parts: queue_part(parts, queue_size=3)),
        (PartType.VQ_CFG, lambda parts: queue_part(parts, queue_device=3)),
    ],
)
def test_a_device_that_cannot_be_is_not_resumed(kind: int, change: Callable[[list[Part]], bytes]) -> None:
    seat, parts = taken_apart()
    target, end = seat.members[1], seat.ends[1]
    target.stop()
    target.restore(changed(parts, kind, change(parts)))
    with pytest.raises(AdminFailed):
        target.resume()
    assert end.halted
    assert end.read_status() == 0
    target.restore(parts)
    target.resume()
    assert end.running


def test_optional_parts_may_be_unknown() -> None:
    seat, parts = taken_apart()
    target = seat.members[1]
    target.stop()
    unknown = Part(0x300, bytes(8), b"faster", OPTIONAL)
    target.restore([*parts, unknown])
    with pytest.raises(AdminFailed):
        target.restore([*parts, unknown._replace(flags=0)])


# Stopped


@pytest.mark.clause(
    "admin-parts.device.device-parts.4",
    "admin-parts.device.device-parts.21",
    "admin-parts.device.device-parts.22",
    "admin-parts.driver.device-parts.1",
)
def test_parts_are_set_while_the_device_is_stopped_and_modes_may_be_set_twice() -> None:
    seat, parts = taken_apart()
    target = seat.members[1]
    with pytest.raises(UsageError, match="stopped"):
        target.restore(parts)
    target.stop()
    target.restore(parts)
    target.resume()
    target.stopped = True
    with pytest.raises(AdminFailed, match="INVALID_COMMAND"):
        target.restore(parts)
    for _ in range(2):
        target.resume()
    for _ in range(2):
        target.stop()
    assert seat.ends[1].halted


@pytest.mark.clause(
    "admin-parts.device.device-parts.8",
    "admin-parts.device.device-parts.11",
    "admin-parts.device.device-parts.12",
    "admin-parts.device.device-parts.13",
    "admin-parts.device.device-parts.16",
    "admin-parts.device.device-parts.17",
)
@pytest.mark.parametrize("ring", RINGS)
def test_a_stopped_device_touches_nothing_and_says_nothing_yet_can_be_looked_at(ring: int) -> None:
    seat, _ = taken_apart(ring)
    carrier, end, driver = seat.carrier, seat.ends[0], seat.driver
    heard = carrier.used_notifications, carrier.config_notifications
    tickets = [carrier.arena.allocate(16), carrier.arena.allocate(512), carrier.arena.allocate(1)]
    driver.queues[0].add([tickets[0].extent], [tickets[1].extent, tickets[2].extent])
    driver.kick(driver.queues[0])
    memory = [bytes(region.view) for region in carrier.arena.memory.regions]
    while carrier.step():
        pass
    end.device.capacity_changed()
    assert [bytes(region.view) for region in carrier.arena.memory.regions] == memory
    assert (carrier.used_notifications, carrier.config_notifications) == heard
    assert end.read_config(0, 8) == (SECTORS).to_bytes(8, "little")
    assert end.read_status() == 0xF
    seat.members[0].resume()
    assert driver.queues[0].take_used() != []
    assert carrier.config_notifications == heard[1] + 1


def test_a_driver_may_start_and_suspend_a_stopped_device() -> None:
    seat, _ = taken_apart()
    end, driver = seat.ends[0], seat.driver
    driver.suspend()
    assert end.suspended
    seat.members[0].resume()
    assert end.suspended
    driver.resume()
    driver.read(0, 1)
    seat.members[0].stop()
    driver.start()
    assert not end.running
    seat.members[0].resume()
    assert driver.read(0, 1) == bytes(512)


def test_a_device_in_need_of_a_reset_is_in_need_elsewhere_too() -> None:
    seat = Seat([EntropyDevice(), EntropyDevice()], EntropyDriver)
    buffer = seat.carrier.arena.allocate(16)
    seat.driver.queues[0].add([buffer.extent], [])
    seat.driver.kick(seat.driver.queues[0])
    with pytest.raises(NeedsReset):
        seat.driver.wait_used(seat.driver.queues[0])
    seat.migrate()
    assert seat.ends[1].read_status() & DeviceStatus.DEVICE_NEEDS_RESET
    seat.driver.start()
    assert len(seat.driver.read(10)) == 10


def test_a_suspended_device_is_suspended_elsewhere_too() -> None:
    seat = Seat([BlkDevice(MemoryMedium.of(8192)) for _ in range(2)], BlkDriver)
    seat.driver.suspend()
    seat.migrate()
    assert seat.ends[1].suspended
    seat.driver.resume()
    assert seat.driver.read(0, 1) == bytes(512)


def test_the_cache_mode_comes_along() -> None:
    seat = Seat([BlkDevice(MemoryMedium.of(8192)) for _ in range(2)], BlkDriver)
    seat.driver.set_writeback(False)
    seat.migrate()
    assert seat.ends[1].device.writethrough


# Objects to do it with


@pytest.mark.clause("admin-parts.device.device-parts.1")
def test_commands_for_parts_are_there_together() -> None:
    for found, complete in ((owner(None, members(1)), True), (owner(), False)):
        opcodes = numbers_of(found.send(Opcode.LIST_QUERY, 1).result)
        assert (opcodes & PARTS_COMMANDS == PARTS_COMMANDS) is complete
        assert bool(opcodes & PARTS_COMMANDS) is complete


def get_object(found: Owner, opcode: int, ident: int, data: bytes = b"", room: int = 4096) -> tuple[int, int]:
    head = virtio_admin_cmd_resource_obj_cmd_hdr.encode(type=0, id=ident)
    return found.send(opcode, 1, 1, head + data, room).state


def test_an_object_is_for_the_one_or_the_other() -> None:
    found = owner(None, members(1))
    found.use_all(0)
    found.use_all(1)
    assert get_object(found, Opcode.RESOURCE_OBJ_CREATE, 0, bytes(8)) == (22, AdminQualifier.INVALID_OPCODE)
    limits = virtio_dev_parts_cap.encode(get_parts_resource_objects_limit=9, set_parts_resource_objects_limit=1)
    assert found.send(Opcode.DRIVER_CAP_SET, data=bytes(8) + limits).state == BAD_FIELD
    limits = virtio_dev_parts_cap.encode(get_parts_resource_objects_limit=2, set_parts_resource_objects_limit=1)
    assert found.send(Opcode.DRIVER_CAP_SET, data=bytes(8) + limits).state == OK
    assert get_object(found, Opcode.RESOURCE_OBJ_CREATE, 2, bytes(8)) == OK
    assert get_object(found, Opcode.RESOURCE_OBJ_CREATE, 0, bytes(8) + b"\1") == OK
    assert get_object(found, Opcode.RESOURCE_OBJ_CREATE, 1, bytes(8) + b"\1") == (28, AdminQualifier.NORESOURCE)
    assert get_object(found, Opcode.RESOURCE_OBJ_CREATE, 1, bytes(8) + b"\2") == BAD_FIELD
    assert get_object(found, Opcode.DEV_PARTS_SET, 2) == BAD_FIELD
    assert get_object(found, Opcode.DEV_PARTS_GET, 0, b"\1") == BAD_FIELD
    assert get_object(found, Opcode.DEV_PARTS_GET, 1, b"\1") == (6, AdminQualifier.INVALID_COMMAND)
    assert get_object(found, Opcode.DEV_PARTS_GET, 2, b"\2") == BAD_FIELD
    assert get_object(found, Opcode.DEV_PARTS_METADATA_GET, 2, b"\3") == BAD_FIELD
    assert get_object(found, Opcode.RESOURCE_OBJ_MODIFY, 2, bytes(8) + b"\1") == (28, AdminQualifier.NORESOURCE)
    assert get_object(found, Opcode.RESOURCE_OBJ_DESTROY, 0) == OK
    assert get_object(found, Opcode.RESOURCE_OBJ_MODIFY, 2, bytes(8) + b"\1") == OK
    assert get_object(found, Opcode.DEV_PARTS_GET, 2, b"\1") == BAD_FIELD
    assert found.send(Opcode.DEV_MODE_SET, 1, 1, b"\3").state == BAD_FIELD


@pytest.mark.clause("admin-parts.driver.device-parts.4", "admin-parts.driver.device-parts.5")
def test_a_list_that_has_no_room_is_not_given_and_a_driver_makes_room() -> None:
    found = owner(None, [Member(InProcess(BlkDevice(MemoryMedium.of(512), num_queues=40)).end)])
    [member] = found.members()
    parts = member.capture()
    assert [part.key for part in parts] == member.metadata()
    assert len(parts) > 120
    head = virtio_admin_cmd_dev_parts_data.encode(hdr={"type": 0, "id": PartsUse.GET}, type=Metadata.LIST)
    needed = 8 + len(parts) * virtio_dev_part_hdr.size
    for room, state in ((needed - 8, (AdminStatus.ENOMEM, AdminQualifier.NORESOURCE)), (needed, OK)):
        assert found.send(Opcode.DEV_PARTS_METADATA_GET, 1, 1, head, room).state == state


@pytest.mark.clause("admin.device.admin-vq.11")
def test_enomem_leaves_no_trace() -> None:
    seat, parts = taken_apart()
    head = virtio_admin_cmd_dev_parts_data.encode(hdr={"type": 0, "id": PartsUse.GET}, type=Metadata.LIST)
    for _ in range(2):
        assert seat.owner.send(Opcode.DEV_PARTS_METADATA_GET, 1, 1, head, 0).state[0] == AdminStatus.ENOMEM
        assert seat.members[0].capture() == parts


@pytest.mark.clause("admin-parts.driver.device-parts.2")
@given(st.permutations(range(8)))
def test_a_driver_sets_parts_in_their_order(order: list[int]) -> None:
    seat, parts = taken_apart()
    target = seat.members[1]
    target.stop()
    sent: list[bytes] = []
    admin = target.group.admin
    send = type(admin).send

    class Ear(type(admin)):  # type: ignore[misc]  # a class that listens, made of whatever the client is
        def send(self, *args: Any, **options: Any) -> bytes:
            sent.append(args[3])
            return send(self, *args, **options)

    target.group.admin = Ear(admin.driver)
    target.restore([parts[n] for n in order if n < len(parts)])
    types = [part.type for part in decode_parts(sent[-1][virtio_admin_cmd_resource_obj_cmd_hdr.size :])]
    assert types == sorted(types)
    assert len(types) == len(parts)


def test_parts_that_end_early_are_no_parts() -> None:
    whole = encode_parts([Part(0x100, bytes(8), b"abc"), Part(0x101, bytes(8), b"defg")])
    for end in range(len(whole)):
        try:
            found = list(decode_parts(whole[:end]))
        except Refused:
            continue
        assert len(found) < 2
        assert encode_parts(found) == whole[: len(encode_parts(found))]
    assert len(list(decode_parts(whole + bytes(100)))) == 2


class Private(BlkDevice):
    """A disk that counts how often somebody looks at its configuration."""

    looks = 0

    def read_config(self) -> bytes:
        self.looks += 1
        return BlkDevice.read_config(self)


@pytest.mark.clause("admin-parts.driver.device-parts.3")
def test_whoever_migrates_leaves_the_configuration_space_alone() -> None:
    disks = [Private(MemoryMedium.of(8192)) for _ in range(2)]
    seat = Seat(disks, BlkDriver)
    before = [disk.looks for disk in disks]
    seat.migrate()
    assert [disk.looks for disk in disks] == before
    seat.driver.refresh()
    assert disks[1].looks > before[1]


def test_objects_come_and_go_with_the_work() -> None:
    seat, _ = taken_apart()
    member: MemberClient = seat.members[0]
    assert member.objects.need(DEV_PARTS_CAP)
    member.forget()
    assert not member.objects.need(DEV_PARTS_CAP)
    assert member.group.used >= OBJECT_COMMANDS
    assert member.group.type == GroupType.SR_IOV
    head = virtio_admin_cmd_resource_obj_create_data.encode(hdr={"type": 0, "id": 0})
    assert seat.owner.send(Opcode.RESOURCE_OBJ_QUERY, 1, 1, head).state[0] == AdminStatus.ENXIO
