"""What an available buffer notification carries (2.9), and a queue's state taken from one device to another."""

from __future__ import annotations

import pytest

from tests.test_suspend import Echo, EchoDriver, echo
from virtio_py.device import DeviceEnd
from virtio_py.errors import MessageError
from virtio_py.rings.engine import engine_named
from virtio_py.spec import DeviceStatus, Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.in_process import InProcess

EVERYTHING = RING_FEATURES | bit(Feature.NOTIFICATION_DATA) | bit(Feature.NOTIF_CONFIG_DATA) | bit(Feature.IN_ORDER)
PACKED, IN_ORDER = bit(Feature.RING_PACKED), bit(Feature.IN_ORDER)


class Listening(InProcess):
    """Keeps what the driver sent."""

    def available_buffer(self, index: int, data: int) -> None:
        self.heard = [*getattr(self, "heard", []), data]
        super().available_buffer(index, data)


def start(features: int) -> tuple[Listening, EchoDriver]:
    carrier = Listening(Echo(), ring_features=EVERYTHING)
    for index in range(carrier.num_queues):
        carrier.end.queue(index).notif_config_data = 0x1230 + index
    return carrier, EchoDriver(carrier, features=features, queue_size=4)


@pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])
@pytest.mark.clause("packed.driver.descriptor-table.3")
def test_the_high_half_is_where_the_driver_adds_next(layout: int) -> None:
    carrier, driver = start(bit(Feature.VERSION_1) | bit(Feature.NOTIFICATION_DATA) | layout)
    driver.start()
    carrier.heard = []
    for _ in range(6):
        echo(driver, 1)
    # A request is two descriptors: split counts buffers, packed slots and laps of the ring of four.
    split = [1, 2, 3, 4, 5, 6]
    packed = [2 | 1 << 15, 0, 2, 0 | 1 << 15, 2 | 1 << 15, 0]
    assert carrier.heard == [position << 16 | 1 for position in (packed if layout else split)]


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (0, 1),
        (bit(Feature.NOTIF_CONFIG_DATA), 0x1231),
        (bit(Feature.NOTIFICATION_DATA), 1 << 16 | 1),
        (bit(Feature.NOTIFICATION_DATA) | bit(Feature.NOTIF_CONFIG_DATA), 1 << 16 | 0x1231),
    ],
)
@pytest.mark.clause("features.driver.reserved-feature-bits.13")
def test_the_low_half_names_the_queue(features: int, expected: int) -> None:
    carrier, driver = start(bit(Feature.VERSION_1) | features)
    driver.start()
    carrier.heard = []
    assert echo(driver, 1) == b"HELLO"
    assert carrier.heard == [expected]
    with pytest.raises(MessageError):
        carrier.end.notified(0x77)


@pytest.mark.parametrize("engine_name", ["reference", "compiled"])
@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["", "in-order"])
@pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("before", [0, 1, 3, 7])
def test_a_queue_goes_on_in_another_device_where_it_stopped(
    before: int, layout: int, order: int, engine_name: str
) -> None:
    carrier, driver = start(bit(Feature.VERSION_1) | layout | order)
    driver.start()
    for _ in range(before):
        echo(driver, 1)
    driver.post(1)  # available, and not yet taken when the queue stops
    old = carrier.end
    states = [old.stop_queue(i) for i in range(old.num_queues)]
    new = DeviceEnd(Echo(), carrier.arena.memory, carrier, engine_named(engine_name), EVERYTHING)
    new.write_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
    new.accept_features(driver.features)
    new.write_status(new.read_status() | DeviceStatus.FEATURES_OK)
    carrier.end = new
    for queue, state in zip(driver.queues, states, strict=True):
        new.queue(queue.index).state = state
        carrier.enable_queue(queue)
    new.write_status(new.read_status() | DeviceStatus.DRIVER_OK)
    [(answer, length)] = driver.wait_used(driver.queues[1])
    assert (bytes(answer.view), length) == (b"HELLO", 5)
    for _ in range(9):
        assert echo(driver, 1) == b"HELLO"


@pytest.mark.parametrize("order", [0, IN_ORDER], ids=["", "in-order"])
@pytest.mark.parametrize("layout", [0, PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("done", [[], [0], [0, 1], [1], [2]])
def test_what_a_stopped_queue_still_had_is_taken_again(done: list[int], layout: int, order: int) -> None:
    """Three buffers are deferred and some returned, in this order; the queue stops and goes on where it says."""
    carrier, driver = start(bit(Feature.VERSION_1) | layout | order)
    driver.queue_size = 8
    driver.start()
    device = carrier.end.device
    assert isinstance(device, Echo)
    for _ in range(3):
        echo(driver, 1)
    device.holding = True
    for _ in range(3):
        driver.post(1)
    carrier.available_buffer(1, driver.queues[1].notification_data)
    carrier.step()
    for n in done:
        device.kept[n].complete()
    heard = len(driver.queues[1].take_used())
    device.holding, device.kept = False, []
    state = carrier.end.stop_queue(1)
    carrier.end.queue(1).state = state
    carrier.end.enable_queue(1)
    carrier.end.serve_queue(1)
    again = len(driver.queues[1].take_used())
    if order:
        assert heard + again == 3, "held back is not returned: it is taken again"
    else:
        # Those before the newest that was returned cannot be told apart from it any more.
        assert again == 2 - max(done, default=-1)
    if heard + again == 3:
        assert echo(driver, 1) == b"HELLO"
