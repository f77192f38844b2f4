"""Inline IPsec, the half that asks (5.1.6.7): capabilities and associations, by administration commands.

ipsec = IpsecDriver(driver, objects).start()        objects: of the self group, see virtio_py.admin.client_objects
ipsec.create_outbound(1, SecurityParameters(mode=IpsecMode.ESP_TUNNEL, spi=0x1000, …))
driver.send(ipsec.secured(frame, 1))
packet = driver.receive()           packet.flags: SECURITY, and SECURITY_ERR where it could not be opened
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from attrs import define, field, frozen

from virtio_py.admin.client_objects import ObjectClient, ObjectKind, within_limits
from virtio_py.devices.net.driver import NetDriver
from virtio_py.devices.net.esp import expansion
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.ipsec import (
    IPSEC_INB_SA,
    IPSEC_OUTB_SA,
    IPSEC_RESOURCE_CAP,
    IPSEC_SA_CAP,
    KEY_BYTES,
    TUNNELS,
    IpsecDirection,
    IpsecMode,
    decode_modes,
    encode_modes,
    modes_within,
    virtio_crypto_ipsec_mode_cap,
    virtio_crypto_ipsec_resource_cap,
    virtio_crypto_resource_obj_ipsec_sa_256b_key,
)
from virtio_py.devices.net.layout import HdrFlag
from virtio_py.devices.net.parsing import network_of
from virtio_py.errors import UsageError
from virtio_py.resources import padded

_SA: Final = virtio_crypto_resource_obj_ipsec_sa_256b_key
_LIMITS: Final = virtio_crypto_ipsec_resource_cap
_CAPS: Final = (IPSEC_RESOURCE_CAP, IPSEC_SA_CAP)
OUTBOUND: Final = ObjectKind(IPSEC_OUTB_SA, _CAPS)
INBOUND: Final = ObjectKind(IPSEC_INB_SA, _CAPS)


@frozen(kw_only=True)
class SecurityParameters:
    """All of an association. What has no default has to be thought of.

    salt: 32 bits;  options: mask of IpsecOption;  cipher, authentication: numbers of the crypto device, see `ciphers`
    version, tunnel: 4 or 6 and the fields of the outer header, for an outbound association in tunnel mode
    udp_ports: source and destination;  replay_window: packets, for an inbound association, 0 for no check
    lifetime: the limits of virtio_crypto_ipsec_lifetime that there are
    """

    mode: IpsecMode
    spi: int
    cipher: int
    key: bytes = field(repr=False)
    salt: int = 0
    authentication: int = 0
    authentication_key: bytes = field(default=b"", repr=False)
    options: int = 0
    version: int = 0
    tunnel: Mapping[str, Any] = field(factory=dict)
    udp_ports: tuple[int, int] = (0, 0)
    replay_window: int = 0
    lifetime: Mapping[str, int] = field(factory=dict)

    def encode(self, ident: int, direction: IpsecDirection) -> bytes:
        """The resource object. Raises UsageError for one that no device can have."""
        outbound = direction == IpsecDirection.OUTBOUND
        data = _SA.encode(
            mode=self.mode,
            direction=direction,
            obj_id=ident,
            spi=self.spi,
            salt=self.salt,
            options=self.options,
            param=self._tunnel() if outbound else {},
            udp_sport=self.udp_ports[0],
            udp_dport=self.udp_ports[1],
            replay_win_sz=self.replay_window,
            cipher_algo=self.cipher,
            cipher_key=_key(self.key),
            auth_algo=self.authentication,
            auth_key=_key(self.authentication_key),
            life=dict(self.lifetime),
        )
        if violations := _SA.violations(_SA.decode(data)):
            raise UsageError(str(violations[0]))
        return data

    def _tunnel(self) -> dict[str, Any]:
        if self.version not in TUNNELS:
            return {}
        header = TUNNELS[self.version].encode(**self.tunnel)
        return {"type": self.version, "union": header.ljust(max(t.size for t in TUNNELS.values()), b"\0")}


def _key(key: bytes) -> dict[str, Any]:
    return {"length": len(key), "data": key.ljust(KEY_BYTES, b"\0")}


@define(eq=False)
class IpsecDriver:
    """The associations of one device; `objects` are those of its self group. Everything raises UsageError for what a
    driver must not do, and AdminFailed where the device refuses."""

    driver: NetDriver
    objects: ObjectClient
    modes: Sequence[Any] = field(default=(), init=False)
    _limits: Any = field(default=None, init=False)
    _spis: dict[int, int] = field(factory=dict, init=False)

    def start(self) -> Self:
        """Learns what the device can do, and takes all of it. Raises UsageError where there is no IPsec."""
        capabilities = self.objects.capabilities
        if not capabilities.ids().issuperset(_CAPS):
            raise UsageError("the device does not offer IPsec")
        limits = padded(capabilities.offered(IPSEC_RESOURCE_CAP), _LIMITS.size)
        self._limits = _LIMITS.decode(limits)
        self.modes = decode_modes(capabilities.offered(IPSEC_SA_CAP))
        capabilities.set(IPSEC_RESOURCE_CAP, limits, within_limits(_LIMITS))
        chosen = encode_modes([virtio_crypto_ipsec_mode_cap.as_dict(mode) for mode in self.modes])
        capabilities.set(IPSEC_SA_CAP, chosen, modes_within)
        return self

    def create_outbound(self, ident: int, parameters: SecurityParameters) -> None:
        """An association for packets that are sent."""
        data = parameters.encode(ident, IpsecDirection.OUTBOUND)
        self.objects.create(OUTBOUND, ident, data, self._limits.outb_sa_limit)
        self.driver.protecting[ident] = expansion(_SA.decode(data))

    def create_inbound(self, ident: int, parameters: SecurityParameters) -> None:
        """An association for packets that are received. Raises UsageError for an SPI that another one has."""
        if parameters.spi in self._spis.values():
            raise UsageError(f"there is an inbound association with the spi {parameters.spi:#x}")
        data = parameters.encode(ident, IpsecDirection.INBOUND)
        self.objects.create(INBOUND, ident, data, self._limits.inb_sa_limit)
        self._spis[ident] = parameters.spi

    def destroy_outbound(self, ident: int) -> None:
        """Nothing can be sent under it from now on."""
        # What was handed over is still the association's.
        for pair in range(self.driver.pairs):
            self.driver.flush(pair)
        self.objects.destroy(OUTBOUND, ident)
        del self.driver.protecting[ident]

    def destroy_inbound(self, ident: int) -> None:
        """Packets that were opened under it may still arrive, and name it."""
        self.objects.destroy(INBOUND, ident)
        del self._spis[ident]

    def secured(self, packet: Packet | bytes, ident: int) -> Packet:
        """The packet, to be sent under an outbound association."""
        whole = Packet(packet) if isinstance(packet, bytes) else packet
        network = network_of(whole.frame)
        return whole._replace(
            flags=whole.flags | HdrFlag.SECURITY,
            outer_nh_offset=whole.outer_nh_offset or (network.start if network is not None else 0),
            resource_id=ident,
            resource_type=IPSEC_OUTB_SA,
        )
