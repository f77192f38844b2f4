"""A guest that is moved from one of our back-ends to another while it uses them: QEMU's live migration."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.peers.net import namespace, serve_net
from tests.peers.process import wait_until
from tests.peers.qemu import Device, Guest, Qemu, blk, net
from tests.peers.require import require
from tests.peers.test_qemu import PCI, check, echoing, healthy, serve
from tests.peers.uml import Result

pytestmark = [pytest.mark.peer, pytest.mark.long]

BLOCK = 1 << 18
BLOCKS = 100
STOP = b"stop".ljust(512, b"\0")
ROUNDS = 8
VARIANTS = {"split": ((), ()), "packed": (("packed=on",), ("--packed", "--engine", "compiled"))}


@contextmanager
def moved(
    qemu: Qemu, script: list[str], module: str, devices: list[Device], path: Path, finish: Callable[[Guest], Result]
) -> Iterator[Result]:
    """What a guest has printed, in the second machine, that was moved there in the middle of its rounds: some in each
    machine, and some while the move was under way. finish: has the guest come to its end."""
    modules, programs = [PCI, module], ["dd"]
    with ExitStack() as machines:
        source = machines.enter_context(qemu.boot(script, modules, devices=devices[:1], programs=programs, seconds=150))
        target = machines.enter_context(qemu.boot([], modules, devices=devices[1:], incoming=path, seconds=150))
        wait_for_rounds(source, ROUNDS)
        source.migrate(path, "round ", ROUNDS)
        wait_for_rounds(target, ROUNDS)
        yield check(finish(target))


def wait_for_rounds(guest: Guest, rounds: int) -> None:
    wait_until(lambda: guest.serial.count("round ") >= rounds, f"{rounds} rounds", 60)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_disk_is_handed_over(qemu: Qemu, tmp_path: Path, variant: str) -> None:
    """What the back-ends have put into the guest's memory is what the disk has, and the disk has what was written."""
    image = tmp_path / "disk.img"
    contents = random.Random(1).randbytes(BLOCKS * BLOCK)
    image.write_bytes(contents + bytes(BLOCKS * BLOCK + len(STOP)))
    ours, theirs = VARIANTS[variant]
    with ExitStack() as servers:
        paths = [tmp_path / name for name in ("a.sock", "b.sock")]
        both = [servers.enter_context(serve("blk", path, "--blk-file", str(image), *theirs)) for path in paths]

        def finish(target: Guest) -> Result:
            with image.open("r+b") as file:
                file.seek(-len(STOP), 2)
                file.write(STOP)
            return target.serial.result()

        script, devices = ["qemu_blk_moves.sh", str(BLOCKS), *require("dd")], [blk(path, *ours) for path in paths]
        with moved(qemu, script, "virtio_blk", devices, tmp_path / "move", finish) as result:
            check_disk(image, contents, result.output)
        assert all(map(healthy, both))


def check_disk(image: Path, contents: bytes, output: str) -> None:
    expected = hashlib.md5(contents).hexdigest()
    assert {f"memory: {expected}  -", f"disk: {expected}  -"} <= set(output.splitlines())
    last = max(int(line.split()[1]) for line in output.splitlines() if line.startswith("round "))
    written = image.read_bytes()[len(contents) :]
    for number in range(max(0, last + 1 - BLOCKS), last + 1):
        line, at = b"round %d\n" % number, number % BLOCKS * BLOCK
        assert written[at : at + BLOCK] == (line * (BLOCK // len(line) + 1))[:BLOCK], number


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_interface_is_handed_over(qemu: Qemu, tap: str, tmp_path: Path, variant: str) -> None:
    """Connections outlive the move from one port of a switch to another, and no byte of theirs is lost."""
    ours, theirs = VARIANTS[variant]
    paths, sums = [tmp_path / name for name in ("a.sock", "b.sock")], tmp_path / "sums"
    options = ["--socket-path", str(paths[1]), "--port", "switch", "--port", f"tap:{tap}", *theirs]
    # The namespace last: with it the interface goes, which a switch listens to also when nobody is connected.
    with namespace() as host, serve_net(paths[0], *options) as server:
        host.adopt(tap)

        def finish(target: Guest) -> Result:
            with echoing(host, 41701, tmp_path / "stop"):
                return target.serial.result()

        script, devices = ["qemu_net_moves.sh", "2"], [net(path, *ours) for path in paths]
        with (
            echoing(host, 41700, sums),
            moved(qemu, script, "virtio_net", devices, tmp_path / "move", finish) as result,
        ):
            assert " 0% packet loss" in result.output
        assert healthy(server)
    received = sums.read_text().splitlines()
    assert len(received) > 3 * ROUNDS
    assert len(set(received)) == 1
