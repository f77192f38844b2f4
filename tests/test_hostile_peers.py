"""The published hostile driver against our devices over carriers, and the hostile devices against our drivers."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.carriers import CARRIERS, Setting
from tests.test_every_carrier import DEVICES, Row
from virtio_py.device import Device
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.errors import PeerError, UsageError, VirtioError
from virtio_py.rings.engine import REFERENCE
from virtio_py.spec import DeviceId, DeviceStatus, Feature, mask
from virtio_py.status import RING_FEATURES
from virtio_py.testing.attacks import ATTACK_CLASSES
from virtio_py.testing.hostile_device import BETRAYALS, LIES, Betrayal, Traitor
from virtio_py.testing.hostile_driver import (
    ATTACKS,
    BEHIND_A_GOOD_ONE,
    MISUSES,
    BareDriver,
    Misuse,
    Outcome,
    assault,
)
from virtio_py.testing.hostile_requests import OFFENCES, Offence, offend
from virtio_py.testing.wrapped import Wrapped
from virtio_py.transports.in_process import InProcess

LAYOUTS = ("split", "packed")
REMOTE = ("mmio", "shared-memory")


def entropy() -> EntropyDevice:
    return EntropyDevice(lambda count: b"r" * count)


def setting(device: Device, place: Path) -> Setting:
    return Setting(device, REFERENCE, RING_FEATURES, None, place)


def test_every_attack_is_of_a_known_class() -> None:
    named = [a.kind for a in (*ATTACKS, *BEHIND_A_GOOD_ONE)] + [b.kind for b in BETRAYALS] + [m.kind for m in MISUSES]
    named += [o.kind for o in OFFENCES]
    assert set(named) <= ATTACK_CLASSES.keys()


@pytest.mark.parametrize("carrier", REMOTE)
def test_attacks_over_a_carrier_are_told_and_healed(carrier: str, tmp_path: Path) -> None:
    """One device for all of them: none leaves anything behind."""
    with CARRIERS[carrier](setting(entropy(), tmp_path)) as transport:
        driver = EntropyDriver(transport, queue_size=8)
        for attack, layout in product(ATTACKS, LAYOUTS):
            if attack.applies(layout):
                assert assault(transport, attack, layout) is Outcome.TOLD, f"{attack.name} on a {layout} queue"
        assert driver.start().read(5) == b"rrrrr"


def test_a_layout_that_is_not_offered_is_not_attacked() -> None:
    """Else an attack on a packed queue would be tried on a split one, where it may be none."""
    carrier = InProcess(entropy(), memory_size=1 << 16, ring_features=RING_FEATURES & ~mask(Feature.RING_PACKED))
    free = carrier.arena.free_bytes
    [attack, *_] = [attack for attack in ATTACKS if not attack.applies("split")]
    with pytest.raises(UsageError, match="packed"):
        assault(carrier, attack, "packed")
    assert (carrier.read_status(), carrier.arena.free_bytes) == (0, free)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offence", OFFENCES, ids=lambda o: f"{o.device.name.lower()}-{o.name}")
def test_bad_requests_are_bounded_and_cut_in_any_way_come_to_the_same(offence: Offence, layout: str) -> None:
    """Whole, and in pieces of one byte: the same outcome, and afterwards a device as good as new."""
    [row] = [row for row in DEVICES.values() if row.driver.device_id == offence.device]
    console = offence.device == DeviceId.CONSOLE  # control messages need more ports than one
    endpoint = MemoryEndpoint()
    device = ConsoleDevice([ConsolePort(endpoint)], max_ports=2) if console else row.device()
    transport = InProcess(device, memory_size=4 << 20)
    outcomes = {offend(transport, offence, layout, piece) for piece in (None, 1)}
    assert len(outcomes) == 1
    assert outcomes <= {Outcome.TOLD, Outcome.USED}
    driver: Any = row.driver(transport, queue_size=16).start()
    if not console:
        row.exercise(driver, device)
        return
    stream = driver.port(0)
    stream.write(b"well")
    stream.flush()
    assert endpoint.take() == b"well"


@pytest.mark.parametrize("misuse", MISUSES, ids=lambda m: m.name)
def test_misused_registers_leave_a_device_that_can_be_reset(misuse: Misuse) -> None:
    carrier = InProcess(entropy(), memory_size=1 << 16)
    bare = BareDriver(carrier, features=RING_FEATURES, queue_size=8).start()
    with suppress(VirtioError):  # in process, the caller is told at once
        misuse.run(carrier, bare.queues[0])
        carrier.step()
    bare.reset()
    assert EntropyDriver(carrier, queue_size=8).start().read(3) == b"rrr"


# Hostile devices ----------------------------------------------------------------------------------------------------


def test_a_wrapped_device_has_every_verb_of_a_device() -> None:
    verbs = {name for name, value in vars(Device).items() if callable(value) and not name.startswith("_")}
    assert verbs <= vars(Wrapped).keys()


@pytest.mark.parametrize(
    ("betrayal", "layout"),
    [pytest.param(b, layout, id=f"{b.name}-{layout}") for b in BETRAYALS if not b.good for layout in b.layouts],
)
def test_a_driver_finds_out_about_a_traitor(betrayal: Betrayal, layout: str) -> None:
    """It serves two buffers; with the third it betrays, and FAILED is set. After a reset both are friends again.

    An id used twice is not among these: with one buffer at a time, the second use is that of the buffer that follows.
    """
    rings = RING_FEATURES if layout == "packed" else RING_FEATURES & ~mask(Feature.RING_PACKED)
    device = Traitor(entropy(), betrayal, after=2)
    carrier = InProcess(device, memory_size=1 << 16, ring_features=rings)
    driver = EntropyDriver(carrier, features=rings, queue_size=8).start()
    for _ in range(2):
        assert driver.read(3) == b"rrr"
    with pytest.raises(PeerError):
        driver.read(3)
    assert device.betrayed
    assert carrier.read_status() & DeviceStatus.FAILED
    driver.reset()
    assert driver.start().read(3) == b"rrr"


def _drive(row: Row, device: Device) -> None:
    driver = row.driver(InProcess(device, memory_size=4 << 20), queue_size=16).start()
    driver.reset()


@pytest.mark.clause("config.driver.device-configuration-space.4")
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("kind", DEVICES)
def test_a_driver_survives_what_a_device_says_of_itself(kind: str, lie: str) -> None:
    """It starts, or says why not in a type of ours, soon; and the honest device is driven as before."""
    row = DEVICES[kind]
    honest = row.device()
    began = time.monotonic()
    with suppress(VirtioError):  # to refuse such a device is as good as to cope with it
        _drive(row, LIES[lie](honest))
    assert time.monotonic() - began < 20
    _drive(row, honest)
