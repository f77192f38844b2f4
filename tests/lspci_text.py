"""What the tests of PCI share: the stored dumps, lspci's text taken apart, and dumps made for lspci to read."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from attrs import Factory, define

from tests.peers.require import require
from virtio_py.pci.dump import Dumped, format_dump

DATA = Path(__file__).parent / "data" / "pci"
RANDOM = DATA / "random"
DUMPS = [path for path in sorted(DATA.glob("*/*.lspci")) if path.parent != RANDOM]
CAPABILITY = re.compile(r"\tCapabilities: \[(\w+)(?: v(\d+))?\] (.*)")


@define
class Shown:
    """One capability in lspci's manner: its place, version, title and the lines below, white space made even."""

    offset: int
    extended: bool
    version: int | None
    title: str
    lines: list[str] = Factory(list)


@define
class ShownFunction:
    """One function in lspci's manner; header: what stands before the first capability."""

    title: str
    header: list[str] = Factory(list)
    capabilities: list[Shown] = Factory(list)


def parse_lspci(text: str) -> list[ShownFunction]:
    """Takes `lspci -vvv` apart. Continuation lines, which have three tabs, are joined to what they continue."""
    functions: list[ShownFunction] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if not line.startswith("\t"):
            functions.append(ShownFunction(line))
        elif found := CAPABILITY.fullmatch(line):
            place, version, title = found.groups()
            number = int(version) if version else None
            functions[-1].capabilities.append(Shown(int(place, 16), len(place) == 3, number, even(title)))
        else:
            _detail(functions[-1], line)
    return functions


def _detail(function: ShownFunction, line: str) -> None:
    depth = len(line) - len(line.lstrip("\t"))
    top = depth == 1
    lines = function.header if top or not function.capabilities else function.capabilities[-1].lines
    if depth == 3 or (depth == 2 and lines is function.header):
        lines[-1] += " " + even(line)
    else:
        lines.append(even(line))


def even(text: str) -> str:
    """One blank wherever there is white space; names of vendors and devices, which only lspci knows, are cut out."""
    text = re.sub(r"Subsystem: .*\[(\w{4}:\w{4})\]", r"Subsystem: [\1]", " ".join(text.split()))
    return text.replace("VirtIO: <unknown>", "VirtIO: PciCfg")


# lspci keeps silent about these: the window of VIRTIO_PCI_CAP_PCI_CFG, and Link Control 2 of functions other than 0.
ONLY_OURS = ("Data: ", "LnkCtl2: ")


def disagreements(theirs: ShownFunction, ours: ShownFunction) -> Iterator[str]:
    """In which capabilities, in which lines, our text is not lspci's."""
    places = [[(c.offset, c.extended, c.version, c.title) for c in f.capabilities] for f in (theirs, ours)]
    if places[0] != places[1]:
        yield f"lspci has {places[0]}, we have {places[1]}"
    for their, our in zip(theirs.capabilities, ours.capabilities, strict=False):
        silent = [line for line in our.lines if line.startswith(ONLY_OURS) and line not in their.lines]
        lines = [line for line in our.lines if line not in silent]
        if lines != their.lines:
            yield f"at {their.offset:#x}: lspci has {their.lines}, we have {lines}"


def hex_dump(config: bytes, address: str = "00:00.0") -> str:
    """`config` as lspci -xxxx prints it and `lspci -F` reads it."""
    return format_dump(Dumped(address, bytearray(config)))


def run_lspci(*arguments: str) -> str:
    """lspci's text; without lspci the test is skipped, under CI it fails."""
    (program,) = require("lspci")
    done = subprocess.run(
        [program, "-nn", *arguments], capture_output=True, text=True, timeout=60, check=True, errors="replace"
    )
    return done.stdout
