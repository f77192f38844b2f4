"""What a vhost-user back-end is told of dirty logging, and what that makes its queues note down.

Live migration copies the guest's memory while the guest runs. What the guest itself writes its machine sees; what a
back-end writes is only known if it is noted, page by page, in a bitmap that the front-end shares. SET_LOG_BASE brings
the bitmap, VHOST_F_LOG_ALL in SET_FEATURES switches the notes on what chains are written, VHOST_VRING_F_LOG in
SET_VRING_ADDR those on a ring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import define

from virtio_py.errors import MessageError
from virtio_py.memory import DirtyLog
from virtio_py.rings.half import Extent
from virtio_py.rings.places import Placed, written_areas
from virtio_py.rings.write_log import WriteLog
from virtio_py.transports.vhost_user_messages import F_LOG_ALL, VringFlag


@define(eq=False)
class Logging:
    """pages: the bitmap of SET_LOG_BASE, or None; event: the descriptor of SET_LOG_FD, or None; tell: signals it;
    resolve: as of WriteLog."""

    tell: Callable[[], None]
    resolve: Callable[[Extent], Iterable[Extent]]
    pages: DirtyLog | None = None
    event: int | None = None

    def of_queue(self, pages: DirtyLog | None, features: int, addresses: Any, config: Placed) -> WriteLog | None:
        """What a running queue is to note in this bitmap; None: nothing. features: of SET_FEATURES, with the bits that
        are not virtio's; addresses: the ring's vhost_vring_addr; config: where its areas are in guest addresses.

        Raises MessageError for a ring that would be noted behind the bitmap. What is noted of data stays within it.
        """
        data, ring = bool(features >> F_LOG_ALL & 1), bool(addresses.flags & VringFlag.LOG)
        if pages is None or not (data or ring):
            return None
        areas = _areas(pages, addresses.log_guest_addr, written_areas(config, features)) if ring else ()
        return WriteLog(pages, data, areas, self.tell, self.resolve)


def _areas(pages: DirtyLog, log_guest_addr: int, areas: list[Extent]) -> tuple[Extent, ...]:
    """The areas that a device writes, where they are noted: the first, the device area, from `log_guest_addr` on, which
    need not be where it is. A packed ring's descriptors have no address of their own for that: they are noted as data
    are, at the addresses where the guest has them."""
    (_, size), *others = areas
    if log_guest_addr > 8 * len(pages.bits) * pages.page - size:
        raise MessageError(f"a ring that is logged at {log_guest_addr:#x} ends behind the bitmap")
    return (log_guest_addr, size), *others
