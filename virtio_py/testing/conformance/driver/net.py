"""What a network device's driver sends, posts and commands (5.1)."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.control_layout import CtrlClass
from virtio_py.devices.net.header import decode_header, header_size
from virtio_py.devices.net.layout import ETHERNET_HEADER, GSO_FLAGS, Gso, HdrFlag, NetFeature, virtio_net_config
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import mask
from virtio_py.testing.conformance.driver.views import Kind, View

_F = NetFeature
_SEND: Final = "net.driver.packet-transmission"
_ROOM: Final = "net.driver.setting-up-receive-buffers"
_CONFIG: Final = "net.driver.config-layout"
_FILTER: Final = "net.driver.packet-receive-filtering"
_STEERING: Final = "net.driver.automatic-receive-steering"
_BIG: Final = mask(_F.GUEST_TSO4, _F.GUEST_TSO6, _F.GUEST_UFO, _F.GUEST_USO4, _F.GUEST_USO6)
_VLAN_TAG: Final = 4
_GSO: Final = {
    Gso.TCPV4: (_F.HOST_TSO4, 7),
    Gso.TCPV6: (_F.HOST_TSO6, 9),
    Gso.UDP: (_F.HOST_UFO, 11),
    Gso.UDP_L4: (_F.HOST_USO, 13),
}
"""gso_type: the feature it takes, and the clause's number."""


