"""What a check comes to, and how a list of that is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Final
from xml.etree import ElementTree

from attrs import asdict, frozen

from virtio_py.errors import VirtioError


class Outcome(StrEnum):
    """What became of a clause.

    PASS    it is kept, as far as was seen
    FAIL    it is broken
    REJECT  what the specification does not allow was refused, in a way the driver is told: a hang-up,
            DEVICE_NEEDS_RESET, an error status
    WEDGED  a good request is not answered any more
    SKIP    it was not tried; the detail says why
    """

    PASS = "PASS"
    FAIL = "FAIL"
    REJECT = "REJECT"
    WEDGED = "WEDGED"
    SKIP = "SKIP"


@frozen
class Verdict:
    """The outcome of one clause. detail: in words; seconds: that the check took; name: the check, and the layout."""

    clause: str
    verdict: Outcome
    detail: str
    seconds: float
    name: str = ""


BAD: Final = frozenset({Outcome.FAIL, Outcome.WEDGED})


class Ended(VirtioError):
    """A check ends with something other than PASS. clause: if it is not (only) the check's own that is meant."""

    outcome: Outcome = Outcome.FAIL

    def __init__(self, detail: str, *, clause: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.clause = clause


class Failed(Ended):
    """The device breaks the clause."""


class Rejected(Ended):
    """The device refuses what it may refuse."""

    outcome = Outcome.REJECT


class Wedged(Ended):
    """The device does not answer."""

    outcome = Outcome.WEDGED


class Skipped(Ended):
    """It cannot be tried here."""

    outcome = Outcome.SKIP


def as_json(verdicts: Sequence[Verdict]) -> str:
    """{"verdicts": [{"clause", "verdict", "detail", "seconds"}, …]}"""
    rows = [asdict(v, filter=lambda attribute, _: attribute.name != "name") for v in verdicts]
    return json.dumps({"verdicts": rows}, indent=1) + "\n"


def as_junit(verdicts: Sequence[Verdict], suite: str) -> str:
    """The same in the XML that continuous integration reads: a REJECT is a pass there, with its detail as output."""
    counts = {
        "tests": len(verdicts),
        "failures": sum(v.verdict in BAD for v in verdicts),
        "skipped": sum(v.verdict is Outcome.SKIP for v in verdicts),
        "time": f"{sum(v.seconds for v in verdicts):.3f}",
    }
    root = ElementTree.Element("testsuite", {"name": suite, **{key: str(value) for key, value in counts.items()}})
    for verdict in verdicts:
        _junit_case(root, verdict)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _junit_case(root: ElementTree.Element, verdict: Verdict) -> None:
    name = f"{verdict.clause} ({verdict.name})"
    case = ElementTree.SubElement(root, "testcase", name=name, time=f"{verdict.seconds:.3f}")
    if verdict.verdict in BAD:
        ElementTree.SubElement(case, "failure", message=verdict.detail, type=verdict.verdict)
    elif verdict.verdict is Outcome.SKIP:
        ElementTree.SubElement(case, "skipped", message=verdict.detail)
    else:
        ElementTree.SubElement(case, "system-out").text = f"{verdict.verdict}: {verdict.detail}"


def exit_status(verdicts: Sequence[Verdict]) -> int:
    """1 if anything is FAIL or WEDGED, else 0."""
    return int(any(v.verdict in BAD for v in verdicts))
