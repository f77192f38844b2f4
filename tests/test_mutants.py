"""A sample of `tests/mutate_kernels.py`: the tests still kill what they killed when all mutants were tried."""

from __future__ import annotations

from typing import Final

import pytest

from tests.mutate_kernels import EQUIVALENT, hunt, mutants

SAMPLE: Final = (
    "need_event: (new - old) & 0xFFFF: unmasked",
    "split_take: pending > size: > becomes >=",
    "split_add: available & mask: unmasked",
    "split_take_used: (idx - used) & 0xFFFF: unmasked",
    "packed_take: slot >= size: >= becomes >",
    "packed_add: wrap ^= 1: dropped",
)


def test_descriptions_are_unique_and_those_of_equivalent_mutants_exist() -> None:
    about = [mutant.about for mutant in mutants()]
    assert len(about) == len(set(about)) > 200
    assert set(EQUIVALENT) <= set(about)
    assert set(SAMPLE) <= set(about) - set(EQUIVALENT)


def test_each_mutant_is_another_program() -> None:
    """And it can be compiled: what does not get that far would die of nothing."""
    for mutant in mutants():
        source = mutant.source()
        compile(mutant.apply(source), mutant.file, "exec")
        assert mutant.apply(source) != source


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_sample_of_mutants_dies() -> None:
    chosen = [mutant for mutant in mutants() if mutant.about in SAMPLE]
    assert [mutant.about for mutant, killer in hunt(chosen, 1) if not killer] == []
