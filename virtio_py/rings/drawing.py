"""A ring's picture as plain text, as engineers draw it on a whiteboard: boxes, positions as arrows, chains numbered.

No line is longer than MAX_WIDTH. Of a long ring, the slots are drawn where something is going on; the rest is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from textwrap import wrap
from typing import Final, NamedTuple

from virtio_py.rings.picture import Descriptor, Entry, Mark, RingPicture

MAX_WIDTH: Final = 100
"""Columns of the longest line."""

MAX_PATH: Final = 8
"""Descriptors that are named of a chain."""

MAX_ROWS: Final = 24
"""Rows of the longest table, unless more is asked for."""


MAX_FLAGS: Final = 19
"""The widest column of flags: `NEXT WRITE INDIRECT`; what a hostile driver adds to these is cut off."""


class Column(NamedTuple):
    """A column of a table: its title, and whether its values stand on the right. It is as wide as it must be."""

    title: str
    right: bool = False


def draw(picture: RingPicture, rows: int = MAX_ROWS) -> str:
    """The drawing, lines without an end at the last; `rows` is the most that each table shows."""
    sections = [head(picture), SECTIONS[picture.layout](picture, rows), list(buffers(picture, rows))]
    sections += [list(problems(picture, rows))]
    return "\n\n".join("\n".join(section) for section in sections if section)


def head(picture: RingPicture) -> list[str]:
    """What this is, who looks, and how much is going on."""
    eyes = {"driver": "seen by its driver", "device": "seen by its device", "memory": "from memory alone"}
    title = f"{picture.layout} virtqueue of {picture.size}, {eyes[picture.seen_by]}: {amount(picture)}"
    lines = wrap(title, MAX_WIDTH, subsequent_indent="  ")
    if not picture.exact:
        lines.append("  (the bytes leave a choice: buffers that are marked as such are the likeliest reading)")
    for wish in picture.suppression:
        asked = {"driver": "the driver asks the device", "device": "the device asks the driver"}[wish.side]
        lines += folded(f"{asked}: {wish.meaning}")
    return lines


def folded(text: str) -> list[str]:
    """An indented text in lines that are not too long; the ids of clauses stay whole."""
    return wrap(text, MAX_WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)


def amount(picture: RingPicture) -> str:
    """How many buffers are outstanding, and how many slots are the device's."""
    owned = sum(row.owner == "device" for row in picture.descriptors)
    count = "unknown" if picture.outstanding is None else str(picture.outstanding)
    return f"{count} outstanding, {owned} of {picture.size} descriptors with the device"


# Boxes --------------------------------------------------------------------------------------------------------------


def box(columns: Sequence[Column], rows: Sequence[list[str] | str], notes: Sequence[str]) -> list[str]:
    """A table with a frame; a row that is one text crosses it, and each row's note stands behind it, or below it
    where the line would be too long."""
    full = [row for row in rows if not isinstance(row, str)]
    widths = [max(map(len, [column.title, *values])) for column, *values in zip(columns, *full, strict=True)]
    lines = [frame(widths, "┌", "┬", "┐"), cells(columns, widths, [c.title for c in columns])]
    lines += [frame(widths, "├", "┼", "┤")]
    for row, note in zip(rows, notes, strict=True):
        line = crossing(row, len(lines[0])) if isinstance(row, str) else cells(columns, widths, row)
        lines += noted(line, note)
    return [*lines, frame(widths, "└", "┴", "┘")]


def frame(widths: Sequence[int], left: str, cross: str, right: str) -> str:
    """A horizontal line of the frame."""
    return left + cross.join(f"─{'─' * width}─" for width in widths) + right


def crossing(text: str, width: int) -> str:
    """A row that is one text."""
    left, right = "│ ", " │"
    return left + text.ljust(width - len(left + right)) + right


