"""A function's configuration space as registers: values, which bits software may write, and what accesses set going."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import Factory, define, field, frozen

from virtio_py.access import WIDTHS
from virtio_py.errors import UsageError
from virtio_py.pci.capabilities import pci_capability
from virtio_py.pci.header import CONFIG_SPACE_MAX, CONFIG_SPACE_MIN, CONVENTIONAL_SIZE, pci_header_type0
from virtio_py.records import Record

_DWORD: Final = 4


@frozen
class Hook:
    """What an access to [start, end) sets going: before a read, after a write."""

    start: int
    end: int
    before_read: Callable[[], None] | None = None
    after_write: Callable[[], None] | None = None


@define(eq=False)
class ConfigRegisters:
    """Configuration space of `size` bytes, as a `RegisterAccess`. It knows no register's meaning."""

    size: int = CONFIG_SPACE_MAX
    _values: bytearray = field(init=False, default=Factory(lambda self: bytearray(self.size), takes_self=True))
    _writable: bytearray = field(init=False, default=Factory(lambda self: bytearray(self.size), takes_self=True))
    _power_on: bytes = field(init=False, default=b"")
    _hooks: list[Hook] = field(init=False, factory=list)
    _last: int = field(init=False, default=0)
    _free: int = field(init=False, default=CONFIG_SPACE_MIN)

    # What the function's author declares

    def declare(self, at: int, values: bytes, writable: bytes) -> None:
        """Registers at an offset: what they hold after power-on, and ones where software may write."""
        self._values[at : at + len(values)] = values
        self._writable[at : at + len(writable)] = writable
        self._power_on = bytes(self._values)

    def add_capability(
        self, record: Record, values: Mapping[str, Any], writable: Mapping[str, Any] | None = None, extra: bytes = b""
    ) -> int:
        """Puts a capability at the end of the list: its values, and in `writable` ones where software may write.

        Returns its offset in bytes. extra: what follows the record. Raises UsageError if there is no more room.
        """
        body, mask = record.encode(**values) + extra, record.encode(**(writable or {}))
        at = self._free
        if at + len(body) > CONVENTIONAL_SIZE:
            raise UsageError(f"{record.name} finds no room in configuration space")
        link = (
            self._last + pci_capability.offset("cap_next")
            if self._last
            else pci_header_type0.offset("capabilities_pointer")
        )
        self._values[link] = at
        self.declare(at, body, mask)
        self._last, self._free = at, -(-(at + len(body)) // _DWORD) * _DWORD
        return at

    def add_hook(self, hook: Hook) -> None:
        """Has something happen when part of it is read or written."""
        self._hooks.append(hook)

    def after_write(self, record: Record, at: int, name: str, call: Callable[[], None]) -> None:
        """Has something happen when a field of what stands at an offset was written."""
        self.add_hook(Hook(at + record.offset(name), at + record.end(name), after_write=call))

    # What the function itself does

    @property
    def all(self) -> bytes:
        """All bytes, as they are without a read's effects."""
        return bytes(self._values)

    def decode(self, record: Record, at: int = 0) -> Any:
        """The values of what stands at an offset."""
        return record.decode(self._values, at)

    def field(self, record: Record, at: int, name: str) -> Any:
        """The value of one field of what stands at an offset."""
        return record.field(name).decode(self._values, at + record.offset(name))

    def load(self, at: int, length: int) -> bytes:
        """Bytes as they are, without a read's effects."""
        return bytes(self._values[at : at + length])

    def update(self, record: Record, at: int, name: str, **fields: int) -> None:
        """Sets fields of a register, whether software may write them or not."""
        value = self.field(record, at, name)._replace(**fields)
        self.store(at + record.offset(name), record.field(name).encode(value))

    def store(self, at: int, data: bytes) -> None:
        """Sets bytes, whether software may write them or not."""
        self._values[at : at + len(data)] = data

    def reset(self) -> None:
        """All registers are as after power-on."""
        self._values[:] = self._power_on

    # What software does

    def read(self, offset: int, width: int) -> int:
        """What a read returns, little-endian; all ones for one that is not aligned."""
        if not self._is_access(offset, width):
            return (1 << 8 * width) - 1
        for hook in self._hooks:
            if hook.before_read is not None and offset < hook.end and hook.start < offset + width:
                hook.before_read()
        return int.from_bytes(self._values[offset : offset + width], "little")

    def write(self, offset: int, value: int, width: int) -> None:
        """A write: what is read-only stays."""
        if not self._is_access(offset, width):
            return
        mask = int.from_bytes(self._writable[offset : offset + width], "little")
        old = int.from_bytes(self._values[offset : offset + width], "little")
        self.store(offset, (old & ~mask | value & mask).to_bytes(width, "little"))
        for hook in self._hooks:
            if hook.after_write is not None and offset < hook.end and hook.start < offset + width:
                hook.after_write()

    def _is_access(self, offset: int, width: int) -> bool:
        return width in WIDTHS and offset % width == 0 and 0 <= offset <= self.size - width
