"""What QEMU 7.2 and 11.1 were recorded to say to other back-ends, said to ours: message for message.

tests/data/vhost_user/*.txt: a line a message, "F>" from the front-end, "<B" the recorded answer: request, name, flags,
payload size, what the descriptors were, and the payload in words. Nothing is on the rings; positions are as recorded.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.vhost_user_frontend import ACKNOWLEDGED, Books
from virtio_py.device import Device, QueueSpec
from virtio_py.errors import MessageError
from virtio_py.memory import DirtyLog
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import DeviceId, mask
from virtio_py.status import RING_FEATURES
from virtio_py.transports import vhost_user_messages as m
from virtio_py.transports.vhost_user_backend import Backend
from virtio_py.transports.vhost_user_messages import Flag, FrontendRequest, Message, decode_message
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES

TRANSCRIPTS = sorted((Path(__file__).parent / "data" / "vhost_user").glob("*.txt"))
LINE = re.compile(r"(F>|<B) (\d+) \w+ flags (\w+) \(.*?\) size (\d+) fds \[(.*?)\] \| ?(.*)")
R = FrontendRequest
NOT_VIRTIO = mask(m.F_LOG_ALL, m.F_PROTOCOL_FEATURES)


@define
class Line:
    """One message of a transcript."""

    answer: bool
    request: int
    need_reply: bool
    size: int
    fds: int
    words: dict[str, int]

    @classmethod
    def parse(cls, text: str) -> Line:
        found = LINE.fullmatch(text)
        assert found, text
        side, request, flags, size, fds, words = found.groups()
        named = {k: int(v, 0) for k, v in re.findall(r"(\w+) (0x[0-9a-f]+|\d+)", words)}
        if not named and words.startswith("0x"):
            named = {"u64": int(words, 0)}
        need_reply = bool(int(flags, 0) & Flag.NEED_REPLY)
        return cls(side == "<B", int(request), need_reply, int(size), fds.count("'") // 2, named)

    def payload(self) -> bytes:
        """The payload that the words describe."""
        w = self.words
        if self.request == R.SET_VRING_ADDR:
            names = {"desc_user_addr": "desc", "used_user_addr": "used", "avail_user_addr": "avail"}
            places = {name: w[short] for name, short in (names | {"log_guest_addr": "log"}).items()}
            return m.vhost_vring_addr.encode(index=w["index"], flags=w["flags"], **places)
        if self.request == R.SET_LOG_BASE:
            return m.VhostUserLog.encode(mmap_size=w["mmap_size"], mmap_offset=w["offset"])
        if self.request == R.ADD_MEM_REG:
            return m.VhostUserMemRegMsg.encode(region=_region(w))
        if self.request == R.GET_CONFIG:
            return m.VhostUserConfig(w["size"]).encode(size=w["size"])
        if self.request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
            return m.u64.encode(u64=w["index"] | (0 if self.fds else m.INVALID_FD))
        if "index" in w:
            return m.vhost_vring_state.encode(index=w["index"], num=w["num"])
        # Of another's offer only what is ours too would have been taken.
        limit = PROTOCOL_FEATURES if self.request == R.SET_PROTOCOL_FEATURES else ~0
        return m.u64.encode(u64=w["u64"] & limit) if w else b""


def _region(words: dict[str, int]) -> dict[str, int]:
    names = {"guest_phys_addr": "gpa", "memory_size": "size", "userspace_addr": "uva", "mmap_offset": "off"}
    return {name: words[short] for name, short in names.items()}


@define(eq=False)
class Idle(Device):
    """A device with as many queues and features as the transcript wants, and nothing to do."""

    device_id = DeviceId.BLOCK
    count: int
    features: int
    activations: list[int] = field(factory=list)

    def queues(self) -> Sequence[QueueSpec]:
        return [QueueSpec(f"queue {i}", 1024) for i in range(self.count)]

    def offered_features(self) -> int:
        return self.features

    def activate(self, end: Any, features: int) -> None:
        self.activations.append(features)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        raise AssertionError("nothing is on the ring")


class Sparse(Books):
    """Guest memory as large as QEMU's, of which only what is touched exists."""

    def map(self, fd: int, size: int, offset: int) -> memoryview:
        if fd not in self.open:
            raise MessageError("not open")
        return memoryview(mmap.mmap(-1, size))[offset:]

    def dirty_log(self, fd: int, size: int, offset: int) -> DirtyLog:
        return DirtyLog(self.map(fd, size, offset))


@define(eq=False)
class Replay:
    """One transcript under way."""

    backend: Backend
    books: Books
    base: int = 0

    def send(self, line: Line) -> bytes | None:
        fds = [self.books.fd() for _ in range(line.fds)]
        if line.request == R.SET_VRING_BASE:
            self.base = line.words["num"]
        if line.request == R.SET_VRING_ADDR:
            self._set_indices(line.words)
        reply = self.backend.receive(
            Message(line.request, Flag.NEED_REPLY if line.need_reply else 0, line.payload()), fds
        )
        self.backend.serve()
        return decode_message(reply).payload if reply is not None else None

    def _set_indices(self, words: dict[str, int]) -> None:
        """The ring's indices as they were when it was stopped: nothing is available."""
        table = self.backend.session.table
        for area in ("avail", "used"):
            table.memory.write(table.translate(words[area]) + 2, self.base.to_bytes(2, "little"))


def exchanges(lines: list[Line]) -> Iterator[tuple[Line, Line | None]]:
    """Each request with its recorded answer."""
    for line, after in zip(lines, [*lines[1:], None], strict=True):
        if not line.answer:
            yield line, after if after is not None and after.answer else None


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda p: p.stem)
def test_every_message_is_taken_and_answered_as_recorded(path: Path) -> None:
    lines = [Line.parse(text) for text in path.read_text().splitlines()]
    count = 1 + max(line.words.get("index", 0) for line in lines)
    wanted = [line.words["u64"] for line in lines if line.request == R.SET_FEATURES and not line.answer]
    features = reduce(or_, wanted) & ~NOT_VIRTIO
    device, books = Idle(count, features & ~RING_FEATURES), Sparse()
    replay = Replay(Backend(device, books, ring_features=RING_FEATURES & features), books)
    for line, recorded in exchanges(lines):
        payload = replay.send(line)
        assert (payload is not None) == (recorded is not None), line
        if recorded is not None and payload is not None:
            assert (recorded.request, recorded.size) == (line.request, len(payload))
        if line.request == R.GET_STATUS and recorded is not None and payload is not None:
            assert recorded.words["u64"] == int.from_bytes(payload, "little")
        if line.need_reply:
            assert payload == ACKNOWLEDGED
    assert not books.lines
    # Every start of the rings with other features was a driver of its own: the firmware's, then Linux's.
    starts = [w & ~NOT_VIRTIO for w in wanted]
    assert device.activations
    assert set(device.activations) <= set(starts)
    assert device.activations[-1] == starts[-1]
    replay.backend.close()
    assert not books.open
