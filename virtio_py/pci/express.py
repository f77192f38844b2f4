"""The PCI Express capability: 60 bytes in version 2, and in version 1 as many as the port type has registers for."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from construct import Int8ul, Int16ul, Int32ul, Struct

from virtio_py.records import Record, Register


class PortType(IntEnum):
    """The Device/Port Type field of the PCI Express Capabilities register."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM_PORT = 5
    DOWNSTREAM_PORT = 6
    PCIE_TO_PCI_BRIDGE = 7
    PCI_TO_PCIE_BRIDGE = 8
    ROOT_COMPLEX_ENDPOINT = 9
    ROOT_COMPLEX_EVENT_COLLECTOR = 10


_PARTS: Final[list[Any]] = [
    "cap_id" / Int8ul,
    "cap_next" / Int8ul,
    "pcie_capabilities"
    / Register(
        Int16ul, version=4, port_type=4, slot_implemented=1, interrupt_message_number=5, reserved_14=1, flit_mode=1
    ),
    "device_capabilities"
    / Register(
        Int32ul,
        max_payload_size=3,
        phantom_functions=2,
        extended_tag=1,
        l0s_acceptable_latency=3,
        l1_acceptable_latency=3,
        attention_button=1,
        attention_indicator=1,
        power_indicator=1,
        role_based_error_reporting=1,
        reserved_16=2,
        slot_power_limit_value=8,
        slot_power_limit_scale=2,
        function_level_reset=1,
        reserved_29=3,
    ),
    "device_control"
    / Register(
        Int16ul,
        correctable_error_enable=1,
        non_fatal_error_enable=1,
        fatal_error_enable=1,
        unsupported_request_enable=1,
        relaxed_ordering=1,
        max_payload_size=3,
        extended_tag=1,
        phantom_functions=1,
        aux_power_pm=1,
        no_snoop=1,
        max_read_request_size=3,
        bridge_retry_or_flr=1,
    ),
    "device_status"
    / Register(
        Int16ul,
        correctable_error=1,
        non_fatal_error=1,
        fatal_error=1,
        unsupported_request=1,
        aux_power=1,
        transactions_pending=1,
        emergency_power_reduction=1,
        reserved_7=9,
    ),
    "link_capabilities"
    / Register(
        Int32ul,
        max_link_speed=4,
        max_link_width=6,
        aspm_support=2,
        l0s_exit_latency=3,
        l1_exit_latency=3,
        clock_power_management=1,
        surprise_down_error_reporting=1,
        data_link_layer_active_reporting=1,
        bandwidth_notification=1,
        aspm_optionality_compliance=1,
        reserved_23=1,
        port_number=8,
    ),
    "link_control"
    / Register(
        Int16ul,
        aspm_control=2,
        ptm_propagation_delay=1,
        read_completion_boundary=1,
        link_disable=1,
        retrain_link=1,
        common_clock=1,
        extended_synch=1,
        clock_power_management=1,
        autonomous_width_disable=1,
        bandwidth_management_interrupt=1,
        autonomous_bandwidth_interrupt=1,
        sris_clocking=1,
        flit_mode_disable=1,
        drs_signaling_control=2,
    ),
    "link_status"
    / Register(
        Int16ul,
        link_speed=4,
        link_width=6,
        training_error=1,
        link_training=1,
        slot_clock=1,
        data_link_layer_active=1,
        bandwidth_management=1,
        autonomous_bandwidth=1,
    ),
    "slot_capabilities"
    / Register(
        Int32ul,
        attention_button=1,
        power_controller=1,
        mrl_sensor=1,
        attention_indicator=1,
        power_indicator=1,
        hot_plug_surprise=1,
        hot_plug_capable=1,
        slot_power_limit_value=8,
        slot_power_limit_scale=2,
        electromechanical_interlock=1,
        no_command_completed=1,
        physical_slot_number=13,
    ),
    "slot_control"
    / Register(
        Int16ul,
        attention_button_enable=1,
        power_fault_enable=1,
        mrl_sensor_enable=1,
        presence_detect_enable=1,
        command_completed_enable=1,
        hot_plug_interrupt_enable=1,
        attention_indicator=2,
        power_indicator=2,
        power_controller=1,
        electromechanical_interlock=1,
        link_state_enable=1,
        auto_slot_power_limit_disable=1,
        in_band_pd_disable=1,
        reserved_15=1,
    ),
    "slot_status"
    / Register(
        Int16ul,
        attention_button=1,
        power_fault=1,
        mrl_sensor_changed=1,
        presence_detect_changed=1,
        command_completed=1,
        mrl_sensor_state=1,
        presence_detect_state=1,
        electromechanical_interlock=1,
        link_state_changed=1,
        reserved_9=7,
    ),
    "root_control"
    / Register(
        Int16ul,
        system_error_correctable=1,
        system_error_non_fatal=1,
        system_error_fatal=1,
        pme_interrupt=1,
        crs_software_visibility=1,
        reserved_5=11,
    ),
    "root_capabilities" / Register(Int16ul, crs_software_visibility=1, reserved_1=15),
    "root_status" / Register(Int32ul, pme_requester_id=16, pme_status=1, pme_pending=1, reserved_18=14),
    "device_capabilities_2"
    / Register(
        Int32ul,
        completion_timeout_ranges=4,
        completion_timeout_disable=1,
        ari_forwarding=1,
        atomic_op_routing=1,
        atomic_op_32bit=1,
        atomic_op_64bit=1,
        atomic_op_128bit_cas=1,
        no_ro_pr_pr_passing=1,
        ltr=1,
        tph_completer=2,
        ln_system_cls=2,
        tag_10bit_completer=1,
        tag_10bit_requester=1,
        obff=2,
        extended_fmt=1,
        end_end_tlp_prefix=1,
        max_end_end_tlp_prefixes=2,
        emergency_power_reduction=2,
        emergency_power_reduction_init=1,
        reserved_27=4,
        frs=1,
    ),
    "device_control_2"
    / Register(
        Int16ul,
        completion_timeout_value=4,
        completion_timeout_disable=1,
        ari_forwarding=1,
        atomic_op_requester=1,
        atomic_op_egress_blocking=1,
        ido_request=1,
        ido_completion=1,
        ltr=1,
        emergency_power_reduction_request=1,
        tag_10bit_requester=1,
        obff=2,
        end_end_tlp_prefix_blocking=1,
    ),
    "device_status_2" / Int16ul,
    "link_capabilities_2"
    / Register(
        Int32ul,
        reserved_0=1,
        supported_link_speeds=7,
        crosslink=1,
        lower_skp_os_generation=7,
        lower_skp_os_reception=7,
        retimer=1,
        two_retimers=1,
        reserved_25=6,
        drs=1,
    ),
    "link_control_2"
    / Register(
        Int16ul,
        target_link_speed=4,
        enter_compliance=1,
        autonomous_speed_disable=1,
        selectable_de_emphasis=1,
        transmit_margin=3,
        enter_modified_compliance=1,
        compliance_sos=1,
        compliance_preset=4,
    ),
    "link_status_2"
    / Register(
        Int16ul,
        current_de_emphasis=1,
        equalization_complete=1,
        equalization_phase_1=1,
        equalization_phase_2=1,
        equalization_phase_3=1,
        link_equalization_request=1,
        retimer=1,
        two_retimers=1,
        crosslink_resolution=2,
        reserved_10=2,
        downstream_component_presence=3,
        drs_message_received=1,
    ),
    "slot_capabilities_2" / Register(Int32ul, in_band_pd_disable=1, reserved_1=31),
    "slot_control_2" / Int16ul,
    "slot_status_2" / Int16ul,
]


def _express(name: str, last: str) -> Record:
    """The capability up to and with the field `last`."""
    names = [part.name for part in _PARTS]
    return Record(name, Struct(*_PARTS[: names.index(last) + 1]), cite="PCI Express Base 5.0, 7.5.3")


pci_express = _express("pci_express", "slot_status_2")
pci_express_v1 = _express("pci_express_v1", "device_status")
pci_express_v1_link = _express("pci_express_v1_link", "link_status")
pci_express_v1_slot = _express("pci_express_v1_slot", "slot_status")
pci_express_v1_root = _express("pci_express_v1_root", "root_status")

_VERSION_1: Final[dict[int, Record]] = {
    PortType.ROOT_PORT: pci_express_v1_root,
    PortType.ROOT_COMPLEX_EVENT_COLLECTOR: pci_express_v1_root,
    PortType.DOWNSTREAM_PORT: pci_express_v1_slot,
    PortType.ROOT_COMPLEX_ENDPOINT: pci_express_v1,
}


def express_record(version: int, port_type: int) -> Record:
    """The Record of a PCI Express capability, by the two fields of its first register."""
    return pci_express if version >= 2 else _VERSION_1.get(port_type, pci_express_v1_link)
