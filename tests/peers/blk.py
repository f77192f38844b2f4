"""What the host checks of a disk that a Linux guest has used, whichever back-end served it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.peers.require import require
from tests.peers.uml import Result, UserModeLinux, VhostUser
from virtio_py.spec import DeviceId

PATTERN = "virtio_py was here"
PATTERN_OFFSET = 255 << 20  # bytes; the file system ends here, in an image of 256 MiB
PATTERN_LENGTH = 64 << 10  # as many bytes of zeroes follow


def run_ext4(uml: UserModeLinux, socket: Path, image: Path) -> Result:
    """Let a guest make, fill and check a file system on the disk behind `socket`, and its bytes arrive in `image`."""
    require("mkfs.ext4", "e2fsck", "fstrim", "blkdiscard")  # for the guest, whose programs are the host's
    devices = [VhostUser(socket, DeviceId.BLOCK)]
    result = uml.run("blk_ext4.sh", PATTERN, str(PATTERN_OFFSET), devices=devices, memory="256M", seconds=150)
    assert result.status == 0, result.output
    assert result.complaints() == []
    _check_pattern(image)
    return result


def _check_pattern(image: Path) -> None:
    line = PATTERN.encode() + b"\n"
    with image.open("rb") as file:
        file.seek(PATTERN_OFFSET)
        assert file.read(PATTERN_LENGTH) == (line * (PATTERN_LENGTH // len(line) + 1))[:PATTERN_LENGTH]
        assert file.read(PATTERN_LENGTH) == bytes(PATTERN_LENGTH)


def check_tree(image: Path, directory: Path) -> None:
    """As `dump_tree`, of a tree of more than a thousand files."""
    assert len(dump_tree(image, directory)) > 1000


def dump_tree(image: Path, directory: Path) -> dict[str, str]:
    """The names and SHA-256 sums of the files in `image`, whose file system is clean and holds just its manifest's
    files, byte for byte. Dumps to `directory`."""
    e2fsck, debugfs = require("e2fsck", "debugfs")
    subprocess.run([e2fsck, "-fn", image], check=True, capture_output=True)
    for request in (f"rdump /tree {directory}", f"dump /manifest {directory / 'manifest'}"):
        subprocess.run([debugfs, "-R", request, image], check=True, capture_output=True)
    tree = directory / "tree"
    sums = (line.split("  ", 1) for line in (directory / "manifest").read_text().splitlines())
    expected = {name: digest for digest, name in sums}
    found = {str(path.relative_to(tree)): _sha256(path) for path in tree.rglob("*") if path.is_file()}
    assert found == expected
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def modes(output: str) -> list[dict[str, str]]:
    """The output of guest/blk_modes.sh: for each round, what the driver read, by its name in sysfs."""
    rounds: dict[str, dict[str, str]] = {}
    for line in output.splitlines():
        number, name, value = line.split(" ", 2)
        rounds.setdefault(number, {})[name] = value
    return list(rounds.values())


def make_file_system(image: Path, directory: Path, files: dict[str, str]) -> None:
    """An ext4 file system with `files` (name and contents) on the whole of `image`. Uses `directory`."""
    [mkfs] = require("mkfs.ext4")
    root = directory / "root"
    root.mkdir()
    for name, text in files.items():
        (root / name).write_text(text)
    subprocess.run([mkfs, "-q", "-F", "-d", root, image], check=True)
