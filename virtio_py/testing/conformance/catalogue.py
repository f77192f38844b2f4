"""All checks, one module an area."""

from __future__ import annotations

from itertools import chain
from typing import Final

from virtio_py.testing.conformance import (
    blk,
    chains,
    console,
    features,
    hostile,
    in_order,
    indirect,
    initialisation,
    net,
    net_control,
    net_offloads,
    notifications,
    packed_ring,
    scsi,
    split_ring,
    suspend,
)
from virtio_py.testing.conformance.checks import Check, checks_of

MODULES: Final = (
    features,
    initialisation,
    chains,
    split_ring,
    packed_ring,
    notifications,
    indirect,
    in_order,
    suspend,
    blk,
    net,
    net_offloads,
    net_control,
    scsi,
    console,
    hostile,
)
"""In the order they are run: what is hostile comes last, since a back-end may not survive it."""


def all_checks() -> tuple[Check, ...]:
    """Every check there is."""
    return tuple(chain.from_iterable(map(checks_of, MODULES)))
