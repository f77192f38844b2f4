"""The owner of device groups (2.12): its administration virtqueues, and the commands that arrive there.

    functions = SriovGroup([Member(end), …])
    carrier = InProcess(device, admin=Administration(device, functions))

A command may fail; nothing that a driver can send makes it do more than that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from attrs import define, field, validators

from virtio_py.admin.capabilities import CapabilityTable
from virtio_py.admin.functions import SriovGroup
from virtio_py.admin.group import Commands, Group, Later, Request
from virtio_py.admin.layout import UNIT, GroupType, Opcode, virtio_admin_cmd, virtio_admin_cmd_status
from virtio_py.admin.objects import ObjectTable
from virtio_py.device import Device, QueueSpec
from virtio_py.resources import AdminQualifier, AdminStatus, Capability, Refused, padded
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue

MAX_COMMAND: Final = 1 << 20
"""Bytes of a command that are looked at: a chain may name the whole memory a thousand times over."""


@define(eq=False)
class SelfGroup(Group):
    """The group whose only member, 0, is the owner itself: capabilities, and objects of the device's own types.

    functions: the other group, some of whose capabilities are set here.
    """

    type = GroupType.SELF
    device: Device
    functions: SriovGroup | None
    capabilities: CapabilityTable = field(init=False)
    objects: ObjectTable = field(init=False)
    _reported: set[Opcode] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self.capabilities = CapabilityTable(self._offered, self._in_use)
        self.objects = ObjectTable(lambda member: self.device.resource_types(), self.capabilities.enabled)

    def _offered(self) -> Mapping[int, Capability]:
        shared = {} if self.functions is None else self.functions.capabilities
        return {**shared, **self.device.capabilities()}

    def _in_use(self, capability: int) -> bool:
        tables = [self.objects] if self.functions is None else [self.objects, self.functions.parts.objects]
        return any(table.in_use(capability) for table in tables)

    @property
    def commands(self) -> Commands:
        """Those for capabilities where there are some, and those for objects likewise; what was there once stays."""
        found = {**self.capabilities.commands, **self.objects.commands}
        self._reported |= set(self.capabilities.commands) if self._offered() else set()
        self._reported |= set(self.objects.commands) if self.device.resource_types() else set()
        return {opcode: command for opcode, command in found.items() if opcode in self._reported}

    def check_exists(self) -> None:
        """It always does."""

    def check_member(self, member: int) -> None:
        """0 is the only member."""
        if member:
            raise Refused(AdminStatus.EINVAL, f"member {member} of the self group", AdminQualifier.INVALID_MEMBER)

    def reset(self) -> None:
        """The device was reset."""
        Group.reset(self)
        self.capabilities.reset()
        self.objects.reset()


@define(eq=False)
class Administration:
    """What makes a device the owner of groups: the self group, and that of its virtual functions where it has some.

    count, size: of the administration virtqueues, which are served in the order of their commands, each for itself.
    """

    device: Device
    functions: SriovGroup | None = None
    count: int = field(default=1, validator=validators.ge(1), kw_only=True)
    size: int = field(default=64, kw_only=True)
    self_group: SelfGroup = field(init=False)
    groups: Mapping[int, Group] = field(init=False)
    _backlogs: dict[int, deque[Chain]] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.self_group = SelfGroup(self.device, self.functions)
        self.groups = {GroupType.SELF: self.self_group}
        if self.functions is not None:
            self.functions.join(self.self_group.capabilities.enabled)
            self.groups = {**self.groups, GroupType.SR_IOV: self.functions}

    def queues(self) -> Sequence[QueueSpec]:
        """adminq1 … adminqN."""
        return [QueueSpec(f"adminq{n + 1}", self.size) for n in range(self.count)]

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Takes a command; those before it come first, should one of them still be under way."""
        chain.defer()
        backlog = self._backlogs.setdefault(queue.index, deque())
        backlog.append(chain)
        if len(backlog) == 1:
            self._work(backlog)

    def queue_reset(self, index: int) -> None:
        """One administration virtqueue was reset: nobody wants its answers."""
        self._backlogs.setdefault(index, deque()).clear()

    def reset(self) -> None:
        """The owner was reset: the lists of commands, the capabilities and all objects are as at first."""
        for index in self._backlogs:
            self.queue_reset(index)
        for group in self.groups.values():
            group.reset()

    def _work(self, backlog: deque[Chain]) -> None:
        while backlog:
            chain = backlog[0]
            later = self._serve(chain)
            if later is not None:
                later(partial(self._done, backlog, chain))
                return
            backlog.popleft()

    def _done(self, backlog: deque[Chain], chain: Chain) -> None:
        # After a reset the backlog is another one's.
        if backlog and backlog[0] is chain:
            _answer(chain, AdminStatus.OK, AdminQualifier.OK, b"")
            backlog.popleft()
            self._work(backlog)

    def _serve(self, chain: Chain) -> Later | None:
        data = chain.readable.read(min(chain.readable.remaining, MAX_COMMAND))
        head = virtio_admin_cmd.decode(padded(data, virtio_admin_cmd.size))
        room = max(chain.writable.remaining - virtio_admin_cmd_status.size, 0)
        result = 0
        try:
            group = self._group(head.group_type)
            command = group.find(head.opcode)
            result = command.result
            if command.addressed:
                group.check_member(head.group_member_id)
            answer = command.handler(Request(head.group_member_id, data[virtio_admin_cmd.size :], room))
        except Refused as refused:
            _answer(chain, refused.status, refused.qualifier, bytes(result))
            return None
        if not isinstance(answer, bytes):
            return answer
        _answer(chain, AdminStatus.OK, AdminQualifier.OK, answer)
        return None

    def _group(self, number: int) -> Group:
        group = self.groups.get(number)
        if group is None:
            raise Refused(AdminStatus.EINVAL, f"group type {number}", AdminQualifier.INVALID_GROUP)
        group.check_exists()
        return group


def _answer(chain: Chain, status: AdminStatus, qualifier: AdminQualifier, result: bytes) -> None:
    """Writes what there is room for, in whole units of 64 bits where there is, and returns the chain."""
    whole = virtio_admin_cmd_status.encode(status=status, status_qualifier=qualifier) + result
    whole += bytes(-len(whole) % UNIT)
    chain.writable.write(whole[: chain.writable.remaining])
    chain.complete()
