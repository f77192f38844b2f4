"""Driver and device in one process under random schedules: nothing is lost, nothing comes twice, everybody wakes up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
from attrs import define, field
from hypothesis import strategies as st

from tests.ring_matrix import CASES, LAYOUTS, Case, every_case, pair
from virtio_py.device import Device, QueueSpec
from virtio_py.driver import Driver
from virtio_py.errors import NeedsReset, NegotiationError, PeerError, UsageError, VirtioError
from virtio_py.memory import Buffer
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId, DeviceStatus, Feature, bit
from virtio_py.testing.machines import Machine, run, step
from virtio_py.transports.in_process import InProcess


@define(eq=False)
class Reverser(Device):
    """Answers each request with its bytes backwards, as far as there is room; keeps every third one."""

    device_id: ClassVar[DeviceId] = DeviceId.ENTROPY
    size: int = 8
    served: int = 0
    kept: list[Chain] = field(factory=list)
    config: bytes = b"abcdefgh"

    def queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec("oneq", self.size), QueueSpec("otherq", self.size)]

    def read_config(self) -> bytes:
        return self.config

    def write_config(self, offset: int, data: bytes) -> None:
        self.config = self.config[:offset] + data + self.config[offset + len(data) :]

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        chain.writable.write(chain.readable.read_all()[::-1][: chain.writable.remaining])
        self.served += 1
        if self.served % 3 == 0:
            chain.defer()
            self.kept.append(chain)

    def reset(self) -> None:
        self.kept.clear()


class Client(Driver):
    """Drives the Reverser."""

    device_id = DeviceId.ENTROPY


def start(case: Case, size: int) -> tuple[Reverser, InProcess, Client]:
    """A device and its driver, up and running with the case's features."""
    device = Reverser(size)
    carrier = InProcess(device, engine=case.engine, memory_size=1 << 16, ring_features=case.features)
    driver = Client(carrier, engine=case.engine, features=case.features)
    driver.start()
    assert driver.features == case.features
    return device, carrier, driver


class Schedule(Machine):
    """The driver sleeps and wakes by notifications only, and the device by kicks only."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.case = case

    def _is_set_up(self) -> bool:
        return hasattr(self, "carrier")

    @step(lambda self: not self._is_set_up(), size=st.sampled_from([1, 2, 4, 8]))
    def set_up(self, size: int) -> None:
        self.device, self.carrier, self.driver = start(self.case, size)
        self.size = size
        self.sent: list[dict[int, tuple[bytes, Buffer, Buffer]]] = [{}, {}]
        self.count = 0
        self.asleep = [False, False]
        self.heard = 0

    @step(_is_set_up, which=st.integers(0, 1), count=st.integers(1, 6), parts=st.integers(1, 3))
    def send(self, which: int, count: int, parts: int) -> None:
        queue = self.driver.queues[which]
        requests = []
        for _ in range(min(count, queue.free_slots // 2)):
            self.count += 1
            text = b"request %d of queue %d" % (self.count, which)
            out, back = self.driver.transport.arena.allocate(len(text)), self.driver.transport.arena.allocate(len(text))
            out.view[:] = text
            self.sent[which][self.count] = (text, out, back)
            requests.append(([out.extent], [back.extent], self.count))
        added = queue.add_many(requests)
        assert added == len(requests)
        self.driver.kick(queue)

    @step(_is_set_up)
    def deliver(self) -> None:
        self.carrier.step()

    @step(_is_set_up, which=st.integers(0, 7))
    def let_go(self, which: int) -> None:
        kept = self.device.kept
        if kept:
            kept.pop(which % len(kept)).complete()

    @step(_is_set_up, which=st.integers(0, 1))
    def driver_runs(self, which: int) -> None:
        self._run(which)

    def _run(self, which: int) -> None:
        self._wake()
        if not self.asleep[which]:
            self._collect(which)

    def _wake(self) -> None:
        if self.carrier.used_notifications != self.heard:
            self.heard = self.carrier.used_notifications
            self.asleep = [False, False]

    def _collect(self, which: int) -> None:
        """Drains the queue, then sleeps: as the queue's docstring says."""
        queue = self.driver.queues[which]
        queue.disable_notifications()
        while True:
            done = queue.take_used()
            for token, length in done:
                text, out, back = self.sent[which].pop(token)
                assert length == len(text)
                assert bytes(back.view) == text[::-1]
                self.driver.transport.arena.free(out, back)
            if not done and not queue.enable_notifications():
                self.asleep[which] = True
                return

    def check(self) -> None:
        assert self.carrier.end.fault is None

    def teardown(self) -> None:
        if not hasattr(self, "carrier"):
            return
        for _ in range(4):
            while self.carrier.step():
                pass
            while self.device.kept:
                self.device.kept.pop().complete()
            for which in (0, 1):
                self._run(which)
        assert self.sent == [{}, {}], "lost, or not heard of"
        self.driver.reset()
        assert self.carrier.arena.free_bytes == self.carrier.arena.memory.regions[0].size


