"""The two engines are one source; what the compiled one says, and what it says where it cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring_matrix import ENGINES
from virtio_py.errors import EngineUnavailable
from virtio_py.memory import GuestMemory, Region
from virtio_py.rings import kernels
from virtio_py.rings.compiled import COMPILED_TWINS, CompiledEngine
from virtio_py.rings.engine import REFERENCE, compiled, engine_named
from virtio_py.rings.kernels import KERNELS, TWINS, need_event

ROOT = Path(__file__).parent.parent
every_kernel = pytest.mark.parametrize("name", KERNELS)
every_engine = pytest.mark.parametrize("engine", ENGINES)


@every_kernel
def test_a_compiled_kernel_is_the_kernels_own_code(name: str) -> None:
    dispatcher = getattr(compiled(), name)
    assert dispatcher.py_func.__code__ is KERNELS[name].__code__
    assert getattr(kernels, name, KERNELS[name]) is KERNELS[name]


@every_kernel
def test_what_a_compiled_kernel_calls_is_compiled(name: str) -> None:
    """`py_func` alone would call compiled callees, and a kernel compiled before its callee would call the plain one."""
    seen = getattr(compiled(), name).py_func.__globals__
    for callee in KERNELS[name].__code__.co_names:
        if callee in KERNELS:
            assert seen[callee] is getattr(compiled(), callee)
        if callee in TWINS:
            assert seen[callee] is COMPILED_TWINS[callee]


@every_kernel
def test_a_reference_kernel_is_the_plain_function(name: str) -> None:
    assert getattr(REFERENCE, name) is KERNELS[name]
    for callee in KERNELS[name].__code__.co_names:
        if callee in TWINS:
            assert KERNELS[name].__globals__[callee] is TWINS[callee]


def test_every_operation_exists_for_both_layouts() -> None:
    names = {"take", "complete", "used_notification_due", "device_notifications", "add", "publish"}
    names |= {"available_notification_due", "take_used", "driver_notifications"}
    for layout in ("split", "packed"):
        assert {f"{layout}_{name}" for name in names} <= KERNELS.keys()


@every_engine
@given(
    event=st.integers(0, 0xFFFF),
    old=st.integers(0, 0xFFFF),
    count=st.one_of(st.integers(0, 40), st.integers(0, 0xFFFF)),
)
@settings(max_examples=300, deadline=None)
def test_need_event_is_membership_of_an_interval(engine: str, event: int, old: int, count: int) -> None:
    """The entries published are old, old + 1, … modulo 2^16; the event is one of them or not."""
    new = (old + count) & 0xFFFF
    wanted = any(turn <= event < turn + count for turn in (old, old - 0x10000))
    assert engine_named(engine).need_event(event, new, old) == wanted


@given(st.sampled_from([0, 1, 5, 0x7FFF, 0xFFFE, 0xFFFF]), st.integers(0, 12), st.integers(-6, 6))
@settings(max_examples=200, deadline=None)
def test_need_event_around_the_wrap(old: int, count: int, near: int) -> None:
    published = {(old + n) & 0xFFFF for n in range(count)}
    event = (old + near) & 0xFFFF
    assert need_event(event, (old + count) & 0xFFFF, old) == (event in published)


REGIONS = st.lists(st.tuples(st.sampled_from([0, 0, 1, 9]), st.integers(1, 20)), min_size=1, max_size=4)


@given(REGIONS, st.integers(-4, 110), st.one_of(st.integers(1, 80), st.just(0xFFFFFFFF)), st.sets(st.integers(0, 5)))
@settings(max_examples=300, deadline=None)
def test_translation_is_that_of_guest_memory(
    layout: list[tuple[int, int]], address: int, length: int, read_only: set[int]
) -> None:
    regions: list[Region] = []
    at = 0
    for gap, size in layout:
        regions.append(Region(at + gap, memoryview(bytearray(size)), len(regions) not in read_only))
        at += gap + size
    memory = GuestMemory(regions)
    row_of = {a: n for n, r in enumerate(memory.regions) for a in range(r.start, r.end)}
    mapped = length < 200 and all(a in row_of for a in range(address, address + length))
    rows = {row_of[a] for a in range(address, address + length)} if mapped else set()
    for name in ENGINES:
        engine = engine_named(name)
        table = engine.memory(memory)
        assert engine.mapped(table, address, length, 0) == mapped
        assert engine.mapped(table, address, length, 2) == (mapped and not rows & read_only)
        assert engine.locate(table, address, length) == (min(rows) if len(rows) == 1 else -1)


def test_an_unknown_engine_is_unavailable() -> None:
    assert engine_named("reference") is REFERENCE
    assert engine_named("compiled") is compiled()
    with pytest.raises(EngineUnavailable, match="'fast'"):
        engine_named("fast")
    with pytest.raises(AttributeError):
        _ = REFERENCE.no_such_kernel


def _python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a new interpreter."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True, timeout=280
    )


def test_without_numba_the_engine_is_unavailable_and_the_reference_works() -> None:
    done = _python(
        "import sys; sys.modules['numba'] = None\n"
        "from virtio_py.errors import EngineUnavailable\n"
        "from virtio_py.rings.engine import REFERENCE, compiled\n"
        "assert REFERENCE.need_event(0, 1, 0)\n"
        "try: compiled()\n"
        "except EngineUnavailable as error: print(error)\n"
    )
    assert "needs numba" in done.stdout


def test_a_machine_of_the_other_byte_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(EngineUnavailable, match="little-endian"):
        CompiledEngine()


@pytest.mark.long
def test_the_first_use_says_that_it_compiles_and_the_second_loads(tmp_path: Path) -> None:
    program = (
        "from virtio_py.rings.engine import compiled\n"
        "engine = compiled()\n"
        "print(engine.need_event(0, 1, 0), sum(engine.need_event.stats.cache_hits.values()))\n"
        "words = engine.words(16)\n"
        "import tests.ring_matrix as m\n"
        "made = m.pair(m.Case('split', 'compiled', False, False, False), 2)\n"
        "print(made.device.take(), sum(engine.split_take.stats.cache_hits.values()))\n"
    )
    first, second = (_python(program, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert "compiling the ring kernels" in first.stderr
    assert first.stdout.split() == ["True", "0", "[]", "0"]
    assert "compiling" not in second.stderr
    assert second.stdout.split() == ["True", "1", "[]", "1"]
