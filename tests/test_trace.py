"""Pictures of rings agree with what went on in them, tell what is wrong with them, and survive anything."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from virtio_py.errors import MemoryFault, PeerError, UsageError
from virtio_py.memory import Arena, Buffer, GuestMemory
from virtio_py.rings.chain import Chain
from virtio_py.rings.drawing import MAX_WIDTH, draw
from virtio_py.rings.engine import REFERENCE
from virtio_py.rings.layouts import pvirtq_desc, pvirtq_event_suppress, virtq_avail, virtq_desc, virtq_used
from virtio_py.rings.picture import RingPicture
from virtio_py.rings.places import LAYOUTS
from virtio_py.rings.queue import DeviceQueue, DriverQueue, QueueConfig
from virtio_py.rings.trace import picture_of, picture_of_bytes
from virtio_py.spec import Feature, PackedDescFlag, VirtqDescFlag, bit, mask

START = 0x1000
PACKED, IN_ORDER, EVENT_IDX = bit(Feature.RING_PACKED), bit(Feature.IN_ORDER), bit(Feature.EVENT_IDX)
NEXT, WRITE, INDIRECT = VirtqDescFlag.NEXT, VirtqDescFlag.WRITE, VirtqDescFlag.INDIRECT

FEATURES = st.sets(
    st.sampled_from([Feature.RING_PACKED, Feature.IN_ORDER, Feature.INDIRECT_DESC, Feature.EVENT_IDX])
).map(lambda chosen: mask(*chosen))


@define
class Pair:
    """Both halves of a queue, with a model: lists of tokens, in order."""

    features: int
    size: int
    arena: Arena = field(init=False)
    driver: DriverQueue = field(init=False)
    device: DeviceQueue = field(init=False)
    buffer: Buffer = field(init=False)
    available: list[int] = field(factory=list)
    taken: list[tuple[int, Chain]] = field(factory=list)
    used: list[int] = field(factory=list)
    slots: dict[int, int] = field(factory=dict)
    count: int = 0

    def __attrs_post_init__(self) -> None:
        self.arena = Arena(GuestMemory.of(1 << 16, START))
        self.buffer = self.arena.allocate(64)
        self.driver = DriverQueue(0, self.size, self.arena, self.features, indirect=2)
        config = QueueConfig(0, "requestq", self.size)
        config.descriptor_area, config.driver_area, config.device_area = self.driver.areas
        self.device = config.activate(self.arena.memory, self.features, REFERENCE, lambda: None)

    def add(self, segments: int, writable: int) -> None:
        """The driver adds a buffer, if there is room."""
        extents = [(self.buffer.address, 8)] * segments
        cut = segments - min(writable, segments)
        free = self.driver.free_slots
        if self.driver.add_many([(extents[:cut], extents[cut:], self.count)]):
            self.available.append(self.count)
            self.slots[self.count] = free - self.driver.free_slots
            self.count += 1

    def take(self, limit: int) -> None:
        """The device takes some."""
        for chain in self.device.take(limit):
            self.taken.append((self.available.pop(0), chain))

    def complete(self, which: int, count: int) -> None:
        """The device uses some, in order if it has to."""
        at = 0 if self.features & IN_ORDER or not self.taken else which % len(self.taken)
        done = [self.taken.pop(at) for _ in range(min(count, len(self.taken) - at))]
        for _, chain in done:
            chain.writable.write(bytes(chain.writable.remaining))
        self.device.complete([chain for _, chain in done])
        self.used += [token for token, _ in done]

    def take_used(self, limit: int) -> None:
        """The driver takes some back."""
        for token, _ in self.driver.take_used(limit):
            self.used.remove(token)

    def burst(self, count: int, used: int) -> None:
        """Some buffers go to the device, and some come back, all at once."""
        for _ in range(count):
            self.add(1, 1)
        self.take(self.size)
        self.complete(0, used)

    def notifications(self, which: int, enabled: bool) -> None:
        """One side changes its mind about notifications."""
        half = self.driver if which else self.device
        (half.enable_notifications if enabled else half.disable_notifications)()

    def owned(self, tokens: Sequence[int]) -> int:
        """Slots that these buffers take."""
        return sum(self.slots[token] for token in tokens)

    def from_bytes(self, features: int | None = None) -> RingPicture:
        """What memory alone tells."""
        driver = self.driver
        return picture_of_bytes(driver.layout, self.size, self.arena.memory, *driver.areas, features=features)


SMALL = st.integers(0, 7)
OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 3), st.integers(0, 3)),
    st.tuples(st.just("add"), st.integers(1, 3), st.integers(0, 3)),
    st.tuples(st.just("take"), SMALL),
    st.tuples(st.just("complete"), SMALL, st.integers(0, 3)),
    st.tuples(st.just("take_used"), SMALL),
    st.tuples(st.just("burst"), st.integers(2, 4), SMALL),
    st.tuples(st.just("notifications"), st.integers(0, 1), st.booleans()),
)


def run(pair: Pair, operations: Sequence[tuple[Any, ...]]) -> None:
    for name, *arguments in operations:
        getattr(pair, name)(*arguments)


def states(picture: RingPicture, *wanted: str) -> int:
    return sum(row.state in wanted for row in picture.descriptors)


@settings(max_examples=200, deadline=None)
@given(FEATURES, st.sampled_from([4, 8]), st.lists(OPERATIONS, max_size=60))
def test_live_pictures_are_what_went_on(features: int, size: int, operations: list[tuple[Any, ...]]) -> None:
    pair = Pair(features, size)
    for operation in operations:
        run(pair, [operation])
        seen_by_driver, seen_by_device = picture_of(pair.driver), picture_of(pair.device)
        taken = [token for token, _ in pair.taken]

        assert not seen_by_driver.problems
        assert not seen_by_device.problems
        assert seen_by_driver.outstanding == pair.driver.outstanding == len(pair.available + taken + pair.used)
        assert seen_by_device.outstanding == len(pair.available + taken)
        assert len(seen_by_driver.ids("used")) == len(pair.used)
        assert len(seen_by_driver.ids("device")) == len(pair.available + taken)
        assert sorted(seen_by_device.ids("taken")) == sorted(chain.id for _, chain in pair.taken)
        assert len(seen_by_device.ids("available")) == len(pair.available)
        if features & PACKED:
            # In order, the slots of a buffer that is used are skipped with those of the one that stands for it.
            assert states(seen_by_driver, "used") == pair.owned(pair.used)
        assert states(seen_by_driver, "device") == pair.owned(pair.available + taken)
        assert states(seen_by_device, "available") == pair.owned(pair.available)
        assert states(seen_by_device, "taken") == pair.owned(taken)


@settings(max_examples=200, deadline=None)
@given(FEATURES, st.sampled_from([4, 8]), st.lists(OPERATIONS, max_size=60), st.booleans())
def test_bytes_alone_tell_nothing_false(
    features: int, size: int, operations: list[tuple[Any, ...]], told: bool
) -> None:
    pair = Pair(features, size)
    for operation in operations:
        run(pair, [operation])
        picture, truth = pair.from_bytes(features if told else None), picture_of(pair.driver)
        assert not picture.problems
        if picture.layout == "packed":
            for row, true in zip(picture.descriptors, truth.descriptors, strict=True):
                assert row.owner in (true.owner, "unknown")
            position = picture.mark("next available")
            assert position is not None
            assert (position.slot, position.wrap) == (
                pair.driver.state.next_available,
                pair.driver.state.available_wrap,
            )
            if (used := picture.mark("next used")) is not None:
                state = pair.device.state
                assert (used.slot, used.wrap) == (state.next_used, state.used_wrap)
        else:
            assert picture.outstanding == len(pair.available) + len(pair.taken)
        assert {chain.id for chain in picture.chains if chain.certain} <= set(truth.ids("device"))
        if picture.exact:
            assert sorted(picture.ids("device")) == sorted(truth.ids("device"))


@settings(deadline=None)
@given(st.sampled_from([0, PACKED]), st.sampled_from([4, 8]), st.lists(OPERATIONS, max_size=40))
def test_bytes_tell_all_of_a_device_that_is_idle(layout: int, size: int, operations: list[tuple[Any, ...]]) -> None:
    pair = Pair(layout | IN_ORDER, size)
    run(pair, operations)
    pair.take(size)
    pair.complete(0, size)
    picture = pair.from_bytes(layout | IN_ORDER)
    assert not picture.ids("device")
    assert states(picture, "device") == 0


# Hostile drivers and devices ----------------------------------------------------------------------------------------


def scribble(pair: Pair, writes: Sequence[tuple[int, int, int]]) -> None:
    """16-bit words stored into the areas: (area, word, value)."""
    parts = LAYOUTS[pair.driver.layout].parts(pair.size)
    for area, word, value in writes:
        at, part = pair.driver.areas[area % 3], parts[area % 3]
        pair.arena.memory.write(at + 2 * (word % (part.size // 2)), value.to_bytes(2, "little"))


WORDS = st.one_of(st.integers(0, 12), st.integers(0, 0xFFFF), st.sampled_from([0x80, 0x8000, 0x8080, 0x8084, 0x85]))
WRITES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 31), WORDS), min_size=1, max_size=8)


@settings(max_examples=400, deadline=None)
@given(FEATURES, st.lists(OPERATIONS, max_size=12), WRITES)
def test_whatever_a_queue_refuses_is_in_the_picture(
    features: int, operations: list[tuple[Any, ...]], writes: list[tuple[int, int, int]]
) -> None:
    pair = Pair(features, 4)
    run(pair, operations)
    scribble(pair, writes)
    pictures = {pair.device: picture_of(pair.device), pair.driver: picture_of(pair.driver)}
    refused = {pair.device: pair.device.take, pair.driver: pair.driver.take_used}
    for half, picture in pictures.items():
        draw(picture)
        error = first_error(refused[half])
        if error is not None:
            assert shape(error.message) in {shape(p.message) for p in picture.problems}
            assert error.clause in {p.clause for p in picture.problems}


def first_error(step: Any) -> PeerError | None:
    """What a queue complains of once it has given out all that is good."""
    try:
        while step():
            pass
    except PeerError as error:
        return error
    return None


def shape(message: str) -> str:
    return re.sub(r"\d+", "N", message)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["split", "packed"]),
    st.sampled_from([1, 2, 4, 16]),
    st.binary(min_size=1024, max_size=1024),
    st.sampled_from([None, 0, mask(Feature.INDIRECT_DESC, Feature.EVENT_IDX), IN_ORDER]),
    st.integers(0, 40),
)
def test_arbitrary_bytes_make_a_picture(layout: str, size: int, data: bytes, features: int | None, at: int) -> None:
    picture = picture_of_bytes(layout, size, data, at, features=features)
    text = draw(picture, rows=6)
    assert max(map(len, text.splitlines())) <= MAX_WIDTH
    assert json.loads(json.dumps(picture.as_dict()))["size"] == size


def test_chains_that_share_everything_end() -> None:
    size = 1024
    table = bytearray(virtq_desc.size * size)
    for i in range(size):
        flags = NEXT if i + 1 < size else 0
        entry = virtq_desc.encode(addr=0, len=1, flags=flags, next=i + 1)
        table[i * virtq_desc.size : (i + 1) * virtq_desc.size] = entry
    avail = virtq_avail(size).encode(idx=size, ring=list(range(size)))
    data = bytes(table) + avail + bytes(-(len(table) + len(avail)) % 4) + bytes(virtq_used(size).size)
    picture = picture_of_bytes("split", size, data, 0)
    assert any("share" in p.message for p in picture.problems)
    assert any("descriptors are followed" in p.message for p in picture.problems)


# One corruption, one problem ----------------------------------------------------------------------------------------


def split_bytes(*descriptors: dict[str, int], avail: dict[str, Any], used: dict[str, Any] | None = None) -> RingPicture:
    """A split ring of 4 from its fields, of which nothing more is known than that no feature was negotiated."""
    table = b"".join(virtq_desc.encode(**d) for d in descriptors).ljust(4 * virtq_desc.size, b"\0")
    rings = virtq_avail(4).encode(**{"ring": [0] * 4, **avail}).ljust(16, b"\0")
    data = table + rings + virtq_used(4).encode(**(used or {}))
    return picture_of_bytes("split", 4, data, 0, features=0)


def packed_bytes(*descriptors: dict[str, int], features: int = 0, event: bytes = b"") -> RingPicture:
    ring = b"".join(pvirtq_desc.encode(**d) for d in descriptors).ljust(4 * pvirtq_desc.size, b"\0")
    events = (event or bytes(pvirtq_event_suppress.size)) + bytes(pvirtq_event_suppress.size)
    return picture_of_bytes("packed", 4, ring + events, 0, features=features)


ONE: dict[str, int] = {"addr": 0x1000, "len": 16}
AVAIL = PackedDescFlag.AVAIL

SPLIT_FAULTS = {
    "split.driver.available-ring.1": split_bytes(ONE, avail={"idx": 9}),
    "split.driver.descriptor-table.1": split_bytes({**ONE, "flags": NEXT}, avail={"idx": 1}),
    "split.driver.message-framing.1": split_bytes({**ONE, "flags": WRITE | NEXT, "next": 1}, ONE, avail={"idx": 1}),
    "split.driver.indirect-descriptors.1": split_bytes({"addr": 16, "len": 16, "flags": INDIRECT}, avail={"idx": 1}),
    "split.driver.indirect-descriptors.2": split_bytes({"addr": 0, "len": 16, "flags": INDIRECT}, avail={"idx": 1}),
    "split.driver.indirect-descriptors.4": split_bytes({"len": 16, "flags": INDIRECT | NEXT}, avail={"idx": 1}),
    "split.driver.used-buffer-notification-suppression.1": split_bytes(avail={"flags": 2}),
    "split.device.available-buffer-notification-suppression.1": split_bytes(avail={}, used={"flags": 6}),
}

PACKED_FAULTS = {
    "packed.driver.scatter-gather-support.3": packed_bytes(
        {**ONE, "flags": AVAIL | NEXT | WRITE}, {**ONE, "flags": AVAIL}
    ),
    "packed.driver.indirect-descriptors.1": packed_bytes({"len": 16, "flags": AVAIL | INDIRECT}),
    "packed.driver.indirect-descriptors.2": packed_bytes(
        {"addr": 0, "len": 16, "flags": AVAIL | INDIRECT}, features=bit(Feature.INDIRECT_DESC)
    ),
    "packed.driver.indirect-descriptors.4": packed_bytes(
        {"len": 16, "flags": AVAIL | INDIRECT | NEXT}, {**ONE, "flags": AVAIL}
    ),
}


@pytest.mark.parametrize("clause", [*SPLIT_FAULTS, *PACKED_FAULTS])
def test_a_corruption_is_named_by_its_clause(clause: str) -> None:
    picture = {**SPLIT_FAULTS, **PACKED_FAULTS}[clause]
    assert clause in {found.clause for found in picture.problems}
    assert f"[{clause}]" in " ".join(draw(picture).split())


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (split_bytes(ONE, avail={"idx": 1, "ring": [4, 0, 0, 0]}), "names descriptor 4"),
        (split_bytes(ONE, avail={"idx": 2}), "available again before it was used"),
        (split_bytes({**ONE, "flags": NEXT, "next": 4}, avail={"idx": 1}), "links to descriptor 4"),
        (split_bytes({"len": 17, "flags": INDIRECT}, avail={"idx": 1}), "17 bytes, no multiple of 16"),
        (packed_bytes({**ONE, "flags": AVAIL, "id": 9}), "names descriptor 9"),
        (packed_bytes({**ONE, "flags": AVAIL}, {}, {**ONE, "flags": AVAIL}), "AVAIL changes here"),
        (packed_bytes(event=pvirtq_event_suppress.encode(flags=3)), "a reserved value"),
        (packed_bytes(event=pvirtq_event_suppress.encode(flags=2)), "without VIRTIO_F_EVENT_IDX"),
        (
            packed_bytes(event=pvirtq_event_suppress.encode(desc=4, flags=2), features=EVENT_IDX),
            "at descriptor 4, which the ring does not have",
        ),
    ],
)
def test_a_corruption_without_a_clause_is_named(picture: RingPicture, message: str) -> None:
    assert any(message in found.message for found in picture.problems)


@pytest.mark.clause("split.driver.virtqueues.1")
@pytest.mark.clause("packed.driver.virtqueues.1")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_misplaced_areas_are_a_problem(layout: str) -> None:
    assert not picture_of_bytes(layout, 4, bytes(256), 16).problems
    found = picture_of_bytes(layout, 4, bytes(256), 8).problems
    assert [p.clause for p in found] == [f"{layout}.driver.virtqueues.1"]


# Drawing ------------------------------------------------------------------------------------------------------------


def test_a_long_ring_is_drawn_where_something_goes_on() -> None:
    pair = Pair(0, 256)
    for _ in range(3):
        pair.add(2, 1)
    text = draw(picture_of(pair.driver))
    assert len(text.splitlines()) < 45
    assert "… 250 more: 250 free" in text
    assert "◄ idx = 3" in text
    assert re.search(r"#3 +id 4 .* 8 readable, 8 writable bytes, descriptors 4 → 5", text)


def test_a_packed_ring_shows_its_wrap_counters() -> None:
    pair = Pair(PACKED | EVENT_IDX, 4)
    for _ in range(6):
        pair.add(1, 1)
        pair.take(1)
        pair.complete(0, 1)
        pair.take_used(1)
    text = draw(picture_of(pair.device))
    assert "next available (wrap 0)" in text
    assert "next used (wrap 0)" in text


def test_the_table_behind_an_indirect_descriptor_is_drawn() -> None:
    pair = Pair(bit(Feature.INDIRECT_DESC), 4)
    pair.add(2, 1)
    [row] = [row for row in picture_of(pair.driver).descriptors if row.state != "free"]
    assert row.flag_names == ("INDIRECT",)
    assert [(entry.len, entry.flag_names) for entry in row.indirect] == [(8, ("NEXT",)), (8, ("WRITE",))]
    assert "└ 1" in draw(picture_of(pair.driver))


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(MemoryFault):
        picture_of_bytes("split", 16, bytes(100), 0)
    with pytest.raises(MemoryFault):
        picture_of_bytes("packed", 16, b"", 0)
    for layout, size in (("split", 3), ("split", 0), ("packed", 40000), ("spilt", 4)):
        with pytest.raises(UsageError):
            picture_of_bytes(layout, size, bytes(4096), 0)
