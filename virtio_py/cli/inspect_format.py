"""How `inspect` writes a field's number: `"{enable:?}"` is + or -, `"{max_payload_size:payload}"` is 256.

Wording and units are lspci's, so that the two outputs can be laid side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final


class Number(int):
    """An integer of a register that knows the formats of `FORMATS` besides int's own."""

    def __format__(self, spec: str) -> str:
        form = FORMATS.get(spec)
        return form(int(self)) if form else super().__format__(spec)


def numbers(value: Any) -> Any:
    """The same nested dicts and lists, every int in them a Number."""
    if isinstance(value, Mapping):
        return {name: numbers(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [numbers(inner) for inner in value]
    return Number(value) if isinstance(value, int) else value


def _one_of(*names: str, default: str = "Unknown") -> Callable[[int], str]:
    return lambda value: names[value] if value < len(names) else default


def _lookup(names: Mapping[int, str], default: str = "Unknown") -> Callable[[int], str]:
    return lambda value: names.get(value, default)


SPEEDS: Final[Sequence[str]] = ("2.5", "5", "8", "16", "32", "64")


def _speed(value: int, default: str = "unknown") -> str:
    return f"{SPEEDS[value - 1]}GT/s" if 1 <= value <= len(SPEEDS) else default


def _speeds(vector: int) -> str:
    offered = [speed for bit, speed in enumerate(SPEEDS) if vector >> bit & 1]
    if not offered:
        return "Unknown"
    return f"{offered[0]}GT/s" if len(offered) == 1 else f"{offered[0]}-{offered[-1]}GT/s"


def serial(value: int) -> str:
    """A 64-bit serial number as eight bytes, the highest first."""
    return "-".join(f"{byte:02x}" for byte in value.to_bytes(8, "big"))


_ACCEPTABLE: Final = "unlimited"
_MARGIN: Final = "200-400mV(full-swing)/100-200mV(half-swing)"

FORMATS: Final[Mapping[str, Callable[[int], str]]] = {
    "?": _one_of("-", default="+"),
    "not": _one_of("+", default="-"),
    "payload": lambda value: str(128 << value),
    "power_of_2": lambda value: str(1 << value),
    "more": lambda value: str(value + 1),
    "phantoms": lambda value: str((1 << value) - 1),
    "rcb": _one_of("64", "128"),
    "speed": _speed,
    "target_speed": lambda value: _speed(value or 1, "Unknown"),
    "speeds": _speeds,
    "serial": serial,
    "l0s": _one_of("<64ns", "<128ns", "<256ns", "<512ns", "<1us", "<2us", "<4us", _ACCEPTABLE),
    "l1": _one_of("<1us", "<2us", "<4us", "<8us", "<16us", "<32us", "<64us", _ACCEPTABLE),
    "aspm_support": _one_of("not supported", "L0s", "L1", "L0s L1"),
    "aspm_control": _one_of("Disabled", "L0s Enabled", "L1 Enabled", "L0s L1 Enabled"),
    "indicator": _one_of("Unknown", "On", "Blink", "Off"),
    "devsel": _one_of("fast", "medium", "slow", "??"),
    "aux_current": lambda value: f"{(0, 55, 100, 160, 220, 270, 320, 375)[value & 7]}mA",
    "timeout_ranges": _lookup(
        {
            0: "Not Supported",
            1: "Range A",
            2: "Range B",
            3: "Range AB",
            6: "Range BC",
            7: "Range ABC",
            14: "Range BCD",
            15: "Range ABCD",
        }
    ),
    "timeout": _lookup(
        {
            0: "50us to 50ms",
            1: "50us to 100us",
            2: "1ms to 10ms",
            5: "16ms to 55ms",
            6: "65ms to 210ms",
            9: "260ms to 900ms",
            10: "1s to 3.5s",
            13: "4s to 13s",
            14: "17s to 64s",
        }
    ),
    "obff": _one_of("Not Supported", "Via message", "Via WAKE#", "Via message/WAKE#"),
    "obff_control": _one_of("Disabled", "Via message A", "Via message B", "Via WAKE#"),
    "power_reduction": _one_of("Not Supported", "Dev Specific", "Form Factor Dev Specific", "Reserved"),
    "cls": _one_of("Not Supported", "64byte cachelines", "128byte cachelines", "Reserved"),
    "prefixes": lambda value: str(value or 4),
    "margin": _one_of(
        "Normal Operating Range", "800-1200mV(full-swing)/400-700mV(half-swing)", _MARGIN, _MARGIN, _MARGIN, _MARGIN
    ),
    "preset": _one_of(
        *(f"{de}dB de-emphasis, 0dB preshoot" for de in ("-6", "-3.5", "-4.4", "-2.5", "0")),
        *(f"0dB de-emphasis, {pre}dB preshoot" for pre in ("1.9", "2.5")),
        *(f"{de}dB de-emphasis, 3.5dB preshoot" for de in ("-6.0", "-3.5", "0")),
    ),
    "de_emphasis": _one_of("-6dB", "-3.5dB"),
    "presence": _one_of(
        "Link Down - Not Determined",
        "Link Down - Not Present",
        "Link Down - Present",
        "Reserved",
        "Link Up - Present",
        "Link Up - Present and DRS Received",
        default="Reserved",
    ),
    "crosslink": _one_of("unsupported", "Upstream Port", "Downstream Port", "incomplete"),
}
