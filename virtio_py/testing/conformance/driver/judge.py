"""A device around another one: it looks at everything a driver does, and then lets the other one do its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define, field

from virtio_py.device import Device, DeviceEnd
from virtio_py.errors import UsageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.status import missing_needs
from virtio_py.testing.conformance.driver import blk, console, net, rings, scsi
from virtio_py.testing.conformance.driver.ledger import Ledger
from virtio_py.testing.conformance.driver.views import Kind, View
from virtio_py.testing.conformance.kinds import KINDS
from virtio_py.testing.wrapped import Wrapped

_INITIALISATION: Final = "basic.driver.device-initialization"
_FEATURES: Final = "features.driver.feature-bits"
CLAUSES: Final = (
    f"{_INITIALISATION}.1",
    f"{_FEATURES}.1",
    f"{_FEATURES}.2",
    f"{_FEATURES}.5",
    "features.driver.reserved-feature-bits.1",
    "features.driver.reserved-feature-bits.6",
    "status.driver.device-status-field.1",
)


_KINDS: Final[dict[str, Callable[[], Kind]]] = {
    "blk": blk.Blk,
    "net": net.Net,
    "scsi": scsi.Scsi,
    "console": console.Console,
}


@define(eq=False)
class Judge(Wrapped):
    """A device that is served by `inner`, whose driver is judged. ledger: what was found so far."""

    name: str
    ledger: Ledger = field(init=False)
    view: View = field(init=False)
    _kind: Kind = field(init=False)
    _rings: rings.Rings = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._kind = _KINDS[self.name]()
        self.ledger = Ledger((*CLAUSES, *rings.CLAUSES, *self._kind.clauses))
        self.view = View(self.ledger, self.inner)
        self._rings = rings.Rings(self.ledger)

    def queue_reset(self, index: int) -> None:
        self._rings.forget(index)
        self.inner.queue_reset(index)

    def reset(self) -> None:
        self._rings.reset()
        self.view.features = 0
        self.inner.reset()

    def write_config(self, offset: int, data: bytes) -> None:
        self._kind.wrote(self.view, offset, data)
        self.inner.write_config(offset, data)

    def negotiated(self, features: int) -> None:
        self.view.features = features
        self._judge_features(features)
        self._kind.negotiated(self.view)
        self.inner.negotiated(features)

    def _judge_features(self, features: int) -> None:
        kind, must = KINDS[self.name], self.ledger.must
        must("features.driver.reserved-feature-bits.1", bool(features & bit(Feature.VERSION_1)), "VERSION_1 is left")
        # As the device insists on it: a front-end may keep controlq to itself, and hands on what depends on it.
        lacking = missing_needs(features, self.inner.feature_needs)
        # Nothing else gets this far: what was not offered is refused, with its clause, before.
        must(f"{_FEATURES}.1", True, "")
        must(f"{_FEATURES}.2", not lacking, f"features {lacking} are accepted without what they need")
        own = mask(*kind.features, *Feature)
        must(f"{_FEATURES}.5", not features & ~own, f"bits {features & ~own:#x} mean nothing for {self.name}")

    def activate(self, end: DeviceEnd, features: int) -> None:
        wanted = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK
        status = end.read_status()
        for clause in (f"{_INITIALISATION}.1", "status.driver.device-status-field.1"):
            self.ledger.must(clause, status & wanted == wanted, f"the status is {status:#x} with DRIVER_OK")
        packed = end.device_features & bit(Feature.RING_PACKED)
        if packed:
            accepted = bool(features & bit(Feature.RING_PACKED))
            self.ledger.should("features.driver.reserved-feature-bits.6", accepted, "RING_PACKED is left")
        self._rings.began(filter(None, map(end.active_queue, range(end.num_queues))))
        self.inner.activate(end, features)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        self._rings.look(queue, chain)
        readable = b"".join(chain.readable.views())
        self._kind.request(self.view, queue, readable, chain.writable.remaining)
        self.inner.handle(queue, chain)


def judged(device: Device, name: str) -> Judge:
    """A device whose driver is judged. name: "blk", "net", "scsi" or "console". Raises UsageError for another."""
    if name not in _KINDS:
        raise UsageError(f"{name!r} is none of {', '.join(_KINDS)}")
    return Judge(device, name)
