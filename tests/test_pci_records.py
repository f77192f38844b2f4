"""Every PCI record is what its construct declaration says, and encodes wrong values until asked to validate."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.errors import LayoutError, MessageError
from virtio_py.pci import (
    capabilities,
    express,
    extended,
    extended_aer,
    extended_sriov,
    header,
    virtio_caps,
)
from virtio_py.pci.virtio_caps import (
    VIRTIO_CAPS,
    CfgType,
    virtio_pci_cap,
    virtio_pci_cap64,
    virtio_pci_cfg_cap,
    virtio_pci_common_cap,
    virtio_pci_common_cfg,
    virtio_pci_device_cap,
    virtio_pci_notify_cap,
    virtio_pci_notify_cap_notification_data,
    virtio_pci_vndr_data,
)
from virtio_py.records import Record


def records(*modules: ModuleType) -> Iterator[Record]:
    for module in modules:
        for value in vars(module).values():
            yield from value.values() if isinstance(value, dict) else [value]


FOUND = records(capabilities, express, extended, extended_aer, extended_sriov, header, virtio_caps)
RECORDS = list({id(r): r for r in FOUND if isinstance(r, Record)}.values())
every_record = pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)


def test_the_records_are_all_found() -> None:
    names = {r.name for r in RECORDS}
    assert {"pci_header_type0", "pci_msix_table_entry", "pci_sriov", "pci_aer", "virtio_pci_common_cfg"} <= names
    assert len(RECORDS) >= 30


@every_record
@given(data=st.data())
def test_decoding_agrees_with_construct_and_encodes_back(record: Record, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=record.size, max_size=record.size))
    values = record.decode(raw)
    assert record.encode_values(values) == raw
    oracle = record.layout.parse(raw)
    assert record.layout.sizeof() == record.size
    assert record.as_dict(values) == record.as_dict({name: plain(oracle[name]) for name in record.fields})
    assert record.layout.build(oracle) == raw


def plain(value: Any) -> Any:
    """What construct returned, without its containers' bookkeeping."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if not name.startswith("_")}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


@every_record
@given(data=st.data())
def test_what_json_carries_encodes_back(record: Record, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=record.size, max_size=record.size))
    assert record.encode_values(record.as_dict(record.decode(raw))) == raw


@pytest.mark.parametrize(
    ("record", "field", "offset"),
    [
        (header.pci_header_type0, "class_code", 9),
        (header.pci_header_type0, "capabilities_pointer", 0x34),
        (header.pci_header_type0, "subsystem_vendor_id", 0x2C),
        (header.pci_header_type1, "bridge_control", 0x3E),
        (header.pci_header_type1, "prefetchable_base_upper", 0x28),
        (express.pci_express, "link_status", 0x12),
        (express.pci_express, "root_status", 0x20),
        (express.pci_express, "slot_status_2", 0x3A),
        (extended_aer.pci_aer, "root_error_command", 0x2C),
        (extended_aer.pci_aer, "tlp_prefix_log", 0x38),
        (extended_sriov.pci_sriov, "vf_device_id", 0x1A),
        (extended_sriov.pci_sriov, "vf_migration_state_array", 0x3C),
        (capabilities.pci_msi[1, 1], "pending_bits", 0x14),
        (capabilities.pci_msi[0, 1], "pending_bits", 0x10),
        (virtio_pci_common_cfg, "queue_desc", 0x20),
        (virtio_pci_common_cfg, "queue_reset", 0x3A),
        (virtio_pci_common_cfg, "admin_queue_num", 0x3E),
    ],
)
def test_offsets_that_the_specifications_tabulate(record: Record, field: str, offset: int) -> None:
    assert record.offset(field) == offset


def test_sizes() -> None:
    assert (header.pci_header_type0.size, header.pci_header_type1.size) == (64, 64)
    assert (express.pci_express.size, express.pci_express_v1_root.size, express.pci_express_v1.size) == (60, 36, 12)
    assert [r.size for r in capabilities.pci_msi.values()] == [10, 14, 20, 24]
    assert (virtio_pci_common_cfg.size, virtio_pci_cap64.size) == (64, 24)


def test_a_bar_offset_is_in_bytes() -> None:
    raw = capabilities.pci_msix.encode(table={"bir": 4, "offset": 0x2000}, pba={"bir": 1, "offset": 0x800})
    assert raw[4:] == bytes.fromhex("04200000 01080000")
    with pytest.raises(LayoutError, match="not a multiple of 8"):
        capabilities.pci_msix.encode(table={"bir": 4, "offset": 0x2004})
    with pytest.raises(LayoutError):
        capabilities.pci_msix.encode(table={"bir": 8})


def good(kind: CfgType, **changed: Any) -> Any:
    """The values of a faultless capability, of which some are then changed."""
    record = VIRTIO_CAPS[kind]
    cap = {"cap_vndr": 9, "cap_len": record.size, "cfg_type": int(kind), "bar": 4, "offset": 0x1000, "length": 0x1000}
    if kind is CfgType.VENDOR_CFG:
        cap = {"cap_vndr": 9, "cap_len": 8, "cfg_type": int(kind), "vendor_id": 0x1B36, **changed}
        return record.decode(record.encode(**cap))
    own = {name: changed.pop(name) for name in list(changed) if name in record.fields and "cap" in record.fields}
    values: dict[str, Any] = {"cap": {**cap, **changed}, **own} if "cap" in record.fields else {**cap, **changed}
    return record.decode(record.encode(**values))


@pytest.mark.parametrize("kind", list(CfgType))
def test_faultless_capabilities_break_no_rule(kind: CfgType) -> None:
    assert VIRTIO_CAPS[kind].violations(good(kind)) == []


