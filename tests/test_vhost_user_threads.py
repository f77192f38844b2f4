"""Several queues of one device on several threads: they run side by side, and stop together."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field

from tests.test_vhost_user_transport import connected, serving
from tests.vhost_user_frontend import R, addresses
from tests.vhost_user_socket import FEATURES, Client, await_, eventfds
from tests.vhost_user_socket import connected as client_at
from virtio_py.device import Device, QueueSpec
from virtio_py.devices.blk.batch import Ask, BatchingBlkDriver
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.direct import DirectFileMedium
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.media import FileMedium, MemoryMedium
from virtio_py.devices.blk.zones import Zones
from virtio_py.devices.entropy import EntropyDevice
from virtio_py.errors import UsageError, VirtioError
from virtio_py.rings.chain import Chain
from virtio_py.rings.engine import engine_named
from virtio_py.rings.queue import DeviceQueue, DriverQueue
from virtio_py.spec import DeviceId, bit
from virtio_py.transports.vhost_user_messages import ProtocolFeature
from virtio_py.transports.vhost_user_server import Server, listening
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES
from virtio_py.transports.vhost_user_workers import Workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="serving vhost-user needs Linux")
SECTOR = 512


@define(eq=False)
class Together(Device):
    """Requests that are done only when one of every queue is being served: one thread would wait for ever."""

    device_id = DeviceId.ENTROPY
    count: int
    barrier: threading.Barrier = field(init=False)
    inside: int = 0
    at_reset: list[int] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.barrier = threading.Barrier(self.count)

    @property
    def concurrent(self) -> bool:
        return True

    def queues(self) -> list[QueueSpec]:
        return [QueueSpec(f"queue {n}") for n in range(self.count)]

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        self.inside += 1
        self.barrier.wait(10)
        time.sleep(0.02)
        chain.writable.write(chain.readable.read_all())
        self.inside -= 1

    def reset(self) -> None:
        self.at_reset.append(self.inside)


def start(client: Client, kicks: list[int], call: int) -> list[DriverQueue]:
    client.number(R.SET_FEATURES, FEATURES)
    client.share()
    queues = []
    for index, kick in enumerate(kicks):
        queue = DriverQueue(index, 8, client.arena, FEATURES)
        client.number(R.SET_VRING_CALL, index, [call])
        client.state(R.SET_VRING_NUM, index, 8)
        assert client.ask(R.SET_VRING_ADDR, addresses(queue)) == 0
        client.number(R.SET_VRING_KICK, index, [kick])
        client.state(R.SET_VRING_ENABLE, index, 1)
        queues.append(queue)
    return queues


def add(client: Client, queue: DriverQueue, text: bytes) -> memoryview:
    return client.add(queue, text)


def test_queues_are_served_at_the_same_time_and_stop_together(tmp_path: Path) -> None:
    device = Together(2)
    with (
        serving(tmp_path / "sock", device, threads=2) as path,
        client_at(path) as client,
        eventfds(3) as (first, second, call),
    ):
        queues = start(client, [first, second], call)
        answers = [add(client, queue, b"hello") for queue in queues]
        os.eventfd_write(first, 1)
        os.eventfd_write(second, 1)
        await_(lambda: device.inside == 2, "both are being served")
        resets = len(device.at_reset)
        assert client.ask(R.RESET_DEVICE) == 0
        assert device.at_reset[resets:], "it was reset"
        assert not any(device.at_reset), "and by then no request was being served"
        assert [bytes(answer) for answer in answers] == [b"hello"] * 2


@pytest.fixture(params=["reference", "compiled"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    image = tmp_path / "image"
    image.write_bytes(bytes(4 << 20))
    device = BlkDevice(FileMedium(image), num_queues=4)
    with serving(tmp_path / "sock", device, threads=4, engine=engine_named(request.param)) as path:
        yield path, request.param


def sweep(driver: BatchingBlkDriver, queue: int, seed: int) -> None:
    """Writes and reads a part of the disk that is this queue's, at random."""
    rng = random.Random(seed)
    base = queue * 2000
    model = dict[int, bytes]()
    for _ in range(20):
        writes = {base + n: rng.randbytes(SECTOR) for n in rng.sample(range(1000), 10)}
        for ticket in driver.run((Ask.write(*item) for item in writes.items()), queue=queue, timeout=20):
            ticket.result()
        model |= writes
        sectors = rng.sample(sorted(model), 10)
        tickets = driver.run((Ask.read(sector, 1) for sector in sectors), queue=queue, timeout=20)
        assert [ticket.result() for ticket in tickets] == [model[sector] for sector in sectors]


