"""Ring kernels of the device's half, each broken in one line (2.7, 2.8): a disk served by them is judged."""

from __future__ import annotations

from typing import Final

from tests.mutants.edits import broken_engine
from tests.mutants.registry import Carrier, Mutant, judge_device, register
from virtio_py.devices.blk.device import BlkDevice
from virtio_py.devices.blk.media import MemoryMedium
from virtio_py.transports.in_process import InProcess

_USED: Final = "split.device.used-buffer-notification-suppression"
_FLAGS: Final = "split.device.available-buffer-notification-suppression"
_ORDER: Final = "features.device.reserved-feature-bits.5"
_LINES: Final = "split.device.message-framing.1"
_LISTS: Final = "packed.device.scatter-gather-support.1"
_EVENTS: Final = "prose.packed.event-suppression"
_FAULT: Final = "status.device.device-status-field.2"
_ROW: Final = "buffers[n * BUFFER + ID], buffers[n * BUFFER + LENGTH]\n        "
_LAST: Final = "buffers[(count - 1 - n) * BUFFER + ID], buffers[(count - 1 - n) * BUFFER + LENGTH]\n        "
_STORED: Final = "ring.ring32[slot * STRIDE32 + DESC_LEN] = length"

SPLIT: Final = {
    "the length is not written": (
        "split.device.used-ring.1", "split_complete", "used32[ELEMENT_LEN + slot * USED_STRIDE] = length", "pass",
    ),
    "the id is not written": (
        "split.device.used-ring.1", "split_complete", "used32[ELEMENT_ID + slot * USED_STRIDE] = head", "pass",
    ),
    "each element counts twice": (
        "split.device.used-ring.1", "split_complete", "elements += 1\n        used += 1",
        "elements += 1\n        used += 2",
    ),
    "a batch is told but for its last": (
        "split.device.used-ring.1", "split_complete",
        "store_release(ring.used16, USED_IDX, used)", "store_release(ring.used16, USED_IDX, used - (count > 1))",
    ),
    "the used index has 7 bits": ("split.device.used-ring.1", "split_complete", "used &= 0xFFFF", "used &= 0x7F"),
    "the last slot is never read": (
        "split.device.used-ring.1", "split_take",
        "AVAIL_RING + ((start + n) & (size - 1))", "AVAIL_RING + min((start + n) & (size - 1), size - 2)",
    ),
    "more is used than there is room for": (
        "split.device.used-ring.2", "split_complete", "+ slot * USED_STRIDE] = length",
        "+ slot * USED_STRIDE] = length + 9999",
    ),
    "heads are marked in the table": (
        "split.device.descriptor-table.4", "split_take", "address, length, flags, _ = descriptor\n",
        "address, length, flags, _ = descriptor\n            "
        "store_split_descriptor(memory, ring.row, ring.table + head * DESC_SIZE, address, length, flags, 0xFFFF)\n",
    ),
    "four descriptors are a chain": (_LINES, "put_segment", "end - first >= max_chain", "end - first >= 4"),
    "only the last writable one is written": (_LINES, "split_walk", "if middle < 0:", "if True:"),
    "WRITE on the pointer is a fault": (
        "split.device.indirect-descriptors.1", "split_walk", "if flags & F_NEXT:", "if flags & (F_NEXT | F_WRITE):",
    ),
    "direct ones before a table are a fault": (
        "split.device.indirect-descriptors.2", "split_walk", "if inside:", "if inside or end > first:",
    ),
    "used_event counts without EVENT_IDX": (
        f"{_USED}.1", "split_used_notification_due", "if not ring.event_idx:", "if False:",
    ),
    "no notification without EVENT_IDX": (
        f"{_USED}.3", "split_used_notification_due",
        "return not load_once(ring.avail16, AVAIL_FLAGS) & NO_INTERRUPT", "return False",
    ),
    "the flag counts with EVENT_IDX": (
        f"{_USED}.4", "split_used_notification_due", "if not ring.event_idx:",
        "if not ring.event_idx or load_once(ring.avail16, AVAIL_FLAGS):",
    ),
    "the event is one too late": (
        f"{_USED}.5", "split_used_notification_due", "need_event(event, ", "need_event(event + 1, ",
    ),
    "of a batch only the last is compared": (
        f"{_USED}.5", "split_used_notification_due", "state[NEXT_USED] - since)", "state[NEXT_USED] - 1)",
    ),
    "the used flags have another bit": (f"{_FLAGS}.1", "split_device_notifications", "0 if enabled", "2 if enabled"),
    "the used flags with EVENT_IDX": (
        f"{_FLAGS}.3", "split_device_notifications", "store_release(ring.used16, ring.avail_event",
        "store_release(ring.used16, USED_FLAGS, NO_NOTIFY)\n            store_release(ring.used16, ring.avail_event",
    ),
    "a fault is kept to itself": (_FAULT, "split_take", "return n if n or not fault else -fault", "return n"),
}  # fmt: skip

