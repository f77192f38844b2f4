"""The event queue (5.6.6.3): buffers that wait for something to happen, and the latch of what was lost."""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field

from virtio_py.devices.scsi.layout import EVENTS_MISSED, EventType, virtio_scsi_event
from virtio_py.errors import RequestError
from virtio_py.rings.chain import Chain

NO_LUN: Final = bytes(8)


@define(eq=False)
class EventQueue:
    """The driver's event buffers. An event that finds none is lost; the next buffer tells so, and nothing blocks."""

    missed: bool = field(default=False, init=False)
    _buffers: deque[Chain] = field(factory=deque, init=False)

    def offer(self, chain: Chain) -> None:
        """Takes a buffer. Raises RequestError for one that no event can be put into."""
        if chain.readable.remaining:
            raise RequestError("an event buffer has device-readable bytes", clause="scsi.driver.eventq.2")
        if chain.writable.remaining < virtio_scsi_event.size:
            raise RequestError("an event buffer is too short for an event", clause="scsi.driver.eventq.4")
        if self.missed:
            self.missed = False
            chain.writable.write(virtio_scsi_event.encode(event=EventType.NO_EVENT | EVENTS_MISSED))
            return
        chain.defer()
        self._buffers.append(chain)

    def post(self, event: EventType, lun: bytes, reason: int, queue: object) -> None:
        """Reports an event, or latches that one was lost. Buffers of another queue than `queue` are dead: it was
        stopped and set up again. None is a queue that cannot be used at present."""
        if queue is None:
            self.missed = True
            return
        while self._buffers and self._buffers[0].queue is not queue:
            self._buffers.popleft()
        if not self._buffers:
            self.missed = True
            return
        chain = self._buffers.popleft()
        flag, self.missed = EVENTS_MISSED if self.missed else 0, False
        chain.writable.write(virtio_scsi_event.encode(event=event | flag, lun=lun, reason=reason))
        chain.complete()

    def forget(self) -> None:
        """The buffers belong to the driver again."""
        self._buffers.clear()

    def reset(self) -> None:
        """Forgets the buffers, and what the driver has missed."""
        self.forget()
        self.missed = False
