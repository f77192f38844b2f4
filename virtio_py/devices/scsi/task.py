"""A command on its way: who sent it, what it is, how it ended (SAM-5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

from attrs import define, field, frozen

from virtio_py.devices.scsi.cdb import usage
from virtio_py.devices.scsi.layout import ScsiResponse
from virtio_py.devices.scsi.sense import ScsiStatus
from virtio_py.records import Record
from virtio_py.rings.chain import Reader, Writer


@frozen(eq=False)
class Nexus:
    """An initiator as a logical unit sees it. Two with the same name are two; the name is for reports."""

    name: str = "virtio-py"


@frozen
class Outcome:
    """How a command ended: the transport's response, and if that is OK the status with its sense data."""

    status: int = ScsiStatus.GOOD
    sense: bytes = b""
    response: int = ScsiResponse.OK


GOOD: Final = Outcome()
CONFLICT: Final = Outcome(ScsiStatus.RESERVATION_CONFLICT)
OVERRUN: Final = Outcome(response=ScsiResponse.OVERRUN)


@define(eq=False)
class Task:
    """A command on its way.

    data_out, data_in: what the initiator sends, and the room for what it wants
    pi_out, pi_in:     protection information beside the data; None where the transport carries none
    luns:              the 8-byte LUNs of all units of the same target
    on_finish:         called with a task that was not answered at once, and its outcome
    """

    nexus: Nexus
    cdb: bytes
    data_out: Reader = field(factory=lambda: Reader([]))
    data_in: Writer = field(factory=lambda: Writer([]))
    pi_out: Reader | None = None
    pi_in: Writer | None = None
    luns: Callable[[], Sequence[bytes]] = list
    on_finish: Callable[[Task, Outcome], None] = field(default=lambda task, outcome: None, repr=False)

    def reply(self, data: bytes, allocation: int) -> None:
        """Data in, cut to the allocation length of the CDB."""
        self.data_in.write(data[:allocation])

    def finish(self, outcome: Outcome) -> None:
        """Ends a task for which `execute` returned None. One that was aborted in between is not ended again."""
        self.on_finish(self, outcome)


class Access(Enum):
    """How a command stands to a persistent reservation that another initiator holds (SPC-4, table 65)."""

    ALLOWED = "never in conflict"
    READ = "in conflict with an exclusive access reservation"
    WRITE = "in conflict with any reservation"


def no_data(unit: Any, cdb: Any) -> int:
    """No bytes are transferred."""
    return 0


def allocation(unit: Any, cdb: Any) -> int:
    """The bytes of the CDB's allocation length."""
    return int(cdb.allocation)


def parameter_list(unit: Any, cdb: Any) -> int:
    """The bytes of the CDB's parameter list length."""
    return int(cdb.length)


@frozen
class Operation:
    """A command that a unit carries out.

    run(unit, task, cdb): does it; raises CheckCondition, OSError. None is GOOD.
    data_in, data_out:    how many bytes the CDB requires of the buffers
    when(unit):           whether this unit has it
    deferred_attention:   it is carried out although a unit attention waits, which then waits on
    """

    name: str
    cdb: Record
    run: Callable[[Any, Task, Any], Outcome | None]
    data_in: Callable[[Any, Any], int] = no_data
    data_out: Callable[[Any, Any], int] = no_data
    access: Access = Access.ALLOWED
    when: Callable[[Any], bool] = lambda unit: True
    deferred_attention: bool = False
    usage: bytes = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "usage", usage(self.cdb))


Key = tuple[int, int | None]
"""An operation code and its service action, None where it has none."""
