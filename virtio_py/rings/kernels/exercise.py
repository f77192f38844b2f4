"""Both halves of a ring kept busy: what a benchmark and a stress run, each half wholly in one kernel.

Written once for both layouts: in this module's own namespace `add` is `split_add`, and so on; the packed kernels are
the same code objects in a namespace where it is `packed_add`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import FunctionType
from typing import Any

from virtio_py.rings.kernels import packed_device, packed_driver, split_device, split_driver
from virtio_py.rings.kernels.common import BUFFER, LENGTH, WRITABLE, Batch, Memory, Words, kernel, pause, twin

# What a half reports of a run, by index into its counters.
MOVED, NOTIFICATIONS, SLEEPS, COUNTERS = 0, 1, 2, 3

add, publish, take_used = split_driver.split_add, split_driver.split_publish, split_driver.split_take_used
available_notification_due = split_driver.split_available_notification_due
driver_notifications = split_driver.split_driver_notifications
take, complete = split_device.split_take, split_device.split_complete
used_notification_due = split_device.split_used_notification_due
device_notifications = split_device.split_device_notifications

_PACKED: dict[str, Callable[..., Any]] = {
    "add": packed_driver.packed_add,
    "publish": packed_driver.packed_publish,
    "take_used": packed_driver.packed_take_used,
    "available_notification_due": packed_driver.packed_available_notification_due,
    "driver_notifications": packed_driver.packed_driver_notifications,
    "take": packed_device.packed_take,
    "complete": packed_device.packed_complete,
    "used_notification_due": packed_device.packed_used_notification_due,
    "device_notifications": packed_device.packed_device_notifications,
}


def for_each_layout(function: Any) -> Any:
    """Registers a loop as a kernel of each layout: one code object, two namespaces."""
    for layout, steps in (("split", {}), ("packed", _PACKED)):
        made = FunctionType(function.__code__, {**function.__globals__, **steps}, f"{layout}_{function.__name__}")
        made.__module__ = function.__module__
        kernel(made)
    return function


@twin
def signal(descriptor: int) -> None:
    """Wakes whoever waits on an eventfd."""
    os.eventfd_write(descriptor, 1)


@twin
def await_signal(descriptor: int) -> None:
    """Sleeps until an eventfd is signalled."""
    os.eventfd_read(descriptor)


@for_each_layout
def exercise_driver(
    ring: Any,
    state: Words,
    shadow: Words,
    memory: Memory,
    batch: Batch,
    done: Batch,
    counters: Words,
    total: int,
    at_once: int,
    kick: int,
    call: int,
) -> int:
    """Sends `total` buffers in batches of `at_once`, described in `batch`, and takes them all back. 0, or a fault.

    kick, call: eventfds to signal the device and to sleep on; below 0 the driver polls.
    """
    sent, received = 0, 0
    sleeps = kick >= 0
    driver_notifications(ring, state, sleeps)
    while received < total:
        if sent < total:
            added = add(ring, state, shadow, memory, batch, min(at_once, total - sent))
            if added:
                sent += added
                publish(ring, state)
                if available_notification_due(ring, state) and sleeps:
                    counters[NOTIFICATIONS] += 1
                    signal(kick)
        got = take_used(ring, state, shadow, done, at_once)
        if got < 0:
            return -got
        received += got
        if got == 0:
            if not sleeps:
                pause()
            elif not driver_notifications(ring, state, True):
                counters[SLEEPS] += 1
                await_signal(call)
    counters[MOVED] = received
    return 0


@for_each_layout
def exercise_device(
    ring: Any,
    state: Words,
    shadow: Words,
    memory: Memory,
    batch: Batch,
    counters: Words,
    total: int,
    at_once: int,
    kick: int,
    call: int,
) -> int:
    """Takes and completes `total` buffers, up to `at_once` in a batch, written in full. 0, or a fault."""
    moved = 0
    sleeps = kick >= 0
    device_notifications(ring, state, sleeps)
    while moved < total:
        got = take(ring, state, shadow, memory, batch, at_once)
        if got < 0:
            return -got
        if got:
            for n in range(got):
                batch.buffers[n * BUFFER + LENGTH] = batch.buffers[n * BUFFER + WRITABLE]
            complete(ring, state, shadow, batch, got)
            moved += got
            if used_notification_due(ring, state) and sleeps:
                counters[NOTIFICATIONS] += 1
                signal(call)
        elif not sleeps:
            pause()
        elif not device_notifications(ring, state, True):
            counters[SLEEPS] += 1
            await_signal(kick)
    counters[MOVED] = moved
    return 0
