"""Bits in memory that several processes set and clear at the same time: each change is one atomic operation (Linux).

Python has none, and `bits[n] |= 1` loses what another process sets between the load and the store. The kernel has: the
futex call FUTEX_WAKE_OP reads a word, changes it and stores it as one operation; the waking it also does finds nobody
here. A second gain: a page that is gone, since the file's owner made it shorter, is EFAULT, and no SIGBUS.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from typing import Final

from attrs import Factory, field, frozen

from virtio_py.errors import MessageError, UsageError
from virtio_py.memory import DirtyLog

WORD: Final = 32
"""Bits of a futex."""

_SYS_FUTEX: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_WAKE_OP: Final = 5 | 128  # FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG: whom it would wake is looked for in this process
_OR, _ANDN, _SHIFT = 2, 3, 8  # FUTEX_OP_*; with the last the operand is 1 << operand
_ALL: Final = 0xFFF  # an operand has 12 bits and a sign: this is -1


def _futex() -> Callable[..., int]:
    if sys.platform != "linux" or platform.machine() not in _SYS_FUTEX:
        raise UsageError(f"no atomic operations on memory are known for {sys.platform} on {platform.machine()}")
    call = ctypes.CDLL(None, use_errno=True).syscall
    pointer = ctypes.c_void_p
    call.argtypes = [ctypes.c_long, pointer, ctypes.c_int, ctypes.c_int, pointer, pointer, ctypes.c_uint32]
    call.restype = ctypes.c_long
    number = _SYS_FUTEX[platform.machine()]
    return lambda address, operation: int(call(number, address, _WAKE_OP, 0, None, address, operation))


@frozen
class SharedBits:
    """A bitmap in shared memory: bit n is bit n % 8 of byte n // 8. Raises UsageError where the system has no such
    operations, MessageError for memory that is gone."""

    view: memoryview = field(repr=False)
    _base: int = field(init=False, repr=False)
    _change: Callable[[int, int], int] = field(init=False, repr=False, factory=_futex)

    @_base.default
    def _address(self) -> int:
        # The ctypes object is not kept: it would hold the mapping open beyond the view.
        return ctypes.addressof((ctypes.c_char * len(self.view)).from_buffer(self.view))

    def set(self, first: int, last: int) -> None:
        """Sets the bits from `first` to `last`, both included; all are in the view."""
        self._each(_OR, first, last)

    def clear(self, first: int, last: int) -> None:
        """Clears them."""
        self._each(_ANDN, first, last)

    def _each(self, operation: int, first: int, last: int) -> None:
        # By words of the machine's, whatever the bitmap's first byte is aligned to. The last one may reach behind the
        # view, and never behind its page.
        start = self._base % (WORD // 8) * 8
        at, end = first + start, last + start + 1
        while at < end:
            whole = at % WORD == 0 and at + WORD <= end
            self._word(operation, at, whole)
            at += WORD if whole else 1

    def _word(self, operation: int, bit: int, whole: bool) -> None:
        index, place = divmod(bit, WORD)
        if sys.byteorder == "big":
            place ^= WORD - 8
        encoded = operation << 28 | _ALL << 12 if whole else (operation | _SHIFT) << 28 | place << 12
        if self._change(self._base - self._base % (WORD // 8) + index * (WORD // 8), encoded):
            raise MessageError(f"the bitmap's memory is gone: {os.strerror(ctypes.get_errno())}")


@frozen
class SharedDirtyLog(DirtyLog):
    """A dirty log that several devices, and whoever copies the pages, use at the same time."""

    _shared: SharedBits = field(
        init=False, repr=False, default=Factory(lambda self: SharedBits(self.bits), takes_self=True)
    )

    def set(self, first: int, last: int) -> None:
        """See DirtyLog."""
        self._shared.set(first, last)
