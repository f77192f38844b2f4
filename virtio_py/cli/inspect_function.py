"""`virtio-py inspect --function`: what our own PCI functions present, as text, JSON, or a dump that lspci -F reads."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from virtio_py.errors import UsageError
from virtio_py.pci.dump import Dumped

if TYPE_CHECKING:
    from virtio_py.device import Device

_SECTOR: Final = 512
_MEMORY: Final = 4096


def _blk() -> Device:
    from virtio_py.devices.blk.device import BlkDevice
    from virtio_py.devices.blk.media import MemoryMedium

    return BlkDevice(MemoryMedium.of(_SECTOR))


def _console() -> Device:
    from virtio_py.devices.console.device import ConsoleDevice
    from virtio_py.devices.console.endpoints import MemoryEndpoint
    from virtio_py.devices.console.ports import ConsolePort

    return ConsoleDevice([ConsolePort(MemoryEndpoint())])


def _entropy() -> Device:
    from virtio_py.devices.entropy import EntropyDevice

    return EntropyDevice()


def _net() -> Device:
    from virtio_py.devices.net.device import NetDevice
    from virtio_py.devices.net.ports.simple import LoopbackPort

    return NetDevice(LoopbackPort())


def _scsi() -> Device:
    from virtio_py.devices.scsi.device import ScsiDevice

    return ScsiDevice()


DEVICES: Final[dict[str, Callable[[], Device]]] = {
    "blk": _blk,
    "console": _console,
    "entropy": _entropy,
    "net": _net,
    "scsi": _scsi,
}

_OPTIONS: Final = ("transitional", "conventional", "msix_vectors", "hex")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what a function of our own needs to a parser that has `paths` and `--json`."""
    group = parser.add_argument_group("a PCI function of this package, on a bus that was enumerated")
    group.add_argument("--function", choices=sorted(DEVICES), help="the device behind it")
    group.add_argument("--transitional", action="store_true", default=None, help="with the legacy interface, too")
    group.add_argument("--conventional", action="store_true", default=None, help="PCI, not PCI Express")
    group.add_argument("--msix-vectors", type=int, metavar="N", help="default: one a queue and one more; 0: no MSI-X")
    group.add_argument("--hex", action="store_true", default=None, help="print a dump that lspci -F reads")


def refuse_arguments(args: argparse.Namespace) -> None:
    """Raises UsageError for arguments of a function where no --function is."""
    for name in _OPTIONS:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} needs --function {' or '.join(sorted(DEVICES))}")


def dumped_function(args: argparse.Namespace) -> Dumped:
    """The function's place on its bus, and its configuration space. Raises UsageError for one that cannot be."""
    from virtio_py.memory import GuestMemory
    from virtio_py.pci.bus import Address, PciBus
    from virtio_py.pci.enumeration import enumerate_bus
    from virtio_py.transports.pci import PciDevice

    if args.paths:
        raise UsageError("--function needs no PATH")
    options: dict[str, Any] = {"transitional": bool(args.transitional), "express": not args.conventional}
    machine = PciDevice(DEVICES[args.function](), GuestMemory.of(_MEMORY), msix_vectors=args.msix_vectors, **options)
    bus, place = PciBus(), Address(1)
    bus.plug(machine.function, place)
    enumerate_bus(bus)
    return Dumped(str(place), bytearray(machine.function.registers.all))
