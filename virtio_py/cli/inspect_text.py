"""A function's configuration space as text, in the manner of `lspci -vvv`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from virtio_py.cli.inspect_express import express_lines
from virtio_py.cli.inspect_format import numbers
from virtio_py.cli.inspect_templates import AER_ROOT, BRIDGE, HEADER, TEMPLATES
from virtio_py.pci.capabilities import CapabilityId
from virtio_py.pci.decode import Bar, Capability, Problem, decode_bars
from virtio_py.pci.express import PortType
from virtio_py.pci.virtio_rules import FIRST_NON_TRANSITIONAL, virtio_device_type
from virtio_py.pci.walk import Function, is_virtio
from virtio_py.spec import DeviceId

_RAW_SHOWN: Final = 64


def function_lines(function: Function) -> Iterator[str]:
    """The lines of one function, without line ends."""
    yield _title(function)
    yield from (f"\t{line}" for line in _header_lines(function))
    for capability in function.capabilities:
        title, *details = _capability_lines(function, capability)
        yield f"\tCapabilities: [{_place(capability)}] {title}"
        yield from (f"\t\t{line}" for line in details)
    yield from (f"\tProblem: {_problem(p)}" for p in function.problems)


def _title(function: Function) -> str:
    base = function.class_code >> 8
    text = f"{function.path} Class [{base:04x}]: [{function.vendor_id:04x}:{function.device_id:04x}]"
    if is_virtio(function.vendor_id, function.device_id):
        text += f" virtio {_virtio_name(function)}"
    revision, interface = function.header["revision_id"], function.class_code & 0xFF
    text += f" (rev {revision:02x})" if revision else ""
    return text + (f" (prog-if {interface:02x})" if interface else "")


def _virtio_name(function: Function) -> str:
    kind = virtio_device_type(function.device_id)
    name = DeviceId(kind).name.lower() if kind in set(DeviceId) else f"device type {kind}"
    return f"{name} (transitional)" if function.device_id < FIRST_NON_TRANSITIONAL else name


def _header_lines(function: Function) -> Iterator[str]:
    fields = numbers(function.header)
    if function.subsystem and any(function.subsystem):
        yield "Subsystem: [{:04x}:{:04x}]".format(*function.subsystem)
    yield from (line.format_map(fields) for line in HEADER)
    if fields.get("interrupt_pin"):
        yield f"Interrupt: pin {chr(64 + fields['interrupt_pin'])} routed to IRQ {fields['interrupt_line']}"
    yield from map(_region, function.bars)
    if function.header_type == 1:
        windows = dict(zip(("io_window", "memory_window", "prefetchable_window"), _windows(fields), strict=True))
        for line in BRIDGE:
            yield from line.format_map({**fields, **windows}).replace("\n", "\n\t").split("\n")
    rom = fields.get("expansion_rom_base_address", 0)
    if rom & ~0x7FF:
        yield f"Expansion ROM at {rom & ~0x7FF:08x}{'' if rom & 1 else ' [disabled]'}"


def _region(bar: Bar) -> str:
    if bar.io:
        return f"Region {bar.index}: I/O ports at {bar.address:04x}"
    prefetchable = "prefetchable" if bar.prefetchable else "non-prefetchable"
    return f"Region {bar.index}: Memory at {bar.address:x} ({bar.width}-bit, {prefetchable})"


def _windows(fields: Mapping[str, Any]) -> Iterator[str]:
    """What a bridge passes on: I/O in units of 4 kB, memory in units of 1 MB, both ends included."""
    wide_io, wide = fields["io_base"] & 15 == 1, fields["prefetchable_memory_base"] & 15 == 1
    io = [(fields[f"io_{end}"] & 0xF0) << 8 | (fields[f"io_{end}_upper"] << 16 if wide_io else 0) for end in _ENDS]
    yield _window(io[0], io[1] | 0xFFF, 8 if wide_io else 4)
    memory = [(fields[f"memory_{end}"] & 0xFFF0) << 16 for end in _ENDS]
    yield _window(memory[0], memory[1] | 0xFFFFF, 8)
    low = [(fields[f"prefetchable_memory_{end}"] & 0xFFF0) << 16 for end in _ENDS]
    high = [fields[f"prefetchable_{end}_upper"] << 32 if wide else 0 for end in _ENDS]
    yield _window(low[0] | high[0], low[1] | high[1] | 0xFFFFF, 16 if wide else 8)


_ENDS: Final = ("base", "limit")


def _window(first: int, last: int, digits: int) -> str:
    return f"{first:0{digits}x}-{last:0{digits}x}" if first <= last else "[disabled]"


def _place(capability: Capability) -> str:
    return f"{capability.offset:03x} v{capability.version}" if capability.extended else f"{capability.offset:02x}"


def _capability_lines(function: Function, capability: Capability) -> Iterator[str]:
    """The title first. A record without a template is shown field by field."""
    record, fields = capability.record, capability.fields
    if record is not None and record.name.startswith("pci_express") and "pcie_capabilities" in fields:
        has_memory = any(not bar.io for bar in function.bars)
        yield from express_lines(fields, has_memory_bar=has_memory)
    elif record is not None and record.name in TEMPLATES:
        yield from _templated(function, capability, TEMPLATES[record.name])
    else:
        yield capability.name
        yield from _plain(fields)


def _templated(function: Function, capability: Capability, templates: Sequence[str]) -> Iterator[str]:
    fields = {**numbers(capability.fields), "name": capability.name, **_derived(capability.fields)}
    if "root_error_command" in fields and "uncorrectable_source_id" in fields and _is_root(function):
        templates = (*templates, *AER_ROOT)
    for template in templates:
        try:
            yield from template.format_map(fields).split("\n")
        except KeyError as missing:
            yield f"<cut off: no {missing.args[0]}>"


def _is_root(function: Function) -> bool:
    flags = [c.fields.get("pcie_capabilities", {}) for c in function.find(CapabilityId.PCI_EXPRESS)]
    roots = (PortType.ROOT_PORT, PortType.ROOT_COMPLEX_EVENT_COLLECTOR)
    return any(f.get("port_type") in roots for f in flags)


def _derived(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is computed from more than one field."""
    found: dict[str, Any] = {}
    if "satacr1" in fields:
        found["location"] = _sata_location(fields["satacr1"])
    if "pmcsr_bse" in fields:
        bridge = numbers(fields["pmcsr_bse"])
        line = "\nBridge: PM{bpcc_enable:?} B3{b2_b3:not}".format_map(bridge)
        found["bridge_extension"] = line if any(bridge.values()) else ""
    if "vf_base_address" in fields:
        found["vf_regions"] = "".join("\n" + _vf_region(bar) for bar in decode_bars(fields["vf_base_address"]))
    for name, ns in (("max_snoop_latency", "snoop_ns"), ("max_no_snoop_latency", "no_snoop_ns")):
        if name in fields:
            found[ns] = fields[name]["value"] << 5 * fields[name]["scale"]
    return found


def _sata_location(register: Mapping[str, int]) -> str:
    location = register["bar_location"]
    if location == 15:
        return "InCfgSpace"
    return f"BAR{location - 4} Offset={register['bar_offset']:08x}" if 4 <= location <= 9 else f"BAR??{location}"


def _vf_region(bar: Bar) -> str:
    prefetchable = "prefetchable" if bar.prefetchable else "non-prefetchable"
    return f"Region {bar.index}: Memory at {bar.address:0{bar.width // 4}x} ({bar.width}-bit, {prefetchable})"


def _plain(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield f"{name}: " + " ".join(f"{inner}={number}" for inner, number in value.items())
        elif name == "raw":
            cut = "" if len(value) <= 2 * _RAW_SHOWN else f" … ({len(value) // 2} bytes)"
            yield f"{name}: {value[: 2 * _RAW_SHOWN]}{cut}"
        else:
            yield f"{name}: {value}"


def _problem(problem: Problem) -> str:
    clause = f" [{problem.clause}]" if problem.clause else ""
    return f"at {problem.offset:#x}: {problem.message}{clause}"
