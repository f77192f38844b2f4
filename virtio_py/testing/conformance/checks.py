"""Checks: functions that are given a rig, with the clauses that they observe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Final

from attrs import evolve, frozen

from virtio_py.testing.conformance.rig import Rig

LAYOUTS: Final = ("split", "packed")


@frozen
class Check:
    """One check. Called with a rig it returns, or raises what `verdicts` has.

    clauses: those it observes; of a ring it observes those of the layout it is run with. What the text says without a
    normative word has no clause, and an id here that begins with "prose."
    devices: the kinds of devices it is for, all where there are none; layouts: the ring layouts it is run with
    needs: positions of the features that must be offered; hostile: whether a device may die of it
    """

    run: Callable[[Rig], None]
    clauses: tuple[str, ...]
    devices: tuple[str, ...] = ()
    layouts: tuple[str, ...] = LAYOUTS
    needs: tuple[int, ...] = ()
    hostile: bool = False

    def __call__(self, rig: Rig) -> None:
        self.run(rig)

    @property
    def name(self) -> str:
        """The function's name."""
        return self.run.__name__

    @property
    def title(self) -> str:
        """What it looks at: the first line of the function's docstring."""
        return (self.run.__doc__ or self.name).strip().splitlines()[0].rstrip(".")

    def observed(self, layout: str) -> tuple[str, ...]:
        """The clauses it observes with one layout."""
        other = {"split": "packed.", "packed": "split."}[layout]
        return tuple(clause for clause in self.clauses if not clause.removeprefix("prose.").startswith(other))


Decorator = Callable[[Callable[[Rig], None]], Check]


def check(
    *clauses: str,
    devices: str = "",
    layouts: str = "split packed",
    needs: tuple[int, ...] = (),
    hostile: bool = False,
) -> Decorator:
    """Makes a check of a function; names are separated by spaces, and a clause of one layout is for that layout."""

    def decorate(run: Callable[[Rig], None]) -> Check:
        made = Check(run, clauses, tuple(devices.split()), (), needs, hostile)
        wanted = tuple(layout for layout in layouts.split() if made.observed(layout))
        return evolve(made, layouts=wanted)

    return decorate


def checks_of(module: ModuleType) -> Iterator[Check]:
    """The checks that a module defines, in the order of its lines. A list of them, such as of a table, counts too."""
    for value in vars(module).values():
        if isinstance(value, Check):
            yield value
        elif isinstance(value, list):
            yield from (one for one in value if isinstance(one, Check))
