"""Property-testing a driver: any requests, then any device that betrays it. The driver is this package's for disks;
put your own in its place.

    python -m pytest examples/property_testing_a_driver.py
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.errors import NeedsReset, PeerError
from virtio_py.spec import DeviceId, DeviceStatus, Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.testing.hostile_device import BETRAYALS, Betrayal, Traitor
from virtio_py.testing.pairs import connected
from virtio_py.testing.requests import SECTORS, Call, sequences
from virtio_py.transports.in_process import InProcess

SPLIT = RING_FEATURES & ~bit(Feature.RING_PACKED)


def disk() -> BlkDevice:
    return BlkDevice(MemoryMedium.of(SECTORS * 512))


@given(calls=sequences(DeviceId.BLOCK), layout=st.sampled_from(["split", "packed"]))
@settings(max_examples=50, deadline=None)
def test_what_was_written_is_read(calls: list[Call], layout: str) -> None:
    """The model of a disk is a bytearray; a call that reaches past its end is refused and changes nothing."""
    model = bytearray(SECTORS * 512)
    with connected(disk(), BlkDriver, layout=layout) as driver:
        for call in calls:
            outcome = call.on(driver)
            if call.method == "write" and outcome is None:
                sector, data = call.arguments
                model[sector * 512 : sector * 512 + len(data)] = data
        assert driver.read(0, SECTORS) == model


@pytest.mark.parametrize("betrayal", [b for b in BETRAYALS if "split" in b.layouts], ids=lambda b: b.name)
@given(after=st.integers(0, 5))
@settings(max_examples=5, deadline=None)
def test_a_traitor_is_found_out_and_a_reset_heals(betrayal: Betrayal, after: int) -> None:
    device = Traitor(disk(), betrayal, after=after)
    carrier = InProcess(device, memory_size=1 << 20, ring_features=SPLIT)
    driver = BlkDriver(carrier, queue_size=16).start()
    failed = False
    while not device.betrayed:
        try:
            driver.write(1, b"w" * 512)
        except (PeerError, NeedsReset):
            failed = True
    # An id that is used twice is a good one the first time; whatever else was done, the driver has noticed.
    assert failed or betrayal.good
    assert bool(carrier.read_status() & DeviceStatus.FAILED) == failed
    driver.reset()
    driver.start().write(1, b"x" * 512)
    assert driver.read(1, 1) == b"x" * 512
