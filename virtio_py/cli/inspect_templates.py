"""The lines of every capability but PCI Express, by its Record's name: first what follows its place, then details."""

from __future__ import annotations

from typing import Final

_UNCORRECTABLE: Final = (
    "DLP{0[data_link_protocol]:?} SDES{0[surprise_down]:?} TLP{0[poisoned_tlp]:?} FCP{0[flow_control_protocol]:?}"
    " CmpltTO{0[completion_timeout]:?} CmpltAbrt{0[completer_abort]:?} UnxCmplt{0[unexpected_completion]:?}"
    " RxOF{0[receiver_overflow]:?} MalfTLP{0[malformed_tlp]:?} ECRC{0[ecrc]:?} UnsupReq{0[unsupported_request]:?}"
    " ACSViol{0[acs_violation]:?}"
)
_CORRECTABLE: Final = (
    "RxErr{0[receiver_error]:?} BadTLP{0[bad_tlp]:?} BadDLLP{0[bad_dllp]:?} Rollover{0[replay_num_rollover]:?}"
    " Timeout{0[replay_timer_timeout]:?} AdvNonFatalErr{0[advisory_non_fatal]:?}"
)
_ACS: Final = (
    "SrcValid{0[source_validation]:?} TransBlk{0[translation_blocking]:?} ReqRedir{0[p2p_request_redirect]:?}"
    " CmpltRedir{0[p2p_completion_redirect]:?} UpstreamFwd{0[upstream_forwarding]:?}"
    " EgressCtrl{0[p2p_egress_control]:?} DirectTrans{0[direct_translated_p2p]:?}"
)
_MSI: Final = (
    "MSI: Enable{message_control[enable]:?} Count={message_control[multiple_message_enable]:power_of_2}"
    "/{message_control[multiple_message_capable]:power_of_2}"
    " Maskable{message_control[per_vector_masking_capable]:?} 64bit{message_control[capable_64bit]:?}"
)
_MASKS: Final = "Masking: {mask_bits:08x}  Pending: {pending_bits:08x}"
_VIRTIO: Final = ("{name}", "BAR={bar} offset={offset:08x} size={length:08x}")


def _of(template: str, register: str) -> str:
    """A template for one register, made to read it from the record's fields."""
    return template.replace("{0[", f"{{{register}[")


