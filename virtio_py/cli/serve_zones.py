"""`virtio-py serve blk --zoned`: the options of disks with zones.

    virtio-py serve blk --socket-path /run/disk.sock --blk-file disk.img --zoned host-managed --zone-size 131072

With `--zones FILE` the states of the zones are kept there, and are at the next start what they were, open zones closed.
Without, they are kept in memory: at each start all zones are empty, whatever the disk holds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from virtio_py.errors import UsageError

if TYPE_CHECKING:
    from virtio_py.devices.blk.zones import Zones

MODELS: Final = {"host-managed": "HM", "host-aware": "HA"}
_SECTOR: Final = 512
_LIMITS: Final = ("max_open", "max_active", "max_append")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that only disks with zones have."""
    parser.add_argument("--zoned", choices=MODELS, help="divide the disk into zones")
    parser.add_argument("--zones", metavar="FILE", help="where to keep their states (all are empty at each start)")
    parser.add_argument("--zone-size", type=int, metavar="SECTORS", help="sectors of 512 bytes in a zone")
    parser.add_argument("--max-open", type=int, metavar="N", help="zones open at a time (no limit)")
    parser.add_argument("--max-active", type=int, metavar="N", help="zones open or closed at a time (no limit)")
    parser.add_argument("--max-append", type=int, metavar="SECTORS", help="sectors in one append (up to 256)")


def make(args: argparse.Namespace, size: int) -> Zones | None:
    """The zones of a disk of `size` bytes, or None. Raises UsageError for options that do not go together."""
    limits = {name: value for name in _LIMITS if (value := getattr(args, name)) is not None}
    if args.zoned is None:
        if limits or args.zone_size is not None or args.zones is not None:
            raise UsageError("--zones, --zone-size, --max-open, --max-active and --max-append need --zoned")
        return None
    if args.zone_size is None:
        raise UsageError("--zoned needs --zone-size")
    from virtio_py.devices.blk.layout import ZonedModel
    from virtio_py.devices.blk.zones import Zones

    return Zones(size // _SECTOR, args.zone_size, model=ZonedModel[MODELS[args.zoned]], **limits)


def keep(args: argparse.Namespace, zones: Zones | None) -> Callable[[], None]:
    """Takes the states of the zones from the file, and keeps them there until what it returns is called."""
    if zones is None or args.zones is None:
        return lambda: None
    from virtio_py.devices.blk.zone_file import ZoneFile

    return ZoneFile(args.zones, zones).close
