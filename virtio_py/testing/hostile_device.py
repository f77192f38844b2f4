"""A device that breaks the rules on purpose, for any driver: over any carrier, hence for a Linux guest too.

    Traitor(BlkDevice(medium), BETRAYALS[0], after=3)       a device that serves well, and then betrays
    Liar(NetDevice(port), config=b"\\xff" * 64)              one that lies in its configuration or its features

Both are devices like any other: serve them in process, over vhost-user, wherever. `HostileDevice` is the hand that
writes used elements, for either half of a queue. What a driver has to come to: an error of its own, with FAILED set or
the request failed; never a byte beyond what it lent, a wait without end, or a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Final

from attrs import define, field, frozen

from virtio_py.device import Device, DeviceEnd
from virtio_py.memory import GuestMemory
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import Engine
from virtio_py.rings.kernels import KERNELS, TWINS
from virtio_py.rings.layouts import pvirtq_desc, virtq_desc, virtq_used, virtq_used_elem
from virtio_py.rings.queue import DeviceQueue, DriverQueue
from virtio_py.spec import PackedDescFlag
from virtio_py.testing.wrapped import Wrapped

AVAIL, USED, WRITE = int(PackedDescFlag.AVAIL), int(PackedDescFlag.USED), int(PackedDescFlag.WRITE)


@define
class HostileDevice:
    """Writes a device's structures by hand, wherever they are.

    queue: either half; shown: the used index (split) or slot (packed) to go on from; mark: what makes a descriptor used
    in this lap (packed); id, room: of the buffer it has in hand, and the bytes that may be written there.
    """

    queue: DriverQueue | DeviceQueue
    memory: GuestMemory
    shown: int = 0
    mark: int = AVAIL | USED | WRITE
    id: int = 0
    room: int = 4

    @classmethod
    def holding(cls, queue: DeviceQueue, chain: Chain) -> HostileDevice:
        """In the place of a device that has taken a chain."""
        state = queue.state
        mark = AVAIL | USED | WRITE if state.used_wrap else WRITE
        return cls(queue, queue.memory, state.next_used, mark, chain.id, chain.writable.remaining)

    @property
    def size(self) -> int:
        """The queue size."""
        return self.queue.size

    @property
    def stranger(self) -> int:
        """An id that the queue has, and that nobody has handed out, as far as this half knows."""
        return next((ident for ident in reversed(range(self.size)) if ident not in self.queue.held), self.size)

    def use(self, ident: int, length: int) -> None:
        """One used element, and the index behind it (split), or one used descriptor (packed)."""
        descriptors, _, device = self.queue.areas
        if self.queue.layout == "packed":
            at = descriptors + self.shown % self.size * pvirtq_desc.size
            self.memory.write(at, pvirtq_desc.encode(len=length, id=ident & 0xFFFF, flags=self.mark))
            self.shown += 1
            return
        at = device + virtq_used(self.size).offset("ring") + self.shown % self.size * virtq_used_elem.size
        self.memory.write(at, virtq_used_elem.encode(id=ident, len=length))
        self.index(self.shown + 1)

    def index(self, idx: int) -> None:
        """The used index (split)."""
        self.shown = idx
        at = self.queue.areas[2] + virtq_used(self.size).offset("idx")
        self.memory.write(at, (idx & 0xFFFF).to_bytes(2, "little"))


@frozen
class Betrayal:
    """What a device does with a buffer in hand.

    kind: the class in `attacks.ATTACK_CLASSES`; good: how many used elements in front are as they should be; layouts:
    where it applies; in_order: whether it is one only with VIRTIO_F_IN_ORDER.
    """

    name: str
    kind: str
    run: Callable[[HostileDevice], None]
    good: int = 0
    layouts: tuple[str, ...] = ("split", "packed")
    in_order: bool = False


def _twice(d: HostileDevice) -> None:
    d.use(d.id, d.room)
    d.use(d.id, d.room)


def _jump(d: HostileDevice) -> None:
    d.index(d.shown + len(d.queue.held) + 1)


BETRAYALS: Final = [
    Betrayal("id-out-of-range", "A8", lambda d: d.use(d.size, 0)),
    Betrayal("id-is-all-ones", "A8", lambda d: d.use(0xFFFFFFFF, 0)),
    Betrayal("id-not-outstanding", "A8", lambda d: d.use(d.stranger, 0)),
    Betrayal("id-twice", "A8", _twice, good=1),
    Betrayal("length-one-more", "A7", lambda d: d.use(d.id, d.room + 1)),
    Betrayal("length-all-ones", "A7", lambda d: d.use(d.id, 0xFFFFFFFF)),
    Betrayal("index-jumps", "A2", _jump, layouts=("split",)),
    Betrayal("index-goes-back", "A2", lambda d: d.index(d.shown - 1), layouts=("split",)),
]
"""Each is an error that a driver can see in the ring alone, with one buffer in the device's hand or with several."""


