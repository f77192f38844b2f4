"""What a driver has set in a network device, as the commands that set it again (5.1.6.5).

So whoever takes a state over judges it as it judges a driver, and it can do no more than a driver could. What belongs
to queues in service (NOTF_COAL_VQ_SET) and what was only observed (flows, statistics) is not part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from construct import Int8ul, Int32ul, Struct

from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.commands import RssSettings
from virtio_py.devices.net.control import COMMANDS, Controlled, Refused
from virtio_py.devices.net.filtering import ReceiveFilter
from virtio_py.devices.net.rss import HashConfig, RssConfig, Steering
from virtio_py.devices.saved import Parts
from virtio_py.errors import MessageError
from virtio_py.records import Record

Command = tuple[tuple[int, int], bytes]

saved_command = Record(
    "saved_command",
    Struct("class_" / Int8ul, "command" / Int8ul, "length" / Int32ul),
    cite="this package's own",
)
"""In front of `length` bytes of a command's data."""

_MODES: Final[Mapping[str, tuple[int, int]]] = {
    "promisc": c.RX_PROMISC,
    "allmulti": c.RX_ALLMULTI,
    "alluni": c.RX_ALLUNI,
    "nomulti": c.RX_NOMULTI,
    "nouni": c.RX_NOUNI,
    "nobcast": c.RX_NOBCAST,
}


def save(device: Controlled, given_mac: bytes | None) -> bytes:
    """The state of a device whose driver was given this address, or none."""
    commands = [*_filtering(device.filter, given_mac), *_steering(device.steering), *_rest(device)]
    return b"".join(
        saved_command.encode(class_=key[0], command=key[1], length=len(data)) + data for key, data in commands
    )


def _filtering(found: ReceiveFilter, given_mac: bytes | None) -> Iterator[Command]:
    if found.mac not in (None, given_mac):
        yield c.MAC_ADDR_SET, found.mac or b""
    yield from ((command, b"\1") for name, command in _MODES.items() if getattr(found, name))
    if found.macs:
        groups = [sorted(mac for mac in found.macs if mac[0] & 1 == kind) for kind in (0, 1)]
        tables = [c.virtio_net_ctrl_mac(len(group)).encode(entries=len(group), macs=group) for group in groups]
        yield c.MAC_TABLE_SET, b"".join(tables)
    yield from ((c.VLAN_ADD, c.virtio_net_ctrl_vlan.encode(vlan=vlan)) for vlan in sorted(found.vlans or ()))


def _steering(found: Steering) -> Iterator[Command]:
    if found.pairs > 1:
        yield c.MQ_VQ_PAIRS_SET, c.virtio_net_ctrl_mq_pairs_set.encode(virtqueue_pairs=found.pairs)
    if found.hashing.hash_types:
        yield c.MQ_HASH_CONFIG, _hash(found.hashing)
    if found.rss is not None:
        yield c.MQ_RSS_CONFIG, _rss(found.rss)
    for number, context in found.contexts.items():
        yield c.RSS_CTX_ADD, c.virtnet_rss_ctx_add_modify.encode(rss_ctx_id=number) + _rss(context)
    if found.hashing.tunnels:
        yield c.HASH_TUNNEL_SET, c.virtnet_hash_tunnel.encode(enabled_tunnel_types=found.hashing.tunnels)


def _hash(found: HashConfig) -> bytes:
    head = c.virtio_net_hash_config(0).encode(hash_types=found.hash_types, hash_key_length=len(found.key))
    return head + found.key


def _rss(found: RssConfig) -> bytes:
    hashing = found.hashing
    return RssSettings(hashing.hash_types, hashing.key, found.table, found.unclassified, found.max_tx).encode()


def _rest(device: Controlled) -> Iterator[Command]:
    if device.offloads != device.negotiated_offloads:
        yield c.GUEST_OFFLOADS_SET, c.virtio_net_ctrl_guest_offloads.encode(offloads=device.offloads)
    for command, value in (
        (c.NOTF_COAL_TX_SET, device.coalescing.transmit),
        (c.NOTF_COAL_RX_SET, device.coalescing.receive),
    ):
        if any(value):
            yield command, c.virtio_net_ctrl_coal.encode(**value._asdict())


def load(device: Controlled, state: bytes) -> None:
    """Carries the commands out on a device that was just negotiated. Raises MessageError for one that it refuses."""
    parts = Parts(state)
    while parts.left:
        head = parts.record(saved_command)
        _replay(device, (head.class_, head.command), parts.take(head.length))


def _replay(device: Controlled, key: tuple[int, int], data: bytes) -> None:
    command = COMMANDS.get(key)
    if command is None or not device.features & command.any_of:
        raise MessageError(f"a state with command {key[1]} of class {key[0]}")
    try:
        command.serve(device, data)
    except Refused as error:
        raise MessageError(f"a state that is refused: {error}") from error
