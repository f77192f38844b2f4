"""The extended capabilities, which stand from offset 256 on: each a Record that starts with the 32-bit `header`."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from construct import Array, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.pci.capabilities import BarOffset
from virtio_py.records import Record, Register


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


def _header() -> Any:
    return "header" / Register(Int32ul, cap_id=16, cap_version=4, cap_next=12)


def _uncorrectable() -> Register:
    return Register(
        Int32ul,
        undefined=1,
        reserved_1=3,
        data_link_protocol=1,
        surprise_down=1,
        reserved_6=6,
        poisoned_tlp=1,
        flow_control_protocol=1,
        completion_timeout=1,
        completer_abort=1,
        unexpected_completion=1,
        receiver_overflow=1,
        malformed_tlp=1,
        ecrc=1,
        unsupported_request=1,
        acs_violation=1,
        uncorrectable_internal=1,
        mc_blocked_tlp=1,
        atomic_op_egress_blocked=1,
        tlp_prefix_blocked=1,
        poisoned_tlp_egress_blocked=1,
        reserved_27=5,
    )


def _correctable() -> Register:
    return Register(
        Int32ul,
        receiver_error=1,
        reserved_1=5,
        bad_tlp=1,
        bad_dllp=1,
        replay_num_rollover=1,
        reserved_9=3,
        replay_timer_timeout=1,
        advisory_non_fatal=1,
        corrected_internal=1,
        header_log_overflow=1,
        reserved_16=16,
    )


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


pci_extended_capability = Record("pci_extended_capability", Struct(_header()), cite="PCI Express Base 5.0, 7.6.3")

pci_aer = Record(
    "pci_aer",
    Struct(
        _header(),
        "uncorrectable_error_status" / _uncorrectable(),
        "uncorrectable_error_mask" / _uncorrectable(),
        "uncorrectable_error_severity" / _uncorrectable(),
        "correctable_error_status" / _correctable(),
        "correctable_error_mask" / _correctable(),
        "capabilities_and_control"
        / Register(
            Int32ul,
            first_error_pointer=5,
            ecrc_generation_capable=1,
            ecrc_generation_enable=1,
            ecrc_check_capable=1,
            ecrc_check_enable=1,
            multiple_header_recording_capable=1,
            multiple_header_recording_enable=1,
            tlp_prefix_log_present=1,
            completion_timeout_log_capable=1,
            reserved_13=19,
        ),
        "header_log" / Array(4, Int32ul),
        "root_error_command" / Register(Int32ul, correctable=1, non_fatal=1, fatal=1, reserved_3=29),
        "root_error_status"
        / Register(
            Int32ul,
            correctable_received=1,
            multiple_correctable_received=1,
            uncorrectable_received=1,
            multiple_uncorrectable_received=1,
            first_uncorrectable_fatal=1,
            non_fatal_received=1,
            fatal_received=1,
            reserved_7=20,
            interrupt_message_number=5,
        ),
        "correctable_source_id" / Int16ul,
        "uncorrectable_source_id" / Int16ul,
        "tlp_prefix_log" / Array(4, Int32ul),
    ),
    cite="PCI Express Base 5.0, 7.8.4",
)

pci_serial_number = Record(
    "pci_serial_number", Struct(_header(), "serial_number" / Int64ul), cite="PCI Express Base 5.0, 7.9.3"
)

pci_vsec = Record(
    "pci_vsec",
    Struct(_header(), "vsec_header" / Register(Int32ul, vsec_id=16, vsec_rev=4, vsec_length=12)),
    cite="PCI Express Base 5.0, 7.9.5",
)

pci_acs = Record(
    "pci_acs",
    Struct(
        _header(),
        "acs_capability" / Register(Int16ul, **_acs(), enhanced=1, egress_control_vector_size=8),
        "acs_control" / Register(Int16ul, **_acs(), reserved_7=9),
    ),
    cite="PCI Express Base 5.0, 7.7.8",
)

pci_ari = Record(
    "pci_ari",
    Struct(
        _header(),
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
        _header(),
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

pci_sriov = Record(
    "pci_sriov",
    Struct(
        _header(),
        "sriov_capabilities"
        / Register(
            Int32ul,
            vf_migration_capable=1,
            ari_capable_hierarchy_preserved=1,
            vf_10bit_tag_requester=1,
            reserved_3=18,
            vf_migration_interrupt_message_number=11,
        ),
        "sriov_control"
        / Register(
            Int16ul,
            vf_enable=1,
            vf_migration_enable=1,
            vf_migration_interrupt_enable=1,
            vf_memory_space_enable=1,
            ari_capable_hierarchy=1,
            vf_10bit_tag_requester_enable=1,
            reserved_6=10,
        ),
        "sriov_status" / Register(Int16ul, vf_migration_status=1, reserved_1=15),
        "initial_vfs" / Int16ul,
        "total_vfs" / Int16ul,
        "num_vfs" / Int16ul,
        "function_dependency_link" / Int16ul,
        "first_vf_offset" / Int16ul,
        "vf_stride" / Int16ul,
        "reserved_24" / Int16ul,
        "vf_device_id" / Int16ul,
        "supported_page_sizes" / Int32ul,
        "system_page_size" / Int32ul,
        "vf_base_address" / Array(6, Int32ul),
        "vf_migration_state_array" / BarOffset(),
    ),
    cite="Single Root I/O Virtualization 1.1, 3.3",
)

pci_pri = Record(
    "pci_pri",
    Struct(
        _header(),
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
    Struct(_header(), "max_snoop_latency" / _latency(), "max_no_snoop_latency" / _latency()),
    cite="PCI Express Base 5.0, 7.8.2",
)

pci_pasid = Record(
    "pci_pasid",
    Struct(
        _header(),
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

EXTENDED_RECORDS: Final = {
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
