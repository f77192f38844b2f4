"""What stands behind a device and happens by itself: descriptors that become ready, and whom to tell.

A device names them in `Device.watch`, anew before every wait; a carrier's loop waits for them along with its own
descriptors (`wait_ready`), and passes those that are ready to `DeviceEnd.attend`. So a device that has no room stops
reading simply by naming its descriptor no more, and nothing has to be registered or taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Watch(NamedTuple):
    """A descriptor that a device waits for. It may be of any kind that poll(2) takes.

    events: the mask of `select.POLLIN` and its like; errors and hang-ups are always reported, hence must be dealt with
    ready:  called when one of them has come; it must neither wait nor leave as it was what it was called for
    """

    fd: int
    events: int
    ready: Callable[[], object]


def wait_ready(watches: Sequence[Watch], timeout: float | None, *readable: int) -> list[Watch]:
    """Waits until a watch or one of the descriptors `readable` is ready, `timeout` seconds at most (None: for ever).

    Returns the watches that are ready. poll(2), not epoll: nothing survives the call, so that a descriptor which was
    closed and came back as another file cannot be confused with the first.
    """
    from select import POLLIN, poll

    waiting = poll()
    wanted = dict.fromkeys(readable, POLLIN)
    for watch in watches:
        wanted[watch.fd] = wanted.get(watch.fd, 0) | watch.events
    for fd, events in wanted.items():
        waiting.register(fd, events)
    ready = {fd for fd, _ in waiting.poll(None if timeout is None else timeout * 1000)}
    return [watch for watch in watches if watch.fd in ready]
