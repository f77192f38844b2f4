"""A device's state from one back-end to another, and what else concerns devices more than rings."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.net_frames import US, Wire
from tests.test_vhost_user_server import open_fds, serving
from tests.vhost_user_frontend import BASIC, REFUSED, Books, FrontEnd, R
from tests.vhost_user_socket import Client, connected, eventfds
from virtio_py.device import Device
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.layout import BlkFeature, BlkRequest, BlkStatus
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.blk.zones import Zones
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.layout import ConsoleFeature
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.control import carry_out
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.layout import NetFeature
from virtio_py.errors import MessageError, PeerError
from virtio_py.spec import Feature, bit, mask
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_backend import Backend
from virtio_py.transports.vhost_user_messages import INVALID_FD, Flag, Message, ProtocolFeature, decode_message
from virtio_py.transports.vhost_user_state import (
    MAX_STATE,
    Direction,
    State,
    decode,
    encode,
    encode_parts,
    part_head,
    set_parts,
    state_head,
)

_F = NetFeature
NET = mask(
    *(_F.MAC, _F.CTRL_VQ, _F.CTRL_RX, _F.CTRL_RX_EXTRA, _F.CTRL_VLAN, _F.CTRL_MAC_ADDR, _F.MQ, _F.RSS),
    *(_F.HASH_REPORT, _F.NOTF_COAL, _F.MTU, _F.GUEST_CSUM, _F.GUEST_TSO4, _F.CTRL_GUEST_OFFLOADS),
)
GROUP, OTHER = b"\1\0\x5e\0\0\1", b"\2\0\0\0\0\7"
OK, BAD = m.u64.encode(u64=INVALID_FD), m.u64.encode(u64=INVALID_FD | 1)


def transfer(direction: int, phase: int = 0) -> bytes:
    return m.VhostUserTransferDeviceState.encode(direction=direction, phase=phase)


@define
class Side:
    """A back-end with any device, and a front-end of numbers."""

    device: Device
    features: int
    books: Books = field(factory=Books)
    backend: Backend = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.backend = Backend(self.device, self.books)

    def send(self, request: int, payload: bytes = b"", fds: int = 0, flags: int = 0) -> bytes | None:
        reply = self.backend.receive(Message(request, flags, payload), [self.books.fd() for _ in range(fds)])
        return None if reply is None else decode_message(reply).payload

    def negotiate(self, features: int | None = None) -> None:
        wanted = (self.features if features is None else features) | BASIC
        assert self.send(R.SET_FEATURES, m.u64.encode(u64=wanted), flags=Flag.NEED_REPLY) == m.u64.encode(u64=0)

    def save(self) -> bytes:
        assert self.send(R.SET_DEVICE_STATE_FD, transfer(Direction.SAVE), 1) == OK
        state = self.books.moved
        assert state is not None
        assert self.send(R.CHECK_DEVICE_STATE) == m.u64.encode(u64=0)
        return state

    def load(self, state: bytes) -> int:
        """What CHECK_DEVICE_STATE answers."""
        assert self.send(R.SET_DEVICE_STATE_FD, transfer(Direction.LOAD), 1) == OK
        self.books.moved = state
        answer = self.send(R.CHECK_DEVICE_STATE)
        assert answer is not None
        return int.from_bytes(answer, "little")


def net() -> NetDevice:
    return NetDevice(Wire(), pairs=4, mtu=1500, mac=US)


def console(ports: int = 2) -> ConsoleDevice:
    return ConsoleDevice([ConsolePort(MemoryEndpoint(), name=f"port {n}") for n in range(ports)], max_ports=4)


def disk() -> BlkDevice:
    return BlkDevice(MemoryMedium.of(512 * 640), zones=Zones(640, 64, max_open=3, max_active=5))


SIDES: dict[str, Callable[[], Side]] = {
    "net": lambda: Side(net(), NET),
    "console": lambda: Side(console(), bit(ConsoleFeature.MULTIPORT)),
    "blk": lambda: Side(disk(), mask(BlkFeature.ZONED, BlkFeature.FLUSH, BlkFeature.CONFIG_WCE)),
}
each_device = pytest.mark.parametrize("name", SIDES)


def busy(name: str) -> Side:
    """A device whose driver has asked for much."""
    side = SIDES[name]()
    side.negotiate()
    device = side.device
    if isinstance(device, NetDevice):
        commands(device, ASKED)
    elif isinstance(device, ConsoleDevice):
        talk(device)
    elif isinstance(device, BlkDevice):
        write_zones(device)
    return side


ASKED: list[tuple[tuple[int, int], bytes]] = [
    (c.RX_PROMISC, b"\1"),
    (c.RX_NOBCAST, b"\1"),
    (c.MAC_ADDR_SET, OTHER),
    (
        c.MAC_TABLE_SET,
        c.virtio_net_ctrl_mac(1).encode(entries=1, macs=[US])
        + c.virtio_net_ctrl_mac(1).encode(entries=1, macs=[GROUP]),
    ),
    (c.VLAN_ADD, c.virtio_net_ctrl_vlan.encode(vlan=7)),
    (c.VLAN_ADD, c.virtio_net_ctrl_vlan.encode(vlan=4095)),
    (c.MQ_VQ_PAIRS_SET, c.virtio_net_ctrl_mq_pairs_set.encode(virtqueue_pairs=3)),
    (
        c.MQ_RSS_CONFIG,
        c.virtio_net_rss_config(4).encode(
            hash_types=3, indirection_table_mask=3, indirection_table=(0, 1, 2, 3), max_tx_vq=4, hash_key_length=40
        )
        + bytes(range(40)),
    ),
    (c.NOTF_COAL_RX_SET, c.virtio_net_ctrl_coal.encode(max_packets=9, max_usecs=5)),
    (c.GUEST_OFFLOADS_SET, c.virtio_net_ctrl_guest_offloads.encode(offloads=bit(_F.GUEST_CSUM))),
]


def commands(device: NetDevice, asked: list[tuple[tuple[int, int], bytes]]) -> None:
    for key, data in asked:
        carry_out(device, key, data)


def talk(device: ConsoleDevice) -> None:
    control = device._control
    control.active = control.ready = True
    for port in device.ports.values():
        control.added(port)
    port = device.ports[1]
    port.ready = port.driver_open = True


def write_zones(device: BlkDevice) -> None:
    assert device.zones is not None
    for start, count in ((64, 8), (0, 64), (192, 1), (64, 2)):
        at = device.zones.at(start)
        assert at is not None
        device.zones.written(at.wp, count)
    assert device.zones.manage(BlkRequest.ZONE_OPEN, 320) == BlkStatus.OK


@each_device
def test_a_state_survives_the_journey(name: str) -> None:
    source, target = busy(name), SIDES[name]()
    state = source.save()
    assert len(state) > state_head.size
    assert target.load(state) == 0
    assert target.save() == state, "it may be sent on before it was used"
    target.negotiate()
    if isinstance(target.device, ConsoleDevice):
        # As from DRIVER_OK on: without MULTIPORT there is nothing to tell.
        target.device._control.active = True
    assert target.device.parts() == source.device.parts()
    assert target.save() == state


def test_what_a_network_driver_asked_for_is_in_force_at_the_target() -> None:
    source, target = busy("net"), SIDES["net"]()
    assert target.load(source.save()) == 0
    target.negotiate()
    before, after = source.device, target.device
    assert isinstance(before, NetDevice)
    assert isinstance(after, NetDevice)
    assert (after.filter, after.steering) == (before.filter, before.steering)
    assert after.read_config()[:6] == OTHER
    assert (after.offloads, after.coalescing.receive) == (before.offloads, before.coalescing.receive)
    after.reset()
    assert after.read_config()[:6] == US, "a driver that begins anew finds the device as it was made"


@each_device
def test_a_state_of_other_features_is_of_no_use(name: str) -> None:
    source, target = busy(name), SIDES[name]()
    fresh = SIDES[name]()
    fresh.negotiate(0 if name != "blk" else bit(BlkFeature.ZONED))
    assert target.load(source.save()) == 0
    target.negotiate(0 if name != "blk" else bit(BlkFeature.ZONED))
    assert "of no use" in target.books.lines[-1]
    if name != "blk":
        assert target.device.parts() == fresh.device.parts()


@pytest.mark.parametrize("request_", [R.RESET_DEVICE, R.SET_STATUS])
def test_a_reset_forgets_a_state_that_came(request_: R) -> None:
    source, target = busy("net"), SIDES["net"]()
    assert target.load(source.save()) == 0
    target.send(request_, b"" if request_ == R.RESET_DEVICE else bytes(8))
    target.negotiate()
    assert not target.device.parts()


@each_device
def test_every_truncation_of_a_state_is_refused(name: str) -> None:
    state = busy(name).save()
    target = SIDES[name]()
    for length in range(len(state)):
        assert target.load(state[:length]) == 1, length
    assert target.load(state + b"\0") == 1
    # As if the head knew.
    head, words = state[: state_head.size], state[state_head.size :]
    for length in range(len(words)):
        cut = encode(target.device.device_id, State(decode(target.device.device_id, state).features, words[:length]))
        assert cut[:8] == head[:8]
        assert target.load(cut) in (0, 1)
        assert target.backend.session.end.read_status() == 0
    assert target.load(state) == 0
    assert target.save() == state


@each_device
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_state_is_taken_or_refused(name: str, data: st.DataObject) -> None:
    source, target = busy(name), SIDES[name]()
    state = bytearray(source.save())
    for _ in range(data.draw(st.integers(1, 4))):
        state[data.draw(st.integers(0, len(state) - 1))] = data.draw(st.integers(0, 255))
    if target.load(bytes(state)) == 0:
        target.negotiate()
    assert not target.books.open


@given(st.binary(max_size=200))
def test_anything_behind_a_good_head_is_taken_or_refused(words: bytes) -> None:
    for name, make in SIDES.items():
        target = make()
        features = target.features | bit(Feature.VERSION_1)
        assert target.load(encode(target.device.device_id, State(features, words))) in (0, 1), name


@pytest.mark.parametrize(
    ("direction", "phase", "fds"), [(2, 0, 1), (0xFFFFFFFF, 0, 1), (0, 1, 1), (1, 0xFFFFFFFF, 1), (0, 0, 0), (1, 0, 0)]
)
def test_a_transfer_that_cannot_be_is_refused(direction: int, phase: int, fds: int) -> None:
    side = SIDES["net"]()
    assert side.send(R.SET_DEVICE_STATE_FD, transfer(direction, phase), fds) == BAD
    assert side.send(R.CHECK_DEVICE_STATE) == m.u64.encode(u64=1)
    assert not side.books.open


def test_a_state_of_another_type_of_device_is_refused() -> None:
    assert SIDES["net"]().load(busy("blk").save()) == 1
    assert Side(FrontEnd().device, 0).load(encode(FrontEnd().device.device_id, State(BASIC & ~(1 << 30), b"x"))) == 1


def test_a_running_device_has_no_state_to_be_moved() -> None:
    front = FrontEnd()
    front.number(R.SET_FEATURES, BASIC)
    front.share()
    queue = front.queue(0, BASIC)
    front.describe(queue)
    front.number(R.SET_VRING_KICK, 0, fds=1)
    front.state(R.SET_VRING_ENABLE, 0, 1)
    before = set(front.books.open)
    for direction in Direction:
        assert front.send(R.SET_DEVICE_STATE_FD, transfer(direction), 1) == BAD
    assert front.books.open == before
    assert front.echo(queue, b"goes on") == b"goes on"


# With real pipes


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Client]:
    device = BlkDevice(MemoryMedium.of(512 << 14), zones=Zones(1 << 14, 1))
    with serving(tmp_path / "sock", device=device) as server, connected(server.path) as client:
        assert client.ask(R.GET_QUEUE_NUM) == 1
        yield client


def check(client: Client) -> int:
    return client.ask(R.CHECK_DEVICE_STATE)


def begin(client: Client, direction: Direction, fd: int) -> int:
    return client.ask(R.SET_DEVICE_STATE_FD, transfer(direction), [fd])


def test_a_state_larger_than_a_pipe_goes_through_one(running: Client) -> None:
    features = BASIC | bit(BlkFeature.ZONED)
    running.number(R.SET_FEATURES, features)
    idle = open_fds()
    ours, theirs = os.pipe()
    assert begin(running, Direction.SAVE, theirs) == INVALID_FD
    os.close(theirs)
    assert running.ask(R.GET_QUEUE_NUM) == 1, "others are served meanwhile"
    with os.fdopen(ours, "rb") as pipe:
        state = pipe.read()
    assert len(state) > 2 << 16
    assert check(running) == 0
    ours, theirs = os.pipe()
    assert begin(running, Direction.LOAD, ours) == INVALID_FD
    os.close(ours)
    writer = threading.Thread(target=lambda: os.fdopen(theirs, "wb").write(state))
    writer.start()
    writer.join(10)
    assert check(running) == 0
    assert open_fds() == idle
    running.number(R.SET_FEATURES, features)


def test_a_check_never_waits_for_what_does_not_come(running: Client) -> None:
    idle = open_fds()
    ours, theirs = os.pipe()
    assert begin(running, Direction.LOAD, ours) == INVALID_FD
    os.close(ours)
    os.write(theirs, b"virtio")
    assert check(running) == 1, "the other end is still open"
    with pytest.raises(BrokenPipeError):
        os.write(theirs, b"more")
    os.close(theirs)
    ours, theirs = os.pipe()
    assert begin(running, Direction.SAVE, theirs) == INVALID_FD
    os.close(theirs)
    os.close(ours)
    assert check(running) in (0, 1)
    assert open_fds() == idle


def test_a_state_without_end_is_cut_off(running: Client) -> None:
    ours, theirs = os.pipe()
    assert begin(running, Direction.LOAD, ours) == INVALID_FD
    os.close(ours)
    with pytest.raises(BrokenPipeError), os.fdopen(theirs, "wb") as pipe:
        pipe.write(bytes(MAX_STATE + (2 << 20)))
    assert check(running) == 1


def test_descriptors_that_no_state_goes_through(running: Client, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with (tmp_path / "file").open("wb") as file, eventfds(1) as [event], ours, theirs:
        idle = open_fds()
        for fd in (file.fileno(), event):
            assert begin(running, Direction.SAVE, fd) == INVALID_FD | 1
            assert begin(running, Direction.LOAD, fd) == INVALID_FD | 1
        assert begin(running, Direction.SAVE, theirs.fileno()) == INVALID_FD, "a socket is as good as a pipe"
        assert running.ask(R.GET_QUEUE_NUM) == 1
        assert check(running) == 0
        assert len(ours.recv(1 << 16)) >= state_head.size
        assert open_fds() == idle


def test_a_new_transfer_gives_up_the_old_one_and_the_end_of_the_session_both(running: Client) -> None:
    idle = open_fds()
    ends = []
    for _ in range(20):
        ours, theirs = os.pipe()
        assert begin(running, Direction.LOAD, ours) == INVALID_FD
        os.close(ours)
        ends.append(theirs)
    assert open_fds() == idle + len(ends) + 1
    for end in ends:
        os.close(end)


# What only a network device is asked for, and what nobody has


def test_the_host_says_how_long_packets_may_be() -> None:
    side = SIDES["net"]()
    side.negotiate()
    offered = int.from_bytes(side.send(R.GET_PROTOCOL_FEATURES) or b"", "little")
    assert offered & bit(ProtocolFeature.MTU)
    device = side.device
    assert isinstance(device, NetDevice)
    assert side.send(R.NET_SET_MTU, m.u64.encode(u64=1400), flags=Flag.NEED_REPLY) == m.u64.encode(u64=0)
    config = device.read_config()
    assert int.from_bytes(config[10:12], "little") == 1400
    for bad in (0, 67, 65536, 1400 + (1 << 16), (1 << 64) - 1):
        assert side.send(R.NET_SET_MTU, m.u64.encode(u64=bad), flags=Flag.NEED_REPLY) == REFUSED
    assert device.read_config() == config
    side.send(R.RESET_DEVICE)
    assert device.read_config() == config, "what the host lets through does not depend on a driver"


@pytest.mark.parametrize("spare", [bytes(2), b"\xff\xff"])
def test_a_rarp_request_leaves_by_the_port(spare: bytes) -> None:
    side = SIDES["net"]()
    device = side.device
    assert isinstance(device, NetDevice)
    wire = device.port
    assert isinstance(wire, Wire)
    assert side.send(R.SEND_RARP, US + spare, flags=Flag.NEED_REPLY) == m.u64.encode(u64=0)
    [frame] = wire.frames
    assert frame[:22] == b"\xff" * 6 + US + bytes.fromhex("8035 0001 0800 06 04 0003".replace(" ", ""))
    assert frame[22:42] == US + bytes(4) + US + bytes(4)
    assert len(frame) == 60
    for bad in (GROUP, bytes(6), b"\xff" * 6):
        assert side.send(R.SEND_RARP, bad + spare, flags=Flag.NEED_REPLY) == REFUSED
    device.set_link(False)
    side.send(R.SEND_RARP, US + spare)
    assert len(wire.frames) == 1


def test_other_devices_are_in_no_network() -> None:
    front = FrontEnd()
    assert not front.get(R.GET_PROTOCOL_FEATURES) & mask(ProtocolFeature.MTU, ProtocolFeature.RARP)
    front.refused(R.NET_SET_MTU, m.u64.encode(u64=1500))
    front.refused(R.SEND_RARP, US + bytes(2))


NOBODY_HAS = {
    R.POSTCOPY_ADVISE: b"",
    R.GET_SHARED_OBJECT: bytes(16),
    R.GET_SHMEM_CONFIG: b"",
}


@pytest.mark.parametrize("request_", NOBODY_HAS)
def test_what_is_not_there_is_answered_with_nothing(request_: R) -> None:
    front = FrontEnd()
    answer = front.send(request_, NOBODY_HAS[request_])
    assert answer is not None
    assert not any(answer)
    assert front.get(R.GET_QUEUE_NUM) == 2, "and the session goes on"


@pytest.mark.parametrize("request_", [R.POSTCOPY_LISTEN, R.POSTCOPY_END])
def test_postcopy_is_refused(request_: R) -> None:
    front = FrontEnd()
    front.refused(request_)
    assert front.get(R.GET_QUEUE_NUM) == 2
    assert not front.get(R.GET_PROTOCOL_FEATURES) & mask(ProtocolFeature.PAGEFAULT, ProtocolFeature.SHARED_OBJECT)


def test_a_device_without_parts_takes_none() -> None:
    front = FrontEnd()
    set_parts(front.device, b"")
    assert encode_parts(front.device) == b""
    with pytest.raises(MessageError):
        set_parts(front.device, part_head.encode())
    with pytest.raises(PeerError):
        decode(front.device.device_id, bytes(100))
