"""The kinds of devices that the suite knows, and a request for each that a good device answers well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from attrs import frozen

from virtio_py.devices.blk.layout import (
    BlkFeature,
    BlkRequest,
    BlkStatus,
    ZonedModel,
    virtio_blk_config,
    virtio_blk_req,
)
from virtio_py.devices.blk.layout import config_length as blk_config_length
from virtio_py.devices.console.layout import ConsoleFeature, num_queues, virtio_console_config
from virtio_py.devices.net.header import header_size
from virtio_py.devices.net.layout import FEATURE_NEEDS, NetFeature, virtio_net_config
from virtio_py.devices.net.layout import config_length as net_config_length
from virtio_py.devices.scsi.layout import (
    REQUESTQ,
    ScsiFeature,
    encode_lun,
    virtio_scsi_config,
    virtio_scsi_req_cmd,
    virtio_scsi_resp_cmd,
)
from virtio_py.spec import DeviceId, bit, mask
from virtio_py.status import FeatureNeeds
from virtio_py.testing.endings import Failed

if TYPE_CHECKING:
    from virtio_py.testing.conformance.rig import Rig


def _anything(data: bytes) -> None:
    """Any answer will do."""


@frozen
class Request:
    """readable: the contents of the readable buffers; writable: the sizes, in bytes, of those behind them.

    judge: is given all writable bytes, and raises Failed if they are not a good answer."""

    queue: int
    readable: tuple[bytes, ...] = ()
    writable: tuple[int, ...] = ()
    judge: Callable[[bytes], None] = _anything


@frozen
class Kind:
    """A kind of device.

    features, needs: its feature bits, and which need which; queues: the indices of those to be set up with what was
    negotiated; good: a request that must end well; legacy: mask of features that are legacy, or make requests
    other ones; repeats: whether a good request has the same answer each time; config: bytes of the configuration that
    an offer brings into being; base: mask of features without which a device is of no use at all; prepare: what a
    driver does once DRIVER_OK is set
    """

    name: str
    device_id: DeviceId
    features: type[IntEnum]
    queues: Callable[[Rig], Sequence[int]]
    good: Callable[[Rig], Request]
    needs: FeatureNeeds
    legacy: int = 0
    repeats: bool = True
    base: Callable[[Rig], int] = lambda rig: 0
    config: Callable[[int], int] = lambda offered: 1
    prepare: Callable[[Rig], None] = lambda rig: None


# Block

BLOCK: Final = 4096
"""Bytes of a good read: whole blocks of any disk."""


def blk_request(kind: int, sector: int = 0, data: bytes = b"", room: int = 0, status: int | None = None) -> Request:
    """A request, in as many buffers as it has parts. status: what it must end with, if that is to be judged."""

    def judge(answer: bytes) -> None:
        if status is not None and answer[-1] != status:
            raise Failed(f"request type {kind} at sector {sector} ends with {blk_status(answer[-1])}, not {status}")

    header = virtio_blk_req.encode(type=kind, sector=sector)
    return Request(0, (header, data) if data else (header,), (room, 1) if room else (1,), judge)


def host_managed(rig: Rig) -> bool:
    """Whether the disk has zones that a driver must know of."""
    if not rig.offered & bit(BlkFeature.ZONED):
        return False
    return bool(rig.need_config(virtio_blk_config.size)[virtio_blk_config.offset("zoned.model")] == ZonedModel.HM)


def _blk_base(rig: Rig) -> int:
    return bit(BlkFeature.ZONED) if host_managed(rig) else 0


def blk_status(status: int) -> str:
    """The name of a status byte."""
    return BlkStatus(status).name if status in tuple(BlkStatus) else f"status {status:#x}"


# Network

FRAME: Final = bytes.fromhex("ffffffffffff 525400123456 88b5") + b"virtio-py conformance".ljust(46, b"\0")
"""A frame that concerns nobody: broadcast, of the EtherType for experiments."""


def pairs_of(rig: Rig) -> int:
    """How many queue pairs a network device has."""
    if not rig.features & bit(NetFeature.MQ):
        return 1
    config = virtio_net_config.decode(
        rig.need_config(virtio_net_config.end("max_virtqueue_pairs")).ljust(virtio_net_config.size, b"\0")
    )
    # None at all is wrong, as a check of its own says; the others go on with the one that every interface has.
    return max(int(config.max_virtqueue_pairs), 1)


def control_queue(rig: Rig) -> int:
    """The index of controlq."""
    return 2 * pairs_of(rig)


def _net_queues(rig: Rig) -> Sequence[int]:
    count = 2 * pairs_of(rig) + bool(rig.features & bit(NetFeature.CTRL_VQ))
    return range(count)


def net_send(rig: Rig, frame: bytes = FRAME, header: bytes = b"", queue: int = 1) -> Request:
    """A packet on transmitq1; a header of zeros unless another is given."""
    return Request(queue, (header or bytes(header_size(rig.features)), frame))


# SCSI

CDB_SIZE: Final = 32
SENSE_SIZE: Final = 96
INQUIRY: Final = bytes([0x12, 0, 0, 0, 36, 0])
TEST_UNIT_READY: Final = bytes(6)


def scsi_command(cdb: bytes, lun: bytes | None = None, data: bytes = b"", room: int = 0, tag: int = 1) -> Request:
    """A command on the first request queue; LUN 0 of target 0 unless another is named."""
    header = virtio_scsi_req_cmd.encode(lun=encode_lun(0, 0) if lun is None else lun, id=tag)
    readable = (header + cdb.ljust(CDB_SIZE, b"\0"), *((data,) if data else ()))
    response = virtio_scsi_resp_cmd.size + SENSE_SIZE
    return Request(REQUESTQ, readable, (response, room) if room else (response,), _some_response)


def _some_response(answer: bytes) -> None:
    response = virtio_scsi_resp_cmd.decode(answer[: virtio_scsi_resp_cmd.size]).response
    if response == 0xA5:
        raise Failed("the response is not written", clause="scsi.device.request-queues.2")


# Console


def _console_queues(rig: Rig) -> Sequence[int]:
    ports = 0
    if rig.features & bit(ConsoleFeature.MULTIPORT):
        ports = virtio_console_config.decode(rig.need_config(virtio_console_config.size)).max_nr_ports
    return range(num_queues(min(ports, 8)))


KINDS: Final[Mapping[str, Kind]] = {
    "blk": Kind(
        "blk",
        DeviceId.BLOCK,
        BlkFeature,
        lambda rig: (0,),
        lambda rig: blk_request(BlkRequest.IN, 0, room=BLOCK, status=BlkStatus.OK),
        {},
        mask(BlkFeature.BARRIER, BlkFeature.SCSI, BlkFeature.ZONED),
        config=blk_config_length,
        base=_blk_base,
    ),
    "net": Kind(
        "net",
        DeviceId.NET,
        NetFeature,
        _net_queues,
        net_send,
        FEATURE_NEEDS,
        mask(NetFeature.GSO, NetFeature.GUEST_RSC4, NetFeature.GUEST_RSC6),
        config=net_config_length,
    ),
    "scsi": Kind(
        "scsi",
        DeviceId.SCSI,
        ScsiFeature,
        lambda rig: (0, 1, 2),
        lambda rig: scsi_command(INQUIRY, room=36),
        {},
        config=lambda offered: virtio_scsi_config.size,
    ),
    "console": Kind(
        "console",
        DeviceId.CONSOLE,
        ConsoleFeature,
        _console_queues,
        lambda rig: Request(1, (b"virtio-py\r\n",)),
        {},
        config=lambda offered: virtio_console_config.size,
    ),
}
"""By the names of the command line."""
