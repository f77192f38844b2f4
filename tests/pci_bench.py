"""What the tests of virtio over PCI share: a function on a bus, reached by hand or by the driver, and watched."""

from __future__ import annotations

from typing import Any, NamedTuple

from attrs import define, field

from tests.echo import Echo, EchoDriver, config_record
from virtio_py.access import RegisterAccess
from virtio_py.memory import Arena, GuestMemory
from virtio_py.pci.bus import Address, PciBus
from virtio_py.pci.enumeration import FoundFunction, enumerate_bus
from virtio_py.pci.function import PciFunction
from virtio_py.pci.header import pci_header_type0
from virtio_py.pci.virtio_caps import CfgType, virtio_pci_common_cfg
from virtio_py.pci.virtio_legacy import virtio_pci_legacy
from virtio_py.pci.walk import Function, walk
from virtio_py.spec import DeviceStatus, Feature, bit
from virtio_py.transports.pci import PciDevice
from virtio_py.transports.pci_discover import discover
from virtio_py.transports.pci_driver import PciTransport
from virtio_py.transports.pci_layout import MODERN_BAR, MSIX_BAR
from virtio_py.transports.pci_legacy_driver import LegacyPciTransport

BASE = 0x10000
SIZE = 1 << 18
PLACE = Address(2)
OK = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK


class Access(NamedTuple):
    """One access. space: "config", "memory" or "io"; way: "R" or "W"; offset: an address, or in configuration space."""

    space: str
    way: str
    offset: int
    width: int
    value: int


@define
class Watched:
    """Registers whose accesses are noted."""

    registers: RegisterAccess
    space: str
    log: list[Access]

    def read(self, offset: int, width: int) -> int:
        value = self.registers.read(offset, width)
        self.log.append(Access(self.space, "R", offset, width, value))
        return value

    def write(self, offset: int, value: int, width: int) -> None:
        self.log.append(Access(self.space, "W", offset, width, value))
        self.registers.write(offset, value, width)


@define
class WatchedBus:
    """A bus whose accesses are noted."""

    bus: PciBus
    log: list[Access] = field(factory=list)

    @property
    def memory(self) -> RegisterAccess:
        return Watched(self.bus.memory, "memory", self.log)

    @property
    def io(self) -> RegisterAccess:
        return Watched(self.bus.io, "io", self.log)

    def config(self, address: Address) -> RegisterAccess:
        return Watched(self.bus.config(address), "config", self.log)


