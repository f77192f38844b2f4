"""The structures of inline IPsec."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from virtio_py.devices.net.ipsec import (
    IpsecDirection,
    IpsecMode,
    IpsecOption,
    decode_modes,
    encode_modes,
    unsupported,
    virtio_crypto_ipsec_mode_cap,
    virtio_crypto_ipsec_resource_cap,
    virtio_crypto_ipsec_tunnel_ipv4,
    virtio_crypto_ipsec_tunnel_ipv6,
    virtio_crypto_resource_obj_ipsec_sa_256b_key,
)
from virtio_py.errors import RequestError

SA = virtio_crypto_resource_obj_ipsec_sa_256b_key
MODE = {
    "mode": IpsecMode.ESP_TUNNEL,
    "max_replay_win_sz": 64,
    "options": IpsecOption.ESN | IpsecOption.ECN,
    "cipher_algo": 1 << 3,
    "hmac_algo": 1 << 5,
    "aead_algo": 1 << 2,
    "max_cipher_key_len": 32,
    "max_auth_key_len": 20,
}
GOOD: dict[str, Any] = {
    "mode": IpsecMode.ESP_TUNNEL,
    "direction": IpsecDirection.OUTBOUND,
    "options": int(IpsecOption.ESN),
    "param": {"type": 4},
    "cipher_algo": 3,
    "cipher_key": {"length": 16, "data": bytes(range(32))},
    "auth_algo": 5,
    "auth_key": {"length": 20, "data": bytes(32)},
}


def test_sizes_and_offsets() -> None:
    assert virtio_crypto_ipsec_resource_cap.encode(inb_sa_limit=1, outb_sa_limit=2) == struct.pack("<II", 1, 2)
    assert virtio_crypto_ipsec_mode_cap.size == 44
    assert (virtio_crypto_ipsec_tunnel_ipv4.size, virtio_crypto_ipsec_tunnel_ipv6.size) == (12, 40)
    assert [SA.offset(name) for name in ("options", "param", "udp_sport", "cipher_algo", "auth_key", "life")] == [
        16,
        24,
        68,
        76,
        128,
        164,
    ]
    assert SA.size == 196


def test_modes_survive() -> None:
    data = encode_modes([MODE, {"mode": IpsecMode.AH_TRANSPORT}])
    first, second = decode_modes(data)
    assert (first.mode, first.cipher_algo, first.max_auth_key_len) == (1, 8, 20)
    assert second.mode == 4
    assert decode_modes(data + b"\0") == [first, second]
    for bad in (data[:-1], b"\1", encode_modes([{"mode": 5}])):
        with pytest.raises(RequestError):
            decode_modes(bad)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"cipher_algo": 2}, "cipher algorithm 2"),
        ({"cipher_algo": 2, "auth_algo": 0}, None),
        ({"cipher_algo": 3, "auth_algo": 0}, "cipher algorithm 3"),
        ({"cipher_algo": 0}, None),
        ({"mode": IpsecMode.AH_TUNNEL}, "mode 3"),
        ({"options": 2}, "options 0x2"),
        ({"cipher_algo": 4}, "cipher algorithm 4"),
        ({"cipher_algo": 1 << 40}, f"cipher algorithm {1 << 40}"),
        ({"auth_algo": 3}, "authentication algorithm 3"),
        ({"auth_key": {"length": 21, "data": bytes(32)}}, "a key that is too long"),
        ({"direction": IpsecDirection.INBOUND, "replay_win_sz": 65}, "a replay window of 65"),
        ({"direction": IpsecDirection.OUTBOUND, "replay_win_sz": 65}, None),
    ],
)
def test_associations_that_a_device_does_not_support(change: dict[str, Any], why: str | None) -> None:
    values = SA.decode(SA.encode(**(GOOD | change)))
    assert SA.violations(values) == []
    assert unsupported(values, decode_modes(encode_modes([MODE]))) == why


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mode": 0}, "mode"),
        ({"direction": 3}, "direction"),
        ({"cipher_key": {"length": 33}}, "cipher_key"),
        ({"auth_key": {"length": 33}}, "auth_key"),
        ({"param": {"type": 0}}, "param"),
    ],
)
def test_associations_that_cannot_be(change: dict[str, Any], field: str) -> None:
    violations = SA.violations(SA.decode(SA.encode(**(GOOD | change))))
    assert [v.field for v in violations] == [field]
    # An inbound one needs no tunnel.
    inbound = SA.decode(SA.encode(**(GOOD | {"direction": IpsecDirection.INBOUND, "param": {"type": 0}})))
    assert SA.violations(inbound) == []
