"""Inflight tracking of a packed virtqueue.

Used descriptors overwrite available ones, whoever's they are; so the region keeps a copy of every descriptor that was
taken. Entries come from a list of free ones, and each list of descriptors is a run of that list: head, …, last.

Every change is made beside the old state and then committed with one store; a kill before it leaves all as it was:

    taken      the head's inflight, the copies, free_head     Not yet: old_free_head is where the free list begins, the
                                                              run is still on it, and free entries are not inflight.
               old_free_head                                  The buffer is ours.
    used       the last one's next, free_head                 Not yet: as above.
               used_idx and used_wrap_counter                 Not yet, either: but "under way". The flags of the used
                                                              descriptor decide. While they still say available the
                                                              driver knows nothing, and the old positions are right.
               the flags of the used descriptor               The driver has it, and the new positions are right.
               inflight, old_free_head, the old positions     Under way until the last of these: finished by the next.

The positions, old and new with their wrap counters, are 6 of the 8 bytes of one word, and are stored as that word. One
after the other there would be kills that leave a slot with another lap's wrap counter; and a buffer of as many slots as
the ring has moves the counter alone, which is why both are compared where the protocol's text compares `used_idx`.

Buffers are returned one by one. Of two used descriptors the second one's flags would be out before the first one's;
killed there, the next back-end returns the first alone, and the driver finds the second behind it, used by nobody.

The device takes next behind the slots of all that is inflight: they are those between there and the next used one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from virtio_py.errors import MessageError
from virtio_py.rings.chain import Chain
from virtio_py.rings.inflight import Tracker, Unfinished
from virtio_py.rings.layouts import pvirtq_desc
from virtio_py.rings.queue import DeviceQueue, QueueState
from virtio_py.spec import PackedDescFlag
from virtio_py.transports.vhost_user_inflight_layout import PACKED_CELLS, VERSION, Cell, Part, QueueRegionPacked
from virtio_py.transports.vhost_user_inflight_split import COUNTER_MASK, check_part

_POSITIONS: Final = ("used_idx", "old_used_idx", "used_wrap_counter", "old_used_wrap_counter")
_HEAD: Final = QueueRegionPacked(1)
_START: Final = _HEAD.offset(_POSITIONS[0])
_SHIFTS: Final = {name: 8 * (_HEAD.offset(name) - _START) for name in _POSITIONS}
_CELLS: Final = {**PACKED_CELLS, "positions": Cell("Q", _START // 8)}
_COPIED: Final = ("addr", "len", "id", "flags")


class Place(NamedTuple):
    """A slot of the ring, and the wrap counter of the lap."""

    slot: int
    wrap: int

    def forward(self, slots: int, size: int) -> Place:
        """So many slots on, a lap at the most."""
        laps, slot = divmod(self.slot + slots, size)
        return Place(slot, self.wrap ^ laps)


class Run(NamedTuple):
    """The entries of one list of descriptors: the first, the last, and how many."""

    head: int
    last: int
    num: int


class PackedTracker(Tracker):
    """One packed queue's account. What it goes by after `begin` is its own memory: the front-end can write the region.

    view: the queue's part of the region; desc_num: its entries.
    """

    def __init__(self, view: memoryview, desc_num: int) -> None:
        self._part = Part(view, _CELLS)
        self._desc_num = desc_num
        self._size = self._counter = self._free = 0
        self._used = Place(0, 1)
        self._next = list(range(1, desc_num + 1))
        self._runs: dict[int, Run] = {}
        self.unfinished: Sequence[Unfinished] = ()

    # Where to begin

    def begin(self, state: QueueState, size: int, flags: Callable[[int], int]) -> QueueState:
        """Where to go on; `unfinished` then is what was left. state: where a queue without a past is to begin; size:
        of the queue; flags: reads a slot's. Raises MessageError for a part that no back-end leaves."""
        self._size, self._runs, self.unfinished = size, {}, ()
        if self._part.get("version") == 0:
            self._initialise(Place(state.next_used, state.used_wrap))
            return state
        check_part(self._part, self._desc_num)
        self._settle(flags)
        runs = self._find_runs()
        self.unfinished = [self._copied(run) for run in runs]
        self._runs = {left.id: run for left, run in zip(self.unfinished, runs, strict=True)}
        ahead = self._used.forward(sum(run.num for run in runs), size)
        return QueueState(ahead.slot, self._used.slot, ahead.wrap, self._used.wrap)

    def _initialise(self, used: Place) -> None:
        part = self._part
        self._free, self._counter, self._next = 0, 0, list(range(1, self._desc_num + 1))
        for entry, following in enumerate(self._next):
            part.set("desc.inflight", 0, entry)
            part.set("desc.next", following, entry)
        part.set("free_head", 0)
        part.set("old_free_head", 0)
        self._store_used(used, used)
        part.set("desc_num", self._desc_num)
        # Last: whoever is killed before this has left a part that nobody has written to.
        part.set("version", VERSION)

    def _settle(self, flags: Callable[[int], int]) -> None:
        """Finishes, or takes back, what a back-end before us was killed amid."""
        part = self._part
        word = part.get("positions")
        values = {name: word >> shift & (1 if "wrap" in name else 0xFFFF) for name, shift in _SHIFTS.items()}
        new = Place(values["used_idx"], values["used_wrap_counter"])
        old = Place(values["old_used_idx"], values["old_used_wrap_counter"])
        if max(new.slot, old.slot) >= self._size:
            raise MessageError(f"the next used descriptor is in slot {max(new.slot, old.slot)} of {self._size}")
        free = part.get("old_free_head")
        if new != old and not _is_available(flags(old.slot), old.wrap):
            free, old = part.get("free_head"), new
            part.set("old_free_head", free)
        self._free = free
        self._store_used(old, old)
        part.set("free_head", free)

    def _find_runs(self) -> list[Run]:
        """The runs that are inflight, oldest first; every other entry is on the free list."""
        part, seen = self._part, set[int]()
        self._next = [part.get("desc.next", entry) for entry in range(self._desc_num)]
        for entry in self._follow(self._free, self._desc_num, seen):
            part.set("desc.inflight", 0, entry)
        heads = [i for i in range(self._desc_num) if i not in seen and part.get("desc.inflight", i)]
        oldest = sorted((part.get("desc.counter", head), head) for head in heads)
        runs = [Run(head, part.get("desc.last", head), part.get("desc.num", head)) for _, head in oldest]
        for run in runs:
            if run.num == 0 or self._follow(run.head, run.num, seen)[run.num - 1 :] != [run.last]:
                raise MessageError(f"the list of descriptors at entry {run.head} does not end where it says")
        if len(seen) != self._desc_num or sum(run.num for run in runs) > self._size:
            raise MessageError("the inflight region has entries that are neither free nor inflight")
        self._counter = oldest[-1][0] + 1 & COUNTER_MASK if oldest else 0
        return runs

    def _follow(self, entry: int, most: int, seen: set[int]) -> list[int]:
        """The entries from one on, `most` at the most, all new to `seen`, or MessageError is raised."""
        found: list[int] = []
        while len(found) < most and entry != self._desc_num:
            if entry > self._desc_num or entry in seen:
                raise MessageError(f"entry {entry} of the inflight region is in two lists, or there is none")
            seen.add(entry)
            found.append(entry)
            entry = self._next[entry]
        return found

    def _copied(self, run: Run) -> Unfinished:
        entries, entry = [run.head], run.head
        for _ in range(run.num - 1):
            entry = self._next[entry]
            entries.append(entry)
        copies = [{name: self._part.get(f"desc.{name}", entry) for name in _COPIED} for entry in entries]
        return Unfinished(copies[-1]["id"], b"".join(pvirtq_desc.encode(**copy) for copy in copies))

    # At work

    def taken(self, queue: DeviceQueue, chains: Sequence[Chain], first: int) -> None:
        """See Tracker. The descriptors are read once more, for the copy: what they say is judged when it is used."""
        slot = first
        for chain in chains:
            run = [(slot + n) % self._size for n in range(queue.slots(chain))]
            table = queue.areas[0]
            self._take(chain.id, [queue.memory.read(table + s * pvirtq_desc.size, pvirtq_desc.size) for s in run])
            slot = (run[-1] + 1) % self._size

    def _take(self, ident: int, descriptors: Sequence[bytes]) -> None:
        part, head = self._part, self._free
        part.set("desc.num", 0, head)
        part.set("desc.counter", self._counter, head)
        self._counter = self._counter + 1 & COUNTER_MASK
        part.set("desc.inflight", 1, head)
        last = head
        for n, descriptor in enumerate(descriptors, 1):
            last = self._free
            part.set("desc.num", n, head)
            values = pvirtq_desc.decode(descriptor)._replace(**({"id": ident} if n == len(descriptors) else {}))
            for name in _COPIED:
                part.set(f"desc.{name}", getattr(values, name), last)
            self._free = self._next[last]
            part.set("free_head", self._free)
        part.set("desc.last", last, head)
        self._runs[ident] = Run(head, last, len(descriptors))
        part.set("old_free_head", self._free)

    def finish(self, chains: Sequence[Chain], publish: Callable[[Sequence[Chain]], None]) -> None:
        """See Tracker. One by one."""
        for chain in chains:
            run = self._release(chain)
            old, self._used = self._used, self._used.forward(run.num, self._size)
            self._store_positions(self._used, old)
            publish([chain])
            self._part.set("desc.inflight", 0, run.head)
            self._part.set("old_free_head", self._free)
            self._store_positions(self._used, self._used)

    def put_back(self, chains: Sequence[Chain]) -> None:
        """See Tracker. The positions stay; the newest entry that goes back is where the device takes next."""
        for chain in chains:
            run = self._release(chain)
            self._part.set("old_free_head", self._free)
            self._part.set("desc.inflight", 0, run.head)

    def _release(self, chain: Chain) -> Run:
        """Puts a buffer's entries before the free ones, up to the commit."""
        run = self._runs.pop(chain.id)
        self._next[run.last] = self._free
        self._part.set("desc.next", self._free, run.last)
        self._free = run.head
        self._part.set("free_head", run.head)
        return run

    def _store_used(self, new: Place, old: Place) -> None:
        self._used = new
        self._store_positions(new, old)

    def _store_positions(self, new: Place, old: Place) -> None:
        values = (new.slot, old.slot, new.wrap, old.wrap)
        word = sum(value << _SHIFTS[name] for name, value in zip(_POSITIONS, values, strict=True))
        self._part.set("positions", word)

    def forget(self) -> None:
        """The queue begins anew: nothing is inflight."""
        self._part.set("version", 0)


def _is_available(flags: int, wrap: int) -> bool:
    """Whether a slot's flags are what a driver with this wrap counter gives it."""
    return (bool(flags & PackedDescFlag.AVAIL), bool(flags & PackedDescFlag.USED)) == (bool(wrap), not wrap)
