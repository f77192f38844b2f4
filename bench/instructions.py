"""How many instructions a buffer takes through both halves: `python bench/instructions.py`, which needs valgrind.

Each row is run twice in a process of its own under callgrind; the difference between many buffers and few is the
loops' alone. Compiled for a processor without extensions, since valgrind does not know the newest ones.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import product

from attrs import asdict, evolve

from virtio_py.errors import UsageError
from virtio_py.testing.ring_cases import Case
from virtio_py.testing.ring_exchange import Turns
from virtio_py.testing.ring_halves import Ground

FEW, MANY = 3_200, 35_200
SHAPES = (Case(batch=1), Case(), Case(chain=3), Case(chain=3, indirect=True))


def exchange(case: Case, total: int) -> None:
    """What is counted, and much that is not."""
    ground = Ground.new()
    turns = Turns(case, ground, "")
    turns.run(case.batch)
    turns.run(total)
    ground.close()


def instructions(case: Case, total: int) -> int:
    """All instructions of a process that exchanges `total` buffers. Raises UsageError where valgrind is not."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, __file__]
    command += [json.dumps(asdict(case)), str(total)]
    generic = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=generic, check=True)
    except FileNotFoundError as error:
        raise UsageError("this needs valgrind") from error
    [count] = re.findall(r"Collected : (\d+)", done.stderr)
    return int(count)


def main() -> None:
    """Prints a table in Markdown; or, as a child, exchanges buffers."""
    if len(sys.argv) == 3:
        exchange(Case(**json.loads(sys.argv[1])), int(sys.argv[2]))
        return
    print(
        "| layout | in order | chain 1, batch 1 | chain 1, batch 32 | chain 3, batch 32 | chain 3 indirect, batch 32 |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for layout, in_order in product(("split", "packed"), (False, True)):
        cases = [evolve(shape, layout=layout, in_order=in_order) for shape in SHAPES]
        counts = [(instructions(case, MANY) - instructions(case, FEW)) // (MANY - FEW) for case in cases]
        print(f"| {layout} | {'yes' if in_order else 'no'} | {' | '.join(map(str, counts))} |", flush=True)


if __name__ == "__main__":
    main()
