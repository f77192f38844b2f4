"""The SCSI driver with many commands under way at a time.

driver = BatchingScsiDriver(transport).start()
tickets = driver.submit_many([ScsiAsk(0, 1, cdb, data_in_length=512), …])    one publish, at most one notification
driver.wait_some(tickets, timeout=1.0)                                       those that are done: ticket.result
driver.run((ScsiAsk.read(0, 1, lba, 8) for lba in range(0, 4096, 8)))        as many at a time as there may be

Nothing orders commands that are under way together. A unit attention ends a command as any other status does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from attrs import frozen

from virtio_py.devices.scsi import commands
from virtio_py.devices.scsi.adapter import ScsiResult, Ticket
from virtio_py.devices.scsi.driver import ScsiDriver
from virtio_py.devices.scsi.layout import REQUESTQ, encode_lun
from virtio_py.errors import UsageError
from virtio_py.rings.queue import Extent


@frozen
class ScsiAsk:
    """One command to be submitted."""

    target: int
    lun: int
    cdb: bytes
    data_out: bytes = b""
    data_in_length: int = 0

    @classmethod
    def read(cls, target: int, lun: int, lba: int, number: int, block_size: int = 512) -> ScsiAsk:
        """`number` blocks from `lba` on."""
        return cls(target, lun, commands.transfer("READ", lba, number), data_in_length=number * block_size)

    @classmethod
    def write(cls, target: int, lun: int, lba: int, data: bytes, block_size: int = 512) -> ScsiAsk:
        """Whole blocks of data."""
        return cls(target, lun, commands.transfer("WRITE", lba, len(data) // block_size), data)


class BatchingScsiDriver(ScsiDriver):
    """A SCSI initiator that keeps many commands under way. What times out can be waited for again."""

    def submit_many(self, asks: Iterable[ScsiAsk], queue: int = 0) -> list[Ticket]:
        """Makes commands available, all with one publish and at most one notification.

        Returns the tickets of those that queue, memory and the unit's `cmd_per_lun` had room for, the first ones.
        Raises UsageError if there is none, and nothing is under way that could make room.
        """
        ring = self.queues[REQUESTQ + queue]
        lent = list(self._lend(asks, queue))
        added = ring.add_many(lent)
        for _, _, ticket in lent[added:]:
            self._pending[ticket.address] -= 1
            self._give_back(ticket.buffers)
        self.kick(ring)
        return [ticket for _, _, ticket in lent[:added]]

    def _lend(self, asks: Iterable[ScsiAsk], queue: int) -> Iterator[tuple[list[Extent], list[Extent], Ticket]]:
        for ask in islice(asks, self.queues[REQUESTQ + queue].size):
            before, lun = len(self._lent), encode_lun(ask.target, ask.lun)
            try:
                request = self._prepare(lun, ask.cdb, ask.data_out, ask.data_in_length, queue, b"", 0)
            except UsageError:
                self._give_back(self._lent[before:])
                if not self._pending.total():
                    raise
                return
            # Counted at once: the next one is judged by it.
            self._pending[request[2].address] += 1
            yield request

    def poll(self, queue: int = 0) -> None:
        """Takes what has completed: tickets have their results. Never waits."""
        for ticket, length in self._take_used(self.queues[REQUESTQ + queue]):
            self._done(ticket, length)

    def wait_some(
        self, tickets: Sequence[Ticket], count: int = 1, timeout: float | None = None, queue: int = 0
    ) -> list[Ticket]:
        """Those of these tickets that are done, once they are at least `count`. Raises TimedOut."""
        if count > len(tickets):
            raise UsageError(f"{count} are wanted of {len(tickets)} commands")
        deadline = self.deadline(timeout)
        self.poll(queue)
        while len(done := [ticket for ticket in tickets if ticket.result is not None]) < count:
            for ticket, length in self.wait_used(self.queues[REQUESTQ + queue], 1, deadline - time.monotonic()):
                self._done(ticket, length)
        return done

    def run(
        self, asks: Iterable[ScsiAsk], timeout: float | None = None, queue: int = 0, depth: int = 64
    ) -> list[ScsiResult]:
        """All of these, at most `depth` at a time under way: how each ended, in the order of `asks`. Raises TimedOut
        when not all have after `timeout` seconds."""
        left: Iterator[ScsiAsk] = iter(asks)
        tickets: list[Ticket] = []
        under_way: list[Ticket] = []
        with self.within(timeout):
            while True:
                batch = list(islice(left, depth - len(under_way)))
                added = self.submit_many(batch, queue)
                left = chain(batch[len(added) :], left)
                tickets += added
                under_way += added
                if not under_way:
                    return [ticket.result for ticket in tickets if ticket.result is not None]
                self.wait_some(under_way, queue=queue)
                under_way = [ticket for ticket in under_way if ticket.result is None]
