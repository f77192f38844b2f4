"""The compiled kernels' indices are unsigned; the interpreted ones, which are the same, never count from an end."""

from __future__ import annotations

from typing import Any, cast

import numpy
import pytest
from attrs import frozen
from numba import njit
from numba.core.compiler import Compiler

from tests.ring_matrix import CASES, Case
from tests.test_ring_model import test_queue_is_the_model as model_test
from virtio_py.rings.engine import Engine, compiled
from virtio_py.rings.kernels import KERNELS, TWINS, Words
from virtio_py.rings.unsigned_indices import KernelCompiler
from virtio_py.testing import ring_pair


@frozen(eq=False)
class Watched:
    """Words that refuse an index below zero."""

    words: Words

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(index, slice) or index >= 0
        return self.words[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        assert isinstance(index, slice) or index >= 0
        self.words[index] = value


class WatchedEngine(Engine):
    """The reference engine on such words."""

    def words(self, count: int) -> Words:
        return cast(Words, Watched(super().words(count)))

    def view(self, view: memoryview, code: str) -> Words:
        return cast(Words, Watched(super().view(view, code)))


@pytest.mark.parametrize("case", [c for c in CASES if c.engine_name == "reference"], ids=str)
def test_no_kernel_counts_from_an_end(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = WatchedEngine({**KERNELS, **TWINS})
    monkeypatch.setattr(ring_pair, "engine_named", lambda name: watched)
    model_test(case)


def test_the_watch_notices() -> None:
    words = WatchedEngine({}).words(2)
    with pytest.raises(AssertionError):
        words[-1]
    with pytest.raises(AssertionError):
        words[-1] = 0


def test_compiled_code_has_no_such_handling() -> None:
    """What numba makes of an access: with the pass, no choice between two indices before it."""

    def last_but(words: Any, back: int) -> Any:
        return words[back]

    words, counts = numpy.arange(4), []
    for pipeline in (Compiler, KernelCompiler):
        dispatcher: Any = njit(pipeline_class=pipeline)(last_but)
        assert dispatcher(words, 3) == 3
        (text,) = dispatcher.inspect_llvm().values()
        counts.append(text.count("select i1"))
    assert counts[0] > 0
    assert counts[1] == 0
    kernel: Any = compiled().kernels["split_take"]
    assert kernel._compiler.pipeline_class is KernelCompiler
