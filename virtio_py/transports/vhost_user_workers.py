"""Threads that serve the rings of one device side by side, and the gate that stops them all.

Each ring belongs to one thread, so that a ring is never served twice at once. Whatever concerns more than a ring (a
message, a descriptor behind the device, a fault) is done by the thread that listens to the front-end, behind a closed
gate (`quiet`): then no ring is being served, and none begins to be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Final

from virtio_py.errors import PeerError

Serve = Callable[[int], bool]
"""Serves a ring, one budget; whether something is left. Raises PeerError."""

Failed = Callable[[int, PeerError | None], None]
"""Is told of a ring whose serving has raised an error; None: one that is no peer's, and has ended the thread. Called
by the thread that served it: only passes it on."""


class Workers:
    """`count` threads. One thread at a time may call."""

    def __init__(self, count: int, serve: Serve, failed: Failed) -> None:
        self._serve: Final = serve
        self._failed: Final = failed
        self._gate: Final = Condition()
        self._closed = False
        self._busy = 0
        self._due: set[int] = set()
        self._inboxes: Final[list[SimpleQueue[int | None]]] = [SimpleQueue() for _ in range(count)]
        self._threads: Final = [Thread(target=self._work, args=[inbox], daemon=True) for inbox in self._inboxes]
        for thread in self._threads:
            thread.start()

    def submit(self, index: int) -> None:
        """The ring is to be served, after those that its thread has before it."""
        with self._gate:
            # What is due already need not be due twice; what is being served is looked at once more.
            if index in self._due:
                return
            self._due.add(index)
        self._inboxes[index % len(self._inboxes)].put(index)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Within, no ring is being served. Waits for those that are, one budget at the most."""
        with self._gate:
            # Closed first: a thread that always has something to do would keep us out for ever.
            self._closed = True
            self._gate.wait_for(lambda: not self._busy)
        try:
            yield
        finally:
            with self._gate:
                self._closed = False
                self._gate.notify_all()

    def close(self) -> None:
        """Ends the threads, and waits for that."""
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, inbox: SimpleQueue[int | None]) -> None:
        while (index := inbox.get()) is not None:
            sound = False
            try:
                if self._serve_once(index):
                    self.submit(index)
                sound = True
            finally:
                if not sound:
                    self._failed(index, None)

    def _serve_once(self, index: int) -> bool:
        with self._gate:
            self._gate.wait_for(lambda: not self._closed)
            self._due.discard(index)
            self._busy += 1
        try:
            return self._serve(index)
        except PeerError as error:
            self._failed(index, error)
            return False
        finally:
            with self._gate:
                self._busy -= 1
                self._gate.notify_all()
