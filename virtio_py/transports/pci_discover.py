"""Virtio over PCI (4.1), how a driver finds a device: by what configuration space says, and nothing else.

for found in enumerate_bus(bus):
    transport = discover(found, arena, wait, bus.interrupts)
    if transport is not None: …                                 None for what is no virtio function
"""

from __future__ import annotations

from virtio_py.errors import NegotiationError
from virtio_py.memory import Arena
from virtio_py.pci.enumeration import FoundFunction
from virtio_py.pci.virtio_caps import CfgType
from virtio_py.pci.virtio_legacy import LEGACY_BAR
from virtio_py.records import Record
from virtio_py.transports.pci_driver import PciTransport
from virtio_py.transports.pci_find import NEEDED, Mapper, read_function, structures, virtio_type
from virtio_py.transports.pci_interrupted import Place
from virtio_py.transports.pci_interrupts import Interrupts
from virtio_py.transports.pci_legacy_driver import LegacyPciTransport
from virtio_py.transports.register_transport import Wait


def discover(
    found: FoundFunction,
    arena: Arena,
    wait: Wait,
    interrupts: Interrupts,
    config: Record | None = None,
    *,
    legacy: bool | None = None,
    window: bool = False,
) -> PciTransport | LegacyPciTransport | None:
    """The transport for a function; None for what is no virtio function.

    config: the device type's configuration structure, whose fields decide how wide accesses are; without it they are
    a byte wide. legacy: True for the legacy interface, False for a driver that does without it, None for one that uses
    it where there is no other. window: all accesses through VIRTIO_PCI_CAP_PCI_CFG, and no MSI-X.
    Raises NegotiationError for a function that such a driver cannot drive.
    """
    function = read_function(found)
    kind = virtio_type(function)
    if kind is None:
        return None
    place = Place(found, function, kind, arena, wait, interrupts, config)
    usable = list(structures(found, function))
    if legacy is True or (legacy is None and not any("cfg_type" in c.fields for c in function.capabilities)):
        if LEGACY_BAR not in found.bars or not found.bars[LEGACY_BAR].io:
            raise NegotiationError(f"the function at {found.address} has no legacy interface")
        return LegacyPciTransport(place)
    if lacking := NEEDED.keys() - {structure.kind for structure in usable}:
        names = " or ".join(CfgType(kind).name for kind in sorted(lacking))
        raise NegotiationError(f"the function at {found.address} has no usable {names}")
    return PciTransport(place, Mapper(found, function, usable, window))
