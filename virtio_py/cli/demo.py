"""`virtio-py demo`: on one screen, what this package does. Every figure that it prints was measured in that run."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final

from attrs import define

from virtio_py.cli.demo_rings import BATCH, buffers_a_second, run_schedules
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.driver import BlkDriver
from virtio_py.devices.blk.layout import SECTOR, BlkRequest, BlkStatus, virtio_blk_config, virtio_blk_req
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.errors import EngineUnavailable
from virtio_py.records import Record
from virtio_py.rings.drawing import draw
from virtio_py.rings.engine import REFERENCE, Engine, compiled
from virtio_py.rings.places import LAYOUTS
from virtio_py.rings.trace import picture_of
from virtio_py.spec import Feature, bit, mask
from virtio_py.transports.in_process import InProcess

_DISK: Final = 1 << 20
_FIELDS: Final = 5
_PLAIN: Final = bit(Feature.VERSION_1)


def add_parser(subparsers: Any) -> None:
    """Adds the command to argparse's `subparsers`."""
    parser = subparsers.add_parser(
        "demo",
        help="see it work: a structure, a ring, a disk, a property, the speed",
        description="Decodes a structure, draws a live ring, lets a block driver and a block device work on each "
        "other, runs random schedules on both engines, and takes the time of each. All in this process.",
    )
    parser.add_argument("--seed", type=int, default=None, help="of all that is random; default: another one each time")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints all sections; 1 if anything was found that should not be."""
    seed = int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed
    show = Screen.of_stdout()
    engines = find_engines(show)
    good = [section(show, engines, seed) for section in SECTIONS]
    return 0 if all(good) else 1


@define
class Screen:
    """Where the lines go: coloured on a terminal, as they are elsewhere."""

    put: Callable[[str, str], None]

    @classmethod
    def of_stdout(cls) -> Screen:
        """rich where someone looks, print where nobody does."""
        if not sys.stdout.isatty():
            return cls(lambda text, style: print(text, flush=True))
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False)
        return cls(lambda text, style: console.print(Text(text, style), no_wrap=True, overflow="ignore", crop=False))

    def title(self, text: str) -> None:
        """The first line of a section."""
        self.put("", "")
        self.put(text, "bold cyan")

    def line(self, text: str, style: str = "") -> None:
        """Any other line."""
        self.put(f"  {text}".rstrip(), style)

    def verdict(self, good: bool, text: str) -> bool:
        """What came of it."""
        self.line(f"{'✓' if good else '✗'} {text}", "green" if good else "bold red")
        return good


def find_engines(show: Screen) -> list[Engine]:
    """The reference engine, and the compiled one where it can be had; warms it, for compilation is no throughput."""
    start = time.monotonic()
    try:
        engines = [REFERENCE, compiled()]
    except EngineUnavailable as error:
        show.put(f"No compiled engine here: {error}", "yellow")
        return [REFERENCE]
    for layout in LAYOUTS:
        buffers_a_second(engines[1], layout, 0.001)
    run_schedules(engines[1:], 0, 0.05)
    spent = time.monotonic() - start
    show.put(f"virtio_py, engines: {' and '.join(e.name for e in engines)} (ready after {spent:.1f} s)", "")
    return engines


# A decoded structure ------------------------------------------------------------------------------------------------


def structure(show: Screen, engines: list[Engine], seed: int) -> bool:
    """The configuration space of a disk, field by field."""
    device = BlkDevice(MemoryMedium.of(_DISK), serial=b"demo")
    data = device.read_config()
    record = virtio_blk_config
    show.title(f"A structure: {record.name} ({record.cite}), {len(data)} bytes, as the device has it")
    for text in decoded(record, data):
        show.line(text)
    again = record.encode_values(record.decode(data))
    return show.verdict(
        again == data and not record.violations(record.decode(data)), "decoded, and encoded again to the same bytes"
    )


def decoded(record: Record, data: bytes) -> Iterator[str]:
    """The first fields, as lines: offset, bytes, name, value."""
    values = record.as_dict(record.decode(data))
    shown = [record.field(name) for name in values][:_FIELDS]
    for field in shown:
        raw = data[field.offset : field.offset + field.size].hex(" ")
        yield f"+{field.offset:<3} {raw:<24} {field.name} = {flat(values[field.name])}"
    yield f"… and {len(values) - len(shown)} more fields"


def flat(value: Any) -> str:
    """A field's value; that of a structure with the names of its fields."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {flat(inner)}" for name, inner in value.items())
    return str(value)


# A live ring --------------------------------------------------------------------------------------------------------


def start_disk(engine: Engine, ring_features: int, queue_size: int = 256) -> tuple[MemoryMedium, BlkDriver]:
    """A disk in memory, and its driver, initialised."""
    medium = MemoryMedium.of(_DISK)
    transport = InProcess(BlkDevice(medium), engine=engine, ring_features=ring_features)
    wanted = BlkDriver.known_features | ring_features
    return medium, BlkDriver(transport, engine=engine, queue_size=queue_size, features=wanted).start()


