"""Hypothesis strategies for whatever crosses from one side to the other: structures, features, memory, chains, order.

    valid_values(virtio_blk_req)            named tuples that break no rule of the record's
    nearly_valid_values(virtio_blk_req)     the same with one field of any value at all
    any_values(virtio_blk_req)              whatever the bits can hold; also st.from_type(virtio_blk_req.value_type)
    record_bytes(virtio_blk_req)            encodings of these; cut short, too long, or with a bit turned over

Everything is derived from the declarations: a field of a record gets its strategy from its size and kind, a rule of the
record decides what is valid. Requests of each device stand in `virtio_py.testing.requests`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from hypothesis import strategies as st

from virtio_py.device import Device
from virtio_py.memory import GuestMemory, Region
from virtio_py.records import Field, Record, Rule
from virtio_py.spec import VirtqDescFlag, bit, mask
from virtio_py.status import FeatureNeeds, missing_needs
from virtio_py.testing.hands import Descriptor

# Structures ---------------------------------------------------------------------------------------------------------


def integers_of(size: int, signed: bool = False) -> st.SearchStrategy[int]:
    """Integers of `size` bytes, those next to a power of two most of all: there comparisons are wrong."""
    bits = 8 * size - signed
    low, high = (-1 << bits if signed else 0), (1 << bits) - 1
    edges = sorted({near for n in range(bits + 1) for near in ((1 << n) - 1, 1 << n, (1 << n) + 1) if near <= high})
    return st.one_of(st.just(0), st.sampled_from(edges), st.integers(low, high))


def _integers(field: Field) -> st.SearchStrategy[Any]:
    return integers_of(field.size, isinstance(field.dtype, str) and field.dtype[1] == "i")


def _registers(field: Field) -> st.SearchStrategy[Any]:
    assert field.register is not None
    whole = field.register
    parts = [
        st.one_of(st.just(0), st.integers(0, high)).map((1 << shift).__mul__) for shift, high in whole.shifts.values()
    ]
    # What a part's value is, beside its bits, is the register's own affair: some hold a multiple.
    return st.just(whole.split(0)) | st.tuples(*parts).map(sum).map(whole.split)


def _nested(field: Field) -> st.SearchStrategy[Any]:
    assert field.nested is not None
    return any_values(field.nested)


def _arrays(field: Field) -> st.SearchStrategy[Any]:
    assert field.item is not None
    count = field.size // field.item.size
    # A long array of drawn values says no more than a short one repeated.
    few = min(count, 16)
    items = st.lists(field_values(field.item), min_size=few, max_size=few)
    return items.map(lambda drawn: tuple((drawn * (count // max(few, 1) + 1))[:count]))


_KINDS: Final[Mapping[str, Callable[[Field], st.SearchStrategy[Any]]]] = {
    "int": _integers,
    "bytes": lambda field: st.binary(min_size=field.size, max_size=field.size),
    "register": _registers,
    "record": _nested,
    "array": _arrays,
}


def field_values(field: Field) -> st.SearchStrategy[Any]:
    """Any value that a field's bits can hold."""
    return _KINDS[field.kind](field)


def any_values(record: Record) -> st.SearchStrategy[Any]:
    """Named tuples of any values: all of them encode."""
    return st.builds(record.value_type, **{name: field_values(field) for name, field in record.fields.items()})


def valid_values(record: Record) -> st.SearchStrategy[Any]:
    """Named tuples that break none of the record's rules."""

    def mended(values: Any) -> Any:
        for rule in record.rules:
            if not rule.holds(values):
                values = _mended(record, values, rule)
        return values

    return any_values(record).map(mended).filter(lambda values: not record.violations(values))


_REMEDIES: Final = (*range(256), *(1 << n for n in range(8, 64)))
"""Values of which one will do, where a rule says what a field has to be: 0 nearly always, else a small number."""


