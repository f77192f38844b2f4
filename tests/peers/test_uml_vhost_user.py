"""The ways of vhost-user that the block tests do not take, with a real Linux driver: in-band messages, packed rings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers.blk import modes
from tests.peers.test_uml_blk import run, serve_blk
from tests.peers.uml import UserModeLinux

pytestmark = pytest.mark.peer


@pytest.mark.parametrize("engine", ["reference", "compiled"])
@pytest.mark.parametrize("options", [["--packed"], ["--inband-notifications"], ["--packed", "--inband-notifications"]])
def test_a_driver_is_loaded_again(
    uml: UserModeLinux, tmp_path: Path, disk_image: Path, engine: str, options: list[str]
) -> None:
    with serve_blk(tmp_path / "disk.sock", engine, disk_image, *options) as server:
        result = run(uml, server, "blk_modes.sh", "3")
        assert {r["size"] for r in modes(result.output)} == {str(disk_image.stat().st_size // 512)}
        packed = [r["packed"] for r in modes(result.output)]
        assert packed == ["1" if "--packed" in options else "0"] * 3
        assert server.terminate() == 0
