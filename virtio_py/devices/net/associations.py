"""Security associations: resource objects, created by administration commands, that packets are processed by (5.1.6.7).

Numbers are sent in network order: an SPI, a salt and an IPv4 address are le32 in the object, and stand for their
big-endian bytes. A lifetime's limit of 0 is none, and limits hold where the option VIRTIO_CRYPTO_IPSEC_SA_LIFETIME says
that they were meant. An object that is modified goes on counting where it was unless its keys are others: a sequence
number must not come twice under one key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import define, field

from virtio_py.devices.net.ciphers import Suite, aead_mask, cipher_mask, mac_mask, suite_of
from virtio_py.devices.net.ipsec import (
    IPSEC_INB_SA,
    IPSEC_OUTB_SA,
    IPSEC_RESOURCE_CAP,
    IPSEC_SA_CAP,
    KEY_BYTES,
    IpsecDirection,
    IpsecMode,
    IpsecOption,
    decode_modes,
    encode_modes,
    modes_within,
    unsupported,
    virtio_crypto_ipsec_resource_cap,
    virtio_crypto_resource_obj_ipsec_sa_256b_key,
)
from virtio_py.devices.net.replay import ReplayWindow
from virtio_py.errors import RequestError, UsageError
from virtio_py.resources import AdminStatus, Capability, Refused, ResourceType, padded

MAX_WINDOW: Final = 1024
_DIRECTION: Final[Mapping[int, IpsecDirection]] = {
    IPSEC_OUTB_SA: IpsecDirection.OUTBOUND,
    IPSEC_INB_SA: IpsecDirection.INBOUND,
}
_LIMITS: Final = virtio_crypto_ipsec_resource_cap
_SA: Final = virtio_crypto_resource_obj_ipsec_sa_256b_key
_KEYING: Final = ("cipher_algo", "cipher_key", "auth_algo", "auth_key", "salt", "spi")
"""What two packets of one sequence number must not have in common."""


class IpsecFailed(Exception):
    """A packet could not be processed; the message says why."""


@define(eq=False)
class Association:
    """One security association, and what it has processed so far.

    ident:    the id of the resource object
    data, values: a virtio_crypto_resource_obj_ipsec_sa_256b_key, as it came and decoded
    sequence: the last number sent;  packets, octets: how many were processed, without headers and trailers of ESP
    """

    ident: int
    data: bytes
    values: Any
    suite: Suite
    window: ReplayWindow
    sequence: int = 0
    packets: int = 0
    octets: int = 0

    def has(self, option: IpsecOption) -> bool:
        """Whether an option was asked for."""
        return bool(self.values.options & option)

    @property
    def tunnels(self) -> bool:
        """Whether whole packets are carried in packets of a tunnel."""
        return bool(self.values.mode == IpsecMode.ESP_TUNNEL)

    @property
    def expiring(self) -> bool:
        """Whether a soft limit is reached (net-ipsec.device.incoming-packets.44)."""
        return self._reached("soft", self.packets, self.octets)

    def check_lifetime(self, octets: int) -> None:
        """Raises IpsecFailed if one more packet, of so many bytes, would exceed a hard limit."""
        if self._reached("hard", self.packets, self.octets + octets - 1):
            raise IpsecFailed("its lifetime is over")

    def _reached(self, kind: str, packets: int, octets: int) -> bool:
        life = self.values.life
        limits = ((getattr(life, f"packets_{kind}_limit"), packets), (getattr(life, f"bytes_{kind}_limit"), octets))
        return self.has(IpsecOption.SA_LIFETIME) and any(limit and count >= limit for limit, count in limits)

    def next_sequence(self) -> int:
        """The number of the next packet to be sent. Raises IpsecFailed at the end: it must not begin again."""
        if self.sequence == (1 << (64 if self.has(IpsecOption.ESN) else 32)) - 1:
            raise IpsecFailed("there are no more sequence numbers")
        self.sequence += 1
        return self.sequence

    def processed(self, octets: int) -> None:
        """Counts a packet."""
        self.packets += 1
        self.octets += octets


def salt_bytes(values: Any) -> bytes:
    """The salt, as it stands in a nonce."""
    salt: int = values.salt
    return salt.to_bytes(4, "big")


def _suite(values: Any) -> Suite:
    cipher, auth = (key.data[: key.length] for key in (values.cipher_key, values.auth_key))
    return suite_of(values.cipher_algo, cipher, values.auth_algo, auth, salt_bytes(values))


def modes() -> list[dict[str, int]]:
    """What this implementation can do, in the fields of virtio_crypto_ipsec_mode_cap: ESP in both its modes, not AH."""
    common = {
        "max_replay_win_sz": MAX_WINDOW,
        "cipher_algo": cipher_mask(),
        "hmac_algo": mac_mask(),
        "aead_algo": aead_mask(),
        "max_cipher_key_len": KEY_BYTES,
        "max_auth_key_len": KEY_BYTES,
    }
    transport = IpsecOption.ESN | IpsecOption.UDP_ENCAP | IpsecOption.SA_LIFETIME
    tunnel = transport | IpsecOption.COPY_DSCP | IpsecOption.DEC_TTL | IpsecOption.COPY_DF | IpsecOption.ECN
    return [
        {"mode": IpsecMode.ESP_TUNNEL, "options": tunnel, **common},
        {"mode": IpsecMode.ESP_TRANSPORT, "options": transport, **common},
    ]


@define
class AssociationTable:
    """The associations of one device, and the two capabilities that they take.

    inb_sa_limit, outb_sa_limit: how many there may be at most;  offered: the modes, as `modes` gives them
    """

    inb_sa_limit: int = 64
    outb_sa_limit: int = 64
    offered: Sequence[Mapping[str, int]] = field(factory=modes)
    _limits: dict[int, int] = field(factory=dict, init=False)
    _modes: Sequence[Any] = field(default=(), init=False)
    _objects: dict[int, dict[int, Association]] = field(init=False)
    _by_spi: dict[int, Association] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._objects = {kind: {} for kind in _DIRECTION}

    # Capabilities

    def capabilities(self) -> Mapping[int, Capability]:
        """VIRTIO_NET_IPSEC_RESOURCE_CAP and VIRTIO_NET_IPSEC_SA_CAP (net-ipsec.device.ipsec-operation.1)."""
        return {
            IPSEC_RESOURCE_CAP: Capability(self._offer_limits, self._accept_limits),
            IPSEC_SA_CAP: Capability(lambda: encode_modes(self.offered), self._accept_modes),
        }

    def _offer_limits(self) -> bytes:
        return _LIMITS.encode(inb_sa_limit=self.inb_sa_limit, outb_sa_limit=self.outb_sa_limit)

    def _accept_limits(self, data: bytes) -> None:
        wanted = _LIMITS.decode(padded(data, _LIMITS.size))
        if wanted.inb_sa_limit > self.inb_sa_limit or wanted.outb_sa_limit > self.outb_sa_limit:
            raise Refused(AdminStatus.EINVAL, "more associations than there can be")
        self._limits = {IPSEC_INB_SA: wanted.inb_sa_limit, IPSEC_OUTB_SA: wanted.outb_sa_limit}

    def _accept_modes(self, data: bytes) -> None:
        try:
            within = modes_within(encode_modes(self.offered), data)
        except RequestError as error:
            raise Refused(AdminStatus.EINVAL, str(error)) from error
        if not within:
            raise Refused(AdminStatus.EINVAL, "modes that are not offered like that")
        self._modes = decode_modes(data)

    # Objects

    def resource_types(self) -> Mapping[int, ResourceType]:
        """VIRTIO_NET_RESOURCE_OBJ_IPSEC_OUTB_SA and VIRTIO_NET_RESOURCE_OBJ_IPSEC_INB_SA."""
        return {kind: self._resource_type(kind) for kind in _DIRECTION}

    def _resource_type(self, kind: int) -> ResourceType:
        return ResourceType(
            needs=(IPSEC_RESOURCE_CAP, IPSEC_SA_CAP),
            limit=lambda: self._limits[kind],
            create=lambda ident, data: self._put(kind, self._judged(kind, ident, data)),
            destroy=lambda ident: self._remove(kind, ident),
            query=lambda ident: self._objects[kind][ident].data,
            modify=lambda ident, data: self._modify(kind, ident, data),
        )

    def _modify(self, kind: int, ident: int, data: bytes) -> None:
        old, new = self._objects[kind][ident], self._judged(kind, ident, data)
        if all(getattr(old.values, name) == getattr(new.values, name) for name in _KEYING):
            new.sequence, new.packets, new.octets = old.sequence, old.packets, old.octets
            new.window.resume(old.window)
        self._remove(kind, ident)
        self._put(kind, new)

    def _put(self, kind: int, association: Association) -> None:
        self._objects[kind][association.ident] = association
        if kind == IPSEC_INB_SA:
            self._by_spi[association.values.spi] = association

    def _remove(self, kind: int, ident: int) -> None:
        association = self._objects[kind].pop(ident)
        if kind == IPSEC_INB_SA:
            del self._by_spi[association.values.spi]

    def _judged(self, kind: int, ident: int, data: bytes) -> Association:
        data = padded(data, _SA.size)
        values = _SA.decode(data)
        if reason := self._wrong(kind, ident, values):
            raise Refused(AdminStatus.EINVAL, reason)
        try:
            suite = _suite(values)
        except UsageError as error:
            raise Refused(AdminStatus.EINVAL, str(error)) from error
        extended = bool(values.options & IpsecOption.ESN)
        return Association(ident, data, values, suite, ReplayWindow(values.replay_win_sz, extended))

    def _wrong(self, kind: int, ident: int, values: Any) -> str | None:
        if violations := _SA.violations(values):
            return str(violations[0])
        if values.direction != _DIRECTION[kind]:
            return f"direction {values.direction} in an object of type {kind:#x}"
        owner = self._by_spi.get(values.spi) if kind == IPSEC_INB_SA else None
        if not values.spi or (owner is not None and owner.ident != ident):
            # An inbound packet has nothing but this to name its association (net-ipsec.device.ipsec-operation.11).
            return f"the spi {values.spi:#x} is taken"
        return unsupported(values, self._modes)

    # Packets

    def outbound(self, ident: int) -> Association | None:
        """The association that a packet to be sent names, or None."""
        return self._objects[IPSEC_OUTB_SA].get(ident)

    def inbound(self, spi: int) -> Association | None:
        """The association of a packet that has arrived, or None."""
        return self._by_spi.get(spi)
