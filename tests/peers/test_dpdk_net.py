"""`virtio-py serve net` behind DPDK's virtio_user driver, which polls, serves controlq itself, and crashes on a used
ring that is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.peers.net import serve_net
from tests.peers.require import require

pytestmark = [pytest.mark.peer, pytest.mark.long]

# The main core does nothing but wait: both run on one processor, the last there is.
CPU = (os.cpu_count() or 1) - 1
EAL = ["--lcores", f"0@{CPU},1@{CPU}", "--no-pci", "--no-huge", "-m", "512", "--no-telemetry"]
POOL = ["--total-num-mbufs=16384", "--no-mlockall", "--stats-period", "1"]


def forward(socket: Path, log: Path, seconds: float, pairs: int, *driver: str) -> str:
    """Lets testpmd send a burst, and send everything back that comes, for some time; what it printed."""
    [testpmd] = require("dpdk-testpmd")
    device = ",".join(["net_virtio_user0", f"path={socket}", f"queues={pairs}", "queue_size=256", *driver])
    command = [testpmd, *EAL, f"--file-prefix=vpy{os.getpid()}", "--vdev", device, "--", "--forward-mode=io"]
    command += ["--tx-first", f"--rxq={pairs}", f"--txq={pairs}", *POOL]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
    return log.read_text(errors="replace")


@pytest.mark.parametrize("layout", ["split", "packed"])
@pytest.mark.parametrize("mergeable", [0, 1])
def test_packets_go_round(tmp_path: Path, layout: str, mergeable: int) -> None:
    socket = tmp_path / "net.sock"
    packed = int(layout == "packed")
    options = ["--port", "loopback", "--queue-pairs", "2", *(["--packed"] if packed else [])]
    with serve_net(socket, *options) as server:
        switches = (f"packed_vq={packed}", "in_order=0", f"mrg_rxbuf={mergeable}")
        printed = forward(socket, tmp_path / "log", 6, 2, *switches)
        assert "reset" not in server.log.read_text()
    received = max(int(count) for count in re.findall(r"RX-packets: (\d+)", printed))
    assert received > 500, printed
    assert not re.search(r"(RX|TX)-errors: *[1-9]", printed)
