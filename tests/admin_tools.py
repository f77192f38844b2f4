"""An owner of device groups with its driver, and members to administer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from attrs import define, field

from virtio_py.admin.client import AdminClient, GroupClient
from virtio_py.admin.client_objects import CapabilityClient, ObjectClient
from virtio_py.admin.client_parts import MemberClient, enable_parts
from virtio_py.admin.functions import SriovGroup
from virtio_py.admin.layout import GroupType, virtio_admin_cmd, virtio_admin_cmd_status
from virtio_py.admin.member import Member
from virtio_py.admin.owner import Administration
from virtio_py.device import Device
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.driver import Driver
from virtio_py.resources import AdminQualifier, AdminStatus, Capability, Refused, ResourceType, padded
from virtio_py.spec import Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.in_process import InProcess

HEAD: Final = virtio_admin_cmd_status.size
OK: Final = (AdminStatus.OK, AdminQualifier.OK)
BAD_FIELD: Final = (AdminStatus.EINVAL, AdminQualifier.INVALID_FIELD)
BAD_OPCODE: Final = (AdminStatus.EINVAL, AdminQualifier.INVALID_OPCODE)
BAD_GROUP: Final = (AdminStatus.EINVAL, AdminQualifier.INVALID_GROUP)
BAD_MEMBER: Final = (AdminStatus.EINVAL, AdminQualifier.INVALID_MEMBER)
CAP: Final = 0x800
"""A capability of `Shelf`: one byte, how many things there may be."""
THING: Final = 0x200
TOWER: Final = 0x201
"""Objects of `Shelf`: things of four bytes, and towers, each of which stands on a thing."""


@define(eq=False)
class Shelf(EntropyDevice):
    """A device with one capability and two types of objects; it has room for `room` of each."""

    most: int = 8
    room: int = 8
    limit: int = field(default=0, init=False)
    things: dict[int, bytes] = field(factory=dict, init=False)
    towers: dict[int, bytes] = field(factory=dict, init=False)

    def capabilities(self) -> dict[int, Capability]:
        return {CAP: Capability(lambda: bytes([self.most]), self._accept)}

    def _accept(self, data: bytes) -> None:
        if data[0] > self.most:
            raise Refused(AdminStatus.EINVAL, "too many")
        self.limit = data[0]

    def resource_types(self) -> dict[int, ResourceType]:
        return {
            THING: self._type(self.things, lambda data: None, self._stands_on),
            TOWER: self._type(self.towers, self._ground, lambda ident: False),
        }

    def _type(
        self, objects: dict[int, bytes], judge: Callable[[bytes], None], busy: Callable[[int], bool]
    ) -> ResourceType:
        def put(ident: int, data: bytes) -> None:
            judge(padded(data, 4))
            if len(objects) >= self.room and ident not in objects:
                raise Refused(AdminStatus.ENOSPC, "the shelf is full")
            objects[ident] = padded(data, 4)

        def free(ident: int) -> None:
            if busy(ident):
                raise Refused(AdminStatus.EBUSY, "something stands on it")

        def modify(ident: int, data: bytes) -> None:
            free(ident)
            put(ident, data)

        def destroy(ident: int) -> None:
            free(ident)
            del objects[ident]

        return ResourceType((CAP,), lambda: self.limit, put, destroy, objects.__getitem__, modify)

    def _ground(self, data: bytes) -> None:
        if int.from_bytes(data, "little") not in self.things:
            raise Refused(AdminStatus.EINVAL, "it stands on nothing")

    def _stands_on(self, ident: int) -> bool:
        return any(int.from_bytes(data, "little") == ident for data in self.towers.values())

    def reset(self) -> None:
        self.limit = 0
        self.things.clear()
        self.towers.clear()


class Carrier(InProcess):
    """Lets something else go on whenever the owner's driver waits."""

    idle: Callable[[], object] | None = None

    def wait(self, timeout: float) -> None:
        if self.idle is not None:
            self.idle()
        super().wait(min(timeout, 0.001))


@define(eq=False)
class Owner:
    """A device with administration virtqueues, its driver started, and what a hostile driver needs."""

    carrier: Carrier
    driver: Driver
    functions: SriovGroup | None

    def raw(self, readable: bytes, writable: int, queue: int = 0) -> tuple[bytes, int]:
        """Any bytes as a command: what came back, and the used length."""
        [answer], length = (
            self.driver.transact(
                self.driver.admin_queues[queue], [readable] if readable else [], [writable] if writable else []
            )
            if writable
            else self._silent(readable, queue)
        )
        return answer, length

    def _silent(self, readable: bytes, queue: int) -> tuple[list[bytes], int]:
        _, length = self.driver.transact(self.driver.admin_queues[queue], [readable], [])
        return [b""], length

    def send(self, opcode: int, group: int = 0, member: int = 0, data: bytes = b"", room: int = 64) -> Answer:
        """A command as it should be formed: status, qualifier and result."""
        head = virtio_admin_cmd.encode(opcode=opcode, group_type=group, group_member_id=member)
        answer, length = self.raw(head + data, HEAD + room)
        return Answer.of(answer[:length])

    def use_all(self, group: int = 0) -> None:
        """Uses all commands of a group."""
        listed = self.send(0, group).result
        assert self.send(1, group, 0, listed).state == OK

    def client(self, group: GroupType = GroupType.SELF) -> GroupClient:
        """The driver's side of a group."""
        registers = None
        if group == GroupType.SR_IOV and self.functions is not None:
            functions = self.functions
            registers = lambda: functions.registers  # noqa: E731
        return GroupClient(AdminClient(self.driver), group, registers=registers)

    def objects(self) -> tuple[CapabilityClient, ObjectClient]:
        """The driver's side of capabilities and of the self group's objects."""
        group = self.client()
        capabilities = CapabilityClient(group)
        return capabilities, ObjectClient(group, capabilities)

    def members(self) -> list[MemberClient]:
        """The driver's side of each member, ready to be taken apart."""
        capabilities = CapabilityClient(self.client())
        enable_parts(capabilities)
        group = self.client(GroupType.SR_IOV)
        assert self.functions is not None
        return [MemberClient(group, capabilities, n + 1) for n in range(len(self.functions.members))]


@define
class Answer:
    """What a command came back with."""

    state: tuple[int, int]
    reserved: bytes
    result: bytes

    @classmethod
    def of(cls, data: bytes) -> Answer:
        head: Any = virtio_admin_cmd_status.decode(data)
        return cls((head.status, head.status_qualifier), head.reserved2, data[HEAD:])


def owner(device: Device | None = None, members: Sequence[Member] = (), queues: int = 1, **options: Any) -> Owner:
    """An owner of these members; without any it has no virtual functions."""
    own = EntropyDevice() if device is None else device
    functions = SriovGroup(members, **options) if members else None
    carrier = Carrier(own, memory_size=4 << 20, admin=Administration(own, functions, count=queues))
    kind = EntropyDriver if device is None or isinstance(device, EntropyDevice) else None
    assert kind is not None
    driver = kind(carrier, features=RING_FEATURES | bit(Feature.ADMIN_VQ)).start()
    return Owner(carrier, driver, functions)


def members(count: int) -> list[Member]:
    """Members of the simplest kind, without drivers."""
    return [Member(InProcess(EntropyDevice(), memory_size=1 << 20).end) for _ in range(count)]