def test_four_queues_of_a_disk_under_load(disk: tuple[str, str]) -> None:
    path, engine = disk
    with connected(path) as transport:
        driver = BatchingBlkDriver(transport, engine=engine_named(engine), features=(1 << 64) - 1 & ~(1 << 17)).start()
        assert len(driver.queues) == 4
        for round_ in range(3):
            asks = [[Ask.write(q * 2000 + 1500 + n, bytes(SECTOR)) for n in range(50)] for q in range(4)]
            under_way = [driver.submit(asks[queue], queue) for queue in range(4)]
            for queue, tickets in enumerate(under_way):
                done = driver.wait(len(tickets), 20.0, queue)
                assert all(ticket.result() == b"" for ticket in done)
            sweep(driver, round_, round_)


def test_messages_and_departures_under_load(disk: tuple[str, str]) -> None:
    path, engine = disk
    for attempt in range(6):
        with connected(path) as transport:
            driver = BatchingBlkDriver(transport, engine=engine_named(engine)).start()
            for queue in range(4):
                driver.submit([Ask.write(queue * 2000 + n, b"x" * SECTOR) for n in range(60)], queue)
            if attempt % 2:
                # GET_VRING_BASE for every ring, and all of it anew.
                driver.start()
                sweep(driver, 1, attempt)
    with connected(path) as transport:
        assert BlkDriver(transport, engine=engine_named(engine)).start().read(0, 1) in (b"x" * SECTOR, bytes(SECTOR))


def test_a_fault_in_one_ring_stops_all_and_the_next_front_end_is_served(tmp_path: Path) -> None:
    device = BlkDevice(MemoryMedium.of(1 << 20), num_queues=2)
    with serving(tmp_path / "sock", device, threads=2) as path:
        with client_at(path) as client, eventfds(3) as (first, second, call):
            queues = start(client, [first, second], call)
            queues[1].add([], [(1 << 40, 16)])
            os.eventfd_write(second, 1)
            await_(lambda: bool(client.ask(R.GET_STATUS) & 64), "the device needs a reset")
            assert client.ask(R.GET_QUEUE_NUM) == 2
        with connected(path) as transport:
            assert BlkDriver(transport).start().read(0, 1) == bytes(SECTOR)


def test_a_ring_that_always_has_work_lets_messages_in() -> None:
    served = [0, 0]

    def serve(index: int) -> bool:
        served[index] += 1
        return True

    workers = Workers(2, serve, lambda index, error: None)
    workers.submit(0)
    workers.submit(1)
    for _ in range(50):
        with workers.quiet():
            before = list(served)
            time.sleep(0.001)
            assert served == before
        await_(lambda: all(now > then for now, then in zip(served, before, strict=True)), "and it goes on")  # noqa: B023
    workers.close()


def test_an_error_of_our_own_ends_the_session_and_not_silently(tmp_path: Path) -> None:
    class Broken(BlkDevice):
        def handle(self, queue: DeviceQueue, chain: Chain) -> None:
            raise ZeroDivisionError

    server = Server(Broken(MemoryMedium.of(1 << 20), num_queues=2), log=lambda line: None, threads=2)
    seen: list[BaseException] = []
    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:

        def run() -> None:
            try:
                with listening(str(tmp_path / "sock")) as listener:
                    server.serve(listener)
            except VirtioError as error:
                seen.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        with client_at(str(tmp_path / "sock")) as client, eventfds(3) as (first, second, call):
            queues = start(client, [first, second], call)
            client.add(queues[0], b"x")
            os.eventfd_write(first, 1)
            thread.join(10)
        assert not thread.is_alive()
    finally:
        threading.excepthook = hook
        server.close()
    assert "ring 0" in str(seen[0])


def test_what_cannot_be_served_side_by_side(tmp_path: Path) -> None:
    def refused(device: Device, threads: int, protocol_features: int = PROTOCOL_FEATURES) -> None:
        with pytest.raises(UsageError):
            Server(device, log=lambda line: None, threads=threads, protocol_features=protocol_features)

    refused(EntropyDevice(), threads=2)
    refused(BlkDevice(MemoryMedium.of(1 << 16)), threads=0)
    refused(BlkDevice(MemoryMedium.of(1 << 16), zones=Zones(128, 16)), threads=2)
    inband = PROTOCOL_FEATURES | bit(ProtocolFeature.INBAND_NOTIFICATIONS)
    refused(BlkDevice(MemoryMedium.of(1 << 16)), threads=2, protocol_features=inband)
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 16))
    refused(BlkDevice(DirectFileMedium(image)), threads=2)
