"""The network device (5.1): its configuration, what it sends, and what it hands over.

What it hands over is seen where the back-end sends our own frames back (`--port loopback`, DPDK's io, mac and macswap).
"""

from __future__ import annotations

from typing import Any, Final

from virtio_py.devices.net.header import decode_header, header_size
from virtio_py.devices.net.layout import (
    ETHERNET_HEADER,
    SPEED_MAX,
    SPEED_UNKNOWN,
    Gso,
    HdrFlag,
    NetFeature,
    config_length,
    virtio_net_config,
    virtio_net_hdr,
)
from virtio_py.spec import bit
from virtio_py.testing.conformance.checks import check
from virtio_py.testing.conformance.kinds import FRAME, Request, net_send
from virtio_py.testing.conformance.parts import Sent, recut
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Failed, Skipped

_F = NetFeature
_INCOMING: Final = "net.device.incoming-packets"
_BUFFERS: Final = 8
LONG_FRAME: Final = FRAME + bytes(range(256)) * 4


def net_config(rig: Rig) -> Any:
    """The configuration, as far as the offer brings it into being; the rest is 0."""
    data = rig.need_config(config_length(rig.offered))
    return virtio_net_config.decode(data.ljust(virtio_net_config.size, b"\0"))


# Features and configuration


@check("net.device.config-layout.1", devices="net", layouts="split", needs=(_F.MQ,))
def pairs_are_in_range(rig: Rig) -> None:
    """With VIRTIO_NET_F_MQ max_virtqueue_pairs is from 1 to 0x8000."""
    pairs = net_config(rig).max_virtqueue_pairs
    rig.require(1 <= pairs <= 0x8000, f"max_virtqueue_pairs is {pairs}")


@check("net.device.config-layout.2", "net.device.config-layout.3", devices="net", layouts="split", needs=(_F.MTU,))
def the_mtu_is_in_range(rig: Rig) -> None:
    """With VIRTIO_NET_F_MTU mtu is from 68 to 65535, and better not below 1280."""
    mtu = net_config(rig).mtu
    rig.require(68 <= mtu <= 65535, f"mtu is {mtu}", "net.device.config-layout.2")
    rig.should(mtu >= 1280, f"mtu is {mtu}")


@check("net.device.config-layout.4", devices="net", layouts="split", needs=(_F.MTU,))
def the_mtu_stays(rig: Rig) -> None:
    """mtu is the same before, in and after operation."""
    before = net_config(rig).mtu
    rig.start(_F.MTU)
    rig.good()
    rig.require(net_config(rig).mtu == before, f"mtu is {net_config(rig).mtu}, and was {before}")
    rig.reset()
    rig.require(net_config(rig).mtu == before, f"mtu is {net_config(rig).mtu} after a reset, and was {before}")


@check("net.device.config-layout.10", devices="net", layouts="split", needs=(_F.SPEED_DUPLEX,))
def the_speed_is_in_range(rig: Rig) -> None:
    """With VIRTIO_NET_F_SPEED_DUPLEX speed is up to 0x7fffffff, or unknown."""
    speed = net_config(rig).speed
    rig.require(speed <= SPEED_MAX or speed == SPEED_UNKNOWN, f"speed is {speed:#x}")


@check("net.device.config-layout.11", devices="net", layouts="split", needs=(_F.SPEED_DUPLEX,))
def duplex_is_known(rig: Rig) -> None:
    """With VIRTIO_NET_F_SPEED_DUPLEX duplex is 0, 1 or 0xff."""
    duplex = net_config(rig).duplex
    rig.require(duplex in (0, 1, 0xFF), f"duplex is {duplex:#x}")


@check("net.device.config-layout.14", devices="net", layouts="split")
def extra_modes_come_with_the_queue(rig: Rig) -> None:
    """VIRTIO_NET_F_CTRL_RX_EXTRA is not offered without VIRTIO_NET_F_CTRL_VQ."""
    lonely = rig.offered & bit(_F.CTRL_RX_EXTRA) and not rig.offered & bit(_F.CTRL_VQ)
    rig.should(not lonely, "VIRTIO_NET_F_CTRL_RX_EXTRA is offered without VIRTIO_NET_F_CTRL_VQ")


# Sending


def _sent(rig: Rig, **fields: int) -> None:
    header = virtio_net_hdr.encode(**fields)[: header_size(rig.features)]
    rig.ask(net_send(rig, header=header))


