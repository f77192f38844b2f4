"""The control virtqueue: one function a command, and the table that finds it (5.1.6.5).

A command is parsed by the number of its bytes, never by descriptors. It is judged as a whole before anything changes:
what is answered VIRTIO_NET_ERR has left no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, NamedTuple, Protocol

from virtio_py.devices.net import control_layout as c
from virtio_py.devices.net.control_layout import Ack, virtio_net_ctrl
from virtio_py.devices.net.counters import (
    STATS_OF_ROLE,
    Coalescing,
    CoalescingTable,
    Counts,
    Role,
    encode_stats,
    has_stats,
)
from virtio_py.devices.net.filtering import ReceiveFilter
from virtio_py.devices.net.layout import NetFeature
from virtio_py.devices.net.parts import note
from virtio_py.devices.net.rss import HashConfig, RssConfig, Steering
from virtio_py.errors import RequestError
from virtio_py.records import Record
from virtio_py.rings.chain import Chain
from virtio_py.rings.queue import DeviceQueue
from virtio_py.spec import bit, mask

MAX_DATA: Final = 1 << 17
"""Bytes of command-specific data that are looked at: more than any command can mean, so that more is an error."""


class Refused(Exception):
    """VIRTIO_NET_ERR is the answer."""


class Controlled(Protocol):
    """What a command needs to know of its device."""

    features: int
    filter: ReceiveFilter
    steering: Steering
    coalescing: CoalescingTable
    pairs: int
    max_rss_contexts: int
    rss_max_key_size: int
    rss_max_indirection_table_length: int
    supported_hash_types: int
    supported_tunnel_types: int
    offloads: int
    configured: dict[tuple[int, int], bytes]

    @property
    def negotiated_offloads(self) -> int:
        """The offloads that the features allow to be enabled."""

    def set_mac(self, mac: bytes) -> None:
        """The driver's own choice of address."""

    def clear_announce(self) -> None:
        """The driver has announced itself."""

    def role(self, index: int) -> Role | None:
        """What a virtqueue is for, None if there is no such queue."""

    def in_service(self, index: int) -> DeviceQueue | None:
        """The running virtqueue with this index, or None."""

    def counts(self, index: int) -> Counts:
        """The counters of a queue."""


def _exactly(record: Record, data: bytes) -> bytes:
    if len(data) != record.size:
        raise Refused(f"{record.name} takes {record.size} bytes, not {len(data)}")
    return data


# Receive filtering


def _set_mode(name: str) -> Handler:
    def serve(device: Controlled, data: bytes) -> bytes:
        if data not in (b"\0", b"\1"):
            raise Refused("a mode is one byte, 0 or 1")
        setattr(device.filter, name, data == b"\1")
        return b""

    return serve


def _mac_table(device: Controlled, data: bytes) -> bytes:
    unicast, rest = _macs(data)
    multicast, rest = _macs(rest)
    if rest or any(mac[0] & 1 for mac in unicast) or not all(mac[0] & 1 for mac in multicast):
        raise Refused("the tables do not fill the command, or hold addresses of the other kind")
    device.filter.macs = frozenset(unicast + multicast)
    return b""


def _macs(data: bytes) -> tuple[list[bytes], bytes]:
    head = c.virtio_net_ctrl_mac(0)
    if len(data) < head.size:
        raise Refused("a table of addresses is missing")
    entries = head.decode(data).entries
    end = head.size + 6 * entries
    if end > len(data):
        raise Refused(f"a table of {entries} addresses ends after {len(data)} bytes")
    return [data[at : at + 6] for at in range(head.size, end, 6)], data[end:]


def _mac_addr(device: Controlled, data: bytes) -> bytes:
    if len(data) != 6 or data[0] & 1:
        raise Refused("not an address of a station")
    device.set_mac(data)
    return b""


def _vlan_add(device: Controlled, data: bytes) -> bytes:
    _vlans(device).add(_vlan(data))
    return b""


def _vlan_del(device: Controlled, data: bytes) -> bytes:
    _vlans(device).discard(_vlan(data))
    return b""


def _vlans(device: Controlled) -> set[int]:
    if device.filter.vlans is None:
        raise Refused("VLANs are not filtered")
    return device.filter.vlans


def _vlan(data: bytes) -> int:
    vlan: int = c.virtio_net_ctrl_vlan.decode(_exactly(c.virtio_net_ctrl_vlan, data)).vlan
    if vlan > 0xFFF:
        raise Refused(f"{vlan} is no VLAN")
    return vlan


