"""Every device, and every driver, against a peer that keeps to no rule. What rings alone have to bear is in
`test_ring_hostile`; here it is borne by what stands behind them.

What virtio code has really got wrong, by class, and the tests that show it of each of net, blk, scsi, console (and
entropy). "all" are the tests of this file, which take every device from one table.

    A1  loops of descriptors                  all: test_no_attack_on_a_ring_gets_through
    A2  chains longer than queue or table     all: test_no_attack_on_a_ring_gets_through
    A3  no bytes, no progress                 all: test_chains_of_nothing_come_to_an_end
    A4  bad packed descriptors, again         all: test_no_attack_on_a_ring_gets_through (packed)
    A5  addresses outside of memory           all: test_no_attack_on_a_ring_gets_through
    A6  addresses and lengths that wrap       all: test_no_attack_on_a_ring_gets_through
    A7  used lengths that are too long        all drivers: test_a_driver_does_not_believe_lengths
    A8  ids and heads that are nobody's       all drivers: test_a_driver_does_not_believe_ids
                                              devices: same-head-in-flight in test_ring_hostile
    A9  headers cut short, or cut up          all: test_any_bytes_come_to_an_end_and_are_answered_within_their_room
                                              net: test_a_header_of_any_size_is_cut_off
                                              blk: test_what_is_written_is_read_whatever_the_framing
                                              scsi: test_framing_carries_no_meaning
                                              console: test_a_control_message_in_pieces_and_with_more_behind_it
    A10 headers that depend on features       net: test_a_header_of_any_size_is_cut_off
                                              scsi: test_the_sizes_are_live_and_a_reset_restores_them
                                              scsi: test_protection_bytes_that_are_not_there_fail
                                              blk and console have one header
    A11 buffers of a gathering that failed    net: test_no_receive_buffer_is_lost_or_used_twice
                                              nobody else gathers
    A12 used lengths beyond what was written  all: test_any_bytes_come_to_an_end_and_are_answered_within_their_room
    A13 lengths that contradict each other    as A12
                                              scsi: test_a_cdb_that_wants_more_than_there_is_overruns
                                              blk: test_segments_that_break_a_limit_fail_before_the_first_is_done
                                              net: test_any_command_is_answered
                                              console: test_a_short_control_message
    A14 what is fetched twice                 all: test_what_is_read_is_read_once
                                              rings: test_what_was_read_once_is_what_is_used
    A15 checksums outside of the packet       net: test_any_header_is_sent_or_dropped
    A16 tables and indices in requests        net: test_a_bad_command_changes_nothing
                                              scsi: test_lun_formats
                                              console: test_a_port_that_cannot_be
                                              blk: test_ranges_outside_or_of_broken_sectors_fail_and_touch_nothing
    A17 sizes of control messages             console: test_a_message_that_does_not_fit_is_not_cut
                                              console: test_a_control_message_without_a_header (driver)
                                              scsi: test_any_control_request_has_a_response
    A18 commands repeated for ever            scsi: test_attentions_and_registrations_are_bounded
                                              console: test_answers_that_nobody_takes_do_not_pile_up
    A19 memory without bounds                 all: test_giants_cost_no_memory
    A20 a driver that never stops             all: test_a_driver_that_never_stops_leaves_room_for_others
    A21 registers at the wrong time           all: test_what_comes_at_the_wrong_time
                                              of the carriers: test_mmio
    A22 the configuration space's edges       all: test_the_configuration_space_has_edges
    A23 logs of what was written              test_vhost_user_backend
    A24 buffers that are the ring itself      all: test_a_device_that_is_made_to_write_its_own_ring
"""

from __future__ import annotations

