"""The stress finds nothing wrong where nothing is, and does find what only two cores get wrong."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from typing import Final

import pytest
from attrs import frozen

from tests.mutate_kernels import Workshop
from virtio_py.rings.kernels import common as k
from virtio_py.testing.machine import can_run_side_by_side
from virtio_py.testing.ring_cases import Case
from virtio_py.testing.ring_exchange import Side, side_by_side
from virtio_py.testing.ring_halves import Ground, make_device, make_driver
from virtio_py.testing.ring_stress import bytes_of, stress

two_processors = pytest.mark.skipif(not can_run_side_by_side(), reason="two threads need a processor each")

LAYOUTS: Final = ("split", "packed")
YES_NO: Final = (False, True)
CASES: Final = [
    Case(layout, in_order, batch=batch, indirect=indirect)
    for layout, in_order, batch, indirect in product(LAYOUTS, YES_NO, (1, 32, 256), YES_NO)
]


@two_processors
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_byte_is_right(case: Case) -> None:
    outcome = stress(case, 100_000, timeout=100)
    assert outcome.well, str(outcome)
    assert outcome.bytes_checked == bytes_of(100_000)


@pytest.mark.parametrize(("layout", "in_order"), list(product(LAYOUTS, YES_NO)))
def test_every_byte_is_right_interpreted(layout: str, in_order: bool) -> None:
    outcome = stress(Case(layout, in_order, engine="reference"), 1_000, timeout=100)
    assert outcome.well, str(outcome)
    assert outcome.bytes_checked == bytes_of(1_000)


# That it can fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_device_that_returns_nothing_is_not_waited_for(layout: str) -> None:
    """One half ends with a fault: the other is stopped, and says so."""
    case = Case(layout)
    ground = Ground.new()
    driver = make_driver(case, ground)
    device = make_device(case, ground, driver.areas)
    kernel = device.queue.engine.kernels[f"{layout}_exercise_device"]

    def wait() -> int:
        return int(kernel(*device.arguments, device.counters, 10, 1, -1, -1))

    def stop() -> None:
        device.counters[k.STOP] = 1

    def fail() -> int:
        return k.USED_ID

    sides = [Side(lambda: None, fail, lambda: None), Side(lambda: None, wait, stop)]
    assert side_by_side(sides) == [k.USED_ID, k.STOPPED]
    ground.close()


@two_processors
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_time_is_up(layout: str) -> None:
    outcome = stress(Case(layout), 1 << 40, timeout=1)
    assert (outcome.driver, outcome.device) != (0, 0)


@frozen
class Disorder:
    """A release that comes too early: `moved` stands before `line`, in one function of a kernel file."""

    file: str
    function: str
    line: str
    moved: str

    def apply(self, source: str) -> str:
        """The source with it."""
        begin = source.index(f"def {self.function}(")
        at = source.index(self.line, begin)
        indent = source[source.rindex("\n", 0, at) + 1 : at]
        return source[:at] + self.moved + "\n" + indent + source[at:]

    def __str__(self) -> str:
        return self.function


DISORDERS: Final = [
    # The available index, before descriptors and ring entry are written.
    Disorder(
        "split_driver.py",
        "split_add",
        "if indirect:\n            split_write_indirect",
        "store_release(avail16, AVAIL_IDX, (available + 1) & 0xFFFF)",
    ),
    # The used index, before the elements.
    Disorder(
        "split_device.py",
        "split_complete",
        "elements, n = 0, 0",
        "store_release(ring.used16, USED_IDX, (used + count) & 0xFFFF)",
    ),
    # A list's first flags, before the rest of its descriptors.
    Disorder(
        "packed_driver.py",
        "packed_add",
        "if indirect:\n            packed_write_indirect",
        "store_release(ring16, slot * STRIDE16 + DESC_FLAGS, packed_flags(first, middle, end, wrap))",
    ),
    # A used descriptor's flags, before its length and id.
    Disorder(
        "packed_device.py",
        "packed_complete",
        "ring.ring32[slot * STRIDE32 + DESC_LEN] = length",
        "store_release(ring16, slot * STRIDE16 + DESC_FLAGS, F_WRITE | (F_AVAIL | F_USED if wrap else 0))",
    ),
]

# 0: nothing was wrong; 3: something was, or buffers went missing, so that both halves waited for ever.
PROGRAM: Final = """
import sys
from virtio_py.testing.ring_cases import Case
from virtio_py.testing.ring_stress import stress
for batch, total in [(8, 1_000), *[(8, 1_000_000), (32, 2_000_000), (1, 200_000)] * 5]:
    outcome = stress(Case(sys.argv[1], batch=batch), total, timeout=30)
    print(batch, outcome, flush=True)
    if not outcome.well:
        sys.exit(3)
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


def _stress_of(workshop: Workshop, layout: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, layout]
    return subprocess.run(command, cwd=workshop.folder, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.long
@two_processors
@pytest.mark.parametrize("disorder", DISORDERS, ids=str)
def test_a_publication_that_comes_too_early_is_noticed(disorder: Disorder, workshop: Workshop) -> None:
    with workshop.broken(disorder.file, disorder.apply):
        done = _stress_of(workshop, disorder.file.partition("_")[0])
    assert done.returncode == 3, done.stdout + done.stderr


@pytest.mark.long
@two_processors
@pytest.mark.parametrize("layout", LAYOUTS)
def test_and_nothing_is_noticed_without_one(layout: str, workshop: Workshop) -> None:
    done = _stress_of(workshop, layout)
    assert done.returncode == 0, done.stdout + done.stderr
