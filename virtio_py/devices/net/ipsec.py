"""The structures of inline IPsec (5.1.6.7, which borrows them from the crypto device, 5.9.7): capabilities and
security associations, with what the specification demands of their values. No packet is processed here.

Three readings had to be chosen. The tunnel parameters are a union of an IPv4 and an IPv6 header's; as in C it is as
long as the longer one. The text calls the object `virtio_crypto_resource_obj_ipsec_sa` where it declares
`virtio_crypto_resource_obj_ipsec_sa_256b_key`; the declaration counts. The third is in `unsupported`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import Any, Final

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from virtio_py.errors import RequestError
from virtio_py.records import Record, Rule

IPSEC_RESOURCE_CAP: Final = 0x0803
IPSEC_SA_CAP: Final = 0x0804
"""Capabilities, VIRTIO_NET_IPSEC_*."""

IPSEC_OUTB_SA: Final = 0x0203
IPSEC_INB_SA: Final = 0x0204
"""Resource objects, VIRTIO_NET_RESOURCE_OBJ_IPSEC_*."""


class IpsecMode(IntEnum):
    """VIRTIO_CRYPTO_IPSEC_MODE_*."""

    ESP_TUNNEL = 1
    ESP_TRANSPORT = 2
    AH_TUNNEL = 3
    AH_TRANSPORT = 4


class IpsecOption(IntFlag):
    """VIRTIO_CRYPTO_IPSEC_*, as masks."""

    ESN = 1 << 0
    UDP_ENCAP = 1 << 1
    COPY_DSCP = 1 << 2
    DEC_TTL = 1 << 3
    COPY_DF = 1 << 4
    ECN = 1 << 5
    SA_LIFETIME = 1 << 6


class IpsecDirection(IntEnum):
    """VIRTIO_CRYPTO_IPSEC_DIR_*."""

    OUTBOUND = 1
    INBOUND = 2


KEY_BYTES: Final = 32
_TUNNEL_MODES: Final = (IpsecMode.ESP_TUNNEL, IpsecMode.AH_TUNNEL)
_CITE: Final = "5.9.7.10 IPsec Service Operation"

virtio_crypto_ipsec_resource_cap = Record(
    "virtio_crypto_ipsec_resource_cap", Struct("inb_sa_limit" / Int32ul, "outb_sa_limit" / Int32ul), cite=_CITE
)
virtio_crypto_ipsec_mode_cap = Record(
    "virtio_crypto_ipsec_mode_cap",
    Struct(
        "mode" / Int8ul,
        "reserved" / Array(3, Int8ul),
        "max_replay_win_sz" / Int32ul,
        "options" / Int32ul,
        "reserved1" / Int32ul,
        "cipher_algo" / Int64ul,
        "hmac_algo" / Int64ul,
        "aead_algo" / Int32ul,
        "max_cipher_key_len" / Int32ul,
        "max_auth_key_len" / Int32ul,
    ),
    cite=_CITE,
    rules=(Rule("", "mode", lambda v: v.mode in list(IpsecMode), "a reserved value"),),
)
"""Algorithms are masks here: bit n for the algorithm n; lengths are bytes."""
virtio_crypto_ipsec_sa_cap_data = Record(
    "virtio_crypto_ipsec_sa_cap_data", Struct("count" / Int8ul, "reserved" / Array(7, Int8ul)), cite=_CITE
)
"""The head: `count` of virtio_crypto_ipsec_mode_cap follow."""

virtio_crypto_ipsec_tunnel_ipv4 = Record(
    "ipv4",
    Struct(
        "src_ip" / Int32ul, "dst_ip" / Int32ul, "dscp" / Int8ul, "df" / Int8ul, "ttl" / Int8ul, "reserved1" / Int8ul
    ),
    cite=_CITE,
)
virtio_crypto_ipsec_tunnel_ipv6 = Record(
    "ipv6",
    Struct(
        "src_addr" / Bytes(16),
        "dst_addr" / Bytes(16),
        "flabel" / Int32ul,
        "hlimit" / Int8ul,
        "dscp" / Int8ul,
        "reserved2" / Array(2, Int8ul),
    ),
    cite=_CITE,
)
TUNNELS: Final[Mapping[int, Record]] = {4: virtio_crypto_ipsec_tunnel_ipv4, 6: virtio_crypto_ipsec_tunnel_ipv6}
"""The two readings of a tunnel's parameters. (The text gives `type` no numbers; these are the protocol's versions.)"""

virtio_crypto_ipsec_tunnel_param = Record(
    "virtio_crypto_ipsec_tunnel_param",
    Struct("type" / Int8ul, "reserved" / Array(3, Int8ul), "union" / Bytes(virtio_crypto_ipsec_tunnel_ipv6.size)),
    cite=_CITE,
)
virtio_crypto_ipsec_lifetime = Record(
    "virtio_crypto_ipsec_lifetime",
    Struct(
        "packets_soft_limit" / Int64ul,
        "bytes_soft_limit" / Int64ul,
        "packets_hard_limit" / Int64ul,
        "bytes_hard_limit" / Int64ul,
    ),
    cite=_CITE,
)
_key = Record("key", Struct("length" / Int16ul, "reserved" / Int16ul, "data" / Bytes(KEY_BYTES)), cite=_CITE)

virtio_crypto_resource_obj_ipsec_sa_256b_key = Record(
    "virtio_crypto_resource_obj_ipsec_sa_256b_key",
    Struct(
        "mode" / Int8ul,
        "direction" / Int8ul,
        "reserved" / Array(2, Int8ul),
        "obj_id" / Int32ul,
        "spi" / Int32ul,
        "salt" / Int32ul,
        "options" / Int64ul,
        "param" / virtio_crypto_ipsec_tunnel_param.layout,
        "udp_sport" / Int16ul,
        "udp_dport" / Int16ul,
        "replay_win_sz" / Int32ul,
        "cipher_algo" / Int64ul,
        "cipher_key" / _key.layout,
        "auth_algo" / Int64ul,
        "auth_key" / _key.layout,
        "life" / virtio_crypto_ipsec_lifetime.layout,
    ),
    cite=_CITE,
    rules=(
        Rule("", "mode", lambda v: v.mode in list(IpsecMode), "a reserved value"),
        Rule("", "direction", lambda v: v.direction in list(IpsecDirection), "a reserved value"),
        Rule("", "cipher_key", lambda v: v.cipher_key.length <= KEY_BYTES, "a key longer than its field"),
        Rule("", "auth_key", lambda v: v.auth_key.length <= KEY_BYTES, "a key longer than its field"),
        Rule(
            "net-ipsec.driver.ipsec-operation.4",
            "param",
            lambda v: v.direction != IpsecDirection.OUTBOUND or v.mode not in _TUNNEL_MODES or v.param.type in TUNNELS,
            "an outbound tunnel of neither version",
        ),
    ),
)
"""A security association. Algorithms are numbers here, key lengths bytes."""


def encode_modes(modes: Sequence[Mapping[str, int]]) -> bytes:
    """The IPsec SA capability: the fields of each mode."""
    head = virtio_crypto_ipsec_sa_cap_data.encode(count=len(modes))
    return head + b"".join(virtio_crypto_ipsec_mode_cap.encode(**mode) for mode in modes)


def decode_modes(data: bytes) -> list[Any]:
    """The modes of an IPsec SA capability. Raises RequestError for bytes that are none."""
    head, mode = virtio_crypto_ipsec_sa_cap_data, virtio_crypto_ipsec_mode_cap
    count = head.decode(data).count if len(data) >= head.size else -1
    if count < 0 or len(data) < head.size + count * mode.size:
        raise RequestError(f"{len(data)} bytes are no capability of {count} modes")
    # What a later version may put behind them is not ours to read.
    found = [mode.decode(data, head.size + n * mode.size) for n in range(count)]
    for values in found:
        mode.validate(values, RequestError)
    return found


def modes_within(offered: bytes, chosen: bytes) -> bool:
    """Whether a capability asks for no more modes, and no more of each, than another. Raises RequestError."""
    most = {mode.mode: mode for mode in decode_modes(offered)}
    return all(mode.mode in most and not _exceeds(mode, most[mode.mode]) for mode in decode_modes(chosen))


def _exceeds(wanted: Any, can: Any) -> bool:
    return any(getattr(wanted, name) & ~getattr(can, name) for name in _MASKS) or any(
        getattr(wanted, name) > getattr(can, name) for name in _SIZES
    )


_MASKS: Final = ("options", "cipher_algo", "hmac_algo", "aead_algo")
_SIZES: Final = ("max_replay_win_sz", "max_cipher_key_len", "max_auth_key_len")


def unsupported(association: Any, modes: Sequence[Any]) -> str | None:
    """Why an association cannot be had from a device with these modes, or None (net-ipsec.device.ipsec-operation.6).

    An algorithm of 0 is none. Where no authentication stands beside it, the cipher's number is a combined algorithm's
    (AEAD): the structure has no word for which of the two it is.
    """
    mode = next((m for m in modes if m.mode == association.mode), None)
    if mode is None:
        return f"mode {association.mode}"
    if extra := association.options & ~mode.options:
        return f"options {extra:#x}"
    ciphers = mode.cipher_algo if association.auth_algo else mode.aead_algo
    for name, number, can in (
        ("cipher", association.cipher_algo, ciphers),
        ("authentication", association.auth_algo, mode.hmac_algo),
    ):
        if number and not (number < 64 and can >> number & 1):
            return f"{name} algorithm {number}"
    if association.cipher_key.length > mode.max_cipher_key_len or association.auth_key.length > mode.max_auth_key_len:
        return "a key that is too long"
    if association.direction == IpsecDirection.INBOUND and association.replay_win_sz > mode.max_replay_win_sz:
        return f"a replay window of {association.replay_win_sz}"
    return None
