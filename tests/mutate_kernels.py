"""Breaks the ring kernels on purpose, one comparison, mask or wrap at a time, and sees which tests notice.

    python tests/mutate_kernels.py            every mutant, in some minutes; exit status 1 if an unexpected one survives
    python tests/mutate_kernels.py --list     what would be tried
    python tests/mutate_kernels.py split_take packed_walk: '>='     only those whose description has one of these

Mutants are made from the syntax trees of `virtio_py/rings/kernels`, in a copy of the package, and tested with the
interpreted engine: the compiled one runs the same code. A few mutants change nothing that anyone could observe; they
are listed below, each with the reason.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

ROOT: Final = Path(__file__).parent.parent
KERNELS: Final = Path("virtio_py/rings/kernels")
FILES: Final = ("common.py", "split_device.py", "split_driver.py", "packed_device.py", "packed_driver.py")

TESTS: Final = (
    "tests/test_engines.py::test_need_event_is_membership_of_an_interval",
    "tests/test_engines.py::test_need_event_around_the_wrap",
    "tests/test_ring_model.py",
    "tests/test_ring_hostile.py",
    "tests/test_in_process.py",
    "tests/test_kernel_edges.py",
    "tests/test_engines.py::test_translation_is_that_of_guest_memory",
)
_SECONDS: Final = 240
"""For all tests of one mutant; whoever takes longer has been made to loop, which a test noticed by not ending."""

# Hypothesis may stop at the first failure: what the smallest one is does not matter here.
_PROFILE: Final = """
from hypothesis import HealthCheck, Phase, settings
settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None,
                          suppress_health_check=list(HealthCheck))
settings.load_profile("mutants")
"""

_WALKED: Final = "a buffer of one descriptor is walked like any other, and found to be the same"
EQUIVALENT: Final[dict[str, str]] = {
    "split_take: flags & (F_NEXT | F_INDIRECT): unmasked": _WALKED,
    "packed_take: flags & (F_NEXT | F_INDIRECT): unmasked": _WALKED,
}
"""Description to the reason why no test can tell."""

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[str, str]]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}
_DROPPED: Final = {ast.BitXor: "^=", ast.BitAnd: "&=", ast.Sub: "-="}


@frozen
class Mutant:
    """Characters [start, end) of a kernel file, replaced. about: what it does, unique and without line numbers."""

    file: str
    function: str
    line: int
    start: int
    end: int
    replacement: str
    about: str

    def source(self) -> str:
        """The file as it is."""
        return (ROOT / KERNELS / self.file).read_text()

    def apply(self, source: str) -> str:
        """The file's source with the mutation in it."""
        return source[: self.start] + self.replacement + source[self.end :]

    @property
    def layout(self) -> str:
        """The only layout that the mutant can affect, or nothing."""
        return self.file.partition("_")[0] if "_" in self.file else ""


def mutants() -> list[Mutant]:
    """All of them, in the order of the source."""
    found: list[Mutant] = []
    for file in FILES:
        source = (ROOT / KERNELS / file).read_text()
        for function in ast.parse(source).body:
            if isinstance(function, ast.FunctionDef) and "kernel" in map(ast.unparse, function.decorator_list):
                found += _of_function(file, source, function)
    return sorted(found, key=lambda mutant: (FILES.index(mutant.file), mutant.start))


def _of_function(file: str, source: str, function: ast.FunctionDef) -> Iterator[Mutant]:
    seen: dict[str, int] = {}
    for start, end, replacement, about in _sites(_Text(source), function):
        words = f"{function.name}: {about}"
        seen[words] = seen.get(words, 0) + 1
        if seen[words] > 1:
            words += f" ({seen[words]})"
        yield Mutant(file, function.name, source.count("\n", 0, start) + 1, start, end, replacement, words)


