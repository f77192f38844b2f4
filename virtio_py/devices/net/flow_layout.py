"""The structures of flow filters (5.1.6.6): capabilities and resource objects, as administration commands carry them.

Masks and keys are headers as they are on a wire, in network order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

from attrs import define
from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Struct

from virtio_py.devices.net.parsing import ETHERTYPE_IPV4, ETHERTYPE_IPV6, TCP, UDP
from virtio_py.records import Record, Rule
from virtio_py.resources import AdminStatus, Refused, padded

FF_RESOURCE_CAP: Final = 0x0800
FF_SELECTOR_CAP: Final = 0x0801
FF_ACTION_CAP: Final = 0x0802
"""Capabilities, VIRTIO_NET_FF_*."""


class FlowObject(IntEnum):
    """Resource objects, VIRTIO_NET_RESOURCE_OBJ_FF_*."""

    GROUP = 0x0200
    CLASSIFIER = 0x0201
    RULE = 0x0202


class SelectorType(IntEnum):
    """VIRTIO_NET_FF_MASK_TYPE_*."""

    ETH = 1
    IPV4 = 2
    IPV6 = 3
    TCP = 4
    UDP = 5
    ESP = 6


class FlowAction(IntEnum):
    """VIRTIO_NET_FF_ACTION_*."""

    DROP = 1
    DIRECT_RX_VQ = 2
    IPSEC = 3
    IPSEC_RECIRCULATE = 4


FLOW_ACTIONS: Final = (FlowAction.DROP, FlowAction.DIRECT_RX_VQ)
"""The actions that say where a packet goes."""
IPSEC_ACTIONS: Final = (FlowAction.IPSEC, FlowAction.IPSEC_RECIRCULATE)
"""Those that say what is done to it on its way."""
PARTIAL_MASK: Final = 1
"""VIRTIO_NET_FF_MASK_F_PARTIAL_MASK."""

_CITE: Final = "5.1.6.6 Flow filter"

virtio_net_ff_cap_data = Record(
    "virtio_net_ff_cap_data",
    Struct(
        "groups_limit" / Int32ul,
        "classifiers_limit" / Int32ul,
        "rules_limit" / Int32ul,
        "rules_per_group_limit" / Int32ul,
        "last_rule_priority" / Int8ul,
        "selectors_per_classifier_limit" / Int8ul,
        "reserved" / Array(2, Int8ul),
    ),
    cite=_CITE,
    rules=(Rule("", "reserved", lambda v: not any(v.reserved), "reserved is not zero"),),
)
virtio_net_ff_selector = Record(
    "virtio_net_ff_selector",
    Struct(
        "type" / Int8ul,
        "flags" / Int8ul,
        "reserved" / Array(2, Int8ul),
        "length" / Int8ul,
        "reserved1" / Array(3, Int8ul),
    ),
    cite=_CITE,
)
"""The head; `length` bytes of mask follow, and the next selector right behind them."""
virtio_net_ff_cap_mask_data = Record(
    "virtio_net_ff_cap_mask_data", Struct("count" / Int8ul, "reserved" / Array(7, Int8ul)), cite=_CITE
)
"""The head of a selector capability, and of a classifier: `count` selectors follow."""
virtio_net_ff_actions = Record(
    "virtio_net_ff_actions", Struct("count" / Int8ul, "reserved" / Array(7, Int8ul)), cite=_CITE
)
"""The head of an action capability: `count` actions of a byte follow, in rising order."""
virtio_net_resource_obj_ff_group = Record(
    "virtio_net_resource_obj_ff_group", Struct("group_priority" / Int16ul), cite=_CITE
)
virtio_net_resource_obj_ff_rule = Record(
    "virtio_net_resource_obj_ff_rule",
    Struct(
        "group_id" / Int32ul,
        "classifier_id" / Int32ul,
        "rule_priority" / Int8ul,
        "key_length" / Int8ul,
        "action" / Int8ul,
        "reserved" / Int8ul,
        "vq_index" / Int16ul,
        "reserved1" / Bytes(2),
    ),
    cite=_CITE,
)
"""The head; `key_length` bytes of keys follow, as long together as the masks of the classifier."""

_FIELD_BITS: Final[Mapping[int, tuple[int, ...]]] = {
    SelectorType.ETH: (48, 48, 16),
    SelectorType.IPV4: (4, 4, 6, 2, 16, 16, 3, 13, 8, 8, 16, 32, 32),
    SelectorType.IPV6: (4, 6, 2, 20, 16, 8, 8, 128, 128),
    SelectorType.TCP: (16, 16, 32, 32, 4, 4, *[1] * 8, 16, 16, 16),
    SelectorType.UDP: (16, 16, 16, 16),
    SelectorType.ESP: (32, 32),
}
"""The fields of each header, in bits: without partial masks, one is matched as a whole or not at all."""
SELECTOR_BYTES: Final[Mapping[int, int]] = {kind: sum(bits) // 8 for kind, bits in _FIELD_BITS.items()}

NEXT: Final[Mapping[int, tuple[int, ...]]] = {
    0: (SelectorType.ETH,),
    1: (SelectorType.IPV4, SelectorType.IPV6),
    2: (SelectorType.TCP, SelectorType.UDP, SelectorType.ESP),
}
"""What the first, second and third selector of a classifier may be."""
POINTER: Final[Mapping[int, tuple[int, int]]] = {
    SelectorType.ETH: (12, 14),
    SelectorType.IPV4: (9, 10),
    SelectorType.IPV6: (6, 7),
}
"""Which bytes of a header say what the next one is."""
POINTED: Final[Mapping[int, bytes]] = {
    SelectorType.IPV4: ETHERTYPE_IPV4.to_bytes(2, "big"),
    SelectorType.IPV6: ETHERTYPE_IPV6.to_bytes(2, "big"),
    SelectorType.TCP: bytes([TCP]),
    SelectorType.UDP: bytes([UDP]),
    SelectorType.ESP: bytes([50]),
}
"""What is said there of each."""


class Selector(NamedTuple):
    """A header to look at, and the bits of it that count."""

    type: int
    mask: bytes
    flags: int = 0

    def encode(self) -> bytes:
        """The bytes of a virtio_net_ff_selector."""
        return virtio_net_ff_selector.encode(type=self.type, flags=self.flags, length=len(self.mask)) + self.mask


class FlowRule(NamedTuple):
    """A rule; `vq_index` is a virtqueue's, and means something for DIRECT_RX_VQ only."""

    group: int
    classifier: int
    priority: int
    keys: bytes
    action: FlowAction
    vq_index: int = 0

    def encode(self) -> bytes:
        """The bytes of a virtio_net_resource_obj_ff_rule."""
        head = virtio_net_resource_obj_ff_rule.encode(
            group_id=self.group,
            classifier_id=self.classifier,
            rule_priority=self.priority,
            key_length=len(self.keys),
            action=self.action,
            vq_index=self.vq_index,
        )
        return head + self.keys


