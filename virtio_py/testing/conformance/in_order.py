"""VIRTIO_F_IN_ORDER (2.7.9, 2.8.9)."""

from __future__ import annotations

from attrs import evolve

from virtio_py.spec import Feature
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.parts import recut
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Failed


@check("features.device.reserved-feature-bits.5", needs=(Feature.IN_ORDER,))
def buffers_come_back_in_order(rig: Rig) -> None:
    """Buffers are used in the order in which they were made available."""
    rig.start(Feature.IN_ORDER, size=64)
    request = rig.kind.good(rig)
    # Of different shapes, so that they take different times.
    shapes = [request, evolve(request, readable=recut(request.readable, 1)), request] * 4
    for _ in range(4):
        sent = [rig.stage(shape) for shape in shapes]
        rig.publish(request.queue)
        order = rig.order(request.queue, len(sent))
        if order != [one.id for one in sent]:
            raise Failed(f"made available: {[one.id for one in sent]}, used: {order}")
        for one in sent:
            request.judge(rig.take(one).data)