class _Text:
    """A source, and where in it the parts of its tree stand."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self.lines[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.lines[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.expr | ast.stmt) -> str:
        return self.source[self.start(node) : self.end(node)]


Site = tuple[int, int, str, str]
"""(start, end, replacement, description)"""


def _sites(text: _Text, function: ast.FunctionDef) -> Iterator[Site]:
    for node in ast.walk(function):
        if isinstance(node, ast.Compare):
            yield from _comparisons(text, node)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.Mod):
            yield _whole(text, node, f"({text.of(node.left)})", "unmasked")
        elif isinstance(node, ast.AugAssign) and type(node.op) in _DROPPED:
            yield _whole(text, node, "pass", "dropped")
        elif isinstance(node, ast.BoolOp):
            words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            yield _between(text, node, node.values[0], node.values[1], words)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield _whole(text, node, f"({text.of(node.operand)})", "not negated")
        if isinstance(node, ast.If | ast.IfExp | ast.While) and isinstance(node.test, ast.Name | ast.Attribute):
            yield _whole(text, node.test, f"(not {text.of(node.test)})", f"negated in line: {_line(text, node)}")


def _comparisons(text: _Text, node: ast.Compare) -> Iterator[Site]:
    left = node.left
    for operator, right in zip(node.ops, node.comparators, strict=True):
        yield _between(text, node, left, right, _COMPARISONS[type(operator)])
        left = right


def _between(text: _Text, node: ast.expr, left: ast.expr, right: ast.expr, words: tuple[str, str]) -> Site:
    old, new = words
    # Parentheses may stand between an operand and the operator.
    start = text.source.index(old, text.end(left))
    assert start < text.start(right)
    return start, start + len(old), new, f"{text.of(node)}: {old} becomes {new}"


def _whole(text: _Text, node: ast.expr | ast.stmt, replacement: str, what: str) -> Site:
    return text.start(node), text.end(node), replacement, f"{text.of(node)}: {what}"


def _line(text: _Text, node: ast.expr | ast.stmt) -> str:
    return text.source[text.start(node) :].partition("\n")[0]


class Workshop:
    """A copy of the package and its tests, in which one thing at a time is broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("virtio_py", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "data", "peers"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "mutants_profile.py").write_text(_PROFILE)

    @contextmanager
    def broken(self, file: str, change: Callable[[str], str]) -> Iterator[None]:
        """A kernel file with its source changed, until the end of the `with`."""
        path = self.folder / KERNELS / file
        source = path.read_text()
        path.write_text(change(source))
        try:
            yield
        finally:
            path.write_text(source)

    def test(self, mutant: Mutant) -> str:
        """The first test that notices, "time" if they do not come to an end, or nothing for a survivor."""
        with self.broken(mutant.file, mutant.apply):
            return self._run(mutant.layout)

    def _run(self, layout: str) -> str:
        # Interpreted only; and a mutant of one layout leaves the other as it is.
        keep = ["not compiled", "not both_engines", *(f"not {name}" for name in _OTHER.get(layout, ()))]
        command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
        command += ["-p", "mutants_profile", "--timeout", "60", "-k", " and ".join(keep), *TESTS]
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return "time"
        if done.returncode == 0:
            return ""
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return lines[0].split(" - ")[0] if lines else f"status {done.returncode}"


_OTHER: Final = {"split": ("packed",), "packed": ("split",)}


def hunt(chosen: Sequence[Mutant], workers: int) -> Iterator[tuple[Mutant, str]]:
    """Each mutant with what noticed it, in order. Raises AssertionError when the tests fail without any mutant."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(workers) as pool:
        shops = [Workshop(Path(folder) / str(n)) for n in range(workers)]
        failed = shops[0]._run("")
        assert not failed, f"without any mutant: {failed}"
        free = list(shops)

        def test(mutant: Mutant) -> str:
            shop = free.pop()
            try:
                return shop.test(mutant)
            finally:
                free.append(shop)

        yield from zip(chosen, pool.map(test, chosen), strict=True)


def main() -> int:
    """Prints a line for each mutant, and how many died; 1 if one survived that should not have."""
    parser = argparse.ArgumentParser(description="Break the ring kernels and see which tests notice.")
    parser.add_argument("words", nargs="*", help="only mutants whose description has one of these")
    parser.add_argument("--list", action="store_true", help="only say what would be tried")
    parser.add_argument("-j", type=int, default=os.cpu_count() or 1, dest="workers", help="how many at once")
    args = parser.parse_args()
    chosen = [m for m in mutants() if not args.words or any(word in m.about for word in args.words)]
    if args.list:
        print("\n".join(f"{m.file}:{m.line} {m.about}" for m in chosen))
        return 0
    survivors = []
    for mutant, killer in hunt(chosen, args.workers):
        if not killer:
            survivors.append(mutant)
        reason = killer or EQUIVALENT.get(mutant.about) or "*** SURVIVED ***"
        print(
            f"{'died' if killer else 'lives':5} {mutant.file}:{mutant.line} {mutant.about}\n      {reason}", flush=True
        )
    argued = [mutant for mutant in survivors if mutant.about in EQUIVALENT]
    died = len(chosen) - len(survivors)
    print(f"{len(chosen)} mutants: {died} died, {len(argued)} change nothing, {len(survivors) - len(argued)} survived")
    return 1 if len(survivors) > len(argued) else 0


if __name__ == "__main__":
    sys.exit(main())
