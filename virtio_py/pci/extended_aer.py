"""Advanced Error Reporting: 72 bytes, of which a function without TLP prefixes may leave out the last 16."""

from __future__ import annotations

from construct import Array, Int16ul, Int32ul, Struct

from virtio_py.pci.extended_ids import extended_header
from virtio_py.records import Record, Register


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


pci_aer = Record(
    "pci_aer",
    Struct(
        extended_header(),
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
