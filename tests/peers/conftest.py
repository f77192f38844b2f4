"""Fixtures of the tests against real peers."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from tests.peers.initramfs import installed_kernel
from tests.peers.qemu import Qemu
from tests.peers.require import require
from tests.peers.uml import UserModeLinux, build_shim


@pytest.fixture(scope="session")
def uml(tmp_path_factory: pytest.TempPathFactory) -> UserModeLinux:
    """Boots Linux guests that run scripts of tests/peers/guest."""
    require("linux.uml", "busybox", "setarch")
    return UserModeLinux(build_shim(tmp_path_factory.mktemp("uml")))


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    """Boots Linux guests, in machines that are all software, that run scripts of tests/peers/guest."""
    require("qemu-system-x86_64", "busybox")
    return Qemu(installed_kernel())


@pytest.fixture
def tap() -> str:
    """The name of a tap interface that does not exist yet."""
    if os.geteuid() or not Path("/dev/net/tun").exists():
        pytest.skip("making a tap interface takes root, and /dev/net/tun")
    return f"vpy{uuid.uuid4().hex[:8]}"


@pytest.fixture
def disk_image(tmp_path: Path) -> Path:
    """An empty, sparse image of 256 MiB."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    return image
