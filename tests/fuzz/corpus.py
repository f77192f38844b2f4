"""Where inputs are kept: those that failed once, and a few that reach far."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOUND: Final = Path(__file__).parent.parent / "data" / "fuzz"
"""A folder for each target."""
