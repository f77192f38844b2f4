"""What `virtio-py trace` writes: JSON that is complete at any moment, and a capture for Wireshark."""

from __future__ import annotations

import json
import time
from typing import IO, Any, Final, Protocol

from attrs import define

from virtio_py.cli.trace_show import line_of
from virtio_py.pcapng import LINKTYPE_USER0, file_header, packet_block
from virtio_py.transports.vhost_user_follower import RingSeen
from virtio_py.transports.vhost_user_messages import Message
from virtio_py.transports.vhost_user_tracer import FRONT, Traced


class TraceFile(Protocol):
    """Takes what is seen, in its order."""

    def message(self, session: int, seen: Traced, passed: Message | None) -> None:
        """A message; None when it was none, or never came."""

    def ring(self, session: int, seen: RingSeen) -> None:
        """A look at a ring."""


_END: Final = b"\n]}\n"


@define
class JsonFile:
    """{"events": [...]}: messages, with "type": "message", and looks at rings, with "type": "ring", one a line.

    The end is written after each, and written over by the next: whoever reads the file, whenever, finds valid JSON.
    """

    file: IO[bytes]
    _first: bool = True

    def __attrs_post_init__(self) -> None:
        self.file.write(b'{"events": [' + _END)
        self.file.flush()

    def message(self, session: int, seen: Traced, passed: Message | None) -> None:
        """See TraceFile."""
        self._add({"type": "message", "session": session, **seen.as_dict()})

    def ring(self, session: int, seen: RingSeen) -> None:
        """See TraceFile."""
        self._add({"type": "ring", "session": session, **seen.as_dict()})

    def _add(self, event: dict[str, Any]) -> None:
        self.file.seek(-len(_END), 2)
        self.file.write((b"\n" if self._first else b",\n") + json.dumps(event).encode() + _END)
        self.file.flush()
        self._first = False


@define
class PcapngFile:
    """The messages as they are on the wire, headers included, of link type USER0; decoded in each one's comment."""

    file: IO[bytes]

    def __attrs_post_init__(self) -> None:
        self.file.write(file_header(LINKTYPE_USER0))

    def message(self, session: int, seen: Traced, passed: Message | None) -> None:
        """See TraceFile."""
        if passed is None:
            return
        broken = "".join(f"\nbreaks '{breach.rule}': {breach.message}" for breach in seen.broken)
        comment = f"{session}.{seen.number} {line_of(seen)}{broken}"
        self.file.write(packet_block(passed.encode(), time.time_ns(), seen.sender == FRONT, comment))
        self.file.flush()

    def ring(self, session: int, seen: RingSeen) -> None:
        """A capture has no rings."""
