"""Walk a configuration space: the header, then both capability chains, from bytes and without I/O.

    function = walk(Path("/sys/bus/pci/devices/0000:00:01.0/config").read_bytes())
    function.vendor_id, [(c.offset, c.name) for c in function.capabilities], function.problems

The bytes are a device's and therefore hostile. A chain that loops, points into the header, leaves the space or is
misaligned ends there (or goes on, where it can) and is reported as a `Problem`; every offset is visited at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

from attrs import Factory, asdict, define, frozen

from virtio_py.errors import MessageError
from virtio_py.pci.capabilities import CapabilityId, pci_capability
from virtio_py.pci.decode import Bar, Capability, Problem, decode_bars, decode_capability, tidy
from virtio_py.pci.extended import pci_extended_capability
from virtio_py.pci.header import (
    CAPABILITIES_POINTER,
    CONFIG_SPACE_MAX,
    CONFIG_SPACE_MIN,
    CONVENTIONAL_SIZE,
    HEADERS,
    pci_header_common,
)
from virtio_py.pci.virtio_caps import VIRTIO_PCI_VENDOR_ID
from virtio_py.pci.virtio_rules import function_problems
from virtio_py.records import Record


@frozen
class Function:
    """One PCI function, decoded from `config_size` bytes.

    header: the header's values as JSON can carry them, of type `header_type`; only its first 16 bytes, which are the
    same in all types, where that is neither 0 nor 1. class_code: 24 bits, base class first.
    """

    path: str
    config_size: int
    header_type: int
    header: Mapping[str, Any]
    bars: tuple[Bar, ...]
    capabilities: tuple[Capability, ...]
    problems: tuple[Problem, ...]

    @property
    def vendor_id(self) -> int:
        """The Vendor ID; a virtual function of SR-IOV has 0xffff here."""
        return int(self.header["vendor_id"])

    @property
    def device_id(self) -> int:
        """The Device ID; a virtual function of SR-IOV has 0xffff here."""
        return int(self.header["device_id"])

    @property
    def class_code(self) -> int:
        """Base class, sub-class and programming interface in 24 bits."""
        return int(self.header["class_code"])

    @property
    def subsystem(self) -> tuple[int, int] | None:
        """Subsystem vendor and device: of a type 0 header, or of the capability that a bridge has for it."""
        places = [self.header, *(c.fields for c in self.capabilities if c.id == CapabilityId.SUBSYSTEM)]
        found = [p for p in places if "subsystem_vendor_id" in p and "subsystem_id" in p]
        return (found[0]["subsystem_vendor_id"], found[0]["subsystem_id"]) if found else None

    def find(self, number: int, *, extended: bool = False) -> list[Capability]:
        """The capabilities with this id, in the order of the chain."""
        return [c for c in self.capabilities if c.id == number and c.extended == extended]

    def as_dict(self) -> dict[str, Any]:
        """What JSON shows of it."""
        vendor, device = self.subsystem or (None, None)
        return {
            "path": self.path,
            "config_size": self.config_size,
            "vendor_id": self.vendor_id,
            "device_id": self.device_id,
            "class_code": self.class_code,
            "revision_id": self.header["revision_id"],
            "header_type": self.header_type,
            "multi_function": self.header["header_type"]["multi_function"],
            "subsystem_vendor_id": vendor,
            "subsystem_id": device,
            "bars": [bar.as_dict() for bar in self.bars],
            "header": dict(self.header),
            "capabilities": [c.as_dict() for c in self.capabilities],
            "problems": [asdict(p) for p in self.problems],
        }


def is_virtio(vendor_id: int, device_id: int) -> bool:
    """Whether these ids are a virtio device's (4.1.2)."""
    return vendor_id == VIRTIO_PCI_VENDOR_ID and 0x1000 <= device_id <= 0x107F


