"""The SCSI host device (5.6), the half that asks: any CDB to any unit, task management, notification, events."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, ClassVar, Final

from attrs import define, field, frozen

from virtio_py.devices.scsi.layout import (
    CONTROLQ,
    EVENTQ,
    EVENTS_MISSED,
    REQUESTQ,
    Address,
    ControlType,
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
from virtio_py.devices.scsi.sense import Condition, ScsiStatus, decode_sense
from virtio_py.driver import Driver
from virtio_py.errors import RequestError, UsageError, VirtioError
from virtio_py.memory import Buffer
from virtio_py.rings.queue import Extent
from virtio_py.spec import DeviceId, mask

_EVENT_BUFFERS: Final = 16


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


class ScsiAdapter(Driver):
    """A host bus adapter: commands, task management, events. `driver.ScsiDriver` adds what one does with them.

    All that waits raises what `Driver.wait_used` raises. Targets and LUNs are ints, data bytes.
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
        self.subscribed: dict[Address, int] = {}
        self._pending: Counter[Address | None] = Counter()
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
                self.write_config_bytes(virtio_scsi_config.offset(name), value.to_bytes(4, "little"))
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
        timeout: float | None = None,
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
        request = self._prepare(lun, cdb, data_out, data_in_length, queue, pi_out, pi_in_length)
        ring, ticket = self.queues[REQUESTQ + queue], request[2]
        ring.add(*request)
        self._pending[ticket.address] += 1
        self.kick(ring)
        return ticket

    def _prepare(
        self, lun: bytes, cdb: bytes, data_out: bytes, data_in_length: int, queue: int, pi_out: bytes, pi_in_length: int
    ) -> tuple[list[Extent], list[Extent], Ticket]:
        """What the queue is to be given for a command."""
        address = decode_lun(lun)
        ring = self.queues[REQUESTQ + queue]
        if self._pending[address] >= min(self.config.cmd_per_lun, ring.size):
            raise UsageError(f"{self.config.cmd_per_lun} commands are under way to the unit, which is its limit")
        if len(cdb) > self.config.cdb_size:
            raise UsageError(f"a CDB of {len(cdb)} bytes does not fit cdb_size {self.config.cdb_size}")
        if (pi_out or pi_in_length) and not self.has(ScsiFeature.T10_PI):
            raise UsageError("VIRTIO_SCSI_F_T10_PI was not negotiated")
        self._tag += 1
        head = virtio_scsi_req_cmd.encode(lun=lun, id=self._tag) + cdb.ljust(self.config.cdb_size, b"\0")
        if self.has(ScsiFeature.T10_PI):
            head += virtio_scsi_req_pi.encode(pi_bytesout=len(pi_out), pi_bytesin=pi_in_length)
        sent = [self._filled(part) for part in (head, pi_out, data_out) if part]
        sizes = (virtio_scsi_resp_cmd.size + self.config.sense_size, pi_in_length, data_in_length)
        room = tuple(self._borrow(size) for size in sizes if size)
        ticket = Ticket(REQUESTQ + queue, address, self._tag, [*sent, *room], room, (pi_in_length, data_in_length))
        return [b.extent for b in sent], [b.extent for b in room], ticket

    def wait(self, ticket: Ticket, timeout: float | None = None) -> ScsiResult:
        """Waits for a command's end. After TimedOut, it can be waited for again."""
        deadline = self.deadline(timeout)
        while ticket.result is None:
            for done, length in self.wait_used(self.queues[ticket.queue], 1, deadline - time.monotonic()):
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

    # Control queue

    def task_management(
        self, function: Tmf | int, target: int, lun: int = 0, tag: int = 0, timeout: float | None = None
    ) -> int:
        """A task management function; its response (ScsiResponse, FUNCTION_COMPLETE is OK)."""
        request = virtio_scsi_ctrl_tmf.encode(
            type=ControlType.TMF, subtype=function, lun=encode_lun(target, lun), id=tag
        )
        [answer], length = self.transact(self.queues[CONTROLQ], [request], [1], timeout)
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


def _event(data: bytes) -> ScsiEvent:
    values = virtio_scsi_event.decode(data)
    missed = bool(values.event & EVENTS_MISSED)
    return ScsiEvent(values.event & ~EVENTS_MISSED, decode_lun(values.lun), values.reason, missed)
