"""Conformance-testing a back-end written in C, clause by clause: qemu-storage-daemon here; put your own in its place.

    python examples/conformance_testing_a_backend.py disk.img /tmp/disk.sock

Each check connects anew; where the back-end has died of one, it is started again. What is printed are the clauses it
does not keep, and a count. The same from a shell: `virtio-py conform --help`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from virtio_py.spec import DeviceId
from virtio_py.testing.conformance.run import run
from virtio_py.testing.conformance.spawn import Spawned
from virtio_py.testing.conformance.verdicts import BAD
from virtio_py.transports.vhost_user_transport import VhostUserTransport

COMMAND = (
    "qemu-storage-daemon --blockdev driver=file,node-name=disk,filename={image},discard=unmap "
    "--export type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket},writable=on"
)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 if a clause is broken, or the back-end does not answer any more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="a file of some MiB; its last blocks are written to")
    parser.add_argument("socket")
    parser.add_argument("--only", default="", help="clauses that begin with this, such as split.device")
    options = parser.parse_args(arguments)

    def connect() -> VhostUserTransport:
        return VhostUserTransport(options.socket, DeviceId.BLOCK, num_queues=1, timeout=2.0)

    command = COMMAND.format(image=options.image, socket=options.socket)
    with Spawned(command, options.socket, lambda: connect().close()) as backend:
        verdicts = run(connect, "blk", only=options.only, restart=backend.restart)
    for verdict in verdicts:
        if verdict.verdict in BAD:
            print(f"{verdict.verdict:8}{verdict.clause}  {verdict.detail}")
    print(", ".join(f"{outcome} {count}" for outcome, count in sorted(Counter(v.verdict for v in verdicts).items())))
    return int(any(verdict.verdict in BAD for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