def walk(config: bytes, path: str = "", *, virtio: bool | None = None) -> Function:
    """Decodes a configuration space of 64 to 4096 bytes; raises MessageError for any other length, and nothing else.

    virtio: whether vendor specific capabilities are virtio's, for a function whose own ids do not tell (a VF).
    """
    if not CONFIG_SPACE_MIN <= len(config) <= CONFIG_SPACE_MAX:
        raise MessageError(
            f"a configuration space has {CONFIG_SPACE_MIN} to {CONFIG_SPACE_MAX} bytes, not {len(config)}"
        )
    config = bytes(config)
    common = pci_header_common.decode(config)
    kind = common.header_type.layout
    record = HEADERS.get(kind, pci_header_common)
    header = record.decode(config)
    chains = [_conventional(config, kind, common.status.capabilities_list), _extended(config)]
    problems = [p for chain in chains for p in chain.problems]
    if virtio is None:
        virtio = is_virtio(common.vendor_id, common.device_id)
    found = _decode(config, chains, virtio, problems)
    if chains[1].offsets and not any(not c.extended and c.id in _HAVE_EXTENDED for c in found):
        problems.append(Problem(chains[1].low, "extended capabilities, but neither PCI Express nor PCI-X"))
    if virtio and kind == 0:
        problems += function_problems(header, found)
    bars = decode_bars(getattr(header, "base_address", ()))
    shown = tidy(record.as_dict(header))
    return Function(path, len(config), kind, shown, tuple(bars), tuple(found), tuple(problems))


_HAVE_EXTENDED: Final = {CapabilityId.PCI_EXPRESS, CapabilityId.PCI_X}


@define
class _Chain:
    """A chain's visited offsets in order; it lies in the bytes from `low` to `high`."""

    low: int
    high: int
    header: Record
    next_of: Callable[[Any], int]
    ends: Callable[[Any], bool]
    offsets: list[int] = Factory(list)
    problems: list[Problem] = Factory(list)

    def follow(self, config: bytes, source: int, pointer: int) -> _Chain:
        """Visits every capability from `pointer` on, which was read at `source`."""
        while pointer:
            place = self._step(source, pointer)
            if place is None:
                break
            header = self.header.decode(config, place)
            if self.ends(header):
                self.problems.append(
                    Problem(place, f"no capability is here, but the pointer at {source:#x} leads here")
                )
                break
            self.offsets.append(place)
            source, pointer = place, self.next_of(header)
        return self

    def _step(self, source: int, pointer: int) -> int | None:
        place = pointer & ~3
        if place != pointer:
            self.problems.append(
                Problem(source, f"the pointer {pointer:#x} is not a multiple of 4, taken as {place:#x}")
            )
        if not place:
            return None
        wrong = self._fault(place)
        if wrong:
            self.problems.append(Problem(source, f"the pointer {place:#x} {wrong}"))
            return None
        return place

    def _fault(self, place: int) -> str:
        if place < self.low:
            return f"leads in front of {self.low:#x}, where capabilities begin"
        if place + self.header.size > self.high:
            return f"leads out of the {self.high} bytes here, the chain is cut off"
        return "closes a loop: that capability was visited" if place in self.offsets else ""


def _conventional(config: bytes, kind: int, present: int) -> _Chain:
    high = min(len(config), CONVENTIONAL_SIZE)
    # An id of 0xff is what an absent device reads as.
    chain = _Chain(CONFIG_SPACE_MIN, high, pci_capability, lambda h: int(h.cap_next), lambda h: h.cap_id == 0xFF)
    pointer_at = CAPABILITIES_POINTER.get(kind)
    if pointer_at is None:
        chain.problems.append(Problem(pci_header_common.offset("header_type"), f"header type {kind:#x} is unknown"))
    elif present:
        chain.follow(config, pointer_at, config[pointer_at])
    return chain


def _extended(config: bytes) -> _Chain:
    def empty(header: Any) -> bool:
        return pci_extended_capability.encode_values(header) in (bytes(4), b"\xff" * 4)

    chain = _Chain(CONVENTIONAL_SIZE, len(config), pci_extended_capability, lambda h: int(h.header.cap_next), empty)
    begins = len(config) >= CONVENTIONAL_SIZE + 4
    # The first header stands at a fixed place; a space without extended capabilities has zeros (or nothing) there.
    if begins and not empty(pci_extended_capability.decode(config, CONVENTIONAL_SIZE)):
        chain.follow(config, CONVENTIONAL_SIZE, CONVENTIONAL_SIZE)
    return chain


def _decode(config: bytes, chains: list[_Chain], virtio: bool, problems: list[Problem]) -> list[Capability]:
    found = []
    for chain in chains:
        ends = dict(pairwise([*sorted(chain.offsets), chain.high]))
        for offset in chain.offsets:
            is_extended = chain.low == CONVENTIONAL_SIZE
            capability, wrong = decode_capability(
                config, offset, ends[offset], is_extended=is_extended, is_virtio=virtio
            )
            found.append(capability)
            problems += wrong
    return found
