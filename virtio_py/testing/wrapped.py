"""A device around another one, for whoever does one thing differently, or looks on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define

from virtio_py.device import Device, DeviceEnd, QueueSpec
from virtio_py.resources import Capability, ResourceType
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.watch import Watch


@define(eq=False)
class Wrapped(Device):
    """A device around another: whatever it is not asked to do differently, it does as that one.

    Not an attribute lookup, so that a verb that `Device` gains is seen to be missing here.
    """

    inner: Device

    @property
    def device_id(self) -> Any:  # type: ignore[override]  # a class has one, an instance that imitates has another's
        """That of the device inside."""
        return self.inner.device_id

    @property
    def feature_needs(self) -> Any:  # type: ignore[override]  # likewise
        """That of the device inside."""
        return self.inner.feature_needs

    def queues(self) -> Sequence[QueueSpec]:
        return self.inner.queues()

    def offered_features(self) -> int:
        return self.inner.offered_features()

    def refuse_features(self, features: int) -> str | None:
        return self.inner.refuse_features(features)

    def negotiated(self, features: int) -> None:
        self.inner.negotiated(features)

    def read_config(self) -> bytes:
        return self.inner.read_config()

    def write_config(self, offset: int, data: bytes) -> None:
        self.inner.write_config(offset, data)

    def activate(self, end: DeviceEnd, features: int) -> None:
        self.inner.activate(end, features)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        self.inner.handle(queue, chain)

    def busy(self) -> bool:
        return self.inner.busy()

    def hold_notification(self, index: int) -> bool:
        return self.inner.hold_notification(index)

    def queue_reset(self, index: int) -> None:
        self.inner.queue_reset(index)

    def capabilities(self) -> Mapping[int, Capability]:
        return self.inner.capabilities()

    def resource_types(self) -> Mapping[int, ResourceType]:
        return self.inner.resource_types()

    def parts(self) -> Mapping[tuple[int, bytes], bytes]:
        return self.inner.parts()

    def takes_part(self, part_type: int, selector: bytes, value: bytes) -> bool:
        return self.inner.takes_part(part_type, selector, value)

    def set_part(self, part_type: int, selector: bytes, value: bytes) -> None:
        self.inner.set_part(part_type, selector, value)

    def watch(self) -> Sequence[Watch]:
        return self.inner.watch()

    def reset(self) -> None:
        self.inner.reset()
