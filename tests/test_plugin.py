"""The pytest plugin: its fixture, and its section of the report."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.errors import UsageError
from virtio_py.spec import Feature
from virtio_py.testing.pairs import CARRIERS, connected

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("layout", "engine", "carrier"), list(product(("split", "packed"), ("reference", "compiled"), CARRIERS))
)
def test_a_pair_is_as_it_was_asked_for(virtio_pair: Callable[..., Any], layout: str, engine: str, carrier: str) -> None:
    source = EntropyDevice(lambda count: b"r" * count)
    driver = virtio_pair(source, EntropyDriver, layout=layout, engine=engine, carrier=carrier)
    assert driver.has(Feature.RING_PACKED) == (layout == "packed")
    assert driver.engine.name == engine
    assert driver.read(7) == b"r" * 7


def test_what_is_not_known_is_said() -> None:
    for options in ({"layout": "round"}, {"carrier": "pigeon"}):
        with pytest.raises(UsageError, match="only"), connected(EntropyDevice(), EntropyDriver, **options):  # type: ignore[arg-type]  # wrong on purpose
            pass


def test_the_report_names_the_clauses_that_do_not_hold(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.clause("a.1")
        def test_passes(): pass

        @pytest.mark.clause("a.2")
        @pytest.mark.parametrize("n", [1, 2])
        def test_fails(n): assert n == 1
        """
    )
    text = pytester.runpytest_subprocess("-p", "virtio_py.testing.plugin", "-v").stdout.str()
    section = text.partition("clauses that do not hold")[2].splitlines()[1]
    assert section.split() == ["a.2", "test_the_report_names_the_clauses_that_do_not_hold.py::test_fails"]
    assert "1 clauses, 2 times" in text


def test_the_plugin_is_light() -> None:
    code = (
        "import sys, virtio_py.testing.plugin;"
        "print([m for m in ('construct', 'numpy', 'numba', 'hypothesis', 'virtio_py.driver') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