@check("net.device.packet-transmission.1", devices="net")
def unknown_flags_are_disregarded(rig: Rig) -> None:
    """Unknown bits in a transmitted header's flags do no harm."""
    rig.start()
    for flags in (0x80, 0x40):
        _sent(rig, flags=flags)
    rig.good()


@check("net.device.packet-transmission.2", devices="net")
def offsets_without_a_flag_mean_nothing(rig: Rig) -> None:
    """Without NEEDS_CSUM csum_start and csum_offset have no influence."""
    rig.start()
    for start, offset in ((0xFFFF, 0xFFFF), (0, 0), (60, 2)):
        _sent(rig, csum_start=start, csum_offset=offset)
    rig.good()


@check("net.device.packet-transmission.7", devices="net")
def a_wrong_hdr_len_does_no_harm(rig: Rig) -> None:
    """Without GSO a wrong hdr_len does no harm."""
    rig.start()
    for length in (0, 1, 0xFFFF):
        _sent(rig, hdr_len=length)
    rig.good()


@check("net.driver.packet-transmission.30", devices="net", needs=(_F.CSUM,))
def a_checksum_behind_the_packet(rig: Rig) -> None:
    """A packet whose checksum would lie behind its end is refused or sent, and nothing else happens."""
    rig.start(_F.CSUM)
    header = virtio_net_hdr.encode(flags=HdrFlag.NEEDS_CSUM, csum_start=0xFFF0, csum_offset=0xFF)
    rig.refusable(net_send(rig, header=header[: header_size(rig.features)]), "a checksum behind the packet")
    rig.good()


@check("net.driver.packet-transmission.33", devices="net", needs=(_F.HOST_TSO4,))
def a_packet_to_be_cut_into_nothing(rig: Rig) -> None:
    """A packet to be segmented with a gso_size of 0 is refused or dropped, and nothing else happens."""
    rig.start(_F.HOST_TSO4)
    header = virtio_net_hdr.encode(
        flags=HdrFlag.NEEDS_CSUM, gso_type=Gso.TCPV4, gso_size=0, csum_start=34, csum_offset=16
    )
    rig.refusable(net_send(rig, LONG_FRAME, header[: header_size(rig.features)]), "a gso_size of 0")
    rig.good()


@check("net.driver.packet-transmission.1", devices="net")
def a_packet_shorter_than_its_header(rig: Rig) -> None:
    """A chain too short for a header is refused or dropped, and nothing else happens."""
    rig.start()
    rig.refusable(Request(1, (bytes(5),)), "a packet of 5 bytes")
    rig.good()


@check("split.device.message-framing.1", "packed.device.scatter-gather-support.1", devices="net")
def a_packet_is_sent_however_it_is_cut(rig: Rig) -> None:
    """Header and frame may be cut anywhere."""
    rig.start()
    request = net_send(rig, LONG_FRAME)
    for lengths in ((1, 2, 9), (14, 20), (12, 14, 100, 900), (11,)):
        rig.ask(Request(1, recut(request.readable, *lengths)))


# Receiving


class Received:
    """Frames that come back, taken out of receiveq1. size: bytes of each buffer posted.

    together: how many buffers were found used at once, where the last frame began"""

    def __init__(self, rig: Rig, size: int, count: int = _BUFFERS) -> None:
        self.rig = rig
        self.header_size = header_size(rig.features)
        self.together = 0
        self.posted = [rig.stage(Request(0, (), (size,))) for _ in range(count)]
        rig.publish(0)

    def send(self, frame: bytes) -> None:
        """A frame for the back-end to send back."""
        self.rig.ask(net_send(self.rig, frame))

    def used(self) -> list[tuple[bytes, int]]:
        """(contents, used length) of the buffers that came back, in the order they were posted."""
        done = [sent for sent in self.posted if self.rig.is_used(sent)]
        self.posted = [sent for sent in self.posted if sent not in done]
        return [self._content(sent) for sent in done]

    def _content(self, sent: Sent) -> tuple[bytes, int]:
        answer = self.rig.take(sent)
        length = len(answer.data) if answer.length is None else answer.length
        return answer.data[:length], length

    def echo(self, frame: bytes) -> list[tuple[bytes, int]]:
        """The buffers in which a frame comes back. Raises Skipped where nobody sends it back."""
        self.send(frame)
        found: list[tuple[bytes, int]] = []

        def whole() -> bool:
            found.extend(more := self.used())
            if more and len(more) == len(found):
                self.together = len(more)
            return sum(length for _, length in found) >= self.header_size + len(frame)

        if not self.rig.holds(whole, 10 * self.rig.quiet):
            if found:
                raise Failed(f"of a frame of {len(frame)} bytes {sum(n for _, n in found)} came, header included")
            raise Skipped("nobody sends our frames back")
        return found


