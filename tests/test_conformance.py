"""The conformance suite against our own devices: nothing fails, and what passes observes its clause."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Final
from xml.etree import ElementTree

import pytest

from tests.peers.process import listening, wait_until
from virtio_py.cli.main import main
from virtio_py.device import Device
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.layout import RangeLimits, ZonedModel
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.blk.requests import Lifetime
from virtio_py.devices.blk.zones import Zones
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.devices.scsi.device import ScsiDevice
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.spec import Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.testing.clauses import load, notes_folder
from virtio_py.testing.conformance import Outcome, Suite, Verdict, as_json, as_junit, exit_status, run
from virtio_py.testing.conformance.catalogue import all_checks
from virtio_py.testing.conformance.checks import Check
from virtio_py.testing.conformance.run import kind_named, select
from virtio_py.transports.in_process import InProcess

RING: Final = RING_FEATURES | bit(Feature.IN_ORDER)
SECTORS: Final = 2048


def disk(**options: Any) -> BlkDevice:
    return BlkDevice(MemoryMedium.of(SECTORS * 512), **options)


def scsi_host() -> ScsiDevice:
    device = ScsiDevice()
    device.attach(0, 0, ScsiDisk(MemoryMedium.of(1 << 20)))
    return device


def console(**options: Any) -> ConsoleDevice:
    return ConsoleDevice([ConsolePort(MemoryEndpoint(), "tty", console=True), *options.pop("more", [])], **options)


DEVICES: Final[dict[str, tuple[str, Callable[[], Device]]]] = {
    "blk": ("blk", lambda: disk(lifetime=Lifetime(), secure_erase=RangeLimits(), num_queues=2)),
    "blk-read-only": ("blk", lambda: BlkDevice(MemoryMedium(bytearray(1 << 16), read_only=True))),
    "blk-host-managed": ("blk", lambda: disk(zones=Zones(SECTORS, 256))),
    "blk-host-aware": ("blk", lambda: disk(zones=Zones(SECTORS, 256, model=ZonedModel.HA))),
    "net": ("net", lambda: NetDevice(LoopbackPort(), pairs=2, mtu=1500, speed=1000)),
    "scsi": ("scsi", scsi_host),
    "console": ("console", lambda: console(more=[ConsolePort(MemoryEndpoint(), "agent")], max_ports=4)),
    "console-single": ("console", console),
}
"""What is judged, and as what."""

INDEX: Final = load(notes_folder()).clauses


def _marks(check: Check, layout: str) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.clause(clause) for clause in check.observed(layout) if clause in INDEX]
    return [*marks, pytest.mark.long] if check.name == "the_index_wraps" else marks


def _every() -> list[Any]:
    return [
        pytest.param(name, check, layout, id=f"{name}-{check.name}-{layout}", marks=_marks(check, layout))
        for name, (kind, _) in DEVICES.items()
        for check, layout in select(kind)
        # Of a variety of a device, what makes it one.
        if name == kind or check.devices
    ]


@pytest.mark.parametrize(("name", "check", "layout"), _every())
def test_our_devices_conform(name: str, check: Check, layout: str) -> None:
    kind, make = DEVICES[name]
    device = make()
    suite = Suite(lambda: InProcess(device, ring_features=RING), kind_named(kind), 1.0, 0.02, thorough=True)
    verdicts = list(suite.judge(check, layout))
    assert [verdict.clause for verdict in verdicts] == list(check.observed(layout))
    assert {verdict.verdict for verdict in verdicts} <= {Outcome.PASS, Outcome.REJECT, Outcome.SKIP}, verdicts
    if all(verdict.verdict is Outcome.SKIP for verdict in verdicts):
        pytest.skip(verdicts[0].detail)


@pytest.mark.long
def test_every_check_is_tried_on_one_device_at_least() -> None:
    passed: set[str] = set()
    for kind, make in DEVICES.values():
        device = make()
        verdicts = run(lambda: InProcess(device, ring_features=RING), kind, patience=1.0, quiet=0.01)  # noqa: B023
        passed |= {verdict.name for verdict in verdicts if verdict.verdict is not Outcome.SKIP}
    every = {f"{check.name}, {layout}" for check in all_checks() for layout in check.layouts}
    assert every - passed == {"the_index_wraps, split"}


def test_the_clauses_exist() -> None:
    clauses = {clause for check in all_checks() for clause in check.clauses}
    assert {clause for clause in clauses if not clause.startswith("prose.")} <= INDEX.keys()
    assert len(clauses) > 100


def test_names_are_of_one_check_each() -> None:
    names = [(check.name, layout) for check in all_checks() for layout in check.layouts]
    assert len(names) == len(set(names))


# The record

VERDICTS: Final = [
    Verdict("split.device.used-ring.1", Outcome.PASS, "split: well", 0.5, "one, split"),
    Verdict("split.device.used-ring.2", Outcome.FAIL, "split: <bad>", 0.25, "two, split"),
    Verdict("blk.device.device-op.9", Outcome.SKIP, "split: WRITE_ZEROES is not offered", 0.0, "three, split"),
    Verdict("blk.driver.device-op.2", Outcome.REJECT, "split: refused", 0.25, "four, split"),
]


def test_json_is_what_was_promised() -> None:
    rows = json.loads(as_json(VERDICTS))["verdicts"]
    assert rows[1] == {
        "clause": "split.device.used-ring.2",
        "verdict": "FAIL",
        "detail": "split: <bad>",
        "seconds": 0.25,
    }
    assert [row["verdict"] for row in rows] == ["PASS", "FAIL", "SKIP", "REJECT"]


def test_junit_is_read_by_those_who_read_it() -> None:
    suite = ElementTree.fromstring(as_junit(VERDICTS, "a suite"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped"), suite.get("time")) == (
        "4",
        "1",
        "1",
        "1.000",
    )
    [failure] = suite.iter("failure")
    assert failure.get("message") == "split: <bad>"
    assert next(case.get("name") for case in suite) == "split.device.used-ring.1 (one, split)"


@pytest.mark.parametrize(("outcome", "status"), [("PASS", 0), ("REJECT", 0), ("SKIP", 0), ("FAIL", 1), ("WEDGED", 1)])
def test_the_exit_status(outcome: str, status: int) -> None:
    assert exit_status([VERDICTS[0], Verdict("", Outcome(outcome), "", 0.0)]) == status


# The budget, and what is asked for


def test_a_budget_of_nothing_tries_nothing() -> None:
    verdicts = run(lambda: InProcess(disk()), "blk", budget=-1.0)
    assert {verdict.verdict for verdict in verdicts} == {Outcome.SKIP}
    assert verdicts[0].detail == "split: the budget of -1 s is spent"


def test_only_what_is_asked_for() -> None:
    for only, clauses in (("blk.device.device-op.9", 1), ("blk.device.device-init", 4), ("vq.", 3)):
        verdicts = run(lambda: InProcess(disk()), "blk", only=only)
        assert len({verdict.clause for verdict in verdicts}) == clauses, only


@pytest.mark.parametrize("arguments", [["--device", "blk", "--only", "nothing.at.all"], ["--device", "gpu"]])
def test_what_cannot_be_judged_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["conform", "--socket-path", str(tmp_path / "nobody"), *arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nobody_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "--socket-path", str(tmp_path / "nobody"), "--device", "blk"]) == 2
    assert "No such file" in capsys.readouterr().err


# Over a socket, the command line at both ends

linux = pytest.mark.skipif(sys.platform != "linux", reason="vhost-user needs Linux")
SERVE: Final = [sys.executable, "-m", "virtio_py.cli.main", "serve"]
OPTIONS: Final[dict[str, list[str]]] = {
    "blk": ["--blk-file", "{folder}/disk.img"],
    "net": ["--port", "loopback", "--queue-pairs", "2"],
    "scsi": ["--lun", "{folder}/disk.img"],
    "console": ["--port", "log=file:{folder}/log", "--console", "log"],
}


@linux
@pytest.mark.long
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("device", OPTIONS)
def test_our_back_ends_conform(device: str, packed: bool, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    options = [option.format(folder=tmp_path) for option in OPTIONS[device]] + ["--packed"] * packed
    socket, written = tmp_path / "socket", tmp_path / "verdicts.json"
    spawn = " ".join([*SERVE, device, "--socket-path", str(socket), *options])
    arguments = ["--socket-path", str(socket), "--device", device, "--json", str(written), "--spawn", spawn]
    assert main(["conform", *arguments]) == 0
    rows = json.loads(written.read_text())["verdicts"]
    assert {row["verdict"] for row in rows} == {"PASS", "REJECT", "SKIP"}
    unoffered = [row for row in rows if "RING_PACKED is not offered" in row["detail"]]
    assert bool(unoffered) != packed
    # `serve` lets no status messages through to a console (QEMU writes it half of them): those clauses are skipped.
    without_status = 10 if device == "console" else 0
    assert sum(row["verdict"] == "PASS" for row in rows) > (80 if packed else 45) - without_status


@linux
def test_a_back_end_that_dies_is_started_again(tmp_path: Path) -> None:
    """It ends at the first hostile chain, in the way of a program that has crashed."""
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    socket, written = tmp_path / "socket", tmp_path / "verdicts.json"
    fragile = Path(__file__).parent / "fragile_back_end.py"
    spawn = f"{sys.executable} {fragile} {socket}"
    common = ["conform", "--socket-path", str(socket), "--device", "blk", "--json", str(written), "--patience", "0.5"]
    assert main([*common, "--only", "split.driver.indirect-descriptors", "--spawn", spawn]) == 1
    rows = json.loads(written.read_text())["verdicts"]
    assert [row["verdict"] for row in rows] == ["WEDGED"] * 4, rows
    assert "then the back-end is gone" in rows[0]["detail"]
    # Without anybody to start it again, there is nothing more to be judged.
    socket.unlink()
    with Popen([sys.executable, str(fragile), str(socket)], stdout=DEVNULL) as process:
        try:
            wait_until(lambda: listening(socket), "the back-end is up", 30)
            assert main([*common, "--only", "split.driver.indirect-descriptors"]) == 1
        finally:
            process.kill()
    rows = json.loads(written.read_text())["verdicts"]
    assert [row["verdict"] for row in rows] == ["WEDGED", "SKIP", "SKIP", "SKIP"], rows
    assert rows[1]["detail"] == "split: the back-end is gone since hostile_indirect_not_negotiated"
