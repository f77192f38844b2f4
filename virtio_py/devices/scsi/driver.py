"""The SCSI host device (5.6), the half that asks, with helpers for the usual commands, and a list of units kept true.

driver = ScsiDriver(transport).start()
driver.scan()                                    every unit: {Address(target, lun): Inquiry}
driver.execute(0, 1, cdb, data_out, 512)         a ScsiResult: response, status, sense, data
driver.read(0, 1, lba=8, number=1)               512 bytes
driver.poll_events()                             what has happened; `driver.units` follows it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from virtio_py.devices.scsi import commands
from virtio_py.devices.scsi.adapter import ScsiAdapter, ScsiError, ScsiEvent, ScsiResult
from virtio_py.devices.scsi.cdb import PrOut
from virtio_py.devices.scsi.commands import Capacity, Inquiry, lun_number, parse_capacity, parse_inquiry, parse_luns
from virtio_py.devices.scsi.layout import Address, EventType, ResetReason, ScsiResponse, encode_lun
from virtio_py.devices.scsi.sense import Condition, SenseKey, decode_sense
from virtio_py.errors import UsageError

__all__ = ["ScsiDriver", "ScsiError", "ScsiEvent", "ScsiResult"]

_MOST_BYTES: Final = 1 << 18
"""Bytes of data that the helpers put into one command."""


class ScsiDriver(ScsiAdapter):
    """A SCSI initiator.

    `execute` returns how a command ended, whatever it is; the helpers raise ScsiError unless it ended well, after
    some more tries where it met unit attentions. Addresses of blocks and their numbers are ints. What has no `timeout`
    of its own takes `Driver.timeout` a command, or what `Driver.within` gives.

    units: what the last `scan` has found, and `poll_events` keeps true
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.units: dict[Address, Inquiry] = {}

    def _good(self, target: int, lun: int, cdb: bytes, data_out: bytes = b"", length: int = 0) -> bytes:
        result = self.execute(target, lun, cdb, data_out, length)
        tries = 3
        # Several attentions may wait, one a command: power on, then that there are other LUNs than before.
        while tries and (condition := result.condition) and condition.key == SenseKey.UNIT_ATTENTION:
            result = self.execute(target, lun, cdb, data_out, length)
            tries -= 1
        if not result.good:
            raise ScsiError(cdb, result)
        return result.data

    # Helpers

    def test_unit_ready(self, target: int, lun: int) -> None:
        """Raises ScsiError unless the unit is ready."""
        self._good(target, lun, commands.test_unit_ready())

    def request_sense(self, target: int, lun: int) -> Condition | None:
        """What the unit has to say: its oldest unit attention, which this clears, or its state."""
        return decode_sense(self._good(target, lun, commands.request_sense(252), length=252))

    def inquiry(self, target: int, lun: int) -> Inquiry:
        """What the unit is. Its qualifier is not 0 where there is no unit."""
        return parse_inquiry(self._good(target, lun, commands.inquiry(96), length=96))

    def vital_product_data(self, target: int, lun: int, page: int) -> bytes:
        """A vital product data page, with its header."""
        return self._good(target, lun, commands.inquiry(0xFFFF, page), length=0xFFFF)

    def report_luns(self, target: int, select: int = 0) -> list[int]:
        """The LUNs of a target."""
        _, luns = self._luns(encode_lun(target, 0), select)
        return [number for number in map(lun_number, luns) if number is not None]

    def _luns(self, lun: bytes, select: int) -> tuple[int, list[bytes]]:
        size = 4096
        while True:
            cdb = commands.report_luns(size, select)
            result = self.wait(self.submit(lun, cdb, b"", size))
            if not result.good:
                raise ScsiError(cdb, result)
            length, luns = parse_luns(result.data)
            if length + 8 <= size or size >= _MOST_BYTES:
                return length, luns
            size = min(length + 8, _MOST_BYTES)

    def capacity(self, target: int, lun: int) -> Capacity:
        """The size of a disk (READ CAPACITY (16))."""
        cdb = commands.read_capacity_16()
        return parse_capacity(self._good(target, lun, cdb, length=32))

    def read(
        self, target: int, lun: int, lba: int, number: int, block_size: int = 512, timeout: float | None = None
    ) -> bytes:
        """`number` blocks from `lba` on."""
        step = _MOST_BYTES // block_size
        parts = [(at, min(step, lba + number - at)) for at in range(lba, lba + number, step)]
        with self.within(timeout):
            return b"".join(
                self._good(target, lun, commands.transfer("READ", at, part), length=part * block_size)
                for at, part in parts
            )

    def write(
        self, target: int, lun: int, lba: int, data: bytes, block_size: int = 512, timeout: float | None = None
    ) -> None:
        """Stores whole blocks from `lba` on; durable at once or after `synchronize_cache`."""
        if len(data) % block_size:
            raise UsageError(f"{len(data)} bytes are not whole blocks of {block_size}")
        step = _MOST_BYTES // block_size * block_size
        with self.within(timeout):
            for at in range(0, len(data), step):
                part = data[at : at + step]
                cdb = commands.transfer("WRITE", lba + at // block_size, len(part) // block_size)
                self._good(target, lun, cdb, part)

    def synchronize_cache(self, target: int, lun: int) -> None:
        """On return, all writes that had completed are durable."""
        self._good(target, lun, commands.synchronize_cache())

    def unmap(self, target: int, lun: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Gives the storage of ranges of (address, number of blocks) back."""
        self._good(target, lun, *commands.unmap(list(ranges)))

    def write_same(self, target: int, lun: int, lba: int, number: int, block: bytes, unmap: bool = False) -> None:
        """Fills a range with one block."""
        self._good(target, lun, commands.write_same(lba, number, unmap), block)

    def mode_sense(self, target: int, lun: int, page: int = 0x3F, control: int = 0) -> bytes:
        """A mode page, or all of them, behind the 8-byte mode parameter header and without block descriptors."""
        return self._good(target, lun, commands.mode_sense(4096, page, control, dbd=True), length=4096)

    def mode_select(self, target: int, lun: int, pages: bytes) -> None:
        """Sets mode pages."""
        self._good(target, lun, *commands.mode_select(pages))

    def start_stop(self, target: int, lun: int, start: bool, eject: bool = False) -> None:
        """Starts or stops a unit; with `eject` its tray moves."""
        self._good(target, lun, commands.start_stop(start, eject))

    def reserve_in(self, target: int, lun: int, action: int) -> bytes:
        """PERSISTENT RESERVE IN: the parameter data."""
        return self._good(target, lun, commands.reserve_in(action, 4096), length=4096)

    def reserve_out(self, target: int, lun: int, action: PrOut, key: int, new_key: int = 0, kind: int = 0) -> None:
        """PERSISTENT RESERVE OUT."""
        self._good(target, lun, *commands.reserve_out(action, key, new_key, kind))

    # Events

    def poll_events(self) -> list[ScsiEvent]:
        """Takes the events and does what each calls for: `units` is what there is, afterwards."""
        events = self.take_events()
        for event in events:
            if event.missed:
                self.scan()
                self._poll_subscribed(events)
            elif event.type in _HANDLERS and event.address is not None:
                _HANDLERS[event.type](self, event.address, event.reason)
        return events

    def _poll_subscribed(self, events: list[ScsiEvent]) -> None:
        """What was lost may have been an asynchronous event: asks for those by command."""
        for address, wanted in self.subscribed.items():
            if not wanted or address.lun is None:
                continue
            result = self.execute(address.target, address.lun, commands.get_event_status(), b"", 8)
            if result.good and len(result.data) >= 5 and result.data[4]:
                events.append(ScsiEvent(EventType.ASYNC_NOTIFY, address, wanted))

    # Looking for units

    def scan(self, targets: Sequence[int] | None = None) -> dict[Address, Inquiry]:
        """Asks every target, or these, for its units. `units` is what was found."""
        wanted = range(self.config.max_target + 1) if targets is None else targets
        for target in wanted:
            self._forget(target)
            self._scan_target(target)
        return self.units

    def _forget(self, target: int) -> None:
        for address in [known for known in self.units if known.target == target]:
            del self.units[address]

    def _scan_target(self, target: int) -> None:
        try:
            luns = self.report_luns(target)
        except ScsiError as error:
            if error.result.response != ScsiResponse.BAD_TARGET:
                raise
            return
        for lun in luns:
            self._look(Address(target, lun))

    def _look(self, address: Address, reason: int = 0) -> None:
        """Looks whether there is a unit, and what."""
        self.units.pop(address, None)
        if address.lun is None:
            return
        try:
            found = self.inquiry(address.target, address.lun)
        except ScsiError:
            return
        if found.qualifier == 0:
            self.units[address] = found

    def _transport_reset(self, address: Address, reason: int) -> None:
        # For LUN 0 it may be about the whole target.
        if address.lun == 0 and reason != ResetReason.HARD:
            self.scan([address.target])
        else:
            self._look(address)


_HANDLERS: Final[dict[int, Callable[[ScsiDriver, Address, int], None]]] = {
    EventType.TRANSPORT_RESET: ScsiDriver._transport_reset,
    EventType.PARAM_CHANGE: ScsiDriver._look,
}
