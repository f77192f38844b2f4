"""Administration commands from a driver that means no good: each ends in a status, and all goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.admin_tools import CAP, HEAD, OK, THING, TOWER, Answer, Owner, Shelf, owner
from tests.test_net_flow import UDP_PORTS, group, rule
from virtio_py.admin.layout import (
    GroupType,
    NotifyPlace,
    Opcode,
    virtio_admin_cmd,
    virtio_admin_cmd_cap_set_data,
    virtio_admin_cmd_legacy_wr_data,
    virtio_admin_cmd_resource_obj_cmd_hdr,
    virtio_admin_cmd_resource_obj_create_data,
)
from virtio_py.admin.member import Member, NotifyAddress
from virtio_py.admin.owner import MAX_COMMAND
from virtio_py.admin.parts_layout import (
    Part,
    PartType,
    encode_parts,
    virtio_admin_cmd_dev_parts_data,
    virtio_dev_parts_cap,
)
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.layout import virtio_blk_config
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.net.flow_filter import FlowTable
from virtio_py.devices.net.flow_layout import (
    ALL_SELECTORS,
    FF_ACTION_CAP,
    FF_RESOURCE_CAP,
    FF_SELECTOR_CAP,
    FlowLimits,
    FlowObject,
    encode_actions,
    encode_selectors,
)
from virtio_py.devices.net.flow_objects import FlowObjects
from virtio_py.resources import AdminQualifier, AdminStatus, Refused
from virtio_py.spec import DeviceStatus
from virtio_py.transports.in_process import InProcess

SELF, SR_IOV = GroupType.SELF, GroupType.SR_IOV


def head(opcode: int, kind: GroupType = SELF) -> bytes:
    return virtio_admin_cmd.encode(opcode=opcode, group_type=kind, group_member_id=int(kind))


def obj(kind: int, ident: int) -> bytes:
    return virtio_admin_cmd_resource_obj_create_data.encode(hdr={"type": kind, "id": ident})


def named(kind: int, ident: int) -> bytes:
    return virtio_admin_cmd_resource_obj_cmd_hdr.encode(type=kind, id=ident)


def cap(ident: int, data: bytes = b"") -> bytes:
    return virtio_admin_cmd_cap_set_data.encode(id=ident) + data


def parts_head(ident: int, kind: int) -> bytes:
    return virtio_admin_cmd_dev_parts_data.encode(hdr={"type": 0, "id": ident}, type=kind)


def register(offset: int, data: bytes = b"") -> bytes:
    return virtio_admin_cmd_legacy_wr_data.encode(offset=offset) + data


LIMITS = virtio_dev_parts_cap.encode(get_parts_resource_objects_limit=2, set_parts_resource_objects_limit=2)
FEATURES = encode_parts(
    [Part(PartType.DRV_FEATURES, bytes(8), bytes(16)), Part(PartType.DEVICE_STATUS, bytes(8), b"\1")]
)
COMMANDS = [
    head(Opcode.LIST_QUERY),
    head(Opcode.LIST_QUERY, SR_IOV),
    head(Opcode.LIST_USE) + b"\x83\x3f" + bytes(6),
    head(Opcode.LIST_USE, SR_IOV) + b"\x7f\xfc\x03" + bytes(5),
    head(Opcode.CAP_ID_LIST_QUERY),
    head(Opcode.DEVICE_CAP_GET) + cap(CAP),
    head(Opcode.DRIVER_CAP_SET) + cap(CAP, b"\4"),
    head(Opcode.DRIVER_CAP_SET) + cap(0, LIMITS),
    head(Opcode.RESOURCE_OBJ_CREATE) + obj(THING, 1) + b"abcd",
    head(Opcode.RESOURCE_OBJ_CREATE) + obj(TOWER, 2) + b"\1\0\0\0",
    head(Opcode.RESOURCE_OBJ_MODIFY) + obj(TOWER, 2) + b"\1\0\0\0",
    head(Opcode.RESOURCE_OBJ_QUERY) + obj(THING, 1),
    head(Opcode.RESOURCE_OBJ_DESTROY) + named(TOWER, 2),
    head(Opcode.RESOURCE_OBJ_CREATE, SR_IOV) + obj(0, 0) + bytes(8),
    head(Opcode.RESOURCE_OBJ_CREATE, SR_IOV) + obj(0, 1) + b"\1" + bytes(7),
    head(Opcode.DEV_PARTS_METADATA_GET, SR_IOV) + parts_head(0, 2),
    head(Opcode.DEV_PARTS_GET, SR_IOV) + parts_head(0, 0) + Part(PartType.VQ_CFG, bytes(8), b"").header(),
    head(Opcode.DEV_PARTS_GET, SR_IOV) + parts_head(0, 1),
    head(Opcode.DEV_MODE_SET, SR_IOV) + b"\1",
    head(Opcode.DEV_PARTS_SET, SR_IOV) + named(0, 1) + FEATURES,
    head(Opcode.DEV_MODE_SET, SR_IOV) + b"\0",
    head(Opcode.LEGACY_COMMON_CFG_WRITE, SR_IOV) + register(18, b"\1"),
    head(Opcode.LEGACY_COMMON_CFG_READ, SR_IOV) + register(0),
    head(Opcode.LEGACY_DEV_CFG_WRITE, SR_IOV) + register(32, b"\0"),
    head(Opcode.LEGACY_DEV_CFG_READ, SR_IOV) + register(0),
    head(Opcode.LEGACY_NOTIFY_INFO, SR_IOV),
]
"""One of each, in an order in which all succeed."""


def ready() -> Owner:
    end = InProcess(BlkDevice(MemoryMedium.of(8192)), memory_size=1 << 20).end
    member = Member(end, config=virtio_blk_config, notify=[NotifyAddress(NotifyPlace.OWNER, 2, 64)])
    found = owner(Shelf(), [member])
    found.use_all(SELF)
    found.use_all(SR_IOV)
    return found


def answered(found: Owner, command: bytes, room: int = 8) -> Answer:
    """A command that may be anything, and what may be said of every answer."""
    answer, length = found.raw(command, HEAD + room)
    got = Answer.of(answer[:length])
    assert length <= HEAD + room
    assert got.state[0] in list(AdminStatus)
    assert got.state[1] in list(AdminQualifier)
    assert (got.state[0] == 0) == (got.state[1] == 0)
    assert got.reserved == bytes(4)
    assert not found.carrier.end.read_status() & DeviceStatus.DEVICE_NEEDS_RESET
    return got


def test_each_of_them_is_fine_as_it_is() -> None:
    found = ready()
    assert {int.from_bytes(command[:2], "little") for command in COMMANDS} == set(Opcode)
    for command in COMMANDS:
        room = 4096 if command[0] in (Opcode.DEV_PARTS_METADATA_GET, Opcode.DEV_PARTS_GET) else 8
        room = 4 if command[0] == Opcode.LEGACY_COMMON_CFG_READ else room
        assert answered(found, command, room).state == OK, command.hex()


@pytest.mark.clause("admin.device.admin-vq.1", "admin.device.admin-vq.2", "admin.device.admin-vq.6")
def test_each_of_them_cut_short_at_any_byte_is_answered() -> None:
    found = ready()
    for command in COMMANDS:
        for end in range(1, len(command)):
            answered(found, command[:end])
        answered(found, command, 4096)
        for room in range(HEAD + 1):
            answer, length = found.raw(command, room)
            assert length == min(room, length)
            assert len(answer) == room


@pytest.mark.clause("admin.device.group-cmds.1", "admin.device.group-cmds.8")
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_anything_like_them_is_answered(data: st.DataObject) -> None:
    found = ready()
    for command in COMMANDS:
        damaged = bytearray(command)
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(damaged) - 1))
            damaged[at] = data.draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]))
        answered(found, bytes(damaged), data.draw(st.sampled_from([0, 1, 2, 4, 8, 100, 5000])))
    assert found.send(Opcode.LIST_QUERY).state[1] in (AdminQualifier.OK, AdminQualifier.INVALID_OPCODE)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Opcode), st.sampled_from([0, 1]), st.binary(max_size=64)), max_size=20))
def test_any_bytes_behind_a_head_are_answered(todo: list[tuple[int, int, bytes]]) -> None:
    found = ready()
    for opcode, kind, data in todo:
        answered(found, virtio_admin_cmd.encode(opcode=opcode, group_type=kind, group_member_id=kind) + data, 64)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: Opcode(c[0]).name)
def test_what_is_reserved_is_not_looked_at(command: bytes) -> None:
    plain, odd = ready(), ready()
    reserved = virtio_admin_cmd.offset("reserved1")
    full = command[:reserved] + b"\xa5" * 12 + command[reserved + 12 :]
    for earlier in COMMANDS[: COMMANDS.index(command)]:
        answered(plain, earlier)
        answered(odd, earlier)
    assert answered(odd, full) == answered(plain, command)


def test_a_command_as_long_as_the_memory_many_times_over() -> None:
    found = ready()
    ring, arena, driver = found.driver.admin_queues[0], found.carrier.arena, found.driver
    [region] = arena.memory.regions
    start = arena.allocate(len(COMMANDS[2]))
    start.view[:] = COMMANDS[2]
    answer = arena.allocate(HEAD)
    whole = [(region.start, region.size)] * 8
    assert 8 * region.size > MAX_COMMAND
    ring.add([start.extent, *whole], [answer.extent])
    driver.kick(ring)
    driver.wait_used(ring)
    assert answer.view[:4] in (bytes(4), b"\x16\0\3\0")


def test_a_room_as_large_as_the_memory_is_used_no_further_than_needed() -> None:
    found = ready()
    ring, arena, driver = found.driver.admin_queues[0], found.carrier.arena, found.driver
    start, answer = arena.allocate(24), arena.allocate(1 << 20)
    start.view[:] = COMMANDS[0]
    ring.add([start.extent], [answer.extent])
    driver.kick(ring)
    [(_, length)] = driver.wait_used(ring)
    assert length == HEAD + 8


def test_a_buffer_without_a_byte_to_write_is_used() -> None:
    found = ready()
    for command in COMMANDS:
        assert found.raw(command, 0) == (b"", 0)


# Flow filters, whose structures have lengths of their own

FLOW_CAPS = {
    FF_RESOURCE_CAP: FlowLimits().encode(),
    FF_SELECTOR_CAP: encode_selectors(ALL_SELECTORS),
    FF_ACTION_CAP: encode_actions([1, 2]),
}


@settings(deadline=None)
@given(st.data())
def test_any_capability_and_object_of_flow_filters_is_taken_or_refused(data: st.DataObject) -> None:
    flows = FlowObjects(FlowTable((0, 2)))
    capabilities, kinds = flows.capabilities(), flows.resource_types()
    for ident, whole in FLOW_CAPS.items():
        attempt(capabilities[ident].accept, data.draw(spoilt(whole)))
        capabilities[ident].accept(whole)
    objects = [(FlowObject.GROUP, group(1)), (FlowObject.CLASSIFIER, UDP_PORTS), (FlowObject.RULE, rule())]
    for kind, whole in objects:
        attempt(kinds[kind].create, 1, data.draw(spoilt(whole)))
        attempt(kinds[kind].create, 1, whole)
        modify = kinds[kind].modify
        assert modify is not None
        if attempt(partial(kinds[kind].query, 1)):
            attempt(modify, 1, data.draw(spoilt(whole)))
            before = kinds[kind].query(1)
            assert attempt(modify, 1, before + bytes(5))
            assert kinds[kind].query(1) == before


def attempt(work: Callable[..., object], *args: Any) -> bool:
    """Whether it was taken; nothing but a refusal may come of it."""
    try:
        work(*args)
    except Refused:
        return False
    return True


def spoilt(whole: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that are much like these: cut, changed at a place, or longer."""
    at = st.integers(0, len(whole) - 1)
    return st.one_of(
        at.map(lambda n: whole[:n]),
        st.tuples(at, st.integers(0, 255)).map(lambda c: whole[: c[0]] + bytes([c[1]]) + whole[c[0] + 1 :]),
        st.binary(max_size=16).map(lambda tail: whole + tail),
        st.binary(max_size=64),
    )
