"""What a check comes to, and how a list of that is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree

from attrs import asdict, frozen

from virtio_py.testing.endings import Outcome


@frozen
class Verdict:
    """The outcome of one clause. detail: in words; seconds: that the check took; name: the check, and the layout."""

    clause: str
    verdict: Outcome
    detail: str
    seconds: float
    name: str = ""


BAD: Final = frozenset({Outcome.FAIL, Outcome.WEDGED})


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
