"""Engines: two ways to run the one set of ring loops.

REFERENCE calls the plain functions of `rings.kernels` on memoryviews; `compiled()` runs the same code objects on
numpy arrays, compiled by numba. Everything around them is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from virtio_py.errors import EngineUnavailable
from virtio_py.memory import GuestMemory
from virtio_py.rings.kernels import KERNELS, TWINS, Memory, Words
from virtio_py.rings.kernels.common import END, MAY_WRITE, ROW, START


class Engine:
    """The kernels as attributes (`engine.split_take`), and the kinds of array that they work on.

    name: "reference" or "compiled".
    """

    name: str = "reference"

    def __init__(self, kernels: Mapping[str, Callable[..., Any]]) -> None:
        if sys.byteorder != "little":
            raise EngineUnavailable("ring words are little-endian, and are accessed whole: this machine is not")
        self.kernels: Final = dict(kernels)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__") or name not in self.kernels:
            raise AttributeError(f"no kernel is named {name}")
        return self.kernels[name]

    def __repr__(self) -> str:
        return f"<Engine {self.name}>"

    def words(self, count: int) -> Words:
        """`count` private signed 64-bit words, zero."""
        return memoryview(bytearray(8 * count)).cast("q")

    def view(self, view: memoryview, code: str) -> Words:
        """Shared memory as words of `code` "H" (16 bits) or "I" (32 bits), loaded and stored whole."""
        words: Words = view.cast("H") if code == "H" else view.cast("I")
        return words

    def memory(self, memory: GuestMemory) -> Memory:
        """The regions as kernels translate with them. The caller keeps `memory` alive for as long as it is used."""
        rows = self.words(ROW * len(memory.regions))
        for i, region in enumerate(memory.regions):
            rows[ROW * i + START], rows[ROW * i + END] = region.start, region.end
            rows[ROW * i + MAY_WRITE] = region.writable
        return Memory(rows, tuple(region.view for region in memory.regions))


REFERENCE: Final = Engine({**KERNELS, **TWINS})
"""The interpreted engine: what one steps through in a debugger."""


@cache
def compiled() -> Engine:
    """The compiled engine. Raises EngineUnavailable where numba is not.

    The first call of a fresh installation compiles for some seconds, and says so; later processes load the cache.
    """
    from virtio_py.rings.compiled import CompiledEngine

    return CompiledEngine()


def engine_named(name: str) -> Engine:
    """REFERENCE or `compiled()`, by name. Raises EngineUnavailable."""
    makers: dict[str, Callable[[], Engine]] = {"reference": lambda: REFERENCE, "compiled": compiled}
    if name not in makers:
        raise EngineUnavailable(f"no engine is named {name!r}, only {' and '.join(makers)}")
    return makers[name]()