def _announce_ack(device: Controlled, data: bytes) -> bytes:
    device.clear_announce()
    return b""


# Steering


def _pairs_set(device: Controlled, data: bytes) -> bytes:
    record = c.virtio_net_ctrl_mq_pairs_set
    pairs = record.decode(_exactly(record, data)).virtqueue_pairs
    if not 1 <= pairs <= device.pairs:
        raise Refused(f"{pairs} pairs of queues are not from 1 to {device.pairs}")
    device.steering.automatic(pairs)
    return b""


def _rss_config(device: Controlled, data: bytes) -> bytes:
    device.steering.rss = _rss(device, data)
    return b""


def _rss(device: Controlled, data: bytes) -> RssConfig:
    """Judges a virtio_net_rss_config, whose middle is as long as its own mask says."""
    head = c.virtio_net_rss_config(0)
    if len(data) < head.size:
        raise Refused("the structure ends early")
    entries = head.decode(data).indirection_table_mask + 1
    record = c.virtio_net_rss_config(entries) if _table_fits(device, entries) else head
    if record is head or len(data) < record.size:
        raise Refused(f"an indirection table of {entries} entries")
    config = record.decode(data)
    if not 1 <= config.max_tx_vq <= device.pairs:
        raise Refused(f"max_tx_vq is {config.max_tx_vq}")
    return RssConfig(
        _hashing(device, config.hash_types, config.hash_key_length, data[record.size :]),
        tuple(_receiveq(device, entry) for entry in config.indirection_table),
        _receiveq(device, config.unclassified_queue),
        config.max_tx_vq,
    )


def _table_fits(device: Controlled, entries: int) -> bool:
    return entries & (entries - 1) == 0 and entries <= device.rss_max_indirection_table_length


def _receiveq(device: Controlled, entry: Rq) -> int:
    number: int = entry.vq_index_1_16
    if entry.reserved or number >= device.pairs:
        raise Refused(f"{number} is no receive queue")
    return number


class Rq(Protocol):
    """An rss_rq_id."""

    vq_index_1_16: int
    reserved: int


def _hashing(device: Controlled, hash_types: int, length: int, key: bytes) -> HashConfig:
    if hash_types & ~device.supported_hash_types:
        raise Refused(f"hash types {hash_types:#x}")
    if length != len(key) or length > device.rss_max_key_size:
        raise Refused(f"a key of {length} bytes in {len(key)}")
    # What the key is hashed over does not change with it.
    return HashConfig(hash_types, key, device.steering.hashing.tunnels)


def _hash_config(device: Controlled, data: bytes) -> bytes:
    record = c.virtio_net_hash_config(0)
    if len(data) < record.size:
        raise Refused("the structure ends early")
    config = record.decode(data)
    device.steering.hashing = _hashing(device, config.hash_types, config.hash_key_length, data[record.size :])
    return b""


def _hash_tunnel(device: Controlled, data: bytes) -> bytes:
    record = c.virtnet_hash_tunnel
    types = record.decode(_exactly(record, data)).enabled_tunnel_types
    if types & ~device.supported_tunnel_types:
        raise Refused(f"tunnel types {types:#x}")
    for hashing in (device.steering.hashing, *(rss.hashing for rss in (device.steering.rss,) if rss)):
        hashing.tunnels = types
    return b""


def _context_cap(device: Controlled, data: bytes) -> bytes:
    return c.virtnet_rss_ctx_cap.encode(max_rss_contexts=device.max_rss_contexts)


def _context_set(exists: bool) -> Handler:
    def serve(device: Controlled, data: bytes) -> bytes:
        head = c.virtnet_rss_ctx_add_modify
        if len(data) < head.size:
            raise Refused("the structure ends early")
        context = _context(device, head.decode(data).rss_ctx_id, exists)
        device.steering.contexts[context] = _rss(device, data[head.size :])
        return b""

    return serve


def _context_del(device: Controlled, data: bytes) -> bytes:
    record = c.virtnet_rss_ctx_del
    del device.steering.contexts[_context(device, record.decode(_exactly(record, data)).rss_ctx_id, True)]
    return b""


def _context(device: Controlled, context: int, exists: bool) -> int:
    if not 1 <= context <= device.max_rss_contexts or (context in device.steering.contexts) != exists:
        raise Refused(f"RSS context {context}")
    return context


