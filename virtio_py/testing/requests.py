"""Requests of each device as data: which method of our driver to call, and what with; and what became of them.

    for call in data.draw(sequences(DeviceId.BLOCK)):
        outcome = call.on(driver)

A call is a named tuple of plain values, so that a failing sequence can be printed and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from virtio_py.driver import Driver
from virtio_py.errors import UsageError, VirtioError
from virtio_py.spec import DeviceId

SECTORS: Final = 64
"""The capacity, in sectors or blocks of 512 bytes, that the sequences for disks reach to, and past."""


class Call(NamedTuple):
    """One request: a method of the device's driver, or `port.write` of what its method `port` returns, and the
    arguments by position."""

    method: str
    arguments: tuple[Any, ...] = ()

    def on(self, driver: Driver) -> Any:
        """What the driver returns, or what it raised if that is an error of this package's: to be compared."""
        try:
            target: Any = driver
            *path, last = self.method.split(".")
            for name in path:
                target = getattr(target, name)()
            return getattr(target, last)(*self.arguments)
        except VirtioError as error:
            return type(error).__name__, str(error)


Calls = st.SearchStrategy[Call]


def _calls(method: str, *arguments: st.SearchStrategy[Any]) -> Calls:
    return st.tuples(*arguments).map(lambda drawn: Call(method, drawn))


def _places(count: int) -> tuple[st.SearchStrategy[int], st.SearchStrategy[int]]:
    """A first sector and a number of them; now and then they reach past the end."""
    return st.one_of(st.just(0), st.integers(0, count + 1)), st.integers(1, 8)


def _blocks(max_blocks: int = 4) -> st.SearchStrategy[bytes]:
    return st.builds(lambda seed, n: bytes([seed]) * (512 * n), st.integers(0, 255), st.integers(1, max_blocks))


def blk_calls(sectors: int = SECTORS) -> Calls:
    """Reads, writes and flushes of a disk of so many sectors, and the string that names it."""
    start, count = _places(sectors)
    return st.one_of(_calls("write", start, _blocks()), _calls("read", start, count), _calls("flush"), _calls("get_id"))


def scsi_calls(blocks: int = SECTORS) -> Calls:
    """Commands to the unit at target 0, LUN 0, rarely to one that is not there."""
    target, lun = st.sampled_from([0, 0, 0, 1]), st.sampled_from([0, 0, 0, 5])
    start, count = _places(blocks)
    return st.one_of(
        _calls("write", target, lun, start, _blocks()),
        _calls("read", target, lun, start, count),
        _calls("test_unit_ready", target, lun),
        _calls("inquiry", target, lun),
        _calls("capacity", target, lun),
        _calls("synchronize_cache", target, lun),
    )


def net_calls() -> Calls:
    """Frames of 60 to 1514 bytes between stations of our own making, and looks at what came."""
    frames = st.builds(
        lambda seed, size: bytes([2, 0, 0, 0, 0, seed, 2, 0, 0, 0, 0, 1, 0x88, 0xB5]) + bytes([seed]) * (size - 14),
        st.integers(0, 255),
        st.sampled_from([60, 61, 128, 1513, 1514]),
    )
    return st.one_of(_calls("send", frames), _calls("flush"), _calls("receive_all"))


def console_calls() -> Calls:
    """Bytes to port 0, the emergency write, which needs no port, and looks at what the device has said."""
    text = st.binary(min_size=1, max_size=64)
    return st.one_of(
        _calls("port.write", text),
        _calls("port.flush"),
        _calls("emergency_write", text.map(lambda data: data[:4])),
        _calls("poll"),
    )


def entropy_calls() -> Calls:
    """Reads of some random bytes, of more than fit one buffer as well."""
    return _calls("read", st.sampled_from([1, 2, 15, 4095, 4096, 4097]))


CALLS: Final[Mapping[DeviceId, Callable[[], Calls]]] = {
    DeviceId.BLOCK: blk_calls,
    DeviceId.SCSI: scsi_calls,
    DeviceId.NET: net_calls,
    DeviceId.CONSOLE: console_calls,
    DeviceId.ENTROPY: entropy_calls,
}


def sequences(device: DeviceId, max_size: int = 20) -> st.SearchStrategy[list[Call]]:
    """Sequences of requests to a device type. Raises UsageError for one that this package has no driver for."""
    if device not in CALLS:
        raise UsageError(f"there are no requests for a device of type {device}")
    return st.lists(CALLS[device](), max_size=max_size)
