"""Requests that a driver should not make, in rings that are as they should be: what devices parse.

    for request in requests_for(DeviceId.BLOCK):
        outcome = offend(transport, request)

A device answers with an error, or asks for a reset, or ignores it; what it must not do is die, write more than it says
or say more than it wrote. `offend` checks the latter two. Cut into pieces of one byte (A9), each must come to the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from attrs import frozen

from virtio_py.devices.blk.layout import BlkFeature, BlkRequest, virtio_blk_discard_write_zeroes, virtio_blk_req
from virtio_py.devices.console.layout import ConsoleFeature, virtio_console_control
from virtio_py.devices.net.control_layout import CtrlClass, virtio_net_ctrl, virtio_net_ctrl_mac
from virtio_py.devices.net.layout import NetFeature, virtio_net_hdr
from virtio_py.devices.scsi.layout import virtio_scsi_ctrl_tmf, virtio_scsi_req_cmd
from virtio_py.driver import Transport
from virtio_py.errors import Disconnected, PeerError, TransportError
from virtio_py.spec import DeviceId, DeviceStatus, Feature, mask
from virtio_py.testing.hostile_driver import BareDriver, Outcome

UNTOUCHED: Final = 0xEE
"""What stands in writable memory before the device has it."""


@frozen
class Offence:
    """One request. kind: the class in `attacks.ATTACK_CLASSES`; readable: what is sent; writable: bytes of room;
    features: mask of the device type's features it needs; queue: its index."""

    name: str
    kind: str
    device: DeviceId
    readable: bytes
    writable: int
    queue: int = 0
    features: int = 0


def _blk(name: str, kind: str, readable: bytes, writable: int, *features: BlkFeature) -> Offence:
    return Offence(name, kind, DeviceId.BLOCK, readable, writable, 0, mask(*features))


def _req(request: int, sector: int = 0) -> bytes:
    return virtio_blk_req.encode(type=request, sector=sector)


def _range(sector: int, count: int, flags: int = 0) -> bytes:
    return virtio_blk_discard_write_zeroes.encode(sector=sector, num_sectors=count, flags=flags)


def _net(name: str, kind: str, readable: bytes, writable: int = 0, queue: int = 1) -> Offence:
    features = mask(NetFeature.CSUM, NetFeature.HOST_TSO4, NetFeature.CTRL_VQ, NetFeature.CTRL_MAC_ADDR, NetFeature.MQ)
    return Offence(name, kind, DeviceId.NET, readable, writable, queue, features)


def _header(frame: int = 60, **values: int) -> bytes:
    # Without the features that make it longer, the header ends with num_buffers.
    return virtio_net_hdr.encode(**values)[: virtio_net_hdr.end("num_buffers")] + bytes(frame)


def _command(kind: CtrlClass, command: int, data: bytes = b"") -> bytes:
    return virtio_net_ctrl.encode(class_=kind, command=command) + data


def _scsi(name: str, kind: str, readable: bytes, writable: int, queue: int = 2) -> Offence:
    return Offence(name, kind, DeviceId.SCSI, readable, writable, queue)


def _cmd(cdb: bytes, lun: bytes = b"\1\0\0\0\0\0\0\0") -> bytes:
    return virtio_scsi_req_cmd.encode(lun=lun) + cdb.ljust(32, b"\0")


def _console(name: str, readable: bytes, writable: int = 0) -> Offence:
    return Offence(name, "A17", DeviceId.CONSOLE, readable, writable, 3, mask(ConsoleFeature.MULTIPORT))


_DISCARD, _ZEROES = _req(BlkRequest.DISCARD), _req(BlkRequest.WRITE_ZEROES)
_MANY = virtio_net_ctrl_mac(0).encode(entries=0xFFFFFFFF)

