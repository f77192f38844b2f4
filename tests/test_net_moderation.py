"""Notification coalescing: used buffer notifications, counted, in one process and over vhost-user."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.net_frames import Wire, frame_of
from tests.test_net_pair import PACKED, RING, SmallBuffers, pair, settle
from tests.test_vhost_user_transport import connected, serving
from virtio_py.devices.net.counters import Coalescing
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.layout import NetFeature
from virtio_py.errors import RequestError
from virtio_py.spec import DeviceId, Feature, bit, mask
from virtio_py.status import RING_FEATURES
from virtio_py.transports.in_process import InProcess
from virtio_py.watch import Timer, Watch, wait_ready

_F = NetFeature
COALESCING = mask(_F.CTRL_VQ, _F.NOTF_COAL, _F.VQ_NOTF_COAL, _F.MRG_RXBUF)
FOREVER = 1 << 31
FLAGS = RING & ~bit(Feature.EVENT_IDX)
FRAME = frame_of(b"x" * 20)


def started(ring: int = FLAGS, **options: Any) -> tuple[NetDriver, NetDevice, Wire, InProcess]:
    wire = Wire()
    driver, device, transport = pair(wire, COALESCING, ring, queue_size=64, **options)
    settle(transport)
    return driver, device, wire, transport


def over(transport: InProcess) -> int:
    """Has the times be over that the device waits for; how many there were."""
    timed = [watch for watch in transport.end.device.watch() if watch.timer is not None]
    for watch in timed:
        transport.end.attend(watch)
    return len(timed)


class Model:
    """The text of 5.1.6.5.9, for one queue: packets since the last time that a notification was due."""

    def __init__(self) -> None:
        self.limits = Coalescing()
        self.waiting = self.sent = 0

    def look(self) -> None:
        packets, usecs = self.limits
        if self.waiting and (not packets or not usecs or self.waiting >= packets):
            self.due()

    def due(self) -> None:
        self.sent += bool(self.waiting)
        self.waiting = 0


limits = st.tuples(st.sampled_from([0, 1, 2, 5]), st.sampled_from([0, FOREVER]))
steps = st.one_of(
    st.tuples(st.just("rx"), st.integers(1, 4)),
    st.tuples(st.just("tx"), st.integers(1, 4)),
    st.tuples(st.just("time"), st.just(0)),
    st.tuples(st.just("set rx"), limits),
    st.tuples(st.just("set tx"), limits),
    st.tuples(st.just("set one"), limits),
)


@settings(deadline=None)
@given(todo=st.lists(steps, max_size=30), ring=st.sampled_from([FLAGS, PACKED & ~bit(Feature.EVENT_IDX)]))
def test_notifications_are_those_of_the_text(todo: list[tuple[str, Any]], ring: int) -> None:
    """The driver wants to hear of everything, so that each that is due is sent."""
    driver, _, wire, transport = started(ring)
    models = {0: Model(), 1: Model()}
    before = {index: transport.end.calls[index] for index in models}
    for what, value in todo:
        if what == "rx":
            for _ in range(value):
                wire.deliver(Packet(FRAME))
                models[0].waiting += 1
                models[0].look()
            driver.receive_all()
            settle(transport)
        elif what == "tx":
            for _ in range(value):
                driver.send(FRAME)
            # The device takes them all at once: one completion.
            settle(transport)
            driver.flush()
            models[1].waiting += value
            models[1].look()
        elif what == "time":
            over(transport)
            for model in models.values():
                model.due()
        else:
            changed = Coalescing(*value)
            if what == "set one":
                driver.set_queue_coalescing(0, changed)
            else:
                driver.set_coalescing(**{"receive" if what == "set rx" else "transmit": changed})
            model = models[1 if what == "set tx" else 0]
            model.limits = changed
            model.look()
        assert {n: transport.end.calls[n] - before[n] for n in models} == {n: m.sent for n, m in models.items()}


@pytest.mark.parametrize("ring", [RING, PACKED])
def test_with_event_indices_too(ring: int) -> None:
    """A driver that takes only when it is told, and then asks to be told again: the ordinary case."""
    driver, _, wire, transport = started(ring)
    driver.set_coalescing(receive=Coalescing(5, FOREVER))
    driver.receiveq(0).enable_notifications()
    got = []
    for _ in range(4):
        for n in range(5):
            heard = transport.end.calls[0]
            wire.deliver(Packet(FRAME))
            assert transport.end.calls[0] - heard == (n == 4)
        got += driver.receive_all()
        driver.receiveq(0).enable_notifications()
        settle(transport)
    wire.deliver(Packet(FRAME))
    heard = transport.end.calls[0]
    assert over(transport) == 1
    assert transport.end.calls[0] == heard + 1
    assert over(transport) == 0
    assert len(got + driver.receive_all()) == 21


@pytest.mark.clause("net-coal.device.notifications-coalescing.8")
@pytest.mark.parametrize("ring", [FLAGS, PACKED & ~bit(Feature.EVENT_IDX)])
def test_a_driver_that_has_looked_meanwhile_is_not_told(ring: int) -> None:
    driver, _, wire, transport = started(ring)
    driver.set_coalescing(receive=Coalescing(3, FOREVER))
    queue = driver.receiveq(0)
    heard = transport.end.calls[0]
    wire.deliver(Packet(FRAME))
    assert len(driver.receive_all()) == 1
    queue.disable_notifications()
    assert over(transport) == 1
    for _ in range(6):
        wire.deliver(Packet(FRAME))
    assert transport.end.calls[0] == heard
    # What was due and not wanted is due no more: it begins anew.
    queue.enable_notifications()
    for n in range(3):
        assert transport.end.calls[0] == heard, n
        wire.deliver(Packet(FRAME))
    assert transport.end.calls[0] == heard + 1


def test_what_is_held_does_not_get_lost() -> None:
    """A queue that stops, a device that is suspended: what is then known of the queue says nothing of what was held."""
    for stop in ("stop", "suspend"):
        driver, _, wire, transport = started(FLAGS | bit(Feature.SUSPEND))
        driver.set_coalescing(receive=Coalescing(9, FOREVER))
        wire.deliver(Packet(FRAME))
        heard = transport.end.calls[0]
        if stop == "stop":
            transport.end.stop_queue(0)
        else:
            driver.suspend()
        assert transport.end.calls[0] == heard + 1
        over(transport)
        assert transport.end.calls[0] == heard + 1


@pytest.mark.clause("net-coal.device.notifications-coalescing.9")
def test_a_reset_holds_nothing_back() -> None:
    driver, device, wire, transport = started()
    driver.set_coalescing(receive=Coalescing(9, FOREVER), transmit=Coalescing(9, FOREVER))
    wire.deliver(Packet(FRAME))
    driver.send(FRAME)
    settle(transport)
    assert len(device.watch()) == 2
    timed = device.watch()
    driver.reset()
    assert device.watch() == []
    driver.start()
    heard = transport.end.calls.copy()
    # Even if a loop had seen the time come just before.
    for watch in timed:
        transport.end.attend(watch)
    assert transport.end.calls == heard
    wire.deliver(Packet(FRAME))
    assert transport.end.calls[0] == heard[0] + 1


def test_a_fault_while_time_passes() -> None:
    driver, device, wire, transport = started()
    driver.set_coalescing(receive=Coalescing(9, FOREVER))
    wire.deliver(Packet(FRAME))
    transport.end.needs_reset(RequestError("broken"))
    heard = transport.end.calls[0]
    assert over(transport) == 1
    assert transport.end.calls[0] == heard
    assert device.watch() == []


# Time


def test_timers_run_from_the_first_wait_on() -> None:
    rung: list[int] = []
    watches = [Watch(-1, 0, partial(rung.append, n), Timer(seconds)) for n, seconds in enumerate((0.06, 0.02))]
    start = time.monotonic()
    assert wait_ready(watches, 0) == []
    first = wait_ready(watches, None)
    assert first == [watches[1]]
    assert 0.02 <= time.monotonic() - start < 0.06
    assert wait_ready(watches[:1], 5) == [watches[0]]
    assert 0.06 <= time.monotonic() - start < 2
    assert rung == []


def test_in_process_the_time_passes_while_the_driver_waits() -> None:
    driver, _, wire, transport = started()
    driver.set_coalescing(receive=Coalescing(100, 20_000))
    wire.deliver(Packet(FRAME))
    heard, start = transport.end.calls[0], time.monotonic()
    while transport.end.calls[0] == heard:
        transport.wait(1)
    assert 0.015 < time.monotonic() - start < 0.9


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[NetDriver, NetDevice, Wire]]:
    wire = Wire()
    device = NetDevice(wire)
    with serving(tmp_path / "sock", device) as path, connected(path, DeviceId.NET) as transport:
        ring = RING_FEATURES & ~mask(Feature.EVENT_IDX, Feature.RING_PACKED)
        driver = SmallBuffers(transport, features=COALESCING | ring, queue_size=64).start()
        yield driver, device, wire
        driver.reset()


def test_over_vhost_user(served: tuple[NetDriver, NetDevice, Wire]) -> None:
    """Frames are sent with the queue's own notifications counted by the device, which is in another thread."""
    driver, device, wire = served
    driver.set_coalescing(transmit=Coalescing(16, 100_000))
    before = device.counts(1)["tx_interrupts"]
    start = time.monotonic()
    # One short of the count: nothing but the time tells of them.
    for _ in range(15):
        driver.send(FRAME)
    queue = driver.transmitq(0)
    queue.enable_notifications()
    while device.counts(1)["tx_interrupts"] == before:
        assert time.monotonic() - start < 5
        driver.transport.wait(0.05)
    assert time.monotonic() - start > 0.09
    assert device.counts(1)["tx_interrupts"] == before + 1
    driver.flush()
    assert len(wire.frames) == 15
    # And now the count, with all the time of the world.
    driver.set_coalescing(transmit=Coalescing(16, FOREVER))
    for _ in range(3):
        queue.enable_notifications()
        driver.send_all([FRAME] * 16)
    assert device.counts(1)["tx_interrupts"] <= before + 4
    assert len(wire.frames) == 15 + 48
