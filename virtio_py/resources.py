"""What a device lets its driver administer (2.12): capabilities and resource objects, and how a command on them fails.

A device says what it has; the administration commands that act upon it are `virtio_py.admin`'s, and so is all that is
the same for each: which objects exist, which capabilities have been set, and which depend on which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final

from attrs import frozen

from virtio_py.errors import VirtioError


class AdminStatus(IntEnum):
    """`status` of an administration command, VIRTIO_ADMIN_STATUS_*; EEXIST has no number in the text but Linux's."""

    OK = 0
    ENXIO = 6
    EAGAIN = 11
    ENOMEM = 12
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    ENOSPC = 28


class AdminQualifier(IntEnum):
    """`status_qualifier` of an administration command, VIRTIO_ADMIN_STATUS_Q_*."""

    OK = 0
    INVALID_COMMAND = 1
    INVALID_OPCODE = 2
    INVALID_FIELD = 3
    INVALID_GROUP = 4
    INVALID_MEMBER = 5
    NORESOURCE = 6
    TRYAGAIN = 7


_USUAL: Final[Mapping[AdminStatus, AdminQualifier]] = {
    AdminStatus.EINVAL: AdminQualifier.INVALID_FIELD,
    AdminStatus.EAGAIN: AdminQualifier.TRYAGAIN,
    AdminStatus.ENOMEM: AdminQualifier.NORESOURCE,
    AdminStatus.ENOSPC: AdminQualifier.NORESOURCE,
}


class Refused(VirtioError):
    """An administration command failed, and changed nothing; `status` and `qualifier` are what the driver is told."""

    def __init__(self, status: AdminStatus, message: str, qualifier: AdminQualifier | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.qualifier = _USUAL.get(status, AdminQualifier.INVALID_COMMAND) if qualifier is None else qualifier


@frozen
class Capability:
    """A capability of a device, by its id in what `Device.capabilities` returns.

    offer:  the data of VIRTIO_ADMIN_CMD_DEVICE_CAP_GET
    accept: takes the data of VIRTIO_ADMIN_CMD_DRIVER_CAP_SET; raises Refused for more than was offered. It is not
            called while objects exist that need the capability; `Device.reset` forgets what it took.

    What a driver sent is never shorter than the offer, but may have something behind its end, which is to be ignored. A
    capability that is set to zeros is not set.
    """

    offer: Callable[[], bytes]
    accept: Callable[[bytes], None]


@frozen
class ResourceType:
    """A type of resource objects, by its number in what `Device.resource_types` returns.

    needs:   ids of the capabilities that a driver has to set before anything can be done with such objects
    limit:   how many objects there may be, and what their ids are below; asked only when `needs` are met
    create:  takes an id that is free and below the limit, and the object's data; destroy, query and modify take an id
             that exists. All raise Refused, and have done nothing then; EBUSY where other objects depend on this one.
    query:   the data of the last create or modify
    modify:  None where the objects cannot be modified

    Data from a driver may be cut short or have something behind it: what is missing is zero, what is too much ignored
    (see `padded`). `Device.reset` forgets the objects.
    """

    needs: tuple[int, ...]
    limit: Callable[[], int]
    create: Callable[[int, bytes], None]
    destroy: Callable[[int], None]
    query: Callable[[int], bytes]
    modify: Callable[[int, bytes], None] | None = None


def padded(data: bytes, size: int) -> bytes:
    """Exactly `size` bytes of a structure that a driver sent: zeros for what is missing, nothing of a surplus."""
    return data[:size].ljust(size, b"\0")