@every_case
def test_random_schedules_lose_and_duplicate_nothing(case: Case) -> None:
    run(lambda: Schedule(case), examples=15)


class Early(Client):
    """Makes buffers available before DRIVER_OK, as a driver may, and kicks only afterwards."""

    posted = 0

    def ready(self) -> None:
        queue = self.queues[0]
        buffer = self.transport.arena.allocate(4)
        while self.posted < queue.size and (
            added := queue.add_many(([buffer.extent] * 8, [buffer.extent] * 8, None) for _ in range(queue.size))
        ):
            self.posted += added


@pytest.mark.clause("status.device.device-status-field.1")
@pytest.mark.clause("basic.driver.device-initialization.8")
@pytest.mark.parametrize("case", [c for c in CASES if c.indirect], ids=str)
def test_buffers_from_before_driver_ok_are_served(case: Case) -> None:
    """More than one call of the device serves; notifications are off in between, so nobody would kick again."""
    device = Reverser(256)
    carrier = InProcess(device, engine=case.engine, memory_size=1 << 21, ring_features=case.features)
    driver = Early(carrier, engine=case.engine, features=case.features)
    driver.start()
    queue = driver.queues[0]
    assert driver.posted == 256
    while carrier.step():
        pass
    while device.kept:
        device.kept.pop(0).complete()
    assert device.served == driver.posted
    assert len(queue.take_used()) == driver.posted
    device.served = 0
    assert driver.transact(queue, [b"ab"], [2], timeout=0.2)[0] == [b"ba"]


def test_nothing_is_consumed_before_driver_ok() -> None:
    device = Reverser()
    carrier = InProcess(device)

    class Hasty(Client):
        def ready(self) -> None:
            buffer = self.transport.arena.allocate(4)
            self.queues[0].add([buffer.extent], [buffer.extent])
            carrier.available_buffer(0, 0)
            assert carrier.step()
            assert device.served == 0
            assert carrier.used_notifications == 0

    driver = Hasty(carrier).start()
    assert device.served == 1
    assert len(driver.queues[0].take_used()) == 1


# Initialisation ----------------------------------------------------------------------------------------------------


class Recorder(InProcess):
    """Records what the driver does to the carrier. `refuses`: FEATURES_OK is never kept."""

    refuses = False

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.log: list[str] = []

    def write_status(self, value: int) -> None:
        self.log.append(f"status {value:#x}")
        super().write_status(value & ~DeviceStatus.FEATURES_OK if self.refuses and value else value)

    def read_status(self) -> int:
        self.log.append("read status")
        return super().read_status()

    def accept_features(self, features: int) -> None:
        self.log.append("features")
        super().accept_features(features)

    def enable_queue(self, queue: object) -> None:
        self.log.append("queue")
        super().enable_queue(queue)  # type: ignore[arg-type]  # passed on as it came


@pytest.mark.clause("basic.driver.device-initialization.1")
@pytest.mark.clause("basic.driver.device-initialization.2")
@pytest.mark.clause("status.driver.device-status-field.1")
@pytest.mark.clause("reset.driver.device-reset.1")
def test_the_driver_initialises_in_the_order_of_the_specification() -> None:
    carrier = Recorder(Reverser())
    Client(carrier).start()
    steps = [entry for entry in carrier.log if entry != "read status"]
    assert steps == [
        "status 0x0", "status 0x1", "status 0x3", "features", "status 0xb", "queue", "queue", "status 0xf"
    ]  # fmt: skip
    after = carrier.log[carrier.log.index("status 0xb") :]
    assert "read status" in after[: after.index("queue")]


@pytest.mark.clause("features.driver.feature-bits.7")
@pytest.mark.clause("basic.driver.device-initialization.2")
@pytest.mark.clause("basic.driver.device-initialization.6")
@pytest.mark.clause("basic.driver.device-initialization.7")
def test_a_device_that_refuses_our_features_is_given_up() -> None:
    carrier = Recorder(Reverser())
    carrier.refuses = True
    with pytest.raises(NegotiationError):
        Client(carrier).start()
    assert carrier.end.read_status() & DeviceStatus.FAILED
    assert "queue" not in carrier.log
    carrier.refuses = False
    assert Client(carrier).start().queues
    assert carrier.log.count("status 0x0") == 2


