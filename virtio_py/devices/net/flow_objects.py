"""Flow filters (5.1.6.6) as administration commands find them: what a driver may take of a table, and make in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from attrs import define, field

from virtio_py.devices.net.flow_filter import FlowTable
from virtio_py.devices.net.flow_layout import (
    FF_ACTION_CAP,
    FF_RESOURCE_CAP,
    FF_SELECTOR_CAP,
    FlowLimits,
    FlowObject,
    Selector,
    covered,
    decode_actions,
    decode_selectors,
    encode_actions,
    encode_selectors,
)
from virtio_py.resources import AdminStatus, Capability, Refused, ResourceType

FF_CAPS: Final = (FF_RESOURCE_CAP, FF_SELECTOR_CAP, FF_ACTION_CAP)


@define(eq=False)
class FlowObjects:
    """The capabilities and objects of one table. What the table has at the beginning is the offer; what the driver
    takes of it becomes the table's own."""

    table: FlowTable
    _limits: FlowLimits = field(init=False)
    _selectors: Sequence[Selector] = field(init=False)
    _actions: Sequence[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._limits, self._selectors, self._actions = self.table.limits, self.table.selectors, self.table.actions

    def capabilities(self) -> Mapping[int, Capability]:
        """The three of them."""
        return {
            FF_RESOURCE_CAP: Capability(self._limits.encode, self._accept_limits),
            FF_SELECTOR_CAP: Capability(lambda: encode_selectors(self._selectors), self._accept_selectors),
            FF_ACTION_CAP: Capability(lambda: encode_actions(self._actions), self._accept_actions),
        }

    def resource_types(self) -> Mapping[int, ResourceType]:
        """Groups, classifiers and rules."""
        return {kind: self._resource_type(kind) for kind in FlowObject}

    def _resource_type(self, kind: FlowObject) -> ResourceType:
        table = self.table
        return ResourceType(
            FF_CAPS,
            partial(self._limit, kind),
            partial(table.create, kind),
            partial(table.destroy, kind),
            partial(table.query, kind),
            partial(table.modify, kind),
        )

    def _limit(self, kind: FlowObject) -> int:
        limits = self.table.limits
        return {
            FlowObject.GROUP: limits.groups_limit,
            FlowObject.CLASSIFIER: limits.classifiers_limit,
            FlowObject.RULE: limits.rules_limit,
        }[kind]

    def _accept_limits(self, data: bytes) -> None:
        wanted = FlowLimits.decode(data)
        if not wanted.within(self._limits):
            raise Refused(AdminStatus.EINVAL, "larger limits than there are")
        self.table.limits = wanted

    def _accept_selectors(self, data: bytes) -> None:
        wanted = decode_selectors(data)
        if not all(covered(selector, self._selectors) for selector in wanted):
            raise Refused(AdminStatus.EINVAL, "a selector that is not offered")
        self.table.selectors = wanted

    def _accept_actions(self, data: bytes) -> None:
        wanted = decode_actions(data)
        if set(wanted) - set(self._actions):
            raise Refused(AdminStatus.EINVAL, "an action that is not offered")
        self.table.actions = tuple(wanted)
