"""Both halves of a virtqueue against the model, over every combination of features, on both engines."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ring_matrix import CASES, Case, every_case, pair
from virtio_py.errors import UsageError
from virtio_py.rings.chain import Chain
from virtio_py.testing.machines import run
from virtio_py.testing.ring_machine import RingMachine


@pytest.mark.clause("features.device.reserved-feature-bits.5")
@pytest.mark.clause("split.device.used-buffer-notification-suppression.5")
@pytest.mark.clause("split.device.used-buffer-notification-suppression.6")
@pytest.mark.clause("split.device.used-buffer-notification-suppression.2")
@pytest.mark.clause("split.device.used-buffer-notification-suppression.3")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.3")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.4")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.6")
@pytest.mark.clause("split.driver.available-buffer-notification-suppression.7")
@pytest.mark.clause("split.device.descriptor-table.1")
@pytest.mark.clause("packed.device.descriptor-table.1")
@pytest.mark.clause("packed.device.virtqueues.1")
@pytest.mark.clause("packed.driver.scatter-gather-support.5")
@every_case
def test_queue_is_the_model(case: Case) -> None:
    run(lambda: RingMachine(case), examples=40)


@pytest.mark.parametrize("case", [c for c in CASES if c.engine_name == "compiled" and not c.indirect], ids=str)
def test_more_than_two_to_the_sixteen_buffers(case: Case) -> None:
    made = pair(case, 32)
    buffer = made.arena.allocate(4)
    seen: list[Any] = []
    for start in range(0, 65_600, 32):
        assert made.driver.add_many(([buffer.extent], [], n) for n in range(start, start + 32)) == 32
        made.driver.needs_notification()
        made.device.complete(made.device.take())
        seen += [token for token, _ in made.driver.take_used()]
    assert seen == list(range(65_600))


@pytest.mark.parametrize("case", [c for c in CASES if c.indirect], ids=str)
def test_more_segments_than_a_batch_holds(case: Case) -> None:
    """256 buffers of 16 segments each fit the queue, but neither side's batch: both go on where they stopped."""
    made = pair(case, 256, memory=1 << 18)
    buffer = made.arena.allocate(4)
    added: list[int] = []
    taken: list[Chain] = []
    while len(added) < 256:
        more = made.driver.add_many(([buffer.extent] * 15, [buffer.extent], len(added) + n) for n in range(256))
        assert more > 0
        added += range(len(added), len(added) + more)
    assert not made.driver.add_many([([buffer.extent], [], None)])
    while chains := made.device.take():
        assert all((c.readable.remaining, c.writable.remaining) == (60, 4) for c in chains)
        taken += chains
    assert len(taken) == 256
    made.device.complete(taken)
    assert [token for token, _ in made.driver.take_used()] == added


@every_case
def test_a_chain_is_completed_once(case: Case) -> None:
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent])
    [chain] = made.device.take()
    chain.complete()
    with pytest.raises(UsageError):
        chain.complete()
    with pytest.raises(UsageError):
        made.device.complete([chain])
    assert len(made.driver.take_used()) == 1


@every_case
def test_a_stopped_queue_returns_nothing(case: Case) -> None:
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    made.driver.add([buffer.extent])
    [chain] = made.device.take()
    made.device.stop()
    chain.complete()
    assert made.notified == 0
    assert made.driver.take_used() == []


@every_case
def test_a_queue_goes_on_from_its_state(case: Case) -> None:
    """Stopped and activated again with the state that `stop` returned, as migration and vhost-user do it."""
    made = pair(case, 4)
    buffer = made.arena.allocate(4)
    for n in range(11):
        made.driver.add([buffer.extent], [], n)
        made.config.state = made.device.stop()
        made.device = made.config.activate(made.arena.memory, case.features, case.engine, made.notify)
        made.device.complete(made.device.take())
        assert made.driver.take_used() == [(n, 0)]
    if case.layout == "split":
        assert (made.config.state.next_available, made.config.state.next_used) == (10, 10)


@pytest.mark.clause("packed.driver.scatter-gather-support.1")
@every_case
def test_what_cannot_be_a_buffer_is_refused(case: Case) -> None:
    made = pair(case, 4)
    for readable, writable in (([], []), ([(0x1000, 1)] * 5, []), ([(0, 1 << 31)] * 2, [(0, 1)])):
        with pytest.raises(UsageError):
            made.driver.add(readable, writable)
    assert made.device.take() == []


@every_case
def test_a_wish_is_kept_however_long_nobody_asks(case: Case) -> None:
    """The device waits for its first buffer; several laps go by before the driver asks whether to kick."""
    for count in range(1, 14):
        made = pair(case, 2)
        buffer = made.arena.allocate(4)
        assert not made.device.enable_notifications()
        for _ in range(count):
            made.driver.add([buffer.extent])
            made.device.complete(made.device.take())
            made.driver.take_used()
        assert made.driver.needs_notification()
        assert not made.driver.needs_notification(), "nothing was added since"
