"""The network device (5.1), the half that asks: frames out, frames in, and commands.

driver = NetDriver(transport).start()
driver.send(frame)
packet = driver.receive(timeout=1.0)      a Packet, or None
driver.set_promiscuous(True)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, ClassVar, Final

from attrs import frozen

from virtio_py.devices.net.commands import NetCommands
from virtio_py.devices.net.header import (
    SECURITY_FLAGS,
    Packet,
    annex_of,
    decode_header,
    encode_header,
    header_size,
    packet_of,
)
from virtio_py.devices.net.ipsec import IPSEC_OUTB_SA
from virtio_py.devices.net.layout import (
    ETHERNET_HEADER,
    FEATURE_NEEDS,
    MAX_FRAME,
    SPEED_MAX,
    TUNNEL,
    VLAN_TAG,
    Duplex,
    Gso,
    HdrFlag,
    NetFeature,
    NetStatus,
    config_length,
    consistent,
    host_offloads,
    virtio_net_config,
    virtio_net_hdr,
)
from virtio_py.devices.net.parsing import vlan_id
from virtio_py.devices.net.segmentation import fit
from virtio_py.errors import NegotiationError, RequestError, UsageError
from virtio_py.memory import Buffer
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceId, mask

_F = NetFeature
_BIG: Final = mask(_F.GUEST_TSO4, _F.GUEST_TSO6, _F.GUEST_UFO, _F.GUEST_USO4, _F.GUEST_USO6)
_ANNEX: Final = mask(_F.OUT_NET_HEADER, _F.IPSEC)
USUAL_MTU: Final = 1500
"""What is assumed of a path where the device says nothing, in bytes without Ethernet's header."""
_NO_MAC: Final = b"\x02virt\0"
"""Locally administered: what we are called where the device has no name for us."""


@frozen
class NetInfo:
    """What the configuration says, of the fields that the negotiated features bring into being; else None.

    mac: 6 bytes;  link_up: True where the device does not tell;  announce: whether the device wants an announcement
    mtu: bytes without Ethernet's header;  speed: Mbit/s, None for unknown;  duplex: UNKNOWN for what is not known
    """

    mac: bytes
    link_up: bool
    announce: bool
    max_pairs: int
    mtu: int | None
    speed: int | None
    duplex: Duplex


