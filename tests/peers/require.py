"""Programs that the peer tests need, and Debian's packages of them, which `python -m tests.peers.require` prints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PACKAGES = {
    "blkdiscard": "util-linux",
    "busybox": "busybox-static",
    "cc": "gcc libc6-dev",
    "dd": "coreutils",
    "debugfs": "e2fsprogs",
    "dpdk-testpmd": "dpdk-dev librte-net-virtio23 librte-net-vhost23",
    "e2fsck": "e2fsprogs",
    "ethtool": "ethtool",
    "fio": "fio",
    "fstrim": "util-linux",
    "ip": "iproute2",
    "linux-cloud": "linux-image-cloud-amd64",
    "linux.uml": "user-mode-linux",
    "lspci": "pciutils",
    "mkfs.ext4": "e2fsprogs",
    "ping": "iputils-ping",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-system-x86_64": "qemu-system-x86",
    "setarch": "util-linux",
    "sg_decode_sense": "sg3-utils",
    "sg_inq": "sg3-utils",
    "sg_luns": "sg3-utils",
    "sg_modes": "sg3-utils",
    "sg_opcodes": "sg3-utils",
    "sg_persist": "sg3-utils",
    "sg_readcap": "sg3-utils",
    "sg_turs": "sg3-utils",
    "sg_unmap": "sg3-utils",
    "sg_vpd": "sg3-utils",
    "tshark": "tshark",
    "stty": "coreutils",
}
SEARCH = os.pathsep.join([os.defpath, "/usr/local/sbin", "/usr/sbin", "/sbin"])


KERNELS = {"linux-cloud": "vmlinuz-*-cloud-*"}
"""Kernels that guests boot, by the names of their images in /boot."""


def locate(program: str) -> str | None:
    """The program's path, looked for in PATH and then where administrators' tools live; a kernel's newest image."""
    if program in KERNELS:
        return max(map(str, Path("/boot").glob(KERNELS[program])), default=None)
    return shutil.which(program) or shutil.which(program, path=SEARCH)


def _without(missing: list[str]) -> str:
    packages = sorted({package for name in missing for package in PACKAGES.get(name, name).split()})
    return f"no {', '.join(missing)} here; on Debian: apt-get install {' '.join(packages)}"


def require(*programs: str) -> list[str]:
    """Paths of `programs`, in order. Where one is missing the test is skipped; under CI it fails."""
    missing = [name for name in programs if locate(name) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(_without(missing), pytrace=False)
    if missing:
        pytest.skip(_without(missing))
    return [path for name in programs if (path := locate(name))]


if __name__ == "__main__":
    print(*sorted({package for packages in PACKAGES.values() for package in packages.split()}), sep="\n")
