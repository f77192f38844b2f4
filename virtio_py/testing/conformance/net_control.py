"""The network device's control virtqueue (5.1.6.5)."""

from __future__ import annotations

from typing import Final

from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.control_layout import Ack, virtio_net_ctrl
from virtio_py.devices.net.layout import NetFeature
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.kinds import FRAME, Request, control_queue
from virtio_py.testing.conformance.net import Received, net_config
from virtio_py.testing.conformance.net_offloads import tcp_frame
from virtio_py.testing.conformance.parts import Sent
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Failed, Rejected, Skipped

_F = NetFeature
_OURS: Final = bytes.fromhex("52540066b579")
_THEIRS: Final = bytes.fromhex("525400654321")
_GROUP: Final = bytes.fromhex("33330000beef")
_BROADCAST: Final = b"\xff" * 6
_FILTER: Final = "net.device.packet-receive-filtering"
_MODES: Final = (c.RX_PROMISC, c.RX_ALLMULTI)
_EXTRA: Final = (c.RX_ALLUNI, c.RX_NOMULTI, c.RX_NOUNI, c.RX_NOBCAST)


def command(rig: Rig, name: tuple[int, int], data: bytes = b"", room: int = 0) -> bytes:
    """A command; all that is written, `ack` first. Raises Failed where that is neither OK nor ERR."""
    head = virtio_net_ctrl.encode(class_=name[0], command=name[1])
    request = Request(control_queue(rig), (head, data) if data else (head,), (1, room) if room else (1,))
    answer = rig.ask(request).data
    if answer[0] not in tuple(Ack):
        raise Failed(f"ack of command {tuple(map(int, name))} is {answer[0]:#x}")
    return answer


def _ack(rig: Rig, name: tuple[int, int], data: bytes = b"") -> int:
    return command(rig, name, data)[0]


def _done(rig: Rig, name: tuple[int, int], data: bytes = b"", clause: str = "") -> None:
    rig.require(_ack(rig, name, data) == Ack.OK, f"command {tuple(map(int, name))} with {data.hex()} fails", clause)


def _begin(rig: Rig, *features: int) -> None:
    """Starts the device; what offers CTRL_VQ to a driver who serves it itself (DPDK) does not answer."""
    rig.start(_F.CTRL_VQ, *features)
    if control_queue(rig) not in rig.hands:
        raise Skipped("there is no controlq")


def _reached(received: Received, to: bytes) -> bool:
    """Whether a frame to an address comes back to us."""
    try:
        received.echo(to + FRAME[6:])
    except Skipped:
        return False
    return True


@check(f"{_FILTER}.1", f"{_FILTER}.4", devices="net", needs=(_F.CTRL_VQ, _F.CTRL_RX))
def receive_modes_are_set(rig: Rig) -> None:
    """PROMISC and ALLMULTI can be switched on and off."""
    _begin(rig, _F.CTRL_RX)
    for n, name in enumerate(_MODES):
        for on in (1, 0, 1):
            _done(rig, name, bytes([on]), f"{_FILTER}.{(1, 4)[n]}")


@check(
    f"{_FILTER}.6",
    f"{_FILTER}.8",
    f"{_FILTER}.12",
    f"{_FILTER}.15",
    devices="net",
    needs=(_F.CTRL_VQ, _F.CTRL_RX_EXTRA),
)
def extra_modes_are_set(rig: Rig) -> None:
    """ALLUNI, NOMULTI, NOUNI and NOBCAST can be switched on and off."""
    _begin(rig, _F.CTRL_RX, _F.CTRL_RX_EXTRA)
    for n, name in enumerate(_EXTRA):
        for on in (1, 0):
            _done(rig, name, bytes([on]), f"{_FILTER}.{(6, 8, 12, 15)[n]}")


