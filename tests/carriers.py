"""Every carrier, by name: a device on one side, and what the driver's side gets. A carrier more is a line more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from socket import AF_UNIX, socket
from threading import Thread
from typing import Final, NamedTuple, cast

from tests.telegraph import Telegraph
from virtio_py.device import Device
from virtio_py.driver import Transport
from virtio_py.memory import Arena
from virtio_py.pci.bus import Address, PciBus
from virtio_py.pci.enumeration import enumerate_bus
from virtio_py.records import Record
from virtio_py.rings.engine import Engine
from virtio_py.status import LEGACY_FEATURES
from virtio_py.testing import pairs
from virtio_py.testing.pairs import MEMORY
from virtio_py.transports.mmio import MmioDevice
from virtio_py.transports.mmio_legacy import LegacyMmioDevice
from virtio_py.transports.pci import PciDevice
from virtio_py.transports.pci_discover import discover as discover_pci
from virtio_py.transports.shared_memory_file import Server as SharedMemoryServer
from virtio_py.transports.shared_memory_file import SharedFile, connect
from virtio_py.transports.vhost_user_follower import RingFollower
from virtio_py.transports.vhost_user_proxy import Proxy, Route
from virtio_py.transports.vhost_user_server import Server as VhostUserServer
from virtio_py.transports.vhost_user_server import listening
from virtio_py.transports.vhost_user_tracer import Tracer
from virtio_py.transports.vhost_user_transport import VhostUserTransport


class Setting(NamedTuple):
    """What a carrier is to carry. features: what the device's end is to offer; config: the device's structure."""

    device: Device
    engine: Engine
    features: int
    config: Record | None
    place: Path


@contextmanager
def in_process(setting: Setting) -> Iterator[Transport]:
    device, engine, features, *_ = setting
    yield pairs.in_process(device, engine, features)


def _registers(kind: type[MmioDevice], setting: Setting) -> Iterator[Transport]:
    machine = kind(setting.device, pairs.guest_memory(), setting.engine, ring_features=setting.features)
    yield pairs.behind(machine, setting.config)
    assert not machine.ignored
    assert machine.end.fault is None


@contextmanager
def mmio(setting: Setting) -> Iterator[Transport]:
    yield from _registers(MmioDevice, setting)


@contextmanager
def mmio_legacy(setting: Setting) -> Iterator[Transport]:
    yield from _registers(LegacyMmioDevice, setting._replace(features=setting.features & LEGACY_FEATURES))


def _function(setting: Setting, legacy: bool) -> Iterator[Transport]:
    memory, bus = pairs.guest_memory(), PciBus()
    machine = PciDevice(setting.device, memory, setting.engine, ring_features=setting.features, transitional=legacy)
    bus.plug(machine.function, Address(3))
    [found] = enumerate_bus(bus)
    transport = discover_pci(found, Arena(memory), machine.work, bus.interrupts, setting.config, legacy=legacy)
    assert transport is not None
    yield transport
    assert transport.msix
    assert not bus.interrupts.stray
    assert not machine.ignored
    assert machine.end.fault is None


@contextmanager
def pci(setting: Setting) -> Iterator[Transport]:
    yield from _function(setting, legacy=False)


@contextmanager
def pci_legacy(setting: Setting) -> Iterator[Transport]:
    yield from _function(setting, legacy=True)


@contextmanager
def _beside(run: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(20)
        assert not thread.is_alive()


def _file(setting: Setting, shared: SharedFile) -> Iterator[Transport]:
    device, engine, features, *_ = setting
    with shared:
        server = SharedMemoryServer(device, shared, engine=engine, ring_features=features)
        with _beside(server.run, server.stop):
            yield connect(shared)
        server.close()
        assert server.end.end.fault is None


@contextmanager
def shared_memory(setting: Setting) -> Iterator[Transport]:
    yield from _file(setting, SharedFile.anonymous(MEMORY))


@contextmanager
def shared_memory_polled(setting: Setting) -> Iterator[Transport]:
    yield from _file(setting, SharedFile.named(str(setting.place / "memory"), MEMORY))


@contextmanager
def vhost_user(setting: Setting) -> Iterator[Transport]:
    device, engine, features, _, place = setting
    path = str(place / "socket")
    server = VhostUserServer(device, engine=engine, log=print, ring_features=features)
    with listening(path) as listener, _beside(lambda: server.serve(listener), server.stop):
        transport = VhostUserTransport(path, device.device_id, memory_size=MEMORY, num_queues=len(device.queues()))
        yield transport
        transport.close()
    server.close()


@contextmanager
def vhost_user_traced(setting: Setting) -> Iterator[Transport]:
    """Through the tracing proxy: whatever it looks at, nothing that passes changes, and no rule is broken."""
    device, engine, features, _, place = setting
    behind, before = str(place / "behind"), str(place / "before")
    server = VhostUserServer(device, engine=engine, log=print, ring_features=features)
    broken: list[object] = []

    def open_route(front: socket) -> Route:
        back = socket(AF_UNIX)
        back.connect(behind)
        follower = RingFollower(lambda seen: broken.extend(seen.problems))
        return Route(front, back, Tracer(), lambda seen, _: broken.extend(seen.broken), follower)

    proxy = Proxy(open_route, print)
    with ExitStack() as stack:
        for listens, run, stop in ((behind, server.serve, server.stop), (before, proxy.serve, proxy.stop)):
            stack.enter_context(_beside(partial(run, stack.enter_context(listening(listens))), stop))
        transport = VhostUserTransport(before, device.device_id, memory_size=MEMORY, num_queues=len(device.queues()))
        yield transport
        transport.close()
    server.close()
    assert broken == []


@contextmanager
def telegraph(setting: Setting) -> Iterator[Transport]:
    carrier = Telegraph(setting.device, setting.engine, setting.features, MEMORY)
    yield cast(Transport, carrier)
    assert carrier.end.fault is None


Carrier = Callable[[Setting], AbstractContextManager[Transport]]

CARRIERS: Final[dict[str, Carrier]] = {
    "in-process": in_process,
    "mmio": mmio,
    "mmio-legacy": mmio_legacy,
    "pci": pci,
    "pci-legacy": pci_legacy,
    "shared-memory": shared_memory,
    "shared-memory-polled": shared_memory_polled,
    "vhost-user": vhost_user,
    "vhost-user-traced": vhost_user_traced,
    "telegraph": telegraph,
}

LEGACY: Final = {"mmio-legacy", "pci-legacy"}
"""Those that carry 32 feature bits, hence neither packed rings nor VIRTIO_F_IN_ORDER."""
