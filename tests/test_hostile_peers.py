"""The published hostile driver against our devices over carriers, and the hostile devices against our drivers."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

from tests.carriers import CARRIERS, Setting
from tests.test_every_carrier import DEVICES, Row
from virtio_py.device import Device
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.errors import PeerError, VirtioError
from virtio_py.rings.engine import REFERENCE
from virtio_py.spec import DeviceStatus, Feature, mask
from virtio_py.status import RING_FEATURES
from virtio_py.testing.attacks import ATTACK_CLASSES
from virtio_py.testing.hostile_device import BETRAYALS, LIES, Betrayal, Traitor, Wrapped
from virtio_py.testing.hostile_driver import (
    ATTACKS,
    BEHIND_A_GOOD_ONE,
    MISUSES,
    BareDriver,
    Misuse,
    Outcome,
    assault,
)
from virtio_py.transports.in_process import InProcess

LAYOUTS = ("split", "packed")
REMOTE = ("mmio", "shared-memory")


def entropy() -> EntropyDevice:
    return EntropyDevice(lambda count: b"r" * count)


def setting(device: Device, place: Path) -> Setting:
    return Setting(device, REFERENCE, RING_FEATURES, None, place)


def test_every_attack_is_of_a_known_class() -> None:
    named = [a.kind for a in (*ATTACKS, *BEHIND_A_GOOD_ONE)] + [b.kind for b in BETRAYALS] + [m.kind for m in MISUSES]
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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("betrayal", [b for b in BETRAYALS if not b.good], ids=lambda b: b.name)
def test_a_driver_finds_out_about_a_traitor(betrayal: Betrayal, layout: str) -> None:
    """It serves two buffers; with the third it betrays, and FAILED is set. After a reset both are friends again.

    An id used twice is not among these: with one buffer at a time, the second use is that of the buffer that follows.
    """
    if layout not in betrayal.layouts:
        pytest.skip("a packed ring has no index")
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
