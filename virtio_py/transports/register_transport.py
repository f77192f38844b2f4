"""What carriers made of registers have in common on the driver's side: a `Transport` whose verbs are registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, NamedTuple

from virtio_py.driver import Transport
from virtio_py.errors import PeerError
from virtio_py.memory import Arena
from virtio_py.transports.registers import FEATURE_WORDS, ConfigAccess, feature_word

READS: Final = 1000
"""How often a register, or a legacy configuration, is read that does not come to rest, before we give up."""

Wait = Callable[[float], object]
"""Returns when an interrupt may have come, or after so many seconds."""


class Names(NamedTuple):
    """What the registers that all such carriers have are called; no selectors where there are but 32 feature bits."""

    device_features: str
    driver_features: str
    device_select: str
    driver_select: str
    status: str
    queue_select: str
    queue_size: str
    generation: str = ""


class RegisterTransport(Transport):
    """The driver's view of registers. A subclass says how one is reached by its name."""

    names: ClassVar[Names]

    def __init__(self, device_id: int, arena: Arena, wait: Wait, config: ConfigAccess) -> None:
        self._device_id = device_id
        self._arena = arena
        self._wait = wait
        self._config = config
        self._config_notifications = 0
        self._sizes: dict[int, int] = {}

    def _read(self, name: str) -> int:
        raise NotImplementedError(f"{type(self).__name__} has no registers")

    def _write(self, name: str, value: int) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no registers")

    @property
    def arena(self) -> Arena:
        """The memory given."""
        return self._arena

    @property
    def device_id(self) -> int:
        """The device type, as it was found."""
        return self._device_id

    @property
    def num_queues(self) -> int:
        """The queues from 0 on that have a size, where no register tells their number."""
        count = 0
        while self.max_queue_size(count):
            count += 1
        return count

    @property
    def config_notifications(self) -> int:
        """How many interrupts have said that the configuration changed."""
        return self._config_notifications

    def device_features(self) -> int:
        """All words of the offer."""
        features = 0
        for selector in range(FEATURE_WORDS):
            self._write(self.names.device_select, selector)
            features |= self._read(self.names.device_features) << 32 * selector
        return features

    def accept_features(self, features: int) -> None:
        """All words of the choice."""
        for selector in range(FEATURE_WORDS):
            self._write(self.names.driver_select, selector)
            self._write(self.names.driver_features, feature_word(features, selector))

    def read_status(self) -> int:
        """The device status."""
        return self._read(self.names.status)

    def write_status(self, value: int) -> None:
        """The device status."""
        self._write(self.names.status, value)

    def read_config(self, offset: int, length: int) -> bytes:
        """Part of the configuration space, each field at its own width."""
        return self._config.read(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Stores to the configuration space."""
        self._config.write(offset, data)

    def config_generation(self) -> int:
        """The configuration generation."""
        return self._read(self.names.generation)

    def max_queue_size(self, index: int) -> int:
        """The size of a queue as the device has it."""
        # Read once: later it may read what we wrote, and the legacy interface over MMIO forbids it.
        if index not in self._sizes:
            self._write(self.names.queue_select, index)
            self._sizes[index] = self._read(self.names.queue_size)
        return self._sizes[index]

    def await_zero(self, name: str, index: int) -> None:
        """Reads a register of the selected queue until it is 0. Raises PeerError if it never is."""
        for _ in range(READS):
            if self._read(name) == 0:
                return
            self._wait(0.001)
        raise PeerError(f"{name} does not become 0", queue=index)

    def close(self) -> None:
        """Nothing is held."""


class LegacyRegisters(RegisterTransport):
    """A legacy interface: 32 feature bits, and no generation."""

    def device_features(self) -> int:
        """32 bits are all there are."""
        return self._read(self.names.device_features)

    def accept_features(self, features: int) -> None:
        """32 bits are all there are."""
        self._write(self.names.driver_features, features)

    def read_config(self, offset: int, length: int) -> bytes:
        """Part of the configuration space, as two reads in a row found it: there is no generation to go by."""
        before = super().read_config(offset, length)
        for _ in range(READS):
            data = super().read_config(offset, length)
            if data == before:
                return data
            before = data
        raise PeerError(f"the configuration changed during each of {READS} reads")

    def config_generation(self) -> int:
        """Always 0; `read_config` makes sure of its own."""
        return 0
