"""Receive-side scaling: the Toeplitz hash, what of a packet goes into it, and the queue that comes out (5.1.6.4.2)."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from attrs import define, field

from virtio_py.devices.net.parsing import TCP, UDP, Flow, Network, flow_of, network_of, ports_of
from virtio_py.devices.net.tunnels import inner_network


class HashType(IntEnum):
    """VIRTIO_NET_HASH_TYPE_*. The number that is reported is the bit's position plus 1."""

    IPV4 = 1 << 0
    TCPV4 = 1 << 1
    UDPV4 = 1 << 2
    IPV6 = 1 << 3
    TCPV6 = 1 << 4
    UDPV6 = 1 << 5
    IP_EX = 1 << 6
    TCP_EX = 1 << 7
    UDP_EX = 1 << 8


ALL_HASH_TYPES: Final = (1 << 9) - 1
HASH_REPORT_NONE: Final = 0

_INPUT_BYTES: Final = 36
"""The longest input: two IPv6 addresses and two ports."""


@lru_cache(maxsize=16)
def _tables(key: bytes) -> tuple[tuple[int, ...], ...]:
    """For each byte of the input, what each of its values adds to the hash."""
    bits = int.from_bytes(key.ljust(_INPUT_BYTES + 4, b"\0")[: _INPUT_BYTES + 4], "big")
    width = 8 * (_INPUT_BYTES + 4)
    tables = []
    for at in range(_INPUT_BYTES):
        # The 32 bits of the key that begin at each of this byte's bits, the most significant one first.
        windows = [bits >> (width - 32 - 8 * at - n) & 0xFFFFFFFF for n in range(8)]
        table = [0] * 256
        for value in range(1, 256):
            low = value & -value
            table[value] = table[value ^ low] ^ windows[8 - low.bit_length()]
        tables.append(tuple(table))
    return tuple(tables)


def toeplitz(key: bytes, data: bytes) -> int:
    """The 32-bit Toeplitz hash of at most 36 bytes; a key that ends too early goes on with zeros."""
    value = 0
    for table, byte in zip(_tables(key), data, strict=False):
        value ^= table[byte]
    return value


class PacketHash(NamedTuple):
    """A hash and the type it is of, as `hash_value` and `hash_report` state them."""

    value: int
    report: int


NO_HASH: Final = PacketHash(0, HASH_REPORT_NONE)


@define
class HashConfig:
    """hash_types: mask of HashType;  key: bytes;  tunnels: mask of tunnel types whose inner headers are hashed."""

    hash_types: int = 0
    key: bytes = b""
    tunnels: int = 0

    def hash(self, frame: bytes, network: Network | None) -> PacketHash:
        """The hash of a frame whose network header is known, or NO_HASH where it is of no enabled type."""
        if network is not None and self.tunnels:
            network = inner_network(frame, network, self.tunnels) or network
        if network is None or not self.hash_types:
            return NO_HASH
        ports = ports_of(frame, network)
        kind = self._choose(network, ports is not None)
        if not kind:
            return NO_HASH
        return PacketHash(toeplitz(self.key, _input(kind, network, ports)), kind.bit_length())

    def _choose(self, network: Network, has_ports: bool) -> int:
        for kind in _CANDIDATES[network.version, network.extended]:
            wanted = _PROTOCOL.get(kind)
            if self.hash_types & kind and (wanted is None or (has_ports and wanted == network.protocol)):
                return int(kind)
        return 0


_H = HashType
_V6: Final = (_H.TCPV6, _H.UDPV6, _H.IPV6)
_CANDIDATES: Final[Mapping[tuple[int, bool], tuple[HashType, ...]]] = {
    (4, False): (_H.TCPV4, _H.UDPV4, _H.IPV4),
    (6, False): _V6,
    (6, True): (_H.TCP_EX, _H.UDP_EX, _H.IP_EX, *_V6),
}
_PROTOCOL: Final[Mapping[int, int]] = {
    _H.TCPV4: TCP,
    _H.UDPV4: UDP,
    _H.TCPV6: TCP,
    _H.UDPV6: UDP,
    _H.TCP_EX: TCP,
    _H.UDP_EX: UDP,
}
_EXTENSIONS: Final = _H.IP_EX | _H.TCP_EX | _H.UDP_EX


def _input(kind: int, network: Network, ports: tuple[int, int] | None) -> bytes:
    source, destination = network.source, network.destination
    if kind & _EXTENSIONS:
        source, destination = network.home or source, network.routed or destination
    data = source + destination
    if kind in _PROTOCOL and ports is not None:
        data += ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big")
    return data


@define
class RssConfig:
    """Receive-side scaling as a driver configured it; queues are numbers of receiveqs, from 0.

    table: the indirection table, of a power of 2 entries;  unclassified: where packets without a hash go
    max_tx: how many transmitqs the driver says it uses
    """

    hashing: HashConfig
    table: tuple[int, ...]
    unclassified: int
    max_tx: int

    def queue(self, found: PacketHash) -> int:
        """The receiveq for a hash."""
        return self.unclassified if found.report == HASH_REPORT_NONE else self.table[found.value & len(self.table) - 1]


MOST_FLOWS: Final = 4096
"""How many flows automatic steering remembers."""


@define
class Steering:
    """Which receiveq, counted from 0, a packet goes to.

    pairs: how many are in use;  rss: what rules instead, or None;  hashing: what is reported without RSS
    """

    pairs: int = 1
    rss: RssConfig | None = None
    hashing: HashConfig = field(factory=HashConfig)
    contexts: dict[int, RssConfig] = field(factory=dict)
    _flows: OrderedDict[Flow, int] = field(factory=OrderedDict)

    @property
    def plain(self) -> bool:
        """Whether nothing is chosen and nothing hashed."""
        return self.rss is None and self.pairs == 1 and not self.hashing.hash_types

    def automatic(self, pairs: int) -> None:
        """VQ_PAIRS_SET: the last command decides which mode it is."""
        self.pairs, self.rss = pairs, None
        self._flows.clear()

    def transmitted(self, frame: bytes, queue: int) -> None:
        """A frame left by a transmitq, counted from 0: its answers are to come in by the receiveq of that number."""
        if self.pairs == 1 or self.rss is not None:
            return
        network = network_of(frame)
        if network is None:
            return
        flow = flow_of(frame, network).reversed()
        self._flows[flow] = queue
        self._flows.move_to_end(flow)
        if len(self._flows) > MOST_FLOWS:
            self._flows.popitem(last=False)

    def choose(
        self, frame: bytes, network: Network | None, usable: Callable[[int], bool]
    ) -> tuple[int | None, PacketHash]:
        """The receiveq for a frame, None if it is to be dropped, and its hash. `usable` tells which queues run."""
        if self.rss is not None:
            found = self.rss.hashing.hash(frame, network)
            queue = self.rss.queue(found)
            return (queue if usable(queue) else None), found
        found = self.hashing.hash(frame, network)
        queue = self._automatic(frame, network)
        if usable(queue):
            return queue, found
        # One that is being reset: any other will do.
        return next(filter(usable, range(self.pairs)), None), found

    def _automatic(self, frame: bytes, network: Network | None) -> int:
        if self.pairs == 1 or network is None:
            return 0
        flow = flow_of(frame, network)
        queue = self._flows.get(flow)
        return queue if queue is not None and queue < self.pairs else zlib.crc32(repr(flow).encode()) % self.pairs
