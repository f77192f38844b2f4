"""DPDK's testpmd as a vhost-user back-end for network interfaces: without huge pages, on one processor."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.process import Server, serving
from tests.peers.require import require


@contextmanager
def dpdk_back_end(path: Path, mode: str = "macswap", queues: int = 1) -> Iterator[Server]:
    """Listens on `path`; what it receives it sends back on the same port, in the forwarding mode `mode`."""
    [program] = require("dpdk-testpmd")
    # Main and worker may share a processor; pools of the default size do not fit into this much memory.
    eal = ["--lcores", "0@0,1@0", "--no-pci", "--no-huge", "-m", "256", "--no-telemetry", "--no-shconf"]
    device = ["--vdev", f"net_vhost0,iface={path},queues={queues}"]
    work = [f"--forward-mode={mode}", "--port-topology=loop", "--total-num-mbufs=8192", "--no-mlockall"]
    # Without a terminal it ends at once, unless it has statistics to print.
    command = [program, *eal, *device, "--", *work, f"--rxq={queues}", f"--txq={queues}", "--stats-period=1"]
    with serving(command, path) as server:
        yield server
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