@define(eq=False)
class Bench:
    """A function around an `Echo`, alone on a bus."""

    machine: PciDevice
    bus: PciBus = field(factory=PciBus)
    arena: Arena = field(init=False)
    watched: WatchedBus = field(init=False)
    lines: list[bool] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.bus.plug(self.machine.function, PLACE)
        self.watched = WatchedBus(self.bus)
        self.arena = Arena(self.machine.memory)
        keep = self.machine.function.interrupt

        def interrupt(level: bool) -> None:
            self.lines.append(level)
            keep(level)

        self.machine.function.interrupt = interrupt

    @property
    def device(self) -> Echo:
        assert isinstance(self.machine.device, Echo)
        return self.machine.device

    @property
    def function(self) -> PciFunction:
        return self.machine.function

    @property
    def log(self) -> list[Access]:
        return self.watched.log

    def walk(self) -> Function:
        return walk(self.function.registers.all)

    def caps(self, kind: CfgType) -> list[dict[str, Any]]:
        """The fields of virtio's capabilities of one type, and where each is."""
        found = [c for c in self.walk().capabilities if c.fields.get("cfg_type") == kind]
        return [{**c.fields, "at": c.offset} for c in found]

    # By hand, whatever is mapped

    def get(self, name: str) -> int:
        """A register of the common configuration; of 64 bits as two halves."""
        at, size = virtio_pci_common_cfg.offset(name), virtio_pci_common_cfg.field(name).size
        parts = [self.function.read_bar(MODERN_BAR, at + n, min(size, 4)) for n in range(0, size, 4)]
        return sum(part << 32 * n for n, part in enumerate(parts))

    def set(self, **values: int) -> None:
        for name, value in values.items():
            at, size = virtio_pci_common_cfg.offset(name), virtio_pci_common_cfg.field(name).size
            for n in range(0, size, 4):
                self.function.write_bar(MODERN_BAR, at + n, value >> 8 * n & 0xFFFFFFFF, min(size, 4))

    def isr(self) -> int:
        [cap] = self.caps(CfgType.ISR_CFG)
        return self.function.read_bar(cap["bar"], cap["offset"], 1)

    def notify(self, value: int, width: int = 2, at: int = 0) -> None:
        [cap] = self.caps(CfgType.NOTIFY_CFG)
        self.function.write_bar(cap["bar"], cap["offset"] + at, value, width)

    def command(self, **bits: int) -> None:
        register, at = pci_header_type0.register("command"), pci_header_type0.offset("command")
        before = register.split(self.function.registers.read(at, 2))
        self.function.registers.write(at, register.join(before._replace(**bits)), 2)

    def msix_control(self, **bits: int) -> None:
        [cap] = self.walk().find(0x11)
        before = self.function.registers.read(cap.offset + 2, 2)
        for name, value in bits.items():
            shift = {"enable": 15, "function_mask": 14}[name]
            before = before & ~(1 << shift) | value << shift
        self.function.registers.write(cap.offset + 2, before, 2)

    def unmask(self, vector: int, masked: int = 0) -> None:
        """Gives a vector the message (0x1000 + vector, vector), and opens it."""
        for n, word in enumerate((0x1000 + 4 * vector, 0, vector, masked)):
            self.function.write_bar(MSIX_BAR, 16 * vector + 4 * n, word, 4)

    def negotiate(self, features: int = 0, status: int = OK & ~DeviceStatus.DRIVER_OK) -> None:
        for n in range(3):
            self.set(driver_feature_select=n, driver_feature=(features | bit(Feature.VERSION_1)) >> 32 * n & 0xFFFFFFFF)
        self.set(device_status=status)
        assert self.get("device_status") == status

    def configure(self, size: int = 8, at: int = BASE, index: int = 0) -> None:
        self.set(queue_select=index, queue_size=size)
        self.set(queue_desc=at, queue_driver=at + 0x1000, queue_device=at + 0x2000)

    # By the driver

    def find(self) -> FoundFunction:
        [found] = enumerate_bus(self.watched)
        return found

    def transport(self, **options: Any) -> PciTransport:
        transport = discover(self.find(), self.arena, self.machine.work, self.bus.interrupts, config_record, **options)
        assert isinstance(transport, PciTransport)
        return transport

    def legacy_transport(self) -> LegacyPciTransport:
        arguments = (self.find(), self.arena, self.machine.work, self.bus.interrupts, config_record)
        transport = discover(*arguments, legacy=True)
        assert isinstance(transport, LegacyPciTransport)
        return transport

    def driver(self, features: int | None = None, **options: Any) -> EchoDriver:
        return EchoDriver(self.transport(**options), features=features).start()

    def common(self) -> list[tuple[str, str, int]]:
        """(way, register, value) of the accesses to the common configuration; halves have the register's name."""
        base = self.function.bar_address(MODERN_BAR)
        names = {
            n: name for name, f in virtio_pci_common_cfg.fields.items() for n in range(f.offset, f.offset + f.size)
        }
        end = virtio_pci_common_cfg.size
        return [(a.way, names[a.offset - base], a.value) for a in self._in_memory(base, end)]

    def _in_memory(self, base: int, size: int) -> list[Access]:
        return [a for a in self.log if a.space == "memory" and base <= a.offset < base + size]

    def accesses(self, kind: CfgType) -> list[Access]:
        """Accesses to a structure, their offsets in it."""
        [cap] = self.caps(kind)
        base = self.function.bar_address(cap["bar"]) + cap["offset"]
        return [a._replace(offset=a.offset - base) for a in self._in_memory(base, cap["length"])]

    def legacy(self) -> list[tuple[str, str, int]]:
        """(way, register, value) of the accesses to the legacy interface's header."""
        base = self.function.bar_address(0)
        names = {f.offset: name for name, f in virtio_pci_legacy.fields.items()}
        places = [(a, a.offset - base) for a in self.log if a.space == "io"]
        return [(a.way, names[at], a.value) for a, at in places if at < virtio_pci_legacy.size]


def bench(device: Echo | None = None, **options: Any) -> Bench:
    return Bench(PciDevice(device or Echo(), GuestMemory.of(SIZE, BASE), **options))
