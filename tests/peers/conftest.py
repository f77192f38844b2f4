"""Fixtures of the tests against real peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.require import require
from tests.peers.uml import UserModeLinux, build_shim


@pytest.fixture(scope="session")
def uml(tmp_path_factory: pytest.TempPathFactory) -> UserModeLinux:
    """Boots Linux guests that run scripts of tests/peers/guest."""
    require("linux.uml", "busybox", "setarch")
    return UserModeLinux(build_shim(tmp_path_factory.mktemp("uml")))


@pytest.fixture
def disk_image(tmp_path: Path) -> Path:
    """An empty, sparse image of 256 MiB."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    return image
