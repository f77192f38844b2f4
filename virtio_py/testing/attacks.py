"""The kinds of defects that virtio code has really had, one line each: what `hostile_driver` and `hostile_device` try.

The numbers are this project's own. What a peer must come to is the same for all of them: an error that names the place,
a bounded amount of work and memory, nothing written or read that was not granted, and a reset after which all is well.
"""

from __future__ import annotations

from typing import Final

ATTACK_CLASSES: Final[dict[str, str]] = {
    "A1": "a chain of descriptors that leads back into itself",
    "A2": "more descriptors or buffers than the queue or its table can hold",
    "A3": "descriptors of no bytes: nothing to do must not mean doing it for ever",
    "A4": "a packed descriptor that is refused and found again, for ever",
    "A5": "an address range that is not memory in all of its bytes",
    "A6": "a sum of address and length, or of lengths, that wraps around",
    "A7": "a used length larger than what was lent",
    "A8": "an id that was never handed out, or comes back twice, or is reused while in flight",
    "A9": "a request's head that is too short, or cut into pieces where nobody expected it",
    "A10": "a head whose size depends on features, taken for the other size",
    "A11": "a failure halfway through several buffers, after which some are never returned",
    "A12": "a used length that tells of bytes nobody wrote, and hands out what was in memory before",
    "A13": "lengths inside a request that disagree with each other",
    "A14": "memory that changes between the check and the use",
    "A15": "offsets inside a packet that point behind it",
    "A16": "indices and table sizes in control commands that the device does not have",
    "A17": "a control message of an unexpected size, or about a port that is not there",
    "A18": "fields of one command that make the device copy, keep or free too much",
    "A19": "requests whose answer needs more memory than anybody should give for one",
    "A20": "a producer so fast that the consumer never looks at anything else",
    "A21": "a register written at a time when it must not change, or with a value it cannot have",
    "A22": "an access to the configuration space that reaches behind its end",
    "A23": "a log of written pages that is shorter than what is written",
    "A24": "a buffer that lies on the queue itself, or on a register",
    "A25": "descriptors of files that a message should not carry, and that nobody closes",
    "A26": "an index that is valid only in its low bits",
    "A27": "a message repeated until what it allocates is gone",
    "A28": "a shared region of requests in flight that lies about its own size",
    "A29": "a table of memory regions that overlap, wrap, or lie outside their files",
    "A30": "a file descriptor of the wrong kind, or a peer that goes away",
    "A31": "names and paths, which only file systems have",
    "A32": "messages that are cut, too long, unknown, or replies to nothing",
    "A33": "offsets, bitmaps and counts in messages of vfio-user",
}
"""By number. A1 to A24 concern rings, devices and registers; A25 to A30 and A32 vhost-user; A33 vfio-user."""
