"""One turn of service: buffers taken, handled by a device, and returned."""

from __future__ import annotations

from collections.abc import Sequence

from virtio_py.device.author import Administrator, Device
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue


def serve(device: Device | Administrator, queue: DeviceQueue, budget: int = 4) -> bool:
    """Takes and handles what is available, `budget` batches at the most: a driver that never stops adding must not
    keep the other queues waiting. True if something is left."""
    for _ in range(budget):
        queue.disable_notifications()
        chains = queue.take()
        _serve_batch(device, queue, chains)
        # Re-enabling comes before the last look: a buffer added in between would otherwise wait for ever (2.7.10).
        if not chains and not queue.enable_notifications():
            return False
    return True


def _serve_batch(device: Device | Administrator, queue: DeviceQueue, chains: Sequence[Chain]) -> None:
    done: list[Chain] = []
    try:
        for chain in chains:
            device.handle(queue, chain)
            if not chain.deferred:
                done.append(chain)
    finally:
        # Also when one chain was malformed: those before it are used, and the driver must see them.
        queue.complete(done)
