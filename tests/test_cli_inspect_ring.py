"""`virtio-py inspect --ring` on dumps of live queues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from virtio_py.cli.main import main
from virtio_py.memory import Arena, GuestMemory
from virtio_py.rings.places import LAYOUTS
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import Feature, mask

START = 0x1000
FEATURES = {"split": mask(Feature.INDIRECT_DESC), "packed": mask(Feature.INDIRECT_DESC, Feature.RING_PACKED)}


def dump(path: Path, layout: str, size: int = 8) -> DriverQueue:
    """Writes the memory of a queue with two buffers outstanding, one of them indirect."""
    arena = Arena(GuestMemory.of(1 << 14, START))
    data = arena.allocate(64)
    queue = DriverQueue(0, size, arena, FEATURES[layout], indirect=4)
    queue.add([data.extent], [data.extent])
    queue.add([], [data.extent])
    path.write_bytes(arena.memory.regions[0].view)
    return queue


def places(queue: DriverQueue) -> list[str]:
    """The arguments that find a queue in its dump."""
    options = ("--desc-at", "--driver-at", "--device-at")
    return [word for option, at in zip(options, queue.areas, strict=True) for word in (option, hex(at - START))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dump_is_drawn(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory"
    queue = dump(path, layout)
    where = ["--ring", layout, "--queue-size", "8", *places(queue), "--base", hex(START)]
    assert main(["inspect", *where, str(path)]) == 0
    text = capsys.readouterr().out
    assert f"{layout} virtqueue of 8, from memory alone: 2 outstanding" in text
    assert "no problems found" in text
    assert "64 readable, 64 writable bytes, descriptors 0" in text
    assert "└ 1" in text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dump_as_json(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory"
    queue = dump(path, layout)
    where = ["--ring", layout, "--queue-size", "8", "--desc-at", hex(queue.areas[0] - START), "--features", "0"]
    assert main(["inspect", *where, *places(queue), "--base", hex(START), "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layout"], found["size"], found["outstanding"]) == (layout, 8, 2)
    assert [chain["writable"] for chain in found["chains"]] == [64, 64]
    # With the features told, the indirect table is one too many.
    assert [p["clause"] for p in found["problems"]] == [f"{layout}.driver.indirect-descriptors.1"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_areas_lie_one_behind_the_other_by_default(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "memory"
    # The arena hands them out in this order, and the sizes of 8 leave no gap that the alignments do not ask for.
    queue = dump(path, layout)
    arguments = ["inspect", "--ring", layout, "--queue-size", "8", "--json", str(path)]
    assert main([*arguments, *places(queue)]) == 0
    told = capsys.readouterr().out
    descriptors, driver, device = queue.areas
    data = bytearray(path.read_bytes())
    sizes = [part.size for part in LAYOUTS[layout].parts(8)]
    packed = b"".join(bytes(data[at - START : at - START + size]) for at, size in zip(queue.areas, sizes, strict=True))
    if layout == "split":
        packed = packed[: sizes[0] + sizes[1]] + bytes(-(sizes[0] + sizes[1]) % 4) + packed[sizes[0] + sizes[1] :]
    assert descriptors < driver < device
    path.write_bytes(packed)
    assert main([*arguments, "--desc-at", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["descriptors"][1] == json.loads(told)["descriptors"][1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--ring", "split", "--queue-size", "8"], "--ring needs --desc-at"),
        (["--ring", "split", "--desc-at", "0"], "--ring needs --queue-size"),
        (["--ring", "split", "--desc-at", "0", "--queue-size", "7"], "7 is not the size of a split virtqueue"),
        (
            ["--ring", "packed", "--desc-at", "0", "--queue-size", "99999999999"],
            "is not the size of a packed virtqueue",
        ),
        (["--ring", "split", "--desc-at", "x", "--queue-size", "8"], "'x' is no number"),
        (["--ring", "split", "--desc-at", "-1", "--queue-size", "8"], "'-1' is no number"),
        (["--ring", "round"], "invalid choice: 'round'"),
        (["--ring", "split", "--desc-at", "0x4000", "--queue-size", "8"], "do not hold the areas at 0x4000"),
        (["--ring", "split", "--desc-at", "0", "--queue-size", "8", "--base", hex(1 << 64)], "cannot be"),
        (["--ring", "split", "--desc-at", "0", "--queue-size", "8", "another"], "2 are given"),
        (["--desc-at", "0"], "--desc-at needs --ring"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "memory"
    dump(path, "split")
    try:
        status = main(["inspect", *arguments, str(path)])
    except SystemExit as exit_:
        status = int(str(exit_.code))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


def test_an_empty_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    where = ["--ring", "packed", "--queue-size", "4", "--desc-at", "0"]
    for name in ("empty", "missing"):
        command = [sys.executable, "-m", "virtio_py.cli.main", "inspect", *where, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert name in done.stderr
