"""What a SCSI host device's driver asks for (5.6)."""

from __future__ import annotations

from typing import ClassVar, Final

from virtio_py.devices.scsi.layout import (
    CONTROLQ,
    EVENTQ,
    virtio_scsi_config,
    virtio_scsi_event,
    virtio_scsi_req_cmd,
)
from virtio_py.rings.queue import DeviceQueue
from virtio_py.testing.conformance.driver.views import Kind, View

_WRITABLE: Final = {virtio_scsi_config.offset(name) for name in ("sense_size", "cdb_size")}
_EVENT: Final = "scsi.driver.eventq"


class Scsi(Kind):
    """An initiator."""

    clauses: ClassVar[tuple[str, ...]] = (
        "scsi.driver.config-layout.1",
        "scsi.driver.request-queues.1",
        f"{_EVENT}.2",
        f"{_EVENT}.3",
        f"{_EVENT}.4",
    )

    def wrote(self, view: View, offset: int, data: bytes) -> None:
        good = offset in _WRITABLE and len(data) == 4
        view.ledger.must("scsi.driver.config-layout.1", good, f"{len(data)} bytes are written at {offset}")

    def request(self, view: View, queue: DeviceQueue, readable: bytes, writable: int) -> None:
        if queue.index == EVENTQ:
            self._event(view, readable, writable)
        elif queue.index != CONTROLQ and len(readable) >= virtio_scsi_req_cmd.size:
            head = virtio_scsi_req_cmd.decode(readable[: virtio_scsi_req_cmd.size])
            zero = not (head.task_attr or head.prio or head.crn)
            text = f"task_attr, prio and crn are {head.task_attr}, {head.prio} and {head.crn}"
            view.ledger.should("scsi.driver.request-queues.1", zero, text)

    def _event(self, view: View, readable: bytes, writable: int) -> None:
        config = virtio_scsi_config.decode(view.device.read_config())
        view.ledger.must(f"{_EVENT}.2", not readable, f"an event buffer has {len(readable)} readable bytes")
        enough = writable >= config.event_info_size
        view.ledger.should(f"{_EVENT}.3", enough, f"an event buffer of {writable} bytes")
        view.ledger.must(f"{_EVENT}.4", writable >= virtio_scsi_event.size, f"an event buffer of {writable} bytes")
