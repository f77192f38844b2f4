"""Drivers under judgement: ours keep every clause, and one that breaks a clause is found by it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import frozen

from tests.peers.process import listening, wait_until
from tests.test_conformance import RING, console, disk, scsi_host
from virtio_py.cli.main import main
from virtio_py.device import Device
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.layout import BlkRequest, virtio_blk_discard_write_zeroes, virtio_blk_req
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.layout import Gso, NetFeature, virtio_net_hdr
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.devices.scsi.device import ScsiDevice
from virtio_py.devices.scsi.driver import ScsiDriver
from virtio_py.driver import Driver
from virtio_py.errors import UsageError, VirtioError
from virtio_py.rings.layouts import virtq_avail, virtq_desc
from virtio_py.spec import Feature, bit, mask
from virtio_py.testing.clauses import load, notes_folder
from virtio_py.testing.conformance import Outcome
from virtio_py.testing.conformance.driver import Judge, judged
from virtio_py.transports.in_process import InProcess

PACKED: Final = bit(Feature.RING_PACKED)
INDEX: Final = load(notes_folder()).clauses


def net() -> NetDevice:
    return NetDevice(LoopbackPort(), pairs=2, mtu=1500)


def _blk(transport: InProcess, features: int) -> None:
    driver = BlkDriver(transport, features=BlkDriver.known_features | features).start()
    driver.write(8, bytes(8192))
    assert driver.read(8, 16) == bytes(8192)
    driver.flush()
    driver.get_id()
    driver.discard([(0, 8)])
    driver.write_zeroes([(0, 8)], unmap=True)
    driver.set_writeback(False)


def _net(transport: InProcess, features: int) -> None:
    driver = NetDriver(transport, features=NetDriver.known_features | features).start()
    driver.set_promiscuous(True)
    driver.send(b"\xff" * 12 + b"\x88\xb5" + bytes(50))
    assert driver.receive() is not None


def _scsi(transport: InProcess, features: int) -> None:
    driver = ScsiDriver(transport, features=ScsiDriver.known_features | features).start()
    driver.scan([0])
    driver.set_sizes(sense_size=64)
    assert driver.read(0, 0, 0, 1) == bytes(512)


def _console(transport: InProcess, features: int) -> None:
    driver = ConsoleDriver(transport, features=ConsoleDriver.known_features | features).start()
    driver.port("agent").open()


OURS: Final[dict[str, tuple[Callable[[], Device], Callable[[InProcess, int], None], int]]] = {
    "blk": (disk, _blk, 24),
    "net": (net, _net, 24),
    "scsi": (scsi_host, _scsi, 16),
    "console": (lambda: console(more=[ConsolePort(MemoryEndpoint(), "agent")], max_ports=4), _console, 14),
}
"""A device, what our driver does with it, and how many clauses there is occasion for at least."""


@pytest.mark.parametrize("features", [0, bit(Feature.IN_ORDER)], ids=["any-order", "in-order"])
@pytest.mark.parametrize("layout", ["split", "packed"])
@pytest.mark.parametrize("name", OURS)
def test_our_drivers_keep_every_clause(name: str, layout: str, features: int) -> None:
    make, use, least = OURS[name]
    judge = judged(make(), name)
    ring = (RING if layout == "packed" else RING & ~PACKED) & ~bit(Feature.IN_ORDER) | features
    use(InProcess(judge, ring_features=ring), ring)
    verdicts = judge.ledger.verdicts()
    assert {v.verdict for v in verdicts} <= {Outcome.PASS, Outcome.SKIP}, verdicts
    assert sum(v.verdict is Outcome.PASS for v in verdicts) >= least - 6 * (layout == "packed")
    assert {v.clause for v in verdicts if not v.clause.startswith("prose.")} <= INDEX.keys()


def test_what_is_not_there_cannot_be_judged() -> None:
    with pytest.raises(UsageError, match="'gpu' is none of"):
        judged(disk(), "gpu")


# Drivers that break a clause

Act = Callable[[Any], None]


def _request(*parts: bytes, room: tuple[int, ...] = (1,), queue: int = 0) -> Act:
    return lambda driver: driver.transact(driver.queues[queue], parts, room)


def _range(kind: int, unmap: int, times: int = 1) -> Act:
    segment = virtio_blk_discard_write_zeroes.encode(sector=0, num_sectors=1, flags={"unmap": unmap, "reserved": 0})
    return _request(virtio_blk_req.encode(type=kind), segment * times)


def _packet(**fields: int) -> Act:
    def send(driver: Driver) -> None:
        header = virtio_net_hdr.encode(**fields)[:12]
        driver.transact(driver.queues[1], [header + b"\xff" * 14 + bytes(50)], [])

    return send


def _flags(value: int) -> Act:
    """The driver writes the flags of its available ring, and asks for something."""

    def act(driver: Driver) -> None:
        queue = driver.queues[0]
        at = queue.driver_area + virtq_avail(queue.size).offset("flags")
        driver.transport.arena.memory.write(at, value.to_bytes(2, "little"))
        part = driver.transport.arena.allocate(20)
        part.view[:16] = virtio_blk_req.encode(type=BlkRequest.FLUSH)
        queue.add([(part.address, 16)], [(part.address + 16, 1)])
        driver.transport.available_buffer(0, 0)
        driver.transport.wait(0)

    return act


def _link(driver: Driver) -> None:
    """With IN_ORDER, a chain whose second descriptor is not the next one."""
    queue, arena = driver.queues[0], driver.transport.arena
    part = arena.allocate(20)
    part.view[:16] = virtio_blk_req.encode(type=BlkRequest.FLUSH)
    queue.add([(part.address, 16)], [(part.address + 16, 1)])
    at = queue.descriptor_area
    second = virtq_desc.decode(arena.memory.read(at + virtq_desc.size, virtq_desc.size))
    arena.memory.write(at + 5 * virtq_desc.size, virtq_desc.encode(**second._asdict()))
    arena.memory.write(at + virtq_desc.offset("next"), (5).to_bytes(2, "little"))
    driver.transport.available_buffer(0, 0)
    driver.transport.wait(0)


@frozen
class Case:
    """features: of the ring and the device, wanted less those left out."""

    name: str
    clause: str
    act: Act
    device: str = "blk"
    without: int = 0
    ring: int = bit(Feature.VERSION_1)
    advice: bool = False


_F: Final = NetFeature
CHECKSUMS: Final = mask(_F.CSUM, _F.HOST_TSO4, _F.HOST_TSO6, _F.HOST_ECN, _F.HOST_UFO, _F.HOST_USO)
HEAD: Final = virtio_blk_req.encode(type=BlkRequest.FLUSH)
OUT: Final = virtio_blk_req.encode(type=BlkRequest.OUT)
FAR: Final = virtio_blk_req.encode(type=BlkRequest.IN, sector=1 << 40)
CASES: Final = [
    Case("flush with a sector", "blk.driver.device-op.4", _request(virtio_blk_req.encode(type=4, sector=7))),
    Case("flush with data", "blk.driver.device-op.5", _request(HEAD, bytes(512)), advice=True),
    Case("half a sector", "blk.driver.device-op.6", _request(OUT, bytes(100))),
    Case("behind the capacity", "blk.driver.device-op.2", _request(FAR, room=(512, 1))),
    Case("a long ID", "blk.driver.device-op.8", _request(virtio_blk_req.encode(type=8), room=(21, 1))),
    Case("discard with unmap", "blk.driver.device-op.14", _range(BlkRequest.DISCARD, 1)),
    Case("half a segment", "blk.driver.device-op.7", _request(virtio_blk_req.encode(type=13), bytes(24))),
    Case("many segments", "blk.driver.device-op.11", _range(BlkRequest.WRITE_ZEROES, 0, 33)),
    Case("unknown flags", "split.driver.used-buffer-notification-suppression.1", _flags(4)),
    Case(
        "flags with events",
        "split.driver.used-buffer-notification-suppression.3",
        _flags(1),
        ring=bit(Feature.VERSION_1) | bit(Feature.EVENT_IDX),
    ),
    Case(
        "a jump in order",
        "split.driver.descriptor-table.2",
        _link,
        ring=bit(Feature.VERSION_1) | bit(Feature.IN_ORDER),
    ),
    Case("num_buffers", "net.driver.packet-transmission.2", _packet(num_buffers=1), "net"),
    Case("DATA_VALID", "net.driver.packet-transmission.45", _packet(flags=2), "net"),
    Case("flags", "net.driver.packet-transmission.3", _packet(flags=1), "net", without=CHECKSUMS),
    Case("no segments", "net.driver.packet-transmission.33", _packet(flags=1, gso_type=Gso.TCPV4), "net"),
    Case("far away", "net.driver.packet-transmission.30", _packet(flags=1, csum_start=60, csum_offset=60), "net"),
    Case(
        "GSO unasked",
        "net.driver.packet-transmission.7",
        _packet(flags=1, gso_type=Gso.TCPV4, gso_size=10),
        "net",
        without=bit(NetFeature.HOST_TSO4),
    ),
    Case("no pairs", "net.driver.automatic-receive-steering.2", _request(b"\4\0\0\0", queue=4), "net"),
    Case("a bad table", "net.driver.mac-filtering.3", _request(b"\1\0\1\0\0\0", queue=4), "net"),
    Case("configuration", "net.driver.config-layout.1", lambda d: d.transport.write_config(0, b"\2"), "net"),
    Case("a field", "scsi.driver.config-layout.1", lambda d: d.transport.write_config(0, bytes(4)), "scsi"),
    Case("small events", "scsi.driver.eventq.4", _request(room=(8,), queue=1), "scsi"),
    Case("output to write to", "console.driver.device-op.2", _request(b"x", room=(4,), queue=1), "console"),
]


class Plain(Driver):
    """A driver of any device, that has only what it was given."""

    known_features = (1 << 70) - 1

    def check_device(self) -> None:
        """Whatever it is."""


DEVICES: Final[dict[str, Callable[[], Device]]] = {
    "blk": disk,
    "net": net,
    "scsi": lambda: ScsiDevice(),
    "console": console,
}


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_a_breach_is_found(case: Case) -> None:
    judge = judged(DEVICES[case.device](), case.device)
    carrier = InProcess(judge, ring_features=RING)
    own = DEVICES[case.device]().offered_features() & ~(0xFFFFFFFF << 24) & ~(1 << 9 | 1 << 13)
    own |= bit(9) if case.device == "blk" else 0
    driver = Plain(carrier, features=own & ~case.without | case.ring, queue_size=16).start()
    try:
        case.act(driver)
    except VirtioError:
        # The device may well refuse it.
        assert judge.ledger.entries[case.clause].seen
    entry = judge.ledger.entries[case.clause]
    assert entry.advice if case.advice else entry.broken, judge.ledger.verdicts()


def test_a_server_that_hangs_up_says_why() -> None:
    judge = Judge(disk(), "blk")
    judge.ledger.heard("hung up on the front-end: features 0x2 were not offered [features.driver.feature-bits.1]")
    [verdict] = judge.ledger.verdicts("features.driver.feature-bits.1")
    assert verdict.verdict is Outcome.FAIL
    assert verdict.detail.startswith("hung up")


@pytest.mark.skipif(sys.platform != "linux", reason="vhost-user needs Linux")
def test_the_command_judges_whoever_connects(tmp_path: Path) -> None:
    socket, written = tmp_path / "s", tmp_path / "verdicts.json"
    command = [sys.executable, "-m", "virtio_py.cli.main", "conform-driver", "--listen", str(socket), "--device", "blk"]
    with subprocess.Popen([*command, "--json", str(written), "--packed"], stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: listening(socket), "it listens", 60)
            assert main(["drive", "blk", "--socket-path", str(socket), "info"]) == 0
            assert process.wait(20) == 0
        finally:
            process.kill()
    rows = {row["clause"]: row["verdict"] for row in json.loads(written.read_text())["verdicts"]}
    assert rows["blk.driver.device-op.8"] == rows["packed.driver.scatter-gather-support.3"] == "PASS"
    assert rows["blk.driver.device-op.4"] == "SKIP"


@pytest.mark.skipif(sys.platform != "linux", reason="vhost-user needs Linux")
def test_a_budget_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["conform-driver", "--listen", str(tmp_path / "s"), "--device", "scsi", "--budget", "0.2"]
    result = subprocess.run([sys.executable, "-m", "virtio_py.cli.main", *command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "there was no occasion" in result.stdout
    assert not (tmp_path / "s").exists()
