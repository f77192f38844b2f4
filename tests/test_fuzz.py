"""What fuzzing found, again; and each target on a few hundred inputs that nobody chose."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import TARGET_NAMES
from tests.fuzz.corpus import kept
from tests.fuzz.targets import TARGETS

KEPT = [pytest.param(name, data, id=f"{name}-{label[:24]}") for name in TARGETS for label, data in kept(name)]


@pytest.mark.parametrize(("name", "data"), KEPT)
def test_what_was_found_is_mended_and_what_reached_far_still_passes(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=600) | st.lists(st.integers(0, 16), max_size=400).map(bytes))
def test_arbitrary_inputs(name: str, data: bytes) -> None:
    TARGETS[name](data)


def test_the_command_line_offers_every_target() -> None:
    assert tuple(TARGETS) == TARGET_NAMES
