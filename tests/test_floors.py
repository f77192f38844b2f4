"""The house rules that a reader of the source relies on, as tests of its syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "virtio_py"
SOURCES = sorted(PACKAGE.rglob("*.py"))
every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))

# From the ground up. A module imports from its own unit, and from units on lower floors.
FLOORS = [
    {"spec", "errors", "values"},
    {"access", "pcapng", "records"},
    {"memory", "pci"},
    {"rings"},
    {"config_space", "status", "watch", "resources"},
    {"device", "driver"},
    {"admin"},
    {"devices"},
    {"transports"},
    {"testing"},
    {"cli", "__main__"},
]
FLOOR = {unit: n for n, floor in enumerate(FLOORS) for unit in floor}
# Two wings: what carries a device knows none, and no device knows what carries it.
STRANGERS = {("transports", "devices"), ("devices", "transports")}
OUTSIDE = {"socket", "mmap", "threading", "ctypes"}
SHELLS = {
    "cli/trace.py": {"socket"},  # connects where the command line says
    "cli/serve.py": {"socket"},  # listens where the command line says
    "devices/blk/direct.py": {"mmap"},  # only a mapping is aligned as O_DIRECT wants it
    "devices/blk/fallocate.py": {"ctypes"},  # the standard library cannot make holes in files
    "devices/console/endpoint_pty.py": {"ctypes"},  # inotify
    "devices/console/endpoint_unix.py": {"socket"},
    "rings/kernels/common.py": {"threading"},  # a lock's atomic exchange is the interpreted fence; nothing waits on it
    "testing/ring_exchange.py": {"threading"},  # the two halves on two threads
    "testing/ring_halves.py": {"mmap"},  # memory that two processes share
    "testing/ring_peer.py": {"threading"},  # a thread that reads requests, and ends with the parent
    "transports/shared_bits.py": {"ctypes"},  # the standard library has no atomic operation on memory
    "transports/shared_memory_file.py": {"mmap", "socket"},  # the file itself, and the socket that hands it over
    "transports/vhost_user_client.py": {"mmap", "socket"},  # one connection: descriptors come in, memory is mapped
    "transports/vhost_user_channel.py": {"socket"},  # what is sent without waiting
    "devices/net/ports/sockets.py": {"socket"},  # frames to and from another program
    "transports/vhost_user_dirty.py": {"mmap"},  # a bitmap shared with a back-end
    "transports/vhost_user_server.py": {"socket"},  # accepts connections
    "transports/vhost_user_servers.py": {"socket"},  # for several devices in one loop
    "transports/vhost_user_workers.py": {"threading"},  # serve queues side by side
    "transports/vhost_user_proxy.py": {"socket"},  # between a front-end and a back-end
    "transports/vhost_user_follower.py": {"mmap"},  # looks at the memory they share
    "transports/vhost_user_link.py": {"socket"},  # a front-end's connection
    "transports/vhost_user_transport.py": {"mmap", "socket"},  # connects, and shares memory
}
"""Who may touch the operating system, and what with; every other module does no I/O and starts no thread."""


def _imports(path: Path) -> Iterator[str]:
    """The full names of the modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from virtio_py import memory` imports a unit, too.
            yield from (
                [f"virtio_py.{a.name}" for a in node.names] if node.module == "virtio_py" else [node.module or ""]
            )


def _unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_unit_has_a_floor() -> None:
    assert {_unit(path) for path in SOURCES} - {"__init__"} <= FLOOR.keys()


@every_source
def test_imports_go_to_lower_floors(path: Path) -> None:
    here = _unit(path)
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "virtio_py" or len(parts) < 2 or parts[1] == here or parts[1].startswith("__"):
            continue
        assert here == "__init__" or FLOOR[parts[1]] < FLOOR[here], f"{here} imports {name}"
        assert (here, parts[1]) not in STRANGERS, f"{here} imports {name}"


@every_source
def test_only_shells_touch_the_operating_system(path: Path) -> None:
    used = {name.split(".")[0] for name in _imports(path)} & OUTSIDE
    assert used <= SHELLS.get(str(path.relative_to(PACKAGE)), set())


def test_the_list_of_shells_is_true() -> None:
    for name, modules in SHELLS.items():
        assert modules <= {m.split(".")[0] for m in _imports(PACKAGE / name)}, f"{name} needs them no longer"


# Offsets -----------------------------------------------------------------------------------------------------------

# Numbers in the layouts are declarations, and in drawings columns of text.
RING_SOURCES = [p for p in SOURCES if _unit(p) == "rings" and p.name not in ("layouts.py", "drawing.py")]
ALLOWED = {
    "engine.py": {"8 * count"},  # bytes of private words
    "half.py": {"2 * size"},  # room for segments
    "compiled.py": {"args[2]", ":12", "2 * _LINE_PAIR"},  # an intrinsic's third argument; of a digest; room to align
    "places.py": {"parts[2]"},  # the third of three areas
}
NUMBERS = {
    "compiled.py": {"_LINE_PAIR"},  # bytes of two cache lines
    "places.py": {"CACHE_LINE"},
    "half.py": {"MAX_CHAIN"},  # descriptors
}


def _typed_offsets(tree: ast.AST) -> Iterator[str]:
    """Expressions that say where something lies by a number: n + 4, 6 * n, view[4:], view[12], f(offset=8)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
            if any(_number(side) for side in (node.left, node.right)) and not _of_layout(node):
                yield ast.unparse(node)
        elif isinstance(node, ast.Slice):
            yield from (ast.unparse(node) for side in (node.lower, node.upper) if side is not None and _number(side))
        elif (isinstance(node, ast.Subscript) and _number(node.slice)) or (
            isinstance(node, ast.keyword) and "offset" in (node.arg or "") and _number(node.value)
        ):
            yield ast.unparse(node)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value > 1


def _of_layout(node: ast.BinOp) -> bool:
    """A layout's own offset or size in other units, such as bits."""
    calls = [n for n in (node.left, node.right) if isinstance(n, ast.Call | ast.Attribute)]
    return any(re.search(r"\.(offset|end)\(|\.size$", ast.unparse(call)) for call in calls)


@pytest.mark.parametrize("path", RING_SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_ring_offsets_come_from_the_layouts(path: Path) -> None:
    assert set(_typed_offsets(ast.parse(path.read_text()))) == ALLOWED.get(path.name, set())


@pytest.mark.parametrize("path", RING_SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_ring_source_names_a_number_for_a_place(path: Path) -> None:
    """`USED_IDX = 1` is an offset, too. Only `common` has bare numbers: the words of our own state, and fault codes."""
    if path.name != "common.py":
        assert set(_numbers(ast.parse(path.read_text()))) == NUMBERS.get(path.name, set())


def _numbers(tree: ast.Module) -> Iterator[str]:
    """The targets of a module's assignments of bare numbers."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            if any(isinstance(v, ast.Constant) and type(v.value) is int for v in values):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                yield ast.unparse(target).strip("()")


@pytest.mark.parametrize(
    "line", ["used + 4 + 8 * n", "6 + 2 * n", "view[4:]", "view[:12]", "words[2]", "load(view, offset=8)", "16 * index"]
)
def test_a_typed_offset_would_be_found(line: str) -> None:
    assert list(_typed_offsets(ast.parse(line)))


@pytest.mark.parametrize("line", ["USED_IDX = 1", "FLAGS: Final = 0", "FLAGS, IDX = 0, 1"])
def test_a_number_for_a_place_would_be_found(line: str) -> None:
    assert list(_numbers(ast.parse(line)))


@pytest.mark.parametrize("path", RING_SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rings_have_no_codec_of_their_own(path: Path) -> None:
    assert not {"struct", "construct"} & set(_imports(path))


# Weight ------------------------------------------------------------------------------------------------------------

HEAVY = ("numba", "numpy", "rich", "matplotlib")
PROGRAM = """
import sys, time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start, *(name for name in {heavy} if name in sys.modules))
"""


def _import_in_a_new_process(module: str) -> tuple[float, list[str]]:
    program = PROGRAM.format(module=module, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    return float(seconds), loaded


def test_importing_the_package_is_quick_and_light() -> None:
    runs = [_import_in_a_new_process("virtio_py") for _ in range(5)]
    assert [loaded for _, loaded in runs] == [[]] * 5
    assert min(seconds for seconds, _ in runs) < 0.150


@pytest.mark.parametrize("module", ["virtio_py.device", "virtio_py.driver", "virtio_py.transports.in_process"])
def test_driver_and_device_need_nothing_heavy(module: str) -> None:
    assert _import_in_a_new_process(module)[1] == []


# Clauses -----------------------------------------------------------------------------------------------------------

CLAUSES = {line.split("\t")[0] for line in (ROOT / "spec_notes" / "clauses.tsv").read_text().splitlines()[1:]}
LOOKS_LIKE_A_CLAUSE = re.compile(r"[a-z][a-z0-9-]*\.(driver|device)\.[a-z0-9.-]+\.\d+")


def _clauses(path: Path) -> Iterator[str]:
    """Strings that look like clauses, and whatever pytest.mark.clause is given."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and LOOKS_LIKE_A_CLAUSE.fullmatch(node.value):
            yield node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.clause":
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


@pytest.mark.parametrize(
    "path", [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_clause_that_is_named_exists(path: Path) -> None:
    assert set(_clauses(path)) - CLAUSES == set()
