"""Shared memory, the plainest carrier between two processes: one file, whose first page stands for the bus.

A driver asks over a mailbox in that page, one verb of `DeviceEnd` at a time; what either side has to tell the other
without being asked are counters there. All that follows the page is the driver's arena: an offset into the file is a
guest address. Neither half here does I/O. `shared_memory_file` maps the file, and wakes whoever sleeps.

Either side may die and come back. A driver that does resets the device, as every driver does first. A device that
finds a driver up and running which is not its own has DEVICE_NEEDS_RESET, until that driver resets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final

from attrs import define, field
from construct import Array, Bytes, Int32ul, Int64ul, Struct

from virtio_py.device import Device, DeviceEnd
from virtio_py.driver import Transport
from virtio_py.errors import Disconnected, MessageError, NegotiationError, PeerError
from virtio_py.memory import Arena, GuestMemory, Region
from virtio_py.records import Record
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.rings.kernels.common import fence
from virtio_py.rings.queue import DriverQueue
from virtio_py.spec import DeviceStatus, Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.registers import FEATURE_WORDS, feature_word

MAGIC: Final = int.from_bytes(b"vshm", "little")
VERSION: Final = 1
QUEUES: Final = 256
"""The most queues that can be kicked."""

ARGUMENTS: Final = 5
WINDOW: Final = 512
"""Bytes of configuration that one question moves."""

virtio_shared_memory: Final = Record(
    "virtio_shared_memory",
    Struct(
        "magic" / Int32ul,
        "version" / Int32ul,
        # From here on the device writes.
        "device_id" / Int32ul,
        "num_queues" / Int32ul,
        "device_features" / Array(FEATURE_WORDS, Int32ul),
        "status" / Int32ul,
        "used_notifications" / Int32ul,
        "config_notifications" / Int32ul,
        "reply_sequence" / Int32ul,
        "reply_refused" / Int32ul,
        "reply_value" / Int32ul,
        "Reserved038" / Bytes(0x48),
        # From here on the driver does, but for the window, which belongs to whoever has the mailbox.
        "request_sequence" / Int32ul,
        "request_verb" / Int32ul,
        "request_arguments" / Array(ARGUMENTS, Int64ul),
        "kicks" / Int32ul,
        "queue_kicks" / Array(QUEUES, Int32ul),
        "Reserved4b4" / Bytes(0x4C),
        "window" / Bytes(WINDOW),
        "Reserved700" / Bytes(0x900),
    ),
    cite="no section of the specification: a carrier of our own",
)
"""The first page. Whatever is one word is read and written as one."""

_WORD: Final = 4


class Verb(IntEnum):
    """What a driver asks for, and the arguments that go with it; `Verb.READ_CONFIG` answers in the window."""

    ACCEPT_FEATURES = 1  # bits 0-63, bits 64-127
    WRITE_STATUS = 2  # value
    READ_CONFIG = 3  # offset, length
    WRITE_CONFIG = 4  # offset, length, data in the window
    CONFIG_GENERATION = 5
    MAX_QUEUE_SIZE = 6  # index
    ENABLE_QUEUE = 7  # index, size, descriptor area, driver area, device area
    RESET_QUEUE = 8  # index


class Page:
    """The first page of the file, by the names of its fields.

    view: the whole file. Raises MessageError if it is too short for a page and a byte of memory.
    """

    def __init__(self, view: memoryview) -> None:
        if len(view) <= virtio_shared_memory.size:
            raise MessageError(f"a file of {len(view)} bytes has no room for memory behind the first page")
        self._bytes = view[: virtio_shared_memory.size]
        # One store for each word: the other side must not see half of one.
        self._words = self._bytes.cast("I")
        self.memory: Final = GuestMemory([Region(virtio_shared_memory.size, view[virtio_shared_memory.size :])])

    def initialise(self) -> None:
        """Writes the page for the first time, last what tells that it has been."""
        self._bytes[:] = virtio_shared_memory.encode(version=VERSION)
        self.put("magic", MAGIC)

    def check(self) -> None:
        """Raises MessageError for a page that is none of ours."""
        magic, version = self.get("magic"), self.get("version")
        if (magic, version) != (MAGIC, VERSION):
            raise MessageError(f"magic {magic:#x}, version {version} is no shared memory carrier")

    def get(self, name: str, index: int = 0) -> int:
        """A word, before anything that is read after it: pairs with the other side's `put`."""
        value = self._words[virtio_shared_memory.offset(name) // _WORD + index]
        fence()
        return value

    def put(self, name: str, value: int, index: int = 0) -> None:
        """A word, after everything that was written before it: pairs with the other side's `get`."""
        fence()
        self._words[virtio_shared_memory.offset(name) // _WORD + index] = value & 0xFFFF_FFFF
        fence()

    def advance(self, name: str, index: int = 0) -> None:
        """Counts one up a word that only we write."""
        self.put(name, self._words[virtio_shared_memory.offset(name) // _WORD + index] + 1, index)

    @property
    def arguments(self) -> tuple[int, ...]:
        """The arguments of the request, read once."""
        part = virtio_shared_memory.field("request_arguments")
        values: tuple[int, ...] = part.decode(bytes(self._bytes[part.offset : part.offset + part.size]), 0)
        return values

    @arguments.setter
    def arguments(self, values: tuple[int, ...]) -> None:
        part = virtio_shared_memory.field("request_arguments")
        self._bytes[part.offset : part.offset + part.size] = part.encode((*values, *(0,) * (ARGUMENTS - len(values))))

    @property
    def window(self) -> memoryview:
        """The bytes of configuration that go with a request or a reply."""
        part = virtio_shared_memory.field("window")
        return self._bytes[part.offset : part.offset + part.size]


@define(eq=False)
class SharedMemoryEnd:
    """The device's half: answers the mailbox, serves what is kicked, and counts notifications. `step` does it all.

    ring: wakes the driver. Nothing a driver puts into the page raises; what was refused last is in `refused`.
    """

    device: Device
    page: Page
    ring: Callable[[], None] = lambda: None
    engine: Engine = REFERENCE
    ring_features: int = RING_FEATURES
    refused: PeerError | None = field(init=False, default=None)
    end: DeviceEnd = field(init=False)
    _orphaned: int = field(init=False, default=0)
    _kicks: int = field(init=False)
    _queue_kicks: list[int] = field(init=False)
    _left: set[int] = field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        features = self.ring_features & ~bit(Feature.NOTIF_CONFIG_DATA)
        self.end = DeviceEnd(self.device, self.page.memory, self, self.engine, features)
        self._kicks = self.page.get("kicks")
        self._queue_kicks = [self.page.get("queue_kicks", i) for i in range(self._num_queues)]
        self.page.put("device_id", self.device.device_id)
        self.page.put("num_queues", self._num_queues)
        for word in range(FEATURE_WORDS):
            self.page.put("device_features", feature_word(self.end.device_features, word), word)
        if self.page.get("status"):
            # A driver is up, and its queues were those of a device that is gone.
            self._orphaned = DeviceStatus.DEVICE_NEEDS_RESET
            self.configuration_change()
        self._publish()

    @property
    def _num_queues(self) -> int:
        return min(self.end.num_queues, QUEUES)

    # The device's Notifier

    def used_buffer(self, queue_index: int) -> None:
        """Counts, and wakes the driver."""
        self.page.advance("used_notifications")
        self.ring()

    def configuration_change(self) -> None:
        """Counts, and wakes the driver; the status comes first, which may be what has changed."""
        self._publish()
        self.page.advance("config_notifications")
        self.ring()

    def _publish(self) -> None:
        status = self.end.read_status() | self._orphaned
        if self.page.get("status") != status:
            self.page.put("status", status)

    # What the driver has done

    def step(self) -> bool:
        """Answers what is in the mailbox, then serves what was kicked. False if there was nothing to do."""
        asked = self._answer()
        kicked = self._serve()
        self._publish()
        return asked or kicked

    def _answer(self) -> bool:
        sequence = self.page.get("request_sequence")
        if sequence == self.page.get("reply_sequence"):
            return False
        value, refused = 0, False
        try:
            value = self._do(self.page.get("request_verb"), self.page.arguments)
        except (MessageError, NegotiationError) as error:
            self.refused, refused = error, True
        except PeerError as error:
            self.end.needs_reset(error)
        self._publish()
        self.page.put("reply_value", value)
        self.page.put("reply_refused", refused)
        self.page.put("reply_sequence", sequence)
        self.ring()
        return True

    def _do(self, verb: int, arguments: tuple[int, ...]) -> int:
        if verb not in _VERBS:
            raise MessageError(f"verb {verb} is unknown")
        if self._orphaned and verb in _AFTER_RESET:
            raise NegotiationError(f"{Verb(verb).name} before the reset that a new device needs")
        return _VERBS[verb](self, *arguments)

    def _serve(self) -> bool:
        kicks = self.page.get("kicks")
        if kicks != self._kicks:
            self._kicks = kicks
            for index in range(self._num_queues):
                count = self.page.get("queue_kicks", index)
                if count != self._queue_kicks[index]:
                    self._queue_kicks[index] = count
                    self._left.add(index)
        waiting, self._left = self._left, set()
        self._left |= {index for index in waiting if self.end.available_buffer(index)}
        return bool(waiting)

    # The verbs

    def _accept_features(self, low: int, high: int, *_: int) -> int:
        self.end.accept_features(low | high << 64)
        return 0

    def _write_status(self, value: int, *_: int) -> int:
        if self._orphaned and value:
            # As with any device that needs a reset: other bits come to nothing.
            return 0
        if value == 0:
            self._orphaned = 0
            self._left.clear()
        self.end.write_status(value)
        return 0

    def _read_config(self, offset: int, length: int, *_: int) -> int:
        self._check_window(length)
        self.page.window[:length] = self.end.read_config(offset, length)
        return 0

    def _write_config(self, offset: int, length: int, *_: int) -> int:
        self._check_window(length)
        self.end.write_config(offset, bytes(self.page.window[:length]))
        return 0

    def _check_window(self, length: int) -> None:
        if length > WINDOW:
            raise MessageError(f"{length} bytes of configuration at once")

    def _config_generation(self, *_: int) -> int:
        return self.end.config_generation

    def _max_queue_size(self, index: int, *_: int) -> int:
        return self.end.queue(index).max_size if index < self._num_queues else 0

    def _enable_queue(self, index: int, size: int, descriptor_area: int, driver_area: int, device_area: int) -> int:
        if index >= self._num_queues or self.end.active_queue(index) is not None:
            raise MessageError("there is no such queue, or it is in use", queue=index)
        config = self.end.queue(index)
        config.size = size
        config.descriptor_area, config.driver_area, config.device_area = descriptor_area, driver_area, device_area
        self.end.enable_queue(index)
        return 0

    def _reset_queue(self, index: int, *_: int) -> int:
        if index >= self._num_queues:
            raise MessageError("there is no such queue", queue=index)
        self.end.reset_queue(index)
        return 0


_VERBS: Final[Mapping[int, Callable[..., int]]] = {
    Verb.ACCEPT_FEATURES: SharedMemoryEnd._accept_features,
    Verb.WRITE_STATUS: SharedMemoryEnd._write_status,
    Verb.READ_CONFIG: SharedMemoryEnd._read_config,
    Verb.WRITE_CONFIG: SharedMemoryEnd._write_config,
    Verb.CONFIG_GENERATION: SharedMemoryEnd._config_generation,
    Verb.MAX_QUEUE_SIZE: SharedMemoryEnd._max_queue_size,
    Verb.ENABLE_QUEUE: SharedMemoryEnd._enable_queue,
    Verb.RESET_QUEUE: SharedMemoryEnd._reset_queue,
}

_AFTER_RESET: Final = {Verb.ACCEPT_FEATURES, Verb.ENABLE_QUEUE, Verb.RESET_QUEUE}
"""What a driver that believes itself with another device must not do to this one."""


class SharedMemoryTransport(Transport):
    """The driver's half. One at a time may be at a file; a new one takes the place of one that is gone.

    ring: wakes the device; wait: returns when the device may have done something, after so many seconds at most.
    patience: how often `wait(0.001)` is called for an answer, before the device is taken for dead (Disconnected).
    """

    def __init__(
        self, page: Page, ring: Callable[[], None], wait: Callable[[float], object], patience: int = 5000
    ) -> None:
        page.check()
        self._page = page
        self._ring = ring
        self._wait = wait
        self._patience = patience
        self._arena = Arena(page.memory)

    def _ask(self, verb: Verb, *arguments: int) -> int:
        self._await_answer()
        self._page.arguments = arguments
        self._page.put("request_verb", verb)
        self._page.advance("request_sequence")
        self._ring()
        self._await_answer()
        if self._page.get("reply_refused"):
            raise NegotiationError(f"the device refuses {verb.name}")
        return self._page.get("reply_value")

    def _await_answer(self) -> None:
        for _ in range(self._patience):
            if self._page.get("reply_sequence") == self._page.get("request_sequence"):
                return
            self._wait(0.001)
        raise Disconnected("no device answers")

    @property
    def arena(self) -> Arena:
        """All of the file behind its first page."""
        return self._arena

    @property
    def device_id(self) -> int:
        """The device type; 0 before a device has ever been there."""
        return self._page.get("device_id")

    @property
    def num_queues(self) -> int:
        """How many virtqueues the device has."""
        return min(self._page.get("num_queues"), QUEUES)

    @property
    def config_notifications(self) -> int:
        """How many configuration change notifications were ever sent over this file."""
        return self._page.get("config_notifications")

    def device_features(self) -> int:
        """What the device offers."""
        return sum(self._page.get("device_features", word) << 32 * word for word in range(FEATURE_WORDS))

    def accept_features(self, features: int) -> None:
        """The driver's choice."""
        self._ask(Verb.ACCEPT_FEATURES, features & (1 << 64) - 1, features >> 64)

    def read_status(self) -> int:
        """The device status field."""
        return self._page.get("status")

    def write_status(self, value: int) -> None:
        """0 resets, and is the first thing that a new device hears."""
        self._ask(Verb.WRITE_STATUS, value)

    def read_config(self, offset: int, length: int) -> bytes:
        """Part of the configuration space."""
        parts = []
        for at in range(offset, offset + length, WINDOW):
            size = min(WINDOW, offset + length - at)
            self._ask(Verb.READ_CONFIG, at, size)
            parts.append(bytes(self._page.window[:size]))
        return b"".join(parts)

    def write_config(self, offset: int, data: bytes) -> None:
        """Stores to the configuration space."""
        for at in range(0, len(data), WINDOW):
            part = data[at : at + WINDOW]
            self._await_answer()
            self._page.window[: len(part)] = part
            self._ask(Verb.WRITE_CONFIG, offset + at, len(part))

    def config_generation(self) -> int:
        """The configuration generation."""
        return self._ask(Verb.CONFIG_GENERATION)

    def max_queue_size(self, index: int) -> int:
        """The largest size of a queue, 0 if there is no such queue."""
        return self._ask(Verb.MAX_QUEUE_SIZE, index)

    def enable_queue(self, queue: DriverQueue) -> None:
        """Tells the device where the queue is."""
        self._ask(Verb.ENABLE_QUEUE, queue.index, queue.size, *queue.areas)

    def reset_queue(self, index: int) -> None:
        """Resets one queue; it is done when the answer comes."""
        self._ask(Verb.RESET_QUEUE, index)

    def available_buffer(self, index: int, data: int) -> None:
        """Counts a kick, and wakes the device."""
        self._page.advance("queue_kicks", index)
        self._page.advance("kicks")
        self._ring()

    def wait(self, timeout: float) -> None:
        """Waits for the device to do something."""
        self._wait(timeout)

    def close(self) -> None:
        """Nothing is held; the file is `shared_memory_file`'s."""
