"""The other direction: a device that watches its driver, and says which clauses the driver keeps.

judge = judged(BlkDevice(medium), "blk")           a Device like any other, for any carrier
…                                                  whoever drives it drives
judge.ledger.verdicts()
"""

from __future__ import annotations

from virtio_py.testing.conformance.driver.judge import Judge, judged
from virtio_py.testing.conformance.driver.ledger import Ledger

__all__ = ["Judge", "Ledger", "judged"]
