"""Both halves of a ring kept busy: what a benchmark runs, each half wholly in one kernel, or both in one by turns.

Written once for both layouts: in this module's own namespace `add` is `split_add`, and so on; the packed kernels are
the same code objects in a namespace where it is `packed_add`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import FunctionType
from typing import Any

from virtio_py.rings.kernels import packed_device, packed_driver, split_device, split_driver
from virtio_py.rings.kernels.common import (
    BUFFER,
    LENGTH,
    MOVED,
    NOTIFICATIONS,
    SLEEPS,
    STOP,
    STOPPED,
    WRITABLE,
    Batch,
    Memory,
    Words,
    kernel,
    pause,
    twin,
)

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
            if counters[STOP]:
                return STOPPED
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
        elif counters[STOP]:
            return STOPPED
        elif not sleeps:
            pause()
        elif not device_notifications(ring, state, True):
            counters[SLEEPS] += 1
            await_signal(kick)
    counters[MOVED] = moved
    return 0


@for_each_layout
def exercise_both(
    ring: Any,
    state: Words,
    shadow: Words,
    memory: Memory,
    batch: Batch,
    done: Batch,
    counters: Words,
    device_ring: Any,
    device_state: Words,
    device_shadow: Words,
    device_memory: Memory,
    device_batch: Batch,
    device_counters: Words,
    total: int,
    at_once: int,
    kick: int,
    call: int,
) -> int:
    """Both halves by turns in one thread: a batch there and back, then the next one. 0, or a fault.

    What the loops cost without a second core, and the only way to run them without one. Each half sleeps whenever it
    has nothing to do, and so sleeps as often as two could.
    """
    moved = 0
    sleeps = kick >= 0
    driver_notifications(ring, state, sleeps)
    device_notifications(device_ring, device_state, sleeps)
    while moved < total:
        add(ring, state, shadow, memory, batch, min(at_once, total - moved))
        publish(ring, state)
        if available_notification_due(ring, state) and sleeps:
            counters[NOTIFICATIONS] += 1
            signal(kick)
            await_signal(kick)
        got = take(device_ring, device_state, device_shadow, device_memory, device_batch, at_once)
        if got < 0:
            return -got
        for n in range(got):
            device_batch.buffers[n * BUFFER + LENGTH] = device_batch.buffers[n * BUFFER + WRITABLE]
        complete(device_ring, device_state, device_shadow, device_batch, got)
        if used_notification_due(device_ring, device_state) and sleeps:
            device_counters[NOTIFICATIONS] += 1
            signal(call)
            await_signal(call)
        if sleeps:
            device_notifications(device_ring, device_state, True)
        got = take_used(ring, state, shadow, done, at_once)
        if got < 0:
            return -got
        if sleeps:
            driver_notifications(ring, state, True)
        moved += got
    counters[MOVED] = device_counters[MOVED] = moved
    return 0
