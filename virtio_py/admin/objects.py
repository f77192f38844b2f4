"""Device resource objects (2.12.1.3): what is the same for all types, ahead of what a type has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from attrs import define, field

from virtio_py.admin.group import Command, Commands, Request
from virtio_py.admin.layout import (
    Opcode,
    virtio_admin_cmd_resource_obj_cmd_hdr,
    virtio_admin_cmd_resource_obj_create_data,
)
from virtio_py.resources import AdminQualifier, AdminStatus, Refused, ResourceType, padded


class _Named(NamedTuple):
    """The object that a command names: its type, its id, and the ids of the same type that exist."""

    type: ResourceType
    ident: int
    live: set[int]


@define(eq=False)
class ObjectTable:
    """The objects of one group.

    types: the types that a member has, by number; enabled: whether capabilities have been set.
    """

    types: Callable[[int], Mapping[int, ResourceType]]
    enabled: Callable[[Iterable[int]], bool]
    _live: dict[tuple[int, int], set[int]] = field(factory=dict, init=False)

    @property
    def commands(self) -> Commands:
        """The four commands."""
        return {
            Opcode.RESOURCE_OBJ_CREATE: Command(self._create),
            Opcode.RESOURCE_OBJ_MODIFY: Command(self._modify),
            Opcode.RESOURCE_OBJ_QUERY: Command(self._query),
            Opcode.RESOURCE_OBJ_DESTROY: Command(self._destroy),
        }

    def in_use(self, capability: int) -> bool:
        """Whether objects exist that need a capability."""
        return any(live and capability in self.types(member)[kind].needs for (member, kind), live in self._live.items())

    def reset(self) -> None:
        """The owner was reset, and all objects with it."""
        self._live.clear()

    def exists(self, member: int, kind: int, ident: int) -> bool:
        """Whether an object exists."""
        return ident in self._live.get((member, kind), ())

    def _named(self, request: Request) -> _Named:
        head = virtio_admin_cmd_resource_obj_cmd_hdr
        named = head.decode(padded(request.data, head.size))
        kind = self.types(request.member).get(named.type)
        if kind is None:
            raise Refused(AdminStatus.ENXIO, f"there are no objects of type {named.type:#x}")
        if not self.enabled(kind.needs):
            raise Refused(AdminStatus.EINVAL, "a capability that it needs is not set", AdminQualifier.INVALID_OPCODE)
        return _Named(kind, named.id, self._live.setdefault((request.member, named.type), set()))

    def _existing(self, request: Request) -> _Named:
        named = self._named(request)
        if named.ident not in named.live:
            raise Refused(AdminStatus.ENXIO, f"there is no object {named.ident}")
        return named

    @staticmethod
    def _data(request: Request) -> bytes:
        return request.data[virtio_admin_cmd_resource_obj_create_data.size :]

    def _create(self, request: Request) -> bytes:
        named = self._named(request)
        kind, ident, live = named
        if ident in live:
            raise Refused(AdminStatus.EEXIST, f"object {ident} exists")
        limit = kind.limit()
        if len(live) >= limit:
            raise Refused(AdminStatus.ENOSPC, f"there are {len(live)} objects, and no more than {limit}")
        if ident >= limit:
            raise Refused(AdminStatus.EINVAL, f"{ident} is not below {limit}")
        kind.create(ident, self._data(request))
        live.add(ident)
        return b""

    def _modify(self, request: Request) -> bytes:
        named = self._existing(request)
        if named.type.modify is None:
            raise Refused(AdminStatus.EINVAL, "such objects cannot be modified", AdminQualifier.INVALID_COMMAND)
        named.type.modify(named.ident, self._data(request))
        return b""

    def _query(self, request: Request) -> bytes:
        named = self._existing(request)
        return named.type.query(named.ident)

    def _destroy(self, request: Request) -> bytes:
        named = self._existing(request)
        named.type.destroy(named.ident)
        named.live.discard(named.ident)
        return b""
