"""The SCSI host device (5.6), the half that asks: any CDB to any unit, and helpers for the usual ones.

driver = ScsiDriver(transport).start()
driver.scan()                                    every unit: {Address(target, lun): Inquiry}
driver.execute(0, 1, cdb, data_out, 512)         a ScsiResult: response, status, sense, data
driver.read(0, 1, lba=8, number=1)               512 bytes
driver.poll_events()                             what has happened; `driver.units` follows it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from attrs import define, field, frozen

from virtio_py.devices.scsi import commands
from virtio_py.devices.scsi.cdb import PrOut
from virtio_py.devices.scsi.commands import Capacity, Inquiry, lun_number, parse_capacity, parse_inquiry, parse_luns
from virtio_py.devices.scsi.layout import (
    CONTROLQ,
    EVENTQ,
    EVENTS_MISSED,
    REQUESTQ,
    Address,
    ControlType,
    EventType,
    ResetReason,
    ScsiFeature,
    ScsiResponse,
    Tmf,
    decode_lun,
    encode_lun,
    virtio_scsi_config,
    virtio_scsi_ctrl_an,
    virtio_scsi_ctrl_an_resp,
    virtio_scsi_ctrl_tmf,
    virtio_scsi_event,
    virtio_scsi_req_cmd,
    virtio_scsi_req_pi,
    virtio_scsi_resp_cmd,
)
from virtio_py.devices.scsi.sense import Condition, ScsiStatus, SenseKey, decode_sense
from virtio_py.driver import Driver
from virtio_py.errors import RequestError, UsageError, VirtioError
from virtio_py.memory import Buffer
from virtio_py.spec import DeviceId, mask

_EVENT_BUFFERS: Final = 16
_MOST_BYTES: Final = 1 << 18
"""Bytes of data that the helpers put into one command."""


@frozen
class ScsiResult:
    """How a command ended.

    response: ScsiResponse, or a number that is none; status: ScsiStatus, if response is OK; sense: at most sense_size
    data: what came in, without what was not transferred; residual: bytes of both directions that were not
    pi: the protection information that came in
    """

    response: int
    status: int
    sense: bytes
    data: bytes
    residual: int
    pi: bytes = b""

    @property
    def good(self) -> bool:
        """Whether the command was carried out, status GOOD."""
        return self.response == ScsiResponse.OK and self.status == ScsiStatus.GOOD

    @property
    def condition(self) -> Condition | None:
        """Sense key and codes, where there are any."""
        return decode_sense(self.sense)


class ScsiError(VirtioError):
    """A helper's command failed: `result` says how."""

    def __init__(self, cdb: bytes, result: ScsiResult) -> None:
        response, status = (_name(ScsiResponse, result.response), _name(ScsiStatus, result.status))
        what = status if result.response == ScsiResponse.OK else response
        if condition := result.condition:
            what += " {:X}h/{:02X}h/{:02X}h".format(*condition)
        super().__init__(f"command {cdb.hex(' ')}: {what}")
        self.cdb = cdb
        self.result = result


def _name(kind: Any, value: int) -> str:
    return kind(value).name if value in tuple(kind) else f"{kind.__name__} {value}"


@frozen
class ScsiEvent:
    """What the device has reported: `type` without bit 31, which is `missed`; address None for a LUN of no format."""

    type: int
    address: Address | None
    reason: int
    missed: bool = False


@define(eq=False)
class Ticket:
    """A command under way. `tag` is its `id`, by which task management knows it."""

    queue: int
    address: Address | None
    tag: int
    buffers: list[Buffer]
    parts: tuple[Buffer, ...]
    sizes: tuple[int, int] = (0, 0)
    result: ScsiResult | None = field(default=None, init=False)


