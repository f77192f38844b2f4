"""The capability walker: finds what is there, survives and reports what is wrong, always ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from virtio_py.cli.inspect_text import function_lines
from virtio_py.errors import MessageError
from virtio_py.pci.capabilities import pci_capability, pci_subsystem
from virtio_py.pci.decode import decode_bars
from virtio_py.pci.dump import looks_like_text, parse_dump
from virtio_py.pci.express import pci_express
from virtio_py.pci.extended import pci_extended_capability, pci_vsec
from virtio_py.pci.header import pci_header_type0, pci_header_type1
from virtio_py.pci.virtio_caps import VIRTIO_CAPS, CfgType, virtio_pci_cap
from virtio_py.pci.walk import Function, walk

DATA = Path(__file__).parent / "data" / "pci"


def space(size: int = 256, first: int = 0x40, **header: Any) -> bytearray:
    values: dict[str, Any] = {"vendor_id": 0x1B36, "status": {"capabilities_list": 1}, **header}
    return bytearray(pci_header_type0.encode(capabilities_pointer=first, **values).ljust(size, b"\0"))


def put(config: bytearray, offset: int, data: bytes) -> bytearray:
    config[offset : offset + len(data)] = data
    return config


def messages(function: Function) -> str:
    return " | ".join(f"{p.offset:#x}: {p.message}" for p in function.problems)


def offsets(function: Function, *, extended: bool = False) -> list[int]:
    return [c.offset for c in function.capabilities if c.extended == extended]


# Headers that lead the walker into its chains, so that random bytes are capabilities and not only noise.
likely_headers = st.builds(
    lambda first, vendor, device, kind: bytes(
        space(64, first, vendor_id=vendor, device_id=device, header_type={"layout": kind})
    ),
    st.integers(0, 255),
    st.sampled_from([0x1AF4, 0x1B36, 0xFFFF]),
    st.integers(0x0FFF, 0x1080),
    st.sampled_from([0, 0, 0, 1, 2, 3, 127]),
)
tails = st.one_of(
    st.binary(max_size=4032),
    # Small numbers make ids that are known and pointers that lead somewhere.
    st.lists(st.sampled_from([*range(32), 0x40, 0x44, 0x50, 0x80, 0xF8, 0xFC, 0xFF]), max_size=400).map(bytes),
)


@settings(max_examples=500)
@given(config=st.one_of(st.binary(min_size=64, max_size=4096), st.builds(bytes.__add__, likely_headers, tails)))
@example(config=bytes([0xFF]) * 4096)
@example(config=bytes(4096))
def test_arbitrary_bytes_never_fail(config: bytes) -> None:
    function = walk(config)
    conventional, extended = offsets(function), offsets(function, extended=True)
    assert len(set(conventional)) == len(conventional) <= 48
    assert len(set(extended)) == len(extended) <= 960
    assert all(64 <= at < 256 for at in conventional)
    assert all(256 <= at < len(config) for at in extended)
    assert all(0 <= p.offset < len(config) for p in function.problems)
    assert json.loads(json.dumps(function.as_dict()))["capabilities"] == function.as_dict()["capabilities"]
    assert all("\n" not in line for line in function_lines(function))


@given(config=st.one_of(st.binary(max_size=63), st.binary(min_size=4097, max_size=5000)))
def test_other_lengths_are_refused(config: bytes) -> None:
    with pytest.raises(MessageError, match="64 to 4096"):
        walk(config)


@given(data=st.data())
def test_every_prefix_of_a_real_space_is_the_whole_one_cut_off(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(DATA.glob("*/*.bin"))))
    whole = walk(path.read_bytes())
    size = data.draw(st.integers(64, whole.config_size))
    cut = walk(path.read_bytes()[:size])
    assert offsets(cut) == [at for at in offsets(whole) if at in offsets(cut)]
    for found in cut.capabilities:
        (full,) = [c for c in whole.capabilities if c.offset == found.offset]
        assert found.id == full.id
        assert full.name.startswith(found.name)
        if found.record is not full.record:
            # Cut before the byte that says which of virtio's capabilities it is: vendor specific is all one can say.
            assert size <= found.offset + virtio_pci_cap.offset("cfg_type")
            continue
        assert all(full.fields[name] == value for name, value in found.fields.items())
        assert full.raw.startswith(found.raw)


def test_real_spaces_have_no_problems_but_one() -> None:
    found = {path.parent.name: walk(path.read_bytes()).problems for path in DATA.glob("*/0000:01:00.0.bin")}
    # QEMU 11.1's SR-IOV capability of a virtio device points at 0x140, where nothing is; lspci stops there in silence.
    assert [p.offset for p in found.pop("qemu111-virtio-net-sriov")] == [0x140]
    assert not any(found.values())
    others = [p for p in DATA.glob("*/*.bin") if "qemu111-virtio-net-sriov/0000:01" not in str(p)]
    assert [walk(p.read_bytes()).problems for p in others] == [()] * len(others)


def test_a_list_that_the_status_does_not_announce_is_not_followed() -> None:
    config = put(space(status={}), 0x40, pci_capability.encode(cap_id=1))
    assert walk(bytes(config)).capabilities == ()


@pytest.mark.parametrize("length", [1, 2, 3, 48])
def test_a_loop_ends_after_one_round(length: int) -> None:
    config = space()
    places = range(0x40, 0x40 + 4 * length, 4)
    for place in places:
        following = place + 4 if place + 4 in places else 0x40
        put(config, place, pci_capability.encode(cap_id=0xA0, cap_next=following))
    function = walk(bytes(config))
    assert offsets(function) == list(places)
    assert "closes a loop" in messages(function)


def test_a_loop_of_extended_capabilities_ends() -> None:
    config = space(4096, first=0)
    for place, following in ((0x100, 0x200), (0x200, 0x100)):
        put(config, place, pci_extended_capability.encode(header={"cap_id": 0x7FFF, "cap_next": following}))
    function = walk(bytes(config))
    assert offsets(function, extended=True) == [0x100, 0x200]
    assert "the pointer 0x100 closes a loop" in messages(function)


@pytest.mark.parametrize("pointer", [0x04, 0x30, 0x3C])
def test_a_pointer_into_the_header_is_reported_and_not_followed(pointer: int) -> None:
    function = walk(bytes(space(first=pointer)))
    assert function.capabilities == ()
    assert [p.offset for p in function.problems] == [0x34]
    assert f"{pointer:#x} leads in front of 0x40" in messages(function)


@pytest.mark.parametrize("pointer", [0x04, 0x40, 0xFC])
def test_an_extended_pointer_into_the_first_256_bytes_is_reported(pointer: int) -> None:
    header = pci_extended_capability.encode(header={"cap_id": 0x7FFF, "cap_next": pointer})
    function = walk(bytes(put(space(512, first=0), 0x100, header)))
    assert offsets(function, extended=True) == [0x100]
    assert f"{pointer:#x} leads in front of 0x100" in messages(function)


@pytest.mark.parametrize("low", [1, 2, 3])
def test_a_misaligned_pointer_is_reported_and_followed_without_its_low_bits(low: int) -> None:
    config = put(space(first=0x50 | low), 0x50, pci_capability.encode(cap_id=0xA0))
    function = walk(bytes(config))
    assert offsets(function) == [0x50]
    assert "not a multiple of 4" in messages(function)


@pytest.mark.parametrize(("size", "pointer"), [(64, 0x40), (100, 0x64), (128, 0xFC)])
def test_a_chain_that_leaves_the_bytes_at_hand_is_cut_off(size: int, pointer: int) -> None:
    function = walk(bytes(space(size, first=pointer)))
    assert function.capabilities == ()
    assert f"out of the {size} bytes" in messages(function)


def test_a_capability_that_is_cut_off_shows_what_is_there() -> None:
    config = put(space(0x46), 0x40, pci_subsystem.encode(cap_id=0x0D, subsystem_vendor_id=0x1AF4)[:6])
    (found,) = (function := walk(bytes(config))).capabilities
    assert found.fields == {"cap_id": 0x0D, "cap_next": 0, "subsystem_vendor_id": 0x1AF4}
    assert "takes 8 bytes, only 6" in messages(function)


def test_unknown_ids_are_shown_raw_up_to_the_next() -> None:
    config = put(space(4096), 0x40, pci_capability.encode(cap_id=0xA0, cap_next=0x48) + b"\1\2\3\4\5\6")
    put(config, 0x48, pci_capability.encode(cap_id=0xA1))
    put(config, 0x100, pci_extended_capability.encode(header={"cap_id": 0x7FFF, "cap_version": 3}))
    first, second, extended = walk(bytes(config)).capabilities
    assert (first.id, first.name, first.fields) == (0xA0, "Capability ID 0xa0", {"raw": "a048010203040506"})
    assert (second.offset, len(second.raw)) == (0x48, 0x100 - 0x48)
    assert (extended.id, extended.version, extended.as_dict()["version"]) == (0x7FFF, 3, 3)


def test_an_extended_chain_wants_an_express_capability() -> None:
    config = put(space(4096, first=0), 0x100, pci_extended_capability.encode(header={"cap_id": 3}))
    assert "neither PCI Express nor PCI-X" in messages(walk(bytes(config)))
    config[0x34] = 0x40
    put(config, 0x40, pci_express.encode(cap_id=0x10, pcie_capabilities={"version": 2}))
    assert walk(bytes(config)).problems == ()


@pytest.mark.parametrize(("port_type", "last"), [(9, "device_status"), (0, "link_status"), (4, "root_status")])
def test_version_1_of_express_ends_with_what_the_port_type_has(port_type: int, last: str) -> None:
    body = pci_express.encode(cap_id=0x10, pcie_capabilities={"version": 1, "port_type": port_type})
    (found,) = walk(bytes(put(space(), 0x40, body))).capabilities
    assert list(found.fields)[-1] == last


def test_a_bridge_has_its_own_header() -> None:
    raw = pci_header_type1.encode(header_type={"layout": 1}, secondary_bus_number=7, base_address=[0xFEBF0004, 1])
    function = walk(raw.ljust(256, b"\0"))
    assert (function.header_type, function.header["secondary_bus_number"]) == (1, 7)
    assert [(b.address, b.width) for b in function.bars] == [(0x1FEBF0000, 64)]


def test_an_unknown_header_type_is_reported_and_its_common_part_shown() -> None:
    function = walk(bytes(space(header_type={"layout": 5})))
    assert function.capabilities == ()
    assert "header type 0x5 is unknown" in messages(function)
    assert function.vendor_id == 0x1B36


def test_a_cardbus_bridge_has_its_list_elsewhere() -> None:
    config = space(header_type={"layout": 2})
    config[0x14] = 0x80
    put(config, 0x80, pci_capability.encode(cap_id=0xA0))
    assert offsets(walk(bytes(config))) == [0x80]


@given(words=st.lists(st.integers(0, 0xFFFFFFFF), max_size=6))
def test_bars_never_overlap(words: list[int]) -> None:
    bars = decode_bars(words)
    used = [i for bar in bars for i in range(bar.index, bar.index + bar.width // 32)]
    assert len(set(used)) == len(used)
    assert all(i < len(words) for i in used)
    assert all(bar.address < 1 << bar.width for bar in bars)


def test_bars_of_every_kind() -> None:
    bars = decode_bars([0xC045, 0xFE00000C, 0x12, 0xFE100008, 0, 0xFE200004])
    shown = [(b.index, b.address, b.width, b.io, b.prefetchable) for b in bars]
    assert shown == [
        (0, 0xC044, 32, True, False),  # bit 2 of an I/O address is no width
        (1, 0x12_FE000000, 64, False, True),
        (3, 0xFE100000, 32, False, True),
        (5, 0xFE200000, 32, False, False),  # no word is left for its upper half
    ]


def virtio(*kinds: CfgType, device: int = 0x1041, **header: Any) -> Function:
    config = space(first=0x40 if kinds else 0, vendor_id=0x1AF4, device_id=device, **header)
    offset = 0x40
    for number, kind in enumerate(kinds, 1):
        record = VIRTIO_CAPS[kind]
        cap = {"cap_vndr": 9, "cap_len": record.size, "cfg_type": kind, "length": 16}
        cap["cap_next"] = offset + record.size if number < len(kinds) else 0
        put(config, offset, record.encode(cap=cap) if "cap" in record.fields else record.encode(**cap))
        offset += record.size
    return walk(bytes(config))


ALL = (CfgType.COMMON_CFG, CfgType.NOTIFY_CFG, CfgType.ISR_CFG, CfgType.PCI_CFG)


def test_a_complete_virtio_function_breaks_no_clause() -> None:
    function = virtio(*ALL)
    assert function.problems == ()
    assert [c.fields["cfg_type"] for c in function.capabilities] == [1, 2, 3, 5]
    assert all(c.fields["length"] == 16 for c in function.capabilities)


@pytest.mark.parametrize(
    ("missing", "clause"),
    [
        pytest.param(kind, clause, marks=pytest.mark.clause(clause))
        for kind, clause in zip(
            ALL,
            (
                "pci.device.common-configuration-structure-layout.2",
                "pci.device.notification-capability.1",
                "pci.device.isr-status-capability.1",
                "pci.device.pci-configuration-access-capability.1",
            ),
            strict=True,
        )
    ],
)
def test_a_missing_structure_is_named_with_its_clause(missing: CfgType, clause: str) -> None:
    function = virtio(*(kind for kind in ALL if kind is not missing))
    assert [p.clause for p in function.problems] == [clause]


@pytest.mark.clause("pci.device.shared-memory-capability.2")
def test_shared_memory_ids_are_unique() -> None:
    function = virtio(*ALL, CfgType.SHARED_MEMORY_CFG, CfgType.SHARED_MEMORY_CFG)
    assert {p.clause for p in function.problems} == {"pci.device.shared-memory-capability.2"}
    assert virtio(*ALL, CfgType.SHARED_MEMORY_CFG).problems == ()


def test_a_legacy_device_needs_no_virtio_capability() -> None:
    assert virtio(device=0x1000, subsystem_id=1).problems == ()


@pytest.mark.clause("pci-legacy.device.pci-device-discovery.1")
@pytest.mark.clause("pci-legacy.device.pci-device-discovery.2")
def test_a_transitional_device_has_revision_0_and_its_type_as_subsystem() -> None:
    function = virtio(*ALL, device=0x1000, subsystem_id=2, revision_id=1)
    clause = "pci-legacy.device.pci-device-discovery"
    assert [p.clause for p in function.problems] == [f"{clause}.1", f"{clause}.2"]


@pytest.mark.clause("pci.device.virtio-structure-pci-capabilities.1")
def test_nothing_is_read_behind_cap_len() -> None:
    config = space(vendor_id=0x1AF4, device_id=0x1041)
    record = VIRTIO_CAPS[CfgType.NOTIFY_CFG]
    cap = {"cap_vndr": 9, "cap_len": 16, "cfg_type": CfgType.NOTIFY_CFG, "length": 16}
    function = walk(bytes(put(config, 0x40, record.encode(cap=cap, notify_off_multiplier=4))))
    (found,) = function.capabilities
    assert found.fields["length"] == 16
    assert "notify_off_multiplier" not in found.fields
    assert "pci.device.virtio-structure-pci-capabilities.1" in {p.clause for p in function.problems}


def test_a_vendors_own_data_is_shown() -> None:
    config = put(space(4096), 0x40, bytes([9, 0x48, 6, 1, 2, 3, 0xEE, 0xEE]))
    put(config, 0x48, bytes([9, 0, 0, 0xEE]))
    put(config, 0x100, pci_vsec.encode(header={"cap_id": 0x0B}, vsec_header={"vsec_length": 12}) + b"abcd\xee")
    first, second, extended = (function := walk(bytes(config))).capabilities
    assert first.fields == {"cap_id": 9, "cap_next": 0x48, "cap_len": 6, "data": "010203"}
    assert second.fields == {"cap_id": 9, "cap_next": 0, "cap_len": 0}
    assert extended.fields["data"] == b"abcd".hex()
    assert [p.offset for p in function.problems] == [0x48, 0x100]


def test_a_virtual_function_is_virtio_when_one_says_so() -> None:
    config = put(space(), 0x40, VIRTIO_CAPS[CfgType.ISR_CFG].encode(cap_vndr=9, cap_len=16, cfg_type=3, bar=2))
    assert "cap_len" in walk(bytes(config)).capabilities[0].fields
    assert "bar" not in walk(bytes(config)).capabilities[0].fields
    assert walk(bytes(config), virtio=True).capabilities[0].fields["bar"] == 2


@given(spaces=st.lists(st.binary(min_size=64, max_size=4096), min_size=1, max_size=3))
def test_a_dump_is_read_back(spaces: list[bytes]) -> None:
    text = ""
    for number, config in enumerate(spaces):
        text += f"0000:{number:02x}:1f.7 a title: with 00: in it\n\tDetail: 10: 00\n"
        text += "".join(f"{at:02x}: {config[at : at + 16].hex(' ')}\n" for at in range(0, len(config), 16)) + "\n"
    assert looks_like_text(text.encode())
    found = parse_dump(text)
    assert [bytes(f.config) for f in found] == spaces
    assert [f.address for f in found] == [f"0000:{n:02x}:1f.7" for n in range(len(spaces))]


@given(text=st.text(alphabet="0123456789abcdef:. \n\tx", max_size=400))
def test_arbitrary_text_is_a_dump_or_one_error(text: str) -> None:
    try:
        found = parse_dump(text)
    except MessageError:
        return
    assert found
    assert all(f.config for f in found)


@given(config=st.binary(min_size=64, max_size=4096).filter(lambda data: 0 in data))
def test_raw_bytes_are_not_taken_for_text(config: bytes) -> None:
    assert not looks_like_text(config)
