"""The conventional capabilities, which stand in the first 256 bytes: each a Record that starts with cap_id, cap_next.

The PCI Express capability has its own file, `express.py`; virtio's use of the vendor specific one, `virtio_caps.py`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from construct import Int8ul, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.errors import LayoutError
from virtio_py.records import Record, Register, Rule


class CapabilityId(IntEnum):
    """Capability ids that this package can decode or has a use for (PCI Code and ID Assignment)."""

    POWER_MANAGEMENT = 0x01
    MSI = 0x05
    PCI_X = 0x07
    VENDOR_SPECIFIC = 0x09
    SUBSYSTEM = 0x0D
    PCI_EXPRESS = 0x10
    MSI_X = 0x11
    SATA = 0x12
    ADVANCED_FEATURES = 0x13


NAMES: Final = {
    0x00: "Null",
    0x01: "Power Management",
    0x02: "AGP",
    0x03: "Vital Product Data",
    0x04: "Slot ID",
    0x05: "MSI",
    0x06: "CompactPCI hot-swap",
    0x07: "PCI-X",
    0x08: "HyperTransport",
    0x09: "Vendor Specific Information",
    0x0A: "Debug port",
    0x0B: "CompactPCI central resource control",
    0x0C: "Hot-plug capable",
    0x0D: "Subsystem",
    0x0E: "AGP3",
    0x0F: "Secure device",
    0x10: "Express",
    0x11: "MSI-X",
    0x12: "SATA HBA",
    0x13: "PCI Advanced Features",
    0x14: "Enhanced Allocation",
    0x15: "Flattening Portal Bridge",
}


class BarOffset(Register):
    """A 32-bit word that holds a place: `bir`, which BAR, in bits 0 to 2, and the rest is `offset`, in bytes."""

    def __init__(self) -> None:
        super().__init__(Int32ul, bir=3, offset=29)

    def split(self, word: int) -> Any:
        """The BAR's number and the offset in bytes, a multiple of 8."""
        return self.make(word & 7, word & ~7)

    def join(self, value: Any) -> int:
        """The word; raises LayoutError for an offset that is no multiple of 8."""
        if isinstance(value, int):
            return value
        parts = dict(value._asdict() if hasattr(value, "_asdict") else value)
        offset = parts.pop("offset", 0)
        if offset & 7:
            raise LayoutError(f"offset = {offset:#x} is not a multiple of 8, its low bits hold bir")
        return super().join({**parts, "offset": offset >> 3})


def _header() -> list[Any]:
    return ["cap_id" / Int8ul, "cap_next" / Int8ul]


pci_capability = Record("pci_capability", Struct(*_header()), cite="PCI 3.0, 6.7")

pci_power_management = Record(
    "pci_power_management",
    Struct(
        *_header(),
        "pmc"
        / Register(
            Int16ul,
            version=3,
            pme_clock=1,
            immediate_readiness=1,
            dsi=1,
            aux_current=3,
            d1_support=1,
            d2_support=1,
            pme_d0=1,
            pme_d1=1,
            pme_d2=1,
            pme_d3hot=1,
            pme_d3cold=1,
        ),
        "pmcsr"
        / Register(
            Int16ul,
            power_state=2,
            reserved_2=1,
            no_soft_reset=1,
            reserved_4=4,
            pme_enable=1,
            data_select=4,
            data_scale=2,
            pme_status=1,
        ),
        "pmcsr_bse" / Register(Int8ul, reserved_0=6, b2_b3=1, bpcc_enable=1),
        "data" / Int8ul,
    ),
    cite="PCI Bus Power Management 1.2, 3.2",
)


def _msi(address: Any, *tail: Any) -> Struct:
    control = Register(
        Int16ul,
        enable=1,
        multiple_message_capable=3,
        multiple_message_enable=3,
        capable_64bit=1,
        per_vector_masking_capable=1,
        extended_message_data_capable=1,
        extended_message_data_enable=1,
        reserved_11=5,
    )
    return Struct(*_header(), "message_control" / control, "message_address" / address, *tail)


_MASKS: Final = ("extended_message_data" / Int16ul, "mask_bits" / Int32ul, "pending_bits" / Int32ul)

# By the capability's own bits: 64-bit address, per-vector masking.
pci_msi: Final = {
    (0, 0): Record("pci_msi_32", _msi(Int32ul, "message_data" / Int16ul), cite="PCI 3.0, 6.8.1"),
    (1, 0): Record("pci_msi_64", _msi(Int64ul, "message_data" / Int16ul), cite="PCI 3.0, 6.8.1"),
    (0, 1): Record("pci_msi_32_masking", _msi(Int32ul, "message_data" / Int16ul, *_MASKS), cite="PCI 3.0, 6.8.1"),
    (1, 1): Record("pci_msi_64_masking", _msi(Int64ul, "message_data" / Int16ul, *_MASKS), cite="PCI 3.0, 6.8.1"),
}

pci_msix = Record(
    "pci_msix",
    Struct(
        *_header(),
        # table_size is the number of entries less one, as on the wire.
        "message_control" / Register(Int16ul, table_size=11, reserved_11=3, function_mask=1, enable=1),
        "table" / BarOffset(),
        "pba" / BarOffset(),
    ),
    cite="PCI 3.0, 6.8.2",
)

pci_msix_table_entry = Record(
    "pci_msix_table_entry",
    Struct(
        "message_address" / Int64ul,
        "message_data" / Int32ul,
        "vector_control" / Register(Int32ul, mask=1, reserved_1=31),
    ),
    cite="PCI 3.0, 6.8.2",
)

pci_vendor_specific = Record(
    "pci_vendor_specific",
    Struct(*_header(), "cap_len" / Int8ul),
    cite="PCI 3.0, appendix H",
    rules=(Rule("", "cap_len", lambda v: v.cap_len >= 3, "does not count the 3 bytes up to itself"),),
)

pci_subsystem = Record(
    "pci_subsystem",
    Struct(*_header(), "reserved_2" / Int16ul, "subsystem_vendor_id" / Int16ul, "subsystem_id" / Int16ul),
    cite="PCI-to-PCI Bridge 1.2, 3.2.5.13",
)

pci_sata = Record(
    "pci_sata",
    Struct(
        *_header(),
        "satacr0" / Register(Int16ul, minor_revision=4, major_revision=4, reserved_8=8),
        # bar_location is the BAR's number plus 4, or 15 for registers that follow in configuration space.
        "satacr1" / Register(Int32ul, bar_location=4, bar_offset=20, reserved_24=8),
    ),
    cite="SATA Revision 2.6, 13.10",
)

pci_advanced_features = Record(
    "pci_advanced_features",
    Struct(
        *_header(),
        "cap_len" / Int8ul,
        "af_capabilities" / Register(Int8ul, transactions_pending=1, function_level_reset=1, reserved_2=6),
        "af_control" / Register(Int8ul, initiate_flr=1, reserved_1=7),
        "af_status" / Register(Int8ul, transactions_pending=1, reserved_1=7),
    ),
    cite="PCI Advanced Capabilities ECN",
)
