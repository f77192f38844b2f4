"""SCSI driver against SCSI host in one process: any sequence of commands against a dict of blocks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scsi_tools import BLOCKS, PACKED, RING, RINGS, SlowUnit, deliver, disk, pair
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.scsi import commands
from virtio_py.devices.scsi.cdrom import ScsiCdrom
from virtio_py.devices.scsi.commands import Capacity
from virtio_py.devices.scsi.device import ALL_FEATURES, ScsiDevice
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.driver import ScsiDriver, ScsiError, ScsiEvent
from virtio_py.devices.scsi.layout import (
    CONTROLQ,
    EVENTQ,
    FUNCTION_COMPLETE,
    REPORT_LUNS_WELL_KNOWN,
    REQUESTQ,
    Address,
    AsyncEvent,
    EventType,
    ResetReason,
    ScsiFeature,
    ScsiResponse,
    Tmf,
    encode_lun,
    virtio_scsi_config,
    virtio_scsi_ctrl_tmf,
    virtio_scsi_event,
)
from virtio_py.devices.scsi.protection import Protection, generate
from virtio_py.devices.scsi.sense import (
    CAPACITY_CHANGED,
    DEVICE_RESET,
    GUARD_CHECK_FAILED,
    LUN_NOT_SUPPORTED,
    LUNS_CHANGED,
    NEXUS_LOSS,
    POWER_ON,
    REFERENCE_TAG_CHECK_FAILED,
    Condition,
    ScsiStatus,
)
from virtio_py.devices.scsi.task import GOOD, Outcome, Task
from virtio_py.errors import UsageError, VirtioError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import Feature, bit

HOTPLUG, CHANGE = bit(ScsiFeature.HOTPLUG), bit(ScsiFeature.CHANGE)
LUN = encode_lun(0, 0)
TUR = commands.test_unit_ready()
every_engine = pytest.mark.parametrize("engine", ["reference", "compiled"])
every_ring = pytest.mark.parametrize("ring", RINGS)

# Sequences of commands

spans = st.tuples(st.integers(0, BLOCKS), st.integers(0, BLOCKS)).map(lambda t: (t[0], min(t[1], BLOCKS - t[0])))
steps = st.one_of(
    st.tuples(st.just("read"), spans, st.sampled_from([6, 10, 12, 16])),
    st.tuples(st.just("write"), spans, st.sampled_from([6, 10, 12, 16]), st.integers(0, 1 << 30)),
    st.tuples(st.just("unmap"), st.lists(spans, max_size=4)),
    st.tuples(st.just("same"), spans, st.integers(0, 255), st.booleans()),
    st.tuples(st.just("verify"), spans, st.integers(0, 1 << 30)),
    st.tuples(st.just("swap"), spans, st.integers(0, 1 << 30)),
    st.tuples(st.just("sync")),
    st.tuples(st.just("sizes"), st.integers(16, 64), st.integers(18, 300)),
)


class Model:
    """Blocks, and what each command must do to them."""

    def __init__(self, driver: ScsiDriver) -> None:
        self.driver = driver
        self.blocks = [bytes(512)] * BLOCKS

    def data(self, span: tuple[int, int]) -> bytes:
        return b"".join(self.blocks[span[0] : sum(span)])

    def store(self, span: tuple[int, int], data: bytes) -> None:
        for n in range(span[1]):
            self.blocks[span[0] + n] = data[n * 512 : (n + 1) * 512]

    def command(self, cdb: bytes, data_out: bytes = b"", length: int = 0) -> bytes:
        result = self.driver.execute(0, 0, cdb, data_out, length)
        assert result.good, result
        assert result.residual == 0
        return result.data

    def read(self, span: tuple[int, int], size: int) -> None:
        if self.legal(span, size):
            cdb = commands.transfer("READ", *span, size=size)
            assert self.command(cdb, length=span[1] * 512) == self.data(span)

    def write(self, span: tuple[int, int], size: int, seed: int) -> None:
        if self.legal(span, size):
            data = random.Random(seed).randbytes(span[1] * 512)
            self.command(commands.transfer("WRITE", *span, size=size), data)
            self.store(span, data)

    @staticmethod
    def legal(span: tuple[int, int], size: int) -> bool:
        return span[0] < BLOCKS and (size != 6 or span[1] > 0)

    def unmap(self, ranges: list[tuple[int, int]]) -> None:
        ranges = [span for span in ranges if span[0] < BLOCKS]
        self.command(*commands.unmap(ranges))
        for span in ranges:
            self.store(span, bytes(span[1] * 512))

    def same(self, span: tuple[int, int], value: int, ndob: bool) -> None:
        if span[1]:
            block = bytes([value]) * 512
            self.command(commands.write_same(*span, ndob=ndob), b"" if ndob else block)
            self.store(span, (bytes(512) if ndob else block) * span[1])

    def verify(self, span: tuple[int, int], seed: int) -> None:
        if span[0] >= BLOCKS:
            return
        good, bad = self.data(span), random.Random(seed).randbytes(span[1] * 512)
        cdb = commands.transfer("VERIFY", *span, size=10, bytchk=1)
        self.command(cdb, good)
        if bad != good:
            assert self.driver.execute(0, 0, cdb, bad).condition == Condition(0xE, 0x1D, 0)

    def swap(self, span: tuple[int, int], seed: int) -> None:
        if not span[1]:
            return
        before, data = self.data(span), random.Random(seed).randbytes(span[1] * 512)
        cdb = bytes([0x53, 0]) + span[0].to_bytes(4, "big") + bytes([0]) + span[1].to_bytes(2, "big") + bytes(1)
        result = self.driver.execute(0, 0, cdb, data, len(data))
        if not self.driver.has(ScsiFeature.INOUT):
            assert result.response == ScsiResponse.FAILURE
            return
        assert bytes(a ^ b for a, b in zip(result.data, data, strict=True)) == before
        self.store(span, data)

    def sync(self) -> None:
        self.command(commands.synchronize_cache())

    def sizes(self, cdb_size: int, sense_size: int) -> None:
        self.driver.set_sizes(cdb_size=cdb_size, sense_size=sense_size)


@every_engine
@settings(deadline=None)
@given(todo=st.lists(steps, max_size=12), ring=st.sampled_from(RINGS), features=st.integers(0, 7))
@pytest.mark.clause("scsi.device.request-queues.1")
@pytest.mark.clause("scsi.device.request-queues.2")
@pytest.mark.clause("scsi.device.request-queues.12")
def test_any_sequence_does_what_a_list_of_blocks_does(
    engine: str, todo: list[tuple[Any, ...]], ring: int, features: int
) -> None:
    driver, _ = pair(ring=ring, features=features, engine=engine)
    assert driver.request_sense(0, 0) == POWER_ON
    model = Model(driver)
    for verb, *args in [*todo, ("read", (0, BLOCKS), 16)]:
        getattr(model, verb)(*args)


# Configuration


@pytest.mark.clause("scsi.device.config-layout.1")
@pytest.mark.clause("scsi.device.config-layout-text.1")
@pytest.mark.clause("scsi.device.config-layout-text.2")
@pytest.mark.clause("scsi.device.config-layout-text.3")
@pytest.mark.clause("scsi.device.config-layout-text.4")
@pytest.mark.clause("scsi.device.config-layout-text.5")
@pytest.mark.clause("scsi.driver.config-layout.1")
def test_the_sizes_are_live_and_a_reset_restores_them() -> None:
    driver, device = pair()
    assert (driver.config.sense_size, driver.config.cdb_size) == (96, 32)
    assert virtio_scsi_config.violations(driver.config) == []
    driver.set_sizes(cdb_size=16, sense_size=18)
    assert driver.execute(0, 0, TUR).condition == POWER_ON
    assert driver.execute(0, 0, TUR).good
    with pytest.raises(UsageError):
        driver.execute(0, 0, bytes(17))
    # Nothing else follows a write.
    before = driver.transport.read_config(0, virtio_scsi_config.size)
    driver.transport.write_config(0, bytes(20))
    driver.transport.write_config(28, bytes(8))
    assert driver.transport.read_config(0, virtio_scsi_config.size) == before
    driver.start()
    assert (driver.config.sense_size, driver.config.cdb_size) == (96, 32)
    assert virtio_scsi_config.decode(device.read_config()).sense_size == 96


@pytest.mark.clause("scsi.driver.config-layout-text.1")
@pytest.mark.clause("scsi.driver.device-init.1")
@pytest.mark.clause("scsi.driver.device-init.3")
def test_every_request_queue_serves_commands() -> None:
    driver, _ = pair(num_queues=3)
    assert len(driver.queues) == REQUESTQ + 3
    assert [driver.execute(0, 0, commands.inquiry(96), b"", 96, queue=q).good for q in (2, 0, 1)] == [True] * 3
    few, _ = pair(num_queues=20)
    assert len(few.queues) == REQUESTQ + few.most_queues


@pytest.mark.clause("scsi.driver.config-layout.2")
@pytest.mark.clause("scsi.driver.config-layout.3")
def test_the_driver_stays_within_cmd_per_lun_and_the_queue() -> None:
    limits: list[dict[str, Any]] = [{"cmd_per_lun": 2}, {"queue_size": 2}]
    for options in limits:
        slow = SlowUnit(MemoryMedium.of(4096))
        driver, _ = pair({(0, 0): slow}, **options)
        for _ in range(2):
            driver.submit(LUN, TUR)
        with pytest.raises(UsageError, match="limit"):
            driver.submit(LUN, TUR)


@pytest.mark.clause("scsi.driver.request-queues.1")
@pytest.mark.clause("scsi.driver.request-queues-text.1")
def test_the_driver_leaves_attributes_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, device = pair()
    seen: list[bytes] = []
    handle = type(device).handle

    def witness(self: ScsiDevice, queue: DeviceQueue, chain: Chain) -> None:
        seen.append(b"".join(chain.readable.views()))
        handle(self, queue, chain)

    monkeypatch.setattr(ScsiDevice, "handle", witness)
    driver.inquiry(0, 0)
    assert [data[16:19] for data in seen] == [bytes(3)]


# Addresses


@pytest.mark.clause("scsi.device.request-queues.5")
@pytest.mark.clause("scsi.device.request-queues-text.1")
@pytest.mark.clause("scsi.device.request-queues-text.2")
def test_units_are_found_by_scanning_and_by_well_known_units() -> None:
    places = [(0, 0), (0, 255), (0, 256), (7, 3), (255, 16383)]
    driver, _ = pair({place: disk() for place in places})
    assert sorted(driver.scan()) == [Address(*place) for place in places]
    assert driver.report_luns(0) == [0, 255, 256]
    assert driver.execute(1, 0, TUR).response == ScsiResponse.BAD_TARGET
    absent = driver.execute(0, 1, TUR)
    assert (absent.status, absent.condition) == (ScsiStatus.CHECK_CONDITION, LUN_NOT_SUPPORTED)
    assert driver.inquiry(0, 1).qualifier == 3
    assert driver.request_sense(0, 1) == LUN_NOT_SUPPORTED
    cdb = commands.report_luns(4096)
    host = driver.wait(driver.submit(REPORT_LUNS_WELL_KNOWN, cdb, b"", 4096))
    assert commands.parse_luns(host.data)[1] == [encode_lun(*place) for place in places]
    well_known = bytes([1, 0]) + REPORT_LUNS_WELL_KNOWN[:2] + bytes(4)
    target = driver.wait(driver.submit(well_known, cdb, b"", 4096))
    assert len(commands.parse_luns(target.data)[1]) == 3
    what = driver.wait(driver.submit(well_known, commands.inquiry(96), b"", 96))
    assert commands.parse_inquiry(what.data).type == 0x1E
    assert driver.report_luns(0, select=2) == [0, 255, 256]


def test_as_many_units_as_can_be_addressed() -> None:
    unit = disk()
    # A target's whole 16384, and the last of some others.
    places = [(5, lun) for lun in range(16384)] + [(target, 16383) for target in (0, 100, 255)]
    driver, device = pair({place: disk(8) for place in places})
    assert driver.report_luns(5) == list(range(16384))
    assert driver.capacity(5, 16383) == Capacity(8, 512, True, False)
    assert driver.report_luns(255) == [16383]
    for target, lun in ((256, 0), (0, 16384), (-1, 0), (0, -1), (5, 1)):
        with pytest.raises(UsageError):
            device.attach(target, lun, unit)
    device.attach(1, 1, unit)
    with pytest.raises(UsageError, match="already"):
        device.attach(1, 2, unit)
    with pytest.raises(UsageError):
        device.detach(1, 2)


# Task management


@every_ring
@pytest.mark.clause("scsi.device.controlq-text.1")
@pytest.mark.clause("scsi.device.controlq-text.2")
@pytest.mark.clause("scsi.device.controlq-text.3")
@pytest.mark.clause("scsi.device.controlq-text.4")
@pytest.mark.clause("scsi.device.request-queues.4")
@pytest.mark.clause("scsi.device.request-queues.6")
@pytest.mark.parametrize(
    ("function", "expected", "attention"),
    [
        (Tmf.ABORT_TASK_SET, ScsiResponse.ABORTED, None),
        (Tmf.CLEAR_TASK_SET, ScsiResponse.ABORTED, None),
        (Tmf.LOGICAL_UNIT_RESET, ScsiResponse.RESET, DEVICE_RESET),
        (Tmf.I_T_NEXUS_RESET, ScsiResponse.RESET, NEXUS_LOSS),
    ],
)
def test_a_function_ends_tasks_before_it_is_answered(
    ring: int, function: Tmf, expected: ScsiResponse, attention: Condition | None
) -> None:
    slow, other = SlowUnit(MemoryMedium.of(4096)), SlowUnit(MemoryMedium.of(4096))
    driver, device = pair({(0, 1): slow, (1, 1): other}, ring=ring)
    # On the other target, and behind the others in the queue: it must neither be ended nor be waited for.
    mine = [driver.submit(encode_lun(0, 1), TUR) for _ in range(3)]
    theirs = driver.submit(encode_lun(1, 1), TUR)
    driver.transport.wait(0)
    while not other.tasks:
        driver.transport.wait(0)
    assert driver.task_management(Tmf.QUERY_TASK_SET, 0, 1) == ScsiResponse.FUNCTION_SUCCEEDED
    assert driver.task_management(function, 0, 1) == FUNCTION_COMPLETE
    # The response is here: the tasks' answers must be too, without the device doing any more.
    for ticket, length in driver.queues[REQUESTQ].take_used():
        driver._done(ticket, length)
    assert [ticket.result.response if ticket.result else None for ticket in mine] == [expected] * 3
    assert theirs.result is None
    assert (len(slow.aborted), other.aborted) == (3, [])
    assert driver.task_management(Tmf.QUERY_TASK_SET, 0, 1) == FUNCTION_COMPLETE
    other.go_on()
    assert driver.wait(theirs).condition == POWER_ON
    if attention:
        waiting = [slow.take_attention(device.nexus) for _ in range(3)]
        assert attention in waiting


@every_ring
def test_one_task_is_queried_and_aborted(ring: int) -> None:
    slow = SlowUnit(MemoryMedium.of(4096))
    driver, _ = pair({(0, 0): slow}, ring=ring)
    first, second, third = (driver.submit(LUN, TUR) for _ in range(3))
    while len(slow.tasks) < 3:
        driver.transport.wait(0)
    assert driver.task_management(Tmf.QUERY_TASK, 0, 0, second.tag) == ScsiResponse.FUNCTION_SUCCEEDED
    assert driver.task_management(Tmf.QUERY_TASK, 0, 0, 999) == FUNCTION_COMPLETE
    in_order = driver.has(Feature.IN_ORDER)
    if in_order:
        # The queue may not give the second back before the first: the function has to wait for that.
        slow.tasks[0].finish(GOOD)
        slow.tasks.pop(0)
    assert driver.task_management(Tmf.ABORT_TASK, 0, 0, second.tag) == FUNCTION_COMPLETE
    assert driver.wait(second).response == ScsiResponse.ABORTED
    assert driver.task_management(Tmf.ABORT_TASK, 0, 0, second.tag) == FUNCTION_COMPLETE
    while slow.tasks:
        slow.go_on()
    assert driver.wait(first).response == driver.wait(third).response == ScsiResponse.OK


def test_with_in_order_a_function_waits_for_the_turn_of_the_task_it_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    completed: list[int] = []
    complete = DeviceQueue.complete

    def witness(queue: DeviceQueue, chains: Sequence[Chain]) -> None:
        completed.extend(queue.index for _ in chains)
        complete(queue, chains)

    monkeypatch.setattr(DeviceQueue, "complete", witness)
    slow = SlowUnit(MemoryMedium.of(4096))
    driver, _ = pair({(0, 0): slow}, ring=RING | bit(Feature.IN_ORDER))
    tickets = [driver.submit(LUN, TUR) for _ in range(3)]
    while len(slow.tasks) < 3:
        driver.transport.wait(0)
    abort = virtio_scsi_ctrl_tmf.encode(subtype=Tmf.ABORT_TASK, lun=LUN, id=tickets[1].tag)
    with pytest.raises(VirtioError, match="in time"):
        driver.transact(driver.queues[CONTROLQ], [abort], [1], timeout=0.05)
    assert tickets[1].result is None
    slow.go_on()
    for ticket, length in driver.queues[REQUESTQ].take_used():
        driver._done(ticket, length)
    assert [t.result and t.result.response for t in tickets] == [ScsiResponse.OK, ScsiResponse.ABORTED, None]
    [(_, length)] = driver.queues[0].take_used()
    assert length == 1
    # The aborted task's chain first, the one it had to wait for next, and then the function's.
    assert completed == [REQUESTQ, REQUESTQ, CONTROLQ]


@pytest.mark.clause("scsi.driver.request-queues.2")
def test_a_failure_of_the_target_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowUnit(MemoryMedium.of(4096))
    driver, _ = pair({(0, 0): slow})
    tried = []

    def fail(unit: SlowUnit, task: Task) -> Outcome:
        tried.append(task)
        return Outcome(response=ScsiResponse.TARGET_FAILURE)

    monkeypatch.setattr(SlowUnit, "execute", fail)
    with pytest.raises(ScsiError, match="TARGET_FAILURE"):
        driver.test_unit_ready(0, 0)
    assert len(tried) == 1


def test_functions_that_cannot_be_carried_out() -> None:
    driver, _ = pair()
    assert driver.task_management(Tmf.CLEAR_ACA, 0, 0) == ScsiResponse.FUNCTION_REJECTED
    assert driver.task_management(99, 0, 0) == ScsiResponse.FUNCTION_REJECTED
    assert driver.task_management(Tmf.LOGICAL_UNIT_RESET, 0, 1) == ScsiResponse.INCORRECT_LUN
    assert driver.task_management(Tmf.LOGICAL_UNIT_RESET, 1, 0) == ScsiResponse.BAD_TARGET
    # The LUN is ignored where the whole nexus is meant.
    assert driver.task_management(Tmf.I_T_NEXUS_RESET, 0, 77) == FUNCTION_COMPLETE


@pytest.mark.clause("scsi.device.request-queues.10")
def test_more_commands_than_a_unit_takes_are_busy() -> None:
    slow = SlowUnit(MemoryMedium.of(4096))
    driver, device = pair({(0, 0): slow}, cmd_per_lun=2)
    driver.config = driver.config._replace(cmd_per_lun=99)
    tickets = [driver.submit(LUN, TUR) for _ in range(3)]
    assert driver.wait(tickets[2]).response == ScsiResponse.BUSY
    assert device.busy()
    slow.go_on()
    slow.go_on()
    assert driver.wait(tickets[0]).response == ScsiResponse.OK
    assert not device.busy()


@pytest.mark.clause("scsi.device.request-queues.13")
@pytest.mark.clause("scsi.device.request-queues.14")
def test_a_reset_aborts_what_is_under_way() -> None:
    slow = SlowUnit(MemoryMedium.of(4096))
    driver, device = pair({(0, 0): slow})
    driver.submit(LUN, TUR)
    while not slow.tasks:
        driver.transport.wait(0)
    [task] = slow.tasks
    driver.start()
    assert slow.aborted == [task]
    assert not device.busy()
    # Whoever finishes it now comes too late, and nothing is written.
    task.finish(GOOD)
    assert driver.inquiry(0, 0).type == 0


@pytest.mark.clause("scsi.device.request-queues.7")
def test_a_unit_that_is_unplugged_ends_its_tasks() -> None:
    slow = SlowUnit(MemoryMedium.of(4096))
    driver, device = pair({(0, 0): slow, (0, 1): disk()})
    ticket = driver.submit(LUN, TUR)
    while not slow.tasks:
        driver.transport.wait(0)
    assert device.detach(0, 0) is slow
    assert driver.wait(ticket).response == ScsiResponse.TRANSPORT_FAILURE
    assert driver.execute(0, 0, TUR).condition == LUN_NOT_SUPPORTED
    device.detach(0, 1)
    assert driver.execute(0, 0, TUR).response == ScsiResponse.BAD_TARGET


# Events


@every_ring
@pytest.mark.clause("scsi.device.features-text.1")
@pytest.mark.clause("scsi.driver.features-text.1")
@pytest.mark.clause("scsi.driver.device-init.2")
@pytest.mark.clause("scsi.driver.eventq.1")
@pytest.mark.clause("scsi.driver.eventq.2")
@pytest.mark.clause("scsi.driver.eventq.3")
@pytest.mark.clause("scsi.driver.eventq.4")
def test_units_come_and_go(ring: int) -> None:
    driver, device = pair(ring=ring)
    driver.scan()
    assert driver.queues[EVENTQ].outstanding == 16
    for round in range(20):
        device.attach(3, 300 + round, disk())
        [event] = driver.poll_events()
        assert event == ScsiEvent(EventType.TRANSPORT_RESET, Address(3, 300 + round), ResetReason.RESCAN)
        assert Address(3, 300 + round) in driver.units
        device.detach(3, 300 + round)
        [event] = driver.poll_events()
        assert event.reason == ResetReason.REMOVED
        assert list(driver.units) == [Address(0, 0)]
    assert driver.queues[EVENTQ].outstanding == 16


@pytest.mark.clause("scsi.driver.eventq.7")
@pytest.mark.clause("scsi.device.eventq-text.3")
def test_an_event_for_lun_0_has_the_target_scanned() -> None:
    driver, device = pair()
    driver.scan()
    events = device._events
    for lun in (5, 6):
        # Without an event of their own: what the driver knows then comes from scanning.
        device._bus.add(Address(2, lun), disk())
    queue = device._end.active_queue(EVENTQ) if device._end else None
    events.post(EventType.TRANSPORT_RESET, encode_lun(2, 0), ResetReason.RESCAN, queue)
    driver.poll_events()
    assert sorted(driver.units) == [Address(0, 0), Address(2, 5), Address(2, 6)]


@pytest.mark.clause("scsi.device.eventq.3")
def test_without_hotplug_no_unit_comes_or_goes_by_event() -> None:
    driver, device = pair(features=CHANGE)
    device.attach(0, 1, disk())
    device.detach(0, 1)
    assert driver.take_events() == []
    device.hard_reset(0, 0)
    assert driver.take_events() == [ScsiEvent(EventType.TRANSPORT_RESET, Address(0, 0), ResetReason.HARD)]
    # The units tell by their attentions, all the same.
    assert driver.request_sense(0, 0) == POWER_ON
    assert driver.request_sense(0, 0) == LUNS_CHANGED
    assert driver.request_sense(0, 0) == DEVICE_RESET


@pytest.mark.clause("scsi.device.eventq.1")
@pytest.mark.clause("scsi.device.eventq.2")
@pytest.mark.clause("scsi.device.eventq-text.2")
@pytest.mark.clause("scsi.driver.eventq.5")
@pytest.mark.clause("scsi.driver.eventq.6")
def test_what_is_lost_is_told_later() -> None:
    drive = ScsiCdrom(MemoryMedium.of(4096))
    driver, device = pair({(0, 0): disk(), (4, 4): drive})
    driver.scan()
    driver.subscribe(4, 4, AsyncEvent.MEDIA_CHANGE)
    for lun in range(1, 41):
        device.attach(0, lun, disk())
    drive.insert(MemoryMedium.of(4096))
    events = driver.take_events()
    assert [event.missed for event in events] == [False] * 16
    deliver(driver)
    found = driver.poll_events()
    assert ScsiEvent(EventType.NO_EVENT, None, 0, True) in found
    assert ScsiEvent(EventType.ASYNC_NOTIFY, Address(4, 4), AsyncEvent.MEDIA_CHANGE) in found
    assert len(driver.units) == 42
    deliver(driver)
    # Told once, and buffers are there for what comes next.
    device.detach(0, 7)
    assert driver.poll_events() == [ScsiEvent(EventType.TRANSPORT_RESET, Address(0, 7), ResetReason.REMOVED)]


@pytest.mark.clause("scsi.driver.features-text.2")
@pytest.mark.clause("scsi.device.eventq-text.4")
def test_a_change_of_capacity_is_an_event_and_a_unit_attention() -> None:
    unit = disk()
    driver, _ = pair({(0, 0): unit})
    driver.test_unit_ready(0, 0)
    unit.medium.resize(32 * 512)
    unit.look_at_size()
    unit.look_at_size()
    reason = CAPACITY_CHANGED.asc | CAPACITY_CHANGED.ascq << 8
    assert driver.poll_events() == [ScsiEvent(EventType.PARAM_CHANGE, Address(0, 0), reason)]
    assert Address(0, 0) in driver.units
    assert driver.execute(0, 0, TUR).condition == CAPACITY_CHANGED
    assert driver.capacity(0, 0).blocks == 32
    silent, _ = pair({(0, 0): (quiet := disk())}, features=HOTPLUG)
    quiet.medium.resize(512)
    quiet.look_at_size()
    assert silent.take_events() == []


@pytest.mark.clause("scsi.device.eventq.4")
def test_a_drive_reports_its_media_to_subscribers_only() -> None:
    drive = ScsiCdrom(MemoryMedium.of(4096))
    driver, device = pair({(0, 0): drive, (0, 1): disk()})
    drive.eject()
    drive.notify(CAPACITY_CHANGED)
    assert driver.take_events() == []
    assert driver.query_notification(0, 0, 0xFF) == AsyncEvent.MEDIA_CHANGE
    assert driver.query_notification(0, 1, 0xFF) == 0
    assert driver.take_events() == []
    assert driver.subscribe(0, 0, 0xFF) == AsyncEvent.MEDIA_CHANGE
    drive.insert(MemoryMedium.of(8192))
    assert driver.take_events() == [ScsiEvent(EventType.ASYNC_NOTIFY, Address(0, 0), AsyncEvent.MEDIA_CHANGE)]
    assert driver.subscribe(0, 0, 0) == 0
    drive.eject()
    assert driver.take_events() == []
    for place, response in (((3, 0), ScsiResponse.BAD_TARGET), ((0, 9), ScsiResponse.INCORRECT_LUN)):
        with pytest.raises(ScsiError) as caught:
            driver.subscribe(*place, 0xFF)
        assert caught.value.result.response == response
    assert device.subscriptions == {Address(0, 0): 0}


@pytest.mark.clause("scsi.device.eventq-text.1")
def test_a_longer_event_buffer_is_used_as_far_as_the_event_goes() -> None:
    # Our event_info_size is that of an event, so a shorter buffer than it is too short for any: see the hostile tests.
    driver, device = pair()
    assert driver.config.event_info_size == virtio_scsi_event.size
    buffer = driver.transport.arena.allocate(100)
    driver.take_events()
    device.hard_reset(0, 0)
    driver.take_events()
    driver.transport.arena.free(buffer)
    assert driver.queues[EVENTQ].outstanding == 16


def test_event_buffers_of_a_queue_that_was_reset_are_not_used() -> None:
    driver, device = pair()
    device.queue_reset(EVENTQ)
    device.hard_reset(0, 0)
    assert driver.take_events() == []


def test_event_buffers_of_a_queue_that_is_another_now_are_not_used() -> None:
    driver, device = pair()
    end = device._end
    assert end is not None
    # A carrier that stops a ring and starts it again, as vhost-user does, says nothing to the device.
    end.stop_queue(EVENTQ)
    device.hard_reset(0, 0)
    assert device._events.missed
    end.enable_queue(EVENTQ)
    device.hard_reset(0, 0)
    assert (driver.take_events(), device._events.missed) == ([], True)


def test_while_the_device_is_suspended_events_are_missed() -> None:
    driver, device = pair()
    end = device._end
    assert end is not None
    running = end.running
    device._events.post(EventType.TRANSPORT_RESET, LUN, ResetReason.HARD, None)
    assert running
    assert device._events.missed
    # There are buffers, so the next event itself tells of the one that was lost.
    device.hard_reset(0, 0)
    reset = ScsiEvent(EventType.TRANSPORT_RESET, Address(0, 0), ResetReason.HARD, True)
    assert driver.take_events() == [reset]
    device.hard_reset(0, 0)
    assert [event.missed for event in driver.take_events()] == [False]


# Protection information


@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize("ring", [RING, PACKED])
def test_protection_information_travels_and_is_checked(kind: int, ring: int) -> None:
    protection = Protection(MemoryMedium.of(BLOCKS * 8), kind)
    protection.blank(0, BLOCKS)
    unit = ScsiDisk(MemoryMedium.of(BLOCKS * 512), protection=protection)
    driver, _ = pair({(0, 0): unit}, ring=ring, offered=ALL_FEATURES)
    driver.test_unit_ready(0, 0)
    assert driver.capacity(0, 0) == Capacity(BLOCKS, 512, False, True)
    data = random.Random(1).randbytes(1024)
    tuples = generate(data, 512, 5)
    write = commands.transfer("WRITE", 5, 2, protect=1)
    assert driver.execute(0, 0, write, data, pi_out=tuples).good
    read = commands.transfer("READ", 5, 2, protect=1)
    result = driver.execute(0, 0, read, b"", 1024, pi_in_length=16)
    assert (result.data, result.pi, result.residual) == (data, tuples, 0)
    # Blocks that nobody has written have nothing to check.
    assert driver.execute(0, 0, commands.transfer("READ", 0, 4), b"", 2048).data == bytes(2048)
    bad = bytes([tuples[0] ^ 1]) + tuples[1:]
    assert driver.execute(0, 0, write, data, pi_out=bad).condition == GUARD_CHECK_FAILED
    elsewhere = generate(data, 512, 6)
    wrong = driver.execute(0, 0, write, data, pi_out=elsewhere)
    assert wrong.condition == (REFERENCE_TAG_CHECK_FAILED if kind == 1 else None)
    if kind == 1:
        assert driver.read(0, 0, 5, 2) == data


def test_only_the_way_may_be_protected_too() -> None:
    driver, _ = pair(offered=ALL_FEATURES)
    driver.test_unit_ready(0, 0)
    data = random.Random(2).randbytes(1024)
    write = commands.transfer("WRITE", 9, 2)
    assert driver.execute(0, 0, write, data, pi_out=generate(data, 512, 9)).good
    assert driver.execute(0, 0, write, data, pi_out=bytes(16)).condition == GUARD_CHECK_FAILED
    result = driver.execute(0, 0, commands.transfer("READ", 9, 2), b"", 1024, pi_in_length=16)
    assert (result.data, result.pi) == (data, generate(data, 512, 9))
    # A unit that is formatted without protection information cannot be asked for it.
    asked = driver.execute(0, 0, commands.transfer("READ", 9, 2, protect=1), b"", 1024, pi_in_length=16)
    assert asked.condition == Condition(5, 0x24, 0)
    plain, _ = pair()
    with pytest.raises(UsageError, match="T10_PI"):
        plain.execute(0, 0, write, data, pi_out=bytes(16))
