"""Every device over every carrier, with both kinds of ring, in order or not, by both engines, and our own driver.

The devices are one table, the carriers another (`tests.carriers`); neither knows of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import telegraph
from tests.carriers import CARRIERS, LEGACY, Setting
from tests.net_frames import ethernet, udp
from virtio_py.device import Device
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.layout import virtio_blk_config
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.layout import virtio_console_config
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.layout import virtio_net_config
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.devices.scsi.device import ScsiDevice
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.driver import ScsiDriver
from virtio_py.devices.scsi.layout import virtio_scsi_config
from virtio_py.driver import Driver
from virtio_py.records import Record
from virtio_py.rings.engine import engine_named
from virtio_py.spec import Feature, mask

SECTORS = 64


class Row(NamedTuple):
    """A device type: how one is made, what drives it, its configuration structure, and what the two do together."""

    device: Callable[[], Device]
    driver: type[Driver]
    config: Record | None
    exercise: Callable[[Any, Any], None]


def scsi_device() -> ScsiDevice:
    device = ScsiDevice()
    device.attach(0, 0, ScsiDisk(MemoryMedium.of(SECTORS * 512)))
    return device


def exercise_entropy(driver: EntropyDriver, device: EntropyDevice) -> None:
    assert driver.read(5000) == b"r" * 5000


def exercise_blk(driver: BlkDriver, device: BlkDevice) -> None:
    data = bytes(range(256)) * 2 * SECTORS
    assert driver.info.capacity == SECTORS
    driver.write(0, data)
    driver.flush()
    assert driver.read(0, SECTORS) == data
    driver.write(3, bytes(1024))
    assert driver.read(2, 4) == data[:512] + bytes(1024) + data[:512]


def exercise_net(driver: NetDriver, device: NetDevice) -> None:
    frames = [ethernet(udp(bytes([n]) * (100 + 400 * n))) for n in range(3)]
    for frame in frames:
        driver.send(frame)
    received = [driver.receive() for _ in frames]
    assert [packet and packet.frame for packet in received] == frames


def exercise_scsi(driver: ScsiDriver, device: ScsiDevice) -> None:
    data = bytes(range(256)) * 8
    assert driver.capacity(0, 0).blocks == SECTORS
    driver.write(0, 0, 5, data)
    assert driver.read(0, 0, 5, 4) == data


def exercise_console(driver: ConsoleDriver, device: ConsoleDevice) -> None:
    [port] = device.first
    driver.reset()
    assert isinstance(port.endpoint, MemoryEndpoint)
    port.endpoint.feed(b"from the device")
    stream = driver.start().port(0)
    assert stream.read_exactly(15) == b"from the device"
    stream.write(b"to the device")
    stream.flush()
    assert port.endpoint.take() == b"to the device"


DEVICES = {
    "entropy": Row(lambda: EntropyDevice(lambda count: b"r" * count), EntropyDriver, None, exercise_entropy),
    "blk": Row(lambda: BlkDevice(MemoryMedium.of(SECTORS * 512)), BlkDriver, virtio_blk_config, exercise_blk),
    "net": Row(lambda: NetDevice(LoopbackPort()), NetDriver, virtio_net_config, exercise_net),
    "scsi": Row(scsi_device, ScsiDriver, virtio_scsi_config, exercise_scsi),
    "console": Row(
        lambda: ConsoleDevice([ConsolePort(MemoryEndpoint())]),
        ConsoleDriver,
        virtio_console_config,
        exercise_console,
    ),
}

RINGS = list(product(("split", "packed"), ("any-order", "in-order")))
CASES = [
    pytest.param(device, carrier, layout, order, engine, id=f"{device}-{carrier}-{layout}-{order}-{engine}")
    for device, carrier, (layout, order), engine in product(DEVICES, CARRIERS, RINGS, ("reference", "compiled"))
    if carrier not in LEGACY or (layout, order) == ("split", "any-order")
]


@pytest.mark.parametrize(("device", "carrier", "layout", "order", "engine"), CASES)
def test_every_device_over_every_carrier(
    device: str, carrier: str, layout: str, order: str, engine: str, tmp_path: Path
) -> None:
    row, runs = DEVICES[device], engine_named(engine)
    bits = {Feature.RING_PACKED: layout == "packed", Feature.IN_ORDER: order == "in-order"}
    rings = mask(
        Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX, *(b for b, wanted in bits.items() if wanted)
    )
    made = row.device()
    setting = Setting(made, runs, rings, row.config, tmp_path)
    with CARRIERS[carrier](setting) as transport:
        driver = row.driver(transport, engine=runs, features=rings | row.driver.known_features, queue_size=16)
        for _ in range(2):
            driver.start()
            assert {b: driver.has(b) for b in bits} == bits
            assert driver.has(Feature.VERSION_1) == (carrier not in LEGACY)
            row.exercise(driver, made)
            driver.reset()


def test_the_carrier_of_the_tests_is_short_and_knows_nothing() -> None:
    text = Path(telegraph.__file__).read_text()
    assert len(text.splitlines()) < 60
    assert "virtio_py.devices" not in text
