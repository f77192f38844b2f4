"""The lines of a PCI Express capability: which registers a port type has, and how each is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from virtio_py.cli.inspect_format import Number, numbers
from virtio_py.pci.express import PortType

_Test = Callable[[Mapping[str, Any]], bool]

_TYPE_NAMES: Final = {
    PortType.ENDPOINT: "Endpoint",
    PortType.LEGACY_ENDPOINT: "Legacy Endpoint",
    PortType.ROOT_PORT: "Root Port",
    PortType.UPSTREAM_PORT: "Upstream Port",
    PortType.DOWNSTREAM_PORT: "Downstream Port",
    PortType.PCIE_TO_PCI_BRIDGE: "PCI-Express to PCI/PCI-X Bridge",
    PortType.PCI_TO_PCIE_BRIDGE: "PCI/PCI-X to PCI-Express Bridge",
    PortType.ROOT_COMPLEX_ENDPOINT: "Root Complex Integrated Endpoint",
    PortType.ROOT_COMPLEX_EVENT_COLLECTOR: "Root Complex Event Collector",
}


def _of(*types: PortType) -> _Test:
    return lambda fields: fields["pcie_capabilities"]["port_type"] in types


def _always(fields: Mapping[str, Any]) -> bool:
    return True


def _both(first: _Test, second: _Test) -> _Test:
    return lambda fields: first(fields) and second(fields)


def _bit(register: str, field: str) -> _Test:
    return lambda fields: bool(fields[register][field])


_ROOT: Final = _of(PortType.ROOT_PORT)
_ROOTS: Final = _of(PortType.ROOT_PORT, PortType.ROOT_COMPLEX_EVENT_COLLECTOR)
_DOWNWARD: Final = _of(PortType.ROOT_PORT, PortType.DOWNSTREAM_PORT)
_PORTS: Final = _of(PortType.ROOT_PORT, PortType.UPSTREAM_PORT, PortType.DOWNSTREAM_PORT)
_ON_LINK: Final = _of(PortType.ENDPOINT, PortType.LEGACY_ENDPOINT)
_ENDS: Final = _of(PortType.ENDPOINT, PortType.LEGACY_ENDPOINT, PortType.ROOT_COMPLEX_ENDPOINT)
_ENDS_OR_ROOT: Final = _of(
    PortType.ENDPOINT, PortType.LEGACY_ENDPOINT, PortType.ROOT_COMPLEX_ENDPOINT, PortType.ROOT_PORT
)
_BRIDGE: Final = _of(PortType.PCIE_TO_PCI_BRIDGE)
_POWERED: Final = _of(PortType.ENDPOINT, PortType.UPSTREAM_PORT, PortType.PCIE_TO_PCI_BRIDGE)
_BUTTONS: Final = _of(PortType.ENDPOINT, PortType.LEGACY_ENDPOINT, PortType.UPSTREAM_PORT, PortType.PCIE_TO_PCI_BRIDGE)
_WITH_RCB: Final = _of(PortType.ROOT_PORT, PortType.ENDPOINT, PortType.LEGACY_ENDPOINT, PortType.PCIE_TO_PCI_BRIDGE)
_SLOT_PORTS: Final = _of(PortType.ROOT_PORT, PortType.DOWNSTREAM_PORT, PortType.PCI_TO_PCIE_BRIDGE)
_SLOT: Final = _both(_SLOT_PORTS, _bit("pcie_capabilities", "slot_implemented"))


def _linked(fields: Mapping[str, Any]) -> bool:
    return not _of(PortType.ROOT_COMPLEX_ENDPOINT, PortType.ROOT_COMPLEX_EVENT_COLLECTOR)(fields)


def _tph(fields: Mapping[str, Any]) -> bool:
    # The value 2 is reserved.
    return _of(PortType.ENDPOINT, PortType.ROOT_PORT)(fields) and fields["device_capabilities_2"]["tph_completer"] != 2


def _has_memory(fields: Mapping[str, Any]) -> bool:
    # A function completes atomic operations only in memory that it has.
    return bool(fields["has_memory_bar"])


class _Section(NamedTuple):
    register: str
    shown: _Test
    pieces: tuple[tuple[_Test, str], ...]


_SECTIONS: Final = (
    _Section(
        "device_capabilities",
        _always,
        (
            (_always, "DevCap:\tMaxPayload {max_payload_size:payload} bytes, PhantFunc {phantom_functions:phantoms}"),
            (_ON_LINK, ", Latency L0s {l0s_acceptable_latency:l0s}, L1 {l1_acceptable_latency:l1}"),
            (_always, "\n\tExtTag{extended_tag:?}"),
            (_BUTTONS, " AttnBtn{attention_button:?} AttnInd{attention_indicator:?} PwrInd{power_indicator:?}"),
            (_always, " RBE{role_based_error_reporting:?}"),
            (_ENDS, " FLReset{function_level_reset:?}"),
            (_POWERED, " SlotPowerLimit {slot_power_limit}"),
        ),
    ),
    _Section(
        "device_control",
        _always,
        (
            (_always, "DevCtl:\tCorrErr{correctable_error_enable:?} NonFatalErr{non_fatal_error_enable:?}"),
            (_always, " FatalErr{fatal_error_enable:?} UnsupReq{unsupported_request_enable:?}"),
            (_always, "\n\tRlxdOrd{relaxed_ordering:?} ExtTag{extended_tag:?} PhantFunc{phantom_functions:?}"),
            (_always, " AuxPwr{aux_power_pm:?} NoSnoop{no_snoop:?}"),
            (_BRIDGE, " BrConfRtry{bridge_retry_or_flr:?}"),
            (_both(_ENDS, _bit("device_capabilities", "function_level_reset")), " FLReset{bridge_retry_or_flr:?}"),
            (
                _always,
                "\n\tMaxPayload {max_payload_size:payload} bytes, MaxReadReq {max_read_request_size:payload} bytes",
            ),
        ),
    ),
    _Section(
        "device_status",
        _always,
        (
            (_always, "DevSta:\tCorrErr{correctable_error:?} NonFatalErr{non_fatal_error:?} FatalErr{fatal_error:?}"),
            (_always, " UnsupReq{unsupported_request:?} AuxPwr{aux_power:?} TransPend{transactions_pending:?}"),
        ),
    ),
    _Section(
        "link_capabilities",
        _linked,
        (
            (_always, "LnkCap:\tPort #{port_number}, Speed {max_link_speed:speed}, Width x{max_link_width}"),
            (_always, ", ASPM {aspm_support:aspm_support}{exit_latency}"),
            (_always, "\n\tClockPM{clock_power_management:?} Surprise{surprise_down_error_reporting:?}"),
            (_always, " LLActRep{data_link_layer_active_reporting:?} BwNot{bandwidth_notification:?}"),
            (_always, " ASPMOptComp{aspm_optionality_compliance:?}"),
        ),
    ),
    _Section(
        "link_control",
        _linked,
        (
            (_always, "LnkCtl:\tASPM {aspm_control:aspm_control};"),
            (_WITH_RCB, " RCB {read_completion_boundary:rcb} bytes,"),
            (_always, " Disabled{link_disable:?} CommClk{common_clock:?}\n\tExtSynch{extended_synch:?}"),
            (_always, " ClockPM{clock_power_management:?} AutWidDis{autonomous_width_disable:?}"),
            (_always, " BWInt{bandwidth_management_interrupt:?} AutBWInt{autonomous_bandwidth_interrupt:?}"),
        ),
    ),
    _Section(
        "link_status",
        _linked,
        (
            (_always, "LnkSta:\tSpeed {link_speed:speed}{speed_note}, Width x{link_width}{width_note}"),
            (_always, "\n\tTrErr{training_error:?} Train{link_training:?} SlotClk{slot_clock:?}"),
            (_always, " DLActive{data_link_layer_active:?} BWMgmt{bandwidth_management:?}"),
            (_always, " ABWMgmt{autonomous_bandwidth:?}"),
        ),
    ),
    _Section(
        "slot_capabilities",
        _SLOT,
        (
            (_always, "SltCap:\tAttnBtn{attention_button:?} PwrCtrl{power_controller:?} MRL{mrl_sensor:?}"),
            (_always, " AttnInd{attention_indicator:?} PwrInd{power_indicator:?} HotPlug{hot_plug_capable:?}"),
            (_always, " Surprise{hot_plug_surprise:?}\n\tSlot #{physical_slot_number}, PowerLimit {slot_power_limit};"),
            (_always, " Interlock{electromechanical_interlock:?} NoCompl{no_command_completed:?}"),
        ),
    ),
    _Section(
        "slot_control",
        _SLOT,
        (
            (_always, "SltCtl:\tEnable: AttnBtn{attention_button_enable:?} PwrFlt{power_fault_enable:?}"),
            (_always, " MRL{mrl_sensor_enable:?} PresDet{presence_detect_enable:?}"),
            (_always, " CmdCplt{command_completed_enable:?} HPIrq{hot_plug_interrupt_enable:?}"),
            (_always, " LinkChg{link_state_enable:?}\n\tControl: AttnInd {attention_indicator:indicator},"),
            (_always, " PwrInd {power_indicator:indicator}, Power{power_controller:?}"),
            (_always, " Interlock{electromechanical_interlock:?}"),
        ),
    ),
    _Section(
        "slot_status",
        _SLOT,
        (
            (_always, "SltSta:\tStatus: AttnBtn{attention_button:?} PowerFlt{power_fault:?} MRL{mrl_sensor_state:?}"),
            (_always, " CmdCplt{command_completed:?} PresDet{presence_detect_state:?}"),
            (_always, " Interlock{electromechanical_interlock:?}\n\tChanged: MRL{mrl_sensor_changed:?}"),
            (_always, " PresDet{presence_detect_changed:?} LinkState{link_state_changed:?}"),
        ),
    ),
    _Section("root_capabilities", _ROOTS, ((_always, "RootCap: CRSVisible{crs_software_visibility:?}"),)),
    _Section(
        "root_control",
        _ROOTS,
        (
            (_always, "RootCtl: ErrCorrectable{system_error_correctable:?} ErrNon-Fatal{system_error_non_fatal:?}"),
            (_always, " ErrFatal{system_error_fatal:?} PMEIntEna{pme_interrupt:?}"),
            (_always, " CRSVisible{crs_software_visibility:?}"),
        ),
    ),
    _Section(
        "root_status",
        _ROOTS,
        ((_always, "RootSta: PME ReqID {pme_requester_id:04x}, PMEStatus{pme_status:?} PMEPending{pme_pending:?}"),),
    ),
    _Section(
        "device_capabilities_2",
        _always,
        (
            (_always, "DevCap2: Completion Timeout: {completion_timeout_ranges:timeout_ranges},"),
            (_always, " TimeoutDis{completion_timeout_disable:?} NROPrPrP{no_ro_pr_pr_passing:?} LTR{ltr:?}"),
            (_always, "\n\t 10BitTagComp{tag_10bit_completer:?} 10BitTagReq{tag_10bit_requester:?} OBFF {obff:obff},"),
            (_always, " ExtFmt{extended_fmt:?} EETLPPrefix{end_end_tlp_prefix:?}"),
            (
                _bit("device_capabilities_2", "end_end_tlp_prefix"),
                ", MaxEETLPPrefixes {max_end_end_tlp_prefixes:prefixes}",
            ),
            (_always, "\n\t EmergencyPowerReduction {emergency_power_reduction:power_reduction},"),
            (_always, " EmergencyPowerReductionInit{emergency_power_reduction_init:?}\n\t FRS{frs:?}"),
            (_ROOT, " LN System CLS {ln_system_cls:cls},"),
            (_tph, " TPHComp{tph:?} ExtTPHComp{extended_tph:?}"),
            (_DOWNWARD, " ARIFwd{ari_forwarding:?}"),
            (lambda fields: _PORTS(fields) or _has_memory(fields), "\n\t AtomicOpsCap:"),
            (_PORTS, " Routing{atomic_op_routing:?}"),
            (_has_memory, " 32bit{atomic_op_32bit:?} 64bit{atomic_op_64bit:?} 128bitCAS{atomic_op_128bit_cas:?}"),
        ),
    ),
    _Section(
        "device_control_2",
        _always,
        (
            (_always, "DevCtl2: Completion Timeout: {completion_timeout_value:timeout},"),
            (_always, " TimeoutDis{completion_timeout_disable:?} LTR{ltr:?} 10BitTagReq{tag_10bit_requester:?}"),
            (_always, " OBFF {obff:obff_control},"),
            (_DOWNWARD, " ARIFwd{ari_forwarding:?}"),
            (lambda fields: _PORTS(fields) or _ENDS(fields), "\n\t AtomicOpsCtl:"),
            (_ENDS_OR_ROOT, " ReqEn{atomic_op_requester:?}"),
            (_PORTS, " EgressBlck{atomic_op_egress_blocking:?}"),
        ),
    ),
    _Section(
        "link_capabilities_2",
        _both(_linked, lambda fields: any(fields["link_capabilities_2"].values())),
        (
            (_always, "LnkCap2: Supported Link Speeds: {supported_link_speeds:speeds}, Crosslink{crosslink:?}"),
            (_always, " Retimer{retimer:?} 2Retimers{two_retimers:?} DRS{drs:?}"),
        ),
    ),
    _Section(
        "link_control_2",
        _linked,
        (
            (
                _always,
                "LnkCtl2: Target Link Speed: {target_link_speed:target_speed}, EnterCompliance{enter_compliance:?}",
            ),
            (_always, " SpeedDis{autonomous_speed_disable:?}"),
            (
                _of(PortType.DOWNSTREAM_PORT),
                ", Selectable De-emphasis: {selectable_de_emphasis:de_emphasis}",
            ),
            (_always, "\n\t Transmit Margin: {transmit_margin:margin},"),
            (_always, " EnterModifiedCompliance{enter_modified_compliance:?} ComplianceSOS{compliance_sos:?}"),
            (_always, "\n\t Compliance Preset/De-emphasis: {compliance_preset:preset}"),
        ),
    ),
    _Section(
        "link_status_2",
        _linked,
        (
            (_always, "LnkSta2: Current De-emphasis Level: {current_de_emphasis:de_emphasis},"),
            (_always, " EqualizationComplete{equalization_complete:?} EqualizationPhase1{equalization_phase_1:?}"),
            (_always, "\n\t EqualizationPhase2{equalization_phase_2:?} EqualizationPhase3{equalization_phase_3:?}"),
            (_always, " LinkEqualizationRequest{link_equalization_request:?}\n\t Retimer{retimer:?}"),
            (_always, " 2Retimers{two_retimers:?} CrosslinkRes: {crosslink_resolution:crosslink}"),
            (
                _both(_SLOT_PORTS, _bit("link_capabilities_2", "drs")),
                ", DRS{drs_message_received:?}\n\t DownstreamComp: {downstream_component_presence:presence}",
            ),
        ),
    ),
)


def express_lines(fields: Mapping[str, Any], *, has_memory_bar: bool) -> Iterator[str]:
    """The title, then the lines of every register that this port type has."""
    flags = fields["pcie_capabilities"]
    kind = flags["port_type"]
    name = _TYPE_NAMES[PortType(kind)] if kind in _TYPE_NAMES else f"Unknown type {kind}"
    slot = f" (Slot{'+' if flags['slot_implemented'] else '-'})" if kind in (4, 6, 8) else ""
    yield f"Express (v{flags['version']}) {name}{slot}, MSI {flags['interrupt_message_number']:02x}"
    known = {**_derive(numbers(fields)), "has_memory_bar": has_memory_bar}
    for section in _SECTIONS:
        if section.register in known and section.shown(known):
            text = "".join(piece for shown, piece in section.pieces if shown(known))
            yield from text.format_map(known[section.register]).split("\n")


def _derive(fields: dict[str, Any]) -> dict[str, Any]:
    """Adds what is computed from more than one field."""
    for name in ("device_capabilities", "slot_capabilities"):
        if name in fields:
            register = fields[name]
            register["slot_power_limit"] = watts(register["slot_power_limit_value"], register["slot_power_limit_scale"])
    # A space that is cut off may have the capabilities of a link and not its status.
    if "link_capabilities" in fields:
        _derive_latency(fields["link_capabilities"])
    if "link_status" in fields:
        _derive_link(fields["pcie_capabilities"]["port_type"], fields["link_capabilities"], fields["link_status"])
    if "device_capabilities_2" in fields:
        completer = fields["device_capabilities_2"]["tph_completer"]
        fields["device_capabilities_2"].update(tph=Number(completer & 1), extended_tph=Number(completer >> 1))
    return fields


def watts(value: int, scale: int) -> str:
    """A slot's power limit. Unscaled values from 0xf0 on are steps of 25 W, and the last one is whatever lies above."""
    if scale == 0 and value == 0xFF:
        return ">600W"
    return f"{250 + 25 * (value - 0xF0) if scale == 0 and value >= 0xF0 else value / 10**scale:g}W"


def _derive_latency(able: dict[str, Any]) -> None:
    latencies = [("L0s", able["l0s_exit_latency"], "l0s", 1), ("L1", able["l1_exit_latency"], "l1", 2)]
    shown = [f"{name} {value:{form}}" for name, value, form, bit in latencies if able["aspm_support"] & bit]
    able["exit_latency"] = f", Exit Latency {', '.join(shown)}" if shown else ""


def _derive_link(kind: int, able: dict[str, Any], now: dict[str, Any]) -> None:
    now["speed_note"] = _compare(kind, now["link_speed"], able["max_link_speed"])
    now["width_note"] = _compare(kind, now["link_width"], able["max_link_width"])


def _compare(kind: int, now: int, able: int) -> str:
    if now > able:
        return " (overdriven)"
    # A port that leads down may well have a slower partner; at the upper end of a link it is worth a word.
    upward = kind not in (PortType.ROOT_PORT, PortType.DOWNSTREAM_PORT, PortType.PCI_TO_PCIE_BRIDGE)
    return " (downgraded)" if now < able and upward else ""
