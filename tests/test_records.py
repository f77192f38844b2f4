"""Every record of the package against construct, which declared it: the codec, the offsets and the dtype."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import construct
import numpy
import pytest
from construct import Array, Byte, Bytes, Int16ub, Int16ul, Int24ul, Int32ul, Int64ul, Struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import virtio_py
from virtio_py.errors import LayoutError, PeerError, RingError, UsageError
from virtio_py.records import Field, Record, RecordFamily, Register, Rule
from virtio_py.rings.layouts import pvirtq_desc, pvirtq_event_suppress, virtq_avail, virtq_desc, virtq_used

COUNTS = (1, 4, 7)
# Everything a field can be made of at once, so that the derivation is held to construct even where no layout needs it.
EVERYTHING = Record(
    "everything",
    Struct(
        "byte" / Byte,
        "three" / Int24ul,
        "big" / Int16ub,
        "mac" / Bytes(6),
        "bits" / Register(Int16ul, low=3, middle=12, top=1),
        "inner" / Struct("a" / Int32ul, "more" / Struct("b" / Int64ul, "c" / Byte)),
        "words" / Array(3, Int16ul),
        "inners" / Array(2, Struct("x" / Int16ul, "y" / Bytes(3))),
    ),
)


def _modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(virtio_py.__path__, "virtio_py."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def _records() -> list[Record]:
    """Each Record of the package once, and each family at several counts."""
    things = {id(v): v for module in _modules() for v in vars(module).values() if isinstance(v, Record | RecordFamily)}
    found = [EVERYTHING]
    for thing in things.values():
        found += [thing(n) for n in COUNTS] if isinstance(thing, RecordFamily) else [thing]
    return found


RECORDS = _records()
PAGES = [HealthCheck.large_base_example]  # the smallest page is a page
every_record = pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.name}-{r.size}")


def _plain(value: Any) -> Any:
    """Named tuples and construct's containers alike as dicts and lists."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if name != "_io"}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _from_numpy(field: Field, value: Any) -> Any:
    """A numpy element as the record's own codec would have decoded it."""
    if field.kind == "array" and field.item is not None:
        return [_from_numpy(field.item, part) for part in value]
    if field.kind == "record" and field.nested is not None:
        return {name: _from_numpy(inner, value[name]) for name, inner in field.nested.fields.items()}
    if field.kind == "bytes" or value.dtype.kind == "V":
        # numpy has no integers of 3 bytes: the field's own codec reads them.
        return _plain(field.decode(value.tobytes(), 0))
    if field.register is not None:
        return field.register.split(int(value))._asdict()
    return int(value)


def test_records_are_found() -> None:
    assert {virtq_desc, pvirtq_desc, pvirtq_event_suppress} <= set(RECORDS)
    assert {virtq_avail(n) for n in COUNTS} | {virtq_used(n) for n in COUNTS} <= set(RECORDS)


@every_record
@given(data=st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=PAGES)
def test_construct_is_the_oracle_of_decode_and_encode(record: Record, data: st.DataObject) -> None:
    image = data.draw(st.binary(min_size=record.size, max_size=record.size))
    lead = data.draw(st.integers(0, 3))
    oracle = record.layout.parse(image)
    values = record.decode(bytes(lead) + image + b"behind", lead)
    assert _plain(values) == _plain(oracle)
    assert record.encode_values(values) == image == record.layout.build(oracle)
    assert record.encode_values(_plain(values)) == image


@every_record
@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=PAGES)
def test_dtype_agrees_with_decode(record: Record, data: st.DataObject) -> None:
    image = data.draw(st.binary(min_size=record.size, max_size=record.size))
    assert record.dtype.itemsize == record.size
    element = numpy.frombuffer(image, record.dtype)[0]
    seen = {name: _from_numpy(field, element[name]) for name, field in record.fields.items()}
    assert seen == _plain(record.decode(image))


@every_record
def test_a_record_is_as_long_as_construct_says(record: Record) -> None:
    assert record.size == record.layout.sizeof()
    offset = 0
    for name, field in record.fields.items():
        assert (record.offset(name), record.end(name)) == (offset, offset + field.size)
        offset = record.end(name)
    assert offset == record.size


@every_record
def test_a_field_that_is_not_given_is_zero(record: Record) -> None:
    assert record.encode() == bytes(record.size)
    assert record.encode_values({name: field.zero for name, field in record.fields.items()}) == bytes(record.size)


@every_record
def test_a_short_buffer_is_refused(record: Record) -> None:
    with pytest.raises(LayoutError, match=f"takes {record.size} bytes, {record.size - 1} are here"):
        record.decode(bytes(record.size - 1))
    with pytest.raises(LayoutError):
        record.decode(bytes(record.size), 1)
    with pytest.raises(LayoutError):
        record.decode(bytes(record.size), -1)


