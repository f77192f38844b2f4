"""Which frames a driver wants: receive modes, MAC addresses and VLANs (5.1.6.5.1 to 5.1.6.5.3).

The order of precedence: PROMISC lets everything pass; then a VLAN that is not in the table stops a tagged frame;
then a NO… mode stops its kind; then an ALL… mode, or the tables, let a frame pass.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

from virtio_py.devices.net.parsing import vlan_id

BROADCAST: Final = b"\xff" * 6


@define
class ReceiveFilter:
    """What a driver asked for since the last reset.

    mac: the default address, or None where the driver was not told of it, so that any unicast may be its own
    active: whether frames are chosen by address at all (CTRL_RX);  vlans: the table, or None without CTRL_VLAN
    """

    mac: bytes | None = None
    active: bool = False
    vlans: set[int] | None = None
    promisc: bool = False
    allmulti: bool = False
    alluni: bool = False
    nomulti: bool = False
    nouni: bool = False
    nobcast: bool = False
    macs: frozenset[bytes] = field(default=frozenset())

    def accepts(self, frame: bytes) -> bool:
        """Whether the frame goes to the driver."""
        return self.promisc or (self._accepts_vlan(frame) and (not self.active or self._accepts_address(frame[:6])))

    def _accepts_vlan(self, frame: bytes) -> bool:
        if self.vlans is None:
            return True
        tag = vlan_id(frame)
        return tag is None or tag in self.vlans

    def _accepts_address(self, to: bytes) -> bool:
        if to == BROADCAST:
            return not self.nobcast
        if to[0] & 1:
            return not self.nomulti and (self.allmulti or to in self.macs)
        return not self.nouni and (self.alluni or self.mac is None or to == self.mac or to in self.macs)
