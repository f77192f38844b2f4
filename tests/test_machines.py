"""The published machines: what they find in devices that are broken, and that what they print runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, field

from tests.test_every_carrier import scsi_device
from virtio_py.device import Device
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.devices.console.device import ConsoleDevice
from virtio_py.devices.console.driver import ConsoleDriver
from virtio_py.devices.console.endpoints import MemoryEndpoint
from virtio_py.devices.console.ports import ConsolePort
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.devices.net.device import NetDevice
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.ports.simple import LoopbackPort
from virtio_py.devices.scsi.driver import ScsiDriver
from virtio_py.driver import Transport
from virtio_py.memory import Arena, GuestMemory
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.testing.device_machine import UNKNOWN, DeviceMachine
from virtio_py.testing.machines import Machine, run, step
from virtio_py.testing.requests import SECTORS, Call, blk_calls, console_calls, net_calls, scsi_calls
from virtio_py.testing.ring_machine import RingMachine
from virtio_py.testing.ring_pair import Case, Pair, pair
from virtio_py.transports.in_process import InProcess
from virtio_py.transports.mmio import MmioDevice
from virtio_py.transports.mmio_driver import discover


class EntropyMachine(DeviceMachine):
    driver_class = EntropyDriver

    def make_device(self) -> Device:
        return EntropyDevice(lambda count: b"r" * count)

    def expected(self, call: Call) -> Any:
        return b"r" * call.arguments[0]


class DiskMachine(DeviceMachine):
    driver_class = BlkDriver
    requests = blk_calls()

    def make_device(self) -> Device:
        self.data = bytearray(SECTORS * 512)
        return BlkDevice(MemoryMedium.of(SECTORS * 512))

    def expected(self, call: Call) -> Any:
        if call.method not in ("read", "write"):
            return UNKNOWN
        sector, what = call.arguments
        count = what if call.method == "read" else len(what) // 512
        if sector + count > SECTORS:
            return UNKNOWN
        where = slice(sector * 512, (sector + count) * 512)
        if call.method == "read":
            return bytes(self.data[where])
        self.data[where] = what
        return None


class MmioDiskMachine(DiskMachine):
    def make_transport(self) -> Transport:
        memory = GuestMemory.of(1 << 20, 0x10000)
        machine = MmioDevice(self.device, memory)
        transport = discover(machine, Arena(memory), machine.work, None)
        assert transport is not None
        return transport


class UnitMachine(DeviceMachine):
    driver_class = ScsiDriver
    requests = scsi_calls()

    def make_device(self) -> Device:
        return scsi_device()


class FrameMachine(DeviceMachine):
    driver_class = NetDriver
    requests = net_calls()

    def make_device(self) -> Device:
        return NetDevice(LoopbackPort())

    def make_transport(self) -> Transport:
        return InProcess(self.device, memory_size=4 << 20)


class PortMachine(DeviceMachine):
    driver_class = ConsoleDriver
    requests = console_calls()

    def make_device(self) -> Device:
        return ConsoleDevice([ConsolePort(MemoryEndpoint())])


@pytest.mark.parametrize(
    "machine", [EntropyMachine, DiskMachine, MmioDiskMachine, UnitMachine, FrameMachine, PortMachine]
)
def test_our_devices_live_as_the_model_does(machine: type[DeviceMachine]) -> None:
    run(machine, examples=40, steps=15)


# Broken ones --------------------------------------------------------------------------------------------------------


@define(eq=False)
class ForgetfulDisk(BlkDevice):
    """Loses what was written to its first sector at a reset."""

    def reset(self) -> None:
        super().reset()
        self.medium.write_from(0, [memoryview(bytes(512))])


class ForgetfulMachine(DiskMachine):
    def make_device(self) -> Device:
        super().make_device()
        return ForgetfulDisk(MemoryMedium.of(SECTORS * 512))


@define(eq=False)
class CarelessEntropy(EntropyDevice):
    """The third answer since a reset is not what it should be."""

    handled: int = field(default=0)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        self.handled += 1
        if self.handled == 3:
            chain.writable.write(b"x")
        else:
            super().handle(queue, chain)

    def reset(self) -> None:
        self.handled = 0


class CarelessMachine(EntropyMachine):
    def make_device(self) -> Device:
        return CarelessEntropy(lambda count: b"r" * count)


class DeafDriverMachine(RingMachine):
    """The device's half forgets to notify."""

    def make_pair(self, size: int, start: int) -> Pair:
        made = pair(self.case, size, start)
        made.device = made.config.activate(made.arena.memory, self.case.features, self.case.engine, lambda: None)
        return made


def program_of(caught: pytest.ExceptionInfo[BaseException]) -> str:
    [note] = [note for note in caught.value.__notes__ if note.startswith("The shortest sequence")]
    return note.partition("\n\n")[2]


BROKEN: dict[str, tuple[Callable[[], Machine], int]] = {
    "forgetful": (ForgetfulMachine, 9),
    "careless": (CarelessMachine, 10),
    "deaf": (lambda: DeafDriverMachine(Case("split", "reference", False, False, False)), 9),
}


@pytest.mark.parametrize("name", ["deaf", *(pytest.param(n, marks=pytest.mark.long) for n in BROKEN if n != "deaf")])
def test_what_is_printed_of_a_failure_fails_in_the_same_way(name: str) -> None:
    make, longest = BROKEN[name]
    with pytest.raises(AssertionError) as caught:
        run(make, examples=300, steps=20)
    program = program_of(caught)
    assert len(program.splitlines()) <= longest + 4, program
    with pytest.raises(AssertionError) as again:
        exec(compile(program, "printed", "exec"), {})
    assert str(again.value).splitlines()[:1] == str(caught.value).splitlines()[:1]


def test_a_program_of_an_honest_run_ends_well() -> None:
    machine = DiskMachine()
    machine.start(rings=0, reset=True, suspend=True, own=-1)
    machine.request(call=Call("write", (2, b"w" * 512)))
    machine.suspend()
    machine.resume()
    machine.reset_queue(which=0, size=4)
    machine.request(call=Call("read", (2, 1)))
    program = machine.program()
    machine.teardown()
    assert "Call('write', (2, b'www" in program
    exec(compile(program, "printed", "exec"), {})


class Idle(Machine):
    """Made with any values; does nothing."""

    @step()
    def nothing(self) -> None: ...


def test_values_that_a_program_shows_come_back() -> None:
    machine = Idle(Case("packed", "reference", True, False, True), [Call("x", (1, b"\0"))], (2,))
    program = machine.program().replace("machine = Idle(", "values = (").replace("machine.teardown()", "")
    found: dict[str, Any] = {}
    exec(compile(program, "printed", "exec"), found)
    assert found["values"] == machine.arguments
