"""The index of normative clauses, and which of them tests observe: nothing is counted that no test names.

spec_notes/clauses.tsv    the index: id, role, level, scope, area, section, gist
spec_notes/tested.tsv     what the last full test run recorded: clause id, test
spec_notes/argued.tsv     clauses that no test can observe, each with the reason in one sentence
spec_notes/coverage.md    made from these by `virtio-py clauses --write`
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from virtio_py.errors import UsageError

STATUSES: Final = ("tested", "argued", "open")
SCOPES: Final = ("core", "extended", "legacy", "beyond")


@frozen
class Clause:
    """One normative clause. role: device or driver; level: MUST, SHOULD-NOT …; scope: one of SCOPES."""

    id: str
    role: str
    level: str
    scope: str
    area: str
    section: str
    gist: str


@define
class Coverage:
    """The clauses, the tests that observe each, and the reasons for those that none can observe."""

    clauses: dict[str, Clause]
    tests: dict[str, list[str]] = field(factory=dict)
    reasons: dict[str, str] = field(factory=dict)

    def status(self, clause: Clause) -> str:
        """tested, argued or open."""
        return "tested" if self.tests.get(clause.id) else "argued" if clause.id in self.reasons else "open"

    def row(self, clause: Clause) -> dict[str, Any]:
        """What `virtio-py clauses --json` prints of a clause."""
        return {
            "id": clause.id,
            "role": clause.role,
            "level": clause.level,
            "scope": clause.scope,
            "area": clause.area,
            "status": self.status(clause),
            "tests": self.tests.get(clause.id, []),
            "reason": self.reasons.get(clause.id, ""),
            "gist": clause.gist,
        }

    def select(self, area: str | None = None, only_open: bool = False) -> list[Clause]:
        """The clauses of an area (and of those below it: blk has blk-zoned), or all; those that are open, or all."""
        return [
            c
            for c in self.clauses.values()
            if (area is None or c.area == area or c.area.startswith(f"{area}-"))
            and (not only_open or self.status(c) == "open")
        ]


def notes_folder() -> Path:
    """spec_notes/ of the checkout we run from. Raises UsageError where there is none, as in a plain installation."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).parents[2]):
        if (folder / "spec_notes" / "clauses.tsv").is_file():
            return folder / "spec_notes"
    raise UsageError("no spec_notes/clauses.tsv here or above: run this in a checkout of virtio_py")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(newline="") as lines:
            yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def load(folder: Path) -> Coverage:
    """What a folder says. Raises UsageError for a record or a reason of a clause that the index does not have."""
    index = {row["id"]: Clause(**row) for row in _rows(folder / "clauses.tsv")}
    coverage = Coverage(index)
    for row in _rows(folder / "tested.tsv"):
        coverage.tests.setdefault(row["id"], []).append(row["test"])
    coverage.reasons = {row["id"]: row["reason"] for row in _rows(folder / "argued.tsv")}
    if strange := (coverage.tests.keys() | coverage.reasons.keys()) - index.keys():
        raise UsageError(f"{folder.name}/clauses.tsv does not have {', '.join(sorted(strange)[:3])}")
    return coverage


def write_record(folder: Path, observed: Iterable[tuple[str, str]]) -> None:
    """Stores which test observed which clause, as (clause id, test) pairs."""
    lines = [f"{clause}\t{test}\n" for clause, test in sorted(set(observed))]
    (folder / "tested.tsv").write_text("id\ttest\n" + "".join(lines))


def as_markdown(coverage: Coverage) -> str:
    """coverage.md: a table of scopes, one of areas, and the open clauses of scope core."""
    lines = [
        "# Coverage of the specification's clauses",
        "",
        "Made by `virtio-py clauses --write` from the index, from what the last full test run recorded, and from "
        "`argued.tsv`.",
        "`virtio-py clauses --area AREA` shows each clause with its tests.",
        "",
        *_table("scope", SCOPES, coverage, lambda c: c.scope),
        "",
        *_table("area", sorted({c.area for c in coverage.clauses.values()}), coverage, lambda c: c.area),
        "",
        "## Open, scope core",
        "",
    ]
    lines += [f"- `{c.id}` ({c.level}): {c.gist}" for c in coverage.select(only_open=True) if c.scope == "core"]
    return "\n".join(lines) + "\n"


def _table(title: str, names: Iterable[str], coverage: Coverage, key: Any) -> Iterator[str]:
    counts = Counter((key(c), coverage.status(c)) for c in coverage.clauses.values())
    yield f"| {title} | clauses | {' | '.join(STATUSES)} |"
    yield "|---|---:|---:|---:|---:|"
    for name in names:
        row = [counts[name, status] for status in STATUSES]
        yield f"| {name} | {sum(row)} | {' | '.join(map(str, row))} |"
