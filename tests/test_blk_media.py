"""Every medium stores what a bytearray stores, whatever the framing; files survive short I/O, odd sizes and holes."""

from __future__ import annotations

import errno
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio_py.devices.blk import direct, fallocate, media
from virtio_py.devices.blk.direct import DirectFileMedium
from virtio_py.devices.blk.media import FileMedium, Medium, MemoryMedium, NullMedium

SECTORS = 24
SIZE = SECTORS * 512
# A disk takes its time, now and then a long one.
on_disk = settings(deadline=None, max_examples=40)
KINDS = ("memory", "file", "direct", "windows", "holeless")


@contextmanager
def medium_of(kind: str, size: int = SIZE) -> Iterator[Medium]:
    """A medium of zeros. "windows": without positioned I/O; "holeless": where the system has no fallocate."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "disk")
        path.write_bytes(bytes(size))
        if kind == "windows":
            patch.setattr(media, "read_some", media._seek_read)
            patch.setattr(media, "write_some", media._seek_write)
        if kind == "holeless":
            patch.setattr(fallocate, "_libc_fallocate", lambda: None)
        if kind == "direct" and not hasattr(os, "O_DIRECT"):
            pytest.skip("this system has no O_DIRECT")
        made: Medium = (
            MemoryMedium.of(size)
            if kind == "memory"
            else (DirectFileMedium(path) if kind == "direct" else FileMedium(path))
        )
        yield made
        made.close()


def cut(data: bytearray, seed: int) -> list[memoryview]:
    """The same bytes as views of any lengths, 0 included."""
    pick = random.Random(seed)
    points = sorted(pick.choices([0, len(data), *range(0, len(data) + 1, 100)], k=pick.randrange(6)))
    return [memoryview(data)[a:b] for a, b in zip([0, *points], [*points, len(data)], strict=True)]


extents = st.tuples(st.integers(0, SECTORS), st.integers(0, SECTORS)).map(
    lambda t: (t[0] * 512, min(t[1], SECTORS - t[0]) * 512)
)
steps = st.lists(
    st.tuples(st.sampled_from(["write", "zero", "unmap", "erase", "flush"]), extents, st.integers(0, 1 << 30)),
    max_size=8,
)


def apply(medium: Medium, model: bytearray, verb: str, offset: int, length: int, seed: int) -> None:
    if verb == "write":
        data = bytearray(random.Random(seed).randbytes(length))
        medium.write_from(offset, cut(data, seed))
        model[offset : offset + length] = data
    elif verb == "flush":
        medium.flush()
    else:
        zero = {"zero": False, "unmap": True}
        if verb in zero:
            medium.write_zeroes(offset, length, zero[verb])
        else:
            medium.erase(offset, length)
        model[offset : offset + length] = bytes(length)


@pytest.mark.parametrize("kind", KINDS)
@on_disk
@given(todo=steps, looked_at=extents, seed=st.integers(0, 1 << 30))
def test_reads_back_what_a_bytearray_would(
    kind: str, todo: list[tuple[str, tuple[int, int], int]], looked_at: tuple[int, int], seed: int
) -> None:
    model = bytearray(SIZE)
    with medium_of(kind) as medium:
        for verb, (offset, length), its_seed in todo:
            apply(medium, model, verb, offset, length, its_seed)
        offset, length = looked_at
        found = bytearray(b"\xa5" * length)
        medium.read_into(offset, cut(found, seed))
        assert found == model[offset : offset + length]
        assert medium.size == SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_discard_touches_nothing_outside(kind: str) -> None:
    with medium_of(kind) as medium:
        medium.write_from(0, [memoryview(b"\x77" * SIZE)])
        medium.discard(4096, 4096)
        around = [bytearray(4096), bytearray(4096)]
        medium.read_into(0, [memoryview(around[0])])
        medium.read_into(8192, [memoryview(around[1])])
        assert all(part == b"\x77" * 4096 for part in around)


@pytest.mark.parametrize("kind", ["file", "windows", "direct"])
def test_more_views_than_one_call_takes(kind: str) -> None:
    total = 3 * 1024 * 512
    data = bytearray(random.Random(1).randbytes(total))
    with medium_of(kind, total) as medium:
        medium.write_from(0, [memoryview(data)[i : i + 512] for i in range(0, total, 512)])
        found = bytearray(total)
        medium.read_into(0, [memoryview(found)[i : i + 512] for i in range(0, total, 512)])
        assert found == data


@on_disk
@given(limit=st.integers(1, 700), seed=st.integers(0, 1 << 30))
def test_short_transfers_are_carried_on(limit: int, seed: int) -> None:
    def short(views: Sequence[memoryview]) -> list[memoryview]:
        first = next(view for view in views if len(view))
        return [first[:limit]]

    data = bytearray(random.Random(seed).randbytes(4096))
    with medium_of("file") as medium, pytest.MonkeyPatch.context() as patch:
        patch.setattr(media, "write_some", lambda f, at, v: media._seek_write(f, at, short(v)))
        patch.setattr(media, "read_some", lambda f, at, v: media._seek_read(f, at, short(v)))
        medium.write_from(512, cut(data, seed))
        found = bytearray(4096)
        medium.read_into(512, cut(found, seed + 1))
        assert found == data


def test_odd_file_size_is_rounded_down(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(1300))
    medium = FileMedium(path)
    assert medium.size == 1024
    medium.close()


@pytest.mark.parametrize("kind", ["file", "windows", "direct"])
def test_a_file_made_shorter_behind_our_back_fails_reads(kind: str) -> None:
    with medium_of(kind, 8192) as medium:
        assert isinstance(medium, FileMedium)
        os.truncate(medium.path, 4096)
        with pytest.raises(OSError, match="ends") as caught:
            medium.read_into(0, [memoryview(bytearray(8192))])
        assert caught.value.errno == errno.EIO
        assert medium.size == 4096


def test_a_device_that_stores_nothing_is_an_error() -> None:
    with medium_of("file") as medium, pytest.MonkeyPatch.context() as patch:
        patch.setattr(media, "write_some", lambda f, at, v: 0)
        with pytest.raises(OSError, match="stored"):
            medium.write_from(0, [memoryview(bytes(512))])


@pytest.mark.parametrize("kind", ["memory", "file", "direct"])
def test_resize(kind: str) -> None:
    with medium_of(kind, 8192) as medium:
        medium.write_from(0, [memoryview(b"\x11" * 8192)])
        medium.resize(4096)
        assert medium.size == 4096
        medium.resize(8192)
        found = bytearray(8192)
        medium.read_into(0, [memoryview(found)])
        assert found == b"\x11" * 4096 + bytes(4096)


def test_read_only_file_refuses_writes(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"\x22" * 1024)
    medium = FileMedium(path, read_only=True)
    assert medium.read_only
    assert not medium.can_deallocate
    medium.flush()
    with pytest.raises(OSError):  # noqa: PT011  # which one, the system decides
        medium.write_from(0, [memoryview(bytes(512))])
    medium.close()
    assert path.read_bytes() == b"\x22" * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux makes holes")
def test_holes_give_storage_back_and_zeroing_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"\x33" * (1 << 20))
    medium = FileMedium(path)
    assert medium.can_deallocate
    medium.flush()
    full = os.stat(path).st_blocks
    medium.write_zeroes(0, 1 << 19, unmap=False)
    medium.flush()
    assert os.stat(path).st_blocks == full
    medium.write_zeroes(0, 1 << 18, unmap=True)
    medium.discard(1 << 18, 1 << 18)
    medium.flush()
    assert os.stat(path).st_blocks <= full // 2
    assert path.read_bytes() == bytes(1 << 19) + b"\x33" * (1 << 19)
    medium.close()


def test_without_fallocate_nothing_can_be_deallocated() -> None:
    with medium_of("holeless") as medium:
        assert not medium.can_deallocate


@pytest.mark.parametrize("verb", [lambda m: m.flush(), lambda m: m.erase(0, 512)])
def test_flush_and_erase_commit_and_pass_a_failure_on(verb: Callable[[Medium], None]) -> None:
    calls: list[int] = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "the disk is gone")

    with medium_of("file") as medium, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", fail, raising=False)
        with pytest.raises(OSError, match="gone"):
            verb(medium)
    assert len(calls) == 1


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")
@on_disk
@given(offset=st.integers(0, 15), count=st.integers(1, 16), seed=st.integers(0, 1 << 30))
def test_direct_io_on_a_disk_of_4096_byte_sectors_keeps_the_neighbours(offset: int, count: int, seed: int) -> None:
    def strict(name: str) -> object:
        plain = getattr(media, name)

        def call(file: FileIO, at: int, views: Sequence[memoryview]) -> int:
            if at % 4096 or sum(map(len, views)) % 4096:
                raise OSError(errno.EINVAL, "not aligned")
            return int(plain(file, at, views))

        return call

    size = 16 * 512
    length = min(count * 512, size - offset * 512)
    with medium_of("file", size) as first, pytest.MonkeyPatch.context() as patch:
        assert isinstance(first, FileMedium)
        patch.setattr(media, "read_some", strict("read_some"))
        patch.setattr(media, "write_some", strict("write_some"))
        patch.setattr(direct, "_BOUNCE", 4096)
        medium = DirectFileMedium(first.path)
        model = bytearray(random.Random(1).randbytes(size))
        medium.write_from(0, [memoryview(model)])
        data = bytearray(random.Random(seed).randbytes(length))
        medium.write_from(offset * 512, cut(data, seed))
        model[offset * 512 : offset * 512 + length] = data
        assert Path(first.path).read_bytes() == model
        with pytest.raises(OSError, match="multiple of 4096"):
            medium.resize(512)
        medium.close()


def test_null_medium_reads_zeros_and_forgets() -> None:
    medium = NullMedium(1 << 40)
    medium.write_from(0, [memoryview(b"x" * 512)])
    found = bytearray(b"y" * 512)
    medium.read_into(0, [memoryview(found)])
    assert found == bytes(512)
    assert medium.size == 1 << 40


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileMedium(tmp_path / "absent")
