"""The legacy interface of a transitional function (4.1.4.10), for little-endian guests: a block of registers in BAR 0.

A device in reset belongs to neither interface; the one through which it is touched then has it until the next reset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from virtio_py.errors import MessageError
from virtio_py.pci.virtio_legacy import (
    LEGACY_PAGE,
    legacy_config_offset,
    virtio_pci_legacy,
    virtio_pci_legacy_msix,
)
from virtio_py.transports.pci_common import (
    config_vector,
    presented_size,
    queue_vector,
    set_config_vector,
    set_queue_vector,
)
from virtio_py.transports.register_device import ConfigBlock, Read, RegisterBlock, Write, select

if TYPE_CHECKING:
    from virtio_py.access import RegisterAccess
    from virtio_py.transports.pci import PciDevice


def _size(machine: PciDevice) -> int:
    return presented_size(machine, machine.end.queue(machine.selected_queue)) if machine.queue_exists() else 0


def _page(machine: PciDevice) -> int:
    if not machine.in_use():
        return 0
    return machine.end.queue(machine.selected_queue).descriptor_area // LEGACY_PAGE


def _set_page(machine: PciDevice, value: int) -> None:
    if value == 0:
        if machine.in_use():
            machine.end.stop_queue(machine.selected_queue)
        return
    if not machine.end.legacy:
        raise MessageError("queue_address written, but the device is not driven by its legacy interface")
    config = machine.idle_queue()
    config.size = presented_size(machine, config)
    machine.enable_legacy(value, LEGACY_PAGE, LEGACY_PAGE)


READABLE: Final[Mapping[str, Read]] = {
    "device_features": lambda m: m.offer(0),
    "driver_features": lambda m: m.accepted(0),
    "queue_address": _page,
    "queue_size": _size,
    "queue_select": lambda m: m.selected_queue,
    "device_status": lambda m: m.end.read_status(),
    "isr_status": lambda m: m.take_isr(),
}

WRITABLE: Final[Mapping[str, Write]] = {
    "driver_features": lambda m, value: m.accept(0, value),
    "queue_address": _set_page,
    "queue_select": select("queue_select"),
    "queue_notify": lambda m, value: m.kicks.add(value),
    "device_status": lambda m, value: m.write_status(value),
}

_MSIX_READABLE: Final[Mapping[str, Read]] = {"config_msix_vector": config_vector, "queue_msix_vector": queue_vector}
_MSIX_WRITABLE: Final[Mapping[str, Write]] = {
    "config_msix_vector": set_config_vector,
    "queue_msix_vector": set_queue_vector,
}


class LegacyBlock:
    """The whole of the legacy interface as a `RegisterAccess`: what follows the header moves when MSI-X is enabled."""

    def __init__(self, machine: PciDevice) -> None:
        self._machine = machine

        def enter() -> None:
            machine.use_interface(legacy=True)

        self._header = RegisterBlock(machine, virtio_pci_legacy, READABLE, WRITABLE, enter)
        self._vectors = RegisterBlock(machine, virtio_pci_legacy_msix, _MSIX_READABLE, _MSIX_WRITABLE, enter)
        self._config = ConfigBlock(machine)

    def _find(self, offset: int) -> tuple[RegisterAccess, int]:
        msix = self._machine.function.msix
        config = legacy_config_offset(msix is not None and msix.enabled)
        if offset >= config:
            return self._config, offset - config
        if offset >= virtio_pci_legacy.size:
            return self._vectors, offset - virtio_pci_legacy.size
        return self._header, offset

    def read(self, offset: int, width: int) -> int:
        """What a read of `width` bytes at `offset` returns, little-endian."""
        block, at = self._find(offset)
        return block.read(at, width)

    def write(self, offset: int, value: int, width: int) -> None:
        """A write of `width` bytes at `offset`."""
        block, at = self._find(offset)
        block.write(at, value, width)


class LegacyGuard:
    """What a legacy driver finds in BAR 0 of a function that is not transitional: one that resets the device through
    it, as legacy drivers begin, finds nothing at all from then on (4.1.4.11)."""

    def __init__(self, silence: Callable[[], None]) -> None:
        self._silence = silence

    def read(self, offset: int, width: int) -> int:
        """There is nothing to read."""
        return 0

    def write(self, offset: int, value: int, width: int) -> None:
        """A byte of 0 to where legacy devices have their status silences the function."""
        if (offset, value & 0xFF, width) == (virtio_pci_legacy.offset("device_status"), 0, 1):
            self._silence()