PACKED: Final = {
    "all laps are the first": ("packed.device.virtqueues.2", "packed_complete", "if wrap:", "if True:"),
    "the used id is not written": (
        "packed.device.virtqueues.2", "packed_complete", "ring16[slot * STRIDE16 + DESC_ID] = ident", "pass",
    ),
    "the id is the first one's": (
        "packed.device.virtqueues.2", "packed_walk", "ident = state[FAULT_ID] = name",
        "ident = state[FAULT_ID] = ident if slots > 1 else name",
    ),
    "each used one takes one slot": ("packed.device.virtqueues.2", "packed_complete", "slot += skipped", "slot += 1"),
    "a lap begins in slot 0": (
        "packed.device.virtqueues.1", "packed_take", "slot -= size\n            wrap ^= 1",
        "slot = 0\n            wrap ^= 1",
    ),
    "the second lap is the first": ("packed.device.virtqueues.1", "packed_take", "wrap ^= 1", "pass"),
    "AVAIL is not looked at": (
        "packed.device.descriptor-table.3", "packed_is_available",
        "flags & (F_AVAIL | F_USED) == (F_AVAIL if wrap else F_USED)", "flags & F_USED == (0 if wrap else F_USED)",
    ),
    "the used one before is touched": (
        "packed.device.descriptor-table.4", "packed_complete", "store_release(ring16, first_slot",
        "ring.ring32[((slot - 2 * moved) % size) * STRIDE32 + DESC_LEN] = 77\n        store_release(ring16, first_slot",
    ),
    "more is used than the list has": ("prose.packed.used-length", "packed_complete", _STORED, f"{_STORED} + 9999"),
    "only the last writable one of a list": (_LISTS, "packed_walk", "if middle < 0:", "if True:"),
    "four descriptors are a list": (_LISTS, "put_segment", "end - first >= max_chain", "end - first >= 4"),
    "a table ends where NEXT is missing": (
        _LISTS, "packed_walk", "if index == entries:", "if index == entries or not flags & F_NEXT:",
    ),
    "WRITE on a list's pointer is a fault": (
        _LISTS, "packed_walk", "if flags & F_NEXT or slots > 1:", "if flags & (F_NEXT | F_WRITE) or slots > 1:",
    ),
    "ENABLE is DISABLE": (
        _EVENTS, "packed_event_due", "since > size:\n        return True", "since > size:\n        return False",
    ),
    "the event is a list too late": (_EVENTS, "packed_event_due", "need_event(off, ", "need_event(off + 3, "),
    "an event's lap is not looked at": (
        _EVENTS, "packed_event_due", "if event >> EVENT_WRAP & 1 != wrap:", "if False:",
    ),
    "a batch of lists comes back in reverse": (_ORDER, "packed_complete", f"{_ROW}skipped", f"{_LAST}skipped"),
    "a list's fault is kept to itself": (_FAULT, "packed_take", "return n if n or not fault else -fault", "return n"),
}  # fmt: skip
"""What is wrong: the clause, the kernel, what its source says, and what it says in the mutant."""

HARD: Final = {
    "of a batch only the last is compared": "seen only where several buffers are used at once, and the event is none "
    "of the last: no check did that",
    "the used id is not written": "the suite's driver wrote a list's id to all its descriptors, so that it stood there",
    "the id is the first one's": "likewise: only the last descriptor of a list has the id (2.8.5)",
    "an event's lap is not looked at": "seen only where the event lies in the lap after ours: no check went so far",
}


def _disk(kernel: str, old: str, new: str) -> InProcess:
    return Carrier(BlkDevice(MemoryMedium.of(1 << 20)), broken_engine(kernel, old, new))


for _name, (_clause, *_edit) in {**SPLIT, **PACKED}.items():
    _judge = judge_device("blk", lambda edit=tuple(_edit): _disk(*edit))  # type: ignore[misc]  # bound as they are now
    register(Mutant(_name, _clause, _judge, "kernels", hard=HARD.get(_name, "")))