@check(f"{_FILTER}.9", f"{_FILTER}.13", f"{_FILTER}.16", devices="net", needs=(_F.CTRL_VQ, _F.CTRL_RX_EXTRA))
def what_is_not_wanted_does_not_come(rig: Rig) -> None:
    """With NOMULTI, NOUNI and NOBCAST no such packet comes."""
    _begin(rig, _F.CTRL_RX, _F.CTRL_RX_EXTRA)
    received = Received(rig, 2048, 32)
    for name in _MODES:
        _done(rig, name, b"\1")
    # Multicast frames carry a group's address as their destination; what sends them back may swap addresses.
    for mode, to in ((c.RX_NOBCAST, _BROADCAST), (c.RX_NOMULTI, _GROUP)):
        _done(rig, c.RX_PROMISC, b"\0")
        if not _reached(received, to):
            raise Skipped(f"no frame to {to.hex()} comes back at all")
        _done(rig, mode, b"\1")
        rig.should(not _reached(received, to), f"a frame to {to.hex()} comes though mode {mode[1]} is on")
        _done(rig, mode, b"\0")
        rig.require(_reached(received, to), f"no frame to {to.hex()} comes after mode {mode[1]} was switched off")


@check(f"{_FILTER}.2", "net.device.mac-filtering.4", devices="net", needs=(_F.CTRL_VQ, _F.CTRL_RX, _F.MAC))
def strangers_are_filtered(rig: Rig) -> None:
    """A frame for somebody else comes in promiscuous mode, and not otherwise."""
    _begin(rig, _F.CTRL_RX, _F.MAC)
    received = Received(rig, 2048, 32)
    _done(rig, c.RX_PROMISC, b"\1")
    if not _reached(received, _THEIRS):
        raise Skipped("nobody sends our frames back")
    _done(rig, c.RX_PROMISC, b"\0")
    rig.should(not _reached(received, _THEIRS), "a frame for somebody else comes without promiscuous mode")
    own = net_config(rig).mac
    rig.require(_reached(received, own), f"a frame for {own.hex()}, our address, does not come", f"{_FILTER}.2")


@check("net.device.mac-filtering.2", devices="net", needs=(_F.CTRL_VQ, _F.CTRL_RX))
def a_filter_table_is_set(rig: Rig) -> None:
    """MAC_TABLE_SET has its effect before it is answered."""
    _begin(rig, _F.CTRL_RX)
    received = Received(rig, 2048, 32)
    entries = (1).to_bytes(4, "little") + _THEIRS + (1).to_bytes(4, "little") + _GROUP
    for name in _MODES:
        _done(rig, name, b"\0")
    _done(rig, c.MAC_TABLE_SET, entries)
    if not _reached(received, _BROADCAST):
        raise Skipped("nobody sends our frames back")
    for to in (_THEIRS, _GROUP):
        rig.require(_reached(received, to), f"a frame to {to.hex()}, which is in the table, does not come")


@check("net.device.mac-filtering.1", devices="net", needs=(_F.CTRL_VQ, _F.CTRL_RX, _F.MAC))
def a_reset_empties_the_table(rig: Rig) -> None:
    """After a reset the filter table is empty."""
    entries = (1).to_bytes(4, "little") + _THEIRS + bytes(4)
    reached = []
    for table in (b"", entries, b""):
        _begin(rig, _F.CTRL_RX, _F.MAC)
        received = Received(rig, 2048, 32)
        _done(rig, c.RX_PROMISC, b"\0")
        if table:
            _done(rig, c.MAC_TABLE_SET, table)
        reached.append(_reached(received, _THEIRS))
    if reached[:2] != [False, True]:
        raise Skipped("the table does not decide what comes")
    rig.require(not reached[2], "a frame to an address that was in the table comes after a reset")


@check(
    "net.device.automatic-receive-steering.1",
    "net.device.automatic-receive-steering.2",
    devices="net",
    needs=(_F.CTRL_VQ, _F.MQ),
)
def packets_arrive_where_they_may(rig: Rig) -> None:
    """Until VQ_PAIRS_SET, and after it with 1, packets arrive in receiveq1 only."""
    if net_config(rig).max_virtqueue_pairs < 2:
        raise Skipped("there is one pair of queues")
    _begin(rig, _F.MQ)
    others = [rig.send(Request(2, (), (2048,))) for _ in range(4)]
    received = Received(rig, 2048, 32)
    for n, number in ((1, None), (2, 1)):
        if number is not None:
            _done(rig, c.MQ_VQ_PAIRS_SET, number.to_bytes(2, "little"))
        # Flows that hashing would spread over the queues.
        strayed = any(not _arrived(rig, received, tcp_frame(b"", port), others) for port in range(16))
        rig.require(not strayed, "a packet arrives in receiveq2", f"net.device.automatic-receive-steering.{n}")


