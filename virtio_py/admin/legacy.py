"""The legacy interface of a member, which its owner lends it (2.12.1.1): registers that a legacy driver would find in
an I/O BAR, reached by commands.

An access does what it would do to a transitional device (4.1.4.10): little-endian, whole fields or parts of one field.
What a driver gets wrong in the registers is a fault of the member, as it would be there; the command succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from attrs import define, field

from virtio_py.admin.group import Command, Commands, Request
from virtio_py.admin.layout import (
    NotifyPlace,
    Opcode,
    virtio_admin_cmd_legacy_notify_info_result,
    virtio_admin_cmd_legacy_rd_data,
    virtio_admin_cmd_legacy_wr_data,
    virtio_pci_legacy_common_cfg,
)
from virtio_py.admin.member import NO_VECTOR, Member
from virtio_py.device import DeviceEnd
from virtio_py.errors import RingError
from virtio_py.records import Record
from virtio_py.resources import AdminQualifier, AdminStatus, Refused, padded
from virtio_py.rings.places import legacy_places
from virtio_py.status import LEGACY_RING_FEATURES

PAGE: Final = 4096
"""What queue_address counts, and the alignment of a legacy queue over PCI, in bytes."""


@contextmanager
def legacy_access(end: DeviceEnd, legacy: bool = True) -> Iterator[None]:
    """For as long as it lasts, the end is met by its legacy interface: a transitional device has both."""
    before = end.legacy, end.ring_features
    if legacy:
        end.legacy, end.ring_features = True, LEGACY_RING_FEATURES
    try:
        yield
    finally:
        end.legacy, end.ring_features = before


def span(record: Record, offset: int, length: int) -> tuple[str, int]:
    """The field, by its dotted path, that `length` bytes at `offset` lie in, and where in it they begin. Raises
    Refused if there is none, or more than one."""
    for name, found in record.fields.items():
        if found.offset <= offset < found.offset + found.size:
            at = offset - found.offset
            if found.nested is not None:
                inner, start = span(found.nested, at, length)
                return f"{name}.{inner}", start
            if 0 < length <= found.size - at:
                return name, at
    raise Refused(AdminStatus.EINVAL, f"{length} bytes at {offset} are not of one field of {record.name}")


@define(eq=False)
class LegacyRegisters:
    """The common configuration structure of one member, and its device-specific configuration."""

    member: Member
    config: Record
    _select: int = field(default=0, init=False)

    def read_common(self, offset: int, length: int) -> bytes:
        """Raises Refused for what is not of one field."""
        name, at = span(virtio_pci_legacy_common_cfg, offset, length)
        with legacy_access(self.member.end):
            return self._value(name)[at : at + length]

    def write_common(self, offset: int, data: bytes) -> None:
        """Raises Refused for what is not of one field."""
        name, at = span(virtio_pci_legacy_common_cfg, offset, len(data))
        with legacy_access(self.member.end):
            now = self._value(name)
            value = int.from_bytes(now[:at] + data + now[at + len(data) :], "little")
            self.member.end.guard(lambda: self._store(name, value))

    def read_device(self, offset: int, length: int) -> bytes:
        """Raises Refused for what is not of one field."""
        span(self.config, offset, length)
        return self.member.end.read_config(offset, length)

    def write_device(self, offset: int, data: bytes) -> None:
        """Raises Refused for what is not of one field."""
        span(self.config, offset, len(data))
        self.member.end.write_config(offset, data)

    def notify(self, queue: int) -> None:
        """Queue Notify, or a notification at one of the member's addresses: the same thing."""
        self.member.end.guard(lambda: self._notify(queue))

    def _notify(self, queue: int) -> None:
        end = self.member.end
        index = end.notified_queue(queue)
        more = end.available_buffer(index)
        # Beyond the budget of one call nobody else comes back to it; a queue holds at most its size of buffers.
        for _ in range(end.queue(index).size):
            if not more:
                break
            more = end.serve_queue(index)

    # Reading

    def _value(self, name: str) -> bytes:
        value = _READ[name](self) if name in _READ else 0
        return value.to_bytes(virtio_pci_legacy_common_cfg.field(name).size, "little")

    @property
    def _exists(self) -> bool:
        return self._select < self.member.end.num_queues

    def _read_page(self) -> int:
        if not self._exists or self.member.end.active_queue(self._select) is None:
            return 0
        return self.member.end.queue(self._select).descriptor_area // PAGE & 0xFFFFFFFF

    def _read_size(self) -> int:
        return self.member.end.queue(self._select).max_size if self._exists else 0

    # Writing

    def _store(self, name: str, value: int) -> None:
        if name in _WRITE:
            _WRITE[name](self, value)

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._select = 0
            self.member.config_vector = NO_VECTOR
            self.member.queue_vectors.clear()
        self.member.end.write_status(value)

    def _write_select(self, value: int) -> None:
        self._select = value

    def _write_page(self, value: int) -> None:
        if not self._exists:
            raise RingError("queue_address of a queue that does not exist", queue=self._select)
        end, index = self.member.end, self._select
        if end.active_queue(index) is not None:
            end.stop_queue(index)
        if value == 0:
            return
        config = end.queue(index)
        config.size = config.max_size
        places = legacy_places(config.size, PAGE)
        config.descriptor_area = value * PAGE
        config.driver_area = config.descriptor_area + places.driver
        config.device_area = config.descriptor_area + places.device
        end.enable_queue(index)

    def _write_config_vector(self, value: int) -> None:
        self.member.config_vector = value

    def _write_queue_vector(self, value: int) -> None:
        if self._exists:
            self.member.queue_vectors[self._select] = value


