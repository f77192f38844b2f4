"""`virtio-py serve scsi` behind the SCSI host driver of a real Linux kernel, and sg3-utils in that guest."""

from __future__ import annotations

import hashlib
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.peers.blk import check_tree
from tests.peers.process import Server, serving
from tests.peers.require import require
from tests.peers.uml import Machine, Result, UserModeLinux, VhostUser
from virtio_py.spec import DeviceId

pytestmark = pytest.mark.peer

MANY = 300


def serve_scsi(socket: Path, *options: str) -> AbstractContextManager[Server]:
    """Our SCSI host as a process of its own."""
    command = [sys.executable, "-m", "virtio_py.cli.main", "serve", "scsi", "--socket-path", str(socket), *options]
    return serving(command, socket, seconds=120)


@contextmanager
def guest(uml: UserModeLinux, server: Server, script: str, *args: str, memory: str = "128M") -> Iterator[Machine]:
    """A guest whose only device is the SCSI host."""
    devices = [VhostUser(server.socket, DeviceId.SCSI)]
    with uml.boot(script, *args, devices=devices, memory=memory, seconds=150) as machine:
        yield machine


def run(uml: UserModeLinux, server: Server, script: str, *args: str, memory: str = "128M") -> Result:
    """The result of a guest script that must succeed, and leave nothing for the kernel to complain of."""
    with guest(uml, server, script, *args, memory=memory) as machine:
        return check(machine.result())


# The unit attention that every unit begins with, in the kernel's words, and the reset that sg_reset asks for.
EXPECTED = ("power-on or device reset occurred", "device reset")
# What it says of every disk that is pulled out before it is asked.
PULLED = ("[sdb] synchronize cache(10) failed: result: hostbyte=0x04 driverbyte=driver_ok",)


def check(result: Result, expected: tuple[str, ...] = EXPECTED) -> Result:
    assert result.status == 0, result.output
    assert [line for line in result.complaints() if not line.endswith(expected)] == []
    return result


def sections(output: str) -> dict[str, str]:
    """What each tool of scsi_tools.sh said, by its command line."""
    parts = ("\n" + output).split("\n== ")[1:]
    return {head: body for head, _, body in (part.partition("\n") for part in parts)}


def image(path: Path, size: int, seed: int = 0) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


@pytest.mark.long
@pytest.mark.parametrize("ring", [(), ("--packed",)], ids=["split", "packed"])
def test_a_file_system_survives(uml: UserModeLinux, disk_image: Path, tmp_path: Path, ring: tuple[str, ...]) -> None:
    require("mkfs.ext4", "e2fsck", "fstrim")
    with serve_scsi(tmp_path / "scsi.sock", "--lun", str(disk_image), *ring) as server:
        result = run(uml, server, "scsi_ext4.sh", memory="256M")
    assert "files:" in result.output
    check_tree(disk_image, tmp_path)


def test_what_sg3_utils_make_of_a_disk(uml: UserModeLinux, disk_image: Path, tmp_path: Path) -> None:
    require("sg_inq", "sg_vpd", "sg_readcap", "sg_unmap", "sg_persist", "sg_opcodes", "sg_luns", "sg_modes", "sg_turs")
    with serve_scsi(tmp_path / "scsi.sock", "--lun", str(disk_image), "--lun", "0:5=" + str(disk_image)) as server:
        said = sections(run(uml, server, "scsi_tools.sh").output)
    failed = [name for name, text in said.items() if "status" in text.splitlines()[-1:]]
    assert failed == []
    for command, expected in EXPECTED_OF_TOOLS.items():
        for line in expected:
            assert line in said[command], f"{command}: {line!r} is not in {said[command]}"
    assert said["unmapped"].strip() == "0"


