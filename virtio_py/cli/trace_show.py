"""What `virtio-py trace` prints: a line a message, and a summary."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import median
from typing import Any, Final

from attrs import define, field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from virtio_py.transports.vhost_user_follower import RingSeen
from virtio_py.transports.vhost_user_rules import RULES
from virtio_py.transports.vhost_user_tracer import FRONT, REQUESTS, Traced

_ADDRESSES: Final = ("addr", "offset", "iova", "u64")
_LONGEST: Final = 64


def line_of(seen: Traced) -> str:
    """One message as a line, without its time: direction, name, fields, features, and what it answers."""
    arrow = "→" if seen.sender == FRONT else "←"
    parts = [arrow, "(requests)" if seen.channel == REQUESTS else "", seen.name, fields_text(seen.values)]
    parts += ["[" + " ".join(seen.features) + "]" if seen.features else ""]
    parts += [f"with {seen.fds} descriptor{'s' * (seen.fds != 1)}" if seen.fds else ""]
    if seen.seconds is not None:
        parts += [f"answers {seen.answers}", f"after {seen.seconds * 1e6:.0f} µs"]
    return " ".join(part for part in [*parts, "FAILED" if seen.failed else ""] if part)


def fields_text(values: Any) -> str:
    """Fields as `name=value`; addresses, and what is used as a mask, in hexadecimal digits."""
    if isinstance(values, dict):
        return " ".join(f"{name}={_value(name, value)}" for name, value in values.items())
    return "" if values is None else str(values)


def _value(name: str, value: Any) -> str:
    if isinstance(value, int):
        return f"{value:#x}" if any(word in name for word in _ADDRESSES) else str(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(name, part) for part in value) + "]"
    if isinstance(value, dict):
        return "{" + fields_text(value) + "}"
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"


@define
class Printer:
    """Prints to the terminal, and counts for the summary. quiet: only broken rules are printed on the way."""

    quiet: bool = False
    console: Console = field(factory=lambda: Console(highlight=False, soft_wrap=True))
    _messages: Counter[str] = field(factory=Counter, init=False)
    _seconds: dict[str, list[float]] = field(factory=lambda: defaultdict(list), init=False)
    _broken: Counter[str] = field(factory=Counter, init=False)
    _rings: dict[tuple[int, int], Counter[str]] = field(factory=lambda: defaultdict(Counter), init=False)

    def message(self, session: int, seen: Traced) -> None:
        """One message of a session."""
        if seen.kind == "request":
            self._messages[seen.name] += 1
        if seen.seconds is not None:
            self._seconds[seen.name].append(seen.seconds)
        if not self.quiet and seen.kind in ("request", "reply"):
            style = "red" if seen.failed else "cyan" if seen.kind == "reply" else ""
            self.console.print(Text(f"{session}.{seen.number} {seen.time:.6f} {line_of(seen)}", style))
        for breach in seen.broken:
            self._broken[breach.rule] += 1
            text = f"{session}.{seen.number} {seen.name} by the {seen.sender} breaks '{breach.rule}': {breach.message}"
            self.console.print(Text(text, "bold red"))

    def ring(self, session: int, seen: RingSeen) -> None:
        """What was seen of a ring."""
        counts = self._rings[session, seen.ring]
        counts[seen.event] += 1
        if seen.available is not None and seen.used is not None:  # else nobody looked: in packed rings nothing counts
            counts["available"] += seen.available
            counts["used"] += seen.used
        counts["most outstanding"] = max(counts["most outstanding"], seen.outstanding or 0)
        if not self.quiet:
            moved = "" if seen.available is None else f" +{seen.available} available +{seen.used} used"
            out = "" if seen.outstanding is None else f" {seen.outstanding} outstanding"
            self.console.print(Text(f"{session} {seen.time:.6f} ring {seen.ring} {seen.event}{moved}{out}", "dim"))
        for problem in seen.problems:
            self._broken[problem.clause or "ring"] += 1
            text = f"{session} ring {seen.ring}, {problem.where}: {problem.message} ({problem.clause})"
            self.console.print(Text(text, "bold red"))

    def summary(self) -> None:
        """Tables of all that was counted."""
        table = Table("request", "number", "answered", "median µs", "longest µs", title="Messages")
        for name, count in sorted(self._messages.items()):
            took = [second * 1e6 for second in self._seconds[name]]
            times = (f"{median(took):.0f}", f"{max(took):.0f}") if took else ("", "")
            table.add_row(name, str(count), str(len(took)), *times)
        self.console.print(table)
        if self._rings:
            names = ("kick", "call", "available", "used", "most outstanding")
            rings = Table("session", "ring", *names, title="Rings")
            for (session, ring), counts in sorted(self._rings.items()):
                rings.add_row(str(session), str(ring), *(str(counts.get(name, "")) for name in names))
            self.console.print(rings)
        for rule, count in self._broken.most_common():
            self.console.print(Text(f"broken {count} times: {rule} ({RULES.get(rule, 'virtio')})", "bold red"))
        if not self._broken:
            self.console.print("No rule was broken.")
