"""`virtio-py inspect --function`: our own functions in configuration space, and lspci's view of the same bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.lspci_text import disagreements, parse_lspci, run_lspci
from virtio_py.cli.inspect import read_functions
from virtio_py.cli.inspect_function import DEVICES
from virtio_py.cli.main import main

IDS = {
    "blk": (0x1042, 0x1001),
    "console": (0x1043, 0x1003),
    "entropy": (0x1044, 0x1005),
    "net": (0x1041, 0x1000),
    "scsi": (0x1048, 0x1004),
}
OPTIONS = [
    [],
    ["--transitional"],
    ["--conventional"],
    ["--transitional", "--conventional", "--msix-vectors", "0"],
    ["--msix-vectors", "2048"],
]
every_function = pytest.mark.parametrize("name", sorted(DEVICES))
with_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "".join(o) or "plain")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["inspect", "--function", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.peer
@every_function
@with_options
@pytest.mark.clause("pci.device.virtio-over-pci-bus.1")
def test_lspci_reads_the_same_bytes_alike(
    name: str, options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dump = tmp_path / "dump"
    dump.write_text(printed(capsys, name, *options, "--hex"))
    (theirs,) = parse_lspci(run_lspci("-vvv", "-F", str(dump)))
    (ours,) = parse_lspci(printed(capsys, name, *options))
    assert list(disagreements(theirs, ours)) == []
    assert len(ours.capabilities) >= 6
    for line in theirs.header:
        if not line.startswith("Latency: "):
            assert re.sub(r"( \[(size=|\d\d-bit)[^]]*\])+$", "", line) in ours.header
    assert f"[1af4:{IDS[name]['--transitional' in options]:04x}]" in theirs.title


@every_function
@with_options
def test_text_json_and_dump_say_the_same(
    name: str, options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dump = tmp_path / "dump"
    dump.write_text(printed(capsys, name, *options, "--hex"))
    (from_dump,) = read_functions(dump)
    (as_json,) = json.loads(printed(capsys, name, *options, "--json"))
    assert {**from_dump.as_dict(), "path": "00:01.0"} == as_json
    assert as_json["problems"] == []
    assert as_json["config_size"] == (256 if "--conventional" in options else 4096)
    assert all(bar["address"] for bar in as_json["bars"])
    assert {bar["index"] for bar in as_json["bars"]} == (
        {4} | ({0} if "--transitional" in options else set()) | ({1} if "0" not in options else set())
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hex"], "--hex needs --function"),
        (["--transitional"], "--transitional needs --function"),
        (["--msix-vectors", "3"], "--msix-vectors needs --function"),
        (["--function", "blk", "--msix-vectors", "2049"], "1 to 2048 vectors"),
        (["--function", "blk", "--msix-vectors", "-1"], "1 to 2048 vectors"),
        (["--function", "blk", "file"], "needs no PATH"),
        (["--function", "blk", "--ring", "split"], "--ring and --function"),
        (["--ring", "split", "--hex", "file"], "--hex needs --function"),
        (["--function", "toaster"], "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main(["inspect", *arguments]))
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
