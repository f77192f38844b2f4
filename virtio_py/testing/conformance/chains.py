"""Chains, whatever the layout: how bytes are spread over descriptors, what is written where (2.7.4, 2.7.5, 2.8.5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import evolve

from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.kinds import Request
from virtio_py.testing.conformance.parts import recut
from virtio_py.testing.conformance.rig import Rig

_FRAMING: Final = ("split.device.message-framing.1", "packed.device.scatter-gather-support.1")
_USED: Final = ("split.device.used-ring.2", "prose.packed.used-length")


def cuts(request: Request) -> Iterator[tuple[str, Request]]:
    """The same request with its bytes spread over other descriptors."""
    room = sum(request.writable)
    joined = (b"".join(request.readable),)
    whole = (room,) if room else ()
    yield "in one readable and one writable buffer", evolve(request, readable=joined, writable=whole)
    yield "with a first byte of its own", evolve(request, readable=recut(request.readable, 1))
    yield "with a readable part cut at odd places", evolve(request, readable=recut(request.readable, 3, 5, 2))
    if room > 16:
        yield "with a writable part cut at odd places", evolve(request, writable=(1, 7, room - 13, 4, 1))
        yield "with the last bytes apart", evolve(request, writable=(room - 3, 1, 1, 1))
    yield "in bytes at the beginning", evolve(request, readable=recut(request.readable, *[1] * 8))


@check(*_FRAMING)
def framing_means_nothing(rig: Rig) -> None:
    """A request is understood however its bytes are spread over descriptors."""
    rig.start()
    plain = rig.good()
    for how, request in cuts(rig.kind.good(rig)):
        answer = rig.ask(request)
        rig.require(not rig.kind.repeats or answer.data == plain.data, f"{how}, the request has another answer")


@check("split.device.descriptor-table.1", "packed.device.descriptor-table.1")
def only_writable_memory_is_written(rig: Rig) -> None:
    """Readable buffers, and what lies around the writable ones, stay as they are."""
    # Every rig looks for it, in every check; here a few more requests give it the occasion.
    rig.start()
    for _, request in cuts(rig.kind.good(rig)):
        rig.ask(request)


@check(*_USED)
def the_used_length_is_written(rig: Rig) -> None:
    """As many bytes as the used length says were written, from the first on."""
    rig.start()
    request = rig.kind.good(rig)
    first, second = rig.ask(request, canary=0xA5), rig.ask(request, canary=0x5A)
    length = min(first.length or 0, second.length or 0)
    untouched = [n for n in range(length) if (first.data[n], second.data[n]) == (0xA5, 0x5A)]
    rig.require(
        not untouched, f"the used length is {length}, and byte {untouched[0] if untouched else 0} was not written"
    )
    rig.should(bool(length) or not request.writable, "the used length is 0 for an answer that has bytes")


@check("split.device.used-ring.1", "packed.device.virtqueues.1")
def the_ring_goes_round(rig: Rig) -> None:
    """Many times the queue's size of buffers come back, one after another and several at a time."""
    rig.start(size=8)
    for _ in range(20):
        rig.good()
    request = rig.kind.good(rig)
    for _ in range(10):
        sent = [rig.stage(request) for _ in range(8 // max(1, len(request.readable + request.writable)))]
        rig.publish(request.queue)
        for one in sent:
            request.judge(rig.collect(one).data)


@check("split.device.available-buffer-notification-suppression.5", "packed.device.descriptor-table.3")
def a_needless_kick_does_no_harm(rig: Rig) -> None:
    """Kicks with nothing behind them change nothing."""
    rig.start()
    for _ in range(5):
        for index in rig.hands:
            rig.kick(index)
        rig.pause()
        rig.good()
    for index in rig.hands:
        rig.look(index)


@check("split.device.message-framing.2", "packed.device.scatter-gather-support.2")
def a_long_chain(rig: Rig) -> None:
    """A chain as long as the queue is served, or the device has a limit."""
    rig.start(size=32)
    request = rig.kind.good(rig)
    writable = len(request.writable)
    long = evolve(request, readable=recut(request.readable, *[1] * (31 - writable)))
    rig.refusable(long, "a chain as long as the queue")
