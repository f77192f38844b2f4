"""lspci and this package read the same configuration spaces alike: stored ones, this machine's, and random ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lspci_text import DUMPS, ShownFunction, disagreements, hex_dump, parse_lspci, run_lspci
from virtio_py.cli.inspect import SYSFS_DEVICES, read_functions
from virtio_py.cli.inspect_text import function_lines
from virtio_py.pci.capabilities import CapabilityId
from virtio_py.pci.decode import Capability
from virtio_py.pci.extended import ExtendedId
from virtio_py.pci.header import pci_header_type0
from virtio_py.pci.walk import Function, walk

by_name = pytest.mark.parametrize("dump", DUMPS, ids=lambda path: f"{path.parent.name}-{path.stem}")


def shown(function: Function) -> ShownFunction:
    return parse_lspci("\n".join(function_lines(function)))[0]


def test_there_are_dumps() -> None:
    assert len(DUMPS) == 49


@by_name
def test_the_text_is_that_of_lspci(dump: Path) -> None:
    (theirs,) = parse_lspci(dump.read_text())
    (function,) = read_functions(dump.with_suffix(".hex"))
    ours = shown(function)
    assert list(disagreements(theirs, ours)) == []
    # No capability is skipped by both: lspci's own count of lines is the text's.
    assert len(ours.capabilities) == dump.read_text().count("\tCapabilities: ")


@by_name
def test_header_lines_are_those_of_lspci(dump: Path) -> None:
    (theirs,) = parse_lspci(dump.read_text())
    ours = shown(read_functions(dump.with_suffix(".hex"))[0])
    for line in theirs.header:
        if not line.startswith("Latency: "):
            assert re.sub(r"( \[(size=|\d\d-bit)[^]]*\])+$", "", line) in ours.header


@by_name
def test_raw_bytes_and_hex_dump_decode_alike(dump: Path) -> None:
    (from_hex,) = read_functions(dump.with_suffix(".hex"))
    (from_raw,) = read_functions(dump.with_suffix(".bin"))
    assert {**from_hex.as_dict(), "path": ""} == {**from_raw.as_dict(), "path": ""}


@by_name
def test_ids_are_those_that_the_kernel_tells(dump: Path) -> None:
    kernel = dict(line.split(" ", 1) for line in dump.with_suffix(".txt").read_text().splitlines() if " 0x" in line)
    (function,) = read_functions(dump.with_suffix(".bin"))
    assert function.class_code == int(kernel["class"], 16)
    assert function.header["revision_id"] == int(kernel["revision"], 16)
    if function.vendor_id != 0xFFFF:  # a virtual function has no ids of its own
        assert function.vendor_id == int(kernel["vendor"], 16)
        assert function.device_id == int(kernel["device"], 16)
    if function.subsystem:
        assert function.subsystem == (int(kernel["subsystem_vendor"], 16), int(kernel["subsystem_device"], 16))


def msix(fields: Any) -> list[str]:
    control, table, pba = fields["message_control"], fields["table"], fields["pba"]
    return [
        f"MSI-X: Enable{'-+'[control['enable']]} Count={control['table_size'] + 1} Masked{'-+'[control['function_mask']]}",
        f"Vector table: BAR={table['bir']} offset={table['offset']:08x}",
        f"PBA: BAR={pba['bir']} offset={pba['offset']:08x}",
    ]


def vendor(fields: Any) -> list[str]:
    names = {1: "CommonCfg", 2: "Notify", 3: "ISR", 4: "DeviceCfg", 5: "PciCfg"}
    place = f"BAR={fields['bar']} offset={fields['offset']:08x} size={fields['length']:08x}"
    if fields["cfg_type"] == 2:
        place += f" multiplier={fields['notify_off_multiplier']:08x}"
    return [f"Vendor Specific Information: VirtIO: {names[fields['cfg_type']]}", place]


def sriov(fields: Any) -> list[str]:
    return [
        f"Initial VFs: {fields['initial_vfs']}, Total VFs: {fields['total_vfs']}, Number of VFs: {fields['num_vfs']},"
        f" Function Dependency Link: {fields['function_dependency_link']:02x}",
        f"VF offset: {fields['first_vf_offset']}, stride: {fields['vf_stride']}, Device ID: {fields['vf_device_id']:04x}",
    ]


FROM_FIELDS: dict[tuple[int, bool], Callable[[Any], list[str]]] = {
    (CapabilityId.MSI_X, False): msix,
    (CapabilityId.VENDOR_SPECIFIC, False): vendor,
    (ExtendedId.SR_IOV, True): sriov,
}


@by_name
def test_json_numbers_are_those_of_lspci(dump: Path) -> None:
    """Beside the text, whose lines come from templates: the fields that a program reads, formatted here."""
    (theirs,) = parse_lspci(dump.read_text())
    (function,) = read_functions(dump.with_suffix(".hex"))
    for capability, entry in zip(function.as_dict()["capabilities"], theirs.capabilities, strict=True):
        assert (capability["offset"], capability["extended"]) == (entry.offset, entry.extended)
        write = FROM_FIELDS.get((capability["id"], capability["extended"]), lambda fields: [])
        assert set(write(capability["fields"])) <= {entry.title, *entry.lines}


@pytest.mark.peer
@by_name
def test_the_installed_lspci_reads_the_dumps_as_we_do(dump: Path) -> None:
    (theirs,) = parse_lspci(run_lspci("-vvv", "-F", str(dump.with_suffix(".hex"))))
    assert list(disagreements(theirs, shown(read_functions(dump.with_suffix(".hex"))[0]))) == []


@pytest.mark.peer
def test_every_function_of_this_machine() -> None:
    folders = sorted(SYSFS_DEVICES.iterdir()) if SYSFS_DEVICES.is_dir() else []
    if not folders:
        pytest.skip("this machine has no PCI functions")
    theirs = parse_lspci(run_lspci("-vvv", "-D"))
    assert [f.title.split()[0] for f in theirs] == [folder.name for folder in folders]
    for folder, function in zip(folders, theirs, strict=True):
        assert list(disagreements(function, shown(read_functions(folder)[0]))) == [], folder


# Random registers behind real headers: every label and every unit is compared, not only those that a dump happens to show.

REGISTERS = st.integers(0, 1 << 32).map(lambda seed: seed)


def header(capabilities_pointer: int, vendor: int, device: int) -> bytes:
    return pci_header_type0.encode(
        vendor_id=vendor,
        device_id=device,
        status={"capabilities_list": 1},
        base_address=[0xFE000000, 0, 0, 0, 0, 0],
        capabilities_pointer=capabilities_pointer,
    )


CONVENTIONAL = [  # id, bytes in all
    (CapabilityId.POWER_MANAGEMENT, 8),
    (CapabilityId.MSI, 24),
    (CapabilityId.MSI_X, 12),
    (CapabilityId.SUBSYSTEM, 8),
    (CapabilityId.ADVANCED_FEATURES, 8),
    (CapabilityId.SATA, 8),
]
EXTENDED = [
    (ExtendedId.ADVANCED_ERROR_REPORTING, 72),
    (ExtendedId.DEVICE_SERIAL_NUMBER, 12),
    (ExtendedId.ACCESS_CONTROL_SERVICES, 8),
    (ExtendedId.ARI, 8),
    (ExtendedId.ATS, 8),
    (ExtendedId.SR_IOV, 64),
    (ExtendedId.PAGE_REQUEST_INTERFACE, 16),
    (ExtendedId.LATENCY_TOLERANCE_REPORTING, 8),
    (ExtendedId.PASID, 8),
]


@st.composite
def spaces(draw: st.DrawFn) -> bytes:
    """A whole configuration space with one of each capability, their registers random."""
    config = bytearray(4096)
    config[:64] = header(0x40, 0x1B36, 0x0010)
    port_type = draw(st.sampled_from([0, 1, 4, 5, 6, 7, 8, 9, 10]))
    version, offset = 2, 0x40
    body = draw(st.binary(min_size=60, max_size=60))
    flags = version | port_type << 4 | body[3] << 8 & 0x3F00
    config[offset : offset + 60] = bytes([CapabilityId.PCI_EXPRESS, 0x7C]) + flags.to_bytes(2, "little") + body[4:]
    offset = 0x7C
    for i, (number, size) in enumerate(CONVENTIONAL):
        end = offset + size
        config[offset:end] = draw(st.binary(min_size=size, max_size=size))
        config[offset : offset + 2] = bytes([number, end if i + 1 < len(CONVENTIONAL) else 0])
        offset = end
    offset = 0x100
    for i, (number, size) in enumerate(EXTENDED):
        end = offset + size
        config[offset:end] = draw(st.binary(min_size=size, max_size=size))
        word = number | draw(st.integers(1, 15)) << 16 | (end if i + 1 < len(EXTENDED) else 0) << 20
        config[offset : offset + 4] = word.to_bytes(4, "little")
        offset = end
    return bytes(config)


@pytest.mark.peer
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=spaces())
def test_random_registers_read_alike(config: bytes, tmp_path: Path) -> None:
    file = tmp_path / "dump"
    file.write_text(hex_dump(config))
    (theirs,) = parse_lspci(run_lspci("-vvv", "-F", str(file)))
    assert list(disagreements(theirs, shown(walk(config)))) == []
