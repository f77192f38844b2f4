"""All mutants, and the sound ones beside them."""

from __future__ import annotations

from tests.mutants import blk, console, drivers, ends, kernels, net, scsi
from tests.mutants.registry import MUTANTS

__all__ = ["AREAS", "MUTANTS"]
AREAS = (kernels, ends, blk, net, scsi, console, drivers)
"""The modules: to have them imported is to have the mutants registered."""