def live_ring(show: Screen, engines: list[Engine], seed: int) -> bool:
    """A ring of a block driver with requests on it that the device has not seen yet."""
    show.title("A live ring: a block driver has asked for two sectors, the device has answered one")
    _, driver = start_disk(REFERENCE, _PLAIN, queue_size=8)
    queue, arena = driver.queues[0], driver.transport.arena
    status = []
    for sector in (3, 4):
        head, data = arena.allocate(virtio_blk_req.size), arena.allocate(SECTOR)
        head.view[:] = virtio_blk_req.encode(type=BlkRequest.IN, sector=sector)
        status.append(arena.allocate(1))
        status[-1].view[0] = 0xFF
        queue.add([head.extent], [data.extent, status[-1].extent], sector)
        if sector == 3:
            driver.kick(queue)
            driver.transport.wait(0)
    picture = picture_of(queue)
    for line in draw(picture, rows=6).splitlines():
        show.put(line, "")
    driver.kick(queue)
    back = driver.wait_used(queue, 2)
    good = [token for token, _ in back] == [3, 4] and all(s.view[0] == BlkStatus.OK for s in status)
    return show.verdict(good and not picture.problems, f"both came back: {back} as (sector, bytes written), status OK")


# A disk -------------------------------------------------------------------------------------------------------------


def disk(show: Screen, engines: list[Engine], seed: int) -> bool:
    """Data written and read back by the driver half against the device half, on each layout and engine."""
    show.title(f"A disk: block driver against block device, {_DISK >> 10} KiB written in pieces and read back")
    rings = (mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX), bit(Feature.RING_PACKED))
    cases = [(e, ring) for e in engines for ring in (rings[0], rings[0] | rings[1])]
    good = [disk_case(show, engine, ring, seed) for engine, ring in cases]
    return all(good)


def disk_case(show: Screen, engine: Engine, ring: int, seed: int) -> bool:
    """One layout on one engine."""
    medium, driver = start_disk(engine, ring)
    rng = random.Random(seed)
    data = rng.randbytes(_DISK)
    start = time.perf_counter()
    requests = 0
    for at, count in pieces(rng, _DISK // SECTOR):
        driver.write(at, data[at * SECTOR : (at + count) * SECTOR])
        requests += 1
    driver.flush()
    read = b"".join(driver.read(at, 64) for at in range(0, _DISK // SECTOR, 64))
    requests += 1 + _DISK // SECTOR // 64
    spent = time.perf_counter() - start
    same = hashlib.sha256(read).digest() == hashlib.sha256(data).digest() and bytes(medium.data) == data
    layout = driver.queues[0].layout
    text = f"{layout:<6} {engine.name:<9} {requests:>4} requests in {spent * 1000:>4.0f} ms, data identical: "
    return show.verdict(same, f"{text}{'yes' if same else 'NO'}")


def pieces(rng: random.Random, sectors: int) -> list[tuple[int, int]]:
    """(first sector, sectors) of random lengths that cover a disk, in random order."""
    cuts = [0, *sorted(rng.sample(range(1, sectors), 63)), sectors]
    covering = [(low, high - low) for low, high in pairwise(cuts)]
    rng.shuffle(covering)
    return covering


# A property, and the time -------------------------------------------------------------------------------------------


def differential(show: Screen, engines: list[Engine], seed: int) -> bool:
    """Random schedules: what goes in comes out once, and no byte depends on the engine."""
    show.title("A property: random schedules on both layouts, with and without indirect, event index, in order")
    start = time.perf_counter()
    found = run_schedules(engines, seed, 2.0)
    spent = time.perf_counter() - start
    show.line(
        f"{found.schedules} schedules, {found.steps} steps, {found.buffers} buffers in {spent:.1f} s, seed {seed}"
    )
    if found.difference:
        return show.verdict(False, found.difference)
    if len(engines) > 1:
        show.verdict(True, "after each step both engines had returned the same and left the same memory")
    return show.verdict(True, "each buffer came back once at the most, with the length that was written")


def throughput(show: Screen, engines: list[Engine], seed: int) -> bool:
    """Buffers a second for each engine and layout."""
    show.title("Throughput of DriverQueue and DeviceQueue, called from Python, both halves in turn on one thread")
    show.line(f"buffers of one descriptor that go out and come back, in batches of {BATCH}; no data is moved")
    for engine in engines:
        rates = (f"{layout} {buffers_a_second(engine, layout, 0.5):>9,.0f} buffers/s" for layout in LAYOUTS)
        show.line(f"{engine.name:<10} {'    '.join(rates)}")
    return True


SECTIONS: Final = (structure, live_ring, disk, differential, throughput)
