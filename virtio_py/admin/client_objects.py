"""The driver's side of capabilities and resource objects (2.12.1.2, 2.12.1.3).

What the specification asks of a driver is seen to here: a capability is set before objects need it and not while they
do, ids and numbers keep to the limits, and what others depend on is destroyed after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import define, field, frozen

from virtio_py.admin.client import LIST_ROOM, GroupClient
from virtio_py.admin.layout import (
    Opcode,
    numbers_of,
    virtio_admin_cmd_cap_get_data,
    virtio_admin_cmd_cap_set_data,
    virtio_admin_cmd_resource_obj_cmd_hdr,
    virtio_admin_cmd_resource_obj_create_data,
)
from virtio_py.errors import UsageError
from virtio_py.records import Record
from virtio_py.resources import padded

CAP_ROOM: Final = 4096
"""Bytes of room for a capability, and for an object's data."""
Within = Callable[[bytes, bytes], bool]
"""Whether the second of two capabilities asks for no more than the first one offers."""


def within_limits(record: Record) -> Within:
    """Of a capability that is limits only: no field is larger than what is offered."""

    def within(offered: bytes, chosen: bytes) -> bool:
        limits, wishes = (record.decode(padded(data, record.size)) for data in (offered, chosen))
        pairs = zip(_flat(limits), _flat(wishes), strict=True)
        return all(wanted <= most for most, wanted in pairs)

    return within


def _flat(values: Iterable[Any]) -> list[int]:
    return [n for value in values for n in (value if isinstance(value, tuple) else (value,))]


@frozen
class ObjectKind:
    """A type of objects as its driver knows it: its number, and the capabilities that it needs."""

    type: int
    needs: tuple[int, ...]


ObjectName = tuple[int, int]
"""An object: its type and its id."""


@define(eq=False)
class CapabilityClient:
    """The capabilities of a device, and which of them were set; `group` is a self group."""

    group: GroupClient
    chosen: dict[int, bytes] = field(factory=dict, init=False)
    objects: list[ObjectClient] = field(factory=list, init=False)

    def ids(self) -> frozenset[int]:
        """The ids of the capabilities that the device has."""
        return numbers_of(self.group.command(Opcode.CAP_ID_LIST_QUERY, 0, room=LIST_ROOM + CAP_ROOM))

    def offered(self, ident: int) -> bytes:
        """What the device offers; zeros may be behind it. Raises AdminFailed."""
        return self.group.command(Opcode.DEVICE_CAP_GET, 0, virtio_admin_cmd_cap_get_data.encode(id=ident), CAP_ROOM)

    def set(self, ident: int, data: bytes, within: Within) -> None:
        """Takes of a capability what `data` says. Raises UsageError for more than is offered, or while objects exist
        that need it; AdminFailed."""
        if any(objects.need(ident) for objects in self.objects):
            raise UsageError(f"objects exist that need capability {ident:#x}")
        if not within(self.offered(ident), data):
            raise UsageError(f"capability {ident:#x} was not offered like this")
        self.group.command(Opcode.DRIVER_CAP_SET, 0, virtio_admin_cmd_cap_set_data.encode(id=ident) + data)
        self.chosen[ident] = data


@define(eq=False)
class ObjectClient:
    """The objects of one member of a group, and what they depend on."""

    group: GroupClient
    capabilities: CapabilityClient
    member: int = 0
    live: dict[ObjectName, frozenset[ObjectName]] = field(factory=dict, init=False)
    _kinds: dict[int, ObjectKind] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.capabilities.objects.append(self)

    def need(self, capability: int) -> bool:
        """Whether an object exists that needs a capability."""
        return any(capability in self._kinds[kind].needs for kind, _ in self.live)

    def create(self, kind: ObjectKind, ident: int, data: bytes, limit: int, depends: Iterable[ObjectName] = ()) -> None:
        """Creates an object, one of `limit` with ids below that. Raises UsageError if it must not be, AdminFailed."""
        if missing := [need for need in kind.needs if not any(self.capabilities.chosen.get(need, b""))]:
            raise UsageError(f"capability {missing[0]:#x} was not set")
        if (kind.type, ident) in self.live:
            raise UsageError(f"object {ident} of type {kind.type:#x} exists")
        if not 0 <= ident < limit:
            raise UsageError(f"{ident} is not below {limit}, the limit that was set")
        if absent := [name for name in depends if name not in self.live]:
            raise UsageError(f"it depends on {absent[0]}, which does not exist")
        self.group.command(Opcode.RESOURCE_OBJ_CREATE, self.member, _data(kind.type, ident) + data)
        self._kinds[kind.type] = kind
        self.live[kind.type, ident] = frozenset(depends)

    def modify(self, kind: ObjectKind, ident: int, data: bytes) -> None:
        """Gives an object other data. Raises UsageError if there is no such object or others depend on it,
        AdminFailed."""
        self._check_free(kind, ident)
        self.group.command(Opcode.RESOURCE_OBJ_MODIFY, self.member, _data(kind.type, ident) + data)

    def query(self, kind: ObjectKind, ident: int, room: int = CAP_ROOM) -> bytes:
        """An object's data; zeros may be behind it. Raises UsageError if there is no such object, AdminFailed."""
        self._check_live(kind, ident)
        return self.group.command(Opcode.RESOURCE_OBJ_QUERY, self.member, _data(kind.type, ident), room)

    def destroy(self, kind: ObjectKind, ident: int) -> None:
        """Destroys an object. Raises UsageError if there is no such object or others depend on it, AdminFailed."""
        self._check_free(kind, ident)
        head = virtio_admin_cmd_resource_obj_cmd_hdr.encode(type=kind.type, id=ident)
        self.group.command(Opcode.RESOURCE_OBJ_DESTROY, self.member, head)
        del self.live[kind.type, ident]

    def destroy_all(self) -> None:
        """Destroys all objects, the newest first."""
        for kind, ident in reversed(list(self.live)):
            self.destroy(self._kinds[kind], ident)

    def _check_live(self, kind: ObjectKind, ident: int) -> None:
        if (kind.type, ident) not in self.live:
            raise UsageError(f"there is no object {ident} of type {kind.type:#x}")

    def _check_free(self, kind: ObjectKind, ident: int) -> None:
        self._check_live(kind, ident)
        for (other, number), depends in self.live.items():
            if (kind.type, ident) in depends:
                raise UsageError(f"object {number} of type {other:#x} depends on it")


def _data(kind: int, ident: int) -> bytes:
    return virtio_admin_cmd_resource_obj_create_data.encode(hdr={"type": kind, "id": ident})