NOTIFY = "pci.device.notification-capability"
LAYOUT = "pci.device.common-configuration-structure-layout"
COMMON = "virtio-structure-pci-capabilities"


@pytest.mark.parametrize(
    ("record", "kind", "changed", "clause"),
    [
        pytest.param(virtio_pci_cap, CfgType.ISR_CFG, changed, clause, marks=pytest.mark.clause(clause))
        for changed, clause in [
            ({"cap_len": 15}, f"pci.device.{COMMON}.1"),
            ({"cfg_type": 6}, f"pci.driver.{COMMON}.1"),
            ({"bar": 6}, f"pci.driver.{COMMON}.4"),
        ]
    ]
    + [
        pytest.param(record, kind, changed, clause, marks=pytest.mark.clause(clause))
        for record, kind, changed, clause in [
            (virtio_pci_common_cap, CfgType.COMMON_CFG, {"offset": 2}, f"{LAYOUT}.1"),
            (virtio_pci_device_cap, CfgType.DEVICE_CFG, {"offset": 6}, "pci.device.device-specific-configuration.1"),
            (virtio_pci_notify_cap, CfgType.NOTIFY_CFG, {"cap_len": 16}, f"pci.device.{COMMON}.1"),
            (virtio_pci_notify_cap, CfgType.NOTIFY_CFG, {"offset": 1}, f"{NOTIFY}.2"),
            (virtio_pci_notify_cap, CfgType.NOTIFY_CFG, {"notify_off_multiplier": 3}, f"{NOTIFY}.3"),
            (virtio_pci_notify_cap, CfgType.NOTIFY_CFG, {"notify_off_multiplier": 1}, f"{NOTIFY}.3"),
            (virtio_pci_notify_cap, CfgType.NOTIFY_CFG, {"length": 1}, f"{NOTIFY}.4"),
            (
                virtio_pci_notify_cap_notification_data,
                CfgType.NOTIFY_CFG,
                {"notify_off_multiplier": 2},
                f"{NOTIFY}.7",
            ),
            (virtio_pci_notify_cap_notification_data, CfgType.NOTIFY_CFG, {"offset": 2}, f"{NOTIFY}.8"),
            (virtio_pci_notify_cap_notification_data, CfgType.NOTIFY_CFG, {"length": 2}, f"{NOTIFY}.9"),
            (
                virtio_pci_cap64,
                CfgType.SHARED_MEMORY_CFG,
                {"offset_hi": 0xFFFFFFFF, "length_hi": 1},
                "pci.device.shared-memory-capability.1",
            ),
            (
                virtio_pci_cfg_cap,
                CfgType.PCI_CFG,
                {"offset": 2, "length": 4},
                "pci.driver.pci-configuration-access-capability.1",
            ),
            (
                virtio_pci_vndr_data,
                CfgType.VENDOR_CFG,
                {"vendor_id": 0x1AF4},
                "pci.device.vendor-data-capability.3",
            ),
            (virtio_pci_vndr_data, CfgType.VENDOR_CFG, {"cap_len": 10}, "pci.device.vendor-data-capability.4"),
        ]
    ],
)
def test_a_wrong_value_is_encoded_and_then_named_with_its_clause(
    record: Record, kind: CfgType, changed: dict[str, int], clause: str
) -> None:
    values = good(kind, **changed)
    assert [v.clause for v in record.violations(values)] == [clause]
    with pytest.raises(MessageError) as caught:
        record.validate(values, MessageError)
    assert caught.value.clause == clause
    assert caught.value.where.startswith(f"{record.name}.")


@pytest.mark.parametrize("multiplier", [0, 2, 4, 0x1000, 1 << 31])
@pytest.mark.clause(f"{NOTIFY}.3")
def test_even_powers_of_two_are_allowed_multipliers(multiplier: int) -> None:
    assert virtio_pci_notify_cap.violations(good(CfgType.NOTIFY_CFG, notify_off_multiplier=multiplier)) == []


@given(index=st.integers(1, 0xFFFF), over=st.booleans())
@pytest.mark.clause(f"{LAYOUT}.17")
def test_the_last_admin_queue_may_be_the_last_of_16_bits(index: int, over: bool) -> None:
    count = min(0x10000 - index + over, 0xFFFF)
    raw = virtio_pci_common_cfg.encode(admin_queue_index=index, admin_queue_num=count)
    assert len(virtio_pci_common_cfg.violations(virtio_pci_common_cfg.decode(raw))) == (index + count > 0x10000)


@given(index=st.integers(0, 0xFFFF), count=st.integers(0, 0xFFFF), queues=st.integers(0, 0xFFFF))
@pytest.mark.clause(f"{LAYOUT}.16")
@pytest.mark.clause(f"{LAYOUT}.17")
def test_admin_queues_lie_behind_the_others_and_within_16_bits(index: int, count: int, queues: int) -> None:
    raw = virtio_pci_common_cfg.encode(admin_queue_index=index, admin_queue_num=count, num_queues=queues)
    broken = {v.clause for v in virtio_pci_common_cfg.violations(virtio_pci_common_cfg.decode(raw))}
    last = index + count - 1
    assert (f"{LAYOUT}.17" in broken) == (last > 0xFFFF)
    assert (f"{LAYOUT}.16" in broken) == (count > 0 and index in range(queues))


@pytest.mark.clause(f"pci.driver.{COMMON}.3")
@pytest.mark.parametrize("kind", [k for k in CfgType if k is not CfgType.VENDOR_CFG])
def test_a_longer_capability_than_specified_is_accepted(kind: CfgType) -> None:
    assert VIRTIO_CAPS[kind].violations(good(kind, cap_len=64)) == []
