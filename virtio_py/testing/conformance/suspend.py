"""Suspending a device (3.4)."""

from __future__ import annotations

from virtio_py.spec import DeviceStatus, Feature
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.rig import ACKNOWLEDGED, NEGOTIATED, RUNNING, Rig

_SUSPENDED = int(NEGOTIATED | DeviceStatus.SUSPEND)
_NEEDS = (Feature.SUSPEND,)


def _suspend(rig: Rig) -> None:
    _becomes(rig, _SUSPENDED, "basic.device.device-suspend.8")


def _resume(rig: Rig) -> None:
    _becomes(rig, RUNNING, "basic.device.device-suspend.9")


def _becomes(rig: Rig, status: int, clause: str) -> None:
    # Either way SUSPEND is what is written: it asks for the other of the two.
    rig.transport.write_status(RUNNING | int(DeviceStatus.SUSPEND))
    rig.holds(lambda: rig.needs_reset or rig.transport.read_status() == status)
    found = rig.transport.read_status()
    rig.require(rig.needs_reset or found == status, f"the status is {found:#x}, and not {status:#x}", clause)


@check("basic.device.device-suspend.8", "basic.device.device-suspend.9", needs=_NEEDS)
def it_suspends_and_resumes(rig: Rig) -> None:
    """A device suspends when told, and goes on when told."""
    rig.need_status()
    rig.start(Feature.SUSPEND)
    for _ in range(3):
        rig.good()
        _suspend(rig)
        _resume(rig)
        rig.good()


@check("basic.device.device-suspend.1", needs=_NEEDS)
def it_does_not_suspend_too_early(rig: Rig) -> None:
    """SUSPEND before DRIVER_OK has no effect."""
    rig.need_status()
    rig.start(Feature.SUSPEND, ready=False)
    rig.transport.write_status(NEGOTIATED | int(DeviceStatus.SUSPEND))
    status = rig.transport.read_status()
    rig.require(not status & DeviceStatus.SUSPEND, f"the status is {status:#x}")
    rig.transport.write_status(RUNNING)
    rig.good()


@check("basic.device.device-suspend.3", "basic.device.device-suspend.4", "basic.device.device-suspend.10", needs=_NEEDS)
def nothing_while_suspended(rig: Rig) -> None:
    """A suspended device neither touches its queues nor notifies; what waits is served when it resumes."""
    rig.need_status()
    rig.start(Feature.SUSPEND)
    rig.good()
    _suspend(rig)
    heard = rig.heard
    request = rig.kind.good(rig)
    sent = rig.send(request)
    rig.pause()
    rig.require(not rig.is_used(sent), "a buffer is used while suspended", "basic.device.device-suspend.4")
    rig.require(rig.heard == heard, "a notification comes while suspended", "basic.device.device-suspend.3")
    _resume(rig)
    rig.kick(request.queue)
    request.judge(rig.collect(sent).data)


@check("basic.device.device-suspend.11", "basic.device.device-suspend.12", needs=_NEEDS)
def what_is_under_way_is_finished(rig: Rig) -> None:
    """Buffers in flight are used, and told of, before the device says that it is suspended."""
    rig.need_status()
    rig.start(Feature.SUSPEND)
    sent = [rig.send(rig.kind.good(rig)) for _ in range(4)]
    _suspend(rig)
    back = [rig.is_used(one) for one in sent]
    rig.pause()
    rig.require(back == [rig.is_used(one) for one in sent], "a buffer is used after SUSPEND was reported")
    _resume(rig)
    for one in sent:
        rig.kick(one.request.queue)
        rig.collect(one)


@check("basic.device.device-suspend.1", needs=_NEEDS)
def unasked_it_does_not_suspend(rig: Rig) -> None:
    """Where VIRTIO_F_SUSPEND was not negotiated the bit does nothing."""
    rig.need_status()
    rig.start()
    rig.transport.write_status(RUNNING | int(DeviceStatus.SUSPEND))
    status = rig.transport.read_status()
    rig.require(status & ACKNOWLEDGED == ACKNOWLEDGED and bool(status & DeviceStatus.DRIVER_OK), f"{status:#x}")
    rig.good()


@check("basic.device.device-suspend.2", "basic.device.device-suspend.5", needs=_NEEDS)
def the_configuration_stays_as_it_is(rig: Rig) -> None:
    """The configuration of a suspended device stays as it is, whatever is written to it."""
    rig.need_status()
    rig.start(Feature.SUSPEND)
    length = rig.kind.config(rig.offered)
    before = rig.need_config(length)
    _suspend(rig)
    rig.pause()
    rig.require(rig.need_config(length) == before, "it has changed by itself", "basic.device.device-suspend.5")
    rig.transport.write_config(0, bytes(b ^ 0xFF for b in before))
    changed = rig.need_config(length) != before
    rig.should(not changed, "what is written to the configuration has an effect")
    _resume(rig)
    rig.good()
