"""What a check is given: a connection to the device, and a driver that does exactly what it is told.

    rig.start(BlkFeature.FLUSH)        reset, ACKNOWLEDGE … DRIVER_OK, with the ring layout that the check is run with
    answer = rig.ask(Request(0, (header,), (512, 1)))
    rig.hands[0]                       a queue's half, for whatever else a driver can write

Each buffer lies between guards, and writable memory is filled with a canary: what a device does beside its task is a
Failed, with the clause, in whatever check it happens. Waiting for what does not come is Wedged; DEVICE_NEEDS_RESET is
NeedsReset, a hang-up is Disconnected, both from whatever waits.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from attrs import define, field

from virtio_py.driver import Transport
from virtio_py.errors import Disconnected, NeedsReset, VirtioError
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceStatus, Feature, bit, feature_names, mask
from virtio_py.testing.conformance.kinds import Kind, Request
from virtio_py.testing.conformance.parts import Answer, Part, Sent, make_part, shape_of
from virtio_py.testing.endings import Failed, Rejected, Skipped, Wedged
from virtio_py.testing.hands import INDIRECT, Descriptor, Hand, make_hand, table

NOWHERE: Final = 1 << 46
"""A guest address far behind any memory."""
_S = DeviceStatus
ACKNOWLEDGED: Final = int(_S.ACKNOWLEDGE | _S.DRIVER)
NEGOTIATED: Final = int(ACKNOWLEDGED | _S.FEATURES_OK)
RUNNING: Final = int(NEGOTIATED | _S.DRIVER_OK)


@define(eq=False)
class Rig:
    """See the module. layout: of the queues that `start` sets up; patience, quiet: seconds to wait for what must come,
    and for what must not; thorough: whether it may take long; remarks: what the verdict is to mention besides."""

    transport: Transport
    kind: Kind
    layout: str
    patience: float
    quiet: float
    thorough: bool = False
    features: int = field(init=False, default=0)
    hands: dict[int, Hand] = field(init=False, factory=dict)
    remarks: list[str] = field(init=False, factory=list)
    _used: dict[tuple[int, int], int | None] = field(init=False, factory=dict)
    offered: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.offered = self.transport.device_features()

    # What there is

    def need(self, *features: int) -> None:
        """Raises Skipped for a feature that is not offered."""
        if missing := [f for f in features if not self.offered >> f & 1]:
            raise Skipped(f"{', '.join(self.names(mask(*missing)))} is not offered")

    def names(self, features: int) -> list[str]:
        """The names of feature bits."""
        return feature_names(features, self.kind.features)

    def need_status(self) -> None:
        """Raises Skipped where the carrier makes the status up, and the device does not tell it."""
        if not self.transport.tells_status:
            raise Skipped("this back-end has no status message")

    def need_config(self, length: int = 1) -> bytes:
        """The first bytes of the configuration. Raises Skipped where there is none to be had."""
        if not self.transport.tells_config:
            raise Skipped("this back-end does not tell its configuration")
        return self.transport.read_config(0, length)

    def should(self, good: bool, what: str) -> None:
        """A SHOULD that is not kept is mentioned, and is no failure."""
        if not good:
            self.remarks.append(f"advice not taken: {what}")

    def require(self, good: bool, what: str, clause: str = "") -> None:
        """Raises Failed."""
        if not good:
            raise Failed(what, clause=clause)

    # Initialisation

    def reset(self) -> None:
        """Writes 0 to the status, and waits until it reads 0. Raises Failed if it never does."""
        self.transport.write_status(0)
        self.hands.clear()
        if not self.holds(lambda: self.transport.read_status() == 0):
            raise Failed("the status does not become 0", clause="reset.device.device-reset.1")

    def negotiate(self, features: int) -> bool:
        """Up to FEATURES_OK, with these feature bits; whether it stays set."""
        self.reset()
        self.transport.write_status(int(_S.ACKNOWLEDGE))
        self.transport.write_status(ACKNOWLEDGED)
        self.transport.accept_features(features)
        self.features = features
        self.transport.write_status(NEGOTIATED)
        return bool(self.transport.read_status() & _S.FEATURES_OK)

    def choose(self, *features: int) -> int:
        """These features, what they and the device need, VERSION_1 and the layout's."""
        chosen = mask(*features) | bit(Feature.VERSION_1) | self.layout_bit | self.kind.base(self)
        while lacking := [n for f in range(chosen.bit_length()) if chosen >> f & 1 for n in self.kind.needs.get(f, ())]:
            if not mask(*lacking) & ~chosen:
                break
            chosen |= mask(*lacking)
        return chosen

    def takes(self, features: int, what: str) -> bool:
        """Whether the device accepts a choice of features that it need not. Raises Rejected if it hangs up."""
        try:
            return self.negotiate(features)
        except Disconnected as error:
            raise Rejected(f"{what} makes the back-end hang up") from error

    def refuses(self, features: int, what: str) -> None:
        """Raises Failed if the device accepts a choice of features; Skipped where no answer says whether it does."""
        if self.takes(features, what):
            self.need_status()
            raise Failed(f"{what} is accepted")

    @property
    def layout_bit(self) -> int:
        """RING_PACKED for the packed layout."""
        return bit(Feature.RING_PACKED) if self.layout == "packed" else 0

    def start(self, *features: int, size: int = 64, ready: bool = True) -> None:
        """Brings the device into operation with these features (and what they need). Raises Skipped for one that is
        not offered, Failed if the device does not take the set. ready: whether DRIVER_OK is written too."""
        chosen = self.choose(*features)
        if chosen & ~self.offered:
            raise Skipped(f"{', '.join(self.names(chosen & ~self.offered))} is not offered")
        if not self.negotiate(chosen):
            raise Failed(f"{', '.join(self.names(chosen))} is refused", clause="features.device.feature-bits.2")
        for index in self.kind.queues(self):
            self.open(index, size)
        if ready:
            self.transport.write_status(RUNNING)
            self.kind.prepare(self)

    def open(self, index: int, size: int) -> Hand:
        """Sets up one queue."""
        most = self.transport.max_queue_size(index)
        if not most:
            raise Skipped(f"there is no queue {index}")
        queue = DriverQueue(index, min(size, most), self.transport.arena, self.features)
        # What other queues need not hear is not to be counted as heard.
        self.transport.enable_queue(queue)
        self.hands[index] = hand = make_hand(queue, self.transport.arena.memory)
        return hand

    # Waiting

    def holds(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Waits until it holds; False after so many seconds, `patience` by default."""
        deadline = monotonic() + (self.patience if seconds is None else seconds)
        while not condition():
            left = deadline - monotonic()
            if left <= 0:
                return False
            self.transport.wait(min(0.01, left))
        return True

    def pause(self) -> None:
        """Gives the device time for what it must not do."""
        self.holds(lambda: False, self.quiet)

    @property
    def needs_reset(self) -> bool:
        """Whether the device has given up."""
        return bool(self.transport.read_status() & _S.DEVICE_NEEDS_RESET)

    @property
    def heard(self) -> int:
        """Used buffer notifications so far. Raises Skipped where the carrier does not count them."""
        if self.transport.used_notifications is None:
            raise Skipped("this carrier does not count used buffer notifications")
        self.transport.wait(0)
        return self.transport.used_notifications

    # Requests

    def part(self, content: bytes, writable: bool = False) -> Part:
        """A buffer of its own, between guards."""
        return make_part(self.transport.arena, content, writable)

    def parts(self, request: Request, canary: int = 0xA5) -> tuple[Part, ...]:
        """The buffers of a request, as they are cut."""
        return (
            *(self.part(content) for content in request.readable),
            *(self.part(bytes([canary]) * size, True) for size in request.writable),
        )

    def stage(self, request: Request, canary: int = 0xA5, direct: int | None = None) -> Sent:
        """A request that the device cannot see before `publish`.

        direct: how many of the descriptors stay in the ring, in front of an indirect one; None for all, and no table.
        """
        parts, hand = self.parts(request, canary), self.hands[request.queue]
        descriptors = [part.descriptor for part in parts]
        if direct is None:
            return Sent(request, parts, hand.stage(*descriptors))
        content = table(descriptors[direct:], self.layout)
        place = self.transport.arena.allocate(len(content))
        place.view[:] = content
        ident = hand.stage(*descriptors[:direct], Descriptor(place.address, len(content), INDIRECT))
        return Sent(request, parts, ident, (place,))

    def publish(self, index: int, kick: bool = True) -> None:
        """Makes available what was staged, and tells the device."""
        self.hands[index].publish()
        if kick:
            self.kick(index)

    def kick(self, index: int) -> None:
        """An available buffer notification; one too many does no harm."""
        self.transport.available_buffer(index, index)

    def send(self, request: Request, canary: int = 0xA5, direct: int | None = None, kick: bool = True) -> Sent:
        """A request on its way."""
        sent = self.stage(request, canary, direct)
        self.publish(request.queue, kick)
        return sent

    def look(self, index: int) -> list[int]:
        """The ids that were used since the last look."""
        found = self.hands[index].used()
        self._used.update({(index, ident): length for ident, length in found})
        return [ident for ident, _ in found]

    def order(self, index: int, count: int) -> list[int]:
        """Waits for so many buffers, and says in which order they were used; fewer, where no more come."""
        found: list[int] = []

        def enough() -> bool:
            found.extend(self.look(index))
            return len(found) >= count

        self.holds(enough)
        return found

    def is_used(self, sent: Sent) -> bool:
        """Whether it has come back."""
        self.look(sent.request.queue)
        return (sent.request.queue, sent.id) in self._used

    def collect(self, sent: Sent) -> Answer:
        """Waits for a request. Raises NeedsReset, Wedged, and Failed for what the device did to memory."""
        if not self.holds(lambda: self.is_used(sent) or self.needs_reset):
            raise Wedged(f"a request of {shape_of(sent)} is not answered within {self.patience} s")
        if (sent.request.queue, sent.id) not in self._used:
            raise NeedsReset("the device has set DEVICE_NEEDS_RESET")
        return self.take(sent)

    def take(self, sent: Sent) -> Answer:
        """The answer to a request that is used."""
        length = self._used.pop((sent.request.queue, sent.id))
        answer = sent.answer(length, self.layout)
        self.transport.arena.free(*(part.whole for part in sent.parts), *sent.extra)
        return answer

    def ask(self, request: Request, canary: int = 0xA5, direct: int | None = None) -> Answer:
        """A request, start to end; the request's own judgement is heard."""
        answer = self.collect(self.send(request, canary, direct))
        request.judge(answer.data)
        return answer

    def good(self) -> Answer:
        """A request that any device of this kind answers well."""
        return self.ask(self.kind.good(self))

    # What is not to be expected to go well

    def refusable(self, request: Request, what: str) -> None:
        """Sends what the device may refuse. Raises Rejected if it does, Wedged if it says nothing at all."""
        sent = self.send(request)
        try:
            answer = self.collect(sent)
        except (NeedsReset, Disconnected) as error:
            raise self.rejected(what, error) from error
        try:
            request.judge(answer.data)
        except Failed as error:
            raise Rejected(f"{what}: refused, {error.detail}") from error

    def goes_on(self, what: str) -> None:
        """A good request, where the device may have given up by now. Raises Rejected if it has."""
        try:
            self.good()
        except (NeedsReset, Disconnected) as error:
            raise self.rejected(what, error) from error

    def rejected(self, what: str, error: VirtioError) -> Rejected:
        """How a refusal is told. Raises Wedged, Failed if a device that asked for a reset does not recover by one."""
        if isinstance(error, NeedsReset):
            self.start()
            self.good()
        return Rejected(f"{what}: refused, {error}")

    def spoil(self) -> None:
        """Exposes a chain that no device can serve: its memory does not exist."""
        index = self.kind.good(self).queue
        self.hands[index].add(Descriptor(NOWHERE, 16))
        self.kick(index)
