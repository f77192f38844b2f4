"""The features that every ring test runs over; the two halves themselves are the published ones."""

from __future__ import annotations

from itertools import product
from typing import Final

import pytest

from virtio_py.testing.ring_pair import Case, Pair, pair, poke

__all__ = ["CASES", "ENGINES", "LAYOUTS", "YES_NO", "Case", "Pair", "every_case", "pair", "poke"]

LAYOUTS: Final = ("split", "packed")
ENGINES: Final = ("reference", "compiled")
YES_NO: Final = (False, True)
CASES: Final = [Case(*c) for c in product(LAYOUTS, ENGINES, YES_NO, YES_NO, YES_NO)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