_READ: Final[Mapping[str, Callable[[LegacyRegisters], int]]] = {
    "device_features": lambda r: r.member.end.device_features,
    "driver_features": lambda r: r.member.end.features & 0xFFFFFFFF,
    "queue_address": LegacyRegisters._read_page,
    "queue_size": LegacyRegisters._read_size,
    "queue_select": lambda r: r._select,
    "device_status": lambda r: r.member.end.read_status(),
    "config_msix_vector": lambda r: r.member.config_vector,
    "queue_msix_vector": lambda r: r.member.queue_vectors.get(r._select, NO_VECTOR),
}
"""isr_status always reads 0: with MSI-X enabled, as for any virtual function, nobody sets it."""
_WRITE: Final[Mapping[str, Callable[[LegacyRegisters, int], None]]] = {
    "driver_features": lambda r, value: r.member.end.accept_features(value),
    "queue_address": LegacyRegisters._write_page,
    "queue_select": LegacyRegisters._write_select,
    "queue_notify": LegacyRegisters.notify,
    "device_status": LegacyRegisters._write_status,
    "config_msix_vector": LegacyRegisters._write_config_vector,
    "queue_msix_vector": LegacyRegisters._write_queue_vector,
}


@define(eq=False)
class LegacyCommands:
    """The five commands over the registers of a group's members; find: raises Refused where there is no member."""

    find: Callable[[int], Member]
    _registers: dict[int, LegacyRegisters] = field(factory=dict, init=False)

    @property
    def commands(self) -> Commands:
        """All five: who has addresses to notify says so in the answer."""
        return {
            Opcode.LEGACY_COMMON_CFG_WRITE: Command(self._writer(LegacyRegisters.write_common)),
            Opcode.LEGACY_COMMON_CFG_READ: Command(self._reader(LegacyRegisters.read_common)),
            Opcode.LEGACY_DEV_CFG_WRITE: Command(self._writer(LegacyRegisters.write_device)),
            Opcode.LEGACY_DEV_CFG_READ: Command(self._reader(LegacyRegisters.read_device)),
            Opcode.LEGACY_NOTIFY_INFO: Command(self._info, virtio_admin_cmd_legacy_notify_info_result.size),
        }

    def registers(self, member: int) -> LegacyRegisters:
        """Those of one member. Raises Refused if it has none."""
        found = self.find(member)
        if found.config is None:
            raise Refused(AdminStatus.EINVAL, f"member {member} has no legacy interface", AdminQualifier.INVALID_MEMBER)
        return self._registers.setdefault(member, LegacyRegisters(found, found.config))

    def write_notification(self, place: NotifyPlace, member: int, bar: int, offset: int, data: bytes) -> bool:
        """For a carrier: a driver wrote `data` at an address of a BAR of the owner or, `member` says which, of a
        member. Whether that is an address that was told to anybody."""
        info = place, bar, offset
        found = self.registers(member)
        if info not in [(address.place, address.bar, address.offset) for address in found.member.notify]:
            return False
        found.notify(int.from_bytes(padded(data, 2), "little"))
        return True

    def _writer(self, write: Callable[[LegacyRegisters, int, bytes], None]) -> Callable[[Request], bytes]:
        def handler(request: Request) -> bytes:
            head = virtio_admin_cmd_legacy_wr_data
            offset = head.decode(padded(request.data, head.size)).offset
            write(self.registers(request.member), offset, request.data[head.size :])
            return b""

        return handler

    def _reader(self, read: Callable[[LegacyRegisters, int, int], bytes]) -> Callable[[Request], bytes]:
        def handler(request: Request) -> bytes:
            head = virtio_admin_cmd_legacy_rd_data
            offset = head.decode(padded(request.data, head.size)).offset
            # Nothing else says how much is to be read than the room there is for it.
            return read(self.registers(request.member), offset, request.room)

        return handler

    def _info(self, request: Request) -> bytes:
        entries = b"".join(address.encode() for address in self.find(request.member).notify)
        return padded(entries, virtio_admin_cmd_legacy_notify_info_result.size)