class NetDriver(NetCommands):
    """A network interface's driver. What the device cannot be sent undone is done in software.

    receive_bytes: how much memory is kept posted in each receiveq
    protecting: outbound associations of IPsec that exist, and by how many bytes they make a packet longer at most
    """

    device_id = DeviceId.NET
    known_features = mask(*_F) & ~mask(_F.GSO, _F.GUEST_RSC4, _F.GUEST_RSC6, _F.RSC_EXT)
    feature_needs = FEATURE_NEEDS
    receive_bytes: ClassVar[int] = 1 << 20
    merged_size: ClassVar[int] = 2048
    info: NetInfo

    # Initialisation

    def negotiate(self) -> None:
        """Step 4. Features that need one of others are given up here, where none of those is to be had."""
        self.wanted = consistent(self.transport.device_features() & self.wanted)
        super().negotiate()

    def queue_count(self) -> int:
        """All queues up to controlq: they are set up, whether or not they will be used."""
        self.refresh()
        if not 1 <= self.max_pairs <= 0x8000:
            raise NegotiationError(f"the device has {self.max_pairs} pairs of queues")
        return 2 * self.max_pairs + self.has(_F.CTRL_VQ)

    def ready(self) -> None:
        """Step 8: receive buffers are there before DRIVER_OK; the device is told of them after it."""
        self.pairs, self.contexts = 1, set()
        self.control = self.queues[2 * self.max_pairs] if self.has(_F.CTRL_VQ) else None
        self.protecting: dict[int, int] = {}
        self._header = header_size(self.features)
        self._host = host_offloads(self.features)
        self._arrived: list[deque[tuple[Any, Packet]]] = [deque() for _ in range(self.max_pairs)]
        self.last_header: Any = None
        for n in range(self.max_pairs):
            self._post_all(self.receiveq(n))

    def refresh(self) -> NetInfo:
        """Reads the configuration again: to be called after a configuration change notification."""
        data = self.read_config_bytes(0, config_length(self.features))
        config = self.config = virtio_net_config.decode(data.ljust(virtio_net_config.size, b"\0"))
        speed = config.speed if self.has(_F.SPEED_DUPLEX) and config.speed <= SPEED_MAX else None
        known = self.has(_F.SPEED_DUPLEX) and config.duplex in (Duplex.HALF, Duplex.FULL)
        self.max_pairs = config.max_virtqueue_pairs if self.features & mask(_F.MQ, _F.RSS) else 1
        status = config.status if self.has(_F.STATUS) else NetStatus.LINK_UP
        self.info = NetInfo(
            mac=config.mac if self.has(_F.MAC) else _NO_MAC,
            link_up=bool(status & NetStatus.LINK_UP),
            announce=bool(status & NetStatus.ANNOUNCE) and self.has(_F.GUEST_ANNOUNCE),
            max_pairs=self.max_pairs,
            mtu=config.mtu if self.has(_F.MTU) else None,
            speed=speed,
            duplex=Duplex(config.duplex) if known else Duplex.UNKNOWN,
        )
        return self.info

    def receiveq(self, pair: int) -> DriverQueue:
        """receiveq1 for 0, and so on."""
        return self.queues[2 * pair]

    def transmitq(self, pair: int) -> DriverQueue:
        """transmitq1 for 0, and so on."""
        return self.queues[2 * pair + 1]

    # Sending

    def send(self, packet: Packet | bytes, pair: int = 0, timeout: float | None = None) -> None:
        """Queues a frame, or a packet that is not finished; finishes it as far as the device does not.

        Waits while the queue is full. Raises UsageError for what must not be sent, RequestError for a packet whose
        offsets are wrong, and what `Driver.wait_used` raises."""
        self._check_pair(pair)
        for part in self._prepared(packet):
            self._send(self.transmitq(pair), part, timeout)

    def _check_pair(self, pair: int) -> None:
        if not 0 <= pair < self.pairs:
            raise UsageError(f"transmitq{pair + 1} is not in use, only {self.pairs}")

    def _prepared(self, packet: Packet | bytes) -> Iterator[Packet]:
        """What the device can be sent for a packet."""
        whole = Packet(packet) if isinstance(packet, bytes) else packet
        if not ETHERNET_HEADER <= len(whole.frame) <= MAX_FRAME + VLAN_TAG:
            raise UsageError(f"{len(whole.frame)} bytes are no frame")
        # DATA_VALID and RSC_INFO are a device's to set.
        whole = whole._replace(flags=whole.flags & ~(HdrFlag.DATA_VALID | HdrFlag.RSC_INFO))
        if whole.flags & SECURITY_FLAGS:
            whole = self._to_secure(whole)
        for part in fit(whole, self._host):
            sent = part.annexed(whole) if self.features & _ANNEX else part
            self._check_mtu(sent)
            yield sent

    def send_all(self, packets: Iterable[Packet | bytes], pair: int = 0, timeout: float | None = None) -> None:
        """Sends packets, as many as the queue holds with one publish and one notification, and waits until the device
        has taken them all. Raises as `send`; what comes before the packet that must not be sent may have been."""
        self._check_pair(pair)
        queue = self.transmitq(pair)
        parts = chain.from_iterable(self._prepared(packet) for packet in packets)
        with self.within(timeout):
            while batch := list(islice(parts, queue.size)):
                while batch := batch[self._add_many(queue, batch) :]:
                    self._reclaim(self.wait_used(queue))
            self.flush(pair)

    def _add_many(self, queue: DriverQueue, packets: Sequence[Packet]) -> int:
        """Makes packets available, the first ones; how many there was room for. Raises UsageError if there never is."""
        self._reclaim(self._take_used(queue))
        buffers: list[Buffer] = []
        for packet in packets[: queue.free_slots]:
            try:
                buffers.append(self._filled(encode_header(packet, self._header) + packet.frame))
            except UsageError:
                if not buffers and not queue.outstanding:
                    raise
                break
        added = queue.add_many([([buffer.extent], (), buffer) for buffer in buffers])
        self._give_back(buffers[added:])
        self.kick(queue)
        return added

    def flush(self, pair: int = 0, timeout: float | None = None) -> None:
        """Waits until the device has taken everything that was sent."""
        queue = self.transmitq(pair)
        with self.within(timeout):
            while queue.outstanding:
                self._reclaim(self.wait_used(queue))

    def _to_secure(self, packet: Packet) -> Packet:
        """The packet, with SECURITY only if it is to be secured: one that was received may have the flag, too."""
        flags = packet.flags & ~SECURITY_FLAGS
        if not packet.flags & HdrFlag.SECURITY or packet.resource_type != IPSEC_OUTB_SA:
            return packet._replace(flags=flags, resource_id=0, resource_type=0)
        if packet.resource_id not in self.protecting:
            raise UsageError(f"there is no outbound association {packet.resource_id}")
        return packet._replace(flags=flags | HdrFlag.SECURITY)

    def _check_mtu(self, packet: Packet) -> None:
        secured = bool(packet.flags & HdrFlag.SECURITY)
        mtu = self.info.mtu if self.info.mtu or not secured else USUAL_MTU
        if mtu is None or (packet.gso != Gso.NONE and not secured):
            return
        # What a device encrypts it cuts first, and nobody can cut it afterwards (net-ipsec.driver.ipsec-operation.7).
        length = len(packet.frame) if packet.gso == Gso.NONE else packet.hdr_len + packet.gso_size
        length += self.protecting[packet.resource_id] if secured else 0
        tag = VLAN_TAG if vlan_id(packet.frame) is not None else 0
        if length > mtu + ETHERNET_HEADER + tag:
            raise UsageError(f"a frame of {length} bytes, with an MTU of {mtu}")

    def _send(self, queue: DriverQueue, packet: Packet, timeout: float | None) -> None:
        self._reclaim(self._take_used(queue))
        while not queue.free_slots:
            self._reclaim(self.wait_used(queue, 1, timeout))
        buffer = self._filled(encode_header(packet, self._header) + packet.frame)
        queue.add([buffer.extent], (), buffer)
        self.kick(queue)

    def _reclaim(self, used: list[tuple[Any, int]]) -> None:
        self._give_back([buffer for buffer, _ in used])

    # Receiving

    def receive(self, pair: int = 0, timeout: float | None = None) -> Packet | None:
        """The next packet of a receiveq, None after `timeout` seconds; its full header is `last_header`.

        The packet may have been left unfinished, as far as the features allow: `segmentation.fit(packet, 0)` makes
        frames of it. Raises RequestError, with FAILED set, for a device that breaks the specification.
        """
        deadline = self.deadline(timeout)
        while not self._arrived[pair]:
            self._collect(pair)
            left = deadline - time.monotonic()
            if not self._arrived[pair]:
                if left <= 0:
                    return None
                self._check_alive(float("inf"))
                if not self.receiveq(pair).enable_notifications():
                    self.transport.wait(min(0.05, left))
        self.last_header, packet = self._arrived[pair].popleft()
        return packet

    def receive_many(self, count: int, pair: int = 0, timeout: float | None = None) -> list[Packet]:
        """The next `count` packets of a receiveq, or those that have come after `timeout` seconds."""
        deadline, found = self.deadline(timeout), list[Packet]()
        while len(found) < count:
            packet = self.receive(pair, deadline - time.monotonic())
            if packet is None:
                break
            found.append(packet)
        return found

    def receive_all(self, pair: int = 0) -> list[Packet]:
        """The packets that have arrived, without waiting."""
        self._collect(pair)
        found = [packet for _, packet in self._arrived[pair]]
        self._arrived[pair].clear()
        return found

    def _collect(self, pair: int) -> None:
        """Takes whole packets out of a receiveq and posts its buffers again."""
        queue = self.receiveq(pair)
        used = deque(self._take_used(queue))
        while used:
            try:
                self._assemble(queue, used, pair)
            except RequestError:
                self.fail()
                raise
        self.kick(queue)

    def _assemble(self, queue: DriverQueue, used: deque[tuple[Any, int]], pair: int) -> None:
        first = self._content(queue, *used.popleft())
        if len(first) < self._header:
            raise RequestError(f"{len(first)} bytes came where a header takes {self._header}", queue=queue.index)
        header = decode_header(first[: self._header])
        count = header.num_buffers if self.has(_F.MRG_RXBUF) else 1
        if not 1 <= count <= len(used) + 1:
            raise RequestError(
                f"num_buffers is {count}, and {len(used) + 1} buffers came",
                clause="net.device.incoming-packets.4",
                queue=queue.index,
            )
        parts = [first[self._header :]] + [self._content(queue, *used.popleft()) for _ in range(count - 1)]
        self._accept(header, b"".join(parts), pair)

    def _accept(self, header: Any, frame: bytes, pair: int) -> None:
        # What must not be accepted is dropped: the link may be to blame, and the next packet is another matter.
        lonely = header.flags & HdrFlag.UDP_TUNNEL_CSUM and header.flags & HdrFlag.NEEDS_CSUM
        if virtio_net_hdr.violations(header) or (lonely and not header.gso_type & TUNNEL):
            return
        packet = packet_of(header, frame)
        if self.features & _ANNEX:
            packet = annex_of(packet, header, self.features)
        self._arrived[pair].append((header, packet))

    def _content(self, queue: DriverQueue, buffer: Buffer, length: int) -> bytes:
        """A copy of what the device wrote; the buffer is posted again."""
        data = bytes(buffer.view[:length])
        queue.add((), [buffer.extent], buffer)
        return data

    def _post_all(self, queue: DriverQueue) -> None:
        size = self._buffer_size()
        count = max(2, min(queue.size, self.receive_bytes // size))
        buffers = [self._borrow(size) for _ in range(min(count, queue.size))]
        queue.add_many([((), [buffer.extent], buffer) for buffer in buffers])

    def _buffer_size(self) -> int:
        """Bytes of a receive buffer: the largest packet, unless the device may go on in the next one."""
        if self.has(_F.MRG_RXBUF):
            return self.merged_size
        if self.features & _BIG:
            return self._header + MAX_FRAME + VLAN_TAG
        return self._header + max(self.info.mtu or 0, 1500) + ETHERNET_HEADER + VLAN_TAG

    # Announcing

    def poll_configuration(self) -> bool:
        """Looks whether the configuration has changed, and announces us where that is asked for; whether it has."""
        if not self.config_changed():
            return False
        if self.refresh().announce:
            self.send(announcement(self.info.mac))
            self.acknowledge_announce()
            self.refresh()
        return True


def announcement(mac: bytes) -> bytes:
    """A frame that tells switches where a station is: a RARP request for itself, as virtual machines send it."""
    body = bytes.fromhex("0001080006040003") + mac + bytes(4) + mac + bytes(4)
    return (b"\xff" * 6 + mac + b"\x80\x35" + body).ljust(60, b"\0")
