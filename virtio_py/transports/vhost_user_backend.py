"""The back-end of vhost-user: messages in, verbs of a DeviceEnd out. No socket, no mapping, no thread in here.

    backend = Backend(device, shell)
    reply = backend.receive(message, fds)      one message; bytes to send back, or None; the descriptors are now ours
    backend.kicked(index)                      a kick descriptor was readable
    while backend.serve(): …                   serves what is due, one budget a ring each time
    backend.close()                            the front-end is gone

A PeerError raised by `receive` means: hang up. What the sender asked to have acknowledged is answered instead, with a
number that is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from virtio_py.device import Device
from virtio_py.errors import MessageError, PeerError
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.status import RING_FEATURES
from virtio_py.transports.vhost_user_iotlb import answered
from virtio_py.transports.vhost_user_messages import (
    FRONTEND_MESSAGES,
    BackendRequest,
    Flag,
    FrontendRequest,
    Message,
    Reply,
    Shape,
    decode_payload,
    u64,
)
from virtio_py.transports.vhost_user_net import offered_by
from virtio_py.transports.vhost_user_requests import HANDLERS, NOTHING
from virtio_py.transports.vhost_user_session import PROTOCOL_FEATURES, Session, Shell
from virtio_py.watch import Watch

REFUSED: Final = u64.encode(u64=1)
ACKNOWLEDGED: Final = u64.encode(u64=0)


class Backend:
    """A device's side of one connection.

    protocol_features: mask of the ProtocolFeatures offered; ring_features: mask, as for DeviceEnd.
    """

    def __init__(
        self,
        device: Device,
        shell: Shell,
        *,
        engine: Engine = REFERENCE,
        protocol_features: int = PROTOCOL_FEATURES,
        ring_features: int = RING_FEATURES,
    ) -> None:
        self._shell = shell
        self.session: Final = Session(device, shell, engine, offered_by(device, protocol_features), ring_features)

    def receive(self, message: Message, fds: Sequence[int] = ()) -> bytes | None:
        """Takes one message and its descriptors; the bytes of the answer, or None. Raises PeerError: hang up."""
        left = list(fds)
        try:
            return self._answer(message, left)
        finally:
            # What no handler has kept: also where none were allowed, or the message was refused.
            for fd in left:
                self._shell.close(fd)

    def _answer(self, message: Message, fds: list[int]) -> bytes | None:
        if message.flags & Flag.REPLY:
            raise MessageError(f"request {message.request} has the flag of a reply")
        request = _known(message.request)
        shape = FRONTEND_MESSAGES[request] if request is not None else Shape()
        try:
            value = self._handle(message, request, shape, fds)
        except PeerError as error:
            if shape.reply is Reply.VALUE or not _acknowledges(message, shape):
                raise
            self._shell.log(f"refused: {error}")
            return message.reply(REFUSED)
        if shape.reply is Reply.VALUE:
            return message.reply(value or b"")
        return message.reply(ACKNOWLEDGED) if _acknowledges(message, shape) else None

    def _handle(self, message: Message, request: FrontendRequest | None, shape: Shape, fds: list[int]) -> bytes | None:
        if request is None:
            raise MessageError(f"request {message.request} is not known")
        if len(fds) > shape.fds:
            raise MessageError(f"{len(fds)} descriptors, where at most {shape.fds} belong", where=request.name)
        handler = HANDLERS.get(request)
        if handler is None or (shape.needs is not None and not self.session.protocol_offered >> shape.needs & 1):
            if request in NOTHING:
                return NOTHING[request]
            raise MessageError(f"{request.name} is not offered")
        return handler(self.session, decode_payload(request.name, shape, message.payload), fds)

    def kicked(self, index: int) -> None:
        """A kick descriptor was readable: the ring is due."""
        self.session.due(index)

    @property
    def polling(self) -> bool:
        """Whether the driver of some ring does not kick, so that `poll` is to be called now and then."""
        return any(ring.polled and ring.active for ring in self.session.rings)

    def poll(self) -> None:
        """Every ring that is polled is due."""
        for ring in self.session.rings:
            if ring.polled:
                self.session.due(ring.index)

    def watch(self) -> Sequence[Watch]:
        """The descriptors behind the device that it waits for now, to be asked before every wait."""
        return self.session.device.watch()

    def attend(self, watch: Watch) -> None:
        """One of those is ready."""
        self.session.end.attend(watch)

    def answered(self, message: Message) -> None:
        """What the front-end answered on the channel of our requests. Raises MessageError for what is no answer."""
        if not message.flags & Flag.REPLY or message.request != BackendRequest.IOTLB_MSG:
            raise MessageError(f"message {message.request} on the back-end's channel answers nothing")
        answered(self.session, decode_payload("IOTLB_MSG", Shape(u64), message.payload).u64)

    def serve(self) -> bool:
        """Serves every ring that is due, one budget each. True if something is left to do."""
        return self.session.serve()

    def failed(self, index: int, error: PeerError) -> None:
        """Serving a ring beside others (`DeviceEnd.serve_beside`) has raised this. None is being served now."""

        def again() -> None:
            raise error

        self.session.end.attempt(again, index)

    def close(self) -> None:
        """The front-end is gone: resets the device, closes every descriptor, lets go of the memory."""
        self.session.close()


def _known(number: int) -> FrontendRequest | None:
    try:
        return FrontendRequest(number)
    except ValueError:
        return None


def _acknowledges(message: Message, shape: Shape) -> bool:
    # Whether REPLY_ACK was agreed on does not matter: whoever sets NEED_REPLY waits for an answer.
    return message.need_reply or shape.reply is Reply.ALWAYS_ACK
