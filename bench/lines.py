"""How many cache lines a buffer moves from core to core, from the layouts alone: `python bench/lines.py`."""

from __future__ import annotations

from itertools import product

from virtio_py.rings.layouts import pvirtq_desc, virtq_avail, virtq_desc, virtq_used_elem
from virtio_py.testing.ring_cases import Case

LINE = 64


def lines_of(size: int, count: int = 1) -> int:
    """Lines that `count` things of `size` bytes, side by side, take: what is written at once moves at once."""
    return -(-size * count // LINE)


def split_lines(case: Case) -> tuple[int, int]:
    """Lines that a batch moves to the device and back: descriptors, ring entries, and an index on either way."""
    slots = 1 if case.indirect else case.chain
    there = lines_of(virtq_desc.size, slots * case.batch) + _tables(case)
    there += lines_of(virtq_avail(1).fields["ring"].size, case.batch) + 1
    back = lines_of(virtq_used_elem.size, 1 if case.in_order else case.batch) + 1
    return there, back


def packed_lines(case: Case) -> tuple[int, int]:
    """The same: the descriptors themselves go there and come back; in order, one comes back for all."""
    slots = 1 if case.indirect else case.chain
    ring = lines_of(pvirtq_desc.size, slots * case.batch)
    return ring + _tables(case), 1 if case.in_order else min(ring, case.batch)


def _tables(case: Case) -> int:
    """Each buffer has an indirect table of its own."""
    return lines_of(virtq_desc.size, case.chain) * case.batch if case.indirect else 0


LINES = {"split": split_lines, "packed": packed_lines}


def main() -> None:
    """Prints a table in Markdown."""
    print("| layout | in order | chain | batch | lines there | lines back | lines a buffer |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    shapes = ((1, False), (3, False), (3, True))
    for (chain, indirect), batch in product(shapes, (1, 32)):
        for layout, in_order in product(LINES, (False, True)):
            case = Case(layout, in_order, batch=batch, chain=chain, indirect=indirect)
            there, back = LINES[layout](case)
            shape = f"{chain}, indirect" if indirect else str(chain)
            order = "yes" if in_order else "no"
            print(f"| {layout} | {order} | {shape} | {batch} | {there} | {back} | {(there + back) / batch:.2f} |")


if __name__ == "__main__":
    main()
