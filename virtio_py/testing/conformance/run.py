"""Runs the suite against a device, a fresh connection for each check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic, sleep
from typing import Final

from attrs import define, field

from virtio_py.driver import Transport
from virtio_py.errors import Disconnected, NeedsReset, PeerError, TransportError, UsageError, VirtioError
from virtio_py.spec import Feature
from virtio_py.testing.conformance.catalogue import all_checks
from virtio_py.testing.conformance.checks import Check
from virtio_py.testing.conformance.kinds import KINDS, Kind
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.conformance.verdicts import Verdict
from virtio_py.testing.endings import Ended, Failed, Outcome, Skipped, Wedged

Connect = Callable[[], Transport]
"""Makes a connection to the device. It may be asked for one as soon as the one before is closed."""

PATIENCE: Final = 2.0
QUIET: Final = 0.05


def run(
    connect: Connect,
    device: str,
    *,
    only: str = "",
    budget: float | None = None,
    patience: float = PATIENCE,
    quiet: float = QUIET,
    restart: Callable[[], None] | None = None,
    thorough: bool = False,
) -> list[Verdict]:
    """The verdicts on a device ("blk", "net", "scsi", "console"), a check after another; arguments as Suite has them.

    only: a clause's id, or how one begins, up to a dot; budget: seconds after which no check begins. Raises UsageError
    for a device that is not known, or a clause that no check of it observes."""
    suite = Suite(connect, kind_named(device), patience, quiet, restart, thorough)
    return list(suite.run(select(device, only), budget))


def kind_named(device: str) -> Kind:
    """A kind of device. Raises UsageError for a name that is none."""
    if device not in KINDS:
        raise UsageError(f"{device!r} is none of {', '.join(KINDS)}")
    return KINDS[device]


def select(device: str, only: str = "") -> list[tuple[Check, str]]:
    """Checks with the layout each is run with. only: a clause's id, or the beginning of one up to a dot."""
    chosen = [
        (check, layout)
        for check in all_checks()
        for layout in check.layouts
        if (not check.devices or device in check.devices) and _meant(check.observed(layout), only)
    ]
    if not chosen:
        raise UsageError(f"no check for {device} observes {only}")
    return chosen


def _meant(clauses: tuple[str, ...], only: str) -> bool:
    return not only or any(clause == only or clause.startswith(only.rstrip(".") + ".") for clause in clauses)


@define(eq=False)
class Suite:
    """A device under judgement.

    patience: seconds to wait for what must come; quiet: seconds to wait for what must not
    restart: brings the back-end up again after it has died or wedged, or None
    thorough: whether to make checks that take more than a few seconds
    """

    connect: Connect
    kind: Kind
    patience: float = PATIENCE
    quiet: float = QUIET
    restart: Callable[[], None] | None = None
    thorough: bool = False
    _gone: str = field(init=False, default="")

    def run(self, checks: list[tuple[Check, str]], budget: float | None = None) -> Iterator[Verdict]:
        """One verdict for each clause of each check. budget: seconds for all; what does not begin in it is SKIP."""
        deadline = monotonic() + budget if budget is not None else None
        for check, layout in checks:
            if deadline is not None and monotonic() > deadline:
                self._gone = self._gone or f"the budget of {budget:g} s is spent"
            yield from self.judge(check, layout)

    def judge(self, check: Check, layout: str) -> Iterator[Verdict]:
        """The verdicts of one check."""
        start = monotonic()
        ended, remarks = self._try(check, layout)
        seconds = round(monotonic() - start, 4)
        clauses = check.observed(layout)
        meant = ended.clause if ended is not None else ""
        for clause in clauses if meant in ("", *clauses) else (meant, *clauses):
            outcome, detail = _outcome(check, ended, clause, meant)
            name = [] if outcome in (Outcome.PASS, Outcome.SKIP) else [f"({check.name})"]
            detail = "; ".join([" ".join([detail, *name]), *remarks])
            yield Verdict(clause, outcome, f"{layout}: {detail}", seconds, f"{check.name}, {layout}")

    def _try(self, check: Check, layout: str) -> tuple[Ended | None, list[str]]:
        if self._gone:
            return Skipped(self._gone), []
        try:
            rig = self._rig(layout)
        except (OSError, VirtioError) as error:
            self._lost(check)
            return Wedged(f"there is no connection: {error}"), []
        try:
            ended = self._run(check, rig)
            if check.hostile if ended is None else ended.outcome in (Outcome.REJECT, Outcome.WEDGED):
                ended = self._alive(check, rig, ended)
        finally:
            self._close(rig.transport)
        return ended, rig.remarks

    def _rig(self, layout: str) -> Rig:
        return Rig(self._connected(), self.kind, layout, self.patience, self.quiet, self.thorough)

    def _connected(self) -> Transport:
        """A connection; a back-end that has just lost one, or has just begun, may take a moment."""
        deadline = monotonic() + self.patience
        while True:
            try:
                return self.connect()
            except (OSError, TransportError):
                if monotonic() > deadline:
                    raise
                sleep(0.05)

    def _run(self, check: Check, rig: Rig) -> Ended | None:
        try:
            if rig.layout == "packed":
                rig.need(Feature.RING_PACKED)
            rig.need(*check.needs)
            check(rig)
        except Ended as ended:
            return ended
        except Disconnected as error:
            return self._alive(check, rig, Failed(f"the device hangs up: {error}"))
        except NeedsReset as error:
            return Failed(str(error))
        except TransportError as error:
            return self._alive(check, rig, Wedged(str(error)))
        except PeerError as error:
            return Failed(str(error))
        return None

    def _alive(self, check: Check, rig: Rig, ended: Ended | None) -> Ended | None:
        """After a hang-up, a refusal or silence: whether a new connection finds the device at work."""
        self._close(rig.transport)
        before = ended.detail if ended is not None else check.title
        try:
            probe = self._rig("split")
        except (OSError, VirtioError) as error:
            self._lost(check)
            return Wedged(f"{before}; then the back-end is gone ({error})")
        try:
            probe.start()
            probe.good()
        except (OSError, VirtioError) as error:
            self._lost(check)
            return Wedged(f"{before}; then nothing is answered on a new connection ({error})")
        finally:
            self._close(probe.transport)
        return ended

    def _lost(self, check: Check) -> None:
        if self.restart is None:
            self._gone = f"the back-end is gone since {check.name}"
        else:
            self.restart()

    def _close(self, transport: Transport) -> None:
        with suppress(VirtioError, OSError):
            transport.write_status(0)
        transport.close()


def _outcome(check: Check, ended: Ended | None, clause: str, meant: str) -> tuple[Outcome, str]:
    if ended is None:
        return Outcome.PASS, check.title
    if meant and clause != meant:
        return Outcome.SKIP, f"not judged, {meant} ended the check"
    return ended.outcome, ended.detail
