"""The entropy device: each half against the other, and the device against buffers that no driver should offer."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.errors import NeedsReset, RequestError, UsageError
from virtio_py.rings.chain import Chain, Reader, Writer
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus
from virtio_py.transports.in_process import InProcess

# A device that is handed a chain by hand does not look at the queue.
NO_QUEUE = cast(DeviceQueue, None)


def counting(start: int = 1) -> Any:
    """A source whose bytes tell in which order they were asked for."""
    given = iter(range(start, 1 << 30))
    return lambda count: bytes(next(given) % 251 for _ in range(count))


def chain(readable: bytes, *sizes: int) -> tuple[Chain, list[bytearray]]:
    room = [bytearray(b"\xee" * size) for size in sizes]
    return Chain(0, NO_QUEUE, Reader([memoryview(readable)]), Writer([memoryview(r) for r in room])), room


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), limit=st.integers(1, 100))
@pytest.mark.clause("entropy.device.device-op.1")
@pytest.mark.clause("entropy.device.device-op.2")
def test_fills_up_to_its_limit_and_says_how_much(sizes: list[int], limit: int) -> None:
    request, room = chain(b"", *sizes)
    EntropyDevice(counting(), limit).handle(NO_QUEUE, request)
    wanted = min(sum(sizes), limit)
    assert request.used_length == wanted >= 1
    assert b"".join(room) == counting()(wanted) + b"\xee" * (sum(sizes) - wanted)


def test_a_giant_buffer_does_not_make_the_device_allocate() -> None:
    asked: list[int] = []

    def source(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    page = bytearray(1 << 16)
    request = Chain(0, NO_QUEUE, Reader([]), Writer([memoryview(page)] * 60_000))
    assert request.writable.remaining > 3 << 30
    EntropyDevice(source).handle(NO_QUEUE, request)
    assert asked == [1 << 16]


@pytest.mark.clause("entropy.driver.device-op.1")
@pytest.mark.parametrize(("readable", "size"), [(b"x", 16), (b"", 0)])
def test_a_buffer_that_cannot_be_served_is_the_drivers_fault(readable: bytes, size: int) -> None:
    request, room = chain(readable, size)
    with pytest.raises(RequestError):
        EntropyDevice().handle(NO_QUEUE, request)
    assert room == [b"\xee" * size]


@pytest.mark.parametrize("give", [b"", b"too long"])
def test_a_source_that_breaks_its_contract_is_told(give: bytes) -> None:
    with pytest.raises(UsageError, match="source"):
        EntropyDevice(lambda count: give).handle(NO_QUEUE, chain(b"", 4)[0])


@given(count=st.integers(0, 20_000), limit=st.integers(100, 9000))
@pytest.mark.clause("entropy.driver.device-op.2")
def test_driver_takes_exactly_what_was_written(count: int, limit: int) -> None:
    driver = EntropyDriver(InProcess(EntropyDevice(counting(), limit), memory_size=1 << 18)).start()
    assert driver.read(count) == counting()(count)


@pytest.mark.clause("entropy.driver.device-op.1")
def test_driver_offers_no_readable_bytes() -> None:
    seen: list[int] = []

    class Watching(EntropyDevice):
        def handle(self, queue: DeviceQueue, chain: Chain) -> None:
            seen.append(chain.readable.remaining)
            super().handle(queue, chain)

    assert len(EntropyDriver(InProcess(Watching())).start().read(5000)) == 5000
    assert seen == [0, 0]


def test_driver_fails_a_device_that_returns_nothing() -> None:
    class Empty(EntropyDevice):
        def handle(self, queue: DeviceQueue, chain: Chain) -> None:
            """Returns the buffer as it came."""

    transport = InProcess(Empty())
    with pytest.raises(RequestError, match="empty"):
        EntropyDriver(transport).start().read(1)
    assert transport.read_status() & DeviceStatus.FAILED


def test_a_bad_buffer_needs_a_reset_and_a_reset_recovers() -> None:
    transport = InProcess(EntropyDevice(os.urandom))
    driver = EntropyDriver(transport).start()
    with pytest.raises(NeedsReset):
        driver.transact(driver.queues[0], [b"readable"], [16])
    assert transport.config_notifications == 1
    assert len(driver.start().read(16)) == 16
