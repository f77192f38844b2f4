"""A virtio function's structures as its capabilities tell of them (4.1.4), and the ways that reach them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from attrs import frozen

from virtio_py.access import RegisterAccess
from virtio_py.errors import MessageError
from virtio_py.pci.decode import Capability
from virtio_py.pci.enumeration import FoundFunction
from virtio_py.pci.header import CONVENTIONAL_SIZE
from virtio_py.pci.virtio_caps import (
    LAST_BAR,
    VIRTIO_CAPS,
    CfgType,
    virtio_pci_cap,
    virtio_pci_cfg_cap,
    virtio_pci_common_cfg,
    virtio_pci_isr,
)
from virtio_py.pci.virtio_rules import virtio_device_type
from virtio_py.pci.walk import Function, is_virtio
from virtio_py.transports.pci_layout import PAGE, WIDEST_NOTIFICATION

_OLDEST_COMMON: Final = virtio_pci_common_cfg.end("queue_device")
"""Bytes of the common configuration that every version of the specification has."""

NEEDED: Final[Mapping[int, int]] = {
    CfgType.COMMON_CFG: _OLDEST_COMMON,
    CfgType.NOTIFY_CFG: WIDEST_NOTIFICATION // 2,
    CfgType.ISR_CFG: virtio_pci_isr.size,
}
"""The structures without which there is no driving a device, and how long each must be."""

_MOST: Final = PAGE
"""More of a structure than this is not mapped, however long it says it is."""


class Structure(NamedTuple):
    """Where a capability says that a structure lies, in bytes; fields: all that the capability says."""

    kind: int
    bar: int
    offset: int
    length: int
    fields: Mapping[str, Any]


def virtio_type(function: Function) -> int | None:
    """The device type of a virtio function, None for any other. Revision and subsystem ids may be anything."""
    return virtio_device_type(function.device_id) if is_virtio(function.vendor_id, function.device_id) else None


def read_function(found: FoundFunction) -> Function:
    """Its header and capabilities. The window of VIRTIO_PCI_CAP_PCI_CFG is not looked into: that would be an access."""
    return found.read_capabilities(_readable)


def _readable(head: bytes) -> int:
    kind = head[virtio_pci_cap.offset("cfg_type")]
    return virtio_pci_cfg_cap.offset("pci_cfg_data") if kind == CfgType.PCI_CFG else CONVENTIONAL_SIZE


def structures(found: FoundFunction, function: Function) -> Iterator[Structure]:
    """The structures that a driver can use, in the device's order of preference; all other capabilities are ignored:
    those of a reserved type or BAR, too short ones, and those that do not lie in their BAR."""
    for capability in function.capabilities:
        kind = capability.fields.get("cfg_type")
        if kind in set(CfgType) and kind not in (CfgType.VENDOR_CFG, CfgType.PCI_CFG) and _is_whole(capability):
            place = Structure(
                kind,
                capability.fields["bar"],
                capability.fields["offset"] + (capability.fields.get("offset_hi", 0) << 32),
                capability.fields["length"] + (capability.fields.get("length_hi", 0) << 32),
                capability.fields,
            )
            if _is_usable(found, place):
                yield place


def _is_whole(capability: Capability) -> bool:
    size = VIRTIO_CAPS[CfgType(capability.fields["cfg_type"])].size
    return bool(capability.fields["cap_len"] >= size) and len(capability.raw) >= size


def _is_usable(found: FoundFunction, place: Structure) -> bool:
    bar = found.bars.get(place.bar) if place.bar <= LAST_BAR else None
    needed = NEEDED.get(place.kind, 1)
    whole = place.length if place.kind == CfgType.SHARED_MEMORY_CFG else needed
    return bar is not None and place.length >= needed and place.offset + whole <= bar.size


def vendor_data(function: Function, vendor_id: int) -> list[bytes]:
    """What vendor data capabilities (4.1.4.8) of one vendor hold, for reports; those of others are not interpreted."""
    return [
        bytes.fromhex(c.fields.get("data", ""))
        for c in function.capabilities
        if c.fields.get("cfg_type") == CfgType.VENDOR_CFG and c.fields.get("vendor_id") == vendor_id
    ]


@frozen
class Mapped:
    """The leading part of a structure; what lies behind it reads 0 and is not written. fields: its capability's."""

    registers: RegisterAccess
    offset: int
    length: int
    fields: Mapping[str, Any]

    def read(self, offset: int, width: int) -> int:
        """What a read of `width` bytes at `offset` returns, little-endian."""
        return self.registers.read(self.offset + offset, width) if offset + width <= self.length else 0

    def write(self, offset: int, value: int, width: int) -> None:
        """A write of `width` bytes at `offset`."""
        if offset + width <= self.length:
            self.registers.write(self.offset + offset, value, width)


@frozen
class CfgAccess:
    """A BAR as VIRTIO_PCI_CAP_PCI_CFG (4.1.4.9) reaches it, at `at` in configuration space, wherever the BAR is."""

    config: RegisterAccess
    at: int
    bar: int

    def _aim(self, offset: int, width: int) -> int:
        for name, value in (("bar", self.bar), ("length", width), ("offset", offset)):
            self.config.write(self.at + virtio_pci_cap.offset(name), value, virtio_pci_cap.field(name).size)
        return self.at + virtio_pci_cfg_cap.offset("pci_cfg_data")

    def read(self, offset: int, width: int) -> int:
        """What a read of `width` bytes at `offset` returns, little-endian."""
        return self.config.read(self._aim(offset, width), width)

    def write(self, offset: int, value: int, width: int) -> None:
        """A write of `width` bytes at `offset`."""
        self.config.write(self._aim(offset, width), value, width)


@frozen
class Mapper:
    """Reaches structures by their type: the first that is usable, which is the one that the device likes best."""

    found: FoundFunction
    function: Function
    places: list[Structure]
    window: bool

    def find(self, kind: CfgType) -> Mapped:
        """A structure's registers; of one that the device does not have, nothing is to be read."""
        place = next((p for p in self.places if p.kind == kind), None)
        if place is None:
            return Mapped(self.found.config, 0, 0, {})
        most = place.length if kind == CfgType.NOTIFY_CFG else _MOST
        return Mapped(self._registers(place.bar), place.offset, min(place.length, most), place.fields)

    def _registers(self, bar: int) -> RegisterAccess:
        if not self.window:
            return self.found.bar(bar)
        windows = [c.offset for c in self.function.capabilities if c.fields.get("cfg_type") == CfgType.PCI_CFG]
        if not windows:
            raise MessageError(f"the function at {self.found.address} has no VIRTIO_PCI_CAP_PCI_CFG")
        return CfgAccess(self.found.config, windows[0], bar)

    def shared_memory(self, ident: int) -> tuple[int, int] | None:
        """Address and length in bytes of a shared memory region (2.10); None where the device has none."""
        for place in self.places:
            if place.kind == CfgType.SHARED_MEMORY_CFG and place.fields["id"] == ident:
                return self.found.bars[place.bar].address + place.offset, place.length
        return None
