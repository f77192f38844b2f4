"""Device and driver capabilities (2.12.1.2): an offer, and what of it the driver has taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import define, field

from virtio_py.admin.group import Command, Commands, Request
from virtio_py.admin.layout import (
    Opcode,
    bits_of,
    virtio_admin_cmd_cap_get_data,
    virtio_admin_cmd_cap_set_data,
    virtio_admin_cmd_query_cap_id_result,
)
from virtio_py.resources import AdminStatus, Capability, Refused, padded


@define(eq=False)
class CapabilityTable:
    """The capabilities of one device.

    offered: what it has, by id, asked anew each time; in_use: whether objects exist that need a capability.
    """

    offered: Callable[[], Mapping[int, Capability]]
    in_use: Callable[[int], bool]
    _chosen: dict[int, bytes] = field(factory=dict, init=False)

    @property
    def commands(self) -> Commands:
        """The three commands."""
        return {
            Opcode.CAP_ID_LIST_QUERY: Command(self._list),
            Opcode.DEVICE_CAP_GET: Command(self._get),
            Opcode.DRIVER_CAP_SET: Command(self._set),
        }

    def enabled(self, ids: Iterable[int]) -> bool:
        """Whether the driver has set all of these capabilities, to more than zeros."""
        return all(self._chosen.get(ident) for ident in ids)

    def reset(self) -> None:
        """The device was reset, and has forgotten what the driver had chosen."""
        self._chosen.clear()

    def _list(self, request: Request) -> bytes:
        return bits_of(self.offered(), virtio_admin_cmd_query_cap_id_result, "supported_caps")

    def _get(self, request: Request) -> bytes:
        return self._find(request.data).offer()

    def _set(self, request: Request) -> bytes:
        head = virtio_admin_cmd_cap_set_data
        capability, ident = self._find(request.data), self._ident(request.data)
        # Never shorter than what was offered, but an array may have fewer entries: how long it is, it says itself.
        wanted = request.data[head.size :].ljust(len(capability.offer()), b"\0")
        chosen = wanted.rstrip(b"\0")
        if chosen == self._chosen.get(ident):
            return b""
        if self.in_use(ident):
            raise Refused(AdminStatus.EBUSY, f"objects need capability {ident:#x} as it is")
        capability.accept(wanted)
        self._chosen[ident] = chosen
        return b""

    @staticmethod
    def _ident(data: bytes) -> int:
        head = virtio_admin_cmd_cap_get_data
        ident: int = head.decode(padded(data, head.size)).id
        return ident

    def _find(self, data: bytes) -> Capability:
        ident = self._ident(data)
        found = self.offered().get(ident)
        if found is None:
            raise Refused(AdminStatus.ENXIO, f"there is no capability {ident:#x}")
        return found
