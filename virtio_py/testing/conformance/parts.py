"""The buffers of a request: each between guards, writable ones filled with a canary, so that what a device does beside
its task is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from attrs import frozen

from virtio_py.memory import Arena, Buffer
from virtio_py.testing.conformance.kinds import Request
from virtio_py.testing.endings import Failed
from virtio_py.testing.hands import WRITE, Descriptor

_GUARD: Final = 32
_GUARD_BYTE: Final = b"\x5a"


class Answer(NamedTuple):
    """What came back. data: all writable bytes, written or not; length: the used length, None where none was told."""

    data: bytes
    length: int | None


@frozen
class Part:
    """One buffer of a request: the memory with its guards, the part between them, and what was put there."""

    whole: Buffer
    inner: Buffer
    content: bytes
    writable: bool

    @property
    def descriptor(self) -> Descriptor:
        """As it stands in a ring or a table."""
        return Descriptor(self.inner.address, len(self.content), WRITE if self.writable else 0)

    def check(self, layout: str) -> None:
        """Raises Failed if the device wrote where it must not."""
        view, size = self.whole.view, len(self.content)
        if bytes(view[:_GUARD]) != _GUARD_BYTE * _GUARD or bytes(view[_GUARD + size :]) != _GUARD_BYTE * _GUARD:
            raise Failed(f"the device wrote beside a buffer of {size} bytes", clause=_WRITES[layout])
        if not self.writable and bytes(self.inner.view) != self.content:
            raise Failed(f"the device wrote to a readable buffer of {size} bytes", clause=_WRITES[layout])


_LENGTH: Final = {"split": "split.device.used-ring.2", "packed": "prose.packed.used-length"}
_WRITES: Final = {"split": "split.device.descriptor-table.1", "packed": "packed.device.descriptor-table.1"}


@frozen
class Sent:
    """A request under way: its parts, the id that the ring knows it by, and what else it takes of the arena."""

    request: Request
    parts: tuple[Part, ...]
    id: int
    extra: tuple[Buffer, ...] = ()

    def answer(self, length: int | None, layout: str) -> Answer:
        """What came back. Raises Failed for what the device did to memory, and for a length that cannot be."""
        for part in self.parts:
            part.check(layout)
        data = b"".join(bytes(part.inner.view) for part in self.parts if part.writable)
        if length is not None and length > len(data):
            raise Failed(f"{length} bytes are said to be written to {len(data)}", clause=_LENGTH[layout])
        return Answer(data, length)


def make_part(arena: Arena, content: bytes, writable: bool) -> Part:
    """A buffer with its content, between guards."""
    whole = arena.allocate(len(content) + 2 * _GUARD)
    whole.view[:] = _GUARD_BYTE * len(whole.view)
    inner = Buffer(whole.address + _GUARD, whole.view[_GUARD : _GUARD + len(content)])
    inner.view[:] = content
    return Part(whole, inner, content, writable)


def shape_of(sent: Sent) -> str:
    """Its buffers, in words."""
    sizes = [f"{len(part.content)}{'w' if part.writable else 'r'}" for part in sent.parts]
    return f"{'+'.join(sizes)} bytes in queue {sent.request.queue}"


def recut(pieces: Sequence[bytes], *lengths: int) -> tuple[bytes, ...]:
    """The same bytes, cut at other places: pieces of these lengths, and the rest."""
    data, cut = b"".join(pieces), []
    for length in lengths:
        cut.append(data[:length])
        data = data[length:]
    return tuple(piece for piece in (*cut, data) if piece)
