"""Runs both halves of a queue against each other: on two threads, in two processes, or by turns in one thread.

A half runs wholly in one kernel. Compiled, it holds no lock of the interpreter's, so that two threads of one process
are as good as two processes; interpreted, two threads would take turns every few milliseconds, at the interpreter's
whim, so that a kernel does so batch by batch instead.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from time import perf_counter
from typing import Any, Final, Protocol

from attrs import asdict, define, field, frozen

import virtio_py
from virtio_py.errors import Disconnected, UsageError
from virtio_py.rings.faults import FAULTS, fault
from virtio_py.rings.kernels import common as k
from virtio_py.testing.machine import pin
from virtio_py.testing.ring_cases import Case
from virtio_py.testing.ring_halves import DeviceHalf, DriverHalf, Ground, fill_batch, make_device, make_driver

PEER_MODULE: Final = "virtio_py.testing.ring_peer"


@frozen
class Run:
    """How a run went: the driver's time in seconds, and either half's counters by their index."""

    seconds: float
    driver: Sequence[int]
    device: Sequence[int]


class Exchange(Protocol):
    """A queue in use. `note` says what is not as one would expect from the case."""

    note: str

    def run(self, total: int) -> Run:
        """Moves `total` buffers from the driver to the device and back. Raises PeerError, Disconnected."""
        ...


@define(eq=False)
class Side:
    """What one thread does. prepare: before the clock starts; run: the kernel, and its code; stop: ends it early."""

    prepare: Callable[[], None]
    run: Callable[[], int]
    stop: Callable[[], None]
    seconds: float = field(default=0.0, init=False)


def side_by_side(sides: Sequence[Side], timeout: float | None = None) -> list[int]:
    """Runs each on a thread of its own, from the same moment on; their codes. One that fails stops the others."""
    barrier = Barrier(len(sides))

    def work(side: Side) -> int:
        code = -1
        try:
            side.prepare()
            barrier.wait()
            start = perf_counter()
            code = side.run()
            side.seconds = perf_counter() - start
        except BrokenBarrierError:
            pass  # The other side never got here: its error is the one to tell.
        finally:
            if code:
                barrier.abort()
                _stop(sides)
        return code

    with ThreadPoolExecutor(len(sides)) as pool:
        futures = [pool.submit(work, side) for side in sides]
        try:
            _, late = wait(futures, timeout)
        except BaseException:
            # Ctrl-C: the pool waits for its threads, and they for each other.
            _stop(sides)
            raise
        if late:
            _stop(sides)
        return [future.result() for future in futures]


def _stop(sides: Sequence[Side]) -> None:
    for side in sides:
        side.stop()


def local_side(kernel: Callable[[], int], counters: k.Words, ground: Ground, processor: int | None) -> Side:
    """A kernel of this process, on one processor."""

    def stop() -> None:
        counters[k.STOP] = 1
        ground.wake()

    return Side(lambda: pin(processor), kernel, stop)


def clear(counters: k.Words) -> None:
    """Sets all counters to 0, and STOP."""
    for n in range(len(counters)):
        counters[n] = 0


def raise_for(codes: Sequence[int], driver: DriverHalf) -> None:
    """Raises what a run's codes stand for, if they are not all 0."""
    bad = [code for code in codes if code not in (0, k.STOPPED)]
    if bad and bad[0] in FAULTS:
        raise fault(bad[0], driver.queue._state, driver.queue.layout, 0)
    if any(codes):
        raise UsageError(f"the halves ended with codes {list(codes)}")


@define(eq=False)
class Threads:
    """Two threads of this process on two processors."""

    case: Case
    ground: Ground
    processors: tuple[int, int] | None
    driver: DriverHalf = field(init=False)
    device: DeviceHalf = field(init=False)
    note: str = field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        self.driver = make_driver(self.case, self.ground)
        fill_batch(self.case, self.driver)
        self.device = make_device(self.case, self.ground, self.driver.areas)

    def run(self, total: int) -> Run:
        """As Exchange."""
        here, there = self.processors or (None, None)
        tail = (total, self.case.batch, *self.ground.signals(self.case))
        driver = _side(self.case, "exercise_driver", self.driver, self.ground, here, tail)
        device = _side(self.case, "exercise_device", self.device, self.ground, there, tail)
        raise_for(side_by_side([driver, device]), self.driver)
        return Run(driver.seconds, list(self.driver.counters), list(self.device.counters))


def _side(
    case: Case, kernel: str, half: DriverHalf | DeviceHalf, ground: Ground, cpu: int | None, tail: tuple[int, ...]
) -> Side:
    function = half.queue.engine.kernels[f"{case.layout}_{kernel}"]
    clear(half.counters)
    return local_side(lambda: int(function(*half.arguments, half.counters, *tail)), half.counters, ground, cpu)


@define(eq=False)
class Turns:
    """Both halves in this thread, a batch there and back at a time."""

    case: Case
    ground: Ground
    note: str
    driver: DriverHalf = field(init=False)
    device: DeviceHalf = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.driver = make_driver(self.case, self.ground)
        fill_batch(self.case, self.driver)
        self.device = make_device(self.case, self.ground, self.driver.areas)

    def run(self, total: int) -> Run:
        """As Exchange."""
        driver, device = self.driver, self.device
        both = driver.queue.engine.kernels[f"{self.case.layout}_exercise_both"]
        clear(driver.counters)
        clear(device.counters)
        halves = (*driver.arguments, driver.counters, *device.arguments, device.counters)
        start = perf_counter()
        code = both(*halves, total, self.case.batch, *self.ground.signals(self.case))
        seconds = perf_counter() - start
        raise_for([code], driver)
        return Run(seconds, list(driver.counters), list(device.counters))


@define(eq=False)
class PeerProcess:
    """Another process on the same ground, which is the device of one queue after the other.

    Requests and answers are lines of JSON; it ends when its standard input does.
    """

    ground: Ground
    processor: int | None
    process: subprocess.Popen[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        numbers = [*self.ground.descriptors, -1 if self.processor is None else self.processor]
        self.process = subprocess.Popen(
            [sys.executable, "-m", PEER_MODULE, *map(str, numbers)],
            # Where our own package is found, whatever put it on the path.
            cwd=Path(virtio_py.__file__).parent.parent,
            pass_fds=self.ground.descriptors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Sends a request; its answer. Raises Disconnected when the process has ended."""
        assert self.process.stdin is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError as error:
            raise Disconnected("the device's process has ended") from error
        return self.answer()

    def answer(self) -> Any:
        """The next answer. Raises Disconnected when the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Disconnected("the device's process has ended")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # It has ended already, with a request unread.
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@define(eq=False)
class Processes:
    """The driver in this process, the device in another."""

    case: Case
    ground: Ground
    processor: int | None
    peer: PeerProcess
    driver: DriverHalf = field(init=False)
    note: str = field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        self.driver = make_driver(self.case, self.ground)
        fill_batch(self.case, self.driver)
        self.peer.ask(case=asdict(self.case), areas=self.driver.areas)

    def run(self, total: int) -> Run:
        """As Exchange."""
        tail = (total, self.case.batch, *self.ground.signals(self.case))
        driver = _side(self.case, "exercise_driver", self.driver, self.ground, self.processor, tail)
        counters: list[int] = []

        def follow() -> int:
            answer = self.peer.answer()
            counters.extend(answer["counters"])
            return int(answer["code"])

        # Its first answer says that it is about to begin.
        device = Side(lambda: self.peer.ask(total=total), follow, self.peer.process.kill)
        raise_for(side_by_side([driver, device]), self.driver)
        return Run(driver.seconds, list(self.driver.counters), counters)