import mmap
import re
import tracemalloc
from contextlib import suppress
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring_matrix import LAYOUTS
from tests.test_every_carrier import DEVICES
from tests.test_ring_hostile import SIZE, WRITE, with_regions
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.net.layout import ETHERNET_HEADER
from virtio_py.driver import Driver
from virtio_py.errors import NegotiationError, PeerError, VirtioError
from virtio_py.memory import GuestMemory, Region
from virtio_py.records import Record
from virtio_py.rings.layouts import pvirtq_desc, virtq_used, virtq_used_elem
from virtio_py.spec import DeviceStatus, Feature, PackedDescFlag, bit, mask
from virtio_py.testing.hands import make_hand
from virtio_py.testing.hostile_driver import ATTACKS, Attack, HostileDriver
from virtio_py.transports.in_process import InProcess

_RING = mask(Feature.VERSION_1, Feature.INDIRECT_DESC)


class Ask(NamedTuple):
    """Of a device: the queue that is attacked, which its driver leaves empty, and a request that it serves there."""

    queue: int
    readable: bytes
    writable: int


ASKS = {
    "entropy": Ask(0, b"", 8),
    "blk": Ask(0, bytes(16), 513),
    "net": Ask(1, bytes(12 + ETHERNET_HEADER), 0),
    "scsi": Ask(2, b"\1\0\x40\0".ljust(51, b"\0"), 108),
    "console": Ask(1, b"text", 0),
}
every_device = pytest.mark.parametrize("name", DEVICES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


class Scene:
    """A device, the driver that has set it up, and a villain who has taken the driver's place in one queue."""

    def __init__(self, name: str, layout: str, carrier: type[InProcess] = InProcess) -> None:
        row, self.ask = DEVICES[name], ASKS[name]
        self.row = row
        self.device = row.device()
        ring = _RING | (bit(Feature.RING_PACKED) if layout == "packed" else 0)
        self.carrier = carrier(self.device, memory_size=1 << 20, ring_features=ring)
        wanted = row.driver.known_features & ~mask(23, 22) if name == "net" else row.driver.known_features
        self.driver: Driver = row.driver(self.carrier, features=wanted | ring, queue_size=SIZE).start()
        self.settle()
        self.reused = self.carrier.arena.memory
        self.memory = with_regions(self.carrier.arena.memory)
        self.carrier.end.replace_memory(self.memory)
        good, scratch = (self.carrier.arena.allocate(n).address for n in (4096, 1025 * 16))
        self.villain = HostileDriver(make_hand(self.driver.queues[self.ask.queue], self.memory), good, scratch)

    def settle(self) -> None:
        while self.carrier.step():
            pass

    def kick(self) -> None:
        self.carrier.end.available_buffer(self.ask.queue)
        self.settle()

    def used(self) -> int:
        """How many chains the device has used."""
        return len(self.driver.queues[self.ask.queue].take_used()) if self.carrier.end.fault is None else 0

    def recovers(self) -> None:
        """A reset brings back a device that works."""
        self.driver.reset()
        self.carrier.end.replace_memory(self.reused)
        self.driver.start()
        if isinstance(self.device, ConsoleDevice):
            # What was written before has been written.
            [port] = self.device.first
            assert isinstance(port.endpoint, MemoryEndpoint)
            port.endpoint.take()
        self.row.exercise(self.driver, self.device)


# Rings


def _on_devices() -> list[Any]:
    return [
        pytest.param(name, layout, attack, id=f"{name}-{attack.name}-{layout}")
        for name, layout, attack in product(DEVICES, LAYOUTS, ATTACKS)
        if getattr(attack, layout) is not None and attack.indirect
    ]


@pytest.mark.parametrize(("name", "layout", "attack"), _on_devices())
def test_no_attack_on_a_ring_gets_through(name: str, layout: str, attack: Attack) -> None:
    scene = Scene(name, layout)
    attack.run(scene.villain)
    scene.kick()
    fault = scene.carrier.end.fault
    assert isinstance(fault, attack.error)
    assert fault.queue == scene.ask.queue
    assert scene.carrier.read_status() & DeviceStatus.DEVICE_NEEDS_RESET
    scene.kick()
    scene.recovers()


@every_device
@every_layout
@pytest.mark.parametrize("flags", [[0], [WRITE], [0, 0, WRITE], [0, WRITE, WRITE]])
def test_chains_of_nothing_come_to_an_end(name: str, layout: str, flags: list[int]) -> None:
    scene = Scene(name, layout)
    for _ in range(2):
        scene.villain.chain(*((0xFFFF_FFFF_FFFF_FFFF, 0, flag) for flag in flags))
    scene.kick()
    fault = scene.carrier.end.fault
    assert fault is None or type(fault).__name__ == "RequestError"
    scene.recovers()


# Requests


def segments(total: int, cuts: list[int]) -> list[tuple[int, int]]:
    """(offset, length) of the pieces of `total` bytes, some of them of none."""
    points = [0, *sorted(cut % (total + 1) for cut in cuts), total]
    return [(a, b - a) for a, b in pairwise(points)]


@every_device
@settings(deadline=None, max_examples=60)
@given(
    data=st.binary(max_size=200) | st.integers(0, 60).map(bytes),
    room=st.integers(0, 700),
    cuts=st.lists(st.integers(0, 1000), max_size=2),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_bytes_come_to_an_end_and_are_answered_within_their_room(
    name: str, data: bytes, room: int, cuts: list[int], layout: str
) -> None:
    scene = Scene(name, layout)
    good = scene.villain.good
    scene.memory.write(good, data + b"\xee" * (4096 - len(data)))
    readable = [(good + at, length, 0) for at, length in segments(len(data), cuts)]
    writable = [(good + 1024 + at, length, WRITE) for at, length in segments(room, cuts)]
    scene.villain.chain(*readable, *writable)
    scene.kick()
    content = scene.memory.read(good, 4096)
    assert content[: len(data)] == data
    assert content[len(data) : 1024] == b"\xee" * (1024 - len(data))
    assert content[1024 + room :] == b"\xee" * (4096 - 1024 - room)
    if scene.carrier.end.fault is not None:
        assert isinstance(scene.carrier.end.fault, PeerError)
        return
    written = used_length(scene)
    if written is not None:
        assert written <= room
        # The status of a block request is its last byte, whatever its used length says.
        behind = content[1024 + written : 1024 + room - (name == "blk")]
        assert behind == b"\xee" * len(behind)


def used_length(scene: Scene) -> int | None:
    """Of the one chain that was made available, None if the device still has it."""
    queue = scene.driver.queues[scene.ask.queue]
    if scene.villain.split:
        ring = virtq_used(SIZE).decode(scene.memory.read(queue.device_area, virtq_used(SIZE).size))
        return int(ring.ring[0].len) if ring.idx else None
    first = pvirtq_desc.decode(scene.memory.read(queue.descriptor_area, pvirtq_desc.size))
    return int(first.len) if first.flags & PackedDescFlag.USED else None


@every_device
@every_layout
def test_what_is_read_is_read_once(name: str, layout: str) -> None:
    """The request turns into another as soon as its head was read: what follows is of the one that was judged."""
    scene = Scene(name, layout)
    queue, good = scene.carrier.end.active_queue(scene.ask.queue), scene.villain.good
    assert queue is not None
    scene.memory.write(good, scene.ask.readable)
    extents = [(good, len(scene.ask.readable), 0), (good + 1024, scene.ask.writable, WRITE)]
    scene.villain.chain(*(extent for extent in extents if extent[1]))
    [chain] = queue.take()
    before = chain.readable.read(chain.readable.remaining)
    scene.memory.write(good, b"\xff" * len(before))
    assert before == scene.ask.readable
    # A stream: what was read has gone from it.
    assert chain.readable.remaining == 0
    assert chain.readable.read_all() == b""
    scene.recovers()


@every_device
@every_layout
def test_giants_cost_no_memory(name: str, layout: str) -> None:
    scene = Scene(name, layout)
    giant = Region(1 << 40, memoryview(mmap.mmap(-1, 1 << 30)))
    scene.carrier.end.replace_memory(GuestMemory([*scene.memory.regions, giant]))
    scene.memory.write(scene.villain.good, scene.ask.readable)
    head = (scene.villain.good, len(scene.ask.readable), 0)
    room = (scene.villain.good + 1024, max(scene.ask.writable, 1), WRITE)
    tracemalloc.start()
    try:
        # No more than a medium of some KiB, or the largest frame, is touched of a gibibyte.
        scene.villain.chain(head, (giant.start, 1 << 30, 0), room)
        scene.kick()
        scene.villain.chain(head, (giant.start, 1 << 30, WRITE))
        scene.kick()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    scene.recovers()


class Endless(InProcess):
    """A driver that makes the next request available whenever one is used."""

    scene: Scene | None = None
    rounds = 0

    def used_buffer(self, queue_index: int) -> None:
        super().used_buffer(queue_index)
        if self.scene is None or queue_index != self.scene.ask.queue:
            return
        self.rounds += 1
        assert self.rounds < 1000, "it is served for ever"
        self.scene.driver.queues[queue_index].take_used()
        ask(self.scene)


def ask(scene: Scene) -> None:
    """Makes the request available that the device serves."""
    good = scene.villain.good
    readable = [(good, len(scene.ask.readable))] if scene.ask.readable else []
    writable = [(good + 1024, scene.ask.writable)] if scene.ask.writable else []
    scene.driver.queues[scene.ask.queue].add(readable, writable)


@every_device
@every_layout
def test_a_driver_that_never_stops_leaves_room_for_others(name: str, layout: str) -> None:
    scene = Scene(name, layout, Endless)
    assert isinstance(scene.carrier, Endless)
    scene.memory.write(scene.villain.good, scene.ask.readable)
    scene.carrier.scene = scene
    ask(scene)
    # Some is done, some is left, and whoever serves the queues is told that it is.
    assert scene.carrier.end.available_buffer(scene.ask.queue)
    assert 0 < scene.carrier.rounds < 100
    scene.carrier.scene = None
    scene.recovers()


@every_device
@every_layout
def test_a_device_that_is_made_to_write_its_own_ring(name: str, layout: str) -> None:
    for area in ("descriptor_area", "driver_area", "device_area"):
        scene = Scene(name, layout)
        place = getattr(scene.driver.queues[scene.ask.queue], area)
        scene.memory.write(scene.villain.good, scene.ask.readable)
        head = (scene.villain.good, len(scene.ask.readable), 0)
        room = (place, max(scene.ask.writable, 4), WRITE)
        scene.villain.chain(*([head] if scene.ask.readable else []), room)
        for _ in range(5):
            scene.kick()
        fault = scene.carrier.end.fault
        assert fault is None or isinstance(fault, PeerError)
        scene.recovers()


# Status and configuration


@every_device
def test_what_comes_at_the_wrong_time(name: str) -> None:
    scene = Scene(name, "split")
    end = scene.carrier.end
    with pytest.raises(NegotiationError):
        end.accept_features(0)
    for index in range(end.num_queues):
        with suppress(VirtioError):
            end.enable_queue(index)
        with pytest.raises(NegotiationError):
            end.reset_queue(index)
    # Kicks before anything is set up, and after everything is taken down.
    end.write_status(0)
    for index in range(end.num_queues):
        assert not end.available_buffer(index)
        end.stop_queue(index)
    end.write_status(DeviceStatus.DRIVER_OK)
    assert not end.running
    scene.recovers()


@every_device
@settings(deadline=None)
@given(offset=st.integers(0, 200), data=st.binary(max_size=80), features=st.booleans())
def test_the_configuration_space_has_edges(name: str, offset: int, data: bytes, features: bool) -> None:
    scene = Scene(name, "split")
    end = scene.carrier.end
    if not features:
        scene.driver.reset()
    whole = end.read_config(0, 400)
    end.write_config(offset, data)
    assert len(end.read_config(offset, 64)) == 64
    after = end.read_config(0, 400)
    size = scene.row.config.size if scene.row.config is not None else 0
    assert after[size:] == bytes(400 - size)
    # What is the driver's to write lies within its structure, and little does.
    changed = [n for n in range(size) if whole[n] != after[n]]
    assert all(offset <= n < offset + len(data) for n in changed)
    assert end.fault is None


# Drivers


class Lying(InProcess):
    """A device that says of every buffer it uses that it wrote `length` bytes, or that it was buffer `ident`."""

    length: int | None = None
    ident: int | None = None

    def wait(self, timeout: float) -> None:
        super().wait(min(timeout, 0.001))
        for index in range(self.end.num_queues):
            queue = self.end.active_queue(index)
            if queue is not None:
                descriptors, _, device = queue.areas
                (self._split if queue.layout == "split" else self._packed)(queue.size, descriptors, device)

    def _split(self, size: int, descriptors: int, device: int) -> None:
        for n in range(size):
            at = device + virtq_used(size).offset("ring") + n * virtq_used_elem.size
            self._tell(at, virtq_used_elem)

    def _packed(self, size: int, descriptors: int, device: int) -> None:
        for slot in range(size):
            at = descriptors + slot * pvirtq_desc.size
            flags = pvirtq_desc.decode(self.arena.memory.read(at, pvirtq_desc.size)).flags
            if bool(flags & PackedDescFlag.AVAIL) == bool(flags & PackedDescFlag.USED):
                self._tell(at, pvirtq_desc)

    def _tell(self, at: int, record: Record) -> None:
        for name, value in (("len", self.length), ("id", self.ident)):
            if value is not None:
                data = value.to_bytes(record.fields[name].size, "little")
                self.arena.memory.write(at + record.offset(name), data)


def betrayed(name: str, layout: str, **lie: int) -> Scene:
    scene = Scene(name, layout, Lying)
    scene.carrier.end.replace_memory(scene.reused)
    scene.driver.timeout = 0.2
    for key, value in lie.items():
        setattr(scene.carrier, key, value)
    return scene


@every_device
@every_layout
@pytest.mark.parametrize("length", [0, 1, 1 << 20, 0xFFFF_FFFF])
def test_a_driver_does_not_believe_lengths(name: str, layout: str, length: int) -> None:
    scene = betrayed(name, layout, length=length)
    if length > 1:
        with pytest.raises(PeerError):
            scene.row.exercise(scene.driver, scene.device)
        assert scene.carrier.read_status() & DeviceStatus.FAILED
    else:
        # Too little may be the end of a device, or data that are not those which were sent; nothing else.
        with suppress(VirtioError, AssertionError):
            scene.row.exercise(scene.driver, scene.device)
    del scene.carrier.length  # type: ignore[attr-defined]  # the class has the truth
    scene.recovers()


@every_device
@every_layout
@pytest.mark.parametrize("ident", [SIZE, 0xFFFF])
def test_a_driver_does_not_believe_ids(name: str, layout: str, ident: int) -> None:
    scene = betrayed(name, layout, ident=ident)
    with pytest.raises(PeerError):
        scene.row.exercise(scene.driver, scene.device)
    assert scene.carrier.read_status() & DeviceStatus.FAILED
    del scene.carrier.ident  # type: ignore[attr-defined]  # the class has the truth
    scene.recovers()


def test_the_table_of_this_file_names_tests_that_exist() -> None:
    files = list(Path(__file__).parent.glob("test_*.py"))
    defined = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    named = set(re.findall(r"test_[a-z0-9_]+", __doc__ or ""))
    assert named - defined - {path.stem for path in files} == set()
    assert {f"A{n}" for n in range(1, 25)} == set(re.findall(r"\bA\d+", __doc__ or ""))
