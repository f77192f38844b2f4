"""The virtio 1.4 specification as executable Python."""

from __future__ import annotations

__version__ = "0.1.0"
