"""From a capability's place to its values: which Record stands there, and what of it can be read.

Nothing here raises for what the bytes say; what is wrong with them is told as `Problem`s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from attrs import asdict, frozen

from virtio_py.pci import capabilities, extended, virtio_caps
from virtio_py.pci.capabilities import CapabilityId
from virtio_py.pci.express import express_record, pci_express
from virtio_py.pci.extended import ExtendedId
from virtio_py.records import Record


@frozen
class Problem:
    """Something wrong in a configuration space: where (a byte offset), what, and the clause if one forbids it."""

    offset: int
    message: str
    clause: str = ""


@frozen
class Capability:
    """One capability as found.

    offset: bytes from the start of configuration space; id: its 8-bit id, or 16-bit where `extended`; version: of an
    extended one; record: its layout, None for an id that is not known; fields: the record's values as JSON can
    carry them, without reserved bits that are 0, or {"raw": hexadecimal text}; raw: its bytes. What a vendor specific
    capability has behind its record is `data`, hexadecimal text.
    A virtio capability's `cap` is merged into the fields, so that `bar`, `offset` and `length` are always found.
    """

    offset: int
    id: int
    extended: bool
    name: str
    version: int | None
    record: Record | None
    fields: Mapping[str, Any]
    raw: bytes

    def as_dict(self) -> dict[str, Any]:
        """What JSON shows of it."""
        shown = {"offset": self.offset, "id": self.id, "extended": self.extended, "name": self.name}
        return {**shown, **({"version": self.version} if self.extended else {}), "fields": dict(self.fields)}


@frozen
class Bar:
    """One base address register: its index, the address in bytes, 32 or 64 bits wide, and what it maps."""

    index: int
    address: int
    width: int
    io: bool
    prefetchable: bool

    def as_dict(self) -> dict[str, Any]:
        """What JSON shows of it."""
        return asdict(self)


def decode_bars(words: tuple[int, ...] | list[int]) -> list[Bar]:
    """The BARs that are in use; the upper half of a 64-bit one is no BAR of its own. A last one without is 32-bit."""
    bars, index = [], 0
    while index < len(words):
        word = words[index]
        wide = word & 7 == 4 and index + 1 < len(words)
        io = bool(word & 1)
        address = word & ~3 if io else word & ~15 | (words[index + 1] << 32 if wide else 0)
        if word:
            bars.append(Bar(index, address, 64 if wide else 32, io, not io and bool(word & 8)))
        index += 2 if wide else 1
    return bars


def decode_capability(
    config: bytes, offset: int, end: int, *, is_extended: bool, is_virtio: bool
) -> tuple[Capability, list[Problem]]:
    """The capability at `offset`, of which nothing is read at or behind `end`: the next one's place, or the limit."""
    here = config[offset:end]
    identify = _extended if is_extended else _virtio if is_virtio else _conventional
    number, name, record = identify(here)
    version = here[2] & 0xF if is_extended and len(here) > 2 else None
    if record is None or not here:
        return Capability(offset, number, is_extended, name, version, None, {"raw": here.hex()}, here), []
    length = _declared_length(here, is_extended) or record.size
    values = record.decode_available(here[: max(length, _ALWAYS_READ)] if record.name in _SELF_SIZED else here)
    fields = tidy(record.as_dict(values))
    fields = {**fields.pop("cap", {}), **fields}
    if extra := here[record.size : length]:
        fields["data"] = extra.hex()
    raw = here[: max(record.size, length)]
    found = Capability(offset, number, is_extended, name, version, record, fields, raw)
    return found, list(_problems(found, here, values))


def _problems(found: Capability, here: bytes, values: Mapping[str, Any]) -> Iterator[Problem]:
    record = found.record
    if record is None:
        return
    if len(here) < _MINIMUM.get(record.name, record.size):
        yield Problem(found.offset, f"{found.name} takes {record.size} bytes, only {len(here)} are its own here")
    if len(values) == len(record.fields):
        for broken in record.violations(record.decode(here)):
            yield Problem(found.offset, f"{record.name}.{broken.field} {broken.message}", broken.clause)
    elif len(here) >= record.size:
        message = f"{record.name}.cap_len {here[2]} is less than the structure's {record.size} bytes"
        yield Problem(found.offset, message, "pci.device.virtio-structure-pci-capabilities.1")