class ScsiDriver(Driver):
    """A host bus adapter's driver.

    `execute` returns how a command ended, whatever it is; the helpers raise ScsiError unless it ended well, after one
    more try where it met a unit attention. All raise what `Driver.wait_used` raises. Targets, LUNs, addresses and
    numbers of blocks are ints, data bytes.

    units: what the last `scan` has found, and `poll_events` keeps true
    """

    device_id = DeviceId.SCSI
    known_features = mask(*ScsiFeature)
    most_queues: ClassVar[int] = 8
    config: Any

    # Initialisation

    def queue_count(self) -> int:
        """The control and event queues, and of the request queues as many as make sense."""
        self.refresh()
        return REQUESTQ + min(max(int(self.config.num_queues), 1), self.most_queues)

    def started(self) -> None:
        """Posts the event buffers: events are lost where there are none."""
        self.units: dict[Address, Inquiry] = {}
        self.subscribed: dict[Address, int] = {}
        self._pending: dict[Address | None, int] = {}
        self._tag = 0
        size = max(self.config.event_info_size, virtio_scsi_event.size)
        for _ in range(min(_EVENT_BUFFERS, self.queues[EVENTQ].size)):
            self._post_event(self._borrow(size))
        self.kick(self.queues[EVENTQ])

    def refresh(self) -> Any:
        """Reads the configuration again: the fields of virtio_scsi_config."""
        self.config = virtio_scsi_config.decode(self.read_config_bytes(0, virtio_scsi_config.size))
        return self.config

    def set_sizes(self, *, cdb_size: int | None = None, sense_size: int | None = None) -> None:
        """Writes `cdb_size` and `sense_size`, bytes, the only two fields that are the driver's to write."""
        if any(self._pending.values()):
            raise UsageError("commands are under way that were cut by the old sizes")
        for name, value in (("sense_size", sense_size), ("cdb_size", cdb_size)):
            if value is not None:
                self.transport.write_config(virtio_scsi_config.offset(name), value.to_bytes(4, "little"))
        self.refresh()

    # Commands

    def execute(
        self,
        target: int,
        lun: int,
        cdb: bytes,
        data_out: bytes = b"",
        data_in_length: int = 0,
        *,
        queue: int = 0,
        pi_out: bytes = b"",
        pi_in_length: int = 0,
        timeout: float = 5.0,
    ) -> ScsiResult:
        """One command, start to end, on a request queue. Raises UsageError for a CDB that is longer than cdb_size."""
        address = encode_lun(target, lun)
        return self.wait(self.submit(address, cdb, data_out, data_in_length, queue, pi_out, pi_in_length), timeout)

    def submit(
        self,
        lun: bytes,
        cdb: bytes,
        data_out: bytes = b"",
        data_in_length: int = 0,
        queue: int = 0,
        pi_out: bytes = b"",
        pi_in_length: int = 0,
    ) -> Ticket:
        """Sends a command to a `lun` field, and returns at once. Raises UsageError where it would be one too many."""
        address = decode_lun(lun)
        ring = self.queues[REQUESTQ + queue]
        if self._pending.get(address, 0) >= min(self.config.cmd_per_lun, ring.size):
            raise UsageError(f"{self.config.cmd_per_lun} commands are under way to the unit, which is its limit")
        if len(cdb) > self.config.cdb_size:
            raise UsageError(f"a CDB of {len(cdb)} bytes does not fit cdb_size {self.config.cdb_size}")
        self._tag += 1
        head = virtio_scsi_req_cmd.encode(lun=lun, id=self._tag) + cdb.ljust(self.config.cdb_size, b"\0")
        if self.has(ScsiFeature.T10_PI):
            head += virtio_scsi_req_pi.encode(pi_bytesout=len(pi_out), pi_bytesin=pi_in_length)
        elif pi_out or pi_in_length:
            raise UsageError("VIRTIO_SCSI_F_T10_PI was not negotiated")
        sent = [self._filled(part) for part in (head, pi_out, data_out) if part]
        sizes = (virtio_scsi_resp_cmd.size + self.config.sense_size, pi_in_length, data_in_length)
        room = tuple(self._borrow(size) for size in sizes if size)
        ticket = Ticket(REQUESTQ + queue, address, self._tag, [*sent, *room], room, (pi_in_length, data_in_length))
        ring.add([b.extent for b in sent], [b.extent for b in room], ticket)
        self._pending[address] = self._pending.get(address, 0) + 1
        self.kick(ring)
        return ticket

    def wait(self, ticket: Ticket, timeout: float = 5.0) -> ScsiResult:
        """Waits for a command's end."""
        while ticket.result is None:
            for done, length in self.wait_used(self.queues[ticket.queue], 1, timeout):
                self._done(done, length)
        return ticket.result

    def _done(self, ticket: Ticket, length: int) -> None:
        self._pending[ticket.address] -= 1
        head, *parts = (bytes(buffer.view) for buffer in ticket.parts)
        self._give_back(ticket.buffers)
        if length < virtio_scsi_resp_cmd.size:
            self.fail()
            raise RequestError("a request came back without a response", queue=ticket.queue)
        values = virtio_scsi_resp_cmd.decode(head)
        # Only the used length counts: what lies behind it is what the memory held before.
        pi_size, data_size = ticket.sizes
        came = min(max(length - len(head), 0), pi_size + data_size)
        body = b"".join(parts)[:came]
        sense = head[virtio_scsi_resp_cmd.size :][: values.sense_len]
        ticket.result = ScsiResult(
            values.response, values.status, sense, body[pi_size:], values.residual, body[:pi_size]
        )

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

    def read(self, target: int, lun: int, lba: int, number: int, block_size: int = 512) -> bytes:
        """`number` blocks from `lba` on."""
        step = _MOST_BYTES // block_size
        parts = [(at, min(step, lba + number - at)) for at in range(lba, lba + number, step)]
        return b"".join(
            self._good(target, lun, commands.transfer("READ", at, part), length=part * block_size) for at, part in parts
        )

    def write(self, target: int, lun: int, lba: int, data: bytes, block_size: int = 512) -> None:
        """Stores whole blocks from `lba` on; durable at once or after `synchronize_cache`."""
        if len(data) % block_size:
            raise UsageError(f"{len(data)} bytes are not whole blocks of {block_size}")
        step = _MOST_BYTES // block_size * block_size
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

    # Control queue

    def task_management(self, function: Tmf | int, target: int, lun: int = 0, tag: int = 0) -> int:
        """A task management function; its response (ScsiResponse, FUNCTION_COMPLETE is OK)."""
        request = virtio_scsi_ctrl_tmf.encode(
            type=ControlType.TMF, subtype=function, lun=encode_lun(target, lun), id=tag
        )
        [answer], length = self.transact(self.queues[CONTROLQ], [request], [1])
        return answer[0] if length else ScsiResponse.FAILURE

    def query_notification(self, target: int, lun: int, events: int) -> int:
        """Which of these asynchronous events (AsyncEvent) the unit can report. Raises ScsiError."""
        return self._notification(ControlType.AN_QUERY, target, lun, events)

    def subscribe(self, target: int, lun: int, events: int) -> int:
        """Asks for asynchronous events; the mask of those that will come. Raises ScsiError."""
        actual = self._notification(ControlType.AN_SUBSCRIBE, target, lun, events)
        self.subscribed[Address(target, lun)] = actual
        return actual

    def _notification(self, kind: ControlType, target: int, lun: int, events: int) -> int:
        request = virtio_scsi_ctrl_an.encode(type=kind, lun=encode_lun(target, lun), event_requested=events)
        [answer], length = self.transact(self.queues[CONTROLQ], [request], [virtio_scsi_ctrl_an_resp.size])
        values = virtio_scsi_ctrl_an_resp.decode(answer)
        if length < virtio_scsi_ctrl_an_resp.size or values.response != ScsiResponse.OK:
            raise ScsiError(request, ScsiResult(values.response if length else ScsiResponse.FAILURE, 0, b"", b"", 0))
        return int(values.event_actual)

    # Events

    def _post_event(self, buffer: Buffer) -> None:
        self.queues[EVENTQ].add([], [buffer.extent], buffer)

    def take_events(self) -> list[ScsiEvent]:
        """What has come into the event buffers, which are posted again."""
        events = []
        for buffer, length in self._take_used(self.queues[EVENTQ]):
            data = bytes(buffer.view)
            buffer.view[:] = bytes(len(data))
            self._post_event(buffer)
            if length >= virtio_scsi_event.size:
                events.append(_event(data))
        self.kick(self.queues[EVENTQ])
        return events

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


def _event(data: bytes) -> ScsiEvent:
    values = virtio_scsi_event.decode(data)
    missed = bool(values.event & EVENTS_MISSED)
    return ScsiEvent(values.event & ~EVENTS_MISSED, decode_lun(values.lun), values.reason, missed)