@check("net.device.incoming-packets.1", "net.device.setting-up-receive-buffers.2", devices="net")
def a_packet_is_one_buffer(rig: Rig) -> None:
    """Without VIRTIO_NET_F_MRG_RXBUF a packet takes one buffer, and num_buffers is 1."""
    rig.start()
    received = Received(rig, 2048)
    for frame in (FRAME, LONG_FRAME):
        found = received.echo(frame)
        rig.require(len(found) == 1, f"a packet came in {len(found)} buffers")
        count = decode_header(found[0][0][: received.header_size]).num_buffers
        rig.require(count == 1, f"num_buffers is {count}", "net.device.incoming-packets.1")


@check(
    "net.device.incoming-packets.2",
    "net.device.incoming-packets.3",
    "net.device.incoming-packets.4",
    "net.device.setting-up-receive-buffers.1",
    devices="net",
    needs=(_F.MRG_RXBUF,),
)
def a_packet_is_spread_over_buffers(rig: Rig) -> None:
    """With VIRTIO_NET_F_MRG_RXBUF num_buffers counts the buffers of a packet, and all but the last are full."""
    rig.start(_F.MRG_RXBUF)
    for size in (256, 512, 2048):
        received = Received(rig, size)
        found = received.echo(LONG_FRAME)
        count = decode_header(found[0][0][: received.header_size]).num_buffers
        rig.require(count == len(found), f"num_buffers is {count} for {len(found)}", "net.device.incoming-packets.2")
        together = received.together
        rig.require(together == count, f"{together} of {count} buffers were used at first", f"{_INCOMING}.4")
        full = all(length == size for _, length in found[:-1])
        rig.require(full, f"buffers of {size} have {[n for _, n in found]} bytes", "net.device.incoming-packets.3")
        data = b"".join(data for data, _ in found)[received.header_size :]
        rig.require(data[ETHERNET_HEADER:] == LONG_FRAME[ETHERNET_HEADER:], "the frame that came back is another one")
        rig.start(_F.MRG_RXBUF)


@check(
    "net.device.incoming-packets.5", "net.device.incoming-packets.26", "net.device.incoming-packets.30", devices="net"
)
def a_plain_header(rig: Rig) -> None:
    """With no offload negotiated a received header has no flags, and GSO_NONE."""
    rig.start()
    received = Received(rig, 2048)
    for frame in (FRAME, LONG_FRAME):
        [(data, _)] = received.echo(frame)
        header = decode_header(data[: received.header_size])
        rig.require(header.flags == 0, f"flags are {header.flags:#x}", "net.device.incoming-packets.5")
        rig.require(header.gso_type == Gso.NONE, f"gso_type is {header.gso_type}", "net.device.incoming-packets.26")


@check("net.device.config-layout.6", devices="net", needs=(_F.MTU,))
def a_frame_as_long_as_may_be(rig: Rig) -> None:
    """A frame of mtu bytes behind its Ethernet header is sent whole."""
    mtu = net_config(rig).mtu
    rig.start(_F.MTU)
    received = Received(rig, header_size(rig.features) + ETHERNET_HEADER + mtu)
    received.echo(FRAME)
    found = received.echo((FRAME + bytes(mtu))[: ETHERNET_HEADER + mtu])
    rig.require(len(found) == 1, f"it comes back in {len(found)} buffers")


@check("net.device.vlan-filtering.1", devices="net")
def tagged_frames_pass(rig: Rig) -> None:
    """Without VIRTIO_NET_F_CTRL_VLAN frames with a VLAN tag are accepted."""
    rig.start()
    received = Received(rig, 2048)
    received.echo(FRAME)
    tagged = FRAME[:12] + bytes.fromhex("8100 0123") + FRAME[12:]
    try:
        received.echo(tagged)
    except Skipped as error:
        raise Failed("a frame with a VLAN tag does not come back, where one without does") from error


@check("net.driver.setting-up-receive-buffers.3", devices="net")
def a_receive_buffer_too_small(rig: Rig) -> None:
    """Receive buffers too small for a header are passed over or refused, and nothing else happens."""
    rig.start()
    Received(rig, 4)
    rig.hands[0].lenient = True
    rig.refusable(net_send(rig), "receive buffers of 4 bytes")
    rig.goes_on("receive buffers of 4 bytes")
