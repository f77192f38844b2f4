"""What stands behind a network device: something that takes packets and has packets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from virtio_py.devices.net.header import Packet
from virtio_py.watch import Watch

BUDGET: Final = 64
"""How many packets a port takes from the outside at one time: the driver's own work must get its turn."""

Receiver = Callable[[Packet], bool]
"""Is given a packet, and says whether it has taken it; a packet that is dropped has been taken."""


class Port:
    """The other end of the device's link. Every method has a default: a port that swallows all and says nothing.

    offloads: mask of what may be left undone to a packet that is sent here, in the positions of
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET; the device does the rest before.
    """

    offloads: int = 0

    def __init__(self) -> None:
        self._receiver: Receiver | None = None
        self._held: Packet | None = None

    def attach(self, receiver: Receiver) -> None:
        """From now on, what comes in goes to `receiver`."""
        self._receiver = receiver

    def send(self, packet: Packet) -> None:
        """Takes one packet. What cannot be passed on is dropped, as on any link."""

    def deliver(self, packet: Packet) -> bool:
        """Hands in a packet from outside. False if the receiver has no room: it is held, until `resume`."""
        if self._receiver is None:
            return True
        if self._held is None and self._receiver(packet):
            return True
        self._held = self._held or packet
        return False

    @property
    def blocked(self) -> bool:
        """Whether a packet waits for room, so that nothing more can be delivered."""
        return self._held is not None

    def resume(self) -> None:
        """The receiver has room again."""
        held, self._held = self._held, None
        if held is not None:
            self.deliver(held)

    def reset(self) -> None:
        """The driver is gone, and what waited for it is of no use to the next."""
        self._held = None

    def watch(self) -> Sequence[Watch]:
        """See Device.watch."""
        return ()

    def close(self) -> None:
        """Lets go of what is open."""
