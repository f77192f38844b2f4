"""The memory table of a vhost-user back-end: regions that have a guest address, a user address and a mapping.

A table is immutable: a change makes a new one, and whoever fails half-way still has the old one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, Protocol

from attrs import field, frozen

from virtio_py.errors import MemoryFault, MessageError
from virtio_py.memory import ADDRESS_LIMIT, GuestMemory, Region

MAX_MEM_SLOTS: Final = 32
"""The most regions of a table that is built with ADD_MEM_REG."""


class Mapper(Protocol):
    """Maps shared memory; the shell's duty."""

    def map(self, fd: int, size: int, offset: int) -> memoryview:
        """The bytes [offset, offset + size) of a file, shared and writable. `fd` stays the caller's.

        The mapping ends with the last view of it. Raises MessageError when the file has no such bytes.
        """


@frozen
class MappedRegion:
    """One region: where the guest and the front-end see it, and its bytes here."""

    guest_address: int
    user_address: int
    view: memoryview = field(repr=False, eq=False)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.view)


@frozen
class MemoryTable:
    """What the front-end shares with us. `memory` is the same in guest addresses, as a DeviceEnd takes it."""

    regions: tuple[MappedRegion, ...] = ()
    memory: GuestMemory = field(init=False, eq=False, repr=False)

    @memory.default
    def _memory(self) -> GuestMemory:
        return GuestMemory(Region(r.guest_address, r.view) for r in self.regions)

    @property
    def user_memory(self) -> GuestMemory:
        """The same in user addresses, to which I/O addresses are mapped; regions that have too high ones left out."""
        reachable = (r for r in self.regions if r.user_address <= ADDRESS_LIMIT - r.size)
        return GuestMemory(Region(r.user_address, r.view) for r in reachable)

    def guest_extents(self, user_address: int, length: int) -> Iterator[tuple[int, int]]:
        """The guest addresses and lengths of a range of user addresses, as far as it lies in regions."""
        for region in self.regions:
            low = max(user_address, region.user_address)
            high = min(user_address + length, region.user_address + region.size)
            if low < high:
                yield region.guest_address + low - region.user_address, high - low

    def translate(self, user_address: int) -> int:
        """The guest address of a user address. Raises MemoryFault when no region has it."""
        for region in self.regions:
            if 0 <= user_address - region.user_address < region.size:
                return region.guest_address + user_address - region.user_address
        raise MemoryFault(f"the user address {user_address:#x} is in no region")

    def with_region(self, wanted: Any, fd: int, mapper: Mapper) -> MemoryTable:
        """The table and one more region, a VhostUserMemoryRegion. Raises MessageError, with nothing mapped."""
        if len(self.regions) >= MAX_MEM_SLOTS:
            raise MessageError(f"there are {MAX_MEM_SLOTS} regions already")
        spans = [(r.guest_address, r.user_address, r.size) for r in self.regions]
        check_spans([*spans, (wanted.guest_phys_addr, wanted.userspace_addr, wanted.memory_size)])
        return MemoryTable((*self.regions, _map(wanted, fd, mapper)))

    def without_region(self, wanted: Any) -> MemoryTable:
        """The table without a region, found by both addresses and the size. Raises MessageError if it is not here."""
        key = (wanted.guest_phys_addr, wanted.userspace_addr, wanted.memory_size)
        kept = tuple(r for r in self.regions if (r.guest_address, r.user_address, r.size) != key)
        if len(kept) == len(self.regions):
            raise MessageError(f"no region is at guest address {wanted.guest_phys_addr:#x} with this size")
        return MemoryTable(kept)

    @classmethod
    def of(cls, wanted: Sequence[Any], fds: Sequence[int], mapper: Mapper) -> MemoryTable:
        """A whole table of VhostUserMemoryRegions, one descriptor each. Raises MessageError."""
        if len(wanted) != len(fds):
            raise MessageError(f"{len(wanted)} regions come with {len(fds)} descriptors")
        check_spans([(r.guest_phys_addr, r.userspace_addr, r.memory_size) for r in wanted])
        return cls(tuple(_map(r, fd, mapper) for r, fd in zip(wanted, fds, strict=True)))


def _map(wanted: Any, fd: int, mapper: Mapper) -> MappedRegion:
    if wanted.mmap_offset > ADDRESS_LIMIT - wanted.memory_size:
        raise MessageError(f"mmap offset {wanted.mmap_offset:#x} and size {wanted.memory_size:#x} wrap around")
    view = mapper.map(fd, wanted.memory_size, wanted.mmap_offset)
    return MappedRegion(wanted.guest_phys_addr, wanted.userspace_addr, view)


def check_spans(spans: Sequence[tuple[int, int, int]]) -> None:
    """Raises MessageError unless all (guest address, user address, size) are ranges, apart in both spaces."""
    for guest, user, size in spans:
        if not 0 < size <= ADDRESS_LIMIT:
            raise MessageError(f"a region of {size:#x} bytes cannot be")
        if guest > ADDRESS_LIMIT - size or user > (1 << 64) - size:
            raise MessageError(f"the region at guest address {guest:#x}, user address {user:#x} wraps around")
    _check_apart("guest", sorted((guest, size) for guest, _, size in spans))
    _check_apart("user", sorted((user, size) for _, user, size in spans))


def _check_apart(space: str, ranges: Sequence[tuple[int, int]]) -> None:
    for (low, size), (high, _) in pairwise(ranges):
        if low + size > high:
            raise MessageError(f"regions overlap at {space} address {high:#x}")
