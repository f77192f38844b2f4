"""What stands in the BARs of a virtio function besides its common configuration: notifications, ISR, shared memory, and
the window in configuration space that reaches all of them (4.1.4.9).
"""

from __future__ import annotations

from collections.abc import Callable

from virtio_py.access import WIDTHS
from virtio_py.pci.config_registers import Hook
from virtio_py.pci.function import PciFunction
from virtio_py.pci.virtio_caps import virtio_pci_cfg_cap


class IsrBlock:
    """The ISR status: a read takes what is there."""

    def __init__(self, take: Callable[[], int]) -> None:
        self._take = take

    def read(self, offset: int, width: int) -> int:
        """The status; it is 0 afterwards."""
        return self._take() if offset == 0 else 0

    def write(self, offset: int, value: int, width: int) -> None:
        """Writes have no effect."""


class NotifyBlock:
    """Where available buffer notifications are written: (offset, value, width) of each goes to `notify`."""

    def __init__(self, notify: Callable[[int, int, int], None]) -> None:
        self._notify = notify

    def read(self, offset: int, width: int) -> int:
        """There is nothing to read."""
        return 0

    def write(self, offset: int, value: int, width: int) -> None:
        """A notification."""
        self._notify(offset, value & (1 << 8 * width) - 1, width)


class MemoryBlock:
    """A shared memory region (2.10): bytes that stay what the driver or the device's author made them."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def read(self, offset: int, width: int) -> int:
        """`width` bytes, little-endian."""
        return int.from_bytes(self._view[offset : offset + width], "little")

    def write(self, offset: int, value: int, width: int) -> None:
        """Stores `width` bytes."""
        self._view[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")


class CfgWindow:
    """The capability VIRTIO_PCI_CAP_PCI_CFG: an access to pci_cfg_data is one to a BAR, wherever that is mapped."""

    def __init__(self, function: PciFunction, at: int) -> None:
        self._function = function
        self._at = at
        data = at + virtio_pci_cfg_cap.offset("pci_cfg_data"), at + virtio_pci_cfg_cap.end("pci_cfg_data")
        function.registers.add_hook(Hook(*data, before_read=self._read, after_write=self._write))

    def _target(self) -> tuple[int, int, int] | None:
        """(BAR, offset, width) of the access that the capability's fields describe; None for one that cannot be."""
        cap = self._function.registers.field(virtio_pci_cfg_cap, self._at, "cap")
        if cap.length not in WIDTHS or cap.offset % cap.length:
            return None
        return cap.bar, cap.offset, cap.length

    def _read(self) -> None:
        target = self._target()
        if target is not None:
            value = self._function.read_bar(*target)
            at = self._at + virtio_pci_cfg_cap.offset("pci_cfg_data")
            self._function.registers.store(at, value.to_bytes(target[2], "little"))

    def _write(self) -> None:
        target = self._target()
        if target is not None:
            bar, offset, width = target
            data = self._function.registers.field(virtio_pci_cfg_cap, self._at, "pci_cfg_data")
            self._function.write_bar(bar, offset, int.from_bytes(data[:width], "little"), width)
