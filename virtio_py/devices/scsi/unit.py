"""What every logical unit has: tasks, the table of its operations, and the order in which a command is judged.

A `LogicalUnit` knows nothing of virtio. It is given a `Task`: a CDB, a stream of data out, a stream of data in. What
it answers is an `Outcome`, at once or (None) later by `task.finish`. A unit may be attached to several devices: each of
them is an initiator, and the unit keeps them apart by their `Nexus`.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from attrs import define, field

from virtio_py.devices.scsi.cdb import Opcode
from virtio_py.devices.scsi.layout import AsyncEvent, ScsiResponse
from virtio_py.devices.scsi.sense import (
    DEVICE_RESET,
    INVALID_OPCODE,
    POWER_ON,
    READ_ERROR,
    SPACE_ALLOCATION_FAILED,
    WRITE_ERROR,
    WRITE_PROTECTED,
    CheckCondition,
    Condition,
    FieldPointer,
    ScsiStatus,
    encode_sense,
    invalid_in_cdb,
)
from virtio_py.devices.scsi.task import CONFLICT, GOOD, OVERRUN, Access, Key, Nexus, Operation, Outcome, Task

MAX_ATTENTIONS: Final = 16
"""How many unit attentions are kept for an initiator; it learns nothing from more."""


_LUN_BITS: Final = 0xE0

_SERVICE_ACTIONS: Final = frozenset(
    {
        Opcode.SERVICE_ACTION_IN_16,
        Opcode.MAINTENANCE_IN,
        Opcode.PERSISTENT_RESERVE_IN,
        Opcode.PERSISTENT_RESERVE_OUT,
    }
)

# The words in which Linux's block layer says whose fault it was; a medium that is a multipath device speaks them.
_RESPONSES: Final[Mapping[int, ScsiResponse]] = {
    getattr(errno, name): response
    for name, response in {
        "ENOLINK": ScsiResponse.TRANSPORT_FAILURE,
        "EREMOTEIO": ScsiResponse.TARGET_FAILURE,
        "EBADE": ScsiResponse.NEXUS_FAILURE,
        "EAGAIN": ScsiResponse.BUSY,
        "EBUSY": ScsiResponse.BUSY,
    }.items()
    if hasattr(errno, name)
}


_CONDITIONS: Final[Mapping[int, Condition]] = {
    errno.ENOSPC: SPACE_ALLOCATION_FAILED,
    errno.EROFS: WRITE_PROTECTED,
}


@define(eq=False)
class LogicalUnit:
    """A logical unit. A subclass has a table of operations, and what stands behind them.

    vendor, product, revision, serial: identification, ASCII
    watchers: called with the unit and what became of it: a Condition when a parameter has changed, such as the
              capacity, an AsyncEvent when something happened at its physical interface
    """

    device_type: ClassVar[int] = 0x1F
    operations: ClassVar[Mapping[Key, Operation]] = {}
    vendor: str = field(default="VIRTIO", kw_only=True)
    product: str = field(default="virtio-py", kw_only=True)
    revision: str = field(default="1.4", kw_only=True)
    serial: str = field(default="", kw_only=True)
    watchers: list[Callable[[LogicalUnit, Condition | AsyncEvent], None]] = field(factory=list, init=False)
    _attentions: dict[Nexus, deque[Condition]] = field(factory=dict, init=False)

    # Initiators

    def join(self, nexus: Nexus) -> None:
        """An initiator comes to know the unit; the first thing it hears is that the unit was powered on."""
        self._attentions[nexus] = deque([POWER_ON], MAX_ATTENTIONS)

    def leave(self, nexus: Nexus) -> None:
        """The unit is taken away from an initiator."""
        self._attentions.pop(nexus, None)

    def attend(self, condition: Condition, *, but: Nexus | None = None, only: Nexus | None = None) -> None:
        """Establishes a unit attention for all initiators, or all but one, or only one."""
        for nexus, waiting in self._attentions.items():
            if nexus is not but and only in (None, nexus) and condition not in waiting:
                waiting.append(condition)

    def take_attention(self, nexus: Nexus) -> Condition | None:
        """The oldest unit attention of an initiator, which is cleared by this."""
        waiting = self._attentions.get(nexus)
        return waiting.popleft() if waiting else None

    def clear_attention(self, nexus: Nexus, condition: Condition) -> None:
        """Takes back a unit attention, because the initiator has learnt of it in another way."""
        if condition in (waiting := self._attentions.get(nexus, deque())):
            waiting.remove(condition)

    def notify(self, change: Condition | AsyncEvent) -> None:
        """Tells the watchers."""
        for watcher in list(self.watchers):
            watcher(self, change)

    # Commands

    @property
    def descriptor_sense(self) -> bool:
        """Whether sense data are in descriptor format."""
        return False

    def supported(self) -> dict[Key, Operation]:
        """The operations that this very unit has."""
        return {key: operation for key, operation in self.operations.items() if operation.when(self)}

    def find(self, cdb: bytes) -> Operation:
        """The operation of a CDB. Raises CheckCondition for one that the unit does not have."""
        action = cdb[1] & 0x1F if len(cdb) > 1 and cdb[0] in _SERVICE_ACTIONS else None
        operation = self.operations.get((cdb[0], action))
        if operation is None or not operation.when(self):
            known = any(opcode == cdb[0] for opcode, _ in self.operations)
            raise invalid_in_cdb(1, 4) if known and action is not None else CheckCondition(INVALID_OPCODE)
        return operation

    def execute(self, task: Task) -> Outcome | None:
        """Carries out a task; None if that takes longer, and `task.finish` is to be called."""
        try:
            operation = self.find(task.cdb)
            return self._admit(task, operation) or self._run(task, operation)
        except CheckCondition as condition:
            return self.check(condition)

    def _admit(self, task: Task, operation: Operation) -> Outcome | None:
        """What keeps a command from being carried out whatever its CDB says."""
        if not operation.deferred_attention and (attention := self.take_attention(task.nexus)):
            raise CheckCondition(attention)
        return CONFLICT if self.conflicts(task, operation) else None

    def _run(self, task: Task, operation: Operation) -> Outcome:
        check_bits(task.cdb, operation)
        cdb = operation.cdb.decode(task.cdb)
        # The specification names the CDB's lengths, not what will really be transferred (5.6.6.1, OVERRUN).
        if (
            operation.data_out(self, cdb) > task.data_out.remaining
            or operation.data_in(self, cdb) > task.data_in.remaining
        ):
            return OVERRUN
        try:
            return operation.run(self, task, cdb) or GOOD
        except OSError as error:
            return self._failure(error, operation)

    def conflicts(self, task: Task, operation: Operation) -> bool:
        """Whether another initiator's reservation keeps this command out."""
        return False

    def check(self, condition: CheckCondition) -> Outcome:
        """The outcome CHECK CONDITION, with sense data in the format that is set."""
        return Outcome(ScsiStatus.CHECK_CONDITION, condition.encode(self.descriptor_sense))

    def _failure(self, error: OSError, operation: Operation) -> Outcome:
        """The outcome of a command whose medium failed."""
        number = error.errno or 0
        if (response := _RESPONSES.get(number)) is not None:
            return Outcome(response=response)
        default = WRITE_ERROR if operation.access is Access.WRITE else READ_ERROR
        return self.check(CheckCondition(_CONDITIONS.get(number, default)))

    # Task management

    def initiator_gone(self, nexus: Nexus) -> None:
        """The initiator has reset its side, and knows nothing of what it had asked for."""

    def abort(self, task: Task) -> None:
        """A task that is not finished never will be: its buffers must not be touched any more."""

    def reset(self, condition: Condition = DEVICE_RESET) -> None:
        """A logical unit reset, of which `condition` tells all initiators."""
        self.attend(condition)

    def async_events(self) -> AsyncEvent:
        """The asynchronous events that the unit can report."""
        return AsyncEvent(0)

    def pending_sense(self, nexus: Nexus, descriptors: bool) -> bytes:
        """The parameter data of REQUEST SENSE: the oldest unit attention, or what else there is to say."""
        return encode_sense(self.take_attention(nexus) or self.standing(), descriptors=descriptors)

    def standing(self) -> Condition:
        """The unit's state as a condition: NO SENSE when it is ready."""
        return Condition(0, 0, 0)


def check_bits(cdb: bytes, operation: Operation) -> None:
    """Raises CheckCondition for a CDB that is too short, or has a bit set that means nothing."""
    if len(cdb) < len(operation.usage):
        raise invalid_in_cdb(len(cdb))
    for at, (value, mask) in enumerate(zip(cdb, operation.usage, strict=False)):
        # SCSI-2 had the LUN in the second byte; Linux puts it there until it has learnt that a unit is younger.
        ignored = _LUN_BITS if at == 1 and not mask & _LUN_BITS else 0
        if wrong := value & ~mask & ~ignored:
            raise CheckCondition(invalid_in_cdb(0).condition, field=FieldPointer(at, wrong.bit_length() - 1))
