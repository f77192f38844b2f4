"""The command: what it accepts, what it prints, and one line with status 2 for everything else."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lspci_text import hex_dump
from virtio_py.cli.inspect import virtio_functions
from virtio_py.cli.inspect_express import watts
from virtio_py.cli.main import main
from virtio_py.pci.header import pci_header_type0

DATA = Path(__file__).parent / "data" / "pci"
NET = DATA / "qemu111-virtio-net-sriov" / "0000:01:00.0.bin"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "virtio_py.cli.main", "inspect", *map(str, arguments)]
    root = Path(__file__).parent.parent
    path = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=path)


def test_json_has_numbers_as_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(NET)]) == 0
    (function,) = json.loads(capsys.readouterr().out)
    shown = {name: function[name] for name in ("path", "vendor_id", "device_id", "class_code", "header_type")}
    assert shown == {
        "path": str(NET),
        "vendor_id": 0x1AF4,
        "device_id": 0x1041,
        "class_code": 0x020000,
        "header_type": 0,
    }
    places = [(c["offset"], c["id"], c["extended"]) for c in function["capabilities"]]
    assert places == [(at, 9 if at in VENDOR else other, at > 255) for at, other in PLACES]
    msix = function["capabilities"][0]
    assert msix["name"] == "MSI-X"
    assert msix["fields"]["message_control"] == {"table_size": 3, "function_mask": 0, "enable": 1}
    assert msix["fields"]["pba"] == {"bir": 1, "offset": 0x800}
    notify = function["capabilities"][2]["fields"]
    assert (notify["bar"], notify["offset"], notify["length"]) == (4, 0x3000, 0x1000)
    assert notify["notify_off_multiplier"] == 4
    sriov = function["capabilities"][-1]["fields"]
    assert (sriov["total_vfs"], sriov["vf_device_id"], sriov["supported_page_sizes"]) == (3, 0x1041, 0x553)
    assert function["problems"][0]["offset"] == 0x140


VENDOR = {0xC8, 0xB4, 0xA4, 0x94, 0x84}
PLACES = [(0xDC, 0x11), (0xC8, 9), (0xB4, 9), (0xA4, 9), (0x94, 9), (0x84, 9), (0x7C, 1), (0x40, 0x10), (0x100, 0x10)]


def test_several_paths_and_several_functions_in_one_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = tmp_path / "both"
    dump.write_text(hex_dump(NET.read_bytes(), "0000:01:00.0") + hex_dump(bytes(64), "02:00.1"))
    assert main(["inspect", "--json", str(dump), str(NET)]) == 0
    functions = json.loads(capsys.readouterr().out)
    assert [f["path"] for f in functions] == [f"{dump}#0000:01:00.0", f"{dump}#02:00.1", str(NET)]
    assert functions[0]["capabilities"] == functions[2]["capabilities"]
    assert [f["config_size"] for f in functions] == [4096, 64, 4096]


def test_text_goes_plain_into_a_pipe() -> None:
    done = run(NET)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "\tCapabilities: [b4] Vendor Specific Information: VirtIO: Notify\n" in done.stdout
    assert "\t\tBAR=4 offset=00003000 size=00001000 multiplier=00000004\n" in done.stdout


def test_a_terminal_gets_colours() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "virtio_py.cli.main", "inspect", str(NET)]
    with subprocess.Popen(command, env=environment, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal without a writer tells its end
            while chunk := os.read(ours, 65536):
                shown += chunk
        assert process.wait(timeout=60) == 0
    os.close(ours)
    assert b"\x1b[" in shown
    assert b"VirtIO: Notify" in shown


def test_a_closed_pipe_is_no_error() -> None:
    paths = [str(p) for p in sorted(DATA.glob("*/*.bin"))] * 8
    command = [sys.executable, "-m", "virtio_py.cli.main", "inspect", *paths]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def sysfs(folder: Path, config: bytes, vendor: int, device: int) -> Path:
    """A device's folder as the kernel shows it."""
    folder.mkdir(parents=True)
    (folder / "config").write_bytes(config)
    (folder / "vendor").write_text(f"{vendor:#06x}\n")
    (folder / "device").write_text(f"{device:#06x}\n")
    return folder


def test_a_sysfs_folder_is_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sysfs(tmp_path / "0000:01:00.0", NET.read_bytes(), 0x1AF4, 0x1041)
    assert main(["inspect", "--json", str(folder)]) == 0
    (function,) = json.loads(capsys.readouterr().out)
    assert function["path"] == str(folder)
    assert len(function["capabilities"]) == 9


def test_without_a_path_the_virtio_functions_of_the_machine(tmp_path: Path) -> None:
    config = bytearray(NET.read_bytes())
    sysfs(tmp_path / "0000:00:01.0", bytes(config), 0x1AF4, 0x1041)
    sysfs(tmp_path / "0000:00:02.0", pci_header_type0.encode(vendor_id=0x8086), 0x8086, 0x7000)
    sysfs(tmp_path / "0000:00:03.0", pci_header_type0.encode(vendor_id=0x1AF4), 0x1AF4, 0x1110)  # ivshmem
    config[:4] = b"\xff" * 4  # a virtual function: only the kernel knows its ids
    virtual = sysfs(tmp_path / "0000:00:04.0", bytes(config), 0x1AF4, 0x1041)
    first, second = virtio_functions(tmp_path)
    assert (first.path, second.path) == (str(tmp_path / "0000:00:01.0"), str(virtual))
    assert [c.fields for c in second.capabilities] == [c.fields for c in first.capabilities]
    assert list(virtio_functions(tmp_path / "nothing")) == []


def test_no_path_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json"]) == 0
    functions = json.loads(capsys.readouterr().out)
    assert all(f["vendor_id"] in (0x1AF4, 0xFFFF) for f in functions)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file or directory"),
        (b"", "the file is empty"),
        (bytes(63), "64 to 4096 bytes, not 63"),
        (bytes(4097), "64 to 4096 bytes, not 4097"),
        (b"not a dump\n", "no hex dump"),
        (b"00:01.0 a title and nothing more\n", "no hex dump"),
        (b"00: 01 02 03\n", "64 to 4096 bytes, not 3"),
        (b"00: " + b" ".join([b"00"] * 16) + b"\n20: 00\n", "line 2: the row 20 stands where 10 is expected"),
    ],
)
def test_what_cannot_be_decoded_is_one_line_and_status_2(
    content: bytes | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"virtio-py: {path}: ")
    assert complaint in printed.err
    assert printed.err.count("\n") == 1


def test_a_folder_without_config_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"virtio-py: {tmp_path / 'config'}: No such file or directory\n"


@pytest.mark.parametrize("arguments", [["inspect", "--nonsense"], ["nonsense"], []])
def test_bad_arguments_are_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("virtio-py: ")
    assert error.count("\n") == 1


def test_a_bad_path_among_good_ones_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(NET), "/nonexistent"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "scale", "shown"),
    [(75, 0, "75W"), (255, 1, "25.5W"), (0xEF, 0, "239W"), (0xF0, 0, "250W"), (0xFE, 0, "600W"), (0xFF, 0, ">600W")],
)
def test_slot_power_limits(value: int, scale: int, shown: str) -> None:
    assert watts(value, scale) == shown
