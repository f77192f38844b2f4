"""The extended capabilities, which stand from offset 256 on: each a Record that starts with the 32-bit `header`."""

from __future__ import annotations

from typing import Final

from construct import Int16ul, Int32ul, Int64ul, Struct

from virtio_py.pci.extended_aer import pci_aer
from virtio_py.pci.extended_ids import EXTENDED_NAMES, ExtendedId, extended_header
from virtio_py.pci.extended_sriov import pci_sriov
from virtio_py.records import Record, Register


def _acs() -> dict[str, int]:
    return {
        "source_validation": 1,
        "translation_blocking": 1,
        "p2p_request_redirect": 1,
        "p2p_completion_redirect": 1,
        "upstream_forwarding": 1,
        "p2p_egress_control": 1,
        "direct_translated_p2p": 1,
    }


pci_extended_capability = Record(
    "pci_extended_capability", Struct(extended_header()), cite="PCI Express Base 5.0, 7.6.3"
)

pci_serial_number = Record(
    "pci_serial_number", Struct(extended_header(), "serial_number" / Int64ul), cite="PCI Express Base 5.0, 7.9.3"
)

pci_vsec = Record(
    "pci_vsec",
    Struct(extended_header(), "vsec_header" / Register(Int32ul, vsec_id=16, vsec_rev=4, vsec_length=12)),
    cite="PCI Express Base 5.0, 7.9.5",
)

pci_acs = Record(
    "pci_acs",
    Struct(
        extended_header(),
        "acs_capability" / Register(Int16ul, **_acs(), enhanced=1, egress_control_vector_size=8),
        "acs_control" / Register(Int16ul, **_acs(), reserved_7=9),
    ),
    cite="PCI Express Base 5.0, 7.7.8",
)

pci_ari = Record(
    "pci_ari",
    Struct(
        extended_header(),
        "ari_capability"
        / Register(Int16ul, mfvc_function_groups=1, acs_function_groups=1, reserved_2=6, next_function=8),
        "ari_control"
        / Register(
            Int16ul, mfvc_function_groups=1, acs_function_groups=1, reserved_2=2, function_group=3, reserved_7=9
        ),
    ),
    cite="PCI Express Base 5.0, 7.8.7",
)

pci_ats = Record(
    "pci_ats",
    Struct(
        extended_header(),
        "ats_capability"
        / Register(
            Int16ul,
            invalidate_queue_depth=5,
            page_aligned_request=1,
            global_invalidate=1,
            relaxed_ordering=1,
            reserved_8=8,
        ),
        "ats_control" / Register(Int16ul, smallest_translation_unit=5, reserved_5=10, enable=1),
    ),
    cite="PCI Express Base 5.0, 10.5.1",
)

pci_pri = Record(
    "pci_pri",
    Struct(
        extended_header(),
        "page_request_control" / Register(Int16ul, enable=1, reset=1, reserved_2=14),
        "page_request_status"
        / Register(
            Int16ul,
            response_failure=1,
            unexpected_page_request_group_index=1,
            reserved_2=6,
            stopped=1,
            reserved_9=6,
            prg_response_pasid_required=1,
        ),
        "outstanding_page_request_capacity" / Int32ul,
        "outstanding_page_request_allocation" / Int32ul,
    ),
    cite="PCI Express Base 5.0, 10.5.2",
)


def _latency() -> Register:
    return Register(Int16ul, value=10, scale=3, reserved_13=3)


pci_ltr = Record(
    "pci_ltr",
    Struct(extended_header(), "max_snoop_latency" / _latency(), "max_no_snoop_latency" / _latency()),
    cite="PCI Express Base 5.0, 7.8.2",
)

pci_pasid = Record(
    "pci_pasid",
    Struct(
        extended_header(),
        "pasid_capability"
        / Register(
            Int16ul,
            reserved_0=1,
            execute_permission=1,
            privileged_mode=1,
            reserved_3=5,
            max_pasid_width=5,
            reserved_13=3,
        ),
        "pasid_control" / Register(Int16ul, enable=1, execute_permission=1, privileged_mode=1, reserved_3=13),
    ),
    cite="PCI Express Base 5.0, 7.8.8",
)

__all__ = ["EXTENDED_NAMES", "EXTENDED_RECORDS", "ExtendedId", "pci_aer", "pci_sriov"]

EXTENDED_RECORDS: Final[dict[int, Record]] = {
    ExtendedId.ADVANCED_ERROR_REPORTING: pci_aer,
    ExtendedId.DEVICE_SERIAL_NUMBER: pci_serial_number,
    ExtendedId.VENDOR_SPECIFIC: pci_vsec,
    ExtendedId.ACCESS_CONTROL_SERVICES: pci_acs,
    ExtendedId.ARI: pci_ari,
    ExtendedId.ATS: pci_ats,
    ExtendedId.SR_IOV: pci_sriov,
    ExtendedId.PAGE_REQUEST_INTERFACE: pci_pri,
    ExtendedId.LATENCY_TOLERANCE_REPORTING: pci_ltr,
    ExtendedId.PASID: pci_pasid,
}
