"""Fuzzes one target with atheris, guided by coverage: `python -m tests.fuzz ring_of_a_driver --seconds 900`.

atheris is no dependency of this project (`pip install atheris`); tests/test_fuzz.py needs none to run what was found.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.corpus import FOUND

TARGET_NAMES = (
    "vhost_user_messages",
    "pci_capabilities",
    "ring_of_a_driver",
    "ring_of_a_device",
    "scsi_commands",
    "net_commands",
    "admin_commands",
)


def main() -> None:
    """Runs until the time is up, or until an input fails: it is written beside the corpus, for the tests to repeat."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGET_NAMES)
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder for inputs that reach something new")
    arguments = parser.parse_args()
    import atheris

    # Only what is imported in here is watched for coverage.
    with atheris.instrument_imports(include=["virtio_py"]):
        from tests.fuzz.targets import TARGETS
    assert tuple(TARGETS) == TARGET_NAMES
    arguments.corpus.mkdir(parents=True, exist_ok=True)
    failures = FOUND / arguments.target
    failures.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={arguments.seconds}", f"-artifact_prefix={failures}/", "-max_len=4200", "-timeout=10"]
    atheris.Setup([sys.argv[0], *options, str(arguments.corpus)], TARGETS[arguments.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
