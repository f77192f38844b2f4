"""Bits in memory that others change at the same time."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtio_py.errors import MessageError
from virtio_py.transports.shared_bits import SharedBits, SharedDirtyLog
from virtio_py.transports.vhost_user_dirty import DirtyBitmap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the futex system call is Linux's")

SIZE = 40
ranges = st.tuples(st.integers(0, 8 * SIZE - 1), st.integers(0, 8 * SIZE - 1)).map(sorted)


@given(st.integers(0, 7), st.lists(st.tuples(st.booleans(), ranges), max_size=8))
def test_ranges_are_set_and_cleared_and_nothing_beside_them(start: int, steps: list[tuple[bool, list[int]]]) -> None:
    memory = bytearray(b"\xa5" * (SIZE + 16))
    bits = SharedBits(memoryview(memory)[start : start + SIZE])
    expected = int.from_bytes(bits.view, "little")
    for to_set, (first, last) in steps:
        mask = (1 << last + 1) - (1 << first)
        (bits.set if to_set else bits.clear)(first, last)
        expected = expected | mask if to_set else expected & ~mask
    assert int.from_bytes(bits.view, "little") == expected
    assert memory[:start] + memory[start + SIZE :] == b"\xa5" * 16


def test_no_change_is_lost_between_two_who_change_bits_of_the_same_bytes() -> None:
    bits = SharedBits(memoryview(bytearray(8)))

    def change(mine: int) -> None:
        for n in range(20_001):
            (bits.clear if n % 2 else bits.set)(mine, mine)
            assert bits.view[mine // 8] >> mine % 8 & 1 == 1 - n % 2

    failed: list[object] = []
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        # The call into the kernel lets the other thread run: they are at work at the same time.
        threads = [threading.Thread(target=change, args=[mine]) for mine in (3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert not failed
    assert bits.view[0] == 0b11000


def test_a_file_made_shorter_is_an_error_and_no_signal() -> None:
    fd = os.memfd_create("bits")
    os.ftruncate(fd, 2 * mmap.PAGESIZE)
    log = SharedDirtyLog(memoryview(mmap.mmap(fd, 2 * mmap.PAGESIZE)))
    os.ftruncate(fd, mmap.PAGESIZE)
    behind = 8 * mmap.PAGESIZE * log.page
    log.mark(behind - 1, 1)
    with pytest.raises(MessageError, match="gone"):
        log.mark(behind, 1)
    os.close(fd)


@given(st.sets(st.integers(0, 199)))
def test_a_bitmap_is_taken_as_runs_of_pages_and_is_clean_then(pages: set[int]) -> None:
    bitmap = DirtyBitmap(200 * 4096)
    try:
        with mmap.mmap(bitmap.fd, bitmap.size) as mapping, memoryview(mapping) as view:
            log = SharedDirtyLog(view)
            for page in pages:
                log.mark(page * 4096 + 17, 1)
            del log
        runs = bitmap.take()
        assert {at // 4096 for start, size in runs for at in range(start, start + size, 4096)} == pages
        ends = [(start, start + size) for start, size in runs]
        assert all(end < start for (_, end), (start, _) in pairwise(ends)), "runs are whole"
        assert bitmap.take() == []
    finally:
        bitmap.close()
