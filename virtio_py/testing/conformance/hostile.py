"""What no driver may write to a ring: a device refuses it or lives with it, and goes on either way.

PASS: it goes on as if nothing had been; REJECT: it hangs up, or asks for a reset and recovers by one, or answers with
an error; WEDGED: a good request that comes later is not answered. The clause is the one that the driver breaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from virtio_py.errors import Disconnected, NeedsReset
from virtio_py.spec import Feature
from virtio_py.testing.conformance.checks import Check, check
from virtio_py.testing.conformance.rig import Rig
from virtio_py.testing.endings import Wedged
from virtio_py.testing.hostile_driver import ATTACKS, ODDITIES, Attack, HostileDriver

_NO_CLAUSE: Final = "status.device.device-status-field.2"
"""Where no clause says what a driver must not do: an address without memory, a descriptor that is not in the table."""


def _checks_of(attack: Attack) -> Iterator[Check]:
    def run(rig: Rig) -> None:
        _stage(rig, attack)

    run.__name__, run.__doc__ = f"hostile_{attack.name.replace('-', '_')}", f"{_title(attack)}: the device goes on"
    needs = (Feature.INDIRECT_DESC,) if attack.indirect else ()
    for layout, clause in (("split", attack.split), ("packed", attack.packed)):
        if clause is not None:
            yield check(clause or _NO_CLAUSE, layouts=layout, needs=needs, hostile=True)(run)


def _title(attack: Attack) -> str:
    return attack.name.replace("-", " ")


def _stage(rig: Rig, attack: Attack) -> None:
    rig.start(*((Feature.INDIRECT_DESC,) if attack.indirect else ()), size=16)
    rig.good()
    index = rig.kind.good(rig).queue
    attack.run(HostileDriver.on(rig.transport.arena, rig.hands[index]))
    rig.kick(index)
    try:
        rig.holds(lambda: bool(rig.look(index)) or rig.needs_reset, rig.quiet)
        if rig.needs_reset:
            raise NeedsReset("the device sets DEVICE_NEEDS_RESET")
        if not attack.spoils:
            rig.good()
            return
    except (NeedsReset, Disconnected) as error:
        raise rig.rejected(_title(attack), error) from error
    except Wedged as error:
        raise _wedged(rig, attack, error) from error
    rig.start()
    rig.good()


def _wedged(rig: Rig, attack: Attack, error: Wedged) -> Wedged:
    after = "a reset does not help"
    with suppress(Wedged, NeedsReset, Disconnected):
        rig.start()
        rig.good()
        after = "a reset helps"
    return Wedged(f"{_title(attack)}: {error}, no reset is asked for, {after}")


HOSTILE: Final[list[Check]] = [one for attack in (*ATTACKS, *ODDITIES) for one in _checks_of(attack)]
"""The checks."""
