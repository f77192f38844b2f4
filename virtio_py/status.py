"""The initialisation sequence and the device status, as data (2.1, 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from virtio_py.spec import DeviceStatus, Feature, bit, mask

RING_FEATURES: Final = mask(
    Feature.INDIRECT_DESC,
    Feature.EVENT_IDX,
    Feature.VERSION_1,
    Feature.RING_PACKED,
    Feature.RING_RESET,
    Feature.SUSPEND,
)
"""What a DeviceEnd offers on its own account: the bits that concern rings and no device type. VIRTIO_F_IN_ORDER is for
the asking: a device that completes out of order is slower with it."""

PLATFORM_FEATURES: Final = mask(Feature.ACCESS_PLATFORM, Feature.ORDER_PLATFORM)
"""What a driver takes besides where it is offered: the addresses of a transport's arena are those that the device sees,
whatever they are for the platform, and the fences are the processor's full ones."""

LEGACY_FEATURES: Final = (1 << 32) - 1
"""The feature bits that a legacy interface has room for."""

LEGACY_RING_FEATURES: Final = mask(Feature.ANY_LAYOUT, Feature.INDIRECT_DESC, Feature.EVENT_IDX)
"""What a DeviceEnd offers of its own account over a legacy interface; any layout suits whoever sees but streams."""


class Step(NamedTuple):
    """One step of 3.1.1: the status bit it reports when done (0: none), and the Driver method that does it."""

    number: int
    status: int
    method: str
    clause: str


INITIALISATION: Final = (
    Step(1, 0, "reset", "basic.driver.device-initialization.1"),
    Step(2, DeviceStatus.ACKNOWLEDGE, "acknowledge", "status.driver.device-status-field.1"),
    Step(3, DeviceStatus.DRIVER, "check_device", "status.driver.device-status-field.1"),
    Step(4, 0, "negotiate", "features.driver.feature-bits.1"),
    Step(5, DeviceStatus.FEATURES_OK, "features_chosen", "basic.driver.device-initialization.1"),
    Step(6, 0, "check_features_ok", "basic.driver.device-initialization.2"),
    Step(7, 0, "set_up", "basic.driver.device-initialization.1"),
    Step(8, DeviceStatus.DRIVER_OK, "ready", "basic.driver.device-initialization.1"),
)
"""3.1.1 in order. The bit of a step is written after its method has run."""

FeatureNeeds = Mapping[int, tuple[int, ...]]
"""Feature positions, each with the positions of the features that it needs."""


def missing_needs(features: int, needs: FeatureNeeds) -> list[tuple[int, int]]:
    """Pairs (feature, feature it needs that is absent) in a set of feature bits."""
    return [
        (feature, need)
        for feature, wanted in needs.items()
        if features & bit(feature)
        for need in wanted
        if not features & bit(need)
    ]
