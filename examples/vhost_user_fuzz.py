"""A fuzz session against a vhost-user back-end: the whole life of a device in any order, with a hostile driver in it.

    virtio-py serve entropy --socket-path /tmp/rng.sock &
    python examples/vhost_user_fuzz.py /tmp/rng.sock --examples 200

Prints nothing but a summary if the back-end holds. If not, the shortest sequence that shows it is printed as a program,
which can be run against the same socket again and again. The back-end here is a source of randomness; for another type
change the driver class and the requests.
"""

from __future__ import annotations

import argparse
import sys
from typing import ClassVar

from virtio_py.device import Device
from virtio_py.devices.entropy import EntropyDevice, EntropyDriver
from virtio_py.driver import Transport
from virtio_py.spec import DeviceId
from virtio_py.testing.device_machine import DeviceMachine
from virtio_py.testing.hostile_driver import Outcome
from virtio_py.testing.machines import run
from virtio_py.transports.vhost_user_transport import VhostUserTransport


class BackendMachine(DeviceMachine):
    """Made with the path of a socket; connects anew for every sequence."""

    driver_class = EntropyDriver
    # vhost-user has no way to say DEVICE_NEEDS_RESET without a status message: a back-end may just go silent.
    outcomes: ClassVar[frozenset[Outcome]] = frozenset({Outcome.TOLD, Outcome.SILENT, Outcome.GONE})

    def make_device(self) -> Device:
        """The one that matters is behind the socket."""
        return EntropyDevice()

    def make_transport(self) -> Transport:
        return VhostUserTransport(self.arguments[0], DeviceId.ENTROPY, memory_size=1 << 20, num_queues=1)


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 if the back-end was found to break a rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("socket")
    parser.add_argument("--examples", type=int, default=100)
    options = parser.parse_args(arguments)
    try:
        run(lambda: BackendMachine(options.socket), examples=options.examples, steps=15)
    except AssertionError as error:
        print(error, *error.__notes__, sep="\n")
        return 1
    print(f"{options.examples} sequences, and the back-end holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
