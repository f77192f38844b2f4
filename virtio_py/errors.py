"""What can go wrong, and whose fault it is.

    VirtioError
    ├─ UsageError            our caller broke a contract: a queue enabled twice, a chain completed twice
    │  └─ LayoutError        a value that a structure cannot hold, a field that it does not have
    ├─ PeerError             the other side broke the specification; carries .clause .queue .where
    │  ├─ RingError          in a ring: an index, a descriptor, a chain, a used element
    │  ├─ NegotiationError   in the initialisation sequence or the feature bits
    │  ├─ MemoryFault        an address range that is not (wholly) memory the peer may name
    │  ├─ RequestError       in a request's own structures, where no status byte could tell the driver
    │  └─ MessageError       in a carrier's message (vhost-user), a register access, a file of bytes
    ├─ TransportError        the carrier failed (chains the OSError)
    │  └─ Disconnected       the other side of the carrier is gone
    ├─ TimedOut              no answer in time; the request stays under way, and its late answer is taken
    ├─ NeedsReset            the device has asked for a reset; nothing but a reset will be heard
    └─ EngineUnavailable     the compiled engine cannot be had here

Exactly two places catch PeerError: `DeviceEnd` (which sets DEVICE_NEEDS_RESET and tells the driver)
and `Driver` (which sets FAILED). Everything between them lets it pass.
"""

from __future__ import annotations


class VirtioError(Exception):
    """Any error this package raises on purpose."""


class UsageError(VirtioError):
    """Our own caller broke a contract of this package."""


class LayoutError(UsageError):
    """A value does not fit the field it is meant for, or a structure has no such field."""


class PeerError(VirtioError):
    """The other side broke the specification.

    clause: the id of the clause broken, as in `spec_notes/clauses.tsv`, or "" where none covers it
    queue:  the index of the virtqueue, or None
    where:  the place in the structure, in words: "descriptor 7 of the indirect table at 0x1000"
    """

    def __init__(self, message: str, *, clause: str = "", queue: int | None = None, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.clause = clause
        self.queue = queue
        self.where = where

    def __str__(self) -> str:
        place = [] if self.queue is None else [f"queue {self.queue}"]
        place += [self.where] if self.where else []
        text = ", ".join(place)
        text = f"{text}: {self.message}" if text else self.message
        return f"{text} [{self.clause}]" if self.clause else text


class RingError(PeerError):
    """A ring, descriptor or used element that the specification does not allow."""


class NegotiationError(PeerError):
    """Feature bits or a status sequence that the specification does not allow."""


class MemoryFault(PeerError):
    """An address range that is not wholly inside the memory shared with us.

    access: what was tried, where that is known: (address, length in bytes, whether to write)
    """

    access: tuple[int, int, bool] | None = None


class RequestError(PeerError):
    """A request so malformed that no status byte could tell the driver."""


class MessageError(PeerError):
    """A carrier's message, register access or file that its specification does not allow."""


class TransportError(VirtioError):
    """The carrier failed; the OSError behind it is chained."""


class Disconnected(TransportError):
    """The other side of the carrier is gone."""


class NeedsReset(VirtioError):
    """The device has set DEVICE_NEEDS_RESET: outstanding requests will not complete."""


class TimedOut(VirtioError):
    """No answer in time. What was asked is still under way: it keeps its memory, and its late answer is taken."""


class EngineUnavailable(VirtioError):
    """The compiled engine cannot be had here; the message says why."""
