"""Whatever is broken on purpose in `tests/mutants`, the public suite finds, and names the clause."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.mutants import blk, console, drivers, net, scsi
from tests.mutants.all import AREAS, MUTANTS
from tests.mutants.edits import broken_engine
from tests.mutants.registry import RING, Carrier, Mutant, judge_device, judge_driver
from virtio_py.device import Device
from virtio_py.testing.clauses import load, notes_folder
from virtio_py.testing.conformance import Outcome

INDEX: Final = load(notes_folder()).clauses
SOUND: Final[dict[str, tuple[str, Callable[[], Device]]]] = {
    "blk": ("blk", blk.Disk),
    "zoned": ("blk", blk.Zoned),
    "net": ("net", net.Net),
    "scsi": ("scsi", scsi.Host),
    "console": ("console", console.Console),
}
"""What the mutants are mutants of."""
GOOD: Final = {Outcome.PASS, Outcome.REJECT, Outcome.SKIP}


def _marks(mutant: Mutant) -> list[pytest.MarkDecorator]:
    return [pytest.mark.clause(mutant.clause)] if mutant.clause in INDEX else []


each_mutant = pytest.mark.parametrize(
    "mutant", [pytest.param(m, id=m.name.replace(" ", "-"), marks=_marks(m)) for m in MUTANTS.values()]
)


@each_mutant
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    """By the checks of its clause alone, which a user asks for with --only."""
    assert mutant.clause in mutant.named(mutant.within or mutant.clause)


@pytest.mark.long
@each_mutant
def test_a_mutant_is_caught_by_the_whole_suite(mutant: Mutant) -> None:
    """Also where other checks come before, and may be ended by the same fault."""
    assert mutant.clause in mutant.named("")


@pytest.mark.parametrize("name", SOUND)
def test_what_is_not_broken_is_not_caught(name: str) -> None:
    """By the whole suite, with the patience that mutants are given."""
    kind, make = SOUND[name]
    verdicts = judge_device(kind, lambda: Carrier(make()))("")
    assert {verdict.verdict for verdict in verdicts} <= GOOD, verdicts


@pytest.mark.parametrize("features", {features for _, features, *_ in drivers.KERNELS.values()})
def test_a_driver_that_is_not_broken_is_not_caught(features: int) -> None:
    verdicts = judge_driver("blk", blk.Disk, drivers.use(features), RING & (drivers.VERSION | features))("")
    assert {verdict.verdict for verdict in verdicts} <= GOOD, verdicts


def test_an_engine_made_anew_is_the_same() -> None:
    """What breaks a mutant is its edit, not the making of its engine."""
    same = broken_engine("split_take", "first = end\n", "first = end\n")
    verdicts = judge_device("blk", lambda: Carrier(blk.Disk(), same))("")
    assert {verdict.verdict for verdict in verdicts} <= GOOD, verdicts


def test_there_are_many_and_they_differ() -> None:
    clauses = {mutant.clause for mutant in MUTANTS.values()}
    assert len(MUTANTS) >= 60
    assert len(clauses) >= 40
    assert {clause for clause in clauses if not clause.startswith("prose.")} <= INDEX.keys()
    assert {area.__name__.rpartition(".")[2] for area in AREAS} == {mutant.area for mutant in MUTANTS.values()}


def test_the_table_tells_of_all() -> None:
    """tests/mutants/README.md: how many there are of each area, and which were hard."""
    text = (Path(__file__).parent / "mutants" / "README.md").read_text()
    counts = {area: int(count) for area, count in re.findall(r"^\| `(\w+)` +\| +(\d+) +\|", text, re.MULTILINE)}
    areas = [mutant.area for mutant in MUTANTS.values()]
    assert counts == {area: areas.count(area) for area in areas}
    assert all(f"**{mutant.name}**" in text for mutant in MUTANTS.values() if mutant.hard)
