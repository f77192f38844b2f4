"""The type of one field's value, for whoever makes values from types. It stands alone so that to know it costs nothing."""

from __future__ import annotations

from types import GenericAlias
from typing import Final


class FieldValue:
    """`FieldValue[field]` annotates what a `virtio_py.records.Field` holds; nobody makes one.

    The fields of a record's `value_type` are annotated with it, so that Hypothesis' `from_type` finds its way.
    """

    __class_getitem__: Final = classmethod(GenericAlias)
