"""Capabilities and resource objects (2.12.1.2, 2.12.1.3): any sequence of commands against a model, and the driver."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.admin_tools import BAD_FIELD, BAD_OPCODE, CAP, OK, THING, TOWER, Owner, Shelf, members, owner
from virtio_py.admin.client import AdminFailed
from virtio_py.admin.client_objects import ObjectKind, within_limits
from virtio_py.admin.layout import (
    CAPABILITY_COMMANDS,
    GroupType,
    Opcode,
    numbers_of,
    virtio_admin_cmd_cap_get_data,
    virtio_admin_cmd_resource_obj_cmd_hdr,
    virtio_admin_cmd_resource_obj_create_data,
)
from virtio_py.admin.parts_layout import virtio_dev_parts_cap
from virtio_py.errors import UsageError
from virtio_py.resources import AdminQualifier, AdminStatus

SELF = GroupType.SELF
THINGS, TOWERS = ObjectKind(THING, (CAP,)), ObjectKind(TOWER, (CAP,))
ENXIO = (AdminStatus.ENXIO, AdminQualifier.INVALID_COMMAND)
EEXIST = (AdminStatus.EEXIST, AdminQualifier.INVALID_COMMAND)
EBUSY = (AdminStatus.EBUSY, AdminQualifier.INVALID_COMMAND)
ENOSPC = (AdminStatus.ENOSPC, AdminQualifier.NORESOURCE)


def shelf(limit: int | None = None, **options: Any) -> tuple[Owner, Shelf]:
    device = Shelf(**options)
    found = owner(device)
    found.use_all()
    if limit is not None:
        assert set_cap(found, limit) == OK
    return found, device


def cap(ident: int) -> bytes:
    return virtio_admin_cmd_cap_get_data.encode(id=ident)


def set_cap(found: Owner, limit: int, ident: int = CAP) -> tuple[int, int]:
    return found.send(Opcode.DRIVER_CAP_SET, data=cap(ident) + bytes([limit])).state


def act(found: Owner, opcode: Opcode, kind: int, ident: int, data: bytes = b"") -> tuple[int, int]:
    if opcode == Opcode.RESOURCE_OBJ_DESTROY:
        return found.send(opcode, data=virtio_admin_cmd_resource_obj_cmd_hdr.encode(type=kind, id=ident)).state
    head = virtio_admin_cmd_resource_obj_create_data.encode(hdr={"type": kind, "id": ident})
    return found.send(opcode, data=head + data).state


def query(found: Owner, kind: int, ident: int) -> bytes:
    head = virtio_admin_cmd_resource_obj_create_data.encode(hdr={"type": kind, "id": ident})
    answer = found.send(Opcode.RESOURCE_OBJ_QUERY, data=head)
    assert answer.state == OK
    return answer.result


CREATE, MODIFY, DESTROY = Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_MODIFY, Opcode.RESOURCE_OBJ_DESTROY


# Capabilities


@pytest.mark.clause("admin-cap.device.caps.1")
def test_commands_for_capabilities_are_there_together() -> None:
    for found, complete in ((owner(Shelf()), True), (owner(None, members(1)), True), (owner(), False)):
        opcodes = numbers_of(found.send(Opcode.LIST_QUERY).result)
        assert (opcodes & CAPABILITY_COMMANDS == CAPABILITY_COMMANDS) is complete
        assert bool(opcodes & CAPABILITY_COMMANDS) is complete


@pytest.mark.clause(
    "admin-cap.device.caps.2", "admin-cap.device.caps.3", "admin-cap.device.caps.4", "admin-cap.device.caps.8"
)
def test_a_driver_may_take_as_much_as_is_offered() -> None:
    found, device = shelf(most=20)
    assert numbers_of(found.send(Opcode.CAP_ID_LIST_QUERY, room=512).result) == {CAP}
    assert found.send(Opcode.DEVICE_CAP_GET, data=cap(CAP)).result == b"\x14" + bytes(7)
    for limit in (0, 1, 19, 20, 3):
        assert set_cap(found, limit) == OK
        assert device.limit == limit
    assert set_cap(found, 21) == BAD_FIELD
    assert device.limit == 3
    assert found.send(Opcode.DEVICE_CAP_GET, data=cap(CAP + 1)).state == ENXIO
    assert set_cap(found, 1, 0xFFFF) == ENXIO


@pytest.mark.clause("admin-cap.device.caps.5", "admin-cap.device.caps.6")
@pytest.mark.parametrize("opcode", sorted(CAPABILITY_COMMANDS))
def test_capabilities_are_the_self_groups(opcode: Opcode) -> None:
    found = owner(Shelf(), members(1))
    found.use_all(1)
    assert found.send(opcode, 1, 1, cap(CAP)).state == BAD_OPCODE


@pytest.mark.clause("admin-cap.device.caps.7")
def test_a_capability_stays_while_objects_need_it() -> None:
    found, device = shelf(limit=4)
    assert act(found, CREATE, THING, 3, b"abcd") == OK
    assert set_cap(found, 0) == EBUSY
    assert set_cap(found, 8) == EBUSY
    assert set_cap(found, 4) == OK
    assert device.limit == 4
    assert act(found, DESTROY, THING, 3) == OK
    assert set_cap(found, 0) == OK
    assert act(found, CREATE, THING, 3, b"abcd") == BAD_OPCODE


@pytest.mark.clause("admin-cap.device.caps.9", "admin-res.device.objects.11", "admin-cap.device.caps.10")
def test_a_reset_takes_capabilities_and_objects_away() -> None:
    found, device = shelf(limit=4)
    assert act(found, CREATE, THING, 0, b"abcd") == OK
    found.driver.start()
    found.use_all()
    assert (device.limit, device.things) == (0, {})
    assert act(found, Opcode.RESOURCE_OBJ_QUERY, THING, 0) == BAD_OPCODE
    assert act(found, CREATE, THING, 0, b"abcd") == BAD_OPCODE
    assert set_cap(found, 4) == OK
    assert act(found, Opcode.RESOURCE_OBJ_QUERY, THING, 0) == ENXIO


# Objects


@pytest.mark.clause(
    "admin-res.device.objects.1",
    "admin-res.device.objects.2",
    "admin-res.device.objects.3",
    "admin-res.device.objects.4",
    "admin-res.device.objects.7",
)
def test_objects_that_cannot_be() -> None:
    found, _ = shelf(limit=3, room=2)
    assert act(found, CREATE, THING, 1, b"abcd") == OK
    assert act(found, CREATE, THING, 1, b"abcd") == EEXIST
    assert act(found, CREATE, THING, 3, b"abcd") == BAD_FIELD
    for opcode in (MODIFY, DESTROY, Opcode.RESOURCE_OBJ_QUERY):
        assert act(found, opcode, THING, 2) == ENXIO
    assert act(found, CREATE, TOWER, 0, b"\1") == OK
    assert act(found, MODIFY, THING, 1, b"efgh") == EBUSY
    assert act(found, DESTROY, THING, 1) == EBUSY
    assert act(found, CREATE, THING, 2, b"abcd") == OK
    assert act(found, CREATE, THING, 0, b"abcd") == ENOSPC
    assert act(found, CREATE, 0x4FF, 0) == ENXIO


@pytest.mark.clause("admin-res.device.objects.8", "admin-res.device.objects.6", "admin-res.device.objects.5")
@given(st.permutations(range(6)), st.integers(0, 8))
def test_as_many_objects_as_were_asked_for_in_any_order(order: list[int], limit: int) -> None:
    found, device = shelf(limit=limit)
    for ident in [*order, 6, 7]:
        state = act(found, CREATE, THING, ident, bytes([ident]))
        assert state == (OK if ident < limit else BAD_OPCODE if not limit else state)
        assert (state == OK) == (ident < limit)
    assert len(device.things) == limit
    for ident in order[:limit]:
        if ident < limit:
            assert act(found, DESTROY, THING, ident) == OK
            assert act(found, CREATE, THING, ident, b"again") == OK


idents = st.integers(0, 5)
payloads = st.binary(max_size=6)
commands = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 6)),
    st.tuples(st.just("create"), st.sampled_from([THING, TOWER, 0x4FF]), idents, payloads),
    st.tuples(st.just("modify"), st.sampled_from([THING, TOWER]), idents, payloads),
    st.tuples(st.just("query"), st.sampled_from([THING, TOWER]), idents),
    st.tuples(st.just("destroy"), st.sampled_from([THING, TOWER]), idents),
    st.tuples(st.just("reset")),
)


@define
class Model:
    """What there is, as plain Python has it."""

    most: int = 4
    room: int = 3
    limit: int = 0
    objects: dict[int, dict[int, bytes]] = field(factory=lambda: {THING: {}, TOWER: {}})

    def reset(self) -> tuple[int, int]:
        self.limit = 0
        self.objects = {THING: {}, TOWER: {}}
        return OK

    def set(self, limit: int) -> tuple[int, int]:
        if limit != self.limit and any(self.objects.values()):
            return EBUSY
        if limit > self.most:
            return BAD_FIELD
        self.limit = limit
        return OK

    def _absent(self, kind: int, ident: int) -> tuple[int, int] | None:
        if kind not in self.objects:
            return ENXIO
        if not self.limit:
            return BAD_OPCODE
        return ENXIO if ident not in self.objects[kind] else None

    def _wrong(self, kind: int, data: bytes) -> bool:
        return kind == TOWER and int.from_bytes(data, "little") not in self.objects[THING]

    def create(self, kind: int, ident: int, data: bytes) -> tuple[int, int]:
        absent = self._absent(kind, ident)
        if absent is None:
            return EEXIST
        if absent == BAD_OPCODE or kind not in self.objects:
            return absent
        here = self.objects[kind]
        if len(here) >= self.limit:
            return ENOSPC
        if ident >= self.limit or self._wrong(kind, data):
            return BAD_FIELD
        if len(here) >= self.room:
            return ENOSPC
        here[ident] = data
        return OK

    def _stood_on(self, kind: int, ident: int) -> bool:
        return kind == THING and any(int.from_bytes(d, "little") == ident for d in self.objects[TOWER].values())

    def modify(self, kind: int, ident: int, data: bytes) -> tuple[int, int]:
        if (absent := self._absent(kind, ident)) is not None:
            return absent
        if self._stood_on(kind, ident):
            return EBUSY
        if self._wrong(kind, data):
            return BAD_FIELD
        self.objects[kind][ident] = data
        return OK

    def destroy(self, kind: int, ident: int) -> tuple[int, int]:
        if (absent := self._absent(kind, ident)) is not None:
            return absent
        if self._stood_on(kind, ident):
            return EBUSY
        del self.objects[kind][ident]
        return OK

    def query(self, kind: int, ident: int) -> tuple[int, int]:
        return self._absent(kind, ident) or OK


@pytest.mark.clause("admin-res.device.objects.9", "admin-res.device.objects.10")
@settings(deadline=None)
@given(st.lists(commands, max_size=30))
def test_any_sequence_of_commands_does_what_the_model_does(todo: list[tuple[Any, ...]]) -> None:
    found, device = shelf(most=4, room=3)
    model = Model()
    state: tuple[int, int]
    for verb, *args in todo:
        if verb == "reset":
            found.driver.start()
            found.use_all()
            state = OK
        elif verb == "set":
            state = set_cap(found, args[0])
        else:
            if len(args) == 3:
                args[2] = args[2][:4].ljust(4, b"\0")
            state = act(found, Opcode[f"RESOURCE_OBJ_{verb.upper()}"], *args)
        assert state == getattr(model, verb)(*args)
        assert {THING: device.things, TOWER: device.towers} == model.objects
        assert device.limit == model.limit
        for kind, here in model.objects.items():
            for ident, data in here.items():
                assert query(found, kind, ident) == data + bytes(4)


# The driver


def test_a_driver_can_do_all_of_it() -> None:
    found, device = shelf()
    capabilities, objects = found.objects()
    assert capabilities.ids() == {CAP}
    capabilities.set(CAP, b"\4", lambda offered, chosen: chosen <= offered)
    objects.create(THINGS, 2, b"abcd", 4)
    objects.create(TOWERS, 0, b"\2", 4, depends=[(THING, 2)])
    objects.modify(TOWERS, 0, b"\2\0\0\0")
    assert objects.query(THINGS, 2)[:4] == b"abcd"
    objects.destroy_all()
    assert (device.things, device.towers, objects.live) == ({}, {}, {})


@pytest.mark.clause("admin-cap.driver.caps.1", "admin-res.driver.objects.7")
def test_a_driver_sets_a_capability_before_it_needs_it() -> None:
    found, device = shelf()
    capabilities, objects = found.objects()
    with pytest.raises(UsageError, match="0x800 was not set"):
        objects.create(THINGS, 0, b"", 4)
    capabilities.set(CAP, b"\0", lambda offered, chosen: True)
    with pytest.raises(UsageError, match="0x800 was not set"):
        objects.create(THINGS, 0, b"", 4)
    assert device.things == {}


@pytest.mark.clause("admin-cap.driver.caps.2", "admin-cap.driver.caps.3", "admin-cap.driver.caps.4")
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_a_driver_takes_no_more_than_is_offered(get: int, put: int, own_get: int, own_put: int) -> None:
    within = within_limits(virtio_dev_parts_cap)
    assert within(bytes([get, put]), bytes([own_get, own_put])) == (own_get <= get and own_put <= put)


def test_a_capability_that_asks_for_too_much_is_not_sent() -> None:
    found, device = shelf(most=3)
    capabilities, _ = found.objects()
    with pytest.raises(UsageError, match="not offered like this"):
        capabilities.set(CAP, b"\4", lambda offered, chosen: chosen[0] <= offered[0])
    assert device.limit == 0
    with pytest.raises(AdminFailed, match="ENXIO"):
        capabilities.set(CAP + 1, b"\4", lambda offered, chosen: True)


@pytest.mark.clause("admin-cap.driver.caps.5", "admin-res.driver.objects.6")
def test_a_driver_leaves_a_capability_alone_while_objects_need_it() -> None:
    found, device = shelf()
    capabilities, objects = found.objects()
    capabilities.set(CAP, b"\4", lambda offered, chosen: True)
    objects.create(THINGS, 0, b"", 4)
    for value in (b"\0", b"\2", b"\5"):
        with pytest.raises(UsageError, match="objects exist"):
            capabilities.set(CAP, value, lambda offered, chosen: True)
    assert device.limit == 4
    objects.destroy_all()
    capabilities.set(CAP, b"\0", lambda offered, chosen: True)


@pytest.mark.clause(
    "admin-res.driver.objects.1",
    "admin-res.driver.objects.2",
    "admin-res.driver.objects.3",
    "admin-res.driver.objects.4",
    "admin-res.driver.objects.5",
)
def test_what_a_driver_does_not_do_with_objects() -> None:
    found, device = shelf()
    capabilities, objects = found.objects()
    capabilities.set(CAP, b"\2", lambda offered, chosen: True)
    objects.create(THINGS, 0, b"", 2)
    with pytest.raises(UsageError, match="exists"):
        objects.create(THINGS, 0, b"", 2)
    with pytest.raises(UsageError, match="not below 2"):
        objects.create(THINGS, 2, b"", 2)
    with pytest.raises(UsageError, match="does not exist"):
        objects.create(TOWERS, 0, b"\1", 2, depends=[(THING, 1)])
    objects.create(TOWERS, 1, b"\0", 2, depends=[(THING, 0)])
    for refuse in (objects.destroy, lambda kind, ident: objects.modify(kind, ident, b"")):
        with pytest.raises(UsageError, match="depends on it"):
            refuse(THINGS, 0)
    assert (set(device.things), set(device.towers)) == ({0}, {1})
    objects.destroy_all()
    for gone in (objects.destroy, objects.query, lambda kind, ident: objects.modify(kind, ident, b"")):
        with pytest.raises(UsageError, match="no object 0"):
            gone(THINGS, 0)
