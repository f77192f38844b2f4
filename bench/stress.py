"""Two cores, both layouts, every byte checked: `python bench/stress.py [BUFFERS]`, 10^8 unless told otherwise."""

from __future__ import annotations

import argparse
import sys
from itertools import product

from virtio_py.testing.machine import machine
from virtio_py.testing.ring_cases import Case
from virtio_py.testing.ring_stress import bytes_of, stress

CASES = [Case(layout, in_order) for layout, in_order in product(("split", "packed"), (False, True))]


def main() -> int:
    """Shares the buffers among the cases; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("buffers", nargs="?", type=lambda text: int(float(text)), default=10**8, help="10^8 in all")
    parser.add_argument("--batch", type=int, default=32, help="buffers made available and completed at once")
    args = parser.parse_args()
    print(machine())
    share = -(-args.buffers // len(CASES))
    good = True
    for case in CASES:
        options = f"{case.layout:6} {'in order' if case.in_order else 'out of order':12}"
        outcome = stress(Case(case.layout, case.in_order, batch=args.batch), share)
        whole = outcome.bytes_checked == bytes_of(share)
        print(f"{options} {share:,} buffers: {outcome}", flush=True)
        good = good and outcome.well and whole
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
