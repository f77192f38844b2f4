"""sg3-utils' opinion of our bytes: INQUIRY data, vital product data pages, sense data."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.peers.require import require
from tests.scsi_tools import carried_out, disk
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.scsi import commands, sense
from virtio_py.devices.scsi.cdrom import ScsiCdrom
from virtio_py.devices.scsi.protection import Protection
from virtio_py.devices.scsi.sense import Condition, encode_sense, invalid_in_cdb
from virtio_py.devices.scsi.unit import LogicalUnit

pytestmark = pytest.mark.peer


def decoded(program: str, data: bytes, directory: Path, *options: str) -> str:
    """What a program says of binary data in a file."""
    [path] = require(program)
    file = directory / "data"
    file.write_bytes(data)
    done = subprocess.run([path, *(o.format(file) for o in options)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def inquiry(unit: LogicalUnit, page: int | None = None) -> bytes:
    outcome, data = carried_out(unit, commands.inquiry(255, page), room=255)
    assert outcome.status == 0
    return bytes(data)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (disk(), ("Peripheral device type: disk", "version=0x06  [SPC-4]", "CmdQue=1", "Protect=0", "RMB=0")),
        (
            disk(protection=Protection(MemoryMedium.of(512))),
            ("Protect=1", "Vendor identification: VIRTIO", "SBC-3", "SAM-5", "SPC-4"),
        ),
        (ScsiCdrom(MemoryMedium.of(4096)), ("Peripheral device type: cd/dvd", "RMB=1", "MMC-6")),
    ],
)
def test_standard_inquiry_data(unit: LogicalUnit, expected: tuple[str, ...], tmp_path: Path) -> None:
    said = decoded("sg_inq", inquiry(unit), tmp_path, "--raw", "--descriptors", "--inhex={}")
    said += decoded("sg_inq", inquiry(unit), tmp_path, "--raw", "--inhex={}")
    for text in expected:
        assert text in said


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (0x00, ("Unit serial number [sn]", "Block limits (SBC) [bl]", "Logical block provisioning (SBC) [lbpv]")),
        (0x80, ("Unit serial number: SERIAL-7",)),
        (0x83, ("vendor id: VIRTIO", "SERIAL-7", "designator type: NAA", "Relative target port: 0x1")),
        (0x86, ("SIMPSUP=1", "V_SUP=1", "GRD_CHK=0")),
        (0xB0, ("(WSNZ): 1", "Maximum transfer length: 32768 blocks", "Maximum compare and write length: 255 blocks")),
        (0xB1, ("Non-rotating medium", "FUAB=1")),
        (0xB2, ("(LBPU): 1", "(LBPWS10): 1", "Provisioning type: 2 (thin provisioned)")),
    ],
)
def test_vital_product_data(page: int, expected: tuple[str, ...], tmp_path: Path) -> None:
    data = inquiry(disk(serial="SERIAL-7"), page)
    said = decoded("sg_vpd", data, tmp_path, f"--page={page:#x}", "--raw", "--inhex={}")
    for text in expected:
        assert text in said


CONDITIONS = {
    "NO_MEDIUM": "Medium not present",
    "STOPPED": "initializing command required",
    "READ_ERROR": "Unrecovered read error",
    "WRITE_ERROR": "Write error",
    "PARAMETER_LIST_LENGTH": "Parameter list length error",
    "INVALID_OPCODE": "Invalid command operation code",
    "LBA_OUT_OF_RANGE": "Logical block address out of range",
    "INVALID_FIELD_IN_CDB": "Invalid field in cdb",
    "LUN_NOT_SUPPORTED": "Logical unit not supported",
    "INVALID_FIELD_IN_LIST": "Invalid field in parameter list",
    "INVALID_RELEASE": "Invalid release of persistent reservation",
    "SAVING_NOT_SUPPORTED": "Saving parameters not supported",
    "REMOVAL_PREVENTED": "Medium removal prevented",
    "INSUFFICIENT_REGISTRATION_RESOURCES": "Insufficient registration resources",
    "MEDIUM_CHANGED": "Not ready to ready change, medium may have changed",
    "POWER_ON": "Power on, reset, or bus device reset occurred",
    "DEVICE_RESET": "Bus device reset function occurred",
    "NEXUS_LOSS": "I_T nexus loss occurred",
    "MODE_CHANGED": "Mode parameters changed",
    "RESERVATIONS_PREEMPTED": "Reservations preempted",
    "RESERVATIONS_RELEASED": "Reservations released",
    "REGISTRATIONS_PREEMPTED": "Registrations preempted",
    "CAPACITY_CHANGED": "Capacity data has changed",
    "LUNS_CHANGED": "Reported luns data has changed",
    "WRITE_PROTECTED": "Write protected",
    "SOFTWARE_WRITE_PROTECTED": "Logical unit software write protected",
    "SPACE_ALLOCATION_FAILED": "Space allocation failed write protect",
    "GUARD_CHECK_FAILED": "Logical block guard check failed",
    "REFERENCE_TAG_CHECK_FAILED": "Logical block reference tag check failed",
    "MISCOMPARE": "Miscompare during verify operation",
}


@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_are_what_their_names_say(name: str, descriptors: bool, tmp_path: Path) -> None:
    condition: Condition = getattr(sense, name)
    data = encode_sense(condition, descriptors=descriptors)
    said = decoded("sg_decode_sense", data, tmp_path, "--binary={}")
    assert ("Descriptor format" if descriptors else "Fixed format") in said
    assert CONDITIONS[name].lower() in said.lower()


@pytest.mark.parametrize("descriptors", [False, True])
def test_details_of_sense_data(descriptors: bool, tmp_path: Path) -> None:
    said = decoded("sg_decode_sense", invalid_in_cdb(2, 5).encode(descriptors), tmp_path, "--binary={}")
    assert "Error in Command: byte 2 bit 5" in said
    data = encode_sense(sense.READ_ERROR, 0x1234, None, descriptors)
    said = decoded("sg_decode_sense", data, tmp_path, "--binary={}")
    assert "1234" in said
