"""Flow filters, the half that asks (5.1.6.6): groups, classifiers and rules, by administration commands.

flows = FlowDriver(objects).start()                objects: of the self group, see virtio_py.admin.client_objects
flows.create_group(0, priority=10)
flows.create_classifier(0, [Selector(SelectorType.ETH, mask)])
flows.create_rule(0, FlowRule(group=0, classifier=0, priority=5, keys=key, action=FlowAction.DROP))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

from attrs import define, field

from virtio_py.admin.client_objects import ObjectClient, ObjectKind
from virtio_py.devices.net.flow_layout import (
    FF_ACTION_CAP,
    FF_RESOURCE_CAP,
    FF_SELECTOR_CAP,
    FlowLimits,
    FlowObject,
    FlowRule,
    Selector,
    covered,
    decode_actions,
    decode_selectors,
    encode_actions,
    encode_selectors,
    virtio_net_resource_obj_ff_group,
)
from virtio_py.devices.net.flow_objects import FF_CAPS
from virtio_py.errors import UsageError

_KINDS: Final = {kind: ObjectKind(kind, FF_CAPS) for kind in FlowObject}


def _limits_within(offered: bytes, chosen: bytes) -> bool:
    return FlowLimits.decode(chosen).within(FlowLimits.decode(offered))


def _selectors_within(offered: bytes, chosen: bytes) -> bool:
    most = decode_selectors(offered)
    return all(covered(selector, most) for selector in decode_selectors(chosen))


def _actions_within(offered: bytes, chosen: bytes) -> bool:
    return set(decode_actions(chosen)) <= set(decode_actions(offered))


@define(eq=False)
class FlowDriver:
    """The flow filters of one device. Everything raises UsageError for what a driver must not do, and AdminFailed."""

    objects: ObjectClient
    limits: FlowLimits = field(factory=FlowLimits, init=False)
    rules: dict[int, FlowRule] = field(factory=dict, init=False)

    def start(self, limits: FlowLimits | None = None) -> Self:
        """Takes all selectors and actions that are offered, and all there can be of each object, or `limits`. Raises
        UsageError where there are no flow filters."""
        capabilities = self.objects.capabilities
        if not capabilities.ids().issuperset(FF_CAPS):
            raise UsageError("the device does not offer flow filters")
        self.limits = FlowLimits.decode(capabilities.offered(FF_RESOURCE_CAP)) if limits is None else limits
        selectors = decode_selectors(capabilities.offered(FF_SELECTOR_CAP))
        actions = decode_actions(capabilities.offered(FF_ACTION_CAP))
        capabilities.set(FF_RESOURCE_CAP, self.limits.encode(), _limits_within)
        capabilities.set(FF_SELECTOR_CAP, encode_selectors(selectors), _selectors_within)
        capabilities.set(FF_ACTION_CAP, encode_actions(actions), _actions_within)
        return self

    def create_group(self, ident: int, priority: int) -> None:
        """A group of rules; of several groups, that with the highest priority is asked first."""
        data = virtio_net_resource_obj_ff_group.encode(group_priority=priority)
        self.objects.create(_KINDS[FlowObject.GROUP], ident, data, self.limits.groups_limit)

    def create_classifier(self, ident: int, selectors: Sequence[Selector]) -> None:
        """What rules look at."""
        data = encode_selectors(selectors)
        self.objects.create(_KINDS[FlowObject.CLASSIFIER], ident, data, self.limits.classifiers_limit)

    def create_rule(self, ident: int, rule: FlowRule) -> None:
        """What becomes of packets. In one group no two rules have the same priority, so that it is never a matter of
        chance which of two comes first (net-flow.driver.flow-filter.6, .7)."""
        if any((other.group, other.priority) == (rule.group, rule.priority) for other in self.rules.values()):
            raise UsageError(f"group {rule.group} has a rule of priority {rule.priority}")
        if rule.priority >= self.limits.last_rule_priority:
            raise UsageError(f"the priority {rule.priority} is not below {self.limits.last_rule_priority}")
        depends = [(FlowObject.GROUP, rule.group), (FlowObject.CLASSIFIER, rule.classifier)]
        limit = min(self.limits.rules_limit, self.limits.rules_per_group_limit)
        self.objects.create(_KINDS[FlowObject.RULE], ident, rule.encode(), limit, depends)
        self.rules[ident] = rule

    def destroy(self, kind: FlowObject, ident: int) -> None:
        """Destroys an object: a group or a classifier once it has no rules."""
        self.objects.destroy(_KINDS[kind], ident)
        if kind == FlowObject.RULE:
            del self.rules[ident]