def _arrived(rig: Rig, received: Received, frame: bytes, others: list[Sent]) -> bool:
    """Whether a frame comes back to us, and not to another queue. Raises Skipped where it comes to none."""
    try:
        received.echo(frame)
    except Skipped:
        if not any(rig.is_used(one) for one in others):
            raise
    return not any(rig.is_used(one) for one in others)


@check("net.device.mac-filtering.3", devices="net", needs=(_F.CTRL_VQ, _F.CTRL_MAC_ADDR, _F.MAC))
def the_address_is_set(rig: Rig) -> None:
    """MAC_ADDR_SET shows in the configuration before it is answered."""
    _begin(rig, _F.CTRL_MAC_ADDR, _F.CTRL_RX, _F.MAC)
    before = net_config(rig).mac
    for address in (_OURS, before):
        _done(rig, c.MAC_ADDR_SET, address)
        found = net_config(rig).mac
        rig.require(found == address, f"mac is {found.hex()} after {address.hex()} was set")


@check("net.device.vlan-filtering.2", "net.device.vlan-filtering.3", devices="net", needs=(_F.CTRL_VQ, _F.CTRL_VLAN))
def vlans_are_filtered(rig: Rig) -> None:
    """Frames of a VLAN in the table come, others do not."""
    _begin(rig, _F.CTRL_VLAN)
    received = Received(rig, 2048, 32)
    if not _reached(received, _BROADCAST):
        raise Skipped("nobody sends our frames back")
    tagged = _BROADCAST + FRAME[6:12] + bytes.fromhex("8100 0123")
    rig.should(not _reached(received, tagged), "a frame of a VLAN that is not in the table comes")
    _done(rig, c.VLAN_ADD, (0x123).to_bytes(2, "little"))
    rig.require(_reached(received, tagged), "no frame of a VLAN in the table comes", "net.device.vlan-filtering.2")
    _done(rig, c.VLAN_DEL, (0x123).to_bytes(2, "little"))


@check("net.driver.automatic-receive-steering.2", devices="net", needs=(_F.CTRL_VQ, _F.MQ))
def pairs_out_of_range(rig: Rig) -> None:
    """VQ_PAIRS_SET takes 1 and all, and refuses 0 and more than there are."""
    _begin(rig, _F.MQ)
    most = net_config(rig).max_virtqueue_pairs
    for pairs in (1, most, 1):
        _done(rig, c.MQ_VQ_PAIRS_SET, pairs.to_bytes(2, "little"))
    for pairs in (0, most + 1):
        rig.require(_ack(rig, c.MQ_VQ_PAIRS_SET, pairs.to_bytes(2, "little")) == Ack.ERR, f"{pairs} pairs are taken")
    raise Rejected(f"0 and {most + 1} pairs are answered VIRTIO_NET_ERR")


@check("net.device.gratuitous-packet-sending.1", devices="net", needs=(_F.CTRL_VQ, _F.GUEST_ANNOUNCE, _F.STATUS))
def an_announcement_is_acknowledged(rig: Rig) -> None:
    """ANNOUNCE_ACK clears VIRTIO_NET_S_ANNOUNCE before it is answered."""
    _begin(rig, _F.GUEST_ANNOUNCE, _F.STATUS)
    _done(rig, c.ANNOUNCE_ACK)
    rig.require(not net_config(rig).status & 2, "VIRTIO_NET_S_ANNOUNCE is set")


