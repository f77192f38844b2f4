"""State machines whose failures are scripts: Hypothesis finds the shortest sequence, and it is printed as a program.

    class Mine(Machine):
        @step(count=st.integers(1, 4))
        def send(self, count: int) -> None: ...

        def check(self) -> None: ...            after every step

    run(Mine)

A failure's notes end with a program that makes a `Mine` and takes the same steps, without Hypothesis: it can be pasted
into a debugger, or kept as a test. For that the arguments of steps are values whose `repr` makes them again: numbers,
bytes, tuples, and attrs classes or named tuples of such; never `st.data()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from functools import wraps
from typing import Any, TypeVar, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

Method = TypeVar("Method", bound=Callable[..., None])


class Machine(RuleBasedStateMachine):
    """Base class. `arguments`: what it was made with, by position; `script`: the steps taken, with their arguments."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.script: list[tuple[str, dict[str, Any]]] = []

    def check(self) -> None:
        """What holds after every step. Raises AssertionError."""

    def program(self) -> str:
        """The steps taken so far, as a program: imports, a machine, a call each, and what ends it."""
        kind = type(self)
        values = [*self.arguments, *(value for _, arguments in self.script for value in arguments.values())]
        names = {(kind.__module__, kind.__qualname__.partition(".")[0])}
        names |= {(t.__module__, t.__qualname__.partition(".")[0]) for value in values for t in _types(value)}
        lines = [f"from {module} import {name}" for module, name in sorted(names)]
        lines += ["", f"machine = {kind.__qualname__}({', '.join(map(shown, self.arguments))})"]
        for name, arguments in self.script:
            lines.append(f"machine.{name}({', '.join(f'{key}={shown(value)}' for key, value in arguments.items())})")
        return "\n".join([*lines, "machine.teardown()", ""])


def shown(value: Any) -> str:
    """What makes the value again, given the imports that `Machine.program` writes."""
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"({''.join(f'{shown(part)}, ' for part in value)})"
    if hasattr(value, "_fields"):
        return f"{type(value).__qualname__}({', '.join(map(shown, value))})"
    return repr(value)


def _types(value: Any) -> Iterator[type]:
    """The classes that a program needs to make a value."""
    if type(value).__module__ != "builtins":
        yield type(value)
    if isinstance(value, list | tuple):
        for part in value:
            yield from _types(part)


def step(when: Callable[[Any], bool] | None = None, /, **strategies: st.SearchStrategy[Any]) -> Callable[[Method], Any]:
    """Makes a method a step: drawn arguments, written down, and `check` afterwards. when: in which states it is one."""

    def decorate(method: Method) -> Any:
        @wraps(method)
        def taken(self: Machine, **arguments: Any) -> None:
            self.script.append((method.__name__, arguments))
            method(self, **arguments)
            self.check()

        drawn: dict[str, Any] = strategies
        as_rule: Any = rule(**drawn)
        made = as_rule(taken)
        return made if when is None else precondition(when)(made)

    return decorate


def run(make: Callable[[], Machine], *, examples: int = 40, steps: int = 30) -> None:
    """Runs a machine. Raises what the shortest failing sequence raises, with a note: the program that replays it."""
    last: list[Machine] = []

    def made() -> Machine:
        machine = make()
        last[:] = [machine]
        return machine

    try:
        run_state_machine_as_test(
            # Hypothesis names a class; a function that returns a machine does as well.
            cast(Any, made),
            settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None, print_blob=False),
        )
    except Exception as error:  # whatever it is, it goes on, with a note
        error.add_note(
            f"The shortest sequence, as a program:\n\n{last[0].program()}" if last else "no machine was made"
        )
        raise
