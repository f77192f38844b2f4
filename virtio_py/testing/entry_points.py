"""What Hypothesis loads when it is imported, wherever this package is installed: hence it imports next to nothing."""

from __future__ import annotations

from typing import Any

from virtio_py.values import FieldValue


def register_strategies() -> None:
    """Makes `st.from_type(virtq_desc.value_type)` work, for every record there is or will be."""
    from hypothesis import strategies as st

    def strategy(alias: Any) -> st.SearchStrategy[Any]:
        from virtio_py.testing.strategies import field_values

        return field_values(alias.__args__[0])

    st.register_type_strategy(FieldValue, strategy)
