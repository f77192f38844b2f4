"""What was seen of a driver, by clause."""

from __future__ import annotations

import re
from time import monotonic
from typing import Final

from attrs import define, field

from virtio_py.testing.conformance.verdicts import Verdict
from virtio_py.testing.endings import Outcome

_CLAUSE: Final = re.compile(r"\[([a-z0-9.-]+)\]")


@define
class Entry:
    """seen: how often there was occasion to keep it; broken: the first breach, in words, or ""; advice: likewise, of
    what a driver only should do; first: when it was seen first, in seconds from the beginning."""

    seen: int = 0
    broken: str = ""
    advice: str = ""
    first: float = 0.0


@define(eq=False)
class Ledger:
    """The clauses that can be judged, and what was seen of each."""

    clauses: tuple[str, ...]
    entries: dict[str, Entry] = field(init=False)
    _start: float = field(init=False, factory=monotonic)

    def __attrs_post_init__(self) -> None:
        self.entries = {clause: Entry() for clause in self.clauses}

    def must(self, clause: str, good: bool, breach: str) -> None:
        """An occasion to keep a clause, and whether it was."""
        entry = self._seen(clause)
        if not good:
            entry.broken = entry.broken or breach

    def should(self, clause: str, good: bool, breach: str) -> None:
        """Likewise, of what a driver may leave undone: it is mentioned, and no failure."""
        entry = self._seen(clause)
        if not good:
            entry.advice = entry.advice or breach

    def _seen(self, clause: str) -> Entry:
        entry = self.entries.setdefault(clause, Entry())
        if not entry.seen:
            entry.first = monotonic() - self._start
        entry.seen += 1
        return entry

    def heard(self, line: str) -> None:
        """A line of a server's log: what it refuses or hangs up for has a clause in brackets."""
        for clause in _CLAUSE.findall(line):
            self.must(clause, False, line)

    def verdicts(self, only: str = "") -> list[Verdict]:
        """PASS where there was occasion and no breach, FAIL for a breach, SKIP where there was no occasion."""
        return [
            Verdict(clause, *_outcome(entry), round(entry.first, 4), "driver")
            for clause, entry in self.entries.items()
            if not only or clause == only or clause.startswith(only.rstrip(".") + ".")
        ]


def _outcome(entry: Entry) -> tuple[Outcome, str]:
    if entry.broken:
        return Outcome.FAIL, entry.broken
    if not entry.seen:
        return Outcome.SKIP, "there was no occasion"
    advice = f"; advice not taken: {entry.advice}" if entry.advice else ""
    return Outcome.PASS, f"{entry.seen} times{advice}"
