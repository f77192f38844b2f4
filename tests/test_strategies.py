"""The published strategies: what they promise of each value, for every record, device and memory."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from hypothesis import HealthCheck, Phase, assume, find, given, settings
from hypothesis import strategies as st

from tests.test_records import RECORDS
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.layout import FEATURE_NEEDS
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.errors import MemoryFault
from virtio_py.memory import GuestMemory
from virtio_py.records import Record
from virtio_py.rings.layouts import virtq_desc
from virtio_py.spec import Feature, VirtqDescFlag, bit, mask
from virtio_py.status import RING_FEATURES, missing_needs
from virtio_py.testing import strategies
from virtio_py.testing.entry_points import register_strategies

SMALL = [record for record in RECORDS if record.size <= 512]
RULED = list({(r.name, r.size): r for r in SMALL if r.rules}.values())
# What is found first will do: nobody reads it.
any_one = settings(max_examples=2000, phases=[Phase.generate], deadline=None, database=None)
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(record=st.sampled_from(SMALL), data=st.data())
def test_valid_values_break_no_rule_and_encode(record: Record, data: st.DataObject) -> None:
    values = data.draw(strategies.valid_values(record))
    assert record.violations(values) == []
    assert record.decode(record.encode_values(values)) == values


@quick
@given(record=st.sampled_from(SMALL), data=st.data())
def test_from_type_knows_every_record(record: Record, data: st.DataObject) -> None:
    register_strategies()
    values = data.draw(st.from_type(record.value_type))
    assert record.decode(record.encode_values(values)) == values


@pytest.mark.parametrize("record", RULED, ids=lambda r: f"{r.name}-{r.size}")
def test_each_rule_can_be_kept_and_can_be_broken(record: Record) -> None:
    assert find(strategies.valid_values(record), lambda values: True, settings=any_one)
    nearly = strategies.nearly_valid_values(record)
    broken = find(nearly, lambda values: bool(record.violations(values)), settings=any_one)
    assert {found.field for found in record.violations(broken)} <= {rule.field for rule in record.rules}


@given(data=strategies.record_bytes(virtq_desc))
def test_bytes_are_at_most_sixteen_too_long(data: bytes) -> None:
    assert len(data) <= virtq_desc.size + 16


OFFER = NetDevice(LoopbackPort()).offered_features()


@given(features=strategies.feature_sets(OFFER, FEATURE_NEEDS))
def test_closed_sets_are_closed(features: int) -> None:
    assert not features & ~OFFER
    assert missing_needs(features, FEATURE_NEEDS) == []


@given(features=strategies.open_feature_sets(OFFER, FEATURE_NEEDS))
def test_open_sets_are_not(features: int) -> None:
    assert missing_needs(features, FEATURE_NEEDS)


def test_where_nothing_is_needed_there_is_no_open_set() -> None:
    assert strategies.open_feature_sets(mask(1, 2), {}).is_empty


@given(memory=strategies.memories(), data=st.data())
@quick
def test_chains_are_memory_and_in_order(memory: GuestMemory, data: st.DataObject) -> None:
    most = data.draw(st.integers(1, 8))
    chain = data.draw(strategies.chains(memory, most))
    assert 0 < len(chain) <= most
    writable = [bool(segment.flags & VirtqDescFlag.WRITE) for segment in chain]
    assert writable == sorted(writable)
    for segment in chain:
        assert len(memory.read(segment.address, segment.length)) == segment.length


@given(memory=strategies.memories(), data=st.data())
@quick
def test_stray_extents_are_not_memory(memory: GuestMemory, data: st.DataObject) -> None:
    address, length = data.draw(strategies.stray_extents(memory))
    assume(length <= 1 << 20)
    with pytest.raises(MemoryFault):
        memory.read(address, length)


@given(memory=strategies.memories(), data=st.data())
@quick
def test_a_spoilt_chain_has_one_bad_segment(memory: GuestMemory, data: st.DataObject) -> None:
    chain = data.draw(strategies.spoilt_chains(memory))
    assert sum(not strategies._is_memory(memory, s.address, s.length) for s in chain) == 1


@given(length=st.integers(0, 5000), data=st.data())
def test_framings_add_up(length: int, data: st.DataObject) -> None:
    assert sum(data.draw(strategies.framings(length))) == length


@given(data=st.data())
def test_faults_stand_between_steps_that_keep_their_order(data: st.DataObject) -> None:
    mixed = data.draw(strategies.interleaved(range(6), ["pull the plug", "reset"]))
    assert [step for step in mixed if isinstance(step, int)] == list(range(6))
    assert len(mixed) <= 8


def test_the_entry_point_is_there_and_light() -> None:
    """Whoever imports Hypothesis loads it: neither construct nor any layout may come along."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"]["hypothesis"].items()
    assert EntryPoint(name, value, "hypothesis").load() is register_strategies
    code = (
        "import sys, hypothesis; from virtio_py.testing.entry_points import register_strategies as r; r();"
        "print([m for m in ('construct', 'numba', 'virtio_py.records') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.clause("features.device.feature-bits.2")
@given(data=st.data())
@quick
def test_every_valid_subset_of_the_offer_is_accepted(data: st.DataObject) -> None:
    from virtio_py.spec import DeviceStatus
    from virtio_py.transports.in_process import InProcess

    carrier = InProcess(NetDevice(LoopbackPort()), memory_size=1 << 16)
    offered = carrier.device_features() & ~RING_FEATURES
    chosen = data.draw(strategies.feature_sets(offered, FEATURE_NEEDS)) | bit(Feature.VERSION_1)
    assume(carrier.end.device.refuse_features(chosen) is None)
    carrier.write_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
    carrier.accept_features(chosen)
    carrier.write_status(carrier.read_status() | DeviceStatus.FEATURES_OK)
    assert carrier.read_status() & DeviceStatus.FEATURES_OK
