"""A whole device, or driver, or carrier, against a model of its life: chapter 3 in any order, with traffic and faults.

    class DiskMachine(DeviceMachine):
        driver_class = BlkDriver
        requests = blk_calls()

        def make_device(self) -> Device:
            return MyDisk()

        def expected(self, call: Call) -> Any:          optional: what the driver must return, from a model of the data
            ...

    run(DiskMachine)

What is tested is whatever is not ours: override `make_device`, or `driver_class`, or `make_transport`. A failure comes
with the shortest sequence as a program: see `machines`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from hypothesis import strategies as st

from virtio_py.device import Device
from virtio_py.driver import Driver, Transport
from virtio_py.errors import NegotiationError
from virtio_py.spec import DeviceStatus, Feature, bit, mask
from virtio_py.status import RING_FEATURES
from virtio_py.testing.hostile_driver import ATTACKS, Outcome, assault
from virtio_py.testing.machines import Machine, step
from virtio_py.testing.requests import Call, entropy_calls
from virtio_py.transports.in_process import InProcess

UNKNOWN: Final = object()
"""What `expected` returns where the model does not know."""

RUNNING: Final = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK
SUSPENDED: Final = RUNNING & ~DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND
RINGS: Final = [
    mask(*choice)
    for choice in (
        (),
        (Feature.EVENT_IDX, Feature.INDIRECT_DESC),
        (Feature.RING_PACKED,),
        (Feature.RING_PACKED, Feature.EVENT_IDX, Feature.INDIRECT_DESC),
    )
]
_ATTACKS: Final = {attack.name: attack for attack in ATTACKS}


class DeviceMachine(Machine):
    """One device and one driver. The status the driver reads is at each step that of the model.

    driver_class: the driver; requests: strategy of the calls made on it; queue_size: of each queue;
    outcomes: what the device may do about a hostile driver. A device of another make may well stay silent.
    """

    driver_class: ClassVar[type[Driver]]
    requests: ClassVar[st.SearchStrategy[Call]] = entropy_calls()
    queue_size: ClassVar[int] = 16
    outcomes: ClassVar[frozenset[Outcome]] = frozenset({Outcome.TOLD})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.device = self.make_device()
        self.transport = self.make_transport()
        self.driver: Driver | None = None
        self.status = 0
        self.changes = 0

    # What a subclass fills in

    def make_device(self) -> Device:
        """A fresh device; where the transport finds one of its own, anything."""
        raise NotImplementedError(f"{type(self).__name__} makes no device")

    def make_transport(self) -> Transport:
        """A fresh carrier to the device: in process by default."""
        return InProcess(self.device, memory_size=1 << 20)

    def expected(self, call: Call) -> Any:
        """What the call returns, from a model that this also brings up to date; UNKNOWN if there is none."""
        return UNKNOWN

    def restarted(self) -> None:
        """The device was reset: whatever of the model does not survive that is gone."""

    def change_configuration(self) -> bool:
        """Changes the device's configuration; False if nobody here can."""
        end = getattr(self.transport, "end", None)
        if end is not None:
            end.configuration_changed()
        return end is not None

    # Steps

    def is_running(self) -> bool:
        """Whether the driver may send requests."""
        return self.status == RUNNING

    def has(self, feature: int) -> bool:
        """Whether the driver has negotiated a feature, and runs."""
        return self.is_running() and self.live.has(feature)

    @property
    def live(self) -> Driver:
        """The driver of the last start."""
        assert self.driver is not None
        return self.driver

    @step(
        rings=st.sampled_from(RINGS),
        reset=st.booleans(),
        suspend=st.booleans(),
        own=st.just(-1) | st.integers(0, (1 << 24) - 1),
    )
    def start(self, rings: int, reset: bool, suspend: bool, own: int) -> None:
        """Initialisation, from whatever state. own: a mask on the features of the device type."""
        chosen = rings | bit(Feature.VERSION_1) | mask(*[Feature.RING_RESET] * reset, *[Feature.SUSPEND] * suspend)
        wanted = chosen | self.driver_class.known_features & own & ~RING_FEATURES
        if self.driver is not None:
            self.driver.reset()
        self.driver = self.driver_class(self.transport, features=wanted, queue_size=self.queue_size)
        self.restarted()
        try:
            self.driver.start()
        except NegotiationError:
            # Some features need others that were not drawn: a device, or a driver, may say so.
            self.driver.reset()
            self.status = 0
            return
        self.status = int(RUNNING)
        assert not self.driver.features & ~self.driver.offered

    @step(is_running, call=st.runner().flatmap(lambda machine: machine.requests))
    def request(self, call: Call) -> None:
        """One request, compared with the model."""
        wanted = self.expected(call)
        got = call.on(self.live)
        assert wanted is UNKNOWN or got == wanted, f"{call} returned {got!r:.200}, not {wanted!r:.200}"

    @step(lambda self: self.driver is not None)
    def reset(self) -> None:
        """A reset of the device."""
        self.live.reset()
        self.status = 0
        self.restarted()

    @step(lambda self: self.has(Feature.RING_RESET), which=st.integers(0, 7), size=st.sampled_from([4, 16]))
    def reset_queue(self, which: int, size: int) -> None:
        """A reset of one queue, which comes back with another size. Only of a queue that the driver left empty."""
        idle = [queue.index for queue in self.live.queues if not queue.outstanding]
        if idle:
            index = idle[which % len(idle)]
            assert self.live.restart_queue(index, size).outstanding == 0

    @step(lambda self: self.has(Feature.SUSPEND))
    def suspend(self) -> None:
        """To sleep."""
        self.live.suspend()
        self.status = int(SUSPENDED)

    @step(lambda self: self.status == SUSPENDED)
    def resume(self) -> None:
        """And awake."""
        self.live.resume()
        self.status = int(RUNNING)

    @step(is_running)
    def configuration_changes(self) -> None:
        """The driver is told, once."""
        self.live.config_changed()
        if self.change_configuration():
            assert self.live.config_changed()
            assert not self.live.config_changed()

    @step(attack=st.sampled_from(sorted(_ATTACKS)), packed=st.booleans())
    def hostile_driver(self, attack: str, packed: bool) -> None:
        """Another driver takes the device over, breaks a rule, and resets it: nothing of that may stay."""
        packed = packed and bool(self.transport.device_features() & bit(Feature.RING_PACKED))
        layout = "packed" if packed else "split"
        if not _ATTACKS[attack].applies(layout):
            return
        if self.driver is not None:
            self.driver.reset()
        self.status = 0
        self.restarted()
        outcome = assault(self.transport, _ATTACKS[attack], layout)
        assert outcome in self.outcomes, f"{attack} on a {layout} queue: {outcome.value}"

    def check(self) -> None:
        """The status is the model's."""
        assert self.transport.read_status() == self.status

    def teardown(self) -> None:
        """A last reset gives all memory back."""
        if self.driver is not None:
            self.driver.reset()
            arena = self.transport.arena
            assert arena.free_bytes == arena.memory.regions[0].size, "memory was lost"
        self.transport.close()
