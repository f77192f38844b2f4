"""The type of one field's value, for whoever makes values from types; apart, so that knowing it costs nothing."""

from __future__ import annotations

from types import GenericAlias
from typing import Any, ClassVar


class FieldValue:
    """`FieldValue[field]` annotates what a `virtio_py.records.Field` holds; nobody makes one.

    The fields of a record's `value_type` are annotated with it, so that Hypothesis' `from_type` finds its way.
    """

    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)
