"""What the extended capabilities have in common: their ids, names and the 32-bit header that each begins with."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from construct import Int32ul

from virtio_py.records import Register


class ExtendedId(IntEnum):
    """Extended capability ids that this package can decode (PCI Code and ID Assignment)."""

    ADVANCED_ERROR_REPORTING = 0x01
    DEVICE_SERIAL_NUMBER = 0x03
    VENDOR_SPECIFIC = 0x0B
    ACCESS_CONTROL_SERVICES = 0x0D
    ARI = 0x0E
    ATS = 0x0F
    SR_IOV = 0x10
    PAGE_REQUEST_INTERFACE = 0x13
    LATENCY_TOLERANCE_REPORTING = 0x18
    PASID = 0x1B


EXTENDED_NAMES: Final = {
    0x00: "Null",
    0x01: "Advanced Error Reporting",
    0x02: "Virtual Channel",
    0x03: "Device Serial Number",
    0x04: "Power Budgeting",
    0x05: "Root Complex Link",
    0x06: "Root Complex Internal Link",
    0x07: "Root Complex Event Collector Endpoint Association",
    0x08: "Multi-Function Virtual Channel",
    0x09: "Virtual Channel",
    0x0A: "Root Complex Register Block Header",
    0x0B: "Vendor Specific Information",
    0x0C: "Configuration Access Correlation",
    0x0D: "Access Control Services",
    0x0E: "Alternative Routing-ID Interpretation (ARI)",
    0x0F: "Address Translation Service (ATS)",
    0x10: "Single Root I/O Virtualization (SR-IOV)",
    0x11: "Multi-Root I/O Virtualization (MR-IOV)",
    0x12: "Multicast",
    0x13: "Page Request Interface (PRI)",
    0x15: "Physical Resizable BAR",
    0x16: "Dynamic Power Allocation",
    0x17: "Transaction Processing Hints",
    0x18: "Latency Tolerance Reporting",
    0x19: "Secondary PCI Express",
    0x1A: "Protocol Multiplexing",
    0x1B: "Process Address Space ID (PASID)",
    0x1C: "LN Requester",
    0x1D: "Downstream Port Containment",
    0x1E: "L1 PM Substates",
    0x1F: "Precision Time Measurement",
    0x23: "Designated Vendor-Specific",
    0x24: "VF Resizable BAR",
    0x25: "Data Link Feature",
    0x26: "Physical Layer 16.0 GT/s",
    0x27: "Lane Margining at the Receiver",
    0x2A: "Physical Layer 32.0 GT/s",
    0x2E: "Data Object Exchange",
}


def extended_header() -> Any:
    """The field `header`: id, version, and the next one's offset in bytes, 0 at the end."""
    return "header" / Register(Int32ul, cap_id=16, cap_version=4, cap_next=12)