EXPECTED_OF_TOOLS = {
    "sg_inq /dev/sg0": ("version=0x06  [SPC-4]", "Vendor identification: VIRTIO", "Peripheral device type: disk"),
    "sg_vpd -p 0 /dev/sg0": ("[sn]", "[di]", "[ei]", "[bl]", "[bdc]", "[lbpv]"),
    "sg_vpd -p di /dev/sg0": ("designator type: NAA", "Relative target port: 0x1"),
    "sg_vpd -p bl /dev/sg0": ("(WSNZ): 1", "Maximum unmap LBA count: 131072", "Maximum transfer length: 32768 blocks"),
    "sg_vpd -p bdc /dev/sg0": ("Non-rotating medium", "FUAB=1"),
    "sg_vpd -p lbpv /dev/sg0": ("(LBPU): 1", "(LBPRZ): 1", "Provisioning type: 2 (thin provisioned)"),
    "sg_readcap -l /dev/sg0": ("lbpme=1, lbprz=1", "Device size: 268435456 bytes"),
    "sg_readcap /dev/sg0": ("Last LBA=524287", "Logical block length=512 bytes"),
    "sg_luns /dev/sg0": ("0000000000000000", "0005000000000000"),
    "sg_luns -s 2 /dev/sg0": ("c101000000000000",),
    "sg_opcodes /dev/sg0": ("Unmap", "Write same(16)", "Persistent reserve out, preempt and abort"),
    "sg_opcodes -o 0x42 /dev/sg0": ("Usage data: 42 01 00 00 00 00 1f ff ff 00",),
    "sg_opcodes -t /dev/sg0": ("Logical unit reset", "Query task set", "I_T nexus reset"),
    "sg_modes -a /dev/sg0": ("DpoFua=1", ">> Caching", ">> Control", "00     08 12 04"),
    "sg_persist --in --read-keys /dev/sg0": ("0xabc",),
    "sg_persist --in --read-reservation /dev/sg0": ("Key=0xabc", "type: Exclusive Access"),
    "sg_persist --in --read-full-status /dev/sg0": ("Reservation holder", "iSCSI name: virtio-py"),
    "sg_persist --in --report-capabilities /dev/sg0": ("Exclusive Access, all registrants: 1",),
    "sg_persist --in -k /dev/sg0": ("there are NO registered reservation keys",),
}


@pytest.mark.clause("scsi.device.features-text.1")
def test_units_come_grow_and_go_while_the_guest_runs(uml: UserModeLinux, disk_image: Path, tmp_path: Path) -> None:
    units, other = tmp_path / "units", image(tmp_path / "other.img", 1 << 20)
    units.write_text("# nothing yet\n")
    with serve_scsi(tmp_path / "scsi.sock", "--lun", str(disk_image), "--lun-list", str(units)) as server:

        def change(text: str) -> None:
            units.write_text(text)
            server.process.send_signal(signal.SIGHUP)

        with guest(uml, server, "scsi_hotplug.sh") as machine:
            machine.wait_for("ready\n")
            change(f"2:3={other}\n")
            machine.wait_for("seen\n")
            with other.open("r+b") as file:
                file.truncate(2 << 20)
            change(f"2:3={other}\n")
            machine.wait_for("grown\n")
            change("")
            result = check(machine.result(), EXPECTED + PULLED)
    lines = result.output.splitlines()
    assert [line for line in lines if line.startswith("address")] == ["address: 0:0:2:3"]
    assert [line for line in lines if line.startswith("sectors")] == ["sectors: 2048", "sectors: 4096"]
    assert hashlib.sha256(other.read_bytes()[: 16 * 4096]).hexdigest() in result.output
    assert lines[-1] == "left: 1"


@pytest.mark.long
def test_three_hundred_units_are_found(uml: UserModeLinux, tmp_path: Path) -> None:
    places = [(n % 3, n // 3 if n < 290 else 300 + n) for n in range(MANY)]
    for target, lun in places:
        (tmp_path / f"{target}.{lun}").write_bytes(f"unit {target} {lun}\n".encode().ljust(4096, b"\0"))
    units = tmp_path / "units"
    units.write_text("".join(f"{target}:{lun}={tmp_path / f'{target}.{lun}'}\n" for target, lun in places))
    with serve_scsi(tmp_path / "scsi.sock", "--lun-list", str(units)) as server:
        result = run(uml, server, "scsi_many.sh", str(MANY), memory="256M")
    found = {tuple(line.split(" ", 2)[1:]) for line in result.output.splitlines() if line.startswith("sd")}
    # Linux's number of a LUN is its first two bytes: above 255 those of flat addressing.
    numbers = {(target, lun): lun if lun < 256 else 0x4000 | lun for target, lun in places}
    assert found == {(f"0:0:{t}:{numbers[t, n]}", f"unit {t} {n}") for t, n in places}


def test_a_cd_rom_is_read_and_its_tray_opens(uml: UserModeLinux, tmp_path: Path) -> None:
    require("sg_turs", "sg_inq")
    disc = image(tmp_path / "disc.iso", 3 << 20)
    with serve_scsi(tmp_path / "scsi.sock", "--cdrom", str(disc)) as server:
        result = run(uml, server, "scsi_cdrom.sh")
    digest = hashlib.sha256(disc.read_bytes()).hexdigest()
    lines = result.output.splitlines()
    assert f"sectors: {(3 << 20) // 512}" in lines
    assert f"disc: {digest}" in lines
    assert f"again: {digest}" in lines