@pytest.mark.clause("features.driver.feature-bits.1")
@pytest.mark.clause("features.driver.feature-bits.4")
@pytest.mark.clause("features.driver.feature-bits.5")
@pytest.mark.clause("features.driver.feature-bits.8")
def test_an_offer_of_unknown_bits_is_no_obstacle() -> None:
    carrier = InProcess(Reverser(), ring_features=bit(Feature.VERSION_1) | 0xFFFF << 44 | 1 << 90)
    driver = Client(carrier).start()
    assert driver.features == bit(Feature.VERSION_1) == carrier.end.features


@pytest.mark.clause("features.device.feature-bits.3")
@pytest.mark.parametrize("features", [1 << 90, 0, bit(Feature.INDIRECT_DESC)], ids=["not-offered", "none", "legacy"])
def test_a_bad_choice_of_features_does_not_stick(features: int) -> None:
    end = InProcess(Reverser()).end
    end.accept_features(features)
    for value in (1, 3, 3 | DeviceStatus.FEATURES_OK):
        end.write_status(value)
    assert end.read_status() == 3
    end.write_status(15)
    assert not end.read_status() & DeviceStatus.DRIVER_OK


@pytest.mark.clause("basic.driver.device-initialization.5")
def test_features_are_frozen_once_accepted() -> None:
    _, carrier, driver = start(CASES[0], 4)
    with pytest.raises(NegotiationError):
        carrier.accept_features(0)
    assert carrier.end.features == driver.features


@pytest.mark.clause("reset.device.device-reset.1")
@pytest.mark.clause("reset.device.device-reset.2")
@pytest.mark.clause("features.device.feature-bits.5")
@every_case
def test_reset_ends_everything_and_the_same_features_work_again(case: Case) -> None:
    device, carrier, driver = start(case, 8)
    buffer = carrier.arena.allocate(4)
    for _ in range(3):
        driver.queues[0].add([buffer.extent], [buffer.extent])
    driver.kick(driver.queues[0])
    carrier.step()
    kept = list(device.kept)
    assert kept
    notified = carrier.used_notifications
    before = bytes(carrier.arena.memory.regions[0].view)
    carrier.write_status(0)
    assert (carrier.read_status(), carrier.end.features) == (0, 0)
    for chain in kept:
        chain.complete()
    assert carrier.used_notifications == notified
    assert bytes(carrier.arena.memory.regions[0].view) == before
    driver.start()
    assert driver.features == case.features
    answers, _ = driver.transact(driver.queues[1], [b"again"], [5])
    assert answers == [b"niaga"]


@pytest.mark.clause("status.driver.device-status-field.2")
def test_the_status_loses_no_bit_but_by_reset() -> None:
    end = InProcess(Reverser()).end
    end.write_status(3)
    end.write_status(1)
    assert end.read_status() == 3
    end.write_status(3 | DeviceStatus.DEVICE_NEEDS_RESET)
    assert end.read_status() == 3, "that bit is the device's"


# Configuration space -----------------------------------------------------------------------------------------------


@pytest.mark.clause("config.device.device-configuration-space.1")
def test_configuration_is_readable_before_features_ok() -> None:
    end = InProcess(Reverser()).end
    assert end.read_config(2, 3) == b"cde"
    assert end.read_config(6, 8) == b"gh".ljust(8, b"\0")
    assert end.read_config(100, 2) == b"\0\0"
    end.write_config(6, b"XYZ")
    end.write_config(200, b"no")
    assert end.read_config(0, 8) == b"abcdefXY"


