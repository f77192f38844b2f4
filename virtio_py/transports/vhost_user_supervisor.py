"""Processes that serve the same listening socket, and one that replaces those that die (Linux only).

    Supervisor(2, work, log=print).run()        until `stop`, from a signal handler

A front-end can make the file behind its memory shorter after we have mapped it, and whoever then touches what is gone
is killed (SIGBUS). No program can take that back; so each front-end is served by a process that can be spared. The
socket is the supervisor's, and outlives them all: who connects meanwhile waits, and the next process serves them.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Final

from attrs import define, field

from virtio_py.errors import UsageError, VirtioError

GAVE_UP: Final = 2
"""The status of a worker that says itself why it cannot work."""

_SOON: Final = 1.0
"""A worker that dies within so many seconds is replaced only after a while, ever longer: see `_delay`."""
_PATIENCE: Final = 5.0
"""Seconds in which a worker has to end once it is asked to."""


@define
class _Place:
    """A worker's place. process, pidfd: the worker that has it now, or 0 and -1; lifeline: a pipe's end that only the
    supervisor has, so that the worker ends with it; deaths: in a row, each of them soon; due: when to start another."""

    process: int = 0
    pidfd: int = -1
    lifeline: int = -1
    born: float = 0.0
    workers: int = 0
    deaths: int = 0
    due: float | None = 0.0


@define(eq=False)
class Supervisor:
    """Keeps `count` workers at work: `work` is called in each, a process of its own, and returns when there is no more
    to do. SIGTERM ends it; so does the end of this process, however it comes."""

    count: Final[int]
    work: Final[Callable[[], None]]
    log: Final[Callable[[str], None]] = field(kw_only=True)
    _places: list[_Place] = field(init=False)
    _stop: int = field(init=False)
    _status: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        if sys.platform != "linux":
            raise UsageError(f"workers are watched over on Linux (pidfd), not on {sys.platform}")
        if self.count < 1:
            raise UsageError(f"{self.count} workers do nothing")
        self._places = [_Place() for _ in range(self.count)]
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def stop(self) -> None:
        """Makes `run` end. May be called from a signal handler."""
        os.eventfd_write(self._stop, 1)

    def run(self) -> int:
        """Until `stop`, or until no worker has anything to do: 0. GAVE_UP as soon as the first in a place gives up."""
        try:
            while any(place.process or place.due is not None for place in self._places):
                for place in self._places:
                    if place.due is not None and place.due <= monotonic():
                        self._start(place)
                ready = self._wait()
                if self._stop in ready:
                    break
                for place in self._places:
                    if place.pidfd in ready:
                        self._bury(place)
        finally:
            self._end()
        return self._status

    def _wait(self) -> set[int]:
        waiting = select.poll()
        waiting.register(self._stop, select.POLLIN)
        for place in self._places:
            if place.process:
                waiting.register(place.pidfd, select.POLLIN)
        dues = [place.due for place in self._places if place.due is not None]
        timeout = max(0.0, min(dues) - monotonic()) * 1000 + 1 if dues else None
        return {fd for fd, _ in waiting.poll(timeout)}

    def _start(self, place: _Place) -> None:
        theirs, ours = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(ours)
            self._be_worker(theirs)
        os.close(theirs)
        place.process, place.pidfd, place.lifeline = process, os.pidfd_open(process), ours
        place.born, place.due = monotonic(), None
        place.workers += 1

    def _be_worker(self, lifeline: int) -> None:
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            for other in self._places:
                if other.process:
                    os.close(other.lifeline)
            # When the supervisor's end is closed, by whatever ends the supervisor, the kernel sends us SIGTERM.
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGTERM)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
            self.work()
            status = 0
        except (VirtioError, OSError) as error:
            self.log(str(error))
            status = GAVE_UP
        finally:
            # Nothing of the supervisor's is to be unwound here; what is lost without that is what went wrong.
            if status == 1:
                traceback.print_exc()
            os._exit(status)

    def _bury(self, place: _Place) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(place.process, 0)[1])
        process, lived = place.process, monotonic() - place.born
        self._clear(place)
        if code == 0:
            return
        if code == GAVE_UP and place.workers == 1:
            self._status = GAVE_UP
            self.stop()
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has ended with status {code}"
        self.log(f"worker {process} {how}; another takes its place")
        place.deaths = place.deaths + 1 if lived < _SOON else 0
        place.due = monotonic() + _delay(place.deaths)

    @staticmethod
    def _clear(place: _Place) -> None:
        os.close(place.pidfd)
        os.close(place.lifeline)
        place.process, place.pidfd, place.lifeline = 0, -1, -1

    def _end(self) -> None:
        """Asks all workers to end, and sees to it."""
        deadline = monotonic() + _PATIENCE
        here = [place for place in self._places if place.process]
        for place in here:
            signal.pidfd_send_signal(place.pidfd, signal.SIGTERM)
        for place in here:
            poll = select.poll()
            poll.register(place.pidfd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
                signal.pidfd_send_signal(place.pidfd, signal.SIGKILL)
            os.waitpid(place.process, 0)
            self._clear(place)
        os.close(self._stop)


def _delay(deaths: int) -> float:
    """Seconds to wait after so many deaths in a row: a front-end that kills what serves it has to be served slowly."""
    return min(0.05 * 2**deaths, 2.0) if deaths else 0.0
