"""From reset to DRIVER_OK and back (2.1, 2.4, 2.5, 2.6.1, 3.1)."""

from __future__ import annotations

from virtio_py.spec import DeviceStatus, Feature
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.rig import NEGOTIATED, RUNNING, Rig
from virtio_py.testing.endings import Skipped


@check("status.device.device-status-field.1")
def nothing_before_driver_ok(rig: Rig) -> None:
    """Before DRIVER_OK no buffer is consumed and no notification sent; after it the buffer is served."""
    rig.start(ready=False)
    request = rig.kind.good(rig)
    heard = rig.transport.used_notifications
    sent = rig.send(request, kick=False)
    rig.pause()
    rig.require(not rig.is_used(sent), "a buffer is used before DRIVER_OK")
    now = rig.transport.used_notifications
    rig.require(now == heard, f"{(now or 0) - (heard or 0)} used buffer notifications come before DRIVER_OK")
    rig.transport.write_status(RUNNING)
    rig.kick(request.queue)
    request.judge(rig.collect(sent).data)


@check("reset.device.device-reset.1")
def a_reset_clears_the_status(rig: Rig) -> None:
    """Writing 0 makes the status read 0, also in operation."""
    rig.need_status()
    rig.start()
    rig.good()
    rig.require(rig.transport.read_status() == RUNNING, f"the status is {rig.transport.read_status():#x} in operation")
    rig.reset()


@check("reset.device.device-reset.2")
def nothing_after_a_reset(rig: Rig) -> None:
    """After a reset neither the queues are touched nor notifications sent."""
    rig.start()
    rig.good()
    hand, heard = rig.hands[rig.kind.good(rig).queue], rig.heard
    rig.reset()
    before = _memory(rig)
    # The old ring, still where it was: nobody may look at it any more.
    parts = rig.parts(rig.kind.good(rig))
    hand.add(*(part.descriptor for part in parts))
    with_request = _memory(rig)
    rig.pause()
    rig.require(_memory(rig) == with_request, "memory is written to after a reset")
    rig.require(before != with_request, "the check has written nothing")
    rig.require(rig.heard == heard, "a used buffer notification comes after a reset")


def _memory(rig: Rig) -> bytes:
    region = rig.transport.arena.memory.regions[0]
    return bytes(region.view[: 1 << 20])


@check("reset.device.device-reset.1")
def it_starts_again_after_a_reset(rig: Rig) -> None:
    """A reset device can be initialised again, with queues elsewhere."""
    for size in (64, 16, 64):
        rig.start(size=size)
        rig.good()
        rig.reset()


@check("config.device.device-configuration-space.1", layouts="split")
def the_configuration_is_there_before_features_ok(rig: Rig) -> None:
    """Fields of offered features can be read before FEATURES_OK, and say what they say after it."""
    length = rig.kind.config(rig.offered)
    rig.reset()
    before = rig.need_config(length)
    rig.require(any(before) or rig.kind.name in ("console",), f"{length} bytes of the configuration are all zero")
    rig.require(rig.need_config(length) == before, "the configuration reads differently the second time")


@check("vq.device.virtqueue-reset.1", "vq.device.virtqueue-reset.2", "vq.device.virtqueue-re-enable.1")
def a_queue_is_reset(rig: Rig) -> None:
    """A reset queue is left alone, and set up anew, smaller, begins at its beginning."""
    rig.start(Feature.RING_RESET)
    rig.good()
    request = rig.kind.good(rig)
    old, heard = rig.hands[request.queue], rig.heard
    rig.transport.reset_queue(request.queue)
    parts = rig.parts(request)
    old.add(*(part.descriptor for part in parts))
    ring = rig.transport.arena.memory.read(old.queue.device_area, 4), old.descriptors()
    rig.pause()
    rig.require(
        ring == (rig.transport.arena.memory.read(old.queue.device_area, 4), old.descriptors()) and rig.heard == heard,
        "a queue that was reset is still served",
        "vq.device.virtqueue-reset.1",
    )
    rig.open(request.queue, 8)
    for _ in range(10):
        rig.good()


@check("status.device.device-status-field.3")
def who_needs_a_reset_says_so(rig: Rig) -> None:
    """DEVICE_NEEDS_RESET comes with a configuration change notification."""
    rig.need_status()
    rig.start()
    rig.good()
    before = rig.transport.config_notifications
    rig.spoil()
    if not rig.holds(lambda: rig.needs_reset, 4 * rig.quiet):
        raise Skipped("the device was not brought to ask for a reset")
    rig.require(
        rig.holds(lambda: rig.transport.config_notifications > before),
        "DEVICE_NEEDS_RESET is set, and no configuration change notification comes",
    )
    rig.start()
    rig.good()


@check("status.device.device-status-field.2")
def a_driver_error_is_told(rig: Rig) -> None:
    """A device that cannot go on sets DEVICE_NEEDS_RESET."""
    rig.need_status()
    rig.start()
    rig.good()
    rig.spoil()
    rig.should(rig.holds(lambda: rig.needs_reset, 4 * rig.quiet), "a bad ring does not lead to DEVICE_NEEDS_RESET")


@check("prose.status.read-back", layouts="split")
def the_status_keeps_what_the_driver_sets(rig: Rig) -> None:
    """Each bit that the driver adds is there when the status is read."""
    rig.need_status()
    rig.reset()
    status = 0
    for bit in (DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER):
        status |= int(bit)
        rig.transport.write_status(status)
        rig.require(
            rig.transport.read_status() == status, f"the status is {rig.transport.read_status():#x}, not {status:#x}"
        )
    rig.require(rig.negotiate(rig.choose()), "FEATURES_OK does not stay set")
    rig.require(rig.transport.read_status() == NEGOTIATED, f"the status is {rig.transport.read_status():#x}")
