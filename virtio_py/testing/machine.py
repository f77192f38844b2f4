"""What figures depend on: the machine, and which two of its processors a benchmark may have."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_SIBLINGS: Final = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def machine() -> dict[str, Any]:
    """Model, processors, versions and load as they are now."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numba", "llvmlite", "numpy")},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def cpu_model() -> str:
    """The processor's name as Linux tells it."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def two_processors() -> tuple[int, int] | None:
    """Two processors we may run on, of different cores if there are; None where there is only one."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(allowed) < 2:
        return None
    first = allowed[0]
    siblings = _siblings(first)
    second = next((cpu for cpu in allowed[1:] if cpu not in siblings), allowed[1])
    return first, second


def can_run_side_by_side() -> bool:
    """Whether two threads of ours get a processor each, pinned or not."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1


def pin(processor: int | None) -> None:
    """Keeps the calling thread on one processor; on any, for None."""
    if processor is not None:
        os.sched_setaffinity(0, {processor})


def _siblings(processor: int) -> set[int]:
    """The hardware threads of a processor's core, itself among them: "0,4" or "0-1" in sysfs."""
    path = Path(_SIBLINGS.format(processor))
    found: set[int] = set()
    for part in path.read_text().strip().split(",") if path.exists() else []:
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found