@every_record
@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=PAGES)
def test_decode_available_gives_the_fields_that_are_there(record: Record, data: st.DataObject) -> None:
    image = data.draw(st.binary(min_size=record.size, max_size=record.size))
    here = data.draw(st.integers(0, record.size))
    whole = record.decode(image)._asdict()
    wanted = {name: value for name, value in whole.items() if record.end(name) <= here}
    assert record.decode_available(image[:here]) == wanted


@pytest.mark.parametrize(
    "values",
    [
        {"byte": 256},
        {"byte": -1},
        {"byte": "1"},
        {"byte": None},
        {"three": 1 << 24},
        {"three": -1},
        {"big": 1 << 16},
        {"mac": b"12345"},
        {"mac": 6},
        {"mac": 1 << 40},
        {"mac": "00112233445"},
        {"bits": {"low": 8}},
        {"bits": {"low": -1}},
        {"bits": {"unknown": 1}},
        {"bits": 1 << 16},
        {"bits": 1.5},
        {"inner": {"a": 1 << 32}},
        {"inner": {"unknown": 1}},
        {"inner": {"more": {"c": 256}}},
        {"inner": 7},
        {"words": (1, 2)},
        {"words": (1, 2, 1 << 16)},
        {"words": 3},
        {"unknown": 0},
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_a_layout_error(values: dict[str, Any]) -> None:
    with pytest.raises(LayoutError):
        EVERYTHING.encode(**values)


def test_nested_offsets_are_from_the_start_of_the_record() -> None:
    at = EVERYTHING.offset("inner")
    assert EVERYTHING.offset("inner.more.c") == at + 4 + 8
    assert EVERYTHING.end("inner.more.c") == at + 4 + 8 + 1
    for path in ("nothing", "byte.x", "inner.nothing", "words.x"):
        with pytest.raises(LayoutError):
            EVERYTHING.offset(path)


def test_a_register_is_given_whole_or_by_its_fields() -> None:
    by_fields = EVERYTHING.encode(bits={"low": 5, "top": 1})
    assert by_fields == EVERYTHING.encode(bits=0x8005) == EVERYTHING.encode(bits=EVERYTHING.decode(by_fields).bits)
    with pytest.raises(UsageError):
        Register(Int16ul, low=3)


@pytest.mark.parametrize(
    "layout", [Byte, Struct(Byte), Struct("x" / construct.VarInt), Struct("x" / construct.GreedyBytes)]
)
def test_what_has_no_fixed_offsets_is_no_record(layout: Any) -> None:
    with pytest.raises(UsageError):
        Record("odd", layout)


def test_a_mixed_record_has_no_flat_codec() -> None:
    assert virtq_desc.codec.size == virtq_desc.size
    with pytest.raises(UsageError):
        _ = EVERYTHING.codec


def test_violations_name_clause_and_field_in_order() -> None:
    rules = (
        Rule("first.clause", "a", lambda v: v.a < 2, "a is large"),
        Rule("second.clause", "b", lambda v: v.b < 2, "b is large"),
    )
    record = Record("ruled", Struct("a" / Byte, "b" / Byte), rules=rules)
    assert record.violations(record.decode(b"\1\1")) == []
    assert [v.clause for v in record.violations(record.decode(b"\2\2"))] == ["first.clause", "second.clause"]
    with pytest.raises(RingError) as caught:
        record.validate(record.decode(b"\1\2"), RingError)
    assert (caught.value.clause, caught.value.where) == ("second.clause", "ruled.b")


@pytest.mark.clause("split.driver.indirect-descriptors.4")
@pytest.mark.clause("packed.driver.indirect-descriptors.4")
@pytest.mark.parametrize("record", [virtq_desc, pvirtq_desc], ids=lambda r: r.name)
def test_indirect_with_next_violates_a_clause(record: Record) -> None:
    for flags in range(8):
        bad = bool(flags & 1 and flags & 4)
        values = record.decode(record.encode(addr=0x1000, len=16, flags=flags))
        assert bool(record.violations(values)) == bad
        if bad:
            with pytest.raises(PeerError):
                record.validate(values)


def test_as_dict_is_what_json_carries() -> None:
    values = EVERYTHING.as_dict(EVERYTHING.decode(bytes(range(EVERYTHING.size))))
    assert values["mac"] == bytes(range(6, 12)).hex()
    assert values["inners"][0].keys() == {"x", "y"}
    assert EVERYTHING.encode_values(values) == bytes(range(EVERYTHING.size))