@define(eq=False)
class Traitor(Wrapped):
    """Serves well, `after` chains long, and commits a betrayal with the next one of queue `on`, or of any for None.

    From then on it takes what it is given and returns nothing: there is nothing left that a driver could be told. A
    reset makes it good, and it betrays no more.
    """

    betrayal: Betrayal
    after: int = 0
    on: int | None = None
    betrayed: bool = field(default=False, init=False)
    _fallen: bool = field(default=False, init=False)
    _end: DeviceEnd | None = field(default=None, init=False)

    def activate(self, end: DeviceEnd, features: int) -> None:
        self._end = end
        self.inner.activate(end, features)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        chosen = self.on is None or queue.index == self.on
        if self._fallen:
            chain.defer()
        elif self.betrayed or not chosen or self.after > 0:
            self.after -= chosen
            self.inner.handle(queue, chain)
        else:
            self.betrayed = self._fallen = True
            chain.defer()
            self.betrayal.run(HostileDevice.holding(queue, chain))
            if self._end is not None:
                self._end.notifier.used_buffer(queue.index)

    def reset(self) -> None:
        self._fallen = False
        self.inner.reset()


@define(eq=False)
class Liar(Wrapped):
    """Says something else than the device inside would: `config` instead of its configuration, `features` besides its
    own; restless: the configuration is never the same twice, so that its generation never stands still."""

    config: bytes | None = None
    features: int = 0
    restless: bool = False
    _reads: int = field(default=0, init=False)
    _end: DeviceEnd | None = field(default=None, init=False)

    def offered_features(self) -> int:
        return self.inner.offered_features() | self.features

    def refuse_features(self, features: int) -> str | None:
        return self.inner.refuse_features(features & ~self.features)

    def read_config(self) -> bytes:
        data = self.inner.read_config() if self.config is None else self.config
        if not self.restless:
            return data
        self._reads += 1
        return bytes(byte ^ self._reads & 0xFF for byte in data)


LIES: Final[Mapping[str, Callable[[Device], Liar]]] = {
    "configuration-of-ones": lambda device: Liar(device, config=b"\xff" * 256),
    "configuration-of-zeros": lambda device: Liar(device, config=bytes(256)),
    "configuration-of-nothing": lambda device: Liar(device, config=b""),
    "configuration-never-still": lambda device: Liar(device, restless=True),
    "features-all-there-are": lambda device: Liar(device, features=((1 << 128) - 1) & ~(((1 << 18) - 1) << 24)),
}
"""What a device can say of itself that is not so (A10, A22); the last leaves the ring features 24 to 41 alone."""


# Memory that changes ------------------------------------------------------------------------------------------------


def overwriting_engine() -> Engine:
    """The reference engine with another side that overwrites with ones whatever was just read (A14).

    Give it to a queue of one's own: had it read anything twice, or read back what it wrote, the ones would show.
    """

    def word(words: Any, index: int) -> int:
        value = int(words[index])
        words[index] = 0xFFFF
        return value

    def descriptor(load: Callable[..., Any]) -> Callable[..., Any]:
        def run(memory: Any, row: int, offset: int) -> Any:
            values = load(memory, row, offset)
            memory.views[row][offset : offset + virtq_desc.size] = b"\xff" * virtq_desc.size
            return values

        return run

    made: dict[str, Callable[..., Any]] = dict(TWINS)
    made |= {"load_acquire": word, "load_once": word}
    made |= {name: descriptor(TWINS[name]) for name in ("load_split_descriptor", "load_packed_descriptor")}
    for name, function in KERNELS.items():
        made[name] = FunctionType(function.__code__, {**function.__globals__, **made}, name)
    return Engine(made)
