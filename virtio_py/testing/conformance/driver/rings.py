"""What a driver writes to its rings (2.7, 2.8), seen by the device before it serves them.

What no ring may hold never gets this far: the device's half finds it, the device needs a reset, and the log has the
clause. So a chain that arrives here is an occasion at which all those clauses were kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from attrs import define, field

from virtio_py.rings.chain import Chain
from virtio_py.rings.faults import FAULTS
from virtio_py.rings.layouts import pvirtq_desc, virtq_avail, virtq_desc, virtq_used
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import Feature, VirtqDescFlag
from virtio_py.testing.conformance.driver.ledger import Ledger

_NEXT, _INDIRECT, _WRITE = VirtqDescFlag.NEXT, VirtqDescFlag.INDIRECT, int(VirtqDescFlag.WRITE)
_SPLIT: Final = "split.driver.used-buffer-notification-suppression"
_ALIGNED: Final = {"split": "split.driver.virtqueues.1", "packed": "packed.driver.virtqueues.1"}
_ZEROED: Final = "split.driver.available-buffer-notification-suppression.1"
_LINKED: Final = "split.driver.descriptor-table.2"
_TABLE_LINKED: Final = "split.driver.indirect-descriptors.5"
_LENGTH: Final = "split.driver.indirect-descriptors.3"
_TABLE_FLAGS: Final = "packed.driver.indirect-descriptors.2"
_FOUND: Final[dict[str, tuple[str, ...]]] = {
    layout: tuple(
        dict.fromkeys(
            clause for fault in FAULTS.values() if (clause := getattr(fault, layout)).startswith(f"{layout}.driver.")
        )
    )
    for layout in ("split", "packed")
}
"""The clauses that the device's half insists on, in either layout."""

CLAUSES: Final = tuple(
    dict.fromkeys(
        (
            *_ALIGNED.values(),
            *_FOUND["split"],
            *_FOUND["packed"],
            _ZEROED,
            f"{_SPLIT}.1",
            f"{_SPLIT}.3",
            _LINKED,
            _TABLE_LINKED,
        )
    )
)


@define(eq=False)
class Rings:
    """The rings of one driver."""

    ledger: Ledger
    _known: set[DeviceQueue] = field(init=False, factory=set)

    def reset(self) -> None:
        """The driver begins anew."""
        self._known.clear()

    def forget(self, index: int) -> None:
        """A queue was reset."""
        self._known = {queue for queue in self._known if queue.index != index}

    def began(self, queues: Iterable[DeviceQueue]) -> None:
        """DRIVER_OK: the rings as they are before the device has touched them."""
        for queue in queues:
            if queue.layout == "split" and not queue.state.next_used:
                used = virtq_used(queue.size)
                flags = _word(queue, queue.areas[2] + used.offset("flags"))
                self.ledger.must(_ZEROED, flags == 0, f"flags of used ring {queue.index} are {flags:#x} at the start")

    def look(self, queue: DeviceQueue, chain: Chain) -> None:
        """A chain that was taken, and not served yet."""
        if queue not in self._known:
            self._known.add(queue)
            self.ledger.must(_ALIGNED[queue.layout], True, "")
        for clause in _FOUND[queue.layout]:
            if clause != _LENGTH:
                self.ledger.must(clause, True, "")
        if queue.layout == "split":
            self._look_split(queue, chain)
        elif not queue.in_order:
            self._look_at_tables(queue, chain)

    def _look_at_tables(self, queue: DeviceQueue, chain: Chain) -> None:
        # Where a list stands is not told. An indirect one takes one slot, which is written over when it is used (but
        # in order not always): what is there with its id is this one.
        ring = queue.memory.read(queue.areas[0], queue.size * pvirtq_desc.size)
        for address, length, ident, flags in pvirtq_desc.codec.iter_unpack(ring):
            if ident == chain.id and flags & _INDIRECT:
                table = queue.memory.read(address, length)
                found = [entry[-1] & ~_WRITE for entry in pvirtq_desc.codec.iter_unpack(table)]
                text = f"a table's entries have flags {found} besides WRITE in queue {queue.index}"
                self.ledger.must(_TABLE_FLAGS, not any(found), text)

    def _look_split(self, queue: DeviceQueue, chain: Chain) -> None:
        flags = _word(queue, queue.areas[1] + virtq_avail(queue.size).offset("flags"))
        event_idx = queue.features >> Feature.EVENT_IDX & 1
        clause, allowed = (f"{_SPLIT}.3", (0,)) if event_idx else (f"{_SPLIT}.1", (0, 1))
        self.ledger.must(clause, flags in allowed, f"flags of available ring {queue.index} are {flags:#x}")
        direct = list(_chain(queue, queue.areas[0], queue.size, chain.id))
        count = len(direct)
        if direct[-1][1].flags & _INDIRECT:
            table = direct[-1][1]
            entries = list(_chain(queue, table.addr, table.len // virtq_desc.size, 0))
            count += len(entries) - 1
            self._look_links(queue, entries, table.len // virtq_desc.size, _TABLE_LINKED)
        self.ledger.must(_LENGTH, count <= queue.size, f"a chain of {count} descriptors in a queue of {queue.size}")
        self._look_links(queue, direct, queue.size, _LINKED)

    def _look_links(self, queue: DeviceQueue, chain: list[tuple[int, Any]], size: int, clause: str) -> None:
        if not queue.in_order:
            return
        for slot, descriptor in chain:
            if descriptor.flags & _NEXT:
                wanted = (slot + 1) % size
                text = f"descriptor {slot} is linked to {descriptor.next} in queue {queue.index}"
                self.ledger.must(clause, descriptor.next == wanted, text)


def _chain(queue: DeviceQueue, table: int, size: int, head: int) -> Iterator[tuple[int, Any]]:
    """(slot, descriptor) of a chain as it is in memory now; no further than its table is long."""
    slot = head
    for _ in range(size):
        descriptor = virtq_desc.decode(queue.memory.read(table + slot * virtq_desc.size, virtq_desc.size))
        yield slot, descriptor
        if not descriptor.flags & _NEXT or descriptor.next >= size:
            return
        slot = descriptor.next


def _word(queue: DeviceQueue, address: int) -> int:
    return int.from_bytes(queue.memory.read(address, 2), "little")