# The tails of these two exist only in some functions.
_MINIMUM: Final = {
    pci_express.name: pci_express.offset("link_capabilities_2"),
    extended.pci_aer.name: extended.pci_aer.offset("root_error_command"),
}


# Virtio's capabilities tell how much of themselves there is, but this much is read of any: id, next, cap_len.
_SELF_SIZED: Final = {record.name for record in virtio_caps.VIRTIO_CAPS.values()}
_ALWAYS_READ: Final = capabilities.pci_vendor_specific.size


def _declared_length(here: bytes, is_extended: bool) -> int:
    """The length that a vendor specific capability of either kind says it has; the others say nothing, 0."""
    if not is_extended:
        return here[2] if here[0] == CapabilityId.VENDOR_SPECIFIC and len(here) > 2 else 0
    header = extended.pci_vsec.decode_available(here)
    if header["header"].cap_id != ExtendedId.VENDOR_SPECIFIC or "vsec_header" not in header:
        return 0
    return int(header["vsec_header"].vsec_length)


def tidy(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields, without reserved ones that are 0."""
    return {
        name: tidy(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if not (name.startswith("reserved") and _is_zero(value))
    }


def _is_zero(value: Any) -> bool:
    return not (value.strip("0") if isinstance(value, str) else value)


_Identified = tuple[int, str, Record | None]


def _extended(here: bytes) -> _Identified:
    number = int.from_bytes(here[:2], "little")
    name = extended.EXTENDED_NAMES.get(number, f"Extended Capability ID {number:#x}")
    return number, name, extended.EXTENDED_RECORDS.get(number)


def _virtio(here: bytes) -> _Identified:
    if here[0] != CapabilityId.VENDOR_SPECIFIC or len(here) < 4:
        return _conventional(here)
    name = f"{_VENDOR_SPECIFIC}: VirtIO: {_CFG_NAMES.get(here[3], '<unknown>')}"
    known = here[3] in _CFG_NAMES
    return here[0], name, virtio_caps.VIRTIO_CAPS[virtio_caps.CfgType(here[3])] if known else virtio_caps.virtio_pci_cap


def _conventional(here: bytes) -> _Identified:
    number = here[0]
    name = capabilities.NAMES.get(number, f"Capability ID {number:#x}")
    choose = _CHOICES.get(number)
    return number, name, choose(here) if choose else None


def _msi(here: bytes) -> Record:
    control = int.from_bytes(here[2:4], "little")
    return capabilities.pci_msi[control >> 7 & 1, control >> 8 & 1]


def _express(here: bytes) -> Record:
    flags = int.from_bytes(here[2:4], "little")
    return express_record(flags & 0xF, flags >> 4 & 0xF)


def _always(record: Record) -> Callable[[bytes], Record]:
    return lambda here: record


_VENDOR_SPECIFIC: Final = capabilities.NAMES[CapabilityId.VENDOR_SPECIFIC]

_CFG_NAMES: Final = {
    1: "CommonCfg",
    2: "Notify",
    3: "ISR",
    4: "DeviceCfg",
    5: "PciCfg",
    8: "SharedMemory",
    9: "VendorData",
}

_CHOICES: Final[Mapping[int, Callable[[bytes], Record]]] = {
    CapabilityId.POWER_MANAGEMENT: _always(capabilities.pci_power_management),
    CapabilityId.MSI: _msi,
    CapabilityId.VENDOR_SPECIFIC: _always(capabilities.pci_vendor_specific),
    CapabilityId.SUBSYSTEM: _always(capabilities.pci_subsystem),
    CapabilityId.PCI_EXPRESS: _express,
    CapabilityId.MSI_X: _always(capabilities.pci_msix),
    CapabilityId.SATA: _always(capabilities.pci_sata),
    CapabilityId.ADVANCED_FEATURES: _always(capabilities.pci_advanced_features),
}
