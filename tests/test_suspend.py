"""Suspending and resuming a device (3.4), and resetting single queues (2.6.1), on both layouts and engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from attrs import define, field

from virtio_py.device import Device, DeviceEnd, QueueSpec
from virtio_py.driver import Driver
from virtio_py.errors import NegotiationError, UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import engine_named
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId, DeviceStatus, Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.in_process import InProcess

RUNNING = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK
ASLEEP = RUNNING & ~DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND


@define(eq=False)
class Echo(Device):
    """Upper-cases what it reads; keeps chains while `holding`; its configuration is four bytes."""

    device_id = DeviceId.ENTROPY
    config: bytes = b"abcd"
    holding: bool = False
    kept: list[Chain] = field(factory=list)
    resets: list[int] = field(factory=list)
    end: DeviceEnd | None = None

    def queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec("one", 8), QueueSpec("two", 8)]

    def read_config(self) -> bytes:
        return self.config

    def write_config(self, offset: int, data: bytes) -> None:
        self.config = self.config[:offset] + data + self.config[offset + len(data) :]

    def activate(self, end: DeviceEnd, features: int) -> None:
        self.end = end

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if self.holding:
            chain.defer()
            self.kept.append(chain)
            return
        chain.writable.write(chain.readable.read_all().upper())

    def busy(self) -> bool:
        return bool(self.kept)

    def queue_reset(self, index: int) -> None:
        self.resets.append(index)
        self.kept.clear()

    def finish(self) -> None:
        kept, self.kept = self.kept, []
        for chain in kept:
            chain.writable.write(chain.readable.read_all().upper())
            chain.complete()
        assert self.end is not None
        self.end.settled()


class EchoDriver(Driver):
    device_id = DeviceId.ENTROPY

    def post(self, queue: int = 0) -> Any:
        sent, answer = self._filled(b"hello"), self._borrow(5)
        self.queues[queue].add([sent.extent], [answer.extent], answer)
        return answer


CASES = [
    pytest.param(layout, engine, id=f"{'packed' if layout else 'split'}-{engine}")
    for layout in (0, bit(Feature.RING_PACKED))
    for engine in ("reference", "compiled")
]
every_case = pytest.mark.parametrize(("layout", "engine_name"), CASES)


def start(layout: int, engine_name: str, without: int = 0) -> tuple[Echo, InProcess, EchoDriver]:
    device, engine = Echo(), engine_named(engine_name)
    carrier = InProcess(device, engine=engine)
    features = (RING_FEATURES & ~bit(Feature.RING_PACKED) | layout) & ~without
    return device, carrier, EchoDriver(carrier, engine=engine, features=features).start()


def echo(driver: EchoDriver, queue: int = 0) -> bytes:
    answers, length = driver.transact(driver.queues[queue], [b"hello"], [5])
    assert length == 5
    return answers[0]


@pytest.mark.clause("basic.driver.device-suspend.2")
@pytest.mark.clause("basic.driver.device-suspend.6")
@pytest.mark.clause("basic.device.device-suspend.8")
@pytest.mark.clause("basic.device.device-suspend.9")
@every_case
def test_suspend_and_resume(layout: int, engine_name: str) -> None:
    _, carrier, driver = start(layout, engine_name)
    for _ in range(3):
        assert echo(driver) == b"HELLO"
        driver.suspend()
        assert carrier.read_status() == ASLEEP
        driver.resume()
        assert carrier.read_status() == RUNNING
    assert echo(driver) == b"HELLO"


@pytest.mark.clause("basic.device.device-suspend.3")
@pytest.mark.clause("basic.device.device-suspend.4")
@every_case
def test_a_suspended_device_touches_no_queue(layout: int, engine_name: str) -> None:
    _, carrier, driver = start(layout, engine_name)
    driver.suspend()
    before, notified = bytes(carrier.arena.memory.regions[0].view), carrier.used_notifications
    # A driver that does what it must not: it adds and kicks.
    driver.queues[0].closed = False
    answer = driver.post()
    after_adding = bytes(carrier.arena.memory.regions[0].view)
    assert before != after_adding
    carrier.available_buffer(0, 0)
    while carrier.step():
        pass
    assert bytes(carrier.arena.memory.regions[0].view) == after_adding
    assert carrier.used_notifications == notified
    driver.resume()
    assert driver.wait_used(driver.queues[0]) == [(answer, 5)]
    assert bytes(answer.view) == b"HELLO"


@pytest.mark.clause("basic.device.device-suspend.10")
@pytest.mark.clause("basic.device.device-suspend.11")
@pytest.mark.clause("basic.device.device-suspend.12")
@every_case
def test_what_is_in_flight_is_used_and_notified_before_the_device_says_suspended(layout: int, engine_name: str) -> None:
    device, carrier, driver = start(layout, engine_name)
    device.holding = True
    driver.queues[0].enable_notifications()
    first = driver.post()
    driver.kick(driver.queues[0])
    assert carrier.step()
    carrier.write_status(RUNNING | DeviceStatus.SUSPEND)
    assert carrier.read_status() == RUNNING, "not suspended while a buffer is being worked on"
    driver.post()
    carrier.available_buffer(0, 0)
    carrier.step()
    assert len(device.kept) == 1, "and yet nothing more is taken"
    notified = carrier.used_notifications
    device.finish()
    assert carrier.read_status() == ASLEEP
    assert carrier.used_notifications == notified + 1
    assert driver.queues[0].take_used() == [(first, 5)]


@pytest.mark.clause("basic.device.device-suspend.1")
@every_case
def test_suspend_is_ignored_before_driver_ok_and_without_the_feature(layout: int, engine_name: str) -> None:
    _, carrier, driver = start(layout, engine_name, without=bit(Feature.SUSPEND))
    carrier.write_status(RUNNING | DeviceStatus.SUSPEND)
    assert carrier.read_status() == RUNNING
    with pytest.raises(UsageError):
        driver.suspend()
    carrier.write_status(0)
    carrier.write_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.SUSPEND)
    assert carrier.read_status() == DeviceStatus.ACKNOWLEDGE


@pytest.mark.clause("basic.device.device-suspend.2")
@pytest.mark.clause("basic.device.device-suspend.5")
@pytest.mark.clause("basic.device.device-suspend.6")
@pytest.mark.clause("basic.device.device-suspend.7")
def test_configuration_while_suspended() -> None:
    device, carrier, driver = start(0, "reference")
    driver.suspend()
    carrier.write_config(0, b"zz")
    assert carrier.read_config(0, 4) == b"abcd"
    heard = carrier.config_notifications
    device.config = b"efgh"
    carrier.end.configuration_changed()
    carrier.end.configuration_changed()
    assert carrier.config_notifications == heard
    driver.resume()
    assert carrier.config_notifications == heard + 1
    driver.suspend()
    driver.resume()
    assert carrier.config_notifications == heard + 1


@pytest.mark.clause("reset.device.device-reset.1")
def test_a_reset_ends_a_suspension() -> None:
    _, carrier, driver = start(0, "reference")
    driver.suspend()
    driver.start()
    assert carrier.read_status() == RUNNING
    assert echo(driver) == b"HELLO"


@pytest.mark.clause("vq.device.virtqueue-reset.1")
@pytest.mark.clause("vq.device.virtqueue-reset.2")
@pytest.mark.clause("vq.device.virtqueue-re-enable.1")
@pytest.mark.clause("vq.driver.virtqueue-reset.1")
@pytest.mark.clause("vq.driver.virtqueue-reset.2")
@pytest.mark.clause("vq.driver.virtqueue-re-enable.1")
@every_case
def test_one_queue_is_reset_and_enabled_with_another_size(layout: int, engine_name: str) -> None:
    device, carrier, driver = start(layout, engine_name)
    for _ in range(5):
        echo(driver, 0)
    device.holding = True
    driver.post()
    driver.kick(driver.queues[0])
    carrier.step()
    [kept] = device.kept
    notified = carrier.used_notifications
    again = driver.restart_queue(0, size=4)
    kept.writable.write(b"?")
    kept.complete()
    assert again.take_used() == []
    assert carrier.used_notifications == notified, "nothing of the old queue is heard again"
    assert device.resets == [0]
    assert carrier.end.queue(0).size == again.size == 4
    device.holding = False
    for queue in (0, 1, 0, 0, 0, 0):
        assert echo(driver, queue) == b"HELLO"


def test_a_queue_reset_that_was_not_negotiated() -> None:
    _, carrier, driver = start(0, "reference", without=bit(Feature.RING_RESET))
    with pytest.raises(UsageError):
        driver.restart_queue(0)
    with pytest.raises(NegotiationError):
        carrier.end.reset_queue(0)