OFFENCES: Final = [
    *(_blk(f"head-of-{n}", "A9", bytes(n), 1) for n in (1, 8, 15)),
    _blk("no-room-for-a-status", "A9", _req(BlkRequest.IN), 0),
    _blk("read-of-nothing", "A3", _req(BlkRequest.IN), 1),
    _blk("read-of-half-a-sector", "A13", _req(BlkRequest.IN), 256 + 1),
    _blk("read-behind-the-end", "A6", _req(BlkRequest.IN, (1 << 64) - 1), 512 + 1),
    _blk("read-that-wraps", "A6", _req(BlkRequest.IN, (1 << 55) - 1), 1024 + 1),
    _blk("write-behind-the-end", "A6", _req(BlkRequest.OUT, (1 << 64) - 1) + bytes(512), 1),
    _blk("write-that-wants-an-answer", "A12", _req(BlkRequest.OUT) + bytes(512), 512 + 1),
    _blk("type-of-ones", "A18", _req(0xFFFFFFFF), 512 + 1),
    _blk("discard-that-wraps", "A6", _DISCARD + _range((1 << 64) - 1, 0xFFFFFFFF), 1, BlkFeature.DISCARD),
    _blk("discard-of-half-a-range", "A13", _DISCARD + bytes(7), 1, BlkFeature.DISCARD),
    _blk("discard-of-many-ranges", "A18", _DISCARD + _range(0, 1) * 300, 1, BlkFeature.DISCARD),
    _blk("zeroes-with-unknown-flags", "A18", _ZEROES + _range(0, 1, 0xFFFFFFFE), 1, BlkFeature.WRITE_ZEROES),
    _net("shorter-than-its-header", "A10", bytes(5)),
    _net("a-header-alone", "A9", _header(0)),
    _net("checksum-behind-the-frame", "A15", _header(flags=1, csum_start=0xFFFF, csum_offset=0xFFFF)),
    _net("checksum-across-the-end", "A15", _header(flags=1, csum_start=58, csum_offset=1)),
    _net("segments-of-nothing", "A15", _header(1400, flags=1, gso_type=1, hdr_len=54, gso_size=0, csum_start=34)),
    _net("header-longer-than-the-frame", "A15", _header(flags=1, gso_type=1, hdr_len=0xFFFF, gso_size=1)),
    _net("segments-of-no-kind", "A15", _header(60, gso_type=0x7F, gso_size=1)),
    _net("frame-of-64-kib-and-more", "A19", _header(70_000)),
    _net("room-to-write-on-transmission", "A12", _header(), 100),
    _net("command-of-one-byte", "A16", b"\0", 1, 2),
    _net("command-without-room-for-an-ack", "A16", _command(CtrlClass.RX, 0, b"\1"), 0, 2),
    _net("command-of-no-class", "A16", _command(CtrlClass.RX, 0xFF, bytes(64)).replace(b"\0", b"\xfe", 1), 1, 2),
    _net("no-pairs", "A16", _command(CtrlClass.MQ, 0, b"\0\0"), 1, 2),
    _net("more-pairs-than-there-are", "A16", _command(CtrlClass.MQ, 0, b"\xff\xff"), 1, 2),
    _net("four-thousand-million-addresses", "A16", _command(CtrlClass.MAC, 0, _MANY), 1, 2),
    _net("half-an-address", "A16", _command(CtrlClass.MAC, 1, b"\2\0\0"), 1, 2),
    *(_scsi(f"head-of-{n}", "A9", bytes(n), 108) for n in (1, 18, 50)),
    _scsi("no-room-for-a-response", "A9", _cmd(b"\0"), 7),
    _scsi("unit-of-ones", "A18", _cmd(b"\x12\0\0\0\xff", b"\xff" * 8), 108 + 255),
    _scsi("read-behind-the-end", "A6", _cmd(b"\x88\0" + b"\xff" * 8 + b"\0\0\0\1"), 108 + 512),
    _scsi("read-into-too-little", "A13", _cmd(b"\x28\0\0\0\0\0\0\0\4"), 108 + 100),
    _scsi("write-of-too-little", "A13", _cmd(b"\x2a\0\0\0\0\0\0\0\4") + bytes(100), 108),
    _scsi("mode-pages-that-lie", "A13", _cmd(b"\x15\x10\0\0\xff") + b"\0\0\0\xff" + b"\xff" * 20, 108),
    _scsi("function-of-ones", "A18", virtio_scsi_ctrl_tmf.encode(subtype=0xFFFFFFFF), 1, 0),
    _scsi("half-a-function", "A9", bytes(9), 1, 0),
    *(_console(f"message-of-{n}", bytes(n)) for n in (1, 7)),
    _console("port-that-is-not-there", virtio_console_control.encode(id=0xFFFFFFFF, event=6, value=1)),
    _console("event-of-ones", virtio_console_control.encode(event=0xFFFF, value=0xFFFF)),
    _console("message-of-64-kib", virtio_console_control.encode(event=3) + b"n" * 65_000),
    _console("message-with-room-behind", virtio_console_control.encode(event=0, value=1), 64),
    Offence("bytes-for-a-source-of-bytes", "A9", DeviceId.ENTROPY, b"here", 16),
    Offence("nothing-to-fill", "A3", DeviceId.ENTROPY, b"here", 0),
]  # fmt: skip


def requests_for(device: int) -> Iterator[Offence]:
    """Those for a device type."""
    return (offence for offence in OFFENCES if offence.device == device)


def offend(
    transport: Transport, offence: Offence, layout: str = "split", piece: int | None = None, patience: float = 0.5
) -> Outcome:
    """One of them, from initialisation to a reset. piece: bytes in a descriptor, all in one by default.

    Raises AssertionError if the used length is more than there was room for, or bytes behind it were written that no
    length accounts for: a status at the very end may be. NegotiationError for a device that does not start.
    """
    packed = (Feature.RING_PACKED,) if layout == "packed" else ()
    features = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, *packed) | offence.features
    driver = BareDriver(transport, features=features, queue_size=64)
    try:
        driver.start()
        outcome = _send(driver, offence, piece, patience)
        driver.reset()
    except (Disconnected, TransportError):
        return Outcome.GONE
    return outcome


def _send(driver: BareDriver, offence: Offence, piece: int | None, patience: float) -> Outcome:
    transport, queue = driver.transport, driver.queues[offence.queue]
    sent, room = driver.filled(offence.readable), driver.filled(bytes([UNTOUCHED]) * offence.writable)
    extents = [_cut(buffer.extent, piece) for buffer in (sent, room)]
    queue.add(*extents)
    transport.available_buffer(queue.index, queue.notification_data)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if transport.read_status() & DeviceStatus.DEVICE_NEEDS_RESET:
            return Outcome.TOLD
        try:
            used = queue.take_used()
        except PeerError as error:
            raise AssertionError(f"{offence.name}: {error}") from error
        if used:
            [(_, length)] = used
            behind = bytes(room.view[length:-1])
            assert behind.strip(bytes([UNTOUCHED])) == b"", f"{offence.name}: written behind the used length {length}"
            return Outcome.USED
        transport.wait(0.01)
    return Outcome.SILENT


def _cut(extent: tuple[int, int], piece: int | None) -> list[tuple[int, int]]:
    """A range in pieces of so many bytes, at most 16 and the rest; nothing at all for an empty range."""
    address, length = extent
    step = piece or length
    cuts = [(address + at, min(step, length - at)) for at in range(0, min(length, 16 * step), step)] if length else []
    done = sum(size for _, size in cuts)
    return [*cuts, (address + done, length - done)] if done < length else cuts
