"""What a mutant is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from attrs import frozen

from virtio_py.device import Device
from virtio_py.errors import VirtioError
from virtio_py.rings.engine import REFERENCE, Engine
from virtio_py.spec import Feature, bit
from virtio_py.status import RING_FEATURES
from virtio_py.testing.conformance import Verdict, run
from virtio_py.testing.conformance.driver import judged
from virtio_py.testing.conformance.verdicts import BAD
from virtio_py.transports.in_process import InProcess

RING: Final = RING_FEATURES | bit(Feature.IN_ORDER)
PATIENCE, QUIET = 0.1, 0.01
"""Seconds. In one process an answer comes at once, or never."""

Act = Callable[[InProcess], None]


@frozen
class Mutant:
    """clause: the one that it breaks; judge: the suite's verdicts on it, of the checks of a clause, "" for all.

    area: the module it belongs to; within: the clause whose checks show it, where those of its own clause do not;
    hard: why it was not found at once, or would not be by a lesser suite; "" for most
    """

    name: str
    clause: str
    judge: Callable[[str], list[Verdict]]
    area: str
    within: str = ""
    hard: str = ""

    def named(self, only: str) -> set[str]:
        """The clauses that the suite finds broken."""
        return {verdict.clause for verdict in self.judge(only) if verdict.verdict in BAD}


MUTANTS: Final[dict[str, Mutant]] = {}
"""By name."""


def register(mutant: Mutant) -> None:
    """Adds a mutant, whose name must be new."""
    assert mutant.name not in MUTANTS, mutant.name
    MUTANTS[mutant.name] = mutant


# Devices


class Carrier(InProcess):
    """A device in process. In a subclass it is the device's end that is broken."""

    def __init__(self, device: Device, engine: Engine = REFERENCE) -> None:
        super().__init__(device, engine=engine, ring_features=RING)


Made = TypeVar("Made", bound=type[Device] | type[Carrier])
Make = Callable[[], Device]


def judge_device(kind: str, connect: Callable[[], InProcess]) -> Callable[[str], list[Verdict]]:
    """The verdicts of the conformance suite, as a user of it has them."""
    # Each connection has a device of its own: one that is stuck is not in the way of the next.
    return lambda only: run(connect, kind, only=only, patience=PATIENCE, quiet=QUIET, restart=lambda: None)


def mutant(
    kind: str, clause: str, make: Make | None = None, *, within: str = "", hard: str = "", name: str = ""
) -> Callable[[Made], Made]:
    """Registers a class of devices, or of carriers for the devices that `make` makes. name: if not the class's."""

    def decorate(broken: Made) -> Made:
        def connect() -> InProcess:
            if issubclass(broken, Carrier):
                assert make is not None
                return broken(make())
            return Carrier(broken() if make is None else make())

        area = broken.__module__.rpartition(".")[2]
        register(Mutant(name or broken.__name__, clause, judge_device(kind, connect), area, within, hard))
        return broken

    return decorate


# Drivers


def judge_driver(
    kind: str, make: Make, use: Callable[[InProcess], object], ring: int
) -> Callable[[str], list[Verdict]]:
    """The verdicts of the device that judges its driver. What the device's half of the ring finds is told by the
    server's log, with its clause; here by the fault."""

    def judge(only: str) -> list[Verdict]:
        device = judged(make(), kind)
        carrier = InProcess(device, ring_features=ring)
        try:
            use(carrier)
        except VirtioError as error:
            # What is broken may well not work. What a server logs when it hangs up is raised here.
            if ".driver." in getattr(error, "clause", ""):
                device.ledger.heard(str(error))
        if carrier.end.fault is not None:
            device.ledger.heard(str(carrier.end.fault))
        return device.ledger.verdicts(only)

    return judge
