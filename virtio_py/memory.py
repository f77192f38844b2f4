"""Guest memory: the regions a driver shares with a device, and the driver's allocator inside them.

Addresses are guest addresses (ints), lengths are bytes. Whatever the other side named is checked over its whole
range, so that no arithmetic of the caller's can wrap: a range is good only if every byte of it lies in a region.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Final

from attrs import define, field, frozen

from virtio_py.errors import MemoryFault, UsageError

ADDRESS_LIMIT: Final = (1 << 63) - 1
"""Guest addresses end here. The specification allows 2^64, but no machine has them; signed 64-bit arithmetic in
compiled loops then cannot wrap, and a region's end is a signed word too."""


@frozen
class Region:
    """A contiguous range of guest addresses that is mapped here.

    start: first guest address; view: the bytes, writable, format "B"; writable: whether the device may write there.
    """

    start: int
    view: memoryview = field(repr=False)
    writable: bool = True

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.view)

    @property
    def end(self) -> int:
        """The first guest address behind the region."""
        return self.start + len(self.view)


class GuestMemory:
    """An immutable set of regions in guest-address order. Adjacent regions are one range to their users.

    Raises UsageError for regions that overlap, are empty, read-only, or reach past ADDRESS_LIMIT.
    """

    def __init__(self, regions: Iterable[Region]) -> None:
        self.regions: Final = tuple(sorted(regions, key=lambda r: r.start))
        self._starts = [r.start for r in self.regions]
        for region in self.regions:
            _check_region(region)
        for low, high in zip(self.regions, self.regions[1:], strict=False):
            if low.end > high.start:
                raise UsageError(f"regions overlap: [{low.start:#x}, {low.end:#x}) and [{high.start:#x}, …)")

    @classmethod
    def of(cls, size: int, start: int = 0) -> GuestMemory:
        """Zeroed memory of `size` bytes in one region."""
        return cls([Region(start, memoryview(bytearray(size)))])

    def find(self, address: int) -> Region | None:
        """The region that holds `address`, or None."""
        at = bisect_right(self._starts, address) - 1
        return self.regions[at] if at >= 0 and address < self.regions[at].end else None

    def view(self, address: int, length: int) -> memoryview:
        """The bytes of a range that lies in one region. Raises MemoryFault."""
        region = self.find(address)
        if region is None or length < 0 or length > region.end - address:
            raise MemoryFault(f"[{address:#x}, +{length}) is not memory in one region")
        offset = address - region.start
        return region.view[offset : offset + length]

    def views(self, address: int, length: int) -> list[memoryview]:
        """The pieces of a range that may cross from one region into an adjacent one. Raises MemoryFault."""
        pieces = []
        at, left = address, length
        while left > 0:
            region = self.find(at)
            if region is None:
                raise MemoryFault(f"[{address:#x}, +{length}) is not memory at {at:#x}")
            offset = at - region.start
            piece = region.view[offset : offset + left]
            pieces.append(piece)
            at, left = at + len(piece), left - len(piece)
        return pieces

    def missing(self, address: int, length: int, write: bool = False) -> int | None:
        """The first address of a range that is not memory (that may be written), or None."""
        at = address
        while at < address + length:
            region = self.find(at)
            if region is None or (write and not region.writable):
                return at
            at = region.end
        return None

    def read(self, address: int, length: int) -> bytes:
        """A copy of a range. Raises MemoryFault."""
        return b"".join(self.views(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Stores `data`; nothing is stored if any byte of the range is not memory. Raises MemoryFault."""
        at = 0
        for piece in self.views(address, len(data)):
            piece[:] = data[at : at + len(piece)]
            at += len(piece)


def _check_region(region: Region) -> None:
    if region.view.readonly or region.view.format != "B" or not region.view.contiguous:
        raise UsageError(f"the region at {region.start:#x} must be a writable view of bytes")
    if not 0 <= region.start < region.end <= ADDRESS_LIMIT:
        raise UsageError(f"a region [{region.start:#x}, {region.end:#x}) cannot be")


@define
class AddressSpace:
    """The addresses a device uses where VIRTIO_F_ACCESS_PLATFORM was negotiated: I/O virtual ones, mapped to memory.

    `memory` is the space as the device may use it now; whoever changes the space hands it to
    `DeviceEnd.replace_memory` again. Raises MemoryFault for a target that is not memory, UsageError for an overlap.
    """

    target: GuestMemory
    _mappings: dict[int, tuple[int, int, bool]] = field(init=False, factory=dict)
    _memory: GuestMemory | None = field(init=False, default=None)

    def map(self, iova: int, size: int, address: int, writable: bool = True) -> None:
        """Maps [iova, +size) to the guest addresses from `address` on."""
        self.target.views(address, size)
        if not 0 <= iova < iova + size <= ADDRESS_LIMIT:
            raise UsageError(f"a mapping [{iova:#x}, +{size:#x}) cannot be")
        for start, (length, _, _) in self._mappings.items():
            if start < iova + size and iova < start + length:
                raise UsageError(f"[{iova:#x}, +{size:#x}) is mapped already, at {start:#x}")
        self._mappings[iova] = size, address, writable
        self._memory = None

    def unmap(self, iova: int, size: int) -> None:
        """Takes away every byte of [iova, +size) that is mapped; what is left of a mapping stays."""
        end = iova + size
        hit = [(start, m) for start, m in self._mappings.items() if start < end and iova < start + m[0]]
        for start, (length, address, writable) in hit:
            del self._mappings[start]
            for low, high in ((start, min(start + length, iova)), (max(start, end), start + length)):
                if low < high:
                    self._mappings[low] = (high - low, address + low - start, writable)
        self._memory = None

    def targets(self, iova: int, size: int) -> list[tuple[int, int]]:
        """What [iova, +size) is mapped to, as (address, length), without what is not mapped."""
        found = []
        for start, (length, address, _) in self._mappings.items():
            low, high = max(iova, start), min(iova + size, start + length)
            if low < high:
                found.append((address + low - start, high - low))
        return found

    def memory(self) -> GuestMemory:
        """The mapped ranges as a memory of their own. Mappings that go on where another ends are one with it: a ring
        or an indirect table that crosses from one page into the next lies in one region."""
        if self._memory is None:
            self._memory = GuestMemory(self._regions())
        return self._memory

    def _merged(self) -> list[tuple[int, int, int, bool]]:
        merged: list[tuple[int, int, int, bool]] = []
        for iova, (size, address, writable) in sorted(self._mappings.items()):
            start, length, target, before = merged[-1] if merged else (0, 0, 0, False)
            if length and (start + length, target + length, before) == (iova, address, writable):
                merged[-1] = start, length + size, target, before
            else:
                merged.append((iova, size, address, writable))
        return merged

    def over(self, target: GuestMemory) -> AddressSpace:
        """The same mappings over another memory, without those that lie outside it."""
        space = AddressSpace(target)
        space._mappings = {
            iova: (size, address, writable)
            for iova, (size, address, writable) in self._mappings.items()
            if target.missing(address, size) is None
        }
        return space

    def __len__(self) -> int:
        """How many mappings there are."""
        return len(self._mappings)

    def forget_oldest(self) -> None:
        """Takes away the mapping that was made first. There must be one."""
        del self._mappings[next(iter(self._mappings))]
        self._memory = None

    def _regions(self) -> Iterator[Region]:
        for iova, size, address, writable in self._merged():
            at = iova
            for view in self.target.views(address, size):
                yield Region(at, view, writable)
                at += len(view)


@frozen
class DirtyLog:
    """A bitmap of the pages that were written: bit n of byte n // 8 is page n, from guest address 0 on.

    bits: the bitmap, shared with whoever migrates; page: bytes a page, whatever the machine's are. Writes behind the
    bitmap's end are dropped: its length is the other side's choice, and must not decide what we touch.
    """

    PAGE: ClassVar[int] = 4096

    bits: memoryview = field(repr=False)
    page: int = PAGE

    def mark(self, address: int, length: int) -> None:
        """Sets the bits of all pages that [address, +length) touches; none for a length of 0."""
        if length <= 0:
            return
        first, last = address // self.page, min((address + length - 1) // self.page, 8 * len(self.bits) - 1)
        if first <= last:
            self.set(first, last)

    def set(self, first: int, last: int) -> None:
        """Sets the bits of these pages, both included, all in the bitmap. Not atomic: for a bitmap with one writer."""
        for page in range(first, last + 1):
            self.bits[page >> 3] |= 1 << (page & 7)


@frozen
class Buffer:
    """A range of the arena: its guest address and its bytes."""

    address: int
    view: memoryview = field(repr=False)

    @property
    def extent(self) -> tuple[int, int]:
        """(guest address, length in bytes), as `DriverQueue.add` takes it."""
        return self.address, len(self.view)


@define
class Arena:
    """The driver's allocator over one region: first fit, with neighbours merged when freed.

    Raises UsageError when no hole is large enough, or when something is freed that was not allocated.
    """

    memory: GuestMemory
    _holes: list[tuple[int, int]] = field(init=False)
    _taken: dict[int, int] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        region = self.memory.regions[0]
        self._holes = [(region.start, region.size)]

    @property
    def free_bytes(self) -> int:
        """The sum of all holes, in bytes."""
        return sum(size for _, size in self._holes)

    def allocate(self, size: int, align: int = 16) -> Buffer:
        """A zeroed buffer of `size` bytes at a multiple of `align`, a power of two."""
        # An address names one buffer, also one of no bytes: it keeps one for itself.
        taken = max(size, 1)
        for i, (start, room) in enumerate(self._holes):
            address = -(-start // align) * align
            if address + taken <= start + room:
                self._holes[i : i + 1] = _around(start, room, address, taken)
                self._taken[address] = taken
                view = self.memory.view(address, size)
                view[:] = bytes(size)
                return Buffer(address, view)
        raise UsageError(f"the arena has no hole of {size} bytes ({self.free_bytes} free)")

    def free(self, *buffers: Buffer) -> None:
        """Gives buffers back."""
        for buffer in buffers:
            size = self._taken.pop(buffer.address, None)
            if size is None:
                raise UsageError(f"nothing is allocated at {buffer.address:#x}")
            self._insert(buffer.address, size)

    def _insert(self, start: int, size: int) -> None:
        at = bisect_right(self._holes, (start, 0))
        if at < len(self._holes) and start + size == self._holes[at][0]:
            size += self._holes.pop(at)[1]
        if at > 0 and sum(self._holes[at - 1]) == start:
            at -= 1
            start, size = self._holes[at][0], self._holes.pop(at)[1] + size
        self._holes.insert(at, (start, size))


def _around(start: int, room: int, address: int, size: int) -> Sequence[tuple[int, int]]:
    """What is left of a hole once [address, +size) is taken from it."""
    parts = [(start, address - start), (address + size, start + room - address - size)]
    return [part for part in parts if part[1]]
