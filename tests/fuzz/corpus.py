"""Where inputs are kept: those that failed once, and some that reach far."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

FOUND: Final = Path(__file__).parent.parent / "data" / "fuzz"
"""A folder for each target, of inputs that failed; beside it NAME.hex, an input of the corpus a line."""


def kept(target: str) -> Iterator[tuple[str, bytes]]:
    """(a name, the input) of everything kept for a target."""
    for path in sorted((FOUND / target).glob("*")):
        yield path.name, path.read_bytes()
    for number, line in enumerate((FOUND / f"{target}.hex").read_text().splitlines()):
        yield f"corpus-{number}", bytes.fromhex(line)
