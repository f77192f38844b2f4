"""The driver of an owner device: group administration commands as calls (2.12.1, 2.14).

    admin = AdminClient(driver)                        a driver that has negotiated VIRTIO_F_ADMIN_VQ
    group = GroupClient(admin, GroupType.SELF)         asks which commands there are, and says which it uses
    group.command(Opcode.DEVICE_CAP_GET, 0, data, room=24)

One command is under way at a time, so that the order of commands is that of the calls, whichever queue they take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import define, field

from virtio_py.admin.layout import (
    UNIT,
    GroupType,
    Opcode,
    bits_of,
    numbers_of,
    virtio_admin_cmd,
    virtio_admin_cmd_list,
    virtio_admin_cmd_status,
)
from virtio_py.driver import Driver
from virtio_py.errors import UsageError, VirtioError
from virtio_py.resources import AdminQualifier, AdminStatus, padded

RETRIES: Final = 16
"""How often a command is sent anew that ended in EAGAIN."""
LIST_ROOM: Final = 64
"""Bytes of room for a list of commands or capabilities: 512 of them."""


class AdminFailed(VirtioError):
    """A command failed. Numbers that the specification reserves are told as EINVAL and INVALID_COMMAND."""

    def __init__(self, opcode: int, status: int, qualifier: int) -> None:
        self.status = AdminStatus(status) if status in list(AdminStatus) else AdminStatus.EINVAL
        known = qualifier in list(AdminQualifier)
        self.qualifier = AdminQualifier(qualifier) if known else AdminQualifier.INVALID_COMMAND
        name = Opcode(opcode).name if opcode in list(Opcode) else f"{opcode:#x}"
        super().__init__(f"{name}: status {status} ({self.status.name}), {self.qualifier.name} ({qualifier})")


@define
class AdminClient:
    """The administration virtqueues of a device that `driver` drives."""

    driver: Driver
    retries: int = RETRIES

    def __attrs_post_init__(self) -> None:
        if not self.driver.admin_queues:
            raise UsageError("the driver has no administration virtqueue")

    def send(self, group: int, opcode: int, member: int, data: bytes, room: int, *, queue: int = 0) -> bytes:
        """One command: what it results in, as far as the device wrote it into `room` bytes. Raises AdminFailed."""
        head = virtio_admin_cmd.encode(opcode=opcode, group_type=group, group_member_id=member)
        for _ in range(self.retries + 1):
            status, result = self._once(head + data, room, queue)
            if status.status != AdminStatus.EAGAIN:
                break
        if status.status:
            raise AdminFailed(opcode, status.status, status.status_qualifier)
        return result

    def _once(self, readable: bytes, room: int, queue: int) -> tuple[Any, bytes]:
        size = virtio_admin_cmd_status.size
        [answer], length = self.driver.transact(self.driver.admin_queues[queue], [readable], [size + room])
        return virtio_admin_cmd_status.decode(padded(answer[:length], size)), answer[size:length]


def whole_units(size: int) -> int:
    """The next multiple of 64 bits, in bytes."""
    return -(-size // UNIT) * UNIT


@define(eq=False)
class GroupClient:
    """A group of the device. Making one asks for its commands and enables those among `known`.

    registers: for the SR-IOV group, the values of the owner's pci_sriov as they are at each command
    Raises AdminFailed if the device does not have such a group.
    """

    admin: AdminClient
    type: GroupType
    known: frozenset[int] = frozenset(Opcode)
    registers: Callable[[], Any] | None = None
    supported: frozenset[int] = field(default=frozenset(), init=False)
    used: frozenset[int] = field(default=frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE}), init=False)

    def __attrs_post_init__(self) -> None:
        if self.type == GroupType.SR_IOV and self.registers is None:
            raise UsageError("whoever addresses virtual functions has to know how many there are")
        self.supported = numbers_of(self.command(Opcode.LIST_QUERY, 0, room=LIST_ROOM))
        self.use(self.supported & self.known)

    def use(self, opcodes: Iterable[int]) -> None:
        """Says which commands are used from now on. Raises UsageError for one that the device has not reported."""
        wanted = frozenset(opcodes)
        if unknown := wanted - self.supported:
            raise UsageError(f"the device has not reported command {min(unknown):#x}")
        data = bits_of(wanted, virtio_admin_cmd_list, "device_admin_cmd_opcodes")
        self.command(Opcode.LIST_USE, 0, data)
        self.used = wanted

    def command(self, opcode: Opcode, member: int, data: bytes = b"", room: int = 0) -> bytes:
        """One command for a member: what it results in, which may be less than there is room for. Raises UsageError
        for one that is not used, or for a member that is not there; AdminFailed."""
        return self.exactly(opcode, member, padded(data, whole_units(len(data))), whole_units(room))

    def exactly(self, opcode: Opcode, member: int, data: bytes, room: int) -> bytes:
        """The same in lengths that are not rounded up to 64 bits: the legacy interface has no other way of saying how
        much is to be read or written."""
        if opcode not in self.used:
            raise UsageError(f"{opcode.name} is not among the commands that are used")
        self._check_member(opcode, member)
        return self.admin.send(self.type, opcode, member, data, room)

    def _check_member(self, opcode: Opcode, member: int) -> None:
        if self.registers is None:
            return
        values = self.registers()
        if not values.sriov_control.vf_enable or values.sriov_capabilities.vf_migration_capable:
            raise UsageError("VF Enable has to be set, and VF Migration Capable clear")
        if opcode not in (Opcode.LIST_QUERY, Opcode.LIST_USE) and not 1 <= member <= values.num_vfs:
            raise UsageError(f"there is no function {member} among {values.num_vfs}")
