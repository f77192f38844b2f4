"""The block driver with many requests under way at a time, on any of its queues.

driver = BatchingBlkDriver(transport).start()
tickets = driver.submit([Ask.read(0, 8), Ask.write(64, data), Ask.flush()])    one publish, one kick
for ticket in driver.wait(len(tickets), timeout=1.0):                          in the order in which they were used
    ticket.result()                                                            bytes, or what went wrong is raised
driver.run((Ask.read(n, 1) for n in range(1000)), timeout=10.0)                as many at a time as the queue holds

Nothing orders requests that are under way together: a flush covers what had completed before it was submitted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from attrs import define, field

from virtio_py.devices.blk.driver import BlkDriver, BlkError
from virtio_py.devices.blk.layout import SECTOR, BlkFeature, BlkRequest
from virtio_py.errors import RequestError, UsageError, VirtioError
from virtio_py.memory import Buffer


class Ask(NamedTuple):
    """One request to be submitted: a position in sectors, the data to send, or how many sectors to read."""

    request: BlkRequest
    sector: int = 0
    data: bytes = b""
    sectors: int = 0

    @classmethod
    def read(cls, sector: int, sectors: int) -> Ask:
        """So many sectors from `sector` on."""
        return cls(BlkRequest.IN, sector, sectors=sectors)

    @classmethod
    def write(cls, sector: int, data: bytes) -> Ask:
        """Whole sectors of data."""
        return cls(BlkRequest.OUT, sector, data)

    @classmethod
    def flush(cls) -> Ask:
        """What had completed before this is submitted is durable when it completes."""
        return cls(BlkRequest.FLUSH)


@define(eq=False)
class Ticket:
    """A request that was submitted. `done` says whether the device has answered; a reset leaves it unanswered."""

    ask: Ask
    queue: int
    done: bool = field(default=False, init=False)
    _data: bytes = field(default=b"", init=False)
    _error: VirtioError | None = field(default=None, init=False)
    _sent: list[Buffer] = field(factory=list, init=False, repr=False)
    _received: list[Buffer] = field(factory=list, init=False, repr=False)

    def result(self) -> bytes:
        """What the device returned; of most requests no bytes. Raises BlkError or RequestError if it failed, UsageError
        if it is not done."""
        if not self.done:
            raise UsageError(f"{self.ask.request.name} has not completed")
        if self._error is not None:
            raise self._error
        return self._data

    # The driver's side of it

    def lend(self, sent: list[Buffer], received: list[Buffer]) -> tuple[Sequence[Any], Sequence[Any], Ticket]:
        """Takes the memory of the request, and returns what the queue wants to know of it."""
        self._sent, self._received = sent, received
        return [b.extent for b in sent], [b.extent for b in received], self

    def returned(self) -> list[Buffer]:
        """The memory, which the ticket no longer needs."""
        buffers = self._sent + self._received
        self._sent, self._received = [], []
        return buffers

    def answers(self) -> tuple[bytes, int]:
        """What the device wrote: data and status."""
        *parts, status = (bytes(b.view) for b in self._received)
        return b"".join(parts), status[0]

    def settle(self, data: bytes, error: VirtioError | None) -> None:
        """The device has answered."""
        self.done, self._error = True, error
        self._data = data if error is None else b""


class BatchingBlkDriver(BlkDriver):
    """A disk's driver that keeps many requests under way. The synchronous methods want their queue idle.

    An answer that is a failure is in its ticket; the methods raise UsageError for what cannot be asked, NeedsReset,
    PeerError for a device that broke its ring, and TimedOut.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._finished: dict[int, list[Ticket]] = {}

    def reset(self) -> None:
        """What is under way will never be answered; its memory is ours again when the device has confirmed."""
        super().reset()
        self._finished = {}

    # Many at a time

    def submit(self, asks: Iterable[Ask], queue: int = 0) -> list[Ticket]:
        """Makes requests available, all with one publish and at most one notification.

        Returns the tickets of those that queue and memory had room for, the first ones. Raises UsageError, and submits
        none, if one of them cannot be asked or does not fit into one request.
        """
        asked = list(asks)
        rooms = [self._room(ask) for ask in asked]
        tickets = [Ticket(ask, queue) for ask in asked]
        added = self._add(tickets, rooms, queue)
        self.kick(self.queues[queue])
        return tickets[:added]

    def _add(self, tickets: list[Ticket], rooms: list[list[int]], queue: int) -> int:
        lent: list[tuple[Any, Any, Ticket]] = []
        for ticket, room in islice(zip(tickets, rooms, strict=True), self.queues[queue].size):
            before = len(self._lent)
            try:
                lent.append(self._lend(ticket, room))
            except UsageError:
                # No memory for this one, until others have given theirs back.
                self._give_back(self._lent[before:])
                break
        added = self.queues[queue].add_many(lent)
        self._give_back([b for _, _, ticket in lent[added:] for b in ticket.returned()])
        return added

    def _lend(self, ticket: Ticket, room: list[int]) -> tuple[Any, Any, Ticket]:
        ask = ticket.ask
        sent = [self._filled(part) for part in self._parts(ask.request, ask.sector, ask.data)]
        return ticket.lend(sent, [self._borrow(size) for size in (*room, 1)])

    def _room(self, ask: Ask) -> list[int]:
        """The sizes of the parts that the device writes, but for the status. Raises UsageError, BlkUnsupported."""
        if ask.request == BlkRequest.FLUSH:
            self._need(BlkFeature.FLUSH, BlkRequest.FLUSH)
            return []
        if ask.request == BlkRequest.IN:
            self._check_range(ask.sector, ask.sectors)
            self._check_single(ask.sector, ask.sectors)
            return self._cut(ask.sectors * SECTOR)
        if ask.request != BlkRequest.OUT:
            raise UsageError(f"{ask.request.name} is not for batches")
        count, rest = divmod(len(ask.data), SECTOR)
        if rest:
            raise UsageError(f"{len(ask.data)} bytes are not whole sectors")
        self._check_write(ask.sector, count)
        self._check_single(ask.sector, count)
        return []

    def _check_single(self, sector: int, count: int) -> None:
        if len(list(islice(self._pieces(sector, count), 2))) != 1:
            raise UsageError(f"{count} sectors from {sector} are not one request, of at most {self._most} sectors")

    def poll(self, queue: int = 0) -> list[Ticket]:
        """The tickets that have completed since the last look, in the order in which they were used. Never waits."""
        self._settle(self._take_used(self.queues[queue]))
        return self._finished.pop(queue, [])

    def wait(self, count: int = 1, timeout: float | None = None, queue: int = 0) -> list[Ticket]:
        """At least `count` completed tickets, all there are. Raises TimedOut after `timeout` seconds: what has
        completed is still to be had then from `poll`, and what has not keeps its memory until a reset."""
        waiting = self.queues[queue]
        deadline = self.deadline(timeout)
        while (lacking := count - len(self._finished.get(queue, []))) > 0:
            if lacking > waiting.outstanding:
                raise UsageError(f"{lacking} completions are wanted of {waiting.outstanding} requests under way")
            self._settle(self.wait_used(waiting, 1, deadline - time.monotonic()))
        return self.poll(queue)

    def run(self, asks: Iterable[Ask], timeout: float | None = None, queue: int = 0, depth: int = 64) -> list[Ticket]:
        """All of these, at most `depth` at a time under way: their tickets, in the order of `asks`.

        Raises TimedOut when not all have completed after `timeout` seconds.
        """
        deadline = self.deadline(timeout)
        left: Iterator[Ask] = iter(asks)
        tickets: list[Ticket] = []
        under_way = 0
        while True:
            batch = list(islice(left, depth - under_way))
            added = self.submit(batch, queue) if batch else []
            left = chain(batch[len(added) :], left)
            tickets += added
            under_way += len(added)
            if not under_way:
                if batch:
                    raise UsageError(f"{batch[0].request.name} finds no room in queue {queue}")
                return tickets
            under_way -= len(self.wait(1, deadline - time.monotonic(), queue))

    def _settle(self, used: list[tuple[Any, int]]) -> None:
        for ticket, length in used:
            data, status = ticket.answers()
            self._give_back(ticket.returned())
            ticket.settle(data, self._error(ticket, status, length, len(data)))
            self._finished.setdefault(ticket.queue, []).append(ticket)

    def _error(self, ticket: Ticket, status: int, length: int, room: int) -> VirtioError | None:
        try:
            self._judge(ticket.ask.request, status, length, room, ticket.queue)
        except (BlkError, RequestError) as error:
            return error
        return None
