"""What a driver has configured by control commands, as device parts (5.1.5): VIRTIO_NET_DEV_PART_CVQ_CFG_PART.

A part is the last command of its kind: class and command are the selector, its data are the value. The VLAN table
is one part, all of its VLANs one behind the other. Besides the commands that the specification lists here, offloads,
tunnels to hash and coalescing are carried in the same form: a driver that disabled an offload must not meet it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Final

from construct import Bytes, Int8ul, Struct

from virtio_py.devices.net import control_layout as c
from virtio_py.records import Record

CVQ_CFG_PART: Final = 0x200
MAX_PART: Final = 1 << 17
virtio_net_dev_part_cvq_selector = Record(
    "virtio_net_dev_part_cvq_selector",
    Struct("class_" / Int8ul, "command" / Int8ul, "reserved" / Bytes(6)),
    cite="5.1.5 Device parts",
)
ControlCommand = tuple[int, int]
"""Class and command."""

LISTED: Final = frozenset(
    {
        c.RX_PROMISC,
        c.RX_ALLMULTI,
        c.RX_ALLUNI,
        c.RX_NOMULTI,
        c.RX_NOUNI,
        c.RX_NOBCAST,
        c.MAC_TABLE_SET,
        c.MAC_ADDR_SET,
        c.VLAN_ADD,
        c.ANNOUNCE_ACK,
        c.MQ_VQ_PAIRS_SET,
        c.MQ_RSS_CONFIG,
        c.MQ_HASH_CONFIG,
    }
)
CARRIED: Final = LISTED | {c.GUEST_OFFLOADS_SET, c.HASH_TUNNEL_SET, c.NOTF_COAL_TX_SET, c.NOTF_COAL_RX_SET}


def note(configured: MutableMapping[ControlCommand, bytes], command: ControlCommand, data: bytes) -> None:
    """A command has succeeded. Automatic steering takes the place of what RSS was configured to."""
    if command == c.MQ_VQ_PAIRS_SET:
        configured.pop(c.MQ_RSS_CONFIG, None)
    if command in CARRIED - {c.VLAN_ADD}:
        configured[command] = data


def parts_of(configured: Mapping[ControlCommand, bytes], vlans: set[int] | None) -> Mapping[tuple[int, bytes], bytes]:
    """The parts, in the order in which they can be set."""
    values = dict(configured)
    if vlans:
        record = c.virtio_net_ctrl_vlan
        values[c.VLAN_ADD] = b"".join(record.encode(vlan=vlan) for vlan in sorted(vlans))
    return {(CVQ_CFG_PART, _selector(command)): values[command] for command in sorted(values)}


def commands_of(selector: bytes, value: bytes) -> Iterator[tuple[ControlCommand, bytes]]:
    """The commands that a part stands for, each with its data."""
    command = selector[0], selector[1]
    if command != c.VLAN_ADD:
        yield command, value
        return
    size = c.virtio_net_ctrl_vlan.size
    for at in range(0, len(value), size):
        yield command, value[at : at + size]


def takes(part_type: int, selector: bytes, value: bytes) -> bool:
    """Whether a part is a configuration; whether it can be made, only the negotiated features tell."""
    command = selector[0], selector[1]
    return (
        part_type == CVQ_CFG_PART and command in CARRIED and selector == _selector(command) and len(value) <= MAX_PART
    )


def _selector(command: ControlCommand) -> bytes:
    return virtio_net_dev_part_cvq_selector.encode(class_=command[0], command=command[1])
