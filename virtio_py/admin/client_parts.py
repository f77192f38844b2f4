"""The driver's side of device parts (2.12.1.4): a member is stopped, taken apart, and put together elsewhere.

source.stop(); parts = source.capture(); source.forget()
target.stop(); target.restore(parts); target.resume(); target.forget()
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import define, field

from virtio_py.admin.client import GroupClient
from virtio_py.admin.client_objects import CapabilityClient, ObjectClient, ObjectKind, within_limits
from virtio_py.admin.layout import Opcode, virtio_admin_cmd_resource_obj_cmd_hdr
from virtio_py.admin.parts_layout import (
    DEV_PARTS_CAP,
    OBJ_DEV_PARTS,
    STOPPED,
    Metadata,
    Part,
    PartsUse,
    Selection,
    decode_headers,
    decode_parts,
    encode_parts,
    virtio_admin_cmd_dev_mode_set_data,
    virtio_admin_cmd_dev_parts_data,
    virtio_admin_cmd_dev_parts_metadata_result,
    virtio_dev_part_hdr,
    virtio_dev_parts_cap,
    virtio_resource_obj_dev_parts,
)
from virtio_py.errors import UsageError
from virtio_py.resources import padded

DEV_PARTS: Final = ObjectKind(OBJ_DEV_PARTS, (DEV_PARTS_CAP,))


def enable_parts(capabilities: CapabilityClient, get: int = 1, put: int = 1) -> None:
    """Asks for so many objects to get and to set parts with, for each member. Raises UsageError, AdminFailed."""
    data = virtio_dev_parts_cap.encode(get_parts_resource_objects_limit=get, set_parts_resource_objects_limit=put)
    capabilities.set(DEV_PARTS_CAP, data, within_limits(virtio_dev_parts_cap))


@define(eq=False)
class MemberClient:
    """One member of the SR-IOV group, as far as its parts go. Raises UsageError for what a driver must not do."""

    group: GroupClient
    capabilities: CapabilityClient
    member: int
    stopped: bool = field(default=False, init=False)
    objects: ObjectClient = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.objects = ObjectClient(self.group, self.capabilities, self.member)

    # Mode

    def stop(self) -> None:
        """The device touches nothing from here on. Raises AdminFailed."""
        self._set_mode(STOPPED)

    def resume(self) -> None:
        """The device goes on, as the parts say that were set. Raises AdminFailed."""
        self._set_mode(0)

    def _set_mode(self, flags: int) -> None:
        data = virtio_admin_cmd_dev_mode_set_data.encode(flags=flags)
        self.group.command(Opcode.DEV_MODE_SET, self.member, data)
        self.stopped = bool(flags & STOPPED)

    # Parts

    def metadata(self) -> list[tuple[int, bytes]]:
        """Type and selector of each part that the device has."""
        head = virtio_admin_cmd_dev_parts_metadata_result
        room = head.size + virtio_dev_part_hdr.size * self._count(Metadata.COUNT)
        answer = padded(self._ask(Opcode.DEV_PARTS_METADATA_GET, Metadata.LIST, b"", room), room)
        count = head.decode(answer).count
        return list(decode_headers(answer[head.size : head.size + count * virtio_dev_part_hdr.size]))

    def capture(self, wanted: Iterable[tuple[int, bytes]] | None = None) -> list[Part]:
        """The parts that the device has, or those of them that are wanted, in their order. Raises AdminFailed."""
        room = self._count(Metadata.SIZE)
        if wanted is None:
            answer = self._ask(Opcode.DEV_PARTS_GET, Selection.ALL, b"", room)
        else:
            headers = b"".join(Part(kind, selector, b"").header() for kind, selector in wanted)
            answer = self._ask(Opcode.DEV_PARTS_GET, Selection.SELECTED, headers, room)
        return list(decode_parts(answer))

    def restore(self, parts: Iterable[Part]) -> None:
        """Sets parts, which take effect when the device resumes. Raises AdminFailed."""
        if not self.stopped:
            raise UsageError("parts are set while the device is stopped")
        ordered = sorted(parts, key=lambda part: part.type)
        head = virtio_admin_cmd_resource_obj_cmd_hdr.encode(type=OBJ_DEV_PARTS, id=self._object(PartsUse.SET))
        self.group.command(Opcode.DEV_PARTS_SET, self.member, head + encode_parts(ordered))

    def forget(self) -> None:
        """Destroys the objects that capturing and restoring took."""
        self.objects.destroy_all()

    def _object(self, use: PartsUse) -> int:
        """The object for this use, made when it is first wanted; the one to get with is number 0."""
        limits = virtio_dev_parts_cap.decode(self.capabilities.chosen.get(DEV_PARTS_CAP, b"\0\0"))
        if (OBJ_DEV_PARTS, use) not in self.objects.live:
            self.objects.create(DEV_PARTS, use, virtio_resource_obj_dev_parts.encode(type=use), sum(limits))
        return use

    def _count(self, kind: Metadata) -> int:
        head = virtio_admin_cmd_dev_parts_metadata_result
        answer = self._ask(Opcode.DEV_PARTS_METADATA_GET, kind, b"", head.size)
        count: int = head.decode(padded(answer, head.size)).count
        return count

    def _ask(self, opcode: Opcode, kind: int, headers: bytes, room: int) -> bytes:
        hdr = {"type": OBJ_DEV_PARTS, "id": self._object(PartsUse.GET)}
        data = virtio_admin_cmd_dev_parts_data.encode(hdr=hdr, type=kind) + headers
        return self.group.command(opcode, self.member, data, room)
