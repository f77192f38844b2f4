"""What is fuzzed: functions of bytes that must return, raise nothing unexpected, and leave things usable behind.

Each takes one input apart itself; a short one is a valid input that does little. What a target asserts is what a user
relies upon: only typed errors, no descriptor lost, memory outside the buffers untouched, a good request served after.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final, cast

from tests.scsi_tools import NEXUS, ThinMedium
from tests.test_admin_hostile import answered, ready
from tests.vhost_user_frontend import Books, Echo
from virtio_py.admin.layout import virtio_admin_cmd
from virtio_py.cli.inspect_text import function_lines
from virtio_py.devices.net.control import serve_command
from virtio_py.devices.net.counters import Counts
from virtio_py.devices.net.device import ALL_FEATURES, NetDevice
from virtio_py.devices.net.layout import consistent
from virtio_py.devices.net.ports.simple import SinkPort
from virtio_py.devices.scsi.cdrom import ScsiCdrom
from virtio_py.devices.scsi.disk import ScsiDisk
from virtio_py.devices.scsi.task import Task
from virtio_py.errors import MessageError, PeerError
from virtio_py.memory import Arena, GuestMemory, Region
from virtio_py.pci.walk import walk
from virtio_py.rings.chain import Chain, Reader, Writer
from virtio_py.rings.engine import REFERENCE
from virtio_py.rings.queue import DeviceQueue, DriverQueue, QueueConfig
from virtio_py.spec import Feature, bit, mask
from virtio_py.transports.vhost_user_backend import Backend
from virtio_py.transports.vhost_user_messages import Message, decode_message

Target = Callable[[bytes], None]

_RING_FEATURES: Final = (Feature.RING_PACKED, Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.IN_ORDER)
_QUEUE: Final = 8


def _ring_features(choice: int) -> int:
    return mask(Feature.VERSION_1, *(feature for n, feature in enumerate(_RING_FEATURES) if choice >> n & 1))


def _messages_of(data: bytes) -> Iterator[tuple[Message, int]]:
    """Messages and how many descriptors come with each: request, descriptors and flags, size, payload."""
    while len(data) >= 3:
        request, more, size = data[:3]
        yield Message(request, more & 0x0C, data[3 : 3 + size]), more >> 4
        data = data[3 + size :]


def vhost_user_messages(data: bytes) -> None:
    """A front-end's messages. Every descriptor is closed in the end, and nothing but MessageError is raised."""
    books = Books()
    backend = Backend(Echo(), books, ring_features=_ring_features(0b1111))
    for message, descriptors in _messages_of(data):
        try:
            backend.receive(message, [books.fd() for _ in range(descriptors)])
        except PeerError:
            break
        for index in list(books.watched):
            backend.kicked(index)
    backend.close()
    assert not books.open
    assert not books.watched
    with suppress(MessageError):
        decode_message(data)


def pci_capabilities(data: bytes) -> None:
    """A configuration space. Always walked to an end, and printed a line a line."""
    function = walk(data[:4096].ljust(64, b"\0"))
    json.dumps(function.as_dict())
    assert all("\n" not in line for line in function_lines(function))


def ring_of_a_driver(data: bytes) -> None:
    """All that a driver may write, before a device that reads and writes what it takes. Only PeerError is raised, and
    what no device may write to stays as it was."""
    choice, image = data[:1] or b"\0", data[1:4096]
    memory, sealed = bytearray(image.ljust(4096, b"\0")), bytearray(b"\xee" * 4096)
    regions = [Region(0, memoryview(memory)), Region(0x1000, memoryview(sealed), writable=False)]
    config = QueueConfig(0, "fuzzq", _QUEUE)
    config.descriptor_area, config.driver_area, config.device_area = 0, 0x100, 0x200
    queue = config.activate(GuestMemory(regions), _ring_features(choice[0]), REFERENCE, lambda: None)
    # A ring that never changes can be taken from for as long as its index says; twice round is more than it can hold.
    with suppress(PeerError):
        for _ in range(2 * _QUEUE):
            chains = queue.take(3)
            for chain in chains:
                chain.readable.read_all()[:16]
                chain.writable.write(b"answer"[: chain.writable.remaining])
            queue.complete(chains)
            queue.needs_notification()
            queue.enable_notifications()
    assert sealed == b"\xee" * 4096


def ring_of_a_device(data: bytes) -> None:
    """All that a device may write, before a driver that waits for its buffers. Only PeerError is raised, no buffer
    comes back twice, and none with more than it can hold."""
    choice, image = data[:1] or b"\0", data[1:]
    arena = Arena(GuestMemory.of(1 << 14, start=0x1000))
    queue = DriverQueue(0, 2 * _QUEUE, arena, _ring_features(choice[0]), REFERENCE, 4)
    buffer = arena.allocate(256)
    waiting = set(range(5))
    for n in waiting:
        queue.add([(buffer.address, 8)], [(buffer.address + 16 * n, 16)] * (1 + n % 2), n)
    area = queue.descriptor_area if queue.layout == "packed" else queue.device_area
    arena.memory.write(area, image[:256])
    with suppress(PeerError):
        for _ in range(_QUEUE):
            for token, length in queue.take_used():
                waiting.remove(token)
                assert length <= 16 * (1 + token % 2)
            queue.needs_notification()


def scsi_commands(data: bytes) -> None:
    """A command descriptor block and data-out: to a disk, or to a CD-ROM drive. The unit is usable afterwards."""
    head, cdb, out = data[:2].ljust(2, b"\0"), data[2:34], data[34:]
    medium = ThinMedium(bytearray(64 * 512))
    unit = ScsiCdrom(medium) if head[0] & 1 else ScsiDisk(medium)
    room = bytearray(head[1] * 8)
    for block in (cdb.ljust(16, b"\0"), bytes(16)):
        outcome = unit.execute(Task(NEXUS, block, Reader([memoryview(out)]), Writer([memoryview(room)])))
        assert outcome is not None
        assert outcome.response or outcome.status in (0, 0x18) or outcome.sense


def net_commands(data: bytes) -> None:
    """Commands of the control queue, cut where the input says. Each is acknowledged with one byte, or with data."""
    device = NetDevice(SinkPort(), offered=ALL_FEATURES, pairs=4)
    device.negotiated(consistent(device.offered_features()) | bit(Feature.VERSION_1))
    counts = Counts()
    while len(data) >= 2:
        size, cut = data[:2]
        command, data = data[2 : 2 + size], data[2 + size :]
        parts = [memoryview(command[:cut]), memoryview(command[cut:])]
        room = bytearray(64)
        chain = Chain(0, cast(DeviceQueue, None), Reader(parts), Writer([memoryview(room)]))
        serve_command(device, counts, chain)
        assert chain.used_length


def admin_commands(data: bytes) -> None:
    """Administration commands, each behind a head that is right. Each is answered, and the owner is none the worse."""
    found = ready()
    while len(data) >= 4:
        opcode, group, size, room = data[:4]
        head = virtio_admin_cmd.encode(opcode=opcode & 0x1F, group_type=group & 1, group_member_id=group & 1)
        answered(found, head + data[4 : 4 + size], room)
        data = data[4 + size :]
    found.driver.start()
    found.use_all()


TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        target.__name__: target
        for target in (
            vhost_user_messages,
            pci_capabilities,
            ring_of_a_driver,
            ring_of_a_device,
            scsi_commands,
            net_commands,
            admin_commands,
        )
    }
)
