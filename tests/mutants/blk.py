"""Disks, each broken in one clause of 5.2."""

from __future__ import annotations

from typing import Any, Final

from tests.mutants.registry import mutant
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.layout import (
    BlkFeature,
    BlkRequest,
    BlkStatus,
    virtio_blk_config,
    virtio_blk_lifetime,
    virtio_blk_req,
)
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.blk.requests import Lifetime
from virtio_py.devices.blk.zones import Zones
from virtio_py.rings.chain import Chain
from virtio_py.rings.layouts import virtq_desc
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import bit, mask

_OP: Final = "blk.device.device-op"
_SECTORS: Final = 2048


class Disk(BlkDevice):
    """A subclass answers some requests itself: `instead` has the type, the sector, and what the status is to be."""

    def __init__(self, **options: Any) -> None:
        super().__init__(MemoryMedium.of(_SECTORS * 512), **options)

    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        """None for a request that is served as it should be."""
        return None

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())[: virtio_blk_req.size]
        head = virtio_blk_req.decode(data.ljust(virtio_blk_req.size, b"\0"))
        status = self.instead(head.type, head.sector, chain)
        if status is None or not chain.writable.remaining:
            super().handle(queue, chain)
        else:
            chain.writable.views()[-1][-1] = status
            chain.writable.advance(chain.writable.remaining)


@mutant("blk", "blk.device.device-init.2")
class OffersConfigWceAlone(Disk):
    def offered_features(self) -> int:
        return super().offered_features() & ~bit(BlkFeature.FLUSH)


@mutant("blk", "blk.device.device-init.3")
class BeginsWithWriteback(Disk):
    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self._cached = True


@mutant("blk", f"{_OP}.4")
class WritesThoughReadOnly(Disk):
    def __init__(self) -> None:
        super().__init__()
        self.storage = bytearray(_SECTORS * 512)
        self.medium = MemoryMedium(self.storage, read_only=True)

    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        if kind != BlkRequest.OUT:
            return None
        data = b"".join(chain.readable.views())[virtio_blk_req.size :]
        self.storage[512 * sector : 512 * sector + len(data)] = data
        return BlkStatus.IOERR


@mutant("blk", f"{_OP}.7")
class RefusesToDiscard(Disk):
    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        return BlkStatus.IOERR if kind == BlkRequest.DISCARD else None


@mutant("blk", f"{_OP}.15")
class KnowsNoFlush(Disk):
    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        return BlkStatus.UNSUPP if kind == BlkRequest.FLUSH else None


