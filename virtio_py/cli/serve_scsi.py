"""`virtio-py serve scsi`: what `serve` needs to know of SCSI hosts.

    virtio-py serve scsi --socket-path /run/scsi.sock --lun disk.img --lun 3:7=other.img --cdrom debian.iso
    virtio-py serve scsi --socket-path /run/scsi.sock --lun-list /run/luns

Units come and go while it runs: change the list and send SIGHUP. The guest hears of it (hot-plug, hot-unplug), and of
image files whose size has changed.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from virtio_py.errors import UsageError

if TYPE_CHECKING:
    from virtio_py.device import Device
    from virtio_py.devices.scsi.device import ScsiDevice
    from virtio_py.devices.scsi.unit import LogicalUnit

HELP: Final = "a SCSI host with disks and CD-ROM drives"
CAPABILITIES: Final[Mapping[str, Any]] = {"type": "scsi", "features": []}
_LIST_HELP: Final = (
    'a file of units, one a line: "T:L=FILE", or "cdrom T:L=FILE"; lines that begin with # are comments. On SIGHUP it '
    "is read again: units that are new in it are plugged in, those that it has no more are unplugged, and disks whose "
    "files have another size than before get that size"
)


class UnitOption(NamedTuple):
    """A unit: its target and LUN (-1: the next that is free on target 0), its file, and whether it is a CD-ROM."""

    target: int
    lun: int
    path: str
    cdrom: bool = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that only SCSI hosts have."""
    parser.add_argument(
        "--lun",
        action="append",
        default=[],
        type=_unit_option,
        dest="units",
        metavar="[T:L=]FILE",
        help="a disk at target T, LUN L, or the next LUN of target 0; may be repeated",
    )
    parser.add_argument(
        "--cdrom",
        action="append",
        default=[],
        type=_cdrom_option,
        dest="units",
        metavar="[T:L=]FILE",
        help="a CD-ROM drive with this disc; may be repeated",
    )
    parser.add_argument("--lun-list", metavar="FILE", help=_LIST_HELP)
    parser.add_argument("--read-only", action="store_true", help="let nothing be written")
    parser.add_argument("--block-size", type=int, default=512, metavar="BYTES", help="of the disks' blocks (512)")
    parser.add_argument("--num-queues", type=int, default=1, metavar="N", help="request queues (1)")
    parser.add_argument("--queue-size", type=int, default=256, metavar="N", help="the largest queue size taken (256)")


def _unit_option(text: str) -> UnitOption:
    place, equals, path = text.partition("=")
    target, colon, lun = place.partition(":")
    if equals and colon and target.isdecimal() and lun.isdecimal():
        return UnitOption(int(target), int(lun), path)
    return UnitOption(0, -1, text)


def _cdrom_option(text: str) -> UnitOption:
    return _unit_option(text)._replace(cdrom=True)


def make(args: argparse.Namespace) -> AbstractContextManager[Device]:
    """The device that the options describe, with its files open. Raises UsageError, OSError."""
    if not args.units and args.lun_list is None:
        raise UsageError("at least one --lun, --cdrom or --lun-list is needed")
    return _device(args)


@contextmanager
def _device(args: argparse.Namespace) -> Iterator[Device]:
    from virtio_py.devices.scsi.device import ScsiDevice
    from virtio_py.watch import Watch

    wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    device = ScsiDevice(num_queues=args.num_queues, queue_size=args.queue_size)
    host = Host(device, args)

    def woken() -> None:
        os.eventfd_read(wake)
        host.reload()

    device.watches = [Watch(wake, select.POLLIN, woken)]
    # A handler runs between any two instructions, also within a request: it only says that there is something to do.
    before = signal.signal(signal.SIGHUP, lambda *_: os.eventfd_write(wake, 1))
    try:
        host.plug_all()
        yield device
    finally:
        signal.signal(signal.SIGHUP, before)
        host.close()
        os.close(wake)


class Host:
    """A device's units, and what the options and the list say of them."""

    def __init__(self, device: ScsiDevice, args: argparse.Namespace) -> None:
        self._device = device
        self._args = args
        self._plugged: dict[UnitOption, LogicalUnit] = {}
        self._fixed = _placed(args.units)

    def plug_all(self) -> None:
        """Opens everything. Raises UsageError, OSError for what cannot be."""
        for option in (*self._fixed, *self._listed()):
            self._plug(option)

    def reload(self) -> None:
        """Makes the units what the list says now. What cannot be is told on standard error, and the rest is done."""
        try:
            wanted = (*self._fixed, *self._listed())
        except (OSError, UsageError) as error:
            _complain(error)
            return
        for option in [option for option in self._plugged if option not in wanted]:
            self._unplug(option)
        for option in wanted:
            try:
                self._refresh(option)
            except (OSError, UsageError) as error:
                _complain(error)

    def close(self) -> None:
        """Lets go of all files."""
        for option in list(self._plugged):
            self._unplug(option)

    def _listed(self) -> list[UnitOption]:
        if self._args.lun_list is None:
            return []
        with open(self._args.lun_list, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
        return [_listed_unit(line) for line in lines if line and not line.startswith("#")]

    def _refresh(self, option: UnitOption) -> None:
        from virtio_py.devices.scsi.disk import ScsiDisk

        unit = self._plugged.get(option)
        if unit is None:
            self._plug(option)
        elif isinstance(unit, ScsiDisk):
            unit.look_at_size()

    def _plug(self, option: UnitOption) -> None:
        unit = _open(option, self._args)
        try:
            self._device.attach(option.target, option.lun, unit)
        except UsageError:
            _close(unit)
            raise
        self._plugged[option] = unit

    def _unplug(self, option: UnitOption) -> None:
        _close(self._device.detach(option.target, option.lun))
        del self._plugged[option]


def _placed(options: Sequence[UnitOption]) -> list[UnitOption]:
    """The options with a LUN each."""
    taken = {option.lun for option in options if option.target == 0}
    placed = []
    for option in options:
        if option.lun < 0:
            option = option._replace(lun=next(lun for lun in range(len(options)) if lun not in taken))
            taken.add(option.lun)
        placed.append(option)
    return placed


def _listed_unit(line: str) -> UnitOption:
    words = line.split(None, 1)
    cdrom = words[0] == "cdrom" and len(words) == 2
    option = _unit_option(words[1] if cdrom else line)
    if option.lun < 0:
        raise UsageError(f"{line!r} in the list of units is not T:L=FILE or cdrom T:L=FILE")
    return option._replace(cdrom=cdrom)


def _open(option: UnitOption, args: argparse.Namespace) -> LogicalUnit:
    from virtio_py.devices.blk.media import FileMedium
    from virtio_py.devices.scsi.cdrom import ScsiCdrom
    from virtio_py.devices.scsi.disk import ScsiDisk

    medium = FileMedium(option.path, option.cdrom or args.read_only)
    # The same unit is to be known again, and no other is to be taken for it.
    place = f"{option.target}:{option.lun}={os.path.realpath(option.path)}"
    serial = sha256(place.encode()).hexdigest()[:16]
    if option.cdrom:
        return ScsiCdrom(medium, serial=serial)
    try:
        return ScsiDisk(medium, serial=serial, block_size=args.block_size)
    except UsageError:
        medium.close()
        raise


def _close(unit: LogicalUnit) -> None:
    medium = getattr(unit, "medium", None)
    if medium is not None:
        medium.close()


def _complain(error: Exception) -> None:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    print(f"virtio-py: {text}", file=sys.stderr, flush=True)
