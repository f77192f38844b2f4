"""What fuzzing found, again; and each target on a few hundred inputs that nobody chose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import TARGET_NAMES
from tests.fuzz.corpus import FOUND
from tests.fuzz.targets import TARGETS


def _kept() -> Iterator[object]:
    for name in TARGETS:
        for path in sorted((FOUND / name).glob("*")):
            yield pytest.param(name, path.read_bytes(), id=f"{name}-{path.name[:24]}")


@pytest.mark.parametrize(("name", "data"), list(_kept()))
def test_what_was_found_is_mended(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=600) | st.lists(st.integers(0, 16), max_size=400).map(bytes))
def test_arbitrary_inputs(name: str, data: bytes) -> None:
    TARGETS[name](data)


def test_the_command_line_offers_every_target() -> None:
    assert tuple(TARGETS) == TARGET_NAMES
