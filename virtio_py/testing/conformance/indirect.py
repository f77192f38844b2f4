"""Indirect descriptors (2.7.5.3, 2.8.8)."""

from __future__ import annotations

from virtio_py.spec import Feature
from virtio_py.testing.conformance.chains import cuts
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.parts import Sent
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.hands import INDIRECT, WRITE, Descriptor, table


@check("split.device.message-framing.1", "packed.device.scatter-gather-support.1", needs=(Feature.INDIRECT_DESC,))
def a_table_is_a_chain(rig: Rig) -> None:
    """A request in an indirect table is what it is in the ring."""
    rig.start(Feature.INDIRECT_DESC)
    plain = rig.good()
    for how, request in cuts(rig.kind.good(rig)):
        answer = rig.ask(request, direct=0)
        rig.require(not rig.kind.repeats or answer.data == plain.data, f"{how}, in a table, it has another answer")


@check("split.device.indirect-descriptors.1", "packed.device.scatter-gather-support.1", needs=(Feature.INDIRECT_DESC,))
def write_on_the_pointer_means_nothing(rig: Rig) -> None:
    """The flag WRITE of a descriptor that refers to a table has no influence."""
    rig.start(Feature.INDIRECT_DESC)
    plain, request = rig.good(), rig.kind.good(rig)
    hand = rig.hands[request.queue]
    parts = rig.parts(request)
    content = table([part.descriptor for part in parts], rig.layout)
    place = rig.part(content)
    ident = hand.add(Descriptor(place.inner.address, len(content), INDIRECT | WRITE))
    rig.kick(request.queue)
    answer = rig.collect(Sent(request, (*parts, place), ident))
    request.judge(answer.data)
    rig.require(not rig.kind.repeats or answer.data == plain.data, "the answer is another one")


@check("split.device.indirect-descriptors.2", needs=(Feature.INDIRECT_DESC,))
def direct_ones_before_a_table(rig: Rig) -> None:
    """Direct descriptors with an indirect one behind them are one buffer."""
    rig.start(Feature.INDIRECT_DESC)
    plain, request = rig.good(), rig.kind.good(rig)
    for direct in range(1, len(request.readable + request.writable)):
        answer = rig.ask(request, direct=direct)
        rig.require(not rig.kind.repeats or answer.data == plain.data, f"with {direct} direct ones it is another one")
