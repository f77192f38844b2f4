"""Inline IPsec (5.1.6.7): what is done to packets with the flag SECURITY, and to those that a flow rule sends here.

To be sent, a packet names an outbound association; it is finished and cut into segments first, since what is encrypted
nobody can segment. One that cannot be processed is lost, as on a wire: it must not leave in the clear.

Received, a packet names its association by the SPI in it. One that cannot be processed goes to the driver as it came,
with SECURITY_ERR: it may belong to an association that was never handed to the device.
"""

from __future__ import annotations

from virtio_py.devices.net.associations import Association, AssociationTable, IpsecFailed
from virtio_py.devices.net.esp import Sealed, find_esp, protect, unprotect
from virtio_py.devices.net.header import Packet
from virtio_py.devices.net.ipsec import IPSEC_INB_SA, IPSEC_OUTB_SA
from virtio_py.devices.net.layout import HdrFlag
from virtio_py.devices.net.parsing import Network, network_at, network_of
from virtio_py.devices.net.segmentation import fit
from virtio_py.errors import RequestError


def told_network(packet: Packet) -> Network | None:
    """The network header: where the packet says that it is, and else where it is found."""
    if not packet.outer_nh_offset:
        return network_of(packet.frame)
    return network_at(packet.frame, packet.outer_nh_offset)


def secure(table: AssociationTable, packet: Packet) -> list[Packet]:
    """The packets that leave for one with the flag SECURITY. Raises RequestError if it cannot be processed."""
    # A driver has to set the id; of the type, the clauses do not speak.
    association = table.outbound(packet.resource_id) if packet.resource_type in (0, IPSEC_OUTB_SA) else None
    if association is None:
        raise RequestError(
            f"there is no outbound association {packet.resource_id}", clause="net-ipsec.driver.packet-transmission.48"
        )
    try:
        return [Packet(_protected(association, part, packet)) for part in fit(packet, 0)]
    except IpsecFailed as error:
        raise RequestError(f"association {packet.resource_id}: {error}") from error


def _protected(association: Association, part: Packet, whole: Packet) -> bytes:
    return protect(association, part.frame, told_network(part._replace(outer_nh_offset=whole.outer_nh_offset)))


def receive_secured(table: AssociationTable, packet: Packet) -> Packet:
    """A packet that a rule sent here, after processing: in the clear, or as it was with SECURITY_ERR.

    It must be whole: neither checksum nor segmentation left to do.
    """
    network = network_of(packet.frame)
    sealed = find_esp(packet.frame, network)
    association = table.inbound(sealed.spi) if sealed is not None else None
    flags = packet.flags | HdrFlag.SECURITY
    if association is None or sealed is None or network is None:
        return packet._replace(flags=flags | HdrFlag.SECURITY_ERR)
    frame = _unprotected(association, packet.frame, network, sealed)
    if frame is None:
        frame, flags = packet.frame, flags | HdrFlag.SECURITY_ERR
    if association.expiring:
        flags |= HdrFlag.SECURITY_SA_SOFT_EXPIRY_WARN
    return Packet(frame, flags, resource_id=association.ident, resource_type=IPSEC_INB_SA)


def _unprotected(association: Association, frame: bytes, network: Network, sealed: Sealed) -> bytes | None:
    try:
        return unprotect(association, frame, network, sealed)
    except IpsecFailed:
        return None
