"""The ring structures of 2.7 and 2.8, declared once; every offset elsewhere is derived from here."""

from __future__ import annotations

from construct import Array, Int16ul, Int32ul, Int64sl, Int64ul, Struct

from virtio_py.records import Record, RecordFamily, Register, Rule
from virtio_py.spec import VirtqDescFlag

_NEXT, _INDIRECT = VirtqDescFlag.NEXT, VirtqDescFlag.INDIRECT

virtq_desc = Record(
    "virtq_desc",
    Struct("addr" / Int64ul, "len" / Int32ul, "flags" / Int16ul, "next" / Int16ul),
    cite="2.7.5 The Virtqueue Descriptor Table",
    rules=(
        Rule(
            "split.driver.indirect-descriptors.4",
            "flags",
            lambda d: d.flags & (_NEXT | _INDIRECT) != _NEXT | _INDIRECT,
            "INDIRECT and NEXT are both set",
        ),
        Rule(
            "split.driver.descriptor-table.1",
            "len",
            lambda d: d.addr + d.len <= 1 << 64,
            "the buffer wraps around the end of the address space",
        ),
    ),
)

virtq_avail = RecordFamily(
    "virtq_avail",
    lambda queue_size: Struct(
        "flags" / Int16ul, "idx" / Int16ul, "ring" / Array(queue_size, Int16ul), "used_event" / Int16ul
    ),
    cite="2.7.6 The Virtqueue Available Ring",
)

virtq_used_elem = Record(
    "virtq_used_elem", Struct("id" / Int32ul, "len" / Int32ul), cite="2.7.8 The Virtqueue Used Ring"
)

virtq_used = RecordFamily(
    "virtq_used",
    lambda queue_size: Struct(
        "flags" / Int16ul,
        "idx" / Int16ul,
        "ring" / Array(queue_size, virtq_used_elem.layout),
        "avail_event" / Int16ul,
    ),
    cite="2.7.8 The Virtqueue Used Ring",
)

pvirtq_desc = Record(
    "pvirtq_desc",
    Struct("addr" / Int64ul, "len" / Int32ul, "id" / Int16ul, "flags" / Int16ul),
    cite="2.8.13 The Virtqueue Descriptor Ring",
    rules=(
        Rule(
            "packed.driver.indirect-descriptors.4",
            "flags",
            lambda d: d.flags & (_NEXT | _INDIRECT) != _NEXT | _INDIRECT,
            "INDIRECT and NEXT are both set",
        ),
    ),
)

pvirtq_event_suppress = Record(
    "pvirtq_event_suppress",
    Struct(
        "desc" / Register(Int16ul, desc_event_off=15, desc_event_wrap=1),
        "flags" / Register(Int16ul, desc_event_flags=2, reserved=14),
    ),
    cite="2.8.14 Event Suppression Structure Format",
)

signed_word = Record("signed_word", Struct("value" / Int64sl))
"""What a stress run fills buffers with."""