@mutant("blk", f"{_OP}.19")
class WearsOutTwice(Disk):
    def __init__(self) -> None:
        super().__init__(lifetime=Lifetime())

    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        if kind != BlkRequest.GET_LIFETIME:
            return None
        chain.writable.views()[0][: virtio_blk_lifetime.size] = b"\x17\0" * (virtio_blk_lifetime.size // 2)
        return BlkStatus.OK


@mutant("blk", "blk.driver.device-op.2")
class HasNoEnd(Disk):
    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        return BlkStatus.OK if kind == BlkRequest.IN and sector >= _SECTORS else None


@mutant("blk", "blk.driver.device-op.8")
class HasNoIdAndDoesNotSay(Disk):
    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        return BlkStatus.OK if kind == BlkRequest.GET_ID else None


@mutant("blk", "blk.driver.device-op.12")
class KeepsItsCacheMode(Disk):
    def write_config(self, offset: int, data: bytes) -> None:
        """It would."""


@mutant("blk", "split.device.message-framing.1")
class WritesTheFirstPieceOnly(Disk):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        views = chain.readable.views()
        kept = self.medium.size
        before = bytearray(kept)
        self.medium.read_into(0, [memoryview(before)])
        super().handle(queue, chain)
        if len(views) > 2 and views[0][0] == BlkRequest.OUT:
            self.medium.write_from(0, [memoryview(before)])


@mutant("blk", "split.device.used-ring.2")
class TellsOfMoreThanItReads(Disk):
    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        return BlkStatus.OK if kind == BlkRequest.IN else None


@mutant("blk", "split.device.descriptor-table.1")
class WritesToReadable(Disk):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        last = chain.readable.views()[-1]
        super().handle(queue, chain)
        last[-1] ^= 0xFF


@mutant("blk", "packed.device.descriptor-table.1")
class WritesBeside(Disk):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        end = sum(chain.extents[-1]) if chain.extents else 0
        super().handle(queue, chain)
        if end:
            queue.memory.write(end, b"!")


@mutant("blk", "split.device.descriptor-table.4")
class WritesToTheTable(Disk):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        if queue.layout == "split":
            queue.memory.write(queue.areas[0] + virtq_desc.size * chain.id + virtq_desc.offset("len"), b"\7")
        super().handle(queue, chain)


@mutant("blk", "split.device.message-framing.1")
class WantsAHeaderOfItsOwn(Disk):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        views = chain.readable.views()
        if views and len(views[0]) != virtio_blk_req.size:
            chain.writable.split_tail(1).write(b"\1")
            return
        super().handle(queue, chain)


@mutant("blk", "split.device.used-ring.2")
class ClaimsTooMuch(Disk):
    """The used length is that of all the writable memory, and only the status is written."""

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        views = chain.writable.views()
        kept = [bytes(view) for view in views]
        super().handle(queue, chain)
        for view, data in zip(views[:-1], kept, strict=False):
            view[:] = data


@mutant("blk", "packed.device.scatter-gather-support.1")
class SwallowsOddCuts(Disk):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        views = chain.readable.views()
        if views and len(views[0]) == 1:
            chain.defer()
            return
        super().handle(queue, chain)


@mutant("blk", "blk.device.device-init.4")
class PaddingNotZero(Disk):
    def read_config(self) -> bytes:
        config = bytearray(super().read_config())
        config[virtio_blk_config.offset("unused0")] = 1
        return bytes(config)


@mutant("blk", "features.device.feature-bits.4")
class OffersAReservedBit(Disk):
    def offered_features(self) -> int:
        return super().offered_features() | bit(25)


@mutant("blk", "blk.device.device-op.3")
class ReadOnlyOnlyByName(Disk):
    """Offers VIRTIO_BLK_F_RO, and writes all the same."""

    def offered_features(self) -> int:
        return super().offered_features() & ~mask(11, 13, 14) | bit(BlkFeature.RO)


@mutant("blk", "blk.device.device-op.9")
class ForgetsZeroes(Disk):
    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        return BlkStatus.OK if kind == BlkRequest.WRITE_ZEROES else None


@mutant("blk", "blk.device.device-op.5")
@mutant("blk", "blk.device.device-op.6", name="IgnoresUnmap")
class IgnoresFlags(Disk):
    """Says OK to a segment with any flags."""

    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        flags = b"".join(chain.readable.views())[-4:]
        return BlkStatus.OK if kind in (BlkRequest.DISCARD, BlkRequest.WRITE_ZEROES) and any(flags) else None


@mutant("blk", "blk-zoned.device.device-op.1")
class ServesZoneRequests(Disk):
    def instead(self, kind: int, sector: int, chain: Chain) -> BlkStatus | None:
        return BlkStatus.OK if kind >= BlkRequest.ZONE_APPEND else None


class Zoned(Disk):
    """A sound one with zones, for those that are not."""

    def __init__(self) -> None:
        super().__init__(zones=Zones(_SECTORS, 256))


@mutant("blk", "blk-zoned.device.device-init.4")
class TakesWhoDoesNotKnowZones(Zoned):
    def refuse_features(self, features: int) -> str | None:
        return None


@mutant("blk", "blk-zoned.device.device-init.8")
class ZonesOfNothing(Zoned):
    def read_config(self) -> bytes:
        config = bytearray(super().read_config())
        at = virtio_blk_config.offset("zoned.zone_sectors")
        config[at : at + 4] = bytes(4)
        return bytes(config)


@mutant("blk", "blk-zoned.device.device-init.16")
class PaddingBehindZones(Zoned):
    def read_config(self) -> bytes:
        config = bytearray(super().read_config())
        config[virtio_blk_config.offset("zoned.unused2")] = 1
        return bytes(config)
