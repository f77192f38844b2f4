"""What a console's driver does (5.3)."""

from __future__ import annotations

from typing import ClassVar, Final

from virtio_py.devices.console.layout import (
    CONTROL_TRANSMITQ,
    ConsoleEvent,
    ConsoleFeature,
    virtio_console_config,
    virtio_console_control,
)
from virtio_py.rings.queue import DeviceQueue
from virtio_py.testing.conformance.driver.views import Kind, View

_OP: Final = "console.driver.device-op"
_PORTS: Final = "console.driver.multiport"


class Console(Kind):
    """A console's driver."""

    clauses: ClassVar[tuple[str, ...]] = (f"{_OP}.1", f"{_OP}.2", f"{_PORTS}.1", f"{_PORTS}.4", "prose.console.config")

    def wrote(self, view: View, offset: int, data: bytes) -> None:
        good = offset == virtio_console_config.offset("emerg_wr")
        view.ledger.must("prose.console.config", good, f"{len(data)} bytes are written at {offset}")

    def request(self, view: View, queue: DeviceQueue, readable: bytes, writable: int) -> None:
        if queue.index & 1:
            view.ledger.must(f"{_OP}.2", not writable, f"{writable} writable bytes in transmit queue {queue.index}")
        else:
            view.ledger.must(f"{_OP}.1", not readable, f"{len(readable)} readable ones in receive queue {queue.index}")
        if view.has(ConsoleFeature.MULTIPORT) and queue.index == CONTROL_TRANSMITQ:
            self._message(view, readable)

    def _message(self, view: View, data: bytes) -> None:
        if len(data) < virtio_console_control.size:
            return
        message = virtio_console_control.decode(data[: virtio_console_control.size])
        if message.event == ConsoleEvent.DEVICE_READY:
            view.ledger.must(f"{_PORTS}.1", True, "")
        elif message.event == ConsoleEvent.PORT_OPEN:
            view.ledger.should(f"{_PORTS}.4", message.value in (0, 1), f"PORT_OPEN with value {message.value}")
