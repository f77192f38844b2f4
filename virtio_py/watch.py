"""What stands behind a device and happens by itself: descriptors that become ready, and whom to tell.

A device names them in `Device.watch`, anew before every wait; a carrier's loop waits for them along with its own
descriptors (`wait_ready`), and passes those that are ready to `DeviceEnd.attend`. So a device that has no room stops
reading simply by naming its descriptor no more, and nothing has to be registered or taken back.

A time is waited for in the same way, by a watch with a Timer. Devices read no clock: the loop does, when it waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from attrs import define


@define(eq=False)
class Timer:
    """A time of `seconds`, from the first wait on; `due`, in the seconds of time.monotonic, is set there."""

    seconds: float
    due: float | None = None


class Watch(NamedTuple):
    """A descriptor that a device waits for, of any kind that poll(2) takes; or -1, and a timer.

    events: the mask of `select.POLLIN` and its like; errors and hang-ups are always reported, hence must be dealt with
    ready:  called when one of them has come; it must neither wait nor leave as it was what it was called for
    """

    fd: int
    events: int
    ready: Callable[[], object]
    timer: Timer | None = None


def wait_ready(watches: Sequence[Watch], timeout: float | None, *readable: int) -> list[Watch]:
    """Waits until a watch or one of the descriptors `readable` is ready, `timeout` seconds at most (None: for ever).

    Returns the watches that are ready, and those whose time is over. poll(2), not epoll: nothing survives the call, so
    that a descriptor which was closed and came back as another file cannot be confused with the first.
    """
    from select import POLLIN, poll

    waiting = poll()
    wanted = dict.fromkeys(readable, POLLIN)
    for watch in watches:
        if watch.timer is None:
            wanted[watch.fd] = wanted.get(watch.fd, 0) | watch.events
    for fd, events in wanted.items():
        waiting.register(fd, events)
    timers = [watch.timer for watch in watches if watch.timer is not None]
    wait = _until_first(timers, timeout) if timers else timeout
    ready = {fd for fd, _ in waiting.poll(None if wait is None else wait * 1000)}
    now = monotonic() if timers else 0.0
    return [watch for watch in watches if (_over(watch.timer, now) if watch.timer else watch.fd in ready)]


def _until_first(timers: Sequence[Timer], timeout: float | None) -> float:
    """How many seconds to wait for the first of some timers, which run from now on if they did not before."""
    now = monotonic()
    for timer in timers:
        timer.due = now + timer.seconds if timer.due is None else timer.due
    first = max(0.0, min(timer.due for timer in timers if timer.due is not None) - now)
    return first if timeout is None else min(first, timeout)


def _over(timer: Timer, now: float) -> bool:
    return timer.due is not None and timer.due <= now
