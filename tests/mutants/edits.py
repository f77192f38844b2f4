"""Functions broken by a change of their source: what is wrong reads as a difference of two lines."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import Any

from virtio_py.rings.engine import Engine
from virtio_py.rings.kernels import KERNELS, TWINS


def edited(function: Callable[..., Any], old: str, new: str, names: dict[str, Any] | None = None) -> FunctionType:
    """The function with `old`, which occurs once in its source, replaced by `new`. names: its globals, if not its own.

    Decorators are left out. Raises AssertionError where the source has changed, so that the mutant would be none."""
    source = textwrap.dedent(inspect.getsource(function))
    source = source[source.index("def ") :]
    assert source.count(old) == 1, f"{function.__qualname__} has {source.count(old)} of {old!r}"
    names = dict(inspect.getmodule(function).__dict__) if names is None else names
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<{function.__name__}, broken>", "exec"), names, made)
    broken = made[function.__name__]
    assert isinstance(broken, FunctionType)
    return broken


def broken_engine(kernel: str, old: str, new: str) -> Engine:
    """The interpreted engine with one kernel broken, for whichever kernel calls it, too."""
    spaces: dict[str, dict[str, Any]] = {}
    functions: dict[str, Callable[..., Any]] = {}
    for name, function in {**KERNELS, **TWINS}.items():
        assert isinstance(function, FunctionType)
        space = spaces.setdefault(function.__module__, dict(vars(sys.modules[function.__module__])))
        if name == kernel:
            functions[name] = edited(function, old, new, space)
        else:
            functions[name] = FunctionType(function.__code__, space, name, function.__defaults__)
    assert kernel in functions, f"no kernel is named {kernel}"
    for space in spaces.values():
        # A broken kernel may call what the sound one did not need.
        space.update(functions)
    return Engine(functions)
