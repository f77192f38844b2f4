"""CDBs as an initiator writes them, and what the data in say; big-endian, sizes in bytes, addresses in blocks."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from virtio_py.devices.scsi import cdb as cdbs
from virtio_py.devices.scsi.cdb import Opcode, PrOut, ServiceAction
from virtio_py.devices.scsi.filling import unmap_descriptor, unmap_header
from virtio_py.devices.scsi.reserve import pr_out_parameters
from virtio_py.devices.scsi.sbc import capacity_16
from virtio_py.devices.scsi.vpd import standard_inquiry
from virtio_py.errors import RequestError
from virtio_py.records import Record

_BY_SIZE: Final = {"READ": cdbs.read, "WRITE": cdbs.write, "VERIFY": cdbs.verify}


class Inquiry(NamedTuple):
    """What standard INQUIRY data say. qualifier: 0 where there is a unit; type: the peripheral device type."""

    qualifier: int
    type: int
    removable: bool
    vendor: str
    product: str
    revision: str


class Capacity(NamedTuple):
    """How many blocks there are, and of how many bytes; thin: storage can be given back (LBPME)."""

    blocks: int
    block_size: int
    thin: bool
    protected: bool


def test_unit_ready() -> bytes:
    """TEST UNIT READY."""
    return cdbs.test_unit_ready.encode(opcode=Opcode.TEST_UNIT_READY)


def request_sense(size: int, descriptors: bool = False) -> bytes:
    """REQUEST SENSE."""
    flags = {"desc": int(descriptors)}
    return cdbs.request_sense.encode(opcode=Opcode.REQUEST_SENSE, flags=flags, allocation=size)


def inquiry(size: int, page: int | None = None) -> bytes:
    """INQUIRY: standard data, or a vital product data page."""
    flags = {"evpd": int(page is not None)}
    return cdbs.inquiry.encode(opcode=Opcode.INQUIRY, flags=flags, page_code=page or 0, allocation=size)


def report_luns(size: int, select: int = 0) -> bytes:
    """REPORT LUNS."""
    return cdbs.report_luns.encode(opcode=Opcode.REPORT_LUNS, select_report=select, allocation=size)


def read_capacity_16(size: int = capacity_16.size) -> bytes:
    """READ CAPACITY (16)."""
    action = {"service_action": ServiceAction.SERVICE_ACTION_IN_16_READ_CAPACITY_16}
    return cdbs.read_capacity_16.encode(opcode=Opcode.SERVICE_ACTION_IN_16, action=action, allocation=size)


def read_capacity_10() -> bytes:
    """READ CAPACITY (10)."""
    return cdbs.read_capacity_10.encode(opcode=Opcode.READ_CAPACITY_10)


def transfer(name: str, lba: int, number: int, size: int = 16, **flags: int) -> bytes:
    """READ, WRITE or VERIFY with a CDB of 6, 10, 12 or 16 bytes. Raises LayoutError for a range that does not fit."""
    opcode = Opcode[f"{name}_{size}"]
    if size == 6:
        return cdbs.read_write_6.encode(opcode=opcode, where={"lba": lba}, count=number % 256)
    return _BY_SIZE[name][size].encode(opcode=opcode, lba=lba, count=number, flags=flags)


def write_same(lba: int, number: int, unmap: bool = False, ndob: bool = False) -> bytes:
    """WRITE SAME (16)."""
    flags = {"unmap": int(unmap), "ndob": int(ndob)}
    return cdbs.write_same[16].encode(opcode=Opcode.WRITE_SAME_16, lba=lba, count=number, flags=flags)


def synchronize_cache(lba: int = 0, number: int = 0) -> bytes:
    """SYNCHRONIZE CACHE (16)."""
    return cdbs.synchronize_cache[16].encode(opcode=Opcode.SYNCHRONIZE_CACHE_16, lba=lba, count=number)


def unmap(ranges: list[tuple[int, int]]) -> tuple[bytes, bytes]:
    """UNMAP: its CDB and its parameter list, for ranges of (address, number of blocks)."""
    body = b"".join(unmap_descriptor.encode(lba=lba, count=number) for lba, number in ranges)
    head = unmap_header.encode(data_length=unmap_header.size - 2 + len(body), descriptors_length=len(body))
    return cdbs.unmap.encode(opcode=Opcode.UNMAP, length=len(head + body)), head + body


def mode_sense(size: int, page: int, control: int = 0, dbd: bool = False) -> bytes:
    """MODE SENSE (10)."""
    return cdbs.mode_sense[10].encode(
        opcode=Opcode.MODE_SENSE_10,
        flags={"dbd": int(dbd)},
        page={"code": page, "control": control},
        allocation=size,
    )


def mode_select(pages: bytes) -> tuple[bytes, bytes]:
    """MODE SELECT (10): its CDB and its parameter list, without a block descriptor."""
    data = bytes(8) + pages
    return cdbs.mode_select[10].encode(opcode=Opcode.MODE_SELECT_10, flags={"pf": 1}, length=len(data)), data


def start_stop(start: bool, eject: bool = False) -> bytes:
    """START STOP UNIT; with `eject` the tray moves."""
    power = {"start": int(start), "loej": int(eject)}
    return cdbs.start_stop_unit.encode(opcode=Opcode.START_STOP_UNIT, power=power)


def reserve_in(action: int, size: int) -> bytes:
    """PERSISTENT RESERVE IN."""
    return cdbs.persistent_reserve_in.encode(
        opcode=Opcode.PERSISTENT_RESERVE_IN, action={"service_action": action}, allocation=size
    )


def reserve_out(action: PrOut, key: int, new_key: int = 0, kind: int = 0) -> tuple[bytes, bytes]:
    """PERSISTENT RESERVE OUT: its CDB and its parameter list."""
    data = pr_out_parameters.encode(reservation_key=key, service_action_key=new_key)
    cdb = cdbs.persistent_reserve_out.encode(
        opcode=Opcode.PERSISTENT_RESERVE_OUT,
        action={"service_action": action},
        reservation={"type": kind},
        length=len(data),
    )
    return cdb, data


def get_event_status(size: int = 8, classes: int = 0x10) -> bytes:
    """GET EVENT STATUS NOTIFICATION, polled."""
    return cdbs.get_event_status.encode(
        opcode=Opcode.GET_EVENT_STATUS_NOTIFICATION, flags={"polled": 1}, classes=classes, allocation=size
    )


# What comes back


def parse_inquiry(data: bytes) -> Inquiry:
    """Standard INQUIRY data, which an older unit makes shorter. Raises RequestError for less than 5 bytes."""
    values = _decode(standard_inquiry, data, 5)
    texts = (getattr(values, name).decode("ascii", "replace").strip() for name in ("vendor", "product", "revision"))
    peripheral = values.peripheral
    return Inquiry(peripheral.qualifier, peripheral.device_type, bool(values.removable.rmb), *texts)


def parse_capacity(data: bytes) -> Capacity:
    """READ CAPACITY (16) data."""
    values = _decode(capacity_16, data, 12)
    return Capacity(
        values.last_lba + 1, values.block_size, bool(values.provisioning.lbpme), bool(values.protection.prot_en)
    )


def parse_luns(data: bytes) -> tuple[int, list[bytes]]:
    """REPORT LUNS data: how many bytes there are of the list, and the LUNs that are here."""
    length = int.from_bytes(data[:4], "big")
    body = data[8 : 8 + length]
    return length, [body[at : at + 8] for at in range(0, len(body) - 7, 8)]


def lun_number(lun: bytes) -> int | None:
    """The number in an 8-byte LUN of a single level, None for one of another kind."""
    if any(lun[2:]) or lun[0] >> 6 > 1:
        return None
    return (lun[0] & 0x3F) << 8 | lun[1]


def _decode(record: Record, data: bytes, least: int) -> Any:
    if len(data) < least:
        raise RequestError(f"{record.name}: {len(data)} bytes are too few")
    return record.decode(data.ljust(record.size, b"\0"))
