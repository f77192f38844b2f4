"""The conformance suite: checks of a device's clauses, from the driver's side of any carrier.

    verdicts = run(lambda: VhostUserTransport("/run/disk.sock", DeviceId.BLOCK), "blk")
    verdicts = run(lambda: InProcess(MyDevice()), "blk", patience=0.2)

`catalogue` finds the checks, `rig` is what a check is given, `driver` judges the other side.
"""

from __future__ import annotations

from virtio_py.testing.conformance.run import Suite, run
from virtio_py.testing.conformance.verdicts import Verdict, as_json, as_junit, exit_status
from virtio_py.testing.endings import Outcome

__all__ = ["Outcome", "Suite", "Verdict", "as_json", "as_junit", "exit_status", "run"]