TEMPLATES: Final[dict[str, tuple[str, ...]]] = {
    "pci_power_management": (
        "Power Management version {pmc[version]}",
        "Flags: PMEClk{pmc[pme_clock]:?} DSI{pmc[dsi]:?} D1{pmc[d1_support]:?} D2{pmc[d2_support]:?}"
        " AuxCurrent={pmc[aux_current]:aux_current} PME(D0{pmc[pme_d0]:?},D1{pmc[pme_d1]:?},D2{pmc[pme_d2]:?},"
        "D3hot{pmc[pme_d3hot]:?},D3cold{pmc[pme_d3cold]:?})",
        "Status: D{pmcsr[power_state]} NoSoftRst{pmcsr[no_soft_reset]:?} PME-Enable{pmcsr[pme_enable]:?}"
        " DSel={pmcsr[data_select]} DScale={pmcsr[data_scale]} PME{pmcsr[pme_status]:?}{bridge_extension}",
    ),
    "pci_msi_32": (_MSI, "Address: {message_address:08x}  Data: {message_data:04x}"),
    "pci_msi_64": (_MSI, "Address: {message_address:016x}  Data: {message_data:04x}"),
    "pci_msi_32_masking": (_MSI, "Address: {message_address:08x}  Data: {message_data:04x}", _MASKS),
    "pci_msi_64_masking": (_MSI, "Address: {message_address:016x}  Data: {message_data:04x}", _MASKS),
    "pci_msix": (
        "MSI-X: Enable{message_control[enable]:?} Count={message_control[table_size]:more}"
        " Masked{message_control[function_mask]:?}",
        "Vector table: BAR={table[bir]} offset={table[offset]:08x}",
        "PBA: BAR={pba[bir]} offset={pba[offset]:08x}",
    ),
    "pci_vendor_specific": ("{name}: Len={cap_len:02x} <?>",),
    "pci_subsystem": ("Subsystem: [{subsystem_vendor_id:04x}:{subsystem_id:04x}]",),
    "pci_sata": ("SATA HBA v{satacr0[major_revision]}.{satacr0[minor_revision]} {location}",),
    "pci_advanced_features": (
        "PCI Advanced Features",
        "AFCap: TP{af_capabilities[transactions_pending]:?} FLR{af_capabilities[function_level_reset]:?}",
        "AFCtrl: FLR{af_control[initiate_flr]:?}",
        "AFStatus: TP{af_status[transactions_pending]:?}",
    ),
    "virtio_pci_cap": _VIRTIO,
    "virtio_pci_notify_cap": (_VIRTIO[0], _VIRTIO[1] + " multiplier={notify_off_multiplier:08x}"),
    "virtio_pci_cfg_cap": (*_VIRTIO, "Data: {pci_cfg_data}"),
    "virtio_pci_cap64": (
        "{name}",
        "BAR={bar} offset={offset_hi:08x}{offset:08x} size={length_hi:08x}{length:08x} id={id}",
    ),
    "virtio_pci_vndr_data": ("{name}", "Vendor={vendor_id:04x} Len={cap_len:02x}"),
    "pci_aer": (
        "{name}",
        "UESta:\t" + _of(_UNCORRECTABLE, "uncorrectable_error_status"),
        "UEMsk:\t" + _of(_UNCORRECTABLE, "uncorrectable_error_mask"),
        "UESvrt:\t" + _of(_UNCORRECTABLE, "uncorrectable_error_severity"),
        "CESta:\t" + _of(_CORRECTABLE, "correctable_error_status"),
        "CEMsk:\t" + _of(_CORRECTABLE, "correctable_error_mask"),
        "AERCap:\tFirst Error Pointer: {capabilities_and_control[first_error_pointer]:02x},"
        " ECRCGenCap{capabilities_and_control[ecrc_generation_capable]:?}"
        " ECRCGenEn{capabilities_and_control[ecrc_generation_enable]:?}"
        " ECRCChkCap{capabilities_and_control[ecrc_check_capable]:?}"
        " ECRCChkEn{capabilities_and_control[ecrc_check_enable]:?}\n"
        "\tMultHdrRecCap{capabilities_and_control[multiple_header_recording_capable]:?}"
        " MultHdrRecEn{capabilities_and_control[multiple_header_recording_enable]:?}"
        " TLPPfxPres{capabilities_and_control[tlp_prefix_log_present]:?}"
        " HdrLogCap{capabilities_and_control[completion_timeout_log_capable]:?}",
        "HeaderLog: {header_log[0]:08x} {header_log[1]:08x} {header_log[2]:08x} {header_log[3]:08x}",
    ),
    "pci_serial_number": ("{name} {serial_number:serial}",),
    "pci_vsec": (
        "{name}: ID={vsec_header[vsec_id]:04x} Rev={vsec_header[vsec_rev]} Len={vsec_header[vsec_length]:03x} <?>",
    ),
    "pci_acs": ("{name}", "ACSCap:\t" + _of(_ACS, "acs_capability"), "ACSCtl:\t" + _of(_ACS, "acs_control")),
    "pci_ari": (
        "{name}",
        "ARICap:\tMFVC{ari_capability[mfvc_function_groups]:?} ACS{ari_capability[acs_function_groups]:?},"
        " Next Function: {ari_capability[next_function]}",
        "ARICtl:\tMFVC{ari_control[mfvc_function_groups]:?} ACS{ari_control[acs_function_groups]:?},"
        " Function Group: {ari_control[function_group]}",
    ),
    "pci_ats": (
        "{name}",
        "ATSCap:\tInvalidate Queue Depth: {ats_capability[invalidate_queue_depth]:02x}",
        "ATSCtl:\tEnable{ats_control[enable]:?}, Smallest Translation Unit:"
        " {ats_control[smallest_translation_unit]:02x}",
    ),
    "pci_sriov": (
        "{name}",
        "IOVCap:\tMigration{sriov_capabilities[vf_migration_capable]:?}"
        " 10BitTagReq{sriov_capabilities[vf_10bit_tag_requester]:?}"
        " Interrupt Message Number: {sriov_capabilities[vf_migration_interrupt_message_number]:03x}",
        "IOVCtl:\tEnable{sriov_control[vf_enable]:?} Migration{sriov_control[vf_migration_enable]:?}"
        " Interrupt{sriov_control[vf_migration_interrupt_enable]:?} MSE{sriov_control[vf_memory_space_enable]:?}"
        " ARIHierarchy{sriov_control[ari_capable_hierarchy]:?}"
        " 10BitTagReq{sriov_control[vf_10bit_tag_requester_enable]:?}",
        "IOVSta:\tMigration{sriov_status[vf_migration_status]:?}",
        "Initial VFs: {initial_vfs}, Total VFs: {total_vfs}, Number of VFs: {num_vfs},"
        " Function Dependency Link: {function_dependency_link:02x}",
        "VF offset: {first_vf_offset}, stride: {vf_stride}, Device ID: {vf_device_id:04x}",
        "Supported Page Size: {supported_page_sizes:08x}, System Page Size: {system_page_size:08x}{vf_regions}",
        "VF Migration: offset: {vf_migration_state_array[offset]:08x}, BIR: {vf_migration_state_array[bir]}",
    ),
    "pci_pri": (
        "{name}",
        "PRICtl: Enable{page_request_control[enable]:?} Reset{page_request_control[reset]:?}",
        "PRISta: RF{page_request_status[response_failure]:?}"
        " UPRGI{page_request_status[unexpected_page_request_group_index]:?}"
        " Stopped{page_request_status[stopped]:?}",
        "Page Request Capacity: {outstanding_page_request_capacity:08x},"
        " Page Request Allocation: {outstanding_page_request_allocation:08x}",
    ),
    "pci_ltr": (
        "{name}",
        "Max snoop latency: {snoop_ns}ns",
        "Max no snoop latency: {no_snoop_ns}ns",
    ),
    "pci_pasid": (
        "{name}",
        "PASIDCap: Exec{pasid_capability[execute_permission]:?} Priv{pasid_capability[privileged_mode]:?},"
        " Max PASID Width: {pasid_capability[max_pasid_width]:02x}",
        "PASIDCtl: Enable{pasid_control[enable]:?} Exec{pasid_control[execute_permission]:?}"
        " Priv{pasid_control[privileged_mode]:?}",
    ),
}