def _mended(record: Record, values: Any, rule: Rule) -> Any:
    """The values with the field that a rule is about changed so that it holds, if one of the remedies does that."""
    field = record.field(rule.field)
    fitting = [n for n in _REMEDIES if n >> 8 * field.size == 0] if field.kind == "int" else []
    trials = (_changed(values, rule.field, trial) for trial in (field.zero, *fitting))
    return next((trial for trial in trials if rule.holds(trial)), values)


def _changed(values: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    return values._replace(**{name: _changed(getattr(values, name), rest, value) if rest else value})


def nearly_valid_values(record: Record) -> st.SearchStrategy[Any]:
    """Valid but for one field, which has any value; where the record has rules, one that a rule is about."""
    paths = sorted({rule.field for rule in record.rules}) or list(record.fields)
    spoilt = st.sampled_from(paths).flatmap(lambda p: st.tuples(st.just(p), field_values(record.field(p))))
    return st.builds(lambda values, change: _changed(values, *change), valid_values(record), spoilt)


def record_bytes(record: Record) -> st.SearchStrategy[bytes]:
    """Encodings: whole, cut short, with bytes behind them, or with one bit turned over."""
    whole = st.one_of(valid_values(record), nearly_valid_values(record)).map(record.encode_values)
    size = record.size
    return st.one_of(
        whole,
        st.builds(lambda data, end: data[:end], whole, st.integers(0, size)),
        st.builds(lambda data, more: data + more, whole, st.binary(min_size=1, max_size=16)),
        st.builds(_turned, whole, st.integers(0, 8 * size - 1)),
    )


def _turned(data: bytes, position: int) -> bytes:
    turned = bytearray(data)
    turned[position // 8] ^= 1 << position % 8
    return bytes(turned)


# Features -----------------------------------------------------------------------------------------------------------


def feature_sets(offered: int, needs: FeatureNeeds) -> st.SearchStrategy[int]:
    """Masks out of `offered` that are closed: whatever a feature in them needs is in them."""

    def closed(features: int) -> int:
        while lacking := missing_needs(features, needs):
            features &= ~mask(*(feature for feature, _ in lacking))
        return features

    return _subsets(offered).map(closed)


def open_feature_sets(offered: int, needs: FeatureNeeds) -> st.SearchStrategy[int]:
    """Masks in which a feature lacks something that it needs; nothing at all where no feature needs any."""
    pairs = [(feature, need) for feature, wanted in needs.items() if offered & bit(feature) for need in wanted]
    if not pairs:
        return st.nothing()
    return st.builds(
        lambda features, pair: features & ~bit(pair[1]) | bit(pair[0]), _subsets(offered), st.sampled_from(pairs)
    )


def _subsets(offered: int) -> st.SearchStrategy[int]:
    positions = [n for n in range(offered.bit_length()) if offered & bit(n)]
    some = st.lists(st.sampled_from(positions), unique=True).map(lambda chosen: mask(*chosen)) if positions else None
    return st.just(offered) | some if some is not None else st.just(0)


def acceptable_features(device: Device, ring_features: int, required: int) -> st.SearchStrategy[int]:
    """Sets of features that a driver may choose of a device's offer; `required` is a mask of what is in all of them."""
    offered = device.offered_features() | ring_features
    sets = feature_sets(offered, device.feature_needs).map(lambda features: features | required)
    return sets.filter(lambda features: device.refuse_features(features) is None)


# Memory and chains --------------------------------------------------------------------------------------------------


@st.composite
def memories(draw: st.DrawFn, max_regions: int = 4, max_size: int = 1 << 16) -> GuestMemory:
    """Guest memories: some regions that touch each other, some with holes between, the first rarely at address 0."""
    at = draw(st.sampled_from([0x1000, 0, 0x8000_0000, 1 << 40]), label="start")
    regions = []
    for _ in range(draw(st.integers(1, max_regions), label="regions")):
        size = draw(st.sampled_from([max_size, 0x1000, 1, 16]), label="size")
        regions.append(Region(at, memoryview(bytearray(size))))
        at += size + draw(st.sampled_from([0, 0, 1, 0x1000, 1 << 32]), label="hole")
    return GuestMemory(regions)


def extents(memory: GuestMemory, max_length: int = 4096) -> st.SearchStrategy[tuple[int, int]]:
    """Ranges of a memory: (address, length in bytes), the edges of its regions first of all."""

    def inside(region: Region) -> st.SearchStrategy[tuple[int, int]]:
        offsets = st.one_of(st.just(0), st.just(region.size - 1), st.integers(0, region.size - 1))
        return offsets.flatmap(
            lambda at: st.tuples(
                st.just(region.start + at), st.integers(0, min(region.size - at, max_length)) | st.just(1)
            )
        )

    # By number: a region's bytes have no hash, and Hypothesis wants one of what it samples.
    return st.integers(0, len(memory.regions) - 1).flatmap(lambda n: inside(memory.regions[n]))


def stray_extents(memory: GuestMemory) -> st.SearchStrategy[tuple[int, int]]:
    """Ranges that are not wholly memory: over an edge by one byte, in a hole, wrapped around the address space."""
    edges = [at + by for region in memory.regions for at in (region.start, region.end) for by in (-1, 0, 1)]
    far = [1 << 63, (1 << 64) - 1, (1 << 64) - 4]
    address = st.sampled_from([at for at in edges if at >= 0] + far)
    pairs = st.tuples(address, st.sampled_from([1, 2, 8, 0x1000, 0xFFFF_FFFF]))
    return pairs.filter(lambda pair: not _is_memory(memory, *pair))


def _is_memory(memory: GuestMemory, address: int, length: int) -> bool:
    while length > 0:
        region = memory.find(address)
        if region is None:
            return False
        step = min(length, region.end - address)
        address, length = address + step, length - step
    return True


def chains(memory: GuestMemory, max_segments: int = 8) -> st.SearchStrategy[list[Descriptor]]:
    """Chains that a device has to take: readable segments in front of writable ones, all of them memory."""
    readable = st.lists(extents(memory), max_size=max_segments // 2)
    writable = st.lists(extents(memory), max_size=max_segments - max_segments // 2)
    both = st.tuples(readable, writable).filter(lambda pair: bool(pair[0] or pair[1]))
    return both.map(
        lambda pair: (
            [Descriptor(*extent) for extent in pair[0]]
            + [Descriptor(*extent, VirtqDescFlag.WRITE) for extent in pair[1]]
        )
    )


def spoilt_chains(memory: GuestMemory, max_segments: int = 8) -> st.SearchStrategy[list[Descriptor]]:
    """Chains with one segment that is not memory."""
    bad = st.builds(
        lambda extent, flags: Descriptor(extent[0], extent[1], flags), stray_extents(memory), st.sampled_from([0, 2])
    )
    return st.builds(
        lambda chain, segment, at: sorted(
            [*chain[: at % len(chain)], segment, *chain[at % len(chain) :]], key=lambda s: s.flags
        ),
        chains(memory, max_segments),
        bad,
        st.integers(0, max_segments),
    )


def framings(length: int, max_parts: int = 8) -> st.SearchStrategy[list[int]]:
    """The ways to cut `length` bytes into segments (2.7.4): their lengths in bytes, some of them 0."""
    cuts = st.lists(st.integers(0, length), max_size=max_parts - 1).map(sorted)
    return cuts.map(lambda at: [high - low for low, high in zip([0, *at], [*at, length], strict=True)])


# Order --------------------------------------------------------------------------------------------------------------


def schedules(actors: Sequence[str], max_steps: int = 50) -> st.SearchStrategy[list[str]]:
    """Whose turn it is, step by step."""
    return st.lists(st.sampled_from(list(actors)), min_size=1, max_size=max_steps)


@st.composite
def interleaved(draw: st.DrawFn, steps: Sequence[Any], faults: Iterable[Any], max_faults: int = 2) -> list[Any]:
    """The steps in their order, with up to `max_faults` of the faults at places between them."""
    mixed = list(steps)
    for fault in draw(st.lists(st.sampled_from(list(faults)), max_size=max_faults), label="faults"):
        mixed.insert(draw(st.integers(0, len(mixed)), label="where"), fault)
    return mixed
