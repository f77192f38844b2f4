"""What a device offers, and which choices of it it takes (2.2, 6)."""

from __future__ import annotations

from typing import Final

from virtio_py.devices.net.layout import missing_any
from virtio_py.spec import Feature, bit, mask
from virtio_py.status import RING_FEATURES, missing_needs
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Skipped

_ANYWHERE: Final = mask(*Feature)


@check("features.device.reserved-feature-bits.1", layouts="split")
def version_1_is_offered(rig: Rig) -> None:
    """VIRTIO_F_VERSION_1 is offered."""
    rig.require(bool(rig.offered & bit(Feature.VERSION_1)), "VIRTIO_F_VERSION_1 is not offered")


@check("features.device.feature-bits.1", layouts="split")
def the_offer_is_closed(rig: Rig) -> None:
    """Whatever an offered feature needs is offered, too."""
    missing = missing_needs(rig.offered, rig.kind.needs)
    text = ", ".join(f"{rig.names(bit(f))[0]} without {rig.names(bit(n))[0]}" for f, n in missing)
    rig.require(not missing, f"{text}: offered without what it needs")
    alone = missing_any(rig.offered) if rig.kind.name == "net" else []
    rig.require(not alone, f"{rig.names(mask(*alone))} need one of others, and none of those is offered")


@check("features.device.feature-bits.4", layouts="split")
def only_what_is_specified_is_offered(rig: Rig) -> None:
    """No bit is offered that is reserved, or belongs to another type of device."""
    strange = rig.offered & ~_ANYWHERE & ~mask(*rig.kind.features)
    rig.require(not strange, f"{', '.join(rig.names(strange))} is offered, and means nothing for {rig.kind.name}")


@check("features.device.feature-bits.2")
def a_small_choice_is_taken(rig: Rig) -> None:
    """VIRTIO_F_VERSION_1 alone is taken, and a request served with it."""
    rig.start()
    rig.good()


@check("features.device.feature-bits.2")
def each_feature_alone_is_taken(rig: Rig) -> None:
    """Each feature, with what it needs and nothing else, is taken."""
    own = rig.offered & mask(*rig.kind.features)
    for position in _positions(own | rig.offered & mask(Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.IN_ORDER)):
        chosen = rig.choose(position)
        if not chosen & ~rig.offered and not (rig.kind.name == "net" and missing_any(chosen)):
            rig.require(rig.negotiate(chosen), f"{', '.join(rig.names(chosen))} is refused")


@check("features.device.feature-bits.2")
def the_whole_offer_is_taken(rig: Rig) -> None:
    """Everything offered that fits together is taken at once, and a request served with it."""
    everything = _everything(rig)
    rig.start(*_positions(everything))
    rig.good()


@check("features.device.feature-bits.5")
def the_same_choice_is_taken_again(rig: Rig) -> None:
    """What was taken once is taken after a reset."""
    everything = _everything(rig)
    rig.start(*_positions(everything))
    rig.good()
    for _ in range(2):
        rig.require(rig.negotiate(rig.features), f"{', '.join(rig.names(rig.features))} is refused the next time")
        rig.start(*_positions(everything))
        rig.good()


@check("features.device.feature-bits.3", layouts="split")
def what_is_not_offered_is_not_taken(rig: Rig) -> None:
    """With a bit that was not offered FEATURES_OK does not stay set."""
    strange = next(position for position in range(42, 24, -1) if not rig.offered >> position & 1)
    rig.refuses(rig.choose() | bit(strange), f"bit {strange}, which is not offered,")


@check("features.device.feature-bits.3", layouts="split")
def what_lacks_its_need_is_not_taken(rig: Rig) -> None:
    """With a feature, but without what it needs, FEATURES_OK does not stay set, or the device makes do with it."""
    pairs = [(f, n) for f, needs in rig.kind.needs.items() for n in needs if rig.offered >> f & 1]
    if not pairs:
        raise Skipped("nothing is offered that needs anything")
    taken = []
    for feature, need in pairs:
        what = f"{rig.names(bit(feature))[0]} without {rig.names(bit(need))[0]}"
        taken += [what] * rig.takes((rig.choose() | bit(feature)) & ~bit(need), what)
    # A device that can make do without is free to: refusing is how it says that it cannot.
    if rig.transport.tells_status:
        rig.should(not taken, f"{', '.join(taken)} is accepted")


def _positions(features: int) -> list[int]:
    return [n for n in range(features.bit_length()) if features >> n & 1]


def _everything(rig: Rig) -> int:
    """The offer, less what this suite has checks of its own for, and less what would lack what it needs."""
    known = mask(*rig.kind.features) | RING_FEATURES & ~mask(Feature.RING_PACKED, Feature.SUSPEND) | rig.layout_bit
    chosen = rig.offered & known & ~rig.kind.legacy
    while lacking := [f for f, _ in missing_needs(chosen, rig.kind.needs)] or (
        missing_any(chosen) if rig.kind.name == "net" else []
    ):
        chosen &= ~mask(*lacking)
    return chosen
