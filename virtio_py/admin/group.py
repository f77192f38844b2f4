"""A device group as its owner sees it (2.12): which commands it has, which of them the driver uses, and its members."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Final, NamedTuple

from attrs import define, field

from virtio_py.admin.layout import (
    LISTS,
    PARTS_COMMANDS,
    GroupType,
    Opcode,
    bits_of,
    numbers_of,
    virtio_admin_cmd_list,
)
from virtio_py.resources import AdminQualifier, AdminStatus, Refused


class Request(NamedTuple):
    """A command as its handler sees it: the member it is for, the data, and how many bytes of result have room."""

    member: int
    data: bytes
    room: int


Later = Callable[[Callable[[], None]], None]
"""Work that is under way: takes what is to be called when it is done, and calls it later, never at once."""
Handler = Callable[[Request], bytes | Later]


class Command(NamedTuple):
    """How a group carries out a command.

    handler: returns the result, or the work that ends in an empty one; raises Refused. result: bytes of result that
    are initialised even if the command fails. addressed: whether group_member_id means something.
    """

    handler: Handler
    result: int = 0
    addressed: bool = True


Commands = Mapping[Opcode, Command]

_NEED_CREATE: Final = PARTS_COMMANDS - {Opcode.RESOURCE_OBJ_CREATE, Opcode.DEV_MODE_SET}
"""Commands that nobody can use without another: there is no object without RESOURCE_OBJ_CREATE."""


@define(eq=False)
class Group(ABC):
    """One group. `used` is the list of legal commands, which each group has for itself."""

    type: ClassVar[GroupType]
    used: frozenset[int] = field(default=LISTS, init=False)

    @property
    @abstractmethod
    def commands(self) -> Commands:
        """Those of the group's own besides the two lists; they never become fewer."""

    @abstractmethod
    def check_exists(self) -> None:
        """Raises Refused, INVALID_GROUP, while the group does not exist."""

    @abstractmethod
    def check_member(self, member: int) -> None:
        """Raises Refused, INVALID_MEMBER, if there is no such member."""

    def reset(self) -> None:
        """The owner was reset."""
        self.used = LISTS

    def find(self, opcode: int) -> Command:
        """The command with this opcode. Raises Refused, INVALID_OPCODE, if it is unknown or not used."""
        command = self._all().get(opcode) if opcode in self.used else None
        if command is None:
            raise Refused(AdminStatus.EINVAL, f"opcode {opcode:#x}", AdminQualifier.INVALID_OPCODE)
        return command

    def _all(self) -> Mapping[int, Command]:
        lists = {
            int(Opcode.LIST_QUERY): Command(self._list_query, addressed=False),
            int(Opcode.LIST_USE): Command(self._list_use, addressed=False),
        }
        return lists | dict(self.commands)

    def _list_query(self, request: Request) -> bytes:
        return bits_of(self._all(), virtio_admin_cmd_list, "device_admin_cmd_opcodes")

    def _list_use(self, request: Request) -> bytes:
        wanted = numbers_of(request.data)
        if unknown := wanted - self._all().keys():
            raise Refused(AdminStatus.EINVAL, f"there is no command {min(unknown):#x}")
        if wanted & _NEED_CREATE and Opcode.RESOURCE_OBJ_CREATE not in wanted:
            raise Refused(AdminStatus.EINVAL, "commands on objects are of no use without RESOURCE_OBJ_CREATE")
        self.used = wanted
        return b""
