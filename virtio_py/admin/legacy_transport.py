"""A legacy driver's view of a member whose owner lends it the legacy interface: registers, reached by commands.

It is what a hypervisor does for a guest's driver that knows nothing else than an I/O BAR (2.12.1.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from virtio_py.admin.client import GroupClient
from virtio_py.admin.layout import (
    NotifyPlace,
    Opcode,
    virtio_admin_cmd_legacy_notify_info_result,
    virtio_admin_cmd_legacy_rd_data,
    virtio_admin_cmd_legacy_wr_data,
    virtio_pci_legacy_common_cfg,
)
from virtio_py.admin.legacy import PAGE
from virtio_py.admin.member import NotifyAddress
from virtio_py.driver import Transport
from virtio_py.errors import NegotiationError, PeerError, UsageError
from virtio_py.memory import Arena
from virtio_py.records import Record
from virtio_py.resources import padded
from virtio_py.rings.queue import DriverQueue
from virtio_py.status import LEGACY_FEATURES

_READS: Final = 1000
Wait = Callable[[float], None]
BarSize = Callable[[NotifyPlace, int], int]
"""Bytes of a BAR of the owner or the member, 0 if there is none."""


class LegacyTransport(Transport):
    """One member, driven by its legacy interface.

    group: the SR-IOV group, as the owner's driver has it; arena: memory that the member can reach
    config: the layout of the device-specific configuration, which is read and written field by field
    wait: lets time pass until a notification may have arrived; bar_size, write_bar: for notifications at an address,
    which are sent as commands without them
    """

    legacy_page = PAGE

    def __init__(
        self,
        group: GroupClient,
        member: int,
        device_id: int,
        arena: Arena,
        config: Record,
        wait: Wait,
        bar_size: BarSize = lambda place, bar: 0,
        write_bar: Callable[[NotifyAddress, bytes], None] | None = None,
    ) -> None:
        self._group = group
        self._member = member
        self._device_id = device_id
        self._arena = arena
        self._config = config
        self._wait = wait
        self._write_bar = write_bar
        usable = self.notify_addresses(bar_size) if write_bar is not None else []
        self.notify_address = usable[0] if usable else None

    # Commands

    def _read(self, opcode: Opcode, offset: int, length: int) -> bytes:
        data = virtio_admin_cmd_legacy_rd_data.encode(offset=offset)
        return padded(self._group.exactly(opcode, self._member, data, length), length)

    def _write(self, opcode: Opcode, offset: int, data: bytes) -> None:
        head = virtio_admin_cmd_legacy_wr_data.encode(offset=offset)
        self._group.exactly(opcode, self._member, head + data, 0)

    def _get(self, name: str) -> int:
        record = virtio_pci_legacy_common_cfg
        size = record.field(name).size
        return int.from_bytes(self._read(Opcode.LEGACY_COMMON_CFG_READ, record.offset(name), size), "little")

    def _set(self, name: str, value: int) -> None:
        record = virtio_pci_legacy_common_cfg
        data = value.to_bytes(record.field(name).size, "little")
        self._write(Opcode.LEGACY_COMMON_CFG_WRITE, record.offset(name), data)

    def notify_addresses(self, bar_size: BarSize) -> list[NotifyAddress]:
        """Where notifications may be written, the best place first; entries that make no sense are passed over."""
        if Opcode.LEGACY_NOTIFY_INFO not in self._group.used:
            return []
        record = virtio_admin_cmd_legacy_notify_info_result
        answer = self._group.command(Opcode.LEGACY_NOTIFY_INFO, self._member, room=record.size)
        entries = record.decode(padded(answer, record.size)).entries
        found = []
        for entry in entries:
            if entry.flags == NotifyPlace.END:
                break
            found += _usable(entry, bar_size)
        return found

    # Transport

    @property
    def arena(self) -> Arena:
        """Memory shared with the member."""
        return self._arena

    @property
    def device_id(self) -> int:
        """The device type, which the PCI device id tells."""
        return self._device_id

    @property
    def num_queues(self) -> int:
        """How many there are: a legacy interface tells by the size 0 of the first that is not."""
        index = 0
        while self.max_queue_size(index):
            index += 1
        return index

    @property
    def config_notifications(self) -> int:
        """None arrive: with MSI-X they are the member's own."""
        return 0

    def device_features(self) -> int:
        """32 bits are all there are."""
        return self._get("device_features")

    def accept_features(self, features: int) -> None:
        """The driver's choice. Raises UsageError for bits that a legacy interface has no room for."""
        if features & ~LEGACY_FEATURES:
            raise UsageError(f"features {features & ~LEGACY_FEATURES:#x} have no room in a legacy interface")
        self._set("driver_features", features)

    def read_status(self) -> int:
        """The device status field."""
        return self._get("device_status")

    def write_status(self, value: int) -> None:
        """0 resets."""
        self._set("device_status", value)

    def read_config(self, offset: int, length: int) -> bytes:
        """Part of the configuration space, a field at a time, as two reads in a row found it."""
        before = self._read_fields(offset, length)
        for _ in range(_READS):
            data = self._read_fields(offset, length)
            if data == before:
                return data
            before = data
        raise PeerError(f"the configuration changed during each of {_READS} reads")

    def write_config(self, offset: int, data: bytes) -> None:
        """Stores to the configuration space, a field at a time."""
        for start, end in self._fields(offset, len(data)):
            self._write(Opcode.LEGACY_DEV_CFG_WRITE, start, data[start - offset : end - offset])

    def config_generation(self) -> int:
        """Always 0; `read_config` makes sure of its own."""
        return 0

    def _read_fields(self, offset: int, length: int) -> bytes:
        read = (self._read(Opcode.LEGACY_DEV_CFG_READ, at, end - at) for at, end in self._fields(offset, length))
        return b"".join(read).ljust(length, b"\0")

    def _fields(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The pieces of a range that are each in one field of the layout."""
        cuts = [(max(at, offset), min(end, offset + length)) for at, end in _leaves(self._config)]
        return [(at, end) for at, end in cuts if at < end]

    def max_queue_size(self, index: int) -> int:
        """The size of a queue, which the device alone decides; 0 if there is no such queue."""
        self._set("queue_select", index)
        return self._get("queue_size")

    def enable_queue(self, queue: DriverQueue) -> None:
        """Writes the queue's address. Raises NegotiationError for a size that is not the device's."""
        if queue.size != self.max_queue_size(queue.index):
            raise NegotiationError("a legacy queue has the size that the device says", queue=queue.index)
        self._set("queue_address", queue.descriptor_area // PAGE)

    def reset_queue(self, index: int) -> None:
        """Raises UsageError: VIRTIO_F_RING_RESET does not go with a legacy interface."""
        raise UsageError("a legacy interface resets no queues")

    def available_buffer(self, index: int, data: int) -> None:
        """At the address for it if there is one, or as a command."""
        if self._write_bar is not None and self.notify_address is not None:
            self._write_bar(self.notify_address, index.to_bytes(2, "little"))
        else:
            self._set("queue_notify", index)

    def wait(self, timeout: float) -> None:
        """Lets time pass."""
        self._wait(timeout)

    def close(self) -> None:
        """Nothing is held."""


def _usable(entry: Any, bar_size: BarSize) -> list[NotifyAddress]:
    """The address that an entry names, if it is one."""
    try:
        address = NotifyAddress(NotifyPlace(entry.flags), entry.bar, entry.offset)
    except (ValueError, UsageError):
        return []
    # Two bytes are written there.
    return [address] if entry.offset + 2 <= bar_size(address.place, entry.bar) else []


def _leaves(record: Record, base: int = 0) -> list[tuple[int, int]]:
    found = []
    for inner in record.fields.values():
        at = base + inner.offset
        found += _leaves(inner.nested, at) if inner.nested is not None else [(at, at + inner.size)]
    return found
