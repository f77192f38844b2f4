"""Network interfaces, each broken in one clause of 5.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tests.mutants.registry import Carrier, Mutant, judge_device, mutant, register
from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.control_layout import Ack
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.header import Packet, decode_header
from virtio_py.devices.net.layout import virtio_net_config, virtio_net_hdr
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.devices.net.reception import Reception
from virtio_py.devices.net.rss import PacketHash
from virtio_py.errors import RequestError
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue

_CONFIG: Final = "net.device.config-layout"
_SENT: Final = "net.device.packet-transmission"
_INCOMING: Final = "net.device.incoming-packets"
_PAIRS: Final = 2
_FLOWS: Final = "the suite's frames were of no protocol, so that a device that hashes them had one flow to place"


class Net(NetDevice):
    """A sound one, whose frames come back."""

    def __init__(self) -> None:
        super().__init__(LoopbackPort(), pairs=_PAIRS, mtu=1500, speed=1000)


# Configuration


class OneField(Net):
    """A field of the configuration has a value that it must not have."""

    def __init__(self, name: str, value: int) -> None:
        self._name, self._value = "", 0
        super().__init__()
        self._name, self._value = name, value

    def read_config(self) -> bytes:
        config = bytearray(super().read_config())
        if self._name:
            start, end = virtio_net_config.offset(self._name), virtio_net_config.end(self._name)
            config[start:end] = self._value.to_bytes(end - start, "little")
        return bytes(config)


FIELDS: Final = {
    "no pairs of queues": (f"{_CONFIG}.1", "max_virtqueue_pairs", 0),
    "an MTU of 20": (f"{_CONFIG}.2", "mtu", 20),
    "a speed that is negative": (f"{_CONFIG}.10", "speed", 0x80000000),
    "duplex of another kind": (f"{_CONFIG}.11", "duplex", 5),
}
"""What is wrong: the clause, the field and its value."""
HARD: Final = {
    "no pairs of queues": "it was found, and then the suite itself came to grief, for it looked for a queue to send by"
}


@mutant("net", f"{_CONFIG}.4")
class ChangesItsMtu(Net):
    def read_config(self) -> bytes:
        config = bytearray(super().read_config())
        config[virtio_net_config.offset("mtu")] ^= bool(self.features)
        return bytes(config)


# Commands


class Answers(Net):
    """A command is answered without being looked at, OK or ERR."""

    def __init__(self, name: tuple[int, int] | None, ack: Ack, which: Callable[[bytes], bool]) -> None:
        super().__init__()
        self.name, self.ack, self.which = name, ack, which

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        control = queue.index in (2, 2 * _PAIRS) and self.role(queue.index) == 2
        if control and self.name in (None, tuple(data[:2])) and self.which(data[2:]):
            chain.writable.write(bytes([self.ack]))
        else:
            super().handle(queue, chain)


def _any(data: bytes) -> bool:
    return True


def _number(*numbers: int) -> Callable[[bytes], bool]:
    return lambda data: int.from_bytes(data[:2], "little") in numbers


COMMANDS: Final[dict[str, tuple[str, tuple[int, int] | None, Ack, Callable[[bytes], bool]]]] = {
    "promiscuous mode is refused": ("net.device.packet-receive-filtering.1", c.RX_PROMISC, Ack.ERR, _any),
    "all multicast is refused": ("net.device.packet-receive-filtering.4", c.RX_ALLMULTI, Ack.ERR, _any),
    "no broadcast is refused": ("net.device.packet-receive-filtering.15", c.RX_NOBCAST, Ack.ERR, _any),
    "a table is left as it is": ("net.device.mac-filtering.2", c.MAC_TABLE_SET, Ack.OK, _any),
    "an address is left as it is": ("net.device.mac-filtering.3", c.MAC_ADDR_SET, Ack.OK, _any),
    "a VLAN is not added": ("net.device.vlan-filtering.2", c.VLAN_ADD, Ack.OK, _any),
    "an announcement is for nothing": ("net.device.gratuitous-packet-sending.1", c.ANNOUNCE_ACK, Ack.ERR, _any),
    "0 pairs are enough": (
        "net.driver.automatic-receive-steering.2", c.MQ_VQ_PAIRS_SET, Ack.OK, _number(0, _PAIRS + 1),
    ),
    "half a table will do": ("net.driver.mac-filtering.3", c.MAC_TABLE_SET, Ack.OK, lambda data: len(data) < 12),
    "any queue has coalescing": (
        "net-coal.device.notifications-coalescing.4", c.NOTF_COAL_VQ_SET, Ack.OK, _number(2 * _PAIRS, 2, 0xFFFF),
    ),
    "reserved bits are looked at": (
        "net-coal.device.notifications-coalescing.1", c.NOTF_COAL_VQ_SET, Ack.ERR, lambda data: any(data[2:4]),
    ),
    "any queue has statistics": ("net-stats.device.device-statistics.2", c.STATS_GET, Ack.OK, _number(0x7FFF)),
    "any type has statistics": ("net-stats.device.device-statistics.3", c.STATS_GET, Ack.OK, _number(0)),
    "no statistics are listed": ("net-stats.device.device-statistics.1", c.STATS_QUERY, Ack.OK, _any),
    "whatever is asked is done": ("prose.net.control", None, Ack.OK, _any),
}  # fmt: skip
"""What is wrong: the clause, the command, how it is answered, and with which data."""


@mutant("net", "net.device.mac-filtering.1")
class RemembersItsTable(Net):
    def negotiated(self, features: int) -> None:
        macs = self.filter.macs
        super().negotiated(features)
        self.filter.macs = macs

    def reset(self) -> None:
        macs = self.filter.macs
        super().reset()
        self.filter.macs = macs


@mutant("net", "net.device.packet-receive-filtering.2")
class IsNobodyItself(Net):
    def receive(self, packet: Packet) -> bool:
        return True if packet.frame[:6] == self.mac and not self.filter.promisc else super().receive(packet)


@mutant("net", "net.device.automatic-receive-steering.1", hard=_FLOWS)
class SpreadsUnasked(Net):
    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self.steering.pairs = _PAIRS


@mutant("net", "net.device.automatic-receive-steering.2", hard=_FLOWS)
class SpreadsThoughTold(Net):
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        told = b"".join(chain.readable.views())[:2]
        super().handle(queue, chain)
        if queue.index == 2 * _PAIRS and told == bytes(c.MQ_VQ_PAIRS_SET):
            self.steering.pairs = _PAIRS


# Packets


class LooksAt(Net):
    """Gives up for a header that means nothing to it."""

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        data = b"".join(chain.readable.views())
        if queue.index == 1 and self.is_odd(decode_header(data[: self.reception.header_bytes].ljust(12, b"\0"))):
            raise RequestError("a header that means nothing")
        super().handle(queue, chain)

    def is_odd(self, header: Any) -> bool:
        """Whether it is such a one."""
        raise NotImplementedError


@mutant("net", f"{_SENT}.1")
class LooksAtUnknownFlags(LooksAt):
    def is_odd(self, header: Any) -> bool:
        return bool(header.flags & 0xC0)


@mutant("net", f"{_SENT}.2")
class LooksAtOffsets(LooksAt):
    def is_odd(self, header: Any) -> bool:
        return not header.flags & 1 and header.csum_start > 2000


@mutant("net", f"{_SENT}.7")
class LooksAtHdrLen(LooksAt):
    def is_odd(self, header: Any) -> bool:
        return not header.gso_type and header.hdr_len > 2000


class Miscounting(Reception):
    def _fill(self, chains: list[Chain], packet: Packet, found: PacketHash) -> None:
        first = chains[0].writable.views()[0]
        super()._fill(chains, packet, found)
        first[virtio_net_hdr.offset("num_buffers")] = 7


@mutant("net", "net.device.incoming-packets.1")
@mutant("net", "net.device.incoming-packets.2", name="CountsMergedBuffersWrong")
class CountsBuffersWrong(Net):
    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self.reception = Miscounting(features)


@mutant("net", "net.device.vlan-filtering.1")
class DropsTaggedFrames(Net):
    def receive(self, packet: Packet) -> bool:
        return True if packet.frame[12:14] == b"\x81\0" else super().receive(packet)


class Scribbler(Reception):
    """Received headers have something that they must not have."""

    name, value = "flags", 0

    def _fill(self, chains: list[Chain], packet: Packet, found: PacketHash) -> None:
        first = chains[0].writable.views()[0]
        super()._fill(chains, packet, found)
        first[virtio_net_hdr.offset(self.name)] |= self.value


class Scribbles(Net):
    """A device with such a reception, by the name of the field and what is added to it."""

    name, value = "flags", 0

    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self.reception = Scribbler(features)
        self.reception.name, self.reception.value = self.name, self.value


@mutant("net", f"{_INCOMING}.5")
class MarksAllData(Scribbles):
    name, value = "flags", 2


@mutant("net", f"{_INCOMING}.26")
class CallsAllTcp(Scribbles):
    name, value = "gso_type", 1


class Wasteful(Reception):
    """Leaves some room in each buffer but the last."""

    def _gather(self, queue: DeviceQueue, needed: int) -> list[Chain] | None:
        found = super()._gather(queue, needed + 64)
        for chain in found or []:
            if len(found or []) > 1:
                chain.writable.split_tail(8)
        return found


@mutant("net", f"{_INCOMING}.3")
class LeavesRoom(Net):
    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self.reception = Wasteful(features)


@mutant(
    "net", f"{_INCOMING}.7", hard="the packet was too large for the buffers, and its loss a reason to skip the check"
)
class CutsNothing(Net):
    def negotiated(self, features: int) -> None:
        super().negotiated(features)
        self.offloads = (1 << 64) - 1


def _register(name: str, clause: str, make: Callable[[], Net]) -> None:
    register(Mutant(name, clause, judge_device("net", lambda: Carrier(make())), "net", hard=HARD.get(name, "")))


for _name, (_clause, *_values) in FIELDS.items():
    _register(_name, _clause, lambda values=tuple(_values): OneField(*values))  # type: ignore[misc]  # bound now
for _name, (_clause, *_values) in COMMANDS.items():
    _register(_name, _clause, lambda values=tuple(_values): Answers(*values))  # type: ignore[misc]  # likewise
