"""A device and its driver, connected: what the fixture `virtio_pair` of the pytest plugin gives.

with connected(MyDevice(), MyDriver, layout="packed", engine="compiled", carrier="mmio") as driver:
    driver.transact(…)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

from virtio_py.device import Device
from virtio_py.driver import Driver, Transport
from virtio_py.errors import UsageError
from virtio_py.memory import Arena, GuestMemory
from virtio_py.records import Record
from virtio_py.rings.engine import Engine, engine_named
from virtio_py.spec import Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.transports.in_process import InProcess
from virtio_py.transports.mmio import MmioDevice
from virtio_py.transports.mmio_driver import discover

AnyDriver = TypeVar("AnyDriver", bound=Driver)
MEMORY: Final = 4 << 20


def in_process(device: Device, engine: Engine, ring_features: int = RING_FEATURES) -> Transport:
    """Calls. ring_features: what the device's end is to offer besides the device's own."""
    return InProcess(device, engine=engine, memory_size=MEMORY, ring_features=ring_features)


def mmio(device: Device, engine: Engine) -> Transport:
    """Registers in memory."""
    return behind(MmioDevice(device, guest_memory(), engine))


def behind(machine: MmioDevice, config: Record | None = None) -> Transport:
    """What finds the device behind a block of registers, with an arena of all its memory. config: as `discover` has it.
    Raises UsageError if the registers are not those of a device."""
    transport = discover(machine, Arena(machine.end.memory), machine.work, config)
    if transport is None:
        raise UsageError("the registers are not those of a device")
    return transport


def guest_memory() -> GuestMemory:
    """As much as a carrier here has, at guest address 0x10000."""
    return GuestMemory.of(MEMORY, 0x10000)


Carrier = Callable[[Device, Engine], Transport]
CARRIERS: Final[Mapping[str, Carrier]] = {"in-process": in_process, "mmio": mmio}
"""Those that need no thread and no socket. Any function from a device and an engine to a transport does as well."""


@contextmanager
def connected(
    device: Device,
    driver: type[AnyDriver],
    *,
    layout: str = "split",
    engine: str = "reference",
    carrier: str | Carrier = "in-process",
    features: int | None = None,
    queue_size: int = 16,
) -> Iterator[AnyDriver]:
    """A driver that has started; reset and closed on the way out.

    layout: "split" or "packed"; engine: "reference" or "compiled"; features: mask to accept at most, all that the
    driver knows by default. Raises UsageError for a name that is not known, and what `Driver.start` raises.
    """
    if layout not in ("split", "packed"):
        raise UsageError(f"no ring is laid out {layout!r}, only split and packed")
    if isinstance(carrier, str) and carrier not in CARRIERS:
        raise UsageError(f"no carrier is named {carrier!r}, only {', '.join(CARRIERS)}")
    make = CARRIERS[carrier] if isinstance(carrier, str) else carrier
    runs = engine_named(engine)
    wanted = (driver.known_features | RING_FEATURES) if features is None else features
    packed = bit(Feature.RING_PACKED)
    transport = make(device, runs)
    wanted = wanted | packed if layout == "packed" else wanted & ~packed
    made = driver(transport, engine=runs, features=wanted, queue_size=queue_size).start()
    try:
        yield made
        made.reset()
    finally:
        transport.close()