def cells(columns: Sequence[Column], widths: Sequence[int], values: Sequence[str]) -> str:
    """One row."""
    shown = (v.rjust(w) if c.right else v.ljust(w) for c, w, v in zip(columns, widths, values, strict=True))
    return "│ " + " │ ".join(shown) + " │"


def noted(line: str, note: str) -> list[str]:
    """A row with the arrow that points to it."""
    if not note:
        return [line]
    behind = f"{line} ◄ {note}"
    return [behind] if len(behind) <= MAX_WIDTH else [line, *wrap(note, MAX_WIDTH, initial_indent="  ▲ ")]


def beside(left: Sequence[str], right: Sequence[str], gap: int) -> list[str]:
    """Two drawings next to each other."""
    width = max(map(len, left)) + gap
    return [f"{a:<{width}}{b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")]


def pick(interesting: Sequence[bool], most: int) -> list[int | range]:
    """The rows to draw, in order: those of interest, and each run of others as a range, one alone as itself."""
    everything = len(interesting) <= most
    chosen = set([i for i, wanted in enumerate(interesting) if wanted or everything][:most])
    picked: list[int | range] = []
    for drawn, group in groupby(range(len(interesting)), key=chosen.__contains__):
        run = list(group)
        picked += run if drawn or len(run) == 1 else [range(run[0], run[-1] + 1)]
    return picked


def arrows(marks: Iterable[Mark]) -> dict[int, str]:
    """What points at each slot."""
    pointing: dict[int, list[str]] = {}
    for mark in marks:
        extra = f" = {mark.value}" if mark.value is not None else f" (wrap {mark.wrap})"
        pointing.setdefault(mark.slot, []).append(mark.name + extra)
    return {slot: ", ".join(names) for slot, names in pointing.items()}


# Descriptors --------------------------------------------------------------------------------------------------------

SLOT, ADDR, LEN = Column("slot", True), Column("addr", True), Column("len", True)
FLAG, CHAIN, STATE = Column("flags"), Column("chain"), Column("state")


def descriptor_box(
    picture: RingPicture, columns: Sequence[Column], values: Callable[[Descriptor], list[str]], most: int
) -> list[str]:
    """The descriptors, with the entries of indirect tables below those that point to them."""
    pointing = arrows(picture.marks_of("descriptors"))
    busy = [row.state != "free" or row.index in pointing for row in picture.descriptors]
    rows: list[list[str] | str] = []
    notes: list[str] = []
    for item in pick(busy, most):
        if isinstance(item, range):
            rows.append(left_out(picture.descriptors[item.start : item.stop]))
            notes.append("")
            continue
        row = picture.descriptors[item]
        inner = row.indirect[:most]
        rows += [values(row), *(["└ " + entry[0], *entry[1:]] for entry in map(values, inner))]
        notes += [pointing.get(item, "")] + [""] * len(inner)
        if len(row.indirect) > len(inner):
            rows.append(f"… {len(row.indirect) - len(inner)} more in this table")
            notes.append("")
    return box(columns, rows, notes)


def left_out(rows: Sequence[Descriptor]) -> str:
    """One line for descriptors that are not drawn."""
    states = {row.state: 0 for row in rows}
    for row in rows:
        states[row.state] += 1
    return f"… {len(rows)} more: " + ", ".join(f"{count} {state}" for state, count in states.items())


def number(chain: int | None) -> str:
    """A chain's number."""
    return "" if chain is None else f"#{chain}"


def flags(names: Iterable[str]) -> str:
    """The names, cut off where there are too many."""
    text = " ".join(names)
    return text if len(text) <= MAX_FLAGS else text[: MAX_FLAGS - 1] + "…"


def split_row(row: Descriptor) -> list[str]:
    """The cells of a split descriptor."""
    following = str(row.link) if "NEXT" in row.flag_names else ""
    shown = flags(row.flag_names)
    return [str(row.index), f"{row.addr:#x}", str(row.len), shown, following, number(row.chain), row.state]


