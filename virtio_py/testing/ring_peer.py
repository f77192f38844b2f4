"""The process with the device's half of a benchmark's queue: `python -m virtio_py.testing.ring_peer FD KICK CALL CPU`.

One request a line of JSON on standard input, `{"case": …, "areas": …}` for a new queue and `{"total": …}` for a run,
and one answer a line on standard output, to a run two: when it is about to begin, and how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from queue import SimpleQueue
from threading import Thread
from typing import Any

from attrs import define, field

from virtio_py.testing.machine import pin
from virtio_py.testing.ring_cases import Case
from virtio_py.testing.ring_exchange import clear
from virtio_py.testing.ring_halves import DeviceHalf, Ground, make_device


@define(eq=False)
class Peer:
    """The device of the queue that was asked for last."""

    ground: Ground
    case: Case = field(factory=Case)
    half: DeviceHalf | None = None

    def serve(self, request: dict[str, Any]) -> None:
        """Carries out one request."""
        if "case" in request:
            self.case = Case(**request["case"])
            self.half = make_device(self.case, self.ground, tuple(request["areas"]))
            answer({"ready": True})
        elif self.half is not None:
            self.run(self.half, request["total"])

    def run(self, half: DeviceHalf, total: int) -> None:
        """One run of the kernel."""
        kernel = half.queue.engine.kernels[f"{self.case.layout}_exercise_device"]
        clear(half.counters)
        answer({"ready": True})
        signals = self.ground.signals(self.case)
        code = kernel(*half.arguments, half.counters, total, self.case.batch, *signals)
        answer({"code": int(code), "counters": [int(count) for count in half.counters]})


def answer(message: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(message), flush=True)


def read_requests(requests: SimpleQueue[dict[str, Any]]) -> None:
    """Takes requests off standard input. When it ends we must, even in the middle of a kernel: nobody answers it."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Serves until standard input ends."""
    fd, kick, call, processor = map(int, arguments)
    # Ctrl-C goes to the whole group of processes; the one that started us decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
    Thread(target=read_requests, args=[requests], daemon=True).start()
    pin(processor if processor >= 0 else None)
    peer = Peer(Ground(fd, kick, call))
    while True:
        peer.serve(requests.get())


if __name__ == "__main__":
    main(sys.argv[1:])
