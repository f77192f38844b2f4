"""Receive buffers: kept until a frame comes, and filled with it (5.1.6.3, 5.1.6.4)."""

from __future__ import annotations

from collections import deque

from attrs import define, field

from virtio_py.device import DeviceEnd
from virtio_py.devices.net.counters import Counts
from virtio_py.devices.net.header import Packet, encode_header, header_size
from virtio_py.devices.net.layout import Gso, HdrFlag, NetFeature
from virtio_py.devices.net.rss import NO_HASH, PacketHash
from virtio_py.devices.net.segmentation import segment_count
from virtio_py.errors import RequestError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import bit


@define(eq=False)
class Reception:
    """The receive buffers of a driver that has negotiated `features`. Queues are named by their indices.

    serving: a receiveq is being served, so that more of its buffers must not be taken
    header_bytes: the length of the header
    """

    features: int = 0
    serving: bool = field(default=False, init=False)
    header_bytes: int = field(init=False)
    _rooms: dict[int, deque[Chain]] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.header_bytes = header_size(self.features)

    def has(self, feature: NetFeature) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.features & bit(feature))

    def keep(self, queue: DeviceQueue, chain: Chain) -> None:
        """Keeps a buffer. Raises RequestError for one that cannot hold a header."""
        if chain.writable.remaining < self.header_bytes:
            raise RequestError(
                f"a receive buffer of {chain.writable.remaining} bytes has no room for a header of {self.header_bytes}",
                clause="net.driver.setting-up-receive-buffers.3",
            )
        chain.defer()
        self.room(queue).append(chain)

    def room(self, queue: DeviceQueue) -> deque[Chain]:
        """The buffers kept of a queue; those of one that was disabled meanwhile are not its own."""
        room = self._rooms.setdefault(queue.index, deque())
        if room and room[0].queue is not queue:
            room.clear()
        return room

    def forget(self, index: int) -> None:
        """A queue's buffers are the driver's again."""
        self._rooms.pop(index, None)

    def deliver(self, end: DeviceEnd, queue: DeviceQueue, packet: Packet, found: PacketHash, counts: Counts) -> bool:
        """Puts one packet into buffers, all of which become used at once, or drops it. False if there are not enough
        of them, and some are to be expected."""
        needed = self.header_bytes + len(packet.frame)
        chains = self._gather(queue, needed)
        if chains is None and not self.serving:
            # Some may have become available whose notification has not arrived yet. (In the middle of serving that
            # queue, they would overtake those that are being served.)
            end.serve_queue(queue.index)
            chains = self._gather(queue, needed) if end.running else None
        if chains is None and not self._full(queue):
            return False
        if not chains:
            counts.update(rx_drops=1, rx_drop_overruns=1)
            return True
        self._fill(chains, packet, found)
        # Counted first: whether the driver is told at once may depend on it.
        _count_received(counts, packet)
        queue.complete(chains)
        return True

    def _gather(self, queue: DeviceQueue, needed: int) -> list[Chain] | None:
        """Takes buffers for so many bytes. None if they are not there; none at all if one is too small and the
        driver has not said that it merges them."""
        room = self.room(queue)
        if not self.has(NetFeature.MRG_RXBUF):
            if not room:
                return None
            return [room.popleft()] if room[0].writable.remaining >= needed else []
        for count, chain in enumerate(room, start=1):
            needed -= chain.writable.remaining
            if needed <= 0:
                return [room.popleft() for _ in range(count)]
        return None

    def _full(self, queue: DeviceQueue) -> bool:
        """Whether the driver cannot add to what is kept: a packet that does not fit now never will."""
        segments = [len(chain.writable.views()) for chain in self.room(queue)]
        return len(segments) == queue.size or (bool(segments) and sum(segments) + segments[0] > queue.size)

    def _fill(self, chains: list[Chain], packet: Packet, found: PacketHash) -> None:
        if packet.gso != Gso.NONE and self.has(NetFeature.RSC_EXT):
            segments = segment_count(packet)
            packet = packet._replace(flags=packet.flags | HdrFlag.RSC_INFO, csum_start=segments, csum_offset=0)
        value, report = found if self.has(NetFeature.HASH_REPORT) else NO_HASH
        header = encode_header(packet, self.header_bytes, num_buffers=len(chains), hash_value=value, hash_report=report)
        data = memoryview(header + packet.frame)
        for chain in chains:
            part = data[: chain.writable.remaining]
            chain.writable.write(part)
            data = data[len(part) :]


def _count_received(counts: Counts, packet: Packet) -> None:
    counts["rx_packets"] += 1
    counts["rx_bytes"] += len(packet.frame)
    valid = packet.flags & HdrFlag.DATA_VALID
    counts["rx_needs_csum" if packet.needs_csum else "rx_csum_valid" if valid else "rx_csum_none"] += 1
    if packet.gso != Gso.NONE:
        counts.update(rx_gso_packets=1, rx_gso_bytes=len(packet.frame))
