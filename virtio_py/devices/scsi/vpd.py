"""What a unit says of itself: standard INQUIRY data and the vital product data pages (SPC-4 6.6, 7.8; SBC-3 6.6)."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from construct import Array, Bytes, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from virtio_py.records import Record, Register

SPC_4: Final = 6
"""The INQUIRY VERSION of SPC-4."""

SAM_5_VERSION, SPC_4_VERSION, SBC_3_VERSION, MMC_6_VERSION = 0x00A0, 0x0460, 0x04C0, 0x04E0
"""Version descriptors, each without a claim to a revision."""

_peripheral = Register(Int8ub, device_type=5, qualifier=3)

standard_inquiry = Record(
    "standard_inquiry",
    Struct(
        "peripheral" / _peripheral,
        "removable" / Register(Int8ub, reserved=6, lu_cong=1, rmb=1),
        "version" / Int8ub,
        "format" / Register(Int8ub, response_data_format=4, hisup=1, normaca=1, obsolete=2),
        "additional_length" / Int8ub,
        "protection" / Register(Int8ub, protect=1, reserved=2, third_party_copy=1, tpgs=2, acc=1, sccs=1),
        "ports" / Register(Int8ub, obsolete=4, multip=1, vs=1, encserv=1, obsolete1=1),
        "queueing" / Register(Int8ub, vs=1, cmdque=1, obsolete=6),
        "vendor" / Bytes(8),
        "product" / Bytes(16),
        "revision" / Bytes(4),
        "vendor_specific" / Bytes(20),
        "obsolete" / Int8ub,
        "reserved" / Int8ub,
        "version_descriptors" / Array(8, Int16ub),
        "reserved1" / Bytes(22),
    ),
    cite="SPC-4 6.6.2",
)

vpd_header = Record(
    "vpd_header",
    Struct("peripheral" / _peripheral, "page_code" / Int8ub, "page_length" / Int16ub),
    cite="SPC-4 7.8",
)

designator_header = Record(
    "designator_header",
    Struct(
        "code" / Register(Int8ub, code_set=4, protocol_identifier=4),
        "kind" / Register(Int8ub, type=4, association=2, reserved=1, piv=1),
        "reserved" / Int8ub,
        "length" / Int8ub,
    ),
    cite="SPC-4 7.8.6",
)

extended_inquiry = Record(
    "extended_inquiry",
    Struct(
        "checks" / Register(Int8ub, ref_chk=1, app_chk=1, grd_chk=1, spt=3, activate_microcode=2),
        "attributes"
        / Register(Int8ub, simpsup=1, ordsup=1, headsup=1, prior_sup=1, group_sup=1, uask_sup=1, reserved=2),
        "caches" / Register(Int8ub, v_sup=1, nv_sup=1, crd_sup=1, wu_sup=1, reserved=4),
        "reserved" / Bytes(57),
    ),
    cite="SPC-4 7.8.7",
)

block_limits = Record(
    "block_limits",
    Struct(
        "flags" / Register(Int8ub, wsnz=1, reserved=7),
        "maximum_compare_and_write_length" / Int8ub,
        "optimal_transfer_length_granularity" / Int16ub,
        "maximum_transfer_length" / Int32ub,
        "optimal_transfer_length" / Int32ub,
        "maximum_prefetch_length" / Int32ub,
        "maximum_unmap_lba_count" / Int32ub,
        "maximum_unmap_block_descriptor_count" / Int32ub,
        "optimal_unmap_granularity" / Int32ub,
        "unmap_granularity_alignment" / Int32ub,
        "maximum_write_same_length" / Int64ub,
        "reserved" / Bytes(20),
    ),
    cite="SBC-3 6.6.4",
)
"""Lengths are logical blocks; 0 is "not reported"."""

block_characteristics = Record(
    "block_device_characteristics",
    Struct(
        "medium_rotation_rate" / Int16ub,
        "product_type" / Int8ub,
        "form_factor" / Register(Int8ub, nominal=4, wacereq=2, wabereq=2),
        "flags" / Register(Int8ub, vbuls=1, fuab=1, reserved=6),
        "reserved" / Bytes(55),
    ),
    cite="SBC-3 6.6.2",
)

block_provisioning = Record(
    "logical_block_provisioning",
    Struct(
        "threshold_exponent" / Int8ub,
        "flags" / Register(Int8ub, dp=1, anc_sup=1, lbprz=1, reserved=2, lbpws10=1, lbpws=1, lbpu=1),
        "provisioning" / Register(Int8ub, type=3, reserved=5),
        "reserved" / Int8ub,
    ),
    cite="SBC-3 6.6.6",
)

_BINARY, _ASCII = 1, 2
_VENDOR_ID, _NAA, _RELATIVE_PORT = 1, 3, 4
_LOGICAL_UNIT, _TARGET_PORT = 0, 1


def text(value: str, size: int) -> bytes:
    """Left-aligned ASCII, filled with spaces."""
    return value.encode("ascii", "replace")[:size].ljust(size)


def inquiry_data(unit: Any, versions: tuple[int, ...], **fields: Any) -> bytes:
    """Standard INQUIRY data of a unit; `fields` are those that its type adds."""
    values = {
        "peripheral": {"device_type": unit.device_type},
        "version": SPC_4,
        "format": {"response_data_format": 2, "hisup": 1},
        "additional_length": standard_inquiry.size - 5,
        "queueing": {"cmdque": 1},
        "vendor": text(unit.vendor, 8),
        "product": text(unit.product, 16),
        "revision": text(unit.revision, 4),
        "version_descriptors": (*versions, *[0] * (8 - len(versions))),
    }
    return standard_inquiry.encode(**(values | fields))


def page(unit: Any, code: int, body: bytes) -> bytes:
    """A vital product data page around its body."""
    head = vpd_header.encode(peripheral={"device_type": unit.device_type}, page_code=code, page_length=len(body))
    return head + body


def identification(unit: Any) -> bytes:
    """The body of page 83h: the unit by T10 vendor ID and by a locally assigned name, and the target port."""
    named = text(unit.vendor, 8) + text(unit.product, 16) + unit.serial.encode("ascii", "replace")[:64]
    # NAA 3: 60 bits of which nobody else can say anything; the same unit has the same ones.
    local = bytearray(hashlib.sha256(named).digest()[:8])
    local[0] = 0x30 | local[0] & 0x0F
    return b"".join(
        (
            _designator(_ASCII, _VENDOR_ID, _LOGICAL_UNIT, named),
            _designator(_BINARY, _NAA, _LOGICAL_UNIT, bytes(local)),
            _designator(_BINARY, _RELATIVE_PORT, _TARGET_PORT, bytes([0, 0, 0, 1])),
        )
    )


def _designator(code_set: int, kind: int, association: int, value: bytes) -> bytes:
    head = designator_header.encode(
        code={"code_set": code_set}, kind={"type": kind, "association": association}, length=len(value)
    )
    return head + value