class Net(Kind):
    """A network interface's driver."""

    clauses: ClassVar[tuple[str, ...]] = (
        *(f"{_CONFIG}.{n}" for n in (1, 2, 7, 9, 14)),
        *(f"{_SEND}.{n}" for n in (2, 3, 7, 9, 11, 13, 30, 31, 32, 33, 45)),
        *(f"{_ROOM}.{n}" for n in (1, 2, 3)),
        f"{_FILTER}.1",
        f"{_FILTER}.2",
        "net.driver.mac-filtering.1",
        "net.driver.mac-filtering.3",
        f"{_STEERING}.2",
        f"{_STEERING}.3",
    )

    def __init__(self) -> None:
        self._pairs = 1

    def negotiated(self, view: View) -> None:
        self._pairs = 1
        view.ledger.must(f"{_CONFIG}.1", True, "")
        view.should_accept(_F.MAC, f"{_CONFIG}.2", "VIRTIO_NET_F_MAC")
        view.should_accept(_F.MTU, f"{_CONFIG}.7", "VIRTIO_NET_F_MTU")
        if view.has(_F.CTRL_RX_EXTRA):
            view.ledger.should(f"{_CONFIG}.14", view.has(_F.CTRL_VQ), "CTRL_RX_EXTRA is accepted without CTRL_VQ")

    def wrote(self, view: View, offset: int, data: bytes) -> None:
        view.ledger.must(f"{_CONFIG}.1", False, f"{len(data)} bytes are written to the configuration at {offset}")

    def request(self, view: View, queue: DeviceQueue, readable: bytes, writable: int) -> None:
        config = virtio_net_config.decode(view.device.read_config())
        pairs = config.max_virtqueue_pairs if view.features & mask(_F.MQ, _F.RSS) else 1
        if queue.index == 2 * pairs:
            self._command(view, readable, config)
        elif queue.index & 1:
            self._sent(view, queue.index // 2, readable, config)
        else:
            _posted(view, writable)

    def _sent(self, view: View, pair: int, data: bytes, config: Any) -> None:
        size = header_size(view.features)
        if len(data) < size:
            view.ledger.must(f"{_SEND}.1", False, f"a packet of {len(data)} bytes, where a header has {size}")
            return
        if view.has(_F.CTRL_VQ):
            # A front-end that keeps controlq to itself keeps the command to itself, too.
            view.ledger.must(f"{_STEERING}.3", pair < self._pairs, f"a packet on transmitq{pair + 1} of {self._pairs}")
        _judge_header(view, decode_header(data[:size]), len(data) - size, config)

    def _command(self, view: View, data: bytes, config: Any) -> None:
        name, payload = (data[0], data[1]), data[2:]
        must = view.ledger.must
        if name in (c.RX_PROMISC, c.RX_ALLMULTI):
            must(f"{_FILTER}.1", view.has(_F.CTRL_RX), f"command {name} without CTRL_RX")
        elif name[0] == CtrlClass.RX:
            must(f"{_FILTER}.2", view.has(_F.CTRL_RX_EXTRA), f"command {name} without CTRL_RX_EXTRA")
        elif name[0] == CtrlClass.MAC:
            # Linux sends MAC_ADDR_SET for CTRL_MAC_ADDR alone: see disagreements.md.
            good = view.has(_F.CTRL_RX) or (name == c.MAC_ADDR_SET and view.has(_F.CTRL_MAC_ADDR))
            must("net.driver.mac-filtering.1", good, f"command {name} without CTRL_RX")
            if name == c.MAC_TABLE_SET:
                must("net.driver.mac-filtering.3", _is_table(payload), f"a table of {len(payload)} bytes")
        elif name == c.MQ_VQ_PAIRS_SET and len(payload) >= 2:
            pairs = int.from_bytes(payload[:2], "little")
            must(f"{_STEERING}.2", 1 <= pairs <= config.max_virtqueue_pairs, f"{pairs} pairs are asked for")
            self._pairs = pairs


def _is_table(payload: bytes) -> bool:
    """Two lists, each of a count and so many addresses."""
    for _ in range(2):
        count = int.from_bytes(payload[:4], "little")
        if len(payload) < 4 + 6 * count:
            return False
        payload = payload[4 + 6 * count :]
    return not payload


def _posted(view: View, room: int) -> None:
    if view.has(_F.MRG_RXBUF):
        size = header_size(view.features)
        view.ledger.must(f"{_ROOM}.3", room >= size, f"{room} bytes for a header of {size}")
    elif view.features & _BIG:
        view.ledger.should(f"{_ROOM}.1", room >= 65550 + 12, f"a receive buffer of {room} bytes")
    else:
        view.ledger.should(f"{_ROOM}.2", room >= 1526, f"a receive buffer of {room} bytes")


def _judge_header(view: View, header: Any, length: int, config: Any) -> None:
    must, flags, gso = view.ledger.must, header.flags, header.gso_type & ~GSO_FLAGS
    must(f"{_SEND}.2", header.num_buffers == 0, f"num_buffers is {header.num_buffers}")
    must(f"{_SEND}.45", not flags & (HdrFlag.DATA_VALID | HdrFlag.RSC_INFO), f"flags are {flags:#x}")
    if not view.has(_F.CSUM):
        must(f"{_SEND}.3", flags == 0, f"flags are {flags:#x} without CSUM")
    if flags & HdrFlag.NEEDS_CSUM:
        at = header.csum_start + header.csum_offset + 2
        must(f"{_SEND}.30", at <= length, f"the checksum of a packet of {length} bytes ends at {at}")
    if not view.features & mask(*(feature for feature, _ in _GSO.values())):
        must(f"{_SEND}.31", header.gso_type == Gso.NONE, f"gso_type is {header.gso_type}")
    for kind, (feature, clause) in _GSO.items():
        if not view.has(feature):
            must(f"{_SEND}.{clause}", gso != kind, f"gso_type is {header.gso_type} without {feature.name}")
    if gso != Gso.NONE:
        must(f"{_SEND}.32", bool(flags & HdrFlag.NEEDS_CSUM), "a packet to be segmented has no NEEDS_CSUM")
        must(f"{_SEND}.33", header.gso_size > 0, "a packet to be segmented has a gso_size of 0")
    elif view.has(_F.MTU):
        most = config.mtu + ETHERNET_HEADER + _VLAN_TAG
        must(f"{_CONFIG}.9", length <= most, f"a frame of {length} bytes with an MTU of {config.mtu}")