@check("net.driver.mac-filtering.3", devices="net", needs=(_F.CTRL_VQ, _F.CTRL_RX))
def a_table_cut_off(rig: Rig) -> None:
    """A table with more entries announced than there are is refused."""
    _begin(rig, _F.CTRL_RX)
    ack = _ack(rig, c.MAC_TABLE_SET, (1000).to_bytes(4, "little") + _THEIRS)
    rig.require(ack == Ack.ERR, "it is taken")
    raise Rejected("it is answered VIRTIO_NET_ERR")


@check("prose.net.control", devices="net", needs=(_F.CTRL_VQ,))
def an_unknown_command(rig: Rig) -> None:
    """A command that nobody knows is answered with an error."""
    _begin(rig)
    for name in ((0x77, 0), (c.RX_PROMISC[0], 0x77)):
        rig.require(_ack(rig, name, b"\1") == Ack.ERR, f"command {tuple(map(int, name))} is answered OK")


@check("net.driver.packet-receive-filtering.1", devices="net", needs=(_F.CTRL_VQ, _F.CTRL_RX))
def a_command_that_was_not_negotiated(rig: Rig) -> None:
    """A command of a feature that was not negotiated is refused or served, and nothing else happens."""
    _begin(rig)
    _ack(rig, c.RX_PROMISC, b"\1")
    rig.good()


@check("net-coal.device.notifications-coalescing.4", devices="net", needs=(_F.CTRL_VQ, _F.VQ_NOTF_COAL))
def coalescing_of_no_queue(rig: Rig) -> None:
    """VQ_SET and VQ_GET of what is no receiveq or transmitq are refused."""
    _begin(rig, _F.VQ_NOTF_COAL)
    for queue in (control_queue(rig), 0xFFFF):
        data = c.virtio_net_ctrl_coal_vq.encode(vq_index=queue)
        rig.require(_ack(rig, c.NOTF_COAL_VQ_SET, data) == Ack.ERR, f"VQ_SET of queue {queue} is taken")


@check("net-coal.device.notifications-coalescing.1", devices="net", needs=(_F.CTRL_VQ, _F.VQ_NOTF_COAL))
def coalescing_with_reserved_bits(rig: Rig) -> None:
    """Whatever stands in `reserved` of virtio_net_ctrl_coal_vq is tolerated."""
    _begin(rig, _F.VQ_NOTF_COAL)
    for reserved in (0, 1, 0xFFFF):
        _done(rig, c.NOTF_COAL_VQ_SET, c.virtio_net_ctrl_coal_vq.encode(vq_index=0, reserved=reserved))


@check("net-stats.device.device-statistics.2", devices="net", needs=(_F.CTRL_VQ, _F.DEVICE_STATS))
def statistics_of_no_queue(rig: Rig) -> None:
    """STATS_GET of a queue that is not there is refused."""
    _begin(rig, _F.DEVICE_STATS)
    data = c.virtio_net_ctrl_queue_stats.encode(vq_index=0x7FFF, types_bitmap=1)
    rig.require(command(rig, c.STATS_GET, data, 256)[0] == Ack.ERR, "it is answered OK")


@check("net-stats.device.device-statistics.3", devices="net", needs=(_F.CTRL_VQ, _F.DEVICE_STATS))
def statistics_of_no_type(rig: Rig) -> None:
    """STATS_GET with an unknown bit is refused."""
    _begin(rig, _F.DEVICE_STATS)
    data = c.virtio_net_ctrl_queue_stats.encode(vq_index=0, types_bitmap=1 << 60)
    rig.require(command(rig, c.STATS_GET, data, 256)[0] == Ack.ERR, "it is answered OK")


@check("net-stats.device.device-statistics.1", devices="net", needs=(_F.CTRL_VQ, _F.DEVICE_STATS))
def statistics_are_listed(rig: Rig) -> None:
    """STATS_QUERY lists the types of statistics."""
    _begin(rig, _F.DEVICE_STATS)
    answer = command(rig, c.STATS_QUERY, room=c.virtio_net_stats_capabilities.size)
    rig.require(answer[0] == Ack.OK, "STATS_QUERY fails")
    rig.require(any(answer[1:]) and answer[1:] != b"\xa5" * (len(answer) - 1), "no types are listed")