# Offloads, coalescing, statistics


def _offloads_set(device: Controlled, data: bytes) -> bytes:
    record = c.virtio_net_ctrl_guest_offloads
    offloads = record.decode(_exactly(record, data)).offloads
    if offloads & ~device.negotiated_offloads:
        raise Refused(f"offloads {offloads & ~device.negotiated_offloads:#x} were not negotiated")
    device.offloads = offloads
    return b""


def _coalesce_all(role: Role) -> Handler:
    def serve(device: Controlled, data: bytes) -> bytes:
        value = c.virtio_net_ctrl_coal.decode(_exactly(c.virtio_net_ctrl_coal, data))
        indices = [n for n in range(2 * device.pairs) if device.role(n) == role]
        device.coalescing.set_all(role, indices, Coalescing(*value))
        return b""

    return serve


def _coalesced_queue(device: Controlled, index: int) -> tuple[Role, DeviceQueue]:
    role, queue = device.role(index), device.in_service(index)
    if role not in (Role.RX, Role.TX) or queue is None:
        raise Refused(f"queue {index} is no enabled receive or transmit queue")
    return role, queue


def _coalesce_queue(device: Controlled, data: bytes) -> bytes:
    record = c.virtio_net_ctrl_coal_vq
    value = record.decode(_exactly(record, data))
    _, queue = _coalesced_queue(device, value.vq_index)
    device.coalescing.queues[value.vq_index] = (queue, Coalescing(*value.coal))
    return b""


def _coalesced(device: Controlled, data: bytes) -> bytes:
    record = c.virtio_net_ctrl_coal_vq
    if len(data) != record.offset("coal"):
        raise Refused("vq_index and reserved are all that is asked with")
    index = record.decode(data.ljust(record.size, b"\0")).vq_index
    found = device.coalescing.of(*_coalesced_queue(device, index))
    return c.virtio_net_ctrl_coal.encode(max_packets=found.max_packets, max_usecs=found.max_usecs)


def _stats_query(device: Controlled, data: bytes) -> bytes:
    kinds = [kind for group in STATS_OF_ROLE.values() for kind in group if has_stats(kind, device.features)]
    return c.virtio_net_stats_capabilities.encode(supported_stats_types=mask(*kinds))


def _stats_get(device: Controlled, data: bytes) -> bytes:
    record = c.virtio_net_ctrl_queue_stats
    if not data or len(data) % record.size:
        raise Refused("no whole entries")
    entries = [record.decode(data, at) for at in range(0, len(data), record.size)]
    return b"".join(_queue_stats(device, entry.vq_index, entry.types_bitmap) for entry in entries)


def _queue_stats(device: Controlled, index: int, types: int) -> bytes:
    role = device.role(index)
    if role is None:
        raise Refused(f"there is no queue {index}")
    kinds = [kind for kind in STATS_OF_ROLE[role] if types & bit(kind) and has_stats(kind, device.features)]
    if types & ~mask(*kinds):
        raise Refused(f"queue {index} does not have all of the statistics {types:#x}")
    return b"".join(encode_stats(kind, index, device.counts(index)) for kind in kinds)


# The table

Handler = Callable[[Controlled, bytes], bytes]
"""Serves a command's data and returns what is written besides `ack`. Raises Refused."""


class Answer(Enum):
    """Where the writable bytes besides `ack` are: the layout of the command."""

    NONE = 0
    DATA = 1  # command-specific-data, before it
    RESULT = 2  # command-specific-result, behind it


class Command(NamedTuple):
    """A command: the features of which one must have been negotiated, what serves it, and its layout."""

    any_of: int
    serve: Handler
    answer: Answer = Answer.NONE
    size: int = 0


_F = NetFeature
_RX, _RX_EXTRA = bit(_F.CTRL_RX), bit(_F.CTRL_RX_EXTRA)
_CONTEXT = bit(_F.RSS_CONTEXT)