def encode_selectors(selectors: Sequence[Selector]) -> bytes:
    """A classifier, or a selector capability."""
    return virtio_net_ff_cap_mask_data.encode(count=len(selectors)) + b"".join(s.encode() for s in selectors)


def decode_selectors(data: bytes) -> tuple[Selector, ...]:
    """The selectors of a list, which says itself where it ends. Raises Refused for bytes that are none."""
    count = decode_head(virtio_net_ff_cap_mask_data, data).count
    found, at = [], virtio_net_ff_cap_mask_data.size
    for _ in range(count):
        head = decode_head(virtio_net_ff_selector, data[at:])
        at += virtio_net_ff_selector.size
        if head.length != SELECTOR_BYTES.get(head.type):
            raise Refused(AdminStatus.EINVAL, f"a selector of type {head.type} with {head.length} bytes")
        found.append(Selector(head.type, padded(data[at:], head.length), head.flags))
        at += head.length
    return tuple(found)


def encode_actions(actions: Sequence[int]) -> bytes:
    """An action capability."""
    return virtio_net_ff_actions.encode(count=len(actions)) + bytes(sorted(actions))


def decode_actions(data: bytes) -> bytes:
    """The actions of a list, a byte each."""
    return padded(data[virtio_net_ff_actions.size :], decode_head(virtio_net_ff_actions, data).count)


def decode_head(record: Record, data: bytes) -> Any:
    """The record at the beginning of `data`, zeros where it is cut short."""
    return record.decode(padded(data, record.size))


def covered(selector: Selector, offered: Sequence[Selector]) -> bool:
    """Whether a selector looks at no more than the offered one of its type does."""
    most = next((s for s in offered if s.type == selector.type), None)
    if most is None or selector.flags & ~most.flags & PARTIAL_MASK:
        return False
    return not any(bits & ~can for bits, can in zip(selector.mask, most.mask, strict=True))


def is_whole(selector: Selector) -> bool:
    """Whether each field of the header is masked wholly or not at all."""
    number, left = int.from_bytes(selector.mask, "big"), 8 * len(selector.mask)
    for bits in _FIELD_BITS[selector.type]:
        left -= bits
        if number >> left & (1 << bits) - 1 not in (0, (1 << bits) - 1):
            return False
    return True


@define
class FlowLimits:
    """The flow filter resource capability: how many objects there may be."""

    groups_limit: int = 16
    classifiers_limit: int = 64
    rules_limit: int = 1024
    rules_per_group_limit: int = 1024
    last_rule_priority: int = 255
    selectors_per_classifier_limit: int = 3

    def encode(self) -> bytes:
        """virtio_net_ff_cap_data."""
        return virtio_net_ff_cap_data.encode(**{name: getattr(self, name) for name in _LIMITS})

    @classmethod
    def decode(cls, data: bytes) -> FlowLimits:
        """The limits of a virtio_net_ff_cap_data."""
        values = decode_head(virtio_net_ff_cap_data, data)
        return cls(**{name: getattr(values, name) for name in _LIMITS})

    def within(self, most: FlowLimits) -> bool:
        """Whether none of them is larger than there."""
        return all(getattr(self, name) <= getattr(most, name) for name in _LIMITS)


_LIMITS: Final = [name for name in virtio_net_ff_cap_data.fields if name != "reserved"]
ALL_SELECTORS: Final = tuple(Selector(kind, b"\xff" * size, PARTIAL_MASK) for kind, size in SELECTOR_BYTES.items())
