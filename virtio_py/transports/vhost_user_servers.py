"""Several vhost-user back-ends in one loop: devices that talk to each other, such as those on one switch (Linux only).

with Servers({"/run/a.sock": device_a, "/run/b.sock": device_b}, log=print) as servers:
    servers.serve()                       until `servers.stop()`, from a signal handler or another thread
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from select import POLLIN
from typing import Self

from attrs import define, field

from virtio_py.device import Device
from virtio_py.errors import Disconnected, PeerError
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.status import RING_FEATURES
from virtio_py.transports.vhost_user_client import Client
from virtio_py.transports.vhost_user_server import listening
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES
from virtio_py.watch import Watch, wait_ready


@define(eq=False)
class _Place:
    """A device, where its front-ends come to, and the one that is there."""

    device: Device
    listener: socket.socket
    client: Client | None = None
    wait: float | None = None


@define(eq=False)
class Servers:
    """Serves each device to front-ends, one at a time for each.

    devices: by the paths of the sockets to listen at;  watch: what else the loop waits for, asked before every wait
    Entering raises UsageError, OSError as `listening` does.
    """

    devices: Mapping[str, Device]
    log: Callable[[str], None] = field(kw_only=True)
    watch: Callable[[], Sequence[Watch]] = field(default=lambda: (), kw_only=True)
    engine: Engine = field(default=REFERENCE, kw_only=True)
    protocol_features: int = field(default=PROTOCOL_FEATURES, kw_only=True)
    ring_features: int = field(default=RING_FEATURES, kw_only=True)
    sealed: bool = field(default=False, kw_only=True)
    _stop: int = field(init=False, default=-1)
    _places: list[_Place] = field(init=False, factory=list)
    _open: contextlib.ExitStack = field(init=False, factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._stop)
            self._places = [_Place(d, stack.enter_context(listening(path))) for path, d in self.devices.items()]
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for place in self._places:
            self._end(place)
        self._open.close()

    def stop(self) -> None:
        """Makes `serve` return. May be called from a signal handler."""
        os.eventfd_write(self._stop, 1)

    def serve(self) -> None:
        """Serves until `stop`."""
        stopped = [False]
        stop = Watch(self._stop, POLLIN, lambda: stopped.append(True))
        while not stopped[-1]:
            for watch in wait_ready(self._watches(stop), self._timeout()):
                watch.ready()
            for place in self._places:
                self._turn(place)

    def _watches(self, stop: Watch) -> list[Watch]:
        watches = [stop, *self.watch()]
        for place in self._places:
            if place.client is None:
                watches.append(Watch(place.listener.fileno(), POLLIN, partial(self._accept, place)))
            else:
                # Whatever it is that is ready: the client's turn finds it.
                watches.append(Watch(place.client.fileno(), POLLIN, _nothing))
                watches += [watch._replace(ready=_nothing) for watch in place.device.watch()]
        return watches

    def _timeout(self) -> float | None:
        waits = [place.wait for place in self._places if place.client is not None and place.wait is not None]
        return min(waits, default=None)

    def _accept(self, place: _Place) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            place.client = Client(
                place.listener.accept()[0],
                self._stop,
                place.device,
                self.log,
                engine=self.engine,
                protocol_features=self.protocol_features,
                ring_features=self.ring_features,
                sealed=self.sealed,
            )

    def _turn(self, place: _Place) -> None:
        if place.client is None:
            return
        try:
            place.wait = place.client.turn()
            return
        except PeerError as error:
            self.log(f"hung up on the front-end: {error}")
        except Disconnected as error:
            self.log(str(error))
        self._end(place)

    @staticmethod
    def _end(place: _Place) -> None:
        client, place.client = place.client, None
        if client is not None:
            client.end()


def _nothing() -> None:
    return None
