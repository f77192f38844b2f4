"""lspci and this package read the same configuration spaces alike: stored ones, this machine's, and random ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.lspci_text import DUMPS, RANDOM, ShownFunction, disagreements, hex_dump, parse_lspci, run_lspci
from virtio_py.cli.inspect import SYSFS_DEVICES, read_functions
from virtio_py.cli.inspect_text import function_lines
from virtio_py.pci import capabilities
from virtio_py.pci.capabilities import CapabilityId
from virtio_py.pci.express import PortType, pci_express
from virtio_py.pci.extended import EXTENDED_RECORDS, ExtendedId, pci_extended_capability, pci_sriov
from virtio_py.pci.header import pci_header_type0
from virtio_py.pci.virtio_caps import VIRTIO_CAPS, VIRTIO_PCI_VENDOR_ID, CfgType
from virtio_py.pci.walk import Function, walk
from virtio_py.records import Record

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
        f"MSI-X: Enable{'-+'[control['enable']]} Count={control['table_size'] + 1}"
        f" Masked{'-+'[control['function_mask']]}",
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
        f"VF offset: {fields['first_vf_offset']}, stride: {fields['vf_stride']},"
        f" Device ID: {fields['vf_device_id']:04x}",
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


def test_stored_random_registers_read_alike() -> None:
    """What the last test here asks the installed lspci, from answers that were stored: for machines without it."""
    theirs = parse_lspci((RANDOM / "random.lspci").read_text())
    functions = read_functions(RANDOM / "random.hex")
    assert len(theirs) == len(functions) == 20
    for function, their in zip(functions, theirs, strict=True):
        assert list(disagreements(their, shown(function))) == []


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


# Random registers: every label and unit is compared, not only those that a dump happens to show.


def header(capabilities_pointer: int, vendor: int = 0x1B36, device: int = 0x0010) -> bytes:
    return pci_header_type0.encode(
        vendor_id=vendor,
        device_id=device,
        status={"capabilities_list": 1},
        base_address=[0xFE000000, 0, 0, 0, 0, 0],
        capabilities_pointer=capabilities_pointer,
    )


CONVENTIONAL = [
    (CapabilityId.PCI_EXPRESS, pci_express),
    (CapabilityId.POWER_MANAGEMENT, capabilities.pci_power_management),
    (CapabilityId.MSI, capabilities.pci_msi[1, 1]),
    (CapabilityId.MSI_X, capabilities.pci_msix),
    (CapabilityId.SUBSYSTEM, capabilities.pci_subsystem),
    (CapabilityId.ADVANCED_FEATURES, capabilities.pci_advanced_features),
    (CapabilityId.SATA, capabilities.pci_sata),
]


def as_it_is(body: bytearray, data: st.DataObject) -> None:
    pass


def legal_express(body: bytearray, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(PortType)))
    body[2] = kind << 4 | 2
    speeds = data.draw(st.integers(1, 5))  # PCI Express 6 came after the oldest lspci that is still in use
    body[pci_express.offset("link_capabilities_2")] = ((1 << speeds) - 1) << 1


def legal_sata(body: bytearray, data: st.DataObject) -> None:
    at = capabilities.pci_sata.offset("satacr1")
    body[at] = body[at] & 0xF0 | data.draw(st.sampled_from([4, 5, 6, 7, 8, 9, 15]))


def legal_sriov(body: bytearray, data: st.DataObject) -> None:
    at = pci_sriov.offset("vf_base_address")
    for place in range(at, at + 24, 4):
        body[place] &= 0xF8  # memory below 4 GB; which of the last BARs may be 64 bits wide is another test's matter


def legal_ltr(body: bytearray, data: st.DataObject) -> None:
    for place in (5, 7):
        body[place] = data.draw(st.integers(0, 5)) << 2 | body[place] & 3


# Where lspci has a word only for values that the specifications define.
MAKE_LEGAL: dict[str, Callable[[bytearray, st.DataObject], None]] = {
    "pci_express": legal_express,
    "pci_sata": legal_sata,
    "pci_sriov": legal_sriov,
    "pci_ltr": legal_ltr,
}


def random_body(record: Record, data: st.DataObject) -> bytearray:
    body = bytearray(data.draw(st.binary(min_size=record.size, max_size=record.size)))
    body += bytes(-len(body) % 4)
    MAKE_LEGAL.get(record.name, as_it_is)(body, data)
    return body


def random_space(data: st.DataObject) -> bytes:
    """A configuration space with one of each capability, their registers random."""
    config = bytearray(512)
    config[:64] = header(0x40)
    offset = 0x40
    for number, record in CONVENTIONAL:
        body = random_body(record, data)
        body[:2] = number, 0 if record is CONVENTIONAL[-1][1] else offset + len(body)
        config[offset : offset + len(body)] = body
        offset += len(body)
    assert offset <= 256
    offset = 256
    numbers = [number for number in EXTENDED_RECORDS if number != ExtendedId.VENDOR_SPECIFIC]
    for extended in numbers:
        body = random_body(EXTENDED_RECORDS[extended], data)
        link = 0 if extended == numbers[-1] else offset + len(body)
        word = {"cap_id": extended, "cap_version": data.draw(st.integers(1, 15)), "cap_next": link}
        body[:4] = pci_extended_capability.encode(header=word)
        config[offset : offset + len(body)] = body
        offset += len(body)
    return bytes(config)


def random_virtio(data: st.DataObject) -> bytes:
    """A virtio function with capabilities of the types that lspci can tell apart."""
    config = bytearray(256)
    config[:64] = header(0x40, VIRTIO_PCI_VENDOR_ID, data.draw(st.integers(0x1000, 0x107F)))
    kinds = data.draw(st.lists(st.sampled_from(sorted(CfgType)[:5]), min_size=1, max_size=8))
    offset = 0x40
    for left, kind in reversed(list(enumerate(kinds))):
        record = VIRTIO_CAPS[kind]
        body = bytearray(data.draw(st.binary(min_size=record.size, max_size=record.size)))
        body[:4] = CapabilityId.VENDOR_SPECIFIC, offset + len(body) if left else 0, len(body), kind
        config[offset : offset + len(body)] = body
        offset += len(body)
    return bytes(config)


@pytest.mark.peer
@pytest.mark.parametrize("make", [random_space, random_virtio])
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    # A failure names its line by itself; shrinking would run lspci for minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(data=st.data())
def test_random_registers_read_alike(make: Callable[..., bytes], data: st.DataObject, tmp_path: Path) -> None:
    config = make(data)
    file = tmp_path / "dump"
    file.write_text(hex_dump(config))
    (theirs,) = parse_lspci(run_lspci("-vvv", "-F", str(file)))
    assert list(disagreements(theirs, shown(walk(config)))) == []
