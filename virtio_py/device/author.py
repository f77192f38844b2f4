"""What a device's author writes, and what a carrier carries out for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from virtio_py.resources import Capability, ResourceType
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId
from virtio_py.status import FeatureNeeds
from virtio_py.watch import Watch

if TYPE_CHECKING:
    from virtio_py.device.end import DeviceEnd


class QueueSpec(NamedTuple):
    """A virtqueue of a device: its name in the specification, and the largest size the device takes."""

    name: str
    size: int = 256


class Notifier(Protocol):
    """Everything a device may do to the outside."""

    def used_buffer(self, queue_index: int) -> None:
        """A used buffer notification for one queue (2.3)."""

    def configuration_change(self) -> None:
        """A configuration change notification (2.3)."""


class Administrator(Protocol):
    """What a device has that owns device groups (2.12): administration virtqueues, and the commands that come there."""

    def queues(self) -> Sequence[QueueSpec]:
        """The administration virtqueues, whose indices follow those of the device's own queues."""

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serves a command."""

    def queue_reset(self, index: int) -> None:
        """One of the queues was reset."""

    def reset(self) -> None:
        """The device was reset."""


class Device:
    """What a device's author subclasses. Every method but `queues` and `handle` has a usable default.

    device_id: the device type; feature_needs: which of its features need which others.
    moderates: whether it may hold used buffer notifications back.
    """

    device_id: ClassVar[DeviceId]
    feature_needs: ClassVar[FeatureNeeds] = {}
    moderates: ClassVar[bool] = False

    def queues(self) -> Sequence[QueueSpec]:
        """The device's virtqueues, in the order of their indices."""
        raise NotImplementedError(f"{type(self).__name__} declares no queues")

    def offered_features(self) -> int:
        """The mask of this device type's feature bits; ring features are the end's to offer."""
        return 0

    def refuse_features(self, features: int) -> str | None:
        """Why this subset of the offer cannot be served, or None. The driver then finds FEATURES_OK clear."""
        return None

    def negotiated(self, features: int) -> None:
        """FEATURES_OK was set with these features. The driver may read the configuration that follows from them, and
        make buffers available; none is handled before `activate`."""

    def read_config(self) -> bytes:
        """The whole live configuration structure; the end slices it and owns the generation."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote `data` at `offset`; fields that are read-only are left as they are."""

    def activate(self, end: DeviceEnd, features: int) -> None:
        """DRIVER_OK was set with these negotiated features. `end` is how the device reaches its queues and driver."""

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serves one chain. When this returns the chain is used, unless `chain.defer()` was called."""
        raise NotImplementedError(f"{type(self).__name__} handles no chains")

    @property
    def concurrent(self) -> bool:
        """Whether `handle` may be called by several threads at a time, each with a queue of its own: it touches nothing
        but the queue, the chain, and what takes care of itself. No other method is called meanwhile."""
        return False

    def busy(self) -> bool:
        """Whether deferred chains are being worked on, so that suspending has to wait for `DeviceEnd.settled`."""
        return False

    def hold_notification(self, index: int) -> bool:
        """Whether what was just completed is to wait for `DeviceQueue.notify`; asked where `moderates` says so."""
        return False

    def queue_reset(self, index: int) -> None:
        """The driver has reset one queue (2.6.1): forgets its deferred chains."""

    def capabilities(self) -> Mapping[int, Capability]:
        """What a driver may enable by administration commands, by capability id (0x800 … 0xfff)."""
        return {}

    def resource_types(self) -> Mapping[int, ResourceType]:
        """The types of resource objects that a driver may create by administration commands (0x200 … 0x4ff)."""
        return {}

    def parts(self) -> Mapping[tuple[int, bytes], bytes]:
        """What the driver has made of the device besides its registers and queues, as parts of this device type
        (2.13): values by part type (0x200 … 0x5fe) and selector."""
        return {}

    def takes_part(self, part_type: int, selector: bytes, value: bytes) -> bool:
        """Whether such a part can be set."""
        return False

    def set_part(self, part_type: int, selector: bytes, value: bytes) -> None:
        """Sets a part that `takes_part` has found good; called between `negotiated` and `activate`. Raises PeerError if
        it does not go with the negotiated features."""

    def watch(self) -> Sequence[Watch]:
        """The descriptors behind the device that it waits for now; asked before every wait, by whatever serves it."""
        return ()

    def reset(self) -> None:
        """Forgets everything that a driver did, deferred chains included; nothing may be completed afterwards."""
