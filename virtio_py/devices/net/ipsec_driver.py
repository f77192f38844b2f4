"""Inline IPsec, the half that asks (5.1.6.7): capabilities and associations, by administration commands.

ipsec = IpsecDriver(driver, commands).start()
ipsec.create_outbound(1, SecurityParameters(mode=IpsecMode.ESP_TUNNEL, spi=0x1000, …))
driver.send(ipsec.secured(frame, 1))
packet = driver.receive()           packet.flags: SECURITY, and SECURITY_ERR where it could not be opened
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from attrs import field, frozen

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
    virtio_crypto_resource_obj_ipsec_sa_256b_key,
)
from virtio_py.devices.net.layout import HdrFlag
from virtio_py.devices.net.parsing import network_of
from virtio_py.errors import UsageError

_SA: Final = virtio_crypto_resource_obj_ipsec_sa_256b_key


class Commands(Protocol):
    """The administration commands of the self group, as far as they are needed. All raise where the device refuses."""

    def capability_ids(self) -> set[int]: ...
    def device_capability(self, number: int) -> bytes: ...
    def set_driver_capability(self, number: int, data: bytes) -> None: ...
    def create_object(self, kind: int, ident: int, data: bytes) -> None: ...
    def modify_object(self, kind: int, ident: int, data: bytes) -> None: ...
    def query_object(self, kind: int, ident: int) -> bytes: ...
    def destroy_object(self, kind: int, ident: int) -> None: ...


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


class IpsecDriver:
    """The associations of one device.

    capabilities: what the device offers, by id, and since `start` what we have accepted
    """

    def __init__(self, driver: NetDriver, commands: Commands) -> None:
        self.driver = driver
        self.commands = commands
        self.capabilities: dict[int, bytes] = {}
        self._spis: dict[int, int] = {}

    def start(self) -> IpsecDriver:
        """Learns what the device can do, and accepts all of it. Raises UsageError where there is no IPsec."""
        listed = self.commands.capability_ids()
        wanted = (IPSEC_RESOURCE_CAP, IPSEC_SA_CAP)
        if not listed.issuperset(wanted):
            raise UsageError("the device does not offer IPsec")
        for number in wanted:
            self.capabilities[number] = self.commands.device_capability(number)
            self.commands.set_driver_capability(number, self.capabilities[number])
        return self

    def create_outbound(self, ident: int, parameters: SecurityParameters) -> None:
        """An association for packets that are sent."""
        data = parameters.encode(ident, IpsecDirection.OUTBOUND)
        self.commands.create_object(IPSEC_OUTB_SA, ident, data)
        self.driver.protecting[ident] = expansion(_SA.decode(data))

    def create_inbound(self, ident: int, parameters: SecurityParameters) -> None:
        """An association for packets that are received. Raises UsageError for an SPI that another one has."""
        if parameters.spi in self._spis.values():
            raise UsageError(f"there is an inbound association with the spi {parameters.spi:#x}")
        self.commands.create_object(IPSEC_INB_SA, ident, parameters.encode(ident, IpsecDirection.INBOUND))
        self._spis[ident] = parameters.spi

    def destroy_outbound(self, ident: int) -> None:
        """Nothing can be sent under it from now on. Raises UsageError if there is none."""
        self._known(ident, self.driver.protecting)
        # What was handed over is still the association's.
        for pair in range(self.driver.pairs):
            self.driver.flush(pair)
        self.commands.destroy_object(IPSEC_OUTB_SA, ident)
        del self.driver.protecting[ident]

    def destroy_inbound(self, ident: int) -> None:
        """Packets that were opened under it may still arrive, and name it. Raises UsageError if there is none."""
        self._known(ident, self._spis)
        self.commands.destroy_object(IPSEC_INB_SA, ident)
        del self._spis[ident]

    @staticmethod
    def _known(ident: int, objects: Mapping[int, int]) -> None:
        if ident not in objects:
            raise UsageError(f"there is no association {ident}")

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
