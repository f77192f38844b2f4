"""The SR-IOV group (2.12): virtual functions as members, administered by their physical function.

That there are any is what the SR-IOV extended capability of the owner says. Its bytes are given here as they lie in
the configuration space, so that whoever has that space can let a driver write to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import define, field

from virtio_py.admin.group import Commands, Group
from virtio_py.admin.layout import GroupType, NotifyPlace
from virtio_py.admin.legacy import LegacyCommands
from virtio_py.admin.member import Member
from virtio_py.admin.part_commands import PartsCommands
from virtio_py.errors import UsageError
from virtio_py.pci.extended_sriov import pci_sriov
from virtio_py.resources import AdminQualifier, AdminStatus, Capability, Refused


def enabled_functions(count: int) -> bytearray:
    """An SR-IOV capability with this many virtual functions, all of them enabled; BAR 2 of each is there, BAR 0 not."""
    return bytearray(
        pci_sriov.encode(
            sriov_control={"vf_enable": 1, "vf_memory_space_enable": 1},
            initial_vfs=count,
            total_vfs=count,
            num_vfs=count,
            vf_base_address=[0, 0, 0xFE000000, 0, 0, 0],
        )
    )


@define(eq=False)
class SriovGroup(Group):
    """The group of a physical function.

    members: those that can be, number 1 first; capability: the bytes of pci_sriov, or None for a device that has none
    """

    type = GroupType.SR_IOV
    members: Sequence[Member]
    capability: bytearray | None = field(kw_only=True)
    legacy: LegacyCommands = field(init=False)
    parts: PartsCommands = field(init=False)

    @capability.default
    def _all_enabled(self) -> bytearray | None:
        return enabled_functions(len(self.members))

    def __attrs_post_init__(self) -> None:
        self.legacy = LegacyCommands(self._member)
        self.parts = PartsCommands(self._member)
        self._check_bars()

    def _check_bars(self) -> None:
        """BAR 0 of virtual functions is the legacy interface's, and hardwired to zero (2.12.1.1.6)."""
        bars = self.registers.vf_base_address if self.capability is not None else ()
        if any(bars[:1]) and self._has_legacy:
            raise UsageError("BAR 0 of the virtual functions has to be hardwired to zero")
        for address in (address for member in self.members for address in member.notify):
            if address.place == NotifyPlace.MEMBER and not any(bars[address.bar : address.bar + 1]):
                raise UsageError(f"the virtual functions have no BAR {address.bar}")

    def join(self, enabled: Callable[[Iterable[int]], bool]) -> None:
        """The owner's self group, where capabilities are set, tells whether they are."""
        self.parts.join(enabled)

    @property
    def registers(self) -> Any:
        """The values of the capability now. Raises Refused where there is none."""
        if self.capability is None:
            raise Refused(AdminStatus.EINVAL, "no SR-IOV", AdminQualifier.INVALID_GROUP)
        return pci_sriov.decode(self.capability)

    @property
    def _has_legacy(self) -> bool:
        return any(member.config is not None for member in self.members)

    @property
    def commands(self) -> Commands:
        """Those for parts, and the legacy interface's where a member has one."""
        return {**(self.legacy.commands if self._has_legacy else {}), **self.parts.commands}

    @property
    def capabilities(self) -> Mapping[int, Capability]:
        """What this group adds to the owner's capabilities."""
        return self.parts.capabilities

    def check_exists(self) -> None:
        """The group exists while VF Enable is set."""
        if not self.registers.sriov_control.vf_enable:
            raise Refused(AdminStatus.EINVAL, "VF Enable is clear", AdminQualifier.INVALID_GROUP)

    def check_member(self, member: int) -> None:
        """The numbers are 1 to NumVFs."""
        if not 1 <= member <= min(self.registers.num_vfs, len(self.members)):
            raise Refused(AdminStatus.EINVAL, f"there is no function {member}", AdminQualifier.INVALID_MEMBER)

    def _member(self, member: int) -> Member:
        self.check_member(member)
        return self.members[member - 1]

    def reset(self) -> None:
        """The owner was reset: its objects are gone. The members are devices of their own, and stay as they are."""
        Group.reset(self)
        self.parts.reset()
