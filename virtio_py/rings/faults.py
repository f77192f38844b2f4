"""What the codes that ring kernels return mean: one table, so that kernels return and rings raise."""

from __future__ import annotations

from typing import Final, NamedTuple

from virtio_py.errors import MemoryFault, PeerError, RingError
from virtio_py.rings.kernels import common as k


class Fault(NamedTuple):
    """An error class, the clauses broken (split, packed), and a message about buffer {id} and value {at}."""

    error: type[PeerError]
    split: str
    packed: str
    message: str


FAULTS: Final[dict[int, Fault]] = {
    k.BAD_INDEX: Fault(
        RingError, "split.driver.available-ring.1", "", "available index {at} is further ahead than the queue is long"
    ),
    k.BAD_HEAD: Fault(RingError, "", "", "available ring names descriptor {id}, which the queue does not have"),
    k.HEAD_IN_FLIGHT: Fault(RingError, "", "", "buffer {id} is made available again before it was used"),
    k.BAD_NEXT: Fault(RingError, "", "", "chain {id} links to descriptor {at}, which its table does not have"),
    k.LOOP: Fault(RingError, "split.driver.descriptor-table.1", "", "chain {id} comes back to itself"),
    k.TOO_LONG: Fault(
        RingError,
        "split.driver.indirect-descriptors.3",
        "packed.driver.scatter-gather-support.2",
        "chain {id} has more descriptors than the queue allows",
    ),
    k.TOO_MANY_BYTES: Fault(
        RingError, "split.driver.descriptor-table.1", "", "chain {id} is over 2^32 bytes"
    ),
    k.ORDER: Fault(
        RingError,
        "split.driver.message-framing.1",
        "packed.driver.scatter-gather-support.3",
        "chain {id} has a readable descriptor behind a writable one",
    ),
    k.NOT_MEMORY: Fault(MemoryFault, "", "", "descriptor {at} of chain {id} names bytes that are not memory"),
    k.TABLE_NOT_MEMORY: Fault(MemoryFault, "", "", "the indirect table of chain {id}, {at} bytes, is not memory"),
    k.INDIRECT_NOT_NEGOTIATED: Fault(
        RingError,
        "split.driver.indirect-descriptors.1",
        "packed.driver.indirect-descriptors.1",
        "chain {id} is indirect, which was not negotiated",
    ),
    k.INDIRECT_NESTED: Fault(
        RingError,
        "split.driver.indirect-descriptors.2",
        "packed.driver.indirect-descriptors.2",
        "chain {id} has an indirect descriptor inside an indirect table",
    ),
    k.INDIRECT_NEXT: Fault(
        RingError,
        "split.driver.indirect-descriptors.4",
        "packed.driver.indirect-descriptors.4",
        "chain {id} has a descriptor with both INDIRECT and NEXT",
    ),
    k.INDIRECT_SIZE: Fault(RingError, "", "", "chain {id} has an indirect table of {at} bytes, no multiple of 16"),
    k.NOT_AVAILABLE: Fault(
        RingError,
        "",
        "packed.driver.scatter-gather-support.6",
        "descriptor {at} is not available, unlike its list's head"
    ),
    k.USED_INDEX: Fault(RingError, "", "", "used index {at} is ahead of all that is outstanding"),
    k.USED_ID: Fault(RingError, "", "", "used element names buffer {id}, which the queue does not have"),
    k.USED_NOT_OUTSTANDING: Fault(RingError, "", "", "used element names buffer {id}, which is not outstanding"),
    k.USED_LENGTH: Fault(
        RingError, "split.device.used-ring.2", "", "buffer {id} is used with {at} bytes, more than it has writable"
    ),
    k.USED_ORDER: Fault(
        RingError, "features.device.reserved-feature-bits.5", "features.device.reserved-feature-bits.5",
        "buffer {id} is used before buffers that were available first",
    ),
}  # fmt: skip


def fault(code: int, state: k.Words, layout: str, queue: int) -> PeerError:
    """The error for a kernel's code, with the place that the kernel left in the state."""
    found = FAULTS[code]
    clause = found.split if layout == "split" else found.packed
    message = found.message.format(id=state[k.FAULT_ID], at=state[k.FAULT_AT])
    error = found.error(message, clause=clause, queue=queue)
    if isinstance(error, MemoryFault):
        error.access = int(state[k.FAULT_ADDRESS]), int(state[k.FAULT_LENGTH]), bool(state[k.FAULT_WRITE])
    return error
