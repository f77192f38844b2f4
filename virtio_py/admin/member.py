"""A member of a device group as its owner reaches it: the device's end, and what the end itself does not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import define, field

from virtio_py.admin.layout import NOTIFY_ENTRIES, NotifyPlace, virtio_pci_legacy_notify_info
from virtio_py.admin.parts_layout import Part
from virtio_py.device import DeviceEnd
from virtio_py.errors import UsageError
from virtio_py.records import Record

NO_VECTOR: Final = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR."""
PartKey = tuple[int, bytes]


@define(frozen=True)
class NotifyAddress:
    """Where a legacy driver's notifications may be written, instead of being sent as commands (2.12.1.1.5)."""

    place: NotifyPlace
    bar: int
    offset: int

    def __attrs_post_init__(self) -> None:
        values = virtio_pci_legacy_notify_info.decode(self.encode())
        if self.place == NotifyPlace.END or virtio_pci_legacy_notify_info.violations(values):
            raise UsageError(f"{self} is no place for notifications")

    def encode(self) -> bytes:
        """Its virtio_pci_legacy_notify_info."""
        return virtio_pci_legacy_notify_info.encode(flags=self.place, bar=self.bar, offset=self.offset)


def _check_notify(member: Member, attribute: object, value: Sequence[NotifyAddress]) -> None:
    if len(value) >= NOTIFY_ENTRIES:
        raise UsageError(f"{len(value)} addresses leave no room for the end of the list")


@define(eq=False)
class Member:
    """A device that another one, the owner of its group, administers.

    end:    the device
    config: the layout of its device-specific configuration, without which it has no legacy interface
    notify: where a legacy driver may write notifications, the best place first; three at the most
    config_vector, queue_vectors: MSI-X vectors, which matter to the carrier alone
    """

    end: DeviceEnd
    config: Record | None = field(default=None, kw_only=True)
    notify: Sequence[NotifyAddress] = field(default=(), validator=_check_notify, kw_only=True)
    config_vector: int = field(default=NO_VECTOR, init=False)
    queue_vectors: dict[int, int] = field(factory=dict, init=False)
    _staged: dict[PartKey, Part] = field(factory=dict, init=False)
    _resets: int = field(default=0, init=False)

    @property
    def staged(self) -> Mapping[PartKey, Part]:
        """The parts that were set and wait for the device to resume; a reset in between drops them."""
        return self._staged if self._resets == self.end.resets else {}

    def stage(self, parts: Iterable[Part]) -> None:
        """Puts parts aside until the device resumes."""
        self._staged = {**self.staged, **{part.key: part for part in parts}}
        self._resets = self.end.resets

    def unstage(self) -> None:
        """The parts are in effect."""
        self._staged = {}