COMMANDS: Final[Mapping[tuple[int, int], Command]] = {
    c.RX_PROMISC: Command(_RX, _set_mode("promisc")),
    c.RX_ALLMULTI: Command(_RX, _set_mode("allmulti")),
    c.RX_ALLUNI: Command(_RX_EXTRA, _set_mode("alluni")),
    c.RX_NOMULTI: Command(_RX_EXTRA, _set_mode("nomulti")),
    c.RX_NOUNI: Command(_RX_EXTRA, _set_mode("nouni")),
    c.RX_NOBCAST: Command(_RX_EXTRA, _set_mode("nobcast")),
    c.MAC_TABLE_SET: Command(_RX, _mac_table),
    # A clause asks for CTRL_RX for the whole class; drivers look at CTRL_MAC_ADDR.
    c.MAC_ADDR_SET: Command(_RX | bit(_F.CTRL_MAC_ADDR), _mac_addr),
    c.VLAN_ADD: Command(bit(_F.CTRL_VLAN), _vlan_add),
    c.VLAN_DEL: Command(bit(_F.CTRL_VLAN), _vlan_del),
    c.ANNOUNCE_ACK: Command(bit(_F.GUEST_ANNOUNCE), _announce_ack),
    c.MQ_VQ_PAIRS_SET: Command(bit(_F.MQ), _pairs_set),
    c.MQ_RSS_CONFIG: Command(bit(_F.RSS), _rss_config),
    c.MQ_HASH_CONFIG: Command(bit(_F.HASH_REPORT), _hash_config),
    c.GUEST_OFFLOADS_SET: Command(bit(_F.CTRL_GUEST_OFFLOADS), _offloads_set),
    c.NOTF_COAL_TX_SET: Command(bit(_F.NOTF_COAL), _coalesce_all(Role.TX)),
    c.NOTF_COAL_RX_SET: Command(bit(_F.NOTF_COAL), _coalesce_all(Role.RX)),
    c.NOTF_COAL_VQ_SET: Command(bit(_F.VQ_NOTF_COAL), _coalesce_queue),
    c.NOTF_COAL_VQ_GET: Command(bit(_F.VQ_NOTF_COAL), _coalesced, Answer.DATA, c.virtio_net_ctrl_coal.size),
    c.HASH_TUNNEL_SET: Command(bit(_F.HASH_TUNNEL), _hash_tunnel),
    c.STATS_QUERY: Command(bit(_F.DEVICE_STATS), _stats_query, Answer.RESULT),
    c.STATS_GET: Command(bit(_F.DEVICE_STATS), _stats_get, Answer.RESULT),
    c.RSS_CTX_CAP_GET: Command(_CONTEXT, _context_cap, Answer.DATA, c.virtnet_rss_ctx_cap.size),
    c.RSS_CTX_ADD: Command(_CONTEXT, _context_set(False)),
    c.RSS_CTX_MOD: Command(_CONTEXT, _context_set(True)),
    c.RSS_CTX_DEL: Command(_CONTEXT, _context_del),
}
"""Every other command is answered VIRTIO_NET_ERR."""


def serve_command(device: Controlled, counts: Counts, chain: Chain) -> None:
    """Serves one command and writes its answer. Raises RequestError for a chain that has no room for `ack`."""
    if not chain.writable.remaining:
        raise RequestError("a command has no byte for its ack")
    counts["command_num"] += 1
    data = chain.readable.read_all() if chain.readable.remaining <= MAX_DATA else b""
    name = (data[0], data[1]) if len(data) >= virtio_net_ctrl.size else None
    # Counted before it is served: the statistics include the command that asks for them.
    counts["ok_num"] += 1
    try:
        answer, ack = carry_out(device, name, data[virtio_net_ctrl.size :]), Ack.OK
    except Refused:
        answer, ack = b"", Ack.ERR
        counts["ok_num"] -= 1
    _write(chain, COMMANDS.get(name) if name is not None else None, answer, ack)


def carry_out(device: Controlled, name: tuple[int, int] | None, data: bytes) -> bytes:
    """Carries out a command by its class and number, and returns what it answers. Raises Refused."""
    command = COMMANDS.get(name) if name is not None else None
    if name is None or command is None or not device.features & command.any_of:
        raise Refused("no such command")
    answer = command.serve(device, data)
    note(device.configured, name, data)
    return answer


def _write(chain: Chain, command: Command | None, answer: bytes, ack: Ack) -> None:
    room = chain.writable
    if command is not None and command.answer is Answer.DATA:
        if room.remaining > command.size:
            # Written in any case, so that the used length reaches as far as the ack.
            room.write(answer.ljust(command.size, b"\0"))
        else:
            ack = Ack.ERR
        answer = b""
    room.write(bytes([ack]))
    # A result is cut where the driver's room ends: it is told so by the used length.
    room.write(answer[: room.remaining])
