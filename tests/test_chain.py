"""Reader, Writer and tails against plain bytes, over any fragmentation (2.7.4)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from virtio_py.errors import RequestError
from virtio_py.rings.chain import Reader, Writer

FRAGMENTS = st.lists(st.binary(max_size=12), max_size=8)
SIZES = st.lists(st.integers(0, 12), max_size=8)


@pytest.mark.clause("split.device.message-framing.1")
@given(FRAGMENTS, st.lists(st.integers(0, 30), max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_reader_reads_what_the_fragments_say(fragments: list[bytes], counts: list[int]) -> None:
    whole = b"".join(fragments)
    reader = Reader([memoryview(bytearray(f)) for f in fragments])
    at = 0
    for count in counts:
        assert (reader.position, reader.remaining) == (at, len(whole) - at)
        if count > len(whole) - at:
            with pytest.raises(RequestError):
                reader.read(count)
            continue
        assert b"".join(reader.views(count)) == whole[at : at + count]
        assert reader.read(count) == whole[at : at + count]
        at += count
    assert b"".join(reader.views()) == whole[at:]
    assert reader.read_all() == whole[at:]
    assert reader.remaining == 0


def test_a_negative_count_is_refused() -> None:
    reader = Reader([memoryview(bytearray(4))])
    for call in (reader.read, reader.views, reader.advance):
        with pytest.raises(RequestError):
            call(-1)


def test_what_was_read_is_a_copy() -> None:
    memory = bytearray(b"once")
    data = Reader([memoryview(memory)]).read(4)
    memory[:] = b"more"
    assert data == b"once"


class WriterMachine(RuleBasedStateMachine):
    """A writer and its tails; the model is one list of bytes and, of each stream, its range and position."""

    @initialize(sizes=SIZES)
    def start(self, sizes: list[int]) -> None:
        self.memory = [bytearray(b"." * size) for size in sizes]
        self.model = bytearray(b"." * sum(sizes))
        self.writers = [Writer([memoryview(m) for m in self.memory])]
        # (start, position, end) of each; the first is the chain's own, later ones its tails, last cut first.
        self.ranges = [[0, 0, sum(sizes)]]

    @precondition(lambda self: hasattr(self, "writers"))
    @rule(data=st.binary(max_size=20), which=st.integers(0, 3))
    def write(self, data: bytes, which: int) -> None:
        n = which % len(self.writers)
        _, at, end = self.ranges[n]
        if len(data) > end - at:
            with pytest.raises(RequestError):
                self.writers[n].write(data)
            return
        self.writers[n].write(data)
        self.model[at : at + len(data)] = data
        self.ranges[n][1] += len(data)

    @precondition(lambda self: hasattr(self, "writers"))
    @rule(which=st.integers(0, 3))
    def fill(self, which: int) -> None:
        _, at, end = self.ranges[which % len(self.writers)]
        self.write(bytes(range(at, end)), which)

    @precondition(lambda self: hasattr(self, "writers") and len(self.writers) < 4)
    @rule(count=st.integers(0, 20))
    def split_tail(self, count: int) -> None:
        _, at, end = self.ranges[0]
        if count > end - at:
            with pytest.raises(RequestError):
                self.writers[0].split_tail(count)
            return
        self.writers.append(self.writers[0].split_tail(count))
        self.ranges.append([end - count, end - count, end])
        self.ranges[0][2] -= count

    @invariant()
    def memory_holds_what_was_written(self) -> None:
        if hasattr(self, "writers"):
            assert b"".join(self.memory) == bytes(self.model)
            for writer, (start, at, end) in zip(self.writers, self.ranges, strict=True):
                assert (writer.position, writer.remaining) == (at - start, end - at)

    @invariant()
    def used_length_is_the_prefix_without_a_gap(self) -> None:
        if not hasattr(self, "writers"):
            return
        written = 0
        for start, at, end in sorted(self.ranges):
            assert start >= written
            written = at
            if at < end:
                break
        assert self.writers[0].used_length == written


TestWriter = pytest.mark.clause("split.device.used-ring.2")(WriterMachine.TestCase)
TestWriter.settings = settings(max_examples=100, stateful_step_count=15, deadline=None)


def test_a_status_behind_unwritten_data_is_not_counted() -> None:
    writer = Writer([memoryview(bytearray(5)), memoryview(bytearray(5))])
    status = writer.split_tail(1)
    status.write(b"\1")
    writer.write(b"abc")
    assert writer.used_length == 3
    writer.write(b"defghi")
    assert writer.used_length == 10


def test_every_tail_counts_once_all_before_it_is_written() -> None:
    writer = Writer([memoryview(bytearray(6))])
    last = writer.split_tail(1)
    middle = writer.split_tail(2)
    for stream, data, used in ((last, b"1", 0), (middle, b"23", 0), (writer, b"456", 6)):
        stream.write(data)
        assert writer.used_length == used
