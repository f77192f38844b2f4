"""What `virtio-py serve scsi` makes of its options, and of a list that changes while it runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import pytest

from virtio_py.cli import serve_scsi
from virtio_py.cli.main import main
from virtio_py.cli.serve_scsi import UnitOption
from virtio_py.devices.scsi.cdrom import ScsiCdrom
from virtio_py.devices.scsi.device import ScsiDevice
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.driver import ScsiDriver
from virtio_py.devices.scsi.layout import Address, EventType
from virtio_py.errors import UsageError
from virtio_py.transports.in_process import InProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="serving needs Linux")


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve_scsi.add_options(parser)
    return parser.parse_args(words)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(8192))
    return [str(tmp_path / name) for name in "abc"]


def test_units_without_a_place_take_the_next_lun(files: list[str]) -> None:
    a, b, c = files
    with serve_scsi.make(options("--lun", a, "--lun", f"0:1={b}", "--cdrom", c)) as device:
        assert isinstance(device, ScsiDevice)
        assert {place: type(unit) for place, unit in device.units.items()} == {
            Address(0, 0): ScsiDisk,
            Address(0, 1): ScsiDisk,
            Address(0, 2): ScsiCdrom,
        }
        serials = {unit.serial for unit in device.units.values()}
        assert len(serials) == 3


def test_the_list_is_read_again_on_sighup(files: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    a, b, c = files
    units = tmp_path / "units"
    units.write_text(f"# places\n\n3:4={b}\n")
    with serve_scsi.make(options("--lun", a, "--lun-list", str(units))) as device:
        driver = ScsiDriver(InProcess(device)).start()
        driver.scan()
        assert sorted(driver.units) == [(0, 0), (3, 4)]
        driver.test_unit_ready(0, 0)

        def reload(text: str) -> list[int]:
            units.write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            driver.transport.wait(1)
            driver.transport.wait(0.01)
            return [event.type for event in driver.poll_events()]

        assert reload(f"cdrom 5:6={c}\n") == [EventType.TRANSPORT_RESET] * 2
        assert sorted(driver.units) == [(0, 0), (5, 6)]
        assert driver.units[Address(5, 6)].type == 5
        os.truncate(a, 1 << 20)
        assert reload(f"cdrom 5:6={c}\n") == [EventType.PARAM_CHANGE]
        assert driver.capacity(0, 0).blocks == 2048
        # What cannot be done is told, and what can is done.
        assert reload("5:6=/nowhere/at/all\n") == [EventType.TRANSPORT_RESET]
        assert reload("nonsense\n") == []
        said = capfd.readouterr().err
        assert "/nowhere/at/all" in said
        assert "nonsense" in said
        assert sorted(driver.units) == [(0, 0)]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@pytest.mark.parametrize("words", [[], ["--lun", "0:0=/nowhere"], ["--lun-list", "/nowhere"], ["--lun", "999:0={a}"]])
def test_what_cannot_be_is_one_line_and_status_2(
    words: list[str], files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [word.format(a=files[0]) for word in words]
    assert main(["serve", "scsi", "--socket-path", str(tmp_path / "s"), *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_stays_open(files: list[str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError), serve_scsi.make(options("--lun", f"0:0={files[0]}", "--lun", f"0:0={files[1]}")):
        pass
    with serve_scsi.make(options("--lun", files[0], "--cdrom", files[1])):
        assert len(os.listdir("/proc/self/fd")) > before
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_equal_sign_in_a_name_is_no_place() -> None:
    assert options("--lun", "a=b.img").units == [UnitOption(0, -1, "a=b.img")]
    assert options("--lun", "1:2=a=b.img").units == [UnitOption(1, 2, "a=b.img")]