@pytest.mark.clause("config.driver.device-configuration-space.2")
def test_a_torn_read_of_the_configuration_is_repeated() -> None:
    device, carrier, driver = start(CASES[0], 4)
    original = carrier.end.read_config
    torn: list[bytes] = []

    class Moving(InProcess):
        def read_config(self, offset: int, length: int) -> bytes:
            half = original(offset, length // 2)
            if not torn:
                torn.append(half)
                device.config = b"ABCDEFGH"
            return half + original(offset + length // 2, length - length // 2)

    carrier.__class__ = Moving
    assert driver.read_config_bytes(0, 8) == b"ABCDEFGH"
    assert torn == [b"abcd"]


def test_the_generation_moves_only_when_something_read_has_changed() -> None:
    device, carrier, _ = start(CASES[0], 4)
    end = carrier.end
    first = end.config_generation
    device.config = b"12345678"
    assert end.config_generation == first, "nobody had read it"
    end.read_config(0, 8)
    assert end.config_generation == first
    device.config = b"87654321"
    second = end.config_generation
    assert second != first
    assert end.config_generation == second
    end.configuration_changed()
    assert carrier.config_notifications == 1
    assert end.config_generation != second


def test_a_driver_that_waits_in_vain_is_told() -> None:
    device, _, driver = start(CASES[0], 4)
    device.served = 2
    with pytest.raises(VirtioError, match="in time"):
        driver.transact(driver.queues[0], [b"kept"], [4], timeout=0.01)
    driver.reset()
    driver.start()
    assert driver.transact(driver.queues[0], [b"abcd"], [4])[0] == [b"dcba"]


def test_a_configuration_that_never_stands_still_is_an_error() -> None:
    _, carrier, driver = start(CASES[0], 4)
    generations = iter(range(1 << 30))

    class Restless(InProcess):
        def config_generation(self) -> int:
            return next(generations)

    carrier.__class__ = Restless
    with pytest.raises(PeerError, match="configuration"):
        driver.read_config_bytes(0, 8)


@every_case
def test_a_limit_that_is_no_power_of_two(case: Case) -> None:
    _, _, driver = start(case, 7)
    assert driver.queues[0].size == (7 if case.layout == "packed" else 4)
    assert driver.transact(driver.queues[0], [b"odd"], [3])[0] == [b"ddo"]


@pytest.mark.parametrize(("size", "layouts"), [(0, LAYOUTS), (-4, LAYOUTS), (65536, LAYOUTS), (6, ("split",))])
def test_a_queue_of_a_size_that_cannot_be_is_refused(size: int, layouts: tuple[str, ...]) -> None:
    for case in CASES:
        if case.layout in layouts:
            with pytest.raises(UsageError):
                pair(case, size)


@every_case
def test_after_needs_reset_nothing_is_used_any_more(case: Case) -> None:
    device, carrier, driver = start(case, 8)
    buffer = carrier.arena.allocate(4)
    for _ in range(3):
        driver.queues[0].add([buffer.extent], [buffer.extent])
    driver.kick(driver.queues[0])
    carrier.step()
    assert len(device.kept) == 1
    carrier.end.needs_reset(PeerError("for the test"))
    before = bytes(carrier.arena.memory.regions[0].view), carrier.used_notifications
    device.kept.pop().complete()
    assert (bytes(carrier.arena.memory.regions[0].view), carrier.used_notifications) == before
    with pytest.raises(NeedsReset):
        driver.wait_used(driver.queues[0], 3)


# Suspend (3.4) -----------------------------------------------------------------------------------------------------

RUNNING = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK


@pytest.mark.clause("basic.device.device-suspend.2")
@pytest.mark.clause("basic.device.device-suspend.3")
@pytest.mark.clause("basic.device.device-suspend.4")
@pytest.mark.clause("basic.device.device-suspend.6")
@pytest.mark.clause("basic.device.device-suspend.7")
@every_case
def test_a_suspended_device_is_silent_and_goes_on_where_it_stood(case: Case) -> None:
    device = Reverser(8)
    features = case.features | bit(Feature.SUSPEND)
    carrier = InProcess(device, engine=case.engine, memory_size=1 << 16, ring_features=features)
    driver = Client(carrier, engine=case.engine, features=features).start()
    buffer, queue = carrier.arena.allocate(4), driver.queues[0]
    for _ in range(3):
        queue.add([buffer.extent], [buffer.extent])
    driver.kick(queue)
    carrier.step()
    assert len(device.kept) == 1
    carrier.write_status(RUNNING | DeviceStatus.SUSPEND)
    assert carrier.read_status() == RUNNING & ~DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND
    before = bytes(carrier.arena.memory.regions[0].view)
    used, told = carrier.used_notifications, carrier.config_notifications
    device.kept.pop().complete()
    assert carrier.end.available_buffer(0) is False
    carrier.write_config(0, b"X")
    carrier.end.configuration_changed()
    assert bytes(carrier.arena.memory.regions[0].view) == before
    assert (carrier.used_notifications, carrier.config_notifications) == (used, told)
    assert device.config == b"abcdefgh"
    # The byte that resumes is the one that suspended.
    carrier.write_status(RUNNING | DeviceStatus.SUSPEND)
    assert carrier.read_status() == RUNNING
    assert carrier.config_notifications == told + 1
    assert len(queue.take_used()) == 3
    queue.add([buffer.extent], [buffer.extent])
    driver.kick(queue)
    carrier.step()
    assert len(queue.take_used()) == 1


@pytest.mark.clause("basic.device.device-suspend.1")
def test_suspend_means_nothing_before_driver_ok_or_without_the_feature() -> None:
    carrier = InProcess(Reverser(), ring_features=CASES[0].features | bit(Feature.SUSPEND))
    carrier.write_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.SUSPEND)
    assert carrier.read_status() == DeviceStatus.ACKNOWLEDGE
    _, carrier, driver = start(CASES[0], 4)
    carrier.write_status(RUNNING | DeviceStatus.SUSPEND)
    assert carrier.read_status() == RUNNING
    assert driver.transact(driver.queues[0], [b"on"], [2])[0] == [b"no"]
