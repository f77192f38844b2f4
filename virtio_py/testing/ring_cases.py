"""What a ring can be asked to do, as rows of a benchmark."""

from __future__ import annotations

from itertools import product
from typing import Any, Final

from attrs import evolve, frozen

from virtio_py.spec import Feature, mask

AXES: Final[dict[str, tuple[Any, ...]]] = {
    "engine": ("compiled", "reference"),
    "where": ("threads", "processes"),
    "layout": ("split", "packed"),
    "in_order": (False, True),
    "event_idx": (False, True),
    "notify": ("poll", "eventfd"),
    "indirect": (False, True),
    "chain": (1, 3),
    "batch": (1, 8, 32, 256),
}
"""Every choice there is; the last varies fastest."""


def ring_features(layout: str, in_order: bool, event_idx: bool, indirect: bool) -> int:
    """The mask of the feature bits that such a ring has negotiated."""
    wanted = {
        Feature.RING_PACKED: layout == "packed",
        Feature.IN_ORDER: in_order,
        Feature.EVENT_IDX: event_idx,
        Feature.INDIRECT_DESC: indirect,
    }
    return mask(Feature.VERSION_1, *(feature for feature, yes in wanted.items() if yes))


@frozen
class Case:
    """One combination.

    batch: buffers made available, taken and completed at once; chain: descriptors of a buffer, the last one writable;
    indirect: whether VIRTIO_F_INDIRECT_DESC is negotiated, which a chain of 1 makes no use of; notify: "poll" or
    "eventfd"; where: "threads" or "processes".
    """

    layout: str = "split"
    in_order: bool = False
    event_idx: bool = False
    batch: int = 32
    chain: int = 1
    indirect: bool = False
    notify: str = "poll"
    engine: str = "compiled"
    where: str = "threads"

    @property
    def features(self) -> int:
        """The mask of the feature bits."""
        return ring_features(self.layout, self.in_order, self.event_idx, self.indirect)

    @property
    def options(self) -> str:
        """What was negotiated besides the layout, in words."""
        words = {"in order": self.in_order, "event idx": self.event_idx, "indirect": self.indirect}
        return ", ".join(word for word, yes in words.items() if yes) or "-"

    def __str__(self) -> str:
        words = [self.engine, self.where, self.layout, self.options.replace(", ", "-").replace(" ", "_")]
        return "-".join([*words, self.notify, f"chain{self.chain}", f"batch{self.batch}"]).replace("---", "-")


def all_cases() -> list[Case]:
    """All of them."""
    return [Case(**dict(zip(AXES, choice, strict=True))) for choice in product(*AXES.values())]


def quick_cases() -> list[Case]:
    """For either layout, in order or not: every batch, and at batch 32 each other choice made differently, once."""
    return [case for layout in AXES["layout"] for order in AXES["in_order"] for case in _around(layout, order)]


def _around(layout: str, in_order: bool) -> list[Case]:
    usual = Case(layout, in_order)
    return [
        *(evolve(usual, batch=batch) for batch in AXES["batch"]),
        evolve(usual, chain=3),
        evolve(usual, chain=3, indirect=True),
        evolve(usual, event_idx=True),
        evolve(usual, notify="eventfd"),
        evolve(usual, notify="eventfd", event_idx=True),
        evolve(usual, where="processes"),
        evolve(usual, engine="reference"),
        evolve(usual, engine="reference", where="processes"),
    ]
