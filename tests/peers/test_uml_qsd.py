"""The harness itself: Linux guests in front of QEMU's back-end, and guests that end badly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.blk import check_tree, modes, run_ext4
from tests.peers.process import wait_until
from tests.peers.qsd import storage_daemon
from tests.peers.uml import GuestPanic, GuestTimeout, UserModeLinux, VhostUser
from virtio_py.spec import DeviceId

pytestmark = pytest.mark.peer


def test_status_and_both_streams_are_reported(uml: UserModeLinux) -> None:
    result = uml.run("harness.sh", "7")
    assert (result.status, result.output) == (7, "to standard output\nto standard error\n")
    assert "Linux version" in result.dmesg or "init process" in result.dmesg
    assert result.complaints() == []


def test_a_panic_is_reported_with_what_the_guest_printed(uml: UserModeLinux) -> None:
    with pytest.raises(GuestPanic, match="Kernel panic"):
        uml.run("harness.sh", "panic")


def test_a_guest_that_hangs_is_killed_with_its_helpers(uml: UserModeLinux) -> None:
    with (
        pytest.raises(GuestTimeout, match="to standard error"),
        uml.boot("harness.sh", "hang", seconds=5) as guest,
    ):
        guest.result()
    wait_until(lambda: not _members(guest.pid), "the end of every process of the guest", 5)


def _members(group: int) -> list[str]:
    """The processes of a group that are not dead."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats.append(path.read_text())
        except OSError:  # ended meanwhile
            continue
    # state, parent, group: counted from behind the program's name, which may have blanks
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return [stat for stat, (state, _, its, *_) in zip(stats, fields, strict=True) if int(its) == group and state != "Z"]


def test_ext4_on_qemu_storage_daemon(uml: UserModeLinux, disk_image: Path, tmp_path: Path) -> None:
    socket = tmp_path / "disk.sock"
    with storage_daemon(socket, disk_image, queues=2):
        run_ext4(uml, socket, disk_image)
    check_tree(disk_image, tmp_path)


def test_modes_of_qemu_storage_daemon(uml: UserModeLinux, disk_image: Path, tmp_path: Path) -> None:
    socket = tmp_path / "disk.sock"
    with storage_daemon(socket, disk_image, block_size=4096):
        result = uml.run("blk_modes.sh", "1", devices=[VhostUser(socket, DeviceId.BLOCK)])
    assert result.status == 0, result.output
    [only] = modes(result.output)
    assert (only["serial"], only["logical_block_size"]) == ("vhost_user_blk", "4096")
