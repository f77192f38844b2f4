"""What a block device's driver asks for (5.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from virtio_py.devices.blk.layout import (
    ID_BYTES,
    SECTOR,
    BlkFeature,
    BlkRequest,
    virtio_blk_config,
    virtio_blk_discard_write_zeroes,
    virtio_blk_req,
)
from virtio_py.rings.queue import DeviceQueue
from virtio_py.testing.conformance.driver.views import Kind, View

_OP: Final = "blk.driver.device-op"
_R = BlkRequest
_SEGMENT: Final = virtio_blk_discard_write_zeroes.size
_MOST: Final = {
    _R.DISCARD: ("discard", 9),
    _R.SECURE_ERASE: ("secure_erase", 10),
    _R.WRITE_ZEROES: ("write_zeroes", 11),
}


class Blk(Kind):
    """The requests of a disk's driver."""

    clauses: ClassVar[tuple[str, ...]] = tuple(f"{_OP}.{n}" for n in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14))

    def negotiated(self, view: View) -> None:
        view.should_accept(BlkFeature.RO, f"{_OP}.3", "VIRTIO_BLK_F_RO")

    def request(self, view: View, queue: DeviceQueue, readable: bytes, writable: int) -> None:
        if len(readable) < virtio_blk_req.size:
            return
        head = virtio_blk_req.decode(readable[: virtio_blk_req.size])
        rule = _RULES.get(head.type)
        if rule is not None:
            rule(view, head.type, head.sector, readable[virtio_blk_req.size :], writable - 1)


def _data(view: View, kind: int, sector: int, data: bytes, room: int) -> None:
    length = room if kind == _R.IN else len(data)
    view.ledger.must(f"{_OP}.6", length % SECTOR == 0, f"{_R(kind).name} of {length} bytes")
    capacity = virtio_blk_config.decode(view.device.read_config().ljust(virtio_blk_config.size, b"\0")).capacity
    good = sector + length // SECTOR <= capacity
    view.ledger.must(f"{_OP}.2", good, f"{_R(kind).name} of {length} bytes at sector {sector} of {capacity}")


def _flush(view: View, kind: int, sector: int, data: bytes, room: int) -> None:
    view.ledger.must(f"{_OP}.4", sector == 0, f"FLUSH with sector {sector}")
    view.ledger.should(f"{_OP}.5", not data and room == 0, f"FLUSH with {len(data) + room} bytes of data")


def _id(view: View, kind: int, sector: int, data: bytes, room: int) -> None:
    view.ledger.must(f"{_OP}.8", room == ID_BYTES, f"GET_ID with room for {room} bytes")


def _ranges(view: View, kind: int, sector: int, data: bytes, room: int) -> None:
    name, clause = _MOST[BlkRequest(kind)]
    view.ledger.must(f"{_OP}.7", len(data) % _SEGMENT == 0 and bool(data), f"{_R(kind).name} with {len(data)} bytes")
    config = virtio_blk_config.decode(view.device.read_config().ljust(virtio_blk_config.size, b"\0"))
    most, count = getattr(config, f"max_{name}_seg"), len(data) // _SEGMENT
    view.ledger.must(f"{_OP}.{clause}", count <= most, f"{_R(kind).name} of {count} segments, {most} are allowed")
    if kind == _R.DISCARD:
        segments = [data[at : at + _SEGMENT] for at in range(0, count * _SEGMENT, _SEGMENT)]
        unmap = [virtio_blk_discard_write_zeroes.decode(segment).flags.unmap for segment in segments]
        view.ledger.must(f"{_OP}.14", not any(unmap), "DISCARD with unmap")


_RULES: Final[dict[int, Callable[[View, int, int, bytes, int], None]]] = {
    _R.IN: _data,
    _R.OUT: _data,
    _R.FLUSH: _flush,
    _R.GET_ID: _id,
    _R.DISCARD: _ranges,
    _R.SECURE_ERASE: _ranges,
    _R.WRITE_ZEROES: _ranges,
}
"""By type: (view, type, sector, data, room for data)."""
