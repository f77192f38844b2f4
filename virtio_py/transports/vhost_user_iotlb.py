"""The I/O addresses of a vhost-user back-end (VIRTIO_F_ACCESS_PLATFORM): what is mapped, and which rings wait.

Rings and descriptors then hold I/O addresses (IOVAs), which the front-end's IOMMU maps to user addresses. What we
know of that is a cache: the front-end fills it (UPDATE) when we have asked (MISS), and takes back what no longer
holds (INVALIDATE). So anything may be forgotten at any time, and a ring that meets an unknown address waits, while
the others go on.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attrs import define, field

from virtio_py.errors import MemoryFault, MessageError, PeerError
from virtio_py.memory import ADDRESS_LIMIT, AddressSpace, GuestMemory
from virtio_py.transports.vhost_user_messages import (
    BackendRequest,
    Flag,
    IotlbPermission,
    IotlbType,
    Message,
    ProtocolFeature,
    vhost_iotlb_msg,
)

if TYPE_CHECKING:
    from virtio_py.transports.vhost_user_session import Session
    from virtio_py.transports.vhost_user_vring import Vring

MAX_ENTRIES: Final = 2048
"""The most mappings that are kept; the oldest makes room. How many there are is the other side's choice."""


class Miss(NamedTuple):
    """An I/O address that a ring needs and that is not mapped, or not for writing."""

    iova: int
    write: bool

    def message(self, kind: IotlbType) -> bytes:
        """The payload that tells the front-end."""
        perm = IotlbPermission.WRITE if self.write else IotlbPermission.READ
        return vhost_iotlb_msg.encode(iova=self.iova, perm=perm, type=kind)


@define(eq=False)
class Iotlb:
    """The cache, and the rings that wait for it, by their indices. `asked`: the misses that are to be answered, oldest
    first."""

    space: AddressSpace = field(factory=lambda: AddressSpace(GuestMemory(())))
    waiting: dict[int, Miss] = field(init=False, factory=dict)
    asked: deque[Miss] = field(init=False, factory=deque)

    def apply(self, message: Any) -> None:
        """A vhost_iotlb_msg of the front-end's. Raises MessageError for one that cannot be, with all as it was."""
        if message.type == IotlbType.UPDATE:
            self._update(message)
        elif message.type == IotlbType.INVALIDATE:
            # To the end of all addresses and beyond: so everything is invalidated at once.
            self.space.unmap(message.iova, message.size)
        else:
            raise MessageError(f"IOTLB message type {message.type} is not a front-end's")
        # An invalidation, too, can make more of them: what it leaves on both sides of its range.
        while len(self.space) > MAX_ENTRIES:
            self.space.forget_oldest()

    def _update(self, message: Any) -> None:
        if not 0 < message.size <= ADDRESS_LIMIT or message.iova > ADDRESS_LIMIT - message.size:
            raise MessageError(f"[{message.iova:#x}, +{message.size:#x}) is no range of I/O addresses")
        if not 0 < message.perm <= IotlbPermission.READ | IotlbPermission.WRITE:
            raise MessageError(f"permission {message.perm} lets nobody do anything, or is not known")
        if self.space.target.missing(message.uaddr, message.size) is not None:
            raise MessageError(f"user addresses [{message.uaddr:#x}, +{message.size:#x}) are not in the memory table")
        self.space.unmap(message.iova, message.size)
        self.space.map(message.iova, message.size, message.uaddr, bool(message.perm & IotlbPermission.WRITE))

    def retarget(self, user_memory: GuestMemory) -> None:
        """Another memory table: what was mapped to memory that is gone is forgotten."""
        self.space = self.space.over(user_memory)

    def flush(self) -> None:
        """Forgets every mapping."""
        self.space = AddressSpace(self.space.target)

    def miss(self, fault: MemoryFault) -> Miss | None:
        """What is missing where a ring met this fault, or None if the cache has nothing to do with it."""
        if fault.access is None:
            return None
        address, length, write = fault.access
        missing = self.space.memory().missing(address, length, write)
        return None if missing is None else Miss(missing, write)

    def wait(self, ring: int, miss: Miss) -> bool:
        """From now on the ring waits. True if nobody has asked for this yet."""
        asked = miss in self.waiting.values()
        self.waiting[ring] = miss
        return not asked

    def resumed(self) -> list[int]:
        """The rings that wait no more: what they needed has come to be mapped."""
        memory = self.space.memory()
        found = [ring for ring, miss in self.waiting.items() if memory.missing(miss.iova, 1, miss.write) is None]
        for ring in found:
            del self.waiting[ring]
        return found

    def failed(self, value: int) -> tuple[Miss, list[int]] | None:
        """The front-end's answer to the oldest miss. If it is not 0: the miss, and the rings that wait in vain.

        Raises MessageError if nothing was asked.
        """
        if not self.asked:
            raise MessageError("an answer to an IOTLB message that was not sent")
        miss = self.asked.popleft()
        if value == 0:
            return None
        rings = [ring for ring, wanted in self.waiting.items() if wanted == miss]
        for ring in rings:
            del self.waiting[ring]
        return miss, rings