# What only a root port or a root complex event collector has behind the rest of AER.
AER_ROOT: Final = (
    "RootCmd: CERptEn{root_error_command[correctable]:?} NFERptEn{root_error_command[non_fatal]:?}"
    " FERptEn{root_error_command[fatal]:?}",
    "RootSta: CERcvd{root_error_status[correctable_received]:?}"
    " MultCERcvd{root_error_status[multiple_correctable_received]:?}"
    " UERcvd{root_error_status[uncorrectable_received]:?}"
    " MultUERcvd{root_error_status[multiple_uncorrectable_received]:?}\n"
    "\t FirstFatal{root_error_status[first_uncorrectable_fatal]:?}"
    " NonFatalMsg{root_error_status[non_fatal_received]:?} FatalMsg{root_error_status[fatal_received]:?}"
    " IntMsg {root_error_status[interrupt_message_number]}",
    "ErrorSrc: ERR_COR: {correctable_source_id:04x} ERR_FATAL/NONFATAL: {uncorrectable_source_id:04x}",
)

_SECONDARY: Final = "66MHz{0[capable_66mhz]:?} FastB2B{0[fast_back_to_back]:?} ParErr{0[master_data_parity_error]:?}"
_ABORTS: Final = (
    " DEVSEL={0[devsel_timing]:devsel} >TAbort{0[signaled_target_abort]:?} <TAbort{0[received_target_abort]:?}"
    " <MAbort{0[received_master_abort]:?}"
)

HEADER: Final = (
    "Control: I/O{command[io_space]:?} Mem{command[memory_space]:?} BusMaster{command[bus_master]:?}"
    " SpecCycle{command[special_cycles]:?} MemWINV{command[memory_write_and_invalidate]:?}"
    " VGASnoop{command[vga_palette_snoop]:?} ParErr{command[parity_error_response]:?}"
    " Stepping{command[stepping]:?} SERR{command[serr_enable]:?} FastB2B{command[fast_back_to_back]:?}"
    " DisINTx{command[interrupt_disable]:?}",
    _of(
        "Status: Cap{0[capabilities_list]:?} 66MHz{0[capable_66mhz]:?} UDF{0[user_definable_features]:?}"
        " FastB2B{0[fast_back_to_back]:?} ParErr{0[master_data_parity_error]:?}"
        + _ABORTS
        + " >SERR{0[signaled_system_error]:?} <PERR{0[detected_parity_error]:?} INTx{0[interrupt_status]:?}",
        "status",
    ),
)

BRIDGE: Final = (
    "Bus: primary={primary_bus_number:02x}, secondary={secondary_bus_number:02x},"
    " subordinate={subordinate_bus_number:02x}, sec-latency={secondary_latency_timer}",
    "I/O behind bridge: {io_window}",
    "Memory behind bridge: {memory_window}",
    "Prefetchable memory behind bridge: {prefetchable_window}",
    _of(
        "Secondary status: " + _SECONDARY + _ABORTS + " <SERR{0[signaled_system_error]:?}"
        " <PERR{0[detected_parity_error]:?}",
        "secondary_status",
    ),
    "BridgeCtl: Parity{bridge_control[parity_error_response]:?} SERR{bridge_control[serr_enable]:?}"
    " NoISA{bridge_control[isa_enable]:?} VGA{bridge_control[vga_enable]:?}"
    " VGA16{bridge_control[vga_16bit_decode]:?} MAbort{bridge_control[master_abort_mode]:?}"
    " >Reset{bridge_control[secondary_bus_reset]:?} FastB2B{bridge_control[fast_back_to_back]:?}\n"
    "\tPriDiscTmr{bridge_control[primary_discard_timer]:?} SecDiscTmr{bridge_control[secondary_discard_timer]:?}"
    " DiscTmrStat{bridge_control[discard_timer_status]:?}"
    " DiscTmrSERREn{bridge_control[discard_timer_serr_enable]:?}",
)
