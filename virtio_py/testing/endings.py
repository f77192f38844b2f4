"""How a look at a peer ends, and by which exception where it does not pass."""

from __future__ import annotations

from enum import StrEnum

from virtio_py.errors import VirtioError


class Outcome(StrEnum):
    """What became of a clause.

    PASS    it is kept, as far as was seen
    FAIL    it is broken
    REJECT  what the specification does not allow was refused, in a way the driver is told: a hang-up,
            DEVICE_NEEDS_RESET, an error status
    WEDGED  a good request is not answered any more
    SKIP    it was not tried; the detail says why
    """

    PASS = "PASS"
    FAIL = "FAIL"
    REJECT = "REJECT"
    WEDGED = "WEDGED"
    SKIP = "SKIP"


class Ended(VirtioError):
    """A check ends with something other than PASS. clause: if it is not (only) the check's own that is meant."""

    outcome: Outcome = Outcome.FAIL

    def __init__(self, detail: str, *, clause: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.clause = clause


class Failed(Ended):
    """The device breaks the clause."""


class Rejected(Ended):
    """The device refuses what it may refuse."""

    outcome = Outcome.REJECT


class Wedged(Ended):
    """The device does not answer."""

    outcome = Outcome.WEDGED


class Skipped(Ended):
    """It cannot be tried here."""

    outcome = Outcome.SKIP