# What a session does with it


def use_memory(session: Session) -> None:
    """Puts the device before what is mapped now. A ring of I/O addresses that are no longer mapped stops, and asks for
    them; one that has waited for what is there now goes on."""
    if not session.translating:
        session.end.replace_memory(session.table.memory)
        return
    memory = session.iotlb.space.memory()
    lost = [ring for ring in session.rings if ring.active and not _fits(session, ring, memory)]
    for ring in lost:
        session.suspend(ring)
        # Nobody has switched it off.
        ring.suspended = False
    session.end.replace_memory(memory)
    for index in [*(ring.index for ring in lost), *session.iotlb.resumed()]:
        try:
            session.activate_ready(session.rings[index])
        except PeerError as error:
            # Now that it can be looked at: that is the driver's fault, and not this message's.
            session.end.needs_reset(error)
        session.due(index)


def _fits(session: Session, ring: Vring, memory: GuestMemory) -> bool:
    queue = session.end.active_queue(ring.index)
    try:
        return queue is None or queue.bind(memory) is not None
    except MemoryFault:
        return False


def forget_when_idle(session: Session) -> None:
    """Forgets all mappings when no ring is in service: front-ends do not tell then what no longer holds."""
    if session.translating and not any(ring.active for ring in session.rings):
        session.iotlb.flush()
        session.end.replace_memory(GuestMemory(()))


def missed(session: Session, fault: MemoryFault) -> bool:
    """Asks the front-end for an address; the ring waits for it. False if there is nothing to ask, or nobody."""
    if not session.translating or session.channel is None or fault.queue is None:
        return False
    miss = session.iotlb.miss(fault)
    if miss is None:
        return False
    if session.iotlb.wait(fault.queue, miss):
        answer = session.has(ProtocolFeature.REPLY_ACK)
        if answer:
            session.iotlb.asked.append(miss)
        _tell(session, miss, IotlbType.MISS, Flag.NEED_REPLY if answer else 0)
    return True


def answered(session: Session, value: int) -> None:
    """The front-end's answer to a miss. What it cannot map, the driver had no right to name: the device needs a reset.

    Raises MessageError if nothing was asked.
    """
    failed = session.iotlb.failed(value)
    if failed is None or not failed[1]:
        return
    miss, rings = failed
    _tell(session, miss, IotlbType.ACCESS_FAIL, 0)
    session.end.needs_reset(MemoryFault(f"the I/O address {miss.iova:#x} is not mapped", queue=rings[0]))


def _tell(session: Session, miss: Miss, kind: IotlbType, flags: int) -> None:
    if session.channel is not None:
        session.shell.send(session.channel, Message(BackendRequest.IOTLB_MSG, flags, miss.message(kind)).encode())
