"""The registers of virtio's legacy interface over PCI (4.1.4.10), in I/O space at BAR 0. All are little-endian."""

from __future__ import annotations

from typing import Final

from construct import Int8ul, Int16ul, Int32ul, Struct

from virtio_py.records import Record

LEGACY_BAR: Final = 0
LEGACY_PAGE: Final = 4096
"""The unit of queue_address, and the alignment of a queue's used ring, in bytes."""

virtio_pci_legacy: Final = Record(
    "virtio_pci_legacy",
    Struct(
        "device_features" / Int32ul,
        "driver_features" / Int32ul,
        "queue_address" / Int32ul,
        "queue_size" / Int16ul,
        "queue_select" / Int16ul,
        "queue_notify" / Int16ul,
        "device_status" / Int8ul,
        "isr_status" / Int8ul,
    ),
    cite="4.1.4.10 Legacy Interfaces: A Note on PCI Device Layout",
)
"""The general header; what the specification describes in words is named like its kin in virtio_pci_common_cfg."""

virtio_pci_legacy_msix: Final = Record(
    "virtio_pci_legacy_msix",
    Struct("config_msix_vector" / Int16ul, "queue_msix_vector" / Int16ul),
    cite="4.1.4.10 Legacy Interfaces: A Note on PCI Device Layout",
)
"""What follows it while MSI-X is enabled."""


def legacy_config_offset(msix_enabled: bool) -> int:
    """Where the device-specific configuration begins, in bytes from the base of the BAR."""
    return virtio_pci_legacy.size + (virtio_pci_legacy_msix.size if msix_enabled else 0)