def packed_row(row: Descriptor) -> list[str]:
    """The cells of a packed descriptor; AVAIL and USED in a column of their own."""
    shown = flags(name for name in row.flag_names if name not in ("AVAIL", "USED"))
    turns = "".join("1" if name in row.flag_names else "0" for name in ("AVAIL", "USED"))
    return [str(row.index), f"{row.addr:#x}", str(row.len), str(row.link), shown, turns, number(row.chain), row.state]


def packed(picture: RingPicture, most: int) -> list[str]:
    """The one ring of the packed layout; the column AU has the AVAIL and USED bits."""
    columns = (SLOT, ADDR, LEN, Column("id", True), FLAG, Column("AU"), CHAIN, STATE)
    return [" descriptor ring", *descriptor_box(picture, columns, packed_row, most)]


def split(picture: RingPicture, most: int) -> list[str]:
    """The descriptor table, and below it the two rings, side by side if they fit."""
    columns = (SLOT, ADDR, LEN, FLAG, Column("next", True), CHAIN, STATE)
    table = [" descriptor table", *descriptor_box(picture, columns, split_row, most), ""]
    available = ring_box(picture, "available", picture.available, most)
    used = ring_box(picture, "used", picture.used, most)
    both = beside(available, used, 3)
    return table + (both if max(map(len, both)) <= MAX_WIDTH else [*available, "", *used])


def ring_box(picture: RingPicture, name: str, entries: Sequence[Entry], most: int) -> list[str]:
    """The available or the used ring; the chains in it that the other side has yet to see have their numbers."""
    lengths = any(entry.length is not None for entry in entries)
    columns = [SLOT, *((Column("id", True), LEN) if lengths else (Column("head", True),)), CHAIN]
    pointing = arrows(picture.marks_of(name))
    rows: list[list[str] | str] = []
    notes = []
    for item in pick([entry.current or entry.slot in pointing for entry in entries], most):
        if isinstance(item, range):
            rows.append(f"… {len(item)} more")
            notes.append("")
            continue
        entry = entries[item]
        length = [] if entry.length is None else [str(entry.length)]
        rows.append([str(entry.slot), str(entry.id), *length, number(entry.chain)])
        notes.append(pointing.get(entry.slot, ""))
    writer = {"available": "the driver writes", "used": "the device writes"}[name]
    return [f" {name} ring ({writer})", *box(columns, rows, notes)]


SECTIONS: Final = {"split": split, "packed": packed}


# Buffers and problems -----------------------------------------------------------------------------------------------


def buffers(picture: RingPicture, most: int) -> Iterator[str]:
    """One line for each chain."""
    if picture.chains:
        yield " buffers"
    for chain in picture.chains[:most]:
        path = " → ".join(map(str, chain.descriptors[:MAX_PATH])) + (
            " → …" if len(chain.descriptors) > MAX_PATH else ""
        )
        size = f"{chain.readable} readable, {chain.writable} writable bytes"
        what = f"{size}, descriptors {path}" if path else f"{chain.writable} writable bytes, no longer in the ring"
        state = STATES[chain.state] if chain.certain else f"perhaps {STATES[chain.state]}"
        yield f"  #{chain.number:<4} id {chain.id:<5} {state:<23} {what}"[:MAX_WIDTH]
    if len(picture.chains) > most:
        yield f"  … {len(picture.chains) - most} more"


STATES: Final = {
    "available": "available, not taken",
    "taken": "taken by the device",
    "device": "with the device",
    "used": "used, not taken back",
}
"""What the state of a chain means."""


def problems(picture: RingPicture, most: int) -> Iterator[str]:
    """What is wrong, where, and by which clause."""
    yield " problems" if picture.problems else " no problems found"
    for found in picture.problems[:most]:
        text = f"{found.where}: {found.message}" if found.where else found.message
        clause = f" [{found.clause}]" if found.clause else ""
        yield from wrap(
            f"✗ {text}{clause}", MAX_WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
        )
    if len(picture.problems) > most:
        yield f"  … {len(picture.problems) - most} more"
