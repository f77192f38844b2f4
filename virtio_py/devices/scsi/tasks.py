"""The tasks of a host that are not finished yet, and the task management functions that wait for some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field

from virtio_py.devices.scsi.layout import ScsiResponse
from virtio_py.devices.scsi.requests import Request
from virtio_py.devices.scsi.task import Outcome, Task
from virtio_py.rings.chain import Chain


@define(eq=False)
class TaskSet:
    """Requests in the order in which they came. `settled` is called when one has been answered."""

    settled: Callable[[], None]
    _active: list[Request] = field(factory=list, init=False)
    _held: list[tuple[Chain, list[Request]]] = field(factory=list, init=False)

    @property
    def empty(self) -> bool:
        """Whether nothing is under way."""
        return not self._active

    def add(self, request: Request) -> None:
        """A request whose task takes longer. Its chain is used when it is finished."""
        request.chain.defer()
        self._active.append(request)

    def of(self, target: int, lun: int | None = None) -> list[Request]:
        """The tasks of a unit, or of a whole target, oldest first."""
        return [
            request
            for request in self._active
            if request.address is not None and request.address.target == target and lun in (None, request.address.lun)
        ]

    def of_queue(self, index: int) -> list[Request]:
        """The tasks that came by one queue, oldest first."""
        return [request for request in self._active if request.chain.queue.index == index]

    # Their ends

    def finish(self, task: Task, outcome: Outcome) -> None:
        """A unit has carried out a task. One that is not here any more was ended by somebody else."""
        for request in self._active:
            if request.task is task:
                self._answer(request, outcome)
                return

    def end(self, requests: Iterable[Request], response: ScsiResponse) -> None:
        """Ends tasks with a response; their units touch their buffers no more."""
        for request in requests:
            _abort(request)
            self._answer(request, Outcome(response=response))

    def drop(self, requests: Iterable[Request] | None = None) -> None:
        """Aborts tasks, all by default, whose chains belong to the driver again."""
        if requests is None:
            self._held.clear()
        for request in list(self._active if requests is None else requests):
            _abort(request)
            self._forget(request)

    def _answer(self, request: Request, outcome: Outcome) -> None:
        request.respond(outcome)
        request.chain.complete()
        self._forget(request)
        self.settled()

    def _forget(self, request: Request) -> None:
        self._active.remove(request)
        for held in list(self._held):
            chain, waiting = held
            if request in waiting:
                waiting.remove(request)
            if not waiting:
                self._held.remove(held)
                chain.complete()

    # Functions that wait

    def before(self, requests: list[Request]) -> list[Request]:
        """The tasks that came by the same queues as these and before the last of them, and are not among them."""
        last = {request.chain.queue.index: n for n, request in enumerate(self._active) if request in requests}
        return [
            request
            for n, request in enumerate(self._active)
            if request not in requests and n < last.get(request.chain.queue.index, 0)
        ]

    def hold(self, chain: Chain, waiting: list[Request]) -> None:
        """Keeps a function's chain until these tasks are over."""
        if waiting:
            chain.defer()
            self._held.append((chain, waiting))

    def release(self, index: int) -> None:
        """The chains of a queue that was reset belong to the driver again."""
        self._held = [(chain, waiting) for chain, waiting in self._held if chain.queue.index != index]


def _abort(request: Request) -> None:
    if request.unit is not None and request.task is not None:
        request.unit.abort(request.task)
