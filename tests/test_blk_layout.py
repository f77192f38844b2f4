"""The block device's structures, held against the C declarations of 5.2 through an independent compiler's rules."""

from __future__ import annotations

import ctypes
from typing import Any

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.devices.blk import layout
from virtio_py.devices.blk.layout import CONFIG_FIELDS, BlkFeature, config_length, virtio_blk_config
from virtio_py.records import Record

RECORDS = [value for value in vars(layout).values() if isinstance(value, Record)]

# The C declaration of 5.2.4 once more, as (name, bits or bytes) in its own order: this is what Linux's header says.
C_CONFIG: list[tuple[str, Any]] = [
    ("capacity", ctypes.c_uint64),
    ("size_max", ctypes.c_uint32),
    ("seg_max", ctypes.c_uint32),
    ("geometry", ctypes.c_uint8 * 4),
    ("blk_size", ctypes.c_uint32),
    ("topology", ctypes.c_uint8 * 8),
    ("writeback", ctypes.c_uint8),
    ("unused0", ctypes.c_uint8),
    ("num_queues", ctypes.c_uint16),
    ("max_discard_sectors", ctypes.c_uint32),
    ("max_discard_seg", ctypes.c_uint32),
    ("discard_sector_alignment", ctypes.c_uint32),
    ("max_write_zeroes_sectors", ctypes.c_uint32),
    ("max_write_zeroes_seg", ctypes.c_uint32),
    ("write_zeroes_may_unmap", ctypes.c_uint8),
    ("unused1", ctypes.c_uint8 * 3),
    ("max_secure_erase_sectors", ctypes.c_uint32),
    ("max_secure_erase_seg", ctypes.c_uint32),
    ("secure_erase_sector_alignment", ctypes.c_uint32),
    ("zoned", ctypes.c_uint8 * 24),
]


class CConfig(ctypes.LittleEndianStructure):
    _fields_ = C_CONFIG


def test_config_lies_as_a_c_compiler_lays_it() -> None:
    assert virtio_blk_config.size == ctypes.sizeof(CConfig) == 96
    for name, _ in C_CONFIG:
        assert virtio_blk_config.offset(name) == getattr(CConfig, name).offset, name


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        ("geometry.heads", 18),
        ("topology.opt_io_size", 28),
        ("writeback", 32),
        ("num_queues", 34),
        ("max_secure_erase_sectors", 60),
        ("zoned.model", 92),
    ],
)
def test_config_offsets_that_drivers_hard_code(path: str, offset: int) -> None:
    assert virtio_blk_config.offset(path) == offset


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("virtio_blk_req", 16),
        ("virtio_blk_req_za", 9),
        ("virtio_blk_discard_write_zeroes", 16),
        ("virtio_blk_lifetime", 6),
        ("virtio_blk_geometry", 4),
        ("virtio_blk_topology", 8),
        ("virtio_blk_zoned_characteristics", 24),
        ("virtio_blk_zone_report", 64),
        ("virtio_blk_zone_descriptor", 64),
    ],
)
def test_sizes(name: str, size: int) -> None:
    assert getattr(layout, name).size == size


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.name)
@given(data=st.data())
def test_record_codec_agrees_with_construct(record: Record, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=record.size, max_size=record.size))
    decoded = record.decode(raw)
    assert record.encode_values(decoded) == raw
    # construct's own parser is the oracle.
    assert record.as_dict(decoded) == _plain(record.layout.parse(raw))


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {k: _plain(v) for k, v in value._asdict().items()}
    if isinstance(value, construct.Container):
        return {k: _plain(v) for k, v in value.items() if k != "_io"}
    if isinstance(value, bytes):
        return value.hex()
    return [_plain(v) for v in value] if isinstance(value, list) else value


def test_unmap_is_bit_0_of_flags() -> None:
    segment = layout.virtio_blk_discard_write_zeroes
    assert segment.encode(sector=1, num_sectors=2, flags={"unmap": 1}) == bytes.fromhex(
        "0100000000000000 02000000 01000000"
    )
    assert [v.field for v in segment.violations(segment.decode(segment.encode(flags=2)))] == ["flags"]


@pytest.mark.clause("blk.device.device-op.19")
@pytest.mark.parametrize("field", list(layout.virtio_blk_lifetime.fields))
def test_reserved_lifetime_values_are_violations(field: str) -> None:
    record = layout.virtio_blk_lifetime
    limit = 3 if field == "pre_eol_info" else 11
    assert not record.violations(record.decode(record.encode(**{field: limit})))
    found = record.violations(record.decode(record.encode(**{field: limit + 1})))
    assert [(v.clause, v.field) for v in found] == [("blk.device.device-op.19", field)]


@given(features=st.integers(0, (1 << 18) - 1))
def test_config_length_covers_what_the_features_bring(features: int) -> None:
    length = config_length(features)
    assert 8 <= length <= virtio_blk_config.size
    for feature, names in CONFIG_FIELDS.items():
        if features >> feature & 1:
            assert all(virtio_blk_config.end(name) <= length for name in names)
    assert config_length(0) == 8
    assert config_length(1 << BlkFeature.ZONED) == 96
