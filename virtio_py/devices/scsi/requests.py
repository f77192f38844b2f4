"""A request of a request queue: the chain cut into its parts, and its answer (5.6.6.1)."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from virtio_py.devices.scsi.layout import (
    Address,
    ScsiResponse,
    virtio_scsi_req_cmd,
    virtio_scsi_req_pi,
    virtio_scsi_resp_cmd,
)
from virtio_py.devices.scsi.task import Outcome, Task
from virtio_py.devices.scsi.unit import LogicalUnit
from virtio_py.errors import RequestError
from virtio_py.rings.chain import Chain, Reader, Writer

MAX_CDB: Final = 260
"""Bytes of the longest CDB that SCSI knows; of a longer `cdb` the rest is padding."""

_PAD: Final = bytes(1 << 16)


@define(eq=False)
class Request:
    """One request, cut by the sizes that were in force when it came.

    lun, id, cdb: as the driver sent them; sense_size: room for sense data
    pi_out, data_out, pi_in, data_in: the rest of both parts, `pi_*` None where T10_PI was not negotiated
    address, unit, task: where the command went, once it was given to a unit
    """

    chain: Chain
    lun: bytes
    id: int
    cdb: bytes
    sense_size: int
    data_out: Reader
    data_in: Writer
    pi_out: Reader | None
    pi_in: Writer | None
    address: Address | None = None
    unit: LogicalUnit | None = None
    task: Task | None = None
    _sizes: tuple[int, int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._sizes = (self.data_out.remaining, self.data_in.remaining)

    @property
    def bidirectional(self) -> bool:
        """Whether there are data in both directions."""
        return all(self._sizes)

    def respond(self, outcome: Outcome) -> None:
        """Writes the answer. The chain is then ready to be used."""
        writable = self.chain.writable
        sense = outcome.sense[: self.sense_size]
        # The parts behind are behind a gap unless these are whole, and only then count as written.
        writable.write(self._head(outcome, len(sense)))
        writable.write(sense)
        _pad(writable, self.sense_size - len(sense))
        if self.pi_in is not None and self.data_in.position:
            _pad(self.pi_in, self.pi_in.remaining)

    def _head(self, outcome: Outcome, sense_len: int) -> bytes:
        moved = self._sizes[0] - self.data_out.remaining + self.data_in.position
        return virtio_scsi_resp_cmd.encode(
            sense_len=sense_len,
            residual=min(sum(self._sizes) - moved, 0xFFFFFFFF),
            status=outcome.status,
            response=outcome.response,
        )


def read_request(chain: Chain, cdb_size: int, sense_size: int, has_pi: bool) -> Request | None:
    """The request in a chain; None, with the answer FAILURE written, if it has not the parts that it must have.

    Raises RequestError for one without room for an answer.
    """
    readable, writable = chain.readable, chain.writable
    if writable.remaining < virtio_scsi_resp_cmd.size:
        raise RequestError("a request has no room for its response", clause="scsi.device.request-queues.1")
    room = writable.remaining - virtio_scsi_resp_cmd.size - sense_size
    rest = readable.remaining - virtio_scsi_req_cmd.size - cdb_size - (virtio_scsi_req_pi.size if has_pi else 0)
    if not cdb_size or room < 0 or rest < 0:
        refuse(chain)
        return None
    head = virtio_scsi_req_cmd.decode(readable.read(virtio_scsi_req_cmd.size))
    cdb = readable.read(min(cdb_size, MAX_CDB))
    readable.advance(cdb_size - len(cdb))
    pi_out: Reader | None = None
    pi_in: Writer | None = None
    if has_pi:
        sizes = virtio_scsi_req_pi.decode(readable.read(virtio_scsi_req_pi.size))
        if sizes.pi_bytesout > rest or sizes.pi_bytesin > room:
            refuse(chain)
            return None
        pi_out = Reader(readable.views(sizes.pi_bytesout))
        readable.advance(sizes.pi_bytesout)
        pi_in = writable.split_tail(room)
        data_in = pi_in.split_tail(room - sizes.pi_bytesin)
    else:
        data_in = writable.split_tail(room)
    return Request(chain, head.lun, head.id, cdb, sense_size, readable, data_in, pi_out, pi_in)


def refuse(chain: Chain) -> None:
    """Answers a request that cannot be cut into its parts."""
    left = chain.readable.remaining + chain.writable.remaining - virtio_scsi_resp_cmd.size
    chain.writable.write(virtio_scsi_resp_cmd.encode(residual=min(left, 0xFFFFFFFF), response=ScsiResponse.FAILURE))


def _pad(writer: Writer, count: int) -> None:
    """Writes zeros: what a driver may read must be ours, not what its memory held before."""
    for at in range(0, count, len(_PAD)):
        writer.write(_PAD[: count - at])
