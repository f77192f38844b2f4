"""Flow filters (5.1.6.6): capabilities, resource objects, and the table of rules that received packets go through.

A rule says what to do with packets in whose headers, seen through the masks of a classifier, the bytes of a key are
found. Rules are tried group by group, in the order of priority, the highest first; the first that matches decides.

The objects arrive by administration commands; `FlowTable` is what these commands act upon, by way of `flow_objects`.
Where text and clauses differ, the clauses rule: `last_rule_priority` itself is not to be used. But EtherType is bytes
12 and 13 of a frame, not 13 and 14, and ESP may be a third selector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from attrs import define, field

from virtio_py.devices.net.flow_layout import (
    ALL_SELECTORS,
    FLOW_ACTIONS,
    NEXT,
    PARTIAL_MASK,
    POINTED,
    POINTER,
    SELECTOR_BYTES,
    FlowAction,
    FlowLimits,
    FlowObject,
    FlowRule,
    Selector,
    SelectorType,
    decode_head,
    decode_selectors,
    encode_selectors,
    is_whole,
    virtio_net_resource_obj_ff_group,
    virtio_net_resource_obj_ff_rule,
)
from virtio_py.devices.net.parsing import TCP, UDP, Network
from virtio_py.resources import AdminStatus, Refused, padded


@define
class FlowTable:
    """The rules of one device. `receiveqs` are the indices of virtqueues that a packet can be directed to."""

    receiveqs: Sequence[int] = (0,)
    limits: FlowLimits = field(factory=FlowLimits)
    selectors: Sequence[Selector] = ALL_SELECTORS
    actions: Sequence[int] = FLOW_ACTIONS
    groups: dict[int, int] = field(factory=dict)
    classifiers: dict[int, tuple[Selector, ...]] = field(factory=dict)
    rules: dict[int, FlowRule] = field(factory=dict)
    _ordered: list[FlowRule] = field(factory=list, init=False)

    def create(self, kind: FlowObject, ident: int, data: bytes) -> None:
        """VIRTIO_ADMIN_CMD_RESOURCE_OBJ_CREATE. Raises Refused."""
        if ident in self._objects(kind):
            raise Refused(AdminStatus.EEXIST, f"{kind.name} {ident} exists")
        {FlowObject.GROUP: self._group, FlowObject.CLASSIFIER: self._classifier, FlowObject.RULE: self._rule}[kind](
            ident, data
        )
        self._order()

    def destroy(self, kind: FlowObject, ident: int) -> None:
        """VIRTIO_ADMIN_CMD_RESOURCE_OBJ_DESTROY. Raises Refused."""
        objects = self._objects(kind)
        if ident not in objects:
            raise Refused(AdminStatus.ENXIO, f"no {kind.name} {ident}")
        if kind != FlowObject.RULE and any(self._depends(rule, kind) == ident for rule in self.rules.values()):
            raise Refused(AdminStatus.EBUSY, f"{kind.name} {ident} has rules")
        del objects[ident]
        self._order()

    def modify(self, kind: FlowObject, ident: int, data: bytes) -> None:
        """VIRTIO_ADMIN_CMD_RESOURCE_OBJ_MODIFY: as if the object had never been other. Raises Refused."""
        old = self.query(kind, ident)
        self.destroy(kind, ident)
        try:
            self.create(kind, ident, data)
        except Refused:
            self.create(kind, ident, old)
            raise
        self._order()

    def query(self, kind: FlowObject, ident: int) -> bytes:
        """VIRTIO_ADMIN_CMD_RESOURCE_OBJ_QUERY: the object's data as they were given. Raises Refused."""
        if ident not in self._objects(kind):
            raise Refused(AdminStatus.ENXIO, f"no {kind.name} {ident}")
        if kind == FlowObject.GROUP:
            return virtio_net_resource_obj_ff_group.encode(group_priority=self.groups[ident])
        return self.rules[ident].encode() if kind == FlowObject.RULE else encode_selectors(self.classifiers[ident])

    def _objects(self, kind: FlowObject) -> dict[int, Any]:
        objects: dict[FlowObject, dict[int, Any]] = {
            FlowObject.GROUP: self.groups,
            FlowObject.CLASSIFIER: self.classifiers,
            FlowObject.RULE: self.rules,
        }
        return objects[kind]

    @staticmethod
    def _depends(rule: FlowRule, kind: FlowObject) -> int:
        return rule.group if kind == FlowObject.GROUP else rule.classifier

    # Judging what is to be created

    def _group(self, ident: int, data: bytes) -> None:
        priority = decode_head(virtio_net_resource_obj_ff_group, data).group_priority
        if priority in self.groups.values():
            raise Refused(AdminStatus.EINVAL, f"group priority {priority} is taken")
        if len(self.groups) >= min(self.limits.groups_limit, self.limits.rules_per_group_limit):
            raise Refused(AdminStatus.ENOSPC, "no more groups")
        self.groups[ident] = priority

    def _classifier(self, ident: int, data: bytes) -> None:
        selectors = decode_selectors(data)
        if not 0 < len(selectors) <= min(self.limits.selectors_per_classifier_limit, len(NEXT)):
            raise Refused(AdminStatus.EINVAL, f"{len(selectors)} selectors")
        for n, selector in enumerate(selectors):
            if selector.type not in NEXT[n] or not self._can_match(selector):
                raise Refused(AdminStatus.EINVAL, f"selector {n} of type {selector.type}")
        for selector in selectors[:-1]:
            first, end = POINTER[selector.type]
            if selector.mask[first:end].strip(b"\xff"):
                raise Refused(AdminStatus.EINVAL, "what the next header is does not count")
        if len(self.classifiers) >= self.limits.classifiers_limit:
            raise Refused(AdminStatus.ENOSPC, "no more classifiers")
        self.classifiers[ident] = selectors

    def _can_match(self, selector: Selector) -> bool:
        offered = next((s for s in self.selectors if s.type == selector.type), None)
        if offered is None or any(bits & ~can for bits, can in zip(selector.mask, offered.mask, strict=True)):
            return False
        return bool(selector.flags & offered.flags & PARTIAL_MASK) or is_whole(selector)

    def _rule(self, ident: int, data: bytes) -> None:
        head = decode_head(virtio_net_resource_obj_ff_rule, data)
        keys = padded(data[virtio_net_resource_obj_ff_rule.size :], head.key_length)
        if reason := self._wrong_rule(ident, head, keys):
            raise Refused(AdminStatus.EINVAL, reason)
        if len(self.rules) >= self.limits.rules_limit:
            raise Refused(AdminStatus.ENOSPC, "no more rules")
        self.rules[ident] = FlowRule(
            head.group_id, head.classifier_id, head.rule_priority, keys, FlowAction(head.action), head.vq_index
        )

    def _wrong_rule(self, ident: int, head: Any, keys: bytes) -> str:
        if head.group_id not in self.groups or head.classifier_id not in self.classifiers:
            return "it is in no group, or has no classifier"
        if ident >= min(self.limits.rules_limit, self.limits.rules_per_group_limit):
            return f"the id {ident} is not below the limits"
        if head.rule_priority >= self.limits.last_rule_priority:
            return f"the priority {head.rule_priority} is not below {self.limits.last_rule_priority}"
        if head.action not in self.actions:
            return f"there is no action {head.action}"
        if head.action == FlowAction.DIRECT_RX_VQ and head.vq_index not in self.receiveqs:
            return f"queue {head.vq_index} is no receive queue"
        return self._wrong_keys(self.classifiers[head.classifier_id], keys)

    @staticmethod
    def _wrong_keys(selectors: Sequence[Selector], keys: bytes) -> str:
        if len(keys) != sum(len(s.mask) for s in selectors):
            return f"{len(keys)} bytes of keys"
        at = 0
        for selector, following in pairwise(selectors):
            first, end = POINTER[selector.type]
            if keys[at + first : at + end] != POINTED[following.type]:
                return "a key does not name the header that the next one is for"
            at += len(selector.mask)
        return ""

    # Packets

    def _order(self) -> None:
        self._ordered = sorted(self.rules.values(), key=lambda r: (-self.groups[r.group], -r.priority))

    def match(self, frame: bytes, network: Network | None) -> FlowRule | None:
        """The rule that decides over a frame, or None."""
        headers: dict[int, bytes] | None = None
        for rule in self._ordered:
            headers = _headers(frame, network) if headers is None else headers
            if _matches(self.classifiers[rule.classifier], rule.keys, headers):
                return rule
        return None


def _headers(frame: bytes, network: Network | None) -> dict[int, bytes]:
    found = {int(SelectorType.ETH): frame[:14]}
    if network is None:
        return found
    at, kind = network.start, SelectorType.IPV4 if network.version == 4 else SelectorType.IPV6
    header = bytearray(frame[at : at + SELECTOR_BYTES[kind]])
    if network.version == 6:
        # Behind extension headers it is the last one's that counts.
        header[6] = network.protocol
    found[kind] = bytes(header)
    transport = {TCP: SelectorType.TCP, UDP: SelectorType.UDP, 50: SelectorType.ESP}.get(network.protocol)
    if transport is not None and network.transport:
        found[transport] = frame[network.transport : network.transport + SELECTOR_BYTES[transport]]
    return found


def _matches(selectors: Sequence[Selector], keys: bytes, headers: Mapping[int, bytes]) -> bool:
    at = 0
    for selector in selectors:
        size, header = len(selector.mask), headers.get(selector.type, b"")
        mask, key = (int.from_bytes(b, "big") for b in (selector.mask, keys[at : at + size]))
        if len(header) != size or (int.from_bytes(header, "big") ^ key) & mask:
            return False
        at += size
    return True
