"""The commands that take a device apart and put one together (2.12.1.4), for the members of one group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from attrs import define, field

from virtio_py.admin.group import Command, Commands, Later, Request
from virtio_py.admin.layout import Opcode, virtio_admin_cmd_resource_obj_cmd_hdr
from virtio_py.admin.member import Member
from virtio_py.admin.objects import ObjectTable
from virtio_py.admin.parts import check, parts_of, restore
from virtio_py.admin.parts_layout import (
    DEV_PARTS_CAP,
    OBJ_DEV_PARTS,
    STOPPED,
    Metadata,
    PartsUse,
    Selection,
    decode_headers,
    decode_parts,
    encode_parts,
    virtio_admin_cmd_dev_mode_set_data,
    virtio_admin_cmd_dev_parts_data,
    virtio_admin_cmd_dev_parts_metadata_result,
    virtio_dev_parts_cap,
    virtio_resource_obj_dev_parts,
)
from virtio_py.resources import AdminQualifier, AdminStatus, Capability, Refused, ResourceType, padded

PARTS_LIMIT: Final = 8
"""Device parts objects of each use that a driver may have for one member."""


@define(eq=False)
class PartsObjects:
    """The device parts objects of one member: what each is for."""

    limits: Callable[[], Any]
    uses: dict[int, PartsUse] = field(factory=dict)

    def resource_type(self) -> ResourceType:
        """VIRTIO_RESOURCE_OBJ_DEV_PARTS."""
        return ResourceType((DEV_PARTS_CAP,), self._limit, self._create, self._destroy, self._query, self._modify)

    def _limit(self) -> int:
        limits = self.limits()
        total: int = limits.get_parts_resource_objects_limit + limits.set_parts_resource_objects_limit
        return total

    def _create(self, ident: int, data: bytes) -> None:
        use = virtio_resource_obj_dev_parts.decode(padded(data, virtio_resource_obj_dev_parts.size)).type
        if use not in list(PartsUse):
            raise Refused(AdminStatus.EINVAL, f"a device parts object of type {use}")
        others = Counter(use for other, use in self.uses.items() if other != ident)
        if others[PartsUse(use)] >= self._most(PartsUse(use)):
            raise Refused(AdminStatus.ENOSPC, f"there are {others[PartsUse(use)]} objects of type {use}")
        self.uses[ident] = PartsUse(use)

    def _most(self, use: PartsUse) -> int:
        get, most_set = self.limits()
        return int(get if use == PartsUse.GET else most_set)

    _modify = _create

    def _destroy(self, ident: int) -> None:
        del self.uses[ident]

    def _query(self, ident: int) -> bytes:
        return virtio_resource_obj_dev_parts.encode(type=self.uses[ident])


@define(eq=False)
class PartsCommands:
    """Device parts objects, and what is done with them. find: the member of a number; raises Refused."""

    find: Callable[[int], Member]
    objects: ObjectTable = field(init=False)
    _parts: dict[int, PartsObjects] = field(factory=dict, init=False)
    _limits: bytes = field(default=bytes(virtio_dev_parts_cap.size), init=False)

    def __attrs_post_init__(self) -> None:
        self.objects = ObjectTable(self._types, lambda ids: False)

    def join(self, enabled: Callable[[Iterable[int]], bool]) -> None:
        """Where capabilities are set, in the owner's self group, is told whether they are."""
        self.objects.enabled = enabled

    @property
    def commands(self) -> Commands:
        """All that has to do with parts: a device has these commands together or not at all."""
        return {
            **self.objects.commands,
            Opcode.DEV_PARTS_METADATA_GET: Command(self._metadata, virtio_admin_cmd_dev_parts_metadata_result.size),
            Opcode.DEV_PARTS_GET: Command(self._get),
            Opcode.DEV_PARTS_SET: Command(self._set),
            Opcode.DEV_MODE_SET: Command(self._mode),
        }

    def reset(self) -> None:
        """The owner was reset: its objects are gone."""
        self.objects.reset()
        self._parts.clear()
        self._limits = bytes(virtio_dev_parts_cap.size)

    # Device parts objects

    @property
    def capabilities(self) -> Mapping[int, Capability]:
        """VIRTIO_DEV_PARTS_CAP, which is offered and set in the self group."""
        return {DEV_PARTS_CAP: Capability(self._offer, self._accept)}

    def _offer(self) -> bytes:
        return virtio_dev_parts_cap.encode(
            get_parts_resource_objects_limit=PARTS_LIMIT, set_parts_resource_objects_limit=PARTS_LIMIT
        )

    def _accept(self, data: bytes) -> None:
        if any(wanted > PARTS_LIMIT for wanted in virtio_dev_parts_cap.decode(data)):
            raise Refused(AdminStatus.EINVAL, f"more than {PARTS_LIMIT} device parts objects")
        self._limits = data

    def _types(self, member: int) -> Mapping[int, ResourceType]:
        objects = self._parts.setdefault(member, PartsObjects(lambda: virtio_dev_parts_cap.decode(self._limits)))
        return {OBJ_DEV_PARTS: objects.resource_type()}

    def _object(self, request: Request, use: PartsUse) -> Member:
        """The member, if the command names an object of the right use."""
        head = virtio_admin_cmd_resource_obj_cmd_hdr
        named = head.decode(padded(request.data, head.size))
        if not self.objects.exists(request.member, named.type, named.id):
            raise Refused(AdminStatus.ENXIO, f"there is no object {named.id} of type {named.type:#x}")
        if self._parts[request.member].uses[named.id] != use:
            raise Refused(AdminStatus.EINVAL, f"object {named.id} is not to {use.name}")
        return self.find(request.member)

    # Device parts

    def _metadata(self, request: Request) -> bytes:
        member = self._object(request, PartsUse.GET)
        head, result = virtio_admin_cmd_dev_parts_data, virtio_admin_cmd_dev_parts_metadata_result
        kind = head.decode(padded(request.data, head.size)).type
        if kind not in list(Metadata):
            raise Refused(AdminStatus.EINVAL, f"metadata of type {kind}")
        parts = parts_of(member)
        answer = result.encode(count=len(encode_parts(parts)) if kind == Metadata.SIZE else len(parts))
        answer += b"".join(part.header() for part in parts) if kind == Metadata.LIST else b""
        if len(answer) > request.room:
            raise Refused(AdminStatus.ENOMEM, f"{request.room} bytes of room for {len(answer)}")
        return answer

    def _get(self, request: Request) -> bytes:
        member = self._object(request, PartsUse.GET)
        head = virtio_admin_cmd_dev_parts_data
        kind = head.decode(padded(request.data, head.size)).type
        if kind not in list(Selection):
            raise Refused(AdminStatus.EINVAL, f"a selection of type {kind}")
        wanted = set(decode_headers(request.data[head.size :]))
        return encode_parts([part for part in parts_of(member) if kind == Selection.ALL or part.key in wanted])

    def _set(self, request: Request) -> bytes:
        member = self._object(request, PartsUse.SET)
        if not member.end.halted:
            raise Refused(AdminStatus.EINVAL, "the device is not stopped", AdminQualifier.INVALID_COMMAND)
        parts = decode_parts(request.data[virtio_admin_cmd_resource_obj_cmd_hdr.size :])
        member.stage(check(member, list(parts)))
        return b""

    def _mode(self, request: Request) -> bytes | Later:
        end, head = self.find(request.member).end, virtio_admin_cmd_dev_mode_set_data
        flags = head.decode(padded(request.data, head.size)).flags
        if flags & ~STOPPED:
            raise Refused(AdminStatus.EINVAL, f"flags {flags:#x}")
        if not flags:
            restore(self.find(request.member))
            end.unhalt()
            return b""
        return b"" if end.halt() else end.when_halted
