"""How rows of a ring benchmark are shown: as a table, as Markdown, as a plot, and a bar while they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from virtio_py.errors import UsageError

Row = dict[str, Any]

MARKERS: Final = ("<!-- rings: begin -->", "<!-- rings: end -->")

# A row needs so much room. A narrower terminal breaks lines, which is better than words cut short.
_WIDTH: Final = 160


def _options(row: Row) -> str:
    words = {"in_order": "in order", "event_idx": "event idx", "indirect": "indirect"}
    return ", ".join(word for key, word in words.items() if row[key]) or "-"


COLUMNS: Final[dict[str, Callable[[Row], str]]] = {
    "engine": lambda r: r["engine"],
    "where": lambda r: "by turns" if r["note"] else r["where"],
    "layout": lambda r: r["layout"],
    "options": _options,
    "notify": lambda r: r["notify"],
    "chain": lambda r: str(r["chain"]),
    "batch": lambda r: str(r["batch"]),
    "ns/buffer": lambda r: f"{r['ns_per_buffer']:.1f}",
    "min": lambda r: f"{r['ns_min']:.1f}",
    "max": lambda r: f"{r['ns_max']:.1f}",
    "buffers/s": lambda r: f"{r['buffers_per_second']:,.0f}",
    "notif./buffer": lambda r: f"{r['notifications_per_buffer']:.4f}",
}
_WORDS: Final = 5
"""So many columns are words, the others numbers."""


def with_progress(rows: Iterator[Row], total: int) -> list[Row]:
    """The rows, with a bar on standard error while they are made, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("rings"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    made: list[Row] = []
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("rings", total=total, last="")
        for row in rows:
            made.append(row)
            progress.update(task, advance=1, last=f"{row['layout']} {row['ns_per_buffer']:.0f} ns")
    return made


def machine_lines(about: dict[str, Any]) -> list[str]:
    """What the figures depend on, in words."""
    if not about:
        return []
    load = ", ".join(map(str, about["load_average"]))
    pinned = (
        "not pinned" if about["processors"] is None else "pinned to processors {} and {}".format(*about["processors"])
    )
    lines = [
        f"{about['cpu']}, {about['cores']} processors, load average {load}; {pinned}",
        f"{about['system']}, Python {about['python']}, numba {about['numba']}, numpy {about['numpy']}",
    ]
    return [*lines, about["limitation"]] if about["limitation"] else lines


def print_rows(about: dict[str, Any], rows: list[Row], wanted: int) -> None:
    """The table, the machine, and what is to be known of the rows, on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=max(_WIDTH, Console().width))
    table = Table(box=None, pad_edge=False)
    for n, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if n < _WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for cell in COLUMNS.values()))
    console.print(table)
    for line in ["", *machine_lines(about), *remarks(rows, wanted)]:
        console.print(line, markup=False)


def remarks(rows: list[Row], wanted: int) -> list[str]:
    """What the figures are, and which rows are not what their columns say."""
    if not rows:
        return ["no row was measured"]
    least = min(row["repeats"] for row in rows)
    lines = [f"ns/buffer: there and back, the median of {least} runs; queue size {rows[0]['queue_size']}"]
    lines += [f"by turns: {note}" for note in sorted({row["note"] for row in rows if row["note"]})]
    if len(rows) < wanted:
        lines.append(f"{wanted - len(rows)} of {wanted} rows are left out: the time was up")
    return lines


def fill_markdown(text: str, about: dict[str, Any], rows: list[Row]) -> str:
    """`text` with the table between its two MARKERS. Raises UsageError where it has none."""
    before, begin, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not begin or not end:
        raise UsageError(f"the file has no {MARKERS[0]} with {MARKERS[1]} behind it")
    table = ["| " + " | ".join(COLUMNS) + " |"]
    table.append("|" + "|".join([" --- "] * _WORDS + [" ---: "] * (len(COLUMNS) - _WORDS)) + "|")
    table += ["| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |" for row in rows]
    words = [f"{line}.  " for line in machine_lines(about) + remarks(rows, len(rows))]
    return "\n".join([before + begin, "", *words, "", *table, "", end]) + after


def save_plot(path: Path, about: dict[str, Any], rows: list[Row]) -> None:
    """ns a buffer over the batch, a panel for each engine, place and way to notify; bars from min to max."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    plain = [row for row in rows if row["chain"] == 1 and not row["indirect"] and not row["event_idx"]] or rows
    panels: dict[str, list[Row]] = {}
    for row in plain:
        panels.setdefault(" / ".join(COLUMNS[name](row) for name in ("engine", "where", "notify")), []).append(row)
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 4.5), squeeze=False)
    for axes, (title, members) in zip(all_axes[0], panels.items(), strict=True):
        _panel(axes, title, members)
    figure.suptitle("\n".join(machine_lines(about)), fontsize=8)
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=120)
    pyplot.close(figure)


def _panel(axes: Any, title: str, rows: list[Row]) -> None:
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(f"{row['layout']} {_options(row)}".removesuffix(" -"), []).append(row)
    for label, points in lines.items():
        points.sort(key=lambda row: row["batch"])
        middle = [row["ns_per_buffer"] for row in points]
        below = [row["ns_per_buffer"] - row["ns_min"] for row in points]
        above = [row["ns_max"] - row["ns_per_buffer"] for row in points]
        axes.errorbar([row["batch"] for row in points], middle, [below, above], label=label, marker="o", capsize=3)
    axes.set(title=title, xlabel="batch", ylabel="ns a buffer, there and back", xscale="log", yscale="log")
    batches = sorted({row["batch"] for row in rows})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.legend(fontsize=7)
